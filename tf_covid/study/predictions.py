"""`predictions.csv`: what networks answered, exact to the last bit."""

from __future__ import annotations

import csv
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tf_covid.atomic import replacing
from tf_covid.cohort.table import written_float
from tf_covid.severity import CLASS_UPPER_SCORES, LOBES
from tf_covid.study.records import (
    CLASSES,
    LARGEST_LOBE_SCORE,
    SUM_TOLERANCE,
    AnyPredictions,
    LobePredictions,
    LungPredictions,
    Predictions,
    SlicePredictions,
    StudyError,
)

#: More rows than any study has; a wrong file with this many is not read to its end.
MAX_ROWS = 5_000_000
#: Errors that a message lists; the others are counted.
_MAX_ERRORS = 20

_Float = Annotated[float, BeforeValidator(written_float)]
_Fraction = Annotated[_Float, Field(ge=0, le=1)]
_Age = Annotated[_Float, Field(ge=0, le=130)]
_LobeScore = Annotated[_Float, Field(ge=0, le=LARGEST_LOBE_SCORE, multiple_of=1)]
_Index = Annotated[int, BeforeValidator(written_float), Field(ge=0, le=1_000_000_000)]


class _PredictionRow(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    case: Annotated[str, Field(min_length=1)]
    patient: Annotated[str, Field(min_length=1)]
    fold: _Index


class _ClassRow(_PredictionRow):
    truth: _Index
    predicted: _Index
    p: tuple[_Fraction, ...]
    ct_score: Annotated[_Float, Field(ge=0, le=CLASS_UPPER_SCORES[-1])] | None = None
    predicted_score: _Float | None = None
    read_score: Annotated[_Float, Field(ge=0, le=CLASS_UPPER_SCORES[-1])] | None = None
    lobe_scores: tuple[_LobeScore | None, ...] = (None,) * len(LOBES)
    read_lobe_scores: tuple[_LobeScore | None, ...] = (None,) * len(LOBES)
    sex: str | None = None
    age: _Age | None = None
    site: str | None = None


class _SliceRow(_PredictionRow):
    slice: _Index
    truth: Annotated[_Index, Field(ge=0, le=1)]
    probability: _Fraction
    share: _Fraction | None = None
    predicted_share: _Float | None = None


class _LungRow(_PredictionRow):
    dice: _Fraction
    sex: str | None = None
    age: _Age | None = None
    site: str | None = None


class _LobeRow(_LungRow):
    lobes: tuple[_Fraction | None, ...]
    effusion_error_ml: _Float | None = None


#: Column of the Dice of each lobe.
_LOBE_COLUMNS = tuple(name.replace(" ", "_") for name in LOBES)

#: Columns of the true, and of the read, score of each lobe.
_LOBE_SCORES = {
    "lobe_scores": tuple(f"{name}_score" for name in _LOBE_COLUMNS),
    "read_lobe_scores": tuple(f"{name}_read" for name in _LOBE_COLUMNS),
}


def _class_header(task: str, *, lobes: bool = False) -> tuple[str, ...]:
    """The header of a classification; with `lobes`, what is known of the lobes stands in it."""
    probabilities = (f"p{index}" for index in range(len(CLASSES[task])))
    read = ("read_score", *itertools.chain(*_LOBE_SCORES.values())) if lobes else ()
    return (
        "case",
        "patient",
        "fold",
        "truth",
        "predicted",
        *probabilities,
        "ct_score",
        "predicted_score",
        *read,
        "sex",
        "age",
        "site",
    )


#: The header of each task's CSV and the model of a row; a file's task is known by its header.
_TABLES: dict[str, tuple[tuple[str, ...], type[_PredictionRow]]] = {
    "severity": (_class_header("severity"), _ClassRow),
    "covid": (_class_header("covid"), _ClassRow),
    "slices": (
        ("case", "patient", "fold", "slice", "truth", "probability", "share", "predicted_share"),
        _SliceRow,
    ),
    "lungs": (("case", "patient", "fold", "dice", "sex", "age", "site"), _LungRow),
    "lobes": (
        (
            *("case", "patient", "fold", "dice", *_LOBE_COLUMNS),
            *("effusion_error_ml", "sex", "age", "site"),
        ),
        _LobeRow,
    ),
}

#: The task of each header. Where nothing is known of any lobe, its columns are left out.
_TASKS = {header: task for task, (header, _) in _TABLES.items()} | {
    _class_header(task, lobes=True): task for task in CLASSES
}

#: Column of the fields that have another name than theirs.
_COLUMN = {
    "cases": "case",
    "patients": "patient",
    "folds": "fold",
    "slices": "slice",
    "probabilities": "p",
    "fraction": "share",
    "predicted_fraction": "predicted_share",
}


def write_predictions(predictions: AnyPredictions, path: Path) -> None:
    """Write `predictions.csv`, atomically; `read_predictions` gives back exactly the same.

    Args:
        predictions: Predictions of any task; what is unknown becomes an empty cell.
        path: The CSV file.

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
        if predictions.knows_lobes:
            header = _class_header(predictions.task, lobes=True)
        for field_name, names in _LOBE_SCORES.items():
            columns |= dict(zip(names, getattr(predictions, field_name).T.tolist(), strict=True))
        columns |= {
            f"p{index}": column for index, column in enumerate(predictions.probabilities.T.tolist())
        }
        columns["predicted"] = predictions.predicted.tolist()
    if isinstance(predictions, LobePredictions):
        columns |= dict(zip(_LOBE_COLUMNS, predictions.lobes.T.tolist(), strict=True))
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        # repr is the shortest text that reads back as the same float; NaN is the only value that
        # differs from itself.
        for row in zip(*(columns[name] for name in header), strict=True):
            writer.writerow(["" if value is None or value != value else value for value in row])


def read_predictions(path: Path) -> AnyPredictions:
    """Read `predictions.csv`, of this package or of anybody's; its header says which task it is of.

    Args:
        path: The CSV file.

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
    header = tuple(next(reader, []))
    task = _TASKS.get(header)
    if task is None:
        text = ",".join(header)
        shown = f"begins with {text[:60]!r}" if text else "is empty"
        raise StudyError(f"{path}: row 1 {shown}, which is not the header of any predictions.csv")
    _, model = _TABLES[task]
    rows: list[Any] = []
    errors: list[str] = []
    seen: dict[tuple[str, int | None], int] = {}
    for row_number, values in enumerate(reader, 2):
        if row_number > MAX_ROWS:
            raise StudyError(f"{path}: has more than {MAX_ROWS} rows")
        if len(values) != len(header):
            errors.append(f"row {row_number}: has {len(values)} cells, not {len(header)}")
            continue
        try:
            row = model.model_validate(_cells(header, values))
        except ValidationError as error:
            # Probabilities are named by their index: ("p", 3) is the column p3.
            errors += [
                f"row {row_number}, {''.join(map(str, item['loc']))}: {item['msg']}"
                for item in error.errors()
            ]
            continue
        errors += [f"row {row_number}, {text}" for text in _contradictions(row)]
        key = (row.case, getattr(row, "slice", None))
        if key in seen:
            errors.append(f"row {row_number}, case: {row.case!r} is in row {seen[key]} already")
        seen.setdefault(key, row_number)
        rows.append(row)
    if errors:
        more = [f"and {len(errors) - _MAX_ERRORS} more"] if len(errors) > _MAX_ERRORS else []
        listed = "\n".join([*errors[:_MAX_ERRORS], *more])
        raise StudyError(f"{path}: {len(errors)} error(s)\n{listed}")
    if not rows:
        raise StudyError(f"{path}: holds no prediction")
    return _to_table(task, rows)


def _cells(header: Sequence[str], values: Sequence[str]) -> dict[str, Any]:
    cells: dict[str, Any] = {
        name: value for name, value in zip(header, values, strict=True) if value != ""
    }
    probabilities = [name for name in header if name[0] == "p" and name[1:].isdigit()]
    if probabilities:
        cells["p"] = tuple(cells.pop(name, None) for name in probabilities)
    for field_name, names in _LOBE_SCORES.items():
        if names[0] in header:
            cells[field_name] = tuple(cells.pop(name, None) for name in names)
    if _LOBE_COLUMNS[0] in header:
        cells["lobes"] = tuple(cells.pop(name, None) for name in _LOBE_COLUMNS)
    return cells


def _contradictions(row: _PredictionRow) -> list[str]:
    if not isinstance(row, _ClassRow):
        return []
    contradictions = [
        f"{name}: {value} is not a class; there are {len(row.p)}"
        for name, value in (("truth", row.truth), ("predicted", row.predicted))
        if value >= len(row.p)
    ]
    if abs(sum(row.p) - 1.0) > SUM_TOLERANCE:
        contradictions.append(f"p0…p{len(row.p) - 1}: sum to {sum(row.p):g}, not 1")
    if row.predicted != row.p.index(max(row.p)):
        contradictions.append(
            f"predicted: {row.predicted} is not the class of the largest probability"
        )
    known = [score for score in row.read_lobe_scores if score is not None]
    total = sum(known) if len(known) == len(LOBES) else None
    if total is not None and row.read_score not in (None, total):
        contradictions.append(
            f"read_score: {row.read_score:g} is not the sum of the lobes' scores, {total:g}"
        )
    return contradictions


def _to_table(task: str, rows: list[Any]) -> AnyPredictions:
    tables = {"slices": SlicePredictions, "lungs": LungPredictions, "lobes": LobePredictions}
    table: Any = tables.get(task, Predictions)
    texts = ("case", "patient", "sex", "site")
    columns: dict[str, Any] = {} if task in tables else {"task": task}
    for field in dataclasses.fields(table):
        if field.name != "task":
            name = _COLUMN.get(field.name, field.name)
            values = [getattr(row, name) for row in rows]
            columns[field.name] = tuple(values) if name in texts else np.array(values, np.float64)
    joined: AnyPredictions = table(**columns)
    return joined
