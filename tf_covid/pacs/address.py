"""Addresses of archives and of studies in them, as they are given on the command line."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from tf_covid.errors import PacsError
from tf_covid.extras import optional_import

PREFIX = "dicomweb:"
#: DICOM's own rule (PS3.5 9.1), which also keeps a UID harmless in a URL.
_UID = re.compile(r"(?=.{1,64}$)(0|[1-9]\d*)(\.(0|[1-9]\d*))+")


@dataclass(frozen=True)
class Access:
    """How an archive is asked, beside its URL.

    Args:
        user: For basic authentication.
        password: For basic authentication.
        token: Sent as a bearer token.
        ca_file: Certificates (PEM) of those who may vouch for the archive; None: the system's.
        client_cert: Certificate and key of this client (PEM), for TLS.
    """

    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    ca_file: Path | None = None
    client_cert: Path | None = None

    @classmethod
    def of_environment(cls, ca_file: Path | None = None, client_cert: Path | None = None) -> Access:
        """What TFCOVID_DICOMWEB_USER, …_PASSWORD and …_TOKEN hold."""
        user, password, token = (
            os.environ.get(f"TFCOVID_DICOMWEB_{name}", "") for name in ("USER", "PASSWORD", "TOKEN")
        )
        return cls(user, password, token, ca_file, client_cert)


@dataclass(frozen=True)
class StudyAddress:
    """A study in an archive.

    Args:
        url: Of the archive's DICOMweb service; it may hold a user and a password.
        study_uid: StudyInstanceUID.
    """

    url: str = field(repr=False)
    study_uid: str = field(repr=False)


def study_address(text: str) -> StudyAddress:
    """Read `dicomweb:URL#StudyInstanceUID`.

    Raises:
        PacsError: If it is none; what it holds is not repeated.
    """
    url, hash_sign, study_uid = text.removeprefix(PREFIX).rpartition("#")
    if not hash_sign:
        raise PacsError("pacs_url: dicomweb:URL#StudyInstanceUID is needed; there is no # in this")
    if not _UID.fullmatch(study_uid):
        raise PacsError("pacs_url: what stands behind the # is no StudyInstanceUID")
    return StudyAddress(archive_url(url), study_uid)


def archive_url(text: str) -> str:
    """Read the URL of a DICOMweb service, with or without `dicomweb:` before it.

    Raises:
        PacsError: If it is none; what it holds is not repeated.
    """
    httpx = optional_import("httpx", "dicom")
    url = text.removeprefix(PREFIX)
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise PacsError("pacs_url: this is no URL of an archive") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise PacsError(
            "pacs_url: an archive's URL begins with https:// or http:// and names a host"
        )
    if parsed.query or parsed.fragment:
        raise PacsError(
            "pacs_url: the URL of a DICOMweb service has neither ? nor #; a token goes into the"
            " variable TFCOVID_DICOMWEB_TOKEN"
        )
    return url.rstrip("/")


def is_uid(text: str) -> bool:
    """Whether a text is a UID, and so may stand in a URL."""
    return _UID.fullmatch(text) is not None
