"""`summary.csv`: the contract's columns, harmless cells."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tf_covid.errors import OutputError
from tf_covid.report import summary_row, write_summary
from tf_covid.report.summary import COLUMNS
from tf_covid.result import Result

HEADER = (
    "case,status,class,label,ct_score,ct_score_read,probability_0,probability_1,probability_2,probability_3,probability_4,"
    "involvement_percent,right_upper_score,right_middle_score,right_lower_score,left_upper_score,"
    "left_lower_score,volume_ml,quality_flags,seconds"
)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_columns_are_those_of_the_contract(
    make_case: Any, refused: Result, tmp_path: Path
) -> None:
    result, _ = make_case()
    write_summary([summary_row(result), summary_row(refused)], tmp_path / "out/summary.csv")
    assert (tmp_path / "out/summary.csv").read_text("utf-8").splitlines()[0] == HEADER
    answered, without = read(tmp_path / "out/summary.csv")
    assert answered["class"] == "2"
    assert answered["label"] == "moderate"
    assert answered["ct_score"] == "9.1"
    assert [float(answered[f"probability_{number}"]) for number in range(5)] == [
        0.02,
        0.21,
        0.6,
        0.15,
        0.02,
    ]
    assert answered["quality_flags"] == "series_candidates lungs_cut_off"
    assert answered["seconds"] == "5.9"
    assert float(answered["volume_ml"]) == pytest.approx(result.lungs.volume_ml, abs=1e-6)
    filled = {name for name, cell in without.items() if cell}
    assert filled == {"case", "status", "quality_flags"}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["summary.csv"]


def test_lobe_scores_have_a_column_each(make_case: Any, lobe_case: Any, tmp_path: Path) -> None:
    cases = [make_case()[0], lobe_case((2, 0, None, 1, 5))[0], lobe_case((2, 0, 2, 1, 5))[0]]
    write_summary([summary_row(one) for one in cases], tmp_path / "summary.csv")
    rows = read(tmp_path / "summary.csv")
    scores = [[cell for name, cell in row.items() if name.endswith("r_score")] for row in rows]
    assert [len(row) for row in scores] == [4, 4, 4]
    assert [row["right_middle_score"] for row in rows] == ["", "0", "0"]
    assert scores == [["", "", "", ""], ["2", "", "1", "5"], ["2", "2", "1", "5"]]
    assert [row["ct_score_read"] for row in rows] == ["", "", "10"]


def test_a_finished_case_gives_the_same_row(make_case: Any, tmp_path: Path) -> None:
    result, _ = make_case()
    write_summary(
        [summary_row(result), summary_row(json.loads(result.to_json()))], tmp_path / "summary.csv"
    )
    first, second = read(tmp_path / "summary.csv")
    assert first == second


def test_a_covid_answer_fills_the_same_columns(covid_case: Any, tmp_path: Path) -> None:
    write_summary([summary_row(covid_case[0])], tmp_path / "summary.csv")
    (cells,) = read(tmp_path / "summary.csv")
    assert (cells["class"], cells["label"], cells["ct_score"]) == ("1", "positive", "")
    assert [cells[f"probability_{number}"] for number in range(5)] == ["0.17", "0.83", "", "", ""]


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "\t=1", "\r\n=1"])
def test_no_cell_is_a_formula(name: str, make_case: Any, tmp_path: Path) -> None:
    write_summary([summary_row(make_case(case=name)[0])], tmp_path / "summary.csv")
    assert read(tmp_path / "summary.csv")[0]["case"] == "'" + "".join(
        " " if letter.isspace() else letter for letter in name
    )


def test_a_failure_keeps_the_old_table(make_case: Any, tmp_path: Path) -> None:
    path = tmp_path / "summary.csv"
    write_summary([summary_row(make_case()[0])], path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="unknown"):
        write_summary([{"unknown": 1}], path)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["summary.csv"]


def test_a_folder_in_the_way_is_an_output_error(make_case: Any, tmp_path: Path) -> None:
    (tmp_path / "summary.csv").mkdir()
    with pytest.raises(OutputError, match=r"summary\.csv"):
        write_summary([summary_row(make_case()[0])], tmp_path / "summary.csv")


def test_the_docs_list_the_columns() -> None:
    text = (Path(__file__).parents[2] / "docs" / "outputs.md").read_text("utf-8")
    listed = re.findall(r"`(\w+)`", text.split("## `summary.csv`")[1])
    expected = [
        column for column in COLUMNS if column not in {f"probability_{n}" for n in (1, 2, 3)}
    ]
    assert listed == expected
