"""docs/study: the published run can be drawn again, and its page agrees with its files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tf_covid.study import compare

FOLDER = Path(__file__).parents[2] / "docs" / "study"
RUNS = ("i3d-scratch", "i3d-pretrained", "ltc-scratch")


def _cells(page: str, name: str) -> list[str]:
    """The cells of the first table row that begins with `name`."""
    line, *_ = [line for line in page.splitlines() if line.startswith(f"| {name}")]
    return [cell.strip(" *") for cell in line.strip("|").split("|")][1:]


@pytest.mark.usefixtures("undrawn")
def test_the_published_table_is_that_of_the_published_predictions(
    make: Any, tmp_path: Path
) -> None:
    found = compare([FOLDER / run for run in RUNS], tmp_path / "out", make.quick)
    page = (FOLDER / "README.md").read_text("utf-8")
    for name, key, factor, digits in (
        ("accuracy", "accuracy", 100, 1),
        ("macro-F1", "macro_f1", 1, 3),
        ("quadratic weighted kappa", "quadratic_kappa", 1, 3),
        ("within one class", "within_one", 100, 1),
        ("AUC", "auc", 1, 3),
        ("CT score (0–25), mean error", "mae", 1, 1),
    ):
        published = [float(re.match(r"[\d.]+", cell)[0]) for cell in _cells(page, name)[1:]]  # type: ignore[index]
        measured = [run["metrics"][key]["value"] * factor for run in found["runs"]]
        assert published == [pytest.approx(value, abs=0.51 * 10**-digits) for value in measured], (
            name
        )
    counts = [[int(cell) for cell in _cells(page, f"{number} ")] for number in range(5)]
    for number, run in enumerate(found["runs"]):
        assert [row[5 * number : 5 * number + 5] for row in counts] == run["confusion_matrix"]


def test_every_published_patient_is_synthetic_and_tested_once() -> None:
    for run in RUNS:
        rows = (FOLDER / run / "predictions.csv").read_text("utf-8").splitlines()[1:]
        patients = [row.split(",")[1] for row in rows]
        assert len(set(patients)) == len(patients) == 202
        assert all(patient.startswith("PHANTOM") for patient in patients)
