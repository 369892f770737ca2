"""A folder that scans are put into."""

from __future__ import annotations

import dataclasses
import os
from collections import defaultdict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tf_covid.errors import PacsUnavailable, WatchError
from tf_covid.scan import Case
from tf_covid.scan.leftovers import LEFT_ALONE
from tf_covid.scan.names import safe_name
from tf_covid.watch.journal import JournalRow, SeenSeries
from tf_covid.watch.source import Find, SeriesChanged, Stillness, same_images

#: Why the search of a whole folder failed, which says nothing about what is in it.
_UNREAD = frozenset(("reader_failed", "unreadable", "too_large", "no_access"))
#: Path → size and time of its last change: what a folder holds, without reading it.
_Listing = dict[str, tuple[int, int]]


class FolderSource:
    """The scans in a folder: each DICOM series, and each volume file.

    Nothing in it is changed or removed.

    Args:
        folder: The folder.
        find: Finds the cases of a path.
        quiet_s: Seconds that the files of a scan must stay as they are.

    Raises:
        WatchError: If there is no such folder, or it may not be read.
    """

    def __init__(self, folder: Path, find: Find, *, quiet_s: float) -> None:
        self._folder, self._find, self._quiet_s = folder.resolve(), find, quiet_s
        self.name = f"folder:{self._folder}"
        self._still = Stillness()
        self._listing: _Listing = {}
        #: Series → its case.
        self._cases: dict[SeenSeries, Case] = {}
        self._given: set[SeenSeries] = set()
        if not self._folder.is_dir():
            raise WatchError(f"watch_folder: {folder} is no folder")
        if not os.access(self._folder, os.R_OK | os.X_OK):
            raise WatchError(f"watch_folder: {folder} may not be read")

    def check(self) -> None:
        """See `Source.check`."""
        self._listed()

    def poll(self) -> Iterator[SeenSeries]:
        """See `Source.poll`."""
        listing = self._listed()
        if listing != self._listing:
            self._cases = self._cases_in(listing)
            self._listing = listing
        for seen, case in self._cases.items():
            quiet = self._still.seconds(seen, self._state(case)) >= self._quiet_s
            if quiet and seen not in self._given:
                yield seen
                self._given.add(seen)
        self._still.keep(set(self._cases))
        self._given &= self._cases.keys()

    @contextmanager
    def case(self, row: JournalRow) -> Iterator[Case]:
        """See `Source.case`."""
        there = [seen for seen in self._cases if seen.case_name == row.case_name]
        if not there:
            raise SeriesChanged("series_gone: its files are not in the folder any more")
        same = [seen for seen in there if seen.images_sha256 == row.images_sha256]
        if not same:
            self._given -= set(there)  # to be looked at anew
            same_images(row, there[0])
        yield dataclasses.replace(self._cases[same[0]], name=row.case_name)

    def remove(self, case_name: str) -> bool:
        """See `Source.remove`; the folder is the user's."""
        return True

    def close(self) -> None:
        """See `Source.close`."""

    def _listed(self) -> _Listing:
        listing: _Listing = {}
        ahead = [str(self._folder)]
        while ahead:
            here = ahead.pop()
            try:
                with os.scandir(here) as listed:
                    for entry in listed:
                        if entry.is_dir(follow_symlinks=False):
                            ahead.append(entry.path)
                            continue
                        try:
                            status = entry.stat()
                        except OSError:
                            continue  # it went away, or is a link to nothing
                        listing[entry.path] = status.st_size, status.st_mtime_ns
            except OSError as error:
                if here == str(self._folder):
                    raise PacsUnavailable(
                        f"watch_folder: {here} cannot be read now ({error.strerror})"
                    ) from None
        return listing

    def _cases_in(self, listing: _Listing) -> dict[SeenSeries, Case]:
        cases: dict[SeenSeries, Case] = {}
        for case in self._find(self._folder):
            if case.path == self._folder and not case.members:
                codes = {flag.code for flag in case.quality_flags if flag.level == "error"}
                if codes & _UNREAD:
                    reasons = ", ".join(sorted(codes))
                    raise PacsUnavailable(
                        f"watch_folder: {self._folder} cannot be read as a whole ({reasons})"
                    )
                continue  # nothing in it yet that is a scan
            # What lies beside a scan says nothing of it here, where others' scans come and go.
            flags = tuple(flag for flag in case.quality_flags if flag.code not in LEFT_ALONE)
            case = dataclasses.replace(case, quality_flags=flags)
            for seen, one in self._series(case, listing):
                cases[seen] = one
        return cases

    def _series(self, case: Case, listing: _Listing) -> Iterator[tuple[SeenSeries, Case]]:
        """A case of a folder may be a study of several series."""
        if not case.instances:
            first = case.path / case.members[0] if case.members else case.path
            relative = first.relative_to(self._folder).as_posix()
            size, changed = listing.get(str(first), (0, 0))
            images = frozenset({f"{size} {changed}"})
            label = safe_name(first.name.partition(".")[0])[:60] or "volume"
            yield SeenSeries(self.name, "", f"file:{relative}", images, label), case
            return
        series = defaultdict(list)
        for instance in case.instances:
            series[instance.series_uid].append(instance)
        for uid, instances in series.items():
            names = tuple(instance.name for instance in instances)
            # A file of an image without a UID stands for itself.
            images = frozenset(instance.sop_uid or instance.name for instance in instances)
            study = instances[0].study_uid
            one = dataclasses.replace(case, members=names, instances=tuple(instances))
            yield SeenSeries(self.name, study, uid or f"file:{study} {names[0]}", images), one

    def _state(self, case: Case) -> Hashable:
        """Sizes and times of the files of a case."""
        if not case.members or case.path.is_file():
            return self._listing.get(str(case.path))
        return tuple(self._listing.get(str(case.path / name)) for name in case.members)
