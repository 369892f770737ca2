"""Where the answers of a cluster go, whichever kind of place that is."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tf_covid.errors import ClusterError, OutputError
from tf_covid.outcomes import parsed

#: The file that makes an answer whole.
RESULT = "result.json"


class Storage(ABC):
    """Answers by the names of their cases, and small texts beside them.

    Args:
        out: Folder or URL.
    """

    def __init__(self, out: str) -> None:
        self.out = out
        #: The folder or URL without what may be a secret, for people.
        self.shown = out

    @contextmanager
    @abstractmethod
    def folder(self, case: str) -> Iterator[Path]:
        """The folder of this machine that `Run` writes the folder of a case into.

        What is there of an earlier answer is in it; afterwards the answer is in the storage.

        Raises:
            OutputError: If it cannot be stored.
        """
        yield Path()

    @contextmanager
    @abstractmethod
    def held(self) -> Iterator[None]:
        """Hold the storage against other runs while the block runs.

        Raises:
            ClusterError: If another run holds it.
        """
        yield

    @abstractmethod
    def append(self, name: str, text: str) -> None:
        """Add lines to a text, whole or not at all."""

    @abstractmethod
    def appended(self, name: str) -> str:
        """All lines that were added to a text."""

    @abstractmethod
    def write(self, name: str, text: str) -> None:
        """Write a text as a whole."""

    @abstractmethod
    def read(self, name: str) -> str | None:
        """A text; None where there is none."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a text, if it is there."""

    def answer(self, case: str) -> dict[str, Any] | None:
        """What the `result.json` of a case says; None where there is no whole answer of ours.

        Raises:
            OutputError: If the storage cannot be asked.
        """
        text = self.read(f"{case}/{RESULT}")
        return None if text is None else parsed(text)

    def sees(self, token: str) -> bool:
        """Whether what another machine has prepared is seen from here, where that costs nothing."""
        return True

    def check(self, token: str) -> str | None:
        """Why this machine cannot use what another one has prepared; None if it can.

        Args:
            token: From `prepared`.
        """
        name = f".node-{secrets.token_hex(8)}"
        try:
            if self.read(f".run-{token}") != token:
                return "does not see what this machine wrote: it is not shared"
            self.write(name, token)
            self.remove(name)
        except OutputError as error:
            return str(error)
        return None

    @contextmanager
    def prepared(self) -> Iterator[str]:
        """A token that every machine has to see there, while the block runs."""
        token = secrets.token_hex(16)
        self.write(f".run-{token}", token)
        try:
            yield token
        finally:
            with suppress(OutputError):
                self.remove(f".run-{token}")


def taken(out: str, how: str = "") -> ClusterError:
    """The error of a run that comes to a place that another one holds.

    Args:
        out: The place, for people.
        how: What can be done, after a "; ".
    """
    return ClusterError(f"run_runs: {out}: another run is answering into it{how}")
