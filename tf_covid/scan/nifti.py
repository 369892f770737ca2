"""NIfTI and Analyze 7.5 in; label and map volumes out, on the grid of their source.

The voxels are streamed: a compressed file is never unpacked beyond what its header declares, and a
float64 file costs one slab more than the int16 scan.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, cast

import nibabel as nib
import numpy as np

from tf_covid.atomic import replacing
from tf_covid.scan.checks import refusal
from tf_covid.scan.grid import check_size
from tf_covid.scan.limits import DEFAULT, Limits
from tf_covid.scan.nifti_header import HEADER_BYTES, NiftiHeader, parse
from tf_covid.scan.payload import Layout, Slabs, Unpacked
from tf_covid.scan.scan import Scan
from tf_covid.scan.source import ScanFile
from tf_covid.scan.volume import RawVolume

#: How the names of files with one volume end; `.hdr` has its voxels in an `.img`.
NAMES = (".nii", ".nii.gz", ".hdr")
_GZIP = b"\x1f\x8b"


@contextmanager
def open_nifti(
    source: ScanFile, data: ScanFile | None = None, limits: Limits = DEFAULT
) -> Iterator[RawVolume]:
    """The volume in a NIfTI-1 or -2 file, or in a header (NIfTI or Analyze 7.5) and its `.img`.

    Args:
        source: The file, or the header.
        data: The `.img` of a header.
        limits: Bounds on sizes.

    Raises:
        ScanRefused: `empty_file`, `not_nifti`, `truncated_file`, `damaged_file`, `length_mismatch`,
            `too_large`, `bad_header`, `bad_affine`, `not_3d`, `single_slice`, `not_scalar`,
            `detached_data`.
    """
    with _unpacked(source) as stream:
        header = read_header(stream)
        shape = header.shape()
        check_size(shape, limits)
        slope, inter, odd = header.scaling()
        offset = header.offset()
        affine, flags = header.affine()
        if header.kind == "single":
            _skip_to(stream, header, offset)
            layout = Layout(shape, header.dtype(), stream.coding, 0, slope, inter)
            layout.check(max(0, source.size - offset) if stream.coding == "raw" else source.size)
            yield RawVolume(shape, affine, Slabs(stream, layout), flags + odd)
            return
    if header.kind == "analyze" and not source.name.lower().endswith(".hdr"):
        message = (
            "The file is not NIfTI: its magic (byte 344) is missing. Analyze 7.5 is read from .hdr"
            " and .img."
        )
        raise refusal("not_nifti", message)
    if data is None:
        message = (
            "The header says that its voxels lie in an .img file beside it (NIfTI pair, Analyze);"
            " it is not there."
        )
        raise refusal("detached_data", message)
    with _unpacked(data) as stream:
        layout = Layout(shape, header.dtype(), stream.coding, offset, slope, inter)
        layout.check(data.size)
        yield RawVolume(shape, affine, Slabs(stream, layout), flags + odd)


@contextmanager
def _unpacked(source: ScanFile) -> Iterator[Unpacked]:
    """The bytes of a file; compressed or not is told from its first bytes, not from its name."""
    if source.size == 0:
        raise refusal("empty_file", "The file is empty.")
    with source.open() as raw:
        packed = raw.read(2) == _GZIP
        raw.seek(0)
        yield Unpacked(raw, "gzip" if packed else "raw", source.size)


def is_pair(source: ScanFile) -> bool:
    """Whether the file is a header whose voxels lie in an `.img`.

    Raises:
        ScanRefused: `empty_file`, `not_nifti`, `truncated_file`, `damaged_file`.
    """
    with _unpacked(source) as stream:
        return read_header(stream).kind != "single"


def read_header(stream: Unpacked) -> NiftiHeader:
    """The header that a stream begins with; exactly its bytes are read.

    Raises:
        ScanRefused: `not_nifti`, `truncated_file`.
    """
    block = stream.read(348)
    if len(block) < 348:
        raise refusal(
            "truncated_file", f"The file ends after {len(block)} bytes, within its header."
        )
    if (header := parse(block)) is not None:
        return header
    if (header := parse(block + stream.read(HEADER_BYTES - 348))) is not None:
        return header
    raise refusal("not_nifti", "The file is not NIfTI.")


def _skip_to(stream: Unpacked, header: NiftiHeader, offset: int) -> None:
    """Pass over the extensions between header and voxels.

    Where they announce themselves, they end before the voxels.

    Raises:
        ScanRefused: `bad_header`, `truncated_file`.
    """
    announced = stream.read(4)
    used = header.length + 4
    order: Literal["little", "big"] = "little" if header.fields.endianness == "<" else "big"
    while announced[:1] not in (b"", b"\0") and used + 8 <= offset:
        size = int.from_bytes(stream.read(4), order)
        used += 4
        if size % 16 or not 16 <= size <= 1 << 26:
            break  # no extension after all: the length of the file still tells
        if used - 4 + size > offset:
            message = (
                f"vox_offset is {offset}: within an extension of the header that ends at"
                f" {used - 4 + size}."
            )
            raise refusal("bad_header", message, offset)
        stream.skip(size - 4)
        used += size - 4
    stream.skip(offset - used)


def write_nifti(
    volume: np.ndarray,
    scan: Scan,
    path: str | os.PathLike[str],
    slope: float = 1.0,
    read: Callable[[np.ndarray], np.ndarray] | None = None,
) -> None:
    """Write a canonical volume on the grid of the scan's source file.

    Args:
        volume: (D, H, W) in canonical order, uint8 or uint16.
        scan: Whose source grid it goes to.
        path: `.nii` or `.nii.gz`; written under another name in the same folder, then renamed.
        slope: What one unit stands for; stored as the NIfTI slope.
        read: What to write of each slice, an array of the same type and shape; None: itself.

    Raises:
        ValueError: If the volume does not have the scan's shape or an unsigned type.
        OutputError: If the file cannot be written.
    """
    if volume.shape != scan.shape or volume.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"expected uint8 or uint16 of shape {scan.shape}, got {volume.dtype} of {volume.shape}"
        )
    stored = scan.source.from_canonical(volume)
    save_stored(Path(path), stored, scan.source.affine_ras, slope, read)


def save_stored(
    path: Path,
    stored: np.ndarray,
    affine_ras: np.ndarray,
    slope: float = 1.0,
    read: Callable[[np.ndarray], np.ndarray] | None = None,
) -> None:
    """Write an array in the order of the file, with sform and qform in mm, as one step.

    The same array gives the same bytes: no name and no time go into the gzip header.

    Args:
        path: `.nii` or `.nii.gz`; written under another name in the same folder, then renamed.
        stored: (i, j, k), an integer type.
        affine_ras: (4, 4), its index → RAS mm.
        slope: What one unit stands for.
        read: What to write of each slice (i, j); None: itself.

    Raises:
        OutputError: If the file cannot be written.
    """
    with replacing(path) as partial, partial.open("xb") as raw:
        if path.name.endswith(".gz"):
            with gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as packed:
                _write(cast(BinaryIO, packed), stored, affine_ras, slope, read)
        else:
            _write(raw, stored, affine_ras, slope, read)


def _write(
    stream: BinaryIO,
    stored: np.ndarray,
    affine_ras: np.ndarray,
    slope: float,
    read: Callable[[np.ndarray], np.ndarray] | None,
) -> None:
    header = nib.Nifti1Header()
    header.set_data_dtype(stored.dtype)
    header.set_data_shape(stored.shape)
    header.set_sform(affine_ras, code="scanner")
    header.set_qform(affine_ras, code="scanner")
    header.set_xyzt_units("mm")
    header["vox_offset"] = 352
    header["scl_slope"], header["scl_inter"] = slope, 0.0
    header["magic"] = b"n+1"
    stream.write(header.binaryblock + b"\0" * 4)
    for index in range(stored.shape[2]):
        plane = stored[:, :, index]
        stream.write((read(plane) if read else plane).tobytes(order="F"))
