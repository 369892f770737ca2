"""What each voxel of the lungs is, in one byte: its side, its lobe, and whether it is diseased.

A large scan has as many voxels as take a quarter of a gigabyte in bytes: one volume is kept, and
what is drawn or written of it is read off slice by slice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

#: Label of each lung in `lungs.nii.gz`.
RIGHT: Final = 1
LEFT: Final = 2

#: Where the bits of the lobe and of disease begin; the side is in the lowest two.
_LOBE, _LESION = 2, 5


def side_of(codes: np.ndarray) -> np.ndarray:
    """The lung of each voxel: 0 outside, 1 right, 2 left."""
    return codes & np.uint8(3)


def lobe_of(codes: np.ndarray) -> np.ndarray:
    """The lobe of each voxel: 0 outside, 1–5 in the order of `severity.LOBES`."""
    lobes = codes >> np.uint8(_LOBE)
    lobes &= np.uint8(7)
    return lobes


def lesion_of(codes: np.ndarray) -> np.ndarray:
    """Whether each voxel is diseased lung, as 1 and 0."""
    return codes >> np.uint8(_LESION)


def codes_of(
    sides: np.ndarray | int, lobes: np.ndarray | int = 0, lesions: np.ndarray | int = 0
) -> np.ndarray:
    """Codes, uint8, of voxels.

    Args:
        sides: 0 outside, 1 right, 2 left.
        lobes: 1–5 within the lungs; 0: unknown.
        lesions: Above 0 in diseased lung.
    """
    codes = np.asarray(sides, np.uint8) | np.asarray(lobes, np.uint8) << np.uint8(_LOBE)
    diseased = np.asarray(np.greater(lesions, 0), np.uint8)
    return np.asarray(codes | diseased << np.uint8(_LESION))


@dataclass(frozen=True)
class LungVoxels:
    """The lungs of a scan.

    Args:
        codes: uint8 (D, H, W), canonical, as `codes_of` makes them; not 0 exactly where there is a
            side.
        has_lobes: Whether a lobe network told the lobes.
        has_lesions: Whether disease was looked for.
    """

    codes: np.ndarray
    has_lobes: bool = False
    has_lesions: bool = False

    @classmethod
    def of(
        cls, sides: np.ndarray, lobes: np.ndarray | None = None, lesions: np.ndarray | None = None
    ) -> LungVoxels:
        """Of volumes (D, H, W), as the properties give them; beside the lungs nothing is taken."""
        codes = codes_of(sides, 0 if lobes is None else lobes, 0 if lesions is None else lesions)
        codes[np.asarray(sides) == 0] = 0
        return cls(codes, lobes is not None, lesions is not None)

    @property
    def finds_no_lesion(self) -> bool:
        """Whether disease was looked for, and none is there."""
        return self.has_lesions and not any(lesion_of(plane).any() for plane in self.codes)

    @property
    def sides(self) -> np.ndarray:
        """uint8 (D, H, W), made anew at each call: 0 outside, 1 right, 2 left."""
        return side_of(self.codes)

    @property
    def lobes(self) -> np.ndarray | None:
        """uint8 (D, H, W), likewise: 0 outside, 1–5. None without a lobe network."""
        return lobe_of(self.codes) if self.has_lobes else None

    @property
    def lesions(self) -> np.ndarray | None:
        """uint8 (D, H, W), likewise: 1 in diseased lung. None where nothing looked for it."""
        return lesion_of(self.codes) if self.has_lesions else None
