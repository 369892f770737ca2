"""NRRD (`.nrrd`; `.nhdr` with its data file): header and voxels, by the format's definition.

http://teem.sourceforge.net/nrrd/format.html decides; what ITK makes of files that say too little is
made of them too,
and flagged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from tf_covid.result import QualityFlag
from tf_covid.scan.checks import refusal
from tf_covid.scan.grid import check_size
from tf_covid.scan.limits import DEFAULT, Limits
from tf_covid.scan.nrrd_geometry import nrrd_affine
from tf_covid.scan.payload import Coding, Layout, Slabs, Unpacked
from tf_covid.scan.source import ScanFile
from tf_covid.scan.volume import RawVolume

NAMES = (".nrrd", ".nhdr")
#: Longest header that is read: exports of DICOM write their whole header into key/value pairs.
HEADER_BYTES = 1 << 20
#: Most lines between header and voxels that are passed over, and the longest of them.
_MOST_LINES = 10_000
_LONGEST_LINE = 1 << 16
#: A number of voxels in a header has at most seven digits: longer ones are no image, and cost time
#: to multiply.
_SIZE = re.compile(r"\d{1,7}")

_CODINGS: dict[str, Coding] = {
    "raw": "raw",
    **dict.fromkeys(("gzip", "gz"), "gzip"),
    **dict.fromkeys(("bzip2", "bz2"), "bzip2"),
    "hex": "hex",
    **dict.fromkeys(("txt", "text", "ascii"), "text"),
}
_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(
        ("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"
    ),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(
        (
            "longlong",
            "long long",
            "long long int",
            "signed long long",
            "signed long long int",
            "int64",
            "int64_t",
        ),
        "i8",
    ),
    **dict.fromkeys(
        ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
        "u8",
    ),
    "float": "f4",
    "double": "f8",
}
#: All fields of the format, without their spaces; other lines are an error to its reference reader.
_FIELDS = frozenset(
    (
        *(
            "type",
            "blocksize",
            "dimension",
            "spacedimension",
            "space",
            "sizes",
            "spacings",
            "thicknesses",
            "axismins",
        ),
        *(
            "axismaxs",
            "centerings",
            "labels",
            "units",
            "kinds",
            "encoding",
            "endian",
            "content",
            "min",
            "max",
            "oldmin",
        ),
        *(
            "oldmax",
            "datafile",
            "lineskip",
            "byteskip",
            "sampleunits",
            "spaceunits",
            "spaceorigin",
            "spacedirections",
        ),
        *("measurementframe", "number"),
    )
)
#: Kinds of axes that lie in space, or hold nothing else of their own.
_SPATIAL_KINDS = ("domain", "space", "???", "none", "stub", "scalar")


@dataclass(frozen=True)
class NrrdHeader:
    """The fields of one header.

    Args:
        fields: Value by name, in lower case without spaces; key/value pairs are left out.
        length: Bytes of the header with its empty line.
        ended: Whether an empty line ends it; only a detached header may go without.
        unknown: Lines that are no comment and no field of the format.
    """

    fields: dict[str, str]
    length: int
    ended: bool
    unknown: int = 0


def parse(head: bytes) -> NrrdHeader:
    """The header that a file begins with.

    Args:
        head: The first `HEADER_BYTES` bytes, fewer if the file is shorter.

    Raises:
        ScanRefused: `not_nrrd`, `bad_header`.
    """
    if not head.startswith(b"NRRD000"):
        raise refusal("not_nrrd", "The file is not NRRD.")
    end = re.search(rb"\r?\n\r?\n", head)
    if end is None and len(head) >= HEADER_BYTES:
        raise refusal("bad_header", f"The NRRD header does not end within {HEADER_BYTES} bytes.")
    text = head[: end.start() if end else len(head)].decode("latin-1").replace("\r\n", "\n")
    if "\r" in text or "\0" in text:
        # Whether these end a line is where two parsers could disagree.
        raise refusal("bad_header", "The NRRD header holds a lone carriage return or a NUL.")
    fields: dict[str, str] = {}
    unknown = 0
    for line in text.split("\n")[1:]:
        key, colon, value = line.partition(":")
        if line.startswith("#") or not line.strip():
            continue
        name = re.sub(r"[\s_-]", "", key).lower()
        if value.startswith("="):
            if "datafile" in name:
                raise refusal(
                    "detached_data",
                    "The NRRD header names a data file in a form that is not a field.",
                )
            continue
        name = {"centers": "centerings"}.get(name, name)
        unknown += not colon or name not in _FIELDS
        if fields.get(name, value.strip()) != value.strip():
            shown = name if name in _FIELDS else "one that the format does not have"
            raise refusal(
                "bad_header", f"The NRRD header states a field twice, and differently: {shown}."
            )
        fields[name] = value.strip()
    return NrrdHeader(fields, end.end() if end else len(head), end is not None, unknown)


def data_file_field(source: ScanFile) -> str | None:
    """The data file as the header names it; None if the voxels follow the header.

    Raises:
        ScanRefused: `empty_file`, `not_nrrd`, `bad_header`, `detached_data`.
    """
    return _header(source).fields.get("datafile")


def _header(source: ScanFile) -> NrrdHeader:
    if source.size == 0:
        raise refusal("empty_file", "The file is empty.")
    with source.open() as stream:
        return parse(stream.read(HEADER_BYTES))


@contextmanager
def open_nrrd(
    source: ScanFile, data: ScanFile | None = None, limits: Limits = DEFAULT
) -> Iterator[RawVolume]:
    """The volume in an NRRD file, or in a detached header and its data file.

    Args:
        source: The file, or the header.
        data: The one data file that a detached header names.
        limits: Bounds on sizes.

    Raises:
        ScanRefused: `empty_file`, `not_nrrd`, `bad_header`, `bad_affine`, `detached_data`,
            `truncated_file`, `damaged_file`, `length_mismatch`, `too_large`, `not_3d`,
            `not_scalar`, `single_slice`, `undecodable`.
    """
    header = _header(source)
    detached = "datafile" in header.fields
    if detached and data is None:
        message = (
            "The NRRD header points to data in another file, which is read for .nhdr only, from its"
            " own folder."
        )
        raise refusal("detached_data", message)
    if not detached and not header.ended:
        raise refusal(
            "detached_data",
            "The NRRD header has no end: its data lie in another file, or it is damaged.",
        )
    sizes, axes = _axes(header.fields)
    check_size(sizes, limits)
    affine, flags = nrrd_affine(header.fields, sizes, axes)
    if header.unknown:
        message = (
            f"{header.unknown} line(s) of the header are no field of NRRD and were passed over; one"
            " may be misspelt."
        )
        flags += (QualityFlag("unknown_fields", "warning", message, header.unknown),)
    shape = (sizes[axes[0]], sizes[axes[1]], sizes[axes[2]])
    coding, skip = _coding(header.fields), _whole(header.fields, "byteskip")
    held_by = data if data is not None and detached else source
    with held_by.open() as raw:
        begin = _skip_lines(
            raw, 0 if detached else header.length, _whole(header.fields, "lineskip")
        )
        held = held_by.size - begin
        layout = Layout(shape, _dtype(header.fields, coding), coding, skip)
        layout.check(held)
        if skip < 0:
            skipped, flag = _from_the_end(layout, held)
            layout, flags = Layout(shape, layout.dtype, coding, skipped), (*flags, *flag)
        yield RawVolume(shape, affine, Slabs(Unpacked(raw, coding, held), layout), flags)


def _from_the_end(layout: Layout, held: int) -> tuple[int, tuple[QualityFlag, ...]]:
    """`byte skip: -1`: the voxels are the last bytes.

    How many there should be is then not to be checked.
    """
    if layout.coding != "raw":
        raise refusal("bad_header", "byte skip −1 is for raw voxels only (NRRD definition).")
    before = held - layout.needed
    if not before:
        return 0, ()
    message = (
        f"The header has {before} bytes before the voxels passed over (byte skip −1), whatever they"
        " are."
    )
    return before, (QualityFlag("length_unchecked", "warning", message, before),)


def _axes(fields: dict[str, str]) -> tuple[tuple[int, ...], tuple[int, int, int]]:
    """All sizes, and the numbers of the three axes in space.

    Raises:
        ScanRefused: `bad_header`, `single_slice`, `not_3d`, `not_scalar`.
    """
    sizes_text = fields.get("sizes", "").split()
    if not sizes_text or not all(_SIZE.fullmatch(word) for word in sizes_text):
        raise refusal("bad_header", "The NRRD header states no usable sizes.")
    sizes = tuple(int(word) for word in sizes_text)
    if fields.get("dimension") != str(len(sizes)):
        raise refusal(
            "bad_header",
            f"The NRRD header has {len(sizes)} sizes; its dimension is missing or another.",
        )
    kinds = fields.get("kinds", "").lower().split()
    vectors = re.findall(r"none|\([^()]*\)", fields.get("spacedirections", "").lower())
    numbers = list(range(len(sizes)))
    for index in reversed(range(len(sizes))):
        spatial = index >= len(kinds) or kinds[index] in _SPATIAL_KINDS
        placed = index >= len(vectors) or vectors[index] != "none"
        if sizes[index] > 1 and not (spatial and placed):
            kind = kinds[index] if index < len(kinds) else ""
            code = "not_3d" if kind in ("time", "list", "") or spatial else "not_scalar"
            message = (
                f"The image has an axis of {sizes[index]} that is not in space (colours, vectors"
                " or times)."
            )
            raise refusal(code, message, sizes[index])
        if len(numbers) > 3 and sizes[index] == 1 and not (spatial and placed):
            numbers.remove(index)
    for index in reversed(range(len(sizes))):
        if len(numbers) > 3 and sizes[index] == 1:
            numbers.remove(index)
    if len(numbers) < 3:
        raise refusal("single_slice", "The image has one slice only; a scan is a volume.", 1)
    if len(numbers) > 3:
        raise refusal(
            "not_3d", f"The image has {len(numbers)} dimensions; one volume is read.", len(numbers)
        )
    return sizes, (numbers[0], numbers[1], numbers[2])


def _coding(fields: dict[str, str]) -> Coding:
    name = fields.get("encoding", "").lower()
    if name not in _CODINGS:
        message = "The encoding of the NRRD voxels is not one of raw, gzip, bzip2, hex and text."
        raise refusal("undecodable", message)
    return _CODINGS[name]


def _dtype(fields: dict[str, str], coding: Coding) -> np.dtype:
    name = " ".join(fields.get("type", "").lower().split())
    if name == "block":
        raise refusal("not_scalar", "The voxels are blocks of bytes, not HU.")
    if name not in _TYPES:
        raise refusal("bad_header", "The NRRD header states no known type.")
    dtype = np.dtype(_TYPES[name])
    if dtype.itemsize == 1 or coding == "text":
        return dtype
    order = fields.get("endian", "").lower()
    if order not in ("little", "big"):
        message = (
            f"The NRRD header does not say in which order (endian) the {dtype.itemsize} bytes of a"
            " voxel are."
        )
        raise refusal("bad_header", message)
    return dtype.newbyteorder("<" if order == "little" else ">")


def _whole(fields: dict[str, str], name: str) -> int:
    """Line skip or byte skip."""
    text = fields.get(name, "0")
    if not re.fullmatch(r"\d{1,9}" if name == "lineskip" else r"-1|\d{1,9}", text):
        raise refusal("bad_header", "The NRRD header states a line skip or byte skip that is none.")
    return int(text)


def _skip_lines(raw: BinaryIO, begin: int, lines: int) -> int:
    """Pass over lines behind `begin`; where the voxels begin."""
    if lines > _MOST_LINES:
        raise refusal(
            "bad_header",
            f"line skip is {lines}; at most {_MOST_LINES} lines are passed over.",
            lines,
        )
    raw.seek(begin)
    for _ in range(lines):
        line = raw.readline(_LONGEST_LINE)
        if not line.endswith(b"\n"):
            raise refusal(
                "bad_header",
                "The lines that the NRRD header wants passed over (line skip) are not there.",
            )
        begin += len(line)
    return begin
