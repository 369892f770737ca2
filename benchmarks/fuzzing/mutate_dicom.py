"""How a DICOM file is built, changed.

Labels, lengths, doubled and retired elements, items, functional groups.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pydicom

from fuzzing.dicomfile import (
    BIG_ENDIAN,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    PIXELS,
    DicomFile,
    Element,
    build,
    parse,
    tag_of,
)
from fuzzing.mutation import PLAUSIBLE, Changed, Mutation, images, part, with_files
from fuzzing.seeds import SYNTAXES, Base

_NATIVE = (IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED)
#: Changes one file; None where it does not fit.
Change = Callable[[np.random.Generator, DicomFile], DicomFile | None]


def _each(
    kind: str,
    change: Change,
    some: str,
    every: str | None = None,
    harmless: bool = False,
    share: int = 1,
) -> Mutation:
    def apply(rng: np.random.Generator, base: Base) -> Changed | None:
        name, slices = part(rng, len(images(base)))
        seed, members, changes = int(rng.integers(2**31)), images(base), {}
        for number in slices:
            # The same draws for every file: a habit of the exporter, not an accident.
            file = change(np.random.default_rng(seed), parse(base.members[members[number]][1]))
            if file is None:
                return None
            changes[members[number]] = build(file)
        betrayed = some if every is None or name != "all" else every
        return Changed(
            with_files(base, changes), f"{kind} in {name}", betrayed, PLAUSIBLE, harmless
        )

    return Mutation("structure", kind, ("dicom", "enhanced"), apply, share)


def _matrix_turned(rng: np.random.Generator, file: DicomFile) -> DicomFile:
    return file.set("Rows", file.number("Columns")).set("Columns", file.number("Rows"))


def _doubled(rng: np.random.Generator, file: DicomFile) -> DicomFile | None:
    other = {
        "Rows": file.number("Rows") // 2,
        "BitsStored": 8,
        "RescaleIntercept": "0",
        "RescaleSlope": "2",
        "ImagePositionPatient": "0\\0\\0",
        "PixelSpacing": "3\\3",
        "PixelRepresentation": 0,
        "Modality": "MR",
        "ImageOrientationPatient": "0\\1\\0\\1\\0\\0",
        "SeriesInstanceUID": "1.2.3",
        "PixelData": b"",
    }
    keyword = str(rng.choice(list(other)))
    tag = tag_of(keyword)
    held = [n for n, one in enumerate(file.elements) if one.tag == tag]
    if not held:
        return None
    at, first = held[0], file.elements[held[0]]
    value = (
        bytes(len(first.value)) if keyword == "PixelData" else file.encode(first.vr, other[keyword])
    )
    if first.undefined:
        value = first.value
    new = replace(first, value=value)
    pair = (new, first) if rng.random() < 0.5 else (first, new)
    return replace(file, elements=(*file.elements[:at], *pair, *file.elements[at + 1 :]))


def _vr(rng: np.random.Generator, file: DicomFile) -> DicomFile | None:
    if file.written == IMPLICIT:
        return None
    keyword = str(
        rng.choice(
            [
                "Rows",
                "BitsStored",
                "RescaleIntercept",
                "RescaleSlope",
                "PixelSpacing",
                "ImageType",
                "ImagePositionPatient",
                "PixelRepresentation",
                "SeriesInstanceUID",
            ]
        )
    )
    return file.change(
        keyword, vr=str(rng.choice(["UN", "OB", "LO", "SS", "UL", "FD", "IS", "DS", "XX"]))
    )


def _relabel(rng: np.random.Generator, file: DicomFile) -> DicomFile | None:
    syntaxes = sorted(
        {syntax for syntax, _ in SYNTAXES.values()} | {"1.2.3", "1.2.840.10008.1.2.4.100"}
    )
    return file.label(str(rng.choice([one for one in syntaxes if one != file.syntax])))


def _rewritten(rng: np.random.Generator, file: DicomFile) -> DicomFile | None:
    """Explicit VR under an implicit label, and the other way; little endian under big."""
    if file.written not in (IMPLICIT, EXPLICIT):
        return None
    return replace(file, written=IMPLICIT if file.written == EXPLICIT else EXPLICIT)


def _group_lengths(rng: np.random.Generator, file: DicomFile) -> DicomFile:
    for group in (0x0008, 0x0028, 0x7FE0):
        file = file.insert(
            Element(group << 16, "UL", struct.pack(file.order + "I", int(rng.integers(1, 5000))))
        )
    return file


def _private(rng: np.random.Generator, file: DicomFile) -> DicomFile:
    blob = rng.bytes(2 * int(rng.integers(1, 2000)))
    file = file.insert(Element(0x00290010, "LO", b"ACME 1.0")).insert(
        Element(0x00291010, "OB", blob)
    )
    return file.insert(Element(0x60003000, "OW", bytes(240))) if rng.random() < 0.5 else file


def _icon(rng: np.random.Generator, file: DicomFile) -> DicomFile | None:
    if file.written not in (EXPLICIT,) and file.written in _NATIVE:
        return None
    inner = b"\x28\x00\x10\x00US\x02\x00\x08\x00\x28\x00\x11\x00US\x02\x00\x08\x00"
    inner += b"\xe0\x7f\x10\x00OW\x00\x00" + struct.pack("<I", 64) + bytes(64)
    return file.insert(
        Element(0x00880200, "SQ", b"\xfe\xff\x00\xe0" + struct.pack("<I", len(inner)) + inner)
    )


def _padding(rng: np.random.Generator, file: DicomFile) -> DicomFile:
    return file.insert(Element(0xFFFCFFFC, "OB", bytes(2 * int(rng.integers(1, 3000)))))


def _tail(rng: np.random.Generator, file: DicomFile) -> DicomFile | None:
    return (
        None
        if file.written == DEFLATED
        else replace(file, tail=bytes(2 * int(rng.integers(1, 200))))
    )


def _disorder(rng: np.random.Generator, file: DicomFile) -> DicomFile:
    """Elements of the image module where they do not belong; the pixel data stay last."""
    head = [one for one in file.elements if one.tag < PIXELS]
    order = rng.permutation(len(head))
    return replace(
        file,
        elements=(*(head[n] for n in order), *(one for one in file.elements if one.tag >= PIXELS)),
    )


def _pixel_length(rng: np.random.Generator, file: DicomFile) -> DicomFile | None:
    if file.written not in _NATIVE:
        return None
    held = len(file.get(PIXELS) or b"")
    lies = [0, 2, held // 2, held - 2, held + 2, 2 * held, 0xFFFFFFFE, 0xFFFFFFFF]
    return file.change(PIXELS, length=int(rng.choice(lies)))


def _pixels_resized(rng: np.random.Generator, file: DicomFile) -> DicomFile | None:
    """Less or more native pixel data, with a true length."""
    data = file.get(PIXELS) or b""
    if file.written not in _NATIVE:
        return None
    row = 2 * file.number("Columns")
    kept = int(
        rng.choice(
            [0, 2, len(data) // 2, len(data) * 9 // 10 // 2 * 2, len(data) - row, len(data) - 2]
        )
    )
    value = (
        data[:kept]
        if rng.random() < 0.5
        else data + bytes(int(rng.choice([row * 8, len(data), 3 * len(data)])))
    )
    return file.change(PIXELS, value=value)


def _pixels_gone(rng: np.random.Generator, file: DicomFile) -> DicomFile:
    choice = rng.integers(3)
    if choice == 0:
        return file.drop(PIXELS)
    tag = 0x7FE00008 if choice == 1 else 0x7FE00009
    return replace(
        file, elements=tuple(replace(o, tag=tag) if o.tag == PIXELS else o for o in file.elements)
    )


def _undelimited(rng: np.random.Generator, file: DicomFile) -> DicomFile | None:
    data = file.get(PIXELS) or b""
    return None if file.written in _NATIVE else file.change(PIXELS, value=data[:-8])


def _items(file: DicomFile) -> list[bytes]:
    data, at, found = file.get(PIXELS) or b"", 0, []
    while data[at : at + 4] == b"\xfe\xff\x00\xe0":
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        found.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    return found


def _with_items(file: DicomFile, items: list[bytes]) -> DicomFile:
    data = b"".join(b"\xfe\xff\x00\xe0" + struct.pack("<I", len(item)) + item for item in items)
    return file.change(PIXELS, value=data + b"\xfe\xff\xdd\xe0\0\0\0\0")


def _fragmented(rng: np.random.Generator, file: DicomFile) -> DicomFile | None:
    if file.written in _NATIVE or len(_items(file)) != 2:
        return None
    _table, frame = _items(file)
    at = len(frame) // 4 * 2
    return _with_items(file, [b"", frame[:at], frame[at:]])


def _item_doubled(rng: np.random.Generator, file: DicomFile) -> DicomFile | None:
    if file.written in _NATIVE or len(_items(file)) < 2:
        return None
    items = _items(file)
    return _with_items(file, [*items, items[-1]])


def _offset_table(rng: np.random.Generator, file: DicomFile) -> DicomFile | None:
    """A true Extended Offset Table before the pixel data, and no basic one."""
    if file.written in _NATIVE:
        return None
    items = _items(file)[1:]
    ends = np.cumsum([0, *(8 + len(item) for item in items)])[:-1]
    file = _with_items(file, [b"", *items])
    file = file.insert(Element(0x7FE00001, "OV", struct.pack(f"<{len(items)}Q", *map(int, ends))))
    return file.insert(Element(0x7FE00002, "OV", struct.pack(f"<{len(items)}Q", *map(len, items))))


def _no_preamble(rng: np.random.Generator, file: DicomFile) -> DicomFile:
    return replace(file, preamble=rng.bytes(128))


def _frames(
    kind: str, betrayed: str, change: Callable[[np.random.Generator, pydicom.Dataset], object]
) -> Mutation:
    def apply(rng: np.random.Generator, base: Base) -> Changed | None:
        dataset = pydicom.dcmread(io.BytesIO(base.members[0][1]))
        change(rng, dataset)
        stream = io.BytesIO()
        dataset.save_as(stream)
        return Changed(with_files(base, {0: stream.getvalue()}), kind, betrayed)

    return Mutation("structure", f"frames: {kind}", ("enhanced",), apply, 2)


def _frame(rng: np.random.Generator, dataset: pydicom.Dataset) -> pydicom.Dataset:
    items = dataset.PerFrameFunctionalGroupsSequence
    return items[int(rng.integers(len(items)))]


def _items_gone(rng: np.random.Generator, dataset: pydicom.Dataset) -> None:
    del dataset.PerFrameFunctionalGroupsSequence[int(rng.integers(1, 20)) :]


def _count(rng: np.random.Generator, dataset: pydicom.Dataset) -> None:
    dataset.NumberOfFrames = int(rng.choice([1, 10, 19, 21, 40, 9999]))


def _rescale(rng: np.random.Generator, dataset: pydicom.Dataset) -> None:
    transform = _frame(rng, dataset).PixelValueTransformationSequence[0]
    transform.RescaleIntercept = str(rng.choice(["0", "-2048", "500"]))


def _no_transform(rng: np.random.Generator, dataset: pydicom.Dataset) -> None:
    del _frame(rng, dataset).PixelValueTransformationSequence


def _no_place(rng: np.random.Generator, dataset: pydicom.Dataset) -> None:
    del _frame(rng, dataset).PlanePositionSequence


def _one_place(rng: np.random.Generator, dataset: pydicom.Dataset) -> None:
    place = (
        dataset.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient
    )
    _frame(rng, dataset).PlanePositionSequence[0].ImagePositionPatient = [
        place[0],
        place[1],
        place[2] + 5,
    ]


def _shared_spacing(rng: np.random.Generator, dataset: pydicom.Dataset) -> None:
    spacing = [[0, 0], [7500, 7500], [0.01, 0.01]][int(rng.integers(3))]
    dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = spacing


def _own_type(rng: np.random.Generator, dataset: pydicom.Dataset) -> None:
    item = pydicom.Dataset()
    item.FrameType = ["DERIVED", "PRIMARY", "LOCALIZER", "NONE"]
    _frame(rng, dataset).CTImageFrameTypeSequence = [item]


MUTATIONS = (
    _each("matrix turned", _matrix_turned, "neighbour", ""),
    _each("element doubled", _doubled, "duplicate", share=3),
    _each("VR of an element", _vr, "header", share=2),
    _each("label of another syntax", _relabel, "marker", share=4),
    _each("explicit and implicit exchanged", _rewritten, "marker", share=2),
    _each("group lengths", _group_lengths, "", harmless=True),
    _each("private elements", _private, "", harmless=True),
    _each("icon image", _icon, "", harmless=True),
    _each("data set trailing padding", _padding, "", harmless=True),
    _each("zeros behind the data set", _tail, "", harmless=True),
    _each("elements out of order", _disorder, "header"),
    _each("length of the pixel data", _pixel_length, "length", share=3),
    _each("pixel data resized", _pixels_resized, "length", share=3),
    _each("pixel data gone", _pixels_gone, "left out"),
    _each("no delimiter", _undelimited, "", harmless=True),
    _each("frame in two fragments", _fragmented, "", harmless=True),
    _each("frame twice", _item_doubled, "length", share=2),
    _each("extended offset table", _offset_table, "", harmless=True),
    _each("preamble of anything", _no_preamble, "", harmless=True),
    _frames("fewer items than frames", "length", _items_gone),
    _frames("NumberOfFrames", "length", _count),
    _frames("rescale of one", "neighbour", _rescale),
    _frames("no rescale in one", "neighbour", _no_transform),
    _frames("no position of one", "geometry", _no_place),
    _frames("two at one position", "duplicate", _one_place),
    _frames("spacing", "geometry", _shared_spacing),
    _frames("one is a localizer", "left out", _own_type),
)
