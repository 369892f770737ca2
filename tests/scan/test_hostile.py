"""Broken and hostile DICOM, archives and paths: one coded quality flag each, never a traceback."""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from tf_covid.errors import ScanRefused
from tf_covid.phantom.encode import encode_frame
from tf_covid.phantom.files import write_dicom
from tf_covid.scan import Limits, find_cases, read

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


@case("not_found")
def _missing(tmp: Path, series: Path) -> Path:
    return tmp / "nothing" / "here"


@case("no_scan")
def _empty_folder(tmp: Path, series: Path) -> Path:
    (tmp / "a").mkdir()
    return tmp / "a"


@case("no_scan")
def _foreign_folder(tmp: Path, series: Path) -> Path:
    put(tmp / "a" / "x.pdf", b"%PDF-1.4")
    put(tmp / "a" / "noise", np.random.default_rng(0).bytes(5000))
    return tmp / "a"


@case("no_scan")
def _text_file(tmp: Path, series: Path) -> Path:
    return put(tmp / "notes.dcm", b"hello")


@case("not_found")
def _fifo(tmp: Path, series: Path) -> Path:
    os.mkfifo(tmp / "pipe")
    return tmp / "pipe"


@case("not_found")
def _a_link_in_a_circle(tmp: Path, series: Path) -> Path:
    (tmp / "loop").symlink_to(tmp / "loop")
    return tmp / "loop"


@case("not_found")
def _above_a_link_in_a_circle(tmp: Path, series: Path) -> Path:
    (tmp / "loop").symlink_to(tmp / "loop")
    return tmp / "loop" / ".."


@case("empty_file")
def _empty_dicom(tmp: Path, series: Path) -> Path:
    return put(tmp / "a", b"")


@case("truncated_file")
def _dicom_cut_in_its_pixels(tmp: Path, series: Path) -> Path:
    file = sorted(series.iterdir())[4]
    file.write_bytes(file.read_bytes()[:-100])
    return series


@case("truncated_file")
def _compressed_dicom_cut(tmp: Path, series: Path) -> Path:
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.compress(pydicom.uid.RLELossless)
        dataset.save_as(file)
    file.write_bytes(file.read_bytes()[:-100])
    return series


@case("truncated_file")
def _dicom_cut_in_its_header(tmp: Path, series: Path) -> Path:
    file = sorted(series.iterdir())[4]
    return put(tmp / "a.dcm", file.read_bytes()[:200])


@case("undecodable")
def _an_unknown_transfer_syntax(tmp: Path, series: Path) -> Path:
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.compress(pydicom.uid.RLELossless)
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
        dataset.save_as(file)
    return series


@case("undecodable")
def _noise_for_a_code_stream(tmp: Path, series: Path) -> Path:
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xc3" + bytes(100)])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.70"
        dataset.save_as(file)
    return series


@case("undecodable")
def _lossless_jpeg_without_a_huffman_table(tmp: Path, series: Path) -> Path:
    """On which a decoder that trusts its input dies, and the program with it."""
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        stream = encode_frame(dataset.pixel_array, "1.2.840.10008.1.2.4.70", 16)
        assert b"\xff\xc4" in stream
        dataset.PixelData = pydicom.encaps.encapsulate(
            [stream.replace(b"\xff\xc4", b"\xff\x00", 1)]
        )
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.70"
        dataset.save_as(file)
    return series


@case("undecodable")
def _a_code_stream_of_another_size(tmp: Path, series: Path) -> Path:
    """JPEG 2000 whose own header declares 60000×60000: no decoder may take memory for it."""
    stream = bytes.fromhex("ff4fff51002f0000") + struct.pack(
        ">8I", 60000, 60000, 0, 0, 60000, 60000, 0, 0
    )
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.PixelData = pydicom.encaps.encapsulate(
            [stream + struct.pack(">H3B", 1, 15, 1, 1) + bytes(50)]
        )
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90"
        dataset.save_as(file)
    return series


@case("bad_affine")
def _dicom_without_an_orientation(tmp: Path, series: Path) -> Path:
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        del dataset.ImageOrientationPatient
        dataset.save_as(file)
    return series


@case("bad_affine")
def _dicom_without_a_position(tmp: Path, series: Path) -> Path:
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        del dataset.ImagePositionPatient
        dataset.save_as(file)
    return series


@case("no_slices")
def _multi_frame_without_positions(tmp: Path, series: Path) -> Path:
    dataset = pydicom.dcmread(sorted(series.iterdir())[0])
    dataset.NumberOfFrames = 2_000_000_000
    dataset.save_as(tmp / "a.dcm")
    return tmp / "a.dcm"


@case("bad_header")
def _dicom_with_slope_zero(tmp: Path, series: Path) -> Path:
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.RescaleSlope = "0"
        dataset.save_as(file)
    return series


@case("not_hu")
def _stored_values_without_rescale(tmp: Path, series: Path) -> Path:
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.RescaleIntercept = "0"
        dataset.save_as(file)
    return series


@case("archive_damaged")
def _no_zip(tmp: Path, series: Path) -> Path:
    return put(tmp / "a.zip", b"hello")


def packed(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


@case("archive_damaged")
def _cut_zip(tmp: Path, series: Path) -> Path:
    path = packed(tmp / "a.zip", {"a": bytes(1000)})
    return put(path, path.read_bytes()[:-30])


@case("no_scan")
def _nested_zip(tmp: Path, series: Path) -> Path:
    return packed(tmp / "a.zip", {"b.zip": packed(tmp / "b.zip", {"a": b"x"}).read_bytes()})


@case("archive_unsafe")
def _zip_with_a_way_out(tmp: Path, series: Path) -> Path:
    return packed(tmp / "a.zip", {"../../outside.dcm": sorted(series.iterdir())[0].read_bytes()})


@case("no_scan")
def _zip_with_a_link(tmp: Path, series: Path) -> Path:
    with zipfile.ZipFile(tmp / "a.zip", "w") as archive:
        link = zipfile.ZipInfo("link.nii")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(series))
    return tmp / "a.zip"


@case("archive_encrypted")
def _encrypted_zip(tmp: Path, series: Path) -> Path:
    path = packed(tmp / "a.zip", {"a.dcm": sorted(series.iterdir())[0].read_bytes()})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return put(path, bytes(data))


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


def test_limits_of_archives(series: Path, tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", {file.name: file.read_bytes() for file in series.iterdir()})
    for limits in (Limits(archive_members=13), Limits(archive_bytes=20_000)):
        (one,) = find_cases(path, limits)
        with pytest.raises(ScanRefused, match="archive_too_large"):
            one.read()
    assert find_cases(path, Limits(archive_members=14))[0].read().shape == (14, 40, 32)


def test_a_zip64_directory_of_any_length_is_not_loaded(tmp_path: Path) -> None:
    record = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 10**9, 10**9, 10**12, 0)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, 0, 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 100, 0, 0)
    (one,) = find_cases(put(tmp_path / "a.zip", record + locator + end))
    with pytest.raises(ScanRefused, match="archive_too_large"):
        one.read()


def test_a_deflated_bomb_is_bounded(
    series: Path, monkeypatch: pytest.MonkeyPatch, marker, tmp_path: Path
) -> None:
    from tf_covid.scan.dicom import encoding

    folder = write_dicom(
        marker.hu, marker.affine, tmp_path / "d", transfer_syntax="1.2.840.10008.1.2.1.99"
    )
    monkeypatch.setattr(encoding, "MOST_INFLATED", 1000)
    (one,) = find_cases(folder)
    with pytest.raises(ScanRefused, match="truncated_file"):
        one.read()


@pytest.mark.parametrize("which", [0, 4, -1])
def test_the_file_that_ends_early_is_named_by_its_number(series: Path, which: int) -> None:
    file = sorted(series.iterdir())[which]
    number = int(pydicom.dcmread(file).InstanceNumber)
    file.write_bytes(file.read_bytes()[:-100])
    (one,) = find_cases(series)
    slices = len(list(series.iterdir()))
    with pytest.raises(
        ScanRefused, match=rf"InstanceNumber {number}\) ends early .* has {slices} slices"
    ):
        one.read()


def test_a_broken_file_in_a_whole_series(series: Path, quality_flags) -> None:
    put(series / "broken", sorted(series.iterdir())[0].read_bytes()[:250])
    scan = read(series)
    assert quality_flags(scan)["unreadable_files"].value == 1


def test_a_zip_member_with_a_wrong_check_sum(series: Path, tmp_path: Path, quality_flags) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(series.iterdir()):
            archive.write(file, file.name)
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\x01\x02") - 10] ^= 0xFF
    assert quality_flags(read(put(path, bytes(raw))))["unreadable_files"].value == 1


def test_links_in_circles(series: Path) -> None:
    (series / "loop").symlink_to(series)
    (series / "dangling").symlink_to(series / "nothing")
    assert read(series).shape == (14, 40, 32)
