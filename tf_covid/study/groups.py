"""Statistics of groups: neighbouring predicted classes, calibration, ROC, and subgroups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tf_covid.study import metrics
from tf_covid.study.bootstrap import Bootstrap, wilson
from tf_covid.study.combine import select
from tf_covid.study.records import Predictions, ScanPredictions

#: Lower bounds of the age bands, in years, and their names.
AGE_BANDS = ((0, "<40"), (40, "40-59"), (60, "60-79"), (80, "80+"))

#: Name of the group of cases without the value.
UNKNOWN = "unknown"


def mann_whitney(predictions: Predictions) -> list[dict[str, Any]]:
    """Mann–Whitney U test, two-sided: does the true CT score rise from class to class?

    Args:
        predictions: Predictions of a classification; cases without a true CT score are left out.

    Returns:
        A row a neighbouring pair of predicted classes: `groups` (two class numbers); `n` (cases in
        each); `u`, the number of pairs of a case of each group in which the higher group has the
        higher score, ties half; `p`; `p_holm`, corrected over the pairs that were tested; `effect`,
        the rank-biserial correlation 2u/(n·n) − 1: 1 where every case of the higher group has more
        than every one of the lower, 0 where they do not differ. None, all four, where a group is
        empty. The test takes cases as independent, also those of one patient.
    """
    from scipy.stats import mannwhitneyu

    known = np.isfinite(predictions.ct_score)
    rows: list[dict[str, Any]] = []
    for lower in range(predictions.probabilities.shape[1] - 1):
        below, above = (
            predictions.ct_score[known & (predictions.predicted == lower + step)] for step in (0, 1)
        )
        row: dict[str, Any] = {"groups": [lower, lower + 1], "n": [len(below), len(above)]}
        row |= dict.fromkeys(("u", "p", "p_holm", "effect"))
        if len(below) and len(above):
            u, p = mannwhitneyu(above, below, alternative="two-sided")
            row |= {
                "u": float(u),
                "p": float(p),
                "effect": 2.0 * float(u) / (len(below) * len(above)) - 1.0,
            }
        rows.append(row)
    tested = [row for row in rows if row["p"] is not None]
    for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = p
    return rows


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down rule, in the order given.

    Source: Holm 1979, Scandinavian Journal of Statistics 6:65–70.
    """
    order = np.argsort(p_values, kind="stable")
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, position in enumerate(order):
        # A smaller p-value is never left with a larger correction than the one after it.
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[position]))
        corrected[position] = largest
    return corrected


def calibration(predictions: Predictions, bootstrap: Bootstrap, bins: int = 10) -> dict[str, Any]:
    """Is the predicted class right as often as its probability says?

    Args:
        predictions: Predictions of a classification; of each case the largest probability counts.
        bootstrap: Replicates and seed of the intervals.
        bins: Number of equal steps from 0 to 1; a value on a border belongs to the lower one.

    Returns:
        `ece`, the expected calibration error (mean distance of probability and fraction of right
        answers, weighted by the cases of a bin); `brier`, the mean square of probability − right
        (1) or wrong (0); both as `{"value", "ci95", …}`, the first without an interval, since
        drawing again only adds error to it. `bins`, those that hold a case: `low`, `high`, `n`,
        `probability` (mean), `right` (fraction) and `right_ci95` (Wilson).
    """
    top = predictions.probabilities.max(axis=1)
    right = (predictions.predicted == predictions.truth).astype(np.float64)
    edges = np.linspace(0.0, 1.0, bins + 1)
    bin_index = np.clip(np.searchsorted(edges, top, side="left") - 1, 0, bins - 1)
    rows: list[dict[str, Any]] = []
    for index in np.unique(bin_index):
        inside = bin_index == index
        rows.append(
            {
                "low": float(edges[index]),
                "high": float(edges[index + 1]),
                "n": int(inside.sum()),
                "probability": float(top[inside].mean()),
                "right": float(right[inside].mean()),
                "right_ci95": wilson(int(right[inside].sum()), int(inside.sum()), bootstrap.level),
            }
        )
    error = sum(row["n"] * abs(row["probability"] - row["right"]) for row in rows) / len(top)
    return {
        "ece": {"value": error, "ci95": None, "left_out": 0},
        "brier": metrics.mean((top - right) ** 2, predictions.patients, bootstrap),
        "bins": rows,
    }


def roc(
    truth: np.ndarray, score: np.ndarray, max_points: int = 500
) -> dict[str, list[float | None]] | None:
    """Points of the ROC curve, or None where all cases are of one class.

    Args:
        truth: True class of each case, 0 or 1, int (N,).
        score: Score of each case, higher for class 1, float64 (N,).
        max_points: Largest number of points; a longer curve is thinned evenly.

    Returns:
        `false_positive_rate`, `true_positive_rate` and `threshold`, of one length; the first
        threshold is None, above every score.
    """
    from sklearn.metrics import roc_curve

    if len(np.unique(truth)) < 2:
        return None
    false, true, threshold = roc_curve(truth, score)
    if len(false) > max_points:
        rows = np.unique(np.linspace(0, len(false) - 1, max_points).round().astype(int))
        false, true, threshold = false[rows], true[rows], threshold[rows]
    return {
        "false_positive_rate": false.tolist(),
        "true_positive_rate": true.tolist(),
        "threshold": [value if math.isfinite(value) else None for value in threshold.tolist()],
    }


def subgroups(predictions: ScanPredictions, bootstrap: Bootstrap) -> dict[str, Any]:
    """The metrics again by sex, age band and site.

    Args:
        predictions: Predictions with what is known of the patients.
        bootstrap: Replicates and seed of the intervals.

    Returns:
        `sex`, `age` and `site`, each a list of rows, or None where it is not known of any case.
        A row: `group`, `n` (cases), `patients`, then the metrics (`dice` of lungs and lobes). Cases
        without the value are the last row.
    """
    groups = {
        "sex": [value or UNKNOWN for value in predictions.sex],
        "age": [_band(age) for age in predictions.age.tolist()],
        "site": [value or UNKNOWN for value in predictions.site],
    }
    return {name: _split(predictions, values, bootstrap) for name, values in groups.items()}


def _band(age: float) -> str:
    return UNKNOWN if math.isnan(age) else [name for low, name in AGE_BANDS if age >= low][-1]


def _split(
    predictions: ScanPredictions, values: list[str], bootstrap: Bootstrap
) -> list[dict[str, Any]] | None:
    bands = [name for _, name in AGE_BANDS]
    # Age bands in their order, everything else by its letters.
    names = sorted(
        set(values),
        key=lambda name: (name == UNKNOWN, bands.index(name) if name in bands else 0, name),
    )
    if names == [UNKNOWN]:
        return None
    rows = []
    for name in names:
        inside = np.array([value == name for value in values])
        part = select(predictions, inside)
        row: dict[str, Any] = {
            "group": name,
            "n": int(inside.sum()),
            "patients": len(set(part.patients)),
        }
        row |= metrics.measure(part, bootstrap)
        rows.append(row)
    return rows
