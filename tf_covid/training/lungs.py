"""Train the lung U-Net that ships, with its output for diseased lung, on synthetic chests.

python -m tf_covid.training.lungs --cases build/cases --out saved_models/lungs-unet
"""

from __future__ import annotations

import functools
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

from tf_covid import severity
from tf_covid.layers import HUWindow
from tf_covid.layers.resample import clipped_hu, full_axis_matrix, in_plane
from tf_covid.models import UNet
from tf_covid.tensor import Tensor
from tf_covid.training import augment
from tf_covid.training.card import write_card
from tf_covid.training.cases import UNSEEN, draw_cases, drawn, phantom_mark, read_case, read_cases
from tf_covid.training.initialise import start_from
from tf_covid.training.losses import mask_loss
from tf_covid.training.run import NOTE, fit, setup
from tf_covid.weights import Contract, load_model, save_model

log = logging.getLogger(__name__)

TASK = (
    "2D U-Net: a slice in the study's lung window in; for each pixel the logit of “lung”, and that"
    " of “diseased lung” (glass, consolidation), out."
)


#: What a pixel of lung, and of disease, weighs against one outside. Pixels at the rim of glass are
#: a matter of chance; trained on with equal weights, the involvement came out up to 3 points too
#: low in lungs with disease.
FOUND = (1.0, 2.0)


def slices(
    folder: Path, seeds: range, *, side: int, each: int, batch: int, seed: int
) -> tf.data.Dataset:
    """Endless augmented batches.

    Windowed slices (batch, side, side, 1), masks of lung and disease (…, 2).
    """

    def draw(turn: np.ndarray, slice_index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        case = read_case(folder, int(slice_index))
        chosen = np.random.default_rng([seed, int(turn)]).integers(0, len(case.hu), each)
        masks = np.stack([case.lungs[chosen], case.lesions[chosen]])
        return case.hu[chosen].astype(np.float32), masks.astype(np.float32)

    def small(turn: Tensor, slice_index: Tensor) -> tuple[Any, Any]:
        hu, masks = tf.numpy_function(draw, [turn, slice_index], [tf.float32, tf.float32])
        hu.set_shape([each, None, None])
        masks.set_shape([2, each, None, None])
        return on_grid(clipped_hu(hu), side), tf.stack(
            [on_grid(masks[n], side) for n in range(2)], axis=-1
        )

    window = HUWindow()
    # White lungs, the hardest to tell from what surrounds them, three times as often: the class
    # follows from the seed.
    white = [
        slice_index
        for slice_index in seeds
        if slice_index % len(severity.LABELS) == len(severity.LABELS) - 1
    ]
    numbers = [*seeds, *white, *white]

    def change(hu: Tensor, mask: Tensor) -> tuple[Any, Any]:
        hu, mask = augment.slice_and_mask(hu, mask)
        return window(hu)[..., tf.newaxis], mask

    seeds_set = (
        tf.data.Dataset.from_tensor_slices(np.asarray(numbers))
        .shuffle(len(numbers), reshuffle_each_iteration=True)
        .repeat()
        .enumerate()
    )
    results = seeds_set.map(small, num_parallel_calls=2).unbatch().shuffle(64 * each)
    return results.batch(batch, drop_remainder=True).map(change, num_parallel_calls=1).prefetch(4)


def on_grid(planes: Tensor, side: int) -> Tensor:
    """Planes (N, H, W) on the U-Net's grid (N, side, side), as `LungSegmenter` does it."""
    shape = tf.shape(planes)
    grid = in_plane(full_axis_matrix(side, shape[1]), planes, full_axis_matrix(side, shape[2]))
    return tf.ensure_shape(grid, [None, side, side])


def measure(network: keras.Model, folder: Path, seeds: range) -> tuple[list[float], np.ndarray]:
    """How the network does on unseen chests, on the U-Net's grid, without augmentation.

    Returns:
        Dice of the lungs, one a chest; and involvement in percent, found and true, (2, chests).
    """
    side, window = network.input_shape[1], HUWindow()
    dice, involved = [], []
    for case in read_cases(folder, seeds):
        slices = window(on_grid(clipped_hu(case.hu), side))[..., tf.newaxis]
        mask, disease = np.moveaxis(
            network.predict(slices, batch_size=16, verbose=0)["logits"] > 0, -1, 0
        )
        truth = on_grid(case.lungs.astype(np.float32), side).numpy() >= 0.5
        dice.append(float(2 * (mask & truth).sum() / max(mask.sum() + truth.sum(), 1)))
        involved.append(
            (
                100 * (mask & disease).sum() / max(mask.sum(), 1),
                100 * case.lesions.sum() / case.lungs.sum(),
            )
        )
    return dice, np.transpose(involved)


@click.command()
@click.option(
    "--cases",
    "folder",
    type=click.Path(path_type=Path),
    required=True,
    help="Where the chests are kept.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The model's folder.")
@click.option("--seed", default=1, show_default=True)
@click.option(
    "--train", default=1500, show_default=True, help="Chests to learn from: seeds 0 … train − 1."
)
@click.option(
    "--unseen", default=100, show_default=True, help="Chests to measure on: seeds 1000000 …."
)
@click.option("--side", default=128, show_default=True, help="Mask grid, in pixels.")
@click.option("--filters", default=16, show_default=True)
@click.option("--epochs", default=15, show_default=True, help="Epochs of --steps steps.")
@click.option("--steps", default=100, show_default=True)
@click.option("--batch", default=16, show_default=True)
@click.option("--rate", default=2e-3, show_default=True, help="Peak learning rate.")
@click.option(
    "--init",
    type=click.Path(exists=True, path_type=Path),
    help="Weights to start from, a file of ours.",
)
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
    init: Path | None,
) -> None:
    """Train the lung U-Net on synthetic chests; a killed run continues."""
    order = setup(seed, out)
    unseen_seeds = range(UNSEEN, UNSEEN + unseen)
    draw_cases(folder, range(train))
    draw_cases(folder, unseen_seeds)
    arguments: dict[str, Any] = {"input_shape": [side, side, 1], "filters": filters, "outputs": 2}
    network = UNet(**arguments)
    origin = start_from(network, init)
    results = slices(folder, range(train), side=side, each=8, batch=batch, seed=order)
    data = results.map(lambda x, y: (x, {"logits": y}))
    loss = functools.partial(mask_loss, pixel_weights=FOUND)
    curves = fit(network, data, out, epochs=epochs, steps=steps, rate=rate, loss={"logits": loss})
    contract = Contract(
        model="unet",
        arguments=arguments,
        task="lungs",
        note=NOTE,
        origin=f"tf_covid.training.lungs, phantom {phantom_mark()}, seed {seed}{origin}",
        licence="Apache-2.0",
        trained_on=drawn(train, init),
    )
    ship(
        network,
        contract,
        out,
        folder,
        unseen_seeds,
        program="tf_covid.training.lungs",
        curves=curves,
    )


def ship(
    network: keras.Model,
    contract: Contract,
    out: Path,
    folder: Path,
    unseen_seeds: range,
    *,
    program: str,
    curves: dict[str, list[float]],
) -> None:
    """Write a lung model's file and card, with its figures on the chests `unseen_seeds`.

    Args:
        network: The lung model.
        contract: What its file says.
        out: The model's folder.
        folder: Folder of the chests.
        unseen_seeds: Seeds of those chests.
        program: The module whose command made it, for the card.
        curves: Name → one value an epoch; empty if nothing was trained.
    """
    save_model(network, contract, out / "model.keras", dtype="float16")
    # Measured on what ships: the float16 file, read back.
    table = figures(*measure(load_model(out / "model.keras"), folder, unseen_seeds))
    log.info("unseen chests: %s", table)
    command = shlex.join(["python", "-m", program, *sys.argv[1:]])
    write_card(out, task=TASK, command=command, curves=curves, figures=table)


def figures(dice: Sequence[float], involved: np.ndarray) -> dict[str, str]:
    """What the model card says of the unseen chests."""
    results, true = involved
    kind = f"{len(dice)} unseen synthetic chests, mask grid"
    return {
        f"Dice, mean of {kind}": f"{np.mean(dice):.4f}",
        f"Dice, median of {kind}": f"{np.median(dice):.4f}",
        f"Dice, lowest of {kind}": f"{np.min(dice):.4f}",
        f"involvement, correlation with the truth, {kind}": (
            f"{np.corrcoef(results, true)[0, 1]:.3f}"
        ),
        f"involvement, mean error in percentage points, {kind}": (
            f"{np.abs(results - true).mean():.2f}"
        ),
    }


if __name__ == "__main__":
    main()
