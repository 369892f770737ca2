"""Every way to store one chest gives the same array, and outputs land back on the source's side."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from tf_covid.phantom.files import ORIENTATIONS, write_dicom, write_nifti_volume
from tf_covid.scan import read, read_mask, write_nifti


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_dicom_orientations(marker, tmp_path: Path, orientation: str) -> None:
    folder = write_dicom(
        marker.hu,
        marker.affine,
        tmp_path / "a",
        orientation=orientation,
        shuffle_names=True,
        seed=3,
    )
    scan = read(folder)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    np.testing.assert_allclose(scan.affine, marker.affine, atol=1e-6)
    assert scan.hu.dtype == np.int16
    assert scan.hu.flags.c_contiguous


@pytest.mark.parametrize("order", ["RAS", "LPS", "LAS", "RPI", "PIR", "SAL", "IPL"])
def test_nifti_orders(marker, tmp_path: Path, order: str) -> None:
    scan = read(write_nifti_volume(marker.hu, marker.affine, tmp_path / "a.nii.gz", order=order))
    np.testing.assert_array_equal(scan.hu, marker.hu)
    np.testing.assert_allclose(scan.affine, marker.affine, atol=1e-4)


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["LPS", "RAS", "AIR"])
def test_nrrd_and_mha(marker, tmp_path: Path, suffix: str, compressed: bool, order: str) -> None:
    nifti = write_nifti_volume(marker.hu, marker.affine, tmp_path / "a.nii", order=order)
    sitk.WriteImage(
        sitk.ReadImage(str(nifti)), str(tmp_path / f"a.{suffix}"), useCompression=compressed
    )
    scan = read(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(scan.hu, marker.hu)
    np.testing.assert_allclose(scan.affine, marker.affine, atol=1e-4)


@pytest.mark.parametrize(
    "space", ["left-posterior-superior", "right-anterior-superior", "left-anterior-superior"]
)
def test_nrrd_spaces(marker, tmp_path: Path, space: str) -> None:
    """The same voxels, described in LPS, RAS and LAS millimetres."""
    signs = np.array(
        [1.0 if word in ("left", "posterior", "superior") else -1.0 for word in space.split("-")]
    )
    vectors = [signs * marker.affine[:3, axis] for axis in (2, 1, 0)]
    text = [
        ",".join(str(value) for value in vector)
        for vector in (*vectors, signs * marker.affine[:3, 3])
    ]
    header = (
        f"NRRD0004\ntype: int16\ndimension: 3\nspace: {space}\nsizes: 32 40 14\nspace directions:"
        f" ({text[0]}) ({text[1]}) ({text[2]})\nkinds: domain domain domain\nendian:"
        f" little\nencoding: raw\nspace origin: ({text[3]})\n\n"
    )
    (tmp_path / "a.nrrd").write_bytes(header.encode() + marker.hu.astype("<i2").tobytes())
    scan = read(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(scan.hu, marker.hu)
    np.testing.assert_allclose(scan.affine, marker.affine, atol=1e-6)


def test_an_oblique_scan_keeps_its_affine(marker, tmp_path: Path) -> None:
    angle = np.radians(12)
    turn = np.eye(4)
    turn[:3, :3] = [
        [np.cos(angle), -np.sin(angle), 0],
        [np.sin(angle), np.cos(angle), 0],
        [0, 0, 1],
    ]
    affine = turn @ marker.affine
    scan = read(write_dicom(marker.hu, affine, tmp_path / "a", orientation="axial_feet_first"))
    np.testing.assert_array_equal(scan.hu, marker.hu)
    np.testing.assert_allclose(scan.affine, affine, atol=1e-6)


@pytest.mark.parametrize("order", ["RAS", "LPS", "PIR"])
def test_outputs_lie_on_the_source_voxel_for_voxel(marker, tmp_path: Path, order: str) -> None:
    path = write_nifti_volume(marker.hu, marker.affine, tmp_path / "a.nii.gz", order=order)
    scan = read(path)
    volume = (marker.hu > 500).astype(np.uint8)
    write_nifti(volume, scan, tmp_path / "out.nii.gz", slope=0.25)
    source, out = sitk.ReadImage(str(path)), sitk.ReadImage(str(tmp_path / "out.nii.gz"))
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(out),
        np.where(sitk.GetArrayFromImage(source) > 500, np.float32(0.25), 0),
    )
    assert out.GetOrigin() == source.GetOrigin()
    assert out.GetSpacing() == source.GetSpacing()
    assert out.GetDirection() == source.GetDirection()
    header = nib.load(tmp_path / "out.nii.gz").header
    assert int(header["sform_code"]) > 0
    assert int(header["qform_code"]) > 0
    assert header.get_xyzt_units()[0] == "mm"
    assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.parametrize("orientation", ["axial", "axial_prone", "coronal", "sagittal"])
def test_outputs_of_dicom_lie_where_itk_sees_the_series(
    marker, tmp_path: Path, orientation: str
) -> None:
    """ITK reads the series with its own code.

    The bright block is at the same millimetres in both.
    """
    folder = write_dicom(marker.hu, marker.affine, tmp_path / "a", orientation=orientation)
    write_nifti((marker.hu > 500).astype(np.uint8), read(folder), tmp_path / "out.nii.gz")
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    centres = []
    for image, level in (
        (sitk.ReadImage(files), 500),
        (sitk.ReadImage(str(tmp_path / "out.nii.gz")), 0),
    ):
        places = np.argwhere(sitk.GetArrayViewFromImage(image) > level)[:, ::-1]
        mm = [
            image.TransformIndexToPhysicalPoint([int(value) for value in place]) for place in places
        ]
        centres.append(np.array(sorted(mm)))
    np.testing.assert_allclose(centres[0], centres[1], atol=1e-3)


def test_a_mask_in_another_order_fits(marker, tmp_path: Path) -> None:
    scan = read(write_nifti_volume(marker.hu, marker.affine, tmp_path / "a.nii.gz", order="RAS"))
    lungs = marker.hu < -500
    write_nifti_volume(lungs.astype(np.uint8), marker.affine, tmp_path / "m.nii.gz", order="PIL")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.nii.gz", scan), lungs)
