"""Broken and hostile NIfTI, NRRD and MHA files, and random damage to files of every kind."""

from __future__ import annotations

import gzip
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tf_covid.errors import ScanRefused
from tf_covid.scan import find_cases, read

MAKERS: dict[str, tuple[str, Callable[[Path, Path], Path]]] = {}


def case(code: str) -> Callable[[Callable[[Path, Path], Path]], Callable[[Path, Path], Path]]:
    """The test input that the function makes in a folder, with the DICOM series at hand, is refused
    with `code`."""

    def register(maker: Callable[[Path, Path], Path]) -> Callable[[Path, Path], Path]:
        MAKERS[maker.__name__.strip("_")] = (code, maker)
        return maker

    return register


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def nifti(shape=(8, 8, 8), dtype=np.int16, size: int | None = None, **fields: object) -> bytes:
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header["dim"] = [len(shape), *shape, *[1] * (7 - len(shape))]
    header["pixdim"] = 1
    header["sform_code"], header["magic"], header["vox_offset"] = 1, b"n+1", 352
    header["srow_x"], header["srow_y"], header["srow_z"] = [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]
    for key, value in fields.items():
        header[key] = value
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize if size is None else size
    return header.binaryblock + bytes(4 + count)


@case("empty_file")
def _empty_nifti(tmp: Path, series: Path) -> Path:
    return put(tmp / "a.nii.gz", b"")


@case("empty_file")
def _empty_nrrd(tmp: Path, series: Path) -> Path:
    return put(tmp / "a.nrrd", b"")


@case("truncated_file")
def _short_nifti(tmp: Path, series: Path) -> Path:
    return put(tmp / "a.nii", nifti()[:200])


@case("truncated_file")
def _cut_nifti(tmp: Path, series: Path) -> Path:
    return put(tmp / "a.nii", nifti()[:-10])


@case("truncated_file")
def _cut_gzip(tmp: Path, series: Path) -> Path:
    data = nifti((32, 32, 32))[:352] + np.random.default_rng(0).bytes(2 * 32**3)
    return put(tmp / "a.nii.gz", gzip.compress(data)[:-20000])


@case("damaged_file")
def _damaged_gzip(tmp: Path, series: Path) -> Path:
    data = bytearray(
        gzip.compress(nifti((32, 32, 32))[:352] + np.random.default_rng(0).bytes(2 * 32**3))
    )
    data[20000:30000] = bytes(10000)
    return put(tmp / "a.nii.gz", bytes(data))


@case("not_nifti")
def _no_nifti(tmp: Path, series: Path) -> Path:
    return put(tmp / "a.nii", b"x" * 1000)


@case("too_large")
def _nifti_bomb(tmp: Path, series: Path) -> Path:
    return put(tmp / "a.nii.gz", gzip.compress(nifti((32767, 32767, 32767), size=100)))


@case("truncated_file")
def _nifti_that_declares_more_than_gzip_can_pack(tmp: Path, series: Path) -> Path:
    return put(tmp / "a.nii.gz", gzip.compress(nifti((1000, 1000, 1000), size=100)))


@case("bad_header")
def _negative_nifti(tmp: Path, series: Path) -> Path:
    return put(tmp / "a.nii", nifti((8, 8, 8), dim=[3, 8, -8, 8, 1, 1, 1, 1]))


@case("bad_header")
def _nifti_with_voxels_far_away(tmp: Path, series: Path) -> Path:
    return put(tmp / "a.nii", nifti(vox_offset=1e30))


@case("bad_header")
def _nifti_of_an_unknown_type(tmp: Path, series: Path) -> Path:
    return put(tmp / "a.nii", nifti(datatype=9999))


@case("bad_affine")
def _nifti_with_a_singular_affine(tmp: Path, series: Path) -> Path:
    return put(tmp / "a.nii", nifti(srow_z=[0, 0, 0, 0]))


@case("bad_affine")
def _nifti_with_parallel_axes(tmp: Path, series: Path) -> Path:
    return put(tmp / "a.nii", nifti(srow_x=[1, 1, 0, 0], srow_y=[0, 0, 0, 0], srow_z=[0, 0, 1, 0]))


@case("bad_affine")
def _nifti_with_nan_in_its_affine(tmp: Path, series: Path) -> Path:
    return put(tmp / "a.nii", nifti(srow_z=[0, 0, np.nan, 0]))


@case("gantry_tilt")
def _sheared_nifti(tmp: Path, series: Path) -> Path:
    return put(tmp / "a.nii", nifti(srow_y=[0, 1, 0.3, 0]))


@case("not_3d")
def _time_series(tmp: Path, series: Path) -> Path:
    return put(tmp / "a.nii", nifti((8, 8, 8, 3)))


@case("single_slice")
def _flat_nifti(tmp: Path, series: Path) -> Path:
    return put(tmp / "a.nii", nifti((8, 8)))


@case("single_slice")
def _nifti_of_one_slice(tmp: Path, series: Path) -> Path:
    return put(tmp / "a.nii", nifti((8, 8, 1)))


@case("not_scalar")
def _colour_nifti(tmp: Path, series: Path) -> Path:
    return put(tmp / "a.nii", nifti(dtype=np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])))


@case("blank_slices")
def _constant_nifti(tmp: Path, series: Path) -> Path:
    return put(tmp / "a.nii", nifti((20, 20, 20)))


NRRD = (
    "NRRD0004\ntype: int16\ndimension: 3\nspace: LPS\nsizes: {sizes}\nspace directions: (1,0,0)"
    " (0,1,0) (0,0,1)\n"
)


@case("detached_data")
def _nrrd_that_reads_another_file(tmp: Path, series: Path) -> Path:
    put(tmp / "secret", bytes(1024))
    head = (
        NRRD.format(sizes="8 8 8") + f"endian: little\nencoding: raw\ndata file: {tmp}/secret\n\n"
    )
    return put(tmp / "a.nrrd", head.encode())


@case("detached_data")
def _nrrd_that_spells_it_differently(tmp: Path, series: Path) -> Path:
    put(tmp / "secret", bytes(1024))
    head = NRRD.format(sizes="8 8 8") + "endian: little\nencoding: raw\nDATAFILE:= secret\n\n"
    return put(tmp / "a.nrrd", head.encode() + bytes(1024))


@case("detached_data")
def _nrrd_without_an_end(tmp: Path, series: Path) -> Path:
    return put(tmp / "a.nrrd", (NRRD.format(sizes="8 8 8") + "encoding: raw").encode())


@case("too_large")
def _nrrd_bomb(tmp: Path, series: Path) -> Path:
    head = NRRD.format(sizes="99999 99999 99999") + "endian: little\nencoding: gzip\n\n"
    return put(tmp / "a.nrrd", head.encode() + gzip.compress(bytes(100)))


@case("truncated_file")
def _cut_nrrd(tmp: Path, series: Path) -> Path:
    head = NRRD.format(sizes="16 16 16") + "endian: little\nencoding: gzip\n\n"
    return put(
        tmp / "a.nrrd", head.encode() + gzip.compress(np.random.default_rng(0).bytes(8192))[:4000]
    )


@case("not_nrrd")
def _no_nrrd(tmp: Path, series: Path) -> Path:
    return put(tmp / "a.nrrd", b"\x89PNG\n" + bytes(100))


MHA = "ObjectType = Image\nNDims = 3\nDimSize = {sizes}\nElementType = MET_SHORT\n"


@case("detached_data")
def _mha_that_reads_another_file(tmp: Path, series: Path) -> Path:
    put(tmp / "secret", bytes(1024))
    return put(
        tmp / "a.mha", (MHA.format(sizes="8 8 8") + f"ElementDataFile = {tmp}/secret\n").encode()
    )


@case("detached_data")
def _mha_with_a_list(tmp: Path, series: Path) -> Path:
    return put(
        tmp / "a.mha", (MHA.format(sizes="8 8 8") + "ElementDataFile = LIST\nsecret\n").encode()
    )


@case("detached_data")
def _mha_that_hides_it(tmp: Path, series: Path) -> Path:
    text = MHA.format(sizes="8 8 8") + "elementdatafile = secret\nElementDataFile = LOCAL\n"
    return put(tmp / "a.mha", text.encode() + bytes(1024))


@case("bad_header")
def _mha_with_too_few_numbers(tmp: Path, series: Path) -> Path:
    """MetaIO takes the next line for the third number, and honours the second ElementDataFile."""
    put(tmp / "secret", bytes(1024))
    text = (
        MHA.format(sizes="8 8 8")
        + "Offset = 0 0\nElementDataFile = LOCAL\nElementDataFile = secret\n"
    )
    return put(tmp / "a.mha", text.encode() + bytes(1024))


@case("bad_header")
def _nrrd_that_hides_it_behind_a_carriage_return(tmp: Path, series: Path) -> Path:
    put(tmp / "secret", bytes(1024))
    head = (
        NRRD.format(sizes="8 8 8")
        + "encoding: raw\nendian: little\ncontent: x\rdata file: secret\n\n"
    )
    return put(tmp / "a.nrrd", head.encode() + bytes(1024))


@case("too_large")
def _mha_bomb(tmp: Path, series: Path) -> Path:
    return put(
        tmp / "a.mha", (MHA.format(sizes="99999 99999 9999") + "ElementDataFile = LOCAL\n").encode()
    )


@case("truncated_file")
def _cut_mha(tmp: Path, series: Path) -> Path:
    return put(
        tmp / "a.mha",
        (MHA.format(sizes="80 80 80") + "ElementDataFile = LOCAL\n").encode() + bytes(900),
    )


@case("truncated_file")
def _cut_compressed_mha(tmp: Path, series: Path) -> Path:
    head = (
        MHA.format(sizes="8 8 8")
        + "CompressedData = True\nCompressedDataSize = 900\nElementDataFile = LOCAL\n"
    )
    return put(tmp / "a.mha", head.encode() + bytes(800))


@case("bad_header")
def _mha_of_text(tmp: Path, series: Path) -> Path:
    text = (
        MHA.format(sizes="2 2 2") + "BinaryData = False\nElementDataFile = LOCAL\n1 2 3 4 5 6 7 8\n"
    )
    return put(tmp / "a.mha", text.encode())


@case("not_mha")
def _no_mha(tmp: Path, series: Path) -> Path:
    return put(tmp / "a.mha", b"hello")


@case("truncated_file")
def _zip_whose_directory_lies(tmp: Path, series: Path) -> Path:
    """The central directory declares 10 kB where a volume of 1 MB is packed."""
    path = tmp / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.nii", nifti((80, 80, 80)))
    raw = bytearray(path.read_bytes())
    at = raw.index(b"PK\x01\x02") + 24
    raw[at : at + 4] = struct.pack("<I", 10_000)
    return put(path, bytes(raw))


@pytest.mark.parametrize("name", MAKERS)
def test_refused_with_one_clear_code(
    name: str, tmp_path: Path, series: Path, refused, capfd
) -> None:
    code, maker = MAKERS[name]
    path = maker(tmp_path, series)
    assert [*refused(path)] == [code]
    with pytest.raises(ScanRefused) as caught:
        read(path)
    assert str(tmp_path) not in str(caught.value)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_an_mha_never_shows_another_file(tmp_path: Path, marker) -> None:
    """MetaIO takes `Comment\\nElementDataFile` for one key and honours the second one.

    It never sees that header.
    """
    put(tmp_path / "secret", np.full(marker.hu.shape, 77, "<i2").tobytes())
    text = (
        MHA.format(sizes="32 40 14")
        + "Comment\nElementDataFile = LOCAL\nElementDataFile = secret\n"
    )
    path = put(tmp_path / "a.mha", text.encode() + marker.hu.tobytes())
    with pytest.raises(ScanRefused):
        read(path)
    text = text.replace("ElementDataFile = secret\n", "")
    np.testing.assert_array_equal(
        read(put(path, text.encode() + marker.hu.tobytes())).hu[::-1], marker.hu
    )


def test_random_damage_never_escapes(series: Path, tmp_path: Path) -> None:
    """Flip and cut bytes of every kind of file: the answer is a scan or a coded refusal."""
    rng = np.random.default_rng(5)
    dicom = sorted(series.iterdir())[0].read_bytes()
    volume = nifti((12, 12, 12))
    samples = {"a.dcm": dicom, "a.nii": volume, "a.nii.gz": gzip.compress(volume)}
    head = NRRD.format(sizes="8 8 8") + "endian: little\nencoding: raw\n\n"
    samples["a.nrrd"] = head.encode() + bytes(1024)
    samples["a.mha"] = (MHA.format(sizes="8 8 8") + "ElementDataFile = LOCAL\n").encode() + bytes(
        1024
    )
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.dcm", dicom)
    samples["a.zip"] = (tmp_path / "z.zip").read_bytes()
    for name, data in samples.items():
        for _ in range(40):
            damaged = bytearray(data)
            for at in rng.integers(0, min(len(data), 1200), rng.integers(1, 12)):
                damaged[at] = rng.integers(0, 256)
            path = put(
                tmp_path / "fuzz" / name, bytes(damaged[: rng.integers(1, len(damaged) + 1)])
            )
            for one in find_cases(path):
                codes: list[str] = []
                try:
                    one.read()
                except ScanRefused as error:
                    codes = [flag.code for flag in error.quality_flags]
                assert all(code.isidentifier() for code in codes)
