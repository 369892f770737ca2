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

from tf_covid.atomic import remove_leftovers, write_text
from tf_covid.errors import TrainingError

log = logging.getLogger(__name__)

#: Stands in the file of every network that was trained here, and so in every result.
NOTE = (
    "Trained on synthetic chests only (tf_covid.phantom), on no patient. A demonstration of the"
    " method: not validated on patients, not for clinical use."
)


class Log(keras.callbacks.Callback):
    """One plain line an epoch, and the curves of all epochs in a file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.curves = path, _curves(path.parent)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Write both.

        Raises:
            TrainingError: If the loss or a weight became NaN or infinite.
        """
        results = {name: float(value) for name, value in (logs or {}).items()}
        # The last step's update is in no loss yet.
        finite = {
            "loss": np.isfinite(results["loss"]),
            "weights": all(np.isfinite(w.numpy()).all() for w in self.model.weights),
        }
        for what in (name for name, good in finite.items() if not good):
            # Before the backup of this epoch is made: that of the one before stays.
            raise TrainingError(
                f"not_finite: the {what} became NaN or infinite in epoch {epoch + 1}; try a lower"
                " rate"
            )
        log.info(
            "epoch %d: %s",
            epoch + 1,
            ", ".join(f"{name} {value:.4f}" for name, value in results.items()),
        )
        self.curves[epoch] = results
        write_text(json.dumps(self.curves), self.path)


#: The curves so far, and beside them what a killed run continues from, until the training has
#: ended.
CURVES, BACKUP = "curves.json", "backup"


def setup(seed: int, out: Path) -> int:
    """Seeds and a plain log.

    Args:
        seed: Seed of the whole training.
        out: The model's folder.

    Returns:
        The seed of this process: one that continues must not meet the batches of the first epochs
        once more.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    seed += 100_003 * len(_curves(out))
    keras.utils.set_random_seed(seed)
    return seed


def _curves(out: Path) -> dict[int, dict[str, float]]:
    """Epoch (from 0) → name → value, of the run that can be continued in the folder.

    Others' curves do not count.
    """
    if not (out / CURVES).exists() or not (out / BACKUP).exists():
        return {}
    return {int(epoch): row for epoch, row in json.loads((out / CURVES).read_text("utf-8")).items()}


def continues(out: Path) -> bool:
    """Whether the folder holds epochs of a killed run, which `fit` goes on from."""
    return bool(_curves(out))


def train_only(
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
        names: Names of the layers to train.
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
        raise TrainingError(
            f"not_finite: the loss of {', '.join(names)} became NaN or infinite; try a lower rate"
        )
    log.info("%s alone: loss %.4f", ", ".join(names), loss_now)
    for layer in network.layers:
        layer.trainable = before[layer.name]


def fit(
    network: keras.Model,
    data: tf.data.Dataset,
    out: Path,
    *,
    epochs: int,
    steps: int,
    rate: float,
    **compiled: Any,
) -> dict[str, list[float]]:
    """Train with Adam, one epoch of warm-up and cosine decay.

    A killed run continues at its last full epoch.

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
    remove_leftovers(out)  # a kill while the curves were written leaves a part of them
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
            keras.callbacks.BackupAndRestore(
                out / BACKUP, save_freq="epoch", double_checkpoint=True
            ),
        ],
    )
    (out / CURVES).unlink(missing_ok=True)
    rows = [row for _, row in sorted(kept.curves.items())]
    return {name: [row[name] for row in rows] for name in rows[0]}
