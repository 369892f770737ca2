"""What a JPEG, JPEG-LS, JPEG 2000 or RLE stream says of itself, before it is decoded."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from tf_covid.scan.dicom.transfer_syntax import Kind

#: How streams begin; an RLE header begins with its number of segments, and the first one lies
#: behind the header.
STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")
_EOI = b"\xff\xd9"
#: Zeros behind an end marker are looked through up to here.
_PADDED = 64


@dataclass(frozen=True)
class CodeStream:
    """The headers of one stream.

    Args:
        kind: Which codec.
        rows, columns, components, precision: Of the image; zero for RLE, whose header does not say.
        data: The stream itself, without a JP2 file around it.
        scan: Where the first entropy-coded byte lies (JPEG); else 0.
        end: Where the end marker lies (JPEG); -1 if it is not there.
        tables: Huffman tables by class and number, as (counts of each length, values), JPEG.
        frame: The marker that began the frame header (JPEG).
        predictor: The first parameter of the scan header: in lossless JPEG the predictor.
        point: The point transform of lossless JPEG.
        table: The selectors of the scan's Huffman tables, direct current in the high half.
        restart: Restart interval; 0 for none.
    """

    kind: Kind
    rows: int = 0
    columns: int = 0
    components: int = 1
    precision: int = 0
    data: bytes = field(default=b"", repr=False)
    scan: int = 0
    end: int = -1
    tables: dict[int, tuple[bytes, bytes]] = field(default_factory=dict, repr=False)
    frame: int = 0
    predictor: int = 0
    point: int = 0
    table: int = 0
    restart: int = 0


def code_stream(data: bytes) -> CodeStream | None:
    """The headers of the stream in `data`; None if there is none, or if it has two sizes."""
    try:
        if data[:2] == b"\xff\xd8":
            return _jpeg(data)
        if data[4:8] == b"jP  ":
            return _jp2(data)
        if data[:4] == b"\xff\x4f\xff\x51":
            return _jpeg2k(data)
        if is_rle(data):
            return CodeStream("rle", data=data)
    except (struct.error, IndexError, ValueError):
        return None
    return None


def is_rle(data: bytes) -> bool:
    """Whether the bytes begin like an RLE header (PS3.5 G.5).

    1 to 15 segments, the first at byte 64.
    """
    return (
        len(data) >= 64
        and 1 <= int.from_bytes(data[:4], "little") <= 15
        and data[4:8] == b"\x40\0\0\0"
    )


def _jp2(data: bytes) -> CodeStream | None:
    """The code stream box of a JP2 file: other boxes may hold anything, a second stream too."""
    for kind, start, end in _boxes(data):
        if kind == b"jp2c":
            return _jpeg2k(data[start:end])
    return None


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    at = 0
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        head = 8
        if length == 1:
            (length,), head = struct.unpack(">Q", data[at + 8 : at + 16]), 16
        end = len(data) if length == 0 else at + length
        if end < at + head:
            return
        yield kind, at + head, min(end, len(data))
        at = end


def _jpeg2k(data: bytes) -> CodeStream | None:
    if data[:4] != b"\xff\x4f\xff\x51" or len(data) < 45:
        return None
    x1, y1, x0, y0, tile_x, tile_y = struct.unpack(">6I", data[8:32])
    components, depth, step_x, step_y = struct.unpack(">H3B", data[40:45])
    if not tile_x or not tile_y or x1 <= x0 or y1 <= y0 or (step_x, step_y) != (1, 1):
        return None
    at = 2
    while data[at : at + 2] != b"\xff\x90":  # the main header ends where the first tile begins
        if at + 4 > len(data) or data[at] != 0xFF or (at > 2 and data[at + 1] == 0x51):
            return None
        at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
    return CodeStream("jpeg2k", y1 - y0, x1 - x0, components, (depth & 0x7F) + 1, data)


def _jpeg(data: bytes) -> CodeStream | None:
    at, restart, frame, size = 2, 0, 0, (0, 0, 0, 0)
    tables: dict[int, tuple[bytes, bytes]] = {}
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        value = data[at + 4 : at + 2 + length]
        if length < 2 or len(value) < length - 2:
            return None
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            if frame:
                return None  # two frame headers
            frame, size = marker, struct.unpack(">BHHB", value[:6])
        elif marker == 0xC4:
            tables |= _tables(value)
        elif marker == 0xDD:
            restart = int.from_bytes(value[:2], "big")
        elif marker == 0xDA:
            return _scanned(data, at + 2 + length, value, frame, size, tables, restart)
        at += 2 + length
    return None


def _scanned(
    data: bytes,
    scan: int,
    head: bytes,
    frame: int,
    size: tuple[int, int, int, int],
    tables: dict[int, tuple[bytes, bytes]],
    restart: int,
) -> CodeStream | None:
    if not frame:
        return None
    precision, rows, columns, components = size
    kind: Kind = (
        "jpegls"
        if frame == 0xF7
        else "jpeg_lossless"
        if frame in (0xC3, 0xC7, 0xCB, 0xCF)
        else "jpeg"
    )
    used = head[0]
    table, (predictor, _, approximation) = head[2], head[1 + 2 * used : 4 + 2 * used]
    end = _end(data, scan)
    point = approximation & 15
    return CodeStream(
        kind,
        rows,
        columns,
        components,
        precision,
        data,
        scan,
        end,
        tables,
        frame,
        predictor,
        point,
        table,
        restart,
    )


def _end(data: bytes, scan: int) -> int:
    """Where the end marker lies: at the end, as a rule, else wherever the first one is.

    −1 if there is none.

    Going through all of a stream for two bytes takes a tenth of the time of its decoding.
    """
    tail = data[max(scan, len(data) - _PADDED) :].rstrip(b"\0")
    if tail.endswith(_EOI):
        return max(scan, len(data) - _PADDED) + len(tail) - 2
    return data.find(_EOI, scan)


def first_end(stream: CodeStream) -> int:
    """Where the first end marker of a JPEG lies, at which decoders stop.

    The length of the data without one.
    """
    results = stream.data.find(_EOI, stream.scan)
    return results if results >= 0 else len(stream.data)


def _tables(value: bytes) -> dict[int, tuple[bytes, bytes]]:
    results: dict[int, tuple[bytes, bytes]] = {}
    at = 0
    while at + 17 <= len(value):
        counts = value[at + 1 : at + 17]
        total = sum(counts)
        results[value[at]] = (counts, value[at + 17 : at + 17 + total])
        at += 17 + total
    return results
