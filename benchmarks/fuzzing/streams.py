"""Whether code streams of a changed file are whole, told without the reader under test."""

from __future__ import annotations

import numpy as np

from fuzzing.dicomfile import PIXELS, DicomFile, parse
from fuzzing.seeds import Base

_JPEG = "1.2.840.10008.1.2.4."
_HUFFMAN = tuple(_JPEG + end for end in ("50", "51", "57", "70"))
_RLE = "1.2.840.10008.1.2.5"
_LOSSLESS = 0xC3
#: Length of a code and the code itself → its symbol.
_Codes = dict[tuple[int, int], int]


class _Ended(Exception):
    """The stream ends, or holds a code that is none."""


def are_whole(base: Base) -> bool:
    """Whether every RLE and Huffman-coded JPEG frame holds the samples that its header promises."""
    for name, data in base.members:
        if name == "DICOMDIR" or data[128:132] != b"DICM":
            continue
        try:
            file = parse(data)
        except (ValueError, LookupError, StopIteration, ArithmeticError):
            continue  # the reader said what it says about such a file
        size = file.number("Rows") * file.number("Columns")
        frames = _frames(file)
        if file.syntax == _RLE and not all(_rle(frame, size) for frame in frames):
            return False
        if file.syntax in _HUFFMAN and not all(map(_jpeg, frames)):
            return False
    return True


def _frames(file: DicomFile) -> list[bytes]:
    """The items behind the offset table; each is one frame in our bases."""
    stream, at, found = file.get(PIXELS) or b"", 0, []
    while stream[at : at + 4] == b"\xfe\xff\x00\xe0":
        length = int.from_bytes(stream[at + 4 : at + 8], "little")
        found.append(stream[at + 8 : at + 8 + length])
        at += 8 + length
    return found[1:]


def _rle(frame: bytes, size: int) -> bool:
    count, *offsets = np.frombuffer(frame[:64].ljust(64, b"\0"), "<u4").tolist()
    ends = [*offsets[1:count], len(frame)]
    return count in (1, 2) and all(
        _unpacked(frame[begin:end]) == size
        for begin, end in zip(offsets[:count], ends, strict=False)
    )


def _unpacked(segment: bytes) -> int:
    """Bytes that a PackBits segment holds; one padding byte at its end is none."""
    at = total = 0
    while at < len(segment) - 1:
        code = segment[at]
        if code < 128:
            at += code + 2
            total += code + 1
        else:
            at += 1 if code == 128 else 2
            total += 0 if code == 128 else 257 - code
    return total


def _jpeg(frame: bytes) -> bool:
    """Walk the Huffman codes of a JPEG frame of one component.

    Exactly its samples or blocks, and no byte behind.
    """
    tables: dict[int, _Codes] = {}
    at, kind, rows, columns = 2, 0, 0, 0
    while frame[at : at + 1] == b"\xff":
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        body = frame[at + 4 : at + 2 + length]
        if marker == 0xC4:
            tables |= _tables(body)
        elif marker in (0xC0, 0xC1, _LOSSLESS):
            kind, rows, columns = (
                marker,
                int.from_bytes(body[1:3], "big"),
                int.from_bytes(body[3:5], "big"),
            )
        elif marker == 0xDA:
            chosen = body[2] if len(body) > 2 else 0
            return _scan(frame[at + 2 + length :], kind, rows, columns, tables, chosen)
        at += 2 + length
    return False


def _tables(body: bytes) -> dict[int, _Codes]:
    """Huffman tables of one DHT segment (T.81 C.2), by class and number."""
    found, at = {}, 0
    while at + 17 <= len(body):
        counts, symbol, code, codes = body[at + 1 : at + 17], at + 17, 0, {}
        for length, count in enumerate(counts, 1):
            for _ in range(count):
                codes[length, code] = body[symbol] if symbol < len(body) else 0
                symbol, code = symbol + 1, code + 1
            code <<= 1
        found[body[at]], at = codes, symbol
    return found


def _scan(
    data: bytes, kind: int, rows: int, columns: int, tables: dict[int, _Codes], chosen: int
) -> bool:
    end = next((n for n in range(len(data) - 1) if data[n] == 0xFF and data[n + 1] != 0), len(data))
    if data[end : end + 2] != b"\xff\xd9":
        return False
    bits = _Bits(data[:end].replace(b"\xff\x00", b"\xff"))
    direct, alternate = tables.get(chosen >> 4, {}), tables.get(0x10 | chosen & 15, {})
    try:
        if kind == _LOSSLESS:
            for _ in range(rows * columns):
                size = bits.symbol(direct)
                bits.skip(0 if size == 16 else size)
        else:
            for _ in range(((rows + 7) // 8) * ((columns + 7) // 8)):
                _block(bits, direct, alternate)
    except _Ended:
        return False
    return bits.at_the_end()


def _block(bits: _Bits, direct: _Codes, alternate: _Codes) -> None:
    bits.skip(bits.symbol(direct))
    number = 1
    while number < 64:
        symbol = bits.symbol(alternate)
        if symbol == 0:  # end of block
            return
        number += (symbol >> 4) + 1
        bits.skip(symbol & 15)
    if number > 64:
        raise _Ended


class _Bits:
    """The bits of an entropy-coded segment, from the first on."""

    def __init__(self, data: bytes) -> None:
        self._bits = np.unpackbits(np.frombuffer(data, np.uint8)).tolist()
        self._at = 0

    def symbol(self, codes: _Codes) -> int:
        """The next Huffman symbol."""
        code = 0
        for length in range(1, 17):
            if self._at >= len(self._bits):
                raise _Ended
            code = code << 1 | self._bits[self._at]
            self._at += 1
            if (length, code) in codes:
                return codes[length, code]
        raise _Ended

    def skip(self, count: int) -> None:
        """Pass over the bits of a value."""
        self._at += count
        if self._at > len(self._bits):
            raise _Ended

    def at_the_end(self) -> bool:
        """Whether less than a byte is left, and that is ones (T.81 F.1.2.3)."""
        rest = self._bits[self._at :]
        return len(rest) < 8 and all(rest)
