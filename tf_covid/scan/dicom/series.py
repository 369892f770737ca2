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
12. Most slices; then the lowest series number and acquisition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from tf_covid.errors import ScanRefused
from tf_covid.result import QualityFlag
from tf_covid.scan.checks import LEAST_SLICES
from tf_covid.scan.dicom.candidates import Candidate, Look, candidates
from tf_covid.scan.dicom.header import Instance
from tf_covid.scan.dicom.identity import Secrets
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
    places, others = slices(instances)
    found = candidates(places, gap_mm)
    found = _looked_at(found, look)
    ranked, rank = _whole_ones_first(found, others, gap_mm)
    best = ranked[0]
    quality_flags = list(best.quality_flags)
    if best.refusal is not None:
        raise ScanRefused(
            (
                *best.refusal.quality_flags,
                *(flag for flag in quality_flags if flag.level != "error"),
            )
        )
    secrets = Secrets.of(instances)
    if len(ranked) > 1:
        text = "; ".join(candidate.describe(secrets) for candidate in ranked[:10])
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
    return best, _because(ranked, rank, secrets), tuple(quality_flags)


def _whole_ones_first(
    found: Sequence[Candidate], others: Sequence[LeftOut], gap_mm: float
) -> tuple[list[Candidate], Callable[[Candidate], tuple[object, ...]]]:
    """The candidates by the written rules, the best first.

    The first one was looked at for what it lacks.
    """
    now = list(found)
    checked: set[int] = set()
    while True:
        rank = _rank(now)
        order = sorted(range(len(now)), key=lambda number: rank(now[number]))
        first = order[0]
        if first in checked or len(checked) >= _MOST_CHECKED:
            return [now[number] for number in order], rank
        now[first] = _whole(found[first], found, others, gap_mm)
        checked.add(first)


def _whole(
    candidate: Candidate, found: Sequence[Candidate], others: Sequence[LeftOut], gap_mm: float
) -> Candidate:
    """The candidate with what is left out of its series; without its stack where that lacks it."""
    series = candidate.series
    mine = [one for one in others if one.instance.series_uid in series] + list(candidate.apart)
    foreign = [one for one in others if one.instance.series_uid not in series]
    for other in found:
        if other is candidate:
            continue
        reason = _difference(candidate, other)
        for place in other.places:
            where = mine if place.instance.series_uid in series else foreign
            where.append(LeftOut(place.instance, place.frame, reason))
        mine += [one for one in other.apart if one.instance.series_uid in series]
    line = Line.of(candidate.stack, candidate.places) if candidate.stack else None
    said = same_series(line, mine, len(candidate.places))
    said += other_series(line, foreign) if line else _split(candidate, found, gap_mm)
    if any(flag.level == "error" for flag in said):
        return replace(candidate, stack=None, refusal=ScanRefused(said))
    if said and candidate.refusal and candidate.refusal.quality_flags[0].code in _BROKEN:
        # Uneven or with holes, because images of the series are left out: the refusal names them.
        because = tuple(replace(flag, level="error") for flag in said)
        return replace(candidate, refusal=ScanRefused((*candidate.refusal.quality_flags, *because)))
    return replace(candidate, quality_flags=candidate.quality_flags + said)


def _split(
    candidate: Candidate, found: Sequence[Candidate], gap_mm: float
) -> tuple[QualityFlag, ...]:
    """An error where slices form a whole stack only together with those of other series."""
    codes = {flag.code for flag in candidate.refusal.quality_flags} if candidate.refusal else set()
    if not codes & _BROKEN:
        return ()
    first = candidate.places[0]
    kind = (matrix(first.instance, first.frame), first.frame.thickness)
    more = [
        place
        for other in found
        if other is not candidate
        and not _difference(candidate, other).endswith(("Kernel", "Patient"))
        for place in other.places
        if (matrix(place.instance, place.frame), place.frame.thickness) == kind
    ]
    series = {place.instance.series_uid for place in more} - candidate.series
    if not series:
        return ()
    try:
        stack = build([*candidate.places, *more], gap_mm)
    except ScanRefused:
        return ()
    numbers = [slot[0].instance.number for slot in stack.slots if len(slot) == 1]
    rising = all(a < b for a, b in pairwise(numbers)) or all(a > b for a, b in pairwise(numbers))
    return (
        (split_series(len(more), len(series)),)
        if rising and len(numbers) == len(stack.slots)
        else ()
    )


def _difference(candidate: Candidate, other: Candidate) -> str:
    """Why the frames of one candidate are no slices of another, as a phrase after a count."""
    if candidate.kernel.upper() != other.kernel.upper():
        return "with another ConvolutionKernel"
    mine, theirs = candidate.places[0].frame.orientation, other.places[0].frame.orientation
    if len(mine) != len(theirs) or any(
        abs(a - b) >= 1e-3 for a, b in zip(mine, theirs, strict=True)
    ):
        return "with another ImageOrientationPatient"
    return "with another AcquisitionNumber"


def _looked_at(found: Sequence[Candidate], look: Look | None) -> list[Candidate]:
    """The candidates, each with whether it shows something else than the lungs."""
    large = [one for one in found if len(one.places) >= LEAST_SLICES]
    seen: dict[int, float] = {}
    if look is not None and len(large) > 1:
        for one in sorted(large, key=_rank(found))[:_MOST_LOOKS]:
            ml = look(one)
            if ml is not None:
                seen[id(one)] = ml
    worth = {id(one): seen[id(one)] * _WORDS_WEIGH[one.region] for one in large if id(one) in seen}
    most = max(worth.values(), default=0.0)
    chest = any(one.region == "chest" for one in large)

    def judged(one: Candidate) -> Candidate:
        ml = seen.get(id(one))
        if most > 0:
            return replace(one, lung_ml=ml, elsewhere=worth.get(id(one), most) < _LUNG_SHARE * most)
        return replace(one, lung_ml=ml, elsewhere=chest and one.region == "elsewhere")

    return [judged(one) for one in found]


def _rank(found: Sequence[Candidate]) -> Callable[[Candidate], tuple[object, ...]]:
    """The sort key of the written rules, the best candidate first."""
    large = [
        one for one in found if one.axial and not one.elsewhere and len(one.places) >= LEAST_SLICES
    ]
    longest = max((one.length_mm for one in large), default=0.0)
    # A few slices are no answer for a study whose chest cannot be stacked: then it is said what is
    # wrong with that.
    broken = not any(one.stack for one in found if len(one.places) >= LEAST_SLICES)

    def rank(candidate: Candidate) -> tuple[object, ...]:
        enough = (
            len(candidate.places) >= LEAST_SLICES and candidate.length_mm >= _LENGTH_SHARE * longest
        )
        return (
            candidate.elsewhere,
            broken and len(candidate.places) < LEAST_SLICES,
            candidate.stack is None,
            not candidate.plain,
            not candidate.axial,
            not enough,
            not candidate.original,
            round(candidate.stack.spacing_mm, 1) if candidate.stack else -len(candidate.places),
            _REGIONS[candidate.region],
            not candidate.lung_kernel,
            -len(candidate.places),
            candidate.series_number,
            candidate.series_uid,
        )

    return rank


_REASONS = (
    "it shows the lungs",
    "it is larger",
    "it can be stacked",
    "its slices are no slabs",
    "it is axial",
    "it covers enough",
    "it is original",
    "it is the thinnest",
    "its words name the chest",
    "it has a lung kernel",
    "it has the most slices",
    "it has the lowest series number",
    "its UID sorts first",
)


def _because(
    ranked: Sequence[Candidate], rank: Callable[[Candidate], tuple[object, ...]], secrets: Secrets
) -> str:
    best = ranked[0]
    if len(ranked) == 1:
        return f"The only stack of CT slices: {best.describe(secrets)}."
    mine, next_best = rank(best), rank(ranked[1])
    decided = next(
        (reason for reason, a, b in zip(_REASONS, mine, next_best, strict=True) if a != b),
        _REASONS[-1],
    )
    return f"Of {len(ranked)} stacks this one, because {decided}: {best.describe(secrets)}."
