"""A small asymmetric chest, and how the tests store, change and read it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from tf_covid.errors import ScanRefused
from tf_covid.phantom.files import write_dicom
from tf_covid.result import QualityFlag
from tf_covid.scan import find_cases


@dataclass(frozen=True)
class Marker:
    """int16 HU (D, H, W) in canonical order, and its LPS affine."""

    hu: np.ndarray
    affine: np.ndarray


@pytest.fixture(scope="session")
def marker() -> Marker:
    """A chest that no flip and no rotation maps onto itself.

    A bright block high, in front, on the right.
    """
    hu = np.full((14, 40, 32), -1000, dtype=np.int16)
    hu[:, 6:34, 4:28] = 40
    hu[:, 10:28, 6:14] = -850
    hu[:, 10:28, 17:26] = -820
    hu[9:, 12:22, 17:22] = 50  # heart: low and left
    hu[1:3, 8:12, 5:8] = 700
    hu += np.random.default_rng(0).integers(-20, 20, hu.shape).astype(np.int16)
    affine = np.array([[0, 0, 0.8, -120.0], [0, 0.9, 0, -150.0], [-2.5, 0, 0, 300.0], [0, 0, 0, 1]])
    hu.flags.writeable = False
    return Marker(hu, affine)


@pytest.fixture(scope="session")
def master(marker: Marker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The marker as a DICOM series; not to be changed."""
    return write_dicom(marker.hu, marker.affine, tmp_path_factory.mktemp("master") / "series")


@pytest.fixture
def series(master: Path, tmp_path: Path) -> Path:
    """A copy of the DICOM series, to be changed; its files are in order from feet to head."""
    return Path(shutil.copytree(master, tmp_path / "series"))


Change = Callable[[pydicom.Dataset], object]


@pytest.fixture(scope="session")
def edit() -> Callable[[Path, Change], None]:
    """Change a DICOM file, or every file of a folder, in place."""

    def change(path: Path, change: Change) -> None:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            dataset = pydicom.dcmread(file)
            change(dataset)
            dataset.save_as(file)

    return change


@pytest.fixture(scope="session")
def refused() -> Callable[[Path], dict[str, QualityFlag]]:
    """The errors with which the one case of a path is refused, by code.

    The test fails if it is read.
    """

    def read(path: Path) -> dict[str, QualityFlag]:
        (case,) = find_cases(path)
        with pytest.raises(ScanRefused) as caught:
            case.read()
        return {flag.code: flag for flag in caught.value.quality_flags if flag.level == "error"}

    return read


@pytest.fixture(scope="session")
def quality_flags() -> Callable[[object], dict[str, QualityFlag]]:
    """The quality flags of a scan, by code."""
    return lambda scan: {flag.code: flag for flag in scan.quality_flags}  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def enhanced() -> Callable[[list[Path]], Dataset]:
    """Builder of one enhanced multi-frame instance of the classic ones in the files."""
    return _enhanced


def _enhanced(files: list[Path]) -> Dataset:
    """One enhanced multi-frame instance of classic ones, its frames out of order, each with its own
    rescale."""
    slices = [pydicom.dcmread(file) for file in files]
    slices = slices[1::2] + slices[::2]
    first = slices[0]
    whole = pydicom.dcmread(files[0])
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "SliceThickness",
        "ImageType",
    ):
        delattr(whole, keyword)
    for keyword in ("RescaleSlope", "RescaleIntercept", "RescaleType", "ConvolutionKernel"):
        delattr(whole, keyword)
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedCTImageStorage
    whole.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    whole.NumberOfFrames = len(slices)

    def item(**values: object) -> Dataset:
        dataset = Dataset()
        for keyword, value in values.items():
            setattr(dataset, keyword, value)
        return dataset

    measures = item(PixelSpacing=first.PixelSpacing, SliceThickness=first.SliceThickness)
    shared = Dataset()
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [item(ImageOrientationPatient=first.ImageOrientationPatient)]
    shared.CTReconstructionSequence = [item(ConvolutionKernel="B60f")]
    whole.SharedFunctionalGroupsSequence = [shared]
    frames, data = [], []
    for number, one in enumerate(slices):
        frame = Dataset()
        frame.PlanePositionSequence = [item(ImagePositionPatient=one.ImagePositionPatient)]
        transform = item(RescaleSlope="1", RescaleIntercept=str(-1024 - number), RescaleType="HU")
        frame.PixelValueTransformationSequence = [transform]
        frames.append(frame)
        data.append(one.pixel_array + np.int16(number))
    whole.PerFrameFunctionalGroupsSequence = frames
    whole.PixelData = np.stack(data).astype("<i2").tobytes()
    return whole
