"""Stored frames → int16 HU: imagecodecs decodes (it releases the GIL), pydicom's decoders are the fallback."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from tf_covid.scan import archive
from tf_covid.scan.dicom.header import BIG_ENDIAN, DEFLATED, EXPLICIT, IMPLICIT, Frame, Instance, inflate
from tf_covid.scan.source import Source

_NATIVE = (IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED)
_RLE = "1.2.840.10008.1.2.5"
_UNDEFINED = 0xFFFFFFFF
_INT16 = np.iinfo(np.int16)
#: pyjpegls runs for minutes on damaged streams, and is the same CharLS that imagecodecs has.
_SHUNNED_PLUGINS = ("pyjpegls",)
#: What a codec raises on data that it cannot read; imagecodecs' own errors are RuntimeErrors.
_CODEC_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, IndexError, KeyError, EOFError, ImportError)

#: Transfer syntax → the decoder of one frame's code stream. Each was fed 3,000 damaged streams, but for JPEG-LS, which
#: takes seconds for a damaged frame (250). Lossless JPEG goes to libjpeg-turbo because `ljpeg_decode` dies of a
#: segmentation fault where a Huffman table is missing, and HTJ2K to OpenJPEG because `htj2k_decode` dies of a floating
#: point exception.
_DECODERS: dict[str, str] = {
    "1.2.840.10008.1.2.4.50": "jpeg8_decode",  # JPEG baseline, 8 bit
    "1.2.840.10008.1.2.4.51": "jpeg8_decode",  # JPEG extended, 12 bit
    "1.2.840.10008.1.2.4.57": "jpeg8_decode",  # JPEG lossless
    "1.2.840.10008.1.2.4.70": "jpeg8_decode",  # JPEG lossless, first-order prediction
    "1.2.840.10008.1.2.4.80": "jpegls_decode",  # JPEG-LS lossless
    "1.2.840.10008.1.2.4.81": "jpegls_decode",  # JPEG-LS near-lossless
    "1.2.840.10008.1.2.4.90": "jpeg2k_decode",  # JPEG 2000 lossless
    "1.2.840.10008.1.2.4.91": "jpeg2k_decode",  # JPEG 2000
    "1.2.840.10008.1.2.4.201": "jpeg2k_decode",  # High-throughput JPEG 2000, lossless
    "1.2.840.10008.1.2.4.202": "jpeg2k_decode",
    "1.2.840.10008.1.2.4.203": "jpeg2k_decode",
}


class Truncated(Exception):
    """The pixel data end early."""


class Undecodable(Exception):
    """No decoder reads the pixel data; the text is the transfer syntax UID."""


@dataclass(frozen=True)
class CodeStream:
    """What a JPEG, JPEG-LS or JPEG 2000 stream says of itself, read before a decoder takes memory for it."""

    rows: int
    columns: int
    components: int
    precision: int


def code_stream(data: bytes) -> CodeStream | None:
    """The first frame header in `data`, or None."""
    start = data.find(b"\xff\x4f\xff\x51", 0, 4096)  # SOC and SIZ; some vendors wrap them in a JP2 file
    if start >= 0 and len(data) >= start + 43:
        x1, y1, x0, y0 = struct.unpack(">4I", data[start + 8 : start + 24])
        components, depth = struct.unpack(">HB", data[start + 40 : start + 43])
        return CodeStream(y1 - y0, x1 - x0, components, (depth & 0x7F) + 1)
    at = 2
    while data[:2] == b"\xff\xd8" and at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            precision, rows, columns, components = struct.unpack(">BHHB", data[at + 4 : at + 10])
            return CodeStream(rows, columns, components, precision)
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def raw_frames(instance: Instance, source: Source) -> Iterator[bytes]:
    """The bytes of each frame of one file, in the order of the file.

    Raises:
        Truncated: If the file ends before its frames do.
    """
    try:
        with source.open() as stream:
            if instance.transfer_syntax == DEFLATED:
                yield from _native(inflate(stream), instance)
            elif instance.transfer_syntax in _NATIVE:
                yield from _native(stream, instance)
            else:
                yield from _encapsulated(stream, instance)
    except (EOFError, OSError, struct.error, *archive.ERRORS):
        raise Truncated from None


def _seek_value(stream: BinaryIO, instance: Instance) -> int:
    """Move to the value of (7FE0,0010) and give its declared length."""
    stream.seek(instance.pixel_offset)
    order = ">" if instance.transfer_syntax == BIG_ENDIAN else "<"
    head = stream.read(8)
    group, element = struct.unpack(order + "HH", head[:4])
    if (group, element) != (0x7FE0, 0x0010):
        raise Undecodable(instance.transfer_syntax)  # float or double pixel data
    if instance.transfer_syntax == IMPLICIT:
        return int(struct.unpack("<I", head[4:])[0])
    return int(struct.unpack(order + "I", stream.read(4))[0])


def _native(stream: BinaryIO, instance: Instance) -> Iterator[bytes]:
    _seek_value(stream, instance)
    size = instance.rows * instance.columns * instance.samples * instance.bits_allocated // 8
    for _ in instance.frames:
        data = stream.read(size)
        if len(data) < size:
            raise Truncated
        yield data


def _encapsulated(stream: BinaryIO, instance: Instance) -> Iterator[bytes]:
    if _seek_value(stream, instance) != _UNDEFINED:
        raise Undecodable(instance.transfer_syntax)
    if len(instance.frames) == 1:
        yield b"".join(_fragments(stream))
        return
    count = 0
    for count, data in enumerate(generate_frames(stream, number_of_frames=len(instance.frames)), 1):  # noqa: B007
        yield data
    if count < len(instance.frames):
        raise Truncated


def _fragments(stream: BinaryIO) -> Iterator[bytes]:
    """The items after the basic offset table (PS3.5 A.4)."""
    first = True
    while True:
        tag, length = struct.unpack("<4sI", stream.read(8))
        if tag == b"\xfe\xff\xdd\xe0":
            return
        data = stream.read(length)
        if tag != b"\xfe\xff\x00\xe0" or len(data) < length:
            raise Truncated
        if not first:
            yield data
        first = False


def decode(data: bytes, instance: Instance) -> tuple[np.ndarray, int]:
    """One frame as stored, and how many of its bits count.

    Returns:
        (rows, columns), an integer type, and the precision in bits.

    Raises:
        Undecodable: With the transfer syntax UID.
    """
    shape, syntax = (instance.rows, instance.columns), instance.transfer_syntax
    order = ">" if syntax == BIG_ENDIAN else "<"
    if instance.bits_allocated not in (8, 16, 32) or instance.samples != 1:
        raise Undecodable(syntax)
    dtype = np.dtype(f"{order}u{instance.bits_allocated // 8}")
    if syntax in _NATIVE:
        return np.frombuffer(data, dtype=dtype).reshape(shape), instance.bits_stored
    if syntax == _RLE:
        return _rle(data, instance, dtype), instance.bits_stored
    stream = code_stream(data)
    if stream is None or (stream.rows, stream.columns, stream.components) != (*shape, 1):
        raise Undecodable(syntax)
    if name := _DECODERS.get(syntax):
        pixels = _attempt(getattr(imagecodecs, name), data)
        if pixels is not None and pixels.shape == shape and pixels.dtype.kind in "iu":
            return pixels, min(instance.bits_stored, stream.precision)
    return _by_pydicom(data, instance), min(instance.bits_stored, stream.precision)


def _attempt(decoder: Callable[..., Any], *args: Any, **options: Any) -> np.ndarray | None:
    try:
        decoded = decoder(*args, **options)
    except _CODEC_ERRORS:
        return None
    # pydicom's decoders give the array and a description of it.
    return np.asarray(decoded[0] if isinstance(decoded, tuple) else decoded)


def _rle(data: bytes, instance: Instance, dtype: np.dtype) -> np.ndarray:
    out: Any = np.zeros((instance.rows, instance.columns), dtype=dtype)
    try:
        imagecodecs.dicomrle_decode(data, dtype, out=out)
    except _CODEC_ERRORS:
        return _by_pydicom(data, instance)
    return out


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
        pixels = _attempt(decoder.as_array, encapsulate([data]), index=0, raw=True, decoding_plugin=plugin, **options)
        if pixels is not None and pixels.shape == (instance.rows, instance.columns):
            return pixels
    raise Undecodable(instance.transfer_syntax)


def stored_values(pixels: np.ndarray, precision: int, instance: Instance) -> np.ndarray:
    """The stored values as numbers: bits above HighBit cut off (old files hold overlays there), the sign extended."""
    bits = 8 * pixels.dtype.itemsize
    shift = instance.high_bit + 1 - instance.bits_stored if instance.transfer_syntax in (*_NATIVE, _RLE) else 0
    if pixels.dtype.kind == "i":
        return pixels
    if precision == bits and shift <= 0:
        return pixels.view(pixels.dtype.str.replace("u", "i")) if instance.signed else pixels
    values = (pixels.astype(np.int64) >> max(0, shift)) & ((1 << precision) - 1)
    if instance.signed:
        sign = 1 << (precision - 1)
        values = (values ^ sign) - sign
    return values


def to_hu(stored: np.ndarray, frame: Frame) -> np.ndarray:
    """int16 HU: slope and intercept of this very frame, rounded, clipped to int16."""
    if frame.slope == 1 and frame.intercept == 0 and stored.dtype == np.int16:
        return stored
    if frame.slope.is_integer() and frame.intercept.is_integer() and abs(frame.slope) < 2**14:
        wide: Any = np.int32 if stored.dtype.itemsize <= 2 else np.int64
        hu = stored.astype(wide) * wide(frame.slope) + wide(np.clip(frame.intercept, -(2**30), 2**30))
    else:
        hu = np.rint(stored * np.float64(frame.slope) + np.float64(frame.intercept))
    return np.clip(hu, _INT16.min, _INT16.max).astype(np.int16)
