"""`done.jsonl`: a row for each case that is done, by which a second run goes on where one ended.

A case that stands there is not read again if its files are those of then, by name, size, times and
number, and the question is the same. Where they are not, the worker compares contents, as `infer`
does in one process.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tf_covid.cluster.storage import Storage
from tf_covid.scan import Case

NAME = "done.jsonl"

#: Rows are written when there are so many, or after so many seconds.
_ROWS, _SECONDS = 200, 5.0


class Done:
    """The rows of an output, and those that this run adds.

    Args:
        storage: Where they are.
        identity: What is asked of every case: a hash of models and options.
        every_s: Longest time that a row waits to be written, in seconds.
    """

    def __init__(self, storage: Storage, identity: str, *, every_s: float = _SECONDS) -> None:
        self._storage, self._identity, self._every_s = storage, identity, every_s
        self.rows: dict[str, dict[str, Any]] = {}
        self._new: list[dict[str, Any]] = []
        self._written = time.monotonic()
        for line in storage.appended(NAME).splitlines():
            row = _row(line)
            if row is not None:
                self.rows[row["case"]] = row

    def asked(self, case: Case) -> str:
        """What is asked about a case, as a hash; empty where its files cannot be seen."""
        try:
            files = [_stamp(path) for path in _files(case)]
        except OSError:
            return ""
        text = json.dumps([case.name, str(case.path), self._identity, files])
        return hashlib.sha256(text.encode()).hexdigest()

    def answer(self, name: str, asked: str) -> dict[str, Any] | None:
        """The answer of a case that is done: to this question, not refused, and still there.

        Args:
            name: Name of the case.
            asked: From `asked`.

        Raises:
            OutputError: If the storage cannot be asked.
        """
        row = self.rows.get(name)
        if row is None or row["problem"] is not None or not asked or row["asked"] != asked:
            return None
        # Whoever else has answered into this folder meanwhile: what is there is what counts.
        values = self._storage.answer(name)
        request = None if values is None else values["versions"].get("request")
        return values if request and request == row.get("request") else None

    def add(self, name: str, row: dict[str, Any], *, asked: str) -> None:
        """Take in what became of a case, and write if it is time.

        Args:
            name: Name of the case.
            row: What else is to be known of it; `problem` is None where there is an answer.
            asked: From `asked`, before the case was read.

        Raises:
            OutputError: If it cannot be written.
        """
        self.rows[name] = {"case": name, "asked": asked, **row}
        self._new.append(self.rows[name])
        if len(self._new) >= _ROWS or time.monotonic() - self._written > self._every_s:
            self.write()

    def write(self) -> None:
        """Write the rows that wait.

        Raises:
            OutputError: If they cannot be written; they wait on.
        """
        if self._new:
            self._storage.append(NAME, "".join(json.dumps(row) + "\n" for row in self._new))
        self._new, self._written = [], time.monotonic()

    def summary_rows(self) -> dict[str, dict[str, Any]]:
        """The rows of `summary.csv` by their cases."""
        return {name: row["row"] for name, row in self.rows.items() if row.get("row")}


def _row(line: str) -> dict[str, Any] | None:
    """A row, or None for a line that a killed run has torn."""
    try:
        row = json.loads(line)
        usable = isinstance(row["case"], str) and isinstance(row["asked"], str)
        usable = usable and isinstance(row["problem"], str | None)
        return row if usable and isinstance(row.get("row"), dict | None) else None
    except (ValueError, KeyError, TypeError):
        return None


def _files(case: Case) -> Iterable[Path]:
    if not case.members:
        return [case.path]
    if case.path.is_dir():
        return [case.path / name for name in case.members]
    # A header with its data beside it, or an archive that holds all of them.
    beside = [case.path.parent / name for name in case.members]
    return [case.path, *(path for path in beside if path.is_file())]


def _stamp(path: Path) -> list[Any]:
    status = path.stat()
    times = [status.st_mtime_ns, status.st_ctime_ns]
    return [str(path), status.st_size, status.st_ino, *times]
