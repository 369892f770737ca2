"""Does a map look where the disease is?

Figures that compare an attention map with lesions that are known.

Everywhere: an attention map is uint8 (D, H, W), 255 at its maximum and 0 outside the lungs, as
`onto_scan` makes it (any other map that is not negative will do); an empty one points nowhere.
"""

from __future__ import annotations

import math

import numpy as np

Spacing = tuple[float, float, float]


def brightest(attention: np.ndarray, spacing_mm: Spacing) -> tuple[int, int, int] | None:
    """Where a map points: its maximum.

    Several voxels share it where 8 bits or the border of the features make a plateau: of these, the
    one nearest to their common centre in mm, and the first in memory of two that are equally near.

    Args:
        attention: (D, H, W), ≥ 0.
        spacing_mm: Voxel size along (D, H, W).

    Returns:
        The voxel's index, or None for an empty map.
    """
    highest = attention.max(initial=0)
    if highest == 0:
        return None
    maxima = np.argwhere(attention == highest)
    off_mm = (maxima - maxima.mean(axis=0)) * spacing_mm
    d, h, w = maxima[np.square(off_mm).sum(axis=1).argmin()]
    return int(d), int(h), int(w)


def pointing_game(
    attention: np.ndarray, lesions: np.ndarray, spacing_mm: Spacing, tolerance_mm: float = 15.0
) -> bool:
    """Whether a map points at a lesion.

    Its maximum lies within one, or no farther from one than the tolerance.

    Args:
        attention: (D, H, W), ≥ 0; see `brightest` for a maximum that several voxels share.
        lesions: bool (D, H, W).
        spacing_mm: Voxel size along (D, H, W).
        tolerance_mm: Largest distance between the centres of the maximum and of the nearest
            diseased voxel.

    Returns:
        True for a hit; False for a miss, an empty map, or a scan without lesions.

    Source: Zhang et al. 2016 (arXiv 1608.00507), who allow 15 pixels.
    """
    peak = brightest(attention, spacing_mm)
    if peak is None:
        return False
    reach = [math.ceil(tolerance_mm / step) for step in spacing_mm]
    start = [max(centre - far, 0) for centre, far in zip(peak, reach, strict=True)]
    box = tuple(
        slice(first, centre + far + 1)
        for first, centre, far in zip(start, peak, reach, strict=True)
    )
    off_mm = (np.argwhere(lesions[box]) + start - np.array(peak)) * spacing_mm
    return bool((np.square(off_mm).sum(axis=1) <= tolerance_mm**2).any())


def energy_inside(attention: np.ndarray, lesions: np.ndarray) -> float:
    """Fraction of a map's sum that lies within the lesions, 0–1; 0 for an empty map.

    Divided by the lesions' fraction of the lungs it says how many times denser the map is in
    lesions than a map that paints the lungs evenly.

    Args:
        attention: (D, H, W), ≥ 0.
        lesions: bool (D, H, W).

    Source: Wang et al. 2020, Score-CAM's energy-based pointing game (arXiv 1910.01279).
    """
    total = float(attention.sum(dtype=np.float64))
    return float(attention[lesions].sum(dtype=np.float64)) / total if total > 0 else 0.0


def centre_of_lung(lungs: np.ndarray, spacing_mm: Spacing = (1.0, 1.0, 1.0)) -> np.ndarray:
    """The map of somebody who never saw a lesion: it peaks at the deepest point of the larger lung.

    Args:
        lungs: uint8 (D, H, W); 0 outside, one label for each lung. A bool mask is one lung.
        spacing_mm: Voxel size along (D, H, W).

    Returns:
        uint8 (D, H, W): distance to the border of the larger lung, 255 at its maximum; 0 elsewhere.
        The scan's own border counts as the lung's.
    """
    from scipy import ndimage

    out = np.zeros(lungs.shape, np.uint8)
    sizes = np.bincount(lungs.ravel().astype(np.uint8), minlength=2)[1:]
    if not sizes.any():
        return out
    larger = lungs == sizes.argmax() + 1
    box = ndimage.find_objects(larger.astype(np.uint8))[0]
    depth = ndimage.distance_transform_edt(np.pad(larger[box], 1), sampling=spacing_mm)[
        1:-1, 1:-1, 1:-1
    ]
    out[box] = np.rint(depth * (255.0 / depth.max()))
    return out
