"""predictions.csv."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tf_covid.errors import OutputError
from tf_covid.study import StudyError, read_predictions, select, write_predictions


def same(first: Any, second: Any) -> bool:
    assert type(first) is type(second)
    for field in dataclasses.fields(first):
        mine, theirs = getattr(first, field.name), getattr(second, field.name)
        if isinstance(mine, np.ndarray):
            np.testing.assert_array_equal(mine, theirs, strict=True)
        else:
            assert mine == theirs, field.name
    return True


@pytest.mark.parametrize("task", ["severity", "read", "covid", "slices", "lungs", "lobes"])
def test_a_round_trip_is_exact(task: str, make: Any, tmp_path: Path) -> None:
    predictions, path = getattr(make, task)(), tmp_path / "predictions.csv"
    write_predictions(predictions, path)
    assert same(read_predictions(path), predictions)
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.csv"], "nothing else is left"


def test_lobes_have_columns_only_where_something_is_known_of_them(
    make: Any, tmp_path: Path
) -> None:
    """A table of an older version is one of which nothing is known."""
    path = tmp_path / "predictions.csv"
    write_predictions(make.severity(n=5), path)
    before = "case,patient,fold,truth,predicted,p0,p1,p2,p3,p4,ct_score,predicted_score"
    assert path.read_text("utf-8").startswith(f"{before},sex,age,site\n")
    for name in ("read_score", "lobe_scores", "read_lobe_scores"):
        assert np.isnan(getattr(read_predictions(path), name)).all()
    lobes = ("right_upper", "right_middle", "right_lower", "left_upper", "left_lower")
    header = [before, "read_score", *(f"{lobe}_score" for lobe in lobes)]
    header += [*(f"{lobe}_read" for lobe in lobes), "sex,age,site"]
    write_predictions(make.read(n=5), path)
    assert path.read_text("utf-8").startswith(",".join(header) + "\n")


READ = (
    "case,patient,fold,truth,predicted,p0,p1,ct_score,predicted_score,read_score,"
    "right_upper_score,right_middle_score,right_lower_score,left_upper_score,left_lower_score,"
    "right_upper_read,right_middle_read,right_lower_read,left_upper_read,left_lower_read,"
    "sex,age,site\n"
)


@pytest.mark.parametrize(
    ("cells", "fact"),
    [
        ("26,,,,,,,,,,", "row 2, read_score"),
        ("9,0,1,2,3,6,,,,,", "row 2, lobe_scores4"),
        ("9,,,,,,0.5,2,2,2,2", "row 2, read_lobe_scores0"),
        ("9,,,,,,2,2,2,2,2", "row 2, read_score: 9 is not the sum of the lobes' scores, 10"),
    ],
)
def test_a_wrong_score_of_a_lobe_is_named(cells: str, fact: str, tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text(f"{READ}a,p,0,1,1,0.25,0.75,,,{cells},,,\n", "utf-8")
    with pytest.raises(StudyError, match=fact):
        read_predictions(path)


def test_somebodys_read_score_needs_no_lobes(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text(f"{READ}a,p,0,1,1,0.25,0.75,,,9,,,,,,,2,2,2,2,,,\n", "utf-8")
    table = read_predictions(path)
    assert table.read_score.tolist() == [9.0]
    assert np.isnan(table.read_lobe_scores[0, 0])
    assert table.read_lobe_scores[0, 1:].tolist() == [2.0] * 4


def test_any_float_and_any_text_survives(make: Any, tmp_path: Path) -> None:
    rng, path = np.random.default_rng(0), tmp_path / "predictions.csv"
    odd = ('a,b"c', "line\nbreak", " space ", "=1+1", "日本", "\ufefftail", "<script>")
    weights = rng.exponential(size=(7, 5)) ** 8
    weights[0] = (1.0, 5e-324, 0, 0, 1e-300)
    predictions = make.severity(
        n=7,
        cases=odd,
        patients=odd,
        site=odd,
        sex=odd,
        probabilities=weights / weights.sum(axis=1, keepdims=True),
        predicted_score=rng.normal(0, 1e6, 7),
        age=rng.uniform(0, 130, 7),
    )
    write_predictions(predictions, path)
    assert same(read_predictions(path), predictions)


def test_a_spreadsheets_byte_order_mark_and_line_ends_are_fine(make: Any, tmp_path: Path) -> None:
    predictions, path = make.lungs(), tmp_path / "predictions.csv"
    write_predictions(predictions, path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert same(read_predictions(path), predictions)


HEADER = "case,patient,fold,truth,predicted,p0,p1,ct_score,predicted_score,sex,age,site\n"
GOOD = "a,p,0,1,1,0.25,0.75,,,,,\n"


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("", ["row 1", "is empty"]),
        ("\n", ["row 1"]),
        ("case,patient,path\na,b,c\n", ["row 1", "case,patient,path"]),
        (HEADER, ["holds no prediction"]),
        (HEADER + "a,p,0,1,1,0.25,0.75,,,,\n", ["row 2", "11 cells, not 12"]),
        (HEADER + "a,p,0,1,1,0.25,0.75,,,,", ["row 2", "11 cells"]),
        (HEADER + GOOD + GOOD, ["row 3, case", "'a' is in row 2 already"]),
        (HEADER + ",p,0,1,1,0.25,0.75,,,,,\n", ["row 2, case"]),
        (HEADER + "a,,0,1,1,0.25,0.75,,,,,\n", ["row 2, patient"]),
        (HEADER + "a,p,-1,1,1,0.25,0.75,,,,,\n", ["row 2, fold"]),
        (HEADER + "a,p,99999999999999999999,1,1,0.25,0.75,,,,,\n", ["row 2, fold"]),
        (HEADER + "a,p,0,2,1,0.25,0.75,,,,,\n", ["row 2, truth", "is not a class"]),
        (HEADER + "a,p,0,1,0,0.25,0.75,,,,,\n", ["row 2, predicted", "largest"]),
        (HEADER + "a,p,0,1,1,nan,0.75,,,,,\n", ["row 2, p0"]),
        (HEADER + "a,p,0,1,1,0.25,,,,,,\n", ["row 2, p1"]),
        (HEADER + "a,p,0,1,1,0.25,1.75,,,,,\n", ["row 2, p1"]),
        (HEADER + "a,p,0,1,1,0.25,0.5,,,,,\n", ["row 2, p0…p1", "sum to 0.75"]),
        (HEADER + "a,p,0,1,1,0.25,0.75,26,,,,\n", ["row 2, ct_score"]),
        (HEADER + "a,p,0,1,1,0.25,0.75,,inf,,,\n", ["row 2, predicted_score"]),
        (HEADER + "a,p,0,1,1,0.25,0.75,,,,old,\n", ["row 2, age"]),
        (HEADER + '"a,p', ["cannot be read"]),
        (HEADER + "a\0,p,x", ["row 2"]),
    ],
)
def test_a_wrong_file_is_named_by_row_and_column(
    text: str, facts: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(StudyError) as raised:
        read_predictions(path)
    for fact in ["predictions.csv", *facts]:
        assert fact in str(raised.value)


def test_every_error_is_listed_up_to_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text(
        HEADER + "".join(f"c{row},p,0,1,1,0.25,0.75,,,,{row},\n" for row in range(100, 200))
    )
    with pytest.raises(StudyError, match="69 error") as raised:
        read_predictions(path)
    assert "row 33, age" in str(raised.value)
    assert "and 49 more" in str(raised.value)


def test_what_is_no_text_or_no_file(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    for wrong in (path, tmp_path / "missing.csv", tmp_path):
        with pytest.raises(StudyError, match="cannot be read"):
            read_predictions(wrong)


def test_what_cannot_be_written_says_so(make: Any, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_predictions(make.lungs(), tmp_path / "missing" / "predictions.csv")


def test_impossible_values_are_no_predictions(make: Any) -> None:
    for wrong, what in (
        ({"truth": [5] * 5}, "truth"),
        ({"ct_score": [26.0] * 5}, "ct_score"),
        ({"folds": [-1] * 5}, "folds"),
        ({"age": [1.0]}, "length"),
        ({"read_score": [26.0] * 5}, "read_score"),
        ({"lobe_scores": np.full((5, 5), 6.0)}, "lobe_scores"),
        ({"read_lobe_scores": np.full((5, 5), 0.5)}, "whole"),
        ({"read_lobe_scores": np.zeros((5, 4))}, "(N, 5)"),
        ({"cases": ("a",) * 5}, "twice"),
        ({"probabilities": np.full((5, 5), 0.3)}, "sum to 1"),
        ({"probabilities": np.full((5, 4), 0.25)}, "(N, 5)"),
    ):
        with pytest.raises(ValueError, match=what.replace("(", r"\(").replace(")", r"\)")):
            dataclasses.replace(make.answers([0, 1, 2, 3, 4], [0, 1, 2, 3, 4]), **wrong)
    with pytest.raises(ValueError, match="no prediction"):
        select(make.lungs(), np.zeros(0, int))


def test_columns_cannot_be_changed_behind_the_checks(make: Any) -> None:
    with pytest.raises(ValueError, match="read-only"):
        make.severity().truth[0] = 4
