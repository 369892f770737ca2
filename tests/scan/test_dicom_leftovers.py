"""More pixel data than the header promises, and streams that are whole in length but not in
content."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate, generate_frames

from tf_covid.errors import ScanRefused
from tf_covid.phantom.files import write_dicom
from tf_covid.scan import read

_ROOT = "1.2.840.10008.1.2"


def code_of(folder: Path) -> str:
    with pytest.raises(ScanRefused) as caught:
        read(folder)
    return caught.value.quality_flags[0].code


def change_stream(folder: Path, change: Callable[[bytes], bytes], number: int = 5) -> None:
    file = sorted(folder.iterdir())[number]
    dataset = pydicom.dcmread(file)
    stream = next(generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = encapsulate([change(stream)])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(file)


@pytest.mark.parametrize("size", [1, 2, 7, 80])
@pytest.mark.parametrize("syntax", [f"{_ROOT}.1", _ROOT, f"{_ROOT}.2"])
def test_bytes_put_into_native_pixels_are_a_warning(
    size: int, syntax: str, marker, tmp_path: Path
) -> None:
    """The element keeps its length, so that the last bytes of the pixels lie behind it."""
    folder = write_dicom(marker.hu, marker.affine, tmp_path / "a", transfer_syntax=syntax)
    file = sorted(folder.iterdir())[4]
    data = file.read_bytes()
    file.write_bytes(data[:-900] + b"\x07" * size + data[-900:])
    assert "odd_bytes" in {flag.code for flag in read(folder).quality_flags}


@pytest.mark.parametrize("size", [2, 8, 300])
def test_zeros_behind_the_pixels_are_padding(size: int, series: Path, marker) -> None:
    for file in series.iterdir():
        file.write_bytes(file.read_bytes() + bytes(size))
    scan = read(series)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert "odd_bytes" not in {flag.code for flag in scan.quality_flags}


@pytest.mark.parametrize("keyword", ["Rows", "Columns"])
def test_one_row_or_column_less_than_stored(
    keyword: str, series: Path, edit: Callable[..., None]
) -> None:
    def change(dataset: pydicom.Dataset) -> None:
        dataset[keyword].value -= 1

    edit(series, change)
    try:
        flags = {flag.code for flag in read(series).quality_flags}
    except ScanRefused as error:
        flags = {flag.code for flag in error.quality_flags}
    assert flags & {"odd_bytes", "pixel_length", "not_hu", "slice_content"}


@pytest.mark.parametrize(
    ("syntax", "change", "code"),
    [
        pytest.param(f"{_ROOT}.5", lambda data: data[:-8], "truncated_file", id="rle cut"),
        pytest.param(
            f"{_ROOT}.5", lambda data: data[:300] + data[307:], None, id="rle without seven bytes"
        ),
        pytest.param(
            f"{_ROOT}.5", lambda data: data + b"\x05abcdef", None, id="rle with a run more"
        ),
        pytest.param(
            f"{_ROOT}.4.90",
            lambda data: data[: len(data) // 2] + bytes(len(data) // 2),
            "truncated_file",
            id="j2k zeroed",
        ),
        pytest.param(
            f"{_ROOT}.4.51",
            lambda data: data[: int(0.99 * len(data))] + b"\xff\xd9",
            "truncated_file",
            id="jpeg cut",
        ),
        pytest.param(
            f"{_ROOT}.4.70",
            lambda data: data[: len(data) // 2] + b"\xff\xd9" + data[len(data) // 2 :],
            "truncated_file",
            id="jpeg with an end in its middle",
        ),
    ],
)
def test_streams_that_do_not_hold_their_image(
    syntax: str, change: Callable[[bytes], bytes], code: str | None, marker, tmp_path: Path
) -> None:
    folder = write_dicom(marker.hu, marker.affine, tmp_path / "a", transfer_syntax=syntax)
    change_stream(folder, change)
    assert code_of(folder) in (
        {code} if code else {"truncated_file", "pixel_length", "undecodable"}
    )


@pytest.mark.parametrize(
    "syntax", [f"{_ROOT}.4.90", f"{_ROOT}.4.201", f"{_ROOT}.4.51", f"{_ROOT}.5"]
)
@pytest.mark.parametrize("zeros", [0, 1, 5])
def test_zeros_behind_a_stream_are_padding(syntax: str, zeros: int, marker, tmp_path: Path) -> None:
    folder = write_dicom(marker.hu, marker.affine, tmp_path / "a", transfer_syntax=syntax)
    before = read(folder).hu
    change_stream(folder, lambda data: data + bytes(zeros if syntax != f"{_ROOT}.5" else zeros % 2))
    np.testing.assert_array_equal(read(folder).hu, before)


def test_nan_in_pixel_spacing_is_a_refusal(series: Path, edit: Callable[..., None]) -> None:
    edit(series, lambda dataset: dataset.__setattr__("PixelSpacing", ["1", "1"]))
    for file in series.iterdir():
        data = file.read_bytes()
        place = data.index(b"\x28\x00\x30\x00DS")
        size = int.from_bytes(data[place + 6 : place + 8], "little")
        file.write_bytes(data[: place + 6] + b"\x08\x00nan\\nan " + data[place + 8 + size :])
    assert code_of(series) == "bad_affine"


@pytest.mark.parametrize("part", [slice(132, 900), slice(140, 200)])
def test_a_header_that_is_gone_is_no_foreign_file(part: slice, series: Path) -> None:
    """The last slice lost its header: nothing else tells that the series was longer."""
    file = sorted(series.iterdir())[-1]
    data = bytearray(file.read_bytes())
    data[part] = bytes(part.stop - part.start)
    file.write_bytes(bytes(data))
    assert "unreadable_files" in {flag.code for flag in read(series).quality_flags}


def test_a_report_beside_the_slices_is_a_foreign_file(
    series: Path, edit: Callable[..., None]
) -> None:
    report = pydicom.dcmread(sorted(series.iterdir())[0])
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(report, keyword)
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = pydicom.uid.BasicTextSRStorage
    report.save_as(series / "report.dcm")
    assert {flag.code for flag in read(series).quality_flags} == {"foreign_files"}


@pytest.mark.parametrize(
    "syntax", [f"{_ROOT}.4.51", f"{_ROOT}.4.70", f"{_ROOT}.4.80", f"{_ROOT}.5"]
)
def test_bits_stored_too_small_for_a_stream(
    syntax: str, marker, tmp_path: Path, edit: Callable[..., None]
) -> None:
    folder = write_dicom(marker.hu, marker.affine, tmp_path / "a", transfer_syntax=syntax)

    def change(dataset: pydicom.Dataset) -> None:
        dataset.BitsStored, dataset.HighBit = 10, 9

    edit(folder, change)
    assert code_of(folder) in {"bits_stored", "not_hu"}
