"""One mechanism for every format: an affine in, the canonical order out.

A reader states the affine of the array as it is stored; nibabel's orientations say how its axes run
along the canonical ones. The canonical array is filled through a view in stored order, so nothing
is copied twice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from tf_covid.scan.checks import refusal
from tf_covid.scan.limits import Limits
from tf_covid.scan.scan import SourceGrid

#: NIfTI's RAS millimetres to DICOM's LPS, and back.
RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: Head to feet, anterior to posterior, right to left: the directions in which the indices grow.
_CANONICAL = axcodes2ornt(("I", "P", "L"))
#: Below this a spacing is none; whether one is plausible is for `checks.geometry_flags`.
_NO_SPACING_MM = 1e-9
#: Largest angle between two axes and the right angle that still counts as rounding, in degrees.
SHEAR_DEGREES = 0.1


def orient(affine_ras: np.ndarray, shape: tuple[int, int, int]) -> tuple[SourceGrid, np.ndarray]:
    """The grid of a stored array, and the LPS affine of the same voxels in canonical order.

    Args:
        affine_ras: (4, 4), index of the stored array → RAS mm.
        shape: Shape of the stored array.

    Raises:
        ScanRefused: `bad_affine` if the affine is not finite or singular, `gantry_tilt` if its axes
            are sheared.
    """
    affine_ras = np.array(affine_ras, dtype=np.float64)
    spacing = np.linalg.norm(affine_ras[:3, :3], axis=0)
    if not np.isfinite(affine_ras).all() or (spacing < _NO_SPACING_MM).any():
        raise refusal(
            "bad_affine", "The orientation in the header is not usable (not finite, or no spacing)."
        )
    cosines = affine_ras[:3, :3] / spacing
    if abs(np.linalg.det(cosines)) < 0.1:
        raise refusal(
            "bad_affine",
            "The orientation in the header is not usable (its axes are not independent).",
        )
    tilt = max(
        abs(90.0 - float(np.degrees(np.arccos(np.clip(cosines[:, a] @ cosines[:, b], -1.0, 1.0)))))
        for a, b in ((0, 1), (0, 2), (1, 2))
    )
    if tilt > SHEAR_DEGREES:
        message = f"The slices are tilted by {tilt:.1f} degrees; only upright stacks are read."
        raise refusal("gantry_tilt", message, round(tilt, 1))
    transform = ornt_transform(io_orientation(affine_ras), _CANONICAL)
    first, second, third = (int(axis) for axis in transform[:, 0])
    flips = [bool(flip < 0) for flip in transform[:, 1]]
    source = SourceGrid(shape, affine_ras, (first, second, third), (flips[0], flips[1], flips[2]))
    return source, RAS_TO_LPS @ affine_ras @ inv_ornt_aff(transform, shape)


def allocate(source: SourceGrid, dtype: type[np.generic]) -> tuple[np.ndarray, np.ndarray]:
    """A canonical (D, H, W) array of zeros, and its view in the stored order to be filled.

    Zeros, not `np.empty`: what nobody fills must not be another patient's voxels.
    """
    shape = [0, 0, 0]
    for stored_axis, canonical_axis in enumerate(source.axes):
        shape[canonical_axis] = source.shape[stored_axis]
    volume = np.zeros(shape, dtype=dtype)
    return volume, source.from_canonical(volume)


def check_size(shape: tuple[int, ...], limits: Limits) -> None:
    """Refuse an impossible or too large shape before memory is taken for it.

    Raises:
        ScanRefused: `too_large` or `bad_header`.
    """
    if any(size < 1 for size in shape):
        raise refusal("bad_header", f"The header declares an impossible size: {_times(shape)}.")
    voxels = 1
    for size in shape:
        voxels *= int(size)
    if voxels > limits.voxels:
        raise refusal(
            "too_large",
            f"{_times(shape)} voxels are more than the {limits.voxels} that are read.",
            voxels,
        )


def one_volume(sizes: Sequence[int]) -> tuple[int, int, int]:
    """The three sizes of a volume, without axes of size 1 behind them.

    Args:
        sizes: Sizes of the stored axes.

    Raises:
        ScanRefused: `single_slice` or `not_3d`.
    """
    shape = list(sizes)
    while len(shape) > 3 and shape[-1] == 1:
        shape.pop()
    if len(shape) < 3:
        raise refusal("single_slice", "The image has one slice only; a scan is a volume.", 1)
    if len(shape) > 3:
        raise refusal(
            "not_3d", f"The image has {len(shape)} dimensions; one volume is read.", len(shape)
        )
    return shape[0], shape[1], shape[2]


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(str(size) for size in shape)
