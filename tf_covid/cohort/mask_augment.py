"""Random changes of planes and lung masks that a change of the grid or of the model would bring."""

from __future__ import annotations

import tensorflow as tf

from tf_covid.cohort.augment import Augmentation, Draws
from tf_covid.layers.resample import full_axis_matrix, in_plane
from tf_covid.tensor import Tensor

#: Smallest coarse grid, as a fraction of the side.
_COARSEST = 3 / 8

#: Side of the cells that a bite is made of, in voxels.
_BITE = 4


def coarsened(draws: Draws, planes: Tensor, chance: float) -> Tensor:
    """A batch through a coarser grid and back, now and then; all of a batch alike.

    Args:
        draws: Source of the random numbers.
        planes: float32 (N, T, H, W), H and W static.
        chance: Share of the batches that are changed.
    """
    rows, columns = planes.shape[2], planes.shape[3]
    fraction = draws.uniform([], _COARSEST, 1.0)
    fraction = tf.where(draws.uniform([], 0.0, 1.0) < chance, fraction, 1.0)

    def through() -> Tensor:
        sides = [
            tf.maximum(tf.cast(tf.round(fraction * side), tf.int32), 1) for side in (rows, columns)
        ]
        down, up = (
            [
                full_axis_matrix(small, side)
                for small, side in zip(sides, (rows, columns), strict=True)
            ],
            [
                full_axis_matrix(side, small)
                for small, side in zip(sides, (rows, columns), strict=True)
            ],
        )
        flat = tf.reshape(planes, [-1, rows, columns])
        there = in_plane(down[0], flat, down[1])
        return tf.reshape(in_plane(up[0], there, up[1]), tf.shape(planes))

    return tf.ensure_shape(tf.cond(fraction < 1.0, through, lambda: planes), planes.shape)


def worse_mask(draws: Draws, lungs: Tensor, how: Augmentation) -> Tensor:
    """Shares of lung as another lung model might give them: larger or smaller, with bites.

    Args:
        draws: Source of the random numbers.
        lungs: float32 (N, T, H, W), 0 to 1, all but N static; lung is where it is 0.5 or more.
        how: Shares of the clips that are changed, and how far.
    """
    count = tf.shape(lungs)[0]
    shape = [count, 1, 1, 1]
    side = 2 * how.mask_reach + 1
    pooled = tf.nn.avg_pool2d(tf.transpose(lungs, [0, 2, 3, 1]), side, 1, "SAME")
    soft = tf.transpose(pooled, [0, 3, 1, 2])
    changed = tf.where(
        draws.uniform(shape, 0, 1) < how.mask_change,
        # A straight edge grows by all of the reach at most, and shrinks by about two thirds of it:
        # more would take away the disease that the answer speaks of.
        soft + draws.uniform(shape, -0.3, 0.5 - 0.2 / how.mask_reach),
        lungs,
    )
    noise = draws.normal([count, *(size // _BITE for size in lungs.shape[1:])])
    for axis in (1, 2, 3):
        noise = tf.repeat(noise, _BITE, axis=axis)
    rest = [[0, size - size // _BITE * _BITE] for size in lungs.shape[1:]]
    noise = tf.pad(noise, [[0, 0], *rest])
    bitten = (noise > draws.uniform(shape, 1.3, 2.5)) & (
        draws.uniform(shape, 0, 1) < how.mask_bites
    )
    return tf.where(bitten, 0.0, changed)
