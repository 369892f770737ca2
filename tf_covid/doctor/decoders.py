"""Which DICOM transfer syntaxes decode here: each is tried on a frame that is encoded on the spot."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import CTImageStorage, generate_uid

from tf_covid.scan.dicom import header, pixels

#: What a codec or the reader raises where it does not work; imagecodecs' own errors are
#: RuntimeErrors.
ERRORS = (
    *(
        RuntimeError,
        ValueError,
        TypeError,
        AttributeError,
        ImportError,
        LookupError,
        OSError,
        struct.error,
    ),
    *(header.Damaged, pixels.Truncated, pixels.Undecodable),
)


@dataclass(frozen=True)
class Syntax:
    """A transfer syntax that we promise to read.

    Args:
        name, uid: What it is.
        encode: Makes the pixel data of one unsigned frame: the bytes themselves, or one code
            stream.
        bits: Stored bits of the frame.
        error: Largest difference of a stored value that its losses explain.
    """

    name: str
    uid: str
    encode: Callable[[np.ndarray], bytes]
    bits: int = 12
    error: int = 0


@dataclass(frozen=True)
class _InMemory:
    """A DICOM file that was never on disk, as the reader takes files."""

    data: bytes
    name: str = "frame"

    @property
    def size(self) -> int:
        return len(self.data)

    def open(self) -> BinaryIO:
        return io.BytesIO(self.data)


def _raw(frame: np.ndarray) -> bytes:
    return frame.astype("<u2").tobytes()


def _swapped(frame: np.ndarray) -> bytes:
    return frame.astype(">u2").tobytes()


def _rle(frame: np.ndarray) -> bytes:
    rows, columns = frame.shape
    described = {"rows": rows, "columns": columns, "samples_per_pixel": 1, "number_of_frames": 1}
    stored = {"bits_allocated": 16, "bits_stored": 12, "pixel_representation": 0}
    return RLELosslessEncoder.encode(
        _raw(frame), photometric_interpretation="MONOCHROME2", **described, **stored
    )


def _codec(name: str, **options: Any) -> Callable[[np.ndarray], bytes]:
    # Looked up at the call: an imagecodecs without a codec is a flag, not a crash.
    return lambda frame: bytes(getattr(imagecodecs, f"{name}_encode")(frame, **options))


_ROOT, _JPEG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.4"
SYNTAXES = (
    Syntax("implicit little endian", _ROOT, _raw),
    Syntax("explicit little endian", f"{_ROOT}.1", _raw),
    Syntax("deflated", f"{_ROOT}.1.99", _raw),
    Syntax("explicit big endian", f"{_ROOT}.2", _swapped),
    Syntax("RLE", f"{_ROOT}.5", _rle),
    Syntax("JPEG baseline", f"{_JPEG}.50", _codec("jpeg8", level=95), bits=8, error=6),
    Syntax("JPEG extended", f"{_JPEG}.51", _codec("jpeg8", level=95, bitspersample=12), error=24),
    Syntax(
        "JPEG lossless",
        f"{_JPEG}.57",
        _codec("jpeg8", lossless=True, predictor=6, bitspersample=12),
    ),
    Syntax(
        "JPEG lossless SV1",
        f"{_JPEG}.70",
        _codec("jpeg8", lossless=True, predictor=1, bitspersample=12),
    ),
    Syntax("JPEG-LS", f"{_JPEG}.80", _codec("jpegls")),
    Syntax("JPEG-LS near-lossless", f"{_JPEG}.81", _codec("jpegls", level=2), error=2),
    Syntax(
        "JPEG 2000 lossless",
        f"{_JPEG}.90",
        _codec("jpeg2k", codecformat="j2k", level=0, reversible=True),
    ),
    Syntax("JPEG 2000", f"{_JPEG}.91", _codec("jpeg2k", codecformat="j2k", level=90), error=16),
    Syntax("HTJ2K lossless", f"{_JPEG}.201", _codec("htj2k")),
)


def check() -> Iterator[tuple[str, str, str]]:
    """Encode a small frame in each transfer syntax, and read it as a hospital's file would be read.

    Yields:
        Name, UID, and what is wrong; empty where nothing is.
    """
    for syntax in SYNTAXES:
        yield syntax.name, syntax.uid, _broken(syntax)


def _broken(syntax: Syntax) -> str:
    """What is wrong with reading a transfer syntax; empty where nothing is."""
    ramp = np.arange(16) * (2**syntax.bits // 32)
    expected = np.add.outer(ramp, ramp)
    try:
        source = _InMemory(
            _dicom_file(syntax, expected.astype(np.uint8 if syntax.bits == 8 else np.uint16))
        )
        instance = header.read_header(source)
        if instance is None:
            return "not seen as an image"
        (data,) = pixels.raw_frames(instance, source)
        values = pixels.stored_values(*pixels.decode(data, instance), instance)
    except ERRORS as error:
        return f"{type(error).__name__}: {error}"
    worst = int(np.abs(values.astype(np.int64) - expected).max())
    return f"decodes to wrong values (by up to {worst})" if worst > syntax.error else ""


def _dicom_file(syntax: Syntax, frame: np.ndarray) -> bytes:
    """The bytes of a CT image with one frame."""
    dataset, meta = Dataset(), FileMetaDataset()
    meta.TransferSyntaxUID = syntax.uid
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.file_meta, dataset.Modality = meta, "CT"
    dataset.Rows, dataset.Columns = frame.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = (
        1,
        "MONOCHROME2",
        0,
    )
    dataset.BitsAllocated, dataset.BitsStored = 8 * frame.itemsize, syntax.bits
    dataset.HighBit = syntax.bits - 1
    data = syntax.encode(frame)
    compressed = meta.TransferSyntaxUID.is_encapsulated
    dataset.add_new(
        "PixelData", "OB" if compressed else "OW", encapsulate([data]) if compressed else data
    )
    dataset["PixelData"].is_undefined_length = compressed
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
