"""What a file holds before it is a scan: stored slabs of any numeric type with an affine, and their conversion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tf_covid.result import QualityFlag
from tf_covid.scan.checks import refusal
from tf_covid.scan.grid import allocate, orient
from tf_covid.scan.scan import SourceGrid

#: What replaces a value that is not a number: air, which no later stage takes for tissue.
AIR_HU = -1024
_INT16 = np.iinfo(np.int16)


@dataclass(frozen=True)
class Stored:
    """A volume as its file stores it.

    Args:
        shape: Of the stored array, in its own axis order.
        affine_ras: (4, 4), stored index → RAS mm.
        slabs: One (shape[0], shape[1]) array for each index of the last axis, already scaled; read once, in order.
        quality_flags: What the header says about itself.
    """

    shape: tuple[int, int, int]
    affine_ras: np.ndarray
    slabs: Iterator[np.ndarray]
    quality_flags: tuple[QualityFlag, ...] = ()


@dataclass(frozen=True)
class Reading:
    """What every format's reader hands over; `cases` adds the name and the fingerprint and makes it a `Scan`."""

    hu: np.ndarray
    affine: np.ndarray
    source: SourceGrid
    quality_flags: tuple[QualityFlag, ...] = ()
    interpolated: tuple[int, ...] = ()
    chosen_because: str = ""
    identifiers: dict[str, str] | None = None


def read_stored(stored: Stored, chosen_because: str) -> Reading:
    """HU of a stored volume: rounded, clipped to int16, what is not a number made air and counted."""
    if min(stored.shape) < 2:
        raise refusal("single_slice", "The image has one slice only; a scan is a volume.", 1)
    source, affine = orient(stored.affine_ras, stored.shape)
    hu, view = allocate(source, np.int16)
    not_numbers = 0
    for number, slab in enumerate(stored.slabs):
        if np.issubdtype(slab.dtype, np.floating):
            lost = ~np.isfinite(slab)
            count = int(np.count_nonzero(lost))
            if count:
                not_numbers += count
                slab = np.where(lost, AIR_HU, slab)
            slab = np.rint(slab)
        view[:, :, number] = np.clip(slab, _INT16.min, _INT16.max) if slab.dtype != np.int16 else slab
    quality_flags = stored.quality_flags
    if not_numbers:
        message = f"{not_numbers} voxels were not a number; they were read as air ({AIR_HU} HU)."
        quality_flags += (QualityFlag("not_a_number", "warning", message, not_numbers),)
    return Reading(hu, affine, source, quality_flags, chosen_because=chosen_because)
