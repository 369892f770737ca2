"""Whether a JPEG scan holds its image to the last sample.

Libjpeg fills a stream that ends early up, and only warns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from tf_covid.scan.dicom.streams import CodeStream, first_end

#: Samples at the end of a lossless image that are coded again, at least.
_LAST = 24
#: Bytes at the end of a lossy scan of which at least one holds a part of its last block.
_NEEDED = 3
#: What is put behind a scan to see whether the decoder takes it for a part of the image.
_OTHER = bytes(np.random.default_rng(14).integers(0, 255, 4096, dtype=np.uint8))


def is_complete(
    stream: CodeStream, pixels: np.ndarray, decode: Callable[[bytes], np.ndarray | None]
) -> bool:
    """Whether the decoder found every sample in the stream.

    A quick look at the end decides nearly always; where it does not, the stream is decoded once
    more with other bytes behind it: a whole scan does not depend on them.

    Args:
        stream: A JPEG or lossless JPEG stream.
        pixels: (rows, columns) as decoded.
        decode: The decoder.
    """
    if stream.end >= 0 and _proves_itself(stream, pixels):
        return True
    entropy = stream.data[: first_end(stream)]

    def same(scan: bytes, behind: bytes = _OTHER) -> bool:
        again = decode(scan + (b"\0" if scan[-1:] == b"\xff" else b"") + behind + b"\xff\xd9")
        return (
            again is not None
            and again.shape == pixels.shape
            and bool(np.array_equal(again, pixels))
        )

    # Damage in the middle makes the image longer or shorter than its scan: then its last bytes are
    # not needed.
    if not same(entropy) or _codes_left(stream, pixels):
        return False
    short = entropy[:-_NEEDED]
    return not (stream.kind == "jpeg" and same(short) and same(short, _OTHER[::-1]))


def ends_well(data: bytes) -> bool:
    """Whether a JPEG 2000 stream reaches the end that it announces.

    Its end marker, or the end of its last tile.

    Args:
        data: Bytes from SOC on; zeros behind the stream are padding.
    """
    if data.rstrip(b"\0").endswith(b"\xff\xd9"):
        return True
    at = data.find(b"\xff\x90")
    while at >= 0 and data[at : at + 2] == b"\xff\x90" and at + 12 <= len(data):
        length = int.from_bytes(data[at + 6 : at + 10], "big")
        if not length:
            return False  # the last tile reaches to an end marker that is not there
        at += length
    return 0 <= len(data) - at <= 1


def _proves_itself(stream: CodeStream, pixels: np.ndarray) -> bool:
    """Whether the end of the image proves that its scan is whole; False if it does not tell."""
    if stream.restart or stream.components != 1:
        return False
    # What a lossy image ends with cannot be coded again.
    return _is_plain_lossless(stream) and _codes_agree(stream, pixels)


def _is_plain_lossless(stream: CodeStream) -> bool:
    """Whether it is a lossless Huffman-coded scan, of one component without restarts."""
    return not stream.restart and stream.components == 1 and stream.frame == 0xC3


def _last_codes(stream: CodeStream, pixels: np.ndarray) -> tuple[str, str] | None:
    """The codes of the last samples, and the last bits of the scan, as text of 0 and 1.

    None if it cannot be told.
    """
    table = _codes(*stream.tables.get(stream.table >> 4, (b"", b"")))
    if not table or pixels.shape[0] < 3:
        return None
    differences = _differences(stream, pixels)
    if differences is None:
        return None
    other = np.flatnonzero(differences)
    # A filled-up end has no differences, so all of the samples without one are looked at, and some
    # before them.
    start = max(0, (int(other[-1]) if other.size else 0) + 1 - _LAST)
    same = differences.size - int(other[-1]) - 1 if other.size else differences.size
    head = [_coded(int(value), table) for value in differences[start : differences.size - same]]
    zero = table.get(0, "")
    if None in head or (same and not zero):
        return None
    bits = "".join(code for code in head if code) + zero * same
    packed = stream.data[max(stream.scan, stream.end - 2 * (len(bits) // 8 + 8)) : stream.end]
    there = bin(int.from_bytes(b"\x01" + packed.replace(b"\xff\0", b"\xff"), "big"))[3:]
    return bits, there


def _codes_agree(stream: CodeStream, pixels: np.ndarray) -> bool:
    """Whether the last samples, coded again, are the last bits of the scan but for padding."""
    coded = _last_codes(stream, pixels)
    if coded is None:
        return False
    bits, there = coded
    return any(there.endswith(bits + padding * index) for padding in "10" for index in range(8))


def _codes_left(stream: CodeStream, pixels: np.ndarray) -> bool:
    """Whether bits that are no padding follow the last sample.

    Damage in the middle has made the image shorter.
    """
    coded = _last_codes(stream, pixels) if _is_plain_lossless(stream) else None
    if coded is None:
        return False
    bits, there = coded
    results = there.rfind(bits)
    return results >= 0 and len(set(there[results + len(bits) :])) > 1


def _differences(stream: CodeStream, pixels: np.ndarray) -> np.ndarray | None:
    """What the last rows of a lossless JPEG differ by from their prediction (ITU T.81, H.1.2.1).

    Flat, modulo 2^16.

    As many rows as hold all the samples without a difference at the end.
    """
    rows = 2
    while True:
        part = pixels[-rows - 1 :].astype(np.int32) >> stream.point
        above, here = part[:-1], part[1:]
        left, up, corner = here[:, :-1], above[:, 1:], above[:, :-1]
        match stream.predictor:
            case 1:
                guess = left
            case 2:
                guess = up
            case 3:
                guess = corner
            case 4:
                guess = left + up - corner
            case 5:
                guess = left + ((up - corner) >> 1)
            case 6:
                guess = up + ((left - corner) >> 1)
            case 7:
                guess = (left + up) >> 1
            case _:
                return None
        results = np.concatenate([above[:, :1], guess], axis=1)
        differences = ((here - results + 32768) & 0xFFFF) - 32768
        if differences[0].any() or differences.any(axis=1)[0]:
            return np.asarray(differences).reshape(-1)
        if rows >= pixels.shape[0] - 1:
            return np.asarray(differences).reshape(-1)
        rows = min(4 * rows, pixels.shape[0] - 1)


@lru_cache(maxsize=16)
def _codes(counts: bytes, values: bytes) -> dict[int, str]:
    """Value → its Huffman code as text of 0 and 1 (ITU T.81, annex C)."""
    results: dict[int, str] = {}
    code = at = 0
    for length, count in enumerate(counts, 1):
        for value in values[at : at + count]:
            results[value] = format(code, f"0{length}b")
            code += 1
        at += count
        code <<= 1
    return results


def _coded(difference: int, table: dict[int, str]) -> str | None:
    """One difference as its bits; None if the table has no code for its size."""
    size = abs(difference).bit_length()
    code = table.get(size)
    if code is None or size in (0, 16):
        return code  # 32768 has no further bits
    return code + format(
        difference if difference > 0 else difference + (1 << size) - 1, f"0{size}b"
    )
