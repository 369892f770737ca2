"""An archive that is asked again and again which CT series it has."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path

from tf_covid.atomic import make_folder
from tf_covid.pacs.dicomweb import ArchivedSeries, DicomWeb
from tf_covid.pacs.retrieve import retrieve_series
from tf_covid.scan import Case
from tf_covid.watch.journal import JournalRow, SeenSeries
from tf_covid.watch.source import Find, Stillness, case_of, same_images


class ArchiveSource:
    """The CT series of an archive, by DICOMweb.

    Args:
        archive: The archive.
        folder: Where images are while they are read; emptied at first.
        find: Finds the cases of a path.
        quiet_s: Seconds that the count of a series' images must stay as it is.
        study_days: Studies of so many days are looked at, today among them; None: all.
        on_message: Called with a line about what is done.
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
    ) -> None:
        self.name = f"dicomweb:{archive.shown}"
        self._archive, self._folder, self._find = archive, folder, find
        self._quiet_s, self._study_days = quiet_s, study_days
        self._on_message = on_message
        self._still = Stillness()
        #: Series → state in which it was last given out.
        self._given: dict[Hashable, Hashable] = {}
        shutil.rmtree(folder, ignore_errors=True)  # of a watch that was killed

    def check(self) -> None:
        """See `Source.check`."""
        self._archive.check()

    def poll(self) -> Iterator[SeenSeries]:
        """See `Source.poll`."""
        listed = self._archive.ct_series(self._first_day())
        for one in listed:
            images = None
            if (state := one.images) is None:  # the archive does not count them
                images = self._images(one)
                state = hash(images)
            quiet = self._still.seconds(one.uid, state) >= self._quiet_s
            if not quiet or self._given.get(one.uid) == state or state == 0:
                continue
            images = self._images(one) if images is None else images
            if one.images not in (None, len(images)):
                self._still.seconds(one.uid, -1)  # its list is ahead of its count: wait once more
                continue
            yield SeenSeries(self.name, one.study_uid, one.uid, images)
            self._given[one.uid] = state
        there: set[Hashable] = {one.uid for one in listed}
        self._still.keep(there)
        self._given = {uid: state for uid, state in self._given.items() if uid in there}

    @contextmanager
    def case(self, entry: JournalRow) -> Iterator[Case]:
        """See `Source.case`."""
        images = frozenset(self._archive.instances(entry.study_uid, entry.series_uid))
        same_images(entry, SeenSeries(self.name, entry.study_uid, entry.series_uid, images))
        folder = self._folder / entry.case_name
        try:
            make_folder(folder)
            retrieve_series(self._archive, entry.study_uid, entry.series_uid, images, folder)
            self._on_message(f"{entry.case_name}: {len(images)} images retrieved")
            yield case_of(folder, entry, self._find)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def remove(self, case_name: str) -> None:
        """See `Source.remove`; nothing is kept here."""

    def close(self) -> None:
        """Close its connections."""
        self._archive.close()

    def _images(self, one: ArchivedSeries) -> frozenset[str]:
        return frozenset(self._archive.instances(one.study_uid, one.uid))

    def _first_day(self) -> date | None:
        if self._study_days is None:
            return None
        return date.today() - timedelta(days=self._study_days - 1)
