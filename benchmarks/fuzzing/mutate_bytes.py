"""Bytes of any file changed, zeroed, put in or taken out, and files that end early."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np

from fuzzing.dicomfile import DEFLATED, PIXELS, Element, build, parse
from fuzzing.mutation import PIXELS_ONLY, Changed, Mutation, images, with_files
from fuzzing.seeds import Base

_ALL = ("dicom", "enhanced", "nifti", "nrrd", "meta")
_JPEG = "1.2.840.10008.1.2.4."
#: Marker that ends a code stream.
_END = b"\xff\xd9"
#: Files of these names end in a check sum, or hold them throughout.
_SUMMED = ("nifti.gz", "nifti-float.gz", "nrrd-gzip", "nrrd-bzip2", "mha-zlib", "mhd-zraw")


def _target(rng: np.random.Generator, base: Base) -> int:
    """A member that holds voxels; of a header and its data file, either."""
    return int(rng.choice(images(base)))


def _zones(base: Base, member: int) -> tuple[int, int]:
    """Where the voxels of a file begin and end."""
    name, data = base.members[member]
    if base.family in ("dicom", "enhanced"):
        file = parse(data)
        if file.written == DEFLATED:
            return data.index(DEFLATED.encode()) + len(DEFLATED), len(data)
        begin = next(one.start for one in file.elements if one.tag == PIXELS)
        return begin + 12, len(data)
    if name.endswith((".raw", ".zraw", ".img")):
        return 0, len(data)
    if name.endswith((".hdr", ".mhd", ".nhdr")):
        return len(data), len(data)
    if base.family == "nifti":
        return (
            (10, len(data))
            if name.endswith(".gz")
            else (544 if base.name == "nifti-2" else 352, len(data))
        )
    mark = b"\n\n" if base.family == "nrrd" else b"LOCAL\n"
    return data.index(mark) + len(mark), len(data)


def _span(rng: np.random.Generator, base: Base, member: int) -> tuple[str, int, int]:
    """A zone of the file and its bounds: its voxels or what stands before them."""
    begin, end = _zones(base, member)
    voxels = bool(rng.random() < 0.6)
    if begin >= end or (not voxels and begin > 8):
        low = 132 if base.family in ("dicom", "enhanced") else 0
        return "header", low, begin
    return "voxels", begin, end


def _witness(base: Base, zone: str, member: int) -> tuple[str, str]:
    if base.name.split(" in ")[0] in _SUMMED and (zone == "voxels" or base.name.endswith(".gz")):
        return "checksum", ""
    if zone == "voxels":
        return "", PIXELS_ONLY
    # A file of a series has neighbours that say otherwise; a volume file's header has its own
    # second opinions.
    return (
        ("neighbour", "")
        if base.family == "dicom"
        else ("", "a header value that is plausible in itself")
    )


def _flip(rng: np.random.Generator, base: Base) -> Changed:
    member = _target(rng, base)
    zone, low, high = _span(rng, base, member)
    data = bytearray(base.members[member][1])
    count = int(rng.choice([1, 1, 3, 20]))
    places = [int(at) for at in rng.integers(low, high, count)]
    for at in places:
        data[at] ^= 1 << int(rng.integers(8))
    detail = f"{count} bits of the {zone} at {places[:3]}"
    return Changed(with_files(base, {member: bytes(data)}), detail, *_witness(base, zone, member))


def _byte(rng: np.random.Generator, base: Base) -> Changed:
    member = _target(rng, base)
    zone, low, high = _span(rng, base, member)
    data = bytearray(base.members[member][1])
    at = int(rng.integers(low, high))
    data[at] = int(rng.choice([0, 0xFF, 0x7F, 0x20, 0x30, data[at] ^ 0xFF]))
    return Changed(
        with_files(base, {member: bytes(data)}),
        f"a byte of the {zone} at {at}",
        *_witness(base, zone, member),
    )


def _zero(rng: np.random.Generator, base: Base) -> Changed:
    member = _target(rng, base)
    zone, low, high = _span(rng, base, member)
    data = bytearray(base.members[member][1])
    length = min(int(rng.choice([2, 16, 200, 2000])), high - low)
    at = int(rng.integers(low, high - length + 1))
    at = (
        high - length if rng.random() < 0.3 else at
    )  # from some place to the end: what a lost block leaves
    data[at : at + length] = bytes(length)
    betrayed, why = _witness(base, zone, member)
    if (
        zone == "voxels"
        and base.family in ("dicom", "enhanced")
        and parse(base.members[member][1]).written == DEFLATED
    ):
        betrayed = "marker"
    detail = f"{length} bytes of the {zone} zeroed at {at}"
    return Changed(with_files(base, {member: bytes(data)}), detail, betrayed, why)


def _shift(rng: np.random.Generator, base: Base) -> Changed:
    """Bytes put in or taken out: all behind them moves."""
    member = _target(rng, base)
    zone, low, high = _span(rng, base, member)
    data = base.members[member][1]
    count, at = int(rng.choice([1, 2, 7, 80])), int(rng.integers(low, high))
    if rng.random() < 0.5:
        data, verb = data[:at] + rng.bytes(count) + data[at:], "put in"
    else:
        data, verb = data[:at] + data[at + count :], "taken out"
    lengths = (
        zone == "voxels"
        or base.family in ("dicom", "enhanced")
        or base.members[member][0].endswith((".nii", ".gz"))
    )
    why = "a header value that is plausible in itself"
    return Changed(
        with_files(base, {member: data}),
        f"{count} bytes {verb} in the {zone} at {at}",
        "length" if lengths else "",
        why,
    )


def _cut(rng: np.random.Generator, base: Base) -> Changed:
    member = _target(rng, base)
    data = base.members[member][1]
    kept = [len(data) * share // 10 for share in (9, 6, 5, 1)]
    kept += [len(data) - count for count in (1, 2, 4, 8, 16)] + [
        0,
        3,
        132,
        int(rng.integers(len(data) + 1)),
    ]
    end = max(0, min(len(data), int(rng.choice(kept))))
    way = str(rng.choice(["cut", "cut", "zero filled", "end marker appended"]))
    tail = {"cut": b"", "zero filled": bytes(len(data) - end), "end marker appended": _END}[way]
    betrayed = "length"
    begin, _ = _zones(base, member)
    if end > begin and (
        way == "zero filled" or (way == "end marker appended" and len(data) - end <= len(_END))
    ):
        betrayed = "checksum" if base.name.split(" in ")[0] in _SUMMED else ""
    return Changed(
        with_files(base, {member: data[:end] + tail}),
        f"{way} at {end} of {len(data)}",
        betrayed,
        PIXELS_ONLY,
    )


def _cut_stream(rng: np.random.Generator, base: Base) -> Changed | None:
    """The code stream of a frame cut, its item and file whole.

    What a stopped encoder or transfer leaves.
    """
    member = _target(rng, base)
    file = parse(base.members[member][1])
    data = file.get(PIXELS) or b""
    if not file.syntax.startswith(_JPEG):
        return None
    at = (
        data.index(b"\xfe\xff\x00\xe0", 8)
        if data[4:8] == b"\0\0\0\0"
        else 8 + int.from_bytes(data[4:8], "little")
    )
    head, length = data[:at], int.from_bytes(data[at + 4 : at + 8], "little")
    stream = data[at + 8 : at + 8 + length].rstrip(b"\0")
    share = float(rng.choice([0.99, 0.9, 0.6, 0.5, 0.2]))
    way = str(
        rng.choice(
            ["without end", "end marker appended", "zero filled", "only the end marker is gone"]
        )
    )
    cut = stream[: int(len(stream) * share)]
    harmless = False
    if way == "only the end marker is gone":
        cut, harmless, share = (
            stream[:-2],
            file.syntax[len(_JPEG) :] in ("50", "51", "57", "70"),
            1.0,
        )
    cut += {"end marker appended": _END, "zero filled": bytes(len(stream) - len(cut))}.get(way, b"")
    cut += b"\0" * (len(cut) % 2)
    value = (
        head + b"\xfe\xff\x00\xe0" + struct.pack("<I", len(cut)) + cut + b"\xfe\xff\xdd\xe0\0\0\0\0"
    )
    changed = build(file.change(PIXELS, value=value))
    detail = f"stream cut to {100 * share:.0f} %, {way}"
    return Changed(with_files(base, {member: changed}), detail, "marker", harmless=harmless)


def _stream_bits(rng: np.random.Generator, base: Base) -> Changed | None:
    """Bits of the entropy-coded part only: the markers stay whole."""
    member = _target(rng, base)
    file = parse(base.members[member][1])
    data = bytearray(file.get(PIXELS) or b"")
    if not next(one for one in file.elements if one.tag == PIXELS).undefined:
        return None
    low = len(data) // 2
    for at in rng.integers(low, len(data) - 12, int(rng.choice([1, 4]))):
        data[int(at)] ^= 1 << int(rng.integers(8))
    changed = build(file.change(PIXELS, value=bytes(data)))
    return Changed(with_files(base, {member: changed}), "bits of the code stream", "", PIXELS_ONLY)


def _appended(rng: np.random.Generator, base: Base) -> Changed:
    member = _target(rng, base)
    data = base.members[member][1]
    count = int(rng.choice([1, 2, 79, 300, 600, 5000, 200_000]))
    tail = bytes(count) if rng.random() < 0.5 else rng.bytes(count)
    return Changed(with_files(base, {member: data + tail}), f"{count} bytes appended", "length")


def _element_bytes(rng: np.random.Generator, base: Base) -> Changed | None:
    """The value of one element of the data set made anything."""
    member = _target(rng, base)
    file = parse(base.members[member][1])
    known = [n for n, one in enumerate(file.elements) if one.tag < PIXELS and one.value]
    at = int(rng.choice(known))
    old = file.elements[at]
    ways = (
        rng.bytes(len(old.value)),
        b"",
        old.value * 2,
        bytes(len(old.value)),
        b"\xff" * len(old.value),
    )
    new: Element = replace(old, value=ways[int(rng.integers(len(ways)))])
    changed = build(replace(file, elements=(*file.elements[:at], new, *file.elements[at + 1 :])))
    detail = f"value of ({old.tag >> 16:04X},{old.tag & 0xFFFF:04X})"
    betrayed = "neighbour" if base.family == "dicom" else ""
    return Changed(
        with_files(base, {member: changed}),
        detail,
        betrayed,
        "a header value that is plausible in itself",
    )


MUTATIONS = (
    Mutation("bytes", "bits flipped", _ALL, _flip, 4),
    Mutation("bytes", "a byte set", _ALL, _byte, 2),
    Mutation("bytes", "zeroed", _ALL, _zero, 2),
    Mutation("bytes", "shifted", _ALL, _shift, 2),
    Mutation("bytes", "appended", _ALL, _appended, 1),
    Mutation("bytes", "code stream", ("dicom", "enhanced"), _stream_bits, 2),
    Mutation("bytes", "an element's value", ("dicom", "enhanced"), _element_bytes, 3),
    Mutation("cut", "file cut", _ALL, _cut, 3),
    Mutation("cut", "code stream cut", ("dicom",), _cut_stream, 4),
)
