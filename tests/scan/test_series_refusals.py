"""What a series is refused for is true, with true numbers, in known words; what can be read, is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from tf_covid.errors import ScanRefused
from tf_covid.phantom.files import write_dicom
from tf_covid.scan import find_cases, read


def _own_uids(folder: Path, edit, *, numbers: bool = False) -> None:
    for number, file in enumerate(sorted(folder.rglob("*.dcm")), 1):

        def anonymise(dataset: Dataset, number: int = number) -> None:
            dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[str(number)])
            if numbers:
                dataset.SeriesNumber = number

        edit(file, anonymise)


@pytest.mark.parametrize("numbers", [False, True])
def test_a_series_uid_for_every_image(
    marker, series: Path, edit, quality_flags, numbers: bool
) -> None:
    _own_uids(series, edit, numbers=numbers)
    scan = read(series)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    flag = quality_flags(scan)["series_uid_per_image"]
    assert (flag.level, flag.value) == ("warning", 14)
    assert flag.message.startswith("14 images have 14 SeriesInstanceUIDs (0020,000E)")


def test_two_kernels_with_a_series_uid_for_every_image(
    marker, tmp_path: Path, edit, quality_flags
) -> None:
    for number, kernel in enumerate(("B30f", "B70f")):
        hu = marker.hu + np.int16(5 * number)
        write_dicom(
            hu, marker.affine, tmp_path / "a" / kernel, kernel=kernel, seed=number, study_seed=7
        )
    _own_uids(tmp_path / "a", edit)
    scan = read(tmp_path / "a")
    np.testing.assert_array_equal(scan.hu, marker.hu + np.int16(5))
    assert quality_flags(scan)["series_uid_per_image"].value == 14


def test_two_series_with_a_series_uid_for_every_image_by_their_numbers(
    marker, tmp_path: Path, edit
) -> None:
    for number in (1, 2):
        folder = tmp_path / "a" / str(number)
        write_dicom(
            marker.hu, marker.affine, folder, seed=number, study_seed=7, series_number=number
        )
    _own_uids(tmp_path / "a", edit)
    np.testing.assert_array_equal(read(tmp_path / "a").hu, marker.hu)


def test_doubled_places_with_a_series_uid_for_every_image(
    marker, tmp_path: Path, edit, refused
) -> None:
    for number in (1, 2):
        hu = marker.hu + np.int16(number)
        write_dicom(hu, marker.affine, tmp_path / "a" / str(number), seed=number, study_seed=7)
    _own_uids(tmp_path / "a", edit)
    flag = refused(tmp_path / "a")["series_uid_per_image"]
    assert "28 images have 28 SeriesInstanceUIDs" in flag.message


def test_uneven_places_with_a_series_uid_for_every_image(series: Path, edit, refused) -> None:
    _own_uids(series, edit)
    for file in sorted(series.iterdir())[4:8]:
        file.unlink()
    message = refused(series)["missing_slices"].message
    assert message.startswith("10 images have 10 SeriesInstanceUIDs")
    assert "12.5 mm" in message


def test_one_position_for_all_images(series: Path, edit, refused) -> None:
    edit(series, lambda dataset: setattr(dataset, "ImagePositionPatient", ["0", "0", "0"]))
    flag = refused(series)["same_position"]
    assert flag.message.startswith("All 14 images state the same ImagePositionPatient (0020,0032)")
    _own_uids(series, edit)
    assert "14 SeriesInstanceUIDs" in refused(series)["same_position"].message


def test_an_orientation_that_contradicts_the_positions(series: Path, edit, refused) -> None:
    edit(
        series,
        lambda dataset: setattr(
            dataset, "ImageOrientationPatient", ["1", "0", "0", "0", "0", "-1"]
        ),
    )
    assert "differ by up to 32.5 mm" in refused(series)["bad_affine"].message


@pytest.mark.parametrize("count", [9, 14])
def test_the_number_of_images_without_a_position(series: Path, edit, refused, count: int) -> None:
    for file in sorted(series.iterdir())[:count]:
        edit(file, lambda dataset: delattr(dataset, "ImagePositionPatient"))
    assert (
        f"(0020,0032) of {count} of 14 images is missing" in refused(series)["bad_affine"].message
    )


def test_copies_of_one_slice(series: Path, refused) -> None:
    files = sorted(series.iterdir())
    for file in files[1:]:
        file.unlink()
    assert "There is one slice only; give" in refused(series)["single_slice"].message
    for name in ("b", "c"):
        shutil.copy(files[0], series / name)
    assert "one slice only (3 copies of it)" in refused(series)["single_slice"].message


def test_every_file_twice(marker, series: Path, quality_flags) -> None:
    for file in sorted(series.iterdir()):
        shutil.copy(file, series / f"copy-{file.name}")
    scan = read(series)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    flag = quality_flags(scan)["duplicate_slices"]
    assert flag.value == 14
    assert flag.message.startswith("14 position(s)")


def test_positions_are_counted_and_not_their_images(series: Path, edit, refused) -> None:
    for file in sorted(series.iterdir()):
        for copy in range(3):
            extra = shutil.copy(file, series / f"z{copy}{file.name}")
            edit(
                Path(extra),
                lambda dataset, copy=copy: setattr(dataset, "RescaleIntercept", str(copy)),
            )
    flag = refused(series)["ambiguous_slices"]
    assert flag.value == 14
    assert flag.message.startswith("14 of 14 positions")


def _nothing(dataset: Dataset, number: int) -> None:
    pass


def _thicker(dataset: Dataset, number: int) -> None:
    dataset.SliceThickness = "10"


def _acquisition(dataset: Dataset, number: int) -> None:
    dataset.AcquisitionNumber = 100


def _acquisitions(dataset: Dataset, number: int) -> None:
    dataset.AcquisitionNumber = 100 + number


def _numbered_before(dataset: Dataset, number: int) -> None:
    dataset.InstanceNumber = -100 + number


def _numbered_after(dataset: Dataset, number: int) -> None:
    dataset.InstanceNumber = 100 + number


def _watch(
    series: Path, edit, change: Callable[[Dataset, int], None], place: int, beside: float = 0.0
) -> None:
    """20 frames at one place, in which the scanner watches the contrast arrive."""
    for number in range(20):
        extra = Path(shutil.copy(sorted(series.glob("IM*"))[place], series / f"a{number}"))

        def watched(dataset: Dataset, number: int = number) -> None:
            x, y, z = dataset.ImagePositionPatient
            dataset.ImagePositionPatient = [x, y, float(z) + beside]
            dataset.SOPInstanceUID = generate_uid(entropy_srcs=[str(number)])
            dataset.RescaleIntercept = str(number - 900)
            change(dataset, number)

        edit(extra, watched)


@pytest.mark.parametrize(
    "change",
    [_thicker, _acquisition, _acquisitions, _numbered_before, _numbered_after],
    ids=lambda c: c.__name__,
)
@pytest.mark.parametrize("place", [0, 6, 13])
def test_twenty_frames_at_the_place_of_a_slice(
    marker, series: Path, edit, quality_flags, change, place: int
) -> None:
    _watch(series, edit, change, place)
    scan = read(series)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    flags = quality_flags(scan)
    flag = flags.get("ambiguous_slices") or flags["left_out_slices"]
    assert flag.level == "warning"
    assert "1 of 14 positions" in flag.message or "20 of 34 images" in flag.message


@pytest.mark.parametrize(
    "change", [_nothing, _thicker, _acquisition, _acquisitions], ids=lambda c: c.__name__
)
@pytest.mark.parametrize(
    ("place", "beside"), [(6, 0.7), (6, 1.25), (13, 8.1), (13, 60.0), (0, -4.0)]
)
def test_twenty_frames_beside_the_grid(
    marker, series: Path, edit, quality_flags, change, place: int, beside: float
) -> None:
    _watch(series, edit, change, place, beside)
    scan = read(series)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    flag = quality_flags(scan)["left_out_slices"]
    assert flag.level == "warning"
    assert "20 of 34 images" in flag.message


def test_twenty_frames_with_another_pixel_spacing(
    marker, series: Path, edit, quality_flags
) -> None:
    def zoomed(dataset: Dataset, number: int) -> None:
        dataset.PixelSpacing = ["0.5", "0.5"]

    _watch(series, edit, zoomed, 6)
    scan = read(series)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert (
        "20 with another matrix or pixel spacing" in quality_flags(scan)["left_out_slices"].message
    )


@pytest.mark.parametrize("keyword", ["SpacingBetweenSlices", "SliceLocation"])
def test_what_contradicts_the_positions_is_not_believed(
    marker, series: Path, edit, keyword: str
) -> None:
    edit(series, lambda dataset: setattr(dataset, keyword, "7.5"))
    scan = read(series)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert scan.spacing_mm[0] == pytest.approx(2.5)
    assert scan.quality_flags == ()


FREE = "of Doe Jane"


@pytest.mark.parametrize(
    ("keyword", "value", "said"),
    [
        ("Modality", "DOEJANE", "14 with Modality unknown"),
        ("Modality", "DOE", "14 with Modality unknown"),
        ("Modality", "MR", "14 with Modality MR"),
        ("Modality", "", "14 with no Modality (0008,0060)"),
        ("RescaleType", FREE, "14 with RescaleType unknown"),
        ("RescaleType", "OD", "14 with RescaleType OD"),
        ("RescaleType", "Z_EFF", "14 with RescaleType Z_EFF"),
        ("ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER", "DOE"], "14 with ImageType LOCALIZER"),
        (
            "SOPClassUID",
            "1.2.840.10008.5.1.4.1.1.7",
            "14 with SOP class Secondary Capture Image Storage",
        ),
        ("SOPClassUID", "1.2.3.4.5678", "14 with SOP class unknown"),
        ("SamplesPerPixel", 3, "14 with SamplesPerPixel 3"),
    ],
)
def test_refusals_name_known_words_and_numbers_only(
    series: Path, edit, keyword: str, value: object, said: str
) -> None:
    edit(series, lambda dataset: setattr(dataset, keyword, value))
    (case,) = find_cases(series)
    with pytest.raises(ScanRefused) as caught:
        case.read()
    text = str(caught.value.quality_flags)
    assert said in text
    assert "doe" not in text.lower()
    assert "jane" not in text.lower()
    assert "1.2.3.4" not in text


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        ("B70f", "kernel B70f"),
        ("Br40d", "kernel Br40d"),
        ("Qr36d", "kernel Qr36d"),
        ("STANDARD", "kernel STANDARD"),
        ("BONEPLUS", "kernel BONEPLUS"),
        ("FC52", "kernel FC52"),
        ("YA", "kernel YA"),
        ("C", "kernel C"),
        ("B_SHARP_C", "kernel B_SHARP_C"),
        ("", "kernel unknown"),
        ("Meier", "another kernel"),
        ("Jane", "another kernel"),
        ("K1234", "another kernel"),
        ("19600101", "another kernel"),
        ("lung of Doe", "lung kernel"),
        ("Smith42", "another kernel"),
    ],
)
def test_kernels_are_named_if_a_maker_names_one_so(
    series: Path, edit, kernel: str, said: str
) -> None:
    edit(series, lambda dataset: setattr(dataset, "ConvolutionKernel", kernel))
    assert read(series).chosen_because.endswith(f", {said}.")


@pytest.mark.parametrize("keyword", ["SeriesDescription", "BodyPartExamined", "ProtocolName"])
def test_descriptions_are_not_repeated(series: Path, edit, keyword: str) -> None:
    edit(series, lambda dataset: setattr(dataset, keyword, "CHEST DOE AVG"))
    scan = read(series)
    assert "DOE" not in f"{scan.chosen_because} {scan.quality_flags}"
