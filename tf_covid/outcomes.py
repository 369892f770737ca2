"""What became of each case of `tfcovid infer`: in its folder, in a line, and in summary.csv."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tf_covid.cohort.cases import SUMMARY
from tf_covid.errors import OutputError
from tf_covid.pipeline import refused
from tf_covid.report import summary_row, write_summary
from tf_covid.result import QualityFlag

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True)
class CaseOutcome:
    """What became of one case.

    Args:
        case: Name of the case.
        values: What `result.json` in its folder holds.
        folder: Folder of the answer.
        kept: A finished answer to the same question was there and stays.
        problem: Why there is no answer, in one line; None where there is one.
        url: Where the answer is, if it is in no folder.
    """

    case: str
    values: dict[str, Any]
    folder: Path
    kept: bool = False
    problem: str | None = None
    url: str | None = None

    def line(self) -> str:
        """One line for a person."""
        severity, covid, lungs = (self.values[key] for key in ("severity", "covid", "lungs"))
        if severity is not None:
            answer = f"class {severity['class']} ({severity['label']})"
            if severity["ct_score"] is not None:
                answer += f", CT score {severity['ct_score']:.1f} of 25"
        else:
            answer = (
                f"COVID-19 {'positive' if covid['positive'] else 'negative'}"
                f" ({covid['probability']:.2f})"
            )
        done = "kept" if self.kept else f"{self.values['timings_s']['total']:.1f} s"
        involved = f"{lungs['involvement_percent']:.1f} % of the lungs involved"
        codes = list(
            dict.fromkeys(
                flag["code"] for flag in self.values["quality_flags"] if flag["level"] == "warning"
            )
        )
        warnings = (
            f"; {len(codes)} warning{'s' * (len(codes) > 1)}: {', '.join(codes)}" if codes else ""
        )
        report = self.folder / "report.html" if self.url is None else f"{self.url}/report.html"
        return f"{self.case}: {answer}, {involved}{warnings} ({done}) {report}"


def lost(folder: Path, code: str, text: str) -> CaseOutcome:
    """The outcome of a case without a new answer; an earlier one in its folder stays.

    Args:
        folder: Folder of the answer, named after the case.
        code: Code of the quality flag that says why.
        text: Why, in a line.
    """
    return without_answer(finished(folder), folder, code, text)


def without_answer(
    before: dict[str, Any] | None, folder: Path, code: str, text: str
) -> CaseOutcome:
    """The outcome of a case without a new answer.

    Args:
        before: What an earlier run answered, which stays; None where there is nothing.
        folder: Folder of the answer, named after the case.
        code: Code of the quality flag that says why.
        text: Why, in a line.
    """
    none = refused(folder.name, [QualityFlag(code, "error", text)])
    return CaseOutcome(folder.name, before or none.as_dict(), folder, problem=f"{code}: {text}")


class Summary:
    """`summary.csv` of an output folder: a row for each case in it, whichever run answered it.

    Args:
        out: Folder of the answers.
        every_s: Minimum time between two writes, in seconds: each writes all rows.
    """

    def __init__(self, out: Path, *, every_s: float = 5.0) -> None:
        self.path, self.every_s, self._written = out / SUMMARY, every_s, 0.0
        self.rows: dict[str, dict[str, Any]] = {}
        self._seen: dict[str, tuple[int, ...]] = {}
        self._read_new()

    def add(self, outcome: CaseOutcome) -> None:
        """Take a case in, and write the table if it is time.

        Raises:
            OutputError: If it cannot be written.
        """
        self.rows[outcome.case] = summary_row(outcome.values)
        if time.monotonic() - self._written > self.every_s:
            self.write()

    def write(self, order: Sequence[str] = ()) -> None:
        """Write the table, with the answers of other processes; one process writes at a time.

        Args:
            order: Names of cases whose rows come last, and in this order.

        Raises:
            OutputError: If it cannot be written.
        """
        with _locked(self.path.parent):
            self._read_new()
            for name in order:
                if name in self.rows:
                    self.rows[name] = self.rows.pop(name)
            write_summary(self.rows.values(), self.path)
        self._written = time.monotonic()

    def _read_new(self) -> None:
        """Take in each `result.json` of the folder that is new or has changed."""
        for folder in sorted(self.path.parent.iterdir()):
            if folder.name.startswith("."):
                continue
            try:
                status = (folder / "result.json").stat()
            except OSError:
                continue
            version = (status.st_ino, status.st_mtime_ns, status.st_size)
            values = finished(folder) if self._seen.get(folder.name) != version else None
            if values is not None:
                self._seen[folder.name] = version
                self.rows[folder.name] = summary_row(values)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock against other processes; a file system without locks holds nothing."""
    if fcntl is None:
        yield
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be read ({error.strerror})") from error
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def finished(folder: Path) -> dict[str, Any] | None:
    """What an earlier run answered; a folder without a readable result of ours is no answer."""
    try:
        return parsed((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def parsed(text: str) -> dict[str, Any] | None:
    """What a `result.json` says; None if it is not one of ours."""
    try:
        values = json.loads(text)
        if "findings" in values and "quality_flags" not in values:
            # An answer of an earlier version, under the name of that time; it answers no question
            # of today.
            values["quality_flags"] = values.pop("findings")
            values["versions"].pop("request", None)
        # All that is read of it later, so that a foreign file of this name is no answer either.
        summary_row(values)
        return values if isinstance(values["versions"], dict) else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def problem_of(values: dict[str, Any], path: Path) -> str | None:
    """Why a case was refused, in a line; None where it was not.

    Args:
        values: What its `result.json` holds.
        path: The input.
    """
    if values.get("status") != "refused":
        return None
    errors = [flag for flag in values["quality_flags"] if flag["level"] == "error"]
    # The terminal alone names a path that leads nowhere: files of ours hold no path of an input.
    where = f" ({path.absolute()})" if any(flag["code"] == "not_found" for flag in errors) else ""
    return "; ".join(f"{flag['code']}: {flag['message']}" for flag in errors) + where
