"""A user's own mask, from a file or an array, brought to the order of its scan."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tf_covid.result import QualityFlag
from tf_covid.scan.checks import refusal
from tf_covid.scan.grid import allocate, orient
from tf_covid.scan.limits import DEFAULT, Limits
from tf_covid.scan.mask_check import (
    MaskValues,
    accept,
    accept_numbers,
    check_labels,
    check_lungs,
    inside,
    missing_labels,
)
from tf_covid.scan.quiet import quiet
from tf_covid.scan.scan import Scan
from tf_covid.scan.source import DiskFile
from tf_covid.scan.volume import RawVolume
from tf_covid.scan.volumes import data_file_of, is_volume, open_volume

#: How far a corner of the mask's grid may lie from the scan's: a share of the smallest voxel edge.
CORNER_SHARE = 0.25


def user_lungs(
    given: object, scan: Scan, labels: Sequence[int] = (), limits: Limits = DEFAULT
) -> tuple[np.ndarray, tuple[QualityFlag, ...]]:
    """A user's own lung mask, checked in its values, its grid and what lies under it.

    Args:
        given: A path (see `read_mask`), or an array (D, H, W) in canonical order: bool, or numbers
            as `read_mask` takes them.
        scan: The scan it belongs to.
        labels: The values that stand for lung.
        limits: Bounds on sizes.

    Returns:
        bool (D, H, W), and what is doubtful about it.

    Raises:
        ScanRefused: See `read_mask`, `array_mask` and `mask_check.check_lungs`.
    """
    expected = check_labels(labels)
    if isinstance(given, (str, os.PathLike)):
        mask, values = _of_file(Path(given), scan, limits, expected)
    else:
        mask, values = _of_array(given, scan, expected)
    return mask, missing_labels(values, expected) + check_lungs(mask, scan)


def array_mask(
    given: object, scan: Scan, *, may_be_empty: bool = False, labels: Sequence[int] = ()
) -> np.ndarray:
    """A mask that is an array already.

    Args:
        given: (D, H, W) in canonical order: an array, or nested lists, of bool or real numbers.
        scan: The scan it belongs to.
        may_be_empty: It is a lesion mask.
        labels: The values that stand for lung.

    Returns:
        bool (D, H, W); the array itself where it is bool.

    Raises:
        ScanRefused: `mask_type` if it is no array of numbers, `mask_grid` if it has another shape,
            or what `mask_check.accept` finds.
    """
    return _of_array(given, scan, check_labels(labels), lesions=may_be_empty)[0]


def _of_array(
    given: object, scan: Scan, labels: tuple[float, ...], *, lesions: bool = False
) -> tuple[np.ndarray, MaskValues]:
    array = _as_array(given)
    if array.shape != scan.shape:
        hint = ""
        if sorted(array.shape) == sorted(scan.shape):
            hint = (
                " Its axes are in another order: head to feet, front to back, right to left are"
                " needed."
            )
        message = (
            f"The mask has {_times(array.shape)} voxels (D×H×W), the scan"
            f" {_times(scan.shape)}.{hint}"
        )
        raise refusal("mask_grid", message)
    values = MaskValues()
    for plane in array:
        values.add(plane)
    accept(values, labels, lesions=lesions)
    return array if array.dtype == np.bool_ else inside(array, labels), values


def _as_array(given: object) -> np.ndarray:
    if not isinstance(given, (list, tuple)) and not hasattr(given, "__array__"):
        kind = type(given).__name__
        message = f"A {kind} is not a mask: give an array (D, H, W) or the path of a file."
        raise refusal("mask_type", message)
    if isinstance(given, np.ma.MaskedArray):
        raise refusal(
            "mask_type", "A masked array is not a mask: fill it, so that each voxel is 0 or 1."
        )
    try:
        array = np.asarray(given)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise refusal(
            "mask_type", "The mask is no array of numbers; its lists may be ragged."
        ) from None
    if array.dtype.kind not in "buif":
        raise refusal(
            "mask_type",
            f"The mask holds {array.dtype.name}, not bool or real numbers.",
            array.dtype.name,
        )
    return array


def mask_files(path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """The files that a mask is made of: itself, and the data file that its header names, if any.

    Raises:
        ScanRefused: `not_found`, `mask_grid` if it is not a file of volumes, `detached_data` if its
            data file is not there as a file of its own, or what is wrong with its header.
    """
    path = Path(path)
    if not path.is_file():
        raise refusal("not_found", "There is no such mask file.")
    if not is_volume(path.name):
        raise refusal("mask_grid", "A mask is read from NIfTI, NRRD or MHA.")
    name = data_file_of(DiskFile.of(path))
    if name is None:
        return (path,)
    data = path.with_name(name)
    if data.is_symlink() or not data.is_file():
        raise refusal(
            "detached_data",
            "The header names a data file that is not beside it as a file of its own.",
        )
    return path, data


def read_mask(
    path: str | os.PathLike[str],
    scan: Scan,
    limits: Limits = DEFAULT,
    *,
    may_be_empty: bool = False,
    labels: Sequence[int] = (),
) -> np.ndarray:
    """The voxels of a mask file that are inside.

    What lies under the mask is looked at by `mask_check.check_lungs` and `check_lesions`, not here.

    Args:
        path: NIfTI, NRRD or MHA on the grid of the scan, in any order of its axes: 0 outside, one
            value inside; or 1 right and 2 left, as `lungs.nii.gz` has them; or whole numbers of
            which `labels` are lung.
        scan: The scan it belongs to.
        limits: Bounds on sizes.
        may_be_empty: It is a lesion mask: that of a healthy patient is empty, and 1 and 2 are no
            sides.
        labels: The values that stand for lung; every voxel that is not 0, if none is given.

    Returns:
        bool (D, H, W) in the scan's canonical order.

    Raises:
        ScanRefused: `mask_grid` if it is not on the scan's grid, `mask_values`, `mask_labels` or
            `mask_empty` for what it holds, `not_found`, or what is wrong with the file.
    """
    return _of_file(Path(path), scan, limits, check_labels(labels), lesions=may_be_empty)[0]


def _of_file(
    path: Path, scan: Scan, limits: Limits, labels: tuple[float, ...], *, lesions: bool = False
) -> tuple[np.ndarray, MaskValues]:
    values = MaskValues()
    mask = _on_grid(path, scan, limits, values, lambda slab: inside(slab, labels), np.bool_)
    accept(values, labels, lesions=lesions)
    return mask, values


def read_labels(
    path: str | os.PathLike[str], scan: Scan, highest: int, limits: Limits = DEFAULT
) -> np.ndarray:
    """The numbers of a label file, such as one of the five lobes.

    Args:
        path: NIfTI, NRRD or MHA on the grid of the scan, in any order of its axes: whole numbers
            from 0, which is outside of all.
        scan: The scan it belongs to.
        highest: The highest number that means something.
        limits: Bounds on sizes.

    Returns:
        uint8 (D, H, W) in the scan's canonical order.

    Raises:
        ScanRefused: `mask_grid` if it is not on the scan's grid, `mask_values` if it holds another
            number, `mask_empty` if it holds nothing but 0, `not_found`, or what is wrong with the
            file.
    """
    values = MaskValues()
    labels = _on_grid(Path(path), scan, limits, values, _whole, np.uint8)
    accept_numbers(values, highest)
    return labels


def _whole(slab: np.ndarray) -> np.ndarray:
    """uint8: the numbers of a slab, should `accept_numbers` accept them."""
    if slab.dtype.kind == "f":
        slab = np.nan_to_num(slab)
    return np.asarray(np.clip(slab, 0, 255).astype(np.uint8))


def _on_grid(
    path: Path,
    scan: Scan,
    limits: Limits,
    values: MaskValues,
    convert: Callable[[np.ndarray], np.ndarray],
    dtype: type[np.generic],
) -> np.ndarray:
    """A file's voxels (D, H, W) in canonical order, on the grid of a scan; values are collected."""
    sources = [DiskFile.of(file) for file in mask_files(path)]
    with quiet(), open_volume(sources, limits) as stored:
        mask, affine = _filled(stored, values, convert, dtype)
    if mask.shape != scan.shape:
        message = (
            f"The mask has {_times(mask.shape)} voxels (D×H×W), the scan {_times(scan.shape)}."
        )
        raise refusal("mask_grid", message)
    corners = np.array(
        np.meshgrid(*[(0, size - 1) for size in scan.shape], [1.0], indexing="ij")
    ).reshape(4, -1)
    off = float(np.linalg.norm(((affine - scan.affine) @ corners)[:3], axis=0).max())
    if off > CORNER_SHARE * min(scan.spacing_mm):
        raise refusal(
            "mask_grid", f"The mask's grid lies up to {off:.2f} mm off the scan's.", round(off, 2)
        )
    return mask


def _filled(
    stored: RawVolume,
    values: MaskValues,
    convert: Callable[[np.ndarray], np.ndarray],
    dtype: type[np.generic],
) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (D, H, W) in canonical order, and their LPS affine; the values are collected."""
    source, affine = orient(stored.affine_ras, stored.shape)
    mask, view = allocate(source, dtype)
    count = 0
    for index, slab in enumerate(stored.slabs):
        values.add(slab)
        view[:, :, index] = convert(slab)
        count = index + 1
    behind = [
        flag for flag in getattr(stored.slabs, "quality_flags", ()) if flag.level == "warning"
    ]
    if behind:
        # Of a scan that is a warning, since its picture shows it; nobody looks at a mask before it
        # is used.
        raise refusal(behind[0].code, f"The mask: {behind[0].message}", behind[0].value)
    if count != stored.shape[2]:
        raise refusal(
            "truncated_file", f"The mask ends in slice {count + 1} of {stored.shape[2]}.", count
        )
    return mask, affine


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(str(size) for size in shape)
