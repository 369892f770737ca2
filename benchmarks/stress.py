"""A severity network behind a worse lung mask.

Shrunk, grown or bitten until Dice with the first mask is about 0.9.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sanity import dice
from scipy import ndimage

#: Dice with the undisturbed mask that each disturbance aims at.
AIM = 0.9

Cell = tuple[float, float, float]


def shrunk(probability: np.ndarray, cell_mm: Cell, seed: int) -> np.ndarray:
    """The lungs without their rim, slice by slice."""
    inside = probability > 0.5
    depth = _in_plane(inside, cell_mm)
    rim = _nearest(depth, inside, _lost(inside))
    # The soft border outside goes too: it would be left as a shell around the smaller lungs.
    return np.where(inside & ~rim, probability, np.float32(0))


def grown(probability: np.ndarray, cell_mm: Cell, seed: int) -> np.ndarray:
    """The lungs with a rim of what lies around them, slice by slice."""
    inside = probability > 0.5
    away = _in_plane(~inside, cell_mm)
    away[~inside.any(axis=(1, 2))] = np.inf  # a slice without lung stays without
    rim = _nearest(away, ~inside & np.isfinite(away), inside.sum() * (2 / AIM - 2))
    return np.where(rim, np.float32(1), probability)


def bitten(probability: np.ndarray, cell_mm: Cell, seed: int) -> np.ndarray:
    """The lungs without a ball around a random place in them."""
    inside = probability > 0.5
    places = np.argwhere(inside)
    centre = places[np.random.default_rng([seed, 0xB17E]).integers(len(places))]
    axes = [
        (np.arange(size) - middle) * mm
        for size, middle, mm in zip(inside.shape, centre, cell_mm, strict=True)
    ]
    away = np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij", sparse=True)))
    bite = _nearest(away, inside, _lost(inside))
    return np.where(away <= away[bite].max(), np.float32(0), probability)


STRESSES: dict[str, Callable[[np.ndarray, Cell, int], np.ndarray]] = {
    "shrunk": shrunk,
    "grown": grown,
    "bitten": bitten,
}


def reached(probability: np.ndarray, disturbed: np.ndarray) -> float:
    """Dice of the two masks."""
    return dice(probability > 0.5, disturbed > 0.5)


def _lost(inside: np.ndarray) -> float:
    """How many cells a mask loses until its Dice with itself is `AIM`.

    2 (n − k) / (2 n − k) solved for k.
    """
    return float(inside.sum() * (2 - 2 * AIM) / (2 - AIM))


def _in_plane(mask: np.ndarray, cell_mm: Cell) -> np.ndarray:
    """Distance of every cell of the mask to the nearest one outside it, in its own slice, in mm."""
    out = np.zeros(mask.shape, np.float64)
    for number in np.flatnonzero(mask.any(axis=(1, 2))):
        out[number] = ndimage.distance_transform_edt(mask[number], sampling=cell_mm[1:])
    return out


def _nearest(distance: np.ndarray, among: np.ndarray, count: float) -> np.ndarray:
    """Those `among` up to the distance that takes in about `count` of them.

    Cells of one distance stay together.
    """
    steps, members = np.unique(np.round(distance[among], 6), return_counts=True)
    if not len(steps):
        return np.zeros_like(among)
    last = steps[np.argmin(np.abs(np.cumsum(members) - count))]
    return among & (distance <= last + 1e-6)
