"""Clips of synthetic chests.

Cut once by the stratifier's own layers behind the lung U-Net, then varied in batches.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_covid.atomic import replacing
from tf_covid.preprocessor import Preprocessor
from tf_covid.tensor import Tensor
from tf_covid.training import augment
from tf_covid.training.cases import cases_folder, read_case
from tf_covid.training.dense import pooled

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clips:
    """What a classifier learns from.

    Args:
        planes: uint8 (N, 3, T, H, W): windowed HU, not masked; share of lung; share of disease;
            each 0–255 for 0–1.
        classes: int32 (N,), severity class.
        scores: float32 (N,), CT score.
    """

    planes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray

    def __getitem__(self, rows: slice) -> Clips:
        """Some of them."""
        return Clips(self.planes[rows], self.classes[rows], self.scores[rows])


def make_clips(folder: Path, seeds: range, preprocessor: Preprocessor, lungs_sha256: str) -> Path:
    """The clip of every case, made once by the stratifier's own layers.

    What is there already is kept.

    Args:
        folder: Folder of the cases.
        seeds: Seeds of the cases.
        preprocessor: Preprocessor with the network's clip size.
        lungs_sha256: sha256 of the lung model: clips of another one are never met.

    Returns:
        Folder of `<seed>.npy`, a row of `Clips.planes` each.
    """
    frames, height, width = (
        preprocessor.sampler.frames,
        preprocessor.sampler.height,
        preprocessor.sampler.width,
    )
    # What follows the mask: another margin of the box, another window.
    route = hashlib.sha256(repr(preprocessor.settings).encode()).hexdigest()[:6]
    clips = cases_folder(folder) / f"clips-{frames}x{height}x{width}-{route}-{lungs_sha256[:12]}"
    lungs = cases_folder(folder) / f"lungs-{lungs_sha256[:12]}"
    for made in (clips, lungs):
        made.mkdir(exist_ok=True)
    volume = tf.TensorSpec([1, None, None, None], tf.int16)
    segment = tf.function(
        preprocessor.segment, input_signature=[volume, tf.TensorSpec([1], tf.int32)]
    )

    @tf.function(input_signature=[volume, volume, tf.TensorSpec([1, None, None, None], tf.float32)])
    def cut(hu: Tensor, lesions: Tensor, probability: Tensor) -> Tensor:
        results = preprocessor.cut(hu, probability)
        lesion_mask = preprocessor.sampler(lesions, results["keep"], results["box"])
        parts = tf.concat([results["clip"], results["lungs"], lesion_mask], axis=0)
        return tf.cast(tf.round(parts * 255.0), tf.uint8)

    for index, seed in enumerate(seeds, 1):
        path, masks = clips / f"{seed:08d}.npy", lungs / f"{seed:08d}.npy"
        if path.exists():
            continue
        case = read_case(folder, seed)
        hu, lesions = case.hu[np.newaxis], case.lesions[np.newaxis].astype(np.int16)
        if not masks.exists():  # the slowest step, and the same for clips of any size
            results = segment(hu, np.array([len(case.hu)], np.int32))["lungs"].numpy()
            _save(masks, np.rint(results * 255.0).astype(np.uint8))
        _save(path, cut(hu, lesions, np.load(masks).astype(np.float32) / 255.0).numpy())
        if index % 100 == 0:
            log.info("cut %d clips of %d", index, len(seeds))
    return clips


def _save(path: Path, array: np.ndarray) -> None:
    """Write an array as a whole."""
    with replacing(path) as partial, partial.open("wb") as file:
        np.save(file, array)


def read_clips(folder: Path, clips: Path, seeds: range) -> Clips:
    """The clips of `make_clips` with their truth."""
    truths = [read_case(folder, seed) for seed in seeds]
    return Clips(
        np.stack([np.load(clips / f"{seed:08d}.npy") for seed in seeds]),
        np.array([truth.severity for truth in truths], np.int32),
        np.array([truth.ct_score for truth in truths], np.float32),
    )


def masked(clips: Clips, preprocessor: Preprocessor) -> np.ndarray:
    """The clips as the network meets them, float32 (N, T, H, W, C), unchanged by augmentation."""
    shares = clips.planes.astype(np.float32) / 255.0
    return np.concatenate([preprocessor.finish(one[:1], one[1:2]).numpy() for one in shares])


def batches(
    clips: Clips,
    preprocessor: Preprocessor,
    grids: dict[str, tuple[int, int, int]],
    *,
    batch: int,
    seed: int,
) -> tf.data.Dataset:
    """Endless augmented batches.

    Clips, and class, CT score and the disease on each of `grids` (name → its cells).
    """

    def pick(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return clips.planes[numbers], clips.classes[numbers], clips.scores[numbers]

    def take(numbers: Tensor) -> tuple[Any, Any]:
        planes, label, score = tf.numpy_function(pick, [numbers], [tf.uint8, tf.int32, tf.float32])
        planes.set_shape([batch, *clips.planes.shape[1:]])
        label.set_shape([batch])
        score.set_shape([batch])
        shares = tf.cast(planes, tf.float32) / 255.0
        clip, lesions = augment.clips(shares[:, 0], shares[:, 1], shares[:, 2])
        truth = {"logits": label, "ct_score": score[:, tf.newaxis]}
        for name, cells in grids.items():
            truth[name] = pooled(lesions, cells)
        return preprocessor.scaling(tf.repeat(clip, preprocessor.masked.channels, axis=-1)), truth

    numbers = tf.data.Dataset.range(len(clips.classes)).shuffle(
        len(clips.classes), seed=seed, reshuffle_each_iteration=True
    )
    return (
        numbers.repeat()
        .batch(batch, drop_remainder=True)
        .map(take, num_parallel_calls=1)
        .prefetch(4)
    )
