"""What networks answered, as the rows of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_covid.cohort.manifest import ManifestRow
from tf_covid.study.records import (
    AnyPredictions,
    LungPredictions,
    Predictions,
    SlicePredictions,
)
from tf_covid.training.tasks import score_of


def as_predictions(
    task: str,
    rows: Sequence[ManifestRow],
    labels: Mapping[str, int],
    answers: Mapping[str, np.ndarray],
    fold: int,
) -> AnyPredictions:
    """Answers of `Objective.answers` with what is known of their cases.

    Args:
        task: "severity", "covid", "slices" or "lungs".
        rows: The cases, in the order of the answers' records.
        labels: Case → class.
        answers: Of the objective.
        fold: Its number.
    """
    cases, patients = tuple(row.case for row in rows), tuple(row.patient for row in rows)
    if task == "slices":
        owner = answers["record"].astype(int)
        return SlicePredictions(
            cases=tuple(cases[number] for number in owner),
            patients=tuple(patients[number] for number in owner),
            folds=np.full(len(owner), fold),
            slices=answers["slice"],
            truth=answers["truth"],
            probability=answers["probability"],
            fraction=answers["share"],
            predicted_fraction=answers["predicted_share"],
        )
    known: dict[str, Any] = {
        "cases": cases,
        "patients": patients,
        "folds": np.full(len(rows), fold),
        "sex": tuple(row.sex for row in rows),
        "age": np.array([np.nan if row.age is None else row.age for row in rows]),
        "site": tuple(row.site for row in rows),
    }
    if task == "lungs":
        return LungPredictions(dice=answers["dice"], **known)
    kind: Any = task
    return Predictions(
        task=kind,
        truth=np.array([labels[case] for case in cases]),
        probabilities=answers["probabilities"],
        ct_score=np.array([score_of(row) for row in rows]),
        predicted_score=answers["ct_score"],
        **known,
    )
