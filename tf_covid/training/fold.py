"""One network, trained on one side of a fold: epochs, stages, early stopping, resume."""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.framework.summary_pb2 import DataClass, SummaryMetadata

from tf_covid.cohort.cache import CacheRecord
from tf_covid.cohort.dataset import visits
from tf_covid.errors import TrainingError
from tf_covid.models import NETWORKS
from tf_covid.models.blocks import DISEASE
from tf_covid.training import checkpoint
from tf_covid.training.cpu_layers import cpu_optimised
from tf_covid.training.dense import add_deep_supervision
from tf_covid.training.flips import with_flipped_views
from tf_covid.training.initialise import data_dependent_init, start_from
from tf_covid.training.network_spec import NetworkSpec
from tf_covid.training.norms import Census, Judged, copy_weights, give, learning, set_momentum
from tf_covid.training.settings import Settings, Stage
from tf_covid.training.tasks import ClipObjective, LobesObjective, Objective
from tf_covid.training.trainer_model import TrainerModel
from tf_covid.training.worker_group import WorkerGroup, with_parts_dropped
from tf_covid.weights import load
from tf_covid.weights.files import POLICIES

#: Marks a value as a curve for TensorBoard.
_SCALAR = SummaryMetadata(
    plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"),
    data_class=DataClass.DATA_CLASS_SCALAR,
)

#: Called with the epoch (from 0) and its values.
OnEpochEnd = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class FoldPlan:
    """What one fold's training is made of.

    Args:
        network: The network that is trained.
        objective: What the network is trained to answer.
        settings: Settings of the training.
        fold: Index of the fold, which the seed follows from.
        mirrored: Whether all devices are used.
        group: Workers that train it together; None: this process alone.
    """

    network: NetworkSpec
    objective: Objective
    settings: Settings
    fold: int
    mirrored: bool = False
    group: WorkerGroup | None = None

    @property
    def seed(self) -> int:
        """Seed of this fold: weights, order of the records and augmentation follow from it."""
        return (self.settings.seed * 1009 + self.fold) % 2**31


class TrainingSet(Protocol):
    """What a network learns from, epoch by epoch."""

    @property
    def size(self) -> int:
        """Records of the first epoch."""

    @property
    def cases(self) -> Sequence[str]:
        """Cases of the first epoch."""

    @property
    def changes(self) -> bool:
        """Whether an epoch may have other records than the one before."""

    def of_epoch(self, epoch: int) -> Sequence[CacheRecord]:
        """Records of an epoch, counted from 0."""


@dataclass(frozen=True)
class SameRecords:
    """A training set that is the same in each epoch.

    Args:
        records: The records.
    """

    records: Sequence[CacheRecord]
    changes: bool = False

    @property
    def size(self) -> int:
        """Records of an epoch."""
        return len(self.records)

    @property
    def cases(self) -> list[str]:
        """Cases of an epoch."""
        return [record.case for record in self.records]

    def of_epoch(self, epoch: int) -> Sequence[CacheRecord]:
        """The records."""
        return self.records


@dataclass(frozen=True)
class Trained:
    """What came of it.

    Args:
        network: Without what was there for the training only.
        curves: Name → a value for each epoch.
        origin: What the weights started from.
        seconds: Seconds of training, in all processes.
        epochs: Epochs that were trained.
    """

    network: keras.Model
    curves: dict[str, list[float]]
    origin: str
    seconds: float
    epochs: int


def train(
    plan: FoldPlan,
    training_set: TrainingSet,
    validation_records: Sequence[CacheRecord],
    folder: Path,
    *,
    on_epoch_end: OnEpochEnd | None = None,
    board: Path | None = None,
) -> Trained | None:
    """Train a network, or go on with it.

    Args:
        plan: What is trained.
        training_set: What it learns from.
        validation_records: Records that the loss is validated on, to stop early.
        folder: Folder of the training's state.
        on_epoch_end: Hears of each epoch.
        board: Folder for TensorBoard.

    Returns:
        What came of it; None for a worker that is not the chief of its group.

    Raises:
        TrainingError: If the loss is no longer a finite number, or the state is damaged.
        OutputError: If the state cannot be written; the last one stays.
    """
    if not training_set.size:
        raise TrainingError(f"fold {plan.fold} has nothing to learn from")
    settings = plan.settings
    # Everything random follows from this: weights, dropout, order, augmentation.
    keras.utils.set_random_seed(plan.seed)
    strategy = tf.distribute.get_strategy()
    if plan.mirrored:
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        strategy = tf.distribute.MirroredStrategy([device.name for device in devices])
        _check_shared_evenly(settings, training_set.size, len(devices), "devices")
        # An empty share of a batch is no batch.
        validation_records = validation_records[
            : len(validation_records) // len(devices) * len(devices)
        ]
    group = plan.group
    if group is not None:
        _check_shared_evenly(settings, training_set.size, group.count, "workers")
    epoch_visits = len(visits(training_set.size, 0, plan.seed, settings.batch))
    steps = plan.objective.steps(epoch_visits)
    with strategy.scope():
        network, trainer, objective, origin = _build(plan)
        optimizer = _optimizer(settings, steps)
        optimizer.build(trainer.trainable_variables)
    set_momentum(trainer.network, steps * _shortest(settings))
    # What is saved: in float32, without what training added.
    plain = NETWORKS[plan.network.model].build(**plan.network.arguments)
    start = _weights_of_start(plan, trainer.network, plain)
    census = Census(_in_training(objective, plain), objective, [])
    state_file = folder / "state.npz"
    # Those of the others come from the chief.
    begins = not state_file.exists() and (group is None or group.is_chief)
    if _centred(plan.network) and begins:
        data_dependent_init(network, _first_clips(plan, training_set.of_epoch(0)))
    weights = list(trainer.variables)
    variables = [*weights, *optimizer.variables]
    state = (
        checkpoint.restore(state_file, variables)
        if state_file.exists()
        else checkpoint.TrainingState()
    )
    callbacks: list[keras.callbacks.Callback] = [Finite(state, weights)]
    keeps = [
        Judged(trainer.network, census),
        CheckpointCallback(settings, folder, weights, variables, state, on_epoch_end, board),
    ]
    if group is None:
        callbacks += keeps
    else:
        shared = SharedState(group, variables, state)
        shared.synchronise()
        callbacks += [*(keeps if group.is_chief else []), shared]
        if not group.is_chief:
            validation_records = []
    for stage, last in _stages(settings):
        if state.stopped or state.epoch >= last:
            continue
        with strategy.scope():
            _freeze(network, trainer, stage)
            losses, shares, metrics = objective.losses(training_set.cases)
            # Each device has the mean of its share of the batch, and Keras adds up what the devices
            # have.
            shares = {
                name: fraction / strategy.num_replicas_in_sync for name, fraction in shares.items()
            }
            # Keras would take XLA, whose 3D convolutions are several times slower on a CPU.
            trainer.compile(
                optimizer, loss=losses, loss_weights=shares, metrics=metrics, jit_compile=False
            )
        while state.epoch < last and not state.stopped:
            # Records that change are known for one epoch only.
            until = state.epoch + 1 if training_set.changes else last
            census.records = training_set.of_epoch(state.epoch)
            _fit(
                trainer,
                plan,
                objective,
                census.records,
                validation_records,
                state,
                until,
                callbacks,
            )
    if group is not None and not group.is_chief:
        return None
    kept = state.epoch - 1
    if settings.keep == "best" and state.best_epoch >= 0:
        checkpoint.restore(folder / "best.npz", weights)
        kept = state.best_epoch
    # Layers that were frozen in that epoch keep the statistics that they had in it.
    _freeze(network, trainer, next(stage for stage, last in _stages(settings) if kept < last))
    copy_weights(trainer.network, census.network)
    copy_weights(trainer.network, plain)
    if start:
        kept_of_start = settings.init_share
        plain.set_weights(
            [
                kept_of_start * before + (1 - kept_of_start) * now
                for before, now in zip(start, plain.get_weights(), strict=True)
            ]
        )
        for layer in plain.layers:
            census.network.get_layer(layer.name).set_weights(layer.get_weights())
    # Those of the last epoch: earlier ones may be gone.
    census.records = training_set.of_epoch(state.epoch - 1)
    give(plain, census.take(learning(trainer.network)))
    return Trained(plain, state.curves, origin, state.seconds, state.epoch)


def _weights_of_start(plan: FoldPlan, network: keras.Model, plain: keras.Model) -> list[np.ndarray]:
    """The weights that training starts from, where they are to have a share in what is kept.

    Raises:
        TrainingError: If the file that it starts from has another architecture.
    """
    if not plan.settings.init_share:
        return []
    if plan.network.init is None:
        raise TrainingError("init_share needs --init: weights drawn at random are worth no share")
    source = load(plan.network.init).network.get_weights()
    copy_weights(network, plain)
    start: list[np.ndarray] = plain.get_weights()
    if len(source) != len(start) or any(
        not np.array_equal(one, other) for one, other in zip(source, start, strict=True)
    ):
        raise TrainingError(f"init_share: {plan.network.init} is of another architecture")
    return start


def _check_shared_evenly(settings: Settings, count: int, sharers: int, name: str) -> None:
    """Refuse a batch that cannot be shared by all alike.

    Raises:
        TrainingError: If it cannot.
    """
    if settings.batch % sharers or count < settings.batch:
        raise TrainingError(
            f"{sharers} {name} need a batch that they share evenly, and as many records; the"
            f" batch is {settings.batch}, and {count} records teach"
        )


def _first_clips(plan: FoldPlan, train_records: Sequence[CacheRecord]) -> np.ndarray:
    """What the network meets in the beginning, unchanged, (N, D, H, W, C)."""
    first = train_records[:64]
    data = plan.objective.batches(first, order=np.arange(len(first))[np.newaxis], seed=plan.seed)
    return np.concatenate(
        [plan.objective.prepare(inputs, targets, False)[0].numpy() for inputs, targets in data]
    )


def _centred(network: NetworkSpec) -> bool:
    return NETWORKS[network.model].data_dependent_init and network.init is None


def _build(plan: FoldPlan) -> tuple[keras.Model, TrainerModel, Objective, str]:
    """The network in training, its trainer, its objective then, and the origin of its weights."""
    settings, model, objective = plan.settings, plan.network.model, plan.objective
    policy = "float32"
    if settings.precision == "mixed":
        policy = POLICIES["float16" if tf.config.list_logical_devices("GPU") else "bfloat16"]
    try:
        network = NETWORKS[model].build(**plan.network.arguments, dtype=policy)
    except (TypeError, ValueError) as error:
        raise TrainingError(
            f"{model} cannot be built with these settings: {str(error).splitlines()[0]}"
        ) from error
    origin = start_from(network, plan.network.init)
    if isinstance(objective, ClipObjective) and settings.disease_endpoints:
        names = {layer.name for layer in network.layers}
        if unknown := [name for name in settings.disease_endpoints if name not in names]:
            raise TrainingError(f"disease_endpoints: {model} has no layer {', '.join(unknown)}")
        try:
            network, cells = add_deep_supervision(network, settings.disease_endpoints)
        except ValueError as error:
            raise TrainingError(f"disease_endpoints: {error}") from error
        objective = dataclasses.replace(objective, cells=cells)
    if not tf.config.list_logical_devices("GPU"):
        network = cpu_optimised(network)
    if plan.group is not None:
        network = with_parts_dropped(network, plan.group)
    network = _in_training(objective, network)
    trainer = TrainerModel(network, objective.prepare, group=plan.group, name=f"{model}_trainer")
    return network, trainer, objective, origin


def _in_training(objective: Objective, network: keras.Model) -> keras.Model:
    """The network as its objective feeds it."""
    return with_flipped_views(network) if isinstance(objective, LobesObjective) else network


def _optimizer(settings: Settings, steps: int) -> keras.optimizers.Optimizer:
    warm = min(round(settings.warmup_epochs * steps), settings.epochs * steps - 1)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0 if warm else settings.learning_rate,
        max(settings.epochs * steps - warm, 1),
        warmup_target=settings.learning_rate if warm else None,
        warmup_steps=warm,
        alpha=0.01,
    )
    optimizer = keras.optimizers.Adam(schedule, global_clipnorm=settings.gradient_clip_norm)
    float16 = settings.precision == "mixed" and tf.config.list_logical_devices("GPU")
    return keras.optimizers.LossScaleOptimizer(optimizer) if float16 else optimizer


def _stages(settings: Settings) -> list[tuple[Stage | None, int]]:
    """(stage, its last epoch) in order; None where all layers learn."""
    results: list[tuple[Stage | None, int]] = []
    last = 0
    for stage in settings.stages:
        last += stage.epochs
        results.append((stage, last))
    return [*results, (None, settings.epochs)] if last < settings.epochs else results


def _shortest(settings: Settings) -> int:
    """Epochs of the shortest part of the training in which the same layers learn."""
    ends = [0, *(last for _, last in _stages(settings))]
    return min(end - start for start, end in itertools.pairwise(ends))


def _freeze(network: keras.Model, trainer: keras.Model, stage: Stage | None) -> None:
    """Let only the layers from the stage's first one on learn."""
    layers = network.layers
    names = [layer.name for layer in layers]
    if stage is not None and stage.train_from == "disease":
        for layer in layers:
            layer.trainable = layer.name.startswith(DISEASE)
        if not any(layer.trainable for layer in layers):
            raise TrainingError("stages: without disease_endpoints there is no disease output")
        return
    if stage is None:
        first = 0
    elif stage.train_from == "head":
        first = next(
            index for index, layer in enumerate(layers) if isinstance(layer, keras.layers.Dense)
        )
    elif stage.train_from in names:
        first = names.index(stage.train_from)
    else:
        raise TrainingError(f"stages: {network.name} has no layer {stage.train_from!r}")
    for index, layer in enumerate(layers):
        # What tells disease in cells is asked at every stage, wherever it stands.
        layer.trainable = index >= first or layer.name.startswith(DISEASE)


def _fit(
    trainer: TrainerModel,
    plan: FoldPlan,
    objective: Objective,
    train_records: Sequence[CacheRecord],
    validation_records: Sequence[CacheRecord],
    state: checkpoint.TrainingState,
    last: int,
    callbacks: Sequence[keras.callbacks.Callback],
) -> None:
    settings, start = plan.settings, state.epoch
    order = np.stack(
        [
            visits(len(train_records), epoch, plan.seed, settings.batch)
            for epoch in range(start, last)
        ]
    )
    data = objective.batches(train_records, order=order, seed=plan.seed, first_epoch=start)
    measured: dict[str, Any] = {}
    if validation_records:
        measured["validation_data"] = objective.batches(
            validation_records, order=np.arange(len(validation_records))[np.newaxis], seed=plan.seed
        )
    trainer.fit(
        data,
        initial_epoch=start,
        epochs=last,
        steps_per_epoch=objective.steps(order.shape[1]),
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
        **measured,
    )


def _not_finite(what: str, epoch: int) -> str:
    return (
        f"not_finite: {what} became NaN or infinite in epoch {epoch}; the state of the epoch before"
        " is kept; another run with a lower learning_rate or gradient_clip_norm may help"
    )


class Finite(keras.callbacks.Callback):
    """Ends a training whose loss or weights are no numbers any more: no good would come of it."""

    def __init__(self, state: checkpoint.TrainingState, weights: Sequence[Any]) -> None:
        super().__init__()
        self._state, self._weights = state, weights

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Look at the loss."""
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            raise TrainingError(_not_finite("the loss", self._state.epoch + 1))

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Look at the weights: the last step's update is in no loss yet."""
        if not all(np.isfinite(variable.numpy()).all() for variable in self._weights):
            raise TrainingError(_not_finite("a weight", self._state.epoch + 1))


class CheckpointCallback(keras.callbacks.Callback):
    """Keeps the state at the end of each epoch, and knows when to stop."""

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        weights: Sequence[Any],
        variables: Sequence[Any],
        state: checkpoint.TrainingState,
        on_epoch_end: OnEpochEnd | None,
        board: Path | None,
    ) -> None:
        super().__init__()
        self.settings, self.folder, self.weights, self.variables = (
            settings,
            folder,
            weights,
            variables,
        )
        self.state, self._after_epoch = state, on_epoch_end
        self.board = tf.summary.create_file_writer(str(board)) if board else None
        self.since = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Keep the state."""
        now, state = time.monotonic(), self.state
        values = {key: float(value) for key, value in (logs or {}).items()}
        state.epoch = epoch + 1
        state.seconds += now - self.since
        self.since = now
        for name, value in values.items():
            state.curves.setdefault(name, []).append(value)
        watched = values.get("val_loss")
        if watched is not None and watched < state.best:
            state.best, state.best_epoch = watched, epoch
            if self.settings.keep == "best":
                checkpoint.save(self.folder / "best.npz", self.weights, state)
        patience = self.settings.patience
        if patience and epoch - state.best_epoch >= patience:
            state.stopped = self.model.stop_training = True
        checkpoint.save(self.folder / "state.npz", self.variables, state)
        if self.board:
            with self.board.as_default(step=epoch):
                for name, value in values.items():
                    # `tf.summary.scalar` needs TensorBoard's package, which only its reader has to
                    # have.
                    tf.summary.write(name, tf.constant(value, tf.float32), metadata=_SCALAR)
            self.board.flush()
        if self._after_epoch:
            self._after_epoch(epoch, values)


class SharedState(keras.callbacks.Callback):
    """Gives all workers the chief's state: where they differ in a last digit, it would grow.

    Args:
        group: The workers.
        variables: Weights and the optimizer's variables.
        state: How far the training is.
    """

    def __init__(
        self, group: WorkerGroup, variables: Sequence[Any], state: checkpoint.TrainingState
    ) -> None:
        super().__init__()
        self._group, self._variables, self._state = group, variables, state

    def synchronise(self) -> None:
        """Make it the chief's."""
        if self._group.is_chief:
            self._group.from_chief(checkpoint.packed(self._variables, self._state))
            return
        chiefs = checkpoint.restore(io.BytesIO(self._group.from_chief(b"")), self._variables)
        for one in dataclasses.fields(chiefs):
            setattr(self._state, one.name, getattr(chiefs, one.name))

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Share it, and with it the decision to stop."""
        self.synchronise()
        if self._state.stopped:
            self.model.stop_training = True
