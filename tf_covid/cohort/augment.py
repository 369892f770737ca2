"""Random changes of slices and clips in training.

Plain TF ops on the device, drawn from a seed and from nothing else.

The same seed gives the same change in any process: a run that was killed and resumed sees what it
would have seen.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import tensorflow as tf
from pydantic import BaseModel, ConfigDict, Field

from tf_covid.tensor import Tensor

#: The HU that are bent by a gamma.
_BENT_HU = (-1100.0, 500.0)

#: Features between the two layers of a random convolution, and how much of it stays at most.
_HIDDEN, _CONVOLVED = 4, 0.8

_Share = Annotated[float, Field(ge=0, le=1)]


class Augmentation(BaseModel):
    """How much a scan is changed each time that it is seen. All 0: not at all.

    Args:
        flip: Share of the scans that are mirrored, right to left; of the task lobes none, since
            lobes have sides.
        flip_vertical: Share that is mirrored front to back, as if the patient lay on the belly.
        degrees: Largest rotation in the plane.
        scale: Largest change of size, as a share, in the plane; each axis has its own.
        largest_scale: Largest size in the plane; None: 1/(1 − `scale`).
        uneven: How far each axis' own size may lie off, as a share; None: half of `scale`.
        shift: Largest shift, as a share of the side, in the plane and along the body.
        shift_along: The same along the body; None: `shift`.
        coarse: Share of the batches that go through a coarser grid in the plane and back, of three
            eighths of the side at least.
        mask_change: Share of the clips whose lung mask is made larger or smaller, as that of
            another lung model might be.
        mask_reach: How many voxels of the clip such a mask grows at most.
        mask_bites: Share of the clips whose lung mask loses pieces.
        hu_shift: Largest error of the scanner's calibration, in HU.
        hu_scale: The same as a share of the HU above air.
        noise_hu: Largest standard deviation of added noise, in HU.
        slice_drop: Share of the slices that their neighbour takes the place of (clips only).
        coronal_degrees: Largest rotation about the axis from front to back (whole scans only).
        cut: Largest share of the scan's length that is cut off at the head, and at the feet, so
            that it begins or ends within the lungs (whole scans only); rather little in most.
        blur: Largest weight of a copy that is blurred over three pixels along each axis.
        gamma: Largest exponent, as its logarithm, by which −1100 … 500 HU are bent.
        convolution: Share of the scans that go through a random shallow convolution, of which
            four fifths at most stay (RandConv, Xu et al. 2021, arXiv 2007.13003).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    flip: _Share = 0.5
    flip_vertical: _Share = 0.0
    degrees: Annotated[float, Field(ge=0, le=180)] = 10.0
    scale: Annotated[float, Field(ge=0, lt=0.9)] = 0.1
    largest_scale: Annotated[float, Field(ge=1, le=10)] | None = None
    uneven: Annotated[float, Field(ge=0, lt=0.9)] | None = None
    shift: Annotated[float, Field(ge=0, lt=0.5)] = 0.04
    shift_along: Annotated[float, Field(ge=0, lt=0.5)] | None = None
    coarse: _Share = 0.0
    mask_change: _Share = 0.0
    mask_reach: Annotated[int, Field(ge=1, le=8)] = 1
    mask_bites: _Share = 0.0
    hu_shift: Annotated[float, Field(ge=0, le=1000)] = 20.0
    hu_scale: Annotated[float, Field(ge=0, lt=0.5)] = 0.03
    noise_hu: Annotated[float, Field(ge=0, le=1000)] = 40.0
    slice_drop: _Share = 0.05
    coronal_degrees: Annotated[float, Field(ge=0, le=45)] = 0.0
    cut: Annotated[float, Field(ge=0, le=0.45)] = 0.0
    blur: _Share = 0.0
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.0
    convolution: _Share = 0.0


class Draws:
    """Random numbers from one seed, another set at each call.

    Args:
        seed: int32 (2,).
    """

    def __init__(self, seed: Tensor) -> None:
        self.seed, self._count = seed, 0

    def _next(self) -> Tensor:
        self._count += 1
        return tf.random.experimental.stateless_fold_in(self.seed, self._count)

    def uniform(self, shape: Tensor, low: float, high: float) -> Tensor:
        """float32 within [low, high)."""
        return tf.random.stateless_uniform(shape, self._next(), low, high)

    def integer(self, low: Tensor, high: Tensor) -> Tensor:
        """One int32 within [low, high)."""
        return tf.random.stateless_uniform([], self._next(), low, high, tf.int32)

    def normal(self, shape: Tensor) -> Tensor:
        """float32 of mean 0 and standard deviation 1."""
        return tf.random.stateless_normal(shape, self._next())

    def chance(self, count: Tensor, probability: float) -> Tensor:
        """Bool (count,), true in this share of the cases."""
        return self.uniform([count], 0.0, 1.0) < probability


def affine_matrices(
    draws: Draws,
    count: Tensor,
    *,
    degrees: float,
    scale: tuple[float, float],
    shift: float,
    side: int,
    width: int = 0,
    uneven: float = 0.05,
) -> Tensor:
    """Random rotation, scale and shift about the centre, as (N, 8) projective transforms.

    Args:
        draws: Source of the random numbers.
        count: Number of matrices, N.
        degrees: Largest rotation.
        scale: Range of the scale.
        shift: Largest shift, as a share of the side.
        side: Height of the picture, in pixels.
        width: Width of the output; the height where 0.
        uneven: How far each axis' own scale may lie off, as a share.
    """
    angle = draws.uniform([count], -degrees, degrees) * np.pi / 180
    zoom = tf.exp(draws.uniform([count], np.log(scale[0]), np.log(scale[1])))
    zoom_x, zoom_y = (zoom * draws.uniform([count], 1 - uneven, 1 + uneven) for _ in range(2))
    cos, sin = tf.cos(angle), tf.sin(angle)
    a, b, c, d = cos / zoom_x, -sin / zoom_y, sin / zoom_x, cos / zoom_y
    centre_x, centre_y = ((width or side) - 1) / 2, (side - 1) / 2
    move_x = draws.uniform([count], -shift, shift) * (width or side)
    move_y = draws.uniform([count], -shift, shift) * side
    zero = tf.zeros([count])
    offset_x = centre_x - a * (centre_x + move_x) - b * (centre_y + move_y)
    offset_y = centre_y - c * (centre_x + move_x) - d * (centre_y + move_y)
    return tf.stack([a, b, offset_x, c, d, offset_y, zero, zero], axis=1)


def warp(pictures: Tensor, matrices: Tensor, fill: float) -> Tensor:
    """Bilinear warp of pictures (N, H, W, C) float32; outside is `fill`."""
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=pictures,
        transforms=matrices,
        output_shape=tf.shape(pictures)[1:3],
        fill_value=fill,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )


def flip(pictures: Tensor, axis: int, chosen: Tensor) -> Tensor:
    """Flip those items of a batch that are chosen, along an axis."""
    shape = [-1] + [1] * (len(pictures.shape) - 1)
    return tf.where(tf.reshape(chosen, shape), tf.reverse(pictures, [axis]), pictures)


def jittered_hu(draws: Draws, hu: Tensor, how: Augmentation) -> Tensor:
    """HU (N, T, H, W) as another scanner might give them: its calibration, noise and sharpness.

    And, where it is asked for, as no scanner would: contrasts that no network should rely on.
    """
    shape = tf.concat([tf.shape(hu)[:1], tf.ones([len(hu.shape) - 1], tf.int32)], axis=0)
    if how.hu_scale or how.hu_shift:
        hu = (hu + 1000.0) * draws.uniform(shape, 1 - how.hu_scale, 1 + how.hu_scale) - 1000.0
        hu += draws.uniform(shape, -how.hu_shift, how.hu_shift)
    if how.noise_hu:
        # Squared: most scans are not noisy.
        hu += draws.normal(tf.shape(hu)) * tf.square(draws.uniform(shape, 0, 1)) * how.noise_hu
    if how.blur:
        hu += (_blurred(hu) - hu) * draws.uniform(shape, 0, how.blur)
    if how.gamma:
        power = tf.exp(draws.uniform(shape, -how.gamma, how.gamma))
        unit = tf.clip_by_value((hu - _BENT_HU[0]) / (_BENT_HU[1] - _BENT_HU[0]), 0.0, 1.0)
        hu = _BENT_HU[0] + (_BENT_HU[1] - _BENT_HU[0]) * tf.pow(unit, power)
    if how.convolution:
        hu = randomly_convolved(draws, hu, how.convolution)
    return hu


def _blurred(hu: Tensor) -> Tensor:
    """Mean over three neighbours along each axis of (N, T, H, W); the outermost count twice."""
    for axis in (1, 2, 3):
        size = hu.shape[axis]
        if size == 1:
            continue
        before = tf.gather(hu, [0, *range(size - 1)], axis=axis)
        after = tf.gather(hu, [*range(1, size), size - 1], axis=axis)
        hu = (before + hu + after) / 3.0
    return hu


def randomly_convolved(draws: Draws, hu: Tensor, chance: float) -> Tensor:
    """HU of some scans mixed with what a random convolution of one or two layers makes of them.

    All scans of a batch meet the same convolution, each to an extent of its own. Mean and spread of
    a scan stay as they are, and it becomes no negative.

    Args:
        draws: Source of the random numbers.
        hu: float32 (N, T, H, W); of a single frame the convolution is 2D.
        chance: Share of the scans that are changed.
    """
    count = tf.shape(hu)[0]
    weight = draws.uniform([count, 1, 1, 1], 0.0, _CONVOLVED)
    weight *= tf.cast(draws.chance(count, chance), tf.float32)[:, None, None, None]
    depth = 1 if hu.shape[1] == 1 else 3
    kernels = []
    for shape in ((depth, 3, 3, 1, _HIDDEN), (depth, 3, 3, _HIDDEN, 1)):
        kernel = draws.normal(shape)
        middle = np.zeros(shape, np.float32)
        middle[depth // 2, 1, 1] = np.sqrt(9 * depth)
        kernels.append(tf.where(draws.uniform([], 0.0, 1.0) < 0.5, kernel * middle, kernel))
    # A slope of 1 makes one linear layer of the two.
    slope = tf.where(draws.uniform([], 0.0, 1.0) < 0.5, 0.2, 1.0)

    def changed() -> Tensor:
        before = tf.clip_by_value(hu, -1024.0, 1000.0)
        mean, variance = tf.nn.moments(before, [1, 2, 3], keepdims=True)
        spread = tf.sqrt(variance) + 1.0
        unit = (before - mean) / spread
        x = unit[..., tf.newaxis]
        x = tf.nn.conv3d(x, kernels[0], [1] * 5, "SAME")
        x = tf.nn.conv3d(tf.maximum(x, slope * x), kernels[1], [1] * 5, "SAME")[..., 0]
        own, own_variance = tf.nn.moments(x, [1, 2, 3], keepdims=True)
        x = (x - own) / (tf.sqrt(own_variance) + 1e-6)
        # Never a negative: what is denser stays rather brighter.
        alike = tf.reduce_mean(x * unit, [1, 2, 3], keepdims=True)
        x = tf.where(alike < 0.0, -x, x) * spread + mean
        return hu + weight * (x - hu)

    return tf.cond(tf.reduce_any(weight > 0.0), changed, lambda: hu)
