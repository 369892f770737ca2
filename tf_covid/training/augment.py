"""Random changes of slices and clips in training, as plain TF ops."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tf_covid.cohort.augment import Draws, affine_matrices, flip, warp
from tf_covid.layers import MaskedClip
from tf_covid.layers.resample import axis_matrix, full_axis_matrix, in_plane
from tf_covid.tensor import Tensor


def _draws() -> Draws:
    # From the global generator, whose seed `run.setup` sets.
    return Draws(tf.random.uniform([2], maxval=2**31 - 1, dtype=tf.int32))


def slice_and_mask(hu: Tensor, masks: Tensor) -> tuple[Any, Any]:
    """Change a batch of slices and their masks alike.

    Args:
        hu: float32 (N, S, S), HU.
        masks: float32 (N, S, S, M), share of each of M tissues.

    Returns:
        HU (N, S, S) and masks (N, S, S, M) of 0 and 1.
    """
    draws, count, side = _draws(), tf.shape(hu)[0], hu.shape[1]
    matrices = affine_matrices(draws, count, degrees=20, scale=(0.72, 1.3), shift=0.1, side=side)
    both = tf.concat(
        [hu[..., tf.newaxis] + 1024.0, masks], axis=-1
    )  # the fill of all is 0: air, and no tissue
    both = warp(both, matrices, 0.0)
    both = flip(flip(both, 2, draws.chance(count, 0.5)), 1, draws.chance(count, 0.15))
    hu, masks = both[..., 0] - 1024.0, both[..., 1:]
    # Coarse scans: some batches go through a smaller grid and back.
    coarse = draws.integer(side * 3 // 8, side)
    coarse = tf.where(draws.uniform([], 0.0, 1.0) < 0.3, coarse, side)
    hu = _through(hu, coarse, side)
    shape = [count, 1, 1]
    hu = (hu + 1000.0) * draws.uniform(shape, 0.96, 1.04) - 1000.0 + draws.uniform(shape, -30, 30)
    hu += draws.normal(tf.shape(hu)) * tf.square(draws.uniform(shape, 0, 1)) * 70.0
    return hu, tf.cast(masks >= 0.5, tf.float32)


def _through(pictures: Tensor, coarse: Tensor, side: int) -> Tensor:
    down, up = full_axis_matrix(coarse, side), full_axis_matrix(side, coarse)
    return in_plane(up, in_plane(down, pictures, down), up)


def clips(clip: Tensor, lungs: Tensor, lesions: Tensor) -> tuple[Any, Any]:
    """Change a batch of clips, and their masks, as scanners, bodies and lung models do.

    Args:
        clip: float32 (N, T, H, W), windowed to [0, 1], not masked.
        lungs: float32 (N, T, H, W), share of each voxel that is lung.
        lesions: float32 (N, T, H, W), share of each voxel that is diseased.

    Returns:
        The masked clip (N, T, H, W, 1), and the lesions (N, T, H, W) within its mask.
    """
    draws, count, frames, side = _draws(), tf.shape(clip)[0], clip.shape[1], clip.shape[2]
    # Time as channels: one warp for a whole clip and its masks.
    planes = tf.transpose(tf.concat([clip, lungs, lesions], axis=1), [0, 2, 3, 1])
    matrices = affine_matrices(draws, count, degrees=10, scale=(0.88, 1.12), shift=0.04, side=side)
    planes = tf.transpose(
        flip(warp(planes, matrices, 0.0), 2, draws.chance(count, 0.5)), [0, 3, 1, 2]
    )
    # Shift and stretch along the body, by resampling with a random start and stop.
    length = tf.cast(frames, tf.float32)
    start, stop = (
        draws.uniform([count], -0.06, 0.06) * length,
        (1 + draws.uniform([count], -0.06, 0.06)) * length,
    )
    along = axis_matrix(tf.maximum(start, 0.0), tf.minimum(stop, length), frames, frames)
    clip, lungs, lesions = (
        tf.reshape(tf.matmul(along, tf.reshape(part, [count, frames, -1])), tf.shape(part))
        for part in tf.split(planes, 3, axis=1)
    )
    shape = [count, 1, 1, 1]
    clip = clip * draws.uniform(shape, 0.94, 1.06) + draws.uniform(shape, -0.03, 0.03)
    clip += draws.normal(tf.shape(clip)) * tf.square(draws.uniform(shape, 0, 1)) * 0.06
    lungs = _worse_mask(draws, lungs)
    masked = MaskedClip(dtype="float32")(tf.clip_by_value(clip, 0.0, 1.0), lungs)
    return masked, lesions * tf.cast(lungs >= 0.5, tf.float32)


def _worse_mask(draws: Draws, lungs: Tensor) -> Tensor:
    """Lung shares (N, T, H, W) as another lung model might give them.

    A little larger or smaller, with bites.
    """
    count = tf.shape(lungs)[0]
    shape = [count, 1, 1, 1]
    pooled = tf.nn.avg_pool2d(tf.transpose(lungs, [0, 2, 3, 1]), 3, 1, "SAME")
    soft = tf.transpose(pooled, [0, 3, 1, 2])
    changed = tf.where(
        draws.uniform(shape, 0, 1) < 0.5, soft + draws.uniform(shape, -0.3, 0.3), lungs
    )
    noise = draws.normal([count, *(size // 4 for size in lungs.shape[1:])])
    for axis in (1, 2, 3):
        noise = tf.repeat(noise, 4, axis=axis)
    noise = tf.pad(noise, [[0, 0], *([0, size - size // 4 * 4] for size in lungs.shape[1:])])
    bitten = (noise > draws.uniform(shape, 1.3, 2.5)) & (draws.uniform(shape, 0, 1) < 0.3)
    return tf.where(bitten, 0.0, changed)
