"""What a network is trained to answer in each task: its inputs, targets, losses and outputs."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from tf_covid.cohort.augment import Draws, flip
from tf_covid.cohort.cache import CacheRecord
from tf_covid.cohort.dataset import batches, parsed_volume
from tf_covid.cohort.manifest import ManifestRow
from tf_covid.cohort.planes import OUTSIDE_LOBES, UNKNOWN
from tf_covid.cohort.training_input import (
    COUNTED,
    ClipTrainingInput,
    SliceTrainingInput,
    VolumeTrainingInput,
)
from tf_covid.errors import CohortError, TrainingError
from tf_covid.severity import LOBES
from tf_covid.tasks import TASKS
from tf_covid.tensor import Tensor
from tf_covid.tissues import CLASSES, EFFUSION_CLASS, LOBE_CLASSES
from tf_covid.training import losses
from tf_covid.training.dense import pooled
from tf_covid.training.flips import FLIP_CHANCES, VIEWS
from tf_covid.training.network_spec import NetworkSpec
from tf_covid.training.settings import Settings

#: A slice counts as diseased from this share of its lung.
DISEASED_SHARE = 0.005


def labels_of(rows: Sequence[ManifestRow], task: str) -> dict[str, int]:
    """The class of each case; 0 for all where the task has none.

    Raises:
        CohortError: If a row lacks what the task is about.
    """
    labels = {row.case: TASKS[task].label_of(row) for row in rows}
    if missing := [case for case, label in labels.items() if label is None]:
        raise CohortError(
            f"{len(missing)} of {len(rows)} rows have no {TASKS[task].columns}, which the task"
            f" {task} needs: {', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}"
        )
    return {case: int(label) for case, label in labels.items() if label is not None}


def score_of(row: ManifestRow) -> float:
    """The CT score of a row; NaN where it is not known."""
    return float("nan") if row.ct_score is None else row.ct_score


class Objective(Protocol):
    """What a network is trained to answer: an immutable value.

    `each` is the number of the network's inputs that a record gives in an epoch; `targets` come
    with each record; `batches` with `even` are as alike in size as they can be, and none larger
    than in training.
    """

    @property
    def each(self) -> int:
        """Inputs of the network that a record gives in an epoch."""

    def targets(self, cases: Sequence[str]) -> dict[str, np.ndarray]:
        """Targets that the manifest gives, by name, a row a case."""

    def prepare(
        self, inputs: dict[str, Any], targets: dict[str, Any], training: bool
    ) -> tuple[Any, dict[str, Any]]:
        """The network's input and the truth of each output, of a batch of records."""

    def losses(
        self, cases: Sequence[str]
    ) -> tuple[dict[str, losses.Loss], dict[str, float], dict[str, Any]]:
        """Losses, weights of the losses and metrics of the outputs, by name of the output."""

    def batches(
        self,
        records: Sequence[CacheRecord],
        *,
        order: np.ndarray,
        seed: int,
        first_epoch: int = 0,
        even: bool = False,
    ) -> tf.data.Dataset:
        """Batches of records in the given order."""

    def steps(self, visits: int) -> int:
        """Number of batches of so many visits to records."""

    def answers(
        self, network: keras.Model, records: Sequence[CacheRecord]
    ) -> dict[str, np.ndarray]:
        """What a network answers on records, by column."""


@dataclass(frozen=True)
class ClipObjective:
    """severity, covid: a class, a CT score and where the disease lies, from a whole clip.

    Args:
        task: Name of the task.
        rows: Case → row of the manifest.
        labels: Case → class.
        settings: Settings of the training.
        grid: Frames, height and width of the records.
        scored: Whether the network answers with a CT score as well.
        training_input: Makes clips and lesion masks of a batch of records.
        cells: Output of deep supervision → cells (d, h, w) of its endpoint.
    """

    task: str
    rows: Mapping[str, ManifestRow]
    labels: Mapping[str, int]
    settings: Settings
    grid: tuple[int, int, int]
    scored: bool
    training_input: ClipTrainingInput
    cells: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)

    @property
    def each(self) -> int:
        """One clip a record."""
        return 1

    def targets(self, cases: Sequence[str]) -> dict[str, np.ndarray]:
        """Class and CT score of each case."""
        results = {"logits": np.array([self.labels[case] for case in cases], np.int32)}
        if self.scored:
            results["ct_score"] = np.array(
                [[score_of(self.rows[case])] for case in cases], np.float32
            )
        return results

    def prepare(
        self, inputs: dict[str, Any], targets: dict[str, Any], training: bool
    ) -> tuple[Any, dict[str, Any]]:
        """A batch of records → clips and truths."""
        clip, lesions = self.training_input(**inputs, training=training)
        return clip, targets | {name: pooled(lesions, cells) for name, cells in self.cells.items()}

    def losses(
        self, cases: Sequence[str]
    ) -> tuple[dict[str, losses.Loss], dict[str, float], dict[str, Any]]:
        """Losses, their weights, metrics."""
        weights = class_weights(
            [self.labels[case] for case in cases], len(TASKS[self.task].labels), self.settings
        )
        make = losses.ordinal if self.settings.loss == "ordinal" else losses.cross_entropy
        results: dict[str, losses.Loss] = {"logits": make(weights)}
        fraction = {"logits": 1.0}
        if self.scored:
            results["ct_score"], fraction["ct_score"] = (
                losses.score_loss,
                self.settings.ct_score_weight,
            )
        for name in self.cells:
            results[name], fraction[name] = losses.disease_loss, self.settings.disease_weight
        return (
            results,
            fraction,
            {"logits": keras.metrics.SparseCategoricalAccuracy(name="accuracy")},
        )

    def batches(
        self,
        records: Sequence[CacheRecord],
        *,
        order: np.ndarray,
        seed: int,
        first_epoch: int = 0,
        even: bool = False,
    ) -> tf.data.Dataset:
        """Batches of whole records."""
        targets = self.targets([record.case for record in records])
        size = (
            _even(self.settings.batch, order.shape[1])
            if even
            else min(self.settings.batch, len(records))
        )
        paths = [record.path for record in records]
        return batches(
            paths, targets, self.grid, order=order, batch=size, seed=seed, first_epoch=first_epoch
        )

    def steps(self, visits: int) -> int:
        """Batches of so many visits."""
        return -(-visits // self.settings.batch)

    def answers(
        self, network: keras.Model, records: Sequence[CacheRecord]
    ) -> dict[str, np.ndarray]:
        """`probabilities` (N, classes) and `ct_score` (N,), NaN where the network has none."""
        results: dict[str, list[np.ndarray]] = {"probabilities": [], "ct_score": []}
        for inputs, targets in self.batches(
            records, order=np.arange(len(records))[np.newaxis], seed=0
        ):
            clip, _ = self.prepare(inputs, targets, False)
            outputs = network(clip, training=False)
            results["probabilities"].append(softmax(outputs["logits"].numpy()))
            none = np.full((len(clip), 1), np.nan)
            results["ct_score"].append(np.asarray(outputs.get("ct_score", none))[:, 0])
        return _joined(results, network)


@dataclass(frozen=True)
class SliceObjective:
    """slices: is this slice diseased, and how much of its lung, from one frame of a clip.

    Args:
        settings: Settings of the training.
        grid: Frames, height and width of the records.
        training_input: Makes pictures and masks of a batch of slices.
    """

    settings: Settings
    grid: tuple[int, int, int]
    training_input: SliceTrainingInput

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
        pictures, masks = self.training_input(**parts, training=training)
        area = tf.reduce_sum(masks, axis=(1, 2))
        fraction = tf.math.divide_no_nan(area[:, 1:], area[:, :1])
        return pictures, {
            "logits": tf.cast(fraction[:, 0] >= DISEASED_SHARE, tf.int32),
            "share": fraction,
        }

    def losses(
        self, cases: Sequence[str]
    ) -> tuple[dict[str, losses.Loss], dict[str, float], dict[str, Any]]:
        """Losses, their weights, metrics; slices are not weighed: about half are diseased."""
        accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
        expected: dict[str, losses.Loss] = {
            "logits": losses.cross_entropy([1.0] * len(TASKS["slices"].labels)),
            "share": losses.share_loss,
        }
        return expected, {"logits": 1.0, "share": 20.0}, {"logits": accuracy}

    def batches(
        self,
        records: Sequence[CacheRecord],
        *,
        order: np.ndarray,
        seed: int,
        first_epoch: int = 0,
        even: bool = False,
    ) -> tf.data.Dataset:
        """Batches of some slices of each record, mixed."""
        paths, size = [record.path for record in records], self.settings.batch
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
        self, network: keras.Model, records: Sequence[CacheRecord]
    ) -> dict[str, np.ndarray]:
        """A row a slice: record and slice, truth, probability, true and predicted share."""
        names = ("truth", "probability", "share", "predicted_share")
        results: dict[str, list[np.ndarray]] = {name: [] for name in ("record", "slice", *names)}
        for index, inputs, pictures, truth in self.slices_of(records):
            outputs = network(pictures, training=False)
            results["record"].append(np.full(len(pictures), index))
            results["slice"].append(inputs["slice"].numpy())
            results["truth"].append(truth["logits"].numpy())
            results["probability"].append(softmax(outputs["logits"].numpy())[:, 1])
            results["share"].append(truth["share"].numpy()[:, 0])
            results["predicted_share"].append(outputs["share"].numpy()[:, 0])
        return _joined(results, network)

    def slices_of(self, records: Sequence[CacheRecord]) -> Tensor:
        """Record after record, all its slices, unchanged."""
        for index, record in enumerate(records):
            full = batches(
                [record.path],
                {},
                self.grid,
                order=np.zeros((1, 1), int),
                batch=self.grid[0],
                seed=0,
                slices=-1,
            )
            for inputs, targets in full:
                yield index, inputs, *self.prepare(inputs, targets, False)


@dataclass(frozen=True)
class MaskObjective(SliceObjective):
    """lungs: the mask of a slice, and of its disease where the cohort has lesion masks.

    Args:
        settings, grid, training_input: See `SliceObjective`.
        masks: Outputs of the network: 1 for the lungs, 2 for the lungs and the disease.
    """

    masks: int = 1

    def prepare(
        self, inputs: dict[str, Any], targets: dict[str, Any], training: bool
    ) -> tuple[Any, dict[str, Any]]:
        """A batch of slices → pictures and masks."""
        parts = {name: inputs[name] for name in ("hu", "lungs", "lesions", "seed")}
        pictures, masks = self.training_input(**parts, training=training)
        return pictures, {"logits": masks[..., : self.masks]}

    def losses(
        self, cases: Sequence[str]
    ) -> tuple[dict[str, losses.Loss], dict[str, float], dict[str, Any]]:
        """The loss of the masks."""
        weights = self.settings.mask_weights[: self.masks]
        loss = functools.partial(losses.mask_loss, pixel_weights=weights)
        return {"logits": loss}, {"logits": 1.0}, {}

    def answers(
        self, network: keras.Model, records: Sequence[CacheRecord]
    ) -> dict[str, np.ndarray]:
        """`dice` (N,) of the lungs over all slices of each record, on its grid."""
        dice = []
        for _, _, pictures, truth in self.slices_of(records):
            results = network(pictures, training=False)["logits"].numpy()[..., 0] > 0
            mask = truth["logits"].numpy()[..., 0] > 0
            dice.append(2 * (results & mask).sum() / max(results.sum() + mask.sum(), 1))
        return {"dice": np.array(dice)}


@dataclass(frozen=True)
class LobesObjective:
    """lobes: what is in each cell of a whole scan, and whether the scan is stored flipped.

    Args:
        settings: Settings of the training.
        grid: D, H and W of the records' HU.
        training_input: Makes scans and the counts of their labels of a batch of records.
        classes: Outputs of the network: 6, or all of `tissues.CLASSES`.
    """

    settings: Settings
    grid: tuple[int, int, int]
    training_input: VolumeTrainingInput
    classes: int

    @property
    def each(self) -> int:
        """One scan a record."""
        return 1

    def targets(self, cases: Sequence[str]) -> dict[str, np.ndarray]:
        """None: the truth is in the records' labels."""
        return {}

    def prepare(
        self, inputs: dict[str, Any], targets: dict[str, Any], training: bool
    ) -> tuple[Any, dict[str, Any]]:
        """A batch of records → scans, each with views that may be flipped, and the truths."""
        parts = {name: inputs[name] for name in ("hu", "labels", "seed")}
        scans, counts = self.training_input(**parts, training=training)
        draws, views, flipped = Draws(inputs["seed"][0] + 1), [scans], []
        for _ in range(VIEWS):
            view = scans
            for axis, chance in enumerate(FLIP_CHANCES, 1):
                chosen = draws.chance(tf.shape(scans)[0], chance)
                view = flip(view, axis, chosen)
                flipped.append(tf.cast(chosen, tf.float32))
            views.append(view)
        return tf.concat(views, axis=-1), {
            "logits": counts,
            "flips": tf.stack(flipped, axis=1),
        }

    def losses(
        self, cases: Sequence[str]
    ) -> tuple[dict[str, losses.Loss], dict[str, float], dict[str, Any]]:
        """Losses of the tissues and of the flips."""
        expected = {"logits": losses.tissue_loss(self.classes), "flips": losses.flips_loss}
        return expected, {"logits": 1.0, "flips": 0.2}, {}

    def batches(
        self,
        records: Sequence[CacheRecord],
        *,
        order: np.ndarray,
        seed: int,
        first_epoch: int = 0,
        even: bool = False,
    ) -> tf.data.Dataset:
        """Batches of whole records."""
        size = min(self.settings.batch, len(records))
        return batches(
            [record.path for record in records],
            {},
            self.grid,
            order=order,
            batch=_even(self.settings.batch, order.shape[1]) if even else size,
            seed=seed,
            first_epoch=first_epoch,
            parse=parsed_volume,
        )

    def steps(self, visits: int) -> int:
        """Batches of so many visits."""
        return -(-visits // self.settings.batch)

    def answers(
        self, network: keras.Model, records: Sequence[CacheRecord]
    ) -> dict[str, np.ndarray]:
        """What the network answers on each record, on its grid, where the truth is known.

        Returns:
            `lobes` (N, 5), the Dice of each, NaN where the case does not show the lobe; `dice`
            (N,), their mean; `effusion_error_ml` (N,), predicted less true pleural effusion, NaN
            where the case has no tissues or the network does not tell them apart.
        """
        results: dict[str, list[Any]] = {"lobes": [], "dice": [], "effusion_error_ml": []}
        for inputs, targets in self.batches(
            records, order=np.arange(len(records))[np.newaxis], seed=0
        ):
            views, truths = self.prepare(inputs, targets, False)
            logits = network(views[..., :1], training=False)["logits"].numpy()
            if not np.isfinite(logits).all():
                raise TrainingError(f"{network.name} answers with what is not a finite number")
            counts, volumes = truths["logits"].numpy(), inputs["volume_ml"].numpy()[:, 0]
            for predicted, count, volume_ml in zip(
                logits.argmax(axis=-1), counts, volumes, strict=True
            ):
                truth = count.argmax(axis=-1)
                dice = lobe_dice(predicted, truth)
                results["lobes"].append(dice)
                results["dice"].append(0.0 if np.isnan(dice).all() else np.nanmean(dice))
                error = np.nan
                if self.classes > EFFUSION_CLASS and not (truth == OUTSIDE_LOBES % COUNTED).any():
                    known = truth != UNKNOWN % COUNTED
                    difference = (predicted == EFFUSION_CLASS) ^ (truth == EFFUSION_CLASS)
                    signs = np.where(truth == EFFUSION_CLASS, -1.0, 1.0)
                    error = float((signs * (difference & known)).sum()) * volume_ml / truth.size
                results["effusion_error_ml"].append(error)
        return {name: np.array(values, np.float64) for name, values in results.items()}


def lobe_dice(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Dice of each lobe, (5,); NaN of a lobe that is not there.

    Args:
        predicted: Numbers of `tissues.CLASSES`, (D, H, W).
        truth: The same; `UNKNOWN % COUNTED` where it is not known.
    """
    known = truth != UNKNOWN % COUNTED
    results = np.full(len(LOBES), np.nan)
    for index, label in enumerate(range(LOBE_CLASSES.start, LOBE_CLASSES.stop)):
        mask, answer = truth == label, (predicted == label) & known
        if mask.any():
            results[index] = 2.0 * (mask & answer).sum() / (mask.sum() + answer.sum())
    return results


def _clip_objective(
    task: str,
    network: NetworkSpec,
    rows: Sequence[ManifestRow],
    labels: Mapping[str, int],
    settings: Settings,
    grid: tuple[int, int, int],
) -> Objective:
    training_input = ClipTrainingInput(
        grid, settings.clip, network.preprocessing, network.channels, settings.augmentation
    )
    scored = bool(network.arguments.get("ct_score"))
    return ClipObjective(
        task, {row.case: row for row in rows}, labels, settings, grid, scored, training_input
    )


def _slice_input(
    task: str,
    network: NetworkSpec,
    settings: Settings,
    grid: tuple[int, int, int],
    *,
    masked: bool,
) -> SliceTrainingInput:
    """The layers in front of a 2D network.

    Args:
        task: Name of the task.
        network: The network to be trained.
        settings: Settings of the training.
        grid: Frames, height and width of the records.
        masked: Whether the pictures are masked, as in a clip.
    """
    if settings.disease_endpoints:
        raise TrainingError(
            f"disease_endpoints are layers of a 3D network; the task {task} has none"
        )
    if grid[1] * grid[2] % 8:
        raise TrainingError(
            f"the task {task} needs slices of a multiple of 8 pixels, not {grid[1]}×{grid[2]}"
        )
    return SliceTrainingInput(
        grid[1:],
        settings.clip[1:],
        masked=masked,
        augmentation=settings.augmentation,
        preprocessing=network.preprocessing,
        channels=network.channels,
    )


def _slice_objective(
    task: str,
    network: NetworkSpec,
    rows: Sequence[ManifestRow],
    labels: Mapping[str, int],
    settings: Settings,
    grid: tuple[int, int, int],
) -> Objective:
    # Masked, as in a clip, so that the network can be inflated.
    return SliceObjective(settings, grid, _slice_input(task, network, settings, grid, masked=True))


def _mask_objective(
    task: str,
    network: NetworkSpec,
    rows: Sequence[ManifestRow],
    labels: Mapping[str, int],
    settings: Settings,
    grid: tuple[int, int, int],
) -> Objective:
    training_input = _slice_input(task, network, settings, grid, masked=False)
    return MaskObjective(settings, grid, training_input, int(network.arguments.get("outputs", 1)))


def _lobes_objective(
    task: str,
    network: NetworkSpec,
    rows: Sequence[ManifestRow],
    labels: Mapping[str, int],
    settings: Settings,
    grid: tuple[int, int, int],
) -> Objective:
    if settings.disease_endpoints:
        raise TrainingError("disease_endpoints are of no use to the task lobes")
    training_input = VolumeTrainingInput(
        grid, settings.clip, network.preprocessing, settings.augmentation
    )
    classes = int(network.arguments.get("outputs", len(CLASSES)))
    if classes not in (LOBE_CLASSES.stop, len(CLASSES)):
        raise TrainingError(
            f"a lobe network has {LOBE_CLASSES.stop} outputs, or {len(CLASSES)} with tissues, not"
            f" {classes}"
        )
    return LobesObjective(settings, grid, training_input, classes)


#: Name of the task → makes its objective.
OBJECTIVES = {
    "severity": _clip_objective,
    "covid": _clip_objective,
    "lungs": _mask_objective,
    "lobes": _lobes_objective,
    "slices": _slice_objective,
}


def objective_for(
    task: str,
    network: NetworkSpec,
    rows: Sequence[ManifestRow],
    labels: Mapping[str, int],
    settings: Settings,
    grid: tuple[int, int, int],
) -> Objective:
    """What a network is trained to answer.

    Args:
        task: Name of the task.
        network: The network, complete.
        rows: Rows of the manifest.
        labels: Case → class.
        settings: Settings of the training.
        grid: Frames, height and width of the records.

    Raises:
        TrainingError: If the settings do not fit the task.
    """
    return OBJECTIVES[task](task, network, rows, labels, settings, grid)


def class_weights(labels: Sequence[int], classes: int, settings: Settings) -> list[float]:
    """A weight for each class; their mean over the cases is 1."""
    counts = np.bincount(labels, minlength=classes)
    if not settings.class_weights:
        return [1.0] * classes
    present = np.count_nonzero(counts)
    return [float(len(labels) / (present * count)) if count else 0.0 for count in counts]


def _even(max_size: int, count: int) -> int:
    """The size of as few batches of `count` as `max_size` allows, all of nearly the same size."""
    return -(-count // -(-count // max_size))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (N, classes), float64."""
    shares = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(shares / shares.sum(axis=1, keepdims=True))


def _joined(answers: Mapping[str, list[np.ndarray]], network: keras.Model) -> dict[str, np.ndarray]:
    joined = {name: np.concatenate(parts) for name, parts in answers.items()}
    for name in ("probabilities", "probability"):
        if name in joined and not np.isfinite(joined[name]).all():
            raise TrainingError(f"{network.name} answers with what is not a finite number")
    return joined
