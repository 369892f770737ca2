"""The header text of NRRD and MHA files, read by us before ITK sees it.

Both formats may name other files that hold their data, and ITK follows. Its parsers also disagree with the eye about
where a line ends: MetaIO takes the next line as part of a number list that is too short, and so honours a later
`ElementDataFile`. So an NRRD header is believed only where every parser must agree, and an MHA header is written anew
from the values that we read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tf_covid.scan.checks import refusal

#: Longest header that is read.
HEADER_BYTES = 1 << 16


@dataclass(frozen=True)
class VolumeHeader:
    """What is needed before the voxels are read.

    Args:
        sizes: Of the stored axes.
        packed: Whether the voxels are compressed.
        voxel_bytes: Least bytes of one voxel.
        packed_bytes: Bytes of the compressed voxels, where the header says so.
        text: The header to give to ITK, without its last line; empty if the file's own is safe.
        length: Bytes of the file's own header.
    """

    sizes: tuple[int, ...]
    packed: bool
    voxel_bytes: int = 1
    packed_bytes: int = 0
    text: str = ""
    length: int = 0


def nrrd_header(head: bytes) -> VolumeHeader:
    """Read an NRRD header (http://teem.sourceforge.net/nrrd/format.html); it ends at the first empty line.

    Raises:
        ScanRefused: `not_nrrd`, `bad_header`, `detached_data`.
    """
    if not head.startswith(b"NRRD000"):
        raise refusal("not_nrrd", "The file is not NRRD.")
    text, end, _ = head.decode("latin-1").replace("\r\n", "\n").partition("\n\n")
    if not end:
        raise refusal("detached_data", "The NRRD header has no end: its data lie in another file, or it is damaged.")
    if "\r" in text or "\0" in text:
        # Whether these end a line is where two parsers could disagree.
        raise refusal("bad_header", "The NRRD header holds a lone carriage return or a NUL.")
    fields: dict[str, str] = {}
    for line in text.split("\n")[1:]:
        if line.startswith("#"):
            continue
        key, colon, value = line.partition(":")
        name = re.sub(r"[\s_-]", "", key).lower()
        if "datafile" in name:
            raise refusal("detached_data", "The NRRD header points to data in another file; such files are not read.")
        if colon:
            fields[name] = value.lstrip("=").strip()
    sizes = _integers(fields.get("sizes", ""))
    if not sizes:
        raise refusal("bad_header", "The NRRD header states no sizes.")
    packed = fields.get("encoding", "").lower() not in ("raw", "txt", "text", "ascii", "hex")
    return VolumeHeader(sizes, packed)


#: Bytes of MetaImage's scalar types; on 64-bit Linux its LONG has 8, elsewhere it may have 4.
_VOXEL_BYTES = {
    **{"MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4},
    **{"MET_LONG": 4, "MET_ULONG": 4, "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_FLOAT": 4, "MET_DOUBLE": 8},
}
#: Synonyms of MetaImage's keys (https://itk.org/Wiki/ITK/MetaIO/Documentation).
_SYNONYMS = {
    "position": "offset",
    "origin": "offset",
    "orientation": "transformmatrix",
    "rotation": "transformmatrix",
    "elementbyteordermsb": "binarydatabyteordermsb",
    "elementsize": "elementspacing",
}


def mha_header(head: bytes) -> VolumeHeader:
    """Read an MHA header and write it anew; its last line is `ElementDataFile = LOCAL`.

    Raises:
        ScanRefused: `not_mha`, `bad_header`, `detached_data`.
    """
    text = head.decode("latin-1")
    found = re.search("elementdatafile", text, re.IGNORECASE)
    if not found or not re.match(r"\s*(ObjectType|NDims|Comment)\b", text):
        raise refusal("not_mha", "The file is not a MetaImage with its own data.")
    begin, end = text.rfind("\n", 0, found.start()) + 1, text.find("\n", found.start()) + 1
    if not end or not re.fullmatch(r"ElementDataFile\s*=\s*(LOCAL|Local|local)\s*", text[begin:end]):
        raise refusal("detached_data", "The MHA header points to data in another file; such files are not read.")
    fields = {}
    for line in text[:begin].splitlines():
        key, _, value = line.partition("=")
        name = key.strip().lower()
        fields[_SYNONYMS.get(name, name)] = value.strip()
    sizes = _integers(fields.get("dimsize", ""))
    axes = len(sizes)
    if not sizes or fields.get("ndims") != str(axes) or _integers(fields.get("headersize", "0")) != (0,):
        raise refusal("bad_header", "The MHA header states no usable NDims, DimSize or HeaderSize.")
    if fields.get("elementtype") not in _VOXEL_BYTES:
        raise refusal("bad_header", "The MHA header states no usable ElementType.")
    if not _true(fields, "binarydata", default=True):
        raise refusal("bad_header", "Voxels as text are not read.")
    packed = _true(fields, "compresseddata")
    size = fields.get("compresseddatasize", "")
    packed_bytes = int(size) if packed and re.fullmatch(r"\d{1,12}", size) else 0
    upright = [float(row == column) for row in range(axes) for column in range(axes)]
    lines = [
        "ObjectType = Image",
        f"NDims = {axes}",
        "BinaryData = True",
        f"BinaryDataByteOrderMSB = {_true(fields, 'binarydatabyteordermsb')}",
        f"CompressedData = {packed}",
        *([f"CompressedDataSize = {packed_bytes}"] if packed_bytes else []),
        f"TransformMatrix = {_floats(fields, 'transformmatrix', upright)}",
        f"Offset = {_floats(fields, 'offset', [0.0] * axes)}",
        f"ElementSpacing = {_floats(fields, 'elementspacing', [1.0] * axes)}",
        f"DimSize = {' '.join(map(str, sizes))}",
        f"ElementNumberOfChannels = {(_integers(fields.get('elementnumberofchannels', '1')) or (1,))[0]}",
        f"ElementType = {fields['elementtype']}",
        f"HeaderSize = {end}",
    ]
    return VolumeHeader(
        sizes,
        packed,
        voxel_bytes=_VOXEL_BYTES[fields["elementtype"]],
        packed_bytes=packed_bytes,
        text="".join(f"{line}\n" for line in lines),
        length=end,
    )


def _true(fields: dict[str, str], name: str, default: bool = False) -> bool:
    return fields.get(name, str(default)).lower() in ("true", "1", "t")


def _floats(fields: dict[str, str], name: str, default: list[float]) -> str:
    """As many numbers as `default` has, as text that can only be numbers."""
    try:
        numbers = [float(word) for word in fields[name].split()] if name in fields else default
    except ValueError:
        numbers = []
    if len(numbers) != len(default):
        raise refusal("bad_header", "The MHA header places its voxels with too few, too many or no numbers.")
    return " ".join(repr(number) for number in numbers)


def _integers(text: str) -> tuple[int, ...]:
    # At most seven digits a size: longer ones are no image, and would cost time to multiply.
    words = text.split()
    return tuple(int(word) for word in words) if all(re.fullmatch(r"\d{1,7}", word) for word in words) else ()
