"""Tables of predictions made into one: folds joined, frozen models averaged, rows selected."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from tf_covid.study.records import AnyPredictions, Predictions, StudyError

_Table = TypeVar("_Table", bound=AnyPredictions)

_Column = np.ndarray | tuple[str | None, ...]


def join(parts: Sequence[_Table]) -> _Table:
    """The folds of one cross-validation as one table, in the order given.

    Args:
        parts: Predictions of each fold; at least one, all of one task.

    Raises:
        StudyError: If the tasks differ, a case is in two parts, or a patient is in two folds: the
            network that tests the patient would have been trained on the same patient.
    """
    _same_task(parts)
    part_of: dict[str, int] = {}
    fold_of: dict[str, int] = {}
    for index, part in enumerate(parts):
        for case, patient, fold in zip(part.cases, part.patients, part.folds.tolist(), strict=True):
            if part_of.setdefault(case, index) != index:
                raise StudyError(
                    f"case {case!r} was predicted twice, in fold {fold} and in another part"
                )
            if fold_of.setdefault(patient, fold) != fold:
                raise StudyError(
                    f"case {case!r}: its patient is in fold {fold_of[patient]} and in fold {fold}"
                )
    return _with_columns(
        parts[0], lambda name: _concatenated([getattr(part, name) for part in parts])
    )


def ensemble(members: Sequence[Predictions]) -> Predictions:
    """Mean probabilities and CT scores of several frozen models on the same cases.

    Args:
        members: Predictions of each model; at least one, on the same cases in any order. The mean
            score is that of the members that have one. What was read off the lobes is the first
            member's that knows it: no model has a say in it.

    Returns:
        The cases in the order of the first member, all in fold 0.

    Raises:
        StudyError: If members differ in task, in cases, or in the truth about a case.
    """
    _same_task(members)
    first = members[0]
    rows = [_rows(first, member) for member in members]
    probabilities = np.mean(
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
    read_score, read_lobes = first.read_score, first.read_lobe_scores
    for member, row in zip(members[1:], rows[1:], strict=True):
        unread = np.isnan(read_score) & np.isnan(read_lobes).all(axis=1)
        read_score = np.where(unread, member.read_score[row], read_score)
        read_lobes = np.where(unread[:, np.newaxis], member.read_lobe_scores[row], read_lobes)
    return dataclasses.replace(
        first,
        read_score=read_score,
        read_lobe_scores=read_lobes,
        folds=np.zeros(len(first.cases)),
        probabilities=probabilities,
        predicted_score=mean_score,
    )


def select(predictions: _Table, rows: np.ndarray) -> _Table:
    """Some rows of a table.

    Args:
        predictions: The table, of N rows.
        rows: Positions of the rows, int (M,), or a mask, bool (N,); at least one row.
    """
    positions = np.arange(len(predictions.cases))[rows]

    def column(name: str) -> _Column:
        values: _Column = getattr(predictions, name)
        if isinstance(values, np.ndarray):
            selected: np.ndarray = values[positions]
            return selected
        return tuple(values[row] for row in positions)

    return _with_columns(predictions, column)


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


def _with_columns(like: _Table, column: Callable[[str], _Column]) -> _Table:
    """The table with every column but the task replaced."""
    names = [field.name for field in dataclasses.fields(like) if field.name != "task"]
    columns: dict[str, Any] = {name: column(name) for name in names}
    return dataclasses.replace(like, **columns)


def _concatenated(parts: Sequence[_Column]) -> _Column:
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    return np.concatenate(arrays) if arrays else tuple(itertools.chain(*parts))
