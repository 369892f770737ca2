"""Train the severity I3D that ships, on clips that the shipped lung U-Net cuts out of synthetic chests.

python -m tf_covid.training.severity --cases build/cases --out saved_models/severity-i3d
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import click
import keras
import numpy as np
import tensorflow as tf

from tf_covid import severity
from tf_covid.models import I3D
from tf_covid.stratifier_model import Stratifier
from tf_covid.training import augment
from tf_covid.training.card import write_card
from tf_covid.training.cases import UNSEEN, draw_cases, read_case
from tf_covid.training.run import NOTE, fit, setup
from tf_covid.weights import Contract, Preprocessing, load, save_model

log = logging.getLogger(__name__)


def make_clips(folder: Path, seeds: range, road: Stratifier, mark: str) -> Path:
    """The clip of every case, made once by the stratifier's own layers; what is there already is kept.

    Args:
        folder: The cases.
        seeds: Which of them.
        road: Stratifier with the network's clip size.
        mark: The lung model's sha256: clips of another one are never met.

    Returns:
        Folder of `<seed>.npy`, float16 (T, H, W, 1) in [0, 1].
    """
    frames, height, width = road.sampler.frames, road.sampler.height, road.sampler.width
    clips = folder / f"clips-{frames}x{height}x{width}-{mark[:12]}"
    clips.mkdir(exist_ok=True)
    volume = tf.TensorSpec([1, None, None, None], tf.int16)

    @tf.function(input_signature=[volume, tf.TensorSpec([1], tf.int32)])
    def cut(hu: Any, depth: Any) -> Any:
        return road.prepare(hu, road.segment(hu, depth))["clip"]

    for seed in seeds:
        path = clips / f"{seed:08d}.npy"
        if path.exists():
            continue
        hu = read_case(folder, seed).hu
        clip = cut(hu[np.newaxis], np.array([len(hu)], np.int32)).numpy()[0]
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, clip.astype(np.float16))
        os.replace(partial, path)
        if seed % 100 == 99:
            log.info("cut %d clips", seed + 1)
    return clips


def read_clips(folder: Path, clips: Path, seeds: range) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clips float16 (N, T, H, W, 1), classes int32 (N,) and CT scores float32 (N,)."""
    truths = [read_case(folder, seed) for seed in seeds]
    classes = np.array([truth.severity for truth in truths], np.int32)
    scores = np.array([truth.ct_score for truth in truths], np.float32)
    return np.stack([np.load(clips / f"{seed:08d}.npy") for seed in seeds]), classes, scores


def batches(clips: np.ndarray, classes: np.ndarray, scores: np.ndarray, *, batch: int) -> tf.data.Dataset:
    """Endless augmented batches."""

    def pick(number: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return clips[number].astype(np.float32), classes[number], scores[number]

    def take(number: Any) -> tuple[Any, Any]:
        clip, label, score = tf.numpy_function(pick, [number], [tf.float32, tf.int32, tf.float32])
        clip.set_shape([None, *clips.shape[1:]])
        label.set_shape([None])
        score.set_shape([None])
        return augment.clips(clip), {"logits": label, "ct_score": score[:, tf.newaxis]}

    numbers = tf.data.Dataset.range(len(clips)).shuffle(len(clips), reshuffle_each_iteration=True).repeat()
    return numbers.batch(batch, drop_remainder=True).map(take, num_parallel_calls=1).prefetch(4)


def score_loss(truth: Any, score: Any) -> Any:
    """Squared error of the CT score, in units of its range of 25."""
    return tf.reduce_mean(tf.square((score - truth) / severity.CLASS_UPPER_SCORES[-1]))


def measure(network: keras.Model, clips: np.ndarray, classes: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    """How the network does on unseen chests: agreement of the classes, error of the CT score."""
    from sklearn.metrics import cohen_kappa_score, confusion_matrix

    outputs = network.predict(clips.astype(np.float32), batch_size=4, verbose=0)
    found = outputs["logits"].argmax(axis=1)
    return {
        "cases": len(classes),
        "accuracy": float((found == classes).mean()),
        "within_one": float((np.abs(found - classes) <= 1).mean()),
        "quadratic_kappa": float(cohen_kappa_score(classes, found, weights="quadratic", labels=range(5))),
        "ct_score_mean_error": float(np.abs(outputs["ct_score"][:, 0] - scores).mean()),
        "ct_score_correlation": float(np.corrcoef(outputs["ct_score"][:, 0], scores)[0, 1]),
        "confusion_matrix": confusion_matrix(classes, found, labels=range(5)).tolist(),
    }


@click.command()
@click.option("--cases", "folder", type=click.Path(path_type=Path), required=True, help="Where the chests are kept.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The model's folder.")
@click.option("--lungs", default="lungs-unet", show_default=True, help="The lung model, by name or file.")
@click.option("--seed", default=1, show_default=True)
@click.option("--train", default=1500, show_default=True, help="Chests to learn from: seeds 0 … train − 1.")
@click.option("--unseen", default=100, show_default=True, help="Chests to measure on: seeds 1000000 ….")
@click.option("--clip", default=(24, 96, 96), show_default=True, type=(int, int, int), help="Frames, height, width.")
@click.option("--epochs", default=12, show_default=True, help="Epochs of --steps steps.")
@click.option("--steps", default=100, show_default=True)
@click.option("--batch", default=8, show_default=True)
@click.option("--rate", default=1e-3, show_default=True, help="Peak learning rate.")
@click.option("--precision", type=click.Choice(["float32", "mixed_bfloat16"]), default="mixed_bfloat16")
def main(
    folder: Path, out: Path, lungs: str, seed: int, train: int, unseen: int, clip: tuple[int, int, int], epochs: int,
    steps: int, batch: int, rate: float, precision: str,
) -> None:  # fmt: skip
    """Train the severity I3D on synthetic chests; a killed run continues."""
    setup(seed)
    held_out = range(UNSEEN, UNSEEN + unseen)
    draw_cases(folder, held_out)
    draw_cases(folder, range(train))
    unet = load(lungs)
    arguments: dict[str, Any] = {"input_shape": [*clip, 1], "classes": 5, "ct_score": True, "dropout": 0.3}
    network = I3D(**arguments, dtype=precision)
    preprocessing = Preprocessing()
    road = Stratifier(network, unet.network, preprocessing)
    for seeds in (held_out, range(train)):
        where = make_clips(folder, seeds, road, unet.sha256)
    curves = fit(
        network,
        batches(*read_clips(folder, where, range(train)), batch=batch),
        out,
        epochs=epochs,
        steps=steps,
        rate=rate,
        loss={"logits": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "ct_score": score_loss},
        loss_weights={"logits": 1.0, "ct_score": 10.0},
        metrics={"logits": "accuracy"},
    )
    contract = Contract(
        model="i3d",
        arguments=arguments,
        task="severity",
        preprocessing=preprocessing,
        classes=severity.LABELS,
        lungs_sha256=unet.sha256,
        note=NOTE,
        origin=f"tf_covid.training.severity, seed {seed}",
        licence="Apache-2.0",
    )
    save_model(network, contract, out / "model.keras", dtype="float16")
    # Measured on what ships: the float16 file, read back, in float32.
    found = measure(load(out / "model.keras").network, *read_clips(folder, where, held_out))
    log.info("unseen chests: %s", json.dumps(found))
    write_card(
        out,
        task="I3D: the kept slices of a chest CT, masked to the lungs, in; severity class and CT score out.",
        command=shlex.join(["python", "-m", "tf_covid.training.severity", *sys.argv[1:]]),
        curves=curves,
        figures=figures(found),
    )


def figures(found: dict[str, Any]) -> dict[str, str]:
    """What the model card says of the unseen chests."""
    table = "; ".join(" ".join(str(count) for count in row) for row in found["confusion_matrix"])
    kind = f"{found['cases']} unseen synthetic chests"
    return {
        f"quadratic weighted kappa, {kind}": f"{found['quadratic_kappa']:.3f}",
        f"accuracy, {kind}": f"{found['accuracy']:.3f}",
        f"within one class, {kind}": f"{found['within_one']:.3f}",
        f"mean error of the CT score (0–25), {kind}": f"{found['ct_score_mean_error']:.2f}",
        f"correlation of the CT score, {kind}": f"{found['ct_score_correlation']:.3f}",
        "confusion matrix (row = truth, column = answer, 0 … 4)": table,
    }


if __name__ == "__main__":
    main()
