"""Where bytes come from: a file on disk or a member of an archive. Readers see no difference."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

_CHUNK = 1 << 20


class ScanFile(Protocol):
    """The bytes of one input file.

    `name` is its relative path, with forward slashes; it may hold a patient's name, so it goes into
    no message.
    """

    @property
    def name(self) -> str:
        """Relative path of the file, with forward slashes."""

    @property
    def size(self) -> int:
        """Length of the file, in bytes."""

    def open(self) -> AbstractContextManager[BinaryIO]:
        """A seekable binary stream, to be closed by the caller."""


@dataclass(frozen=True)
class DiskFile:
    """A file on disk."""

    path: Path
    name: str
    size: int

    @classmethod
    def of(cls, path: Path, root: Path | None = None) -> DiskFile:
        """The file at `path`, named relative to `root`."""
        name = path.relative_to(root).as_posix() if root else path.name
        return cls(path, name, path.stat().st_size)

    def open(self) -> AbstractContextManager[BinaryIO]:
        """A seekable binary stream, to be closed by the caller."""
        return self.path.open("rb")


def workers() -> int:
    """Number of threads for hashing and decoding.

    Both release the GIL; more than eight threads only wait for the disk.
    """
    return min(8, os.cpu_count() or 1)


def fingerprint(sources: Iterable[ScanFile]) -> str:
    """sha256 (hex) over the sorted sha256 of each file's raw bytes.

    Names and order of the files do not matter.
    """

    def digest(source: ScanFile) -> bytes:
        hasher = hashlib.sha256()
        with source.open() as stream:
            while block := stream.read(_CHUNK):
                hasher.update(block)
        return hasher.digest()

    with ThreadPoolExecutor(workers()) as pool:
        digests = sorted(pool.map(digest, sources))
    return hashlib.sha256(b"".join(digests)).hexdigest()
