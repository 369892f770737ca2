"""Where the answers of a cluster go: a folder that all nodes share, or a URL of fsspec.

A URL's files come one after the other, `result.json` last: where it is, the answer is whole.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tf_covid.atomic import make_folder, remove_leftovers, write_text
from tf_covid.errors import ClusterError, OutputError
from tf_covid.extras import optional_import
from tf_covid.infer import parsed

#: The file that makes an answer whole.
RESULT = "result.json"

#: A run at a URL says so often that it is there, and is taken for dead after so long, in seconds.
_BEAT_S, _DEAD_S = 20.0, 120.0

#: What says so, and how long is waited for another one that began at the same time, in seconds.
_RUNNING, _SETTLE_S = ".running.json", 1.0

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(?:::[A-Za-z0-9+.-]+)*://")


def is_url(out: str) -> bool:
    """Whether an output is a URL, not a folder."""
    return _URL.match(out) is not None


def storage_at(out: str) -> Storage:
    """The storage of this name, on whichever machine this is called.

    Raises:
        ClusterError: If nothing that is installed can write there.
    """
    return UrlStorage(out) if is_url(out) else FolderStorage(out)


class Storage(ABC):
    """Answers by the names of their cases, and small texts beside them.

    Args:
        out: Folder or URL.
    """

    def __init__(self, out: str) -> None:
        self.out = out
        #: The folder or URL without what may be a secret, for people.
        self.shown = out

    @contextmanager
    @abstractmethod
    def folder(self, case: str) -> Iterator[Path]:
        """The folder of this machine that `Run` writes the folder of a case into.

        What is there of an earlier answer is in it; afterwards the answer is in the storage.

        Raises:
            OutputError: If it cannot be stored.
        """
        yield Path()

    @contextmanager
    @abstractmethod
    def held(self) -> Iterator[None]:
        """Hold the storage against other runs while the block runs.

        Raises:
            ClusterError: If another run holds it.
        """
        yield

    @abstractmethod
    def append(self, name: str, text: str) -> None:
        """Add lines to a text, whole or not at all."""

    @abstractmethod
    def appended(self, name: str) -> str:
        """All lines that were added to a text."""

    @abstractmethod
    def write(self, name: str, text: str) -> None:
        """Write a text as a whole."""

    @abstractmethod
    def read(self, name: str) -> str | None:
        """A text; None where there is none."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a text, if it is there."""

    def answer(self, case: str) -> dict[str, Any] | None:
        """What the `result.json` of a case says; None where there is no whole answer of ours.

        Raises:
            OutputError: If the storage cannot be asked.
        """
        text = self.read(f"{case}/{RESULT}")
        return None if text is None else parsed(text)

    def sees(self, token: str) -> bool:
        """Whether what another machine has prepared is seen from here, where that costs nothing."""
        return True

    def check(self, token: str) -> str | None:
        """Why this machine cannot use what another one has prepared; None if it can.

        Args:
            token: From `prepare`.
        """
        name = f".node-{secrets.token_hex(8)}"
        try:
            if self.read(f".run-{token}") != token:
                return "does not see what this machine wrote: it is not shared"
            self.write(name, token)
            self.remove(name)
        except OutputError as error:
            return str(error)
        return None

    @contextmanager
    def prepared(self) -> Iterator[str]:
        """A token that every machine has to see there, while the block runs."""
        token = secrets.token_hex(16)
        self.write(f".run-{token}", token)
        try:
            yield token
        finally:
            with suppress(OutputError):
                self.remove(f".run-{token}")


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
                raise _taken(self.out) from error
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


class UrlStorage(Storage):
    """A URL of fsspec: an object store, a remote file system, a folder by its file:// URL."""

    def __init__(self, out: str) -> None:
        super().__init__(out)
        core = optional_import("fsspec", "ray").core
        self.shown = re.sub(r"//\S*@", "//", out).partition("?")[0]
        try:
            self.files, self.root = core.url_to_fs(out)
        except ImportError as error:
            text = " ".join(str(error).split())
            raise ClusterError(f"out_url: {self.shown} cannot be used ({text})") from error
        except ValueError as error:  # whose text may hold parts of the URL
            text = "no protocol that fsspec knows, or no URL of it"
            raise ClusterError(f"out_url: {self.shown} cannot be used ({text})") from error
        except Exception as error:  # each file system has errors of its own
            raise self._error(error) from error
        self._taken = False

    @contextmanager
    def folder(self, case: str) -> Iterator[Path]:
        """A folder of this machine, whose content is sent if it is new."""
        with tempfile.TemporaryDirectory(prefix="tfcovid-") as temporary:
            own = Path(temporary)
            before = self.read(f"{case}/{RESULT}")
            if before is not None:
                (own / case).mkdir()
                (own / case / RESULT).write_text(before, "utf-8")
            yield own
            result = own / case / RESULT
            if result.is_file() and result.read_text("utf-8") != before:
                with self._errors():
                    self._send(own / case, self._at(case))

    def _send(self, folder: Path, to: str) -> None:
        sent = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
        sent = {name: path for name, path in sent.items() if path.is_file()}
        result = sent.pop(RESULT)
        if self.files.exists(f"{to}/{RESULT}"):  # from here on there is no whole answer …
            self.files.rm_file(f"{to}/{RESULT}")
        if self.files.exists(to):
            for old in self.files.find(to):
                if old.removeprefix(to.rstrip("/") + "/") not in sent:
                    self.files.rm_file(old)
        for name, path in sent.items():
            self.files.makedirs(f"{to}/{name}".rpartition("/")[0], exist_ok=True)
            self.files.put_file(str(path), f"{to}/{name}")
        self.files.makedirs(to, exist_ok=True)
        self.files.put_file(str(result), f"{to}/{RESULT}")  # … and here there is again

    @contextmanager
    def held(self) -> Iterator[None]:
        """A note that says again and again that this run is there."""
        own = secrets.token_hex(16)
        holder = self._holder()
        if holder is not None and time.time() - holder[1] < _DEAD_S:
            minutes = f"; if it was killed, wait for {_DEAD_S / 60:.0f} minutes"
            raise _taken(self.shown, minutes)
        self._beat(own)
        # Of two that begin at once, the one that wrote last has it, and the other sees that.
        time.sleep(_SETTLE_S)
        stop = threading.Event()
        thread = threading.Thread(target=self._beats, args=(own, stop), daemon=True)
        try:
            if (self._holder() or ("",))[0] != own:
                raise _taken(self.shown)
            thread.start()
            yield
        finally:
            stop.set()
            if thread.is_alive():
                thread.join()
            with suppress(OutputError):
                if (self._holder() or ("",))[0] == own:
                    self.remove(_RUNNING)

    def _beats(self, own: str, stop: threading.Event) -> None:
        while not stop.wait(_BEAT_S):
            with suppress(OutputError):
                if (self._holder() or (own,))[0] != own:
                    self._taken = True  # the next row is not written
                    return
                self._beat(own)

    def _beat(self, own: str) -> None:
        self.write(_RUNNING, json.dumps({"run": own, "at": time.time()}))

    def _holder(self) -> tuple[str, float] | None:
        """Who says to be there, and when it said so."""
        try:
            values = json.loads(self.read(_RUNNING) or "")
            return str(values["run"]), float(values["at"])
        except (ValueError, TypeError, KeyError):
            return None

    def append(self, name: str, text: str) -> None:
        """A new part, of a name of its own: an object store has no end to write at."""
        if self._taken:
            raise _taken(self.shown)
        self.write(f"{name}.{time.time_ns():020d}-{secrets.token_hex(4)}", text)

    def appended(self, name: str) -> str:
        """All parts."""
        return "".join(self.read(part) or "" for part in self._part_names(name))

    def _part_names(self, name: str) -> list[str]:
        with self._errors():
            if not self.files.exists(self.root):
                return []
            self.files.invalidate_cache()
            names = [path.rpartition("/")[2] for path in self.files.ls(self.root, detail=False)]
        return sorted(
            one for one in names if re.fullmatch(re.escape(name) + r"\.\d{20}-[0-9a-f]{8}", one)
        )

    def write(self, name: str, text: str) -> None:
        """One object."""
        with self._errors():
            self.files.makedirs(self._at(name).rpartition("/")[0], exist_ok=True)
            self.files.pipe_file(self._at(name), text.encode())

    def read(self, name: str) -> str | None:
        """One object's text."""
        with self._errors():
            try:
                data: bytes = self.files.cat_file(self._at(name))
            except FileNotFoundError:
                return None
        return data.decode("utf-8", errors="replace")

    def remove(self, name: str) -> None:
        """One object."""
        with self._errors(), suppress(FileNotFoundError):
            self.files.rm_file(self._at(name))

    def _at(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{name}"

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OutputError:
            raise
        except Exception as error:  # each file system has errors of its own
            raise self._error(error) from error

    def _error(self, error: Exception) -> OutputError:
        # A file system's message may hold the URL with its secrets: its kind alone is said, and
        # what the system calls it.
        reason = getattr(error, "strerror", None) or type(error).__name__
        return OutputError(f"{self.shown}: cannot be used ({reason})")


def _taken(out: str, how: str = "") -> ClusterError:
    return ClusterError(f"run_runs: {out}: another run is answering into it{how}")


@contextmanager
def _errors(out: str) -> Iterator[Any]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{out}: cannot be written to ({error.strerror})") from error
