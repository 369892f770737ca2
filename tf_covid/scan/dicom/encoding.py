"""How a DICOM file is encoded: its label (the transfer syntax), and what its bytes really are."""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from pydicom.uid import UID_dictionary

from tf_covid.scan.dicom.transfer_syntax import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    NATIVE,
)

#: Most bytes that a deflated data set may unpack to before its pixel data begin.
MOST_INFLATED = 1 << 26
#: Value representations whose length takes four bytes (PS3.5 7.1.2).
LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Encoding:
    """What the bytes of a data set are, found from its first element and not from the label.

    Args:
        label: TransferSyntaxUID (0002,0010); empty if the file names none.
        offset: Byte of the file that the data set begins at.
        deflated: Whether the data set is packed.
        implicit: Whether its elements name no value representation.
        big_endian: Whether its numbers begin with the high byte.
    """

    label: str
    offset: int
    deflated: bool
    implicit: bool
    big_endian: bool

    @property
    def syntax(self) -> str:
        """The transfer syntax UID that describes the bytes.

        The label where the label names a compression.
        """
        if self.label and self.label not in NATIVE:
            return self.label
        if self.deflated:
            return DEFLATED
        if self.big_endian:
            return BIG_ENDIAN
        return IMPLICIT if self.implicit else EXPLICIT

    @property
    def mislabelled(self) -> bool:
        """Whether the label says another encoding than the bytes have."""
        if self.label in NATIVE:
            return self.syntax != self.label or (self.label == BIG_ENDIAN and self.implicit)
        return bool(self.label) and (
            self.implicit or self.big_endian
        )  # compressed files are explicit little endian


def syntax_text(uid: str) -> str:
    """The UID if DICOM knows it as a transfer syntax.

    The field is free text and could hold anything.
    """
    known = UID_dictionary.get(uid)
    return uid if known is not None and known[1] == "Transfer Syntax" else "unknown"


def find_encoding(stream: BinaryIO) -> Encoding | None:
    """Walk the meta information and look at the first element behind it.

    None if the file is not DICOM.

    The meta group is walked here and not by pydicom, which would inflate a deflated file without a
    bound.

    Raises:
        EOFError: If the file ends within its meta information.
    """
    stream.seek(0)
    head = stream.read(144)
    if head[128:132] == b"DICM":
        at = 132
    elif head[:2] in (b"\x02\x00", b"\x08\x00") and head[2:4] <= b"\x18\x00" and len(head) > 132:
        at = 0  # no preamble: some exports leave it out
    else:
        return None
    label = ""
    while True:
        stream.seek(at)
        element = stream.read(12)
        if element[:2] != b"\x02\x00":
            break
        long = element[4:6] in LONG
        length = int.from_bytes(element[8:12] if long else element[6:8], "little")
        value = at + (12 if long else 8)
        if element[:4] == b"\x02\x00\x10\x00":
            stream.seek(value)
            label = stream.read(min(length, 128)).decode("latin-1").strip(" \0")
        at = value + length
    if len(element) < 8:
        raise EOFError("the file ends within its meta information")
    deflated = label == DEFLATED and not _is_element(element)
    if deflated:
        stream.seek(at)
        element = Inflating(stream).read(8)
    explicit = element[4:6].isalpha() and element[4:6].isupper()
    return Encoding(
        label, at, deflated, not explicit, element[:1] == b"\0" and element[1:2] != b"\0"
    )


def _is_element(head: bytes) -> bool:
    """Whether the bytes begin with an explicit element of group 0008.

    The data set is not packed.
    """
    return head[:2] == b"\x08\x00" and head[4:6].isalpha() and head[4:6].isupper()


def body(stream: BinaryIO, encoding: Encoding) -> BinaryIO:
    """The data set as a seekable stream.

    Offsets count from the file's begin, or from that of the unpacked data.
    """
    stream.seek(encoding.offset)
    return Inflating(stream) if encoding.deflated else stream  # type: ignore[return-value]


class InflatesTooFar(ValueError):
    """A deflated data set unpacks to more than is allowed."""


class Inflating(io.RawIOBase):
    """A deflated data set, unpacked as far as it is asked for, within its bound.

    Args:
        stream: At the first packed byte.
        max_bytes: Most bytes that may be unpacked; `allow` raises it when the header says more.
    """

    def __init__(self, stream: BinaryIO, max_bytes: int | None = None) -> None:
        super().__init__()
        self._stream = stream
        packed = stream.read(2)
        # The standard says no zlib header (PS3.5 A.5); some writers leave it there.
        zlib_header = (
            len(packed) == 2 and packed[0] == 0x78 and int.from_bytes(packed, "big") % 31 == 0
        )
        self._unpacker = zlib.decompressobj(zlib.MAX_WBITS if zlib_header else -zlib.MAX_WBITS)
        self._packed = packed
        self._data = bytearray()
        self._at = 0
        self._max_bytes = MOST_INFLATED if max_bytes is None else max_bytes

    def allow(self, max_bytes: int) -> None:
        """Bound the unpacked bytes anew."""
        self._max_bytes = max(max_bytes, len(self._data))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; only forward of the begin or of the present place."""
        self._at = offset if whence == io.SEEK_SET else self._at + offset
        return self._at

    def tell(self) -> int:
        """The place in the unpacked data."""
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes.

        Raises:
            TooLarge: If more would be unpacked than the bound allows.
        """
        end = self._max_bytes + 1 if size < 0 else self._at + size
        self._fill(end)
        taken = bytes(self._data[self._at : end])
        self._at += len(taken)
        return taken

    def finish(self) -> bool:
        """Unpack the rest within the bound; whether the end of the packed stream was reached."""
        self._fill(self._max_bytes + 1)
        return self._unpacker.eof

    def _fill(self, end: int) -> None:
        while len(self._data) < end and not self._unpacker.eof:
            self._packed = self._packed or self._stream.read(_BLOCK)
            if not self._packed:
                return
            room = self._max_bytes + 1 - len(self._data)
            self._data += self._unpacker.decompress(self._packed, min(room, 1 << 20))
            self._packed = self._unpacker.unconsumed_tail
            if len(self._data) > self._max_bytes:
                raise InflatesTooFar("the deflated data set is larger than its header promises")
