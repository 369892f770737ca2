"""Random changes of slices and clips in training, as plain TF ops."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tf_covid.layers.resample import axis_matrix, full_axis_matrix, in_plane


def _uniform(shape: Any, low: float, high: float) -> Any:
    return tf.random.uniform(shape, low, high)


def _chance(count: Any, share: float) -> Any:
    return tf.random.uniform([count]) < share


def affine_matrices(count: Any, *, degrees: float, scale: tuple[float, float], shift: float, side: int) -> Any:
    """Random rotation, anisotropic scale and shift about the centre, as (N, 8) projective transforms.

    Args:
        count: Number of matrices, N.
        degrees: Largest rotation.
        scale: Range of the scale; each axis has its own within 10 %.
        shift: Largest shift, as a share of the side.
        side: Side of the (square) picture, in pixels.
    """
    angle = _uniform([count], -degrees, degrees) * np.pi / 180
    zoom = tf.exp(_uniform([count], np.log(scale[0]), np.log(scale[1])))
    zoom_x, zoom_y = zoom * _uniform([count], 0.95, 1.05), zoom * _uniform([count], 0.95, 1.05)
    cos, sin = tf.cos(angle), tf.sin(angle)
    a, b, c, d = cos / zoom_x, -sin / zoom_y, sin / zoom_x, cos / zoom_y
    centre = (side - 1) / 2
    move_x, move_y = (_uniform([count], -shift, shift) * side for _ in range(2))
    zero = tf.zeros([count])
    offset_x = centre - a * (centre + move_x) - b * (centre + move_y)
    offset_y = centre - c * (centre + move_x) - d * (centre + move_y)
    return tf.stack([a, b, offset_x, c, d, offset_y, zero, zero], axis=1)


def warp(pictures: Any, matrices: Any, fill: float) -> Any:
    """Bilinear warp of pictures (N, H, W, C) float32; outside is `fill`."""
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=pictures,
        transforms=matrices,
        output_shape=tf.shape(pictures)[1:3],
        fill_value=fill,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )


def flip(pictures: Any, axis: int, chosen: Any) -> Any:
    """Flip those items of a batch that are chosen, along an axis."""
    shape = [-1] + [1] * (len(pictures.shape) - 1)
    return tf.where(tf.reshape(chosen, shape), tf.reverse(pictures, [axis]), pictures)


def slice_and_mask(hu: Any, mask: Any) -> tuple[Any, Any]:
    """Change a batch of slices and their masks alike.

    Args:
        hu: float32 (N, S, S), HU.
        mask: float32 (N, S, S), share of lung.

    Returns:
        HU (N, S, S) and mask (N, S, S, 1) of 0 and 1.
    """
    count, side = tf.shape(hu)[0], hu.shape[1]
    matrices = affine_matrices(count, degrees=20, scale=(0.72, 1.3), shift=0.1, side=side)
    both = tf.stack([hu + 1024.0, mask * 1000.0], axis=-1)  # the fill of both is 0: air, and no lung
    both = warp(both, matrices, 0.0)
    both = flip(flip(both, 2, _chance(count, 0.5)), 1, _chance(count, 0.15))
    hu, mask = both[..., 0] - 1024.0, both[..., 1] / 1000.0
    # Coarse scans: some batches go through a smaller grid and back.
    coarse = tf.random.uniform([], side * 3 // 8, side, tf.int32)
    coarse = tf.where(tf.random.uniform([]) < 0.35, coarse, side)
    hu = _through(hu, coarse, side)
    shape = [count, 1, 1]
    hu = (hu + 1000.0) * _uniform(shape, 0.96, 1.04) - 1000.0 + _uniform(shape, -35, 35)
    hu += tf.random.normal(tf.shape(hu)) * tf.square(_uniform(shape, 0, 1)) * 70.0
    return hu, tf.cast(mask >= 0.5, tf.float32)[..., tf.newaxis]


def _through(pictures: Any, coarse: Any, side: int) -> Any:
    down, up = full_axis_matrix(coarse, side), full_axis_matrix(side, coarse)
    return in_plane(up, in_plane(down, pictures, down), up)


def clips(clip: Any) -> Any:
    """Change a batch of windowed, masked clips (N, T, H, W, 1) in [0, 1]; voxels outside the lungs stay 0."""
    count, frames, side = tf.shape(clip)[0], clip.shape[1], clip.shape[2]
    planes = tf.transpose(clip[..., 0], [0, 2, 3, 1])  # time as channels: one warp for a whole clip
    matrices = affine_matrices(count, degrees=10, scale=(0.88, 1.12), shift=0.04, side=side)
    planes = flip(warp(planes, matrices, 0.0), 2, _chance(count, 0.5))
    clip = tf.transpose(planes, [0, 3, 1, 2])
    # Shift and stretch along the body, by resampling with a random start and stop.
    length = tf.cast(frames, tf.float32)
    start, stop = _uniform([count], -0.06, 0.06) * length, (1 + _uniform([count], -0.06, 0.06)) * length
    along = axis_matrix(tf.maximum(start, 0.0), tf.minimum(stop, length), frames, frames)
    clip = tf.reshape(tf.matmul(along, tf.reshape(clip, [count, frames, -1])), tf.shape(clip))
    inside = tf.cast(clip > 0.01, tf.float32)
    shape = [count, 1, 1, 1]
    clip = clip * _uniform(shape, 0.94, 1.06) + _uniform(shape, -0.03, 0.03)
    clip += tf.random.normal(tf.shape(clip)) * tf.square(_uniform(shape, 0, 1)) * 0.06
    return (tf.clip_by_value(clip, 0.0, 1.0) * inside)[..., tf.newaxis]
