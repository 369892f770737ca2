"""DICOM files whose label, lengths, bits or numbers contradict what they hold."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from tf_covid.phantom.encode import encode_frame
from tf_covid.phantom.files import Pixels, write_dicom
from tf_covid.scan import read
from tf_covid.scan.dicom import Damaged, read_header
from tf_covid.scan.source import DiskFile

_ROOT = "1.2.840.10008.1.2"
IMPLICIT, EXPLICIT, BIG, DEFLATED = _ROOT, f"{_ROOT}.1", f"{_ROOT}.2", f"{_ROOT}.1.99"
LOSSLESS, JPEGLS, J2K = f"{_ROOT}.4.70", f"{_ROOT}.4.80", f"{_ROOT}.4.90"


def relabel(file: Path, syntax: str) -> None:
    """Write another transfer syntax into the meta information; not one other byte moves."""
    data = file.read_bytes()
    at = data.index(b"\x02\x00\x10\x00UI") + 6
    length = int.from_bytes(data[at : at + 2], "little")
    text = syntax.encode() + b"\0" * (len(syntax) % 2)
    group = data.index(b"\x02\x00\x00\x00UL\x04\x00") + 8
    total = int.from_bytes(data[group : group + 4], "little") + len(text) - length
    data = data[:at] + struct.pack("<H", len(text)) + text + data[at + 2 + length :]
    file.write_bytes(data[:group] + struct.pack("<I", total) + data[group + 4 :])


@pytest.mark.parametrize(
    ("true", "label"),
    [
        (EXPLICIT, IMPLICIT),
        (IMPLICIT, EXPLICIT),
        (EXPLICIT, BIG),
        (BIG, EXPLICIT),
        (BIG, IMPLICIT),
        (EXPLICIT, DEFLATED),
        (J2K, EXPLICIT),
        (J2K, IMPLICIT),
        (J2K, LOSSLESS),
        (JPEGLS, LOSSLESS),
        (LOSSLESS, JPEGLS),
        (LOSSLESS, J2K),
        (LOSSLESS, EXPLICIT),
        (EXPLICIT, LOSSLESS),
        (EXPLICIT, J2K),
        (EXPLICIT, f"{_ROOT}.5"),
        (f"{_ROOT}.5", EXPLICIT),
        (f"{_ROOT}.5", LOSSLESS),
        (LOSSLESS, f"{_ROOT}.5"),
        (IMPLICIT, LOSSLESS),
    ],
)
@pytest.mark.parametrize("which", [slice(None), slice(5, 6)], ids=["all", "one"])
def test_pixels_follow_the_bytes_and_not_the_label(
    marker, tmp_path, quality_flags, true, label, which
) -> None:
    folder = write_dicom(marker.hu, marker.affine, tmp_path / "a", transfer_syntax=true)
    files = sorted(folder.iterdir())[which]
    for file in files:
        relabel(file, label)
    scan = read(folder)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert quality_flags(scan)["transfer_syntax_wrong"].value == len(files)
    assert quality_flags(scan)["transfer_syntax_wrong"].level == "warning"


def test_a_stream_without_items_under_a_native_label(marker, series, edit, quality_flags) -> None:
    def bare(dataset: Dataset) -> None:
        data = encode_frame(dataset.pixel_array, J2K, 16)
        dataset.PixelData = data + b"\0" * (len(data) % 2)

    edit(series, bare)
    scan = read(series)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert "transfer_syntax_wrong" in quality_flags(scan)


@pytest.mark.parametrize("keyword", ["Rows", "Columns"])
@pytest.mark.parametrize("factor", [0.5, 2])
def test_a_length_that_is_not_the_header_s(
    series, edit, refused, keyword: str, factor: float
) -> None:
    edit(series, lambda dataset: setattr(dataset, keyword, int(factor * dataset[keyword].value)))
    assert "pixel_length" in refused(series)


@pytest.mark.parametrize("allocated", [8, 32])
def test_words_of_another_size(series, edit, refused, allocated: int) -> None:
    edit(series, lambda dataset: setattr(dataset, "BitsAllocated", allocated))
    assert "pixel_length" in refused(series)


def test_the_next_element_is_no_voxels(series, edit, refused) -> None:
    def shorten(dataset: Dataset) -> None:
        dataset.PixelData = dataset.PixelData[:-80]
        dataset.DataSetTrailingPadding = bytes(200)

    edit(sorted(series.iterdir())[4], shorten)
    assert "pixel_length" in refused(series)


@pytest.mark.parametrize(
    ("extra", "code"), [(2, "extra_bytes"), (510, "extra_bytes"), (512, None), (5000, None)]
)
def test_bytes_behind_the_last_row(
    marker, series, edit, refused, quality_flags, extra: int, code: str | None
) -> None:
    edit(series, lambda dataset: setattr(dataset, "PixelData", dataset.PixelData + bytes(extra)))
    if code is None:
        assert "pixel_length" in refused(series)
        return
    scan = read(series)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert quality_flags(scan)[code].level == "info"


def undefined(file: Path, tail: bytes) -> None:
    data = file.read_bytes()
    at = data.rindex(b"\xe0\x7f\x10\x00OW\0\0") + 8
    file.write_bytes(data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :] + tail)


@pytest.mark.parametrize("tail", [b"\xfe\xff\xdd\xe0\0\0\0\0", b""], ids=["delimiter", "none"])
def test_native_pixels_of_undefined_length(marker, series, tail: bytes) -> None:
    for file in series.iterdir():
        undefined(file, tail)
    np.testing.assert_array_equal(read(series).hu, marker.hu)


def test_native_pixels_of_undefined_length_with_more_behind(series, refused) -> None:
    for file in series.iterdir():
        undefined(file, bytes(3000))
    assert "pixel_length" in refused(series)


@pytest.mark.parametrize("frames", [13, 15])
def test_enhanced_ct_with_another_number_of_frames(
    master, tmp_path, refused, enhanced, frames: int
) -> None:
    whole = enhanced(sorted(master.iterdir()))
    whole.NumberOfFrames = frames
    whole.save_as(tmp_path / "enhanced")
    assert "frame_count" in refused(tmp_path / "enhanced")


def test_enhanced_ct_with_fewer_items_than_frames(master, tmp_path, refused, enhanced) -> None:
    whole = enhanced(sorted(master.iterdir()))
    whole.PerFrameFunctionalGroupsSequence = whole.PerFrameFunctionalGroupsSequence[:-2]
    for number, codec in enumerate((None, pydicom.uid.RLELossless)):
        if codec:
            whole.compress(codec)
        whole.save_as(tmp_path / str(number))
        assert "frame_count" in refused(tmp_path / str(number))


@pytest.mark.parametrize(
    ("keyword", "value"), [("Rows", 20), ("RescaleIntercept", "0"), ("RescaleSlope", "2")]
)
@pytest.mark.parametrize("first", [True, False])
def test_elements_that_occur_twice(marker, series, refused, keyword, value, first: bool) -> None:
    tag = pydicom.datadict.tag_for_keyword(keyword)
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    text = (
        struct.pack("<H", value) if keyword == "Rows" else (value + " " * (len(value) % 2)).encode()
    )
    extra = head + (b"US" if keyword == "Rows" else b"DS") + struct.pack("<H", len(text)) + text
    whole = {file: file.read_bytes() for file in series.iterdir()}

    def place(data: bytes) -> tuple[int, int]:
        at = data.index(head + extra[4:6])
        return at, at + 8 + int.from_bytes(data[at + 6 : at + 8], "little")

    for file, data in whole.items():
        at, end = place(data)
        file.write_bytes(
            data[:at] + extra + data[at:] if first else data[:end] + extra + data[end:]
        )
    assert keyword in str(refused(series)["duplicate_element"].value)
    for file, data in whole.items():  # the same value twice contradicts nothing
        at, end = place(data)
        file.write_bytes(data[:end] + data[at:])
    np.testing.assert_array_equal(read(series).hu, marker.hu)


def test_pixel_data_twice(series, refused) -> None:
    file = sorted(series.iterdir())[4]
    data = file.read_bytes()
    file.write_bytes(data + data[data.rindex(b"\xe0\x7f\x10\x00OW\0\0") :])
    assert "duplicate_element" in refused(series)


@pytest.mark.parametrize("signed", [False, True])
def test_bits_stored_that_are_too_few(marker, tmp_path, edit, refused, signed: bool) -> None:
    pixels = Pixels(bits=12, signed=signed, intercept=-512 if signed else -1024)
    folder = write_dicom(marker.hu - np.int16(40), marker.affine, tmp_path / "a", pixels=pixels)

    def fewer(dataset: Dataset) -> None:
        dataset.BitsStored, dataset.HighBit = 10, 9

    edit(folder, fewer)
    assert "bits_stored" in refused(folder)


def test_an_overlay_in_the_high_bits_is_cut_off(marker, tmp_path, edit) -> None:
    folder = write_dicom(
        marker.hu, marker.affine, tmp_path / "a", pixels=Pixels(bits=12, signed=False)
    )

    def draw(dataset: Dataset) -> None:
        pixels = np.frombuffer(dataset.PixelData, "<u2").reshape(40, 32).copy()
        pixels[10:12, 5:25] |= 0x1000
        dataset.PixelData = pixels.tobytes()

    edit(folder, draw)
    np.testing.assert_array_equal(read(folder).hu, marker.hu)


@pytest.mark.parametrize("syntax", [EXPLICIT, IMPLICIT, BIG, LOSSLESS])
def test_group_length_and_extended_offset_table_before_the_pixels(
    marker, tmp_path, syntax: str
) -> None:
    folder = write_dicom(marker.hu, marker.affine, tmp_path / "a", transfer_syntax=syntax)
    for file in folder.iterdir():
        data = file.read_bytes()
        order = ">" if syntax == BIG else "<"
        at = data.rindex(struct.pack(order + "HH", 0x7FE0, 0x0010))

        def element(number: int, vr: bytes, value: bytes, order: str = order) -> bytes:
            tag = struct.pack(order + "HH", 0x7FE0, number)
            if syntax == IMPLICIT:
                return tag + struct.pack("<I", len(value)) + value
            size = (
                struct.pack(order + "H", len(value))
                if vr == b"UL"
                else struct.pack(order + "2xI", len(value))
            )
            return tag + vr + size + value

        extra = (
            element(0, b"UL", bytes(4)) + element(1, b"OV", bytes(8)) + element(2, b"OV", bytes(8))
        )
        file.write_bytes(data[:at] + extra + data[at:])
    np.testing.assert_array_equal(read(folder).hu, marker.hu)


@pytest.mark.parametrize("text", ["ANONYMIZED", "0,75", "", "1_0", "--", "1e999"])
@pytest.mark.parametrize("tag", [0x00200011, 0x00200013, 0x00180050])
def test_a_lesser_number_ends_no_scan(marker, series, text: str, tag: int) -> None:
    for file in series.iterdir():
        replace_value(file, tag, text)
    np.testing.assert_array_equal(read(series).hu, marker.hu)


def replace_value(file: Path, tag: int, text: str) -> None:
    data = file.read_bytes()
    at = data.index(struct.pack("<HH", tag >> 16, tag & 0xFFFF)) + 6
    end = at + 2 + int.from_bytes(data[at : at + 2], "little")
    value = (text + " " * (len(text) % 2)).encode()
    file.write_bytes(data[:at] + struct.pack("<H", len(value)) + value + data[end:])


def test_a_decimal_comma_in_a_needed_number_is_a_point(marker, series) -> None:
    for file in series.iterdir():
        replace_value(file, 0x00281052, "-1024,0")
        replace_value(file, 0x00280030, "0,9\\0,8")
    scan = read(series)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    np.testing.assert_allclose(scan.affine, marker.affine, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "found"),
    [("ANONYMIZED", "letters"), ("1_0", "letters"), ("1-2", '"1-2"'), ("Doe^Jane", "letters")],
)
def test_a_needed_number_that_is_none_is_named(series, text: str, found: str) -> None:
    file = sorted(series.iterdir())[0]
    replace_value(file, 0x00281053, text)
    with pytest.raises(Damaged, match=r"RescaleSlope \(0028,1053\)") as caught:
        read_header(DiskFile.of(file))
    assert found in str(caught.value)
    assert "Doe" not in str(caught.value)


def test_meta_information_of_any_length(marker, series, edit) -> None:
    def private(dataset: Dataset) -> None:
        dataset.file_meta.PrivateInformationCreatorUID = "1.2.3"
        dataset.file_meta.PrivateInformation = bytes(100_000)

    edit(series, private)
    np.testing.assert_array_equal(read(series).hu, marker.hu)


def test_a_header_that_ends_early_says_so(series) -> None:
    file = sorted(series.iterdir())[0]
    data = file.read_bytes()
    for end in (200, data.index(b"\x28\x00\x10\x00US")):
        file.write_bytes(data[:end])
        with pytest.raises(Damaged, match="ends"):
            read_header(DiskFile.of(file))


@pytest.mark.parametrize("syntax", ["Doe^Jane", "1.2.3.4567", f"{_ROOT}.4.100"])
def test_only_known_transfer_syntaxes_are_named(series, edit, refused, syntax: str) -> None:
    for file in series.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.compress(pydicom.uid.RLELossless)
        dataset.save_as(file)
        relabel(file, syntax)
    flag = refused(series)["undecodable"]
    assert flag.value == (syntax if syntax.startswith(_ROOT) else "unknown")
    assert syntax.startswith(_ROOT) or syntax not in flag.message
