"""From the U-Net's lung probability to lungs with sides, volumes and involvement.

This happens after the graph and for `lungs.nii.gz` and the figures only: the mask that the graph computes is final
for classification, so that Keras, SavedModel and server agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from tf_covid.result import Lungs

#: Label of each lung in `lungs.nii.gz`.
RIGHT, LEFT = 1, 2

#: A separate piece of the mask belongs to the lungs when it has this share of the largest piece: a lung compressed
#: by an effusion is kept, bowel gas and table tubes are not.
LEAST_PIECE = 0.04

#: Lung denser than this is counted as involved (the contract's rule).
INVOLVED_HU = -700.0

#: Half width, in mm, of what counts as a vessel or as the partial volume of the pleura, and not as disease.
THIN_MM = 4.0


@dataclass(frozen=True)
class LungReading:
    """What was read off the lung mask.

    Args:
        labels: uint8 (D, H, W) on the scan's grid; 0 outside, 1 right, 2 left.
        lungs: Volumes and involvement.
        share: (D,) share of each slice that is lung, on the U-Net's grid, after cleaning.
    """

    labels: np.ndarray
    lungs: Lungs
    share: np.ndarray


def read_lungs(
    hu: np.ndarray, probability: np.ndarray, keep: np.ndarray, spacing_mm: tuple[float, float, float]
) -> LungReading:
    """Clean the mask, tell right from left, and measure.

    Args:
        hu: int16 (D, H, W) in canonical order.
        probability: float32 (D, h, w), lung probability on the U-Net's grid.
        keep: bool (D,), the kept slices.
        spacing_mm: Voxel size of `hu` along (D, H, W).
    """
    sides = _sides(_clean(probability > 0.5))
    grid_mm = (spacing_mm[1] * hu.shape[1] / sides.shape[1], spacing_mm[2] * hu.shape[2] / sides.shape[2])
    involved = _involved(hu, sides > 0, grid_mm)
    labels = _onto_scan(probability, sides, hu.shape)
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    counts = np.bincount(labels.ravel(), minlength=3)
    cells, dense = (volume.sum(axis=(1, 2)) for volume in (sides > 0, involved))
    percent = 100.0 * dense / np.maximum(cells, 1)
    lungs = Lungs(
        volume_ml=float(counts[RIGHT] + counts[LEFT]) * voxel_ml,
        left_ml=float(counts[LEFT]) * voxel_ml,
        right_ml=float(counts[RIGHT]) * voxel_ml,
        slices_kept=int(keep.sum()),
        slices_total=len(keep),
        involvement_percent=float(100.0 * dense.sum() / max(cells.sum(), 1)),
        involvement_per_slice=tuple(float(value) for value in percent),
    )
    return LungReading(labels, lungs, cells / float(np.prod(sides.shape[1:])))


def _clean(mask: np.ndarray) -> np.ndarray:
    """The large pieces of the mask, their holes filled slice by slice."""
    pieces, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(pieces.ravel())[1:]
    wanted = np.flatnonzero(sizes >= LEAST_PIECE * sizes.max()) + 1
    mask = np.isin(pieces, wanted)
    return np.stack([ndimage.binary_fill_holes(plane) for plane in mask])


def _sides(mask: np.ndarray) -> np.ndarray:
    """uint8 labels of a cleaned mask: each voxel goes to the nearer of the two lungs' cores.

    The lungs touch in front of the aorta and behind the heart; they come apart when the mask is eroded.
    """
    sides = np.zeros(mask.shape, np.uint8)
    if not mask.any():
        return sides
    core = mask
    for _ in range(8):
        cores = _two_cores(core, int(mask.sum()))
        if cores is not None:
            nearest = ndimage.distance_transform_edt(cores == 0, return_distances=False, return_indices=True)
            return np.where(mask, cores[tuple(nearest)], 0).astype(np.uint8)
        core = ndimage.binary_erosion(core, np.ones((1, 3, 3), bool))
    # One lung only, or two that never come apart: cut at the middle of the body, which is that of the image.
    sides[mask] = RIGHT
    sides[..., mask.shape[2] // 2 :][mask[..., mask.shape[2] // 2 :]] = LEFT
    return sides


def _two_cores(core: np.ndarray, total: int) -> np.ndarray | None:
    pieces, count = ndimage.label(core)
    if count < 2:
        return None
    sizes = np.bincount(pieces.ravel())[1:]
    numbers = np.flatnonzero(sizes >= max(0.02 * total, 1)) + 1
    if len(numbers) < 2:
        return None
    middle = np.array([point[2] for point in ndimage.center_of_mass(core, pieces, numbers)])
    order = np.argsort(middle)
    gaps = np.diff(middle[order])
    # Several pieces (apex and base of a broken lung) fall into two groups at the widest gap from right to left.
    cut = int(np.argmax(gaps)) + 1
    if gaps[cut - 1] < 0.12 * core.shape[2]:
        return None
    cores = np.zeros(core.shape, np.uint8)
    cores[np.isin(pieces, numbers[order[:cut]])] = RIGHT
    cores[np.isin(pieces, numbers[order[cut:]])] = LEFT
    return cores


def _involved(hu: np.ndarray, mask: np.ndarray, grid_mm: tuple[float, float]) -> np.ndarray:
    """Involved cells of the U-Net's grid: dense lung, less everything as thin as a vessel or the pleura's border."""
    dense = (_planes(hu, mask.shape[1:], float("-inf")) > INVOLVED_HU) & mask
    half = [max(1, round(THIN_MM / size)) for size in grid_mm]
    disk = np.hypot(*np.meshgrid(*(np.arange(-n, n + 1) / n for n in half), indexing="ij")) <= 1.0
    core = ndimage.binary_opening(dense, disk[np.newaxis])
    # Opening rounds the corners of disease off; one cell of what was dense comes back.
    return ndimage.binary_dilation(core, np.ones((1, 3, 3), bool)) & dense


def _onto_scan(probability: np.ndarray, sides: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 (D, H, W): the smooth border of the probability, the sides of the cleaned mask."""
    # One cell around the cleaned mask keeps the border's partial cells; other pieces vanish.
    near = ndimage.maximum_filter(sides, size=(1, 3, 3))
    inside = _planes(np.where(near > 0, np.maximum(probability, 0.6 * (sides > 0)), 0.0), shape[1:], 0.5)
    rows, columns = (
        np.minimum((np.arange(size) + 0.5) * cells / size, cells - 1).astype(int)
        for size, cells in zip(shape[1:], sides.shape[1:], strict=True)
    )
    # Where the smooth border leaves the enlarged cells by a pixel, the nearer side is the greater number around it.
    side = near[:, rows][:, :, columns]
    return np.where(inside, side, 0).astype(np.uint8)


def _planes(volume: np.ndarray, size: tuple[int, ...], threshold: float) -> np.ndarray:
    """Planes (D, H, W) resampled onto (D, *size) by the layers' own matrices, a few at a time.

    Returns float32, or bool where a finite `threshold` is given: the comparison keeps memory small.
    """
    import tensorflow as tf

    from tf_covid.layers.resample import clipped_hu, full_axis_matrix, in_plane

    rows, columns = (full_axis_matrix(new, old) for new, old in zip(size, volume.shape[1:], strict=True))
    binary = np.isfinite(threshold)
    out = np.empty((len(volume), *size), bool if binary else np.float32)
    for first in range(0, len(volume), 16):
        planes: Any = in_plane(rows, clipped_hu(tf.constant(volume[first : first + 16])), columns).numpy()
        out[first : first + 16] = planes > threshold if binary else planes
    return out
