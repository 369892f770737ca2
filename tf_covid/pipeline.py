"""`stratify`: a scan in, a result out; every stage between them on one screen."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tf_covid import severity
from tf_covid.answer import Answer, Evidence, Segmentation, mean_answer
from tf_covid.errors import ScanRefused
from tf_covid.lobes import ct_score_read
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

#: Lung volumes outside of this range, in ml, are possible but rare in adults; they are pointed out.
#: What no chest has (`scan.checks.POSSIBLE_VOLUME_ML`) is refused.
USUAL_VOLUME_ML = (1500.0, 9000.0)

#: Attention of which less than this share lies within the lungs is pointed out.
MOSTLY_INSIDE = 0.5

#: A CT score that misses the answered class by this many whole points or fewer is for information
#: only: two outputs of one network, whose score errs by one to two points in the mean, then say the
#: same as well as they can.
NEAR_POINTS = 2

#: What each logit of the orientation says, in words: the flip that fits a human better.
FLIPS = ("head to feet", "front to back", "left to right")

#: A flip is pointed out from this mean logit of four views,
ORIENTATION_DOUBTFUL = 0.5

#: and where each lung has this volume, in ml: only then the scan shows enough of a human.
LEAST_LUNG_ML = 400.0


class Models(Protocol[Evidence]):
    """What answers: `local.LocalModels` in this process, or `client.remote.RemoteModels`."""

    @property
    def task(self) -> str:
        """Task of all networks: "severity" or "covid"."""

    @property
    def finds_disease(self) -> bool:
        """Whether `segment` gives diseased lung."""

    @property
    def finds_lobes(self) -> bool:
        """Whether `segment` gives lobes."""

    @property
    def other_lungs(self) -> bool:
        """Whether a network answers behind other lung models than it was trained behind."""

    @property
    def slice_minimum(self) -> float:
        """Fraction of a slice that must be lung for the networks to keep it."""

    @property
    def endpoint(self) -> str:
        """Name of the explained layer."""

    @property
    def versions(self) -> dict[str, str]:
        """Versions that decide the answer, beside those of this process."""

    @property
    def weights_sha256(self) -> list[str]:
        """Identities of all weights that decide the answer: networks', then lung models'."""

    @property
    def files_sha256(self) -> list[str]:
        """Hashes of the files of all models, in the same order: known before any is loaded."""

    def segment(self, hu: np.ndarray) -> Segmentation:
        """Find the lungs of one scan, int16 (D, H, W)."""

    def from_mask(self, mask: np.ndarray) -> Segmentation:
        """Bring a user's lung mask, bool (D, H, W), onto the grid of the lung model."""

    def classify(self, hu: np.ndarray, probability: np.ndarray) -> list[Answer[Evidence]]:
        """Every network's answer about one scan, given its lungs, float32 (D, h, w)."""

    def explain(
        self,
        answers: Sequence[Answer[Evidence]],
        lungs: np.ndarray,
        *,
        method: str,
        target: str,
        predicted_class: int,
    ) -> tuple[np.ndarray, float | None]:
        """The attention map, uint8 (D, H, W), and the fraction of it that lay within the lungs."""


class Timings:
    """Seconds that each stage took, in the order in which the stages ended."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Time a block; the blocks of one stage add up."""
        start = time.perf_counter()
        yield
        taken = time.perf_counter() - start
        self.seconds[stage] = self.seconds.get(stage, 0.0) + taken


@dataclass(frozen=True)
class Prediction:
    """What the ensemble answers: the mean of its networks.

    Args:
        predicted_class: Index of the most probable class.
        probabilities: Mean probability of each class, float64 (classes,).
        ct_score: Mean Global CT Score of the networks that have one, 0–25; None where none has.
    """

    predicted_class: int
    probabilities: np.ndarray
    ct_score: float | None


def stratify(
    scan: Scan,
    model: str | Path | Sequence[str | Path] | Models[Any] = "severity-i3d",
    *,
    lungs: np.ndarray | str | os.PathLike[str] | None = None,
    lungs_labels: Sequence[int] = (),
    lungs_model: str | Path | None = None,
    lobes_model: str | Path | None = None,
    allow_other_lungs: bool = False,
    precision: str = "float32",
    attention: str = "gradcam",
    attention_target: str = "severity",
    identifiers: bool = False,
) -> Result:
    """Severity (or covid) of one chest CT, with its evidence; refused without usable lungs.

    Args:
        scan: From `tf_covid.read`.
        model: Shipped name or `.keras` file; of several of one task the mean answers. Or `Models`.
        lungs: Your own mask (D, H, W) or its file, instead of the U-Net's; see `scan.user_lungs`.
        lungs_labels: Values of `lungs` that stand for lung, where it holds labels.
        lungs_model: 2D lung model, for networks given by name or file; None: the one that ships.
        lobes_model: 3D lobe model, likewise, or "none"; None: the one that ships, where the
            networks were trained behind it.
        allow_other_lungs: Answer behind other lung models than the networks were trained behind.
        precision: "float32" or "bfloat16", for models given by name or file.
        attention: "gradcam", "gradcam++", "layercam" or "none".
        attention_target: "severity" (the expected class index) or "class" (the predicted class).
        identifiers: Put the header's identifiers into the result.

    Raises:
        ModelError: If a model is missing, damaged or foreign.
        ScanRefused: If `scan` is not a scan, or `lungs` is not a mask of its lungs.
    """
    _check_scan(scan)
    mask, mask_flags = _user_mask(scan, lungs, lungs_labels)
    models = _models(model, lungs_model, lobes_model, allow_other_lungs, precision)
    timings, target = Timings(), attention_target
    with timings.timed("total"):
        with timings.timed("lungs"):
            results = _segment(scan, models, mask)
        try:
            with timings.timed("classify"):
                answers = _gate_then_classify(scan, models, results.probability)
        except ScanRefused as refusal:
            return refused(scan.case, refusal.quality_flags)
        with timings.timed("lungs"):
            reading = _read_lungs(scan, results, answers[0].keep, mask)
            orientation = results.orientation
            # Volumes of a large scan, which nothing reads any more.
            del results
            _give_back_memory()
        if impossible := volume_flags(reading.lungs.volume_ml):
            return refused(scan.case, [*scan.quality_flags, *impossible])
        prediction = _prediction(answers)
        with timings.timed("attention"):
            volume, looked = _explain(models, answers, reading, prediction, attention, target)
    _give_back_memory()
    flags = _flags(scan, models, reading, prediction, volume, looked) + _model_flags(
        models, orientation, reading
    )
    return Result(
        case=scan.case,
        status="repaired" if scan.repaired else "pass",
        quality_flags=(*scan.quality_flags, *mask_flags, *flags),
        versions=versions() | models.versions,
        series=_series(scan, identifiers),
        lungs=reading.lungs,
        lobes=reading.lobes,
        severity=_severity(prediction, reading) if models.task == "severity" else None,
        covid=_covid(prediction) if models.task == "covid" else None,
        attention=looked,
        models=tuple(_model_answer(answer) for answer in answers),
        answered_at=now(),
        timings_s=timings.seconds,
        maps=Maps(reading.voxels, volume, answers[0].keep),
    )


def _give_back_memory() -> None:
    """What was worked with and is free again goes back to the system: glibc would keep it.

    It does so with blocks of up to 32 MiB; while an answer is written they would lie there beside
    its maps. Elsewhere than under glibc nothing is done.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def refused(case: str, quality_flags: Sequence[QualityFlag]) -> Result:
    """The result of a scan that cannot be answered."""
    return Result(
        case=case,
        status="refused",
        quality_flags=tuple(quality_flags),
        versions=versions(),
        answered_at=now(),
    )


def now() -> str:
    """The time of an answer, UTC: with `timings_s` all that differs between two equal answers."""
    return utc(time.time())


def utc(seconds: float) -> str:
    """A time in seconds since 1970, as JSON has it: UTC, ISO 8601, whole seconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def versions() -> dict[str, str]:
    """Versions of what has a say in the answer."""
    return {
        name: metadata.version(name)
        for name in ("tf-covid", "tensorflow", "keras", "tf-keras-vis", "numpy")
    }


def _check_scan(scan: object) -> None:
    if not isinstance(scan, Scan):
        message = (
            f"A {type(scan).__name__} is not a scan: `tf_covid.read` makes one of a file or folder."
        )
        raise refusal("scan_type", message)
    if scan.hu.dtype != np.int16 or scan.hu.ndim != 3 or not scan.hu.size:
        message = (
            f"A scan holds int16 HU (D, H, W), not {scan.hu.dtype.name} of {scan.hu.ndim} axes."
        )
        raise refusal("scan_type", message)


def _user_mask(
    scan: Scan, lungs: np.ndarray | str | os.PathLike[str] | None, labels: Sequence[int]
) -> tuple[np.ndarray | None, tuple[QualityFlag, ...]]:
    """The user's own mask, bool (D, H, W) or None, and the quality flags about it."""
    if lungs is not None:
        return user_lungs(lungs, scan, labels)
    if len(labels):
        raise refusal("mask_labels", "Labels of the lungs were named, but no mask that holds them.")
    return None, ()


def _models(
    model: str | Path | Sequence[str | Path] | Models[Any],
    lungs: str | Path | None,
    lobes: str | Path | None,
    allow_other_lungs: bool,
    precision: str,
) -> Models[Any]:
    if not isinstance(model, (str, Path, Sequence)):
        return model
    from tf_covid.local import LocalModels

    return LocalModels(
        [model] if isinstance(model, (str, Path)) else list(model),
        lungs=lungs,
        lobes=lobes,
        precision=precision,
        allow_other_lungs=allow_other_lungs,
    )


def gate(
    models: Models[Any], probability: np.ndarray, spacing_mm: tuple[float, float, float]
) -> Sequence[QualityFlag]:
    """Quality flags of the lungs of a scan; with an "error" among them the scan is refused.

    Args:
        models: Models whose slice rule decides which slices count.
        probability: Probability of lung, float32 (D, h, w). The graph's own mask decides, as it
            does behind a server: no cleaning before the slice rule.
        spacing_mm: Voxel size along (D, H, W).
    """
    fractions = (probability > 0.5).mean(axis=(1, 2))
    return lung_flags(fractions, min_fraction=models.slice_minimum, spacing_mm=spacing_mm)


def refuses(quality_flags: Sequence[QualityFlag]) -> bool:
    """Whether one of the quality flags is an error."""
    return any(flag.level == "error" for flag in quality_flags)


def _gate_then_classify(
    scan: Scan, models: Models[Any], probability: np.ndarray
) -> list[Answer[Any]]:
    flags = gate(models, probability, scan.spacing_mm)
    if refuses(flags):
        raise ScanRefused([*scan.quality_flags, *flags])
    return models.classify(scan.hu, probability)


def _segment(scan: Scan, models: Models[Any], mask: np.ndarray | None) -> Segmentation:
    """What the lung models find; a user's own mask stands in for theirs."""
    if mask is None:
        return models.segment(scan.hu)
    own = models.from_mask(mask)
    # A user's mask says where the lungs are, not what is diseased within them, nor their lobes.
    if not (models.finds_disease or models.finds_lobes):
        return own
    return dataclasses.replace(models.segment(scan.hu), probability=own.probability)


def _read_lungs(
    scan: Scan, segmentation: Segmentation, keep: np.ndarray, mask: np.ndarray | None
) -> LungReading:
    return read_lungs(
        scan.hu,
        segmentation.probability,
        keep,
        scan.spacing_mm,
        mask,
        segmentation.disease,
        segmentation.lobes,
        segmentation.effusion,
    )


def _model_flags(
    models: Models[Any], orientation: np.ndarray | None, reading: LungReading
) -> list[QualityFlag]:
    """Quality flags of what the models are, and of which way round they find the scan."""
    flags = []
    if models.other_lungs:
        message = (
            "A network answers behind other lung models than it was trained behind: its answer may"
            " be off, and nothing is known of how far."
        )
        flags.append(QualityFlag("other_lungs", "warning", message))
    # A few slices of a lung's base among bowels do not tell head from feet.
    whole = min(reading.lungs.left_ml, reading.lungs.right_ml) >= LEAST_LUNG_ML
    if orientation is not None and whole:
        flags += orientation_flags(orientation)
    return flags


def orientation_flags(orientation: np.ndarray) -> list[QualityFlag]:
    """The flag of a scan that looks like a human only once it is flipped; none for most.

    Args:
        orientation: Logits, float32 (3,), of “stored feet first”, “back for front” and “left for
            right”.
    """
    flips = [
        name for name, logit in zip(FLIPS, orientation, strict=True) if logit > ORIENTATION_DOUBTFUL
    ]
    if not flips:
        return []
    message = (
        f"The scan looks like a human only once it is flipped {' and '.join(flips)}: its header may"
        " say wrongly how it is stored, or the organs lie mirrored (situs inversus). Lobes, sides"
        " and severity mean nothing if it is stored wrongly."
    )
    return [QualityFlag("orientation_doubtful", "warning", message, ", ".join(flips))]


def _prediction(answers: Sequence[Answer[Any]]) -> Prediction:
    probabilities, ct_score = mean_answer(answers)
    return Prediction(int(np.argmax(probabilities)), probabilities, ct_score)


def _explain(
    models: Models[Any],
    answers: Sequence[Answer[Any]],
    reading: LungReading,
    prediction: Prediction,
    method: str,
    target: str,
) -> tuple[np.ndarray | None, Attention | None]:
    if method == "none":
        return None, None
    volume, fraction = models.explain(
        answers,
        reading.voxels.codes,  # not 0 within the lungs
        method=method,
        target=target,
        predicted_class=prediction.predicted_class,
    )
    sums = [int(plane.sum(dtype=np.int64)) for plane in volume]
    areas = [max(int(np.count_nonzero(plane)), 1) for plane in reading.voxels.codes]
    per_slice = tuple(total / 255.0 / area for total, area in zip(sums, areas, strict=True))
    return volume, Attention(method, target, models.endpoint, fraction, per_slice)


def _flags(
    scan: Scan,
    models: Models[Any],
    reading: LungReading,
    prediction: Prediction,
    attention_map: np.ndarray | None,
    attention: Attention | None,
) -> list[QualityFlag]:
    """Quality flags of an answered scan: what is unusual about lungs, CT score and map."""
    # Of the cleaned mask: a table's tube in the last slice does not cut a lung off. Too little lung
    # was refused before.
    limits = lung_flags(
        reading.lung_fraction, min_fraction=models.slice_minimum, spacing_mm=scan.spacing_mm
    )
    flags = [flag for flag in limits if flag.level != "error"]
    lungs = reading.lungs
    low, high = USUAL_VOLUME_ML
    if not low <= lungs.volume_ml <= high:
        message = (
            f"The lungs measure {lungs.volume_ml:.0f} ml; adults' mostly lie within"
            f" {low:.0f}–{high:.0f} ml."
        )
        flags.append(QualityFlag("unusual_lung_volume", "warning", message, round(lungs.volume_ml)))
    if min(lungs.left_ml, lungs.right_ml) < 0.1 * lungs.volume_ml:
        side = "left" if lungs.left_ml < lungs.right_ml else "right"
        message = f"Hardly any {side} lung was found; look at the mask."
        flags.append(QualityFlag("one_lung", "warning", message, side))
    if models.task == "severity" and prediction.ct_score is not None:
        flags += _class_mismatch(prediction.predicted_class, prediction.ct_score)
    if attention_map is not None and not attention_map.any():
        message = "Nothing in the scan raises the target: the map is empty."
        flags.append(QualityFlag("attention_empty", "info", message))
    elif attention is not None and attention.inside_lung_fraction is not None:
        flags += _attention_outside(attention.inside_lung_fraction)
    return flags


def _attention_outside(inside: float) -> list[QualityFlag]:
    """The flag of an attention map that lies mostly beside the lungs."""
    if inside >= MOSTLY_INSIDE:
        return []
    message = (
        f"Only {100.0 * inside:.0f} % of the attention lies within the lungs, and only that is"
        " shown: the cells of the map are some centimetres wide and reach beyond the border of the"
        " lungs, so trust the slices more than the colours."
    )
    return [QualityFlag("attention_outside", "info", message, round(inside, 3))]


def _class_mismatch(predicted_class: int, ct_score: float) -> list[QualityFlag]:
    """The flag of a CT score that belongs to another class than the probabilities."""
    outside = severity.points_outside(ct_score, predicted_class)
    if not outside:
        return []
    other = severity.LABELS[severity.severity_class(ct_score)]
    message = (
        f"The CT score of {ct_score:.1f} belongs to the class “{other}”, the probabilities to"
        f" “{severity.LABELS[predicted_class]}”."
    )
    level: Level = "info" if outside <= NEAR_POINTS else "warning"
    return [QualityFlag("score_class_mismatch", level, message, round(ct_score, 1))]


def _series(scan: Scan, identifiers: bool) -> Series:
    return Series(
        slices=scan.shape[0],
        shape=scan.shape,
        spacing_mm=scan.spacing_mm,
        interpolated=scan.interpolated,
        chosen_because=scan.chosen_because,
        identifiers=dict(scan.identifiers) if identifiers else None,
        slice_thickness_mm=scan.slice_thickness_mm,
        instance_numbers=scan.instance_numbers or None,
    )


def _severity(prediction: Prediction, reading: LungReading) -> Severity:
    return Severity(
        prediction.predicted_class,
        severity.LABELS[prediction.predicted_class],
        tuple(float(value) for value in prediction.probabilities),
        prediction.ct_score,
        ct_score_read=ct_score_read(reading.lobes),
    )


def _covid(prediction: Prediction) -> Covid:
    positive = prediction.probabilities[1]
    return Covid(float(positive), bool(positive >= 0.5))


def _model_answer(answer: Answer[Any]) -> ModelAnswer:
    model = answer.model
    probabilities = tuple(float(value) for value in answer.probabilities)
    return ModelAnswer(
        model.name, model.sha256, model.contract.note, probabilities, answer.ct_score
    )
