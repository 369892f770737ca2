"""Resampling as matrix products: cell-centred, anti-aliased, with free sizes, on any device.

`tf.image.resize(antialias=True)` has no GPU kernel and no crop; a product with a small matrix has
both. Numbers of cells count from 0; cell j covers [j, j + 1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tf_covid.grids import HIGHEST_HU, LOWEST_HU
from tf_covid.tensor import Tensor


def clipped_hu(hu: Tensor) -> Tensor:
    """HU as float32 within −1024 … 3071."""
    return tf.clip_by_value(tf.cast(hu, tf.float32), LOWEST_HU, HIGHEST_HU)


def triangle_matrix(start: Tensor, stop: Tensor, size_out: Tensor, positions: Tensor) -> Tensor:
    """Weights that resample a row of cells onto `size_out` cells spread over [start, stop).

    The kernel is a triangle: linear interpolation when enlarging, and as wide as an output cell
    when reducing (`tf.image.resize(method="bilinear", antialias=True)`). Beyond the outermost cells
    their value continues.

    Args:
        start: (N,) float32, edge of the first output cell.
        stop: (N,) float32, edge of the last output cell.
        size_out: Number of output cells.
        positions: (N, M) float32, edge (not centre) of each input cell; −inf where a cell takes no
            part.

    Returns:
        (N, size_out, M) float32; each row sums to 1, or to 0 where no cell takes part.
    """
    step = ((stop - start) / tf.cast(size_out, tf.float32))[:, tf.newaxis, tf.newaxis]
    index = tf.range(size_out, dtype=tf.float32)[tf.newaxis, :, tf.newaxis]
    centre = start[:, tf.newaxis, tf.newaxis] + (index + 0.5) * step
    distance = tf.abs(centre - (positions[:, tf.newaxis, :] + 0.5)) / tf.maximum(step, 1.0)
    weights = tf.maximum(1.0 - distance, 0.0)
    return tf.math.divide_no_nan(weights, tf.reduce_sum(weights, axis=-1, keepdims=True))


def axis_matrix(start: Tensor, stop: Tensor, size_out: Tensor, size_in: Tensor) -> Tensor:
    """`triangle_matrix` over an axis of `size_in` cells that all take part.

    (N, size_out, size_in).
    """
    positions = tf.range(size_in, dtype=tf.float32)[tf.newaxis, :]
    return triangle_matrix(start, stop, size_out, positions)


def full_axis_matrix(size_out: Tensor, size_in: Tensor) -> Tensor:
    """`axis_matrix` from a whole axis onto another size; (1, size_out, size_in)."""
    # Not [tf.newaxis]: OpenVINO reads a scalar's new axis from the wrong place.
    return axis_matrix(
        tf.zeros([1]), tf.reshape(tf.cast(size_in, tf.float32), [1]), size_out, size_in
    )


def in_plane(rows: Tensor, planes: Tensor, columns: Tensor) -> Tensor:
    """Rows (N, h, H) · planes (N, H, W) · columnsᵀ (N, w, W) → (N, h, w).

    Leading 1s are broadcast.
    """
    return tf.matmul(tf.matmul(rows, planes), columns, transpose_b=True)


def over_chunks(
    count: Tensor,
    chunk: int,
    body: Callable[[Any, Any], Any],
    state: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401  # as `state`: a tensor, or several
    """`state = body(numbers, state)` for `chunk` numbers of 0 … count − 1 at a time.

    The last chunk repeats number 0 as −1-marked padding: `numbers` always has `chunk` entries,
    padding is −1. A fixed size keeps one compiled kernel and lets runtimes without ragged shapes
    run the graph. An explicit while loop, since ExportArchive does not run autograph;
    `parallel_iterations=1`, so that memory does not grow with the slices.
    """
    chunks = (count + chunk - 1) // chunk

    def step(index: Tensor, state: Tensor) -> tuple[Any, Any]:
        numbers = index * chunk + tf.range(chunk)
        return index + 1, body(tf.where(numbers < count, numbers, -1), state)

    return tf.while_loop(
        lambda index, _: index < chunks, step, (tf.constant(0), state), parallel_iterations=1
    )[1]
