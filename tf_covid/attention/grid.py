"""From the grid of the features back onto the grid of the scan, cell-centred."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Axis:
    """Where the cells of a feature axis lie on the clip.

    Cell i is centred at clip position `step·i + first`.

    Positions count clip voxels from the centre of voxel 0.
    """

    step: float
    first: float


def feature_axes(network: keras.Model, endpoint: str) -> tuple[Axis, Axis, Axis]:
    """Follow every strided layer from the clip to an endpoint.

    Padding "same" with stride 2 is not centred: at 112 pixels I3D's four cells lie 32 pixels apart
    and reach beyond the clip, so that stretching the map over the clip would misplace it by up to
    half a cell.

    Args:
        network: Takes clips (N, D, H, W, C) of a known size; its strided layers lie one behind the
            other.
        endpoint: Layer name.

    Returns:
        One `Axis` each for D, H, W.

    Raises:
        ValueError: If the strides do not explain the size of the features (a network with strided
            branches).
    """
    import keras  # here: who brings a map onto a scan needs none

    sizes = list(network.input_shape[1:4])
    axes = [Axis(1.0, 0.0)] * 3
    target = network.get_layer(endpoint)
    for layer in network.layers:
        if isinstance(layer, keras.layers.ZeroPadding3D):
            for axis_index, (before, after) in enumerate(layer.padding):
                axes[axis_index] = Axis(
                    axes[axis_index].step, axes[axis_index].first - before * axes[axis_index].step
                )
                sizes[axis_index] += before + after
        strides = getattr(layer, "strides", None)
        if strides is not None and max(strides) > 1:
            kernels = getattr(layer, "kernel_size", None) or layer.pool_size
            for axis_index, (kernel, stride) in enumerate(zip(kernels, strides, strict=True)):
                axes[axis_index], sizes[axis_index] = _through(
                    axes[axis_index], sizes[axis_index], kernel, stride, layer.padding
                )
        if layer is target:
            break
    if tuple(sizes) != tuple(target.output.shape[1:4]):
        raise ValueError(
            f"strides give {tuple(sizes)} cells at {endpoint}, which has {target.output.shape[1:4]}"
        )
    return axes[0], axes[1], axes[2]


def _through(axis: Axis, size: int, kernel: int, stride: int, padding: str) -> tuple[Axis, int]:
    if padding == "same":
        size_out = -(-size // stride)
        before = max((size_out - 1) * stride + kernel - size, 0) // 2
    else:
        size_out, before = (size - kernel) // stride + 1, 0
    centre = (kernel - 1) / 2 - before
    return Axis(axis.step * stride, axis.first + centre * axis.step), size_out


def onto_scan(
    raw: np.ndarray,
    axes: tuple[Axis, Axis, Axis],
    clip: tuple[int, int, int],
    keep: np.ndarray,
    box: np.ndarray,
    lungs: np.ndarray,
) -> tuple[np.ndarray, float | None]:
    """Bring a raw map onto the scan, cut it to the lungs, and divide by its maximum.

    The network saw nothing but lung: what a coarse cell says beside it belongs to the lung in that
    cell.

    Args:
        raw: float32 (d, h, w), ≥ 0.
        axes: Axes of the map, from `feature_axes`.
        clip: (D', H', W') of the clip.
        keep: bool (D,), the kept slices.
        box: (4,) top, bottom, left, right as fractions of height and width.
        lungs: (D, H, W), not 0 within the lungs.

    Returns:
        uint8 (D, H, W), 255 at the maximum; 0 outside the lungs, the box and the kept slices, and
        everywhere where the map is 0. And the fraction of the map that lay within the lungs before
        it was cut, 0–1, or None for an empty map.
    """
    rows = _plane_weights(axes[1], raw.shape[1], clip[1], lungs.shape[1], box[0], box[1])
    columns = _plane_weights(axes[2], raw.shape[2], clip[2], lungs.shape[2], box[2], box[3])
    planes = np.matmul(np.matmul(rows, raw), columns.T).astype(np.float32)  # (d, H, W)
    kept = np.flatnonzero(keep)
    # The rank of a kept slice among the kept, as the sampler put them one behind the other.
    position = (np.arange(len(kept)) + 0.5) / max(len(kept), 1) * clip[0] - 0.5
    along = centre_weights((position - axes[0].first) / axes[0].step, raw.shape[0])

    def slices() -> Iterator[tuple[int, np.ndarray]]:
        """Index and float map of every kept slice.

        Made twice rather than held, since a scan of them is large.
        """
        for slice_index, weights in zip(kept, along, strict=True):
            yield (
                int(slice_index),
                sum(weights[tap] * planes[tap] for tap in np.flatnonzero(weights)),
            )

    total = within = highest = 0.0
    for slice_index, plane in slices():
        inside = plane[lungs[slice_index] > 0]
        total, within = total + float(plane.sum()), within + float(inside.sum())
        highest = max(highest, float(inside.max(initial=0.0)))
    out = np.zeros(lungs.shape, np.uint8)
    if highest > 0:
        # Rows outside of the box are 0 and stay untouched: memory that is never used.
        held = np.flatnonzero(rows.any(axis=1))
        part = slice(int(held[0]), int(held[-1]) + 1)
        for slice_index, plane in slices():
            out[slice_index, part] = np.rint(
                np.where(lungs[slice_index, part] > 0, plane[part], 0.0) * (255.0 / highest)
            )
    return out, within / total if total > 0 else None


def _plane_weights(
    axis: Axis, cells: int, clip: int, size: int, start: float, stop: float
) -> np.ndarray:
    fraction = (np.arange(size) + 0.5) / size
    position = (fraction - start) / (stop - start) * clip - 0.5
    inside = (fraction >= start) & (fraction <= stop)
    return centre_weights((position - axis.first) / axis.step, cells) * inside[:, np.newaxis]


def centre_weights(cell: np.ndarray, cells: int) -> np.ndarray:
    """Linear weights (n, cells) at fractional cell numbers.

    Beyond the outermost centres their value continues.
    """
    distance = np.abs(np.clip(cell, 0, cells - 1)[:, np.newaxis] - np.arange(cells))
    weights: np.ndarray = np.maximum(1.0 - distance, 0.0).astype(np.float32)
    return weights
