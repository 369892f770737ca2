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
    counts = {state: sum(row.state == state for row in rows) for state in STATES}
    yield ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "no series"
    for row in rows:
        begun = row.tries + row.interrupted
        tries = f", {begun} tries" if begun > 1 else ""
        reason = f": {row.reason}" if row.reason else ""
        yield (
            f"{_time(row.changed_at)} {row.case_name} {row.state} ({row.images} images"
            f"{tries}) study {row.study_uid or '-'}{reason}"
        )


def json_lines(rows: Sequence[JournalRow]) -> Iterator[str]:
    """A JSON object for each series: the fields of `JournalRow`, with times in UTC.

    Args:
        rows: Rows of the journal.
    """
    for row in rows:
        times = {name: _time(getattr(row, name)) for name in ("seen_at", "changed_at")}
        yield json.dumps(dataclasses.asdict(row) | times)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
