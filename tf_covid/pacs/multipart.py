"""`multipart/related` (RFC 2387), as DICOMweb sends and takes it: read and written as a stream."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

from tf_covid.errors import PacsError

#: Longest head of a part, and longest text before the first one, in bytes.
_MOST_HEAD = 1 << 14
_CHUNK = 1 << 20


class CutOff(Exception):
    """A body ended before its closing boundary."""


def boundary_of(content_type: str) -> bytes:
    """The boundary that a Content-Type header states.

    Raises:
        PacsError: If it is no `multipart/related` with a boundary.
    """
    header = Message()
    header["Content-Type"] = content_type
    boundary = header.get_boundary()
    if header.get_content_type() != "multipart/related" or not boundary:
        raise PacsError("pacs_answer: the archive sent no multipart/related, as DICOMweb does")
    return boundary.encode("latin-1")


def split_parts(chunks: Iterable[bytes], boundary: bytes) -> Iterator[Iterator[bytes]]:
    """The parts of a body, each as its pieces; memory does not grow with their size.

    Args:
        chunks: The body, in pieces of any size.
        boundary: As the Content-Type header states it.

    Raises:
        CutOff: If the body ends before its closing boundary, as a broken connection leaves it.
        PacsError: If it is no such body.
    """
    body = _Body(chunks)
    delimiter = b"\r\n--" + boundary
    body.held += b"\r\n"  # the first delimiter may stand at the very beginning
    body.skip(delimiter)
    while not body.starts_with(b"--"):
        body.skip(b"\r\n\r\n")
        part = body.until(delimiter)
        yield part
        for _ in part:  # what the caller has left of it
            pass


class _Body:
    """Bytes that come in chunks."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self.held = bytearray()

    def starts_with(self, text: bytes) -> bool:
        """Whether the next bytes are these."""
        while len(self.held) < len(text):
            self._read()
        return self.held.startswith(text)

    def skip(self, text: bytes) -> None:
        """Leave out all that comes before a text, and the text."""
        while (at := self.held.find(text)) < 0:
            if len(self.held) > _MOST_HEAD:
                raise PacsError("pacs_answer: the archive's multipart/related breaks its rules")
            self._read()
        del self.held[: at + len(text)]

    def until(self, text: bytes) -> Iterator[bytes]:
        """What comes before a text, in pieces; the text is left out."""
        while (at := self.held.find(text)) < 0:
            # The text may have begun in the last bytes.
            if (sure := len(self.held) - len(text) + 1) > 0:
                piece = bytes(self.held[:sure])
                del self.held[:sure]
                yield piece
            self._read()
        piece = bytes(self.held[:at])
        del self.held[: at + len(text)]
        yield piece

    def _read(self) -> None:
        for chunk in self._chunks:
            if chunk:
                self.held += chunk
                return
        raise CutOff


@dataclass(frozen=True)
class MultipartFile:
    """One DICOM file as a body of one part, read from the disk as it is sent.

    Args:
        path: The file.
        boundary: Between parts; random, so that no file holds it.
    """

    path: Path
    boundary: str

    @classmethod
    def of(cls, path: Path) -> MultipartFile:
        """A body of a file."""
        return cls(path, secrets.token_hex(16))

    @property
    def headers(self) -> dict[str, str]:
        """Content-Type and Content-Length of the request."""
        length = len(self._head) + self.path.stat().st_size + len(self._tail)
        kind = f'multipart/related; type="application/dicom"; boundary={self.boundary}'
        return {"Content-Type": kind, "Content-Length": str(length)}

    def __iter__(self) -> Iterator[bytes]:
        yield self._head
        with self.path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk
        yield self._tail

    @property
    def _head(self) -> bytes:
        return f"--{self.boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode("ascii")

    @property
    def _tail(self) -> bytes:
        return f"\r\n--{self.boundary}--\r\n".encode("ascii")
