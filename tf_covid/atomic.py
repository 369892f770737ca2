"""Files that are whole or not there: written under another name, then renamed; and what a kill left half-way."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tf_covid.errors import OutputError

#: What `_partial` gives: name, where its process runs, the process, a token.
_PARTIAL = re.compile(r"\..+\.([0-9a-f]{8})\.(\d+)\.[0-9a-f]{8}\.partial")

#: A name of another place goes after so long, in seconds: whether its writer still runs cannot be
#: asked from here.
_ABANDONED_S = 86_400


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write to the path that this gives; at the end it takes the place of `path`, and on an error it is removed.

    Raises:
        OutputError: If it cannot be written.
    """
    partial = _partial(path)
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {_reason(error)}") from error
    finally:
        # Where the disk fails, the first error is the one to tell.
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def temporary_directory(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path` for what it is made from; gone at the end.

    Raises:
        OutputError: If it cannot be written to.
    """
    folder = _partial(path)
    try:
        folder.mkdir()
        yield folder
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {_reason(error)}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(text: str, path: Path) -> None:
    """Write a text file in UTF-8, as a whole.

    Raises:
        OutputError: If it cannot be written.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def remove_leftovers(folder: Path) -> None:
    """Remove what `replacing` and `temporary_directory` left in a folder when their process was killed.

    A name that is not of ours stays, and so does that of a process that runs. What another host or
    container left goes after a day. What cannot be removed stays for the next time.

    Args:
        folder: Not those within it; may be missing.
    """
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            match = _PARTIAL.fullmatch(path.name)
            if not match:
                continue
            with suppress(OSError):  # another process sweeps, too
                status = path.lstat()
                age = time.time() - max(status.st_mtime, status.st_ctime)
                if alive(int(match[2])) if match[1] == _where() else age <= _ABANDONED_S:
                    continue
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def alive(pid: int) -> bool:
    """Whether there is a process of this number here; True where that cannot be asked."""
    if os.name != "posix":
        # Elsewhere signal 0 is not a question but an attack.
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return True
    # A container without an init keeps its dead: they have a number, but write no more.
    return not status.rpartition(b")")[2].startswith(b" Z")


def _reason(error: OSError) -> str:
    # HDF5 puts a paragraph where the system's few words belong.
    return os.strerror(error.errno) if error.errno else str(error)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{_where()}.{os.getpid()}.{secrets.token_hex(4)}.partial")


@functools.cache
def _where() -> str:
    """Where a process number means something: this host since it started, and this container; eight hex digits."""
    facts = [platform.node()]
    with suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text("ascii"))
    with suppress(OSError):
        facts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:8]
