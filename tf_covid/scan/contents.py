"""The files of an input → what they are.

DICOM by patient and study, volumes with their data files, and the rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pydicom.uid import UID_dictionary

from tf_covid.errors import ScanRefused
from tf_covid.result import QualityFlag
from tf_covid.scan import archive, dicom
from tf_covid.scan.archive import ZipMember
from tf_covid.scan.leftovers import PACKED_NAMES, Leftovers
from tf_covid.scan.source import DiskFile, ScanFile
from tf_covid.scan.volumes import data_file_of, is_volume

#: How the names of archives end that are looked into.
ARCHIVE_NAMES = (".zip", ".tar", ".tar.gz", ".tgz")
_CHUNK = 1 << 20
_HEAD_BYTES = 1 << 16
_META_BYTES, _PREAMBLE_BYTES = 2048, 132
#: CT Image Storage, Enhanced and Legacy Converted Enhanced, as it ends in an element.
_CT_CLASS = re.compile(rb"1\.2\.840\.10008\.5\.1\.4\.1\.1\.2(\.[12])?[^.0-9]")
#: Media Storage SOP Class UID (0002,0002), and its value.
_STORED_CLASS = re.compile(rb"\x02\0\x02\0UI(?:[^\0]\0)([0-9A-Za-z.\x80-\xff]{1,64}\0?)")
#: Media Storage Directory Storage.
_DIRECTORY_CLASS = b"1.2.840.10008.1.3.10"
_DICOM_NAMES = (".dcm", ".dicom", ".ima")
#: (0020,000E) and (0028,0010), little endian.
_SERIES_UID_TAG, _ROWS_TAG = b"\x20\x00\x0e\x00", b"\x28\x00\x10\x00"


@dataclass(frozen=True)
class Volume:
    """A volume file, with its data file if its voxels lie in one.

    Args:
        members: Name of the file, and of its data file.
        quality_flags: Why the data file cannot be found.
    """

    members: tuple[str, ...]
    quality_flags: tuple[QualityFlag, ...] = ()


@dataclass(frozen=True)
class Contents:
    """What an input holds.

    Args:
        studies: Headers of the images of each patient and study.
        volumes: Every volume file.
        left: What else there is.
    """

    studies: tuple[tuple[dicom.Instance, ...], ...]
    volumes: tuple[Volume, ...]
    left: Leftovers


def look(sources: Sequence[ScanFile], left: Leftovers) -> Contents:
    """Sort the files of an input by what they hold.

    Args:
        sources: All of them.
        left: What was left out already.
    """
    by_name = {source.name: source for source in sources}
    volumes = [
        volume_of(source, lambda: by_name)
        for source in sources
        if is_volume(source.name) and not _hidden(source.name)
    ]
    data_files = {name for volume in volumes for name in volume.members[1:]}
    volumes = [volume for volume in volumes if volume.members[0] not in data_files]
    known = data_files | {volume.members[0] for volume in volumes}
    instances: list[dicom.Instance] = []
    foreign: list[ScanFile] = []
    for source in sources:
        if source.name in known:
            continue
        try:
            instance = dicom.read_header(source)
            if instance is None:
                _read_through(source)
        except (dicom.Damaged, OSError, *archive.ERRORS):
            left += Leftovers(damaged=1)
            continue
        if instance is not None:
            instances.append(instance)
        elif source.name.lower().endswith((*ARCHIVE_NAMES, *PACKED_NAMES)) and not _hidden(
            source.name
        ):
            left += Leftovers(archives=1)
        else:
            foreign.append(source)
    slices = {_folder_and_suffix(one.name) for one in instances}
    sizes = {(_folder_and_suffix(one.name), by_name[one.name].size) for one in instances}
    damaged = 0
    for source in foreign:
        position = _folder_and_suffix(source.name)
        damaged += _was_slice(source, position in slices, (position, source.size) in sizes)
    listed = sum(
        dicom.missing_images(source, list(by_name))
        for source in foreign
        if PurePosixPath(source.name).name.upper() == "DICOMDIR"
    )
    left += Leftovers(foreign=len(foreign) - damaged, damaged=damaged, listed_images=listed)
    return Contents(_studies(instances), tuple(volumes), left)


def volume_of(source: ScanFile, beside: Callable[[], Mapping[str, ScanFile]]) -> Volume:
    """A volume file with the data file that its header names, among the files beside it.

    Args:
        source: The volume file or header.
        beside: Gives the files that may be its data file, by name; asked only if the header names
            one.
    """
    try:
        data = data_file_of(source)
    except ScanRefused as error:
        return Volume((source.name,), error.quality_flags)
    except (OSError, *archive.ERRORS):
        flag = QualityFlag(
            "truncated_file", "error", "The header cannot be read: it is damaged, or it went away."
        )
        return Volume((source.name,), (flag,))
    if data is None:
        return Volume((source.name,))
    name = (PurePosixPath(source.name).parent / data).as_posix()
    by_name = beside()
    if name not in by_name:  # Windows does not tell upper from lower case
        alike = [other for other in by_name if other.casefold() == name.casefold()]
        name = alike[0] if len(alike) == 1 else name
    results = by_name.get(name)
    if results is None or (isinstance(results, DiskFile) and results.path.is_symlink()):
        what = "is missing" if results is None else "is a link, which is not followed"
        message = (
            f"The data file that the header names {what}; it belongs into the folder of the header."
        )
        return Volume((source.name,), (QualityFlag("data_file_missing", "error", message),))
    return Volume((source.name, name))


def _was_slice(source: ScanFile, among_slices: bool, same_size: bool) -> bool:
    """Whether a file that is no image was a slice once.

    What is left of it says so, or its name, size and place do.

    Args:
        source: The file.
        among_slices: Whether DICOM images with the same ending lie in its folder.
        same_size: Whether one of them has its size.
    """
    if _hidden(source.name):
        return False
    try:
        with source.open() as stream:
            head = stream.read(_HEAD_BYTES)
    except (OSError, *archive.ERRORS):
        return True
    if (
        _DIRECTORY_CLASS in head[:_META_BYTES]
        or PurePosixPath(source.name).name.upper() == "DICOMDIR"
    ):
        return False  # whose records name the classes of images
    if head[128:132] == b"DICM":
        named = _STORED_CLASS.search(head, 0, _META_BYTES)
        if named is None or named[1].decode("latin-1").strip(" \0") not in UID_dictionary:
            return among_slices  # its header is gone, or damaged: no class of DICOM
        # A CT image without Rows was cut off. A report names the class of the images it is about.
        return _CT_CLASS.match(named[1] + b"\0") is not None
    if all(tag in head for tag in (_SERIES_UID_TAG, _ROWS_TAG)):
        return True
    # A copy that failed leaves nothing, a stump or zeros.
    stump = len(head) < _PREAMBLE_BYTES or not any(head) or same_size
    return among_slices and (stump or source.name.lower().endswith(_DICOM_NAMES))


def _folder_and_suffix(name: str) -> tuple[str, str]:
    path = PurePosixPath(name)
    return path.parent.as_posix(), path.suffix.lower()


def _read_through(source: ScanFile) -> None:
    """Read a foreign member of a zip to its end, so that its check sum is asked for.

    It may be a slice that is damaged.

    Raises:
        BadZipFile: If the check sum is wrong.
    """
    if isinstance(source, ZipMember):
        with source.open() as stream:
            while stream.read(_CHUNK):
                pass


def _studies(instances: Iterable[dicom.Instance]) -> tuple[tuple[dicom.Instance, ...], ...]:
    groups: dict[tuple[str, ...], list[dicom.Instance]] = {}
    for instance in instances:
        groups.setdefault(_whose(instance), []).append(instance)
    return tuple(
        tuple(group)
        for group in sorted(groups.values(), key=lambda group: min(one.name for one in group))
    )


def _whose(instance: dicom.Instance) -> tuple[str, ...]:
    """What tells patients and studies apart.

    An anonymiser may have emptied every id: then a series is a case of its own, and without its UID
    so is a folder; two patients must never become one.
    """
    patient = instance.patient_id or instance.patient_name or instance.birth_date
    if instance.study_uid:
        return patient, instance.study_uid
    folder = "" if instance.series_uid else PurePosixPath(instance.name).parent.as_posix()
    return patient, "", instance.accession_number, instance.series_uid, folder


def _hidden(name: str) -> bool:
    """MacOS leaves `._name` and `__MACOSX/` beside every file that it packs."""
    parts = PurePosixPath(name)
    return parts.name.startswith("._") or "__MACOSX" in parts.parts
