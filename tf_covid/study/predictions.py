"""Predictions of a run: `predictions.csv`, exact to the last bit; folds joined, and frozen models averaged."""

from __future__ import annotations

import csv
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tf_covid.atomic import replacing
from tf_covid.cohort.table import written_float
from tf_covid.severity import CLASS_UPPER_SCORES
from tf_covid.study.records import (
    CLASSES,
    SUM_TOLERANCE,
    AnyPredictions,
    LungPredictions,
    Predictions,
    SlicePredictions,
    StudyError,
)

__all__ = [
    "AnyPredictions",
    "LungPredictions",
    "Predictions",
    "SlicePredictions",
    "StudyError",
    "ensemble",
    "join",
    "read_predictions",
    "select",
    "write_predictions",
]

#: More rows than any study has; a wrong file with this many is not read to its end.
MOST_ROWS = 5_000_000
#: Errors that a message lists; the others are counted.
_MOST_ERRORS = 20

_Kind = TypeVar("_Kind", bound=AnyPredictions)

_Float = Annotated[float, BeforeValidator(written_float)]
_Share = Annotated[_Float, Field(ge=0, le=1)]
_Age = Annotated[_Float, Field(ge=0, le=130)]
_Whole = Annotated[int, BeforeValidator(written_float), Field(ge=0, le=1_000_000_000)]


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    case: Annotated[str, Field(min_length=1)]
    patient: Annotated[str, Field(min_length=1)]
    fold: _Whole


class _ClassRow(_Row):
    truth: _Whole
    predicted: _Whole
    p: tuple[_Share, ...]
    ct_score: Annotated[_Float, Field(ge=0, le=CLASS_UPPER_SCORES[-1])] | None = None
    predicted_score: _Float | None = None
    sex: str | None = None
    age: _Age | None = None
    site: str | None = None


class _SliceRow(_Row):
    slice: _Whole
    truth: Annotated[_Whole, Field(ge=0, le=1)]
    probability: _Share
    share: _Share | None = None
    predicted_share: _Float | None = None


class _LungRow(_Row):
    dice: _Share
    sex: str | None = None
    age: _Age | None = None
    site: str | None = None


def _class_header(task: str) -> tuple[str, ...]:
    shares = (f"p{number}" for number in range(len(CLASSES[task])))
    return (
        "case",
        "patient",
        "fold",
        "truth",
        "predicted",
        *shares,
        "ct_score",
        "predicted_score",
        "sex",
        "age",
        "site",
    )


#: The header of each task's CSV and what a row of it holds; a file is known by its header.
_TABLES: dict[str, tuple[tuple[str, ...], type[_Row]]] = {
    "severity": (_class_header("severity"), _ClassRow),
    "covid": (_class_header("covid"), _ClassRow),
    "slices": (
        ("case", "patient", "fold", "slice", "truth", "probability", "share", "predicted_share"),
        _SliceRow,
    ),
    "lungs": (("case", "patient", "fold", "dice", "sex", "age", "site"), _LungRow),
}

#: Fields whose column has another name; the others have the name of their column.
_COLUMN = {
    "cases": "case",
    "patients": "patient",
    "folds": "fold",
    "slices": "slice",
    "probabilities": "p",
}


def write_predictions(predictions: AnyPredictions, path: Path) -> None:
    """Write a CSV, atomically; `read_predictions` gives back exactly the same. What is unknown stays empty.

    Raises:
        OutputError: If it cannot be written.
    """
    header, _ = _TABLES[predictions.task]
    columns: dict[str, Sequence[Any]] = {}
    for field in dataclasses.fields(predictions):
        value = getattr(predictions, field.name)
        columns[_COLUMN.get(field.name, field.name)] = (
            value.tolist() if isinstance(value, np.ndarray) else value
        )
    if isinstance(predictions, Predictions):
        columns |= {
            f"p{number}": share for number, share in enumerate(predictions.probabilities.T.tolist())
        }
        columns["predicted"] = predictions.predicted.tolist()
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        # repr is the shortest text that reads back as the same float; NaN is the only value that
        # differs from itself.
        for row in zip(*(columns[name] for name in header), strict=True):
            writer.writerow(["" if value is None or value != value else value for value in row])


def read_predictions(path: Path) -> AnyPredictions:
    """What `write_predictions` wrote; the header tells the kind.

    Raises:
        StudyError: If the file is missing, foreign, empty or damaged: with a line for each wrong
            cell, by row (as a spreadsheet counts) and column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _parse(path, csv.reader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise StudyError(f"{path}: cannot be read as a CSV in UTF-8 ({error})") from error


def _parse(path: Path, reader: Iterator[list[str]]) -> AnyPredictions:
    found = tuple(next(reader, []))
    task = next((task for task, (header, _) in _TABLES.items() if header == found), None)
    if task is None:
        text = ",".join(found)
        shown = f"begins with {text[:60]!r}" if text else "is empty"
        raise StudyError(f"{path}: row 1 {shown}, which is not the header of anybody's predictions")
    header, model = _TABLES[task]
    rows: list[Any] = []
    errors: list[str] = []
    seen: dict[tuple[str, int | None], int] = {}
    for number, values in enumerate(reader, 2):
        if number > MOST_ROWS:
            raise StudyError(f"{path}: has more than {MOST_ROWS} rows")
        if len(values) != len(header):
            errors.append(f"row {number}: has {len(values)} cells, not {len(header)}")
            continue
        try:
            row = model.model_validate(_cells(header, values))
        except ValidationError as error:
            # Parts of the probabilities are named by their number: ("p", 3) is the column p3.
            errors += [
                f"row {number}, {''.join(map(str, item['loc']))}: {item['msg']}"
                for item in error.errors()
            ]
            continue
        errors += [f"row {number}, {text}" for text in _contradictions(row)]
        key = (row.case, getattr(row, "slice", None))
        if key in seen:
            errors.append(f"row {number}, case: {row.case!r} stands in row {seen[key]} already")
        seen.setdefault(key, number)
        rows.append(row)
    if errors:
        more = [f"and {len(errors) - _MOST_ERRORS} more"] if len(errors) > _MOST_ERRORS else []
        listed = "\n".join([*errors[:_MOST_ERRORS], *more])
        raise StudyError(f"{path}: {len(errors)} error(s)\n{listed}")
    if not rows:
        raise StudyError(f"{path}: holds no prediction")
    return _table(task, rows)


def _cells(header: Sequence[str], values: Sequence[str]) -> dict[str, Any]:
    cells: dict[str, Any] = {
        name: value for name, value in zip(header, values, strict=True) if value != ""
    }
    shares = [name for name in header if name[0] == "p" and name[1:].isdigit()]
    if shares:
        cells["p"] = tuple(cells.pop(name, None) for name in shares)
    return cells


def _contradictions(row: _Row) -> list[str]:
    if not isinstance(row, _ClassRow):
        return []
    found = [
        f"{name}: {value} is no class; there are {len(row.p)}"
        for name, value in (("truth", row.truth), ("predicted", row.predicted))
        if value >= len(row.p)
    ]
    if abs(sum(row.p) - 1.0) > SUM_TOLERANCE:
        found.append(f"p0…p{len(row.p) - 1}: sum to {sum(row.p):g}, not 1")
    if row.predicted != row.p.index(max(row.p)):
        found.append(f"predicted: {row.predicted} is not the class of the largest probability")
    return found


def _table(task: str, rows: list[Any]) -> AnyPredictions:
    kind: Any = {"slices": SlicePredictions, "lungs": LungPredictions}.get(task, Predictions)
    texts = ("case", "patient", "sex", "site")
    columns: dict[str, Any] = {} if task in ("slices", "lungs") else {"task": task}
    for field in dataclasses.fields(kind):
        if field.name != "task":
            name = _COLUMN.get(field.name, field.name)
            values = [getattr(row, name) for row in rows]
            columns[field.name] = tuple(values) if name in texts else np.array(values, np.float64)
    return kind(**columns)


def join(parts: Sequence[_Kind]) -> _Kind:
    """The folds of one cross-validation as one table, in the order given.

    Args:
        parts: At least one; of the same kind and task.

    Raises:
        StudyError: If the tasks differ, a case is in two parts, or a patient is in two folds: his
            network would have been trained on him.
    """
    _same_task(parts)
    owner: dict[str, int] = {}
    fold_of: dict[str, int] = {}
    for number, part in enumerate(parts):
        for case, patient, fold in zip(part.cases, part.patients, part.folds.tolist(), strict=True):
            if owner.setdefault(case, number) != number:
                raise StudyError(
                    f"case {case!r} was predicted twice, in fold {fold} and in another part"
                )
            if fold_of.setdefault(patient, fold) != fold:
                raise StudyError(
                    f"case {case!r}: its patient is in fold {fold_of[patient]} and in fold {fold}"
                )
    return _build(parts[0], lambda name: _concatenated([getattr(part, name) for part in parts]))


def ensemble(members: Sequence[Predictions]) -> Predictions:
    """Mean probabilities, and mean scores of the members that have one: several frozen models on the same cases.

    Args:
        members: At least one; the same cases in any order.

    Returns:
        The cases in the order of the first member, all in fold 0: none of them was trained on any
        of the cases.

    Raises:
        StudyError: If members differ in task, in cases, or in what is true of them.
    """
    _same_task(members)
    first = members[0]
    rows = [_rows(first, member) for member in members]
    shares = np.mean(
        [member.probabilities[row] for member, row in zip(members, rows, strict=True)], axis=0
    )
    scores = np.stack(
        [member.predicted_score[row] for member, row in zip(members, rows, strict=True)]
    )
    known = np.isfinite(scores)
    total = np.where(known, scores, 0.0).sum(axis=0)
    mean_score = np.divide(
        total, known.sum(axis=0), out=np.full(len(first.cases), np.nan), where=known.any(axis=0)
    )
    return dataclasses.replace(
        first, folds=np.zeros(len(first.cases)), probabilities=shares, predicted_score=mean_score
    )


def select(predictions: _Kind, rows: np.ndarray) -> _Kind:
    """Some rows of a table.

    Args:
        predictions: The table.
        rows: int (M,) positions, or bool (N,); at least one.
    """
    positions = np.arange(len(predictions.cases))[rows]

    def part(name: str) -> Any:
        value = getattr(predictions, name)
        return (
            value[positions]
            if isinstance(value, np.ndarray)
            else tuple(value[row] for row in positions)
        )

    return _build(predictions, part)


def _rows(first: Predictions, other: Predictions) -> np.ndarray:
    """Positions in `other` of the cases of `first`."""
    if set(other.cases) != set(first.cases):
        example = min(set(other.cases) ^ set(first.cases))
        raise StudyError(f"not the same cases: only one of the models has answered {example!r}")
    position = {case: row for row, case in enumerate(other.cases)}
    rows = np.array([position[case] for case in first.cases])
    for name in ("patients", "truth", "ct_score"):
        mine, theirs = np.asarray(getattr(first, name)), np.asarray(getattr(other, name))[rows]
        differs = mine != theirs
        if name == "ct_score":
            differs &= ~(np.isnan(mine) & np.isnan(theirs))
        if differs.any():
            raise StudyError(
                f"case {first.cases[int(differs.argmax())]!r} has different {name} in two of the"
                " models"
            )
    return rows


def _same_task(parts: Sequence[AnyPredictions]) -> None:
    tasks = {part.task for part in parts}
    if len(tasks) != 1:
        raise StudyError(
            f"predictions of one task are needed, not of {', '.join(sorted(tasks)) or 'none'}"
        )


def _build(like: _Kind, column: Callable[[str], Any]) -> _Kind:
    names = [field.name for field in dataclasses.fields(like) if field.name != "task"]
    return dataclasses.replace(like, **{name: column(name) for name in names})


def _concatenated(values: list[Any]) -> Any:
    return (
        np.concatenate(values)
        if isinstance(values[0], np.ndarray)
        else tuple(itertools.chain(*values))
    )
