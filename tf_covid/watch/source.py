"""What a watch looks at: archives, senders and folders, all alike."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from tf_covid.errors import WatchError
from tf_covid.scan import Case
from tf_covid.scan.cases import only_case
from tf_covid.watch.journal import JournalRow, SeenSeries


class SeriesChanged(WatchError):
    """A series that has other images by now than when it was written down."""


#: Finds the cases of a path: `Reader.find`.
Find = Callable[[Path], list[Case]]


class Source(Protocol):
    """Where new series come from."""

    @property
    def name(self) -> str:
        """The source in messages and in the journal, without secrets."""

    def check(self) -> None:
        """Ask whether it is there.

        Raises:
            PacsError, WatchError: If it is not, or does not let us in.
        """

    def poll(self) -> Iterator[SeenSeries]:
        """Series that have been quiet for long enough, each at least once after each start.

        Raises:
            PacsUnavailable: If it cannot be asked now.
            PacsError, WatchError: If it cannot be used.
        """

    def case(self, row: JournalRow) -> AbstractContextManager[Case]:
        """The case of a series of this source, its files in reach within the block.

        Raises:
            PacsUnavailable: If it cannot be asked now.
            SeriesChanged: If it has other images by now, or none.
            PacsError, WatchError: If they cannot be had, or are no case.
        """

    def remove(self, case_name: str) -> bool:
        """Remove what this program keeps of a series; what belongs to the source stays.

        False, and nothing is removed, where more of it has come than was answered.
        """

    def close(self) -> None:
        """Stop looking."""


class Stillness:
    """For how long things have been as they are.

    Args:
        clock: Gives the time, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[Hashable, tuple[Hashable, float]] = {}

    def seconds(self, thing: Hashable, state: Hashable) -> float:
        """Since when a thing has been in this state, as far as was seen; 0 at the first look."""
        now = self._clock()
        known = self._since.get(thing)
        if known is None or known[0] != state:
            self._since[thing] = state, now
            return 0.0
        return now - known[1]

    def keep(self, things: set[Hashable]) -> None:
        """Forget all others."""
        for thing in self._since.keys() - things:
            del self._since[thing]


def case_of(path: Path, row: JournalRow, find: Find) -> Case:
    """The one case in a folder of a series, named as the journal names it.

    Raises:
        WatchError: If the images are of several patients or studies.
    """
    cases = find(path)
    case = only_case(cases)
    if case is None:
        raise WatchError(
            f"several_cases: the images of this series are of {len(cases)} patients or studies"
        )
    return dataclasses.replace(case, name=row.case_name)


def same_images(row: JournalRow, seen: SeenSeries) -> None:
    """Check that a series is as it was when it was written down.

    Raises:
        SeriesChanged: If it has other images by now.
    """
    if seen.images_sha256 != row.images_sha256:
        raise SeriesChanged(
            f"series_changed: it had {row.images} images when it was quiet, and has"
            f" {len(seen.images)} now, or others"
        )
