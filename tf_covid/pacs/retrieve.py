"""A study out of an archive, whole or not at all.

An archive may cut an answer short and nobody says so, and a study may grow while it is read. So its
images are listed, retrieved series by series, what is missing one by one, and listed again: only
what was the same before and after is handed over.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import pydicom

from tf_covid.errors import PacsError, PacsUnavailable
from tf_covid.pacs.dicomweb import DicomWeb
from tf_covid.pacs.multipart import CutOff, boundary_of, split_parts
from tf_covid.scan.dicom.header import ERRORS
from tf_covid.scan.quiet import quiet

#: How often a missing image is asked for, and how often a study that grew is read on.
_TRIES, _ROUNDS = 3, 3
#: Most bytes of one study.
_MOST_BYTES = 1 << 35

#: SeriesInstanceUID → SOPInstanceUIDs.
Listing = Mapping[str, frozenset[str]]


def retrieve_study(
    archive: DicomWeb, study_uid: str, folder: Path, on_message: Callable[[str], None]
) -> int:
    """Retrieve the CT series of a study.

    Args:
        archive: Where it is.
        study_uid: StudyInstanceUID.
        folder: An empty folder, which gets a file an image.
        on_message: Called with a line about what is done.

    Returns:
        The number of images.

    Raises:
        PacsError: If the archive does not have it, does not answer, or does not give it whole.
    """
    listing = _list(archive, study_uid)
    if not any(listing.values()):
        raise PacsError(
            f"pacs_unknown: {archive.shown} lists no CT images of this study; see its UID, and the"
            " path of the URL"
        )
    download = _Download(archive, study_uid, folder)
    for _ in range(_ROUNDS):
        count = sum(map(len, listing.values()))
        on_message(f"{archive.shown}: {count} images in {len(listing)} CT series")
        for series_uid, instances in listing.items():
            download.series(series_uid, instances)
        after = _list(archive, study_uid)
        if after == listing:
            return count
        listing = after
        lost = download.received - set().union(*listing.values())
        if lost:
            raise PacsError(
                f"pacs_changed: {len(lost)} images of this study were removed from {archive.shown}"
                " while it was read; ask again"
            )
    raise PacsError(
        f"pacs_growing: the study still grows in {archive.shown} ({count} images a moment ago);"
        " ask again when it is complete"
    )


def retrieve_series(
    archive: DicomWeb,
    study_uid: str,
    series_uid: str,
    instances: frozenset[str],
    folder: Path,
    room_bytes: int,
) -> None:
    """Retrieve one series.

    Args:
        archive: Where it is.
        study_uid: StudyInstanceUID.
        series_uid: SeriesInstanceUID.
        instances: SOPInstanceUIDs of its images, as the archive listed them.
        folder: An empty folder, which gets a file an image.
        room_bytes: How much may be written.

    Raises:
        PacsError: If the archive does not answer, does not give it whole, or if it changed.
    """
    _Download(archive, study_uid, folder, room_bytes).series(series_uid, instances)
    if archive.instances(study_uid, series_uid) != instances:
        raise PacsError(f"pacs_changed: the series changed in {archive.shown} while it was read")


def _list(archive: DicomWeb, study_uid: str) -> Listing:
    # What states no modality may be CT, and the reader looks at it.
    return {
        series.uid: frozenset(archive.instances(study_uid, series.uid))
        for series in archive.series(study_uid)
        if series.modality in ("CT", "")
    }


class _Download:
    """The files of one study, as they come in.

    Args:
        archive: Where it is.
        study_uid: StudyInstanceUID.
        folder: Gets a file an image.
        room_bytes: How much may be written.
    """

    def __init__(
        self, archive: DicomWeb, study_uid: str, folder: Path, room_bytes: int = 2 * _MOST_BYTES
    ) -> None:
        self._room_bytes = room_bytes
        self._archive, self._study_uid, self._folder = archive, study_uid, folder
        self._bytes = 0
        #: SOPInstanceUIDs of the images that are here, whole.
        self.received: set[str] = set()

    def series(self, series_uid: str, instances: frozenset[str]) -> None:
        """Retrieve what is missing of a series: all at once, and the rest one by one.

        Raises:
            PacsError: If not all of it came.
        """
        if len(instances - self.received) > 1:
            with suppress(PacsUnavailable):  # what is missing then is asked for singly
                self._receive(series_uid, "")
        for instance_uid in sorted(instances - self.received):
            for attempt in range(1, _TRIES + 1):
                try:
                    self._receive(series_uid, instance_uid)
                except PacsUnavailable:
                    if attempt == _TRIES:
                        raise
                if instance_uid in self.received:
                    break
        if missing := len(instances - self.received):
            raise PacsError(
                f"pacs_incomplete: {self._archive.shown} lists {len(instances)} images of a series"
                f" and gave {len(instances) - missing} of them"
            )

    def _receive(self, series_uid: str, instance_uid: str) -> None:
        """Take in an answer, as far as it comes."""
        with self._archive.retrieve(self._study_uid, series_uid, instance_uid) as (kind, body):
            try:
                for part in split_parts(body, boundary_of(kind)):
                    self._keep(part, series_uid)
            except CutOff:
                pass

    def _keep(self, part: Iterable[bytes], series_uid: str) -> None:
        """Write one image, and count it once it is whole and of this series."""
        path = self._folder / f"{len(self.received):06d}.dcm"
        partial = path.with_suffix(".part")
        try:
            with partial.open("wb") as file:
                for piece in part:
                    self._bytes += len(piece)
                    if self._bytes > self._room_bytes:
                        raise PacsError("pacs_disk_full: there is no room for this study")
                    if self._bytes > _MOST_BYTES:
                        raise PacsError(
                            f"pacs_too_large: the study is larger than {_MOST_BYTES >> 30} GB"
                        )
                    file.write(piece)
            with quiet():
                header = pydicom.dcmread(
                    partial,
                    stop_before_pixels=True,
                    specific_tags=["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"],
                )
            of = header.get("StudyInstanceUID"), header.get("SeriesInstanceUID")
            instance_uid = header.get("SOPInstanceUID")
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise PacsError("pacs_disk_full: there is no room for this study") from None
            raise PacsError(f"pacs_not_written: {error.strerror}") from None
        except ERRORS:
            partial.unlink(missing_ok=True)
            return  # no DICOM: it is missing, and is asked for again
        if of != (self._study_uid, series_uid):
            partial.unlink()
            other = "study" if of[0] != self._study_uid else "series"
            raise PacsError(f"pacs_answer: {self._archive.shown} sent an image of another {other}")
        if instance_uid in self.received:
            partial.unlink()
            return
        partial.rename(path)
        self.received.add(str(instance_uid))
