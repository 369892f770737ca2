"""Headers whose voxels lie in another file: .hdr and .img, .mhd and .raw, .nhdr and its data.

And false names.
"""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from tf_covid.errors import ScanRefused
from tf_covid.scan.source import DiskFile
from tf_covid.scan.volumes import (
    VOLUME_NAMES,
    data_file_of,
    is_volume,
    kind_of,
    open_volume,
    read_volume,
)

RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture
def image(marker) -> sitk.Image:
    """The marker, from feet to head."""
    made = sitk.GetImageFromArray(marker.hu[::-1])
    made.SetSpacing((0.8, 0.9, 2.5))
    return made


def sources(path: Path) -> list[DiskFile]:
    """A header and the data file that it names."""
    name = data_file_of(DiskFile.of(path))
    assert name is not None
    return [DiskFile.of(path), DiskFile.of(path.with_name(name))]


def codes(files) -> list[str]:
    with pytest.raises(ScanRefused) as caught:
        read_volume(files)
    return [flag.code for flag in caught.value.quality_flags]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", ["mhd", "nhdr", "hdr"])
def test_pairs_as_simpleitk_writes_them(
    image, marker, tmp_path: Path, suffix: str, compressed: bool
) -> None:
    path = tmp_path / f"a.{suffix}"
    sitk.WriteImage(image, str(path), useCompression=compressed and suffix != "hdr")
    for given in (sources(path), [DiskFile.of(path)]):
        reading = read_volume(given)
        np.testing.assert_array_equal(reading.hu, marker.hu)
        assert reading.quality_flags == ()


@pytest.mark.parametrize("names", [("a.hdr", "a.img"), ("A.HDR", "A.IMG")])
def test_a_nifti_pair_of_nibabel(marker, tmp_path: Path, names: tuple[str, str]) -> None:
    nib.Nifti1Pair(marker.hu, RAS @ marker.affine).to_filename(tmp_path / "made.img")
    for made, name in zip(("made.hdr", "made.img"), names, strict=True):
        shutil.move(tmp_path / made, tmp_path / name)
    assert data_file_of(DiskFile.of(tmp_path / names[0])) == names[1]
    reading = read_volume(sources(tmp_path / names[0]))
    np.testing.assert_array_equal(reading.hu, marker.hu)
    np.testing.assert_allclose(reading.affine, marker.affine, atol=1e-4)


@pytest.mark.parametrize("endian", ["<", ">"])
def test_analyze_states_no_orientation(marker, tmp_path: Path, endian: str) -> None:
    header = nib.AnalyzeHeader(endianness=endian)
    header.set_data_dtype(np.dtype(np.int16))
    header.set_data_shape(marker.hu.shape[::-1])
    header["pixdim"][1:4] = (0.8, 0.9, 2.5)
    (tmp_path / "a.hdr").write_bytes(header.binaryblock)
    (tmp_path / "a.img").write_bytes(marker.hu[::-1, ::-1].astype(f"{endian}i2").tobytes())
    reading = read_volume(sources(tmp_path / "a.hdr"))
    assert [(flag.code, flag.level) for flag in reading.quality_flags] == [
        ("orientation_unknown", "warning")
    ]
    np.testing.assert_array_equal(
        reading.hu, marker.hu
    )  # left, front, up: as nibabel and SPM take it
    np.testing.assert_allclose(
        np.linalg.norm(reading.affine[:3, :3], axis=0), (2.5, 0.9, 0.8), rtol=1e-6
    )
    block = bytearray(header.binaryblock)
    block[112:116] = np.array(
        2.0, f"{endian}f4"
    ).tobytes()  # funused1, where SPM keeps a scale factor
    (tmp_path / "a.hdr").write_bytes(block)
    found = [flag.code for flag in read_volume(sources(tmp_path / "a.hdr")).quality_flags]
    assert found == ["orientation_unknown", "scaling_unclear"]


@pytest.mark.parametrize(
    ("suffix", "data"), [("mhd", "a.raw"), ("nhdr", "a.raw"), ("hdr", "a.img")]
)
def test_the_length_of_a_data_file_is_checked(
    image, tmp_path: Path, suffix: str, data: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    sitk.WriteImage(image, str(path))
    whole = (tmp_path / data).read_bytes()
    for changed, code in (
        (whole[:-1], "truncated_file"),
        (whole[: len(whole) // 2], "truncated_file"),
        (whole + bytes(600), "length_mismatch"),
        (b"", "empty_file" if suffix == "hdr" else "truncated_file"),
    ):
        (tmp_path / data).write_bytes(changed)
        assert codes(sources(path)) == [code]
    (tmp_path / data).unlink()
    assert codes([DiskFile.of(path)]) == ["detached_data"]


@pytest.mark.parametrize(
    ("suffix", "data"), [("mhd", "a.raw"), ("nhdr", "a.raw"), ("hdr", "a.img")]
)
def test_a_link_is_no_data_file(image, tmp_path: Path, suffix: str, data: str) -> None:
    path = tmp_path / f"a.{suffix}"
    sitk.WriteImage(image, str(path))
    shutil.move(tmp_path / data, tmp_path / "elsewhere")
    (tmp_path / data).symlink_to(tmp_path / "elsewhere")
    assert codes([DiskFile.of(path)]) == ["detached_data"]
    assert codes(sources(path)) == ["detached_data"]


NAMES = [
    "../secret",
    "/etc/passwd",
    "sub/a.raw",
    "sub\\a.raw",
    "LIST",
    "LIST 2",
    "a%03d.raw 1 9 1",
    "C:a.raw",
    ".hidden",
    "..",
    "file:///a.raw",
    "./../a.raw",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("suffix", ["mhd", "nhdr"])
def test_data_is_one_file_beside_the_header(image, tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / "in" / f"a.{suffix}"
    path.parent.mkdir()
    sitk.WriteImage(image, str(path))
    (tmp_path / "secret").write_bytes((tmp_path / "in/a.raw").read_bytes())
    path.write_bytes(path.read_bytes().replace(b"a.raw", name.encode()))
    with pytest.raises(ScanRefused) as caught:
        data_file_of(DiskFile.of(path))
    assert [flag.code for flag in caught.value.quality_flags] == ["detached_data"]
    assert name not in str(caught.value) or name in ("..", "LIST")
    assert codes([DiskFile.of(path)]) == ["detached_data"]


def test_another_file_than_the_named_one_is_not_taken(image, tmp_path: Path) -> None:
    sitk.WriteImage(image, str(tmp_path / "a.mhd"))
    (tmp_path / "b.raw").write_bytes((tmp_path / "a.raw").read_bytes())
    (tmp_path / "a.raw").unlink()
    assert codes([DiskFile.of(tmp_path / "a.mhd"), DiskFile.of(tmp_path / "b.raw")]) == [
        "detached_data"
    ]


def test_a_header_with_its_own_voxels(image, marker, tmp_path: Path) -> None:
    for made, name in (("a.mha", "b.mhd"), ("a.nrrd", "b.nhdr"), ("a.nii", "b.hdr")):
        sitk.WriteImage(image, str(tmp_path / made))
        shutil.move(tmp_path / made, tmp_path / name)
        assert data_file_of(DiskFile.of(tmp_path / name)) is None
        np.testing.assert_array_equal(read_volume([DiskFile.of(tmp_path / name)]).hu, marker.hu)


def test_names() -> None:
    assert {".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".nhdr", ".hdr"} == set(VOLUME_NAMES)
    assert is_volume("in/A.NII.GZ")
    assert is_volume("a.mhd")
    assert not any(map(is_volume, ("a.img", "a.raw", "a.zraw", "a.dcm", "nii")))


@pytest.mark.parametrize(
    ("suffix", "kind"), [("nii", "NIfTI"), ("nrrd", "NRRD"), ("mha", "MetaImage")]
)
def test_a_false_name_is_told(image, marker, tmp_path: Path, suffix: str, kind: str) -> None:
    sitk.WriteImage(image, str(tmp_path / f"a.{suffix}"))
    head = (tmp_path / f"a.{suffix}").read_bytes()
    assert kind_of(head[:4096]) == kind_of(gzip.compress(head)[:4096]) == kind
    for other in ("nii", "nrrd", "mha"):
        if other != suffix:
            path = Path(shutil.copy(tmp_path / f"a.{suffix}", tmp_path / f"b.{other}"))
            with pytest.raises(ScanRefused, match=f"The file is {kind}, though its name ends like"):
                read_volume([DiskFile.of(path)])
    nameless = Path(shutil.copy(tmp_path / f"a.{suffix}", tmp_path / "scan"))
    np.testing.assert_array_equal(read_volume([DiskFile.of(nameless)]).hu, marker.hu)


def test_what_is_no_volume(tmp_path: Path) -> None:
    for data in (b"", b"x" * 1000, b"\x1f\x8b" + bytes(50), b"ENVI\nsamples = 5\n", bytes(348)):
        assert kind_of(data, "a.hdr") is None
        (tmp_path / "scan").write_bytes(data or b"x")
        assert codes([DiskFile.of(tmp_path / "scan")]) == ["not_a_volume"]
        (tmp_path / "a.hdr").write_bytes(data or b"x")
        with pytest.raises(ScanRefused):
            data_file_of(DiskFile.of(tmp_path / "a.hdr"))


def test_masks_of_pairs_are_opened_too(image, tmp_path: Path) -> None:
    sitk.WriteImage(image > -500, str(tmp_path / "m.mhd"))
    with open_volume([DiskFile.of(tmp_path / "m.mhd")]) as stored:
        assert {value for slab in stored.slabs for value in np.unique(slab)} == {0, 1}
