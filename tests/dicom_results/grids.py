"""The chest, the grids that it is stored on, and what readers find of it, by place.

A mask that lies mirrored or a slice off has the same voxels in the same number: so each voxel that
a reader finds is carried to mm in the patient, and from there back to the chest's own indices.
"""

from __future__ import annotations

import copy
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import SimpleITK
from pydicom.dataset import Dataset

from tests.scan.conftest import _enhanced
from tf_covid.lung_voxels import LungVoxels
from tf_covid.phantom.files import ORIENTATIONS, write_dicom
from tf_covid.result import (
    Attention,
    Lobe,
    Lungs,
    Maps,
    ModelAnswer,
    QualityFlag,
    Result,
    Series,
    Severity,
)
from tf_covid.scan import Scan, read
from tf_covid.severity import LOBES

#: (D, H, W), no two alike: a mask that lies along other axes cannot fit.
SHAPE = (14, 40, 32)
AFFINE = np.array([[0, 0, 0.8, -120.0], [0, 0.9, 0, -150.0], [-2.5, 0, 0, 300.0], [0, 0, 0, 1]])


def _chest() -> np.ndarray:
    hu = np.full(SHAPE, -1000, np.int16)
    hu[:, 6:34, 4:28] = 40
    hu[:, 10:28, 6:14] = -850
    hu[:, 10:28, 17:26] = -820
    hu[9:, 12:22, 17:22] = 50
    hu[1:3, 8:12, 5:8] = 700
    hu += np.random.default_rng(0).integers(-20, 20, hu.shape).astype(np.int16)
    hu.flags.writeable = False
    return hu


HU = _chest()


def masks() -> Maps:
    """Masks that no flip and no rotation maps onto themselves, none of them empty anywhere."""
    lungs = np.zeros(SHAPE, np.uint8)
    lungs[:, 10:28, 6:14], lungs[1:, 10:25, 17:26] = 1, 2
    lobes = np.zeros_like(lungs)
    lobes[:6][lungs[:6] == 1], lobes[6:8][lungs[6:8] == 1], lobes[8:][lungs[8:] == 1] = 1, 2, 3
    lobes[:7][lungs[:7] == 2], lobes[7:][lungs[7:] == 2] = 4, 5
    lesions, attention = np.zeros_like(lungs), np.zeros_like(lungs)
    lesions[2:5, 12:16, 7:11] = 1
    attention[1:7, 11:20, 7:12], attention[2:5, 12:18, 7:11], attention[3, 13:15, 8:10] = (
        70,
        150,
        255,
    )
    return Maps(LungVoxels.of(lungs, lobes, lesions), attention, np.ones(SHAPE[0], bool))


@dataclass(frozen=True)
class Answered:
    """An answer and the scan behind it."""

    result: Result
    scan: Scan


def answer(scan: Scan, maps: Maps | None = None, **fields: object) -> Answered:
    """A made-up answer about a scan of the chest."""
    probabilities = (0.1, 0.6, 0.2, 0.05, 0.05)
    values: dict[str, object] = {
        "case": "case",
        "status": "repaired" if scan.repaired else "pass",
        "quality_flags": (QualityFlag("missing_slices", "warning", "Slices are missing.", 1),),
        "versions": {"tf-covid": "0.1"},
        "series": Series(
            scan.shape[0], scan.shape, scan.spacing_mm, scan.interpolated, "the only one"
        ),
        "lungs": Lungs(4812.0, 2200.0, 2612.0, 14, 14, 12.4, (0.0,) * scan.shape[0]),
        "lobes": tuple(Lobe(name, 900.0, 8.1, 2) for name in LOBES),
        "severity": Severity(1, "mild", probabilities, 5.2, (3.0, 8.5), None, 10),
        "attention": Attention("gradcam", "severity", "Mixed_3c", 0.9, (0.0,) * scan.shape[0]),
        "models": (ModelAnswer("severity-i3d", "ab" * 32, "note", probabilities, 5.2),),
        "answered_at": "2026-01-31T09:30:00Z",
        "maps": maps or masks(),
    }
    return Answered(Result(**(values | fields)), scan)  # type: ignore[arg-type]


def _plain(orientation: str) -> Callable[[Path], None]:
    return lambda folder: shutil.copytree(
        write_dicom(HU, AFFINE, folder.parent / "plain", orientation=orientation), folder
    )


def _gaps(folder: Path) -> None:
    _plain("axial")(folder)
    for number in (4, 5, 9):
        sorted(folder.iterdir())[number].unlink()


def _gaps_head_first(folder: Path) -> None:
    _plain("axial_prone")(folder)
    sorted(folder.iterdir())[3].unlink()


def _jittered(folder: Path) -> None:
    _plain("axial")(folder)
    jitter = random.Random(0)

    def move(image: Dataset) -> None:
        x, y, z = image.ImagePositionPatient
        image.ImagePositionPatient = [x, y, f"{z + jitter.uniform(-0.1, 0.1):.2f}"]

    edit_files(folder, move)


def _one_series_a_slice(folder: Path) -> None:
    _plain("axial")(folder)
    for number, file in enumerate(sorted(folder.iterdir())):
        edit_files(
            file, lambda image, number=number: setattr(image, "SeriesInstanceUID", f"1.2.{number}")
        )


def _frames(folder: Path, *, left_out: int | None = None) -> None:
    master = write_dicom(HU, AFFINE, folder.parent / "plain")
    files = sorted(master.iterdir())
    if left_out is not None:
        del files[left_out]
    folder.mkdir()
    _enhanced(files).save_as(folder / "frames.dcm")


def _unused_frames(folder: Path) -> None:
    """A scout view among the frames: an object names it, and marks nothing there."""
    _frames(folder)
    image = pydicom.dcmread(folder / "frames.dcm")
    (shared,) = image.SharedFunctionalGroupsSequence
    groups = list(image.PerFrameFunctionalGroupsSequence)
    for group in groups:
        group.PlaneOrientationSequence = shared.PlaneOrientationSequence
    scout = copy.deepcopy(groups[0])
    scout.PlaneOrientationSequence[0].ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    scout.CTImageFrameTypeSequence = [Dataset()]
    scout.CTImageFrameTypeSequence[0].FrameType = ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]
    groups.insert(5, scout)
    del shared.PlaneOrientationSequence
    pixels = image.pixel_array
    image.PixelData = np.insert(pixels, 5, pixels[0], axis=0).tobytes()
    image.PerFrameFunctionalGroupsSequence = groups
    image.NumberOfFrames = len(groups)
    image.save_as(folder / "frames.dcm")


#: How the chest is stored: makes the folder that it is told.
GRIDS: dict[str, Callable[[Path], object]] = {
    **{name: _plain(name) for name in ORIENTATIONS},
    "gaps": _gaps,
    "gap, prone": _gaps_head_first,
    "jittered positions": _jittered,
    "one series a slice": _one_series_a_slice,
    "frames out of order": _frames,
    "frames with a gap": lambda folder: _frames(folder, left_out=6),
    "a frame that is no slice": _unused_frames,
}


def edit_files(path: Path, change: Callable[[Dataset], object]) -> None:
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        image = pydicom.dcmread(file)
        change(image)
        image.save_as(file)


def stored_on(grid: str, folder: Path) -> Scan:
    """The chest, stored on a grid and read."""
    GRIDS[grid](folder / "scan")
    scan = read(folder / "scan")
    assert scan.shape == SHAPE
    return scan


def as_stored(volume: np.ndarray, scan: Scan) -> np.ndarray:
    """A volume without the slices that have no image, which no object can hold."""
    kept = volume.copy()
    kept[list(scan.interpolated)] = 0
    return kept


def onto_chest(places: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Voxels at places in mm (N, 3), LPS, on the grid of the chest; every one has to fit on it."""
    homogeneous = np.concatenate([places, np.ones((len(places), 1))], axis=1)
    indices = (np.linalg.inv(AFFINE) @ homogeneous.T)[:3].T
    rounded = np.rint(indices).astype(int)
    assert np.abs(indices - rounded).max(initial=0) < 0.2
    volume = np.zeros(SHAPE, values.dtype)
    volume[tuple(rounded.T)] = values
    assert len(np.unique(rounded, axis=0)) == len(rounded), "two voxels at one place"
    return volume


def of_highdicom(path: Path) -> dict[str, np.ndarray]:
    """Segments by label as highdicom reads them, on the grid of the chest."""
    object_ = highdicom.seg.segread(path)
    frames = object_.get_stored_frames()
    shared = object_.SharedFunctionalGroupsSequence[0]
    measures = shared.PixelMeasuresSequence[0]
    found: dict[int, list[np.ndarray]] = {}
    for frame, group in zip(frames, object_.PerFrameFunctionalGroupsSequence, strict=True):
        holder = group if "SegmentIdentificationSequence" in group else shared
        number = holder.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
        row, column = np.reshape(np.asarray(orientation, float), (2, 3))
        start = np.asarray(group.PlanePositionSequence[0].ImagePositionPatient, float)
        down, across = np.argwhere(frame).T
        between_rows, between_columns = map(float, measures.PixelSpacing)
        places = (
            start + np.outer(across * between_columns, row) + np.outer(down * between_rows, column)
        )
        found.setdefault(number, []).append(places)
    return {
        object_.get_segment_description(number).SegmentLabel: onto_chest(
            np.concatenate(places), np.ones(sum(map(len, places)), np.uint8)
        )
        for number, places in found.items()
    }


def of_dcmqi(program: str, path: Path, folder: Path) -> list[np.ndarray]:
    """Segments or a map as dcmqi reads them, each on the grid of the chest."""
    command = Path(sys.executable).with_name(program)
    folder.mkdir()
    prefix = ["-p", "part"] if program.startswith("seg") else []
    subprocess.run(
        [command, "--inputDICOM", path, "--outputDirectory", folder, "-t", "nrrd", *prefix],
        check=True,
        capture_output=True,
    )
    files = sorted(
        folder.glob("*.nrrd"), key=lambda file: int("".join(filter(str.isdigit, file.stem)) or 0)
    )
    volumes = []
    for file in files:
        image = SimpleITK.ReadImage(str(file))
        values = SimpleITK.GetArrayFromImage(image)
        indices = np.argwhere(values)
        directions = np.reshape(image.GetDirection(), (3, 3)) * np.asarray(image.GetSpacing())
        places = np.asarray(image.GetOrigin()) + indices[:, ::-1] @ directions.T
        volumes.append(onto_chest(places, values[tuple(indices.T)]))
    return volumes
