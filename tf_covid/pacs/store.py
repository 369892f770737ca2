"""Objects into an archive: sent, and then seen there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pydicom

from tf_covid.errors import PacsError, PacsUnavailable
from tf_covid.pacs.dicomweb import DicomWeb
from tf_covid.pacs.multipart import MultipartFile

_TRIES = 3


class StowNode:
    """An archive that results are stored in by DICOMweb.

    Args:
        archive: The archive.
    """

    def __init__(self, archive: DicomWeb) -> None:
        self._archive = archive
        self.shown = archive.shown

    def check(self) -> None:
        """Ask whether it is there.

        Raises:
            PacsError: If it is not, or does not let us in.
        """
        self._archive.check()

    def store(self, paths: Iterable[Path], on_message: Callable[[str], None]) -> None:
        """See `store_objects`."""
        store_objects(self._archive, paths, on_message)


def store_objects(
    archive: DicomWeb, paths: Iterable[Path], on_message: Callable[[str], None]
) -> None:
    """Store objects, each until the archive lists it: a cut connection looks like a success.

    What the archive has already is not sent again: under the same UID it is the same answer.

    Args:
        archive: Where they go.
        paths: DICOM files.
        on_message: Called with a line when all are there.

    Raises:
        PacsError: If one of them did not arrive; those before it did.
    """
    count = sent = 0
    for path in paths:
        count += 1
        sent += _store(archive, path)
    on_message(f"{archive.shown}: {count} objects are there, {sent} of them new")


def _store(archive: DicomWeb, path: Path) -> bool:
    """Whether an object had to be sent; it is there now."""
    header = pydicom.dcmread(path, stop_before_pixels=True)
    study_uid, series_uid = str(header.StudyInstanceUID), str(header.SeriesInstanceUID)
    uid = str(header.SOPInstanceUID)
    if uid in archive.instances(study_uid, series_uid):
        return False
    reason = "it does not list it"
    for attempt in range(1, _TRIES + 1):
        try:
            said = archive.store(MultipartFile.of(path))
            reason = said.get(uid) or "it does not list it"
            if uid in archive.instances(study_uid, series_uid):
                return True
        except PacsUnavailable:
            if attempt == _TRIES:
                raise
    raise PacsError(f"pacs_not_stored: {archive.shown} did not take {path.name} ({reason})")
