"""Zip archives, read in place: no member is ever written under its own name.

A zip is checked from its end record, its directory and the head of every member before anything is
unpacked. Python's reader then never gives out more bytes of a member than the directory declares,
and its check sum tells when a member held more or less.
"""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from tf_covid.scan.checks import refusal
from tf_covid.scan.leftovers import Leftovers
from tf_covid.scan.limits import DEFAULT, Limits
from tf_covid.scan.source import ScanFile

#: What a damaged archive raises while it is read.
ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    struct.error,
    NotImplementedError,
    UnicodeDecodeError,
)
#: What `zipfile` raises, besides, on a directory that makes no sense.
_DIRECTORY_ERRORS = (*ERRORS, IndexError, ValueError, OverflowError, KeyError, OSError)
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_LOCAL, _END, _END64, _LOCATOR64 = b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_LOCAL_BYTES, _END_BYTES, _END64_BYTES, _LOCATOR64_BYTES = 30, 22, 56, 20
#: Most bytes of the central directory for one member: its name, comment and extra fields.
_ENTRY_BYTES = 2048
_MOST_COMMENT = 65535
_CHUNK = 1 << 20
#: Highest "version needed to extract" that the format knows; more is no head of a member.
_MOST_VERSION = 63


@dataclass(frozen=True)
class ZipMember:
    """A member of an open zip; `name` is unique in it, also where two members have the same."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo
    name: str

    @property
    def size(self) -> int:
        """Unpacked length of the member, in bytes."""
        return self.info.file_size

    def open(self) -> AbstractContextManager[BinaryIO]:
        """A seekable binary stream, to be closed by the caller."""
        return cast("AbstractContextManager[BinaryIO]", self.archive.open(self.info))


@dataclass(frozen=True)
class Members:
    """The regular files in an archive, in order of their names, and what it holds besides."""

    sources: list[ScanFile]
    left: Leftovers


@dataclass(frozen=True)
class _Directory:
    """What the end record of a zip says.

    Args:
        count: Number of members.
        wide: Whether it is a zip64 record, which counts further than 65,535.
        begin: Where the directory begins in the file, in bytes.
        end: First byte behind the end record and its comment.
    """

    count: int
    wide: bool
    begin: int
    end: int


def looks_like_zip(head: bytes) -> bool:
    """Whether a file that begins so is a zip, whatever its name; one that is cut off, too."""
    return head[:4] in (_LOCAL, _END, b"PK\x07\x08", b"PK00")


@contextmanager
def open_zip(path: Path, limits: Limits = DEFAULT) -> Iterator[Members]:
    """The regular members of a zip.

    Symbolic links and folders are left out: they hold no data of their own.

    Raises:
        ScanRefused: `archive_damaged`, `archive_too_large`, `archive_encrypted`, `archive_unsafe`.
    """
    directory = _check_directory(path, limits)
    try:
        archive = zipfile.ZipFile(path)
    except _DIRECTORY_ERRORS:
        raise refusal(
            "archive_damaged", "The file is not a zip archive, or its directory is damaged."
        ) from None
    with archive:
        infos = archive.infolist()
        _check_members(infos, directory, limits)
        unlisted = _check_layout(path, infos, directory)
        links = [info for info in infos if _is_link(info)]
        files = [info for info in infos if not _is_folder(info) and not _is_link(info)]
        files.sort(key=lambda info: (info.filename, info.header_offset))
        names = unique_names([info.filename.rstrip("/") for info in files])
        same = sum(
            name != info.filename.rstrip("/") for name, info in zip(names, files, strict=True)
        )
        sources: list[ScanFile] = [
            ZipMember(archive, info, name) for name, info in zip(names, files, strict=True)
        ]
        yield Members(
            sources, Leftovers(same_names=same, member_links=len(links), unlisted=unlisted)
        )


def unique_names(names: Sequence[str]) -> list[str]:
    """The names, each once.

    The second file of a name lies in a folder `#2` beside the first, so that its ending stays. A
    header and a data file that are there twice stay beside each other.
    """
    taken, result = set(names), []
    seen: dict[str, int] = {}
    for name in names:
        count = seen[name] = seen.get(name, 0) + 1
        unique = name
        while count > 1 and unique in taken:
            path = PurePosixPath(name)
            unique, count = (path.parent / f"#{count}" / path.name).as_posix(), count + 1
        taken.add(unique)
        result.append(unique)
    return result


def check_names(names: Sequence[str], kind: str) -> None:
    """Refuse an archive with names that lead out of it.

    Nothing is written under those names, but such an archive was made to harm.

    Raises:
        ScanRefused: `archive_unsafe`.
    """
    for name in names:
        parts = PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or name[1:2] == ":":
            raise refusal("archive_unsafe", f"The {kind} holds names that point outside of it.")


def _check_directory(path: Path, limits: Limits) -> _Directory:
    """Read the end record ourselves: `zipfile` would load a directory of any length."""
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        first = max(0, size - _MOST_COMMENT - _END_BYTES - _END64_BYTES - _LOCATOR64_BYTES)
        stream.seek(first)
        tail = stream.read()
    begin = tail.rfind(_END)
    if begin < 0 or len(tail) < begin + _END_BYTES:
        raise refusal(
            "archive_damaged",
            "The file is not a zip archive, or it is cut off: it has no end record.",
        )
    _, disk, _, _, count, length, offset, comment = struct.unpack(
        "<4s4H2LH", tail[begin : begin + _END_BYTES]
    )
    end, wide = first + begin + _END_BYTES + comment, False
    locator = tail[max(0, begin - _LOCATOR64_BYTES) : begin]
    record = tail[
        max(0, begin - _LOCATOR64_BYTES - _END64_BYTES) : max(0, begin - _LOCATOR64_BYTES)
    ]
    after = first + begin
    if locator[:4] == _LOCATOR64 and record[:4] == _END64 and len(record) == _END64_BYTES:
        count, length, offset = struct.unpack(
            "<3Q", record[32:56]
        )  # zip64: its record wins, as in `zipfile`
        wide, after = True, after - _LOCATOR64_BYTES - _END64_BYTES
    if (
        count == 0xFFFF and limits.archive_members < 0xFFFF
    ) or length > limits.archive_members * _ENTRY_BYTES:
        raise refusal(
            "archive_too_large", f"The zip has more than {limits.archive_members} members."
        )
    if disk not in (0, 0xFFFF):
        raise refusal(
            "archive_damaged",
            "The zip is one part of a split archive; join its parts and unpack them.",
        )
    if after - length < offset:
        message = (
            f"The directory of the zip should begin at byte {offset}, and there is no room for it:"
            " it is damaged."
        )
        raise refusal("archive_damaged", message, offset)
    return _Directory(count, wide, after - length, min(end, size))


def _check_members(infos: Sequence[zipfile.ZipInfo], directory: _Directory, limits: Limits) -> None:
    listed = (
        len(infos) if directory.wide else len(infos) & 0xFFFF
    )  # old writers count modulo 65,536
    if listed != directory.count:
        message = (
            f"The zip's end record counts {directory.count} members, its directory lists"
            f" {len(infos)}: it is damaged."
        )
        raise refusal("archive_damaged", message, len(infos))
    if len(infos) > limits.archive_members:
        message = f"The zip has {len(infos)} members; at most {limits.archive_members} are read."
        raise refusal("archive_too_large", message, len(infos))
    total = sum(info.file_size for info in infos)
    if total > limits.archive_bytes:
        message = f"The zip unpacks to {total} bytes; at most {limits.archive_bytes} are read."
        raise refusal("archive_too_large", message, total)
    if any(info.flag_bits & 1 for info in infos):
        raise refusal("archive_encrypted", "The zip is encrypted; unpack it first.")
    if any(info.compress_type not in _METHODS for info in infos):
        raise refusal(
            "archive_damaged", "The zip uses a compression other than deflate; pack it again."
        )
    check_names([info.filename for info in infos], "zip")


def _check_layout(path: Path, infos: Sequence[zipfile.ZipInfo], directory: _Directory) -> int:
    """Every listed member lies in the file, alone; how many lie there that are not listed."""
    unlisted = at = 0
    with path.open("rb") as stream:
        for info in sorted(infos, key=lambda info: info.header_offset):
            begin = info.header_offset
            if begin < at:
                raise refusal(
                    "archive_damaged",
                    "Members of the zip overlap: its directory is damaged, or made to harm.",
                )
            unlisted += _heads(stream, at, begin)
            stream.seek(begin)
            head = stream.read(_LOCAL_BYTES)
            at = (
                begin
                + _LOCAL_BYTES
                + sum(struct.unpack("<2H", head[26:30].ljust(4, b"\0")))
                + info.compress_size
            )
            if head[:4] != _LOCAL or len(head) < _LOCAL_BYTES or at > directory.begin:
                message = (
                    "A member of the zip does not lie where its directory says: the zip is cut off"
                    " or damaged."
                )
                raise refusal("archive_damaged", message)
        unlisted += _heads(stream, at, directory.begin)
        size = stream.seek(0, 2)
        return unlisted + _heads(stream, directory.end, size)


def _heads(stream: BinaryIO, begin: int, end: int) -> int:
    """Number of heads of members between two places of a file where none should be."""
    if end - begin < _LOCAL_BYTES:
        return 0
    results, kept = 0, b""
    stream.seek(begin)
    left = end - begin
    while left and (block := stream.read(min(_CHUNK, left))):
        left -= len(block)
        data = kept + block
        at = data.find(_LOCAL)
        while 0 <= at <= len(data) - _LOCAL_BYTES:
            version, _, method = struct.unpack("<3H", data[at + 4 : at + 10])
            name_bytes = int.from_bytes(data[at + 26 : at + 28], "little")
            results += (
                version <= _MOST_VERSION and method in _METHODS and 0 < name_bytes < _ENTRY_BYTES
            )
            at = data.find(_LOCAL, at + 4)
        kept = data[-(_LOCAL_BYTES - 1) :]
    return results


def _is_folder(info: zipfile.ZipInfo) -> bool:
    return info.is_dir() and not info.file_size  # what has bytes is a file, whatever its name


def _is_link(info: zipfile.ZipInfo) -> bool:
    return stat.S_ISLNK(info.external_attr >> 16)
