"""A DICOM file as elements that may be changed in ways no writer allows, and back to bytes."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace

from pydicom.datadict import dictionary_VR, tag_for_keyword

IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
PIXELS = 0x7FE00010
_LONG = ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV")
_UNDEFINED = 0xFFFFFFFF


@dataclass(frozen=True)
class Element:
    """One element of the data set.

    Args:
        tag: Group and element as one number.
        vr: Two letters.
        value: Its bytes; for encapsulated pixel data all items and the delimiter.
        undefined: Whether the length field says "undefined".
        length: The length field where it lies; None for the true one.
        start: Where the element began in the bytes it was read from.
    """

    tag: int
    vr: str
    value: bytes
    undefined: bool = False
    length: int | None = None
    start: int = -1


@dataclass(frozen=True)
class DicomFile:
    """Preamble, transfer syntax by label, how the data set really is written, and its elements."""

    meta: tuple[Element, ...]
    written: str
    elements: tuple[Element, ...]
    preamble: bytes = bytes(128)
    tail: bytes = b""

    @property
    def order(self) -> str:
        """Byte order of the data set, as `struct` writes it."""
        return ">" if self.written == BIG_ENDIAN else "<"

    def get(self, keyword: str | int) -> bytes | None:
        """The value of the first element of a tag, or None."""
        tag = tag_of(keyword)
        return next((one.value for one in self.elements if one.tag == tag), None)

    def text(self, keyword: str) -> str:
        """A value as text, without padding; empty if there is none."""
        return (self.get(keyword) or b"").decode("latin-1").strip(" \0")

    def number(self, keyword: str) -> int:
        """An unsigned 16-bit value; 0 if there is none."""
        value = self.get(keyword)
        return (
            int(struct.unpack(self.order + "H", value[:2])[0]) if value and len(value) >= 2 else 0
        )

    def encode(self, vr: str, value: object) -> bytes:
        """A value as the bytes of its VR."""
        if isinstance(value, bytes):
            return value
        formats = {"US": "H", "SS": "h", "UL": "I", "SL": "i"}
        if vr in formats and isinstance(value, int):
            width = 16 if vr in ("US", "SS") else 32
            unsigned = value & ((1 << width) - 1)
            return struct.pack(self.order + formats[vr].upper(), unsigned)
        data = str(value).encode("latin-1")
        return data + (b"\0" if vr == "UI" else b" ") * (len(data) % 2)

    def set(self, keyword: str | int, value: object, vr: str | None = None) -> DicomFile:
        """With another value of one element; a new element goes where its tag belongs."""
        tag = tag_of(keyword)
        kind = vr or next((one.vr for one in self.elements if one.tag == tag), None) or vr_of(tag)
        new = Element(tag, kind, self.encode(kind, value))
        if any(one.tag == tag for one in self.elements):
            return replace(
                self, elements=tuple(new if one.tag == tag else one for one in self.elements)
            )
        return self.insert(new)

    def insert(self, new: Element) -> DicomFile:
        """With one element more, before the first of a higher tag."""
        at = next(
            (n for n, one in enumerate(self.elements) if one.tag > new.tag), len(self.elements)
        )
        return replace(self, elements=(*self.elements[:at], new, *self.elements[at:]))

    def drop(self, keyword: str | int) -> DicomFile:
        """Without an element."""
        tag = tag_of(keyword)
        return replace(self, elements=tuple(one for one in self.elements if one.tag != tag))

    def change(self, keyword: str | int, **changes: object) -> DicomFile:
        """With other fields of one element, such as `vr` or `length`."""
        tag = tag_of(keyword)
        changed = tuple(replace(one, **changes) if one.tag == tag else one for one in self.elements)  # type: ignore[arg-type]
        return replace(self, elements=changed)

    def label(self, syntax: str) -> DicomFile:
        """With another TransferSyntaxUID; the data set stays written as it is."""
        data = syntax.encode("ascii") + b"\0" * (len(syntax) % 2)
        meta = tuple(
            replace(one, value=data) if one.tag == 0x00020010 else one for one in self.meta
        )
        return replace(self, meta=meta)

    @property
    def syntax(self) -> str:
        """TransferSyntaxUID."""
        return (
            next(one.value for one in self.meta if one.tag == 0x00020010)
            .decode("ascii")
            .strip("\0 ")
        )


def tag_of(keyword: str | int) -> int:
    """Tag of a keyword.

    Raises:
        ValueError: If there is no such keyword.
    """
    if isinstance(keyword, int):
        return keyword
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ValueError(f"{keyword} is no DICOM keyword")
    return int(tag)


def vr_of(tag: int) -> str:
    """VR by the dictionary; UN for what it does not know."""
    if tag & 0xFFFF == 0:
        return "UL"
    if tag == PIXELS:
        return "OW"
    try:
        return str(dictionary_VR(tag))[:2]
    except KeyError:
        return "UN"


def parse(data: bytes) -> DicomFile:
    """Read a well-formed file of ours: one with preamble, whose sequences have a length."""
    at, meta = 132, []
    while data[at : at + 2] == b"\x02\x00":
        element, at = _element(data, at, "<", False)
        meta.append(element)
    syntax = next(one.value for one in meta if one.tag == 0x00020010).decode("ascii").strip("\0 ")
    body, at = (
        (zlib.decompress(data[at:], -zlib.MAX_WBITS), 0) if syntax == DEFLATED else (data, at)
    )
    order = ">" if syntax == BIG_ENDIAN else "<"
    elements = []
    while at + 8 <= len(body):
        element, at = _element(body, at, order, syntax == IMPLICIT)
        elements.append(element)
    return DicomFile(tuple(meta), syntax, tuple(elements), data[:128])


def _element(data: bytes, at: int, order: str, implicit: bool) -> tuple[Element, int]:
    group, number = struct.unpack(order + "HH", data[at : at + 4])
    tag, start = group << 16 | number, at
    if implicit:
        vr, length, at = vr_of(tag), struct.unpack(order + "I", data[at + 4 : at + 8])[0], at + 8
    else:
        vr = data[at + 4 : at + 6].decode("latin-1")
        if vr in _LONG:
            length, at = struct.unpack(order + "I", data[at + 8 : at + 12])[0], at + 12
        else:
            length, at = struct.unpack(order + "H", data[at + 6 : at + 8])[0], at + 8
    if length != _UNDEFINED:
        return Element(tag, vr, data[at : at + length], start=start), at + length
    end = _end_of_items(data, at)
    return Element(tag, vr, data[at:end], undefined=True, start=start), end


def _end_of_items(data: bytes, at: int) -> int:
    while data[at : at + 4] == b"\xfe\xff\x00\xe0":
        at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
    return at + 8


def build(file: DicomFile) -> bytes:
    """The bytes of a file; deflated where it was read so."""
    meta = b"".join(_write(one, "<", False) for one in file.meta if one.tag != 0x00020000)
    head = (
        file.preamble
        + b"DICM"
        + _write(Element(0x00020000, "UL", struct.pack("<I", len(meta))), "<", False)
        + meta
    )
    body = b"".join(_write(one, file.order, file.written == IMPLICIT) for one in file.elements)
    if file.written == DEFLATED:
        packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
        body = packer.compress(body) + packer.flush()
        body += b"\0" * (len(body) % 2)
    return head + body + file.tail


def _write(one: Element, order: str, implicit: bool) -> bytes:
    length = _UNDEFINED if one.undefined else len(one.value) if one.length is None else one.length
    head = struct.pack(order + "HH", one.tag >> 16, one.tag & 0xFFFF)
    if implicit:
        return head + struct.pack(order + "I", length) + one.value
    vr = one.vr.encode("latin-1")
    if one.vr in _LONG:
        return head + vr + b"\0\0" + struct.pack(order + "I", length & _UNDEFINED) + one.value
    return head + vr + struct.pack(order + "H", length & 0xFFFF) + one.value
