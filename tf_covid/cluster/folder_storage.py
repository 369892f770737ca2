"""Answers in a folder that all nodes share."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tf_covid.atomic import make_folder, remove_leftovers, write_text
from tf_covid.cluster.storage import Storage, taken
from tf_covid.errors import OutputError


class FolderStorage(Storage):
    """A folder, the same on every machine."""

    def __init__(self, out: str) -> None:
        super().__init__(str(Path(out).absolute()))
        self.path = Path(self.out)

    @contextmanager
    def folder(self, case: str) -> Iterator[Path]:
        """The folder itself: `Run` replaces a case's folder as a whole."""
        yield self.path

    @contextmanager
    def held(self) -> Iterator[None]:
        """A lock of the file system, which ends with this process."""
        make_folder(self.path)
        with _errors(self.out):
            lock = os.open(self.path / ".lock", os.O_CREAT | os.O_RDWR, 0o644)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove_leftovers(self.path)
                for left in self.path.glob(".run-*"):
                    left.unlink(missing_ok=True)
            except BlockingIOError as error:
                raise taken(self.out) from error
            except OSError:  # a file system without locks holds nothing
                pass
            yield
        finally:
            os.close(lock)

    def sees(self, token: str) -> bool:
        """Whether the folder is still that of the run, and not what lay under its mount."""
        return (self.path / f".run-{token}").is_file()

    def append(self, name: str, text: str) -> None:
        """One write at the end of the file, taken back if it is not whole.

        A line that an earlier process has torn stands for itself.
        """
        path = self.path / name
        with _errors(self.out):
            file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                before = os.fstat(file).st_size
                torn = before > 0 and os.pread(file, 1, before - 1) != b"\n"
                data = (("\n" if torn else "") + text).encode()
                try:
                    if os.write(file, data) != len(data):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError:
                    os.ftruncate(file, before)
                    raise
            finally:
                os.close(file)

    def appended(self, name: str) -> str:
        """The file."""
        return self.read(name) or ""

    def write(self, name: str, text: str) -> None:
        """To a temporary name, renamed."""
        write_text(text, self.path / name)

    def read(self, name: str) -> str | None:
        """The file's text, damaged bytes as question marks."""
        try:
            return (self.path / name).read_text("utf-8", errors="replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutputError(f"{self.out}: cannot be read ({error.strerror})") from error

    def remove(self, name: str) -> None:
        """Unlink it."""
        with _errors(self.out):
            (self.path / name).unlink(missing_ok=True)


@contextmanager
def _errors(out: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{out}: cannot be written to ({error.strerror})") from error
