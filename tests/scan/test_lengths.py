"""Streams that end early, are damaged or hold more than their header says.

NIfTI, NRRD and MetaImage.
"""

from __future__ import annotations

import bz2
import gzip
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tf_covid.errors import ScanRefused
from tf_covid.scan import read
from tf_covid.scan.payload import Unpacked
from tf_covid.scan.volume import RawVolume, load_volume

RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def nii(hu: np.ndarray, affine: np.ndarray, sizes: tuple[int, ...] | None = None) -> bytes:
    """A NIfTI file of the marker, whose header states other sizes if asked to."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.dtype(np.int16))
    header.set_data_shape(sizes or hu.shape[::-1])
    header.set_sform(RAS @ affine[:, [2, 1, 0, 3]], code=1)
    header["pixdim"][1:4] = np.linalg.norm(affine[:3, [2, 1, 0]], axis=0)
    header.set_xyzt_units("mm")
    header["magic"], header["vox_offset"] = b"n+1", 352
    return header.binaryblock + bytes(4) + hu.tobytes()


def nrrd(
    hu: np.ndarray,
    encoding: str,
    pack: Callable[[bytes], bytes],
    sizes: tuple[int, ...] | None = None,
) -> bytes:
    size = " ".join(map(str, sizes or hu.shape[::-1]))
    text = (
        f"NRRD0004\ntype: int16\ndimension: 3\nspace: LPS\nsizes: {size}\nendian: little\nencoding:"
        f" {encoding}\nspace directions: (0.8,0,0) (0,0.9,0) (0,0,-2.5)\nspace origin:"
        " (-120,-150,300)\n\n"
    )
    return text.encode() + pack(hu.tobytes())


def mha(
    hu: np.ndarray, packed: bool, sizes: tuple[int, ...] | None = None, size: int | None = None
) -> bytes:
    data = zlib.compress(hu.tobytes()) if packed else hu.tobytes()
    text = (
        "ObjectType = Image\nNDims = 3\nDimSize ="
        f" {' '.join(map(str, sizes or hu.shape[::-1]))}\nElementType = MET_SHORT\nElementSpacing ="
        " 0.8 0.9 2.5\nTransformMatrix = 1 0 0 0 1 0 0 0 -1\nOffset = -120 -150"
        f" 300\nCompressedData = {packed}\n"
    )
    text += f"CompressedDataSize = {len(data) if size is None else size}\n" if packed else ""
    return text.encode() + b"ElementDataFile = LOCAL\n" + data


#: Name of a file → its bytes, of voxels and the sizes that the header is to state.
MAKERS: dict[str, Callable[..., bytes]] = {
    "raw.nii": lambda hu, affine, sizes=None: nii(hu, affine, sizes),
    "gzip.nii.gz": lambda hu, affine, sizes=None: gzip.compress(nii(hu, affine, sizes)),
    "raw.nrrd": lambda hu, affine, sizes=None: nrrd(hu, "raw", bytes, sizes),
    "gzip.nrrd": lambda hu, affine, sizes=None: nrrd(hu, "gzip", gzip.compress, sizes),
    "bzip2.nrrd": lambda hu, affine, sizes=None: nrrd(hu, "bzip2", bz2.compress, sizes),
    "hex.nrrd": lambda hu, affine, sizes=None: nrrd(
        hu, "hex", lambda data: data.hex().encode(), sizes
    ),
    "raw.mha": lambda hu, affine, sizes=None: mha(hu, False, sizes),
    "zlib.mha": lambda hu, affine, sizes=None: mha(hu, True, sizes),
    "sizeless.mha": lambda hu, affine, sizes=None: mha(hu, True, sizes, size=0),
}
PACKED = [name for name in MAKERS if not name.startswith(("raw", "hex"))]
RAW = [name for name in MAKERS if name.startswith("raw")]


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", MAKERS)
def test_whole_files_are_read_without_a_flag(marker, tmp_path: Path, name: str) -> None:
    scan = read(put(tmp_path / name, MAKERS[name](marker.hu, marker.affine)))
    np.testing.assert_array_equal(scan.hu, marker.hu)
    np.testing.assert_allclose(scan.affine, marker.affine, atol=1e-4)
    assert scan.quality_flags == ()


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("factor", [0.5, 2])
def test_sizes_in_the_header_are_held_against_the_bytes(
    marker, tmp_path: Path, refused, name, axis, factor
) -> None:
    sizes = list(marker.hu.shape[::-1])
    sizes[axis] = int(sizes[axis] * factor)
    data = MAKERS[name](marker.hu, marker.affine, tuple(sizes))
    assert [*refused(put(tmp_path / name, data))] == [
        "length_mismatch" if factor < 1 else "truncated_file"
    ]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("share", [0.999, 0.9, 0.5])
def test_cut_files_are_refused(marker, tmp_path: Path, refused, name: str, share: float) -> None:
    data = MAKERS[name](marker.hu, marker.affine)
    assert [*refused(put(tmp_path / name, data[: int(len(data) * share)]))] == ["truncated_file"]


@pytest.mark.parametrize("name", MAKERS)
def test_one_byte_less_is_refused(marker, tmp_path: Path, refused, name: str) -> None:
    """Of a compressed stream that is the last byte of its checksum."""
    data = MAKERS[name](marker.hu, marker.affine)
    assert [*refused(put(tmp_path / name, data[:-1]))] == ["truncated_file"]


@pytest.mark.parametrize("name", PACKED)
def test_one_flipped_byte_is_refused(marker, tmp_path: Path, name: str) -> None:
    """Anywhere in the stream: in its header, its blocks, its checksum and its length."""
    data = MAKERS[name](marker.hu, marker.affine)
    start = data.find(
        {"gzi": b"\x1f\x8b", "bzi": b"BZh", "zli": b"\x78\x9c", "siz": b"\x78\x9c"}[name[:3]]
    )
    read_as_before = 0
    for at in [
        *np.linspace(start, len(data) - 9, 40).astype(int),
        *range(len(data) - 8, len(data)),
    ]:
        flipped = bytearray(data)
        flipped[at] ^= 0x10
        try:
            scan = read(put(tmp_path / name, bytes(flipped)))
        except ScanRefused as error:
            codes = {flag.code for flag in error.quality_flags}
            assert codes & {"damaged_file", "truncated_file", "not_nifti", "length_mismatch"}, (
                at,
                codes,
            )
        # the time and the flags in the header of gzip have no checksum, and say nothing of the
        # voxels
        else:
            np.testing.assert_array_equal(scan.hu, marker.hu)
            read_as_before += 1
    assert read_as_before <= (2 if name.startswith("gzip") else 0)


@pytest.mark.parametrize("name", PACKED)
def test_the_words_of_a_wrong_checksum_are_true(marker, tmp_path: Path, refused, name: str) -> None:
    data = bytearray(MAKERS[name](marker.hu, marker.affine))
    data[-5 if name.startswith("gzip") else -2] ^= 1
    found = refused(put(tmp_path / name, bytes(data)))
    if name.startswith("bzip2"):
        assert {*found} <= {"damaged_file", "truncated_file"}
    else:
        assert "its checksum is wrong" in found["damaged_file"].message


@pytest.mark.parametrize("name", MAKERS)
def test_few_bytes_behind_the_voxels_are_told(
    marker, tmp_path: Path, quality_flags, name: str
) -> None:
    scan = read(put(tmp_path / name, MAKERS[name](marker.hu, marker.affine) + b"\n" * 100))
    np.testing.assert_array_equal(scan.hu, marker.hu)
    flags = quality_flags(scan)
    if name in PACKED or name in RAW:
        assert (flags["trailing_bytes"].level, flags["trailing_bytes"].value) == ("warning", 100)


@pytest.mark.parametrize("name", RAW)
def test_zeros_behind_raw_voxels_are_padding(
    marker, tmp_path: Path, quality_flags, name: str
) -> None:
    scan = read(put(tmp_path / name, MAKERS[name](marker.hu, marker.affine) + bytes(100)))
    flags = quality_flags(scan)
    assert "trailing_bytes" not in flags
    assert (flags["padding_bytes"].level, flags["padding_bytes"].value) == ("info", 100)


@pytest.mark.parametrize("name", RAW)
@pytest.mark.parametrize("put_in", [b"\0\0", b"\x07", b"ab" * 20], ids=["zeros", "odd", "many"])
def test_bytes_put_into_raw_voxels_are_told(
    marker, tmp_path: Path, quality_flags, name: str, put_in: bytes
) -> None:
    data = MAKERS[name](marker.hu, marker.affine)
    middle = len(data) - marker.hu.nbytes // 2
    flags = quality_flags(read(put(tmp_path / name, data[:middle] + put_in + data[middle:])))
    assert flags["trailing_bytes"].level == "warning"
    assert "shifted" in flags["trailing_bytes"].message


@pytest.mark.parametrize("name", RAW)
def test_many_bytes_behind_raw_voxels_are_refused(
    marker, tmp_path: Path, refused, name: str
) -> None:
    data = MAKERS[name](marker.hu, marker.affine) + bytes(512)
    assert [*refused(put(tmp_path / name, data))] == ["length_mismatch"]


@pytest.mark.parametrize("count", [1, 100, 511, 512, 5000])
def test_bytes_behind_the_voxels_inside_a_gzip_stream(marker, tmp_path: Path, count: int) -> None:
    path = put(tmp_path / "a.nii.gz", gzip.compress(nii(marker.hu, marker.affine) + bytes(count)))
    if count >= 512:
        with pytest.raises(ScanRefused, match="length_mismatch"):
            read(path)
    else:
        assert [(flag.code, flag.value) for flag in read(path).quality_flags] == [
            ("padding_bytes", count)
        ]


@pytest.mark.parametrize(("pack", "name"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2")])
def test_several_streams_in_a_row_are_one(marker, tmp_path: Path, refused, pack, name: str) -> None:
    def members(data: bytes) -> bytes:
        return b"".join(pack(data[at : at + 5000]) for at in range(0, len(data), 5000))

    data = nrrd(marker.hu, name, members)
    np.testing.assert_array_equal(read(put(tmp_path / "a.nrrd", data)).hu, marker.hu)
    assert [*refused(put(tmp_path / "b.nrrd", data[:-3]))] == ["truncated_file"]
    if name == "gzip":
        whole = members(nii(marker.hu, marker.affine))
        np.testing.assert_array_equal(read(put(tmp_path / "a.nii.gz", whole)).hu, marker.hu)
        damaged = bytearray(whole)
        damaged[len(pack(nii(marker.hu, marker.affine)[:5000])) - 6] ^= (
            1  # the checksum of the first one
        )
        assert [*refused(put(tmp_path / "b.nii.gz", bytes(damaged)))] == ["damaged_file"]


@pytest.mark.parametrize(("change", "code"), [(-10, "truncated_file"), (10, "truncated_file")])
def test_compressed_data_size_is_believed_and_checked(
    marker, tmp_path: Path, refused, change: int, code: str
) -> None:
    size = len(zlib.compress(marker.hu.tobytes())) + change
    assert [*refused(put(tmp_path / "a.mha", mha(marker.hu, True, size=size)))] == [code]


def test_text_with_one_number_more_or_less(marker, tmp_path: Path, refused) -> None:
    words = " ".join(map(str, marker.hu.ravel()))
    for text, code in (
        (words + " 7", "length_mismatch"),
        (words[: words.rindex(" ")], "truncated_file"),
    ):
        assert [
            *refused(
                put(tmp_path / "a.nrrd", nrrd(marker.hu, "text", lambda _, t=text: t.encode()))
            )
        ] == [code]
    for text in (
        words.replace(" ", " x", 1),
        "1" * 100_000,
        words.replace(" ", " 1_0 ", 1),
        words + " 99999",
    ):
        data = nrrd(marker.hu, "text", lambda _, t=text: t.encode())
        assert {*refused(put(tmp_path / "b.nrrd", data))} <= {"bad_header", "truncated_file"}
    odd = nrrd(marker.hu, "hex", lambda data: b"zz" + data.hex().encode()[2:])
    assert [*refused(put(tmp_path / "c.nrrd", odd))] == ["bad_header"]


def test_a_volume_of_which_a_slice_was_not_written_is_refused() -> None:
    slabs = [np.zeros((4, 5), np.int16)] * 2
    with pytest.raises(ScanRefused, match="2 of 3 slices"):
        load_volume(RawVolume((4, 5, 3), np.eye(4), iter(slabs)), "")


def test_an_array_that_is_not_filled_holds_zeros() -> None:
    from tf_covid.scan.grid import allocate, orient

    for _ in range(3):
        volume, view = allocate(orient(np.eye(4), (30, 40, 50))[0], np.int16)
        assert not volume.any()
        view[...] = 77


@pytest.mark.parametrize("coding", ["gzip", "zlib", "bzip2"])
def test_a_bomb_is_unpacked_as_far_as_the_header_goes(tmp_path: Path, coding: str) -> None:
    """256 MB of zeros in some kB: the sizes ask for 2 kB of them."""
    pack = {"gzip": gzip.compress, "zlib": zlib.compress, "bzip2": bz2.compress}[coding]
    path = put(tmp_path / "a", pack(bytes(1 << 26)))
    with path.open("rb") as raw:
        stream = Unpacked(raw, coding, path.stat().st_size)  # type: ignore[arg-type]
        assert len(stream.read(2000)) == 2000
        assert len(stream.finish(100)) == 101


PROBE = """
import resource, sys
from pathlib import Path
from tf_covid.errors import ScanRefused
from tf_covid.scan.source import DiskFile
from tf_covid.scan.volumes import read_volume
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_volume([DiskFile.of(Path(sys.argv[1]))])
except ScanRefused as error:
    print(error.quality_flags[0].code, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


HEAD = "NRRD0004\ntype: {}\ndimension: 3\nsizes: {}\nendian: little\nencoding: {}\n\n"
MHA = (
    b"ObjectType = Image\nNDims = 3\nDimSize = 8 8 8\nElementType = MET_SHORT\nCompressedData ="
    b" True\n"
)
ZEROS = bytes(1 << 27)
BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "planes.nrrd": (
        "too_large",
        lambda: HEAD.format("double", "30000 30000 2", "bz2").encode() + bz2.compress(ZEROS),
    ),
    "wide.nrrd": (
        "truncated_file",
        lambda: HEAD.format("double", "5000 5000 80", "bz2").encode() + bz2.compress(ZEROS),
    ),
    "bzip2.nrrd": (
        "length_mismatch",
        lambda: HEAD.format("short", "8 8 8", "bz2").encode() + bz2.compress(ZEROS),
    ),
    "gzip.nrrd": (
        "length_mismatch",
        lambda: HEAD.format("short", "8 8 8", "gzip").encode() + gzip.compress(ZEROS),
    ),
    "zlib.mha": (
        "length_mismatch",
        lambda: MHA + b"ElementDataFile = LOCAL\n" + zlib.compress(ZEROS),
    ),
    "gzip.nii.gz": (
        "length_mismatch",
        lambda: gzip.compress(nii(np.zeros((8, 8, 8), np.int16), np.eye(4)) + ZEROS),
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_memory_stays_bounded(tmp_path: Path, name: str) -> None:
    code, make = BOMBS[name]
    command = [sys.executable, "-c", PROBE, str(put(tmp_path / name, make()))]
    found, megabytes = subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.split()
    assert found == code
    assert int(megabytes) < 1000
