"""The peer that needs no training: lungs by threshold and closing, as a textbook finds them."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

#: Thinner than this is air.
AIR_HU = -400.0

#: Neighbours within a slice, none across slices.
_IN_PLANE = np.zeros((3, 3, 3), bool)
_IN_PLANE[1] = ndimage.generate_binary_structure(2, 1)

#: A piece of air in one slice that is smaller than this and this near to the body's middle is the
#: windpipe.
WINDPIPE_MM2, WINDPIPE_MM = 700.0, 30.0

#: Radius of the disk that closes over vessels and consolidated lung.
CLOSING_MM = 10.0


def enclosed(hu: np.ndarray, below: float) -> np.ndarray:
    """Voxels below a threshold that nothing in their slice connects with the border of the picture.

    Args:
        hu: (D, H, W).
        below: Threshold in HU.

    Returns:
        bool (D, H, W): lungs, airways and bowel gas, without the room around the patient.
    """
    pieces, count = ndimage.label(hu < below, _IN_PLANE)
    outside = np.zeros(count + 1, bool)
    for border in (pieces[:, 0], pieces[:, -1], pieces[:, :, 0], pieces[:, :, -1]):
        outside[np.unique(border)] = True
    outside[0] = True
    return ~outside[pieces]


def lungs_by_threshold(hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Enclosed air below −400 HU without the windpipe, the two largest pieces, closed and filled.

    Bool (D, H, W).
    """
    air = without_windpipe(enclosed(hu, AIR_HU), hu, spacing_mm)
    pieces, count = ndimage.label(air)
    if not count:
        return air
    sizes = np.bincount(pieces.ravel())[1:]
    lungs = np.zeros_like(air)
    for piece in np.argsort(sizes)[::-1][:2] + 1:
        # Each lung alone: a closing of both would bridge the mediastinum. Touching lungs are one
        # piece already, and the next one is no lung.
        if sizes[piece - 1] >= 0.1 * sizes.max():
            for plane, alone in zip(lungs, pieces == piece, strict=True):
                plane |= _closed(alone, spacing_mm[1:])
    return lungs


def without_windpipe(
    air: np.ndarray, hu: np.ndarray, spacing_mm: tuple[float, float, float]
) -> np.ndarray:
    """The air, bool (D, H, W), less the pieces that are small and near the body's middle."""
    pieces, count = ndimage.label(air, _IN_PLANE)
    if not count:
        return air
    middle = middle_column(hu)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    places = np.nonzero(pieces)[2]
    centre = np.bincount(pieces[pieces > 0], places, count + 1) / np.maximum(sizes, 1)
    small = sizes * spacing_mm[1] * spacing_mm[2] < WINDPIPE_MM2
    central = np.abs(centre - middle) * spacing_mm[2] < WINDPIPE_MM
    return air & ~(small & central)[pieces]


def middle_column(hu: np.ndarray) -> float:
    """Column of the body's middle: the centre of all that is denser than −400 HU."""
    columns = (hu > AIR_HU).sum(axis=(0, 1), dtype=np.float64)
    return float((columns * np.arange(len(columns))).sum() / max(columns.sum(), 1))


def _closed(plane: np.ndarray, pixel_mm: tuple[float, ...]) -> np.ndarray:
    """One slice closed by a disk, whose radius no pixel size rounds, then without holes."""
    if not plane.any():
        return plane
    margin = int(np.ceil(CLOSING_MM / min(pixel_mm))) + 1
    wide = np.pad(plane, margin)
    near = ndimage.distance_transform_edt(~wide, sampling=pixel_mm) <= CLOSING_MM
    closed = ndimage.distance_transform_edt(near, sampling=pixel_mm) > CLOSING_MM
    return ndimage.binary_fill_holes(closed[margin:-margin, margin:-margin] | plane)
