"""Files and folders that are complete or not there: written under another name, then renamed."""

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

#: A name of `_sibling`: `.NAME.WHERE.PID.TOKEN.KIND`, where WHERE is the place of the process PID.
_SIBLING = re.compile(r"\.(.+)\.([0-9a-f]{8})\.(\d+)\.[0-9a-f]{8}\.(partial|old)")

#: What another host or container left is removed after so long, in seconds: whether its writer
#: still runs cannot be asked from here.
_ABANDONED_S = 86_400


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write to the path that this gives; at the end it takes the place of `path`.

    On an error it is removed, and `path` stays as it was.

    Raises:
        OutputError: If it cannot be written.
    """
    partial = _sibling(path)
    with output_errors(path):
        try:
            yield partial
            os.replace(partial, path)  # noqa: PTH105  # tests let it fail
        finally:
            # Where the disk fails, the first error is the one to tell.
            with suppress(OSError):
                partial.unlink(missing_ok=True)


@contextmanager
def temporary_directory(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path` for what it is made from; removed at the end.

    Raises:
        OutputError: If it cannot be written to.
    """
    folder = _sibling(path)
    with output_errors(path):
        try:
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder` that takes its place at the end, and is removed on an error.

    What killed processes left beside `folder` is put right first, see `recover_folder`.

    Raises:
        OutputError: If it cannot be written.
    """
    recover_folder(folder)
    partial, old = _sibling(folder), _sibling(folder, "old")
    with output_errors(folder):
        partial.mkdir(parents=True)
        try:
            yield partial
            if folder.exists():
                folder.rename(old)
            try:
                partial.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        # The new folder is in place: what cannot be removed now goes at the next write.
        shutil.rmtree(old, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Put right what killed processes left beside `folder`.

    Half-written folders are removed, and the newest one that was set aside comes back if there is
    none in its place. Those of a running process are left alone, another host's for a day.

    Raises:
        OutputError: If the disk does not allow it.
    """
    with output_errors(folder):
        left = [
            (kind, path.stat().st_mtime, path)
            for name, kind, path in _leftovers(folder.parent, own=True)
            if name == folder.name
        ]
        for kind, _, path in sorted(left, key=lambda item: (item[0] != "old", -item[1])):
            if kind == "old" and not folder.exists():
                path.rename(folder)
            else:
                shutil.rmtree(path)


def write_text(text: str, path: Path) -> None:
    """Write a text file in UTF-8, as a whole.

    Raises:
        OutputError: If it cannot be written.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, if they are not there.

    Raises:
        OutputError: If it cannot be made.
    """
    with output_errors(folder, "made"):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def output_errors(path: Path, done: str = "written") -> Iterator[None]:
    """Turn an `OSError` into an `OutputError` that names the output and the reason.

    Args:
        path: The output as the user knows it.
        done: What cannot be done to it: "written" or "made".

    Raises:
        OutputError: In place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot be {done}: {_reason(error)}") from error


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left in a folder while they wrote files there.

    A name that is not of ours stays, and so does that of a process that runs. What another host or
    container left is removed after a day. What cannot be removed stays for the next time.

    Args:
        folder: Folder of the outputs, without those within it; may be missing.
    """
    with suppress(OSError):
        for _, kind, path in _leftovers(folder):
            if kind != "partial":
                continue
            with suppress(OSError):  # another process may be removing it, too
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def partial_of(name: str) -> str | None:
    """Name of the file that was being written under this name; None for a name that is not ours."""
    match = _SIBLING.fullmatch(name)
    return match[1] if match else None


def _leftovers(folder: Path, *, own: bool = False) -> list[tuple[str, str, Path]]:
    """What was left in a folder by writers that are gone: name of the output, kind, path.

    Args:
        folder: May be missing.
        own: Whether a name of this very process counts as left: it was its predecessor's.
    """
    if not folder.is_dir():
        return []
    left = []
    # Names first: a folder of answers may hold very many, hardly any of them left behind.
    with os.scandir(folder) as listed:
        matches = [match for entry in listed if (match := _SIBLING.fullmatch(entry.name))]
    for match in sorted(matches, key=lambda match: match[0]):
        path = folder / match[0]
        with suppress(FileNotFoundError):  # another process has removed it meanwhile
            status = path.lstat()
            # Setting a folder aside changes the time of its entry only, not that of its content.
            age = time.time() - max(status.st_mtime, status.st_ctime)
            pid = int(match[3])
            here = match[2] == _where()
            runs = alive(pid) and not (own and pid == os.getpid()) if here else age <= _ABANDONED_S
            if not runs:
                left.append((match[1], match[4], path))
    return left


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


def _sibling(path: Path, kind: str = "partial") -> Path:
    token = secrets.token_hex(4)
    return path.with_name(f".{path.name}.{_where()}.{os.getpid()}.{token}.{kind}")


@functools.cache
def _where() -> str:
    """Where a process number means something, in eight hex digits: host, boot and container."""
    facts = [platform.node()]
    with suppress(OSError):
        facts.append(Path("/proc/sys/kernel/random/boot_id").read_text("ascii"))
    with suppress(OSError):
        facts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:8]
