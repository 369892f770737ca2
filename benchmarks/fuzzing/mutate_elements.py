"""Values of DICOM elements that are changed.

In one slice, in every fourth, in half of them, in all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fuzzing.dicomfile import DicomFile, build, parse
from fuzzing.mutation import (
    OTHER_SERIES,
    PLAUSIBLE,
    SMALL,
    Changed,
    Mutation,
    images,
    part,
    with_files,
)
from fuzzing.seeds import Base

#: Gives the new value of a file's element; None takes the element out.
Value = Callable[[DicomFile], object]


@dataclass(frozen=True)
class Edit:
    """One new value of one element.

    Args:
        keyword: The element.
        label: The change, for people.
        value: The new value.
        some: What betrays it where some of the slices have it.
        every: What betrays it where all have it.
        harmless: Nothing in the answer depends on it.
    """

    keyword: str
    label: str
    value: Value
    some: str = "neighbour"
    every: str = ""
    harmless: bool = False


def _is(text: object) -> Value:
    return lambda file: text


def _times(keyword: str, factor: float, plus: int = 0) -> Value:
    return lambda file: int(file.number(keyword) * factor) + plus


def _numbers(file: DicomFile, keyword: str) -> list[float]:
    text = file.text(keyword)
    return [float(word) for word in text.split("\\")] if text else []


def _join(values: list[float]) -> str:
    return "\\".join(f"{value:.10g}" for value in values)


def _moved(x: float, z: float, scale: float = 1.0) -> Value:
    def move(file: DicomFile) -> object:
        at = _numbers(file, "ImagePositionPatient")
        return _join([at[0] + x, at[1], at[2] * scale + z]) if len(at) == 3 else "0\\0\\0"

    return move


def _scaled(keyword: str, *factors: float) -> Value:
    def scale(file: DicomFile) -> object:
        values = _numbers(file, keyword) or [1.0] * len(factors)
        return _join([value * factor for value, factor in zip(values, factors, strict=False)])

    return scale


def _flip_sign(file: DicomFile) -> object:
    return 1 - file.number("PixelRepresentation")


def _matrix() -> list[Edit]:
    changes = {
        "doubled": (2, 0),
        "halved": (0.5, 0),
        "+1": (1, 1),
        "-1": (1, -1),
        "0": (0, 0),
        "65535": (0, 65535),
    }
    return [
        Edit(keyword, label, _times(keyword, factor, plus), "length", "length")
        for keyword in ("Rows", "Columns")
        for label, (factor, plus) in changes.items()
    ]


def _bits() -> list[Edit]:
    return [
        *(Edit("BitsAllocated", str(bits), _is(bits), "length", "length") for bits in (8, 12, 32)),
        *(
            Edit("BitsStored", str(bits), _is(bits), "header", "header")
            for bits in (7, 8, 9, 10, 11, 17, 300)
        ),
        *(
            Edit("HighBit", str(bit), _is(bit), "header", "header")
            for bit in (0, 7, 9, 11, 14, 15, 255)
        ),
        Edit("PixelRepresentation", "flipped", _flip_sign),
        *(Edit("SamplesPerPixel", str(n), _is(n), "length", "length") for n in (2, 3)),
        *(
            Edit("PhotometricInterpretation", text, _is(text), "left out", "header")
            for text in ("MONOCHROME1", "RGB", "PALETTE COLOR", "YBR_FULL")
        ),
        Edit("NumberOfFrames", "1", _is("1"), harmless=True),
        *(
            Edit("NumberOfFrames", n, _is(n), "length", "length")
            for n in ("0", "2", "40", "-3", "99999999", "x")
        ),
        Edit("BitsStored", "missing", _is(None), "header", "header"),
        Edit("HighBit", "missing", _is(None), "header", "header"),
        Edit("PixelRepresentation", "missing", _is(None), "header", "header"),
    ]


def _rescale() -> list[Edit]:
    absurd = ("0", "1000", "0.001", "-1", "2", "0.5", "nan", "inf", "1e300", "1,0", "x", "")
    shifts = {
        "0": "header",
        "1000": "header",
        "-924": "",
        "-2024": "",
        "nan": "header",
        "1e9": "header",
        "x": "",
    }
    return [
        Edit("RescaleSlope", "missing", _is(None), every="header"),
        *(Edit("RescaleSlope", text or "empty", _is(text), every="header") for text in absurd),
        Edit("RescaleSlope", "1.03", _is("1.03"), ""),
        Edit("RescaleIntercept", "missing", _is(None), every="header"),
        Edit("RescaleIntercept", "empty", _is(""), every="header"),
        Edit("RescaleIntercept", "-1000", _is("-1000"), ""),
        *(
            Edit("RescaleIntercept", text, _is(text), every=witness)
            for text, witness in shifts.items()
        ),
        *(
            Edit("RescaleType", text, _is(text), "left out", "header")
            for text in ("OD", "Z_EFF", "XX", "HU_MOD")
        ),
        Edit("RescaleType", "missing", _is(None), harmless=True),
        *(Edit("PixelPaddingValue", str(value), _is(value), "") for value in (0, 24, 1064, -2000)),
    ]


def _geometry() -> list[Edit]:
    place, turn, size = "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"
    broken = ("0\\0", "nan\\0\\0", "0\\0\\0", "1e300\\0\\0", "0,5\\0\\0", "a\\b\\c", "")
    turns = {
        "rotated": ("0\\1\\0\\1\\0\\0", ""),
        "left-right": ("-1\\0\\0\\0\\1\\0", ""),
        "sagittal": ("0\\1\\0\\0\\0\\-1", ""),
        "too long": ("1.03\\0\\0\\0\\1.03\\0", "geometry"),
        "skewed": ("1\\0\\0\\0.05\\1\\0", "geometry"),
        "zeros": ("0\\0\\0\\0\\0\\0", "geometry"),
        "five": ("1\\0\\0\\0\\1", "geometry"),
        "words": ("L\\P", "geometry"),
    }
    return [
        Edit(place, "z + 1.5 mm", _moved(0, 1.5), "geometry"),
        Edit(place, "z + 5 mm", _moved(0, 5), "duplicate"),
        Edit(place, "z + 500 mm", _moved(0, 500), "geometry"),
        Edit(place, "x + 30 mm", _moved(30, 0), "geometry"),
        Edit(place, "z × 1.6", _moved(0, 0, 1.6), "geometry"),
        Edit(place, "z × -1", _moved(0, 0, -1), "geometry"),
        Edit(place, "z × 1000", _moved(0, 0, 1000), "geometry", "geometry"),
        Edit(place, "z × 0.01", _moved(0, 0, 0.01), "geometry", "geometry"),
        Edit(place, "missing", _is(None), "geometry", "geometry"),
        *(Edit(place, text or "empty", _is(text), "geometry", "geometry") for text in broken),
        *(
            Edit(turn, label, _is(text), "geometry", every)
            for label, (text, every) in turns.items()
        ),
        Edit(turn, "missing", _is(None), "geometry", "geometry"),
        Edit(size, "× 1.3", _scaled(size, 1.3, 1.3), "geometry"),
        Edit(size, "× 0.5", _scaled(size, 0.5, 0.5), "geometry"),
        Edit(size, "uneven", _scaled(size, 1, 0.5), "geometry"),
        Edit(size, "× 100", _scaled(size, 100, 100), "geometry", "geometry"),
        Edit(size, "× 0.001", _scaled(size, 0.001, 0.001), "geometry", "geometry"),
        Edit(size, "negative", _scaled(size, -1, -1), "geometry", "geometry"),
        *(
            Edit(size, text or "empty", _is(text), "geometry", "geometry")
            for text in ("0\\0", "7.5", "nan\\nan", "")
        ),
        Edit(size, "missing", _is(None), "geometry", "geometry"),
    ]


def _identity() -> list[Edit]:
    mr, capture = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.7"
    types = (
        "ORIGINAL\\PRIMARY\\LOCALIZER",
        "DERIVED\\SECONDARY\\MIP",
        "DERIVED\\SECONDARY\\MPR",
        "DERIVED\\SECONDARY",
    )
    return [
        *(
            Edit("Modality", text or "empty", _is(text), "left out", "left out")
            for text in ("MR", "OT", "PT", "")
        ),
        *(
            Edit("SOPClassUID", uid, _is(uid), "left out", "left out")
            for uid in (mr, capture, "1.2.3")
        ),
        Edit("SOPClassUID", "missing", _is(None), "left out", "left out"),
        *(Edit("ImageType", text, _is(text), "left out", "") for text in types),
        Edit("ImageType", "missing", _is(None), "left out", ""),
        Edit("ConvolutionKernel", "another", _is("B30f"), "left out"),
        Edit("ConvolutionKernel", "missing", _is(None), "left out"),
        Edit("SeriesInstanceUID", "another", _is("1.2.3.4"), ""),
        Edit("SeriesInstanceUID", "missing", _is(None), "left out"),
        Edit("StudyInstanceUID", "another", _is("1.2.3.5"), ""),
        Edit("StudyInstanceUID", "missing", _is(None), "left out"),
        Edit("PatientID", "another", _is("MQ-000009"), ""),
        Edit("PatientID", "empty", _is(""), "left out"),
        Edit("AcquisitionNumber", "2", _is("2"), "left out"),
    ]


def _unneeded() -> list[Edit]:
    words = ("ANONYMIZED", "5,0", "", "999999999999999", "1_0", "nan")
    numbers = (
        "SliceThickness",
        "SeriesNumber",
        "InstanceNumber",
        "AcquisitionNumber",
        "TemporalPositionIndex",
    )
    texts = {
        "PatientPosition": "FFS",
        "SpecificCharacterSet": "ISO_IR 999",
        "PatientName": "A^B\xe4",
        "KVP": "x",
        "PatientBirthDate": "19-1-1",
        "StudyDate": "yesterday",
        "FrameOfReferenceUID": "1.2.3",
        "BodyPartExamined": "",
    }
    return [
        *(
            Edit(keyword, word or "empty", _is(word), harmless=True)
            for keyword in numbers
            for word in words
        ),
        *(
            Edit(keyword, text or "empty", _is(text), harmless=True)
            for keyword, text in texts.items()
        ),
    ]


EDITS = (*_matrix(), *_bits(), *_rescale(), *_geometry(), *_identity(), *_unneeded())


def edited(base: Base, edit: Edit, slices: list[int]) -> Base:
    """The base with an edit in some of its slices."""
    members, changes = images(base), {}
    for number in slices:
        member = members[number]
        file = parse(base.members[member][1])
        value = edit.value(file)
        changes[member] = build(
            file.drop(edit.keyword) if value is None else file.set(edit.keyword, value)
        )
    return with_files(base, changes)


def _apply(prefix: str) -> Callable[[np.random.Generator, Base], Changed | None]:
    edits = [edit for edit in EDITS if edit.keyword == prefix]

    def apply(rng: np.random.Generator, base: Base) -> Changed | None:
        edit = edits[int(rng.integers(len(edits)))]
        if base.family == "enhanced" and edit.keyword in _PER_FRAME:
            return None
        name, slices = part(rng, len(images(base)))
        betrayed = edit.every if name == "all" else edit.some
        why = (
            PLAUSIBLE
            if name == "all"
            else OTHER_SERIES
            if "UID" in edit.keyword or "ID" in edit.keyword
            else SMALL
        )
        if edit.keyword == "SeriesInstanceUID" and edit.label == "another" and name == "fourth":
            betrayed = "geometry"  # one grid, interleaved
        return Changed(
            edited(base, edit, slices),
            f"{edit.keyword} {edit.label} in {name}",
            betrayed,
            why,
            edit.harmless,
        )

    return apply


_PER_FRAME = (
    *(
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "SliceThickness",
        "NumberOfFrames",
    ),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "ConvolutionKernel"),
)

MUTATIONS = tuple(
    Mutation("structure", f"value: {keyword}", ("dicom", "enhanced"), _apply(keyword), share)
    for keyword, share in {
        **{edit.keyword: 1 for edit in EDITS},
        **dict.fromkeys(("Rows", "Columns", "BitsStored", "NumberOfFrames", "PixelSpacing"), 2),
        **dict.fromkeys(
            ("RescaleSlope", "RescaleIntercept", "ImagePositionPatient", "ImageOrientationPatient"),
            3,
        ),
    }.items()
)
