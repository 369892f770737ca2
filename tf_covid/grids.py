"""From one grid over a scan onto another, and boxes in them: after the graph, in NumPy.

Grids cover the scan from edge to edge; cell i of n lies at [i, i + 1) / n of it. The layers do the
same with TensorFlow where it decides an answer (`layers.resample`); this serves files and volumes
only, needs no TensorFlow, and passes over what lies outside of a box.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

#: Air and the top of a 12-bit scanner. Padding outside the field of view (−2000, −3024) and metal
#: are clipped before any averaging, so that they do not bleed into their neighbours.
LOWEST_HU, HIGHEST_HU = -1024.0, 3071.0

#: Slices that are worked on at a time, so that memory stays small.
CHUNK = 16

#: A part of a grid, one slice for each axis.
Box = tuple[slice, ...]


def axis_weights(size_out: int, size_in: int) -> np.ndarray:
    """Weights, float32 (size_out, size_in), that bring an axis of cells onto another size.

    Those of `layers.resample.full_axis_matrix`: linear interpolation where it enlarges, a triangle
    as wide as an output cell where it reduces; beyond the outermost centres their value continues.
    """
    step = np.float32(size_in / size_out)
    centres = (np.arange(size_out, dtype=np.float32) + np.float32(0.5)) * step
    cells = np.arange(size_in, dtype=np.float32) + np.float32(0.5)
    distance = np.abs(centres[:, np.newaxis] - cells) / max(step, np.float32(1))
    weights = np.maximum(np.float32(1) - distance, np.float32(0))
    normal: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
    return normal


def whole(shape: tuple[int, ...]) -> Box:
    """The box that holds all of a grid."""
    return tuple(slice(0, size) for size in shape)


def box_of(mask: np.ndarray) -> Box:
    """The smallest box that holds all of a mask, bool of any axes; empty where it holds nothing."""
    box = []
    for axis in range(mask.ndim):
        inside = np.flatnonzero(mask.any(axis=tuple({*range(mask.ndim)} - {axis})))
        box.append(slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0))
    return tuple(box)


def box_of_label(labels: np.ndarray, label: int) -> Box:
    """The smallest box that holds all of a label, a slice at a time: no second volume is made.

    Args:
        labels: Integers (D, H, W).
        label: The one that is looked for.
    """
    inside = [np.zeros(size, bool) for size in labels.shape]
    for position, plane in enumerate(labels):
        held = plane == label
        rows, columns = held.any(axis=1), held.any(axis=0)
        inside[0][position] = rows.any()
        inside[1] |= rows
        inside[2] |= columns
    return tuple(
        slice(int(cells[0]), int(cells[-1]) + 1) if len(cells) else slice(0, 0)
        for cells in map(np.flatnonzero, inside)
    )


def wider(box: Box, shape: tuple[int, ...], cells: int = 1) -> Box:
    """A box with so many cells more on each side, within the grid; an empty one stays empty."""
    return tuple(
        slice(max(part.start - cells, 0), min(part.stop + cells, size))
        if part.stop > part.start
        else part
        for part, size in zip(box, shape, strict=True)
    )


def box_on(box: Box, shape: tuple[int, ...], other: tuple[int, ...]) -> Box:
    """The cells of another grid that touch a box of this one.

    Args:
        box: Part of the grid of `shape`.
        shape: Size of the grid.
        other: Size of the other grid over the same scan.
    """
    return tuple(
        slice(part.start * new // old, -(-part.stop * new // old))
        for part, old, new in zip(box, shape, other, strict=True)
    )


def on_grid(
    fields: np.ndarray, shape: tuple[int, ...], box: Box | None = None
) -> Iterator[tuple[Box, np.ndarray]]:
    """Fields of one grid on another over the same scan, a few slices at a time.

    Args:
        fields: (k, D', h', w'), numbers or bool.
        shape: The other grid, (D, H, W).
        box: Part of it that is asked for; None: all of it.

    Yields:
        (part of the other grid, float32 (k, slices, rows, columns) in it).
    """
    box = whole(shape) if box is None else box
    if any(part.stop <= part.start for part in box):
        return
    depth, rows, columns = (
        axis_weights(new, old)[part]
        for new, old, part in zip(shape, fields.shape[1:], box, strict=True)
    )
    near_rows, near_columns = _used(rows), _used(columns)
    rows, across = rows[:, near_rows], np.ascontiguousarray(columns[:, near_columns].T)
    count, same = len(fields), shape[0] == fields.shape[1]
    for first in range(box[0].start, box[0].stop, CHUNK):
        last = min(first + CHUNK, box[0].stop)
        if same:
            near = fields[:, first:last, near_rows, near_columns].astype(np.float32)
        else:
            weights = depth[first - box[0].start : last - box[0].start]
            used = _used(weights)
            taken = fields[:, used, near_rows, near_columns].astype(np.float32)
            flat = np.matmul(weights[:, used], taken.reshape(count, taken.shape[1], -1))
            near = flat.reshape(count, last - first, *taken.shape[2:])
        yield (slice(first, last), *box[1:]), np.matmul(np.matmul(rows, near), across)


def hu_on_grid(hu: np.ndarray, plane: tuple[int, ...]) -> np.ndarray:
    """HU of each slice on a plane of another size.

    Args:
        hu: int16 (D, H, W); clipped to `LOWEST_HU` … `HIGHEST_HU` first, as in the layers.
        plane: The other size, (h, w).

    Returns:
        float32 (D, h, w).
    """
    out = np.empty((len(hu), *plane), np.float32)
    for first in range(0, len(hu), CHUNK):
        part = np.clip(hu[first : first + CHUNK], int(LOWEST_HU), int(HIGHEST_HU))
        for _, (values,) in on_grid(part[np.newaxis], (len(part), *plane)):
            out[first : first + CHUNK] = values
    return out


def _used(weights: np.ndarray) -> slice:
    """The input cells that any output cell takes something of."""
    used = np.flatnonzero(weights.any(axis=0))
    return slice(int(used[0]), int(used[-1]) + 1)
