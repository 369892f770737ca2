"""NRRD: every encoding, type, byte order and space, held against SimpleITK.

What a header leaves open is flagged.
"""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from tf_covid.scan import read
from tf_covid.scan.limits import DEFAULT
from tf_covid.scan.source import DiskFile
from tf_covid.scan.volumes import open_volume, read_volume

FIELDS = {
    "type": "int16",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "32 40 14",
    "space directions": "(0.8,0,0) (0,0.9,0) (0,0,-2.5)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "raw",
    "space origin": "(-120,-150,300)",
}


def write(path: Path, data: bytes, **changes: str | None) -> Path:
    """An NRRD file; a field that is changed to None is left out, an underscore stands for a
    space."""
    fields = FIELDS | {key.replace("_", " "): value for key, value in changes.items()}
    text = "".join(f"{key}: {value}\n" for key, value in fields.items() if value is not None)
    path.write_bytes(b"NRRD0005\n" + text.encode() + b"\n" + data)
    return path


def stored(path: Path) -> np.ndarray:
    """The numbers of the file, (i, j, k)."""
    with open_volume([DiskFile.of(path)], DEFAULT) as volume:
        return np.stack(list(volume.slabs), axis=2)


PACK = {
    "raw": bytes,
    "gzip": gzip.compress,
    "gz": gzip.compress,
    "bzip2": bz2.compress,
    "bz2": bz2.compress,
    "hex": lambda data: b"\n".join(
        data.hex().encode()[at : at + 79] for at in range(0, 2 * len(data), 79)
    ),
}


@pytest.mark.parametrize("encoding", PACK)
@pytest.mark.parametrize("endian", ["little", "big"])
def test_encodings_and_byte_orders(marker, tmp_path: Path, encoding: str, endian: str) -> None:
    data = marker.hu.astype("<i2" if endian == "little" else ">i2").tobytes()
    scan = read(write(tmp_path / "a.nrrd", PACK[encoding](data), encoding=encoding, endian=endian))
    np.testing.assert_array_equal(scan.hu, marker.hu)
    np.testing.assert_allclose(scan.affine, marker.affine, atol=1e-9)
    assert scan.quality_flags == ()


@pytest.mark.parametrize(
    ("encoding", "kind"), [("text", "short"), ("ascii", "double"), ("txt", "float")]
)
@pytest.mark.parametrize("separator", [" ", "\n", ", "])
def test_voxels_as_text(marker, tmp_path: Path, encoding: str, kind: str, separator: str) -> None:
    data = separator.join(map(str, marker.hu.ravel())).encode()
    scan = read(write(tmp_path / "a.nrrd", data, encoding=encoding, type=kind, endian=None))
    np.testing.assert_array_equal(scan.hu, marker.hu)


TYPES = {
    "int8": "i1",
    "signed char": "i1",
    "uchar": "u1",
    "unsigned char": "u1",
    "uint8_t": "u1",
    "short": "i2",
    "short int": "i2",
    "signed short int": "i2",
    "ushort": "u2",
    "unsigned short int": "u2",
    "int": "i4",
    "int32_t": "i4",
    "uint": "u4",
    "unsigned int": "u4",
    "longlong": "i8",
    "long long int": "i8",
    "int64_t": "i8",
    "ulonglong": "u8",
    "unsigned long long": "u8",
    "float": "f4",
    "double": "f8",
    "FLOAT": "f4",
}


@pytest.mark.parametrize("name", TYPES)
def test_types(tmp_path: Path, name: str) -> None:
    values = np.arange(60).reshape(3, 4, 5).astype(TYPES[name])
    path = write(tmp_path / "a.nrrd", values.tobytes(), type=name, sizes="5 4 3")
    assert stored(path).dtype == values.dtype
    np.testing.assert_array_equal(stored(path), values.T)


@pytest.mark.parametrize(
    "pixel", [sitk.sitkInt16, sitk.sitkUInt8, sitk.sitkInt32, sitk.sitkFloat32, sitk.sitkFloat64]
)
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", ["nrrd", "nhdr", "mha", "mhd"])
def test_what_simpleitk_writes(tmp_path: Path, pixel: int, compressed: bool, suffix: str) -> None:
    values = np.random.default_rng(1).integers(0, 200, (5, 6, 7))
    image = sitk.Cast(sitk.GetImageFromArray(values.astype(np.int32)), pixel)
    image.SetSpacing((0.7, 0.8, 3.0))
    image.SetOrigin((10.0, -20.0, 30.0))
    image.SetDirection((0, 0, 1, 1, 0, 0, 0, 1, 0))
    path = tmp_path / f"a.{suffix}"
    sitk.WriteImage(image, str(path), useCompression=compressed)
    np.testing.assert_array_equal(stored(path), values.T)
    with open_volume([DiskFile.of(path)]) as volume:
        assert volume.quality_flags == ()
        for index in ((0, 0, 0), (6, 0, 0), (0, 5, 0), (1, 2, 4)):
            there = np.array(image.TransformIndexToPhysicalPoint(index)) * [-1, -1, 1]
            np.testing.assert_allclose(volume.affine_ras @ [*index, 1], [*there, 1], atol=1e-6)


SPACES = {
    "LPS": (1, 1),
    "RAS": (-1, -1),
    "LAS": (1, -1),
    "left-posterior-superior": (1, 1),
    "lps": (1, 1),
    "right-anterior-superior": (-1, -1),
    "Left-Anterior-Superior": (1, -1),
}


@pytest.mark.parametrize("space", SPACES)
def test_spaces_by_every_name(marker, tmp_path: Path, space: str) -> None:
    x, y = SPACES[space]
    scan = read(
        write(
            tmp_path / "a.nrrd",
            marker.hu.tobytes(),
            space=space,
            space_directions=f"({0.8 * x},0,0) (0,{0.9 * y},0) (0,0,-2.5)",
            space_origin=f"({-120 * x},{-150 * y},300)",
        )
    )
    np.testing.assert_array_equal(scan.hu, marker.hu)
    np.testing.assert_allclose(scan.affine, marker.affine, atol=1e-9)


@pytest.mark.parametrize("space", ["scanner-xyz", "3D-right-handed", "3D-left-handed", None])
def test_spaces_that_name_no_patient_are_told(
    marker, tmp_path: Path, quality_flags, space: str | None
) -> None:
    path = write(
        tmp_path / "a.nrrd",
        marker.hu.tobytes(),
        space=space,
        **({} if space else {"space_dimension": "3"}),
    )
    scan = read(path)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert quality_flags(scan)["orientation_unknown"].level == "warning"


OPEN = {
    "no geometry": (
        {"space": None, "space_directions": None, "space_origin": None},
        {"orientation_unknown", "spacing_unknown"},
        (1.0, 1.0, 1.0),
    ),
    "spacings alone": (
        {"space": None, "space_directions": None, "space_origin": None, "spacings": "0.8 0.9 2.5"},
        {"orientation_unknown"},
        (2.5, 0.9, 0.8),
    ),
    "spacings unknown": (
        {"space": None, "space_directions": None, "space_origin": None, "spacings": "nan nan nan"},
        {"orientation_unknown", "spacing_unknown"},
        (1.0, 1.0, 1.0),
    ),
    "thickness is no spacing": (
        {"space": None, "space_directions": None, "thicknesses": "nan nan 3"},
        {"orientation_unknown", "spacing_unknown"},
        (1.0, 1.0, 1.0),
    ),
    "axis mins and maxs": (
        {"space": None, "space_directions": None, "axis_mins": "0 0 0", "axis_maxs": "32 40 28"},
        {"orientation_unknown", "spacing_unknown"},
        (2.0, 1.0, 1.0),
    ),
    "nodes": (
        {
            "space": None,
            "space_directions": None,
            "axis_mins": "0 0 0",
            "axis_maxs": "31 39 26",
            "centers": "node node node",
        },
        {"orientation_unknown", "spacing_unknown"},
        (2.0, 1.0, 1.0),
    ),
    "centimetres": (
        {"space_units": '"cm" "cm" "cm"', "space_directions": "(0.08,0,0) (0,0.09,0) (0,0,-0.25)"},
        {"units_converted"},
        (2.5, 0.9, 0.8),
    ),
    "microns, spelled twice": (
        {"space_units": '"µm" "um" "um"', "space_directions": "(800,0,0) (0,900,0) (0,0,-2500)"},
        {"units_converted"},
        (2.5, 0.9, 0.8),
    ),
    "two units": ({"space_units": '"mm" "mm" "um"'}, {"units_unknown"}, (2.5, 0.9, 0.8)),
    "microns alike": (
        {"space_units": '"um" "um" "um"', "space_directions": "(800,0,0) (0,900,0) (0,0,-2500)"},
        {"units_converted"},
        (2.5, 0.9, 0.8),
    ),
    "metres": (
        {
            "space_units": '"m" "m" "m"',
            "space_origin": "(0,0,0)",
            "space_directions": "(8e-4,0,0) (0,9e-4,0) (0,0,-2.5e-3)",
        },
        {"units_converted"},
        (2.5, 0.9, 0.8),
    ),
    "millimetres": (
        {"space_units": '"mm" "mm" "mm"', "measurement_frame": "(1,0,0) (0,1,0) (0,0,1)"},
        set(),
        (2.5, 0.9, 0.8),
    ),
    "no origin": ({"space_origin": None}, {"position_unknown"}, (2.5, 0.9, 0.8)),
    "an origin far away": ({"space_origin": "(1e9,0,0)"}, {"position_unlikely"}, (2.5, 0.9, 0.8)),
    "a misspelt field": (
        {"space_origin": None, "spaced_origin": "(1,2,3)"},
        {"position_unknown", "unknown_fields"},
        (2.5, 0.9, 0.8),
    ),
    "unknown unit": ({"space_units": '"px" "px" "px"'}, {"units_unknown"}, (2.5, 0.9, 0.8)),
}


@pytest.mark.parametrize("name", OPEN)
def test_what_a_header_leaves_open(marker, tmp_path: Path, name: str) -> None:
    changes, codes, spacing = OPEN[name]
    path = write(tmp_path / "a.nrrd", marker.hu.tobytes(), **changes)
    scan = read(path)
    assert {flag.code for flag in scan.quality_flags} == codes
    np.testing.assert_allclose(scan.spacing_mm, spacing)


REFUSED = {
    "nan origin": ("bad_affine", {"space_origin": "(nan,0,0)"}),
    "nan direction": ("bad_affine", {"space_directions": "(nan,0,0) (0,1,0) (0,0,1)"}),
    "zero spacing": ("bad_affine", {"space_directions": None, "spacings": "0.8 0 2.5"}),
    "two directions": ("bad_header", {"space_directions": "(1,0,0) (0,1,0)"}),
    "decimal comma": ("bad_header", {"space_directions": "(0,8,0,0,0,0) (0,1,0) (0,0,1)"}),
    "plane direction": ("bad_header", {"space_directions": "(1,0) (0,1) (1,1)"}),
    "spacings of words": ("bad_header", {"space_directions": None, "spacings": "0,8 0,9 2,5"}),
    "unknown space": ("bad_header", {"space": "outer"}),
    "no endian": ("bad_header", {"endian": None}),
    "unknown type": ("bad_header", {"type": "quad"}),
    "block": ("not_scalar", {"type": "block"}),
    "unknown encoding": ("undecodable", {"encoding": "zrl"}),
    "dimension": ("bad_header", {"dimension": "4"}),
    "no sizes": ("bad_header", {"sizes": None}),
    "negative sizes": ("bad_header", {"sizes": "-32 40 14"}),
    "colours": ("not_scalar", {"kinds": "RGB-color domain domain"}),
    "times": ("not_3d", {"kinds": "domain domain time"}),
    "an axis out of space": ("not_3d", {"space_directions": "(1,0,0) (0,1,0) none"}),
    "large voxels": ("voxel_size", {"space_directions": "(8,0,0) (0,9,0) (0,0,25)"}),
    "small voxels": ("voxel_size", {"space_directions": "(0.08,0,0) (0,0.09,0) (0,0,0.25)"}),
    "line skip": ("bad_header", {"line_skip": "99999999"}),
    "byte skip": ("bad_header", {"byte_skip": "-2"}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_headers_that_are_refused(marker, tmp_path: Path, refused, name: str) -> None:
    code, changes = REFUSED[name]
    assert [*refused(write(tmp_path / "a.nrrd", marker.hu.tobytes(), **changes))] == [code]


@pytest.mark.parametrize(
    ("sizes", "directions"),
    [
        ("32 40 14 1", "(0.8,0,0) (0,0.9,0) (0,0,-2.5) none"),
        ("1 32 40 14", "none (0.8,0,0) (0,0.9,0) (0,0,-2.5)"),
        ("32 1 40 14", "(0.8,0,0) none (0,0.9,0) (0,0,-2.5)"),
    ],
)
def test_axes_of_one_voxel(marker, tmp_path: Path, sizes: str, directions: str) -> None:
    path = tmp_path / "a.nrrd"
    write(
        path,
        marker.hu.tobytes(),
        dimension="4",
        sizes=sizes,
        space_directions=directions,
        kinds=None,
    )
    scan = read(path)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    np.testing.assert_allclose(scan.affine, marker.affine, atol=1e-9)


def test_lines_and_bytes_are_passed_over(marker, tmp_path: Path, quality_flags) -> None:
    data = marker.hu.tobytes()
    for encoding, packed in (("raw", b"12345" + data), ("gzip", gzip.compress(b"12345" + data))):
        path = write(
            tmp_path / "a.nrrd",
            b"one\ntwo\n" + packed,
            line_skip="2",
            byte_skip="5",
            encoding=encoding,
        )
        np.testing.assert_array_equal(read(path).hu, marker.hu)
    scan = read(write(tmp_path / "b.nrrd", bytes(777) + data, byte_skip="-1"))
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert quality_flags(scan)["length_unchecked"].value == 777
    assert read(write(tmp_path / "c.nrrd", data, byte_skip="-1")).quality_flags == ()


@pytest.mark.parametrize("size", [1_000, 70_000, 900_000])
def test_long_lines_and_long_headers(marker, tmp_path: Path, size: int) -> None:
    """A line of 1,000 letters ended SimpleITK's process."""
    for name in ("content", "labels", "#"):
        path = write(tmp_path / "a.nrrd", marker.hu.tobytes(), **{name: "x" * size})
        np.testing.assert_array_equal(read(path).hu, marker.hu)


def test_headers_without_bounds_are_refused(marker, tmp_path: Path, refused) -> None:
    assert "bad_header" in refused(
        write(tmp_path / "a.nrrd", marker.hu.tobytes(), content="x" * (1 << 20))
    )
    for name in (
        "sizes",
        "type",
        "kinds",
        "space_directions",
        "encoding",
        "endian",
        "space",
        "space_origin",
    ):
        refused(write(tmp_path / "a.nrrd", marker.hu.tobytes(), **{name: "9" * 100_000}))


def test_windows_line_ends_comments_and_pairs(marker, tmp_path: Path) -> None:
    text = "NRRD0004\n# a comment: with a colon\nkey:=a value\n" + "".join(
        f"{k}: {v}\n" for k, v in FIELDS.items()
    )
    (tmp_path / "a.nrrd").write_bytes(
        text.replace("\n", "\r\n").encode() + b"\r\n" + marker.hu.tobytes()
    )
    np.testing.assert_array_equal(read(tmp_path / "a.nrrd").hu, marker.hu)


def test_a_field_is_stated_once(marker, tmp_path: Path, refused) -> None:
    same = write(tmp_path / "a.nrrd", marker.hu.tobytes(), Sizes="32 40 14")
    np.testing.assert_array_equal(read(same).hu, marker.hu)
    assert "bad_header" in refused(
        write(tmp_path / "b.nrrd", marker.hu.tobytes(), Sizes="40 32 14")
    )


def test_read_volume_says_why_it_was_chosen(marker, tmp_path: Path) -> None:
    reading = read_volume([DiskFile.of(write(tmp_path / "a.nrrd", marker.hu.tobytes()))])
    assert reading.chosen_because == "The only volume of the file."
