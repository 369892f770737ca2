"""Files and slices that are swapped, mixed, lost or doubled, and the archives around them."""

from __future__ import annotations

import gzip
import io
import struct
import warnings
import zipfile
from functools import cache

import numpy as np

from fuzzing.dicomfile import PIXELS, build, parse
from fuzzing.mutation import (
    ANATOMY,
    OTHER_SERIES,
    PIXELS_ONLY,
    Changed,
    Mutation,
    images,
    with_files,
)
from fuzzing.seeds import TAR, TAR_GZ, Base, other_patient

_ALL = ("dicom", "enhanced", "nifti", "nrrd", "meta")
_other = cache(other_patient)


def _pair(rng: np.random.Generator, base: Base) -> tuple[int, int]:
    one, two = rng.choice(images(base), 2, replace=False)
    return int(one), int(two)


def _pixels_swapped(rng: np.random.Generator, base: Base) -> Changed:
    one, two = _pair(rng, base)
    first, second = (parse(base.members[n][1]) for n in (one, two))
    a, b = first.get(PIXELS) or b"", second.get(PIXELS) or b""
    changes = {
        one: build(first.change(PIXELS, value=b)),
        two: build(second.change(PIXELS, value=a)),
    }
    return Changed(
        with_files(base, changes), f"pixel data of {one} and {two} exchanged", "", ANATOMY
    )


def _pixels_copied(rng: np.random.Generator, base: Base) -> Changed:
    one, two = _pair(rng, base)
    value = parse(base.members[one][1]).get(PIXELS) or b""
    changed = build(parse(base.members[two][1]).change(PIXELS, value=value))
    return Changed(
        with_files(base, {two: changed}), f"pixel data of {one} in {two} too", "duplicate"
    )


def _places_swapped(rng: np.random.Generator, base: Base) -> Changed:
    one, two = _pair(rng, base)
    first, second = (parse(base.members[n][1]) for n in (one, two))
    keyword = "ImagePositionPatient"
    changes = {
        one: build(first.set(keyword, second.get(keyword) or b"")),
        two: build(second.set(keyword, first.get(keyword) or b"")),
    }
    if abs(one - two) == 1:
        return Changed(
            with_files(base, changes), f"places of {one} and {two} exchanged", "", ANATOMY
        )
    return Changed(with_files(base, changes), f"places of {one} and {two} exchanged", "", ANATOMY)


def _foreign(rng: np.random.Generator, base: Base) -> Changed:
    """Slices of another patient: beside ours, in their place, or under our names."""
    count = int(rng.choice([1, 5, 10]))
    others, own = _other().members, list(base.members)
    mine = parse(own[images(base)[0]][1])
    way = str(
        rng.choice(
            [
                "added",
                "added, ids emptied",
                "in place",
                "in place, our series",
                "in place, all our ids",
            ]
        )
    )
    for number in sorted(rng.choice(20, count, replace=False).tolist()):
        name, data = others[number]
        file = parse(data)
        if way == "added, ids emptied":
            file = file.set("PatientID", "").set("PatientName", "")
        if "our" in way:
            file = file.set("SeriesInstanceUID", mine.get("SeriesInstanceUID") or b"")
            file = file.set("StudyInstanceUID", mine.get("StudyInstanceUID") or b"")
        if "all" in way:
            file = file.set("PatientID", mine.get("PatientID") or b"").set(
                "PatientName", mine.get("PatientName") or b""
            )
        if "added" in way:
            own.append((f"other/{name}", build(file)))
        else:
            at = images(base)[number]
            own[at] = (own[at][0], build(file))
    betrayed = {"in place, our series": "header"}.get(way, "")
    return Changed(
        base.with_members(own), f"{count} slices of another patient {way}", betrayed, OTHER_SERIES
    )


def _removed(rng: np.random.Generator, base: Base) -> Changed:
    members = images(base)
    way = str(rng.choice(["middle", "end", "every second", "most"]))
    first = int(rng.integers(1, len(members) - 4))
    gone = {
        "middle": members[first : first + int(rng.integers(1, 4))],
        "end": (
            members[-int(rng.integers(1, 6)) :]
            if rng.random() < 0.5
            else members[: int(rng.integers(1, 6))]
        ),
        "every second": members[1::2],
        "most": members[2:],
    }[way]
    kept = [member for n, member in enumerate(base.members) if n not in gone]
    listed = base.name == "dicomdir"
    betrayed = "left out" if listed else "geometry" if way == "middle" else ""
    return Changed(base.with_members(kept), f"{len(gone)} files gone: {way}", betrayed, ANATOMY)


def _doubled(rng: np.random.Generator, base: Base) -> Changed:
    one, two = _pair(rng, base)
    name, data = base.members[one]
    way = str(rng.choice(["same", "other pixels", "other instance"]))
    file = parse(data)
    if way == "other pixels":
        file = file.change(PIXELS, value=parse(base.members[two][1]).get(PIXELS) or b"")
    elif way == "other instance":
        file = file.set("SOPInstanceUID", "1.2.3.4.5").set("InstanceNumber", "77")
    member = (f"copy/{name}", build(file) if way != "same" else data)
    members = [*base.members, member] if rng.random() < 0.5 else [member, *base.members]
    return Changed(
        base.with_members(members), f"a file twice: {way}", "duplicate", harmless=way == "same"
    )


def _beside(rng: np.random.Generator, base: Base) -> Changed:
    """What lies in folders: notes, empty files, hidden files of a system, a report."""
    files = {
        "notes.txt": b"reading list",
        "Thumbs.db": rng.bytes(200),
        "._IM00001.dcm": rng.bytes(120),
        "empty": b"",
        "__MACOSX/._IM00002.dcm": rng.bytes(120),
        "report.pdf": b"%PDF-1.4 " + rng.bytes(300),
        "VERSION": b"1\n",
    }
    chosen = rng.choice(list(files), 2, replace=False)
    members = [*base.members, *((str(name), files[str(name)]) for name in chosen)]
    return Changed(
        base.with_members(members), f"beside it: {', '.join(map(str, chosen))}", harmless=True
    )


def _bodies(rng: np.random.Generator, base: Base) -> Changed:
    """Half of one file and the other half of another, as a broken disk joins them."""
    one, two = _pair(rng, base)
    a, b = base.members[one][1], base.members[two][1]
    at = int(rng.integers(200, min(len(a), len(b))))
    voxels = len(a) - len(parse(a).get(PIXELS) or b"")
    betrayed = (
        "duplicate" if at < voxels else ""
    )  # the whole of the other's pixel data is there twice
    return Changed(
        with_files(base, {one: a[:at] + b[at:]}),
        f"{one} goes on as {two} at {at}",
        betrayed,
        PIXELS_ONLY,
    )


def _renamed(rng: np.random.Generator, base: Base) -> Changed:
    """File names in another order, without extension: nothing but the name changes."""
    names = [f"{value:08X}" for value in rng.choice(2**32, len(base.members), replace=False)]
    members = [
        (name if name == "DICOMDIR" else new, data)
        for (name, data), new in zip(base.members, names, strict=True)
    ]
    return Changed(base.with_members(members), "files renamed", harmless=True)


def _same_name(rng: np.random.Generator, base: Base) -> Changed | None:
    """Members of one archive with one name."""
    if not base.pack:
        return None
    if len(base.members) == 1:
        name, data = base.members[0]
        return Changed(
            base.with_members([(name, data), (name, data[:-200])]), "one name twice", "duplicate"
        )
    count = int(rng.choice([2, 5, 20]))
    members = [
        (base.members[0][0] if n < count else name, data)
        for n, (name, data) in enumerate(base.members)
    ]
    return Changed(base.with_members(members), f"{count} members of one name", "duplicate")


def _in_archive(rng: np.random.Generator, base: Base) -> Changed | None:
    """Bytes of the archive changed."""
    if not base.pack:
        return None
    data, count = bytearray(base.packed()), int(rng.choice([1, 3, 20]))
    low = 0 if base.pack in (TAR, TAR_GZ) or rng.random() < 0.5 else data.rfind(b"PK\x01\x02") // 2
    for at in rng.integers(low, len(data), count):
        data[int(at)] ^= 1 << int(rng.integers(8))
    summed = base.pack != TAR
    return Changed(
        base, f"{count} bits of the archive", "checksum" if summed else "", archive=bytes(data)
    )


def _archive_cut(rng: np.random.Generator, base: Base) -> Changed | None:
    if not base.pack:
        return None
    data = base.packed()
    end = int(
        rng.choice(
            [len(data) - 1, len(data) - 22, len(data) * 9 // 10, len(data) // 2, 600, 100, 0]
        )
    )
    zeros = bytes(len(data) - end) if rng.random() < 0.3 else b""
    # A tar's own end is zeros, so that one that is filled up with zeros ends well.
    betrayed = "" if zeros and base.pack == TAR else "length"
    return Changed(
        base, f"archive cut at {end} of {len(data)}", betrayed, ANATOMY, archive=data[:end] + zeros
    )


def _directory(rng: np.random.Generator, base: Base) -> Changed | None:
    """A zip whose directory, end record or local headers disagree."""
    if not base.path.endswith(".zip"):
        return None
    data = bytearray(base.packed())
    end = data.rfind(b"PK\x05\x06")
    count, length, start = struct.unpack("<HII", data[end + 10 : end + 20])
    entries, at = [], start
    for _ in range(count):
        size = 46 + sum(struct.unpack("<3H", data[at + 28 : at + 34]))
        entries.append((at, size))
        at += size
    where, size = entries[int(rng.integers(count))]
    way = str(
        rng.choice(
            [
                "entry gone",
                "entry and count gone",
                "count",
                "CRC",
                "size",
                "local name",
                "offset",
                "method",
                "comment",
                "bytes before",
                "bytes behind",
            ]
        )
    )
    if way.startswith("entry"):
        data[end + 12 : end + 16] = struct.pack("<I", length - size)
        if "count" in way:
            data[end + 8 : end + 12] = struct.pack("<HH", count - 1, count - 1)
        del data[where : where + size]
    elif way == "count":
        data[end + 8 : end + 12] = struct.pack(
            "<HH", *(2 * [max(0, count + int(rng.choice([-1, 1, 50])))])
        )
    elif way == "CRC":
        data[where + 16] ^= 0x55
    elif way == "size":
        data[where + 24 : where + 28] = struct.pack("<I", int(rng.choice([0, 100, 10**9])))
    elif way == "local name":
        data[struct.unpack("<I", data[where + 42 : where + 46])[0] + 31] ^= 0x01
    elif way == "offset":
        data[where + 42 : where + 46] = data[entries[0][0] + 42 : entries[0][0] + 46]
    elif way == "method":
        data[where + 10] = int(rng.choice([0, 8, 12, 14, 99]))
    elif way == "comment":
        data[end + 20 : end + 22] = struct.pack("<H", 9)
        data += b"PK\x05\x06 note"[:9]
    else:
        data = bytearray(b"#!/bin/sh\n") + data if way == "bytes before" else data + b"\0" * 40
    betrayed = {"local name": "header", "method": "checksum", "size": "length"}.get(way, "marker")
    return Changed(base, f"zip: {way}", betrayed, archive=bytes(data))


def _tar(rng: np.random.Generator, base: Base) -> Changed | None:
    """A tar whose headers lie."""
    if base.pack not in (TAR, TAR_GZ):
        return None
    data = bytearray(base.with_members(list(base.members)).packed())
    data = bytearray(gzip.decompress(bytes(data))) if base.pack == TAR_GZ else data
    places, at = [], 0
    while data[at] and at + 512 <= len(data):
        places.append(at)
        at += 512 + (int(data[at + 124 : at + 135], 8) + 511) // 512 * 512
    where = int(rng.choice(places))
    way = str(rng.choice(["size", "checksum", "name", "type", "no end", "rubbish behind"]))
    if way == "size":
        data[where + 124 : where + 135] = f"{int(rng.choice([0, 512, 1, 8**9])):011o}".encode()
        _sum(data, where)
    elif way == "checksum":
        data[where + 150] ^= 0x01
    elif way == "name":
        data[where : where + 9] = b"../../etc"
        _sum(data, where)
    elif way == "type":
        data[where + 156] = int(rng.choice([ord("1"), ord("2"), ord("5"), ord("x"), ord("S")]))
        _sum(data, where)
    elif way == "no end":
        del data[at:]
    else:
        data[at:] = rng.bytes(1024)
    changed = gzip.compress(bytes(data), 1, mtime=0) if base.pack == TAR_GZ else bytes(data)
    betrayed = "checksum" if way == "checksum" else "length" if way == "size" else "marker"
    return Changed(base, f"tar: {way}", betrayed, archive=changed, harmless=way == "no end")


def _sum(data: bytearray, at: int) -> None:
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = f"{sum(data[at : at + 512]):06o}\0 ".encode()


def _order(rng: np.random.Generator, base: Base) -> Changed | None:
    """Members in another order, with folders and a comment: nothing changes."""
    if not base.path.endswith(".zip"):
        return None
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        warnings.simplefilter("ignore")
        archive.writestr("folder/", b"")
        for at in rng.permutation(len(base.members)):
            name, data = base.members[int(at)]
            archive.writestr(zipfile.ZipInfo(f"folder/{name}"), data)
        archive.comment = b"packed by a hospital"
    return Changed(base, "members in another order", archive=stream.getvalue(), harmless=True)


MUTATIONS = (
    Mutation("mixture", "pixel data swapped", ("dicom",), _pixels_swapped),
    Mutation("mixture", "pixel data copied", ("dicom",), _pixels_copied, 2),
    Mutation("mixture", "places swapped", ("dicom",), _places_swapped),
    Mutation("mixture", "another patient", ("dicom",), _foreign, 3),
    Mutation("mixture", "files removed", ("dicom",), _removed, 3),
    Mutation("mixture", "a file twice", ("dicom",), _doubled, 2),
    Mutation("mixture", "files beside", ("dicom",), _beside),
    Mutation("mixture", "files joined", ("dicom",), _bodies, 2),
    Mutation("mixture", "files renamed", ("dicom",), _renamed),
    Mutation("container", "members of one name", _ALL, _same_name, 2),
    Mutation("container", "bits", _ALL, _in_archive, 3),
    Mutation("container", "cut", _ALL, _archive_cut, 2),
    Mutation("container", "zip directory", _ALL, _directory, 5),
    Mutation("container", "tar headers", _ALL, _tar, 4),
    Mutation("container", "order of members", _ALL, _order),
)
