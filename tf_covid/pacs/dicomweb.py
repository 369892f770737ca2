"""A DICOMweb service: QIDO-RS to list, WADO-RS to retrieve, STOW-RS to store."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING, Any, Self

from tf_covid.errors import PacsError, PacsUnavailable
from tf_covid.pacs.address import Access, is_uid
from tf_covid.pacs.connection import READ_S, Connection

if TYPE_CHECKING:
    from tf_covid.pacs.multipart import MultipartFile
    from tf_covid.tensor import Json

#: Series or instances that are asked for at once.
_PAGE = 1000
#: Most that may be listed of one study, and most series of the whole archive.
_MOST_INSTANCES, _MOST_SERIES = 20_000, 200_000
_ANY_SYNTAX = 'multipart/related; type="application/dicom"; transfer-syntax=*'


@dataclass(frozen=True)
class ListedSeries:
    """A series of a study, as the archive lists it.

    Args:
        uid: SeriesInstanceUID.
        modality: Modality; "" where the archive does not say it.
    """

    uid: str = field(repr=False)
    modality: str


@dataclass(frozen=True)
class ArchivedSeries:
    """A series of an archive.

    Args:
        study_uid: StudyInstanceUID.
        uid: SeriesInstanceUID, as the archive has it: it may be none that can be asked for.
        images: How many images it has; None where the archive does not say it.
    """

    study_uid: str = field(repr=False)
    uid: str = field(repr=False)
    images: int | None


class DicomWeb:
    """One archive. Every call ends: connections, answers and tries are bounded.

    Args:
        url: Of the service, without a slash at its end.
        access: Credentials and certificates.
        read_s: Longest wait for the next piece of an answer, in seconds.

    Raises:
        PacsError: If a certificate cannot be read.
    """

    def __init__(self, url: str, access: Access, *, read_s: float = READ_S) -> None:
        self._connection = Connection(url, access, read_s=read_s)
        #: The service without user and password, for messages.
        self.shown = self._connection.shown

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._connection.close()

    def check(self) -> None:
        """Ask for a series, to see whether the archive is there.

        Raises:
            PacsError: If it does not answer, or not as DICOMweb does.
        """
        self._page("series", {"limit": "1"})

    def ct_series(self, since: date | None = None) -> list[ArchivedSeries]:
        """The CT series of all studies.

        Args:
            since: First day of the studies; None: all.

        Raises:
            PacsError: If the archive does not answer, or not as DICOMweb does.
        """
        query = {"Modality": "CT", "includefield": "00201209"}
        if since is not None:
            query["StudyDate"] = f"{since:%Y%m%d}-"
        listed = []
        for item in self._pages("series", query, _MOST_SERIES, "series (see --study-days)"):
            if _text(item, "00080060") not in ("CT", ""):
                continue  # some services take no notice of a filter
            count = _text(item, "00201209")
            images = int(count) if re.fullmatch("[0-9]{1,9}", count) else None
            listed.append(ArchivedSeries(_text(item, "0020000D"), _text(item, "0020000E"), images))
        return listed

    def series(self, study_uid: str) -> list[ListedSeries]:
        """The series of a study; none where the archive does not know it.

        Raises:
            PacsError: If the archive does not answer, or not as DICOMweb does.
        """
        listed = []
        for item in self._list(f"studies/{study_uid}/series"):
            uid = _text(item, "0020000E")
            if not is_uid(uid):
                raise self._connection.no_dicomweb("a series without a SeriesInstanceUID")
            listed.append(ListedSeries(uid, _text(item, "00080060")))
        return listed

    def instances(self, study_uid: str, series_uid: str) -> set[str]:
        """SOPInstanceUIDs of a series.

        Raises:
            PacsError: If the archive does not answer, or not as DICOMweb does.
        """
        uids = set()
        for item in self._list(f"studies/{study_uid}/series/{series_uid}/instances"):
            uid = _text(item, "00080018")
            if not is_uid(uid):
                raise self._connection.no_dicomweb("an instance without a SOPInstanceUID")
            uids.add(uid)
        return uids

    @contextmanager
    def retrieve(
        self, study_uid: str, series_uid: str, instance_uid: str = ""
    ) -> Iterator[tuple[str, Iterator[bytes]]]:
        """Content-Type and body of a series, or of one instance, as stored: no transcoding.

        The body may end too early without an error: neither HTTP nor the archive says so.

        Raises:
            PacsError: If the archive does not answer, or refuses.
        """
        path = f"studies/{study_uid}/series/{series_uid}"
        path += f"/instances/{instance_uid}" if instance_uid else ""
        with self._connection.streamed("GET", path, headers={"Accept": _ANY_SYNTAX}) as response:
            self._connection.check_status(response.status_code)
            yield response.headers.get("content-type", ""), self._connection.pieces(response)

    def store(self, body: MultipartFile) -> dict[str, str]:
        """Store one object: what the archive says of each SOPInstanceUID, "" where it took it.

        An empty answer, as a broken connection may leave it, says nothing of any.

        Raises:
            PacsError: If the archive does not answer, or refuses.
        """
        headers = body.headers | {"Accept": "application/dicom+json"}
        status, content = self._connection.request("POST", "studies", content=body, headers=headers)
        if status not in (200, 202, 409):
            self._connection.check_status(status)
        said: dict[str, str] = {}
        try:
            answer = json.loads(content) if content.strip() else {}
            for item in answer.get("00081199", {}).get("Value", []):
                said[_text(item, "00081155")] = ""
            for item in answer.get("00081198", {}).get("Value", []):
                said[_text(item, "00081155")] = f"reason {_text(item, '00081197') or 'unknown'}"
        except (ValueError, AttributeError, TypeError, RecursionError):
            raise self._connection.no_dicomweb(
                "an answer to STOW-RS that is no DICOM JSON"
            ) from None
        return said

    def _list(self, path: str) -> list[Any]:
        """All items that a study or series has; none where the archive does not know it."""
        return self._pages(path, {}, _MOST_INSTANCES, "images of one study")

    def _pages(self, path: str, query: dict[str, str], limit: int, of: str) -> list[Any]:
        """Every item of a QIDO-RS answer, page by page."""
        items: list[Any] = []
        first: object = None
        while len(items) < limit:
            paging = {"limit": str(_PAGE), "offset": str(len(items))}
            page = self._page(path, query | paging)
            # Some services know no pages, and send everything each time.
            if not page or page[0] == first:
                return items
            first = page[0]
            items += page
            # A short page need not be the last one: a service may give fewer than it is asked for.
        raise PacsError(f"pacs_too_large: {self.shown} lists more than {limit} {of}")

    def _page(self, path: str, query: dict[str, str]) -> list[Any]:
        status, content = self._connection.request_json(
            "GET", path, params=query, headers={"Accept": "application/dicom+json"}
        )
        if status == 404 and path == "series":
            # No study is missing: there is no such service, or its plugin is not loaded yet.
            raise PacsUnavailable(
                f"pacs_unknown: {self.shown} knows no series (404); see the path of its URL"
            )
        if status in (204, 404):
            return []
        self._connection.check_status(status)
        page = self._connection.parsed(content)
        if not isinstance(page, list) or not all(isinstance(item, dict) for item in page):
            raise self._connection.no_dicomweb("an answer to QIDO-RS that is no list")
        return page


def _text(item: Json, tag: str) -> str:
    """The first value of an element of DICOM JSON, as text; "" where there is none."""
    if not isinstance(item, dict):
        return ""
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return str(values[0]) if isinstance(values, list) and values else ""
