"""One DICOM file's header as plain values; the pixel data stay where they are.

Numbers are taken from the raw bytes of an element: hospital files end values in NUL, pad them, or break the rules of
their VR in ways that a validating parser warns about or refuses.
"""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue

from tf_covid.scan import archive
from tf_covid.scan.source import Source

#: What pydicom and the file system raise on damaged files.
ERRORS = (
    InvalidDicomError, OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError,
    OverflowError, RecursionError, struct.error, zlib.error, *archive.ERRORS,
)  # fmt: skip
IMPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
EXPLICIT, DEFLATED = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"
#: Most bytes that a deflated data set may unpack to.
MOST_INFLATED = 1 << 30
_META_BYTES = 1 << 16
_LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
_KEYWORDS = (
    "SpecificCharacterSet", "ImageType", "SOPClassUID", "SOPInstanceUID",
    "Modality", "AccessionNumber", "PatientName", "PatientID",
    "PatientBirthDate", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber",
    "AcquisitionNumber", "InstanceNumber", "SliceThickness", "ConvolutionKernel",
    "ImagePositionPatient", "ImageOrientationPatient", "TemporalPositionIndex", "SamplesPerPixel",
    "Rows", "Columns", "NumberOfFrames", "PixelSpacing",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "RescaleIntercept", "RescaleSlope",
    "RescaleType", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "SeriesDescription", "BodyPartExamined",
)  # fmt: skip
_TAGS = [tag for tag in map(tag_for_keyword, _KEYWORDS) if tag is not None]


@dataclass(frozen=True, slots=True)
class Frame:
    """Where one frame lies in the patient, and how its stored values become HU."""

    index: int
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    slope: float
    intercept: float
    rescale_type: str
    kernel: str
    thickness: float
    image_type: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Instance:
    """A DICOM file with an image. `name` finds its source again; `pixel_offset` is where (7FE0,0010) begins."""

    name: str
    transfer_syntax: str
    pixel_offset: int
    sop_class: str
    sop_uid: str
    modality: str
    patient_id: str
    patient_name: str
    birth_date: str
    accession_number: str
    study_uid: str
    series_uid: str
    series_number: int
    acquisition: str
    number: int
    rows: int
    columns: int
    samples: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    padding: tuple[int, int] | None
    frames: tuple[Frame, ...]
    series_description: str = ""
    body_part: str = ""


class Damaged(Exception):
    """The file calls itself DICOM and cannot be read."""


def read_header(source: Source) -> Instance | None:
    """The header of a DICOM image; None for every other file: foreign ones, DICOMDIR, reports, presentation states.

    Raises:
        Damaged: If the file is DICOM and its header cannot be read.
    """
    try:
        with source.open() as stream:
            start = _start(stream.read(_META_BYTES))
            if start is None:
                return None
            syntax, offset = start
            body = inflate(stream) if syntax == DEFLATED else stream
            body.seek(0 if syntax == DEFLATED else offset)
            dataset = read_dataset(
                body,
                is_implicit_VR=syntax == IMPLICIT,
                is_little_endian=syntax != BIG_ENDIAN,
                stop_when=lambda tag, vr, length: tag >= 0x7FE00000,
                specific_tags=_TAGS,
            )
            return _instance(dataset, source.name, syntax, body.tell())
    except ERRORS:
        raise Damaged from None


def inflate(stream: BinaryIO) -> BinaryIO:
    """The unpacked data set of a deflated file, bounded."""
    stream.seek(0)
    start = _start(stream.read(_META_BYTES))
    stream.seek(start[1] if start else 0)
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    data = unpacker.decompress(stream.read(), MOST_INFLATED)
    if unpacker.unconsumed_tail:
        raise ValueError("the deflated data set is too large")
    return io.BytesIO(data)


def _start(head: bytes) -> tuple[str, int] | None:
    """Transfer syntax and offset of the data set, or None if the file is not DICOM.

    The meta group is walked here and not by pydicom, which would inflate a deflated file without a bound.
    """
    if head[128:132] == b"DICM":
        at = 132
    elif head[:2] in (b"\x02\x00", b"\x08\x00") and head[2:4] <= b"\x18\x00" and len(head) > 132:
        at = 0  # no preamble: some exports leave it out
    else:
        return None
    syntax = ""
    while head[at : at + 2] == b"\x02\x00":
        long = head[at + 4 : at + 6] in _LONG
        length = int.from_bytes(head[at + 8 : at + 12] if long else head[at + 6 : at + 8], "little")
        value = at + (12 if long else 8)
        if head[at : at + 4] == b"\x02\x00\x10\x00":
            syntax = head[value : value + length].decode("ascii").strip(" \0")
        at = value + length
    if at + 8 > len(head):
        raise EOFError("the file ends within its meta information")
    if not syntax:
        syntax = EXPLICIT if head[at + 4 : at + 6].isalpha() else IMPLICIT
    return syntax, at


def _instance(dataset: Dataset, name: str, syntax: str, offset: int) -> Instance | None:
    rows, columns = _unsigned(dataset, "Rows"), _unsigned(dataset, "Columns")
    if not rows or not columns:
        return None
    signed = _unsigned(dataset, "PixelRepresentation") == 1
    allocated = _unsigned(dataset, "BitsAllocated") or 16
    stored = min(_unsigned(dataset, "BitsStored") or allocated, allocated)
    return Instance(
        name=name,
        transfer_syntax=syntax,
        pixel_offset=offset,
        sop_class=_text(dataset, "SOPClassUID"),
        sop_uid=_text(dataset, "SOPInstanceUID"),
        modality=_text(dataset, "Modality").upper(),
        patient_id=_text(dataset, "PatientID"),
        patient_name=_name(dataset),
        birth_date=_text(dataset, "PatientBirthDate"),
        accession_number=_text(dataset, "AccessionNumber"),
        study_uid=_text(dataset, "StudyInstanceUID"),
        series_uid=_text(dataset, "SeriesInstanceUID"),
        series_number=int(_number(dataset, "SeriesNumber", 0)),
        acquisition=_text(dataset, "AcquisitionNumber"),
        number=int(_number(dataset, "InstanceNumber", 0)),
        rows=rows,
        columns=columns,
        samples=_unsigned(dataset, "SamplesPerPixel") or 1,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=_unsigned(dataset, "HighBit") if _raw(dataset, "HighBit") is not None else stored - 1,
        signed=signed,
        padding=_padding(dataset, signed),
        frames=_frames(dataset),
        series_description=_text(dataset, "SeriesDescription"),
        body_part=_text(dataset, "BodyPartExamined"),
    )


def _frames(dataset: Dataset) -> tuple[Frame, ...]:
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence")
    if not per_frame:
        count = max(1, int(_number(dataset, "NumberOfFrames", 1)))
        # A classic instance has one position; a multi-frame one without groups has none that can be trusted.
        return (_frame(dataset, {}, 0),) if count == 1 else ()
    common = _groups((dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0])
    return tuple(_frame(dataset, common | _groups(item), index) for index, item in enumerate(per_frame))


#: Functional group macro → its keywords that we need (PS3.3 C.7.6.16.2 and C.8.15.3).
_MACROS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
    "PixelValueTransformationSequence": ("RescaleIntercept", "RescaleSlope", "RescaleType"),
    "CTReconstructionSequence": ("ConvolutionKernel",),
    "CTImageFrameTypeSequence": ("FrameType",),
}


def _groups(item: Dataset) -> dict[str, Dataset]:
    """Keyword → the macro item that holds it."""
    found: dict[str, Dataset] = {}
    for macro, keywords in _MACROS.items():
        sequence = item.get(macro)
        if sequence:
            found |= {keyword: sequence[0] for keyword in keywords if keyword in sequence[0]}
    return found


def _frame(dataset: Dataset, groups: dict[str, Dataset], index: int) -> Frame:
    def place(keyword: str) -> Dataset:
        return groups.get(keyword, dataset)

    type_keyword = "FrameType" if "FrameType" in groups else "ImageType"
    return Frame(
        index=index,
        position=_numbers(place("ImagePositionPatient"), "ImagePositionPatient"),
        orientation=_numbers(place("ImageOrientationPatient"), "ImageOrientationPatient"),
        spacing=_numbers(place("PixelSpacing"), "PixelSpacing"),
        slope=_number(place("RescaleSlope"), "RescaleSlope", 1.0),
        intercept=_number(place("RescaleIntercept"), "RescaleIntercept", 0.0),
        rescale_type=_text(place("RescaleType"), "RescaleType").upper(),
        kernel=_text(place("ConvolutionKernel"), "ConvolutionKernel").split("\\")[0].strip(),
        thickness=_number(place("SliceThickness"), "SliceThickness", 0.0),
        image_type=tuple(part.strip().upper() for part in _text(place(type_keyword), type_keyword).split("\\")),
    )


def _raw(dataset: Dataset, keyword: str) -> Any:
    element = dataset.get_item(keyword)
    return None if element is None or element.value in (None, b"", "") else element


def _text(dataset: Dataset, keyword: str) -> str:
    element = _raw(dataset, keyword)
    if element is None:
        return ""
    if isinstance(element.value, bytes):
        return element.value.decode("latin-1").strip(" \0\t\r\n")
    values = element.value if isinstance(element.value, (list, MultiValue)) else [element.value]
    return "\\".join(str(value).strip(" \0") for value in values)


def _name(dataset: Dataset) -> str:
    """The patient's name in the file's character set; it serves only to keep it out of every output."""
    with suppress(*ERRORS, LookupError):
        return str(dataset.get("PatientName", "")).strip(" \0")
    return _text(dataset, "PatientName")


def _numbers(dataset: Dataset, keyword: str) -> tuple[float, ...]:
    text = _text(dataset, keyword)
    return tuple(float(part.strip(" \0")) for part in text.split("\\")) if text else ()


def _number(dataset: Dataset, keyword: str, default: float) -> float:
    numbers = _numbers(dataset, keyword)
    return numbers[0] if numbers else default


def _unsigned(dataset: Dataset, keyword: str) -> int:
    return _integer(dataset, keyword, signed=False) or 0


def _integer(dataset: Dataset, keyword: str, *, signed: bool) -> int | None:
    element = _raw(dataset, keyword)
    if element is None:
        return None
    if isinstance(element.value, bytes):
        return int.from_bytes(element.value[:2], "little" if element.is_little_endian else "big", signed=signed)
    return int(element.value)


def _padding(dataset: Dataset, signed: bool) -> tuple[int, int] | None:
    """Lowest and highest stored value that means "outside the field of view"."""
    value = _integer(dataset, "PixelPaddingValue", signed=signed)
    if value is None:
        return None
    limit = _integer(dataset, "PixelPaddingRangeLimit", signed=signed)
    return (value, value) if limit is None else (min(value, limit), max(value, limit))
