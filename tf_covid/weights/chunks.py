"""Numbers of an HDF5 dataset, by our own code.

Its library finds where they lie, and unpacks nothing.

HDF5 inflates a chunk until its stream ends, whatever the header promises. Here a chunk is inflated
to the size that its shape gives, and must end there.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import h5py
import numpy as np

from tf_covid.errors import UnsafeFile
from tf_covid.weights import hdf5

#: Bytes that are read at once.
PIECE = 16_000_000


def write(path: Path, item: h5py.Dataset, target: BinaryIO, name: str) -> np.dtype:
    """Append a dataset's numbers to an open file, in the order of its axes, a piece at a time.

    Args:
        path: The HDF5 file.
        item: A dataset that `hdf5.checked` let pass.
        target: Gets float32 for floating-point numbers and the file's own integers, little-endian.
        name: Name of the dataset in an error message.

    Returns:
        The type of what was written.

    Raises:
        UnsafeFile: If the file holds fewer numbers than its shape says, or a chunk does not unpack
            to its size, or a number is not finite in float32.
    """
    made = np.dtype("<f4") if item.dtype.kind == "f" else item.dtype.newbyteorder("<")
    for piece in _chunked(item, made, name) if item.chunks else _pieces(path, item, name):
        with np.errstate(over="ignore"):
            plain = np.ascontiguousarray(piece, made)
        if made.kind == "f" and not np.isfinite(plain).all():
            raise UnsafeFile("not_finite", f"{name} holds what is not a finite number in float32")
        target.write(plain.data)
    return made


def _pieces(path: Path, item: h5py.Dataset, name: str) -> Iterator[np.ndarray]:
    """Numbers that lie in one run in the file."""
    count, offset = math.prod(item.shape), item.id.get_offset()
    if not count:
        return
    if offset is None:
        yield item[()]  # at most 64 KB, inside the dataset's own header
        return
    with path.open("rb") as file:
        file.seek(offset)
        while count:
            piece = np.fromfile(file, item.dtype, min(count, PIECE // item.dtype.itemsize))
            if not piece.size:
                raise UnsafeFile("damaged", f"{name} ends early: {count} numbers are missing")
            count -= piece.size
            yield piece


def _chunked(item: h5py.Dataset, made: np.dtype, name: str) -> Iterator[np.ndarray]:
    """All numbers of a dataset in chunks, which are put together whole."""
    values = np.zeros(item.shape, made)
    for results in hdf5.chunks_of(item):
        position = tuple(int(side) for side in results.chunk_offset)
        if any(
            at >= side or at % step
            for at, side, step in zip(position, item.shape, item.chunks, strict=True)
        ):
            raise UnsafeFile(
                "damaged",
                f"{name} has a chunk at {list(position)}, which lies outside {list(item.shape)}",
            )
        mask, packed = item.id.read_direct_chunk(position)
        if mask:
            raise UnsafeFile(
                "unknown_packing", f"{name} has a chunk that skips filters (mask {mask})"
            )
        chunk = _unpacked(packed, item, name).reshape(item.chunks)
        region = tuple(
            slice(at, min(at + step, side))
            for at, step, side in zip(position, item.chunks, item.shape, strict=True)
        )
        with np.errstate(over="ignore"):
            values[region] = chunk[tuple(slice(0, part.stop - part.start) for part in region)]
    yield values


def _unpacked(packed: bytes, item: h5py.Dataset, name: str) -> np.ndarray:
    size = math.prod(item.chunks) * item.dtype.itemsize
    content = packed
    if item.compression == "gzip":
        inflater = zlib.decompressobj()
        try:
            content = inflater.decompress(packed, size + 1)
        except zlib.error as error:
            raise UnsafeFile("damaged", f"{name}: a chunk cannot be inflated ({error})") from error
        if len(content) > size:
            raise UnsafeFile(
                "shape_bomb",
                f"{name}: a chunk of {len(packed)} bytes inflates to more than its {size}",
            )
        if not inflater.eof:
            raise UnsafeFile("damaged", f"{name}: a chunk ends early, or its checksum is missing")
    if len(content) != size:
        raise UnsafeFile("damaged", f"{name}: a chunk holds {len(content)} bytes, not {size}")
    numbers = np.frombuffer(content, np.uint8)
    if item.shuffle and item.dtype.itemsize > 1:
        numbers = np.ascontiguousarray(numbers.reshape(item.dtype.itemsize, -1).T)
    return numbers.reshape(-1).view(item.dtype)
