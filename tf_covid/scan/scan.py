"""The value that every reader returns: int16 HU in one canonical order, with geometry and history.

Canonical order (D, H, W): D from head to feet, H from anterior to posterior, W from the patient's
right to left (highdicom's F-P-L). Millimetres are DICOM's LPS everywhere inside; RAS exists only
inside NIfTI files.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tf_covid.result import QualityFlag


@dataclass(frozen=True)
class SourceGrid:
    """How the source file stored the voxels, so that every output lands on its grid.

    Args:
        shape: Size of the stored array, in its own axis order (after gap repair).
        affine_ras: (4, 4) NIfTI affine of the stored array: its index → RAS mm.
        axes: `axes[i]` is the canonical axis (0 D, 1 H, 2 W) that the stored axis i runs along.
        flipped: `flipped[i]` is true where the stored axis i runs against the canonical direction.
    """

    shape: tuple[int, int, int]
    affine_ras: np.ndarray
    axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]

    def from_canonical(self, volume: np.ndarray) -> np.ndarray:
        """A canonical (D, H, W) volume as a view in the stored order."""
        stored = np.transpose(volume, self.axes)
        return stored[tuple(slice(None, None, -1 if flip else 1) for flip in self.flipped)]


@dataclass(frozen=True)
class SourceImage:
    """The DICOM image that a stored slice was read from, as an object made from it refers to it.

    Args:
        sop_class_uid: SOP Class UID; "" where the header has none.
        sop_instance_uid: SOP Instance UID; "" where the header has none.
        frame_number: From 1; None where the instance has one frame.
        series_instance_uid: Series Instance UID; "" where the header has none.
        position_mm: ImagePositionPatient as it is stated, LPS mm.
    """

    sop_class_uid: str
    sop_instance_uid: str = field(repr=False)
    frame_number: int | None = None
    series_instance_uid: str = field(default="", repr=False)
    position_mm: tuple[float, ...] = ()


@dataclass(frozen=True)
class SourceSeries:
    """The DICOM series that a scan was read from, as far as objects made from it repeat it.

    Args:
        attributes: Texts of the header of its first slice by keyword, of patient, study, series and
            frame of reference: decoded, unchanged otherwise, absent where empty.
        images: Every slice that was stored and read; of one multi-frame file every frame of it, in
            the order of the file.
        orientation: ImageOrientationPatient of the first slice, six cosines, as it is stated.
        pixel_spacing_mm: Between rows, and between columns.
        slice_thickness_mm: Of most slices; None where no header states it.
        rows: Rows of a stored slice.
        columns: Columns of a stored slice.
    """

    attributes: dict[str, str] = field(repr=False)
    images: tuple[SourceImage, ...]
    orientation: tuple[float, ...]
    pixel_spacing_mm: tuple[float, ...]
    slice_thickness_mm: float | None
    rows: int
    columns: int


@dataclass(frozen=True)
class Scan:
    """A chest CT.

    Args:
        case: Name of the case, safe as a folder name, without any identifier of the patient.
        hu: int16 Hounsfield units, (D, H, W) in canonical order, C-contiguous.
        affine: (4, 4) LPS: (d, h, w, 1) → mm.
        source: The grid of the source file.
        fingerprint: sha256 (hex) over the bytes of the input files that belong to this case.
        quality_flags: What was noticed; none of level "error" (that is a `ScanRefused`).
        interpolated: Numbers of the slices that were interpolated.
        chosen_because: Why this series and no other, for a human.
        instance_numbers: InstanceNumber of the file of each slice, (D,), None where it was
            interpolated or states none; empty where no slice is a DICOM file of its own.
        slice_thickness_mm: SliceThickness of most slices; None where no header states it.
        source_images: What each slice was read from, in the stored order: entry i is index i of the
            last axis of `source`, whichever axis that runs along; None where it was interpolated.
            Empty where the scan is no DICOM.
        source_series: The series of these images; None where the scan is no DICOM.
        identifiers: Names, ids and UIDs from the header; they leave the program only by
            `--keep-identifiers`.
    """

    case: str
    hu: np.ndarray
    affine: np.ndarray
    source: SourceGrid
    fingerprint: str
    quality_flags: tuple[QualityFlag, ...] = ()
    interpolated: tuple[int, ...] = ()
    chosen_because: str = ""
    identifiers: dict[str, str] = field(default_factory=dict, repr=False)
    instance_numbers: tuple[int | None, ...] = ()
    slice_thickness_mm: float | None = None
    source_images: tuple[SourceImage | None, ...] = field(default=(), repr=False)
    source_series: SourceSeries | None = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W)."""
        depth, height, width = self.hu.shape
        return depth, height, width

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Voxel size along (D, H, W), in mm."""
        d, h, w = (float(np.linalg.norm(self.affine[:3, axis])) for axis in range(3))
        return d, h, w

    @property
    def repaired(self) -> bool:
        """True where the reader changed what it read (interpolated slices and the like)."""
        return bool(self.interpolated)
