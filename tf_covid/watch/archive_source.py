"""An archive that is asked again and again which CT series it has."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path

from tf_covid.atomic import make_folder
from tf_covid.errors import PacsError, PacsUnavailable
from tf_covid.pacs.address import is_uid
from tf_covid.pacs.dicomweb import ArchivedSeries, DicomWeb
from tf_covid.pacs.retrieve import retrieve_series
from tf_covid.scan import Case
from tf_covid.watch.journal import JournalRow, SeenSeries
from tf_covid.watch.source import Find, SeriesChanged, Stillness, case_of, same_images


class ArchiveSource:
    """The CT series of an archive, by DICOMweb.

    Args:
        archive: The archive.
        folder: Where images are while they are read; emptied at first.
        find: Finds the cases of a path.
        quiet_s: Seconds that the count of a series' images must stay as it is.
        study_days: Studies of so many days are looked at, today among them; None: all.
        on_message: Called with a line about what is done.
        free_bytes: Of the disk, which stay free.
    """

    def __init__(
        self,
        archive: DicomWeb,
        folder: Path,
        find: Find,
        *,
        quiet_s: float,
        study_days: int | None,
        on_message: Callable[[str], None],
        free_bytes: int = 0,
    ) -> None:
        self.name = f"dicomweb:{archive.shown}"
        self._archive, self._folder, self._find = archive, folder, find
        self._quiet_s, self._study_days = quiet_s, study_days
        self._on_message = on_message
        self._free_bytes = free_bytes
        self._counted, self._listed = Stillness(), Stillness()
        #: Series → state in which it was last given out.
        self._given: dict[Hashable, Hashable] = {}
        self._odd, self._messages = 0, set[str]()
        shutil.rmtree(folder, ignore_errors=True)  # of a watch that was killed

    def check(self) -> None:
        """See `Source.check`."""
        self._archive.check()

    def poll(self) -> Iterator[SeenSeries]:
        """See `Source.poll`; a series whose list cannot be had holds up no other."""
        listed = self._archive.ct_series(self._first_day())
        odd = sum(not (is_uid(one.uid) and is_uid(one.study_uid)) for one in listed)
        if odd != self._odd:
            self._on_message(f"{self.name}: {odd} series without valid UIDs cannot be asked for")
            self._odd = odd
        unavailable = None
        for one in listed:
            if is_uid(one.uid) and is_uid(one.study_uid):
                try:
                    yield from self._quiet(one)
                except PacsUnavailable as error:
                    unavailable = error
                except PacsError as error:
                    self._once(str(error))
        there: set[Hashable] = {(one.study_uid, one.uid) for one in listed}
        self._counted.keep(there)
        self._listed.keep(there)
        self._given = {key: state for key, state in self._given.items() if key in there}
        if unavailable is not None:
            raise unavailable

    def _quiet(self, one: ArchivedSeries) -> Iterator[SeenSeries]:
        """A series, if it has been quiet and was not given out as it is."""
        key = one.study_uid, one.uid
        still = self._counted.seconds(key, one.images) >= self._quiet_s
        if one.images == 0 or (one.images is not None and self._given.get(key) == one.images):
            return
        if one.images is not None and not still:
            return
        images = frozenset(self._archive.instances(*key))
        state: Hashable = one.images
        if one.images != len(images):
            # No count, or one that does not fit the list: the list itself must have been quiet.
            state = hash(images)
            if self._listed.seconds(key, state) < self._quiet_s or self._given.get(key) == state:
                return
        if images:
            yield SeenSeries(self.name, *key, images)
            self._given[key] = state

    @contextmanager
    def case(self, row: JournalRow) -> Iterator[Case]:
        """See `Source.case`."""
        images = frozenset(self._archive.instances(row.study_uid, row.series_uid))
        try:
            same_images(row, SeenSeries(self.name, row.study_uid, row.series_uid, images))
        except SeriesChanged:
            self._given.pop((row.study_uid, row.series_uid), None)  # to be looked at anew
            raise
        folder = self._folder / row.case_name
        try:
            make_folder(folder)
            room = shutil.disk_usage(folder).free - self._free_bytes
            retrieve_series(self._archive, row.study_uid, row.series_uid, images, folder, room)
            self._on_message(f"{row.case_name}: {len(images)} images retrieved")
            yield case_of(folder, row, self._find)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def remove(self, case_name: str) -> bool:
        """See `Source.remove`; nothing is kept here."""
        return True

    def close(self) -> None:
        """Close its connections."""
        self._archive.close()

    def _once(self, text: str) -> None:
        """A message, the first time only."""
        if text not in self._messages:
            self._messages.add(text)
            self._on_message(text)

    def _first_day(self) -> date | None:
        if self._study_days is None:
            return None
        return date.today() - timedelta(days=self._study_days - 1)
