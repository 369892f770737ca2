"""MetaImage (`.mha`; `.mhd` with its data file): header and voxels, by the format's documentation.

https://itk.org/Wiki/ITK/MetaIO/Documentation. MetaIO's own parser takes the next line as part of a
list of numbers that is too short, and honours a second `ElementDataFile`: here a line ends where it
ends, and a field is stated once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np

from tf_covid.result import QualityFlag
from tf_covid.scan.checks import refusal
from tf_covid.scan.geometry import disagreement, no_position
from tf_covid.scan.grid import RAS_TO_LPS, check_size, one_volume
from tf_covid.scan.limits import DEFAULT, Limits
from tf_covid.scan.payload import Coding, Layout, Slabs, Unpacked
from tf_covid.scan.source import ScanFile
from tf_covid.scan.volume import RawVolume

NAMES = (".mha", ".mhd")
#: Longest header that is read.
HEADER_BYTES = 1 << 20

_TYPES = {
    **{
        "MET_CHAR": "i1",
        "MET_UCHAR": "u1",
        "MET_SHORT": "i2",
        "MET_USHORT": "u2",
        "MET_INT": "i4",
        "MET_UINT": "u4",
    },
    **{"MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8"},
    **{"MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}
#: Names of one and the same field, in the order in which MetaIO reads them: the last one wins.
_OFFSET = ("offset", "position", "origin")
_MATRIX = ("rotation", "orientation", "transformmatrix")
_BYTE_ORDER = ("elementbyteordermsb", "binarydatabyteordermsb")
#: Letters of AnatomicalOrientation: where an axis comes from, as LPS directions.
_LETTERS = {
    "R": (0, 1.0),
    "L": (0, -1.0),
    "A": (1, 1.0),
    "P": (1, -1.0),
    "I": (2, 1.0),
    "S": (2, -1.0),
}


@dataclass(frozen=True)
class MetaHeader:
    """The fields of one header.

    Args:
        fields: Value by name, in lower case.
        data_file: What `ElementDataFile` says; empty for LOCAL, where the voxels follow.
        length: Bytes of the header.
    """

    fields: dict[str, str]
    data_file: str
    length: int

    def sizes(self) -> tuple[int, ...]:
        """DimSize, as many as NDims says.

        Raises:
            ScanRefused: `bad_header`.
        """
        sizes_text = self.fields.get("dimsize", "").split()
        if not sizes_text or not all(re.fullmatch(r"\d{1,7}", word) for word in sizes_text):
            raise refusal("bad_header", "The MetaImage header states no usable DimSize.")
        if self.fields.get("ndims") != str(len(sizes_text)):
            raise refusal(
                "bad_header", f"DimSize has {len(sizes_text)} numbers; NDims is missing or another."
            )
        return tuple(int(word) for word in sizes_text)

    def true(self, *names: str, default: bool = False) -> bool:
        """A field that is True or False; of several names the last that is there.

        Raises:
            ScanRefused: `bad_header` if it is neither.
        """
        results = [self.fields[name].lower() for name in names if name in self.fields]
        if not results:
            return default
        if results[-1] not in ("true", "t", "1", "yes", "false", "f", "0", "no"):
            raise refusal(
                "bad_header",
                "The MetaImage header has a field that should be True or False and is neither.",
            )
        return results[-1] in ("true", "t", "1", "yes")

    def numbers(self, name: str, count: int) -> np.ndarray | None:
        """A field of so many finite numbers; None if it is not there.

        Raises:
            ScanRefused: `bad_header`, `bad_affine`.
        """
        if name not in self.fields:
            return None
        text = self.fields[name]
        try:
            numbers = [float(word) for word in text.split()]
        except ValueError:
            numbers = []
        if len(numbers) != count or "_" in text:
            raise refusal("bad_header", f"The MetaImage header's {name} are not {count} numbers.")
        if not np.isfinite(numbers).all():
            raise refusal(
                "bad_affine",
                f"The MetaImage header's {name} hold a number that is none (NaN or infinity).",
            )
        return np.array(numbers)


def parse(head: bytes) -> MetaHeader:
    """The header that a file begins with; `ElementDataFile` is its last line.

    Args:
        head: The first `HEADER_BYTES` bytes, fewer if the file is shorter.

    Raises:
        ScanRefused: `not_mha`, `bad_header`, `detached_data`.
    """
    if not re.match(rb"\s*(ObjectType|NDims|Comment)\b", head):
        raise refusal("not_mha", "The file is not a MetaImage.")
    results = re.search(b"elementdatafile", head, re.IGNORECASE)
    if not results:
        if len(head) >= HEADER_BYTES:
            raise refusal(
                "bad_header", f"The MetaImage header does not end within {HEADER_BYTES} bytes."
            )
        raise refusal("not_mha", "The file is not a MetaImage: its header has no ElementDataFile.")
    begin, end = head.rfind(b"\n", 0, results.start()) + 1, head.find(b"\n", results.start()) + 1
    last = head[begin : end or len(head)].decode("latin-1")
    line = re.fullmatch(r"\s*ElementDataFile\s*=\s*([^\r\n]*?)\s*", last)
    if not line:
        raise refusal(
            "detached_data",
            "The MetaImage header names its data file in a way that readers take differently.",
        )
    fields: dict[str, str] = {}
    for text in head[:begin].decode("latin-1").splitlines():
        key, equals, value = text.partition("=")
        if not equals:
            continue
        name = key.strip().lower()
        if fields.get(name, value.strip()) != value.strip():
            raise refusal(
                "bad_header", "The MetaImage header states a field twice, and differently."
            )
        fields[name] = value.strip()
    if fields.get("objecttype", "Image").lower() != "image":
        raise refusal("not_mha", "The MetaImage header describes no image (ObjectType).")
    local = line[1].lower() == "local"
    if not end and local:
        raise refusal("truncated_file", "The file ends with its header.")
    return MetaHeader(fields, "" if local else line[1], end or len(head))


def data_file_field(source: ScanFile) -> str | None:
    """The data file as the header names it; None if the voxels follow the header.

    Raises:
        ScanRefused: `empty_file`, `not_mha`, `bad_header`, `detached_data`.
    """
    return _header(source).data_file or None


def _header(source: ScanFile) -> MetaHeader:
    if source.size == 0:
        raise refusal("empty_file", "The file is empty.")
    with source.open() as stream:
        return parse(stream.read(HEADER_BYTES))


@contextmanager
def open_metaimage(
    source: ScanFile, data: ScanFile | None = None, limits: Limits = DEFAULT
) -> Iterator[RawVolume]:
    """The volume in an MHA file, or in an MHD header and its data file.

    Args:
        source: The file, or the header.
        data: The one data file that the header names.
        limits: Bounds on sizes.

    Raises:
        ScanRefused: `empty_file`, `not_mha`, `bad_header`, `bad_affine`, `detached_data`,
            `truncated_file`, `damaged_file`, `length_mismatch`, `too_large`, `not_3d`,
            `not_scalar`, `single_slice`.
    """
    header = _header(source)
    if header.data_file and data is None:
        message = (
            "The header points to data in another file, which is read for .mhd only, from its own"
            " folder."
        )
        raise refusal("detached_data", message)
    shape = _shape(header, limits)
    if not header.true("binarydata", default=True):
        raise refusal("bad_header", "Voxels as text (BinaryData = False) are not read.")
    affine, flags = _affine(header)
    coding: Coding = "zlib" if header.true("compresseddata") else "raw"
    held_by, begin = (data, 0) if data is not None and header.data_file else (source, header.length)
    begin, from_the_end = _begin(header, begin)
    held, beyond = _packed_bytes(header, coding, held_by.size - begin)
    layout = Layout(
        shape,
        _dtype(header, held if coding == "raw" else 0, shape),
        coding,
        -1 if from_the_end else 0,
    )
    layout.check(held)
    if from_the_end:
        if coding != "raw":
            raise refusal("bad_header", "HeaderSize −1 is for voxels that are not compressed.")
        before = held - layout.needed
        layout = Layout(shape, layout.dtype, coding, before)
        if before:
            message = (
                f"The header has {before} bytes before the voxels passed over (HeaderSize −1),"
                " whatever they are."
            )
            flags += (QualityFlag("length_unchecked", "warning", message, before),)
    with held_by.open() as raw:
        raw.seek(begin)
        yield RawVolume(shape, affine, Slabs(Unpacked(raw, coding, held, beyond), layout), flags)


def _shape(header: MetaHeader, limits: Limits) -> tuple[int, int, int]:
    sizes = header.sizes()
    channels = header.fields.get("elementnumberofchannels", "1")
    if channels != "1":
        raise refusal(
            "not_scalar", "The voxels are colours or vectors (ElementNumberOfChannels), not HU."
        )
    check_size(sizes, limits)
    return one_volume(sizes)


def _dtype(header: MetaHeader, held: int, shape: tuple[int, int, int]) -> np.dtype:
    """The type of a stored voxel.

    LONG has 4 bytes, but 8 where old 64-bit programs wrote it: the length tells.
    """
    name = header.fields.get("elementtype", "")
    if name not in _TYPES:
        raise refusal(
            "bad_header", "The MetaImage header states no known ElementType of one number."
        )
    code = _TYPES[name]
    if name in ("MET_LONG", "MET_ULONG") and held == shape[0] * shape[1] * shape[2] * 8:
        code = code[0] + "8"
    return np.dtype(code).newbyteorder(">" if header.true(*_BYTE_ORDER) else "<")


def _begin(header: MetaHeader, local: int) -> tuple[int, bool]:
    """First byte of the voxels in their file, and whether they are its last bytes instead."""
    text = header.fields.get("headersize", "0")
    if not re.fullmatch(r"-1|\d{1,9}", text):
        raise refusal("bad_header", "The MetaImage header states a HeaderSize that is none.")
    size = int(text)
    if size > 0 and local and size != local:
        raise refusal(
            "bad_header",
            f"HeaderSize is {size}, but the header with its voxels has {local} bytes.",
            size,
        )
    return (local if size <= 0 else size), size < 0


def _packed_bytes(header: MetaHeader, coding: Coding, held: int) -> tuple[int, int]:
    """How many bytes the packed voxels take, and how many lie behind them."""
    text = header.fields.get("compresseddatasize", "")
    if coding == "raw" or not text or text == "0":
        return held, 0
    if not re.fullmatch(r"\d{1,12}", text):
        raise refusal(
            "bad_header", "The MetaImage header states a CompressedDataSize that is none."
        )
    if int(text) > held:
        message = f"CompressedDataSize is {text}; the file ends {int(text) - held} bytes earlier."
        raise refusal("truncated_file", message, held)
    return int(text), held - int(text)


def _affine(header: MetaHeader) -> tuple[np.ndarray, tuple[QualityFlag, ...]]:
    """(4, 4), stored index → RAS mm, and what the header leaves open."""
    count = len(header.sizes())
    spacing, flags = _spacing(header, count)
    offset, unlike = _one_of(header, _OFFSET, count, "Offset")
    matrix, unlike_too = _one_of(header, _MATRIX, count * count, "TransformMatrix")
    flags += unlike + unlike_too
    letters = header.fields.get("anatomicalorientation", "").upper()
    if matrix is None and letters != "RAI":
        message = (
            "The header states no TransformMatrix; left, posterior, superior (LPS) is assumed."
        )
        flags += (QualityFlag("orientation_unknown", "warning", message),)
    affine = np.eye(4)
    # The file lists one axis after the other: its rows are the columns of the matrix.
    directions = np.eye(count) if matrix is None else matrix.reshape(count, count).T
    lengths = np.linalg.norm(directions[:3, :3], axis=0)
    affine[:3, :3] = directions[:3, :3] * spacing[:3]
    if (np.abs(lengths - 1) > 0.01).any():
        message = (
            "TransformMatrix is no rotation; the voxels were sized by both it and ElementSpacing,"
            " as ITK does."
        )
        flags += (QualityFlag("affine_disagree", "warning", message),)
    if offset is not None:
        affine[:3, 3] = offset[:3]
    elif not flags:
        flags += (no_position(),)
    if matrix is not None and (text := _against(letters, affine)):
        message = f"TransformMatrix was taken, but {text} (AnatomicalOrientation)."
        flags += (QualityFlag("affine_disagree", "warning", message),)
    return RAS_TO_LPS @ affine, flags


def _spacing(header: MetaHeader, count: int) -> tuple[np.ndarray, tuple[QualityFlag, ...]]:
    """ElementSpacing, as ITK takes it; ElementSize where that is missing; else 1 mm."""
    spacing, size = (
        _positive(header, "ElementSpacing", count),
        _positive(header, "ElementSize", count),
    )
    if spacing is None and size is None:
        message = (
            "The header states no ElementSpacing; 1 mm is assumed, so every volume may be wrong."
        )
        return np.ones(count), (QualityFlag("spacing_unknown", "warning", message),)
    if spacing is None:
        spacing = size
    elif size is not None and (np.abs(size - spacing)[:3] > 0.01 * np.abs(spacing)[:3]).any():
        message = "ElementSpacing and ElementSize differ; ElementSpacing was taken, as ITK does."
        return spacing, (QualityFlag("affine_disagree", "warning", message),)
    return cast(np.ndarray, spacing), ()


def _positive(header: MetaHeader, title: str, count: int) -> np.ndarray | None:
    """A field of distances in mm, each above zero; None if it is not there.

    Raises:
        ScanRefused: `bad_header`, `bad_affine`.
    """
    sizes = header.numbers(title.lower(), count)
    if sizes is not None and (sizes[:3] <= 0).any():
        stated = " ".join(f"{size:g}" for size in sizes)
        message = (
            f"The MetaImage header's {title} is {stated}: a distance between voxels is above zero."
            " Write it anew."
        )
        raise refusal("bad_affine", message)
    return sizes


def _one_of(
    header: MetaHeader, names: tuple[str, ...], count: int, title: str
) -> tuple[np.ndarray | None, tuple[QualityFlag, ...]]:
    """The last of several names for one field, and a flag where they say different things."""
    results = [numbers for name in names if (numbers := header.numbers(name, count)) is not None]
    if not results:
        return None, ()
    if all(np.allclose(numbers, results[-1]) for numbers in results):
        return results[-1], ()
    message = (
        f"{title} is stated under several names with different numbers; the one that MetaIO takes"
        " was taken."
    )
    return results[-1], (QualityFlag("affine_disagree", "warning", message),)


def _against(letters: str, affine: np.ndarray) -> str:
    """How AnatomicalOrientation ("RAI": from right, front and below) contradicts the matrix."""
    if (
        len(letters) != 3
        or len({_LETTERS[letter][0] for letter in letters if letter in _LETTERS}) != 3
    ):
        return ""
    other = np.zeros((4, 4))
    for axis, letter in enumerate(letters):
        row, sign = _LETTERS[letter]
        other[row, axis] = sign
    size = np.linalg.norm(affine[:3, :3], axis=0)
    if (size <= 0).any() or ((affine[:3, :3] / size * other[:3, :3]).sum(axis=0) > 0.5).all():
        return ""
    return (
        disagreement(affine, np.hstack([other[:, :3] * [*size], np.zeros((4, 1))]))
        or "it is turned"
    )
