"""What an input holds besides its scans.

Counted, named with its reason, and never passed over without a word.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from tf_covid.result import Level, QualityFlag
from tf_covid.scan.source import ScanFile

#: Kind of file → how it begins, and where. The first that fits is named.
_BEGINS: tuple[tuple[str, int, bytes], ...] = (
    ("a 7z archive", 0, b"7z\xbc\xaf\x27\x1c"),
    ("a RAR archive", 0, b"Rar!\x1a\x07"),
    ("a bzip2 file", 0, b"BZh"),
    ("an xz file", 0, b"\xfd7zXZ\x00"),
    ("a Zstandard file", 0, b"\x28\xb5\x2f\xfd"),
    ("a gzip file", 0, b"\x1f\x8b"),
    ("a zip archive", 0, b"PK\x03\x04"),
    ("a tar archive", 257, b"ustar"),
    ("a JPEG picture", 0, b"\xff\xd8\xff"),
    ("a JPEG 2000 picture", 0, b"\x00\x00\x00\x0cjP  "),
    ("a PNG picture", 0, b"\x89PNG\r\n\x1a\n"),
    ("a GIF picture", 0, b"GIF8"),
    ("a TIFF picture", 0, b"II*\x00"),
    ("a TIFF picture", 0, b"MM\x00*"),
    ("a BMP picture", 0, b"BM"),
    ("a film", 4, b"ftyp"),
    ("a PDF document", 0, b"%PDF"),
    ("an HDF5 file", 0, b"\x89HDF\r\n\x1a\n"),
    ("a NumPy array", 0, b"\x93NUMPY"),
    ("an old Office document", 0, b"\xd0\xcf\x11\xe0"),
    ("a MINC file", 0, b"CDF"),
    ("a program", 0, b"MZ"),
    ("a web page", 0, b"<!DOCTYPE"),
    ("a web page", 0, b"<html"),
)
_HEAD_BYTES = 512
#: How the names of data files end, which mean nothing without their header.
_BARE_NAMES = (".img", ".raw", ".zraw")
_PACKED = ("archive", "bzip2", "xz", "Zstandard", "gzip")
#: How the names of packed files end that are not looked into.
PACKED_NAMES = (".7z", ".rar", ".bz2", ".tbz", ".tbz2", ".xz", ".txz", ".zst", ".gz", ".lzma", ".z")
TAKES = "DICOM (files, folders, .zip, .tar, .tar.gz), NIfTI, NRRD and MetaImage are read"


@dataclass(frozen=True)
class Leftovers:
    """How many things of each kind were left out of an input.

    Args:
        foreign: Files that are no scan.
        damaged: DICOM files whose header cannot be read.
        no_access: Files and folders that may not be read.
        linked_folders: Links to folders outside the input.
        broken_links: Links to nothing.
        special: Sockets, pipes and devices.
        archives: Archives that are not looked into: within another archive, or of another kind than
            zip and tar.
        unread_archives: Zips and tars beside the scan that cannot be read.
        copies: Archives that hold files of the scan beside them once more.
        same_names: Members of an archive with the name of another member.
        member_links: Links, devices, sparse files and folders with data in an archive.
        unlisted: Members that lie in a zip without standing in its directory, or behind the end of
            a tar.
        trailing: Archives with bytes behind their end, or in the padding of a tar.
        endless: Tars without the two empty blocks at their end.
        listed_images: Images that a DICOMDIR lists and that are not there.
    """

    foreign: int = 0
    damaged: int = 0
    no_access: int = 0
    linked_folders: int = 0
    broken_links: int = 0
    special: int = 0
    archives: int = 0
    unread_archives: int = 0
    copies: int = 0
    same_names: int = 0
    member_links: int = 0
    unlisted: int = 0
    trailing: int = 0
    endless: int = 0
    listed_images: int = 0

    def __add__(self, other: Leftovers) -> Leftovers:
        names = [field.name for field in dataclasses.fields(self)]
        return Leftovers(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def flags(self) -> tuple[QualityFlag, ...]:
        """A flag for each kind that there is."""
        counts = ((code, level, text, getattr(self, field)) for field, code, level, text in _FLAGS)
        return tuple(
            QualityFlag(code, level, f"{count} {text}", count)
            for code, level, text, count in counts
            if count
        )

    def reasons(self) -> str:
        """The same in one line, for a refusal.

        "" if nothing was left out for a reason of its own.
        """
        names = [
            (field, text) for field, _, _, text in _FLAGS if field not in ("foreign", "copies")
        ]
        results = [
            f"{count} {text.rstrip('.')}"
            for field, text in names
            if (count := getattr(self, field))
        ]
        return "; ".join(results)


#: Field of `Leftovers` → code, level and text of its flag.
_FLAGS: tuple[tuple[str, str, Level, str], ...] = (
    ("foreign", "foreign_files", "info", "other file(s) in the input were left alone."),
    (
        "copies",
        "archive_copies",
        "info",
        "archive(s) hold files of this scan once more; they were not read twice.",
    ),
    (
        "special",
        "special_files",
        "info",
        "socket(s), pipe(s) or device(s) in the input were left alone.",
    ),
    (
        "damaged",
        "unreadable_files",
        "warning",
        (
            "DICOM file(s) have a header that cannot be read; they were left out, and may be part"
            " of the series."
        ),
    ),
    (
        "no_access",
        "no_access",
        "warning",
        "file(s) or folder(s) of the input may not be read (access denied); slices may be missing.",
    ),
    (
        "linked_folders",
        "linked_folders",
        "warning",
        (
            "link(s) to folders outside the input were not followed; give those folders as inputs"
            " of their own."
        ),
    ),
    (
        "broken_links",
        "broken_links",
        "warning",
        "link(s) in the input lead to nothing; slices may be missing.",
    ),
    (
        "archives",
        "packed_files",
        "warning",
        (
            "archive(s) or packed file(s) in the input were not looked into; unpack them and give"
            " them as inputs."
        ),
    ),
    (
        "unread_archives",
        "unreadable_archives",
        "warning",
        "zip(s) or tar(s) beside the scan cannot be read (damaged, encrypted or too large).",
    ),
    (
        "same_names",
        "same_names",
        "warning",
        "member(s) of the archive have the name of another; each was taken as a file of its own.",
    ),
    (
        "member_links",
        "archive_links",
        "warning",
        "link(s), device(s), sparse file(s) or folder(s) with data in the archive were left out.",
    ),
    (
        "unlisted",
        "archive_leftovers",
        "warning",
        (
            "member(s) lie in the archive without being listed; they were left out. Pack it again"
            " if slices are missing."
        ),
    ),
    (
        "trailing",
        "trailing_bytes",
        "warning",
        (
            "tar archive has bytes where none should be (behind its end or in its padding): some"
            " may have been lost."
        ),
    ),
    (
        "endless",
        "archive_no_end",
        "warning",
        (
            "tar archive without an end marker: it may have been cut off between two files. Pack it"
            " again."
        ),
    ),
    (
        "listed_images",
        "dicomdir_missing",
        "warning",
        (
            "image(s) that the DICOMDIR lists are not in the input; slices may be missing. Copy the"
            " whole medium again."
        ),
    ),
)
#: Codes of flags about files beside a scan, and of no other kind.
LEFT_ALONE = frozenset(code for _, code, level, _ in _FLAGS if level == "info")


def what_it_is(source: ScanFile) -> str:
    """What a file that is no scan is instead, and what to do with it, in a sentence.

    General if its kind is unknown.
    """
    with source.open() as stream:
        head = stream.read(_HEAD_BYTES)
    for kind, at, begin in _BEGINS:
        if head[at : at + len(begin)] == begin:
            way_out = (
                " Unpack it, and give what is in it."
                if any(word in kind for word in _PACKED)
                else ""
            )
            return f"The file is {kind}, and no scan.{way_out} {TAKES}."
    if source.name.lower().endswith(_BARE_NAMES):
        return (
            "The file holds voxels without a header; give the .hdr, .mhd or .nhdr beside it."
            f" {TAKES}."
        )
    return f"The file is no scan of a known format. {TAKES}."
