"""Which stack of a study is read.

Written rules, so that the same folder always gives the same answer.

1. Only CT images with one sample: no localizers, no projections (MIP and the like), no screen
   captures, no maps whose rescale type is not HU. What is left out of the chosen series is said,
   and where the stack lacks it, refused.
2. Frames that share series, kernel, orientation, matrix and pixel spacing are one candidate.
3. Where there are several: those that show the lungs before those that show no lung, or less than
   40 % of what another shows, by a look at a few slices of each. Words (SeriesDescription,
   BodyPartExamined) count beside it: the chest doubles, another region halves what was seen.
   Unseen, those whose words name no other region.
4. Stacks that can be built (no tilt, no wide gap, no gap at all unless axial, even spacing) before
   those that cannot; but fewer than 8 slices do not stand in for a larger one that cannot.
5. Plain slices before averages and slabs.
6. Axial before others.
7. Enough of them: at least 8 slices, and at least 80 % of the length of the longest such stack.
8. Original before derived.
9. The thinnest spacing (in steps of 0.1 mm).
10. Words for the chest (SeriesDescription, BodyPartExamined) before none, none before another
    region.
11. A lung kernel before others.
12. Most slices; then the lowest series number; then the UID that sorts first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from tf_covid.errors import ScanRefused
from tf_covid.result import QualityFlag
from tf_covid.scan.checks import LEAST_SLICES
from tf_covid.scan.dicom.candidates import Candidate, Look, candidates
from tf_covid.scan.dicom.header import Instance
from tf_covid.scan.dicom.identity import PatientIdentifiers
from tf_covid.scan.dicom.left_out import (
    LeftOut,
    Line,
    counted,
    matrix,
    other_series,
    same_series,
    split_series,
)
from tf_covid.scan.dicom.slices import slices
from tf_covid.scan.dicom.stack import build

_LENGTH_SHARE = 0.8
#: A candidate shows the lungs if it shows at least this share of the lung that another shows.
_LUNG_SHARE = 0.4
#: What words are worth beside the look: bowel gas is taken for lung at times, and BodyPartExamined
#: is often wrong.
_WORDS_WEIGH = {"chest": 2.0, "": 1.0, "elsewhere": 0.5}
#: Most candidates that are looked at; the first ones by the other rules.
_MOST_LOOKS = 12
#: Most candidates that are looked at for what they lack, before the best of them is refused.
_MOST_CHECKED = 50
#: Refusals of a stack that images elsewhere may be the reason of.
_BROKEN = frozenset(("missing_slices", "irregular_spacing", "single_slice"))
_REGIONS = {"chest": 0, "": 1, "elsewhere": 2}


def choose(
    instances: Sequence[Instance], gap_mm: float, look: Look | None = None
) -> tuple[Candidate, str, tuple[QualityFlag, ...]]:
    """The stack to read, why, and what was left out.

    Args:
        instances: The images of one study.
        gap_mm: Widest gap that is repaired, in mm.
        look: How much lung a candidate shows, in ml, or None; asked only where there are several.

    Raises:
        ScanRefused: `not_ct`, `projection`, `no_slices`, or what is wrong with the best candidate.
    """
    slice_frames, others = slices(instances)
    results = candidates(slice_frames, gap_mm)
    results = _looked_at(results, look)
    ranked, rank = _whole_ones_first(results, others, gap_mm)
    best = ranked[0]
    quality_flags = list(best.quality_flags)
    if best.refusal is not None:
        raise ScanRefused(
            (
                *best.refusal.quality_flags,
                *(flag for flag in quality_flags if flag.level != "error"),
            )
        )
    identifiers = PatientIdentifiers.of(instances)
    if len(ranked) > 1:
        text = "; ".join(candidate.describe(identifiers) for candidate in ranked[:10])
        quality_flags.append(
            QualityFlag(
                "series_candidates",
                "info",
                f"{len(ranked)} stacks, best first: {text}.",
                len(ranked),
            )
        )
    if unrelated := [one for one in others if one.instance.series_uid not in best.series]:
        text = f"{len(unrelated)} images of other series are no CT slices: {counted(unrelated)}."
        quality_flags.append(QualityFlag("other_images", "info", text, len(unrelated)))
    return best, _because(ranked, rank, identifiers), tuple(quality_flags)


def _whole_ones_first(
    stacks: Sequence[Candidate], others: Sequence[LeftOut], gap_mm: float
) -> tuple[list[Candidate], Callable[[Candidate], tuple[float | str, ...]]]:
    """The candidates by the written rules, the best first.

    The first one was looked at for what it lacks.
    """
    now = list(stacks)
    checked: set[int] = set()
    while True:
        rank = _rank(now)
        order = sorted(range(len(now)), key=lambda number: rank(now[number]))
        first = order[0]
        if first in checked or len(checked) >= _MOST_CHECKED:
            return [now[number] for number in order], rank
        now[first] = _whole(stacks[first], stacks, others, gap_mm)
        checked.add(first)


def _whole(
    candidate: Candidate, stacks: Sequence[Candidate], others: Sequence[LeftOut], gap_mm: float
) -> Candidate:
    """The candidate with what is left out of its series; without its stack where that lacks it."""
    series = candidate.series
    mine = [one for one in others if one.instance.series_uid in series] + list(candidate.apart)
    foreign = [one for one in others if one.instance.series_uid not in series]
    for other in stacks:
        if other is candidate:
            continue
        reason = _difference(candidate, other)
        for slice_frame in other.slice_frames:
            where = mine if slice_frame.instance.series_uid in series else foreign
            where.append(LeftOut(slice_frame.instance, slice_frame.frame, reason))
        mine += [one for one in other.apart if one.instance.series_uid in series]
    line = Line.of(candidate.stack, candidate.slice_frames) if candidate.stack else None
    said = same_series(line, mine, len(candidate.slice_frames))
    said += other_series(line, foreign) if line else _split(candidate, stacks, gap_mm)
    if any(flag.level == "error" for flag in said):
        return replace(candidate, stack=None, refusal=ScanRefused(said))
    if said and candidate.refusal and candidate.refusal.quality_flags[0].code in _BROKEN:
        # Uneven or with holes, because images of the series are left out: the refusal names them.
        because = tuple(replace(flag, level="error") for flag in said)
        return replace(candidate, refusal=ScanRefused((*candidate.refusal.quality_flags, *because)))
    return replace(candidate, quality_flags=candidate.quality_flags + said)


def _split(
    candidate: Candidate, stacks: Sequence[Candidate], gap_mm: float
) -> tuple[QualityFlag, ...]:
    """An error where slices form a whole stack only together with those of other series."""
    codes = {flag.code for flag in candidate.refusal.quality_flags} if candidate.refusal else set()
    if not codes & _BROKEN:
        return ()
    first = candidate.slice_frames[0]
    kind = (matrix(first.instance, first.frame), first.frame.thickness)
    more = [
        slice_frame
        for other in stacks
        if other is not candidate
        and not _difference(candidate, other).endswith(("Kernel", "Patient"))
        for slice_frame in other.slice_frames
        if (matrix(slice_frame.instance, slice_frame.frame), slice_frame.frame.thickness) == kind
    ]
    series = {slice_frame.instance.series_uid for slice_frame in more} - candidate.series
    if not series:
        return ()
    try:
        stack = build([*candidate.slice_frames, *more], gap_mm)
    except ScanRefused:
        return ()
    numbers = [
        slice_group[0].instance.number
        for slice_group in stack.slice_groups
        if len(slice_group) == 1
    ]
    rising = all(a < b for a, b in pairwise(numbers)) or all(a > b for a, b in pairwise(numbers))
    return (
        (split_series(len(more), len(series)),)
        if rising and len(numbers) == len(stack.slice_groups)
        else ()
    )


def _difference(candidate: Candidate, other: Candidate) -> str:
    """Why the frames of one candidate are no slices of another, as a phrase after a count."""
    if candidate.kernel.upper() != other.kernel.upper():
        return "with another ConvolutionKernel"
    mine, theirs = (
        candidate.slice_frames[0].frame.orientation,
        other.slice_frames[0].frame.orientation,
    )
    if len(mine) != len(theirs) or any(
        abs(a - b) >= 1e-3 for a, b in zip(mine, theirs, strict=True)
    ):
        return "with another ImageOrientationPatient"
    return "with another AcquisitionNumber"


def _looked_at(stacks: Sequence[Candidate], look: Look | None) -> list[Candidate]:
    """The candidates, each with whether it shows something else than the lungs."""
    large = [one for one in stacks if len(one.slice_frames) >= LEAST_SLICES]
    seen: dict[int, float] = {}
    if look is not None and len(large) > 1:
        for one in sorted(large, key=_rank(stacks))[:_MOST_LOOKS]:
            ml = look(one)
            if ml is not None:
                seen[id(one)] = ml
    worth = {id(one): seen[id(one)] * _WORDS_WEIGH[one.region] for one in large if id(one) in seen}
    largest = max(worth.values(), default=0.0)
    chest = any(one.region == "chest" for one in large)

    def judged(one: Candidate) -> Candidate:
        ml = seen.get(id(one))
        if largest > 0:
            return replace(
                one, lung_ml=ml, elsewhere=worth.get(id(one), largest) < _LUNG_SHARE * largest
            )
        return replace(one, lung_ml=ml, elsewhere=chest and one.region == "elsewhere")

    return [judged(one) for one in stacks]


@dataclass(frozen=True)
class _Field:
    """What a candidate is compared with: the others of its study.

    Args:
        longest_mm: Length of the longest axial candidate that shows the lungs, in mm.
        broken: Whether no candidate of enough slices can be stacked.
    """

    longest_mm: float
    broken: bool


@dataclass(frozen=True)
class _Rule:
    """One of the written rules, in the order of `RULES`.

    Args:
        reason: Why the chosen candidate is preferred where this rule decides.
        key: What is compared; the smallest comes first.
    """

    reason: str
    key: Callable[[Candidate, _Field], float | str]


def _covers(one: Candidate, field: _Field) -> bool:
    long = one.length_mm >= _LENGTH_SHARE * field.longest_mm
    return long and len(one.slice_frames) >= LEAST_SLICES


def _spacing(one: Candidate, field: _Field) -> float:
    return round(one.stack.spacing_mm, 1) if one.stack else -len(one.slice_frames)


#: Order and reasons: the first rule by which two candidates differ decides between them.
RULES = (
    _Rule("it shows the lungs", lambda one, field: one.elsewhere),
    # A few slices are no answer for a study whose chest cannot be stacked: then it is said what is
    # wrong with that.
    _Rule("it is larger", lambda one, field: field.broken and len(one.slice_frames) < LEAST_SLICES),
    _Rule("it can be stacked", lambda one, field: one.stack is None),
    _Rule("its slices are no slabs", lambda one, field: not one.plain),
    _Rule("it is axial", lambda one, field: not one.axial),
    _Rule("it covers enough", lambda one, field: not _covers(one, field)),
    _Rule("it is original", lambda one, field: not one.original),
    _Rule("it is the thinnest", _spacing),
    _Rule("its words name the chest", lambda one, field: _REGIONS[one.region]),
    _Rule("it has a lung kernel", lambda one, field: not one.lung_kernel),
    _Rule("it has the most slices", lambda one, field: -len(one.slice_frames)),
    _Rule("it has the lowest series number", lambda one, field: one.series_number),
    _Rule("its UID sorts first", lambda one, field: one.series_uid),
)


def _rank(stacks: Sequence[Candidate]) -> Callable[[Candidate], tuple[float | str, ...]]:
    """The sort key of the written rules, the best candidate first."""
    large = [
        one
        for one in stacks
        if one.axial and not one.elsewhere and len(one.slice_frames) >= LEAST_SLICES
    ]
    field = _Field(
        longest_mm=max((one.length_mm for one in large), default=0.0),
        broken=not any(one.stack for one in stacks if len(one.slice_frames) >= LEAST_SLICES),
    )
    return lambda candidate: tuple(rule.key(candidate, field) for rule in RULES)


def _because(
    ranked: Sequence[Candidate],
    rank: Callable[[Candidate], tuple[float | str, ...]],
    identifiers: PatientIdentifiers,
) -> str:
    best = ranked[0]
    if len(ranked) == 1:
        return f"The only stack of CT slices: {best.describe(identifiers)}."
    mine, next_best = rank(best), rank(ranked[1])
    decided = next(
        (rule.reason for rule, a, b in zip(RULES, mine, next_best, strict=True) if a != b),
        RULES[-1].reason,
    )
    return f"Of {len(ranked)} stacks this one, because {decided}: {best.describe(identifiers)}."
