"""Runs side by side."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.marks import warnings_are_errors
from tf_covid.errors import OutputError
from tf_covid.study import StudyError, compare, select

pytestmark = [warnings_are_errors, pytest.mark.usefixtures("undrawn")]

Finished = Callable[..., Path]


def difference(comparison: dict[str, Any], name: str) -> dict[str, Any]:
    (row,) = comparison["differences"]
    return row["metrics"][name]


def test_runs_stand_beside_each_other_and_the_paper(
    make: Any, finished: Finished, tmp_path: Path, monkeypatch: Any
) -> None:
    runs = [
        finished(make.severity(seed, noise), f"run-{seed}") for seed, noise in ((1, 0.3), (2, 9.0))
    ]
    monkeypatch.undo()  # this one is drawn
    found = compare(runs, tmp_path / "deep" / "out", make.quick)
    out = tmp_path / "deep" / "out"
    assert sorted(file.name for file in out.iterdir()) == [
        "comparison.html",
        "comparison.json",
        "figures",
    ]
    assert (
        json.loads((out / "comparison.json").read_text("utf-8"), parse_constant=pytest.fail)
        == found
    )
    assert [run["name"] for run in found["runs"]] == ["run-1", "run-2"]
    study = json.loads((runs[0] / "study.json").read_text("utf-8"))
    for key in ("accuracy", "auc", "mae"):
        assert found["runs"][0]["metrics"][key]["ci95"] == study[key]["ci95"]
    assert found["runs"][0]["mann_whitney"] == study["mann_whitney"]
    assert round(found["paper"]["quadratic_kappa"]["value"], 3) == 0.781
    text = (out / "comparison.html").read_text("utf-8")
    assert make.note in text
    assert "<script" not in text
    assert not re.search(r'(src|href)="(?!data:|figures/[a-z0-9-]+\.(svg|csv)")', text)
    assert "run-1 is better" in text
    assert "0.781" in text
    assert "1.2e-08" in text


def test_the_difference_is_the_second_minus_the_first(
    make: Any, finished: Finished, tmp_path: Path
) -> None:
    truth = [*range(5)] * 8
    good = make.answers(truth, truth[:-4] + [0] * 4)
    bad = make.answers(truth, truth[:-20] + [0] * 20)
    runs = [finished(bad, "bad"), finished(good, "good")]
    found = compare(runs, tmp_path / "out", make.quick)
    metric = difference(found, "accuracy")
    assert metric["value"] == pytest.approx(
        (good.predicted == truth).mean() - (bad.predicted == truth).mean()
    )
    assert 0 < metric["ci95"][0] < metric["value"] < metric["ci95"][1]


def test_paired_intervals_are_narrower_than_apart(
    make: Any, finished: Finished, tmp_path: Path
) -> None:
    # The second run differs from the first in two cases of a hundred: apart, neither would be told
    # from the other.
    truth = np.arange(100) % 5
    first = np.where(np.arange(100) < 60, truth, (truth + 1) % 5)
    second = np.where(np.arange(100) < 62, truth, (truth + 1) % 5)
    runs = [
        finished(make.answers(truth, classes), name)
        for name, classes in (("a", first), ("b", second))
    ]
    found = compare(runs, tmp_path / "out", make.quick)
    low, high = difference(found, "accuracy")["ci95"]
    apart = np.ptp(found["runs"][0]["metrics"]["accuracy"]["ci95"])
    assert low >= 0
    assert high - low < apart / 2


def test_a_run_does_not_differ_from_its_copy(make: Any, finished: Finished, tmp_path: Path) -> None:
    found = compare(
        [finished(make.covid(), name) for name in ("a", "b")], tmp_path / "out", make.quick
    )
    for metric in found["differences"][0]["metrics"].values():
        assert metric is None or (metric["value"] == 0.0 and metric["ci95"] == [0.0, 0.0])


def test_the_covid_task_has_the_papers_four_columns(
    make: Any, finished: Finished, tmp_path: Path
) -> None:
    found = compare([finished(make.covid())], tmp_path / "out", make.quick)
    assert len(found["paper"]["columns"]) == 4
    assert len(found["paper"]["per_class_percent"]) == 8
    text = (tmp_path / "out" / "comparison.html").read_text("utf-8")
    rows = re.findall(r'<td class="num paper">(\d+) %</td>', text)
    assert rows[:4] == ["93", "98", "96", "96"]
    assert rows[-4:] == ["93", "97", "95", "98"]
    assert len(rows) == 24


@pytest.mark.parametrize("task", ["slices", "lungs", "lobes"])
def test_other_tasks_have_no_paper(
    task: str, make: Any, finished: Finished, tmp_path: Path
) -> None:
    runs = [finished(make.tables[task](), name) for name in ("a", "b")]
    found = compare(runs, tmp_path / "out", make.quick)
    assert found["paper"] is None
    assert found["differences"][0]["cases"] == found["runs"][0]["cases"]


def test_different_cases_are_said(make: Any, finished: Finished, tmp_path: Path) -> None:
    full = make.severity()
    part, rest = select(full, np.arange(50)), select(full, np.arange(50, 60))
    found = compare([finished(full, "full"), finished(part, "part")], tmp_path / "out", make.quick)
    (row,) = found["differences"]
    assert (row["cases"], row["only_first"], row["only_second"]) == (50, 10, 0)
    assert row["metrics"]["accuracy"]["value"] == 0.0, "on the shared cases only"
    assert "Not the same cases" in (tmp_path / "out" / "comparison.html").read_text("utf-8")
    found = compare([tmp_path / "part", finished(rest, "rest")], tmp_path / "none", make.quick)
    assert found["differences"][0]["metrics"] is None
    assert "no case in common" in (tmp_path / "none" / "comparison.html").read_text("utf-8")


def test_runs_that_contradict_each_other_are_refused(
    make: Any, finished: Finished, tmp_path: Path
) -> None:
    truth = [*range(5)] * 2
    runs = [
        finished(make.answers(labels, truth), name)
        for name, labels in (("a", truth), ("b", [0, *truth[:-1]]))
    ]
    with pytest.raises(
        StudyError, match="a and b contradict each other: case 'case-1' has different truth"
    ):
        compare(runs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_runs_of_two_tasks_or_given_twice_or_not_at_all(
    make: Any, finished: Finished, tmp_path: Path
) -> None:
    run, other = finished(make.severity()), finished(make.covid(), "other")
    with pytest.raises(StudyError, match=r"different tasks.*severity.*covid"):
        compare([run, other], tmp_path / "out")
    with pytest.raises(StudyError, match="twice"):
        compare([run, run.parent / "." / "run"], tmp_path / "out")
    with pytest.raises(StudyError, match="no run"):
        compare([], tmp_path / "out")


def test_folders_of_one_name_keep_their_parents(
    make: Any, finished: Finished, tmp_path: Path
) -> None:
    runs = [finished(make.lungs(), "a/run"), finished(make.lungs(), "b/run")]
    found = compare(runs, tmp_path / "out", make.quick)
    assert [run["name"] for run in found["runs"]] == ["a/run", "b/run"]


def broken(run: Path, how: str) -> None:
    study, table = run / "study.json", run / "predictions.csv"
    text = study.read_text("utf-8")
    if how == "unfinished":
        study.unlink()
    elif how == "no table":
        table.unlink()
    elif how == "cut off":
        study.write_text(text[: len(text) // 2])
    elif how == "foreign":
        study.write_text('{"task": "dance"}')
    elif how == "no object":
        study.write_text("[" * 5000)
    elif how == "not finite":
        study.write_text(text.replace('"seconds": 61.0', '"seconds": NaN'))
    elif how == "no text":
        study.write_bytes(b"\xff\xfe\x00")
    elif how == "other cases":
        lines = table.read_text("utf-8").splitlines(keepends=True)
        table.write_text("".join(lines[:-1]), "utf-8")
    elif how == "other answers":
        study.write_text(re.sub(r'("accuracy": \{\s*"value": )[\d.]+', r"\g<1>0.123", text))
    elif how == "a folder":
        study.unlink()
        study.mkdir()


@pytest.mark.parametrize(
    ("how", "facts"),
    [
        ("unfinished", "has no study.json"),
        ("no table", "predictions.csv: cannot be read"),
        ("cut off", "not a study of ours"),
        ("foreign", "not a study of ours .task"),
        ("no object", "not a study of ours"),
        ("not finite", "not a study of ours"),
        ("no text", "not a study of ours"),
        ("other cases", "60 cases in one, 59 in the other"),
        ("other answers", "accuracy is 0.123 in one"),
        ("a folder", "has no study.json"),
    ],
)
def test_a_wrong_run_is_named(
    how: str, facts: str, make: Any, finished: Finished, tmp_path: Path
) -> None:
    run = finished(make.severity())
    broken(run, how)
    with pytest.raises(StudyError, match=facts):
        compare([run], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_folder_and_nowhere_to_write(make: Any, finished: Finished, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no such folder"):
        compare([tmp_path / "missing"], tmp_path / "out")
    (tmp_path / "out").touch()
    with pytest.raises(OutputError, match="cannot be made"):
        compare([finished(make.lungs())], tmp_path / "out", make.quick)


def test_hostile_runs_stay_text(make: Any, finished: Finished, tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>'
    run = finished(make.covid(), "<b>run", model=evil, init=evil, note=evil)
    compare([run], tmp_path / "out", make.quick)
    text = (tmp_path / "out" / "comparison.html").read_text("utf-8")
    assert "<script" not in text
    assert "<b>run" not in text
    assert "&lt;script&gt;" in text
