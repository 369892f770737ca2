"""The mutator of `benchmarks/fuzz.py`.

Its bases are read, its inputs do not change, and a small run finds nothing.
"""

from __future__ import annotations

import json
import subprocess
import sys
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
            dicomfile=dicomfile,
            draw=draw,
            judge=judge,
            pool=pool,
            streams=streams,
            bases=seeds.bases(),
        )
    finally:
        sys.path.remove(str(BENCHMARKS))


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
        assert (one.base, one.mutation.kind, one.changed.detail) == (
            two.base,
            two.mutation.kind,
            two.changed.detail,
        )
        assert (one.changed.base.members, one.changed.archive) == (
            two.changed.base.members,
            two.changed.archive,
        )


def test_every_mutation_fits_some_base(fuzzing: SimpleNamespace) -> None:
    rng = np.random.default_rng(0)
    by_family: dict[str, list] = {}
    for base in fuzzing.bases:
        by_family.setdefault(base.family, []).append(base)
    for mutation in fuzzing.draw.MUTATIONS:
        bases = [base for family in mutation.families for base in by_family[family]]
        assert any(mutation.apply(rng, base) is not None for _ in range(4) for base in bases), (
            mutation.kind
        )


def test_the_judge_knows_a_whole_code_stream(fuzzing: SimpleNamespace) -> None:
    coded = [
        base for base in fuzzing.bases if base.name.startswith(("rle", "enhanced-rle", "jpeg-"))
    ]
    assert len(coded) >= 7
    for base in coded:
        assert fuzzing.streams.are_whole(base), base.name
    lossless = next(base for base in coded if base.name == "jpeg-lossless-57")
    name, data = lossless.members[0]
    end = data.rfind(b"\xff\xd9")
    cut = lossless.with_members([(name, data[: end - 300] + b"\xff\xd9" + data[end + 2 :])])
    assert not fuzzing.streams.are_whole(cut)


def _run(seed: int, count: int, workers: int, out: Path, known: float = 0.0) -> None:
    """In a process of its own, as by hand.

    Workers are forked, and this process may hold TensorFlow and its threads.
    """
    command = [
        sys.executable,
        str(BENCHMARKS / "fuzz.py"),
        "--seed",
        str(seed),
        "--count",
        str(count),
    ]
    command += ["--workers", str(workers), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    records = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert len(records) == count
    wrong = [
        f"--seed {seed} --only {record['number']}: {record['base']}, {record['kind']},"
        f" {record['detail']}: {record['outcome']} {record['betrayed_by']} {record['why']}"
        f" {' '.join(record['codes'])}"
        for record in records
        if record["outcome"] in FAULTS or (record["harmless"] and record["outcome"] != "equal")
    ]
    # A lossy scan whose damage leaves it less than three bytes too long or too short does not show:
    # docs/reading.md.
    lossy = [line for line in wrong if ": jpeg-" in line and ": betrayed length" in line]
    assert len(lossy) <= known * count, "\n".join(lossy)
    assert len(wrong) == len(lossy), "\n".join([*wrong, done.stderr[-2000:]])
    assert done.returncode == (1 if wrong else 0), done.stderr[-2000:]


@pytest.mark.slow
def test_a_small_run_has_no_fault(tmp_path: Path) -> None:
    _run(seed=14, count=200, workers=1, out=tmp_path / "fuzz.jsonl")


@pytest.mark.slow
def test_a_larger_run_has_no_fault(tmp_path: Path) -> None:
    _run(seed=21, count=1500, workers=2, out=tmp_path / "fuzz.jsonl", known=0.001)


def test_a_worker_that_dies_or_hangs_is_an_outcome(tmp_path: Path) -> None:
    """Whatever a C library does to its process, the next input is read."""
    program = f"""
import os, signal, sys, time
sys.path.insert(0, {str(BENCHMARKS)!r})
from fuzzing import judge, pool, seeds

def outcome_of(path, drawn, truth):
    if drawn.number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if drawn.number == 2:
        time.sleep(60)
    return judge.Outcome("equal")

pool.outcome_of, pool._WALL_S = outcome_of, 2
bases = seeds.bases()
for record in pool.records(range(4), 0, bases, dict.fromkeys(base.name for base in bases), 1):
    print(record["number"], record["outcome"], record["why"])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    found = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()}
    assert found["1"] == ["crash", "SIGKILL"]
    assert found["2"][:2] == ["over", "time"]
    assert found["0"] == found["3"] == ["equal"]
