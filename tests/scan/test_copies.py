"""The same voxels at two places, and slices with rules of their own, are said.

One noise never comes twice.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from tf_covid.phantom.files import write_dicom
from tf_covid.scan import read
from tf_covid.scan.neighbours import neighbour_flags


def codes(hu: np.ndarray) -> dict[str, object]:
    return {flag.code: flag.value for flag in neighbour_flags(hu)}


@pytest.mark.parametrize(("one", "other"), [(3, 4), (0, 13), (5, 2)])
@pytest.mark.parametrize(
    "syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.5"]
)
def test_pixel_data_of_one_slice_in_another(
    one: int, other: int, syntax: str, marker, tmp_path: Path
) -> None:
    folder = write_dicom(marker.hu, marker.affine, tmp_path / "a", transfer_syntax=syntax)
    files = sorted(folder.iterdir())
    dataset = pydicom.dcmread(files[other])
    dataset.PixelData = pydicom.dcmread(files[one]).PixelData
    dataset.save_as(files[other])
    assert {flag.code: flag.value for flag in read(folder).quality_flags}["repeated_slices"] == 1


def test_copies_are_counted_in_every_format(marker, tmp_path: Path) -> None:
    hu = marker.hu.copy()
    hu[6] = hu[7] = hu[2]
    assert codes(hu)["repeated_slices"] == 2
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ marker.affine
    nib.save(nib.Nifti1Image(hu, affine), tmp_path / "a.nii.gz")
    assert "repeated_slices" in {flag.code for flag in read(tmp_path / "a.nii.gz").quality_flags}


def test_blank_slices_and_a_clean_scan_are_no_copies(marker) -> None:
    hu = marker.hu.copy()
    assert "repeated_slices" not in codes(hu)
    hu[:2] = -1024
    assert "repeated_slices" not in codes(hu)


@pytest.mark.parametrize(
    ("keyword", "value", "code"),
    [
        ("RescaleIntercept", -1034, "mixed_rescale"),
        ("RescaleSlope", "1.01", "mixed_rescale"),
        ("BitsStored", 15, "mixed_bits"),
    ],
)
@pytest.mark.parametrize("some", [slice(4, 5), slice(None, None, 2), slice(7, None)])
def test_slices_with_rules_of_their_own(
    keyword: str, value: object, code: str, some: slice, series: Path, edit: Callable[..., None]
) -> None:
    def change(dataset: pydicom.Dataset) -> None:
        setattr(dataset, keyword, value)
        if keyword == "BitsStored":
            dataset.HighBit = 14

    for file in sorted(series.iterdir())[some]:
        edit(file, change)
    flags = {flag.code: flag for flag in read(series).quality_flags}
    assert flags[code].level == "warning"
    assert flags[code].value == len(range(14)[some])
