"""Which slices and planes of a scan are shown: values only, no drawing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tf_covid.result import Maps, Result
    from tf_covid.scan.scan import Scan

#: Tissue shown around the lungs, in mm: enough chest wall to know where one is.
MARGIN_IN_PLANE_MM = 20.0
MARGIN_HEAD_FEET_MM = 25.0

#: The smallest part of a picture, in mm: a few voxels of "lung" do not fill a page.
_SMALLEST_BOX_MM = 60.0

#: Why a slice is shown: (the first one chosen, the others).
_ATTENTION = ("highest attention", "high attention")
_INVOLVED = ("largest involved area", "large involved area")
OVERVIEW = "overview"

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class ShownSlice:
    """One axial slice worth showing.

    Args:
        index: Index of the slice from the head, from 0.
        reason: Why it was chosen, for a human.
    """

    index: int
    reason: str


@dataclass(frozen=True)
class Views:
    """What the report and the montage show of a scan.

    Args:
        slices: Axial slices to show, from head to feet.
        position: Voxel (d, h, w) that the coronal and the sagittal plane go through.
        position_reason: Why that position, for a human.
        box: The lungs and a margin, as slices of the canonical axes (D, H, W).
        involved: Involved lung area of each slice in cm², (D,).
        attention: Mean attention of each slice, (D,); zeros without an attention map.
    """

    slices: tuple[ShownSlice, ...]
    position: tuple[int, int, int]
    position_reason: str
    box: Box
    involved: np.ndarray
    attention: np.ndarray


def choose(result: Result, scan: Scan, count: int = 8) -> Views:
    """Choose what to show of an answered case.

    Args:
        result: The answer, with its maps.
        scan: The scan behind it.
        count: Largest number of axial slices.
    """
    maps = result_maps(result)
    depth = scan.shape[0]
    spacing = scan.spacing_mm
    lung_area_cm2 = (
        np.array([np.count_nonzero(plane) for plane in maps.lungs])
        * spacing[1]
        * spacing[2]
        / 100.0
    )
    percent = _per_slice(result.lungs.involvement_per_slice if result.lungs else (), depth)
    # Area, not percent: at the apex a few voxels of lung are easily "80 % involved" and tell
    # nothing.
    involved = lung_area_cm2 * percent / 100.0
    attention = _per_slice(
        result.attention.per_slice if result.attention and maps.attention is not None else (), depth
    )
    kept = np.flatnonzero(maps.kept)
    if not len(kept):
        kept = np.arange(depth)
    position, reason = _position(maps, attention, involved, lung_area_cm2)
    return Views(
        slices=choose_slices(attention, involved, kept, count),
        position=position,
        position_reason=reason,
        box=lung_box(maps.lungs, spacing),
        involved=involved,
        attention=attention,
    )


def choose_slices(
    attention: np.ndarray, involved: np.ndarray, candidates: np.ndarray, count: int
) -> tuple[ShownSlice, ...]:
    """Slices to show: by attention and involvement in turn, spread apart, from head to feet.

    Without attention and involvement the slices are spread evenly over the candidates.

    Args:
        attention: Attention of each slice, ≥ 0, (D,).
        involved: Involved lung of each slice, ≥ 0, (D,).
        candidates: Indices of the slices to choose from, ascending.
        count: Largest number of slices.
    """
    apart = max(1, round((candidates[-1] - candidates[0]) / (1.25 * count)))
    rankings = [
        (name, values)
        for name, values in ((_ATTENTION, attention), (_INVOLVED, involved))
        if values[candidates].max() > 0
    ]
    chosen: dict[int, str] = {}

    def free(distance: int) -> np.ndarray:
        far = [all(abs(int(index) - other) >= distance for other in chosen) for index in candidates]
        is_far = np.array(far, bool)
        return np.compress(is_far, candidates)

    for turn in range(count if rankings else 0):
        (first_reason, next_reason), values = rankings[turn % len(rankings)]
        open_slices = free(apart)
        if not len(open_slices) or values[open_slices].max() <= 0:
            continue
        best = int(open_slices[np.argmax(values[open_slices])])
        chosen[best] = next_reason if first_reason in chosen.values() else first_reason
    while len(chosen) < count and len(free(1)):
        chosen[_overview(free(1), chosen, candidates)] = OVERVIEW
    return tuple(ShownSlice(index, chosen[index]) for index in sorted(chosen))


def lung_box(lungs: np.ndarray, spacing_mm: tuple[float, float, float]) -> Box:
    """The box of the lungs plus a margin within the volume; the full volume without any lung.

    Args:
        lungs: Lung mask, (D, H, W), 0 outside.
        spacing_mm: Voxel size along (D, H, W), in mm.
    """
    sides = []
    margins = (MARGIN_HEAD_FEET_MM, MARGIN_IN_PLANE_MM, MARGIN_IN_PLANE_MM)
    for axis, (margin_mm, spacing) in enumerate(zip(margins, spacing_mm, strict=True)):
        size = lungs.shape[axis]
        inside = np.flatnonzero(lungs.any(axis=tuple({0, 1, 2} - {axis})))
        if not len(inside):
            return slice(0, lungs.shape[0]), slice(0, lungs.shape[1]), slice(0, lungs.shape[2])
        length_mm = (inside[-1] + 1 - inside[0]) * spacing
        margin = int(np.ceil(max(margin_mm, (_SMALLEST_BOX_MM - length_mm) / 2.0) / spacing))
        sides.append(
            slice(max(0, int(inside[0]) - margin), min(size, int(inside[-1]) + 1 + margin))
        )
    return sides[0], sides[1], sides[2]


def result_maps(result: Result) -> Maps:
    """The maps of an answered case.

    Raises:
        ValueError: If the result has none.
    """
    if result.maps is None:
        raise ValueError("an answered case needs its maps to be drawn")
    return result.maps


def _per_slice(values: tuple[float, ...], depth: int) -> np.ndarray:
    if not values:
        return np.zeros(depth)
    if len(values) != depth:
        raise ValueError(f"a list per slice has {len(values)} values, the scan {depth} slices")
    return np.asarray(values, float)


def _overview(free: np.ndarray, chosen: dict[int, str], candidates: np.ndarray) -> int:
    """The free slice that is farthest from all chosen ones and from the two ends."""
    # The ends count as chosen: the first and the last kept slice hold the least lung.
    others = np.array([*chosen, candidates[0], candidates[-1]])
    return int(free[np.argmax(np.abs(free[:, None] - others[None, :]).min(axis=1))])


def _position(
    maps: Maps, attention: np.ndarray, involved: np.ndarray, lung_area: np.ndarray
) -> tuple[tuple[int, int, int], str]:
    """The voxel to cut through, and why: the highest attention, else the most involved slice."""
    if maps.attention is not None and attention.max() > 0:
        # Slice by slice: a masked copy of the whole volume would cost as much memory as the map
        # itself.
        planes = zip(maps.lungs, maps.attention, strict=True)
        peaks = [int(np.where(lungs, values, 0).max()) for lungs, values in planes]
        if max(peaks) > 0:
            d = int(np.argmax(peaks))
            h, w = np.unravel_index(
                np.argmax(np.where(maps.lungs[d], maps.attention[d], 0)), maps.lungs[d].shape
            )
            return (d, int(h), int(w)), "the highest attention within the lungs"
    use_involved = involved.max() > 0
    d = int(np.argmax(involved if use_involved else lung_area))
    reason = (
        "the slice with the most involved lung" if use_involved else "the slice with the most lung"
    )
    sides = [np.argwhere(maps.lungs[d] == side) for side in (1, 2)]
    inside = max(sides, key=len)
    if not len(inside):
        return (d, maps.lungs.shape[1] // 2, maps.lungs.shape[2] // 2), "the middle of the scan"
    h, w = np.round(inside.mean(axis=0)).astype(int)
    return (d, int(h), int(w)), reason
