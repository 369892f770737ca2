"""A volume → the files that a scanner or a researcher would leave: DICOM series and NIfTI."""

from __future__ import annotations

import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DSfloat

from tf_covid.errors import OutputError
from tf_covid.phantom.encode import encode_frame
from tf_covid.scan.dicom import transfer_syntax as syntaxes
from tf_covid.scan.nifti import save_stored

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
#: Letter → canonical axis (0 D, 1 H, 2 W) and whether it runs against it. D runs to I, H to P, W to
#: L.
_LETTERS = {
    "I": (0, False),
    "S": (0, True),
    "P": (1, False),
    "A": (1, True),
    "L": (2, False),
    "R": (2, True),
}
#: How the images are stored: direction of a row, of a column, and in which slices follow each
#: other.
ORIENTATIONS = {
    "axial": "LPS",
    "axial_head_first": "LPI",
    "axial_prone": "RAS",
    "axial_feet_first": "RPI",
    "axial_flipped": "LAI",
    "coronal": "LIP",
    "coronal_back": "RIA",
    "sagittal": "PIL",
    "sagittal_left": "AIR",
}


@dataclass(frozen=True)
class Facts:
    """Who the synthetic patient is. Nothing here belongs to a person.

    Name and id are words that no folder is called by: a case whose folder names its patient is
    shown as a hash.
    """

    patient_id: str = "MQ-000000"
    patient_name: str = "Mannequin^Xylon"
    birth_date: str = "19600101"
    sex: str = "O"
    accession_number: str = "MQ1"
    study_date: str = "20200301"
    patient_position: str = "HFS"


@dataclass(frozen=True)
class Pixels:
    """How HU are stored: `stored = (HU - intercept) / slope`, in so many bits.

    With `signed` the values are two's complement in 16 bits allocated.
    """

    bits: int = 16
    signed: bool = True
    slope: float = 1.0
    intercept: float = -1024.0
    padding: int | None = None

    def stored(self, hu: np.ndarray) -> np.ndarray:
        """The stored values of int16 HU, rounded and clipped to what the bits hold."""
        low = -(2 ** (self.bits - 1)) if self.signed else 0
        high = low + 2**self.bits - 1
        dtype: Any = np.uint8 if self.bits <= 8 else np.int16 if self.signed else np.uint16
        values = np.rint((hu.astype(np.float32) - self.intercept) / self.slope)
        return np.clip(values, low, high).astype(dtype)


#: Lossy JPEG holds 8 or 12 unsigned bits only.
_LOSSY_PIXELS = {
    syntaxes.JPEG_BASELINE: Pixels(bits=8, signed=False, slope=12.0),
    syntaxes.JPEG_EXTENDED: Pixels(bits=12, signed=False),
}
_LOSSY_METHODS = {
    syntaxes.JPEG_BASELINE: "ISO_10918_1",
    syntaxes.JPEG_EXTENDED: "ISO_10918_1",
    syntaxes.JPEG_LS_NEAR: "ISO_14495_1",
    syntaxes.JPEG_2000: "ISO_15444_1",
}


def write_dicom(
    hu: np.ndarray,
    affine_lps: np.ndarray,
    folder: str | os.PathLike[str],
    *,
    transfer_syntax: str = ExplicitVRLittleEndian,
    orientation: str = "axial",
    facts: Facts | None = None,
    pixels: Pixels | None = None,
    kernel: str = "B60f",
    slice_thickness: float | None = None,
    series_number: int = 2,
    seed: int = 0,
    study_seed: int | None = None,
    shuffle_names: bool = False,
) -> Path:
    """Write a CT series, one CT Image Storage instance a slice.

    Args:
        hu: int16 (D, H, W) in canonical order.
        affine_lps: (4, 4): (d, h, w, 1) → LPS mm.
        folder: Made as one step: written under another name, then renamed.
        transfer_syntax: UID; uncompressed, deflated, RLE, JPEG, JPEG-LS, JPEG 2000 or HTJ2K.
        orientation: A key of `ORIENTATIONS`: in which order the voxels are stored.
        facts: Of the synthetic patient.
        pixels: How HU are stored; by default 16 bits signed, or what the transfer syntax can hold.
        kernel: ConvolutionKernel.
        slice_thickness: In mm; the distance of the slices by default.
        series_number: SeriesNumber.
        seed: Of the series and instance UIDs and of shuffled names; the same seed gives the same
            files.
        study_seed: Of the study's UIDs; `seed` by default. Two series with one of these are one
            study.
        shuffle_names: File names without order and extension, as archives export them.

    Returns:
        The folder.

    Raises:
        OutputError: If the folder exists and is not empty, or cannot be written.
    """
    folder = Path(folder)
    pixels = pixels or _LOSSY_PIXELS.get(str(transfer_syntax)) or Pixels()
    stored, affine = _reorder(hu, affine_lps, orientation)
    template = _template(
        affine, stored.shape, facts or Facts(), kernel, slice_thickness, series_number
    )
    _add_uids(template, seed, seed if study_seed is None else study_seed)
    _add_pixel_module(template, stored.shape, pixels, str(transfer_syntax))
    names = [f"IM{number:05d}.dcm" for number in range(1, len(stored) + 1)]
    if shuffle_names:
        rng = np.random.default_rng(seed)
        names = [f"{value:08X}" for value in rng.choice(2**32, size=len(stored), replace=False)]
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
    try:
        part.mkdir(parents=True)
        for number, (name, slice_hu) in enumerate(zip(names, stored, strict=True)):
            _write_instance(
                part / name, template, slice_hu, number, affine, pixels, UID(transfer_syntax), seed
            )
        part.rename(folder)  # fails on a folder that is not empty
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def write_nifti_volume(
    volume: np.ndarray,
    affine_lps: np.ndarray,
    path: str | os.PathLike[str],
    *,
    order: str = "RAS",
    slope: float = 1.0,
) -> Path:
    """Write a canonical volume as NIfTI.

    Args:
        volume: (D, H, W), an integer type.
        affine_lps: (4, 4): (d, h, w, 1) → LPS mm.
        path: `.nii` or `.nii.gz`; written under another name, then renamed.
        order: Where the three stored axes run to, e.g. "RAS" or "LPS".
        slope: What one unit stands for.

    Raises:
        OutputError: If the file cannot be written.
    """
    transform = ornt_transform(axcodes2ornt(("I", "P", "L")), axcodes2ornt(tuple(order)))
    affine = (
        _LPS_TO_RAS
        @ np.asarray(affine_lps, dtype=np.float64)
        @ inv_ornt_aff(transform, volume.shape)
    )
    save_stored(Path(path), apply_orientation(volume, transform), affine, slope)
    return Path(path)


def _reorder(
    hu: np.ndarray, affine_lps: np.ndarray, orientation: str
) -> tuple[np.ndarray, np.ndarray]:
    """(slices, rows, columns), and the affine (slice, row, column, 1) → LPS mm."""
    row, column, along = tuple(ORIENTATIONS[orientation])
    stored = hu
    affine = np.array(affine_lps, dtype=np.float64)
    chosen = [_LETTERS[letter] for letter in (along, column, row)]
    for axis, against in chosen:
        if against:
            stored = np.flip(stored, axis)
            affine[:3, 3] += affine[:3, axis] * (hu.shape[axis] - 1)
            affine[:3, axis] *= -1
    axes = [axis for axis, _ in chosen]
    affine[:, :3] = affine[:, axes]
    return np.transpose(stored, axes), affine


def _decimal(value: float) -> DSfloat:
    return DSfloat(float(value), auto_format=True)  # at most 16 characters


def _template(
    affine: np.ndarray,
    shape: tuple[int, ...],
    facts: Facts,
    kernel: str,
    thickness: float | None,
    series_number: int,
) -> Dataset:
    """All that the instances of a series share."""
    size = np.linalg.norm(affine[:3, :3], axis=0)
    cosines = affine[:3, :3] / size
    dataset = Dataset()
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.SOPClassUID = CTImageStorage
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = (
        facts.study_date
    )
    dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = dataset.ContentTime = (
        "120000"
    )
    dataset.AccessionNumber = facts.accession_number
    dataset.Modality = "CT"
    dataset.Manufacturer = "tf_covid phantom"
    dataset.ReferringPhysicianName = ""
    dataset.StudyDescription = "Synthetic chest"
    dataset.PatientName, dataset.PatientID = facts.patient_name, facts.patient_id
    dataset.PatientBirthDate, dataset.PatientSex = facts.birth_date, facts.sex
    dataset.BodyPartExamined = "CHEST"
    dataset.KVP = "120"
    dataset.SliceThickness = _decimal(thickness or size[0])
    dataset.ConvolutionKernel = kernel
    dataset.PatientPosition = facts.patient_position
    dataset.StudyID = "1"
    dataset.SeriesNumber, dataset.AcquisitionNumber = series_number, 1
    dataset.ImageOrientationPatient = [
        _decimal(value) for value in (*cosines[:, 2], *cosines[:, 1])
    ]
    dataset.PositionReferenceIndicator = ""
    dataset.PixelSpacing = [_decimal(size[1]), _decimal(size[2])]
    dataset.Rows, dataset.Columns = shape[1], shape[2]
    return dataset


def _add_uids(dataset: Dataset, seed: int, study_seed: int) -> None:
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=[f"tf_covid phantom study {study_seed}"])
    dataset.FrameOfReferenceUID = generate_uid(
        entropy_srcs=[f"tf_covid phantom frame {study_seed}"]
    )
    dataset.SeriesInstanceUID = generate_uid(
        entropy_srcs=[f"tf_covid phantom series {study_seed} {seed}"]
    )


def _add_pixel_module(
    dataset: Dataset, shape: tuple[int, ...], pixels: Pixels, syntax: str
) -> None:
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = 8 if pixels.bits <= 8 else 16
    dataset.BitsStored, dataset.HighBit = pixels.bits, pixels.bits - 1
    dataset.PixelRepresentation = int(pixels.signed)
    if pixels.padding is not None:
        dataset.add_new("PixelPaddingValue", "SS" if pixels.signed else "US", pixels.padding)
    dataset.RescaleIntercept, dataset.RescaleSlope = (
        _decimal(pixels.intercept),
        _decimal(pixels.slope),
    )
    dataset.RescaleType = "HU"
    if syntax in _LOSSY_METHODS:
        dataset.LossyImageCompression = "01"
        dataset.LossyImageCompressionRatio = "10"
        dataset.LossyImageCompressionMethod = _LOSSY_METHODS[syntax]


def _write_instance(
    path: Path,
    template: Dataset,
    hu: np.ndarray,
    number: int,
    affine: np.ndarray,
    pixels: Pixels,
    syntax: UID,
    seed: int,
) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = CTImageStorage
    uid = generate_uid(entropy_srcs=[f"{template.SeriesInstanceUID} {number}"])
    meta.MediaStorageSOPInstanceUID = uid
    instance = Dataset()
    instance.file_meta = meta
    instance.update(template)
    instance.SOPInstanceUID = uid
    instance.InstanceNumber = number + 1
    instance.ImagePositionPatient = [
        _decimal(value) for value in affine[:3, 3] + number * affine[:3, 0]
    ]
    data = encode_frame(pixels.stored(hu), str(syntax), pixels.bits)
    if syntax.is_encapsulated:
        data = encapsulate([data])
    instance.add_new(
        "PixelData", "OB" if syntax.is_encapsulated or pixels.bits <= 8 else "OW", _even(data)
    )
    instance["PixelData"].is_undefined_length = syntax.is_encapsulated
    instance.save_as(path, enforce_file_format=True)


def _even(data: bytes) -> bytes:
    return data + b"\0" * (len(data) % 2)
