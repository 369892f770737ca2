"""Real scans with their masks, where a folder of them is given.

Laid out as `ct/cip` and `ct/totalsegmentator`.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tables import say

from tf_covid.scan import Scan, read, read_mask

CIP, BASE = "cip/ct-64.nrrd", "totalsegmentator/example_ct.nii.gz"

#: Mask of each scan, and the labels of it that are lung.
_MASKS = {
    CIP: ("cip/wholeLung-64.nrrd", (1, 1)),
    BASE: ("totalsegmentator/example_seg_fast_force_split.nii.gz", (10, 14)),
}


@dataclass(frozen=True)
class RealScan:
    """One real scan and its lungs, bool (D, H, W), as others drew them."""

    name: str
    scan: Scan
    lungs: np.ndarray


def present(folder: Path | None, *names: str) -> dict[str, Path]:
    """Those of the names that are in the folder; the others are told of."""
    if folder is None:
        say("no folder of real scans (--real, TF_COVID_REAL_CT): their rows are left out")
        return {}
    found = {name: folder / name for name in names if (folder / name).exists()}
    for name in names:
        if name not in found:
            say(f"{folder / name} is not there: its rows are left out")
    return found


def real_scans(folder: Path | None) -> list[RealScan]:
    """Every scan that is there with its mask, on one grid and in one order."""
    scans = []
    for name, path in present(folder, *_MASKS).items():
        mask, labels = _MASKS[name]
        if (path := present(folder, name, mask)).keys() == {name, mask}:
            scan = read(path[name])
            scans.append(RealScan(name, scan, _lungs(path[mask], labels, scan)))
    return scans


def _lungs(path: Path, labels: tuple[int, int], scan: Scan) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        # `read_mask` takes all that is above zero, so the other organs go first.
        lungs = Path(folder) / "lungs.nii.gz"
        sitk.WriteImage(sitk.BinaryThreshold(sitk.ReadImage(str(path)), *labels), str(lungs))
        return read_mask(lungs, scan)
