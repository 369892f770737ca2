"""From the U-Net's probabilities to lungs with sides, volumes and involvement.

This happens after the graph and for `lungs.nii.gz` and the figures only: the mask that the graph
computes is final for classification, so that Keras, SavedModel and server agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from tf_covid.grids import CHUNK, Box, box_of, box_on, hu_on_grid, on_grid, whole, wider
from tf_covid.lobes import (
    add_lesions,
    add_lobes,
    effusion_ml,
    label_lobes,
    lobes_within,
    more_right,
    read_lobes,
)
from tf_covid.lung_voxels import LEFT, RIGHT, LungVoxels, lobe_of
from tf_covid.result import Lobe, Lungs
from tf_covid.severity import LOBES

#: A separate piece of the mask belongs to the lungs when it has this fraction of the largest piece:
#: a lung compressed by an effusion is kept, bowel gas and table tubes are not.
LEAST_PIECE = 0.04

#: Lung denser than this is counted as involved where no lung model found the disease (the
#: contract's rule).
INVOLVED_HU = -700.0

#: Dense tissue nearer than this to its border, in mm, is as thin as a vessel or the partial volume
#: of the pleura: what is nowhere thicker than twice this (and a cell of the U-Net's grid) does not
#: count as disease.
THIN_MM = 3.5

#: A piece of lung lies on one side of the body when the other side has less than this fraction of
#: it.
STRADDLES = 0.15


@dataclass(frozen=True)
class LungReading:
    """What was read off the lung mask.

    Args:
        voxels: Side, lobe and disease on the scan's grid, (D, H, W); a voxel has a lobe exactly
            where it has a side, and disease is None where density decided.
        lungs: Volumes and involvement.
        lung_fraction: (D,) fraction of each slice that is lung, on the U-Net's grid, after
            cleaning.
        involved: bool (D, h, w), diseased lung on the U-Net's grid, for pictures and comparisons.
        lobes: Volume, involvement and score of the five lobes. None without a lobe network.
    """

    voxels: LungVoxels
    lungs: Lungs
    lung_fraction: np.ndarray
    involved: np.ndarray
    lobes: tuple[Lobe, ...] | None = None


def read_lungs(
    hu: np.ndarray,
    probability: np.ndarray,
    keep: np.ndarray,
    spacing_mm: tuple[float, float, float],
    mask: np.ndarray | None = None,
    disease: np.ndarray | None = None,
    lobes: np.ndarray | None = None,
    effusion: np.ndarray | None = None,
) -> LungReading:
    """Clean the mask, tell right from left and lobe from lobe, and measure.

    Args:
        hu: int16 (D, H, W) in canonical order.
        probability: float32 (D, h, w), lung probability on the U-Net's grid.
        keep: bool (D,), the kept slices.
        spacing_mm: Voxel size of `hu` along (D, H, W).
        mask: The user's own mask, bool (D, H, W): taken as it is, and only its sides are found.
        disease: float32 (D, h, w), calibrated probability of diseased lung on the U-Net's grid: its
            mean within the mask is the involvement. Without it density decides (`INVOLVED_HU`, less
            what is as thin as a vessel).
        lobes: float32 (D', h', w', 5), probability of each lobe in the order of `severity.LOBES`,
            on a coarse grid whose cells cover the scan evenly. It tells right from left, too.
        effusion: float32 (D', h', w'), probability of pleural effusion on a coarse grid; zeros
            throughout where the lobe network does not know it.

    Raises:
        ValueError: If `disease` is not on the grid of `probability`, or `lobes` are not five.
    """
    if disease is not None and disease.shape != probability.shape:
        raise ValueError(
            f"disease {disease.shape} is not on the grid of the lungs, {probability.shape}"
        )
    if lobes is not None and (lobes.ndim != 4 or lobes.shape[3] != len(LOBES)):
        raise ValueError(f"lobes must be (D', h', w', {len(LOBES)}), not {lobes.shape}")
    inside = probability > 0.5
    grid = inside.shape[1:]
    cell_mm = (
        spacing_mm[0],
        spacing_mm[1] * hu.shape[1] / grid[0],
        spacing_mm[2] * hu.shape[2] / grid[1],
    )
    right_half = None if lobes is None else more_right(lobes, inside)
    if right_half is None:
        middle = _middle(hu_on_grid(hu, grid))
        right_half = np.broadcast_to(np.arange(grid[1]) < middle, inside.shape)
    sides = _sides(inside if mask is not None else _clean(inside), right_half, cell_mm)
    if mask is None:
        sides = _filled(sides)
    # No rule on density on top of a learned mask: the lung model was shown vessels and pleura, too.
    involved = (
        _dense(hu_on_grid(hu, grid), sides > 0, cell_mm)
        if disease is None
        else (disease > 0.5) & (sides > 0)
    )
    del inside, right_half
    codes = (
        _onto_scan(probability, sides, hu.shape) if mask is None else _sided(mask, sides, cell_mm)
    )
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    right, left = (
        sum(int(np.count_nonzero(plane == side)) for plane in codes) for side in (RIGHT, LEFT)
    )
    amount = involved if disease is None else disease
    cells = np.count_nonzero(sides, axis=(1, 2)).astype(np.float64)
    diseased = np.array(
        [
            np.where(plane > 0, values, np.float32(0)).sum(dtype=np.float64)
            for plane, values in zip(sides, amount, strict=True)
        ]
    )
    within = None if lobes is None else lobes_within(lobes, sides)
    if within is not None:
        add_lobes(within, codes)
    if disease is not None:
        add_lesions(disease, codes)
    lungs = Lungs(
        volume_ml=(right + left) * voxel_ml,
        left_ml=left * voxel_ml,
        right_ml=right * voxel_ml,
        slices_kept=int(keep.sum()),
        slices_total=len(keep),
        involvement_percent=float(100.0 * diseased.sum() / max(cells.sum(), 1)),
        involvement_per_slice=tuple(
            float(value) for value in 100.0 * diseased / np.maximum(cells, 1)
        ),
        involvement_by="hu_rule" if disease is None else "disease_probability",
        # A softmax is nowhere 0: zeros throughout are of a network without a class for fluid.
        effusion_ml=None
        if effusion is None or not effusion.any()
        else effusion_ml(effusion, sides > 0, cell_mm),
    )
    return LungReading(
        LungVoxels(codes, has_lobes=within is not None, has_lesions=disease is not None),
        lungs,
        cells / float(np.prod(grid)),
        involved,
        None
        if within is None
        else read_lobes(map(lobe_of, codes), label_lobes(within, sides), amount, voxel_ml),
    )


def _clean(mask: np.ndarray) -> np.ndarray:
    """The large pieces of the mask."""
    pieces, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(pieces.ravel())[1:]
    large_pieces = np.flatnonzero(sizes >= LEAST_PIECE * sizes.max()) + 1
    return np.isin(pieces, large_pieces)


def _filled(sides: np.ndarray) -> np.ndarray:
    """Holes filled slice by slice, each lung alone.

    Between two lungs that touch lies the heart, which is no hole.
    """
    out = sides.copy()
    # Neighbours within a slice only.
    in_slice = ndimage.generate_binary_structure(3, 1)
    in_slice[0], in_slice[2] = False, False
    for side in (RIGHT, LEFT):
        box = wider(box_of(sides == side), sides.shape)
        outside, _ = ndimage.label(
            np.pad(sides[box] != side, ((0, 0), (1, 1), (1, 1)), constant_values=True), in_slice
        )
        # All that is joined to the edge of its slice has the number of the slice's first cell.
        holes = (outside != 0) & (outside != outside[:, :1, :1])
        part = out[box]
        part[holes[:, 1:-1, 1:-1] & (part == 0)] = side
    return out


def _middle(hu: np.ndarray) -> float:
    """Column of the middle of the body, on the grid of `hu`.

    The centre of what is denser than lung.
    """
    columns = (hu > -500.0).sum(axis=(0, 1), dtype=np.float64)
    total = columns.sum()
    return (
        float((columns * np.arange(len(columns))).sum() / total)
        if total
        else (len(columns) - 1) / 2
    )


def _sides(
    mask: np.ndarray, right_half: np.ndarray, cell_mm: tuple[float, float, float]
) -> np.ndarray:
    """uint8 labels of a mask: each voxel goes to the nearer of the two lungs' cores.

    The lungs touch in front of the aorta and behind the heart; they come apart when the mask is
    eroded. A core is a piece that lies on one side of the body.

    Args:
        mask: bool (D, h, w), both lungs.
        right_half: bool (D, h, w), the right half of the body, or what the lobe network takes for
            right lung.
        cell_mm: Edges of a cell in mm.
    """
    sides = np.zeros(mask.shape, np.uint8)
    if not mask.any():
        return sides
    box = tuple(slice(int(where.min()), int(where.max()) + 1) for where in np.nonzero(mask))
    inner, right_half = mask[box], right_half[box]
    core, total = inner, int(inner.sum())
    for _ in range(8):
        cores = _cores(core, total, right_half)
        if cores is not None:
            break
        core = ndimage.binary_erosion(core, np.ones((1, 3, 3), bool))
    else:
        # Two that never come apart: cut where the halves of the body meet.
        cores = np.where(right_half, RIGHT, LEFT).astype(np.uint8) * inner
    sides[box] = np.where(inner, _nearest(cores, cell_mm), 0)
    return sides


def _cores(core: np.ndarray, total: int, right_half: np.ndarray) -> np.ndarray | None:
    """The side of every large piece, or None while one of them lies in both halves of the body."""
    pieces, count = ndimage.label(core)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    of_right = np.bincount(pieces[right_half], minlength=count + 1) / np.maximum(sizes, 1)
    large = np.flatnonzero(sizes >= 0.02 * total)
    large = large[large > 0]
    if not len(large):
        return None
    if any(STRADDLES < fraction < 1 - STRADDLES for fraction in of_right[large]):
        return None
    side = np.zeros(count + 1, np.uint8)
    side[large] = np.where(of_right[large] > 0.5, RIGHT, LEFT)
    sides: np.ndarray = side[pieces]
    return sides


def _nearest(sides: np.ndarray, cell_mm: tuple[float, float, float]) -> np.ndarray:
    """The side of the nearest labelled voxel, everywhere."""
    if not sides.any():
        return sides
    nearest = ndimage.distance_transform_edt(
        sides == 0, sampling=cell_mm, return_distances=False, return_indices=True
    )
    everywhere: np.ndarray = sides[tuple(nearest)]
    return everywhere


def _dense(hu: np.ndarray, mask: np.ndarray, cell_mm: tuple[float, float, float]) -> np.ndarray:
    """Involved cells of the U-Net's grid.

    Dense lung, less everything as thin as a vessel or the pleura's border.
    """
    dense = (hu > INVOLVED_HU) & mask
    thin = (
        THIN_MM + (cell_mm[1] + cell_mm[2]) / 4
    )  # from the border to a cell's centre is half a cell more
    out: np.ndarray = np.zeros_like(dense)
    for slice_index in np.flatnonzero(dense.any(axis=(1, 2))):
        # One cell more around: the picture's border is a border.
        plane = np.pad(dense[slice_index], 1)
        core = ndimage.distance_transform_edt(plane, sampling=cell_mm[1:]) >= thin
        if core.any():
            # Back to the border from the core: opening by a disk, whose radius no cell size rounds.
            near = ndimage.distance_transform_edt(~core, sampling=cell_mm[1:]) <= thin
            out[slice_index] = (near & plane)[1:-1, 1:-1]
    return out


def _onto_scan(probability: np.ndarray, sides: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 (D, H, W): the smooth border of the probability, the sides of the cleaned mask."""
    # One cell around the cleaned mask keeps the border's partial cells; other pieces vanish.
    near = ndimage.maximum_filter(sides, size=(1, 3, 3))
    box = box_on(wider(box_of(near > 0), near.shape), near.shape, shape)
    inside = np.zeros(shape, bool)
    for first in range(box[0].start, box[0].stop, CHUNK):
        part = slice(first, min(first + CHUNK, box[0].stop))
        smooth = np.where(
            near[part] > 0,
            np.maximum(probability[part], np.float32(0.6) * (sides[part] > 0)),
            np.float32(0),
        )
        few = (len(smooth), *shape[1:])
        for here, (values,) in on_grid(smooth[np.newaxis], few, (whole(few)[0], *box[1:])):
            inside[part][here] = values > 0.5
    return _labelled(inside, np.where(sides > 0, sides, near), box, out=inside.view(np.uint8))


def _sided(mask: np.ndarray, sides: np.ndarray, cell_mm: tuple[float, float, float]) -> np.ndarray:
    """uint8 (D, H, W): a user's mask with the side of the nearest cell."""
    return _labelled(
        mask, _nearest(sides, cell_mm), whole(mask.shape), out=np.zeros(mask.shape, np.uint8)
    )


def _labelled(inside: np.ndarray, sides: np.ndarray, box: Box, out: np.ndarray) -> np.ndarray:
    """uint8 (D, H, W): where `inside`, the side of the coarse cell that holds the voxel.

    Args:
        inside: bool (D, H, W).
        sides: uint8 (D, h, w).
        box: Part of the scan that holds all of `inside`.
        out: uint8 (D, H, W), 0 outside of the box: what is returned. It may be `inside` itself.
    """
    rows, columns = (
        np.minimum((np.arange(part.start, part.stop) + 0.5) * cells / size, cells - 1).astype(int)
        for part, size, cells in zip(box[1:], inside.shape[1:], sides.shape[1:], strict=True)
    )
    parts = out[box], inside[box], sides[box[0]]
    for label, plane, coarse in zip(*parts, strict=True):
        np.multiply(coarse[rows][:, columns], plane, out=label)
    return out
