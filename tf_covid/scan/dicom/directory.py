"""What a DICOMDIR lists: it is not believed for what is there, but asked for what is not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from pydicom.dataset import Dataset
from pydicom.filereader import dcmread

from tf_covid.scan.dicom.header import ERRORS
from tf_covid.scan.source import ScanFile

#: A larger file is no index of a folder that a person sends.
_MOST_BYTES = 64 << 20


def missing_images(directory: ScanFile, names: Sequence[str]) -> int:
    """How many images a DICOMDIR lists that are not in the input.

    Names are compared without upper and lower case, and without the ending or version that a copy
    may add or lose.

    Args:
        directory: The DICOMDIR.
        names: Names of all files of the input, relative to it.

    Returns:
        Their number; 0 where the DICOMDIR cannot be read, since its files are found without it.
    """
    if directory.size > _MOST_BYTES:
        return 0
    try:
        with directory.open() as stream:
            records = dcmread(stream).get("DirectoryRecordSequence") or ()
            listed = {path for record in records if (path := _path(record))}
    except ERRORS:
        return 0
    folder = PurePosixPath(directory.name).parent
    there = {_plain(PurePosixPath(name)) for name in names}
    return sum(_plain(folder / path) not in there for path in listed)


def _path(record: Dataset) -> str:
    """The file of an image's record, by forward slashes; nothing for other records."""
    if str(record.get("DirectoryRecordType", "")).strip() != "IMAGE":
        return ""
    parts = record.get("ReferencedFileID") or ()
    return "/".join([parts] if isinstance(parts, str) else [str(part) for part in parts])


def _plain(path: PurePosixPath) -> str:
    name = path.name.partition(";")[0]
    stem = name.rpartition(".")[0] if name.lower().endswith((".dcm", ".ima", ".dicom")) else name
    return (path.parent / stem.rstrip(".")).as_posix().lower() if stem else path.as_posix().lower()
