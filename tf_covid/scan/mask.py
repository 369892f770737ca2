"""A user's own lung mask, brought to the order of its scan."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from tf_covid.scan.checks import refusal
from tf_covid.scan.limits import DEFAULT, Limits
from tf_covid.scan.quiet import quiet
from tf_covid.scan.scan import Scan
from tf_covid.scan.source import FileSource
from tf_covid.scan.volume import read_stored_mask
from tf_covid.scan.volumes import is_volume, open_volume

#: How far a corner of the mask's grid may lie from the scan's: a share of the smallest voxel edge.
CORNER_SHARE = 0.25


def read_mask(
    path: str | os.PathLike[str], scan: Scan, limits: Limits = DEFAULT, *, may_be_empty: bool = False
) -> np.ndarray:
    """The voxels of a mask file that are above zero.

    Args:
        path: NIfTI, NRRD or MHA on the grid of the scan, in any order of its axes.
        scan: The scan it belongs to.
        limits: Bounds on sizes.
        may_be_empty: A lesion mask of a healthy patient is.

    Returns:
        bool (D, H, W) in the scan's canonical order.

    Raises:
        ScanRefused: `mask_grid` if it is not on the scan's grid, `mask_empty`, `not_found`, or what is wrong with the
            file.
    """
    path = Path(path)
    if not path.is_file():
        raise refusal("not_found", "There is no such mask file.")
    source = FileSource.of(path)
    if not is_volume(path.name):
        raise refusal("mask_grid", "A mask is read from NIfTI, NRRD or MHA.")
    with quiet(), open_volume([source], limits) as stored:
        mask, affine = read_stored_mask(stored)
    if mask.shape != scan.shape:
        message = f"The mask has {_times(mask.shape)} voxels (D×H×W), the scan {_times(scan.shape)}."
        raise refusal("mask_grid", message)
    corners = np.array(np.meshgrid(*[(0, size - 1) for size in scan.shape], [1.0], indexing="ij")).reshape(4, -1)
    off = float(np.linalg.norm(((affine - scan.affine) @ corners)[:3], axis=0).max())
    if off > CORNER_SHARE * min(scan.spacing_mm):
        raise refusal("mask_grid", f"The mask's grid lies up to {off:.2f} mm off the scan's.", round(off, 2))
    if not (may_be_empty or mask.any()):
        raise refusal("mask_empty", "The mask is empty.")
    return mask


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(str(size) for size in shape)
