"""Bodies of many parts, however they come in."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tf_covid.errors import PacsError
from tf_covid.pacs.multipart import CutOff, MultipartFile, boundary_of, split_parts


def pieces(body: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


def parts(body: bytes, size: int = 7) -> list[bytes]:
    return [b"".join(part) for part in split_parts(pieces(body, size), b"mark")]


PARTS = [b"", b"x", b"\r\n", b"--mark", b"\r\n--mar", b"\r\n-", b"y" * 1000, bytes(range(256)) * 4]
BODY = (
    b"".join(b"--mark\r\nContent-Type: application/dicom\r\n\r\n" + one + b"\r\n" for one in PARTS)
    + b"--mark--\r\n"
)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 100_000])
def test_parts_are_what_they_were(size: int) -> None:
    assert parts(BODY, size) == PARTS
    assert parts(b"a preamble\r\n" + BODY + b"an epilogue", size) == PARTS


def test_a_part_that_nobody_reads_is_passed_over() -> None:
    assert sum(1 for _ in split_parts(pieces(BODY, 9), b"mark")) == len(PARTS)


@pytest.mark.parametrize("seed", range(40))
def test_a_cut_is_seen_wherever_it_is(seed: int) -> None:
    whole = BODY.removesuffix(b"--\r\n")
    end = random.Random(seed).randrange(len(whole) + 1)
    with pytest.raises(CutOff):
        parts(whole[:end])


def test_memory_does_not_grow_with_a_part() -> None:
    """A part of 256 MB comes out in pieces as it comes in."""
    chunk = b"z" * (1 << 16)

    def body() -> Iterator[bytes]:
        yield b"--mark\r\n\r\n"
        for _ in range(1 << 12):
            yield chunk
        yield b"\r\n--mark--"

    (part,) = (map(len, one) for one in split_parts(body(), b"mark"))
    del part
    largest = total = 0
    for one in split_parts(body(), b"mark"):
        for piece in one:
            largest, total = max(largest, len(piece)), total + len(piece)
    assert total == 1 << 28
    assert largest <= 2 << 16


@pytest.mark.parametrize(
    ("header", "boundary"),
    [
        ('multipart/related; type="application/dicom"; boundary=abc', b"abc"),
        ('Multipart/Related; boundary="a b"; type="application/dicom"', b"a b"),
    ],
)
def test_boundaries(header: str, boundary: bytes) -> None:
    assert boundary_of(header) == boundary


@pytest.mark.parametrize(
    "header", ["", "text/html", "multipart/related", "multipart/mixed; boundary=a", "boundary=a"]
)
def test_no_boundary(header: str) -> None:
    with pytest.raises(PacsError, match="pacs_answer"):
        boundary_of(header)


def test_a_file_is_sent_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.dcm"
    path.write_bytes(bytes(range(256)) * 9000)
    body = MultipartFile.of(path)
    sent = b"".join(body)
    assert len(sent) == int(body.headers["Content-Length"])
    (part,) = (
        b"".join(one) for one in split_parts([sent], boundary_of(body.headers["Content-Type"]))
    )
    assert part == path.read_bytes()
