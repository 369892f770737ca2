"""What the training of all shipped networks has in common."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_covid.atomic import sweep, write_text
from tf_covid.errors import ModelError, TrainingError
from tf_covid.weights import Preprocessing, catalog, load, read_contract

log = logging.getLogger(__name__)

#: Stands in the file of every network that was trained here, and so in every result.
NOTE = (
    "Trained on synthetic chests only (tf_covid.phantom), on no patient. A demonstration of the method: "
    "not validated on patients, not for clinical use."
)


class Log(keras.callbacks.Callback):
    """One plain line an epoch, and the curves of all epochs in a file that is whole at any moment."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.curves = path, _curves(path.parent)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Write both.

        Raises:
            TrainingError: If the loss or a weight became NaN or infinite.
        """
        found = {name: float(value) for name, value in (logs or {}).items()}
        # The last step's update is in no loss yet.
        finite = {
            "loss": np.isfinite(found["loss"]),
            "weights": all(np.isfinite(w.numpy()).all() for w in self.model.weights),
        }
        for what in (name for name, good in finite.items() if not good):
            # Before the backup of this epoch is made: that of the one before stays.
            raise TrainingError(f"not_finite: the {what} became NaN or infinite in epoch {epoch + 1}; try a lower rate")
        log.info("epoch %d: %s", epoch + 1, ", ".join(f"{name} {value:.4f}" for name, value in found.items()))
        self.curves[epoch] = found
        write_text(json.dumps(self.curves), self.path)


#: The curves so far, and beside them what a killed run continues from, until the training has ended.
CURVES, BACKUP = "curves.json", "backup"


def setup(seed: int, out: Path) -> int:
    """Seeds and a plain log.

    Args:
        seed: Of the whole training.
        out: The model's folder.

    Returns:
        The seed of this process: one that continues must not meet the batches of the first epochs once more.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    seed += 100_003 * len(_curves(out))
    keras.utils.set_random_seed(seed)
    return seed


def _curves(out: Path) -> dict[int, dict[str, float]]:
    """Epoch (from 0) → name → value, of the run that can be continued in the folder; others' curves do not count."""
    if not (out / CURVES).exists() or not (out / BACKUP).exists():
        return {}
    return {int(epoch): row for epoch, row in json.loads((out / CURVES).read_text("utf-8")).items()}


def continues(out: Path) -> bool:
    """Whether the folder holds epochs of a killed run, which `fit` goes on from."""
    return bool(_curves(out))


def inherited(init: str | Path | None) -> tuple[Preprocessing, int, dict[str, Any]]:
    """What a classifier that starts from a file must share with it, or the weights would meet another input.

    Returns:
        Preprocessing with the file's HU window and input scaling, channels of the input, further arguments of the
        builder.
    """
    if init is None:
        return Preprocessing(), 1, {}
    contract = read_contract(catalog.find(init))
    kept = contract.preprocessing.model_dump(include={"level_hu", "width_hu", "input_scale", "input_offset"})
    shared: dict[str, Any] = {key: contract.arguments[key] for key in ("stem", "trunk") if key in contract.arguments}
    return Preprocessing(**kept), int(contract.arguments["input_shape"][-1]), shared


def start_from(network: keras.Model, init: str | Path | None) -> str:
    """Copy the weights of a file of ours into a network, layer by layer, where name and shapes are the same.

    Returns:
        What the origin says of it: the file's sha256; "" without a file.

    Raises:
        ModelError: If the file is damaged, or no layer fits.
    """
    if init is None:
        return ""
    source = load(init)
    weights = {layer.name: layer.get_weights() for layer in source.network.layers if layer.weights}
    taken = 0
    for layer in network.layers:
        values = weights.get(layer.name, [])
        if values and [value.shape for value in values] == [tuple(weight.shape) for weight in layer.weights]:
            layer.set_weights(values)
            # Vectors alone, of batch norms that happen to be called alike, are no start.
            taken += any(value.ndim > 2 for value in values)
            del weights[layer.name]
    if not taken:
        raise ModelError(f"{init}: no convolution has the name and shape of one of {network.name}")
    log.info("%d layers with weights start from %s; left there: %s", taken, init, ", ".join(weights) or "none")
    return f", started from the weights {source.sha256}"


def centre(network: keras.Model, clips: np.ndarray) -> None:
    """Set what a network without batch normalisation starts from: each unit has mean 0 and variance 1 on `clips`.

    A dense unit has few values to tell its variance by, one a clip, so that all units of its layer share theirs.

    With He's rule alone the clips of two patients, mostly the same dark air, leave the last of LTC's layers nearly
    alike, and its classes stay at chance for hundreds of steps.

    Args:
        network: Changed in place, layer after layer; its last layers, without ReLU, are left.
        clips: float32 (N, D, H, W, C), as the network meets them.

    Source: Krähenbühl, Doersch, Donahue & Darrell 2016 (arXiv 1511.06856), section 3.1, without its rescaling.
    """
    for layer in network.layers:
        if getattr(layer, "activation", None) is not keras.activations.relu:
            continue
        before = keras.Model(network.input, layer.input)
        # Called, not `predict`: that would trace a graph for each layer.
        layer.activation = keras.activations.linear
        # Sums over a few clips at a time, in float64: a layer's output of all clips may not fit into memory, and sums
        # in bfloat16 stall.
        count, total, squares, rank = 0, np.zeros(1), np.zeros(1), 0
        for first in range(0, len(clips), 4):
            found = layer(before(clips[first : first + 4], training=False)).numpy().astype(np.float64)
            rank, axes = found.ndim, tuple(range(found.ndim - 1))
            count += found[..., 0].size
            total, squares = total + found.sum(axes), squares + np.square(found).sum(axes)
        layer.activation = keras.activations.relu
        mean = total / count
        spread = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
        spread = spread + 1e-6 if rank > 2 else np.sqrt(np.mean(spread**2)) + 1e-6
        kernel, bias = layer.get_weights()
        layer.set_weights([kernel / spread, (bias - mean) / spread])


def alone(
    network: keras.Model,
    names: Collection[str],
    data: tf.data.Dataset,
    *,
    steps: int,
    rate: float,
    loss: dict[str, Any],
) -> None:
    """Train some layers in place while all others stay as they are, batch norms' statistics too.

    Args:
        network: With outputs called `names`; it is compiled here, and must be compiled again.
        names: Of the layers to train.
        data: Endless batches.
        steps: Number of batches.
        rate: Learning rate of Adam.
        loss: Of each output; that of the named ones counts.
    """
    before = {layer.name: layer.trainable for layer in network.layers}
    for layer in network.layers:
        layer.trainable = layer.name in names
    weights = {name: float(name in names) for name in loss}
    network.compile(keras.optimizers.Adam(rate), jit_compile=False, loss=loss, loss_weights=weights)
    kept = network.fit(data, epochs=1, steps_per_epoch=steps, shuffle=False, verbose=0)
    loss_now = kept.history["loss"][-1]
    if not np.isfinite(loss_now):
        raise TrainingError(f"not_finite: the loss of {', '.join(names)} became NaN or infinite; try a lower rate")
    log.info("%s alone: loss %.4f", ", ".join(names), loss_now)
    for layer in network.layers:
        layer.trainable = before[layer.name]


def fit(
    network: keras.Model, data: tf.data.Dataset, out: Path, *, epochs: int, steps: int, rate: float, **compiled: Any
) -> dict[str, list[float]]:
    """Train with Adam, one epoch of warm-up and cosine decay; a killed run continues at its last full epoch.

    Args:
        network: Is compiled here.
        data: Endless batches.
        out: The model's folder; the backup lies in it until the end.
        epochs: Number of epochs.
        steps: Batches an epoch.
        rate: Peak learning rate.
        **compiled: Losses, their weights, metrics.

    Returns:
        Name → one value for each epoch, of the processes before this one too.
    """
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, epochs * steps, warmup_target=rate, warmup_steps=steps, alpha=0.01
    )
    # Keras would take XLA, whose 3D convolutions are several times slower on a CPU.
    network.compile(keras.optimizers.Adam(schedule, clipnorm=1.0), jit_compile=False, **compiled)
    out.mkdir(parents=True, exist_ok=True)
    sweep(out)  # a kill while the curves were written leaves a part of them
    kept = Log(out / CURVES)
    network.fit(
        data,
        epochs=epochs,
        steps_per_epoch=steps,
        shuffle=False,  # the data set shuffles
        verbose=0,
        callbacks=[
            kept,
            # A kill while a backup is written leaves the one before.
            keras.callbacks.BackupAndRestore(out / BACKUP, save_freq="epoch", double_checkpoint=True),
        ],
    )
    (out / CURVES).unlink(missing_ok=True)
    rows = [row for _, row in sorted(kept.curves.items())]
    return {name: [row[name] for row in rows] for name in rows[0]}
