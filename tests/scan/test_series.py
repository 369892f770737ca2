"""Which stack of a study is read, and that the reason is told without anything that could name a
patient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from tf_covid.phantom.files import write_dicom
from tf_covid.scan import read


@pytest.fixture
def study(marker, tmp_path: Path):
    """Adds a series to one study.

    The value of every voxel is shifted by `shift` HU to tell it again.
    """

    def add(name: str, *, shift: int = 0, every: int = 1, **options: Any) -> Path:
        hu = marker.hu[::every] + np.int16(shift)
        affine = marker.affine.copy()
        affine[:3, 0] *= every
        options = {"seed": sum(name.encode()), "study_seed": 7} | options
        return write_dicom(hu, affine, tmp_path / "study" / name, **options)

    return add


def _shift(scan, marker) -> int:
    return round(float((scan.hu[0].astype(float) - marker.hu[0]).mean()))


def test_thinnest_axial(marker, study, tmp_path: Path) -> None:
    study("coronal", orientation="coronal", shift=1)
    study("thick", every=2, kernel="B70f", shift=2)
    study("thin", kernel="B30f", shift=3)
    scan = read(tmp_path / "study")
    assert _shift(scan, marker) == 3
    # "thick" is refused as a candidate: 7 slices are fewer than 8
    assert "thinnest" in scan.chosen_because or "covers enough" in scan.chosen_because


def test_lung_kernel_among_equals(marker, study, tmp_path: Path, quality_flags) -> None:
    study("soft", kernel="B31f", series_number=1)
    study("sharp", kernel="B70f", series_number=9, shift=5)
    scan = read(tmp_path / "study")
    assert _shift(scan, marker) == 5
    assert (
        scan.chosen_because
        == "Of 2 stacks this one, because it has a lung kernel: 14 axial slices, 2.50 mm apart,"
        " kernel B70f."
    )
    assert quality_flags(scan)["series_candidates"].value == 2


@pytest.mark.parametrize(
    "kernel", ["LUNG", "BONEPLUS", "B60f", "Bl64d", "Br59d", "FC52", "FC86", "YA", "YC", "I70f"]
)
def test_lung_kernels(marker, study, tmp_path: Path, kernel: str) -> None:
    study("a", kernel="STANDARD", series_number=1)
    study("b", kernel=kernel, series_number=2, shift=5)
    assert _shift(read(tmp_path / "study"), marker) == 5


@pytest.mark.parametrize(
    "kernel", ["STANDARD", "B30f", "Br40d", "FC12", "C", "SOFT", "I30f", "Bf37", "B"]
)
def test_soft_kernels(marker, study, tmp_path: Path, kernel: str) -> None:
    study("a", kernel="", series_number=1)
    study("b", kernel=kernel, series_number=2, shift=5)
    assert _shift(read(tmp_path / "study"), marker) == 0


def test_a_short_thin_series_does_not_win(marker, study, tmp_path: Path) -> None:
    whole = study("whole", shift=2)
    short = study("short", shift=4, series_number=1, kernel="B80f")
    for file in sorted(short.iterdir())[9:]:
        file.unlink()
    assert whole.is_dir()
    assert _shift(read(tmp_path / "study"), marker) == 2


@pytest.mark.parametrize(
    ("image_type", "code", "word"),
    [
        (["ORIGINAL", "PRIMARY", "LOCALIZER"], "no_slices", "LOCALIZER"),
        (["DERIVED", "SECONDARY", "AXIAL", "MIP"], "projection", "MIP"),
        (["DERIVED", "SECONDARY", "MPR", "MIN_IP"], "projection", "MinIP"),
        (["DERIVED", "PRIMARY", "PROJECTION IMAGE"], "projection", "MIP"),
        (["DERIVED", "SECONDARY", "SCREEN SAVE"], "no_slices", "SCREEN"),
    ],
)
def test_what_is_no_slice_is_left_out(
    marker, study, tmp_path: Path, edit, image_type: list[str], code: str, word: str, refused
) -> None:
    folder = study("a", kernel="B80f", series_number=1)
    edit(folder, lambda dataset: setattr(dataset, "ImageType", image_type))
    assert f"14 with ImageType {word}" in refused(tmp_path / "study")[code].message
    study("b", kernel="B30f", series_number=2, shift=5)
    assert _shift(read(tmp_path / "study"), marker) == 5


def test_derived_slices_only_if_there_are_no_others(marker, study, tmp_path: Path, edit) -> None:
    folder = study("a", kernel="B80f", series_number=1)
    edit(folder, lambda dataset: setattr(dataset, "ImageType", ["DERIVED", "SECONDARY", "AXIAL"]))
    assert _shift(read(folder), marker) == 0
    study("b", kernel="B30f", series_number=2, shift=5)
    assert _shift(read(tmp_path / "study"), marker) == 5


def test_a_broken_series_gives_way_to_a_whole_one(marker, study, tmp_path: Path) -> None:
    broken = study("a", kernel="B80f", series_number=1)
    for file in sorted(broken.iterdir())[3:9]:
        file.unlink()
    study("b", kernel="B30f", series_number=2, shift=5)
    assert _shift(read(tmp_path / "study"), marker) == 5


def test_two_kernels_under_one_series_uid(marker, study, tmp_path: Path) -> None:
    study("a", kernel="B30f", seed=1)
    study("b", kernel="B70f", seed=1, shift=5)
    assert _shift(read(tmp_path / "study"), marker) == 5


def test_other_modalities_in_the_study_are_left_alone(marker, study, tmp_path: Path, edit) -> None:
    study("a")
    pet = study("b", kernel="B80f", shift=5)

    def to_pet(dataset: Dataset) -> None:
        dataset.Modality = "PT"
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = (
            "1.2.840.10008.5.1.4.1.1.128"
        )

    edit(pet, to_pet)
    assert _shift(read(tmp_path / "study"), marker) == 0


@pytest.mark.parametrize("modality", ["MR", "PT", "CR"])
def test_not_ct(series: Path, edit, refused, modality: str) -> None:
    edit(series, lambda dataset: setattr(dataset, "Modality", modality))
    assert modality in refused(series)["not_ct"].message


def test_a_secondary_capture_is_not_ct_whatever_it_says(series: Path, edit, refused) -> None:
    def capture(dataset: Dataset) -> None:
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = (
            "1.2.840.10008.5.1.4.1.1.7"
        )

    edit(series, capture)
    assert "not_ct" in refused(series)


def test_spectral_maps_are_left_out(series: Path, edit, refused) -> None:
    edit(series, lambda dataset: setattr(dataset, "RescaleType", "Z_EFF"))
    assert "no_slices" in refused(series)


@pytest.mark.parametrize("kernel", ["XYLON", "Li", "LiWu"])
def test_a_kernel_field_with_the_patients_name_is_not_repeated(
    series: Path, edit, refused, kernel: str
) -> None:
    def rename(dataset: Dataset) -> None:
        dataset.ConvolutionKernel, dataset.PatientName = (
            kernel,
            ("Xylon^M" if kernel == "XYLON" else "Li^Wu"),
        )

    edit(series, rename)
    assert "another kernel" in read(series).chosen_because
    edit(sorted(series.iterdir())[0], lambda dataset: setattr(dataset, "ConvolutionKernel", "B60f"))
    flags = refused(series)  # the stack has lost an end to another kernel
    assert "1 with another ConvolutionKernel" in flags["left_out_slices"].message
    assert kernel not in str(flags)


def test_a_kernel_field_with_free_text_is_not_repeated(series: Path, edit) -> None:
    edit(series, lambda dataset: setattr(dataset, "ConvolutionKernel", "for Jane Doe"))
    assert "Doe" not in read(series).chosen_because
