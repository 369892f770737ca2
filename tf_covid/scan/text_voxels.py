"""Voxels that are written as text.

Hexadecimal digits or decimal numbers (NRRD's encodings hex and text).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from tf_covid.scan.checks import refusal

#: Letters of the file that are read at a time.
_CHUNK = 1 << 17
#: Longest number, in letters.
_LONGEST_WORD = 64
Read = Callable[[int], bytes]


def text_reader(read: Read, dtype: np.dtype, *, digits: bool) -> Callable[[memoryview], int]:
    """Like a stream's `readinto`, for voxels that are written as text.

    Args:
        read: The stream's: at most so many bytes of the text.
        dtype: Type of a voxel.
        digits: Whether they are hexadecimal digits, not numbers.

    Raises:
        ScanRefused: `bad_header` where the text holds anything else.
    """
    parts = _hex_parts(read) if digits else _text_parts(read, dtype)
    rest = bytearray()

    def readinto(view: memoryview) -> int:
        while len(rest) < len(view):
            part = next(parts, None)
            if part is None:
                break
            rest.extend(part)
        count = min(len(rest), len(view))
        view[:count] = rest[:count]
        del rest[:count]
        return count

    return readinto


def _hex_parts(read: Read) -> Iterator[bytes]:
    odd = b""
    while block := read(_CHUNK):
        digits = odd + b"".join(block.split())
        even = len(digits) & ~1
        odd = digits[even:]
        try:
            yield bytes.fromhex(digits[:even].decode("ascii"))
        except ValueError:
            raise refusal(
                "bad_header", "The voxels are declared as hexadecimal digits, but hold others."
            ) from None


def _text_parts(read: Read, dtype: np.dtype) -> Iterator[bytes]:
    word = b""
    while block := read(_CHUNK):
        tokens = (word + block.replace(b",", b" ") + b"|").split()
        word = tokens.pop()[:-1]
        if len(word) > _LONGEST_WORD:
            tokens.append(word)
        yield _numbers(tokens, dtype)
    if word:
        yield _numbers([word], dtype)


def _numbers(words: list[bytes], dtype: np.dtype) -> bytes:
    try:
        if any(len(word) > _LONGEST_WORD or b"_" in word for word in words):
            raise ValueError  # Python's numbers may hold underscores, a file's may not
        if dtype.kind == "f":
            return np.array([float(word) for word in words], dtype).tobytes()
        numbers, bounds = [int(word) for word in words], np.iinfo(dtype)
        if numbers and not bounds.min <= min(numbers) <= max(numbers) <= bounds.max:
            raise ValueError  # older NumPy would wrap it around
        return np.array(numbers, dtype).tobytes()
    except (ValueError, OverflowError):
        raise refusal(
            "bad_header", "The voxels are declared as text, but hold no such numbers."
        ) from None
