"""Nothing of the chosen series is left out without a word, and a stack that lacks it is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from tf_covid.phantom.files import write_dicom
from tf_covid.scan import read

SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def _set(keyword: str, value: object) -> Callable[[Dataset], None]:
    return lambda dataset: setattr(dataset, keyword, value)


def _captured(dataset: Dataset) -> None:
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SECONDARY_CAPTURE


def _many_frames(dataset: Dataset) -> None:
    dataset.NumberOfFrames = 3


def _tilted(dataset: Dataset) -> None:
    dataset.ImageOrientationPatient = ["1", "0", "0", "0", "0.99995", "-0.01"]


def _flipped(dataset: Dataset) -> None:
    dataset.ImageOrientationPatient = ["-1", "0", "0", "0", "-1", "0"]


CHANGES = {
    "Modality MR": _set("Modality", "MR"),
    "no Modality": _set("Modality", ""),
    "Modality unknown": _set("Modality", "DOE"),
    "Secondary Capture": _captured,
    "ImageType LOCALIZER": _set("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]),
    "ImageType MIP": _set("ImageType", ["DERIVED", "SECONDARY", "AXIAL", "MIP"]),
    "ImageType SCREEN": _set("ImageType", ["DERIVED", "SECONDARY", "SCREEN SAVE"]),
    "RescaleType OD": _set("RescaleType", "OD"),
    "RescaleType unknown": _set("RescaleType", "of Jane Doe"),
    "SamplesPerPixel 3": _set("SamplesPerPixel", 3),
    "NumberOfFrames (0028,0008) above 1": _many_frames,
    "ConvolutionKernel": _set("ConvolutionKernel", "B30f"),
    "another ImageOrientationPatient": _tilted,
    "ImageOrientationPatient": _flipped,
}


@pytest.mark.parametrize("reason", CHANGES)
def test_every_second_slice_is_left_out(series: Path, edit, refused, reason: str) -> None:
    for file in sorted(series.iterdir())[::2]:
        edit(file, CHANGES[reason])
    flag = refused(series)["left_out_slices"]
    assert flag.message.startswith("7 of 14 images of the chosen series were left out: 7 with ")
    assert reason in flag.message
    assert "DOE" not in flag.message.upper()
    assert flag.value == 7


@pytest.mark.parametrize("reason", CHANGES)
@pytest.mark.parametrize("which", [[5], [0], [13], [12, 13], [3, 8]])
def test_a_hole_or_a_lost_end_of_what_was_left_out(
    series: Path, edit, refused, reason: str, which: list[int]
) -> None:
    files = sorted(series.iterdir())
    for number in which:
        edit(files[number], CHANGES[reason])
    flag = refused(series)["left_out_slices"]
    assert reason in flag.message
    assert flag.value == len(which)


@pytest.mark.parametrize("reason", CHANGES)
def test_the_upper_half_is_left_out(series: Path, edit, refused, reason: str) -> None:
    for file in sorted(series.iterdir())[7:]:
        edit(file, CHANGES[reason])
    assert refused(series)["left_out_slices"].value == 7


@pytest.mark.parametrize("reason", CHANGES)
@pytest.mark.parametrize("seed", range(3))
def test_a_refusal_for_uneven_slices_names_what_was_left_out(
    series: Path, edit, refused, reason: str, seed: int
) -> None:
    chosen = np.random.default_rng(seed).permutation(14)[:6]
    for number, file in enumerate(sorted(series.iterdir())):
        if number in chosen:
            edit(file, CHANGES[reason])
    assert reason in refused(series)["left_out_slices"].message


def test_frames_without_places_in_the_series(series: Path, edit, quality_flags) -> None:
    extra = Path(shutil.copy(sorted(series.iterdir())[6], series / "extra"))
    edit(extra, _many_frames)
    flag = quality_flags(read(series))["left_out_slices"]
    assert flag.level == "warning"
    assert "1 with NumberOfFrames (0028,0008) above 1" in flag.message


@pytest.mark.parametrize("value", [None, "", "1\\2"])
@pytest.mark.parametrize("number", [0, 6, 13])
def test_a_slice_without_a_position(
    series: Path, edit, refused, number: int, value: str | None
) -> None:
    def strip(dataset: Dataset) -> None:
        dataset.ImagePositionPatient = value.split("\\") if value else value

    edit(sorted(series.iterdir())[number], strip)
    message = refused(series)["left_out_slices"].message
    assert "1 of 14 images" in message
    assert "1 without a usable ImagePositionPatient (0020,0032)" in message


def test_a_copy_without_a_position_is_only_said(marker, series: Path, edit, quality_flags) -> None:
    extra = Path(shutil.copy(sorted(series.iterdir())[6], series / "extra"))
    edit(extra, lambda dataset: delattr(dataset, "ImagePositionPatient"))
    scan = read(series)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert quality_flags(scan)["left_out_slices"].level == "warning"


@pytest.mark.parametrize("which", [slice(0, None, 2), slice(8, None), slice(0, 5)])
def test_slices_whose_positions_were_lost_to_one_place(
    series: Path, edit, refused, which: slice
) -> None:
    files = sorted(series.iterdir())[which]
    for file in files:
        edit(file, _set("ImagePositionPatient", ["0", "0", "0"]))
    assert refused(series)["left_out_slices"].value == len(files)


@pytest.mark.parametrize("number", [0, 6, 13])
def test_one_slice_with_the_cosines_of_a_coronal(series: Path, edit, refused, number: int) -> None:
    edit(
        sorted(series.iterdir())[number],
        _set("ImageOrientationPatient", ["1", "0", "0", "0", "0", "-1"]),
    )
    assert refused(series)["left_out_slices"].value == 1


def test_a_slice_moved_to_the_other_end(series: Path, edit, quality_flags) -> None:
    def move(dataset: Dataset) -> None:
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, y, float(z) + 14 * 2.5]

    edit(sorted(series.iterdir())[0], move)
    assert quality_flags(read(series))["instance_order"].value == 1


def test_one_other_pixel_spacing_makes_a_hole(marker, tmp_path: Path, edit, refused) -> None:
    folder = write_dicom(marker.hu, marker.affine, tmp_path / "a")
    edit(sorted(folder.iterdir())[6], _set("PixelSpacing", ["1.1", "1.1"]))
    assert "1 with another matrix or pixel spacing" in refused(folder)["left_out_slices"].message


def _belongs(folder: Path, series: Path, edit) -> None:
    """Puts the images of a folder into a series."""
    uid = _uid(series)
    for file in folder.iterdir():
        edit(file, _set("SeriesInstanceUID", uid))
        shutil.move(file, series / f"{folder.name}-{file.name}")


def _uid(series: Path) -> str:
    import pydicom

    return str(
        pydicom.dcmread(next(iter(series.iterdir())), stop_before_pixels=True).SeriesInstanceUID
    )


@pytest.mark.parametrize("orientation", ["coronal", "sagittal"])
@pytest.mark.parametrize(
    "image_type", [["DERIVED", "SECONDARY", "MPR"], ["ORIGINAL", "PRIMARY", "LOCALIZER"]]
)
def test_reformats_and_localizers_in_the_series_are_said(
    marker,
    series: Path,
    tmp_path: Path,
    edit,
    quality_flags,
    orientation: str,
    image_type: list[str],
) -> None:
    extra = write_dicom(
        marker.hu, marker.affine, tmp_path / "mpr", orientation=orientation, seed=3, study_seed=0
    )
    edit(extra, _set("ImageType", image_type))
    _belongs(extra, series, edit)
    scan = read(series)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    flag = quality_flags(scan)["left_out_slices"]
    assert flag.level == "warning"
    assert f"of {len(list(series.iterdir()))} images" in flag.message


@pytest.mark.parametrize("offset", [0.0, 1.25])
def test_thick_mips_in_the_series_are_said(
    marker, series: Path, tmp_path: Path, edit, quality_flags, offset: float
) -> None:
    affine = marker.affine.copy()
    affine[2, 3] += offset
    extra = write_dicom(
        marker.hu, affine, tmp_path / "mip", slice_thickness=10, seed=3, study_seed=0
    )
    edit(extra, _set("ImageType", ["DERIVED", "SECONDARY", "AXIAL", "MIP"]))
    _belongs(extra, series, edit)
    scan = read(series)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    flag = quality_flags(scan)["left_out_slices"]
    assert flag.level == "warning"
    assert "14 of 28 images" in flag.message
    assert "14 with ImageType MIP" in flag.message


def test_a_dose_report_in_the_series_is_said(marker, series: Path, edit, quality_flags) -> None:
    def report(dataset: Dataset) -> None:
        _captured(dataset)
        dataset.Modality, dataset.InstanceNumber = "OT", 99
        del dataset.ImagePositionPatient, dataset.ImageOrientationPatient

    edit(Path(shutil.copy(sorted(series.iterdir())[6], series / "extra")), report)
    scan = read(series)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    flag = quality_flags(scan)["left_out_slices"]
    assert flag.level == "warning"
    assert "1 of 15 images" in flag.message
    assert "1 with Modality OT" in flag.message


def test_a_second_kernel_in_the_series_is_said(
    marker, series: Path, tmp_path: Path, edit, quality_flags
) -> None:
    extra = write_dicom(
        marker.hu, marker.affine, tmp_path / "soft", kernel="B30f", seed=3, study_seed=0
    )
    _belongs(extra, series, edit)
    scan = read(series)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    flag = quality_flags(scan)["left_out_slices"]
    assert flag.level == "warning"
    assert "14 of 28 images" in flag.message
    assert "14 with another Conv" in flag.message


@pytest.mark.parametrize("parts", [2, 3])
def test_a_series_split_over_several_uids(series: Path, edit, refused, parts: int) -> None:
    for number, file in enumerate(sorted(series.iterdir())):
        if number % parts:
            edit(file, _set("SeriesInstanceUID", generate_uid(entropy_srcs=[str(number % parts)])))
    assert "SeriesInstanceUIDs (0020,000E)" in refused(series)["split_series"].message


def test_two_slices_under_another_uid(series: Path, edit, refused) -> None:
    for file in sorted(series.iterdir())[4:10:3]:
        edit(file, _set("SeriesInstanceUID", "1.2.3"))
    assert refused(series)["split_series"].value == 2


@pytest.mark.parametrize("uid", ["1.2.3"])
@pytest.mark.parametrize("first", [7, 10, 13])
def test_a_series_that_goes_on_under_another_uid(
    series: Path, edit, refused, first: int, uid: str
) -> None:
    for file in sorted(series.iterdir())[first:]:
        edit(file, _set("SeriesInstanceUID", uid))
    assert refused(series)["split_series"].value == 14 - first


@pytest.mark.parametrize("seed", range(5))
def test_a_series_split_at_random_over_two_uids(series: Path, edit, refused, seed: int) -> None:
    chosen = np.random.default_rng(seed).random(14) < 0.5
    for file, other in zip(sorted(series.iterdir()), chosen, strict=True):
        if other:
            edit(file, _set("SeriesInstanceUID", "1.2.3"))
    assert "split_series" in refused(series)


@pytest.mark.parametrize(
    "reason", ["Modality MR", "Secondary Capture", "ImageType LOCALIZER", "RescaleType OD"]
)
def test_every_second_slice_without_a_position_either(
    series: Path, edit, refused, reason: str
) -> None:
    def change(dataset: Dataset) -> None:
        CHANGES[reason](dataset)
        del dataset.ImagePositionPatient

    for file in sorted(series.iterdir())[1::2]:
        edit(file, change)
    assert refused(series)["left_out_slices"].value == 7


def test_every_second_slice_in_another_series_and_no_ct(series: Path, edit, refused) -> None:
    def change(dataset: Dataset) -> None:
        dataset.Modality, dataset.SeriesInstanceUID = "MR", "1.2.3"

    for file in sorted(series.iterdir())[::2]:
        edit(file, change)
    assert refused(series)["split_series"].value == 6  # the first one lies outside


@pytest.mark.parametrize(
    ("keyword", "value", "code"),
    [
        ("ImageType", ["DERIVED", "SECONDARY", "AXIAL"], "mixed_image_type"),
        ("SliceThickness", "10", "mixed_thickness"),
        ("AcquisitionNumber", "2", "mixed_acquisitions"),
    ],
)
def test_every_second_slice_says_something_else(
    marker, series: Path, edit, quality_flags, keyword: str, value: object, code: str
) -> None:
    for file in sorted(series.iterdir())[::2]:
        edit(file, _set(keyword, value))
    scan = read(series)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert quality_flags(scan)[code].level == "warning"


def test_two_phases_beside_each_other_are_two_series(marker, tmp_path: Path, quality_flags) -> None:
    """Breathing in and out, by chance half a spacing apart: each numbers its images from 1."""
    affine = marker.affine.copy()
    affine[2, 3] += 1.25
    write_dicom(
        marker.hu, marker.affine, tmp_path / "a" / "in", seed=1, study_seed=7, series_number=1
    )
    write_dicom(marker.hu, affine, tmp_path / "a" / "out", seed=2, study_seed=7, series_number=2)
    scan = read(tmp_path / "a")
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert set(quality_flags(scan)) == {"series_candidates"}


@pytest.mark.parametrize("apart", [0, 500])
def test_the_abdomen_that_follows_the_chest_is_another_series(
    marker, tmp_path: Path, edit, quality_flags, apart: int
) -> None:
    affine = marker.affine.copy()
    affine[2, 3] -= 14 * 2.5
    write_dicom(
        marker.hu, marker.affine, tmp_path / "a" / "chest", seed=1, study_seed=7, series_number=1
    )
    abdomen = write_dicom(
        marker.hu, affine, tmp_path / "a" / "abdomen", seed=2, study_seed=7, series_number=2
    )
    edit(
        abdomen,
        lambda dataset: setattr(dataset, "InstanceNumber", 15 + apart - dataset.InstanceNumber),
    )
    edit(
        tmp_path / "a" / "chest",
        lambda dataset: setattr(dataset, "InstanceNumber", 15 - dataset.InstanceNumber),
    )
    assert set(quality_flags(read(tmp_path / "a"))) == {"series_candidates"}


def test_an_acquisition_a_slice_is_usual(marker, series: Path, edit) -> None:
    numbers = iter(range(1, 15))
    edit(series, lambda dataset: setattr(dataset, "AcquisitionNumber", next(numbers)))
    assert read(series).quality_flags == ()


@pytest.mark.parametrize("text", ["unknown", "UNSPECIFIED", "US"])
def test_a_rescale_type_that_says_nothing(
    marker, series: Path, edit, quality_flags, text: str
) -> None:
    for file in sorted(series.iterdir())[::2]:
        edit(file, _set("RescaleType", text))
    scan = read(series)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert quality_flags(scan)["mixed_rescale_type"].value == 7
    edit(series, _set("RescaleType", text))
    np.testing.assert_array_equal(read(series).hu, marker.hu)


@pytest.mark.parametrize("value", ["Hounsfield", "HOUNSFIELD UNITS", "HU", ""])
def test_hounsfield_by_name(marker, series: Path, edit, value: str) -> None:
    edit(series, _set("RescaleType", value))
    np.testing.assert_array_equal(read(series).hu, marker.hu)


def test_a_whole_stack_goes_before_one_with_left_out_slices(marker, tmp_path: Path, edit) -> None:
    folder = write_dicom(
        marker.hu, marker.affine, tmp_path / "a" / "sharp", kernel="B80f", seed=1, study_seed=7
    )
    for file in sorted(folder.iterdir())[::2]:
        edit(file, _set("Modality", "MR"))
    write_dicom(
        marker.hu + np.int16(5),
        marker.affine,
        tmp_path / "a" / "soft",
        kernel="B30f",
        seed=2,
        study_seed=7,
    )
    np.testing.assert_array_equal(read(tmp_path / "a").hu, marker.hu + np.int16(5))


def test_images_of_other_series_are_counted(
    marker, series: Path, tmp_path: Path, edit, quality_flags
) -> None:
    other = write_dicom(marker.hu, marker.affine, tmp_path / "pet", seed=3, study_seed=0)
    edit(other, _set("Modality", "PT"))
    shutil.move(other, series / "pet")
    flag = quality_flags(read(series))["other_images"]
    assert (flag.level, flag.value) == ("info", 14)
    assert "14 with Modality PT" in flag.message
