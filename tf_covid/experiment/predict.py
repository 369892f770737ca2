"""What networks answered, as the rows of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_covid.cohort.cache import CacheRecord
from tf_covid.cohort.manifest import ManifestRow
from tf_covid.lobes import ct_score_read
from tf_covid.severity import LOBES
from tf_covid.study.records import (
    AnyPredictions,
    LobePredictions,
    LungPredictions,
    Predictions,
    SlicePredictions,
)
from tf_covid.tensor import Tensor
from tf_covid.training.tasks import score_of


def as_predictions(
    task: str,
    rows: Sequence[ManifestRow],
    labels: Mapping[str, int],
    answers: Mapping[str, np.ndarray],
    fold: int,
    records: Sequence[CacheRecord],
) -> AnyPredictions:
    """The study's table of what a network answered.

    Args:
        task: Name of the task.
        rows: Rows of the manifest, in the order of the answers' records.
        labels: Case → class.
        answers: What `Objective.answers` returned.
        fold: Index of the fold that the rows were tested in.
        records: Record of each row.
    """
    return _TABLES[task](task, rows, labels, answers, fold, records)


def _scans(
    task: Tensor,
    rows: Sequence[ManifestRow],
    labels: Mapping[str, int],
    answers: Mapping[str, np.ndarray],
    fold: int,
    records: Sequence[CacheRecord],
) -> AnyPredictions:
    unknown = (None,) * len(LOBES)
    read = [
        tuple(lobe.score for lobe in record.lobes) if record.lobes else unknown
        for record in records
    ]
    return Predictions(
        task=task,
        # None becomes NaN.
        read_score=np.array([ct_score_read(record.lobes) for record in records], np.float64),
        read_lobe_scores=np.array(read, np.float64),
        lobe_scores=np.array([row.lobe_scores or unknown for row in rows], np.float64),
        truth=np.array([labels[row.case] for row in rows]),
        probabilities=answers["probabilities"],
        ct_score=np.array([score_of(row) for row in rows]),
        predicted_score=answers["ct_score"],
        **_known(rows, fold),
    )


def _lungs(
    task: str,
    rows: Sequence[ManifestRow],
    labels: Mapping[str, int],
    answers: Mapping[str, np.ndarray],
    fold: int,
    records: Sequence[CacheRecord],
) -> AnyPredictions:
    return LungPredictions(dice=answers["dice"], **_known(rows, fold))


def _lobes(
    task: str,
    rows: Sequence[ManifestRow],
    labels: Mapping[str, int],
    answers: Mapping[str, np.ndarray],
    fold: int,
    records: Sequence[CacheRecord],
) -> AnyPredictions:
    return LobePredictions(
        dice=answers["dice"],
        lobes=answers["lobes"],
        effusion_error_ml=answers["effusion_error_ml"],
        **_known(rows, fold),
    )


def _slices(
    task: str,
    rows: Sequence[ManifestRow],
    labels: Mapping[str, int],
    answers: Mapping[str, np.ndarray],
    fold: int,
    records: Sequence[CacheRecord],
) -> AnyPredictions:
    record = answers["record"].astype(int)
    return SlicePredictions(
        cases=tuple(rows[index].case for index in record),
        patients=tuple(rows[index].patient for index in record),
        folds=np.full(len(record), fold),
        slices=answers["slice"],
        truth=answers["truth"],
        probability=answers["probability"],
        fraction=answers["share"],
        predicted_fraction=answers["predicted_share"],
    )


def _known(rows: Sequence[ManifestRow], fold: int) -> dict[str, Any]:
    """The columns that every table with a row a scan has."""
    return {
        "cases": tuple(row.case for row in rows),
        "patients": tuple(row.patient for row in rows),
        "folds": np.full(len(rows), fold),
        "sex": tuple(row.sex for row in rows),
        "age": np.array([np.nan if row.age is None else row.age for row in rows]),
        "site": tuple(row.site for row in rows),
    }


#: Name of the task → makes its table.
_TABLES = {
    "severity": _scans,
    "covid": _scans,
    "lungs": _lungs,
    "lobes": _lobes,
    "slices": _slices,
}
