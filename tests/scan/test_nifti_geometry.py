"""NIfTI headers: units, sform against qform, quaternions, scaling, types.

What nibabel and ITK read differently.
"""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from tf_covid.scan import read
from tf_covid.scan.source import DiskFile
from tf_covid.scan.volumes import open_volume

RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def header(
    marker,
    *,
    sform: bool = True,
    qform: bool = False,
    kind: type = nib.Nifti1Header,
    endian: str = "<",
):
    """The marker in the order of the file (W, H, D), in mm."""
    affine = RAS @ marker.affine[:, [2, 1, 0, 3]]
    made = kind(endianness=endian)
    made.set_data_dtype(np.dtype(np.int16))
    made.set_data_shape(marker.hu.shape[::-1])
    made["magic"], made["vox_offset"] = (b"n+1", 352) if kind is nib.Nifti1Header else (b"n+2", 544)
    made.set_qform(affine, code=int(qform))
    made.set_sform(affine, code=int(sform))
    made.set_xyzt_units("mm")
    return made


def write(path: Path, made, marker) -> Path:
    data = marker.hu.astype(f"{made.endianness}i2").tobytes()
    path.write_bytes(made.binaryblock + bytes(4) + data)
    return path


@pytest.mark.parametrize("kind", [nib.Nifti1Header, nib.Nifti2Header])
@pytest.mark.parametrize("endian", ["<", ">"])
@pytest.mark.parametrize(("sform", "qform"), [(True, False), (False, True), (True, True)])
def test_versions_byte_orders_and_forms(
    marker, tmp_path: Path, kind, endian: str, sform: bool, qform: bool
) -> None:
    made = header(marker, sform=sform, qform=qform, kind=kind, endian=endian)
    scan = read(write(tmp_path / "a.nii", made, marker))
    np.testing.assert_array_equal(scan.hu, marker.hu)
    np.testing.assert_allclose(scan.affine, marker.affine, atol=1e-4)
    assert scan.quality_flags == ()


@pytest.mark.parametrize(
    ("code", "factor", "flag"),
    [
        (1, 1e-3, "units_converted"),
        (3, 1e3, "units_converted"),
        (2, 1.0, None),
        (0, 1.0, "units_unknown"),
        (5, 1.0, "units_unknown"),
        (10, 1.0, None),
    ],
)
@pytest.mark.parametrize("sform", [True, False])
def test_units(
    marker, tmp_path: Path, quality_flags, code: int, factor: float, flag: str | None, sform: bool
) -> None:
    made = header(marker, sform=sform, qform=not sform)
    made["pixdim"][1:4] *= factor
    for name in ("srow_x", "srow_y", "srow_z", "qoffset_x", "qoffset_y", "qoffset_z"):
        made[name] = made[name] * factor
    made["xyzt_units"] = code
    scan = read(write(tmp_path / "a.nii", made, marker))
    np.testing.assert_allclose(scan.affine, marker.affine, rtol=1e-5, atol=1e-3)
    assert {*quality_flags(scan)} == ({flag} if flag else set())
    if code == 0:
        assert quality_flags(scan)["units_unknown"].level == "info"


def test_a_false_unit_is_refused_by_the_size_of_the_voxels(marker, tmp_path: Path, refused) -> None:
    for code in (1, 3):
        made = header(marker)
        made["xyzt_units"] = code
        assert [flag for flag in refused(write(tmp_path / "a.nii", made, marker))] == ["voxel_size"]


def scaled(made) -> None:
    made["pixdim"][3] *= 1.5


def mirrored(made) -> None:
    made["pixdim"][0] *= -1


def turned(made) -> None:
    made["quatern_b"], made["quatern_c"], made["quatern_d"] = 0, 0, 0
    made["pixdim"][0] = 1


def long_quaternion(made) -> None:
    made["quatern_b"] = 3


def no_pixdim(made) -> None:
    made["pixdim"][1:4] = 0


def nan_pixdim(made) -> None:
    made["pixdim"][2] = np.nan


def negative_pixdim(made) -> None:
    made["pixdim"][1] *= -1


@pytest.mark.parametrize(
    "change", [scaled, mirrored, turned, long_quaternion, no_pixdim, nan_pixdim, negative_pixdim]
)
def test_the_sform_is_taken_and_what_contradicts_it_told(
    marker, tmp_path: Path, quality_flags, change
) -> None:
    made = header(marker, qform=True)
    change(made)
    scan = read(write(tmp_path / "a.nii", made, marker))
    np.testing.assert_array_equal(scan.hu, marker.hu)
    np.testing.assert_allclose(scan.affine, marker.affine, atol=1e-4)
    assert quality_flags(scan)["affine_disagree"].level == "warning"


def test_pixdim_contradicts_an_sform_without_a_qform(marker, tmp_path: Path, quality_flags) -> None:
    made = header(marker)
    made["pixdim"][1] = 2
    assert "affine_disagree" in quality_flags(read(write(tmp_path / "a.nii", made, marker)))


@pytest.mark.parametrize(
    "rows", [np.zeros((3, 4)), np.full((3, 4), np.nan), [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]]
)
def test_an_unusable_sform_gives_way_to_the_qform(
    marker, tmp_path: Path, quality_flags, refused, rows
) -> None:
    made = header(marker, qform=True)
    for name, row in zip(("srow_x", "srow_y", "srow_z"), rows, strict=True):
        made[name] = row
    scan = read(write(tmp_path / "a.nii", made, marker))
    np.testing.assert_allclose(scan.affine, marker.affine, atol=1e-4)
    assert "affine_disagree" in quality_flags(scan)
    made["qform_code"] = 0
    assert "bad_affine" in refused(write(tmp_path / "b.nii", made, marker))


@pytest.mark.parametrize("change", [long_quaternion, no_pixdim, nan_pixdim, negative_pixdim])
def test_an_unusable_qform_alone_is_refused(marker, tmp_path: Path, refused, change) -> None:
    made = header(marker, sform=False, qform=True)
    change(made)
    assert [*refused(write(tmp_path / "a.nii", made, marker))] == ["bad_affine"]


@pytest.mark.parametrize("excess", [0.0, 4e-7, 1e-6, 1e-4])
def test_a_quaternion_slightly_too_long(marker, tmp_path: Path, excess: float) -> None:
    """nibabel refuses from 4e-7 on.

    The standard's reference reader and ITK make it one of length 1.
    """
    made = header(marker, sform=False, qform=True)
    length = np.sqrt(1 + excess) / np.linalg.norm(
        [float(made[f"quatern_{axis}"]) for axis in "bcd"]
    )
    for axis in "bcd":
        made[f"quatern_{axis}"] = made[f"quatern_{axis}"] * length
    path = write(tmp_path / "a.nii", made, marker)
    scan = read(path)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    np.testing.assert_allclose(scan.affine, marker.affine, atol=1e-3)
    assert scan.quality_flags == ()


@pytest.mark.parametrize(
    ("qfac", "flags"),
    [(0, set()), (1, set()), (3, {"affine_disagree"}), (np.nan, {"affine_disagree"})],
)
def test_qfac(marker, tmp_path: Path, quality_flags, qfac: float, flags: set[str]) -> None:
    made = header(marker, sform=False, qform=True)
    assert float(made["pixdim"][0]) == -1  # the marker's axes are left-handed
    made["pixdim"][0] = qfac
    scan = read(write(tmp_path / "a.nii", made, marker))
    assert {*quality_flags(scan)} == flags
    assert not np.array_equal(
        scan.hu, marker.hu
    )  # 1, as the standard says: the slices run the other way
    np.testing.assert_array_equal(scan.hu[::-1], marker.hu)


def test_simpleitk_and_nibabel_place_the_qform_where_we_do(marker, tmp_path: Path) -> None:
    made = header(marker, sform=False, qform=True)
    turn = np.eye(4)
    turn[:3, :3] = nib.eulerangles.euler2mat(0.3, -0.2, 0.1)
    made.set_qform(turn @ RAS @ marker.affine[:, [2, 1, 0, 3]], code=1)
    made.set_sform(None, code=0)
    path = write(tmp_path / "a.nii", made, marker)
    with open_volume([DiskFile.of(path)]) as volume:
        np.testing.assert_allclose(volume.affine_ras, nib.load(path).affine, atol=1e-4)
        image = sitk.ReadImage(str(path))
        for index in ((0, 0, 0), (31, 39, 13), (5, 0, 7)):
            there = np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
            np.testing.assert_allclose((volume.affine_ras @ [*index, 1])[:3], there, atol=1e-3)


@pytest.mark.parametrize(
    ("slope", "inter", "flags"),
    [
        (0, 0, set()),
        (np.nan, np.nan, set()),
        (np.nan, 0, set()),
        (0, -1024, {"scaling_unclear"}),
        (1, 0, set()),
        (np.nan, 7, {"scaling_unclear"}),
    ],
)
def test_no_scaling(
    marker, tmp_path: Path, quality_flags, slope: float, inter: float, flags: set[str]
) -> None:
    made = header(marker)
    made["scl_slope"], made["scl_inter"] = slope, inter
    scan = read(write(tmp_path / "a.nii", made, marker))
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert {*quality_flags(scan)} == flags


REFUSED = {
    "infinite slope": ("bad_header", {"scl_slope": np.inf, "scl_inter": 0}),
    "infinite intercept": ("bad_header", {"scl_slope": 1, "scl_inter": -np.inf}),
    "intercept of a slope": ("bad_header", {"scl_slope": 2, "scl_inter": np.nan}),
    "bitpix": ("bad_header", {"bitpix": 32}),
    "no axes": ("bad_header", {"dim": [0, 32, 40, 14, 1, 1, 1, 1]}),
    "nine axes": ("bad_header", {"dim": [9, 32, 40, 14, 1, 1, 1, 1]}),
    "two axes": ("single_slice", {"dim": [2, 32, 40, 14, 1, 1, 1, 1]}),
    "vectors": ("not_3d", {"dim": [5, 32, 40, 2, 1, 7, 1, 1], "intent_code": 1007}),
    "axes permuted": ("length_mismatch", {"dim": [3, 14, 40, 14, 1, 1, 1, 1]}),
    "voxels in the header": ("bad_header", {"vox_offset": 336}),
    "voxels at a half": ("bad_header", {"vox_offset": 352.5}),
    "voxels nowhere": ("bad_header", {"vox_offset": np.nan}),
    "a pair's magic": ("detached_data", {"magic": b"ni1"}),
    "no magic": ("not_nifti", {"magic": b""}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_headers_that_are_refused(marker, tmp_path: Path, refused, name: str) -> None:
    code, changes = REFUSED[name]
    made = header(marker)
    for key, value in changes.items():
        made[key] = value
    assert [*refused(write(tmp_path / "a.nii", made, marker))] == [code]


@pytest.mark.parametrize(
    "changes",
    [{"bitpix": 0}, {"vox_offset": 0}, {"intent_code": 1002}, {"dim": [4, 32, 40, 14, 1, 9, 9, 9]}],
)
def test_what_is_needless_to_know(marker, tmp_path: Path, changes) -> None:
    made = header(marker)
    for key, value in changes.items():
        made[key] = value
    np.testing.assert_array_equal(read(write(tmp_path / "a.nii", made, marker)).hu, marker.hu)


@pytest.mark.parametrize("endian", ["<", ">"])
def test_extensions(marker, tmp_path: Path, refused, endian: str) -> None:
    made = header(marker, endian=endian)
    order = "little" if endian == "<" else "big"
    extension = b"".join(number.to_bytes(4, order) for number in (64, 6)) + b"a comment".ljust(
        56, b"\0"
    )
    data = marker.hu.astype(f"{endian}i2").tobytes()
    for offset, gap in ((480, 0), (512, 32)):
        made["vox_offset"] = offset
        (tmp_path / "a.nii").write_bytes(
            made.binaryblock + b"\1\0\0\0" + 2 * extension + bytes(gap) + data
        )
        np.testing.assert_array_equal(read(tmp_path / "a.nii").hu, marker.hu)
    made["vox_offset"] = 464  # within the second one: eight voxels too early
    (tmp_path / "b.nii").write_bytes(made.binaryblock + b"\1\0\0\0" + 2 * extension + data)
    assert [*refused(tmp_path / "b.nii")] == ["bad_header"]
