"""Which version of which model is served: the latest one in the folder that can be."""

from __future__ import annotations

import gc
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tf_covid.errors import ServingError
from tf_covid.server import servable
from tf_covid.server.errors import NotFound, servable_not_found
from tf_covid.server.servable import Version

_LOG = logging.getLogger("tf_covid.server")

State = Literal["START", "LOADING", "AVAILABLE", "UNLOADING", "END"]

#: TF Serving's names of folders that are versions: plain numbers that fit 64 bits.
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")

#: A name that fits a URL `/v1/models/<name>:predict`.
_NAME = re.compile(r"[^/:.\s][^/:\s]{0,199}")

#: Versions that have ended, and are still told of, for each model; and models that are gone.
_REMEMBERED = 8

#: Files of a version's folder that are looked at to see whether it has changed.
_MOST_FILES = 1000

Fingerprint = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class Status:
    """What `ModelService` tells about a version.

    Args:
        version: Number of the version.
        state: TF Serving's name of it.
        error: Why it is not served, "" if nothing is wrong.
    """

    version: int
    state: State
    error: str = ""


@dataclass
class _Model:
    current: Version | None = None
    states: dict[int, Status] = field(default_factory=dict)
    broken: dict[int, Fingerprint] = field(default_factory=dict)


class Repository:
    """The models in a folder, watched by a thread.

    A new version is loaded and warmed up beside the old one, then takes its place; the old one is
    dropped when the last request on it is finished. A version that cannot be loaded is not tried
    again until its folder changes. As in TF Serving, a version whose files change while it is
    served is not loaded again: new weights are a new version.

    Args:
        folder: `folder/<name>/<version>/saved_model.pb`.
        poll_s: Seconds between two looks.
    """

    def __init__(self, folder: Path, poll_s: float = 2.0) -> None:
        self._folder = folder
        self._poll_s = poll_s
        self._models: dict[str, _Model] = {}
        self._changed = threading.Condition()
        self._polling = threading.Lock()
        self._stop = threading.Event()
        self._dropped = threading.Event()
        self._odd: set[str] = set()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to watch; the first models are loaded in the background."""
        self._thread = threading.Thread(target=self._poll, name="tfcovid-models", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching, and unload every model when its last request is finished."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(
                self._poll_s + 5
            )  # a model that is being loaded cannot be interrupted
        for name in list(self._models):
            self._unload(name)

    def wait_for(self, ready: Callable[[Repository], bool], timeout_s: float) -> bool:
        """Wait until a condition on this repository holds; False if it did not in that time."""
        with self._changed:
            return self._changed.wait_for(lambda: ready(self), timeout_s)

    def available(self) -> dict[str, Version]:
        """The version that is served of each model that is, by name."""
        with self._changed:
            return {
                name: model.current
                for name, model in self._models.items()
                if model.current is not None
            }

    def statuses(self, name: str, version: int | None = None) -> list[Status]:
        """What is known of a model's versions, or of one of them, the newest first.

        Raises:
            NotFound: If there is no such model or version.
        """
        with self._changed:
            states = self._models[name].states if name in self._models else {}
            results = [
                states[index] for index in sorted(states, reverse=True) if version in (None, index)
            ]
        if not results:
            asked = f"model {name}" if version is None else f"version {version} of model {name}"
            raise NotFound(
                f"Could not find any versions of {asked}"
                if version is None
                else f"Could not find {asked}"
            )
        return results

    @contextmanager
    def lease(self, name: str, version: int | None = None) -> Iterator[Version]:
        """The version that is served, which stays loaded while the block runs.

        Raises:
            NotFound: If there is no such model, or another version than the one that is asked for
                is served.
        """
        with self._changed:
            model = self._models.get(name)
            current = model.current if model is not None else None
            if current is None or version not in (None, current.number):
                raise servable_not_found(name, version)
            current.hold()
        try:
            yield current
        finally:
            current.release()

    def poll(self) -> None:
        """Look at the folder once, and load, switch and unload as it asks."""
        with self._polling:
            results = _names(self._folder)
            if results is None:
                return  # not readable now: what is loaded stays
            for name in [name for name in self._models if name not in results]:
                self._unload(name)
            odd = set()
            for name in sorted(results):
                if self._stop.is_set():
                    return
                try:
                    self._update(name)
                except (
                    Exception
                ) as error:  # one model that cannot be looked at must not hide the others
                    odd.add(name)
                    if name not in self._odd:  # once, not at every look
                        _LOG.warning("model %s cannot be looked at: %s", name, type(error).__name__)
            self._odd = odd
            self._forget(results)

    def _poll(self) -> None:
        while True:
            try:
                self.poll()
            # the thread's outermost layer: the next look must happen, whatever this one met
            except Exception as error:
                _LOG.error("looking for models failed: %s", type(error).__name__)
            if self._stop.wait(self._poll_s):
                return

    def _update(self, name: str) -> None:
        folder = self._folder / name
        numbers = _versions(folder)
        with self._changed:
            model = self._models.setdefault(name, _Model())
        for index in sorted(numbers, reverse=True):
            if model.current is not None and model.current.number == index:
                break
            print_now = _fingerprint(folder / str(index))
            if model.broken.get(index) == print_now:
                continue
            version = self._load(model, name, index, print_now)
            if version is not None:
                self._switch(model, version)
                break
        else:
            self._switch(model, None)  # the one that is served has vanished, and no other can be
        with self._changed:
            for index in [index for index in model.states if index not in numbers]:
                model.broken.pop(index, None)

    def _load(
        self, model: _Model, name: str, number: int, print_now: Fingerprint
    ) -> Version | None:
        self._tell(model, Status(number, "LOADING"))
        try:
            version = servable.load(name, number, self._folder / name / str(number))
        except ServingError as error:
            # What was there before it was read: a copy that went on meanwhile is a change.
            model.broken[number] = print_now
            self._tell(
                model,
                Status(
                    number, "END", f"{name} version {number}: {self._without_paths(str(error))}"
                ),
            )
            _LOG.warning("model %s version %d is refused: %s", name, number, error)
            return None
        model.broken.pop(number, None)
        return version

    def _without_paths(self, text: str) -> str:
        """A text for clients, who need not know where on this machine the models are."""
        for folder in (self._folder.resolve(), self._folder.absolute(), self._folder):
            if folder.name:
                text = text.replace(f"{folder}{os.sep}", "").replace(str(folder), "")
        return text

    def _switch(self, model: _Model, version: Version | None) -> None:
        with self._changed:
            old, model.current = model.current, version
            if version is not None:
                model.states[version.number] = Status(version.number, "AVAILABLE")
                _LOG.info("model %s version %d is served", version.name, version.number)
            if old is not None:
                model.states[old.number] = Status(old.number, "UNLOADING")
            self._changed.notify_all()
        if old is not None:
            ended = old.number
            old.retire(lambda: self._ended(model, ended))

    def _ended(self, model: _Model, number: int) -> None:
        self._dropped.set()
        current = model.current
        if current is None or current.number != number:  # it may have come back meanwhile
            self._tell(model, Status(number, "END"))

    def _unload(self, name: str) -> None:
        if (
            model := self._models.get(name)
        ) is not None:  # `stop` does not wait for ever for a look to end
            self._switch(model, None)

    def _tell(self, model: _Model, status: Status) -> None:
        with self._changed:
            model.states[status.version] = status
            self._changed.notify_all()

    def _forget(self, names: set[str]) -> None:
        """Forget old versions that have ended, and all but the last models that are gone.

        And free what they held.
        """
        with self._changed:
            gone = [name for name in self._models if name not in names]
            for name in gone[:-_REMEMBERED]:
                if all(status.state == "END" for status in self._models[name].states.values()):
                    del self._models[name]
            for model in self._models.values():
                ended = [index for index, status in model.states.items() if status.state == "END"]
                for index in sorted(ended)[:-_REMEMBERED]:
                    if index not in model.broken:
                        del model.states[index]
        if self._dropped.is_set():
            self._dropped.clear()
            # TensorFlow's functions hold each other in circles, and a model's variables with them
            gc.collect()


def _names(folder: Path) -> set[str] | None:
    """Names of the folders that may be models; None if the folder cannot be read."""
    try:
        return {
            record.name
            for record in os.scandir(folder)
            if _NAME.fullmatch(record.name) and _may_be_folder(record)
        }
    except OSError:
        return None


def _may_be_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or cannot be looked at now.

    Then what is loaded from it stays.
    """
    try:
        return entry.is_dir()
    except OSError:
        return True


def _versions(folder: Path) -> set[int]:
    """Numbers of the versions that are there, and of those that cannot be looked at.

    Raises:
        OSError: If the folder cannot be read.
    """
    names = [record.name for record in os.scandir(folder) if _NUMBER.fullmatch(record.name)]
    return {int(name) for name in names if _may_be_file(folder / name / "saved_model.pb")}


def _may_be_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return True


def _fingerprint(folder: Path) -> Fingerprint:
    """Names, times and sizes of the files of a version."""
    results = []
    for root, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = Path(root) / name
            try:
                facts = path.stat()
            except OSError:
                continue  # it has gone meanwhile, which is a change, too
            results.append((str(path), facts.st_mtime_ns, facts.st_size))
            if len(results) >= _MOST_FILES:
                return tuple(results)
    return tuple(results)
