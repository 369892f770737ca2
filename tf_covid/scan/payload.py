"""The voxels of a NIfTI, NRRD or MetaImage file: unpacked slab by slab, counted and checked.

Nothing is unpacked beyond what the header declares, but for the few bytes that tell whether there
is more. Every checksum and end marker is looked at: zlib compares CRC32 and length (gzip) or
Adler-32 (zlib), bzip2 its own CRCs.
"""

from __future__ import annotations

import bz2
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal, Protocol, cast

import numpy as np

from tf_covid.result import QualityFlag
from tf_covid.scan.checks import refusal
from tf_covid.scan.text_voxels import text_reader

Coding = Literal["raw", "gzip", "zlib", "bzip2", "hex", "text"]

#: Packed bytes that are read at a time.
_CHUNK = 1 << 17
#: Most bytes of voxels, and of their zlib stream, that are unpacked in one piece: 512 slices of 512
#: × 512.
_AT_ONCE, _PACKED_AT_ONCE = 1 << 28, 1 << 27
#: Most bytes behind the voxels that may be there: padding to a block, all zero or told with a
#: warning.
_PADDING = 512
#: deflate packs at most 1032:1; a header that declares more than that lies.
_MOST_RATIO = 1100
#: No plane of a CT has more voxels (5,792 × 5,792): what is taken in one piece stays below 300 MB.
_PLANE = 1 << 25
_BREAKS = (zlib.error, OSError, EOFError)


class _Unpacker(Protocol):
    """What zlib's and bz2's decompressors have in common, as `_Zlib` and `bz2` offer it."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Zlib:
    """A zlib decompressor with the interface of bz2's.

    It keeps the input that it has not used yet.
    """

    def __init__(self, wbits: int) -> None:
        self._inner = zlib.decompressobj(wbits)
        self._full = False

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail and not self._full

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        block = self._inner.decompress(self._inner.unconsumed_tail + data, max_length)
        self._full = len(block) == max_length  # zlib may hold more output, though all input is used
        return block


_UNPACKERS: dict[str, Callable[[], _Unpacker]] = {
    "gzip": lambda: _Zlib(31),
    "zlib": lambda: _Zlib(
        47
    ),  # MetaIO finds out by itself whether it is zlib or gzip, and so does 47
    "bzip2": lambda: cast(_Unpacker, bz2.BZ2Decompressor()),
}
_MAGICS = {"gzip": (b"\x1f\x8b",), "zlib": (), "bzip2": (b"BZh",)}


class Unpacked:
    """A stream of voxel bytes, unpacked as they are asked for.

    Several gzip or bzip2 streams in a row are one.

    Args:
        raw: At the first packed byte.
        coding: Compression of the bytes.
        held: Bytes of `raw` that belong to it.
        beyond: Bytes of the file that lie behind those.
    """

    def __init__(self, raw: BinaryIO, coding: Coding, held: int, beyond: int = 0) -> None:
        self._raw, self.coding, self._held = raw, coding, held
        self._unpacker = _UNPACKERS[coding]() if coding in _UNPACKERS else None
        self._ready = b""
        #: Bytes behind the last packed stream; known once it has been read to its end.
        self.behind = beyond
        self._ended = False

    def unpack_at_once(self, size: int) -> bytearray | None:
        """Unpack a zlib stream of exactly `size` bytes with libdeflate, in half of zlib's time.

        libdeflate says neither what is wrong with a stream nor what lies behind it: anything but a
        whole stream with its checksum at the very end gives None, and is left to be read piece by
        piece.
        """
        if self.coding != "zlib" or not 0 < size <= _AT_ONCE or self._held > _PACKED_AT_ONCE:
            return None
        import imagecodecs  # only where it is needed

        begin, full = self._raw.tell(), bytearray(size)
        packed = self._raw.read(self._held)
        try:
            count = len(imagecodecs.deflate_decode(packed, out=full))
        except imagecodecs.DeflateError:
            count = 0
        if count == size and zlib.adler32(full).to_bytes(4, "big") == packed[-4:]:
            self._held, self._unpacker = 0, None
            return full
        self._raw.seek(begin)
        return None

    def readinto(self, view: memoryview) -> int:
        """Fill `view` as far as there are bytes; how many there were.

        Raises:
            ScanRefused: `truncated_file` if a packed stream ends early, `damaged_file` if it or its
                checksum is wrong.
        """
        if self._unpacker is None:
            return self._fill_raw(view[: max(0, min(len(view), self._held))])
        done = 0
        while done < len(view) and not self._ended:
            block = self._unpack(len(view) - done)
            view[done : done + len(block)] = block
            done += len(block)
        return done

    def read(self, size: int) -> bytes:
        """At most `size` bytes, fewer at the end only."""
        block = bytearray(size)
        return bytes(block[: self.readinto(memoryview(block))])

    def skip(self, size: int) -> None:
        """Pass over so many bytes, or to the end."""
        while size > 0 and (done := len(self.read(min(size, _CHUNK)))):
            size -= done

    def finish(self, max_bytes: int) -> bytes:
        """Read to the end of the stream; the bytes that were left, at most `max_bytes` + 1.

        Below that, checksums and end markers have been compared.
        """
        return self.read(max_bytes + 1)

    def _fill_raw(self, view: memoryview) -> int:
        readinto = cast("Callable[[memoryview], int]", self._raw.readinto)  # type: ignore[attr-defined]
        done = 0
        while done < len(view) and (count := readinto(view[done:])):
            done += count
        self._held -= done
        return done

    def _more(self) -> bytes:
        if self._ready:
            block, self._ready = self._ready, b""
            return block
        block = self._raw.read(max(0, min(_CHUNK, self._held)))
        self._held -= len(block)
        return block

    def _unpack(self, max_bytes: int) -> bytes:
        """At most `max_bytes` bytes; marks the end, and begins the next of several streams."""
        unpacker = cast(_Unpacker, self._unpacker)
        data = self._more() if unpacker.needs_input else b""
        if not data and unpacker.needs_input:
            raise refusal(
                "truncated_file", f"The {self.coding} data end early: their end marker is missing."
            )
        try:
            block = unpacker.decompress(data, max_bytes)
        except _BREAKS as error:
            reason = "its checksum is wrong" if "incorrect" in str(error) else "it is damaged"
            message = (
                f"The {self.coding} stream of the voxels cannot be unpacked: {reason}; get the file"
                " again."
            )
            raise refusal("damaged_file", message) from None
        if unpacker.eof:
            self._next_stream(unpacker.unused_data)
        return block

    def _next_stream(self, rest: bytes) -> None:
        self._ready = rest + (self._more() if len(rest) < 3 else b"")
        if any(self._ready.startswith(magic) for magic in _MAGICS[self.coding]):
            self._unpacker = _UNPACKERS[self.coding]()
        else:
            self._ended = True
            self.behind += len(self._ready) + self._held


@dataclass(frozen=True)
class Layout:
    """How a header says that its voxels are stored.

    Args:
        shape: The sizes of the three stored axes, the fastest first.
        dtype: One voxel, with its byte order.
        coding: Compression of the bytes.
        skip: Bytes of the unpacked stream before the first voxel; −1: the voxels are the last
            bytes.
        slope: What the stored numbers are multiplied by.
        inter: What is added then.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    coding: Coding = "raw"
    skip: int = 0
    slope: float = 1.0
    inter: float = 0.0

    @property
    def needed(self) -> int:
        """Bytes of all voxels, unpacked."""
        return self.shape[0] * self.shape[1] * self.shape[2] * self.dtype.itemsize

    def check(self, held: int) -> None:
        """Refuse what cannot be true, before memory is taken.

        Args:
            held: Bytes of the file from the first (packed) byte of the voxels on.

        Raises:
            ScanRefused: `truncated_file`, `too_large`.
        """
        if self.shape[0] * self.shape[1] > _PLANE:
            message = (
                f"One plane of {self.shape[0]}×{self.shape[1]} voxels is larger than any CT's."
            )
            raise refusal("too_large", message, self.shape[0] * self.shape[1])
        needed = self.needed + max(0, self.skip)
        limit = {
            "raw": held,
            "gzip": held * _MOST_RATIO,
            "zlib": held * _MOST_RATIO,
            "hex": held // 2,
        }
        limit["text"] = held * self.dtype.itemsize
        if needed > limit.get(self.coding, needed):
            message = (
                f"The header declares {needed} bytes of voxels; the {held} bytes of the file cannot"
                " hold them."
            )
            raise refusal("truncated_file", message, held)
        if self.coding == "raw" and self.skip >= 0:
            self.check_excess(held - needed)

    @property
    def tolerated(self) -> int:
        """Most bytes behind the voxels that are padding.

        Less than a row or 512 bytes, and less than a slice.
        """
        row = self.shape[0] * self.dtype.itemsize
        return min(max(row, _PADDING), row * self.shape[1]) - 1

    def check_excess(self, excess: int) -> None:
        """Refuse more bytes behind the voxels than padding has.

        Raises:
            ScanRefused: `length_mismatch`.
        """
        if excess > self.tolerated:
            size = "×".join(map(str, self.shape))
            message = (
                f"The file holds more voxels than its header declares: {self.needed} bytes for"
                f" {size} voxels of {self.dtype.itemsize} bytes are followed by {excess} or more."
                " The sizes in the header are wrong."
            )
            raise refusal("length_mismatch", message, excess)


class Slabs(Iterator[np.ndarray]):
    """The planes of a volume in the order of the file, scaled.

    The last is given out after all checks.

    `quality_flags` tells, after the last one, what lay behind the voxels.
    """

    def __init__(self, source: Unpacked, layout: Layout) -> None:
        self._layout, self._source = layout, source
        self._planes = self._iterate()
        self.quality_flags: tuple[QualityFlag, ...] = ()

    def __next__(self) -> np.ndarray:
        return next(self._planes)

    def _iterate(self) -> Iterator[np.ndarray]:
        layout, source = self._layout, self._source
        reader: Callable[[memoryview], int] = source.readinto
        if layout.coding in ("hex", "text"):
            reader = text_reader(source.read, layout.dtype, digits=layout.coding == "hex")
        count = layout.shape[0] * layout.shape[1]
        full = source.unpack_at_once(layout.needed) if not layout.skip else None
        source.skip(max(0, layout.skip))
        for index in range(layout.shape[2]):
            if full is not None:
                plane = np.frombuffer(
                    full, layout.dtype, count, index * count * layout.dtype.itemsize
                )
            elif (
                reader((plane := np.empty(count, layout.dtype)).view(np.uint8).data) < plane.nbytes
            ):
                message = f"The file ends in slice {index + 1} of {layout.shape[2]}."
                raise refusal("truncated_file", message, index)
            if index + 1 == layout.shape[2]:
                if layout.coding in ("hex", "text") and reader(
                    memoryview(bytearray(layout.dtype.itemsize))
                ):
                    layout.check_excess(
                        layout.needed
                    )  # at least one number more; how many is not counted
                self.quality_flags = self._behind()
            slab = plane.reshape(layout.shape[:2], order="F")
            if (layout.slope, layout.inter) != (1.0, 0.0):
                slab = slab * np.float64(layout.slope)
                slab += np.float64(layout.inter)
            yield slab

    def _behind(self) -> tuple[QualityFlag, ...]:
        layout, source = self._layout, self._source
        tail = source.finish(layout.tolerated)
        left, results = len(tail), []
        layout.check_excess(left)
        if layout.coding in ("hex", "text"):
            tail = tail.strip()  # digits and numbers may end in blanks and lines
        if tail.strip(b"\0"):
            message = (
                f"{left} bytes that are not all zero follow the voxels: something was put in, or"
                " left behind. The voxels may be shifted; get the file again from where it came."
            )
            results.append(QualityFlag("trailing_bytes", "warning", message, left))
        elif left:
            results.append(
                QualityFlag(
                    "padding_bytes", "info", f"{left} bytes behind the voxels were not read.", left
                )
            )
        if source.behind:
            message = (
                f"{source.behind} bytes behind the compressed voxels were not read; the voxels are"
                " complete."
            )
            results.append(QualityFlag("trailing_bytes", "warning", message, source.behind))
        return tuple(results)
