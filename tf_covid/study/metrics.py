"""The study's metrics, on weighted cases: a bootstrap of thousands of replicates is one product.

A weight says how often a case is there; tests hold every metric against scikit-learn on the cases
themselves. Macro averages (balanced accuracy, macro F1, AUC of several classes) run over all
classes of the task and are undefined as soon as one of them has no true case: an average over fewer
classes would not compare with others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tf_covid.severity import LOBES
from tf_covid.study.bootstrap import Bootstrap, Statistic, estimate, wilson
from tf_covid.study.records import (
    AnyPredictions,
    LobePredictions,
    LungPredictions,
    Predictions,
    SlicePredictions,
)

#: Names of the metrics of a classification, in the order of every table.
METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "quadratic_kappa", "within_one", "auc")

#: Those that are the fraction of cases with some property; where the bootstrap has no interval,
#: Wilson's holds for them.
PROPORTIONS = ("accuracy", "within_one")


def measure(predictions: AnyPredictions, bootstrap: Bootstrap) -> dict[str, dict[str, Any] | None]:
    """Every metric of a task, with its interval over patients.

    Args:
        predictions: Predictions of any task.
        bootstrap: Replicates and seed of the intervals.

    Returns:
        Each metric by name as `{"value", "ci95", "left_out"}`, or None where undefined. Severity,
        covid: the metrics of `METRICS`, and `mae` of the CT score in points; `within_one` is None
        for two classes, where it says nothing. Slices: `auc` over all slices of all cases, and
        `mae` of the diseased fraction. Lungs: `dice`, the mean over cases. Lobes: the same,
        and `mae` of the pleural effusion.
        A fraction of cases that is 0 or 1 has Wilson's interval, with the patients as its trials:
        drawing again what is all right cannot give anything else.
    """
    measured = estimate(
        statistic_of(predictions), predictions.patients, bootstrap, proportions=PROPORTIONS
    )
    error = measured.get("mae")
    if error is not None:
        units = {"slices": "share of the slice's lung", "lobes": "ml"}
        error["unit"] = units.get(predictions.task, "points of the CT score")
    return measured


def statistic_of(predictions: AnyPredictions) -> Statistic:
    """What `measure` measures, as a function of the weights of the rows."""
    if isinstance(predictions, LungPredictions):
        return mean_of("dice", predictions.dice)
    if isinstance(predictions, LobePredictions):
        dice = mean_of("dice", predictions.dice)
        effusion = mean_of("mae", np.abs(predictions.effusion_error_ml))
        return lambda weights: {**dice(weights), **effusion(weights)}
    if isinstance(predictions, SlicePredictions):
        auc: Any = BinaryAUC(predictions.truth == 1, predictions.probability)
        error = mean_of("mae", np.abs(predictions.fraction - predictions.predicted_fraction))
        return lambda weights: {"auc": auc(weights), **error(weights)}
    classes = predictions.probabilities.shape[1]
    cells = np.zeros((len(predictions.cases), classes * classes))
    cells[np.arange(len(cells)), predictions.truth * classes + predictions.predicted] = 1.0
    error = mean_of("mae", np.abs(predictions.ct_score - predictions.predicted_score))
    auc = _class_auc(predictions)

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        matrices = (weights @ cells).reshape(-1, classes, classes)
        return {**matrix_metrics(matrices), "auc": auc(weights), **error(weights)}

    return statistic


def dice_per_lobe(predictions: LobePredictions, bootstrap: Bootstrap) -> dict[str, Any]:
    """Mean Dice of each lobe by its name, as `measure` gives it, over the cases that show it."""
    return {
        name: mean(predictions.lobes[:, index], predictions.patients, bootstrap)
        for index, name in enumerate(LOBES)
    }


def mean_of(name: str, values: np.ndarray) -> Statistic:
    """The weighted mean of the values that are known, as a statistic of one name.

    Args:
        name: Name of the mean.
        values: Value of each case, float64 (N,); NaN where unknown.
    """
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)
    return lambda weights: {name: ratio(weights @ filled, weights @ known.astype(np.float64))}


def matrix_metrics(matrices: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics that follow from a confusion matrix.

    Args:
        matrices: Weight of the cases by [truth, prediction], float64 (R, C, C).

    Returns:
        Values by name, float64 (R,). NaN where undefined: macro averages as the head of this file
        says, kappa where truth and prediction are all of one class, `within_one` for two classes.
    """
    classes = matrices.shape[-1]
    hits = np.diagonal(matrices, axis1=1, axis2=2)
    true, predicted = matrices.sum(axis=2), matrices.sum(axis=1)
    total = matrices.sum(axis=(1, 2))
    distance = np.abs(np.subtract.outer(np.arange(classes), np.arange(classes)))
    # Expected disagreement of two raters with these marginal counts who know nothing of each other.
    chance = np.einsum("ri,ij,rj->r", true, distance**2, predicted) / np.where(
        total > 0, total, np.nan
    )
    missing = (true == 0).any(axis=1)
    near = (
        (matrices * (distance <= 1)).sum(axis=(1, 2))
        if classes > 2
        else np.full(len(matrices), np.nan)
    )
    recall = ratio(hits, true)
    f1 = ratio(2.0 * hits, true + predicted)
    return {
        "accuracy": ratio(hits.sum(axis=1), total),
        "balanced_accuracy": np.where(missing, np.nan, recall.mean(axis=1)),
        "macro_f1": np.where(missing, np.nan, f1.mean(axis=1)),
        "quadratic_kappa": 1.0 - ratio((matrices * distance**2).sum(axis=(1, 2)), chance),
        "within_one": ratio(near, total),
    }


def ratio(part: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Part by total, float64; NaN where the total is not above 0, or the part not finite."""
    ratio: np.ndarray = np.divide(
        part, total, out=np.full(np.shape(part), np.nan), where=(total > 0) & np.isfinite(part)
    )
    return ratio


def confusion_matrix(predictions: Predictions) -> np.ndarray:
    """Number of cases by [truth, prediction], int64 (C, C)."""
    from sklearn import metrics

    labels = range(predictions.probabilities.shape[1])
    matrix: np.ndarray = metrics.confusion_matrix(
        predictions.truth, predictions.predicted, labels=labels
    )
    return matrix


def per_class(matrix: np.ndarray, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Precision, recall, F1 and support of each class.

    Args:
        matrix: Number of cases by [truth, prediction], int (C, C).
        names: Name of each class.

    Returns:
        A row a class, in order: `class`, `label`, `precision` (None if it was never predicted),
        `recall` and `f1` (None without a true case), `support` (true cases).
    """
    rows = []
    for index, name in enumerate(names):
        hits = float(matrix[index, index])
        true, predicted = float(matrix[index].sum()), float(matrix[:, index].sum())
        rows.append(
            {
                "class": index,
                "label": name,
                "precision": hits / predicted if predicted else None,
                "recall": hits / true if true else None,
                "f1": 2.0 * hits / (true + predicted) if true else None,
                "support": int(true),
            }
        )
    return rows


def mean_class_error(matrix: np.ndarray) -> float:
    """Mean distance, in classes, of prediction and truth.

    Args:
        matrix: Number of cases by [truth, prediction], (C, C); at least one case.
    """
    classes = np.arange(len(matrix))
    return float((matrix * np.abs(np.subtract.outer(classes, classes))).sum() / np.sum(matrix))


def from_matrix(
    matrix: np.ndarray, names: tuple[str, ...], bootstrap: Bootstrap | None = None
) -> dict[str, Any]:
    """All metrics that follow from a published confusion matrix, under the names of `study.json`.

    Args:
        matrix: Number of cases by [truth, prediction], int (C, C).
        names: Name of each class.
        bootstrap: Replicates and seed of the intervals.

    Returns:
        `cases`, `confusion_matrix`, `per_class`, `mean_class_error` and the metrics; `auc` is None.
        A matrix does not tell whose its cases are: each counts as a patient of its own. Fractions
        of cases have Wilson's interval.
    """
    bootstrap = bootstrap or Bootstrap()
    matrix = np.asarray(matrix, np.int64)
    cells = np.repeat(np.arange(matrix.size), matrix.ravel())
    onehot = np.eye(matrix.size)[cells]

    def statistic(weights: np.ndarray) -> Mapping[str, np.ndarray]:
        return matrix_metrics((weights @ onehot).reshape(-1, *matrix.shape))

    measured = estimate(statistic, [str(case) for case in range(len(cells))], bootstrap)
    for name in PROPORTIONS:
        metric = measured[name]
        if metric is not None:
            metric["ci95"] = wilson(
                round(metric["value"] * len(cells)), len(cells), bootstrap.level
            )
    return {
        "cases": len(cells),
        "confusion_matrix": matrix.tolist(),
        "per_class": per_class(matrix, names),
        "mean_class_error": mean_class_error(matrix),
        **measured,
        "auc": None,
    }


def _class_auc(predictions: Predictions) -> Callable[[np.ndarray], np.ndarray]:
    """ROC AUC of two classes; of more, the mean over the classes of each one against all others."""
    classes = predictions.probabilities.shape[1]
    positives = [1] if classes == 2 else range(classes)
    parts = [
        BinaryAUC(predictions.truth == positive, predictions.probabilities[:, positive])
        for positive in positives
    ]
    return lambda weights: np.mean([part(weights) for part in parts], axis=0)


class BinaryAUC:
    """Area under the ROC curve of weighted cases.

    It is the probability that a positive case has a higher score than a negative one; ties count
    half. Sorted once, so that a replicate costs a sum along the cases.

    Args:
        truth: True for a positive case, bool (N,).
        score: Score of each case, higher for positive ones, float64 (N,).
    """

    def __init__(self, truth: np.ndarray, score: np.ndarray) -> None:
        self._order = np.argsort(score, kind="stable")
        ordered = score[self._order]
        # Where each run of equal scores begins.
        self._starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        self._positive = truth[self._order].astype(np.float64)

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """The area for each row of weights.

        Args:
            weights: Weight of each case, (R, N).

        Returns:
            float64 (R,); NaN where there is no positive or no negative case.
        """
        weights = weights[:, self._order]
        positive = np.add.reduceat(weights * self._positive, self._starts, axis=1)
        negative = np.add.reduceat(weights * (1.0 - self._positive), self._starts, axis=1)
        below = np.cumsum(negative, axis=1) - negative / 2.0
        return ratio((positive * below).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1))


def mean(
    values: np.ndarray, patients: Sequence[str], bootstrap: Bootstrap
) -> dict[str, Any] | None:
    """The mean over rows, float64 (N,), with its interval over patients."""
    return estimate(mean_of("mean", values), patients, bootstrap)["mean"]
