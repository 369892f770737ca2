"""Cases in threads: each once, faults that cost the others nothing, an end that is an end."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import pytest

from tf_covid.errors import ServingError
from tf_covid.outcomes import CaseOutcome
from tf_covid.parallel import run_in_threads
from tf_covid.pipeline import refused
from tf_covid.report import write_case
from tf_covid.result import QualityFlag
from tf_covid.scan import Case


class Answering:
    """A run whose answers take as long as a case's name says, or fail."""

    def __init__(self, out: Path, seen: list[str], faults: dict[str, Exception]) -> None:
        self.out, self.seen, self.faults = out, seen, faults

    def answer(self, case: Case) -> CaseOutcome:
        self.seen.append(case.name)
        time.sleep(0.05 if case.name.endswith("0") else 0.005)
        if case.name in self.faults:
            raise self.faults[case.name]
        result = refused(case.name, [QualityFlag("not_ct", "error", f"{case.name} is no CT")])
        written = write_case(result, None, self.out / case.name, since=time.perf_counter())
        return CaseOutcome(case.name, written.as_dict(), self.out / case.name, problem="not_ct")


def cases(count: int) -> list[Case]:
    return [Case(f"case-{number:02}", Path(f"{number}.nii")) for number in range(count)]


def started(out: Path, count: int = 3, **faults: Exception) -> Any:
    seen: list[str] = []
    named = {name.replace("_", "-"): error for name, error in faults.items()}
    return [Answering(out, seen, named) for _ in range(count)], seen


def rows(out: Path) -> list[str]:
    with (out / "summary.csv").open(encoding="utf-8") as file:
        return [row["case"] for row in csv.DictReader(file)]


def test_every_case_is_answered_once_and_the_table_is_in_their_order(tmp_path):
    runs, seen = started(tmp_path)
    ended = [outcome.case for outcome in run_in_threads(runs, cases(24))]
    names = [case.name for case in cases(24)]
    assert sorted(seen) == sorted(ended) == names
    assert ended != names  # case-00 takes longer than those after it
    assert rows(tmp_path) == names


def test_a_fault_of_ours_costs_the_others_nothing_and_is_raised_in_the_end(tmp_path):
    runs, seen = started(tmp_path, case_03=ZeroDivisionError("of ours"))
    ended = []
    with pytest.raises(ZeroDivisionError, match="of ours"):
        ended.extend(outcome.case for outcome in run_in_threads(runs, cases(12)))
    assert len(seen) == len(ended) == len(set(ended)) == 12


def test_what_ends_the_run_ends_all_threads_and_keeps_what_was_answered(tmp_path):
    runs, seen = started(tmp_path, case_05=ServingError("no server answers"))
    ended = []
    with pytest.raises(ServingError, match="no server answers"):
        ended.extend(outcome.case for outcome in run_in_threads(runs, cases(200)))
    assert len(seen) < 20
    assert sorted([*ended, "case-05"]) == sorted(seen)
    assert rows(tmp_path) == sorted(ended)


def test_who_stops_to_iterate_stops_the_threads(tmp_path):
    runs, seen = started(tmp_path)
    outcomes = run_in_threads(runs, cases(200))
    next(outcomes)
    outcomes.close()
    time.sleep(0.2)
    assert len(seen) < 20


def test_no_case_is_no_work(tmp_path):
    runs, seen = started(tmp_path)
    assert list(run_in_threads(runs, [])) == seen == []
    assert rows(tmp_path) == []
