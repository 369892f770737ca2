"""The journal of a watch: a row for each series that was seen, kept through every kill.

A row goes waiting → running → done. A watch that starts takes up what an earlier one was running.
It is the only file that joins a case to its study; it holds their UIDs, and nothing else of a
header.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tf_covid.atomic import make_folder
from tf_covid.errors import WatchError

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

#: Everything that a watch keeps for itself, within the folder of the answers.
FOLDER = ".watch"
#: How often a series is tried before it counts as failed; and how often a try may be interrupted by
#: the end of the program, which mostly says nothing about the series.
MOST_TRIES, MOST_INTERRUPTED = 5, 20
#: Seconds until the second try, doubled before each further one.
_PAUSE_S = 10.0
#: Longest pause of a series whose try was interrupted by the end of the program.
_MOST_PAUSE_S = 600.0
_FORMAT = 1

WAITING, RUNNING, DONE, REFUSED, REPLACED, FAILED = STATES = (
    "waiting",
    "running",
    "done",
    "refused",
    "replaced",
    "failed",
)
#: Nothing more is to be done about them; what failed may be tried again.
_ENDED = (DONE, REFUSED, REPLACED)

_SCHEMA = """
CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    source TEXT NOT NULL,
    study_uid TEXT NOT NULL,
    series_uid TEXT NOT NULL,
    images_sha256 TEXT NOT NULL,
    images INTEGER NOT NULL,
    case_name TEXT NOT NULL,
    state TEXT NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0,
    interrupted INTEGER NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT '',
    seen_at REAL NOT NULL,
    not_before REAL NOT NULL DEFAULT 0,
    changed_at REAL NOT NULL,
    removed INTEGER NOT NULL DEFAULT 0,
    UNIQUE (case_name, images_sha256)
)
"""
_COLUMNS = (
    "id, source, study_uid, series_uid, images_sha256, images, case_name, state, tries,"
    " interrupted, reason, seen_at, changed_at"
)


@dataclass(frozen=True)
class SeenSeries:
    """A series that is complete as far as can be seen.

    Args:
        source: What it was seen in, as `Source.name`.
        study_uid: StudyInstanceUID; "" for a volume file.
        series_uid: SeriesInstanceUID, or what stands for it.
        images: SOPInstanceUIDs of its images, or what stands for them.
        label: How the name of its case begins.
        received: Whether its images are kept here until they are removed.
    """

    source: str
    study_uid: str
    series_uid: str
    images: frozenset[str]
    label: str = "series"
    received: bool = False

    @property
    def images_sha256(self) -> str:
        """Of its images: late ones make another series of it."""
        text = "\n".join(sorted(self.images))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def case_name(self) -> str:
        """Name of its case, which does not give its UID away."""
        text = f"{self.study_uid}\n{self.series_uid}"
        return f"{self.label}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class JournalRow:
    """A row of the journal.

    Args:
        id: What tells this row from all others.
        source: What the series was seen in.
        study_uid: StudyInstanceUID.
        series_uid: SeriesInstanceUID.
        images_sha256: `SeenSeries.images_sha256`.
        images: How many images it has.
        case_name: Folder of its answer.
        state: One of `STATES`.
        tries: How often it was tried to an end, whether good or bad.
        interrupted: How often the program ended in the middle of a try.
        reason: Why it is not done; "" where it is.
        seen_at: When it was complete, in seconds since 1970.
        changed_at: When it got into its state.
    """

    id: int
    source: str
    study_uid: str
    series_uid: str
    images_sha256: str
    images: int
    case_name: str
    state: str
    tries: int
    interrupted: int
    reason: str
    seen_at: float
    changed_at: float


class Journal:
    """The journal in a folder of answers, for one watch at a time.

    Args:
        out: Folder of the answers.
        clock: Gives the time, in seconds since 1970.

    Raises:
        WatchError: If another watch uses it, or it cannot be used.
    """

    def __init__(self, out: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.folder = out / FOLDER
        self._clock = clock
        make_folder(self.folder)
        with _usable(self.path):
            self.folder.chmod(0o700)
            self._lock = _locked(self.folder / "lock")
            try:
                self._database = _opened(self.path)
            except BaseException:
                os.close(self._lock)
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()
        os.close(self._lock)

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / "journal.sqlite"

    def add(self, seen: SeenSeries) -> bool:
        """Take a series in, unless it is there with these images; whether it is new.

        Another set of its images that still waits is replaced, and comes back if it is seen again.
        """
        now = self._clock()
        with _usable(self.path), self._database:
            added = self._database.execute(
                "INSERT INTO series (source, study_uid, series_uid, images_sha256, images,"
                " case_name, state, seen_at, changed_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (case_name, images_sha256) DO UPDATE SET state = excluded.state,"
                " source = excluded.source, reason = '', changed_at = excluded.changed_at"
                " WHERE state = 'replaced'",
                (
                    seen.source,
                    seen.study_uid,
                    seen.series_uid,
                    seen.images_sha256,
                    len(seen.images),
                    seen.case_name,
                    WAITING,
                    now,
                    now,
                ),
            ).rowcount
            if added:
                self._database.execute(
                    "UPDATE series SET state = ?, reason = ?, changed_at = ? WHERE case_name = ?"
                    " AND images_sha256 != ? AND state = ?",
                    (
                        REPLACED,
                        "it has other images now",
                        now,
                        seen.case_name,
                        seen.images_sha256,
                        WAITING,
                    ),
                )
            else:
                self._seen_again(seen, now)
        return bool(added)

    def _seen_again(self, seen: SeenSeries, now: float) -> None:
        # Its source may have got another address.
        self._database.execute(
            "UPDATE series SET source = ? WHERE case_name = ? AND images_sha256 = ? AND state = ?",
            (seen.source, seen.case_name, seen.images_sha256, WAITING),
        )
        if seen.received:  # sent again after it was removed: it is here again, for as long
            self._database.execute(
                "UPDATE series SET removed = 0, changed_at = ? WHERE case_name = ? AND removed = 1",
                (now, seen.case_name),
            )

    def resume(self, *, failed: bool = False) -> int:
        """Let what an earlier watch was running wait again; how many rows that were.

        Args:
            failed: Whether what failed is to be tried again, too.
        """
        with _usable(self.path), self._database:
            resumed = self._database.execute(
                # Not at once: what waits beside it is seen and begun first, should it end this
                # program as well.
                "UPDATE series SET state = ?, not_before = ? + MIN(?, ? * (1 << (MIN(interrupted,"
                " 10) - 1))) WHERE state = ?",
                (WAITING, self._clock(), _MOST_PAUSE_S, _PAUSE_S, RUNNING),
            ).rowcount
            if failed:
                resumed += self._database.execute(
                    "UPDATE series SET state = ?, tries = 0, interrupted = 0, not_before = 0,"
                    " removed = 0 WHERE state = ?",
                    (WAITING, FAILED),
                ).rowcount
        return resumed

    def start(self, sources: Sequence[str]) -> JournalRow | None:
        """Begin the next series that these sources have; None if none waits.

        What was begun before comes after what was not: one that ends the program each time holds up
        nothing else.
        """
        now = self._clock()
        names = ", ".join("?" * len(sources))
        with _usable(self.path), self._database:
            while True:
                values = self._database.execute(
                    f"SELECT {_COLUMNS} FROM series WHERE state = ? AND not_before <= ? AND source"  # noqa: S608  # question marks only
                    f" IN ({names}) ORDER BY tries + interrupted, id LIMIT 1",
                    (WAITING, now, *sources),
                ).fetchone()
                if values is None:
                    return None
                row = JournalRow(*values)
                if row.interrupted < MOST_INTERRUPTED:
                    break
                self._end(row, FAILED, f"ended: the program ended in {row.interrupted} tries")
            # Taken back by whoever lives to say what became of it.
            self._database.execute(
                "UPDATE series SET state = ?, interrupted = interrupted + 1, changed_at = ?"
                " WHERE id = ?",
                (RUNNING, now, row.id),
            )
        return row

    def end(self, row: JournalRow, state: str, reason: str = "") -> None:
        """Write down what became of a series.

        Args:
            row: What `start` gave.
            state: `DONE`, `REFUSED`, `REPLACED` or `FAILED`.
            reason: Why it is not done.
        """
        with _usable(self.path), self._database:
            self._end(row, state, reason)

    def again(self, row: JournalRow, reason: str, *, counts: bool = True) -> str:
        """Let a series wait for another try, unless it had its last one; its state.

        Args:
            row: What `start` gave.
            reason: Why this try failed.
            counts: False where it says nothing about the series: the archive was not there.
        """
        tries = row.tries + counts
        state = FAILED if tries >= MOST_TRIES else WAITING
        now = self._clock()
        pause = _PAUSE_S * 2 ** max(tries - 1, 0)
        with _usable(self.path), self._database:
            self._database.execute(
                "UPDATE series SET state = ?, tries = ?, interrupted = ?, reason = ?, not_before ="
                " ?, changed_at = ? WHERE id = ? AND state = ?",
                (state, tries, row.interrupted, reason, now + pause, now, row.id, RUNNING),
            )
        return state

    def rows(self) -> list[JournalRow]:
        """All rows, oldest first."""
        with _usable(self.path):
            return _all_rows(self._database)

    def counts(self) -> dict[str, int]:
        """How many rows are in each state."""
        counts = dict.fromkeys(STATES, 0)
        with _usable(self.path):
            counts.update(
                self._database.execute("SELECT state, COUNT(*) FROM series GROUP BY state")
            )
        return counts

    def expired(self, days: float) -> list[str]:
        """Cases that have been done, refused or replaced for so long.

        Args:
            days: How long they are kept.
        """
        ended = ", ".join("?" * len(_ENDED))
        with _usable(self.path):
            rows = self._database.execute(
                f"SELECT case_name FROM series GROUP BY case_name HAVING"  # noqa: S608  # question marks only
                f" SUM(state NOT IN ({ended})) = 0 AND MIN(removed) = 0 AND MAX(changed_at) < ?",
                (*_ENDED, self._clock() - days * 86_400),
            ).fetchall()
        return [name for (name,) in rows]

    def removed(self, case_name: str) -> None:
        """Write down that files of series are gone; the rows stay, so that none comes again."""
        with _usable(self.path), self._database:
            self._database.execute(
                "UPDATE series SET removed = 1 WHERE case_name = ?", (case_name,)
            )

    def _end(self, row: JournalRow, state: str, reason: str) -> None:
        self._database.execute(
            "UPDATE series SET state = ?, tries = ?, interrupted = ?, reason = ?, changed_at = ?"
            " WHERE id = ?",
            (state, row.tries + 1, row.interrupted, reason, self._clock(), row.id),
        )


def read_rows(out: Path) -> list[JournalRow]:
    """The rows of a journal, whether a watch runs or not.

    Args:
        out: Folder of the answers.

    Raises:
        WatchError: If there is none, or it cannot be read.
    """
    path = out / FOLDER / "journal.sqlite"
    if not path.exists():
        raise WatchError(f"journal_missing: no watch has run with {out}")
    with _usable(path), closing(_opened(path)) as database:
        return _all_rows(database)


def _all_rows(database: sqlite3.Connection) -> list[JournalRow]:
    return [
        JournalRow(*row)
        for row in database.execute(f"SELECT {_COLUMNS} FROM series ORDER BY id")  # noqa: S608
    ]


def _opened(path: Path) -> sqlite3.Connection:
    """The database, made where there is none.

    Every commit is on the disk when it returns.
    """
    database = sqlite3.connect(path, timeout=30.0)
    try:
        with suppress(OSError):
            path.chmod(0o600)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version == 0:
            with database:
                database.execute("BEGIN IMMEDIATE")
                database.execute(_SCHEMA)
                database.execute(f"PRAGMA user_version = {_FORMAT}")
        elif version != _FORMAT:
            raise WatchError(
                f"journal_unusable: {path} was written by another version (format {version}, not"
                f" {_FORMAT})"
            )
        database.execute(f"SELECT {_COLUMNS} FROM series LIMIT 1")  # noqa: S608
    except BaseException:
        database.close()
        raise
    return database


def _locked(path: Path) -> int:
    """A lock that ends with this process, however that ends.

    Raises:
        WatchError: If another process has it.
    """
    if fcntl is None:
        raise WatchError("watch_unsupported: this system has no locks on files")
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise WatchError(
            f"watch_runs: another watch uses {path.parent.parent}; give this one another --out"
        ) from None
    except BaseException:
        os.close(lock)
        raise
    return lock


@contextmanager
def _usable(path: Path) -> Iterator[None]:
    """Turn what a broken journal or disk raises into a `WatchError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise WatchError(f"journal_unusable: {path}: {error}") from error
    except OSError as error:
        text = os.strerror(error.errno) if error.errno else str(error)
        raise WatchError(f"journal_unusable: {path}: {text}") from error
