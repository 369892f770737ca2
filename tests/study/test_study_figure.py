"""The files of the figures: drawings, and the numbers that are drawn."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.marks import warnings_are_errors
from tf_covid.errors import OutputError
from tf_covid.severity import LABELS
from tf_covid.study import compare, paper, write_study

pytestmark = warnings_are_errors

CURVES = {0: {"loss": [2.0, 1.0], "val_loss": [2.5, float("nan")]}, 1: {"loss": [1.75, 0.5]}}


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "figures" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, strict=True))


def names(folder: Path) -> set[str]:
    """Names of the figures, each of which has both files."""
    files = [path.name for path in (folder / "figures").iterdir()]
    assert len(files) == 2 * len({name[:-4] for name in files})
    assert {name[-4:] for name in files} <= {".svg", ".csv"}
    return {name[:-4] for name in files}


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("severity", {"confusion", "violins", "reliability", "learning"}),
        ("covid", {"confusion", "reliability", "roc", "learning"}),
        ("slices", {"roc", "learning"}),
        ("lungs", {"dice", "learning"}),
        ("lobes", {"dice", "learning"}),
    ],
)
def test_every_figure_of_the_page_is_a_drawing_and_a_table(
    task: str, expected: set[str], make: Any, tmp_path: Path
) -> None:
    predictions = make.tables[task]()
    study = make.study(predictions)
    write_study(study, predictions, CURVES, tmp_path)
    assert names(tmp_path) == expected
    assert ("roc" in expected) == (study["roc"] is not None)
    page = (tmp_path / "study.html").read_text("utf-8")
    for name in expected:
        drawing = (tmp_path / "figures" / f"{name}.svg").read_bytes()
        assert xml.etree.ElementTree.fromstring(drawing).tag.endswith("svg")
        assert rows(tmp_path, name)
        assert f'href="figures/{name}.svg"' in page
        assert f'href="figures/{name}.csv"' in page
    assert page.count("<img ") == len(expected), "the page holds them, and needs no file"


def test_the_tables_hold_the_numbers_of_the_study(make: Any, tmp_path: Path) -> None:
    predictions = make.severity()
    write_study(make.study(predictions), predictions, CURVES, tmp_path)
    study = json.loads((tmp_path / "study.json").read_text("utf-8"))
    cells = rows(tmp_path, "confusion")
    counts = np.array([int(row["cases"]) for row in cells]).reshape(5, 5)
    assert counts.tolist() == study["confusion_matrix"]
    assert [row["predicted_label"] for row in cells[:5]] == list(LABELS)
    shares = np.array([float(row["share_of_truth"]) for row in cells]).reshape(5, 5)
    assert shares.diagonal().tolist() == [row["recall"] for row in study["per_class"]]
    assert shares.sum(axis=1) == pytest.approx(1.0)
    for row, stored in zip(
        rows(tmp_path, "reliability"), study["calibration"]["bins"], strict=True
    ):
        low, high = stored.pop("right_ci95")
        assert {key: float(cell) for key, cell in row.items()} == stored | {
            "right_ci95_low": low,
            "right_ci95_high": high,
        }
    drawn = {row["case"]: row for row in rows(tmp_path, "violins")}
    assert list(drawn) == list(predictions.cases)
    assert [float(row["ct_score"]) for row in drawn.values()] == predictions.ct_score.tolist()
    assert [int(row["predicted"]) for row in drawn.values()] == predictions.predicted.tolist()
    assert [tuple(row.values()) for row in rows(tmp_path, "learning")] == [
        ("0", "loss", "1", "2.0"),
        ("0", "loss", "2", "1.0"),
        ("0", "val_loss", "1", "2.5"),
        ("1", "loss", "1", "1.75"),
        ("1", "loss", "2", "0.5"),
    ]


def test_roc_and_dice_are_those_of_the_study(make: Any, finished: Callable[..., Path]) -> None:
    folder = finished(make.covid(), "covid")
    roc = json.loads((folder / "study.json").read_text("utf-8"))["roc"]
    points = rows(folder, "roc")
    assert points[0]["threshold"] == "", "above every score"
    for column, values in roc.items():
        known = [None if row[column] == "" else float(row[column]) for row in points]
        assert known == values
    folder = finished(make.lungs(), "lungs")
    dice = json.loads((folder / "study.json").read_text("utf-8"))["dice_per_case"]
    assert {row["case"]: float(row["dice"]) for row in rows(folder, "dice")} == dice


@pytest.mark.usefixtures("undrawn")
def test_a_class_without_a_case_has_no_share(make: Any, finished: Callable[..., Path]) -> None:
    cells = rows(finished(make.answers([0, 0], [0, 1])), "confusion")
    assert [row["share_of_truth"] for row in cells[:2]] == ["0.5", "0.5"]
    assert {row["share_of_truth"] for row in cells[5:]} == {""}


@pytest.mark.usefixtures("undrawn")
def test_a_name_is_no_formula_of_a_spreadsheet(make: Any, finished: Callable[..., Path]) -> None:
    cases = ("=1+1", "@a\nb", "-3 chest", "plain, with a comma")
    folder = finished(make.answers([0] * 4, [0] * 4, cases=cases, ct_score=[0.0] * 4))
    written = [row["case"] for row in rows(folder, "violins")]
    assert written == ["'=1+1", "'@a b", "'-3 chest", "plain, with a comma"]


@pytest.mark.usefixtures("undrawn")
def test_what_is_not_drawn_any_more_does_not_stay(
    make: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    first = make.severity()
    write_study(make.study(first), first, CURVES, tmp_path)
    (tmp_path / "figures" / "mine.svg").write_text("<svg/>")
    (tmp_path / "figures" / "mine.csv").touch()
    second = make.answers([0, 1], [0, 1])  # without CT scores and curves
    write_study(make.study(second), second, {}, tmp_path)
    assert names(tmp_path) == {"confusion", "reliability", "mine"}

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OutputError, match="cannot be removed: Permission denied"):
        write_study(make.study(second), second, {}, tmp_path)


@pytest.mark.usefixtures("undrawn")
def test_a_comparison_has_the_figures_of_each_run(
    make: Any, finished: Callable[..., Path], tmp_path: Path
) -> None:
    runs = [finished(make.severity(seed), f"{seed}/Lunge größe ü") for seed in (1, 2)]
    runs.append(finished(make.severity(3), "paper"))
    out = tmp_path / "out"
    found = compare(runs, out, make.quick)
    kinds = ("confusion", "violins", "reliability")
    prefixes = ("1_Lunge_groe_u", "2_Lunge_groe_u", "paper-2")
    assert names(out) == {f"{run}-{kind}" for run in prefixes for kind in kinds} | {
        "paper-confusion"
    }
    published = [int(row["cases"]) for row in rows(out, "paper-confusion")]
    assert published == np.ravel(paper.SEVERITY_MATRIX).tolist()
    page = (out / "comparison.html").read_text("utf-8")
    for run, prefix in zip(found["runs"], prefixes, strict=True):
        drawn = [int(row["cases"]) for row in rows(out, f"{prefix}-confusion")]
        assert drawn == np.ravel(run["confusion_matrix"]).tolist()
        assert f'href="figures/{prefix}-confusion.svg"' in page
    # Of other runs, into the same folder.
    (out / "figures" / "old-confusion.svg").touch()
    (out / "figures" / "old-confusion.csv").touch()
    compare(runs[2:], out, make.quick)
    assert names(out) == {f"paper-2-{kind}" for kind in kinds} | {
        "paper-confusion",
        "old-confusion",  # nobody knows whose
    }
    (out / "comparison.json").write_text("[" * 100_000)
    compare([finished(make.covid(), "covid")], out, make.quick)
    assert {"covid-confusion", "comparison-roc"} <= names(out)
    assert "paper-confusion" not in names(out)
    (run_name,) = {row["run"] for row in rows(out, "comparison-roc")}
    assert run_name == "covid"
