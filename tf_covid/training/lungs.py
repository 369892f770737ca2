"""Train the lung U-Net that ships, on slices of synthetic chests.

python -m tf_covid.training.lungs --cases build/cases --out saved_models/lungs-unet
"""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import keras
import numpy as np
import tensorflow as tf

from tf_covid.layers import HUWindow
from tf_covid.layers.resample import clipped_hu, full_axis_matrix, in_plane
from tf_covid.models import UNet
from tf_covid.training import augment
from tf_covid.training.card import write_card
from tf_covid.training.cases import UNSEEN, draw_cases, read_case, read_cases
from tf_covid.training.run import NOTE, fit, setup
from tf_covid.weights import Contract, load_model, save_model

log = logging.getLogger(__name__)

TASK = "2D U-Net: a slice in the study's lung window in, the logit of “lung” for each pixel out."


def slices(folder: Path, seeds: range, *, side: int, each: int, batch: int) -> tf.data.Dataset:
    """Endless augmented batches: windowed slices (batch, side, side, 1), masks (batch, side, side, 1)."""

    def draw(seed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        case = read_case(folder, int(seed))
        chosen = np.random.default_rng().integers(0, len(case.hu), each)
        return case.hu[chosen].astype(np.float32), case.lungs[chosen].astype(np.float32)

    def small(seed: Any) -> tuple[Any, Any]:
        hu, mask = tf.numpy_function(draw, [seed], [tf.float32, tf.float32])
        hu.set_shape([each, None, None])
        mask.set_shape([each, None, None])
        return on_grid(clipped_hu(hu), side), on_grid(mask, side)

    window = HUWindow()

    def change(hu: Any, mask: Any) -> tuple[Any, Any]:
        hu, mask = augment.slice_and_mask(hu, mask)
        return window(hu)[..., tf.newaxis], mask

    seeds_set = (
        tf.data.Dataset.from_tensor_slices(np.asarray(seeds))
        .shuffle(len(seeds), reshuffle_each_iteration=True)
        .repeat()
    )
    found = seeds_set.map(small, num_parallel_calls=2).unbatch().shuffle(64 * each)
    return found.batch(batch, drop_remainder=True).map(change, num_parallel_calls=1).prefetch(4)


def on_grid(planes: Any, side: int) -> Any:
    """Planes (N, H, W) on the U-Net's grid (N, side, side), as `LungSegmenter` does it."""
    shape = tf.shape(planes)
    grid = in_plane(full_axis_matrix(side, shape[1]), planes, full_axis_matrix(side, shape[2]))
    return tf.ensure_shape(grid, [None, side, side])


def loss(mask: Any, logits: Any) -> Any:
    """Cross-entropy plus soft Dice over the batch (one scan's slices without lung would make Dice jump)."""
    logits = tf.cast(logits, tf.float32)
    entropy = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=mask, logits=logits))
    share = tf.sigmoid(logits)
    overlap = (2 * tf.reduce_sum(share * mask) + 1) / (tf.reduce_sum(share) + tf.reduce_sum(mask) + 1)
    return entropy + 0.5 * (1 - overlap)


def dice_per_case(network: keras.Model, folder: Path, seeds: range) -> list[float]:
    """Dice on the U-Net's grid, one for each unseen chest, without augmentation."""
    side, window, found = network.input_shape[1], HUWindow(), []
    for case in read_cases(folder, seeds):
        slices = window(on_grid(clipped_hu(case.hu), side))[..., tf.newaxis]
        mask = network.predict(slices, batch_size=16, verbose=0)["logits"][..., 0] > 0
        truth = on_grid(case.lungs.astype(np.float32), side).numpy() >= 0.5
        found.append(float(2 * (mask & truth).sum() / max(mask.sum() + truth.sum(), 1)))
    return found


@click.command()
@click.option("--cases", "folder", type=click.Path(path_type=Path), required=True, help="Where the chests are kept.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The model's folder.")
@click.option("--seed", default=1, show_default=True)
@click.option("--train", default=1500, show_default=True, help="Chests to learn from: seeds 0 … train − 1.")
@click.option("--unseen", default=100, show_default=True, help="Chests to measure on: seeds 1000000 ….")
@click.option("--side", default=128, show_default=True, help="Mask grid, in pixels.")
@click.option("--filters", default=16, show_default=True)
@click.option("--epochs", default=15, show_default=True, help="Epochs of --steps steps.")
@click.option("--steps", default=100, show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option("--rate", default=2e-3, show_default=True, help="Peak learning rate.")
def main(
    folder: Path,
    out: Path,
    seed: int,
    train: int,
    unseen: int,
    side: int,
    filters: int,
    epochs: int,
    steps: int,
    batch: int,
    rate: float,
) -> None:
    """Train the lung U-Net on synthetic chests; a killed run continues."""
    setup(seed)
    held_out = range(UNSEEN, UNSEEN + unseen)
    draw_cases(folder, range(train))
    draw_cases(folder, held_out)
    arguments: dict[str, Any] = {"input_shape": [side, side, 1], "filters": filters}
    network = UNet(**arguments)
    data = slices(folder, range(train), side=side, each=8, batch=batch).map(lambda x, y: (x, {"logits": y}))
    curves = fit(network, data, out, epochs=epochs, steps=steps, rate=rate, loss={"logits": loss})
    contract = Contract(
        model="unet",
        arguments=arguments,
        task="lungs",
        note=NOTE,
        origin=f"tf_covid.training.lungs, seed {seed}",
        licence="Apache-2.0",
    )
    save_model(network, contract, out / "model.keras", dtype="float16")
    # Measured on what ships: the float16 file, read back.
    dice = dice_per_case(load_model(out / "model.keras"), folder, held_out)
    log.info("unseen chests: Dice mean %.4f, lowest %.4f", np.mean(dice), np.min(dice))
    write_card(
        out,
        task=TASK,
        command=shlex.join(["python", "-m", "tf_covid.training.lungs", *sys.argv[1:]]),
        curves=curves,
        figures=figures(dice),
    )


def figures(dice: Sequence[float]) -> dict[str, str]:
    """What the model card says of the Dice on unseen chests."""
    kind = f"{len(dice)} unseen synthetic chests, mask grid"
    return {
        f"Dice, mean of {kind}": f"{np.mean(dice):.4f}",
        f"Dice, median of {kind}": f"{np.median(dice):.4f}",
        f"Dice, lowest of {kind}": f"{np.min(dice):.4f}",
    }


if __name__ == "__main__":
    main()
