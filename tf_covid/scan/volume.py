"""What a file holds before it is a scan: raw slabs with an affine, and their conversion to HU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tf_covid.errors import ScanRefused
from tf_covid.result import QualityFlag
from tf_covid.scan.checks import geometry_flags, refusal
from tf_covid.scan.geometry import position_flags
from tf_covid.scan.grid import allocate, orient
from tf_covid.scan.scan import SourceGrid, SourceImage, SourceSeries

#: What replaces a value that is not a number: air, which no later stage takes for tissue.
AIR_HU = -1024
_INT16 = np.iinfo(np.int16)
#: Voxels that are converted at a time: a slab of any size costs no more than a few copies of these.
_AT_A_TIME = 1 << 20


@dataclass(frozen=True)
class RawVolume:
    """A volume as its file stores it.

    Args:
        shape: Sizes of the stored array, in its own axis order.
        affine_ras: (4, 4), stored index → RAS mm.
        slabs: One (shape[0], shape[1]) array for each index of the last axis, already scaled; read
            once, in order. A `payload.Slabs` has `quality_flags` of its own, complete after its
            last array.
        quality_flags: What the header says about itself.
    """

    shape: tuple[int, int, int]
    affine_ras: np.ndarray
    slabs: Iterator[np.ndarray]
    quality_flags: tuple[QualityFlag, ...] = ()


@dataclass(frozen=True)
class LoadedVolume:
    """What every format's reader hands over.

    `cases` adds the name and the fingerprint and makes it a `Scan`, whose fields these are.
    """

    hu: np.ndarray
    affine: np.ndarray
    source: SourceGrid
    quality_flags: tuple[QualityFlag, ...] = ()
    interpolated: tuple[int, ...] = ()
    chosen_because: str = ""
    identifiers: dict[str, str] | None = None
    instance_numbers: tuple[int | None, ...] = ()
    slice_thickness_mm: float | None = None
    source_images: tuple[SourceImage | None, ...] = ()
    source_series: SourceSeries | None = None


def load_volume(stored: RawVolume, chosen_because: str) -> LoadedVolume:
    """HU of a raw volume: rounded and clipped to int16; NaN and infinity become air, counted."""
    if min(stored.shape) < 2:
        raise refusal("single_slice", "The image has one slice only; a scan is a volume.", 1)
    source, affine = orient(stored.affine_ras, stored.shape)
    results = geometry_flags(np.linalg.norm(affine[:3, :3], axis=0)) + position_flags(affine)
    if any(flag.level == "error" for flag in results):
        raise ScanRefused((*results, *stored.quality_flags))
    hu, view = allocate(source, np.int16)
    filled = not_numbers = 0
    for index, slab in enumerate(stored.slabs):
        not_numbers += _put(view[:, :, index], slab)
        filled += 1
    check_filled(filled, stored.shape[2])
    quality_flags = (*stored.quality_flags, *results, *getattr(stored.slabs, "quality_flags", ()))
    if not_numbers:
        message = f"{not_numbers} voxels were not a number; they were read as air ({AIR_HU} HU)."
        quality_flags += (QualityFlag("not_a_number", "warning", message, not_numbers),)
    return LoadedVolume(hu, affine, source, quality_flags, chosen_because=chosen_because)


def check_filled(filled: int, total: int) -> None:
    """Refuse a volume of which not every slice was written.

    Raises:
        ScanRefused: `truncated_file`.
    """
    if filled != total:
        raise refusal("truncated_file", f"{filled} of {total} slices could be read.", filled)


def _put(view: np.ndarray, slab: np.ndarray) -> int:
    """Write a slab as int16, some columns at a time; how many of its values were not a number."""
    if slab.dtype == np.int16:
        view[...] = slab
        return 0
    not_numbers = 0
    columns = max(1, _AT_A_TIME // slab.shape[0])
    for begin in range(0, slab.shape[1], columns):
        part = slab[:, begin : begin + columns]
        if np.issubdtype(part.dtype, np.floating):
            lost = ~np.isfinite(part)
            count = int(np.count_nonzero(lost))
            if count:
                not_numbers += count
                part = np.where(lost, AIR_HU, part)
            part = np.rint(part)
        view[:, begin : begin + columns] = np.clip(part, _INT16.min, _INT16.max)
    return not_numbers
