"""A lung U-Net small enough to be trained dozens of times.

To compare what it is trained on, not to be used.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from sanity import dice

from tf_covid.cohort.augment import Draws, affine_matrices, flip, warp
from tf_covid.layers import HUWindow
from tf_covid.layers.resample import clipped_hu, full_axis_matrix, in_plane
from tf_covid.models import UNet
from tf_covid.tensor import Tensor

SIDE, FILTERS, BATCH, RATE = 64, 8, 16, 2e-3

Slices = tuple[np.ndarray, np.ndarray]


def small(hu: np.ndarray, lungs: np.ndarray) -> Slices:
    """One scan, int16 (D, H, W), and its lungs on the U-Net's grid.

    HU and share of lung, float16 (D, 64, 64).
    """
    planes, share = on_grid(clipped_hu(hu), SIDE), on_grid(tf.constant(lungs, tf.float32), SIDE)
    return planes.numpy().astype(np.float16), share.numpy().astype(np.float16)


def train(scans: Iterable[Slices], steps: int, seed: int) -> keras.Model:
    """Train a U-Net on slices of `small` with Adam and cosine decay."""
    keras.utils.set_random_seed(seed)
    hu, share = (np.concatenate(parts) for parts in zip(*scans, strict=True))
    data = tf.data.Dataset.from_tensor_slices((hu, share)).shuffle(len(hu)).repeat().batch(BATCH)
    network = UNet((SIDE, SIDE, 1), filters=FILTERS)
    warm = max(steps // 10, 1)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps - warm, alpha=0.01, warmup_target=RATE, warmup_steps=warm
    )
    network.compile(
        keras.optimizers.Adam(rate, clipnorm=1.0), loss={"logits": _loss}, jit_compile=False
    )
    network.fit(data.map(_changed).prefetch(2), steps_per_epoch=steps, shuffle=False, verbose=0)
    return network


def _changed(hu: Tensor, share: Tensor) -> tuple[Any, Any]:
    """Rotated, scaled, shifted and mirrored.

    Neither noise nor blur, which would stand in for the scanner's.
    """
    count = tf.shape(hu)[0]
    draws = Draws(tf.random.uniform([2], maxval=2**31 - 1, dtype=tf.int32))
    both = tf.stack([tf.cast(hu, tf.float32) + 1024.0, tf.cast(share, tf.float32)], axis=-1)
    matrices = affine_matrices(draws, count, degrees=20, scale=(0.72, 1.3), shift=0.1, side=SIDE)
    both = flip(warp(both, matrices, 0.0), 2, draws.chance(count, 0.5))
    return HUWindow()(both[..., :1] - 1024.0), {"logits": tf.cast(both[..., 1:] >= 0.5, tf.float32)}


def on_grid(planes: Tensor, side: int) -> Tensor:
    """Planes (N, H, W) on the U-Net's grid (N, side, side), as `LungSegmenter` does it."""
    shape = tf.shape(planes)
    grid = in_plane(full_axis_matrix(side, shape[1]), planes, full_axis_matrix(side, shape[2]))
    return tf.ensure_shape(grid, [None, side, side])


def _loss(mask: Tensor, logits: Tensor) -> Tensor:
    """Cross-entropy plus soft Dice over the batch."""
    entropy = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels=mask, logits=logits))
    share = tf.sigmoid(logits)
    overlap = (2 * tf.reduce_sum(share * mask) + 1) / (
        tf.reduce_sum(share) + tf.reduce_sum(mask) + 1
    )
    return entropy + 0.5 * (1 - overlap)


def dice_of(network: keras.Model, hu: np.ndarray, lungs: np.ndarray) -> float:
    """Dice of the raw mask, brought back onto the scan's grid, with bool (D, H, W) lungs."""
    planes = HUWindow()(on_grid(clipped_hu(hu), SIDE))[..., tf.newaxis]
    share = tf.sigmoid(network.predict(planes, batch_size=BATCH, verbose=0)["logits"][..., 0])
    rows, columns = (full_axis_matrix(size, SIDE) for size in hu.shape[1:])
    return dice(in_plane(rows, share, columns).numpy() > 0.5, lungs)
