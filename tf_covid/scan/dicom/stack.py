"""Frames → an ordered stack: by position along the slice normal, never by instance number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tf_covid.result import QualityFlag
from tf_covid.scan.checks import refusal
from tf_covid.scan.dicom.header import Frame, Instance
from tf_covid.scan.grid import SHEAR_DEGREES

#: Direction cosines this far from unit length or from a right angle are rounding; beyond, they are wrong.
COSINE_TOLERANCE = 0.01
#: Positions closer than this are the same slice, in mm.
SAME_POSITION_MM = 0.05
#: How far a slice may lie from its place on the uniform grid: a share of the spacing, and at least this, in mm.
GRID_SHARE, GRID_MM = 0.1, 0.06
#: How far a slice may lie beside the line of the others, in mm.
BESIDE_MM = 1.0
#: Largest share of the slices that may be made up.
MOST_MADE_UP = 0.5
_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Place:
    """A frame of a file."""

    instance: Instance
    frame: Frame


@dataclass(frozen=True)
class Stack:
    """Slices in order along the normal.

    Args:
        slots: One for each slice of the uniform grid: the frames at that position (more than one where the position
            is doubled), or none where the slice is missing.
        spacing_mm: Between slices.
        affine_ras: (4, 4), index (column, row, slice) → RAS mm.
        quality_flags: What was noticed in the geometry.
    """

    slots: tuple[tuple[Place, ...], ...]
    spacing_mm: float
    affine_ras: np.ndarray
    quality_flags: tuple[QualityFlag, ...] = ()

    @property
    def missing(self) -> tuple[int, ...]:
        """Numbers of the slices that are not there."""
        return tuple(number for number, slot in enumerate(self.slots) if not slot)


def directions(orientation: Sequence[float]) -> np.ndarray:
    """(3, 3) orthonormal rows: along a row, along a column, the slice normal; LPS.

    Raises:
        ScanRefused: `bad_affine` if ImageOrientationPatient is missing or not two unit vectors at a right angle.
    """
    if len(orientation) != 6 or not np.isfinite(orientation).all():
        raise refusal("bad_affine", "ImageOrientationPatient (0020,0037) is missing or not six numbers.")
    row, column = np.reshape(np.asarray(orientation, dtype=np.float64), (2, 3))
    lengths = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(float(row @ column))) > COSINE_TOLERANCE:
        raise refusal("bad_affine", "ImageOrientationPatient (0020,0037) is not two unit vectors at a right angle.")
    row = row / lengths[0]
    column = column - (column @ row) * row
    column /= np.linalg.norm(column)
    return np.stack([row, column, np.cross(row, column)])


def build(places: Sequence[Place], gap_mm: float) -> Stack:
    """Order frames of one orientation, matrix and pixel spacing into a stack.

    Args:
        places: At least one frame.
        gap_mm: Widest distance between neighbours that may be repaired, in mm.

    Raises:
        ScanRefused: `bad_affine`, `single_slice`, `gantry_tilt`, `mixed_geometry`, `missing_slices`,
            `irregular_spacing`.
    """
    first = places[0].frame
    axes = directions(first.orientation)
    if any(len(place.frame.position) != 3 or not np.isfinite(place.frame.position).all() for place in places):
        raise refusal("bad_affine", "ImagePositionPatient (0020,0032) is missing or not three numbers.")
    if len(first.spacing) != 2 or not all(0.01 < float(size) < 100.0 for size in first.spacing):
        raise refusal("bad_affine", "PixelSpacing (0028,0030) is missing or impossible.")
    positions = np.array([place.frame.position for place in places], dtype=np.float64)
    along = positions @ axes[2]
    # At a doubled position the acquisition with the most slices comes first, then the lower instance number.
    sizes = Counter(place.instance.acquisition for place in places)
    merit = [(-sizes[place.instance.acquisition], place.instance.number, place.frame.index) for place in places]
    order = sorted(range(len(places)), key=lambda one: along[one])
    groups: list[list[int]] = []
    for one in order:
        if groups and along[one] - along[groups[-1][0]] < SAME_POSITION_MM:
            groups[-1].append(one)
        else:
            groups.append([one])
    groups = [sorted(group, key=lambda one: merit[one]) for group in groups]
    heads = [group[0] for group in groups]
    if len(heads) < 2:
        raise refusal("single_slice", "There is one slice only; give the folder or zip of the whole series.", 1)
    _check_line(positions[heads], axes)
    index, spacing, start = _grid(along[heads], gap_mm)
    slots: list[tuple[Place, ...]] = [()] * (int(index[-1]) + 1)
    for slot, group in zip(index, groups, strict=True):
        slots[int(slot)] = tuple(places[one] for one in group)
    affine = np.eye(4)
    affine[:3, 0] = axes[0] * first.spacing[1]
    affine[:3, 1] = axes[1] * first.spacing[0]
    affine[:3, 2] = axes[2] * spacing
    affine[:3, 3] = positions[heads[0]] + axes[2] * (start - along[heads[0]])
    made_up = sum(not slot for slot in slots)
    if made_up > MOST_MADE_UP * len(slots):
        raise refusal("missing_slices", f"{made_up} of {len(slots)} slices are missing: too many to repair.", made_up)
    quality_flags = (_repaired(along[heads], index, made_up, spacing),) if made_up else ()
    return Stack(tuple(slots), spacing, _RAS @ affine, quality_flags)


def _check_line(positions: np.ndarray, axes: np.ndarray) -> None:
    """Upright stacks only: the step from slice to slice must run along the normal."""
    step = positions[-1] - positions[0]
    depth = float(step @ axes[2])
    drift = float(np.hypot(step @ axes[0], step @ axes[1]))
    tilt = float(np.degrees(np.arctan2(drift, depth)))
    share = ((positions - positions[0]) @ axes[2] / depth)[:, None]
    beside = positions - positions[0] - share * step
    scatter = float(np.abs(beside @ axes[:2].T).max())
    if scatter > BESIDE_MM:
        message = f"Slices lie up to {scatter:.1f} mm beside each other: the series mixes fields of view."
        raise refusal("mixed_geometry", message, scatter)
    if tilt > SHEAR_DEGREES and drift > BESIDE_MM:
        message = f"The slices are tilted by {tilt:.1f} degrees against the table; only upright stacks are read."
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
        zs = _places(along[:-1][(counts > 1) & (steps > gap_mm + GRID_MM)])
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


def _repaired(along: np.ndarray, index: np.ndarray, made_up: int, spacing: float) -> QualityFlag:
    before = np.flatnonzero(np.diff(index) > 1)
    widest = float(np.diff(along)[before].max())
    message = (
        f"{made_up} missing slice(s) were made up by interpolation: {len(before)} gap(s) of up to {widest:.1f} mm "
        f"after {_places(along[before])} mm along the slice normal (spacing {spacing:.1f} mm)."
    )
    return QualityFlag("missing_slices", "warning", message, made_up)


def _places(values: np.ndarray) -> str:
    text = ", ".join(f"{value:.1f}" for value in values[:5])
    return f"{text} and {len(values) - 5} more" if len(values) > 5 else text
