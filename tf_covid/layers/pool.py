"""Max pooling of a volume along one axis after the other, for the pools whose gradient is ours."""

from __future__ import annotations

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
        x: Features (N, D, H, W, C) of a known size.
        pool_size: Window along D, H, W.
        strides: Stride along D, H, W.
        padding: "same" or "valid", placed as Keras does.
        fill: Value of the padding, no larger than any feature.
        maximum: Elementwise maximum of tensors of one shape; the gradient at ties is its own.
    """
    for axis, (size, stride) in enumerate(zip(pool_size, strides, strict=True), 1):
        if size == stride == 1:
            continue
        length = x.shape[axis]
        count = -(-length // stride) if padding == "same" else (length - size) // stride + 1
        reach = (count - 1) * stride + size
        before = max(reach - length, 0) // 2 if padding == "same" else 0
        edges = [[0, 0]] * len(x.shape)
        edges[axis] = [before, max(reach - length - before, 0)]
        padded = tf.pad(x, edges, constant_values=fill)
        taps = []
        for first in range(size):
            window = [slice(None)] * len(x.shape)
            window[axis] = slice(first, first + (count - 1) * stride + 1, stride)
            taps.append(padded[tuple(window)])
        x = maximum(taps)
    return x
