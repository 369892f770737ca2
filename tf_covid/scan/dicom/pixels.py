"""Stored frames → int16 HU.

Imagecodecs decodes (it releases the GIL), pydicom's decoders are the fallback.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import imagecodecs
import numpy as np
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from tf_covid.scan.checks import refusal
from tf_covid.scan.dicom.complete import ends_well, is_complete
from tf_covid.scan.dicom.header import Frame, Instance
from tf_covid.scan.dicom.notes import Notes
from tf_covid.scan.dicom.pixeldata import Truncated, Undecodable, raw_frames, wrong_length
from tf_covid.scan.dicom.streams import CodeStream, code_stream
from tf_covid.scan.dicom.transfer_syntax import (
    BIG_ENDIAN,
    JPEG_2000_LOSSLESS,
    JPEG_EXTENDED,
    JPEG_LOSSLESS,
    JPEG_LS,
    KINDS,
    NATIVE,
    RLE,
    Kind,
)

__all__ = [
    "CodeStream",
    "Truncated",
    "Undecodable",
    "code_stream",
    "decode",
    "raw_frames",
    "stored_values",
    "to_hu",
]

_INT16 = np.iinfo(np.int16)
#: pyjpegls runs for minutes on damaged streams, and is the same CharLS that imagecodecs has.
_SHUNNED_PLUGINS = ("pyjpegls",)
#: What a codec raises on data that it cannot read; imagecodecs' own errors are RuntimeErrors.
_CODEC_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    KeyError,
    EOFError,
    ImportError,
    OSError,
    ArithmeticError,
    struct.error,
)

#: Kind of stream → its decoder. Each was fed 3,000 damaged streams, but for JPEG-LS, which takes
#: seconds for a damaged frame (250). Lossless JPEG goes to libjpeg-turbo because `ljpeg_decode`
#: dies of a segmentation fault where a Huffman table is missing, and HTJ2K to OpenJPEG because
#: `htj2k_decode` dies of a floating point exception.
_DECODERS: dict[Kind, str] = {
    "jpeg": "jpeg8_decode",
    "jpeg_lossless": "jpeg8_decode",
    "jpegls": "jpegls_decode",
    "jpeg2k": "jpeg2k_decode",
}
#: Neighbouring pixels that may by chance look like a value that rises through the highest stored
#: bit.
_CROSSINGS = 8
#: Kind of stream → the transfer syntax under which pydicom's decoders take it.
_UIDS: dict[Kind, str] = {
    "rle": RLE,
    "jpeg": JPEG_EXTENDED,
    "jpeg_lossless": JPEG_LOSSLESS,
    "jpegls": JPEG_LS,
    "jpeg2k": JPEG_2000_LOSSLESS,
}
#: Most bytes behind the end marker of a JPEG stream that are padding.
_BEHIND = 16
#: Most pixels that zeros behind an RLE segment may seem to hold.
_RLE_PADDING = 4


def decode(data: bytes, instance: Instance, notes: Notes | None = None) -> tuple[np.ndarray, int]:
    """One frame as stored, and how many of its bits count.

    The codec is found from the stream: a wrong label is noted, not believed.

    Returns:
        (rows, columns), an integer type, and the precision in bits.

    Raises:
        Truncated: If the stream ends before its image does.
        Undecodable: With the transfer syntax UID.
    """
    shape, syntax = (instance.rows, instance.columns), instance.transfer_syntax
    if instance.bits_allocated not in (8, 16, 32) or instance.samples != 1:
        raise Undecodable(syntax)
    order = ">" if syntax == BIG_ENDIAN else "<"
    dtype = np.dtype(f"{order}u{instance.bits_allocated // 8}")
    if is_native(data, instance):
        return np.frombuffer(data, dtype=dtype).reshape(shape), instance.bits_stored
    if syntax not in KINDS and syntax not in NATIVE:
        raise Undecodable(syntax)
    stream = code_stream(data)
    if stream is None:
        raise Undecodable(syntax)
    notes = notes or Notes()
    if KINDS.get(syntax) != stream.kind:
        notes.add("transfer_syntax_wrong", instance.name)
        instance = replace(instance, transfer_syntax=_UIDS[stream.kind])
    if stream.kind == "rle":
        return _rle(data, instance, dtype.newbyteorder("<")), instance.bits_stored
    if (stream.rows, stream.columns, stream.components) != (*shape, 1):
        raise Undecodable(syntax)
    return _decoded(stream, instance, notes), min(instance.bits_stored, stream.precision)


def is_native(data: bytes, instance: Instance) -> bool:
    """Whether the bytes of a frame are its samples.

    They have exactly their size, and begin like no stream.
    """
    size = instance.rows * instance.columns * instance.samples * instance.bits_allocated // 8
    if len(data) != size:
        return False
    return instance.transfer_syntax in NATIVE or code_stream(data) is None


def _decoded(stream: CodeStream, instance: Instance, notes: Notes) -> np.ndarray:
    shape = (instance.rows, instance.columns)
    if stream.kind == "jpeg2k" and not ends_well(stream.data):
        raise Truncated
    decoder = getattr(imagecodecs, _DECODERS[stream.kind])
    pixels = _attempt(decoder, stream.data)
    if pixels is None or pixels.shape != shape or pixels.dtype.kind not in "iu":
        return _by_pydicom(stream.data, instance)
    if stream.kind in ("jpeg", "jpeg_lossless"):
        if not is_complete(stream, pixels, lambda data: _attempt(decoder, data)):
            raise Truncated
        if stream.end < 0:
            notes.add("no_end_marker", instance.name)
        elif len(stream.data) - stream.end - 2 > _BEHIND:
            notes.add("extra_bytes", instance.name)
    return pixels


def _attempt(decoder: Callable[..., Any], *args: Any, **options: Any) -> np.ndarray | None:
    try:
        decoded = decoder(*args, **options)
    except _CODEC_ERRORS:
        return None
    # pydicom's decoders give the array and a description of it.
    return np.asarray(decoded[0] if isinstance(decoded, tuple) else decoded)


def _rle(data: bytes, instance: Instance, dtype: np.dtype) -> np.ndarray:
    """The pixels of an RLE frame (PS3.5 G).

    A segment for each byte of a sample, the high one first.

    Decoders of whole frames stop where the image is full, whatever is left; so each segment is
    unpacked for itself.

    Raises:
        Truncated: If a segment is cut or damaged.
        ScanRefused: `pixel_length` if a segment does not hold one byte for each pixel.
    """
    count = int.from_bytes(data[:4], "little")
    if count != dtype.itemsize:
        raise Undecodable(instance.transfer_syntax)
    offsets = [*np.frombuffer(data[4 : 4 + 4 * count], "<u4").tolist(), len(data)]
    if offsets != sorted(offsets) or offsets[0] < 64:
        raise Truncated
    planes = np.empty((instance.rows * instance.columns, count), dtype=np.uint8)
    for index, (begin, end) in enumerate(pairwise(offsets)):
        try:
            unpacked = imagecodecs.packbits_decode(data[begin:end])
        except _CODEC_ERRORS:
            raise Truncated from None
        extra = len(unpacked) - len(planes)
        if 0 < extra <= _RLE_PADDING and not any(data[max(begin, end - 2 * extra) : end]):
            unpacked = unpacked[: len(planes)]  # zeros that pad a segment read as runs of zeros
        if len(unpacked) != len(planes):
            wrong_length(instance, len(unpacked) * count, len(planes) * count)
        planes[:, count - 1 - index] = np.frombuffer(unpacked, dtype=np.uint8)
    return planes.view(dtype).reshape(instance.rows, instance.columns)


def _by_pydicom(data: bytes, instance: Instance) -> np.ndarray:
    uid = UID(instance.transfer_syntax)
    options: dict[str, Any] = {
        "transfer_syntax_uid": uid,
        "rows": instance.rows,
        "columns": instance.columns,
        "samples_per_pixel": 1,
        "bits_allocated": instance.bits_allocated,
        "bits_stored": instance.bits_stored,
        "pixel_representation": int(instance.signed),
        "photometric_interpretation": "MONOCHROME2",
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
    }
    try:
        decoder = get_decoder(uid)
    except NotImplementedError:
        raise Undecodable(instance.transfer_syntax) from None
    for plugin in decoder.available_plugins:
        if plugin in _SHUNNED_PLUGINS:
            continue
        pixels = _attempt(
            decoder.as_array,
            encapsulate([data]),
            index=0,
            raw=True,
            decoding_plugin=plugin,
            **options,
        )
        if pixels is not None and pixels.shape == (instance.rows, instance.columns):
            return pixels
    raise Undecodable(instance.transfer_syntax)


def stored_values(pixels: np.ndarray, precision: int, instance: Instance) -> np.ndarray:
    """The stored values as numbers.

    Bits above HighBit cut off (old files hold overlays there), the sign extended.

    Raises:
        ScanRefused: `bits_stored` if the bits above belong to the values.
    """
    bits = 8 * pixels.dtype.itemsize
    # Decoders of JPEG, JPEG-LS and JPEG 2000 give values; what lies in bits of a word are native
    # and RLE pixels.
    stored_as_words = instance.transfer_syntax in NATIVE or instance.transfer_syntax == RLE
    shift = instance.high_bit + 1 - instance.bits_stored if stored_as_words else 0
    if pixels.dtype.kind == "i":
        return pixels
    if precision == bits and shift <= 0:
        return pixels.view(pixels.dtype.str.replace("u", "i")) if instance.signed else pixels
    values = (pixels.astype(np.int64) >> max(0, shift)) & ((1 << precision) - 1)
    if instance.signed:
        sign = 1 << (precision - 1)
        values = (values ^ sign) - sign
    if stored_as_words and not instance.overlay:
        _check_high_bits(pixels, values, instance, instance.high_bit + 1)
    elif not stored_as_words and int(pixels.max()) >> precision:
        _check_high_bits(pixels, values, instance, precision)
    return values


def _check_high_bits(pixels: np.ndarray, values: np.ndarray, instance: Instance, high: int) -> None:
    """Check that bits from `high` on are zero, constant, the sign or an overlay, not values."""
    if high >= 8 * pixels.dtype.itemsize:
        return
    every = int(np.bitwise_or.reduce(pixels, axis=None))
    above = every ^ int(np.bitwise_and.reduce(pixels, axis=None))
    # A sign that the bits above do not repeat may be a bit of the value.
    unlike_sign = instance.signed and not every >> high and bool(every >> (high - 1) & 1)
    if not above >> high and not unlike_sign:
        return
    full = pixels.astype(np.int64) >> max(0, high - instance.bits_stored)
    if instance.signed:
        sign = 1 << (8 * pixels.dtype.itemsize - 1 - max(0, high - instance.bits_stored))
        full = (full ^ sign) - sign
    if np.array_equal(full, values):
        return
    # Where values rise through the highest bit, neighbours are close with it and far without; an
    # overlay never does so.
    changes = np.diff(full - values, axis=1) != 0
    close = changes & (np.abs(np.diff(full, axis=1)) < (1 << instance.bits_stored) // 4)
    if close.sum() > max(_CROSSINGS, 0.01 * changes.sum()):
        message = (
            f"BitsStored (0028,0101) {instance.bits_stored} and HighBit (0028,0102)"
            f" {instance.high_bit} are too small for what is stored: the bits above belong to the"
            " values. Export the series again."
        )
        raise refusal("bits_stored", message, instance.bits_stored)


def to_hu(stored: np.ndarray, frame: Frame) -> np.ndarray:
    """int16 HU: slope and intercept of this very frame, rounded, clipped to int16."""
    if frame.slope == 1 and frame.intercept == 0 and stored.dtype == np.int16:
        return stored
    if frame.slope.is_integer() and frame.intercept.is_integer() and abs(frame.slope) < 2**14:
        wide: Any = np.int32 if stored.dtype.itemsize <= 2 else np.int64
        hu = stored.astype(wide) * wide(frame.slope) + wide(
            np.clip(frame.intercept, -(2**30), 2**30)
        )
    else:
        hu = np.rint(stored * np.float64(frame.slope) + np.float64(frame.intercept))
    clipped: np.ndarray = np.clip(hu, _INT16.min, _INT16.max).astype(np.int16)
    return clipped
