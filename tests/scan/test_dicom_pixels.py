"""Stored values → HU: transfer syntaxes, bits, signs, slopes, padding, multi-frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from tf_covid.phantom.files import Pixels, write_dicom
from tf_covid.scan import read

_ROOT = "1.2.840.10008.1.2"
#: UID and the largest error in HU that its losses explain.
SYNTAXES = {
    _ROOT: 0,
    f"{_ROOT}.1": 0,
    f"{_ROOT}.2": 0,
    f"{_ROOT}.1.99": 0,
    f"{_ROOT}.5": 0,
    f"{_ROOT}.4.50": 60,  # 8 bits of 12 HU each
    f"{_ROOT}.4.51": 8,
    f"{_ROOT}.4.57": 0,
    f"{_ROOT}.4.70": 0,
    f"{_ROOT}.4.80": 0,
    f"{_ROOT}.4.81": 2,
    f"{_ROOT}.4.90": 0,
    f"{_ROOT}.4.91": 8,
    f"{_ROOT}.4.201": 0,
}


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_transfer_syntaxes(marker, tmp_path: Path, syntax: str) -> None:
    scan = read(write_dicom(marker.hu, marker.affine, tmp_path / "a", transfer_syntax=syntax))
    assert np.abs(scan.hu.astype(int) - marker.hu).max() <= SYNTAXES[syntax]


@pytest.mark.parametrize(
    "syntax", [f"{_ROOT}.1", f"{_ROOT}.2", f"{_ROOT}.5", f"{_ROOT}.4.70", f"{_ROOT}.4.80"]
)
@pytest.mark.parametrize(
    "pixels",
    [
        Pixels(bits=12, signed=False),
        Pixels(bits=12, signed=True, intercept=0),
        Pixels(bits=16, signed=False, intercept=-32768),
        Pixels(bits=13, signed=True, intercept=0),
        Pixels(bits=12, signed=False, slope=2, intercept=-2048),
        Pixels(bits=16, signed=True, slope=0.25, intercept=-10.5),
    ],
    ids=lambda pixels: f"{pixels.bits}{'s' if pixels.signed else 'u'}x{pixels.slope}",
)
def test_bits_signs_and_slopes(marker, tmp_path: Path, syntax: str, pixels: Pixels) -> None:
    scan = read(
        write_dicom(marker.hu, marker.affine, tmp_path / "a", transfer_syntax=syntax, pixels=pixels)
    )
    assert np.abs(scan.hu.astype(int) - marker.hu).max() <= pixels.slope / 2


def test_signed_jpeg_2000(marker, tmp_path: Path) -> None:
    pixels = Pixels(bits=16, signed=True, intercept=0)
    scan = read(
        write_dicom(
            marker.hu, marker.affine, tmp_path / "a", transfer_syntax=f"{_ROOT}.4.90", pixels=pixels
        )
    )
    np.testing.assert_array_equal(scan.hu, marker.hu)


def test_every_slice_has_its_own_rescale(marker, series: Path, edit) -> None:
    for number, file in enumerate(sorted(series.iterdir())):
        slope = 1 + number / 7

        def rescale(dataset: Dataset, slope: float = slope) -> None:
            hu = dataset.pixel_array.astype(float) - 1024
            dataset.PixelData = np.rint((hu + 500) / slope).astype("<i2").tobytes()
            dataset.RescaleSlope, dataset.RescaleIntercept = f"{slope:.6f}", "-500"

        edit(file, rescale)
    assert np.abs(read(series).hu.astype(int) - marker.hu).max() <= 2


def test_bits_above_the_high_bit_are_overlays(marker, tmp_path: Path, edit) -> None:
    folder = write_dicom(
        marker.hu, marker.affine, tmp_path / "a", pixels=Pixels(bits=12, signed=False)
    )

    def scribble(dataset: Dataset) -> None:
        dataset.PixelData = (np.frombuffer(dataset.PixelData, "<u2") | 0xA000).tobytes()

    edit(folder, scribble)
    np.testing.assert_array_equal(read(folder).hu, marker.hu)


@pytest.mark.parametrize("padding", [-2000, -3024])
def test_padding_below_air_stays_and_passes_the_gate(marker, tmp_path: Path, padding: int) -> None:
    hu = marker.hu.copy()
    hu[:, :4] = padding
    pixels = Pixels(padding=padding + 1024)
    np.testing.assert_array_equal(
        read(write_dicom(hu, marker.affine, tmp_path / "a", pixels=pixels)).hu, hu
    )


def test_padding_that_reads_as_tissue_becomes_air_outside_only(marker, tmp_path: Path) -> None:
    """Stored 0 with intercept 0 is water.

    At the corners it is padding, within the body it is water.
    """
    hu = marker.hu.copy()
    outside = np.zeros(hu.shape, dtype=bool)
    outside[:, :3], outside[:, -3:], outside[:, :, :2], outside[:, :, -2:] = True, True, True, True
    hu[outside] = 0
    hu[:, 20, 15] = 0
    scan = read(
        write_dicom(hu, marker.affine, tmp_path / "a", pixels=Pixels(intercept=0, padding=0))
    )
    assert (scan.hu[outside] == -1024).all()
    assert (scan.hu[:, 20, 15] == 0).all()
    np.testing.assert_array_equal(scan.hu[~outside], hu[~outside])


@pytest.mark.parametrize("codec", [None, pydicom.uid.RLELossless])
def test_enhanced_multi_frame(
    marker, master: Path, tmp_path: Path, enhanced, codec: str | None
) -> None:
    whole = enhanced(sorted(master.iterdir()))
    if codec:
        whole.compress(codec)
    whole.save_as(tmp_path / "enhanced")
    scan = read(tmp_path / "enhanced")
    np.testing.assert_array_equal(scan.hu, marker.hu)
    np.testing.assert_allclose(scan.affine, marker.affine, atol=1e-6)
    assert "kernel B60f" in scan.chosen_because


def test_a_fragmented_frame_is_one_frame(marker, tmp_path: Path, edit) -> None:
    folder = write_dicom(marker.hu, marker.affine, tmp_path / "a", transfer_syntax=f"{_ROOT}.4.70")

    def split(dataset: Dataset) -> None:
        frame = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
        dataset.PixelData = pydicom.encaps.encapsulate([frame], fragments_per_frame=3)
        dataset["PixelData"].is_undefined_length = True

    edit(folder, split)
    np.testing.assert_array_equal(read(folder).hu, marker.hu)
