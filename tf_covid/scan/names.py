"""Names of cases: from the input's own name, safe, unique, and never the patient's."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from tf_covid.scan.dicom.header import Instance
from tf_covid.scan.dicom.identity import PatientIdentifiers

_SUFFIXES = (
    ".nii.gz",
    ".nii",
    ".nrrd",
    ".nhdr",
    ".mha",
    ".mhd",
    ".hdr",
    ".img",
    ".zip",
    ".tar.gz",
    ".tgz",
    ".tar",
    ".dcm",
)
_MOST_LETTERS = 80


def case_names(path: Path, parts: Sequence[str], groups: Sequence[Sequence[Instance]]) -> list[str]:
    """A name for each case of one input.

    Args:
        path: The input; its name is the base, a link's own and not its target's.
        parts: For each case, where it lies within the input (a relative path), or "".
        groups: For each case, its DICOM headers.

    Returns:
        The base alone for one case, else the base with the case's folder or number. Wherever that
        holds a name, id, birth date, accession number or UID of any patient in the input, a short
        hash of the case's SOP Instance UIDs instead: they are long and random, so the hash cannot
        be turned back by trying, as a patient id could.
    """
    own = path.name if path.name not in ("", "..") else Path(os.path.realpath(path)).name
    base = safe_name(_stem(own)) or "case"
    if len(groups) == 1:
        names = [base]
        raw = [own]
    else:
        distinct = len({part.lower() for part in parts}) == len(parts) and all(parts)
        raw = [f"{own} {part if distinct else ''}" for part in parts]
        suffixes = [safe_name(_stem(part)) if distinct else "" for part in parts]
        names = [f"{base}-{suffix or index}" for index, suffix in enumerate(suffixes, 1)]
    identifiers = PatientIdentifiers.of(instance for group in groups for instance in group)
    named = []
    for name, original, group in zip(names, raw, groups, strict=True):
        # What is left out to make a name safe may join letters to a patient's name.
        repeats = identifiers.occur_in(original) or identifiers.occur_in(safe_name(original))
        named.append(_hashed(group) if repeats else name[:_MOST_LETTERS])
    return unique(named)


def _stem(name: str) -> str:
    lower = name.lower()
    for suffix in _SUFFIXES:
        if lower.endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def safe_name(name: str) -> str:
    """ASCII letters, digits, `.`, `_` and `-`.

    No leading dot, so that it is neither hidden nor a way upwards.
    """
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "_", ascii_name).strip("._-")


def _hashed(group: Sequence[Instance]) -> str:
    uids = sorted(instance.sop_uid or instance.name for instance in group)
    return (
        "case-"
        + hashlib.sha256("\n".join(uids).encode("utf-8", "surrogateescape")).hexdigest()[:12]
    )


def unique(names: Sequence[str]) -> list[str]:
    """The names, each once, with a number behind the second of a name.

    Upper and lower case are the same.
    """
    taken: set[str] = set()
    result = []
    for name in names:
        candidate, count = name, 1
        while candidate.lower() in taken:  # some file systems do not tell upper from lower case
            count += 1
            candidate = f"{name}-{count}"
        taken.add(candidate.lower())
        result.append(candidate)
    return result
