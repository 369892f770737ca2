"""Which slices and planes of a scan are shown: values only, no drawing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tf_covid.lobes import HEALTHY_PERCENT
from tf_covid.lung_voxels import side_of

if TYPE_CHECKING:
    from tf_covid.result import Maps, Result
    from tf_covid.scan.scan import Scan

#: Tissue shown around the lungs, in mm: enough chest wall to know where one is.
MARGIN_IN_PLANE_MM = 20.0
MARGIN_HEAD_FEET_MM = 25.0

#: The smallest part of a picture, in mm: a few voxels of "lung" do not fill a page.
_SMALLEST_BOX_MM = 60.0

#: Attention below this share of the scan's maximum is not coloured: the map is smooth and is
#: nowhere near 0 in the lungs, so that colour on all of it reads as disease everywhere.
COLOURED_FROM = 0.5

#: Why a slice is shown: (the first one chosen, the others).
_ATTENTION = ("highest attention", "high attention")
_INVOLVED = ("largest involved area", "large involved area")
OVERVIEW = "by position"

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
        position: Voxel (d, h, w) that both planes of the evidence, coronal and sagittal, hold.
        position_reason: Why that position, for a human.
        middle_row: Row (H) of the coronal plane through the middle of the lungs.
        box: The lungs and a margin, as slices of the canonical axes (D, H, W).
        involved: Involved lung area of each slice in cm², (D,).
        attention: Mean attention of each slice, (D,); zeros without an attention map.
    """

    slices: tuple[ShownSlice, ...]
    position: tuple[int, int, int]
    position_reason: str
    middle_row: int
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
    # A voxel of the lungs is any whose code is not 0.
    lungs = maps.voxels.codes
    lung_area_cm2 = (
        np.array([np.count_nonzero(plane) for plane in lungs]) * spacing[1] * spacing[2] / 100.0
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
    # Where nothing is involved, no slice is called involved, nor one whose own share is nothing;
    # and no slice is called one of attention where the map is too low to be coloured.
    healthy = nothing_involved(result)
    diseased = np.where((percent >= HEALTHY_PERCENT) & (not healthy), involved, 0.0)
    looked_at = np.where(_coloured_slices(maps), attention, 0.0)
    clean = healthy and not _answers_disease(result)
    position, reason = _position(
        maps, np.zeros(depth) if clean else looked_at, diseased, lung_area_cm2
    )
    return Views(
        slices=choose_slices(looked_at, diseased, kept, count, by_attention=1 if clean else count),
        position=position,
        position_reason=reason,
        middle_row=_middle_row(lungs),
        box=lung_box(lungs, spacing),
        involved=involved,
        attention=attention,
    )


def nothing_involved(result: Result) -> bool:
    """Whether so little of the lungs is involved that no slice stands out by disease."""
    return result.lungs is not None and result.lungs.involvement_percent < HEALTHY_PERCENT


def choose_slices(
    attention: np.ndarray,
    involved: np.ndarray,
    candidates: np.ndarray,
    count: int,
    by_attention: int | None = None,
) -> tuple[ShownSlice, ...]:
    """Slices to show: by attention and involvement in turn, spread apart, from head to feet.

    Without attention and involvement the slices are spread evenly over the candidates.

    Args:
        attention: Attention of each slice, ≥ 0, (D,).
        involved: Involved lung of each slice, ≥ 0, (D,).
        candidates: Indices of the slices to choose from, ascending.
        count: Largest number of slices.
        by_attention: Largest number of those that are chosen by attention; None: no limit.
    """
    limits = {_ATTENTION: count if by_attention is None else by_attention, _INVOLVED: count}
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
        used = sum(reason in (first_reason, next_reason) for reason in chosen.values())
        if not len(open_slices) or values[open_slices].max() <= 0:
            continue
        if used >= limits[first_reason, next_reason]:
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


def _coloured_slices(maps: Maps) -> np.ndarray:
    """Slices with attention that is high enough within the lungs to be coloured, bool (D,)."""
    if maps.attention is None:
        return np.zeros(len(maps.kept), bool)
    lungs, least = maps.voxels.codes, COLOURED_FROM * 255.0
    planes = zip(lungs, maps.attention, strict=True)
    return np.array([bool(((values >= least) & (inside > 0)).any()) for inside, values in planes])


def _answers_disease(result: Result) -> bool:
    """Whether the answer is anything but “no findings” or “negative”."""
    if result.severity is not None:
        return result.severity.class_index > 0
    return result.covid is None or result.covid.positive


def _middle_row(lungs: np.ndarray) -> int:
    """Row of the middle of the lungs from front to back; of the scan without any lung."""
    voxels = np.zeros(lungs.shape[1], np.int64)
    for plane in lungs:
        voxels += np.count_nonzero(plane, axis=1)
    if not voxels.any():
        return int(lungs.shape[1]) // 2
    return round(float((voxels * np.arange(len(voxels))).sum() / voxels.sum()))


def _overview(free: np.ndarray, chosen: dict[int, str], candidates: np.ndarray) -> int:
    """The free slice that is farthest from all chosen ones and from the two ends."""
    # The ends count as chosen: the first and the last kept slice hold the least lung.
    others = np.array([*chosen, candidates[0], candidates[-1]])
    return int(free[np.argmax(np.abs(free[:, None] - others[None, :]).min(axis=1))])


def _position(
    maps: Maps, attention: np.ndarray, involved: np.ndarray, lung_area: np.ndarray
) -> tuple[tuple[int, int, int], str]:
    """The voxel to cut through, and why: the highest attention, else the most involved slice."""
    lungs = maps.voxels.codes
    if maps.attention is not None and attention.max() > 0:
        # Slice by slice: a masked copy of the whole volume would cost as much memory as the map
        # itself.
        planes = zip(lungs, maps.attention, strict=True)
        peaks = [int(np.where(inside, values, 0).max()) for inside, values in planes]
        if max(peaks) > 0:
            d = int(np.argmax(peaks))
            h, w = np.unravel_index(
                np.argmax(np.where(lungs[d], maps.attention[d], 0)), lungs[d].shape
            )
            return (d, int(h), int(w)), "the highest attention within the lungs"
    use_involved = involved.max() > 0
    d = int(np.argmax(involved if use_involved else lung_area))
    reason = (
        "the slice with the most involved lung" if use_involved else "the middle of the larger lung"
    )
    sides = [np.argwhere(side_of(lungs[d]) == side) for side in (1, 2)]
    inside = max(sides, key=len)
    if not len(inside):
        return (d, lungs.shape[1] // 2, lungs.shape[2] // 2), "the middle of the scan"
    h, w = np.round(inside.mean(axis=0)).astype(int)
    return (d, int(h), int(w)), reason
