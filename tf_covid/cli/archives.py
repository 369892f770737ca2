"""What `infer` does with archives: studies come out of them, and results go into them."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

from tf_covid import console
from tf_covid.errors import PacsError
from tf_covid.outcomes import CaseOutcome
from tf_covid.pacs.address import Access, archive_url, study_address
from tf_covid.pacs.dicomweb import DicomWeb
from tf_covid.pacs.retrieve import retrieve_study
from tf_covid.pacs.store import store_objects
from tf_covid.report.files import objects_in


class Archives:
    """The archives of one call, each asked with the same credentials.

    Args:
        ca_file: Certificates of those who may vouch for them; None: the system's.
        client_cert: Certificate and key of this client.
        stack: Closes connections, and removes what was retrieved.
    """

    def __init__(self, ca_file: Path | None, client_cert: Path | None, stack: ExitStack) -> None:
        self._access, self._stack = Access.of_environment(ca_file, client_cert), stack

    def at(self, url: str) -> DicomWeb:
        """The archive at a URL.

        Raises:
            PacsError: If it is none.
        """
        return self._stack.enter_context(DicomWeb(archive_url(url), self._access))

    def fetched(self, inputs: Sequence[Path | str]) -> tuple[list[Path], int]:
        """The inputs as paths, studies retrieved; and how many could not be.

        What could not is said, and the others are answered.
        """
        paths: list[Path] = []
        lost = 0
        for one in inputs:
            if isinstance(one, Path):
                paths.append(one)
                continue
            try:
                address = study_address(one)
                with DicomWeb(address.url, self._access) as archive:
                    folder = self._folder(address.study_uid)
                    retrieve_study(archive, address.study_uid, folder, console.note)
                paths.append(folder)
            except PacsError as error:
                console.error(str(error))
                lost += 1
        return paths, lost

    def stored(self, archive: DicomWeb, case: Path) -> bool:
        """Store the objects of a case; False, and said, where they are not all there."""
        paths = objects_in(case)
        try:
            if not paths:
                raise PacsError("pacs_nothing: there are no DICOM objects to store")
            store_objects(archive, paths, console.note)
        except PacsError as error:
            console.error(f"{case.name}: {error}")
            return False
        return True

    def shown(self, outcomes: Iterable[CaseOutcome], into: DicomWeb | None) -> int:
        """Show outcomes, store their DICOM objects, and count what went wrong.

        Args:
            outcomes: As they become known.
            into: Archive that the objects go into; None: they stay in their folders.
        """
        problems = 0
        for outcome in outcomes:
            problems += outcome.problem is not None
            console.outcome(outcome)
            if into is not None and outcome.problem is None:
                problems += not self.stored(into, outcome.folder)
        return problems

    def _folder(self, study_uid: str) -> Path:
        """An empty folder for a study, named without its UID: the case is named after it."""
        outside = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="tfcovid-"))
        name = hashlib.sha256(study_uid.encode("ascii")).hexdigest()[:12]
        folder = Path(outside) / f"study-{name}"
        folder.mkdir()
        return folder
