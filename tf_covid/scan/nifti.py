"""NIfTI (`.nii`, `.nii.gz`) in, slab by slab, and label or map volumes out on the grid of the source.

The header is parsed by nibabel, the voxels are streamed: a compressed file is never unpacked beyond what its header
declares, and a float64 file costs one slab more than the int16 scan.
"""

from __future__ import annotations

import gzip
import os
import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from tf_covid.errors import OutputError
from tf_covid.result import QualityFlag
from tf_covid.scan.checks import refusal
from tf_covid.scan.grid import check_size
from tf_covid.scan.limits import DEFAULT, Limits
from tf_covid.scan.scan import Scan
from tf_covid.scan.source import Source
from tf_covid.scan.volume import Stored

NAMES = (".nii", ".nii.gz")
_HEADER_BYTES = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
#: Where the voxels may begin at the latest; extensions in between are skipped, not parsed.
_MOST_OFFSET = 1 << 26
#: How much is read behind the voxels.
_TRAILER_BYTES = 1 << 16
#: deflate packs at most 1032:1; a header that declares more than that lies.
_MOST_RATIO = 1100
_GZIP_ERRORS = (gzip.BadGzipFile, EOFError, zlib.error)


@contextmanager
def open_nifti(source: Source, limits: Limits = DEFAULT) -> Iterator[Stored]:
    """The volume in a NIfTI-1 or -2 file.

    Raises:
        ScanRefused: `empty_file`, `not_nifti`, `truncated_file`, `too_large`, `bad_header`, `not_3d`, `not_scalar`.
    """
    if source.size == 0:
        raise refusal("empty_file", "The file is empty.")
    with source.open() as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if packed else raw
        try:
            header = _read_header(stream)
            dtype, shape = _dtype(header), _shape(header)
            check_size(shape, limits)
            needed = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            if needed > source.size * (_MOST_RATIO if packed else 1):
                raise refusal("truncated_file", f"The header declares {needed} bytes; the file cannot hold them.")
            affine, quality_flags = _affine(header)
            yield Stored(shape, affine, _slabs(stream, header, shape, dtype), quality_flags)
        except _GZIP_ERRORS:
            raise refusal("truncated_file", "The compressed data end early or are damaged.") from None


def _read_header(stream: BinaryIO) -> nib.Nifti1Header:
    """The header from its first bytes only: nibabel's own loader would also unpack extensions of any size."""
    block = stream.read(540)
    for length, kind in _HEADER_BYTES.items():
        if len(block) >= length and kind.may_contain_header(block[:length]):
            return kind(block[:length], check=False)
    if len(block) < 348:
        raise refusal("truncated_file", f"The file ends after {len(block)} bytes, within its header.")
    raise refusal("not_nifti", "The file is not NIfTI.")


def _shape(header: nib.Nifti1Header) -> tuple[int, int, int]:
    try:
        shape = tuple(int(size) for size in header.get_data_shape())
    except (HeaderDataError, ValueError):
        raise refusal("bad_header", "The header declares no usable size.") from None
    if len(shape) > 3 and all(size == 1 for size in shape[3:]):
        shape = shape[:3]
    if len(shape) == 2:
        raise refusal("single_slice", "The image has one slice only; a scan is a volume.", 1)
    if len(shape) != 3:
        raise refusal("not_3d", f"The image has {len(shape)} dimensions; one volume is read.", len(shape))
    return shape[0], shape[1], shape[2]


def _dtype(header: nib.Nifti1Header) -> np.dtype:
    try:
        dtype = header.get_data_dtype()
    except (HeaderDataError, KeyError):
        raise refusal("bad_header", "The header declares an unknown voxel type.") from None
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise refusal("not_scalar", "The voxels are colours, complex or of more than 64 bits: not HU.")
    return dtype


def _affine(header: nib.Nifti1Header) -> tuple[np.ndarray, tuple[QualityFlag, ...]]:
    try:
        affine = np.array(header.get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError):
        raise refusal("bad_affine", "The orientation in the header is not usable.") from None
    if int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0:
        return affine, ()
    message = "The header states no orientation; left and right, head and feet are assumed from the order of storage."
    return affine, (QualityFlag("orientation_unknown", "warning", message),)


def _slabs(
    stream: BinaryIO, header: nib.Nifti1Header, shape: tuple[int, int, int], dtype: np.dtype
) -> Iterator[np.ndarray]:
    offset = float(header["vox_offset"])
    if not 0 <= offset <= _MOST_OFFSET:
        raise refusal("bad_header", "The header places the voxels beyond any plausible offset.")
    stream.seek(int(offset) or 352)
    slope, inter = _scaling(header)
    size = shape[0] * shape[1] * dtype.itemsize
    for number in range(shape[2]):
        block = stream.read(size)
        if len(block) < size:
            raise refusal("truncated_file", f"The file ends in slice {number + 1} of {shape[2]}.", number)
        slab = np.frombuffer(block, dtype=dtype).reshape(shape[:2], order="F")
        yield slab if (slope, inter) == (1.0, 0.0) else slab * np.float64(slope) + np.float64(inter)
    stream.read(_TRAILER_BYTES)  # at its end, gzip compares the check sum


def _scaling(header: nib.Nifti1Header) -> tuple[float, float]:
    """scl_slope and scl_inter; 0 and NaN mean "none" (NIfTI-1 standard)."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite(slope) or slope == 0:
        return 1.0, 0.0
    return slope, inter if np.isfinite(inter) else 0.0


def write_nifti(volume: np.ndarray, scan: Scan, path: str | os.PathLike[str], slope: float = 1.0) -> None:
    """Write a canonical volume on the grid of the scan's source file.

    Args:
        volume: (D, H, W) in canonical order, uint8 or uint16.
        scan: Whose source grid it goes to.
        path: `.nii` or `.nii.gz`; written under another name in the same folder, then renamed.
        slope: What one unit stands for; stored as the NIfTI slope.

    Raises:
        ValueError: If the volume does not have the scan's shape or an unsigned type.
        OutputError: If the file cannot be written.
    """
    if volume.shape != scan.shape or volume.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"expected uint8 or uint16 of shape {scan.shape}, got {volume.dtype} of {volume.shape}")
    save_stored(Path(path), scan.source.from_canonical(volume), scan.source.affine_ras, slope)


def save_stored(path: Path, stored: np.ndarray, affine_ras: np.ndarray, slope: float = 1.0) -> None:
    """Write an array in the order of the file, with sform and qform in mm, as one step.

    The same array gives the same bytes: no name and no time go into the gzip header.

    Args:
        path: `.nii` or `.nii.gz`; written under another name in the same folder, then renamed.
        stored: (i, j, k), an integer type.
        affine_ras: (4, 4), its index → RAS mm.
        slope: What one unit stands for.

    Raises:
        OutputError: If the file cannot be written.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as raw:
            if path.name.endswith(".gz"):
                with gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as packed:
                    _write(cast(BinaryIO, packed), stored, affine_ras, slope)
            else:
                _write(raw, stored, affine_ras, slope)
        os.replace(part, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}.") from error
    finally:
        part.unlink(missing_ok=True)


def _write(stream: BinaryIO, stored: np.ndarray, affine_ras: np.ndarray, slope: float) -> None:
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
    for number in range(stored.shape[2]):
        stream.write(stored[:, :, number].tobytes(order="F"))
