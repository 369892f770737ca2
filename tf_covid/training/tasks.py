"""What each task teaches: which records it needs, what a network is asked for, and what its answers are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from tf_covid import severity
from tf_covid.cohort.cache import CacheRecord
from tf_covid.cohort.dataset import batches
from tf_covid.cohort.manifest import ManifestRow
from tf_covid.cohort.training_input import ClipTrainingInput, SliceTrainingInput
from tf_covid.errors import CohortError, TrainingError
from tf_covid.training import losses
from tf_covid.training.dense import pooled
from tf_covid.training.settings import Settings
from tf_covid.weights import Preprocessing

#: Task → labels of the logits.
CLASSES = {
    "severity": severity.LABELS,
    "covid": ("negative", "positive"),
    "lungs": (),
    "slices": ("clear", "diseased"),
}

#: Task → networks that can learn it.
MODELS = {
    "severity": ("i3d", "ltc"),
    "covid": ("i3d", "ltc"),
    "lungs": ("unet",),
    "slices": ("inception_v1",),
}

#: A slice counts as diseased from this share of its lung.
DISEASED_SHARE = 0.005


def labels_of(rows: Sequence[ManifestRow], task: str) -> dict[str, int]:
    """The class of each case; 0 for all where the task has none.

    Raises:
        CohortError: If a row lacks what the task is about.
    """
    if task == "severity":
        found = {row.case: _severity(row) for row in rows}
    elif task == "covid":
        found = {row.case: row.covid for row in rows}
    else:
        mask = {"lungs": "lungs", "slices": "lesions"}[task]
        found = {row.case: 0 if getattr(row, mask) else None for row in rows}
    if lacking := [case for case, label in found.items() if label is None]:
        needs = {
            "severity": "severity or ct_score",
            "covid": "covid",
            "lungs": "lungs",
            "slices": "lesions",
        }[task]
        raise CohortError(
            f"{len(lacking)} of {len(rows)} rows have no {needs}, which the task {task} needs: "
            f"{', '.join(lacking[:5])}{' …' if len(lacking) > 5 else ''}"
        )
    return {case: int(label) for case, label in found.items() if label is not None}


def _severity(row: ManifestRow) -> int | None:
    if row.severity is not None or row.ct_score is None:
        return row.severity
    return severity.severity_class(row.ct_score)


def score_of(row: ManifestRow) -> float:
    """The CT score of a row; NaN where it is not known."""
    return float("nan") if row.ct_score is None else row.ct_score


class Lesson(Protocol):
    """What a task asks of a network.

    `arguments` build the network; `each` is the number of its inputs that a record gives in an
    epoch; `targets` come with each record; `batches` with `even` are as alike in size as they can
    be, and none larger than in training.
    """

    arguments: dict[str, Any]

    @property
    def each(self) -> int: ...

    def targets(self, cases: Sequence[str]) -> dict[str, np.ndarray]: ...

    def prepare(
        self, inputs: dict[str, Any], targets: dict[str, Any], training: bool
    ) -> tuple[Any, dict[str, Any]]: ...

    def losses(
        self, cases: Sequence[str]
    ) -> tuple[dict[str, losses.Loss], dict[str, float], dict[str, Any]]: ...

    def batches(
        self,
        entries: Sequence[CacheRecord],
        *,
        order: np.ndarray,
        seed: int,
        first_epoch: int = 0,
        even: bool = False,
    ) -> tf.data.Dataset: ...

    def steps(self, visits: int) -> int: ...

    def answers(
        self, network: keras.Model, entries: Sequence[CacheRecord]
    ) -> dict[str, np.ndarray]: ...


@dataclass
class ClipLesson:
    """severity, covid: a class, a CT score and where the disease lies, from a whole clip.

    Args:
        task: Its name.
        rows: Case → row.
        labels: Case → class.
        settings: Of the run.
        preprocessing: Of the network.
        channels: Of its input.
        grid: Of the records.
        cells: Endpoint → its cells (d, h, w), where the disease is asked for.
    """

    task: str
    rows: Mapping[str, ManifestRow]
    labels: Mapping[str, int]
    settings: Settings
    preprocessing: Preprocessing
    channels: int
    grid: tuple[int, int, int]
    cells: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = any(row.ct_score is not None for row in self.rows.values())
        self.scored = bool(self.task == "severity" and known and self.settings.ct_score_weight)
        self.arguments: dict[str, Any] = {
            "input_shape": [*self.settings.clip, self.channels],
            "classes": len(CLASSES[self.task]),
            "ct_score": self.scored,
        }
        self.feed = ClipTrainingInput(
            self.grid,
            self.settings.clip,
            self.preprocessing,
            self.channels,
            self.settings.augmentation,
        )

    @property
    def each(self) -> int:
        """One clip a record."""
        return 1

    def targets(self, cases: Sequence[str]) -> dict[str, np.ndarray]:
        """Class and CT score of each case."""
        found = {"logits": np.array([self.labels[case] for case in cases], np.int32)}
        if self.scored:
            found["ct_score"] = np.array(
                [[score_of(self.rows[case])] for case in cases], np.float32
            )
        return found

    def prepare(
        self, inputs: dict[str, Any], targets: dict[str, Any], training: bool
    ) -> tuple[Any, dict[str, Any]]:
        """A batch of records → clips and truths."""
        clip, lesions = self.feed(**inputs, training=training)
        return clip, targets | {name: pooled(lesions, cells) for name, cells in self.cells.items()}

    def losses(
        self, cases: Sequence[str]
    ) -> tuple[dict[str, losses.Loss], dict[str, float], dict[str, Any]]:
        """Losses, their weights, metrics."""
        weights = class_weights(
            [self.labels[case] for case in cases], len(CLASSES[self.task]), self.settings
        )
        make = losses.ordinal if self.settings.loss == "ordinal" else losses.cross_entropy
        found: dict[str, losses.Loss] = {"logits": make(weights)}
        share = {"logits": 1.0}
        if self.scored:
            found["ct_score"], share["ct_score"] = losses.score_loss, self.settings.ct_score_weight
        for name in self.cells:
            found[name], share[name] = losses.disease_loss, self.settings.disease_weight
        return found, share, {"logits": keras.metrics.SparseCategoricalAccuracy(name="accuracy")}

    def batches(
        self,
        entries: Sequence[CacheRecord],
        *,
        order: np.ndarray,
        seed: int,
        first_epoch: int = 0,
        even: bool = False,
    ) -> tf.data.Dataset:
        """Batches of whole records."""
        targets = self.targets([entry.case for entry in entries])
        size = (
            _even(self.settings.batch, order.shape[1])
            if even
            else min(self.settings.batch, len(entries))
        )
        paths = [entry.path for entry in entries]
        return batches(
            paths, targets, self.grid, order=order, batch=size, seed=seed, first_epoch=first_epoch
        )

    def steps(self, visits: int) -> int:
        """Batches of so many visits."""
        return -(-visits // self.settings.batch)

    def answers(
        self, network: keras.Model, entries: Sequence[CacheRecord]
    ) -> dict[str, np.ndarray]:
        """`probabilities` (N, classes) and `ct_score` (N,), NaN where the network has none."""
        found: dict[str, list[np.ndarray]] = {"probabilities": [], "ct_score": []}
        for inputs, targets in self.batches(
            entries, order=np.arange(len(entries))[np.newaxis], seed=0
        ):
            clip, _ = self.prepare(inputs, targets, False)
            outputs = network(clip, training=False)
            found["probabilities"].append(softmax(outputs["logits"].numpy()))
            none = np.full((len(clip), 1), np.nan)
            found["ct_score"].append(np.asarray(outputs.get("ct_score", none))[:, 0])
        return _joined(found, network)


@dataclass
class SliceLesson:
    """slices: is this slice diseased, and how much of its lung, from one frame of a clip.

    Args:
        settings: Of the run.
        preprocessing: Of the network.
        channels: Of its input.
        grid: Of the records.
    """

    settings: Settings
    preprocessing: Preprocessing
    channels: int
    grid: tuple[int, int, int]
    #: The pictures are masked, as in a clip, so that the network can be inflated.
    masked: bool = True

    def __post_init__(self) -> None:
        self.arguments: dict[str, Any] = {
            "input_shape": [*self.settings.clip[1:], self.channels],
            "classes": len(CLASSES["slices"]),
            "share": True,
        }
        self.feed = self._feed()

    def _feed(self) -> SliceTrainingInput:
        return SliceTrainingInput(
            self.grid[1:],
            self.settings.clip[1:],
            masked=self.masked,
            augmentation=self.settings.augmentation,
            preprocessing=self.preprocessing,
            channels=self.channels,
        )

    @property
    def each(self) -> int:
        """Slices that are drawn of a record."""
        return self.settings.slices_per_scan

    def targets(self, cases: Sequence[str]) -> dict[str, np.ndarray]:
        """None: the truth is in the records' masks."""
        return {}

    def prepare(
        self, inputs: dict[str, Any], targets: dict[str, Any], training: bool
    ) -> tuple[Any, dict[str, Any]]:
        """A batch of slices → pictures and truths."""
        parts = {name: inputs[name] for name in ("hu", "lungs", "lesions", "seed")}
        pictures, masks = self.feed(**parts, training=training)
        area = tf.reduce_sum(masks, axis=(1, 2))
        share = tf.math.divide_no_nan(area[:, 1:], area[:, :1])
        return pictures, {
            "logits": tf.cast(share[:, 0] >= DISEASED_SHARE, tf.int32),
            "share": share,
        }

    def losses(
        self, cases: Sequence[str]
    ) -> tuple[dict[str, losses.Loss], dict[str, float], dict[str, Any]]:
        """Losses, their weights, metrics. Slices are not weighed: half of them are diseased, more or less."""
        accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
        wanted: dict[str, losses.Loss] = {
            "logits": losses.cross_entropy([1.0] * len(CLASSES["slices"])),
            "share": losses.share_loss,
        }
        return wanted, {"logits": 1.0, "share": 20.0}, {"logits": accuracy}

    def batches(
        self,
        entries: Sequence[CacheRecord],
        *,
        order: np.ndarray,
        seed: int,
        first_epoch: int = 0,
        even: bool = False,
    ) -> tf.data.Dataset:
        """Batches of some slices of each record, mixed."""
        paths, size = [entry.path for entry in entries], self.settings.batch
        size = _even(size, order.shape[1] * self.each) if even else size
        return batches(
            paths,
            {},
            self.grid,
            order=order,
            batch=size,
            seed=seed,
            first_epoch=first_epoch,
            slices=self.each,
        )

    def steps(self, visits: int) -> int:
        """Batches of so many visits."""
        return -(-visits * self.settings.slices_per_scan // self.settings.batch)

    def answers(
        self, network: keras.Model, entries: Sequence[CacheRecord]
    ) -> dict[str, np.ndarray]:
        """A row a slice: `record` and `slice`, their numbers; `truth`, `probability`, `share`, `predicted_share`."""
        names = ("truth", "probability", "share", "predicted_share")
        found: dict[str, list[np.ndarray]] = {name: [] for name in ("record", "slice", *names)}
        for number, inputs, pictures, truth in self._each(entries):
            outputs = network(pictures, training=False)
            found["record"].append(np.full(len(pictures), number))
            found["slice"].append(inputs["slice"].numpy())
            found["truth"].append(truth["logits"].numpy())
            found["probability"].append(softmax(outputs["logits"].numpy())[:, 1])
            found["share"].append(truth["share"].numpy()[:, 0])
            found["predicted_share"].append(outputs["share"].numpy()[:, 0])
        return _joined(found, network)

    def _each(self, entries: Sequence[CacheRecord]) -> Any:
        """Record after record, all its slices, unchanged."""
        for number, entry in enumerate(entries):
            whole = batches(
                [entry.path],
                {},
                self.grid,
                order=np.zeros((1, 1), int),
                batch=self.grid[0],
                seed=0,
                slices=-1,
            )
            for inputs, targets in whole:
                yield number, inputs, *self.prepare(inputs, targets, False)


class LungLesson(SliceLesson):
    """lungs: the mask of a slice, and of its disease where the cohort has lesion masks.

    Args:
        masks: 1 for the lungs; 2 for the disease, too.
        *rest: See `SliceLesson`.
    """

    def __init__(
        self,
        masks: int,
        settings: Settings,
        preprocessing: Preprocessing,
        channels: int,
        grid: tuple[int, int, int],
    ) -> None:
        self.masks = masks
        super().__init__(settings, preprocessing, channels, grid, masked=False)

    def __post_init__(self) -> None:
        """Build what the masks decide."""
        self.arguments = {
            "input_shape": [*self.settings.clip[1:], self.channels],
            "outputs": self.masks,
        }
        self.feed = self._feed()

    def prepare(
        self, inputs: dict[str, Any], targets: dict[str, Any], training: bool
    ) -> tuple[Any, dict[str, Any]]:
        """A batch of slices → pictures and masks."""
        parts = {name: inputs[name] for name in ("hu", "lungs", "lesions", "seed")}
        pictures, masks = self.feed(**parts, training=training)
        return pictures, {"logits": masks[..., : self.masks]}

    def losses(
        self, cases: Sequence[str]
    ) -> tuple[dict[str, losses.Loss], dict[str, float], dict[str, Any]]:
        """The loss of the masks."""
        return {"logits": losses.mask_loss}, {"logits": 1.0}, {}

    def answers(
        self, network: keras.Model, entries: Sequence[CacheRecord]
    ) -> dict[str, np.ndarray]:
        """`dice` (N,) of the lungs over all slices of each record, on its grid."""
        dice = []
        for _, _, pictures, truth in self._each(entries):
            found = network(pictures, training=False)["logits"].numpy()[..., 0] > 0
            mask = truth["logits"].numpy()[..., 0] > 0
            dice.append(2 * (found & mask).sum() / max(found.sum() + mask.sum(), 1))
        return {"dice": np.array(dice)}


def lesson_for(
    task: str,
    model: str,
    rows: Sequence[ManifestRow],
    labels: Mapping[str, int],
    settings: Settings,
    preprocessing: Preprocessing,
    channels: int,
    grid: tuple[int, int, int],
) -> Lesson:
    """The lesson of a task.

    Raises:
        TrainingError: If the network cannot learn it, or the settings do not fit.
    """
    if model not in MODELS[task]:
        raise TrainingError(f"the task {task} is for {' or '.join(MODELS[task])}, not for {model}")
    if settings.disease_endpoints and task not in ("severity", "covid"):
        raise TrainingError(
            f"disease_endpoints are layers of a 3D network; the task {task} has none"
        )
    if task in ("severity", "covid"):
        return ClipLesson(
            task, {row.case: row for row in rows}, labels, settings, preprocessing, channels, grid
        )
    if grid[1] * grid[2] % 8:
        raise TrainingError(
            f"the task {task} needs slices of a multiple of 8 pixels, not {grid[1]}×{grid[2]}"
        )
    if task == "slices":
        return SliceLesson(settings, preprocessing, channels, grid)
    masks = 2 if all(row.lesions for row in rows) else 1
    return LungLesson(masks, settings, preprocessing, channels, grid)


def class_weights(labels: Sequence[int], classes: int, settings: Settings) -> list[float]:
    """A weight for each class; their mean over the cases is 1."""
    counts = np.bincount(labels, minlength=classes)
    if not settings.class_weights:
        return [1.0] * classes
    present = np.count_nonzero(counts)
    return [float(len(labels) / (present * count)) if count else 0.0 for count in counts]


def _even(most: int, count: int) -> int:
    """The size of as few batches of `count` as `most` allows, so that the last is hardly smaller than the others."""
    return -(-count // -(-count // most))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (N, classes), float64."""
    shares = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def _joined(found: Mapping[str, list[np.ndarray]], network: keras.Model) -> dict[str, np.ndarray]:
    joined = {name: np.concatenate(parts) for name, parts in found.items()}
    for name in ("probabilities", "probability"):
        if name in joined and not np.isfinite(joined[name]).all():
            raise TrainingError(f"{network.name} answers with what is not a finite number")
    return joined
