"""A scan knows from which image each of its stored slices was read: what refers to it must be true.

Every test opens the image that is named and finds the slice's own voxels in it.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from tf_covid.phantom.files import ORIENTATIONS, write_dicom
from tf_covid.scan import Scan, read
from tf_covid.scan.nifti import save_stored

CT, ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"


def check(scan: Scan, folder: Path) -> None:
    """Each stored slice that was not interpolated has the voxels of the image that it names."""
    images = {}
    for path in folder.rglob("*"):
        if path.is_file():
            image = pydicom.dcmread(path)
            images[str(image.SOPInstanceUID)] = image
    assert len(scan.source_images) == scan.source.shape[2]
    stored = scan.source.from_canonical(scan.hu)
    named = set()
    for index, source in enumerate(scan.source_images):
        if source is None:
            continue
        image = images[source.sop_instance_uid]
        assert source.sop_class_uid == image.SOPClassUID
        np.testing.assert_array_equal(stored[:, :, index].T, hu_of(image, source.frame_number))
        named.add((source.sop_instance_uid, source.frame_number))
    assert len(named) == scan.source.shape[2] - len(scan.interpolated)


def hu_of(image: Dataset, frame_number: int | None) -> np.ndarray:
    """HU of one frame, (rows, columns), by pydicom."""
    if "PerFrameFunctionalGroupsSequence" not in image:
        assert frame_number is None
        transform, pixels = image, image.pixel_array
    else:
        assert frame_number is not None
        groups = image.PerFrameFunctionalGroupsSequence[frame_number - 1]
        transform = groups.PixelValueTransformationSequence[0]
        pixels = image.pixel_array[frame_number - 1]
    hu = pixels * float(transform.RescaleSlope) + float(transform.RescaleIntercept)
    return np.asarray(hu, np.int16)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_of_a_whole_series(marker, tmp_path: Path, orientation: str) -> None:
    folder = write_dicom(
        marker.hu, marker.affine, tmp_path / "a", orientation=orientation, shuffle_names=True
    )
    scan = read(folder)
    assert None not in scan.source_images
    assert {image.sop_class_uid for image in scan.source_images} == {CT}
    check(scan, folder)


def test_made_up_slices_have_none(series: Path) -> None:
    files = sorted(series.iterdir())
    for number in (4, 5, 9):
        files[number].unlink()
    scan = read(series)
    stored_from_feet = [index for index, one in enumerate(scan.source_images) if one is None]
    assert stored_from_feet == [4, 5, 9]
    assert scan.interpolated == (4, 8, 9)
    check(scan, series)


@pytest.mark.parametrize("orientation", ["axial_head_first", "axial_prone", "axial_flipped"])
def test_a_gap_of_a_stack_that_is_stored_otherwise(
    marker, tmp_path: Path, orientation: str
) -> None:
    folder = write_dicom(marker.hu, marker.affine, tmp_path / "a", orientation=orientation)
    sorted(folder.iterdir())[3].unlink()
    scan = read(folder)
    assert len(scan.interpolated) == scan.source_images.count(None) == 1
    check(scan, folder)


def test_positions_that_are_not_quite_even(series: Path, edit) -> None:
    jitter = random.Random(0)

    def move(image: Dataset) -> None:
        x, y, z = image.ImagePositionPatient
        image.ImagePositionPatient = [x, y, f"{z + jitter.uniform(-0.1, 0.1):.2f}"]

    edit(series, move)
    check(read(series), series)


def test_of_doubled_positions_the_kept_one(series: Path) -> None:
    for number, file in enumerate(sorted(series.iterdir())[3:5]):
        image = pydicom.dcmread(file)
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
        image.InstanceNumber = 90 + number
        image.PixelData = (image.pixel_array + 100 * number).astype("<i2").tobytes()
        image.save_as(series / f"again-{number}.dcm")
    scan = read(series)
    assert not any(image.sop_instance_uid.startswith("1.2.3.") for image in scan.source_images)
    check(scan, series)


def test_of_the_chosen_series_alone(marker, tmp_path: Path) -> None:
    for number, depth in enumerate((14, 11)):
        write_dicom(
            marker.hu[:depth],
            marker.affine,
            tmp_path / "a" / str(number),
            seed=number,
            study_seed=7,
        )
    scan = read(tmp_path / "a")
    assert scan.shape[0] == 14
    check(scan, tmp_path / "a" / "0")


@pytest.mark.parametrize("gap", [False, True], ids=["whole", "with a gap"])
def test_frames_of_one_file(master: Path, tmp_path: Path, enhanced, gap: bool) -> None:
    files = sorted(master.iterdir())
    if gap:
        del files[6]
    folder = tmp_path / "a"
    folder.mkdir()
    enhanced(files).save_as(folder / "frames.dcm")
    scan = read(folder)
    numbers = [image.frame_number for image in scan.source_images if image is not None]
    assert sorted(numbers) == list(range(1, len(files) + 1))
    assert numbers != sorted(numbers), "the frames of the file are out of order"
    assert {image.sop_class_uid for image in scan.source_images if image} == {ENHANCED_CT}
    assert scan.source_images.count(None) == gap
    check(scan, folder)


def test_frames_of_several_files(master: Path, tmp_path: Path, enhanced) -> None:
    files = sorted(master.iterdir())
    folder = tmp_path / "a"
    folder.mkdir()
    for number, part in enumerate((files[::2], files[1::2])):
        image = enhanced(part)
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
        image.save_as(folder / f"{number}.dcm")
    scan = read(folder)
    assert [image.sop_instance_uid for image in scan.source_images] == ["1.2.3.0", "1.2.3.1"] * 7
    check(scan, folder)


def test_the_same_from_a_zip(series: Path, tmp_path: Path) -> None:
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", series)
    assert read(Path(packed)).source_images == read(series).source_images


def test_a_header_without_an_identity(series: Path, edit) -> None:
    """It is read as ever; what would refer to it sees that it cannot."""
    edit(sorted(series.iterdir())[2], lambda image: delattr(image, "SOPInstanceUID"))
    images = read(series).source_images
    assert [index for index, one in enumerate(images) if not one.sop_instance_uid] == [2]


def test_a_file_of_another_format_has_none(series: Path, tmp_path: Path) -> None:
    scan = read(series)
    stored = scan.source.from_canonical(scan.hu)
    save_stored(tmp_path / "a.nii.gz", stored, scan.source.affine_ras)
    assert read(tmp_path / "a.nii.gz").source_images == ()


def test_uids_are_in_no_text_of_a_scan(series: Path) -> None:
    """A scan may end in a log or a traceback."""
    scan = read(series)
    assert scan.source_images[0].sop_instance_uid not in repr(scan) + repr(scan.source_images)
