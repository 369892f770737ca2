"""MetaImage: types, byte orders and geometry against SimpleITK.

Synonyms, and what a header leaves open.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from tf_covid.phantom.files import write_nifti_volume
from tf_covid.scan import read
from tf_covid.scan.source import DiskFile
from tf_covid.scan.volumes import open_volume

FIELDS = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 -1",
    "Offset": "-120 -150 300",
    "CenterOfRotation": "0 0 0",
    "ElementSpacing": "0.8 0.9 2.5",
    "DimSize": "32 40 14",
    "ElementType": "MET_SHORT",
}


def write(path: Path, data: bytes, last: str = "LOCAL", **changes: str | None) -> Path:
    """A MetaImage; a field that is changed to None is left out."""
    fields = FIELDS | changes
    text = "".join(f"{key} = {value}\n" for key, value in fields.items() if value is not None)
    path.write_bytes(text.encode() + f"ElementDataFile = {last}\n".encode() + data)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("key", ["BinaryDataByteOrderMSB", "ElementByteOrderMSB"])
@pytest.mark.parametrize("compressed", [False, True])
def test_byte_orders(marker, tmp_path: Path, order: str, key: str, compressed: bool) -> None:
    data = marker.hu.astype(f"{order}i2").tobytes()
    changes = {
        "BinaryDataByteOrderMSB": None,
        key: str(order == ">"),
        "CompressedData": str(compressed),
    }
    packed = zlib.compress(data) if compressed else data
    size = {"CompressedDataSize": str(len(packed))} if compressed else {}
    scan = read(write(tmp_path / "a.mha", packed, **changes, **size))
    np.testing.assert_array_equal(scan.hu, marker.hu)
    np.testing.assert_allclose(scan.affine, marker.affine, atol=1e-9)
    assert scan.quality_flags == ()


TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


@pytest.mark.parametrize("name", TYPES)
def test_types_as_simpleitk_reads_them(tmp_path: Path, name: str) -> None:
    values = np.arange(60).reshape(3, 4, 5).astype(TYPES[name])
    path = write(tmp_path / "a.mha", values.tobytes(), ElementType=name, DimSize="5 4 3")
    with open_volume([DiskFile.of(path)]) as volume:
        np.testing.assert_array_equal(np.stack(list(volume.slabs), axis=2), values.T)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), values)


def test_long_of_eight_bytes(tmp_path: Path) -> None:
    values = np.arange(60).reshape(3, 4, 5)
    path = write(
        tmp_path / "a.mha", values.astype("<i8").tobytes(), ElementType="MET_LONG", DimSize="5 4 3"
    )
    with open_volume([DiskFile.of(path)]) as volume:
        np.testing.assert_array_equal(np.stack(list(volume.slabs), axis=2), values.T)


@pytest.mark.parametrize("order", ["RAS", "LPS", "PIR", "SAL", "IPL", "LAS", "AIR"])
def test_matrices_as_simpleitk_writes_them(marker, tmp_path: Path, order: str) -> None:
    """With its AnatomicalOrientation, which agrees and so is no flag."""
    nifti = write_nifti_volume(marker.hu, marker.affine, tmp_path / "a.nii", order=order)
    sitk.WriteImage(sitk.ReadImage(str(nifti)), str(tmp_path / "a.mha"))
    scan = read(tmp_path / "a.mha")
    np.testing.assert_array_equal(scan.hu, marker.hu)
    np.testing.assert_allclose(scan.affine, marker.affine, atol=1e-4)
    assert scan.quality_flags == ()


def test_an_oblique_matrix_is_read_as_simpleitk_reads_it(marker, tmp_path: Path) -> None:
    turn = nib.eulerangles.euler2mat(0.2, 0.1, -0.15)
    matrix = " ".join(repr(float(value)) for value in turn.T.ravel())
    path = write(tmp_path / "a.mha", marker.hu.tobytes(), TransformMatrix=matrix)
    image = sitk.ReadImage(str(path))
    with open_volume([DiskFile.of(path)]) as volume:
        for index in ((0, 0, 0), (31, 0, 0), (3, 20, 13)):
            there = np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
            np.testing.assert_allclose((volume.affine_ras @ [*index, 1])[:3], there, atol=1e-6)


@pytest.mark.parametrize("offset", ["Offset", "Position", "Origin"])
@pytest.mark.parametrize("matrix", ["TransformMatrix", "Orientation", "Rotation"])
@pytest.mark.parametrize("spacing", ["ElementSpacing", "ElementSize"])
def test_synonyms(marker, tmp_path: Path, offset: str, matrix: str, spacing: str) -> None:
    changes = dict.fromkeys(("Offset", "TransformMatrix", "ElementSpacing"))
    named = {
        offset: FIELDS["Offset"],
        matrix: FIELDS["TransformMatrix"],
        spacing: FIELDS["ElementSpacing"],
    }
    scan = read(write(tmp_path / "a.mha", marker.hu.tobytes(), **(changes | named)))
    np.testing.assert_array_equal(scan.hu, marker.hu)
    np.testing.assert_allclose(scan.affine, marker.affine, atol=1e-9)
    assert scan.quality_flags == ()


OPEN = {
    "no geometry": (
        {"TransformMatrix": None, "Offset": None, "ElementSpacing": None},
        {"orientation_unknown", "spacing_unknown"},
        (1.0, 1.0, 1.0),
    ),
    "no spacing": ({"ElementSpacing": None}, {"spacing_unknown"}, (1.0, 1.0, 1.0)),
    "no offset": ({"Offset": None}, {"position_unknown"}, (2.5, 0.9, 0.8)),
    "no transform": ({"TransformMatrix": None}, {"orientation_unknown"}, (2.5, 0.9, 0.8)),
    "no transform but letters": (
        {"TransformMatrix": None, "AnatomicalOrientation": "RAI"},
        set(),
        (2.5, 0.9, 0.8),
    ),
    "letters that ITK ignores": (
        {"TransformMatrix": None, "AnatomicalOrientation": "LPS"},
        {"orientation_unknown"},
        (2.5, 0.9, 0.8),
    ),
    "letters unknown": ({"AnatomicalOrientation": "???"}, set(), (2.5, 0.9, 0.8)),
    "letters agree": ({"AnatomicalOrientation": "RAS"}, set(), (2.5, 0.9, 0.8)),
    "letters against the matrix": (
        {"AnatomicalOrientation": "LAS"},
        {"affine_disagree"},
        (2.5, 0.9, 0.8),
    ),
    "size against spacing": ({"ElementSize": "0.8 0.9 5"}, {"affine_disagree"}, (2.5, 0.9, 0.8)),
    "size like spacing": ({"ElementSize": "0.8 0.9 2.5"}, set(), (2.5, 0.9, 0.8)),
    "two offsets": ({"Position": "1 2 3"}, {"affine_disagree"}, (2.5, 0.9, 0.8)),
    "two matrices": ({"Orientation": "1 0 0 0 1 0 0 0 1"}, {"affine_disagree"}, (2.5, 0.9, 0.8)),
    "a matrix that scales": (
        {"TransformMatrix": "2 0 0 0 2 0 0 0 2"},
        {"affine_disagree"},
        (5.0, 1.8, 1.6),
    ),
    "a centre of rotation": ({"CenterOfRotation": "1 2 3"}, set(), (2.5, 0.9, 0.8)),
}


@pytest.mark.parametrize("name", OPEN)
def test_what_a_header_leaves_open(marker, tmp_path: Path, name: str) -> None:
    changes, codes, spacing = OPEN[name]
    path = write(tmp_path / "a.mha", marker.hu.tobytes(), **changes)
    scan = read(path)
    assert {flag.code for flag in scan.quality_flags} == codes
    np.testing.assert_allclose(scan.spacing_mm, spacing)
    if name != "a matrix that scales":
        np.testing.assert_allclose(sitk.ReadImage(str(path)).GetSpacing()[::-1], spacing)


REFUSED = {
    "nan offset": ("bad_affine", {"Offset": "nan 0 0"}),
    "infinite spacing": ("bad_affine", {"ElementSpacing": "0.8 inf 2.5"}),
    "zero spacing": ("bad_affine", {"ElementSpacing": "0.8 0 2.5"}),
    "zero matrix": ("bad_affine", {"TransformMatrix": "0 0 0 0 0 0 0 0 0"}),
    "flat matrix": ("bad_affine", {"TransformMatrix": "1 0 0 1 0 0 0 0 1"}),
    "tilt": ("gantry_tilt", {"TransformMatrix": "1 0 0 0 1 0 0 0.3 0.954"}),
    "decimal comma": ("bad_header", {"ElementSpacing": "0,8 0,9 2,5"}),
    "large voxels": ("voxel_size", {"ElementSpacing": "80 90 250"}),
    "colours": ("not_scalar", {"ElementNumberOfChannels": "3"}),
    "array type": ("bad_header", {"ElementType": "MET_SHORT_ARRAY"}),
    "text": ("bad_header", {"BinaryData": "False"}),
    "no truth": ("bad_header", {"CompressedData": "perhaps"}),
    "axes": ("bad_header", {"NDims": "2"}),
    "time": (
        "not_3d",
        {
            "NDims": "4",
            "DimSize": "32 40 7 2",
            "TransformMatrix": None,
            "Offset": None,
            "ElementSpacing": None,
        },
    ),
    "header size": ("bad_header", {"HeaderSize": "12"}),
    "tube": ("not_mha", {"ObjectType": "Tube"}),
    "packed size": ("truncated_file", {"CompressedData": "True", "CompressedDataSize": "999999"}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_headers_that_are_refused(marker, tmp_path: Path, refused, name: str) -> None:
    code, changes = REFUSED[name]
    assert [*refused(write(tmp_path / "a.mha", marker.hu.tobytes(), **changes))] == [code]


def test_a_field_is_stated_once(marker, tmp_path: Path, refused) -> None:
    np.testing.assert_array_equal(
        read(write(tmp_path / "a.mha", marker.hu.tobytes(), dimsize="32 40 14")).hu, marker.hu
    )
    assert "bad_header" in refused(
        write(tmp_path / "b.mha", marker.hu.tobytes(), dimsize="40 32 14")
    )


@pytest.mark.parametrize("size", [1_000, 70_000, 900_000])
def test_long_lines_and_long_headers(marker, tmp_path: Path, size: int) -> None:
    np.testing.assert_array_equal(
        read(write(tmp_path / "a.mha", marker.hu.tobytes(), Name="x" * size)).hu, marker.hu
    )


def test_headers_without_bounds_are_refused(marker, tmp_path: Path, refused) -> None:
    assert "bad_header" in refused(
        write(tmp_path / "a.mha", marker.hu.tobytes(), Name="x" * (1 << 20))
    )
    for name in (
        "DimSize",
        "ElementSpacing",
        "TransformMatrix",
        "HeaderSize",
        "ElementType",
        "NDims",
    ):
        refused(write(tmp_path / "a.mha", marker.hu.tobytes(), **{name: "9" * 100_000}))


def test_voxels_at_the_end_of_the_file(marker, tmp_path: Path, quality_flags) -> None:
    scan = read(write(tmp_path / "a.mha", bytes(600) + marker.hu.tobytes(), HeaderSize="-1"))
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert quality_flags(scan)["length_unchecked"].value == 600


@pytest.mark.parametrize("key", ["ElementSpacing", "ElementSize"])
@pytest.mark.parametrize("sizes", ["-0.8 0.9 2.5", "0.8 0 2.5", "0.8 0.9 -2.5", "nan 0.9 2.5"])
def test_sizes_not_above_zero_are_refused_by_name(
    marker, tmp_path: Path, refused, key: str, sizes: str
) -> None:
    data = marker.hu.astype("<i2").tobytes()
    found = refused(write(tmp_path / "a.mha", data, **{"ElementSpacing": None, key: sizes}))
    assert key.lower() in found["bad_affine"].message.lower()
