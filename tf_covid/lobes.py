"""From the coarse probabilities of the 3D lobe network to five lobes on the scan, and their scores.

The network's cells cover the whole scan evenly along each axis and are several millimetres wide.
The lungs' mask says where lung is and which side it belongs to; the network says which of that
side's lobes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from scipy import ndimage

from tf_covid import severity
from tf_covid.grids import Box, box_of, box_of_label, box_on, on_grid, whole, wider
from tf_covid.lung_voxels import LEFT, RIGHT, codes_of, side_of
from tf_covid.result import Lobe

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

#: Coarse cells about a lung among which the nearest one that says something is looked for.
_MARGIN = 6


def more_right(lobes: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
    """Where the lobe network sees more of the right lung than of the left.

    Where it sees neither, the nearest cell that sees one decides.

    Args:
        lobes: Probability of each lobe, float32 (D', h', w', 5).
        mask: bool (D, h, w), the lungs: the answer holds within their box.

    Returns:
        bool (D, h, w), False outside of the box; None where no cell sees a lobe.
    """
    right, left = (lobes[..., LOBES_OF[side]].sum(axis=-1) for side in (RIGHT, LEFT))
    known = right + left >= _LEAST_EVIDENCE
    if not known.any():
        return None
    box = box_of(mask)
    crop = _crop(known, wider(box_on(box, mask.shape, known.shape), known.shape))
    excess = np.zeros(known.shape, np.float32)
    excess[crop] = (right - left)[crop][tuple(_nearest(known[crop]))]
    out = np.zeros(mask.shape, bool)
    for part, (values,) in on_grid(excess[np.newaxis], out.shape, box):
        out[part] = values > 0
    return out


def lobes_within(lobes: np.ndarray, sides: np.ndarray) -> dict[int, np.ndarray] | None:
    """Probability of each lobe of a lung, given that a cell belongs to that lung.

    Where the network sees nothing of a lung, the nearest cell that does speaks for it, and small
    islands of a lobe take the values of the lobe around them.

    Args:
        lobes: Probability of each lobe, float32 (D', h', w', 5).
        sides: uint8 (D, h, w); 0 outside, 1 right, 2 left, on any grid over the same scan.

    Returns:
        For each lung in `sides`, float32 (D', h', w', lobes of that lung), 0 far from that lung.
        None where the network saw no lobe of a lung that is there.
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
        held = np.zeros(known.shape, bool)
        # A cell reaches no farther than to its neighbours.
        near = wider(box_on(box_of(mask), mask.shape, held.shape), held.shape)
        for part, (values,) in on_grid(mask[np.newaxis], held.shape, near):
            held[part] = values > 0
        crop = _crop(known, near)
        shares, sums = lobes[crop][..., own], total[crop]
        within = np.divide(shares, sums, out=np.zeros_like(shares), where=sums > 0)
        within = within[tuple(_nearest(known[crop]))]
        islands = _islands(within, held[crop])
        if islands.any():
            within = within[tuple(_nearest(~islands & (held[crop] | ~_beside(islands))))]
        out[side] = np.zeros(lobes[..., own].shape, np.float32)
        out[side][crop] = within
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
    for part, own, lobes in _by_part(within, sides):
        labels[part][own] = lobes[own]
    return labels


def add_lobes(within: dict[int, np.ndarray], codes: np.ndarray) -> None:
    """Write the lobes into the codes of a scan's lungs, in place.

    Args:
        within: What `lobes_within` gives.
        codes: uint8 (D, H, W), of `lung_voxels`, with their sides.
    """
    for part, own, lobes in _by_part(within, codes):
        codes[part] |= codes_of(0, lobes * own)


def _by_part(
    within: dict[int, np.ndarray], sides: np.ndarray
) -> Iterator[tuple[Box, np.ndarray, np.ndarray]]:
    """Part of the scan, where it is of the lung in question, and the lobe of that lung, uint8."""
    # Codes may change behind the part that was given.
    boxes = {side: box_of_label(sides, side) for side in within}
    for side, probability in within.items():
        # Interpolation is linear, so that differences to the first lobe say the same with one field
        # less.
        differences = np.moveaxis(probability[..., 1:] - probability[..., :1], -1, 0)
        for part, fields in on_grid(np.ascontiguousarray(differences), sides.shape, boxes[side]):
            best = np.full(fields[0].shape, LOBES_OF[side].start + 1, np.uint8)
            highest: np.ndarray = np.zeros_like(fields[0])
            for position, values in enumerate(fields, start=LOBES_OF[side].start + 2):
                best[values > highest] = position
                np.maximum(highest, values, out=highest)
            yield part, side_of(sides[part]) == side, best


def read_lobes(
    planes: Iterable[np.ndarray], cell_labels: np.ndarray, involved: np.ndarray, voxel_ml: float
) -> tuple[Lobe, ...]:
    """Volume, involvement and score of the five lobes.

    Args:
        planes: uint8 (H, W) of each slice, lobes 1–5 on the scan's grid.
        cell_labels: uint8 (D, h, w), lobes 1–5 on the grid of `involved`.
        involved: Probability that a cell is diseased, (D, h, w); bool is as good.
        voxel_ml: Volume of a voxel of `planes` in ml.
    """
    count = len(severity.LOBES) + 1
    voxels, cells, amount = (np.zeros(count) for _ in range(3))
    for plane in planes:
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
    # What is interpolated exceeds a limit only beside a cell that does: the rest is passed over.
    near = wider(box_of(effusion > FLUID), effusion.shape)
    box = box_on(near, effusion.shape, lungs.shape)
    for part, (values,) in on_grid(effusion[np.newaxis], lungs.shape, box):
        count += int(np.count_nonzero((values > FLUID) & ~lungs[part]))
    return float(count * np.prod(cell_mm) / 1000.0)


def add_lesions(disease: np.ndarray, codes: np.ndarray) -> None:
    """Mark the lung that is more probably diseased than not in the codes of a scan, in place.

    Args:
        disease: Probability of diseased lung, float32 (D, h, w).
        codes: uint8 (D, H, W), of `lung_voxels`, with their sides.
    """
    # As for the effusion.
    near = wider(box_of(disease > 0.5), disease.shape)
    box = box_on(near, disease.shape, codes.shape)
    for part, (values,) in on_grid(disease[np.newaxis], codes.shape, box):
        here = codes[part]
        here |= codes_of(0, lesions=(values > 0.5) & (side_of(here) > 0))


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


def _crop(known: np.ndarray, near: Box) -> Box:
    """The part of a coarse grid that is worked on: a box with a margin, or all of it.

    Args:
        known: Cells that say something, bool (D', h', w').
        near: Box whose cells are asked for.
    """
    crop = wider(near, known.shape, _MARGIN)
    return crop if known[crop].any() else whole(known.shape)


def _nearest(known: np.ndarray) -> np.ndarray:
    """Indices, (3, D', h', w'), of the nearest cell that is known."""
    indices: np.ndarray = ndimage.distance_transform_edt(
        ~known, return_distances=False, return_indices=True
    )
    return indices
