"""The whole road, top to bottom, on one screen: a scan in, a result out."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tf_covid import severity
from tf_covid.errors import ScanRefused
from tf_covid.lungs import LungReading, read_lungs
from tf_covid.result import (
    Attention,
    Covid,
    Level,
    Maps,
    ModelAnswer,
    QualityFlag,
    Result,
    Series,
    Severity,
)
from tf_covid.scan import Scan, lung_flags, user_lungs, volume_flags
from tf_covid.scan.checks import refusal

if TYPE_CHECKING:
    from tf_covid.local import Answer, Segmentation

#: Lung volumes outside of this range, in ml, are possible but rare in adults; they are pointed out.
#: What no chest has (`scan.checks.POSSIBLE_VOLUME_ML`) is refused.
USUAL_VOLUME_ML = (1500.0, 9000.0)

#: A CT score that misses the answered class by this many whole points or fewer is for information
#: only: two outputs of one network, whose score errs by one to two points in the mean, then say the
#: same as well as they can.
NEAR_POINTS = 2


class Models(Protocol):
    """What answers: `local.LocalModels`, or `serving.client.RemoteModels`; see there for each part."""

    @property
    def task(self) -> str:
        """Severity or covid."""

    @property
    def finds_disease(self) -> bool:
        """Whether `segment` gives diseased lung."""

    @property
    def slice_minimum(self) -> float:
        """The least share of a slice that must be lung."""

    @property
    def endpoint(self) -> str:
        """The explained layer."""

    @property
    def versions(self) -> dict[str, str]:
        """Versions that have a say in the answer, beside those of this process."""

    def segment(self, hu: np.ndarray) -> Segmentation:
        """The lungs of one scan."""

    def from_mask(self, mask: np.ndarray) -> Segmentation:
        """A user's lungs."""

    def classify(self, hu: np.ndarray, probability: np.ndarray) -> list[Answer]:
        """Every network's answer about one scan."""

    def attend(
        self, answers: Sequence[Answer], lungs: np.ndarray, target: str, number: int, method: str
    ) -> tuple[np.ndarray, float | None]:
        """The attention map on the scan."""


def stratify(
    scan: Scan,
    model: str | Path | Sequence[str | Path] | Models = "severity-i3d",
    *,
    lungs: np.ndarray | str | os.PathLike[str] | None = None,
    lungs_labels: Sequence[int] = (),
    precision: str = "float32",
    attention: str = "gradcam",
    attention_target: str = "severity",
    identifiers: bool = False,
) -> Result:
    """Severity (or covid) of one chest CT, with its evidence.

    Args:
        scan: From `tf_covid.read`.
        model: A shipped name, a `.keras` file, several of one task (the mean of their
            probabilities), or `LocalModels`, which are loaded once for many scans; or
            `RemoteModels`, which a server has.
        lungs: The user's own mask instead of the U-Net's: a file on the grid of the scan, or an
            array (D, H, W) in canonical order; 0 outside and one value inside. Diseased lung within
            it is still the U-Net's, if it finds any.
        lungs_labels: The values of `lungs` that stand for lung, where it holds labels.
        precision: "float32" or "bfloat16", for models given by name or file.
        attention: "gradcam", "gradcam++", "layercam" or "none".
        attention_target: "severity" (the expected class index) or "class" (the predicted class).
        identifiers: Put the header's identifiers into the result.

    Returns:
        A result; its status is "refused" where the lungs do not allow an answer.

    Raises:
        ModelError: If a model is missing, damaged or foreign.
        ScanRefused: If `lungs` is no mask of this scan's lungs, see `scan.user_lungs`; `scan_type`
            if `scan` is none.
    """
    _check_scan(scan)
    mask, doubts = _own_lungs(scan, lungs, lungs_labels)
    models = _models(model, precision)
    start = time.perf_counter()
    found = models.segment(scan.hu) if mask is None else models.from_mask(mask)
    try:
        answers = _gate_then_classify(scan, models, found.probability)
    except ScanRefused as refusal:
        return refused(scan.case, refusal.quality_flags)
    keep = answers[0].keep
    measuring = time.perf_counter()
    # A user's mask tells where the lungs are, not what is diseased within them.
    disease = (
        models.segment(scan.hu).disease
        if mask is not None and models.finds_disease
        else found.disease
    )
    reading = read_lungs(scan.hu, found.probability, keep, scan.spacing_mm, mask, disease)
    if impossible := volume_flags(reading.lungs.volume_ml):
        return refused(scan.case, [*scan.quality_flags, *impossible])
    timings = {"lungs": found.seconds + time.perf_counter() - measuring}
    timings["classify"] = sum(answer.seconds for answer in answers)

    probabilities, score = _mean_answer(answers)
    number = int(np.argmax(probabilities))
    looking = time.perf_counter()
    volume, looked = _attend(models, answers, reading.labels, attention, attention_target, number)
    timings["attention"] = time.perf_counter() - looking
    timings["total"] = time.perf_counter() - start

    quality_flags = [*scan.quality_flags, *doubts, *_flags(scan, models, reading, number, score)]
    if volume is not None and not volume.any():
        quality_flags.append(
            QualityFlag(
                "attention_empty",
                "info",
                "Nothing in the scan raises the target: the map is empty.",
            )
        )
    return Result(
        case=scan.case,
        status="repaired" if scan.repaired else "pass",
        quality_flags=tuple(quality_flags),
        versions=versions() | models.versions,
        series=_series(scan, identifiers),
        lungs=reading.lungs,
        severity=_severity(number, probabilities, score) if models.task == "severity" else None,
        covid=(
            Covid(float(probabilities[1]), bool(probabilities[1] >= 0.5))
            if models.task == "covid"
            else None
        ),
        attention=looked,
        models=tuple(_model_answer(answer) for answer in answers),
        timings_s=timings,
        maps=Maps(lungs=reading.labels, attention=volume, kept=keep),
    )


def refused(case: str, quality_flags: Sequence[QualityFlag]) -> Result:
    """The result of a scan that cannot be answered."""
    return Result(
        case=case, status="refused", quality_flags=tuple(quality_flags), versions=versions()
    )


def versions() -> dict[str, str]:
    """Versions of what has a say in the answer."""
    return {
        name: metadata.version(name)
        for name in ("tf-covid", "tensorflow", "keras", "tf-keras-vis", "numpy")
    }


def _check_scan(scan: Any) -> None:
    if not isinstance(scan, Scan):
        message = (
            f"A {type(scan).__name__} is no scan: `tf_covid.read` makes one of a file or folder."
        )
        raise refusal("scan_type", message)
    if scan.hu.dtype != np.int16 or scan.hu.ndim != 3 or not scan.hu.size:
        message = (
            f"A scan holds int16 HU (D, H, W), not {scan.hu.dtype.name} of {scan.hu.ndim} axes."
        )
        raise refusal("scan_type", message)


def _own_lungs(
    scan: Scan, lungs: np.ndarray | str | os.PathLike[str] | None, labels: Sequence[int]
) -> tuple[np.ndarray | None, tuple[QualityFlag, ...]]:
    """The user's own mask, if there is one, and what is doubtful about it."""
    if lungs is not None:
        return user_lungs(lungs, scan, labels)
    if len(labels):
        raise refusal("mask_labels", "Labels of the lungs were named, but no mask that holds them.")
    return None, ()


def _models(model: str | Path | Sequence[str | Path] | Models, precision: str) -> Models:
    if not isinstance(model, (str, Path, Sequence)):
        return model
    from tf_covid.local import LocalModels

    return LocalModels(
        [model] if isinstance(model, (str, Path)) else list(model), precision=precision
    )


def gate(
    models: Models, probability: np.ndarray, spacing_mm: tuple[float, float, float]
) -> Sequence[QualityFlag]:
    """What the lungs of a scan do not allow; with an "error" among it the scan is refused.

    Args:
        models: Their slice rule counts.
        probability: float32 (D, h, w), lung. The graph's own mask decides, as it does behind a
            server: no cleaning before the slice rule.
        spacing_mm: Voxel size along (D, H, W).
    """
    share = (probability > 0.5).mean(axis=(1, 2))
    return lung_flags(share, min_fraction=models.slice_minimum, spacing_mm=spacing_mm)


def refuses(quality_flags: Sequence[QualityFlag]) -> bool:
    """Whether one of the quality flags is an error."""
    return any(flag.level == "error" for flag in quality_flags)


def _gate_then_classify(scan: Scan, models: Models, probability: np.ndarray) -> list[Answer]:
    quality_flags = gate(models, probability, scan.spacing_mm)
    if refuses(quality_flags):
        raise ScanRefused([*scan.quality_flags, *quality_flags])
    return models.classify(scan.hu, probability)


def _mean_answer(answers: Sequence[Answer]) -> tuple[np.ndarray, float | None]:
    """Mean probabilities, and the mean CT score of the networks that have one."""
    scores = [answer.ct_score for answer in answers if answer.ct_score is not None]
    return np.mean([answer.probabilities for answer in answers], axis=0), (
        float(np.mean(scores)) if scores else None
    )


def _attend(
    models: Models,
    answers: Sequence[Answer],
    lungs: np.ndarray,
    method: str,
    target: str,
    number: int,
) -> tuple[np.ndarray | None, Attention | None]:
    if method == "none":
        return None, None
    volume, fraction = models.attend(answers, lungs, target, number, method)
    sums = [int(plane.sum(dtype=np.int64)) for plane in volume]
    areas = [max(int(np.count_nonzero(plane)), 1) for plane in lungs]
    per_slice = tuple(total / 255.0 / area for total, area in zip(sums, areas, strict=True))
    return volume, Attention(method, target, models.endpoint, fraction, per_slice)


def _flags(
    scan: Scan, models: Models, reading: LungReading, number: int, score: float | None
) -> list[QualityFlag]:
    # Of the cleaned mask: a table's tube in the last slice does not cut a lung off. Too little lung
    # was refused before.
    limits = lung_flags(
        reading.share, min_fraction=models.slice_minimum, spacing_mm=scan.spacing_mm
    )
    found = [flag for flag in limits if flag.level != "error"]
    lungs = reading.lungs
    low, high = USUAL_VOLUME_ML
    if not low <= lungs.volume_ml <= high:
        message = (
            f"The lungs measure {lungs.volume_ml:.0f} ml; adults' mostly lie within"
            f" {low:.0f}–{high:.0f} ml."
        )
        found.append(QualityFlag("unusual_lung_volume", "warning", message, round(lungs.volume_ml)))
    if min(lungs.left_ml, lungs.right_ml) < 0.1 * lungs.volume_ml:
        side = "left" if lungs.left_ml < lungs.right_ml else "right"
        found.append(
            QualityFlag(
                "one_lung", "warning", f"Hardly any {side} lung was found; look at the mask.", side
            )
        )
    if models.task == "severity" and score is not None:
        found += _mismatch(number, score)
    return found


def _mismatch(number: int, score: float) -> list[QualityFlag]:
    """The flag of a CT score that belongs to another class than the probabilities."""
    outside = severity.points_outside(score, number)
    if not outside:
        return []
    other, own = severity.LABELS[severity.severity_class(score)], severity.LABELS[number]
    message = (
        f"The CT score of {score:.1f} belongs to the class “{other}”, the probabilities to “{own}”."
    )
    level: Level = "info" if outside <= NEAR_POINTS else "warning"
    return [QualityFlag("score_class_mismatch", level, message, round(score, 1))]


def _series(scan: Scan, identifiers: bool) -> Series:
    return Series(
        slices=scan.shape[0],
        shape=scan.shape,
        spacing_mm=scan.spacing_mm,
        interpolated=scan.interpolated,
        chosen_because=scan.chosen_because,
        identifiers=dict(scan.identifiers) if identifiers else None,
    )


def _severity(number: int, probabilities: np.ndarray, score: float | None) -> Severity:
    return Severity(
        number, severity.LABELS[number], tuple(float(value) for value in probabilities), score
    )


def _model_answer(answer: Answer) -> ModelAnswer:
    model = answer.model
    probabilities = tuple(float(value) for value in answer.probabilities)
    return ModelAnswer(
        model.name, model.sha256, model.contract.note, probabilities, answer.ct_score
    )
