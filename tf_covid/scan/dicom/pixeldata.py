"""The element PixelData (7FE0,0010) → the bytes of each frame, as long as the header promises."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NoReturn

from tf_covid.scan import archive
from tf_covid.scan.checks import refusal
from tf_covid.scan.dicom.encoding import LONG, InflatesTooFar, Inflating, body, syntax_text
from tf_covid.scan.dicom.header import DECIDING, Instance
from tf_covid.scan.dicom.notes import Notes
from tf_covid.scan.dicom.streams import STARTS
from tf_covid.scan.dicom.transfer_syntax import NATIVE
from tf_covid.scan.source import ScanFile

UNDEFINED = 0xFFFFFFFF
#: Bytes behind the last frame that are padding, if they are fewer than a row as well.
_PADDING = 512
_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"


class Truncated(Exception):
    """The pixel data end early."""


class Undecodable(Exception):
    """No decoder reads the pixel data; the text is the transfer syntax UID."""


@dataclass(frozen=True)
class _Value:
    """Where the value of PixelData begins, and its declared length."""

    start: int
    length: int


def raw_frames(instance: Instance, source: ScanFile, notes: Notes | None = None) -> Iterator[bytes]:
    """The bytes of each frame of one file, in the order of the file.

    Args:
        instance: The header.
        source: The file.
        notes: Takes what is noticed.

    Raises:
        Truncated: If the file ends before its frames do.
        ScanRefused: `pixel_length`, `frame_count` or `duplicate_element`.
    """
    notes = notes or Notes()
    _refuse_contradictions(instance)
    if instance.encoding.mislabelled:
        notes.add("transfer_syntax_wrong", instance.name)
    try:
        with source.open() as opened:
            stream = body(opened, instance.encoding)
            yield from _frames(stream, instance, notes)
    except InflatesTooFar:
        message = (
            "The deflated data set unpacks to more than its header promises: the file is damaged or"
            " hostile."
        )
        raise refusal("pixel_length", message) from None
    except (EOFError, OSError, ValueError, struct.error, *archive.ERRORS):
        raise Truncated from None


def _refuse_contradictions(instance: Instance) -> None:
    if instance.twice:
        names = ", ".join(instance.twice)
        message = (
            f"{names} occurs twice in one header with different values. Export the series again."
        )
        raise refusal("duplicate_element", message, names)
    if instance.declared_frames != len(instance.frames):
        message = (
            f"NumberOfFrames (0028,0008) is {instance.declared_frames}, but the header places"
            f" {len(instance.frames)} frame(s) (PerFrameFunctionalGroupsSequence). Export the"
            " series again."
        )
        raise refusal("frame_count", message, instance.declared_frames)


def _frames(stream: BinaryIO, instance: Instance, notes: Notes) -> Iterator[bytes]:
    value = _locate(stream, instance)
    frame = instance.rows * instance.columns * instance.samples * instance.bits_allocated // 8
    exact = frame * len(instance.frames)
    stream.seek(value.start)
    if value.length != UNDEFINED and (
        value.length in (exact, exact + exact % 2) or instance.transfer_syntax in NATIVE
    ):
        start = stream.read(12)
        compressed = value.length != exact and (start[:4] == _ITEM or start.startswith(STARTS))
        if not compressed:
            if instance.transfer_syntax not in NATIVE:
                notes.add("transfer_syntax_wrong", instance.name)
            stream.seek(value.start)
            yield from _native(stream, instance, value, frame, notes)
            return
        if start[:4] != _ITEM:
            notes.add("transfer_syntax_wrong", instance.name)
            stream.seek(value.start)
            yield stream.read(value.length)
            return
    elif value.length != UNDEFINED and stream.read(4) != _ITEM:
        wrong_length(instance, value.length, exact)
    stream.seek(value.start)
    if stream.read(4) == _ITEM:
        if instance.transfer_syntax in NATIVE:
            notes.add("transfer_syntax_wrong", instance.name)
        stream.seek(value.start)
        yield from _encapsulated(stream, instance, notes)
        return
    if instance.transfer_syntax not in NATIVE:
        notes.add("transfer_syntax_wrong", instance.name)
    stream.seek(value.start)
    yield from _native(stream, instance, value, frame, notes)


def _element(stream: BinaryIO, instance: Instance) -> tuple[int, int] | None:
    """Tag and declared length of the next element; None at the end.

    Afterwards the stream is at the value.

    Whether a value representation is written, is seen here once more: files mix both.
    """
    order = ">" if instance.encoding.big_endian else "<"
    head = stream.read(8)
    if len(head) < 8:
        return None
    group, element_number = struct.unpack(order + "HH", head[:4])
    if head[4:6] in LONG:
        length = int(struct.unpack(order + "I", stream.read(4))[0])
    elif head[4:6].isalpha() and head[4:6].isupper() and not instance.encoding.implicit:
        length = int(struct.unpack(order + "H", head[6:])[0])
    else:
        length = int(struct.unpack(order + "I", head[4:])[0])
    return group << 16 | element_number, length


def _locate(stream: BinaryIO, instance: Instance) -> _Value:
    """The value of (7FE0,0010), past a group length and an Extended Offset Table."""
    stream.seek(instance.pixel_offset)
    while True:
        element = _element(stream, instance)
        if element is None:
            raise Truncated
        tag, length = element
        if tag == 0x7FE00010:
            return _Value(stream.tell(), length)
        if tag not in (0x7FE00000, 0x7FE00001, 0x7FE00002) or length == UNDEFINED:
            raise Undecodable(instance.transfer_syntax)  # float or double pixel data
        stream.seek(stream.tell() + length)


def wrong_length(instance: Instance, actual: int, exact: int) -> NoReturn:
    """Refuse pixel data of another length than the header promises.

    Args:
        instance: The header.
        actual: Bytes that there are, unpacked.
        exact: Bytes that it promises.

    Raises:
        ScanRefused: `pixel_length`.
    """
    message = (
        f"PixelData (7FE0,0010) has {actual} bytes, but Rows (0028,0010) {instance.rows} × Columns"
        f" (0028,0011) {instance.columns} × {len(instance.frames)} frame(s) of"
        f" {instance.bits_allocated} bits are {exact}: one of them is wrong. Export the series"
        " again."
    )
    raise refusal("pixel_length", message, actual)


def _native(
    stream: BinaryIO, instance: Instance, value: _Value, frame: int, notes: Notes
) -> Iterator[bytes]:
    exact = frame * len(instance.frames)
    tolerance = max(_PADDING, frame // instance.rows)
    if isinstance(stream, Inflating):
        stream.allow(value.start + exact + (1 << 20))
    if value.length != UNDEFINED:
        extra = value.length - exact
        if extra < 0 or extra >= tolerance:
            wrong_length(instance, value.length, exact)
        padding = b"" if extra <= exact % 2 else _at(stream, value.start + exact, extra)
        if padding:
            notes.add("odd_bytes" if any(padding) else "extra_bytes", instance.name)
    stream.seek(value.start)
    for _ in instance.frames:
        data = stream.read(frame)
        if len(data) < frame:
            raise Truncated
        yield data
    if value.length == UNDEFINED:
        rest = stream.read(tolerance)
        end = rest.find(_END)
        if (end < 0 and len(rest) >= tolerance) or end > tolerance:
            wrong_length(instance, exact + len(rest), exact)
        notes.add("no_delimiter" if end < 0 else "transfer_syntax_wrong", instance.name)
    else:
        if value.length > exact:
            stream.seek(value.start + value.length)
        if not _look_behind(stream, instance):
            notes.add("odd_bytes", instance.name)
    if isinstance(stream, Inflating) and not stream.finish():
        raise Truncated


def _at(stream: BinaryIO, offset: int, size: int) -> bytes:
    stream.seek(offset)
    return stream.read(size)


def _is_padding(rest: bytes) -> bool:
    """Zeros, and an even number of them, as everything in DICOM has an even length."""
    return not any(rest) and len(rest) % 2 == 0


def _look_behind(stream: BinaryIO, instance: Instance) -> bool:
    """Walk the elements behind the pixel data; whether what follows them is nothing or zeros.

    Raises:
        ScanRefused: `duplicate_element` if one of them decides what the voxels are.
    """
    for _ in range(16):
        position = stream.tell()
        element = _element(stream, instance)
        if element is None:
            return _is_padding(_at(stream, position, _PADDING))
        if keyword := DECIDING.get(element[0]):
            message = (
                f"{keyword} stands behind the pixel data, a second time or out of order. Export the"
                " series again."
            )
            raise refusal("duplicate_element", message, keyword)
        if element[0] <= 0x7FE00010:
            return _is_padding(_at(stream, position, _PADDING))
        if element[1] == UNDEFINED:
            return True
        stream.seek(stream.tell() + element[1])
    return True


def _encapsulated(stream: BinaryIO, instance: Instance, notes: Notes) -> Iterator[bytes]:
    if len(instance.frames) == 1:
        parts = list(_fragments(stream, instance, notes))[1:]
        if any(part.startswith(STARTS[:2]) for part in parts[1:]):
            _wrong_count(instance, sum(part.startswith(STARTS[:2]) for part in parts))
        yield b"".join(parts)
        _look_behind(stream, instance)
        return
    start = stream.tell()
    table: bytes = b""
    heads: list[tuple[int, bool]] = []
    for index, part in enumerate(_fragments(stream, instance, notes)):
        if index:
            heads.append((len(part), part.startswith(STARTS)))
        else:
            table = part
    groups = _grouped(heads, table, instance)
    _look_behind(stream, instance)
    stream.seek(start)
    fragments = _fragments(stream, instance, notes)
    next(fragments)
    for count in groups:
        yield b"".join(next(fragments) for _ in range(count))


def _grouped(heads: Sequence[tuple[int, bool]], table: bytes, instance: Instance) -> list[int]:
    """How many fragments each frame has: by the offset table, one each, or by where streams begin.

    Raises:
        ScanRefused: `frame_count` if there are not as many as the header places.
    """
    frames = len(instance.frames)
    if len(heads) == frames:
        return [1] * frames
    starts: list[int] = []
    if len(table) == 4 * frames:
        offsets = struct.unpack(f"<{frames}I", table)
        at = 0
        for index, (size, _) in enumerate(heads):
            if at in offsets:
                starts.append(index)
            at += size + 8
    else:
        starts = [index for index, (_, begins) in enumerate(heads) if begins]
    if len(starts) != frames or starts[0] != 0:
        _wrong_count(instance, len(starts) or len(heads))
    return [end - start for start, end in zip(starts, [*starts[1:], len(heads)], strict=True)]


def _wrong_count(instance: Instance, actual: int) -> NoReturn:
    message = (
        f"PixelData (7FE0,0010) holds {actual} compressed frame(s), but NumberOfFrames (0028,0008)"
        f" is {len(instance.frames)}. Export the series again."
    )
    raise refusal("frame_count", message, actual)


def _fragments(stream: BinaryIO, instance: Instance, notes: Notes) -> Iterator[bytes]:
    """The basic offset table, then every item (PS3.5 A.4)."""
    count = 0
    while True:
        head = stream.read(8)
        if head[:4] == _END:
            return
        if len(head) < 8 or head[:4] != _ITEM:
            if count < 2:
                raise Truncated
            # Whether the frames are whole, their decoder finds out.
            notes.add("no_delimiter", instance.name)
            return
        length = int.from_bytes(head[4:], "little")
        data = stream.read(length) if length < UNDEFINED else b""
        if len(data) < length:
            raise Truncated
        if data or not count:
            yield data
        count += 1


def undecodable_text(error: Undecodable) -> str:
    """The transfer syntax of an error, if DICOM knows it."""
    return syntax_text(str(error))
