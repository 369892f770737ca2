"""What can be asked of a lung mask without labels.

Does it hold air, miss none, and stay as the picture changes?
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from tables import number, percent, table
from threshold import enclosed

from tf_covid.lungs import read_lungs

if TYPE_CHECKING:
    from tf_covid.local import LocalModels

NOISE_HU = 30.0

#: Certainly air, in the body or around it.
AIR_HU = -500.0

Spacing = tuple[float, float, float]

HEADER = (
    *(
        "scan",
        "lungs, ml",
        f"of the mask below {AIR_HU:.0f} HU",
        f"of the enclosed air below {AIR_HU:.0f} HU outside",
    ),
    *(
        "left/right volume",
        f"Dice with itself + {NOISE_HU:.0f} HU noise",
        "Dice with itself at half the size",
    ),
)


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Dice of two masks; 1 where both are empty."""
    both = np.count_nonzero(one) + np.count_nonzero(other)
    return 2 * np.count_nonzero(one & other) / both if both else 1.0


def kept(models: LocalModels, probability: np.ndarray) -> np.ndarray:
    """The slices with enough lung, bool (D,)."""
    return models.members[0].preprocessor.slice_rule(probability[np.newaxis]).numpy()[0]


def lungs_of(models: LocalModels, hu: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """uint8 (D, H, W): the cleaned mask, 1 right and 2 left."""
    probability = models.segment(hu).probability
    return read_lungs(hu, probability, kept(models, probability), spacing_mm).voxels.sides


def sanity_table(models: LocalModels, scans: Iterable[tuple[str, np.ndarray, Spacing]]) -> str:
    """A row a scan: name, int16 HU, spacing."""
    return table(HEADER, (_row(models, *scan) for scan in scans))


def _row(models: LocalModels, name: str, hu: np.ndarray, spacing_mm: Spacing) -> list[str]:
    labels = lungs_of(models, hu, spacing_mm)
    inside = labels > 0
    air = enclosed(hu, AIR_HU)
    right, left = (np.count_nonzero(labels == side) for side in (1, 2))
    return [
        name,
        f"{inside.sum() * np.prod(spacing_mm) / 1000:.0f}",
        percent(np.count_nonzero(hu[inside] < AIR_HU) / max(inside.sum(), 1)),
        percent(np.count_nonzero(air & ~inside) / max(air.sum(), 1), 1),
        number(left / right if right else None),
        number(dice(inside, lungs_of(models, _noisy(hu), spacing_mm) > 0), 3),
        number(_dice_at_half(models, hu, spacing_mm, inside), 3),
    ]


def _noisy(hu: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0.0, NOISE_HU, hu.shape)
    return np.clip(hu + noise, -32768, 32767).astype(np.int16)


def _dice_at_half(
    models: LocalModels, hu: np.ndarray, spacing_mm: Spacing, inside: np.ndarray
) -> float:
    """Between the mask of the scan and the one of the scan with pixels of twice the size."""
    found = lungs_of(models, halved(hu), (spacing_mm[0], 2 * spacing_mm[1], 2 * spacing_mm[2]))
    return dice_with_halved(inside, found > 0)


def halved(hu: np.ndarray) -> np.ndarray:
    """int16 (D, H // 2, W // 2): the pixels of each slice averaged two by two.

    A slice at a time, so that a scan of 800 slices costs no more than its result.
    """
    height, width = (size // 2 for size in hu.shape[1:])
    out = np.empty((len(hu), height, width), np.int16)
    for half, plane in zip(out, hu, strict=True):
        # Padding must not bleed into its neighbours.
        even = np.maximum(plane[: 2 * height, : 2 * width], -1024)
        half[:] = np.round(even.reshape(height, 2, width, 2).mean(axis=(1, 3)))
    return out


def dice_with_halved(inside: np.ndarray, found: np.ndarray) -> float:
    """Dice of a mask, bool (D, H, W), with one found at half its size, bool (D, H // 2, W // 2)."""
    back = found.repeat(2, axis=1).repeat(2, axis=2)
    return dice(inside[:, : back.shape[1], : back.shape[2]], back)
