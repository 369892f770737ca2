"""From the coarse probabilities of the 3D lobe network to five lobes on the scan, and their scores.

The network's cells cover the whole scan evenly along each axis and are several millimetres wide.
The lungs' mask says where lung is and which side it belongs to; the network says which of that
side's lobes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from tf_covid import severity
from tf_covid.result import Lobe

#: Label of each lung in `lungs.nii.gz`.
RIGHT, LEFT = 1, 2

#: The lobes of each lung, as positions in `severity.LOBES`.
LOBES_OF = {RIGHT: slice(0, 3), LEFT: slice(3, 5)}

#: A lobe less involved than this, in percent, scores 0: the mean of a probability is never exactly
#: 0. Chosen on the chests of docs/lobes.md: less gives clean lobes a point, more takes mild ones'.
HEALTHY_PERCENT = 2.0

#: A lobe of which the scan shows less than this, in ml, has neither involvement nor score: it was
#: cut off or removed, or is too little to be judged.
LEAST_LOBE_ML = 30.0

#: A cell holds pleural fluid from this probability on. Its cells weigh eight times in training
#: (`training.losses.RARE_WEIGHTS`): odds of about eight mean that it is likelier than not.
FLUID = 0.88

#: A cell says something about a side's lobes when they have this probability together.
_LEAST_EVIDENCE = 0.05

#: A separate piece of a lobe below this fraction of the lobe belongs to the lobe around it.
_ISLAND = 0.02

#: Slices that are worked on at a time, so that memory stays small.
_CHUNK = 16


def more_right(lobes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Where the lobe network sees more of the right lung than of the left: bool, of `shape`.

    Where it sees neither, the nearest cell that sees one decides; None where no cell does.

    Args:
        lobes: Probability of each lobe, float32 (D', h', w', 5).
        shape: Grid of the answer, (D, h, w).
    """
    right, left = (lobes[..., LOBES_OF[side]].sum(axis=-1) for side in (RIGHT, LEFT))
    known = right + left >= _LEAST_EVIDENCE
    if not known.any():
        return None
    excess = (right - left)[tuple(_nearest(known))]
    out = np.zeros(shape, bool)
    for part, planes in _on_grid(excess[..., None], shape):
        out[part] = planes[:, 0] > 0
    return out


def lobes_within(lobes: np.ndarray, sides: np.ndarray) -> dict[int, np.ndarray] | None:
    """Probability of each lobe of a lung, given that a cell belongs to that lung.

    Where the network sees nothing of a lung, the nearest cell that does speaks for it, and small
    islands of a lobe take the values of the lobe around them.

    Args:
        lobes: Probability of each lobe, float32 (D', h', w', 5).
        sides: uint8 (D, h, w); 0 outside, 1 right, 2 left, on any grid over the same scan.

    Returns:
        For each lung in `sides`, float32 (D', h', w', lobes of that lung). None where the network
        saw no lobe of a lung that is there.
    """
    out = {}
    for side, own in LOBES_OF.items():
        mask = sides == side
        if not mask.any():
            continue
        total = lobes[..., own].sum(axis=-1, keepdims=True)
        known = total[..., 0] >= _LEAST_EVIDENCE
        if not known.any():
            return None
        within = np.divide(
            lobes[..., own], total, out=np.zeros_like(lobes[..., own]), where=total > 0
        )
        within = within[tuple(_nearest(known))]
        held = np.zeros(total.shape[:3], bool)
        for part, planes in _on_grid(mask[..., None], held.shape):
            held[part] = planes[:, 0] > 0
        islands = _islands(within, held)
        if islands.any():
            within = within[tuple(_nearest(~islands & (held | ~_beside(islands))))]
        out[side] = within
    return out


def label_lobes(within: dict[int, np.ndarray], sides: np.ndarray) -> np.ndarray:
    """The most probable lobe of its own lung for each voxel of the lungs.

    Args:
        within: What `lobes_within` gives.
        sides: uint8 (D, H, W); 0 outside, 1 right, 2 left, on any grid over the same scan.

    Returns:
        uint8 (D, H, W); 0 outside the lungs, 1–5 in the order of `severity.LOBES`.
    """
    labels = np.zeros(sides.shape, np.uint8)
    for side, probability in within.items():
        box = _box(sides, side)
        # Interpolation is linear, so that differences to the first lobe say the same with one field
        # less.
        differences = probability[..., 1:] - probability[..., :1]
        for part, planes in _on_grid(differences, sides.shape, box):
            best = np.zeros(planes[:, 0].shape, np.uint8)
            highest: np.ndarray = np.zeros_like(planes[:, 0])
            for position in range(planes.shape[1]):
                better = planes[:, position] > highest
                best[better] = position + 1
                np.maximum(highest, planes[:, position], out=highest)
            own = sides[part] == side
            labels[part][own] = best[own] + (LOBES_OF[side].start + 1)
    return labels


def read_lobes(
    labels: np.ndarray, cell_labels: np.ndarray, involved: np.ndarray, voxel_ml: float
) -> tuple[Lobe, ...]:
    """Volume, involvement and score of the five lobes.

    Args:
        labels: uint8 (D, H, W), lobes 1–5 on the scan's grid.
        cell_labels: uint8 (D, h, w), lobes 1–5 on the grid of `involved`.
        involved: Probability that a cell is diseased, (D, h, w); bool is as good.
        voxel_ml: Volume of a voxel of `labels` in ml.
    """
    count = len(severity.LOBES) + 1
    voxels, cells, amount = (np.zeros(count) for _ in range(3))
    for plane in labels:
        voxels += np.bincount(plane.ravel(), minlength=count)
    for plane, values in zip(cell_labels, involved, strict=True):
        cells += np.bincount(plane.ravel(), minlength=count)
        amount += np.bincount(plane.ravel(), weights=values.ravel(), minlength=count)
    read = []
    for label, name in enumerate(severity.LOBES, start=1):
        volume_ml = float(voxels[label] * voxel_ml)
        if volume_ml < LEAST_LOBE_ML or not cells[label]:
            read.append(Lobe(name, volume_ml, None, None))
            continue
        percent = float(np.clip(100.0 * amount[label] / cells[label], 0.0, 100.0))
        score = 0 if percent < HEALTHY_PERCENT else severity.lobe_score(percent)
        read.append(Lobe(name, volume_ml, percent, score))
    return tuple(read)


def ct_score_read(lobes: Sequence[Lobe] | None) -> int | None:
    """Sum of the five lobe scores, 0–25; None without lobes, or where one has no score."""
    scores = [lobe.score for lobe in lobes or () if lobe.score is not None]
    return severity.ct_score(scores) if len(scores) == len(severity.LOBES) else None


def effusion_ml(
    effusion: np.ndarray, lungs: np.ndarray, cell_mm: tuple[float, float, float]
) -> float:
    """Volume of pleural fluid in ml: where its probability exceeds `FLUID`, and no lung is.

    Args:
        effusion: Probability of pleural effusion, float32 (D', h', w').
        lungs: bool (D, h, w), on any grid over the same scan.
        cell_mm: Edges of a cell of `lungs` in mm.
    """
    count = 0
    for part, planes in _on_grid(effusion[..., None], lungs.shape):
        count += int(np.count_nonzero((planes[:, 0] > FLUID) & ~lungs[part]))
    return float(count * np.prod(cell_mm) / 1000.0)


def lesions_on_scan(disease: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """uint8 (D, H, W): 1 in the lung that is more probably diseased than not.

    Args:
        disease: Probability of diseased lung, float32 (D, h, w).
        sides: uint8 (D, H, W), the lungs on the scan's grid.
    """
    lesions = np.zeros(sides.shape, np.uint8)
    diseased = disease > 0.5
    if not diseased.any():
        return lesions
    # What is interpolated exceeds a half within a cell of one that does: the rest is passed over.
    box = []
    for axis, size in enumerate(sides.shape):
        cells = np.flatnonzero(diseased.any(axis=tuple({0, 1, 2} - {axis})))
        voxels = size / disease.shape[axis]
        low, high = (cells[0] - 1) * voxels, (cells[-1] + 2) * voxels
        box.append(slice(max(int(low), 0), min(int(np.ceil(high)), size)))
    for part, planes in _on_grid(disease[..., None], sides.shape, tuple(box)):
        lesions[part] = (planes[:, 0] > 0.5) & (sides[part] > 0)
    return lesions


def _islands(within: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Cells of small pieces of a lobe that its large ones do not touch, bool (D', h', w')."""
    best = np.where(held, within.argmax(axis=-1) + 1, 0)
    islands = np.zeros(held.shape, bool)
    for label in range(1, within.shape[-1] + 1):
        pieces, count = ndimage.label(best == label, np.ones((3, 3, 3), bool))
        if count < 2:
            continue
        sizes = np.bincount(pieces.ravel())
        sizes[0] = 0
        small = (sizes > 0) & (sizes < _ISLAND * sizes.sum())
        small[sizes.argmax()] = False
        islands |= small[pieces]
    return islands


def _beside(islands: np.ndarray) -> np.ndarray:
    """The cells about the islands: outside the lung they may carry the same wrong lobe."""
    near: np.ndarray = ndimage.binary_dilation(islands, np.ones((3, 3, 3), bool), 2)
    return near


def _nearest(known: np.ndarray) -> np.ndarray:
    """Indices, (3, D', h', w'), of the nearest cell that is known."""
    indices: np.ndarray = ndimage.distance_transform_edt(
        ~known, return_distances=False, return_indices=True
    )
    return indices


def _box(sides: np.ndarray, side: int) -> tuple[slice, ...]:
    """The smallest box of a lung; empty where there is none."""
    rows, columns = np.zeros(sides.shape[1], bool), np.zeros(sides.shape[2], bool)
    depth = np.zeros(len(sides), bool)
    for index, plane in enumerate(sides):
        mask = plane == side
        rows |= mask.any(axis=1)
        columns |= mask.any(axis=0)
        depth[index] = mask.any()
    axes = [np.flatnonzero(axis) for axis in (depth, rows, columns)]
    return tuple(slice(int(axis[0]), int(axis[-1]) + 1) if len(axis) else slice(0) for axis in axes)


def _on_grid(
    fields: np.ndarray, shape: tuple[int, ...], box: tuple[slice, ...] | None = None
) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    """Fields of a coarse grid on a finer one over the same scan, a few slices at a time.

    By the layers' own matrices: linear where it enlarges, averaged where it reduces.

    Args:
        fields: (D', h', w', k), numbers or bool.
        shape: The other grid, (D, H, W).
        box: Part of it that is asked for.

    Yields:
        (part of the other grid, float32 (slices, k, rows, columns) in it).
    """
    import tensorflow as tf

    from tf_covid.layers.resample import full_axis_matrix, in_plane

    box = box or tuple(slice(0, size) for size in shape)
    depth, rows, columns = (
        full_axis_matrix(new, old)[0, part.start : part.stop]
        for new, old, part in zip(shape, fields.shape[:3], box, strict=True)
    )
    count = fields.shape[3]
    for first in range(box[0].start, box[0].stop, _CHUNK):
        last = min(first + _CHUNK, box[0].stop)
        weights = depth.numpy()[first - box[0].start : last - box[0].start]
        used = np.flatnonzero(weights.any(axis=0))
        near = slice(int(used[0]), int(used[-1]) + 1)
        slices = np.tensordot(weights[:, near], fields[near].astype(np.float32), axes=1)
        planes = np.moveaxis(slices, -1, 1).reshape(-1, *fields.shape[1:3])
        fine: Any = in_plane(rows[tf.newaxis], tf.constant(planes), columns[tf.newaxis]).numpy()
        yield (slice(first, last), *box[1:]), fine.reshape(last - first, count, *fine.shape[1:])
