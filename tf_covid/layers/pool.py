"""Max pooling of a volume along one axis after the other, for the pools whose gradient is ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import tensorflow as tf

from tf_covid.tensor import Tensor


def max_pool_by_axis(
    x: Tensor,
    pool_size: Sequence[int],
    strides: Sequence[int],
    padding: str,
    *,
    fill: float,
    maximum: Callable[[list[Tensor]], Tensor],
) -> Tensor:
    """Max pooling as one pass along each axis; the answer is that of `MaxPooling3D`.

    Args:
        x: Features (N, D, H, W, C), all but N of a known size.
        pool_size: Window along D, H, W.
        strides: Stride along D, H, W.
        padding: "same" or "valid", placed as Keras does.
        fill: Value of the padding, no larger than any feature.
        maximum: Elementwise maximum of tensors of one shape; the gradient at ties is its own.
    """
    shape = list(x.shape)
    for axis, (size, stride) in enumerate(zip(pool_size, strides, strict=True), 1):
        if size == stride == 1:
            continue
        length = shape[axis]
        count = -(-length // stride) if padding == "same" else (length - size) // stride + 1
        reach = (count - 1) * stride + size
        before = max(reach - length, 0) // 2 if padding == "same" else 0
        after = max(reach - length - before, 0)
        # TensorFlow cuts three axes up to twice as fast as five.
        rows = tf.reshape(x, [-1, length, math.prod(shape[axis + 1 :])])
        padded = tf.pad(rows, [[0, 0], [before, after], [0, 0]], constant_values=fill)
        taps = [
            padded[:, first : first + (count - 1) * stride + 1 : stride] for first in range(size)
        ]
        shape[axis] = count
        x = tf.reshape(maximum(taps), [-1, *shape[1:]])
    return x
