"""What can go wrong, by kind. The library raises these with the facts; the command line exits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tf_covid.result import QualityFlag


class TfCovidError(Exception):
    """Base of every error that `tf_covid` raises on purpose; states the facts and the way out."""


class ScanRefused(TfCovidError):
    """A scan that cannot be answered honestly.

    Args:
        quality_flags: What was found; at least one has level "error".

    The message is that of the first error.
    """

    def __init__(self, quality_flags: Sequence[QualityFlag]) -> None:
        self.quality_flags = tuple(quality_flags)
        errors = [flag for flag in self.quality_flags if flag.level == "error"]
        if not errors:
            raise ValueError("a refusal needs at least one quality flag of level 'error'")
        super().__init__("; ".join(f"{flag.code}: {flag.message}" for flag in errors))

    def __reduce__(self) -> tuple[type[ScanRefused], tuple[tuple[QualityFlag, ...]]]:
        return type(self), (self.quality_flags,)  # an exception is pickled by its message otherwise


class ModelError(TfCovidError):
    """A model or weight file that is missing, damaged, foreign, or does not fit its contract."""


class UnsafeFile(ModelError):
    """A weight file that is not read, since it is damaged or could do harm.

    Args:
        code: What is wrong with it, in one word of the table in docs/import.md; stands before the
            message.
        message: The facts.
    """

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(f"{code}: {message}")


class OptionError(TfCovidError):
    """Options that do not go together, or that nothing can be done with."""


class OutputError(TfCovidError):
    """An output that cannot be written, or that would overwrite another case's answer."""


class ManifestError(TfCovidError):
    """A manifest with wrong rows; the message has a line for each, with row and column."""


class CohortError(TfCovidError):
    """A cohort that cannot be used: a class is missing, a patient on both sides, scans refused."""


class TrainingError(TfCovidError):
    """A training that cannot start, go on or be resumed; what it has reached is kept."""


class ServingError(TfCovidError):
    """A server or client that cannot work as asked, or an answer that is not one."""


class PacsError(TfCovidError):
    """An archive that does not do what it was asked; the message names it without its secrets."""


class WatchError(TfCovidError):
    """A watch whose journal or sources cannot be used, or a series that is not as it was seen."""


class ClusterError(TfCovidError):
    """A cluster that is not there, or whose nodes cannot do the work together."""


class PacsUnavailable(PacsError):
    """An archive that is not there, too slow, or broke off: worth another try."""
