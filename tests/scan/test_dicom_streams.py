"""Compressed pixel data that end early, lie about their size, or hold more or fewer frames than the
header says."""

from __future__ import annotations

import struct
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from tf_covid.phantom.files import write_dicom
from tf_covid.scan import read
from tf_covid.scan.dicom.complete import is_complete
from tf_covid.scan.dicom.streams import code_stream

_ROOT = "1.2.840.10008.1.2"
JPEGS = [f"{_ROOT}.4.{end}" for end in (50, 51, 57, 70)]
OTHERS = [f"{_ROOT}.5", *(f"{_ROOT}.4.{end}" for end in (80, 81, 90, 91, 201))]


def restream(dataset: Dataset, change) -> None:
    """Change the code stream of a file with one frame."""
    frame = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
    data = change(frame)
    dataset.PixelData = pydicom.encaps.encapsulate([data + b"\0" * (len(data) % 2)])
    dataset["PixelData"].is_undefined_length = True


def one_changed(marker, folder: Path, syntax: str, edit, change) -> Path:
    write_dicom(marker.hu, marker.affine, folder, transfer_syntax=syntax)
    edit(sorted(folder.iterdir())[5], lambda dataset: restream(dataset, change))
    return folder


@pytest.mark.parametrize("false_end", [b"", b"\xff\xd9"], ids=["no_eoi", "false_eoi"])
@pytest.mark.parametrize("share", [0.9, 0.6, 0.5])
@pytest.mark.parametrize("syntax", JPEGS)
def test_a_jpeg_that_is_cut_is_refused(
    marker, tmp_path, edit, refused, syntax, share, false_end
) -> None:
    def cut(frame: bytes) -> bytes:
        whole = frame[: frame.rindex(b"\xff\xd9")]
        start = whole.index(b"\xff\xda")
        return whole[: start + int(share * (len(whole) - start))] + false_end

    assert "truncated_file" in refused(one_changed(marker, tmp_path / "a", syntax, edit, cut))


@pytest.mark.parametrize("syntax", OTHERS)
def test_other_streams_that_are_cut_are_refused(marker, tmp_path, edit, refused, syntax) -> None:
    codes = refused(
        one_changed(marker, tmp_path / "a", syntax, edit, lambda frame: frame[: len(frame) // 2])
    )
    assert codes.keys() & {"truncated_file", "undecodable"}


@pytest.mark.parametrize("syntax", JPEGS)
def test_a_whole_jpeg_without_an_end_marker_is_read(
    marker, tmp_path, edit, quality_flags, syntax
) -> None:
    plain = read(write_dicom(marker.hu, marker.affine, tmp_path / "plain", transfer_syntax=syntax))
    folder = one_changed(
        marker, tmp_path / "a", syntax, edit, lambda frame: frame[: frame.rindex(b"\xff\xd9")]
    )
    scan = read(folder)
    np.testing.assert_array_equal(scan.hu, plain.hu)
    assert quality_flags(scan)["no_end_marker"].value == 1
    assert quality_flags(scan)["no_end_marker"].level == "warning"


def images() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    full = np.clip(
        np.add.outer(np.arange(96), np.arange(80)) + rng.normal(0, 20, (96, 80)) + 500, 0, 4095
    )
    full = full.astype(np.uint16)
    padded = full.copy()
    padded[:20] = padded[70:] = padded[:, 60:] = 0
    return {"full": full, "padded": padded, "blank": np.zeros_like(full)}


@pytest.mark.parametrize("name", images())
@pytest.mark.parametrize("predictor", range(1, 8))
def test_lossless_jpeg_is_whole_or_not_for_every_predictor(name: str, predictor: int) -> None:
    """A cut stream is seen as one, or decodes to the same image.

    Padding that is filled up is padding.
    """
    image = images()[name]
    data = bytes(
        imagecodecs.jpeg8_encode(image, lossless=True, predictor=predictor, bitspersample=12)
    )

    def complete(data: bytes) -> tuple[bool, np.ndarray]:
        stream = code_stream(data)
        pixels = imagecodecs.jpeg8_decode(data)
        assert stream is not None
        return is_complete(stream, pixels, imagecodecs.jpeg8_decode), pixels

    assert complete(data)[0]
    assert complete(data[:-2])[0]
    scan = code_stream(data).scan
    for end in np.linspace(scan + 1, len(data) - 3, 12).astype(int):
        for tail in (b"", b"\xff\xd9"):
            whole, pixels = complete(data[:end] + tail)
            assert not whole or np.array_equal(pixels, image)


def test_restart_markers_are_read(marker) -> None:
    """The quick look does not know restarts: the second decoding answers."""
    image = images()["full"]
    data = bytes(imagecodecs.jpeg8_encode(image, lossless=True, predictor=1, bitspersample=12))
    stream = code_stream(data)
    from dataclasses import replace

    assert is_complete(replace(stream, restart=80), image, imagecodecs.jpeg8_decode)


def jp2(boxes: bytes, stream: bytes) -> bytes:
    signature = b"\0\0\0\x0cjP  \r\n\x87\n"
    return signature + boxes + struct.pack(">I4s", 8 + len(stream), b"jp2c") + stream


def test_a_false_size_in_a_box_of_a_jp2_is_not_believed(marker, tmp_path, edit) -> None:
    """The first SIZ in the bytes is not the code stream's: 2 KB would take 3 GB."""
    false = bytes.fromhex("ff4fff51002f0000") + struct.pack(">8I", 32, 40, 0, 0, 32, 40, 0, 0)
    false += struct.pack(">H3B", 1, 15, 1, 1)
    box = struct.pack(">I4s", 8 + 16 + len(false), b"uuid") + bytes(16) + false
    folder = write_dicom(marker.hu, marker.affine, tmp_path / "a", transfer_syntax=f"{_ROOT}.4.90")
    edit(folder, lambda dataset: restream(dataset, lambda frame: jp2(box, frame)))
    np.testing.assert_array_equal(read(folder).hu, marker.hu)


def test_a_large_code_stream_behind_a_fitting_box_is_refused(
    marker, tmp_path, edit, refused
) -> None:
    def size(rows: int, columns: int) -> bytes:
        head = bytes.fromhex("ff4fff51002f0000") + struct.pack(
            ">8I", columns, rows, 0, 0, columns, rows, 0, 0
        )
        return head + struct.pack(">H3B", 1, 15, 1, 1)

    false = size(40, 32)
    box = struct.pack(">I4s", 8 + 16 + len(false), b"uuid") + bytes(16) + false
    large = jp2(box, size(30000, 30000) + b"\xff\x90" + bytes(50))
    folder = write_dicom(marker.hu, marker.affine, tmp_path / "a", transfer_syntax=f"{_ROOT}.4.90")
    edit(folder, lambda dataset: restream(dataset, lambda frame: large))
    assert "undecodable" in refused(folder)


def test_a_second_size_is_refused() -> None:
    data = bytes(
        imagecodecs.jpeg8_encode(images()["full"], lossless=True, predictor=1, bitspersample=12)
    )
    at = data.index(b"\xff\xc3")
    length = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    assert code_stream(data[:at] + data[at : at + length] + data[at:]) is None
    data = bytes(
        imagecodecs.jpeg2k_encode(images()["full"], codecformat="j2k", level=0, reversible=True)
    )
    length = 2 + int.from_bytes(data[4:6], "big")
    assert code_stream(data[: 2 + length] + data[2 : 2 + length] + data[2 + length :]) is None


@pytest.mark.parametrize("syntax", [f"{_ROOT}.4.70", f"{_ROOT}.4.90"])
def test_two_streams_in_a_file_of_one_frame(marker, tmp_path, edit, refused, syntax) -> None:
    folder = write_dicom(marker.hu, marker.affine, tmp_path / "a", transfer_syntax=syntax)

    def double(dataset: Dataset) -> None:
        frame = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
        dataset.PixelData = pydicom.encaps.encapsulate([frame, frame])
        dataset["PixelData"].is_undefined_length = True

    edit(sorted(folder.iterdir())[3], double)
    assert refused(folder)["frame_count"].value == 2


@pytest.mark.parametrize("syntax", [f"{_ROOT}.4.70", f"{_ROOT}.5", f"{_ROOT}.4.90"])
@pytest.mark.parametrize("tail", [b"", b"\0\0\0\0", b"\0" * 40], ids=lambda tail: str(len(tail)))
def test_a_missing_sequence_delimiter_is_no_early_end(
    marker, tmp_path, quality_flags, syntax, tail
) -> None:
    folder = write_dicom(marker.hu, marker.affine, tmp_path / "a", transfer_syntax=syntax)
    for file in folder.iterdir():
        data = file.read_bytes()
        file.write_bytes(data[: data.rindex(b"\xfe\xff\xdd\xe0")] + tail)
    scan = read(folder)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert quality_flags(scan)["no_delimiter"].level == "info"


@pytest.mark.parametrize("share", [0.9, 0.5])
def test_deflated_files_that_are_cut_or_zeroed(marker, tmp_path, refused, share) -> None:
    for number, spoil in enumerate((lambda d, n: d[:n], lambda d, n: d[:n] + bytes(len(d) - n))):
        folder = write_dicom(
            marker.hu, marker.affine, tmp_path / str(number), transfer_syntax=f"{_ROOT}.1.99"
        )
        file = sorted(folder.iterdir())[5]
        data = file.read_bytes()
        file.write_bytes(spoil(data, int(share * len(data))))
        assert refused(folder)


def test_a_deflated_file_is_unpacked_no_further_than_its_header_promises(
    marker, tmp_path, refused
) -> None:
    import tracemalloc
    import zlib

    folder = write_dicom(marker.hu, marker.affine, tmp_path / "a", transfer_syntax=f"{_ROOT}.1.99")
    for file in folder.iterdir():
        raw = file.read_bytes()
        start = 132 + 12 + int.from_bytes(raw[140:144], "little")
        unpacked = zlib.decompress(raw[start:], -15)
        packer = zlib.compressobj(1, zlib.DEFLATED, -15)
        bomb = (
            packer.compress(unpacked)
            + b"".join(packer.compress(bytes(1 << 24)) for _ in range(6))
            + packer.flush()
        )
        file.write_bytes(raw[:start] + bomb)
    tracemalloc.start()
    assert refused(folder)
    assert tracemalloc.get_traced_memory()[1] < 40e6
    tracemalloc.stop()
