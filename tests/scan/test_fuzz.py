"""The mutator of `benchmarks/fuzz.py`: its bases are read, its inputs do not change, and a small run finds nothing."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
#: What no input may become.
FAULTS = ("betrayed", "crash", "over memory", "over time")


@pytest.fixture(scope="module")
def fuzzing() -> Iterator[SimpleNamespace]:
    """The mutator's modules; they are no package of ours."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from fuzzing import dicomfile, draw, judge, pool, seeds, streams

        yield SimpleNamespace(
            dicomfile=dicomfile, draw=draw, judge=judge, pool=pool, streams=streams, bases=seeds.bases()
        )
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def known(fuzzing: SimpleNamespace) -> dict[str, object]:
    """What the bases are read as."""
    return fuzzing.pool.truths(fuzzing.bases)[0]


def test_every_base_is_read_as_what_it_was_made_of(fuzzing: SimpleNamespace) -> None:
    assert not fuzzing.pool.truths(fuzzing.bases)[1]


def test_dicom_files_survive_the_mutators_own_parser(fuzzing: SimpleNamespace) -> None:
    parse, build = fuzzing.dicomfile.parse, fuzzing.dicomfile.build
    for base in fuzzing.bases:
        if base.family == "dicom" and base.name != "deflated":  # packed anew, so other bytes
            for name, data in base.members:
                assert name == "DICOMDIR" or build(parse(data)) == data, base.name


def test_a_number_is_always_the_same_input(fuzzing: SimpleNamespace) -> None:
    for number in range(40):
        one, two = (fuzzing.draw.draw(5, number, fuzzing.bases) for _ in range(2))
        assert (one.base, one.mutation.kind, one.changed.detail) == (two.base, two.mutation.kind, two.changed.detail)
        assert (one.changed.base.members, one.changed.archive) == (two.changed.base.members, two.changed.archive)


def test_every_mutation_fits_some_base(fuzzing: SimpleNamespace) -> None:
    rng = np.random.default_rng(0)
    by_family: dict[str, list] = {}
    for base in fuzzing.bases:
        by_family.setdefault(base.family, []).append(base)
    for mutation in fuzzing.draw.MUTATIONS:
        bases = [base for family in mutation.families for base in by_family[family]]
        assert any(mutation.apply(rng, base) is not None for _ in range(4) for base in bases), mutation.kind


def test_the_judge_knows_a_whole_code_stream(fuzzing: SimpleNamespace) -> None:
    coded = [base for base in fuzzing.bases if base.name.startswith(("rle", "enhanced-rle", "jpeg-"))]
    assert len(coded) >= 7
    for base in coded:
        assert fuzzing.streams.are_whole(base), base.name
    lossless = next(base for base in coded if base.name == "jpeg-lossless-57")
    name, data = lossless.members[0]
    end = data.rfind(b"\xff\xd9")
    cut = lossless.with_members([(name, data[: end - 300] + b"\xff\xd9" + data[end + 2 :])])
    assert not fuzzing.streams.are_whole(cut)


def _run(fuzzing: SimpleNamespace, known: dict, seed: int, count: int, workers: int) -> None:
    numbers = [n for n in range(count) if fuzzing.draw.base_of(seed, n, fuzzing.bases).name in known]
    records = list(fuzzing.pool.records(numbers, seed, fuzzing.bases, known, workers))
    assert sorted(record["number"] for record in records) == numbers
    wrong = [
        f"--seed {seed} --only {record['number']}: {record['base']}, {record['kind']}, {record['detail']}: "
        f"{record['outcome']} {record['betrayed_by']} {record['why']} {' '.join(record['codes'])}"
        for record in records
        if record["outcome"] in FAULTS or (record["harmless"] and record["outcome"] != "equal")
    ]
    assert not wrong, "\n".join(wrong)


def test_a_small_run_has_no_fault(fuzzing: SimpleNamespace, known: dict) -> None:
    _run(fuzzing, known, seed=14, count=200, workers=1)


@pytest.mark.slow
def test_a_larger_run_has_no_fault(fuzzing: SimpleNamespace, known: dict) -> None:
    _run(fuzzing, known, seed=15, count=2500, workers=2)


def test_a_worker_that_dies_or_hangs_is_an_outcome(
    fuzzing: SimpleNamespace, known: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a C library does to its process, the next input is read."""

    def outcome_of(path: Path, drawn: object, truth: object) -> object:
        if drawn.number == 1:  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGKILL)
        if drawn.number == 2:  # type: ignore[attr-defined]
            time.sleep(60)
        return fuzzing.judge.Outcome("equal")

    monkeypatch.setattr(fuzzing.pool, "outcome_of", outcome_of)
    monkeypatch.setattr(fuzzing.pool, "_WALL_S", 1)
    records = fuzzing.pool.records(range(4), 0, fuzzing.bases, {base.name: None for base in fuzzing.bases}, 1)
    found = {record["number"]: (record["outcome"], record["why"]) for record in records}
    assert found[1] == ("crash", "SIGKILL")
    assert found[2][0] == "over time"
    assert found[0][0] == found[3][0] == "equal"
