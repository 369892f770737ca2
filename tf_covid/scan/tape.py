"""Tar archives, plain or in gzip, read in place: no member is ever written under its own name.

A `.tar.gz` is unpacked once, as the one tar that it holds, into a temporary file without a name.
Its check sum and its end are asked for; a plain tar has neither, but for the check sum of each head
and the two empty blocks at its end.
"""

from __future__ import annotations

import io
import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from tf_covid.scan.archive import Members, check_names, unique_names
from tf_covid.scan.checks import refusal
from tf_covid.scan.leftovers import Leftovers
from tf_covid.scan.limits import DEFAULT, Limits
from tf_covid.scan.source import ScanFile
from tf_covid.tensor import Tensor

#: What `tarfile` raises on heads that make no sense.
_HEAD_ERRORS = (
    tarfile.TarError,
    ValueError,
    OverflowError,
    IndexError,
    KeyError,
    RecursionError,
    EOFError,
)
_CHUNK = 1 << 20
_BLOCK = 512
#: Most bytes of one extended head (a long name, a set of attributes): none is longer unless it was
#: made to harm.
_MOST_HEAD_BYTES = 1 << 20
#: Heads and padding of a member besides its data, in bytes, where the whole of a tar is bounded.
_HEADS_BYTES = 4 * _BLOCK


@dataclass(frozen=True)
class TarMember:
    """A part of an open file.

    Args:
        file: Number of the open file.
        name: Name of the member, unique in its archive.
        begin: First byte of the part.
        size: Length of the part, in bytes.
    """

    file: int
    name: str
    begin: int
    size: int

    def open(self) -> AbstractContextManager[BinaryIO]:
        """A seekable binary stream, to be closed by the caller."""
        return cast("AbstractContextManager[BinaryIO]", io.BufferedReader(_Part(self), _CHUNK))


class _Part(io.RawIOBase):
    """A seekable stream of a part.

    It has a position of its own, so that threads may read one file.
    """

    def __init__(self, part: TarMember) -> None:
        self._part, self._at = part, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._part.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Tensor) -> int:
        expected = max(0, min(len(buffer), self._part.size - self._at))
        data = os.pread(self._part.file, expected, self._part.begin + self._at)
        if expected and not data:
            raise EOFError("the tar ends within a member")
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class _Heads(io.BufferedReader):
    """A tar as `tarfile` sees it: a head of any length would be read into memory at once."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0 or size > _MOST_HEAD_BYTES:
            raise refusal(
                "archive_unsafe",
                "The tar has a head of more than 1 MB: it is damaged, or made to harm.",
                size,
            )
        return super().read(size)


def looks_like_tar(head: bytes) -> bool:
    """Whether a file that begins so is a tar: a head whose check sum is right."""
    return len(head) >= _BLOCK and head[0] != 0 and _sum_is_right(head[:_BLOCK])


def gzip_holds_tar(path: Path) -> bool:
    """Whether a gzip file holds a tar, from its first bytes."""
    with path.open("rb") as stream:
        packed = stream.read(1 << 16)
    try:
        return looks_like_tar(zlib.decompressobj(31).decompress(packed, _BLOCK))
    except zlib.error:
        return False


@contextmanager
def open_tar(path: Path, limits: Limits = DEFAULT) -> Iterator[Members]:
    """The regular members of a tar or of a tar in gzip.

    Raises:
        ScanRefused: `archive_damaged`, `archive_too_large`, `archive_unsafe`.
    """
    with path.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
        if not packed:
            yield _members(stream, limits)
            return
        with tempfile.TemporaryFile() as full:
            trailing = _unpack(path, cast("BinaryIO", full), limits)
            full.flush()
            members = _members(cast("BinaryIO", full), limits)
            yield Members(members.sources, members.left + Leftovers(trailing=trailing))


def _unpack(path: Path, out: BinaryIO, limits: Limits) -> bool:
    """Write what a gzip file holds, within bounds and with its check sums.

    True if bytes follow that are no gzip.
    """
    limit = limits.archive_bytes + limits.archive_members * _HEADS_BYTES
    total = 0
    unpacker, begun = zlib.decompressobj(31), False
    with path.open("rb") as stream:
        data = stream.read(_CHUNK)
        while data:
            try:
                block = unpacker.decompress(data, _CHUNK)
            except zlib.error:
                message = "The gzip file is damaged: its data or its check sum are wrong."
                raise refusal("archive_damaged", message, total) from None
            begun = True
            total += len(block)
            if total > limit:
                message = (
                    f"The tar unpacks to more than {limit} bytes; at most {limits.archive_bytes}"
                    " are read."
                )
                raise refusal("archive_too_large", message, limit)
            out.write(block)
            data = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
            if unpacker.eof:
                data = (data or stream.read(_CHUNK)).lstrip(b"\0")
                while not data and (data := stream.read(_CHUNK)):  # tapes are padded with zeros
                    data = data.lstrip(b"\0")
                if data and len(data) < 2:
                    data += stream.read(_CHUNK)
                if data[:2] != b"\x1f\x8b":
                    return bool(data)
                unpacker, begun = zlib.decompressobj(31), False  # a further member of the gzip file
            elif not data:
                data = stream.read(_CHUNK)
    if begun and not unpacker.eof:
        out.write(unpacker.flush())  # a repeat may be pending although every byte was taken in
    if begun and not unpacker.eof:
        raise refusal(
            "archive_damaged", f"The gzip file is cut off after {total} unpacked bytes.", total
        )
    return False


def _members(stream: BinaryIO, limits: Limits) -> Members:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    raw = io.FileIO(os.dup(stream.fileno()))
    infos: list[tarfile.TarInfo] = []
    total = 0
    damaged = "The tar is damaged: a head in it makes no sense."
    with _Heads(raw) as heads:
        try:
            with tarfile.open(fileobj=heads, mode="r:", errorlevel=1) as tar:
                while (info := tar.next()) is not None:
                    infos.append(info)
                    total += info.size if info.isreg() else 0
                    _check_size(len(infos), total, limits)
                    if info.isreg() and not info.issparse() and info.offset_data + info.size > size:
                        raise refusal(
                            "archive_damaged", "The tar is cut off within a file.", info.offset_data
                        )
                end = tar.offset
        except _HEAD_ERRORS:
            raise refusal("archive_damaged", damaged) from None
    check_names([info.name for info in infos], "tar")
    endless, behind = _end(stream, end, size)
    if endless and end < size:
        raise refusal(
            "archive_damaged", damaged, end
        )  # `tarfile` stops in silence at a head with a wrong check sum
    files = sorted(
        (info for info in infos if info.isreg() and not info.issparse()), key=lambda info: info.name
    )
    names = unique_names([info.name for info in files])
    same = sum(name != info.name for name, info in zip(names, files, strict=True))
    descriptor = stream.fileno()
    sources: list[ScanFile] = [
        TarMember(descriptor, name, info.offset_data, info.size)
        for name, info in zip(names, files, strict=True)
    ]
    odd = size % _BLOCK != 0 or _padding_is_used(stream, files)
    left = Leftovers(
        same_names=same,
        member_links=_unexpected_members(infos),
        unlisted=behind,
        trailing=odd,
        endless=endless,
    )
    return Members(sources, left)


def _padding_is_used(stream: BinaryIO, files: Sequence[tarfile.TarInfo]) -> bool:
    """Whether anything but zeros fills the last block of a member.

    Bytes that were put in push others there.
    """
    for info in files:
        end = info.offset_data + info.size
        if any(os.pread(stream.fileno(), -end % _BLOCK, end)):
            return True
    return False


def _check_size(count: int, total: int, limits: Limits) -> None:
    if count > limits.archive_members:
        raise refusal(
            "archive_too_large", f"The tar has more than {limits.archive_members} members.", count
        )
    if total > limits.archive_bytes:
        message = (
            f"The tar unpacks to more than {limits.archive_bytes} bytes, which are read at most."
        )
        raise refusal("archive_too_large", message, total)


def _end(stream: BinaryIO, end: int, size: int) -> tuple[bool, int]:
    """Whether a tar lacks its empty last block, and how many heads of members lie behind it."""
    stream.seek(end)
    if any(block := stream.read(_BLOCK)) or not block:
        return True, 0
    results = 0
    while blocks := stream.read(_CHUNK):
        if blocks.count(0) < len(blocks):
            starts = range(0, len(blocks) - _BLOCK + 1, _BLOCK)
            results += sum(
                blocks[at] != 0 and _sum_is_right(blocks[at : at + _BLOCK]) for at in starts
            )
    return False, results


def _sum_is_right(head: bytes) -> bool:
    """Whether a block is the head of a member.

    Its bytes add up to the number that it holds (POSIX ustar).
    """
    text = head[148:156].strip(b" \0")
    try:
        return int(text, 8) == sum(head[:148]) + 8 * 32 + sum(head[156:])
    except ValueError:
        return False


def _unexpected_members(infos: Sequence[tarfile.TarInfo]) -> int:
    """Links, devices, sparse files, folders that hold data.

    A link to a regular member of the tar loses nothing.
    """
    regular = {info.name for info in infos if info.isreg() and not info.issparse()}
    count = 0
    for info in infos:
        if (info.isdir() and not info.size) or info.name in regular:
            continue
        base = PurePosixPath(info.name).parent if info.issym() else PurePosixPath()
        target = (
            os.path.normpath((base / info.linkname).as_posix())
            if info.issym() or info.islnk()
            else ""
        )
        count += target not in regular and os.path.normpath(info.linkname or "/") not in regular
    return count
