"""Small files that unpack to far more than their headers promise."""

from __future__ import annotations

import struct
import zlib
from functools import cache

import imagecodecs
import numpy as np

from fuzzing.dicomfile import DEFLATED, PIXELS, build, parse
from fuzzing.mutation import Changed, Mutation, images, with_files
from fuzzing.seeds import Base

#: What a bomb unpacks to.
_BYTES = 1 << 30
_BLOCK = 1 << 22
_J2K = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")


@cache
def _zeros() -> bytes:
    """1 GiB of zeros as the rest of a raw deflate stream, which is 1 MiB."""
    packer, block = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS), bytes(_BLOCK)
    return b"".join(packer.compress(block) for _ in range(_BYTES // _BLOCK)) + packer.flush()


def _begun(data: bytes) -> bytes:
    """Bytes as the beginning of a raw deflate stream."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush(zlib.Z_FULL_FLUSH)


def _deflated(rng: np.random.Generator, base: Base) -> Changed | None:
    """Deflated DICOM whose pixel data are 1 GiB."""
    changes = {}
    for number in images(base)[: int(rng.choice([1, 4]))]:
        data = base.members[number][1]
        file = parse(data)
        if file.written != DEFLATED:
            return None
        plain = build(file.change(PIXELS, value=b"", length=_BYTES))
        meta = len(build(file)) - len(_packed_body(build(file)))
        body = zlib.decompress(_packed_body(plain), -zlib.MAX_WBITS)
        changes[number] = data[:meta] + _begun(body) + _zeros()
    return Changed(with_files(base, changes), f"{len(changes)} deflated files of 1 GiB", "length")


def _packed_body(data: bytes) -> bytes:
    """What follows the meta group, whose length stands in its first element."""
    return data[144 + struct.unpack("<I", data[140:144])[0] :]


def _gzip(rng: np.random.Generator, base: Base) -> Changed | None:
    """1 GiB behind the voxels, in a gzip member of its own."""
    name, data = base.members[0]
    if not (name.endswith(".gz") or base.name == "nrrd-gzip"):
        return None
    head = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
    bomb = (
        head + _zeros() + struct.pack("<II", 0, 0)
    )  # a wrong check sum: nobody should come that far
    return Changed(with_files(base, {0: data + bomb}), "1 GiB behind the voxels", "length")


def _siz(rng: np.random.Generator, base: Base) -> Changed | None:
    """A JP2 file whose first box shows a small picture, and whose code stream is a large one."""
    member = int(rng.choice(images(base)))
    file = parse(base.members[member][1])
    if file.syntax not in _J2K:
        return None
    shape = (file.number("Rows"), file.number("Columns"))
    jp2 = bytearray(
        imagecodecs.jpeg2k_encode(
            np.zeros(shape, np.uint16), codecformat="jp2", reversible=True, level=0
        )
    )
    at = jp2.index(b"\xff\x4f\xff\x51")
    true = bytes(jp2[at : at + 60])
    side = int(rng.choice([4000, 20_000, 40_000]))
    jp2[at + 8 : at + 16] = jp2[at + 24 : at + 32] = struct.pack(">II", side, side)
    box = struct.pack(">I", 24 + len(true)) + b"uuid" + bytes(16) + true
    stream = bytes(jp2[:32]) + box + bytes(jp2[32:])  # behind the signature and the file type
    stream += b"\0" * (len(stream) % 2)
    items = b"\xfe\xff\x00\xe0\0\0\0\0\xfe\xff\x00\xe0" + struct.pack("<I", len(stream)) + stream
    changed = build(file.change(PIXELS, value=items + b"\xfe\xff\xdd\xe0\0\0\0\0"))
    return Changed(
        with_files(base, {member: changed}),
        f"a picture of {side} × {side} behind a false SIZ",
        "header",
    )


MUTATIONS = (
    Mutation("bombs", "deflated DICOM", ("dicom",), _deflated),
    Mutation("bombs", "gzip", ("nifti", "nrrd"), _gzip),
    Mutation("bombs", "JPEG 2000", ("dicom",), _siz),
)
