"""One frame → the bytes that a DICOM file of a given transfer syntax holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import UID

from tf_covid.scan.dicom import transfer_syntax


def encode_frame(stored: np.ndarray, syntax: str, bits: int) -> bytes:
    """The bytes of one frame: raw in the byte order of the transfer syntax, or one code stream.

    Args:
        stored: (rows, columns), uint8, uint16 or int16.
        syntax: Transfer syntax UID.
        bits: How many bits of a value count.

    Raises:
        ValueError: If there is no encoder for the transfer syntax.
    """
    stored = np.ascontiguousarray(stored)
    encoder = _ENCODERS.get(syntax)
    if encoder is not None:
        return bytes(encoder(stored, bits))
    if UID(syntax).is_encapsulated:
        raise ValueError(f"no encoder for transfer syntax {syntax}")
    return stored.astype(
        stored.dtype.newbyteorder(">" if syntax == transfer_syntax.BIG_ENDIAN else "<")
    ).tobytes()


def _unsigned(stored: np.ndarray, bits: int) -> np.ndarray:
    """Two's complement of so many bits as an unsigned number, which is what JPEG and JPEG-LS hold."""
    if stored.dtype.kind == "u":
        return stored
    return stored.view(f"u{stored.dtype.itemsize}") & np.array((1 << bits) - 1, dtype=np.uint16)


def _rle(stored: np.ndarray, bits: int) -> bytes:
    return RLELosslessEncoder.encode(
        stored.astype(stored.dtype.newbyteorder("<")).tobytes(),
        rows=stored.shape[0],
        columns=stored.shape[1],
        samples_per_pixel=1,
        number_of_frames=1,
        bits_allocated=8 * stored.dtype.itemsize,
        bits_stored=bits,
        pixel_representation=int(stored.dtype.kind == "i"),
        photometric_interpretation="MONOCHROME2",
    )


def _jpeg_lossless(predictor: int) -> Callable[[np.ndarray, int], Any]:
    def encode(stored: np.ndarray, bits: int) -> Any:
        # Fewer than two bits a sample are no JPEG; the precision is what the file says it stores.
        return imagecodecs.jpeg8_encode(
            _unsigned(stored, bits), lossless=True, predictor=predictor, bitspersample=max(2, bits)
        )

    return encode


def _jpeg2000(lossless: bool) -> Callable[[np.ndarray, int], Any]:
    def encode(stored: np.ndarray, bits: int) -> Any:
        # Level is the quality: PSNR in dB for the lossy kind.
        level = 0 if lossless else round(20 * math.log10(2**bits))
        return imagecodecs.jpeg2k_encode(
            stored, level=level, codecformat="j2k", reversible=lossless
        )

    return encode


_ENCODERS: dict[str, Callable[[np.ndarray, int], Any]] = {
    transfer_syntax.RLE: _rle,
    transfer_syntax.JPEG_BASELINE: lambda stored, bits: imagecodecs.jpeg8_encode(stored, level=98),
    transfer_syntax.JPEG_EXTENDED: lambda stored, bits: imagecodecs.jpeg8_encode(
        stored, level=98, bitspersample=12
    ),
    transfer_syntax.JPEG_LOSSLESS: _jpeg_lossless(6),
    transfer_syntax.JPEG_LOSSLESS_SV1: _jpeg_lossless(1),
    transfer_syntax.JPEG_LS: lambda stored, bits: imagecodecs.jpegls_encode(
        _unsigned(stored, bits)
    ),
    transfer_syntax.JPEG_LS_NEAR: lambda stored, bits: imagecodecs.jpegls_encode(
        _unsigned(stored, bits), level=2
    ),
    transfer_syntax.JPEG_2000_LOSSLESS: _jpeg2000(lossless=True),
    transfer_syntax.JPEG_2000: _jpeg2000(lossless=False),
    transfer_syntax.HTJ2K_LOSSLESS: lambda stored, bits: imagecodecs.htj2k_encode(stored),
}
