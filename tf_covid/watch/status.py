"""The journal for people: `tfcovid watch --status`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from tf_covid.watch.journal import STATES, JournalRow


def text_lines(rows: Sequence[JournalRow]) -> Iterator[str]:
    """A line with the counts, and one for each series, oldest first.

    Args:
        rows: Rows of the journal.
    """
    counts = {state: sum(entry.state == state for entry in rows) for state in STATES}
    yield ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "no series"
    for entry in rows:
        begun = entry.tries + entry.interrupted
        tries = f", {begun} tries" if begun > 1 else ""
        reason = f": {entry.reason}" if entry.reason else ""
        yield (
            f"{_time(entry.changed_at)} {entry.case_name} {entry.state} ({entry.images} images"
            f"{tries}) study {entry.study_uid or '-'}{reason}"
        )


def json_lines(rows: Sequence[JournalRow]) -> Iterator[str]:
    """A JSON object for each series: the fields of `JournalRow`, with times in UTC.

    Args:
        rows: Rows of the journal.
    """
    for entry in rows:
        times = {name: _time(getattr(entry, name)) for name in ("seen_at", "changed_at")}
        yield json.dumps(dataclasses.asdict(entry) | times)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
