"""Which stack of a study is read: written rules, so that the same folder always gives the same answer.

1. Only CT images with one sample: no localizers, no projections (MIP and the like), no screen captures, no maps
   whose rescale type is not HU.
2. Frames that share series, kernel, orientation, matrix and pixel spacing are one candidate.
3. Stacks that can be built (no tilt, no wide gap, no gap at all unless axial, even spacing) before those that cannot.
4. Axial before others.
5. Enough of them: at least 8 slices, and at least 80 % of the length of the longest such stack.
6. Original before derived.
7. The thinnest spacing (in steps of 0.1 mm).
8. A lung kernel before others.
9. Most slices; then the lowest series number and acquisition.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tf_covid.errors import ScanRefused
from tf_covid.result import QualityFlag
from tf_covid.scan.checks import LEAST_SLICES, refusal
from tf_covid.scan.dicom.header import Frame, Instance
from tf_covid.scan.dicom.identity import Secrets
from tf_covid.scan.dicom.stack import Place, Stack, build
from tf_covid.scan.grid import orient

#: CT Image, Enhanced CT, Legacy Converted Enhanced CT.
CT_CLASSES = frozenset({"1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"})
#: Values of ImageType or FrameType that say: not a slice of the patient.
_PROJECTIONS = re.compile(
    r"LOCALIZER|SCOUT|TOPOGRAM|\bM(AX|IN)?_?IP\b|MINIP|MAXIP|PROJECTION|VOLUME_RENDER|\bVRT?\b|SCREEN|REPORT|DOSE|SSD"
)
_HU_TYPES = ("", "HU", "US", "HU_MOD")
#: Edge-enhancing kernels as the makers name them: Siemens B50–B80, Bl/Br/Qr 5x–7x; GE LUNG, BONE, CHST, EDGE;
#: Philips YA–YD, L, E; Canon and Toshiba FC30–35, FC50–59, FC80–86; United Imaging and others "LUNG".
_LUNG_KERNELS = re.compile(
    r"LUNG|BONE|CHST|EDGE|^B[LR]?V?[5-8]\d|^[IQ]R?[5-7]\d|^FC(3[0-5]|5\d|8[0-6])|^Y[A-D]$|^[LE]$", re.IGNORECASE
)
_LENGTH_SHARE = 0.8
#: Share of a series' frames that must agree in matrix and pixel spacing; the rest is left out with a warning.
_AGREE_SHARE = 0.9


@dataclass(frozen=True)
class Candidate:
    """Frames that may form one stack, with the stack or the refusal that came of them."""

    series_uid: str
    series_number: int
    kernel: str
    places: tuple[Place, ...]
    stack: Stack | None
    refusal: ScanRefused | None
    axial: bool
    original: bool
    quality_flags: tuple[QualityFlag, ...] = ()

    @property
    def length_mm(self) -> float:
        """From the first to the last slice."""
        return self.stack.spacing_mm * (len(self.stack.slots) - 1) if self.stack else 0.0

    @property
    def lung_kernel(self) -> bool:
        """Whether the kernel is one for lungs, by its maker's name."""
        return bool(_LUNG_KERNELS.search(self.kernel))

    def describe(self, secrets: Secrets) -> str:
        """Counts, spacing and kernel; nothing from the header that could hold a name."""
        if self.stack is None:
            return f"{len(self.places)} slices that form no stack"
        kind = "axial" if self.axial else "not axial"
        kernel = _kernel_text(self, secrets)
        return f"{len(self.stack.slots)} {kind} slices, {self.stack.spacing_mm:.2f} mm apart, {kernel}"


def choose(instances: Sequence[Instance], gap_mm: float) -> tuple[Candidate, str, tuple[QualityFlag, ...]]:
    """The stack to read, why, and what was left out.

    Raises:
        ScanRefused: `not_ct`, `no_axial_ct`, or what is wrong with the best candidate.
    """
    places = _slices(instances)
    candidates = _candidates(places, gap_mm)
    longest = max((c.length_mm for c in candidates if c.axial and len(c.places) >= LEAST_SLICES), default=0.0)

    def rank(candidate: Candidate) -> tuple[object, ...]:
        enough = len(candidate.places) >= LEAST_SLICES and candidate.length_mm >= _LENGTH_SHARE * longest
        spacing = round(candidate.stack.spacing_mm, 1) if candidate.stack else 0.0
        return (
            candidate.stack is None,
            not candidate.axial,
            not enough,
            not candidate.original,
            spacing if candidate.stack else -len(candidate.places),
            not candidate.lung_kernel,
            -len(candidate.places),
            candidate.series_number,
            candidate.series_uid,
        )

    ranked = sorted(candidates, key=rank)
    best = ranked[0]
    if best.refusal is not None:
        raise best.refusal
    quality_flags = list(best.quality_flags)
    secrets = Secrets.of(instances)
    if len(ranked) > 1:
        text = "; ".join(candidate.describe(secrets) for candidate in ranked[:10])
        quality_flags.append(
            QualityFlag("series_candidates", "info", f"{len(ranked)} stacks, best first: {text}.", len(ranked))
        )
    return best, _because(ranked, rank, secrets), tuple(quality_flags)


def _slices(instances: Iterable[Instance]) -> list[Place]:
    """The frames that are CT slices; what else there is, decides the refusal."""
    instances = list(instances)
    ct = [instance for instance in instances if instance.modality == "CT" and instance.sop_class in CT_CLASSES]
    if not ct:
        kinds = Counter(
            instance.modality if re.fullmatch(r"[A-Z]{2,4}", instance.modality) else "unknown" for instance in instances
        )
        text = ", ".join(f"{count} of modality {kind}" for kind, count in sorted(kinds.items()))
        raise refusal("not_ct", f"No CT images: {text} (by Modality and SOP class).", text)
    places = [
        Place(instance, frame)
        for instance in ct
        for frame in instance.frames
        if instance.samples == 1
        and frame.rescale_type in _HU_TYPES
        and not _PROJECTIONS.search(" ".join(frame.image_type))
    ]
    if not places:
        message = f"{len(ct)} CT images, but no slices: localizers, projections, captures, maps, frames without place."
        raise refusal("no_slices", message, len(ct))
    return places


def _candidates(places: Sequence[Place], gap_mm: float) -> list[Candidate]:
    series: dict[tuple[str, str], list[Place]] = {}
    for place in places:
        series.setdefault((place.instance.series_uid, place.frame.kernel), []).append(place)
    found = []
    for same_series in series.values():
        for same_direction in _by_orientation(same_series):
            found += [_candidate(phase, gap_mm) for phase in _by_acquisition(same_direction)]
    return found


def _by_acquisition(places: Sequence[Place]) -> list[list[Place]]:
    """Phases that one series holds on top of each other, such as inspiration and expiration, apart.

    Acquisitions that follow each other along the table stay together.
    """
    phases: dict[str, list[Place]] = {}
    for place in places:
        phases.setdefault(place.instance.acquisition, []).append(place)
    spots = [{place.frame.position for place in phase} for phase in phases.values()]
    together = set().union(*spots)
    doubled = sum(len(spot) for spot in spots) - len(together)
    return list(phases.values()) if doubled > len(together) / 2 else [list(places)]


def _by_orientation(places: Sequence[Place]) -> list[list[Place]]:
    """Groups whose direction cosines agree within 1e-3: 0.4 mm at the edge of a chest."""
    groups: list[tuple[np.ndarray | None, list[Place]]] = []
    for place in places:
        mine = np.array(place.frame.orientation) if len(place.frame.orientation) == 6 else None
        for theirs, members in groups:
            if (mine is None and theirs is None) or (
                mine is not None and theirs is not None and np.abs(mine - theirs).max() < 1e-3
            ):
                members.append(place)
                break
        else:
            groups.append((mine, [place]))
    if len(groups) > 3 and len(groups) > len(places) / 4:
        # Every slice its own direction: that is no set of stacks, it is one broken series.
        return [list(places)]
    return [members for _, members in groups]


def _matrix(place: Place) -> tuple[object, ...]:
    spacing = tuple(round(size, 4) for size in place.frame.spacing)
    return place.instance.rows, place.instance.columns, spacing


def _candidate(places: Sequence[Place], gap_mm: float) -> Candidate:
    """One candidate of frames that nearly all agree in matrix and pixel spacing; else it carries a refusal."""
    kinds = Counter(_matrix(place) for place in places)
    usual, count = kinds.most_common(1)[0]
    kept = [place for place in places if _matrix(place) == usual]
    first, others = kept[0], len(places) - count
    quality_flags: tuple[QualityFlag, ...] = ()
    stack, refused, axial = None, None, False
    message = f"{others} of {len(places)} images of the series have another matrix or pixel spacing"
    try:
        if not _parallel(kept):
            raise refusal("mixed_geometry", "The images of the series lie in many different directions.", len(kept))
        if count < _AGREE_SHARE * len(places):
            raise refusal("mixed_geometry", f"{message}.", others)
        if others:
            quality_flags = (QualityFlag("mixed_geometry", "warning", f"{message}; they were left out.", others),)
        if not all(_has_rescale(place.frame) for place in kept):
            raise refusal(
                "bad_header", "RescaleSlope (0028,1053) or RescaleIntercept (0028,1052) is zero or no number."
            )
        built = build(kept, gap_mm)
        shape = (first.instance.columns, first.instance.rows, len(built.slots))
        axial = orient(built.affine_ras, shape)[0].axes[2] == 0
        if built.missing and not axial:
            # What is made up is told as axial slices; here it would be a part of every one of them.
            text = f"{len(built.missing)} slice(s) are missing, and only gaps between axial slices are repaired."
            raise refusal("missing_slices", text, len(built.missing))
        stack = built
        quality_flags += stack.quality_flags
    except ScanRefused as error:
        refused = error
    return Candidate(
        series_uid=first.instance.series_uid,
        series_number=first.instance.series_number,
        kernel=first.frame.kernel,
        places=tuple(kept),
        stack=stack,
        refusal=refused,
        axial=axial,
        original=first.frame.image_type[:1] == ("ORIGINAL",),
        quality_flags=quality_flags,
    )


def _has_rescale(frame: Frame) -> bool:
    return bool(np.isfinite((frame.slope, frame.intercept)).all()) and frame.slope != 0


def _parallel(places: Sequence[Place]) -> bool:
    first = places[0].frame.orientation
    return all(
        len(place.frame.orientation) == len(first) and np.allclose(place.frame.orientation, first, rtol=0, atol=1e-3)
        for place in places
    )


def _kernel_text(candidate: Candidate, secrets: Secrets) -> str:
    """The kernel if it looks like one: the field is free text and could hold anything."""
    usual = re.fullmatch(r"[A-Za-z]{0,6}[0-9]{0,3}[A-Za-z]{0,4}[+-]?", candidate.kernel or "-")
    if usual and not secrets.told(candidate.kernel):
        return f"kernel {candidate.kernel}" if candidate.kernel else "kernel unknown"
    return "lung kernel" if candidate.lung_kernel else "another kernel"


_REASONS = (
    "it can be stacked", "it is axial", "it covers enough", "it is original", "it is the thinnest",
    "it has a lung kernel", "it has the most slices", "it has the lowest series number", "its UID sorts first",
)  # fmt: skip


def _because(ranked: Sequence[Candidate], rank: Callable[[Candidate], tuple[object, ...]], secrets: Secrets) -> str:
    best = ranked[0]
    if len(ranked) == 1:
        return f"The only stack of CT slices: {best.describe(secrets)}."
    mine, next_best = rank(best), rank(ranked[1])
    decided = next((reason for reason, a, b in zip(_REASONS, mine, next_best, strict=True) if a != b), _REASONS[-1])
    return f"Of {len(ranked)} stacks this one, because {decided}: {best.describe(secrets)}."
