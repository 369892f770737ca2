"""What of a study is not a slice of the stack that is read, why, and whether it leaves a hole.

A series may hold more than its slices: localizers, dose reports, reformatted and projected images,
a second reconstruction. They are named. But where images that are left out lie at a missing slice,
between every two slices or just beyond an end, the stack is a part of a series and not a whole one:
that is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tf_covid.result import QualityFlag
from tf_covid.scan.dicom.header import Frame, Instance
from tf_covid.scan.dicom.stack import (
    BESIDE_MM,
    CROWD,
    THICKNESS_SHARE,
    SliceFrame,
    Stack,
    usual_thickness,
)

NO_POSITION = "without a usable ImagePositionPatient (0020,0032)"
NO_FRAMES = "with NumberOfFrames (0028,0008) above 1 and no position of each frame"
BESIDE_GRID = "at a place beside the grid of the others"
#: How far from a slot an image may lie and still be at it, as a share of the spacing.
_AT_SLOT = 0.2
#: How far beyond an end of the stack images still belong to it, in spacings.
_BEYOND = 3.0 + _AT_SLOT
#: Share of the gaps between slices that must be filled before images in between say that the stack
#: was halved.
_FILLED_GAPS = 0.25
#: InstanceNumbers of neighbours differ by at most this much.
_NEXT_NUMBER = 2
#: Share of a group of images that must lie at slices of the stack to be a second version of them.
_SHADOWS = 0.5
#: Cosine of the largest angle between two slice normals that still follow one line (11 degrees).
_SAME_LINE = 0.98


@dataclass(frozen=True)
class LeftOut:
    """An image, or one frame of it, that is no slice of the stack.

    Args:
        instance: Headers of the image's file.
        frame: Where it lies; None where the file has no frame with a place.
        reason: Why it is none, as a phrase after a count: "with Modality MR".
        slab: Whether it says of itself that it is a projection through a slab.
    """

    instance: Instance
    frame: Frame | None
    reason: str
    slab: bool = False


@dataclass(frozen=True)
class Line:
    """The line that a stack's slices follow, for asking where other images lie on it."""

    normal: np.ndarray
    start: float
    spacing: float
    occupied: np.ndarray
    thickness: float
    matrix: tuple[object, ...]
    series: frozenset[str]
    numbers: np.ndarray
    acquisitions: frozenset[str]
    corner: np.ndarray

    @classmethod
    def of(cls, stack: Stack, slice_frames: Sequence[SliceFrame]) -> Line:
        """The line of a stack of these places."""
        column = np.array([-1.0, -1.0, 1.0]) * stack.affine_ras[:3, 2]
        origin = np.array([-1.0, -1.0, 1.0]) * stack.affine_ras[:3, 3]
        normal = column / np.linalg.norm(column)
        first = slice_frames[0]
        return cls(
            normal=normal,
            start=float(origin @ normal),
            spacing=stack.spacing_mm,
            occupied=np.array([bool(slice_group) for slice_group in stack.slice_groups]),
            thickness=usual_thickness(slice_frames),
            matrix=matrix(first.instance, first.frame),
            series=frozenset(slice_frame.instance.series_uid for slice_frame in slice_frames),
            numbers=np.array(
                [
                    slice_group[0].instance.number if slice_group else -1
                    for slice_group in stack.slice_groups
                ],
                dtype=np.float64,
            ),
            acquisitions=frozenset(
                slice_frame.instance.acquisition for slice_frame in slice_frames
            ),
            corner=origin,
        )

    def at(self, frames: Sequence[Frame]) -> np.ndarray:
        """Where frames lie, in slots; not a number where they have no position."""
        points = np.array(
            [frame.position if len(frame.position) == 3 else (np.nan,) * 3 for frame in frames],
            dtype=np.float64,
        ).reshape(-1, 3)
        slice_groups: np.ndarray = (points @ self.normal - self.start) / self.spacing
        return slice_groups

    def parallel(self, frame: Frame) -> bool:
        """Whether the planes of frame and stack are parallel, to some degrees.

        A frame without orientation is.
        """
        if len(frame.orientation) != 6:
            return True
        return bool(
            abs(sum(a * b for a, b in zip(_normal(frame.orientation), self.normal, strict=True)))
            > _SAME_LINE
        )

    def touches(self, frame: Frame) -> bool:
        """Whether the corner of a frame lies on the line of the stack's corners."""
        step = np.asarray(frame.position, dtype=np.float64) - self.corner
        return bool(np.linalg.norm(step - (step @ self.normal) * self.normal) < BESIDE_MM)

    def as_thick(self, frame: Frame) -> bool:
        """Whether a frame is as thick as the slices, or one of them does not say."""
        if frame.thickness <= 0 or self.thickness <= 0:
            return True
        return abs(frame.thickness - self.thickness) <= THICKNESS_SHARE * self.thickness


@lru_cache(maxsize=64)
def _normal(orientation: tuple[float, ...]) -> tuple[float, ...]:
    """The slice normal of ImageOrientationPatient; most images of a study share a few."""
    row, column = np.reshape(np.asarray(orientation, dtype=np.float64), (2, 3))
    return tuple(np.cross(row, column).tolist())


def matrix(instance: Instance, frame: Frame) -> tuple[object, ...]:
    """Rows, columns and pixel spacing: what all slices of a stack share."""
    return (
        instance.rows,
        instance.columns,
        tuple(round(size, 4) if np.isfinite(size) else -1.0 for size in frame.spacing),
    )


def counted(left_out: Iterable[LeftOut]) -> str:
    """For a message: how many for which reason, the most frequent first."""
    reasons = Counter(one.reason for one in left_out)
    return ", ".join(
        f"{count} {reason}"
        for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    )


def same_series(
    line: Line | None, left_out: Sequence[LeftOut], kept: int
) -> tuple[QualityFlag, ...]:
    """What is said of images that belong to the chosen series and are no slices of the stack.

    Args:
        line: Line of the stack; None where there is no stack.
        left_out: All images of the series that are no slices of it.
        kept: Number of images of the series that are.
    """
    if not left_out:
        return ()
    count = len(left_out)
    message = (
        f"{count} of {kept + count} images of the chosen series were left out: {counted(left_out)}."
    )
    harm = sum(_harm(line, group) for group in _by_reason(left_out)) if line else 0
    if not harm:
        return (QualityFlag("left_out_slices", "warning", message, count),)
    message += (
        f" {harm} of them lie where the stack has a hole, between its slices or at its ends: it is"
        " not whole. Correct these elements, or export the series again."
    )
    return (QualityFlag("left_out_slices", "error", message, count),)


def other_series(line: Line, left_out: Sequence[LeftOut]) -> tuple[QualityFlag, ...]:
    """An error where the images of other series are the other half of the chosen one.

    Two series of one patient may lie beside each other by chance (breathing in and out). Those that
    were one have the same thickness, matrix and pixel spacing, no slice in common, and instance
    numbers that run through both.
    """
    series: dict[str, list[tuple[LeftOut, Frame]]] = {}
    for one in left_out:
        frame = one.frame
        if (
            frame
            and matrix(one.instance, frame) == line.matrix
            and line.as_thick(frame)
            and line.parallel(frame)
        ):
            series.setdefault(one.instance.series_uid, []).append((one, frame))
    slice_groups: list[float] = []
    numbers: list[int] = []
    torn = 0
    for members in series.values():
        at = line.at([frame for _, frame in members])
        holes, between, _, occupied = _where(line, at)
        inside = holes | between | _continues(line, at)
        if occupied.any() or not inside.any():
            continue
        slice_groups += at[inside].tolist()
        numbers += [
            one.instance.number
            for (one, _), is_inside in zip(members, inside, strict=True)
            if is_inside
        ]
        torn += 1
    holes, between, _, _ = _where(line, np.array(slice_groups))
    gaps = len(np.unique(np.floor(np.array(slice_groups)[between])))
    if not holes.any() and between.any() and gaps < _FILLED_GAPS * (len(line.occupied) - 1):
        return ()
    if not slice_groups or not _numbered_through(
        line, np.array(slice_groups), np.array(numbers, dtype=np.float64)
    ):
        return ()
    known = line.numbers[line.occupied]
    if (
        not (holes.any() or between.any())
        and np.abs(np.subtract.outer(numbers, known)).min() > _NEXT_NUMBER
    ):
        return ()  # the abdomen after the chest, numbered apart
    return (split_series(len(slice_groups), torn),)


def split_series(images: int, series: int) -> QualityFlag:
    """What is said of a stack whose other slices lie in other series."""
    message = (
        f"{images} images of {series} other series lie between the slices of the chosen one or"
        " right after them, with the same geometry and instance numbers that run through both: one"
        " series was split over several SeriesInstanceUIDs (0020,000E). Give the series under one"
        " UID."
    )
    return QualityFlag("split_series", "error", message, images)


def _continues(line: Line, at: np.ndarray) -> np.ndarray:
    """All images of a series that begins one spacing beyond an end of the stack, on its grid.

    Else none of them.
    """
    last = len(line.occupied) - 1
    beyond = at - last if at.min() > 0 else -at
    return np.full(len(at), bool(abs(beyond.min() - 1) <= _AT_SLOT))


def _by_reason(left_out: Sequence[LeftOut]) -> list[list[LeftOut]]:
    groups: dict[tuple[str, str], list[LeftOut]] = {}
    for one in left_out:
        groups.setdefault((one.instance.series_uid, one.reason), []).append(one)
    return list(groups.values())


def _where(line: Line, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Masks over images: in a hole, between two slices, just beyond an end, at a slice."""
    last = len(line.occupied) - 1
    at = np.where(np.isfinite(at), at, -np.inf)
    slice_group = np.clip(np.rint(np.maximum(at, -1e6)), 0, last).astype(np.int64)
    on_slot = np.abs(at - slice_group) <= _AT_SLOT
    holes = on_slot & ~line.occupied[slice_group]
    between = ~on_slot & (at > 0) & (at < last)
    ends = ~on_slot & (((at <= 0) & (at >= -_BEYOND)) | ((at >= last) & (at <= last + _BEYOND)))
    return holes, between, ends, on_slot & line.occupied[slice_group]


def _harm(line: Line, group: Sequence[LeftOut]) -> int:
    """How many images of one reason the stack lacks."""
    frames = [one.frame for one in group if one.frame is not None and len(one.frame.position) == 3]
    if len(frames) < len(group) or group[0].reason == NO_POSITION:
        return _harm_by_number(line, group)
    if group[0].reason == BESIDE_GRID:
        # Slices whose positions were lost look like frames at one place; those of the bolus are an
        # acquisition apart.
        same = [one for one in group if one.instance.acquisition in line.acquisitions]
        return _harm_by_number(
            line, [one for one in same if one.frame and line.as_thick(one.frame)]
        )
    holes, between, ends, occupied = _where(line, line.at(frames))
    if occupied.sum() >= _SHADOWS * len(frames):
        return 0
    at = line.at(frames)
    parallel = np.array([line.parallel(frame) for frame in frames])
    # The corner of an image in another direction may lie anywhere; that of a slice with wrong
    # cosines follows the line.
    on_line = np.array([line.touches(frame) for frame in frames])
    if on_line.sum() >= _SHADOWS * len(frames):
        parallel |= on_line
    thick = np.array([not line.as_thick(frame) for frame in frames])
    slab = np.array([one.slab for one in group])
    holes &= ~(slab & thick)
    between &= ~thick
    ends &= ~thick & parallel & ~_crowded(at)
    filled = len(np.unique(np.floor(at[between])))
    if filled < _FILLED_GAPS * (len(line.occupied) - 1):
        between[:] = False
    holes &= parallel
    between &= parallel
    return int((holes | between | ends).sum())


def _crowded(at: np.ndarray) -> np.ndarray:
    """Which images share their place with others.

    One place looked at again and again is no end of a stack.
    """
    slice_frames, counts = np.unique(np.round(at, 2), return_counts=True)
    return np.isin(np.round(at, 2), slice_frames[counts >= CROWD])


def _harm_by_number(line: Line, group: Sequence[LeftOut]) -> int:
    """The same for images without a position, by their instance numbers.

    Where those tell nothing, all CT slices of the same matrix are missed. Reports and captures
    follow after the last slice: they are missed between slices only.
    """
    slice_like = bool(group) and group[0].reason in (NO_POSITION, NO_FRAMES, BESIDE_GRID)
    alike = [one for one in group if (one.instance.rows, one.instance.columns) == line.matrix[:2]]
    slice_groups = np.flatnonzero(line.occupied)
    numbers = line.numbers[slice_groups]
    if not alike:
        return 0
    if len(set(numbers)) < len(slice_groups) or len(slice_groups) < 3:
        return len(alike) if slice_like else 0
    slope, start = np.polyfit(numbers, slice_groups, 1)
    if np.abs(slope * numbers + start - slice_groups).max() > 0.5:
        return len(alike) if slice_like else 0
    holes, between, ends, _ = _where(
        line, np.array([slope * one.instance.number + start for one in alike])
    )
    return int((holes | between | (ends & slice_like)).sum())


def _numbered_through(line: Line, at: np.ndarray, numbers: np.ndarray) -> bool:
    """Whether instance numbers grow, or fall, along the stack and these others together.

    Where all numbers are the same, slices much thinner than their spacing say that every second one
    is elsewhere.
    """
    slice_groups = np.flatnonzero(line.occupied)
    together = np.concatenate([line.numbers[slice_groups], numbers])[
        np.argsort(np.concatenate([slice_groups, at]), kind="stable")
    ]
    steps = np.diff(together)
    if not steps.any():
        return bool(0 < line.thickness <= 0.75 * line.spacing)
    return bool((steps > 0).all() or (steps < 0).all())
