"""Answers at a URL of fsspec.

Files come one after the other, `result.json` last: where it is, the answer is whole.
"""

from __future__ import annotations

import json
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tf_covid.cluster.storage import RESULT, Storage, taken
from tf_covid.errors import ClusterError, OutputError
from tf_covid.extras import optional_import

#: A run says so often that it is there, and is taken for dead after so long, in seconds.
_BEAT_S, _DEAD_S = 20.0, 120.0

#: What says so, and how long is waited for another one that began at the same time, in seconds.
_RUNNING, _SETTLE_S = ".running.json", 1.0


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
            raise taken(self.shown, minutes)
        self._beat(own)
        # Of two that begin at once, the one that wrote last has it, and the other sees that.
        time.sleep(_SETTLE_S)
        stop = threading.Event()
        thread = threading.Thread(target=self._beats, args=(own, stop), daemon=True)
        try:
            if (self._holder() or ("",))[0] != own:
                raise taken(self.shown)
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
            raise taken(self.shown)
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
