"""Images that were sent to us, until their series are answered: files, and which are complete."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pydicom

from tf_covid.atomic import make_folder, remove_leftovers, replacing
from tf_covid.scan import Case
from tf_covid.scan.dicom.header import ERRORS
from tf_covid.watch.journal import JournalRow, SeenSeries
from tf_covid.watch.source import Find, SeriesChanged, case_of, same_images

_UID_LIKE = re.compile(r"[0-9.]{1,64}")
#: Seconds to wait for more of a series whose sender broke off, or does not end.
BROKEN_S = 600.0


@dataclass
class _Series:
    """What is known of a series.

    Args:
        seen: Its UIDs, and those of its images.
        changed: When its last image came, by the clock of the inbox.
        broken: Whether a sender broke off, and none has sent everything again since.
        senders: Open associations that sent of it → what each sent.
        given: How many images it had when it was given out.
    """

    seen: SeenSeries
    changed: float
    broken: bool = False
    senders: dict[object, set[str]] = field(default_factory=dict)
    given: int = 0


class Unreadable(Exception):
    """An image without valid UIDs, or whose header cannot be read."""


class Inbox:
    """Series that senders have begun to send: a folder each, a file an image.

    Several threads may put images in; one asks what is complete.

    Args:
        folder: Holds them; made if needed.
        source: What `SeenSeries.source` says of them.
        quiet_s: Seconds without a further image after which a series is complete.
        broken_s: The same where its sender broke off.
        clock: Gives the time, in seconds.
    """

    def __init__(
        self,
        folder: Path,
        source: str,
        *,
        quiet_s: float,
        broken_s: float = BROKEN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._received, self._released = folder / "received", folder / "released"
        self._source, self._quiet_s, self._broken_s = source, quiet_s, max(broken_s, quiet_s)
        self._clock = clock
        self._lock = threading.Lock()
        #: Name of the case → what is known of its series.
        self._series: dict[str, _Series] = {}
        make_folder(self._received)
        make_folder(self._released)
        for path in sorted(self._received.iterdir()):
            if path.is_dir():
                remove_leftovers(path)
                self._take_up(path)

    def put(self, content: bytes, sender: object) -> str:
        """Keep an image; it is on the disk when this returns.

        Args:
            content: The DICOM file.
            sender: Stands for the association that it came by.

        Returns:
            Name of the case of its series.

        Raises:
            Unreadable: If its header says nothing of use.
            OutputError: If it cannot be written.
        """
        study_uid, series_uid, image_uid = _header_of(content)
        new = SeenSeries(self._source, study_uid, series_uid, frozenset(), received=True)
        name = new.case_name
        folder = self._received / name
        path = folder / f"{_hashed(image_uid)}.dcm"
        with self._lock:
            series = self._series.setdefault(name, _Series(new, self._clock()))
            if sender not in series.senders:
                # Until this one is done as well, the series may be cut off.
                (self._released / name).unlink(missing_ok=True)
            series.senders.setdefault(sender, set()).add(image_uid)
        if not folder.exists():
            make_folder(folder)
            _sync(self._received)
        if not path.exists():
            with replacing(path) as partial:
                _write(partial, content)
            _sync(folder)
            with self._lock:
                series.changed = self._clock()
                series.seen = dataclasses.replace(
                    series.seen, images=series.seen.images | {image_uid}
                )
        return name

    def ended(self, sender: object, *, released: bool) -> None:
        """An association has ended.

        Args:
            sender: Stands for it.
            released: Whether its other side said that it was done, and everything was taken.
        """
        with self._lock:
            for name, series in self._series.items():
                if sender not in series.senders:
                    continue
                sent = series.senders.pop(sender)
                if not released:
                    series.broken = True
                elif sent >= series.seen.images:
                    series.broken = False
                if not series.broken and not series.senders:
                    with suppress(OSError):  # without it, a watch that starts again waits longer
                        (self._released / name).touch()

    def complete(self) -> Iterator[SeenSeries]:
        """Series that have been quiet for long enough, each once for each set of images."""
        with self._lock:
            complete = [
                (series, series.seen)
                for series in self._series.values()
                if self._is_complete(series)
            ]
        for series, seen in complete:
            yield seen
            # What came meanwhile is another set.
            series.given = len(seen.images)

    def _is_complete(self, series: _Series) -> bool:
        """Whether a series is complete and was not given out as it is."""
        done = not series.broken and not series.senders
        quiet_s = self._quiet_s if done else self._broken_s
        quiet = self._clock() - series.changed >= quiet_s
        return quiet and len(series.seen.images) != series.given

    @contextmanager
    def case(self, row: JournalRow, find: Find) -> Iterator[Case]:
        """See `Source.case`."""
        with self._lock:
            series = self._series.get(row.case_name)
            seen = None if series is None else series.seen
        if seen is None:
            raise SeriesChanged("series_gone: what was received of it was removed")
        same_images(row, seen)
        case = case_of(self._received / row.case_name, row, find)
        if late := {instance.sop_uid for instance in case.instances} - seen.images:
            raise SeriesChanged(f"series_changed: {len(late)} images came while it was looked at")
        yield case

    def remove(self, case_name: str) -> bool:
        """Remove the files of a series; False where more of it has come than was given out."""
        with self._lock:
            series = self._series.get(case_name)
            if series is not None and (series.senders or len(series.seen.images) != series.given):
                return False
            self._series.pop(case_name, None)
            (self._released / case_name).unlink(missing_ok=True)
            shutil.rmtree(self._received / case_name, ignore_errors=True)
        return True

    def _take_up(self, folder: Path) -> None:
        """A series that an earlier watch received; the journal knows whether it is answered."""
        images = set()
        study_uid = series_uid = ""
        for path in folder.glob("*.dcm"):
            try:
                with path.open("rb") as stream:
                    study_uid, series_uid, image_uid = _header_of(stream)
            except Unreadable:
                continue
            images.add(image_uid)
        if not images:
            shutil.rmtree(folder, ignore_errors=True)
            return
        seen = SeenSeries(self._source, study_uid, series_uid, frozenset(images), received=True)
        broken = not (self._released / folder.name).exists()
        self._series[folder.name] = _Series(seen, self._clock(), broken)


def _header_of(content: bytes | io.BufferedReader) -> tuple[str, str, str]:
    """UIDs of study, series and instance.

    Raises:
        Unreadable: If one is missing, or is none.
    """
    names = ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"]
    try:
        header = pydicom.dcmread(
            io.BytesIO(content) if isinstance(content, bytes) else content,
            stop_before_pixels=True,
            specific_tags=[*names],
        )
        study, series, image = (str(header.get(name) or "") for name in names)
    except ERRORS:
        raise Unreadable from None
    # What some write with leading zeros is kept: here no UID becomes a path.
    if not all(map(_UID_LIKE.fullmatch, (study, series, image))):
        raise Unreadable
    return study, series, image


def _hashed(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()[:32]


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(folder: Path) -> None:
    """Bring a folder's entries onto the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
