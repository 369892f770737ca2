"""Which DICOM transfer syntaxes decode here: each is tried on a frame encoded on the spot."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, generate_uid

from tf_covid.phantom.encode import encode_frame
from tf_covid.scan.dicom import header, pixels, transfer_syntax
from tf_covid.scan.dicom.transfer_syntax import TransferSyntax

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


#: Largest difference of a stored value that the losses of a transfer syntax explain.
_LOSSES = {
    transfer_syntax.JPEG_BASELINE: 6,
    transfer_syntax.JPEG_EXTENDED: 24,
    transfer_syntax.JPEG_LS_NEAR: 2,
    transfer_syntax.JPEG_2000: 64,
}

#: Those that are tried: nothing here writes the others, which the same codec reads.
SYNTAXES = tuple(
    row
    for row in transfer_syntax.TRANSFER_SYNTAXES
    if row.uid not in (transfer_syntax.HTJ2K_LOSSLESS_RPCL, transfer_syntax.HTJ2K)
)


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


def check() -> Iterator[tuple[str, str, str]]:
    """Encode a small frame in each transfer syntax, and read it as a hospital's file would be read.

    Yields:
        Name, UID, and what is wrong; empty where nothing is.
    """
    for syntax in SYNTAXES:
        yield syntax.name, syntax.uid, _broken(syntax)


def _broken(syntax: TransferSyntax) -> str:
    """What is wrong with reading a transfer syntax; empty where nothing is."""
    bits = min(syntax.most_bits, 12)
    ramp = np.arange(16) * (2**bits // 32)
    expected = np.add.outer(ramp, ramp)
    try:
        source = _InMemory(
            _dicom_file(syntax, bits, expected.astype(np.uint8 if bits == 8 else np.uint16))
        )
        instance = header.read_header(source)
        if instance is None:
            return "not seen as an image"
        (data,) = pixels.raw_frames(instance, source)
        values = pixels.stored_values(*pixels.decode(data, instance), instance)
    except ERRORS as error:
        return f"{type(error).__name__}: {error}"
    worst = int(np.abs(values.astype(np.int64) - expected).max())
    return (
        f"decodes to wrong values (by up to {worst})" if worst > _LOSSES.get(syntax.uid, 0) else ""
    )


def _dicom_file(syntax: TransferSyntax, bits: int, frame: np.ndarray) -> bytes:
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
    dataset.BitsAllocated, dataset.BitsStored = 8 * frame.itemsize, bits
    dataset.HighBit = bits - 1
    data = encode_frame(frame, syntax.uid, bits)
    compressed = meta.TransferSyntaxUID.is_encapsulated
    dataset.add_new(
        "PixelData", "OB" if compressed else "OW", encapsulate([data]) if compressed else data
    )
    dataset["PixelData"].is_undefined_length = compressed
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
