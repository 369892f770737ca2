"""Frames → an ordered stack: by position along the slice normal, never by instance number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tf_covid.errors import ScanRefused
from tf_covid.result import QualityFlag
from tf_covid.scan.checks import refusal
from tf_covid.scan.dicom.header import Frame, Instance
from tf_covid.scan.grid import SHEAR_DEGREES

#: Direction cosines this far from unit length or from a right angle are rounding; beyond, they are
#: wrong.
COSINE_TOLERANCE = 0.01
#: Positions closer than this are the same slice, in mm.
SAME_POSITION_MM = 0.05
#: How far a slice may lie from its place on the uniform grid: a share of the spacing, and at least
#: this, in mm.
GRID_SHARE, GRID_MM = 0.1, 0.06
#: How far a slice may lie beside the line of the others, in mm.
BESIDE_MM = 1.0
#: Largest fraction of the slices that may be interpolated.
MAX_INTERPOLATED_FRACTION = 0.5
#: Thicknesses that differ by more than this share are two.
THICKNESS_SHARE = 0.1
#: So many frames at one place are a crowd; at most this share of the positions may be left out as
#: strays.
CROWD, STRAY_SHARE = 3, 0.1
_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class SliceFrame:
    """A frame of a file, as a slice of a stack."""

    instance: Instance
    frame: Frame


@dataclass(frozen=True)
class Stack:
    """Slices in order along the normal.

    Args:
        slice_groups: One for each slice of the uniform grid: the frames at that position (more than
            one where the position is doubled), or none where the slice is missing.
        spacing_mm: Between slices.
        affine_ras: (4, 4), index (column, row, slice) → RAS mm.
        quality_flags: What was noticed in the geometry.
    """

    slice_groups: tuple[tuple[SliceFrame, ...], ...]
    spacing_mm: float
    affine_ras: np.ndarray
    quality_flags: tuple[QualityFlag, ...] = ()

    @property
    def missing(self) -> tuple[int, ...]:
        """Numbers of the slices that are not there."""
        return tuple(
            index for index, slice_group in enumerate(self.slice_groups) if not slice_group
        )


def directions(orientation: Sequence[float]) -> np.ndarray:
    """(3, 3) orthonormal rows: along a row, along a column, the slice normal; LPS.

    Raises:
        ScanRefused: `bad_affine` if ImageOrientationPatient is missing or not two unit vectors at a
            right angle.
    """
    if len(orientation) != 6 or not np.isfinite(orientation).all():
        raise refusal(
            "bad_affine", "ImageOrientationPatient (0020,0037) is missing or not six numbers."
        )
    row, column = np.reshape(np.asarray(orientation, dtype=np.float64), (2, 3))
    lengths = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(float(row @ column))) > COSINE_TOLERANCE:
        raise refusal(
            "bad_affine",
            "ImageOrientationPatient (0020,0037) is not two unit vectors at a right angle.",
        )
    row = row / lengths[0]
    column = column - (column @ row) * row
    column /= np.linalg.norm(column)
    return np.stack([row, column, np.cross(row, column)])


def build(slice_frames: Sequence[SliceFrame], gap_mm: float) -> Stack:
    """Order frames of one orientation, matrix and pixel spacing into a stack.

    Args:
        slice_frames: At least one frame.
        gap_mm: Widest distance between neighbours that may be repaired, in mm.

    Raises:
        ScanRefused: `bad_affine`, `single_slice`, `same_position`, `gantry_tilt`, `mixed_geometry`,
            `missing_slices`, `irregular_spacing`.
    """
    first = slice_frames[0].frame
    axes = directions(first.orientation)
    if any(
        len(slice_frame.frame.position) != 3 or not np.isfinite(slice_frame.frame.position).all()
        for slice_frame in slice_frames
    ):
        bad = sum(
            len(slice_frame.frame.position) != 3
            or not np.isfinite(slice_frame.frame.position).all()
            for slice_frame in slice_frames
        )
        text = (
            f"ImagePositionPatient (0020,0032) of {bad} of {len(slice_frames)} images is missing or"
            " not"
            " three numbers."
        )
        raise refusal("bad_affine", text, bad)
    if len(first.spacing) != 2 or not all(0.01 < float(size) < 100.0 for size in first.spacing):
        raise refusal("bad_affine", "PixelSpacing (0028,0030) is missing or impossible.")
    positions = np.array(
        [slice_frame.frame.position for slice_frame in slice_frames], dtype=np.float64
    )
    along = positions @ axes[2]
    groups = _by_position(along)
    if len(groups) < 2:
        raise _one_position(slice_frames)
    merit = _merits(slice_frames, along, groups)
    groups = [sorted(group, key=lambda one: merit[one]) for group in groups]
    heads = [group[0] for group in groups]
    _check_line(positions[heads], axes)
    index, spacing, start = _grid(along[heads], gap_mm)
    slice_groups: list[tuple[SliceFrame, ...]] = [()] * (int(index[-1]) + 1)
    for slice_group, group in zip(index, groups, strict=True):
        slice_groups[int(slice_group)] = tuple(slice_frames[one] for one in group)
    affine = np.eye(4)
    affine[:3, 0] = axes[0] * first.spacing[1]
    affine[:3, 1] = axes[1] * first.spacing[0]
    affine[:3, 2] = axes[2] * spacing
    affine[:3, 3] = positions[heads[0]] + axes[2] * (start - along[heads[0]])
    interpolated = sum(not slice_group for slice_group in slice_groups)
    if interpolated > MAX_INTERPOLATED_FRACTION * len(slice_groups):
        raise refusal(
            "missing_slices",
            f"{interpolated} of {len(slice_groups)} slices are missing: too many to repair.",
            interpolated,
        )
    quality_flags = (_repaired(along[heads], index, interpolated, spacing),) if interpolated else ()
    return Stack(tuple(slice_groups), spacing, _RAS @ affine, quality_flags)


def _by_position(along: np.ndarray) -> list[list[int]]:
    """Indices of the frames at each position, from the lowest to the highest along the normal."""
    groups: list[list[int]] = []
    for one in sorted(range(len(along)), key=lambda one: along[one]):
        if groups and along[one] - along[groups[-1][0]] < SAME_POSITION_MM:
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def _one_position(slice_frames: Sequence[SliceFrame]) -> ScanRefused:
    """Why frames of one single position are no stack."""
    count = len(slice_frames)
    if (
        len(
            {
                (slice_frame.instance.sop_uid or slice_frame.instance.name, slice_frame.frame.index)
                for slice_frame in slice_frames
            }
        )
        == 1
    ):
        copies = f" ({count} copies of it)" if count > 1 else ""
        text = f"There is one slice only{copies}; give the folder or zip of the whole series."
        return refusal("single_slice", text, 1)
    points = np.array(
        [slice_frame.frame.position for slice_frame in slice_frames], dtype=np.float64
    )
    if (apart := float(np.ptp(points, axis=0).max())) > BESIDE_MM:
        text = (
            f"The positions of {count} images differ by up to {apart:.1f} mm and lie in one plane"
            " by ImageOrientationPatient (0020,0037): it contradicts ImagePositionPatient"
            " (0020,0032). Correct one of them."
        )
        return refusal("bad_affine", text, count)
    text = (
        f"All {count} images state the same ImagePositionPatient (0020,0032): in which order they"
        " lie, and how far apart, cannot be told. Export the series again with its geometry, or"
        " give the slices of the whole chest."
    )
    return refusal("same_position", text, count)


def _merits(
    slice_frames: Sequence[SliceFrame], along: np.ndarray, groups: Sequence[Sequence[int]]
) -> list[tuple[float, ...]]:
    """Sort keys for the frames of a doubled position, the best first.

    The usual slice thickness, then the acquisition that covers the most positions, then the
    instance number that fits those of the neighbours, then the lowest: the frames that wait for the
    bolus are thicker, or an acquisition at one place, or numbered apart.
    """
    if len(groups) == len(slice_frames):
        return [()] * len(slice_frames)
    usual = usual_thickness(slice_frames)
    spots: Counter[str] = Counter()
    for group in groups:
        spots.update({slice_frames[one].instance.acquisition for one in group})
    single = [group[0] for group in groups if len(group) == 1]
    numbers = np.array(
        [slice_frame.instance.number for slice_frame in slice_frames], dtype=np.float64
    )
    expected = np.interp(along, along[single], numbers[single]) if len(single) > 1 else numbers
    return [
        (
            _differs(slice_frame.frame.thickness, usual),
            -spots[slice_frame.instance.acquisition],
            round(abs(numbers[one] - expected[one])),
            slice_frame.instance.number,
            slice_frame.frame.index,
        )
        for one, slice_frame in enumerate(slice_frames)
    ]


def usual_thickness(slice_frames: Sequence[SliceFrame]) -> float:
    """SliceThickness at the most positions, in mm; many frames at one place count once."""
    spots = {
        (slice_frame.frame.thickness, slice_frame.frame.position) for slice_frame in slice_frames
    }
    return Counter(thickness for thickness, _ in spots).most_common(1)[0][0]


def unexpected_frames(slice_frames: Sequence[SliceFrame]) -> list[SliceFrame]:
    """Frames that do not belong to the stack of the others.

    Many at one place, or of another thickness at a few.

    That is how a scanner watches the contrast arrive before the scan. Frames whose place the stack
    of the others needs (one of its slots, or the next one at an end) are none.

    Args:
        slice_frames: Frames of one orientation, matrix and pixel spacing.

    Returns:
        What may be left out so that the others form a stack; empty if they do not, or if nothing
        stands out.
    """
    axes = directions(slice_frames[0].frame.orientation)
    along = (
        np.array([slice_frame.frame.position for slice_frame in slice_frames], dtype=np.float64)
        @ axes[2]
    )
    groups = _by_position(along)
    usual = usual_thickness(slice_frames)
    largest = max(1, int(STRAY_SHARE * len(groups)))
    crowds = [group for group in groups if len(group) >= CROWD]
    odd = [
        group
        for group in groups
        if all(_differs(slice_frames[one].frame.thickness, usual) for one in group)
    ]
    chosen = sorted(
        {
            one
            for results in (crowds, odd)
            if len(results) <= largest
            for group in results
            for one in group
        }
    )
    rest = sorted(set(range(len(slice_frames))) - set(chosen))
    if not chosen or len(rest) < 3:
        return []
    steps = np.diff(np.unique(np.round(along[rest], 2)))
    spacing = float(np.median(steps)) if steps.size else 0.0
    if spacing < SAME_POSITION_MM:
        return []
    nearest = {one: float(np.abs(along[rest] - along[one]).min()) for one in chosen}
    low, high = float(along[rest].min()), float(along[rest].max())
    # A place that none of the others has, and that lies on their grid, is a slice of the stack.
    needed = {
        one
        for one in chosen
        if nearest[one] >= SAME_POSITION_MM
        and abs(nearest[one] / spacing - round(nearest[one] / spacing)) < GRID_SHARE
        and low - 1.5 * spacing < along[one] < high + 1.5 * spacing
    }
    return [
        slice_frames[one]
        for one in chosen
        if one not in needed and nearest[one] >= SAME_POSITION_MM
    ]


def _differs(thickness: float, usual: float) -> bool:
    return abs(thickness - usual) > THICKNESS_SHARE * max(usual, 0.1)


def _check_line(positions: np.ndarray, axes: np.ndarray) -> None:
    """Upright stacks only: the step from slice to slice must run along the normal."""
    step = positions[-1] - positions[0]
    depth = float(step @ axes[2])
    drift = float(np.hypot(step @ axes[0], step @ axes[1]))
    tilt = float(np.degrees(np.arctan2(drift, depth)))
    fraction = ((positions - positions[0]) @ axes[2] / depth)[:, None]
    beside = positions - positions[0] - fraction * step
    scatter = float(np.abs(beside @ axes[:2].T).max())
    if scatter > BESIDE_MM:
        message = (
            f"Slices lie up to {scatter:.1f} mm beside each other: the series mixes fields of view."
        )
        raise refusal("mixed_geometry", message, scatter)
    if tilt > SHEAR_DEGREES and drift > BESIDE_MM:
        message = (
            f"The slices are tilted by {tilt:.1f} degrees against the table; only upright stacks"
            " are read."
        )
        raise refusal("gantry_tilt", message, round(tilt, 1))


def _grid(along: np.ndarray, gap_mm: float) -> tuple[np.ndarray, float, float]:
    """Slot of each slice on a uniform grid, its spacing and its start, in mm along the normal."""
    steps = np.diff(along)
    usual = float(np.median(steps))
    counts = np.maximum(1, np.rint(steps / usual)).astype(np.int64)
    # Positions are often rounded to 0.1 mm: the mean step of the undisturbed ones is the spacing.
    spacing = float(steps[counts == 1].mean())
    counts = np.maximum(1, np.rint(steps / spacing)).astype(np.int64)
    wide = steps[(counts > 1) & (steps > gap_mm + GRID_MM)]
    if wide.size:
        zs = _positions(along[:-1][(counts > 1) & (steps > gap_mm + GRID_MM)])
        message = (
            f"{wide.size} gap(s) of up to {wide.max():.1f} mm at {zs} mm along the slice normal "
            f"(spacing {spacing:.1f} mm); a gap above {gap_mm:g} mm is not repaired."
        )
        raise refusal("missing_slices", message, int((counts - 1).sum()))
    index = np.concatenate([[0], np.cumsum(counts)])
    slope, start = np.polyfit(index, along, 1) if len(index) > 2 else (spacing, along[0])
    off = np.abs(along - (start + slope * index))
    if off.max() > max(GRID_MM, GRID_SHARE * slope):
        message = (
            f"The slices are not evenly spaced: {steps.min():.2f} to {steps.max():.2f} mm apart "
            f"(median {usual:.2f} mm), up to {off.max():.2f} mm off any uniform grid."
        )
        raise refusal("irregular_spacing", message, round(float(off.max()), 2))
    return index, float(slope), float(start)


def _repaired(
    along: np.ndarray, index: np.ndarray, interpolated: int, spacing: float
) -> QualityFlag:
    before = np.flatnonzero(np.diff(index) > 1)
    widest = float(np.diff(along)[before].max())
    message = (
        f"{interpolated} missing slice(s) were interpolated: {len(before)} gap(s) of up to"
        f" {widest:.1f} mm after {_positions(along[before])} mm along the slice normal (spacing"
        f" {spacing:.1f} mm)."
    )
    return QualityFlag("missing_slices", "warning", message, interpolated)


def _positions(values: np.ndarray) -> str:
    text = ", ".join(f"{value:.1f}" for value in values[:5])
    return f"{text} and {len(values) - 5} more" if len(values) > 5 else text
