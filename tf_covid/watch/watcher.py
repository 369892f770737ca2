"""The loop of a watch: look, answer, store, write down; through kills, full disks and absences."""

from __future__ import annotations

import errno
import functools
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from tf_covid.errors import ModelError, OutputError, PacsError, ServingError, WatchError
from tf_covid.infer import Run, answer_one
from tf_covid.outcomes import CaseOutcome, Summary
from tf_covid.report.files import objects_in
from tf_covid.watch.health import Health
from tf_covid.watch.journal import DONE, FAILED, REFUSED, REPLACED, Journal, JournalRow
from tf_covid.watch.source import SeriesChanged, Source

#: Bytes of the disk that stay free: below, nothing is begun.
FREE_BYTES = 2 << 30
#: Refusals that may be a matter of the moment, and are worth another try.
_PASSING = frozenset(
    (
        *("reader_failed", "not_written", "input_changed", "unreadable", "not_found"),
        *("truncated_file", "too_large"),
    )
)
#: Seconds between two looks for what is to be deleted.
_TIDY_S = 3600.0


class Destination(Protocol):
    """Where results go."""

    @property
    def shown(self) -> str:
        """The destination in messages, without secrets."""

    def check(self) -> None:
        """Ask whether it is there.

        Raises:
            PacsError: If it is not, or does not let us in.
        """

    def store(self, paths: Iterable[Path], on_message: Callable[[str], None]) -> None:
        """Store objects; they are there when this returns.

        Raises:
            PacsError: If one of them is not.
        """


class Watcher:
    """Answers what its sources have, one series at a time.

    Args:
        journal: What is known of each series.
        sources: What is looked at.
        run: Answers cases, into the folder of the journal; it must replace earlier answers.
        destination: Where results go; None: they stay in the folder.
        health: Gets what goes wrong, and what is counted.
        on_message: Called with a line about what is done.
        poll_s: Seconds between two looks at the sources.
        keep_days: Days until answers and received images are deleted; None: never.
        free_bytes: Bytes of the disk that stay free.
    """

    def __init__(
        self,
        journal: Journal,
        sources: Sequence[Source],
        run: Run,
        destination: Destination | None,
        health: Health,
        on_message: Callable[[str], None],
        *,
        poll_s: float,
        keep_days: float | None = None,
        free_bytes: int = FREE_BYTES,
    ) -> None:
        self._journal, self._run, self._destination = journal, run, destination
        self._sources = {source.name: source for source in sources}
        self._health, self._on_message = health, on_message
        self._poll_s, self._keep_days, self._free_bytes = poll_s, keep_days, free_bytes
        self._summary = Summary(run.out)
        self._unwritten = False
        self._polled = self._tidied = -float("inf")

    def forever(self) -> None:
        """Watch until a signal raises KeyboardInterrupt.

        Raises:
            PacsError, WatchError: If a source or the journal cannot be used.
            ModelError, ServingError: If the models cannot answer any scan.
        """
        while True:
            if not self.step():
                time.sleep(min(self._poll_s, 1.0))

    def step(self) -> bool:
        """Look at the sources, and answer the next series; whether there was one."""
        self._poll()
        self._tidy()
        ready = self._room() and not self._destination_away()
        row = self._journal.start(list(self._sources)) if ready else None
        self._health.step(self._journal.counts(), self._free())
        if row is None:
            if self._unwritten:
                self._unwritten = not self._summarised(self._summary.write)
            return False
        start = time.monotonic()
        try:
            self._answer(row)
        except KeyboardInterrupt:
            self._journal.again(row, "stopped: the watch was stopped", counts=False)
            raise
        except (ModelError, ServingError) as error:
            self._journal.again(row, str(error), counts=False)  # no fault of the series
            raise
        self._health.answered(time.monotonic() - start)
        return True

    def _poll(self) -> None:
        if time.monotonic() - self._polled < self._poll_s:
            return
        for name, source in self._sources.items():
            try:
                for seen in source.poll():
                    if self._journal.add(seen):
                        self._on_message(f"{seen.case_name}: {len(seen.images)} images in {name}")
            except (PacsError, OSError) as error:
                self._problem(name, str(error))
            else:
                self._problem(name, None)
        destination = self._destination
        if destination is not None and self._destination_away():
            self._answers(destination.shown, destination.check)
        self._polled = time.monotonic()

    def _answer(self, row: JournalRow) -> None:
        """One try of a series; what became of it is in the journal."""
        source = self._sources[row.source]
        try:
            with source.case(row) as case:
                outcome, fault = answer_one(self._run, case)
        except SeriesChanged as change:
            self._journal.end(row, REPLACED, str(change))
            self._on_message(f"{row.case_name}: {change}")
            return
        except PacsError as error:
            self._again(row, str(error), counts=self._answers(source.name, source.check))
            return
        except (WatchError, OutputError, OSError) as error:
            self._again(row, str(error))
            return
        if fault is not None:
            # Its text may repeat what a header holds.
            self._again(row, f"internal_error: {type(fault).__name__}")
            return
        self._unwritten = True
        self._summarised(functools.partial(self._summary.add, outcome))
        if outcome.problem is not None:
            self._refused(row, outcome)
            return
        self._on_message(outcome.line())
        if self._destination is not None and not self._stored(
            row, self._destination, outcome.folder
        ):
            return
        self._journal.end(row, DONE)

    def _refused(self, row: JournalRow, outcome: CaseOutcome) -> None:
        problem = outcome.problem or ""
        if problem.partition(":")[0] in _PASSING:
            self._again(row, problem)
            return
        self._journal.end(row, REFUSED, problem)
        self._on_message(f"{row.case_name}: refused: {problem}")

    def _stored(self, row: JournalRow, destination: Destination, folder: Path) -> bool:
        paths = objects_in(folder)
        if not paths:
            reason = "pacs_nothing: there are no DICOM objects to store; its report says why"
            self._journal.end(row, FAILED, reason)
            self._on_message(f"{row.case_name}: failed: {reason}")
            return False
        try:
            destination.store(paths, lambda line: self._on_message(f"{row.case_name}: {line}"))
        except PacsError as error:
            here = self._answers(destination.shown, destination.check)
            self._again(row, str(error), counts=here)
            return False
        self._problem(destination.shown, None)
        return True

    def _again(self, row: JournalRow, reason: str, *, counts: bool = True) -> None:
        """Let a series wait; a try on a full disk or without an archive says nothing about it."""
        full = "pacs_disk_full" in reason or os.strerror(errno.ENOSPC) in reason
        counts = counts and not full and self._room()
        state = self._journal.again(row, reason, counts=counts)
        self._on_message(f"{row.case_name}: {state}: {reason}")

    def _answers(self, name: str, check: Callable[[], None]) -> bool:
        """Whether a source or destination is there at all."""
        try:
            check()
        except PacsError as error:
            self._problem(name, str(error))
            return False
        self._problem(name, None)
        return True

    def _summarised(self, write: Callable[[], None]) -> bool:
        """Whether `summary.csv` is up to date; where it is not, the answers are no worse."""
        try:
            write()
        except OutputError as error:
            self._problem("summary", str(error))
            return False
        self._problem("summary", None)
        return True

    def _destination_away(self) -> bool:
        destination = self._destination
        return destination is not None and destination.shown in self._health.problems()

    def _room(self) -> bool:
        """Whether the disk has room for an answer."""
        free = self._free()
        lacking = free < self._free_bytes
        text = f"disk_full: {free >> 20} MB are free, {self._free_bytes >> 20} MB are needed"
        self._problem("disk", text if lacking else None)
        return not lacking

    def _free(self) -> int:
        return shutil.disk_usage(self._run.out).free

    def _tidy(self) -> None:
        """Delete what is done and old enough."""
        if self._keep_days is None or time.monotonic() - self._tidied < _TIDY_S:
            return
        self._tidied = time.monotonic()
        for case_name in self._journal.expired(self._keep_days):
            if not all(source.remove(case_name) for source in self._sources.values()):
                continue  # more of it has come, and is answered first
            try:
                shutil.rmtree(self._run.out / case_name)
            except FileNotFoundError:
                pass
            except OSError as error:
                self._on_message(f"{case_name}: cannot be deleted ({error.strerror})")
                continue
            self._journal.removed(case_name)
            self._summary.rows.pop(case_name, None)
            self._unwritten = True
            self._on_message(f"{case_name}: deleted, {self._keep_days:g} days after its answer")

    def _problem(self, name: str, text: str | None) -> None:
        if self._health.problem(name, text):
            self._on_message(text or f"{name}: is there again")
