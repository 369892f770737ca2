"""Gaps, duplicates, tilt and mixtures: repaired and told, or refused and told."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from tf_covid.phantom.files import write_dicom
from tf_covid.scan import Limits, read
from tf_covid.scan.cases import find_cases


def test_missing_slices_are_made_up_and_listed(marker, series: Path, quality_flags) -> None:
    files = sorted(series.iterdir())  # file k is canonical slice 13 - k
    for number in (4, 5, 9):
        files[number].unlink()
    scan = read(series)
    assert scan.shape == marker.hu.shape
    assert scan.interpolated == (4, 8, 9)
    assert scan.repaired
    flag = quality_flags(scan)["missing_slices"]
    assert (flag.level, flag.value) == ("warning", 3)
    kept = [number for number in range(14) if number not in scan.interpolated]
    np.testing.assert_array_equal(scan.hu[kept], marker.hu[kept])
    np.testing.assert_allclose(
        scan.hu[4], (marker.hu[3].astype(float) + marker.hu[5]) / 2, atol=0.5
    )
    np.testing.assert_allclose(
        scan.hu[8], marker.hu[7] * (2 / 3) + marker.hu[10] * (1 / 3), atol=0.51
    )
    np.testing.assert_allclose(scan.affine, marker.affine, atol=1e-6)
    expected = [None if number in scan.interpolated else 14 - number for number in range(14)]
    assert list(scan.instance_numbers) == expected


def test_each_slice_has_the_number_that_a_viewer_shows(series: Path, edit) -> None:
    files = sorted(series.iterdir())  # from feet to head
    for index, file in enumerate(files):
        edit(file, lambda dataset, index=index: setattr(dataset, "InstanceNumber", 300 - index))
    scan = read(series)
    assert scan.instance_numbers == tuple(range(287, 301))
    assert scan.slice_thickness_mm == 2.5
    edit(files[13], lambda dataset: delattr(dataset, "InstanceNumber"))
    edit(files[0], lambda dataset: delattr(dataset, "SliceThickness"))
    scan = read(series)
    assert scan.instance_numbers == (None, *range(288, 301))
    assert scan.slice_thickness_mm == 2.5
    edit(files[3], lambda dataset: setattr(dataset, "InstanceNumber", 300))
    assert read(series).instance_numbers == (), "doubled ones name no slice"


@pytest.mark.parametrize("orientation", ["coronal", "sagittal"])
def test_slices_that_are_not_axial_have_no_numbers(
    marker, tmp_path: Path, orientation: str
) -> None:
    folder = write_dicom(marker.hu, marker.affine, tmp_path / "a", orientation=orientation)
    assert read(folder).instance_numbers == ()


def test_frames_of_one_file_have_no_numbers(master: Path, tmp_path: Path, enhanced) -> None:
    enhanced(sorted(master.iterdir())).save_as(tmp_path / "frames.dcm")
    scan = read(tmp_path)
    assert scan.instance_numbers == ()
    assert scan.slice_thickness_mm == 2.5


@pytest.mark.parametrize("orientation", ["coronal", "sagittal"])
def test_a_gap_between_slices_that_are_not_axial_is_refused(
    marker, tmp_path: Path, refused, orientation: str
) -> None:
    """The numbers of made-up slices are of axial ones.

    Here a part of every axial slice would be made up.
    """
    folder = write_dicom(marker.hu, marker.affine, tmp_path / "a", orientation=orientation)
    sorted(folder.iterdir())[5].unlink()
    flag = refused(folder)["missing_slices"]
    assert "between axial slices" in flag.message
    assert flag.value == 1


def test_a_whole_stack_goes_before_one_with_a_gap_that_is_not_axial(marker, tmp_path: Path) -> None:
    for name in ("coronal", "sagittal"):
        write_dicom(
            marker.hu,
            marker.affine,
            tmp_path / "a" / name,
            orientation=name,
            seed=len(name),
            study_seed=7,
        )
    sorted((tmp_path / "a" / "coronal").iterdir())[5].unlink()
    scan = read(tmp_path / "a")
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert scan.interpolated == ()


def test_a_wide_gap_is_refused(series: Path, refused) -> None:
    for file in sorted(series.iterdir())[4:8]:
        file.unlink()
    flag = refused(series)["missing_slices"]
    assert "12.5 mm" in flag.message
    assert flag.value == 4


def test_more_made_up_than_real_is_refused(series: Path, refused) -> None:
    for number, file in enumerate(sorted(series.iterdir())):
        if number not in (0, 1, 2, 6, 10):
            file.unlink()
    assert refused(series)["missing_slices"].value == 6


def test_the_widest_gap_is_an_argument(series: Path) -> None:
    for file in sorted(series.iterdir())[4:8]:
        file.unlink()
    assert len(read(series, Limits(gap_mm=12.5)).interpolated) == 4


def test_identical_duplicates_are_dropped(marker, series: Path, quality_flags) -> None:
    for file in sorted(series.iterdir())[:3]:
        shutil.copy(file, series / f"copy-{file.name}")
    scan = read(series)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert quality_flags(scan)["duplicate_slices"].value == 3


def test_a_different_duplicate_is_told(marker, series: Path, edit, quality_flags) -> None:
    extra = shutil.copy(sorted(series.iterdir())[6], series / "extra")

    def later(dataset: Dataset) -> None:
        dataset.AcquisitionNumber = 2
        dataset.PixelData = bytes(len(dataset.PixelData))

    edit(Path(extra), later)
    scan = read(series)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert quality_flags(scan)["ambiguous_slices"].level == "warning"


def test_two_phases_in_one_series_are_two_candidates(
    marker, series: Path, edit, quality_flags
) -> None:
    for file in sorted(series.iterdir()):
        extra = shutil.copy(file, series / f"z{file.name}")

        def later(dataset: Dataset) -> None:
            dataset.AcquisitionNumber = 2
            dataset.RescaleIntercept = "-1000"

        edit(Path(extra), later)
    scan = read(series)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert quality_flags(scan)["series_candidates"].value == 2


def test_indistinguishable_phases_are_refused(series: Path, edit, refused) -> None:
    for file in sorted(series.iterdir()):
        extra = shutil.copy(file, series / f"z{file.name}")
        edit(Path(extra), lambda dataset: setattr(dataset, "RescaleIntercept", "-1000"))
    assert refused(series)["ambiguous_slices"].value == 14


def _positions(series: Path, edit, move) -> None:
    for number, file in enumerate(sorted(series.iterdir())):

        def shift(dataset: Dataset, number: int = number) -> None:
            position = np.array(dataset.ImagePositionPatient, dtype=float) + move(number)
            dataset.ImagePositionPatient = [f"{value:.4f}" for value in position]

        edit(file, shift)


def test_tilt_is_refused_with_its_angle(series: Path, edit, refused) -> None:
    _positions(series, edit, lambda number: np.array([0, number * 2.5 * np.tan(np.radians(15)), 0]))
    assert refused(series)["gantry_tilt"].value == pytest.approx(15.0)


def test_irregular_spacing_is_refused(series: Path, edit, refused) -> None:
    _positions(series, edit, lambda number: np.array([0, 0, 1.0 * (number % 2)]))
    assert "1.50 to 3.50 mm" in refused(series)["irregular_spacing"].message


def test_rounded_positions_are_no_irregularity(marker, series: Path, edit) -> None:
    _positions(series, edit, lambda number: np.array([0, 0, 0.05 * (number % 2)]))
    np.testing.assert_array_equal(read(series).hu, marker.hu)


def test_slices_beside_each_other_are_refused(series: Path, edit, refused) -> None:
    _positions(series, edit, lambda number: np.array([20.0 * (number in (3, 4)), 0, 0]))
    assert "mixed_geometry" in refused(series)


def test_cosines_slightly_off_are_repaired(marker, series: Path, edit) -> None:
    edit(
        series,
        lambda d: setattr(
            d, "ImageOrientationPatient", ["1.0", "0.0008", "0", "0.0001", "0.9996", "0"]
        ),
    )
    scan = read(series)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    cosines = scan.affine[:3, :3] / np.array(scan.spacing_mm)
    np.testing.assert_allclose(cosines.T @ cosines, np.eye(3), atol=1e-9)


def test_impossible_cosines_are_refused(series: Path, edit, refused) -> None:
    edit(series, lambda d: setattr(d, "ImageOrientationPatient", ["1", "0.3", "0", "0", "1", "0"]))
    assert "bad_affine" in refused(series)


def test_one_slice(series: Path, refused) -> None:
    assert "single_slice" in refused(sorted(series.iterdir())[0])


def test_half_the_series_in_another_matrix(marker, series: Path, edit, refused) -> None:
    for file in sorted(series.iterdir())[:7]:
        edit(file, lambda dataset: setattr(dataset, "PixelSpacing", ["1.1", "1.1"]))
    assert refused(series)["mixed_geometry"].value == 7


def test_every_slice_its_own_direction(series: Path, edit, refused) -> None:
    for number, file in enumerate(sorted(series.iterdir())):
        angle = np.radians(5 * number)
        cosines = [
            f"{value:.6f}"
            for value in (np.cos(angle), np.sin(angle), 0, -np.sin(angle), np.cos(angle), 0)
        ]
        edit(
            file,
            lambda dataset, cosines=cosines: setattr(dataset, "ImageOrientationPatient", cosines),
        )
    assert "mixed_geometry" in refused(series)


def test_order_comes_from_geometry_not_from_instance_numbers(marker, series: Path, edit) -> None:
    numbers = iter(np.random.default_rng(1).permutation(14))
    edit(series, lambda dataset: setattr(dataset, "InstanceNumber", int(next(numbers))))
    np.testing.assert_array_equal(read(series).hu, marker.hu)


def test_header_values_that_end_in_nul(marker, series: Path) -> None:
    for file in series.iterdir():
        data = file.read_bytes()
        assert b"B60f" in data
        file.write_bytes(
            data.replace(b"1.2.840.10008.5.1.4.1.1.2 ", b"1.2.840.10008.5.1.4.1.1.2\0").replace(
                b"B60f", b"B60\0"
            )
        )
    scan = read(series)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert "kernel B60," not in scan.chosen_because
    assert "B60" in scan.chosen_because


def test_large_series_are_refused_before_memory_is_taken(series: Path, tmp_path: Path) -> None:
    (case,) = find_cases(series, Limits(voxels=1000))
    with pytest.raises(Exception, match="too_large"):
        case.read()


def test_rows_that_lie(series: Path, edit, refused) -> None:
    edit(
        series,
        lambda dataset: (setattr(dataset, "Rows", 60000), setattr(dataset, "Columns", 60000)),
    )
    assert "too_large" in refused(series)


def test_spacing_differs_in_plane(marker, tmp_path: Path) -> None:
    affine = marker.affine.copy()
    affine[0, 2], affine[1, 1] = 0.5, 1.3
    scan = read(write_dicom(marker.hu, affine, tmp_path / "a"))
    assert scan.spacing_mm == pytest.approx((2.5, 1.3, 0.5))


def test_the_master_was_not_changed(master: Path) -> None:
    assert len(list(master.iterdir())) == 14
    assert pydicom.dcmread(next(iter(master.iterdir()))).PixelSpacing == [0.9, 0.8]
