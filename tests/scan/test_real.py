"""Real scans, where `TF_COVID_REAL_CT` names their folder."""

from __future__ import annotations

import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from tf_covid.scan import find_cases, lung_flags, read, read_mask, write_nifti
from tf_covid.scan.dicom.series import choose


def test_dicom_and_nrrd_of_one_scan_agree(real_ct: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # its header values end in NUL
        dicom = read(real_ct / "cip" / "dicom")
    nrrd = read(real_ct / "cip" / "ct-64.nrrd")
    assert dicom.shape == (79, 64, 64)
    assert dicom.quality_flags == ()
    np.testing.assert_array_equal(dicom.hu, nrrd.hu)
    np.testing.assert_allclose(dicom.affine, nrrd.affine, atol=1e-3)
    image = sitk.ReadImage(str(real_ct / "cip" / "ct-64.nrrd"))
    for suffix in ("nii.gz", "mha"):
        sitk.WriteImage(image, str(tmp_path / f"a.{suffix}"))
        np.testing.assert_array_equal(read(tmp_path / f"a.{suffix}").hu, nrrd.hu)


def test_identifiers_stay_inside(real_ct: Path) -> None:
    scan = read(real_ct / "cip" / "dicom")
    assert scan.identifiers["patient_id"] == "123456"
    assert not any("\0" in value for value in scan.identifiers.values())


def test_the_lung_mask_fits_both(real_ct: Path, tmp_path: Path) -> None:
    for name in ("dicom", "ct-64.nrrd"):
        scan = read(real_ct / "cip" / name)
        mask = read_mask(real_ct / "cip" / "wholeLung-64.nrrd", scan)
        assert 0.19 < mask.mean() < 0.22
        assert np.median(scan.hu[mask]) < -750
        assert lung_flags(mask.mean((1, 2)), spacing_mm=scan.spacing_mm) == ()
        write_nifti(mask.astype(np.uint8), scan, tmp_path / "lungs.nii.gz")
        np.testing.assert_array_equal(read_mask(tmp_path / "lungs.nii.gz", scan), mask)


def test_a_scan_of_the_lung_base(real_ct: Path, tmp_path: Path) -> None:
    folder = real_ct / "totalsegmentator"
    scan = read(folder / "example_ct.nii.gz")
    labels = nib.load(folder / "example_seg_fast_force_split.nii.gz")
    lungs = np.isin(np.asarray(labels.dataobj), range(10, 15)).astype(np.uint8)
    nib.Nifti1Image(lungs, labels.affine).to_filename(tmp_path / "m.nii.gz")
    mask = read_mask(tmp_path / "m.nii.gz", scan)
    found = {f.code: f.value for f in lung_flags(mask.mean((1, 2)), spacing_mm=scan.spacing_mm)}
    assert found == {"few_slices": 3, "lungs_cut_off": "apex"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cip/dicom", "79 axial slices, 3.99 mm apart, kernel unknown"),
        ("lidc-0001", "133 axial slices, 2.50 mm apart, kernel STANDARD"),
        ("cptac-pda", "102 axial slices, 3.00 mm apart, kernel B40f"),
    ],
)
def test_real_series_are_chosen_whole(real_ct: Path, name: str, text: str) -> None:
    (case,) = find_cases(real_ct / name)
    _, because, quality_flags = choose(case.instances, 10.0)
    assert because == f"The only stack of CT slices: {text}."
    assert quality_flags == ()
