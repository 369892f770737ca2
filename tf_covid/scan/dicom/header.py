"""One DICOM file's header as plain values; the pixel data stay where they are.

Numbers are taken from the raw bytes of an element: hospital files end values in NUL, pad them, or
break the rules of their VR in ways that a validating parser warns about or refuses.
"""

from __future__ import annotations

import re
import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import data_element_generator, read_dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS

from tf_covid.scan import archive
from tf_covid.scan.dicom.encoding import Encoding, body, find_encoding
from tf_covid.scan.source import ScanFile

#: What pydicom and the file system raise on damaged files.
ERRORS = (
    BytesLengthException,
    InvalidDicomError,
    NotImplementedError,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    OverflowError,
    RecursionError,
    struct.error,
    zlib.error,
    *archive.ERRORS,
)
_KEYWORDS = (
    "SpecificCharacterSet",
    "ImageType",
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "AccessionNumber",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "AcquisitionNumber",
    "InstanceNumber",
    "SliceThickness",
    "ConvolutionKernel",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "TemporalPositionIndex",
    "SamplesPerPixel",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "PixelSpacing",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleIntercept",
    "RescaleSlope",
    "RescaleType",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "SeriesDescription",
    "BodyPartExamined",
)
_TAGS = [tag for tag in map(tag_for_keyword, _KEYWORDS) if tag is not None]
#: What objects made from a scan repeat of its header: whose it is, and of which study.
ATTRIBUTES = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "StudyInstanceUID",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyDescription",
    "SeriesInstanceUID",
    "SeriesNumber",
    "FrameOfReferenceUID",
)
_ATTRIBUTE_TAGS = [
    tag for tag in map(tag_for_keyword, ("SpecificCharacterSet", *ATTRIBUTES)) if tag is not None
]
#: A data set that holds one of these twice, with different values, cannot be read honestly.
DECIDING = {
    tag_for_keyword(keyword): keyword
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "SamplesPerPixel",
        "Rows",
        "Columns",
        "NumberOfFrames",
        "PixelSpacing",
        "BitsAllocated",
        "BitsStored",
        "HighBit",
        "PixelRepresentation",
        "PixelPaddingValue",
        "PixelPaddingRangeLimit",
        "RescaleIntercept",
        "RescaleSlope",
        "RescaleType",
        "SharedFunctionalGroupsSequence",
        "PerFrameFunctionalGroupsSequence",
        "PixelData",
    )
}
_PIXELS = 0x7FE00000
_CT_CLASSES = "1.2.840.10008.5.1.4.1.1.2"
#: A decimal string (PS3.5 6.2); the decimal comma of some writers is read as a point: a backslash
#: parts the values.
_DECIMAL = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?|[+-]?(nan|inf)", re.IGNORECASE)
_NUMBER_LIKE = re.compile(r"[0-9eE+.,\- ]{1,32}")


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
    """A DICOM file with an image.

    `name` finds its source again; `pixel_offset` is where the first element of group 7FE0 begins;
    `encoding` is what its bytes are; `declared_frames` is NumberOfFrames; `twice` names the
    deciding elements that occur twice and differ; `overlay` says that overlays lie in bits above
    the stored ones.
    """

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
    encoding: Encoding
    declared_frames: int
    twice: tuple[str, ...]
    overlay: bool
    series_description: str = ""
    body_part: str = ""


class Damaged(Exception):
    """The file calls itself DICOM and cannot be read.

    The text says which element, and what is wrong with it.
    """


def read_header(source: ScanFile) -> Instance | None:
    """The header of a DICOM image.

    None for every other file: foreign ones, DICOMDIR, reports, presentation states.

    Raises:
        Damaged: If the file is DICOM and its header cannot be read.
    """
    try:
        with source.open() as stream:
            encoding = find_encoding(stream)
            if encoding is None:
                return None
            return _read(body(stream, encoding), encoding, source.name)
    except ERRORS as error:
        raise Damaged(_reason(error)) from None


def read_attributes(source: ScanFile) -> dict[str, str]:
    """The texts of `ATTRIBUTES` in a header, in the file's character set; no empty ones.

    Values are those of the file, padding and line ends of its border apart, whatever their VR
    demands.
    """
    with suppress(*ERRORS), source.open() as stream:
        encoding = find_encoding(stream)
        if encoding is None:
            return {}
        content = body(stream, encoding)
        content.seek(0 if encoding.deflated else encoding.offset)
        dataset = read_dataset(
            content,
            is_implicit_VR=encoding.implicit,
            is_little_endian=not encoding.big_endian,
            stop_when=lambda tag, vr, length: tag >= _PIXELS,
            specific_tags=_ATTRIBUTE_TAGS,
        )
        values = {keyword: _decoded(dataset, keyword) for keyword in ATTRIBUTES}
        return {keyword: value for keyword, value in values.items() if value}
    return {}


#: Values that are numbers or items; a text under such a VR is none.
_NO_TEXT = {
    "SQ",
    "FD",
    "FL",
    "US",
    "SS",
    "UL",
    "SL",
    "AT",
    "OW",
    "OF",
    "OD",
    "OL",
    "OV",
    "UV",
    "SV",
}


def _decoded(dataset: Dataset, keyword: str) -> str:
    """A text in the file's character set; where that is unknown or does not fit, in Latin-1."""
    element = _raw(dataset, keyword)
    if element is None or element.VR in _NO_TEXT:
        return ""
    if not isinstance(element.value, bytes):
        return _text(dataset, keyword)
    latin_1 = element.value.decode("latin-1")
    name = keyword in ("PatientName", "ReferringPhysicianName")
    with suppress(*ERRORS, LookupError):
        encodings = convert_encodings(dataset.get("SpecificCharacterSet") or "")
        text = decode_bytes(element.value, encodings, PN_DELIMS if name else TEXT_VR_DELIMS)
        # Another patient's id may differ by the letter that a replacement stands for.
        return (latin_1 if "\ufffd" in text else text).strip(" \0\t\r\n")
    return latin_1.strip(" \0\t\r\n")


def _reason(error: Exception) -> str:
    if isinstance(error, (EOFError, struct.error)):
        return "the file ends within its header"
    if isinstance(error, zlib.error):
        return "the deflated data set cannot be unpacked"
    if isinstance(error, ValueError) and "deflated" in str(error):
        return str(error)
    if isinstance(error, OSError):
        return "the file cannot be opened or read"
    return "an element of the header breaks the rules of DICOM"


def _read(stream: BinaryIO, encoding: Encoding, name: str) -> Instance | None:
    seen: set[int] = set()
    twice: set[int] = set()
    reached = False

    def stop(tag: int, vr: str | None, length: int) -> bool:
        nonlocal reached
        (twice if tag in seen else seen).add(int(tag))
        reached = tag >= _PIXELS
        return reached

    start = stream.seek(0 if encoding.deflated else encoding.offset)
    dataset = read_dataset(
        stream,
        is_implicit_VR=encoding.implicit,
        is_little_endian=not encoding.big_endian,
        stop_when=stop,
        specific_tags=_TAGS,
    )
    offset = stream.tell()
    differ: tuple[str, ...] = ()
    if twice & DECIDING.keys():
        stream.seek(start)
        differ = _differing(stream, encoding)
    overlay = any(tag >> 16 & 0xFF01 == 0x6000 and tag & 0xFFFF == 0x0102 for tag in seen)
    return _instance(
        dataset, name, encoding, offset, reached=reached, twice=differ, overlay=overlay
    )


def _differing(stream: BinaryIO, encoding: Encoding) -> tuple[str, ...]:
    """Keywords of the deciding elements that occur more than once with different values."""
    values: dict[str, set[str]] = {}
    elements = data_element_generator(
        stream, encoding.implicit, not encoding.big_endian, lambda tag, vr, length: tag >= _PIXELS
    )
    for element in elements:
        if keyword := DECIDING.get(int(element.tag)):
            values.setdefault(keyword, set()).add(str(element.value))
    return tuple(sorted(keyword for keyword, results in values.items() if len(results) > 1))


def _instance(
    dataset: Dataset,
    name: str,
    encoding: Encoding,
    offset: int,
    *,
    reached: bool,
    twice: tuple[str, ...],
    overlay: bool,
) -> Instance | None:
    rows, columns = _unsigned(dataset, "Rows"), _unsigned(dataset, "Columns")
    if not rows or not columns:
        if not reached and _text(dataset, "SOPClassUID").startswith(_CT_CLASSES):
            raise Damaged(
                "the file ends before its pixel data, and before Rows (0028,0010) or Columns"
                " (0028,0011)"
            )
        return None
    signed = _unsigned(dataset, "PixelRepresentation") == 1
    allocated = _unsigned(dataset, "BitsAllocated") or 16
    stored = min(_unsigned(dataset, "BitsStored") or allocated, allocated)
    return Instance(
        name=name,
        transfer_syntax=encoding.syntax,
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
        series_number=_whole(dataset, "SeriesNumber"),
        acquisition=_text(dataset, "AcquisitionNumber"),
        number=_whole(dataset, "InstanceNumber"),
        rows=rows,
        columns=columns,
        samples=_unsigned(dataset, "SamplesPerPixel") or 1,
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=(
            _unsigned(dataset, "HighBit") if _raw(dataset, "HighBit") is not None else stored - 1
        ),
        signed=signed,
        padding=_padding(dataset, signed),
        frames=_frames(dataset),
        series_description=_text(dataset, "SeriesDescription"),
        body_part=_text(dataset, "BodyPartExamined"),
        encoding=encoding,
        declared_frames=_whole(dataset, "NumberOfFrames", 1) or 1,
        twice=twice,
        overlay=overlay,
    )


def _frames(dataset: Dataset) -> tuple[Frame, ...]:
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence")
    if not per_frame:
        count = max(1, _whole(dataset, "NumberOfFrames", 1))
        # A classic instance has one position; a multi-frame one without groups has none that can be
        # trusted.
        return (_frame(dataset, {}, 0),) if count == 1 else ()
    common = _groups((dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0])
    return tuple(
        _frame(dataset, common | _groups(item), index) for index, item in enumerate(per_frame)
    )


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
    results: dict[str, Dataset] = {}
    for macro, keywords in _MACROS.items():
        sequence = item.get(macro)
        if sequence:
            results |= {keyword: sequence[0] for keyword in keywords if keyword in sequence[0]}
    return results


def _frame(dataset: Dataset, groups: dict[str, Dataset], index: int) -> Frame:
    def holder_of(keyword: str) -> Dataset:
        return groups.get(keyword, dataset)

    type_keyword = "FrameType" if "FrameType" in groups else "ImageType"
    return Frame(
        index=index,
        position=_numbers(holder_of("ImagePositionPatient"), "ImagePositionPatient"),
        orientation=_numbers(holder_of("ImageOrientationPatient"), "ImageOrientationPatient"),
        spacing=_numbers(holder_of("PixelSpacing"), "PixelSpacing"),
        slope=_number(holder_of("RescaleSlope"), "RescaleSlope", 1.0),
        intercept=_number(holder_of("RescaleIntercept"), "RescaleIntercept", 0.0),
        rescale_type=_text(holder_of("RescaleType"), "RescaleType").upper(),
        kernel=_text(holder_of("ConvolutionKernel"), "ConvolutionKernel").split("\\")[0].strip(),
        thickness=_lesser(holder_of("SliceThickness"), "SliceThickness", 0.0),
        image_type=tuple(
            part.strip().upper()
            for part in _text(holder_of(type_keyword), type_keyword).split("\\")
        ),
    )


def _raw(dataset: Dataset, keyword: str) -> RawDataElement | DataElement | None:
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
    """The patient's name in the file's character set.

    It serves only to keep it out of every output.
    """
    with suppress(*ERRORS, LookupError):
        return str(dataset.get("PatientName", "")).strip(" \0")
    return _text(dataset, "PatientName")


def _numbers(dataset: Dataset, keyword: str) -> tuple[float, ...]:
    """The values of a needed decimal string.

    Raises:
        Damaged: If one of them is not a number.
    """
    text = _text(dataset, keyword)
    return (
        tuple(_decimal(part.strip(" \0\t\r\n"), keyword) for part in text.split("\\"))
        if text
        else ()
    )


def _decimal(text: str, keyword: str) -> float:
    if _DECIMAL.fullmatch(text):
        return float(text.replace(",", "."))
    tag = tag_for_keyword(keyword) or 0
    results = f'"{text}"' if _NUMBER_LIKE.fullmatch(text) else "letters or nothing"
    raise Damaged(
        f"{keyword} ({tag >> 16:04X},{tag & 0xFFFF:04X}) is not a number: {results} was found"
    )


def _number(dataset: Dataset, keyword: str, default: float) -> float:
    numbers = _numbers(dataset, keyword)
    return numbers[0] if numbers else default


def _lesser(dataset: Dataset, keyword: str, default: float) -> float:
    """A number that no voxel depends on: what is not a number counts as missing."""
    with suppress(Damaged):
        return _number(dataset, keyword, default)
    return default


def _whole(dataset: Dataset, keyword: str, default: int = 0) -> int:
    value = _lesser(dataset, keyword, default)
    return int(value) if abs(value) < 2**53 else default


def _unsigned(dataset: Dataset, keyword: str) -> int:
    return _integer(dataset, keyword, signed=False) or 0


def _integer(dataset: Dataset, keyword: str, *, signed: bool) -> int | None:
    element = _raw(dataset, keyword)
    if element is None:
        return None
    if isinstance(element.value, bytes):
        return int.from_bytes(
            element.value[:2], "little" if element.is_little_endian else "big", signed=signed
        )
    return int(element.value)


def _padding(dataset: Dataset, signed: bool) -> tuple[int, int] | None:
    """Lowest and highest stored value that means "outside the field of view"."""
    value = _integer(dataset, "PixelPaddingValue", signed=signed)
    if value is None:
        return None
    limit = _integer(dataset, "PixelPaddingRangeLimit", signed=signed)
    return (value, value) if limit is None else (min(value, limit), max(value, limit))
