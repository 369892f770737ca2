"""Zip archives, read in place: no member is ever written under its own name.

A zip is checked from its central directory before anything is unpacked. Python's reader then never gives out more
bytes of a member than that directory declares, and its check sum tells when a member held more or less.
"""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from tf_covid.scan.checks import refusal
from tf_covid.scan.limits import DEFAULT, Limits
from tf_covid.scan.source import Source

#: What a damaged archive raises while it is read.
ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError, UnicodeDecodeError)
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_END = b"PK\x05\x06"
_END_BYTES = 22
#: Most bytes of the central directory for one member: its name, comment and extra fields.
_ENTRY_BYTES = 2048


@dataclass(frozen=True)
class MemberSource:
    """A member of an open zip."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo

    @property
    def name(self) -> str:
        return self.info.filename

    @property
    def size(self) -> int:
        return self.info.file_size

    def open(self) -> AbstractContextManager[BinaryIO]:
        return cast("AbstractContextManager[BinaryIO]", self.archive.open(self.info))


@contextmanager
def open_archive(path: Path, limits: Limits = DEFAULT) -> Iterator[list[Source]]:
    """The regular members of a zip, in order of their names.

    Symbolic links and folders are left out: they hold no data of their own.

    Raises:
        ScanRefused: `archive_damaged`, `archive_too_large`, `archive_encrypted`, `archive_unsafe`.
    """
    _check_directory(path, limits)
    try:
        archive = zipfile.ZipFile(path)
    except ERRORS:
        raise refusal("archive_damaged", "The file is not a zip archive, or its directory is damaged.") from None
    with archive:
        infos = archive.infolist()
        _check_members(infos, limits)
        files = [info for info in infos if not info.is_dir() and not _is_link(info)]
        yield [MemberSource(archive, info) for info in sorted(files, key=lambda info: info.filename)]


def _check_directory(path: Path, limits: Limits) -> None:
    """Read the end record ourselves: `zipfile` would load a directory of any length."""
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - 65535 - _END_BYTES))
        tail = stream.read()
    begin = tail.rfind(_END)
    if begin < 0 or len(tail) < begin + _END_BYTES:
        raise refusal("archive_damaged", "The file is not a zip archive, or it is cut off.")
    _, _, _, _, count, length, _, _ = struct.unpack("<4s4H2LH", tail[begin : begin + _END_BYTES])
    locator, record = tail[max(0, begin - 20) : begin], tail[max(0, begin - 76) : begin - 20]
    if locator[:4] == b"PK\x06\x07" and record[:4] == b"PK\x06\x06" and len(record) == 56:
        count, length = struct.unpack("<2Q", record[32:48])  # zip64: its record wins, as in `zipfile`
    if (count == 0xFFFF and limits.archive_members < 0xFFFF) or length > limits.archive_members * _ENTRY_BYTES:
        raise refusal("archive_too_large", f"The zip has more than {limits.archive_members} members.")


def _check_members(infos: list[zipfile.ZipInfo], limits: Limits) -> None:
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
        raise refusal("archive_damaged", "The zip uses a compression other than deflate; pack it again.")
    for info in infos:
        parts = PurePosixPath(info.filename.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in info.filename[:2]:
            raise refusal("archive_unsafe", "The zip holds names that point outside of it.")


def _is_link(info: zipfile.ZipInfo) -> bool:
    return stat.S_ISLNK(info.external_attr >> 16)
