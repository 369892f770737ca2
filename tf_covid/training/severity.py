"""Train a severity network that ships, on clips of synthetic chests.

python -m tf_covid.training.severity --model i3d --cases build/cases --out saved_models/severity-i3d
"""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import keras
import numpy as np

from tf_covid import severity
from tf_covid.models import I3D, LTC
from tf_covid.preprocessor import Preprocessor
from tf_covid.training.card import write_card
from tf_covid.training.cases import UNSEEN, draw_cases, drawn, phantom_mark
from tf_covid.training.clips import Clips, batches, make_clips, masked, read_clips
from tf_covid.training.cpu_layers import cpu_optimised
from tf_covid.training.dense import add_deep_supervision
from tf_covid.training.initialise import data_dependent_init, preprocessing_of_init, start_from
from tf_covid.training.losses import disease_loss, score_loss
from tf_covid.training.run import NOTE, continues, fit, setup, train_only
from tf_covid.weights import Contract, load, save_model
from tf_covid.weights.files import POLICIES

log = logging.getLogger(__name__)

#: Where Grad-CAM points best, by `benchmarks/attention.py`; the last endpoint where it is not
#: named.
ENDPOINTS = {"i3d": "Mixed_3c", "ltc": "conv3"}


def measure(network: keras.Model, clips: np.ndarray, truth: Clips) -> dict[str, Any]:
    """How the network does on unseen chests: agreement of the classes, error of the CT score."""
    from sklearn.metrics import cohen_kappa_score, confusion_matrix

    outputs = network.predict(clips, batch_size=4, verbose=0)
    results, classes = outputs["logits"].argmax(axis=1), truth.classes
    error = np.abs(outputs["ct_score"][:, 0] - truth.scores)
    mild = classes == 1
    return {
        "cases": len(classes),
        "accuracy": float((results == classes).mean()),
        "within_one": float((np.abs(results - classes) <= 1).mean()),
        "mild_recall": float((results[mild] == 1).mean()) if mild.any() else float("nan"),
        "quadratic_kappa": float(
            cohen_kappa_score(classes, results, weights="quadratic", labels=range(5))
        ),
        "ct_score_mean_error": float(error.mean()),
        "ct_score_within_3": float((error <= 3.0).mean()),
        "ct_score_correlation": float(np.corrcoef(outputs["ct_score"][:, 0], truth.scores)[0, 1]),
        "confusion_matrix": confusion_matrix(classes, results, labels=range(5)).tolist(),
    }


@dataclass(frozen=True)
class Recipe:
    """How one of the two networks is built and taught.

    Args:
        build: The network's builder.
        arguments: Arguments of the builder, without the clip.
        clip: Frames, height and width that it is trained on.
        endpoints: Layers that are asked for the disease in training.
        task: What the model card says.
    """

    build: Callable[..., keras.Model]
    arguments: dict[str, Any]
    clip: tuple[int, int, int]
    endpoints: tuple[str, ...]
    task: str


RECIPES = {
    "i3d": Recipe(
        I3D,
        {"dropout": 0.3},
        (24, 96, 96),
        ("Mixed_3c", "Mixed_4f"),
        "I3D: the kept slices of a chest CT, masked to the lungs, in; severity class and CT score"
        " out.",
    ),
    "ltc": Recipe(
        LTC,
        {"dense": 512, "dropout": 0.3},
        (16, 64, 64),
        ("conv3", "conv4"),
        "LTC: the kept slices of a chest CT, masked to the lungs, in; severity class and CT score"
        " out.",
    ),
}


@click.command()
@click.option("--model", "kind", type=click.Choice(list(RECIPES)), default="i3d", show_default=True)
@click.option(
    "--cases",
    "folder",
    type=click.Path(path_type=Path),
    required=True,
    help="Where the chests are kept.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The model's folder.")
@click.option(
    "--lungs", default="lungs-unet", show_default=True, help="The lung model, by name or file."
)
@click.option(
    "--init",
    type=click.Path(exists=True, path_type=Path),
    help="Weights to start from, a file of ours.",
)
@click.option("--seed", default=1, show_default=True)
@click.option(
    "--train", default=800, show_default=True, help="Chests to learn from: seeds 0 … train − 1."
)
@click.option(
    "--unseen", default=300, show_default=True, help="Chests to measure on: seeds 1000000 …."
)
@click.option(
    "--clip",
    type=(int, int, int),
    help="Frames, height, width; i3d 24 96 96, ltc 16 64 64 if not given.",
)
@click.option("--epochs", default=12, show_default=True, help="Epochs of --steps steps.")
@click.option("--steps", default=50, show_default=True)
@click.option("--batch", default=8, show_default=True)
@click.option("--rate", default=1e-3, show_default=True, help="Peak learning rate.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of the training's arithmetic; weights, losses and what is measured are float32.",
)
def main(
    kind: str,
    folder: Path,
    out: Path,
    lungs: str,
    init: Path | None,
    seed: int,
    train: int,
    unseen: int,
    clip: tuple[int, int, int] | None,
    epochs: int,
    steps: int,
    batch: int,
    rate: float,
    precision: str,
) -> None:
    """Train a severity network on synthetic chests; a killed run continues."""
    if kind == "i3d" and precision == "bfloat16":
        # Seen on processors with avx512_bf16: see docs/training.md.
        raise click.UsageError(
            "the gradient of some of I3D's convolutions is not a number in bfloat16 on a CPU"
        )
    order = setup(seed, out)
    recipe, unseen_seeds = RECIPES[kind], range(UNSEEN, UNSEEN + unseen)
    clip = clip or recipe.clip
    if kind == "ltc" and any(side % full for side, full in zip(clip, (16, 32, 32), strict=True)):
        # Its pools leave out what does not fill a window: the lung bases, or the back.
        raise click.UsageError(f"LTC sees all of a clip in multiples of 16×32×32 only, not {clip}")
    draw_cases(folder, unseen_seeds)
    draw_cases(folder, range(train))
    unet = load(lungs)
    preprocessing, channels, shared = preprocessing_of_init(init)
    arguments = {
        "input_shape": [*clip, channels],
        "classes": len(severity.LABELS),
        "ct_score": True,
        **recipe.arguments,
        **shared,
    }
    network = recipe.build(**arguments)
    origin = start_from(network, init)
    preprocessor = Preprocessor(unet.network, network.input_shape[1:], preprocessing)
    for seeds in (unseen_seeds, range(train)):
        where = make_clips(folder, seeds, preprocessor, unet.sha256)
    seen = read_clips(folder, where, range(train))
    if kind == "ltc" and init is None:
        data_dependent_init(network, masked(seen[:64], preprocessor))
    trained = recipe.build(**arguments, dtype=POLICIES[precision])
    trained.set_weights(network.get_weights())
    curves = teach(
        trained,
        recipe,
        preprocessor,
        seen,
        out,
        epochs=epochs,
        steps=steps,
        batch=batch,
        rate=rate,
        seed=order,
        knows=init is not None,
    )
    network.set_weights(trained.get_weights())
    contract = Contract(
        model=kind,
        arguments=arguments,
        task="severity",
        preprocessing=preprocessing,
        classes=severity.LABELS,
        endpoint=ENDPOINTS.get(kind),
        lungs_sha256=unet.sha256,
        note=NOTE,
        origin=f"tf_covid.training.severity, {kind}, phantom {phantom_mark()}, seed {seed}{origin}",
        licence="Apache-2.0",
        trained_on=drawn(train, init),
    )
    save_model(network, contract, out / "model.keras", dtype="float16")
    # Measured on what ships: the float16 file, read back, in float32.
    truth = read_clips(folder, where, unseen_seeds)
    results = measure(load(out / "model.keras").network, masked(truth, preprocessor), truth)
    log.info("unseen chests: %s", json.dumps(results))
    command = shlex.join(["python", "-m", "tf_covid.training.severity", *sys.argv[1:]])
    write_card(out, task=recipe.task, command=command, curves=curves, figures=figures(results))


def teach(
    network: keras.Model,
    recipe: Recipe,
    preprocessor: Preprocessor,
    clips: Clips,
    out: Path,
    *,
    epochs: int,
    steps: int,
    batch: int,
    rate: float,
    seed: int,
    knows: bool = False,
) -> dict[str, list[float]]:
    """Train the network in place, with the disease at its endpoints as further teachers.

    Args:
        network: Network that is trained.
        recipe: Row of the table of recipes.
        preprocessor: Preprocessor of the network.
        clips: Clips and truth of the training chests.
        out: Folder of the curves and the backup.
        epochs: Number of epochs.
        steps: Batches an epoch.
        batch: Clips a batch.
        rate: Highest learning rate.
        seed: Seed of order and augmentation.
        knows: Whether the network has learned before. Its new disease outputs are then trained
            alone for an epoch: their first gradients, of random weights, would undo what it knows.

    Returns:
        Name → one value an epoch.
    """
    trained, grids = add_deep_supervision(cpu_optimised(network), recipe.endpoints)
    losses: dict[str, Any] = {name: disease_loss for name in grids}
    losses["logits"] = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    losses["ct_score"] = score_loss
    data = batches(clips, preprocessor, grids, batch=batch, seed=seed)
    if knows and not continues(out):
        train_only(trained, tuple(grids), data, steps=steps, rate=3e-3, loss=losses)
    curves = fit(
        trained,
        data,
        out,
        epochs=epochs,
        steps=steps,
        rate=rate,
        loss=losses,
        loss_weights={"logits": 1.0, "ct_score": 40.0} | dict.fromkeys(grids, 2.0),
        metrics={"logits": "accuracy"},
    )
    for layer in network.layers:
        layer.set_weights(trained.get_layer(layer.name).get_weights())
    return curves


def figures(measured: dict[str, Any]) -> dict[str, str]:
    """What the model card says of the unseen chests."""
    table = "; ".join(" ".join(str(count) for count in row) for row in measured["confusion_matrix"])
    kind = f"{measured['cases']} unseen synthetic chests"
    return {
        f"quadratic weighted kappa, {kind}": f"{measured['quadratic_kappa']:.3f}",
        f"recall of mild disease, {kind}": f"{measured['mild_recall']:.3f}",
        f"CT score within ±3, {kind}": f"{measured['ct_score_within_3']:.3f}",
        f"accuracy, {kind}": f"{measured['accuracy']:.3f}",
        f"within one class, {kind}": f"{measured['within_one']:.3f}",
        f"mean error of the CT score (0–25), {kind}": f"{measured['ct_score_mean_error']:.2f}",
        f"correlation of the CT score, {kind}": f"{measured['ct_score_correlation']:.3f}",
        "confusion matrix (row = truth, column = answer, 0 … 4)": table,
    }


if __name__ == "__main__":
    main()
