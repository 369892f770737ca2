"""The slices of a study → the stacks that they may form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tf_covid.errors import ScanRefused
from tf_covid.result import QualityFlag
from tf_covid.scan.checks import refusal
from tf_covid.scan.dicom import terms
from tf_covid.scan.dicom.header import Frame
from tf_covid.scan.dicom.identity import PatientIdentifiers
from tf_covid.scan.dicom.left_out import BESIDE_GRID, NO_POSITION, LeftOut, matrix
from tf_covid.scan.dicom.remarks import content_flags
from tf_covid.scan.dicom.stack import SliceFrame, Stack, build, unexpected_frames
from tf_covid.scan.grid import orient

#: Share of a series' positions whose frames must agree in matrix and pixel spacing; the rest is
#: left out.
_AGREE_SHARE = 0.9
#: From so many series of one image each on, they may be one whose images an anonymiser gave a UID
#: each.
_LEAST_LONE = 3


@dataclass(frozen=True)
class Candidate:
    """Frames that may form one stack, with the stack or the refusal that came of them.

    Args:
        series_uid: SeriesInstanceUID of the first frame.
        series_number: SeriesNumber of the first frame.
        kernel: ConvolutionKernel of the first frame.
        places: The frames.
        stack: What they form; None if `refusal` says why not.
        refusal: Why they form none.
        axial: Whether the slices are axial.
        original: Whether ImageType says ORIGINAL.
        quality_flags: What was noticed.
        apart: Frames of the same group that are no slices of the stack.
        lung_ml: How much lung a look at some slices has shown, in ml; None without a look.
        elsewhere: Whether it shows no lung, or little where others show much; by its words where
            nothing was looked at.
    """

    series_uid: str
    series_number: int
    kernel: str
    slice_frames: tuple[SliceFrame, ...]
    stack: Stack | None
    refusal: ScanRefused | None
    axial: bool
    original: bool
    quality_flags: tuple[QualityFlag, ...] = ()
    apart: tuple[LeftOut, ...] = ()
    lung_ml: float | None = None
    elsewhere: bool = False

    def built(self) -> Stack:
        """Stack of this candidate.

        Raises:
            ScanRefused: With the reason, if it has none.
        """
        if self.stack is None:
            raise self.refusal or ScanRefused(
                [QualityFlag("no_slices", "error", "The slices make no stack.")]
            )
        return self.stack

    @property
    def length_mm(self) -> float:
        """From the first to the last slice."""
        return self.stack.spacing_mm * (len(self.stack.slice_groups) - 1) if self.stack else 0.0

    @property
    def lung_kernel(self) -> bool:
        """Whether the kernel is one for lungs, by its maker's name."""
        return terms.lung_kernel(self.kernel)

    @property
    def plain(self) -> bool:
        """Whether nothing says that its images are slabs, averages or projections."""
        return not any(flag.code in ("projection", "thick_slices") for flag in self.quality_flags)

    @property
    def region(self) -> str:
        """What its words say of the region of the body: "chest", "elsewhere" or nothing."""
        return terms.region(self.slice_frames[0].instance)

    @property
    def series(self) -> frozenset[str]:
        """Its SeriesInstanceUIDs: one, but for images that were given one each."""
        return frozenset(slice_frame.instance.series_uid for slice_frame in self.slice_frames)

    def describe(self, identifiers: PatientIdentifiers) -> str:
        """Counts, spacing and kernel; nothing from the header that could hold a name."""
        less = ", less of the lungs by a look and its words" if self.elsewhere else ""
        if self.stack is None:
            return f"{len(self.slice_frames)} slices that form no stack{less}"
        kind = "axial" if self.axial else "not axial"
        kernel = terms.kernel_text(self.kernel, hidden=identifiers.occur_in(self.kernel))
        return (
            f"{len(self.stack.slice_groups)} {kind} slices, {self.stack.spacing_mm:.2f} mm apart,"
            f" {kernel}{less}"
        )


#: How much lung a candidate shows, in ml; None where it cannot be told.
Look = Callable[[Candidate], "float | None"]


def candidates(slice_frames: Sequence[SliceFrame], gap_mm: float) -> list[Candidate]:
    """All stacks that the slices may form: of one series, kernel, direction and phase each."""
    results = []
    for same_series, lone in _by_series(slice_frames):
        for same_direction in _by_orientation(same_series):
            for phase in _by_acquisition(same_direction):
                candidate = _candidate(phase, gap_mm)
                results.append(_as_one(candidate) if lone else candidate)
    return results


def _by_series(slice_frames: Sequence[SliceFrame]) -> list[tuple[list[SliceFrame], bool]]:
    """Slices of one series and kernel.

    Series of one slice each are one, where most of the slices are such.
    """
    sizes = Counter(slice_frame.instance.series_uid for slice_frame in slice_frames)
    lone = {uid for uid, size in sizes.items() if size == 1}
    merged = len(lone) >= _LEAST_LONE and len(lone) > len(slice_frames) / 2
    numbers = {
        slice_frame.instance.series_number
        for slice_frame in slice_frames
        if slice_frame.instance.series_uid in lone
    }
    by_number = len(numbers) <= len(lone) / 2
    series: dict[tuple[object, ...], list[SliceFrame]] = {}
    for slice_frame in slice_frames:
        one = slice_frame.instance
        if alone := merged and one.series_uid in lone:
            key: object = (matrix(one, slice_frame.frame), one.series_number if by_number else 0)
        else:
            key = one.series_uid
        series.setdefault((alone, key, slice_frame.frame.kernel.upper()), []).append(slice_frame)
    return [(members, bool(key[0])) for key, members in series.items()]


def _as_one(candidate: Candidate) -> Candidate:
    """A stack of images with a SeriesInstanceUID each.

    A whole one without doubles is believed, and said.
    """
    count = len(candidate.slice_frames)
    said = (
        f"{count} images have {count} SeriesInstanceUIDs (0020,000E), as an anonymiser leaves them"
    )
    if candidate.refusal is not None:
        why = candidate.refusal.quality_flags[0]
        text = f"{said}, and form no single stack: {why.message}"
        return replace(candidate, refusal=refusal(why.code, text, why.value))
    if candidate.stack and any(
        len(slice_group) > 1 for slice_group in candidate.stack.slice_groups
    ):
        text = (
            f"{said}, and some of them lie at one place: which of them are one series cannot be"
            " told."
        )
        return replace(candidate, stack=None, refusal=refusal("series_uid_per_image", text, count))
    text = (
        f"{said}; they were read as one series, because they share study, matrix and kernel and"
        " form one stack."
    )
    flag = QualityFlag("series_uid_per_image", "warning", text, count)
    return replace(candidate, quality_flags=(*candidate.quality_flags, flag))


def _by_acquisition(slice_frames: Sequence[SliceFrame]) -> list[list[SliceFrame]]:
    """Phases that one series holds on top of each other, such as inspiration and expiration, apart.

    Acquisitions that follow each other along the table stay together.
    """
    phases: dict[str, list[SliceFrame]] = {}
    for slice_frame in slice_frames:
        phases.setdefault(slice_frame.instance.acquisition, []).append(slice_frame)
    spots = [{slice_frame.frame.position for slice_frame in phase} for phase in phases.values()]
    together = set().union(*spots)
    doubled = sum(len(spot) for spot in spots) - len(together)
    return list(phases.values()) if doubled > len(together) / 2 else [list(slice_frames)]


def _by_orientation(slice_frames: Sequence[SliceFrame]) -> list[list[SliceFrame]]:
    """Groups whose direction cosines agree within 1e-3: 0.4 mm at the edge of a chest."""
    groups: list[tuple[np.ndarray | None, list[SliceFrame]]] = []
    for slice_frame in slice_frames:
        mine = (
            np.array(slice_frame.frame.orientation)
            if len(slice_frame.frame.orientation) == 6
            else None
        )
        for theirs, members in groups:
            if (mine is None and theirs is None) or (
                mine is not None and theirs is not None and np.abs(mine - theirs).max() < 1e-3
            ):
                members.append(slice_frame)
                break
        else:
            groups.append((mine, [slice_frame]))
    if len(groups) > 3 and len(groups) > len(slice_frames) / 4:
        # Every slice its own direction: that is no set of stacks, it is one broken series.
        return [list(slice_frames)]
    return [members for _, members in groups]


def _candidate(slice_frames: Sequence[SliceFrame], gap_mm: float) -> Candidate:
    """One candidate of frames that nearly all agree in matrix and pixel spacing.

    Else it carries a refusal.
    """
    kept, apart = _sorted_out(slice_frames)
    first = kept[0]
    quality_flags: tuple[QualityFlag, ...] = ()
    stack, refused, axial = None, None, False
    try:
        if not _parallel(kept):
            raise refusal(
                "mixed_geometry",
                "The images of the series lie in many different directions.",
                len(kept),
            )
        others = _other_matrix(slice_frames)
        if _spots(others) > (1 - _AGREE_SHARE) * _spots(slice_frames):
            message = (
                f"{len(others)} of {len(slice_frames)} images of the series have another matrix or"
                " pixel"
                " spacing."
            )
            raise refusal("mixed_geometry", message, len(others))
        if not all(_has_rescale(slice_frame.frame) for slice_frame in kept):
            raise refusal(
                "bad_header",
                "RescaleSlope (0028,1053) or RescaleIntercept (0028,1052) is zero or no number.",
            )
        if stray := _unexpected_members(kept):
            beside = set(map(id, stray))
            kept = [slice_frame for slice_frame in kept if id(slice_frame) not in beside]
            apart += [LeftOut(one.instance, one.frame, BESIDE_GRID) for one in stray]
        built = build(kept, gap_mm)
        shape = (first.instance.columns, first.instance.rows, len(built.slice_groups))
        axial = orient(built.affine_ras, shape)[0].axes[2] == 0
        if built.missing and not axial:
            # Interpolated slices are listed as axial; here one would be part of every axial slice.
            text = (
                f"{len(built.missing)} slice(s) are missing, and only gaps between axial slices are"
                " repaired."
            )
            raise refusal("missing_slices", text, len(built.missing))
        stack = built
        quality_flags = stack.quality_flags + content_flags(stack, kept)
    except ScanRefused as error:
        refused = error
    return Candidate(
        series_uid=first.instance.series_uid,
        series_number=first.instance.series_number,
        kernel=first.frame.kernel,
        slice_frames=tuple(kept),
        stack=stack,
        refusal=refused,
        axial=axial,
        original=first.frame.image_type[:1] == ("ORIGINAL",),
        quality_flags=quality_flags,
        apart=tuple(apart),
    )


def _sorted_out(slice_frames: Sequence[SliceFrame]) -> tuple[list[SliceFrame], list[LeftOut]]:
    """Frames with a position and the usual matrix, if most have one; and the others."""
    placed = [slice_frame for slice_frame in slice_frames if _has_position(slice_frame)]
    if 2 * len(placed) <= len(slice_frames):
        placed = list(slice_frames)
    there = set(map(id, placed))
    apart = [
        LeftOut(slice_frame.instance, slice_frame.frame, NO_POSITION)
        for slice_frame in slice_frames
        if id(slice_frame) not in there
    ]
    other = set(map(id, _other_matrix(placed)))
    apart += [
        LeftOut(slice_frame.instance, slice_frame.frame, "with another matrix or pixel spacing")
        for slice_frame in placed
        if id(slice_frame) in other
    ]
    return [slice_frame for slice_frame in placed if id(slice_frame) not in other], apart


def _has_position(slice_frame: SliceFrame) -> bool:
    return len(slice_frame.frame.position) == 3 and bool(
        np.isfinite(slice_frame.frame.position).all()
    )


def _other_matrix(slice_frames: Sequence[SliceFrame]) -> list[SliceFrame]:
    """Frames whose matrix is not the one at the most places.

    Many frames at one place count once.
    """
    spots: dict[tuple[object, ...], set[object]] = {}
    for slice_frame in slice_frames:
        spots.setdefault(matrix(slice_frame.instance, slice_frame.frame), set()).add(
            slice_frame.frame.position or id(slice_frame)
        )
    usual = max(spots, key=lambda kind: len(spots[kind]))
    return [
        slice_frame
        for slice_frame in slice_frames
        if matrix(slice_frame.instance, slice_frame.frame) != usual
    ]


def _unexpected_members(slice_frames: Sequence[SliceFrame]) -> list[SliceFrame]:
    """Strays, if every frame has what their search needs."""
    return (
        unexpected_frames(slice_frames)
        if all(map(_has_position, slice_frames)) and len(slice_frames[0].frame.orientation) == 6
        else []
    )


def _spots(slice_frames: Sequence[SliceFrame]) -> int:
    """Number of positions; many frames at one place count once."""
    return len({slice_frame.frame.position for slice_frame in slice_frames})


def _has_rescale(frame: Frame) -> bool:
    return bool(np.isfinite((frame.slope, frame.intercept)).all()) and frame.slope != 0


def _parallel(slice_frames: Sequence[SliceFrame]) -> bool:
    first = slice_frames[0].frame.orientation
    return all(
        len(slice_frame.frame.orientation) == len(first)
        and np.allclose(slice_frame.frame.orientation, first, rtol=0, atol=1e-3)
        for slice_frame in slice_frames
    )
