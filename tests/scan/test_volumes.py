"""NIfTI, NRRD and MHA: what their voxels and headers may hold; masks; the writer's promises."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from tf_covid.errors import OutputError, ScanRefused
from tf_covid.phantom.files import write_nifti_volume
from tf_covid.scan import read, read_mask, write_nifti

RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def save(
    marker, path: Path, data: np.ndarray, kind: type = nib.Nifti1Image, **scaling: float
) -> Path:
    """With nibabel, stored in the canonical order itself."""
    image = kind(data, RAS @ marker.affine)
    if scaling:
        image.header.set_slope_inter(**scaling)
    image.to_filename(path)
    return path


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64, ">i2", ">f4"])
@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_voxel_types(marker, tmp_path: Path, kind: type, dtype, suffix: str) -> None:
    scan = read(save(marker, tmp_path / f"a.{suffix}", marker.hu.astype(dtype), kind))
    np.testing.assert_array_equal(scan.hu, marker.hu)


def test_float_hu_are_rounded_clipped_and_made_air(marker, tmp_path: Path, quality_flags) -> None:
    data = marker.hu.astype(np.float32) + np.float32(0.4)
    data[0, 0, :3] = [np.nan, np.inf, -np.inf]
    data[0, 1, :2] = [1e9, -1e9]
    scan = read(save(marker, tmp_path / "a.nii.gz", data))
    assert scan.hu[0, 0, :3].tolist() == [-1024, -1024, -1024]
    assert scan.hu[0, 1, :2].tolist() == [32767, -32768]
    np.testing.assert_array_equal(scan.hu[1:], marker.hu[1:])
    assert (
        quality_flags(scan)["not_a_number"].level,
        quality_flags(scan)["not_a_number"].value,
    ) == ("warning", 3)


def test_slope_and_intercept(marker, tmp_path: Path) -> None:
    stored = ((marker.hu.astype(np.float64) + 1024) / 2).round().astype(np.uint16)
    header = nib.Nifti1Image(stored, RAS @ marker.affine).header
    header["scl_slope"], header["scl_inter"], header["vox_offset"], header["magic"] = (
        2,
        -1024,
        352,
        b"n+1",
    )
    (tmp_path / "a.nii").write_bytes(header.binaryblock + bytes(4) + stored.tobytes(order="F"))
    assert np.abs(read(tmp_path / "a.nii").hu.astype(int) - marker.hu).max() <= 1


def test_one_volume_in_four_dimensions(marker, tmp_path: Path) -> None:
    np.testing.assert_array_equal(
        read(save(marker, tmp_path / "a.nii", marker.hu[..., None])).hu, marker.hu
    )


def test_no_orientation_is_told(marker, tmp_path: Path, quality_flags) -> None:
    image = nib.Nifti1Image(marker.hu, None)
    image.header.set_sform(None, code=0)
    image.header.set_qform(None, code=0)
    image.to_filename(tmp_path / "a.nii")
    assert quality_flags(read(tmp_path / "a.nii"))["orientation_unknown"].level == "warning"


def test_qform_only(marker, tmp_path: Path) -> None:
    image = nib.Nifti1Image(marker.hu, None)
    image.set_qform(RAS @ marker.affine, code=1)
    image.set_sform(None, code=0)
    image.to_filename(tmp_path / "a.nii")
    scan = read(tmp_path / "a.nii")
    np.testing.assert_array_equal(scan.hu, marker.hu)
    np.testing.assert_allclose(scan.affine, marker.affine, atol=1e-4)


def test_nrrd_in_a_zip(marker, tmp_path: Path) -> None:
    import zipfile

    image = sitk.GetImageFromArray(marker.hu[::-1])
    image.SetSpacing((0.8, 0.9, 2.5))
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(tmp_path / "a.nrrd", "in/a.nrrd")
    np.testing.assert_array_equal(read(tmp_path / "z.zip").hu, marker.hu)


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_one_volume_in_four_dimensions_of_itk(marker, tmp_path: Path, suffix: str) -> None:
    image = sitk.JoinSeries([sitk.GetImageFromArray(marker.hu[::-1])])
    sitk.WriteImage(image, str(tmp_path / f"a.{suffix}"))
    np.testing.assert_array_equal(read(tmp_path / f"a.{suffix}").hu, marker.hu)


@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_colours_and_series_are_refused(tmp_path: Path, refused, suffix: str) -> None:
    sitk.WriteImage(sitk.Image([8, 8, 8], sitk.sitkVectorUInt8, 3), str(tmp_path / f"a.{suffix}"))
    assert {*refused(tmp_path / f"a.{suffix}")} <= {"not_scalar", "not_3d"}
    sitk.WriteImage(sitk.Image([8, 8, 8, 2], sitk.sitkInt16), str(tmp_path / f"b.{suffix}"))
    assert "not_3d" in refused(tmp_path / f"b.{suffix}")
    sitk.WriteImage(sitk.Image([8, 8], sitk.sitkInt16), str(tmp_path / f"c.{suffix}"))
    assert "single_slice" in refused(tmp_path / f"c.{suffix}")


@pytest.fixture
def scan(marker, tmp_path: Path):
    return read(write_nifti_volume(marker.hu, marker.affine, tmp_path / "scan.nii.gz"))


def mask_codes(path: Path, scan) -> list[str]:
    with pytest.raises(ScanRefused) as caught:
        read_mask(path, scan)
    return [flag.code for flag in caught.value.quality_flags]


def test_masks_that_do_not_fit(marker, scan, tmp_path: Path) -> None:
    lungs = (marker.hu < -500).astype(np.uint8)
    path = tmp_path / "m.nii.gz"
    assert mask_codes(path, scan) == ["not_found"]
    write_nifti_volume(lungs[:-1], marker.affine, path)
    assert mask_codes(path, scan) == ["mask_grid"]
    moved = marker.affine.copy()
    moved[0, 3] += 1
    write_nifti_volume(lungs, moved, path)
    assert mask_codes(path, scan) == ["mask_grid"]
    flipped = marker.affine.copy()
    flipped[:3, 3] += flipped[:3, 2] * 31
    flipped[:3, 2] *= -1
    write_nifti_volume(lungs[..., ::-1], flipped, path)
    np.testing.assert_array_equal(read_mask(path, scan), lungs > 0)
    write_nifti_volume(lungs * 0, marker.affine, path)
    assert mask_codes(path, scan) == ["mask_empty"]
    (tmp_path / "m.txt").write_text("no mask")
    assert mask_codes(tmp_path / "m.txt", scan) == ["mask_grid"]


def test_a_mask_with_rounded_geometry_and_floats(marker, scan, tmp_path: Path) -> None:
    affine = marker.affine.copy()
    affine[:3, 3] += 0.05
    values = np.where(marker.hu < -500, np.float32(0.7), np.nan).astype(np.float32)
    nib.Nifti1Image(values, RAS @ affine).to_filename(tmp_path / "m.nii")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.nii", scan), marker.hu < -500)


def test_the_writer_takes_unsigned_volumes_of_the_scan_only(marker, scan, tmp_path: Path) -> None:
    for volume in (marker.hu, np.zeros((2, 2, 2), np.uint8), marker.hu.astype(np.float32)):
        with pytest.raises(ValueError, match="expected uint8 or uint16"):
            write_nifti(volume, scan, tmp_path / "o.nii.gz")
    with pytest.raises(OutputError, match="cannot be written"):
        write_nifti(marker.hu.astype(np.uint16), scan, tmp_path / "no" / "o.nii.gz")


def test_the_writer_is_atomic_and_deterministic(marker, scan, tmp_path: Path) -> None:
    volume = (marker.hu + 2000).astype(np.uint16)
    for name in ("o.nii.gz", "p.nii.gz"):
        write_nifti(volume, scan, tmp_path / name)
    write_nifti(volume, scan, tmp_path / "o.nii.gz")
    assert (tmp_path / "o.nii.gz").read_bytes() == (tmp_path / "p.nii.gz").read_bytes()
    assert not list(tmp_path.glob(".*"))
    image = nib.load(tmp_path / "o.nii.gz")
    np.testing.assert_array_equal(
        np.asarray(image.dataobj), np.asarray(nib.load(tmp_path / "scan.nii.gz").dataobj) + 2000
    )
    np.testing.assert_array_equal(image.affine, nib.load(tmp_path / "scan.nii.gz").affine)
