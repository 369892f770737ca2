"""A scan in blocks of about 1.5 mm: fine enough for a look, small enough for a chest of 800 slices.

Distances in three dimensions on the scan's own voxels would take several times the scan's memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

#: Blocks are about this long, and longer where a scan would have more than so many of them.
BLOCK_MM, MOST_BLOCKS = 1.5, 40_000_000

Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Blocks:
    """How voxels are put together to blocks.

    Args:
        factors: Voxels of a block along (D, H, W). What is left over at the ends is left out.
        spacing_mm: Size of a block along (D, H, W).
    """

    factors: tuple[int, int, int]
    spacing_mm: Spacing

    @property
    def ml(self) -> float:
        """Volume of a block in ml."""
        return float(np.prod(self.spacing_mm)) / 1000.0

    def mean(self, volume: np.ndarray) -> np.ndarray:
        """Mean of each block, float32, of a volume on the scan's grid; a few slices at a time."""
        depth, height, width = (
            size // by for size, by in zip(volume.shape, self.factors, strict=True)
        )
        by_slice, by_row, by_column = self.factors
        out = np.empty((depth, height, width), np.float32)
        for index in range(depth):
            part = volume[index * by_slice : (index + 1) * by_slice]
            part = part[:, : height * by_row, : width * by_column].astype(np.float32)
            rows = part.reshape(by_slice, height, by_row, width, by_column)
            out[index] = rows.mean(axis=(0, 2, 4))
        return out

    def hu(self, volume: np.ndarray) -> np.ndarray:
        """HU of each block, int16; what lies around the scanned circle counts as air."""
        by_slice = self.factors[0]
        parts = [
            self.mean(np.maximum(volume[first : first + by_slice], -1024))
            for first in range(0, len(volume) // by_slice * by_slice, by_slice)
        ]
        return np.round(np.concatenate(parts)).astype(np.int16)

    def mask(self, volume: np.ndarray) -> np.ndarray:
        """Blocks of which half or more is in a mask, bool."""
        return self.mean(volume) >= 0.5


def blocks(shape: tuple[int, int, int], spacing_mm: Spacing) -> Blocks:
    """The blocks of a scan of `shape` voxels of `spacing_mm`."""
    length = BLOCK_MM
    while True:
        factors = [
            min(max(1, round(length / side)), size)
            for side, size in zip(spacing_mm, shape, strict=True)
        ]
        if np.prod([size // by for size, by in zip(shape, factors, strict=True)]) <= MOST_BLOCKS:
            break
        length *= 1.1
    depth, height, width = factors
    return Blocks(
        (depth, height, width),
        (depth * spacing_mm[0], height * spacing_mm[1], width * spacing_mm[2]),
    )


def near(mask: np.ndarray, spacing_mm: Spacing, radius_mm: float) -> np.ndarray:
    """What lies in a mask, bool (D, H, W), or no farther from it than `radius_mm`."""
    around = box(mask, spacing_mm, radius_mm)
    out = np.zeros(mask.shape, bool)
    if around is not None:
        out[around] = _distance(mask[around], spacing_mm) <= radius_mm
    return out


def closed(mask: np.ndarray, spacing_mm: Spacing, radius_mm: float) -> np.ndarray:
    """A mask closed by a ball, whose radius no block size rounds, then without holes."""
    around = box(mask, spacing_mm, 0.0)
    if around is None:
        return mask
    margins = [(int(np.ceil(radius_mm / side)) + 1,) * 2 for side in spacing_mm]
    grown = _distance(np.pad(mask[around], margins), spacing_mm) <= radius_mm
    shrunk = _distance(~grown, spacing_mm) > radius_mm
    inner = tuple(slice(before, -after) for before, after in margins)
    out = np.zeros(mask.shape, bool)
    # In three dimensions: what lung surrounds in a slice may be the dome of the liver.
    out[around] = ndimage.binary_fill_holes(shrunk[inner] | mask[around])
    return out


def box(
    mask: np.ndarray, spacing_mm: Spacing, margin_mm: float
) -> tuple[slice, slice, slice] | None:
    """The box around a mask with a margin, as slices of (D, H, W); None of an empty one."""
    sides = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(mask.any(axis=others))
        if not len(found):
            return None
        margin = int(np.ceil(margin_mm / spacing_mm[axis]))
        sides.append(slice(max(int(found[0]) - margin, 0), int(found[-1]) + margin + 1))
    return sides[0], sides[1], sides[2]


def _distance(mask: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """Distance in mm to the nearest block of a mask, float32; 0 within it."""
    if not mask.any():
        return np.full(mask.shape, np.inf, np.float32)
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing(spacing_mm[::-1])
    found = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
    return np.maximum(sitk.GetArrayFromImage(found), 0)
