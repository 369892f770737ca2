"""The study's figures of merit, each on weighted cases so that a bootstrap of thousands of replicates is one product.

A weight says how often a case is there; tests hold every metric against scikit-learn on the cases
themselves. Macro averages (balanced accuracy, macro F1, AUC of several classes) run over all
classes of the task and are undefined as soon as one of them has no true case: an average over fewer
classes would not compare with others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tf_covid.study.bootstrap import Bootstrap, Statistic, estimate, wilson
from tf_covid.study.records import AnyPredictions, LungPredictions, Predictions, SlicePredictions

#: Names of the metrics of a classification, in the order of every table.
METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "quadratic_kappa", "within_one", "auc")

#: Those that are the share of cases with some property; Wilson's interval holds for them where the
#: bootstrap has none.
PROPORTIONS = ("accuracy", "within_one")


def measure(predictions: AnyPredictions, bootstrap: Bootstrap) -> dict[str, dict[str, Any] | None]:
    """Every metric of a task, each as `{"value", "ci95", "left_out"}` over patients, or None where undefined.

    Args:
        predictions: severity, covid: the metrics of `METRICS` and `mae`, of the CT score in points.
            slices: `auc` over all slices of all cases and `mae`, of the diseased share. lungs:
            `dice`, the mean over cases.
        bootstrap: Replicates and seed.

    Returns:
        `within_one` is None for two classes, where it says nothing. A share of cases that is 0 or 1
        has Wilson's interval, with the patients as its trials: drawing again what is all right
        cannot give anything else.
    """
    found = estimate(statistic_of(predictions), predictions.patients, bootstrap)
    total = len(set(predictions.patients))
    for name in PROPORTIONS:
        metric = found.get(name)
        if metric is not None and metric["value"] in (0.0, 1.0):
            metric["ci95"] = wilson(metric["value"] * total, total, bootstrap.level)
    error = found.get("mae")
    if error is not None:
        error["unit"] = (
            "share of the slice's lung"
            if predictions.task == "slices"
            else "points of the CT score"
        )
    return found


def statistic_of(predictions: AnyPredictions) -> Statistic:
    """What `measure` measures, as a function of the weights of the rows."""
    if isinstance(predictions, LungPredictions):
        return _mean_of("dice", predictions.dice)
    if isinstance(predictions, SlicePredictions):
        auc: Any = BinaryAUC(predictions.truth == 1, predictions.probability)
        error = _mean_of("mae", np.abs(predictions.share - predictions.predicted_share))
        return lambda weights: {"auc": auc(weights), **error(weights)}
    classes = predictions.probabilities.shape[1]
    cells = np.zeros((len(predictions.cases), classes * classes))
    cells[np.arange(len(cells)), predictions.truth * classes + predictions.predicted] = 1.0
    error = _mean_of("mae", np.abs(predictions.ct_score - predictions.predicted_score))
    auc = _class_auc(predictions)

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        matrices = (weights @ cells).reshape(-1, classes, classes)
        return {**matrix_metrics(matrices), "auc": auc(weights), **error(weights)}

    return statistic


def _mean_of(name: str, values: np.ndarray) -> Statistic:
    """The weighted mean of the values that are known, float64 (N,)."""
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)
    return lambda weights: {name: _ratio(weights @ filled, weights @ known.astype(np.float64))}


def matrix_metrics(matrices: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics that a confusion matrix tells.

    Args:
        matrices: float64 (R, C, C), cases by [truth, prediction].

    Returns:
        By name float64 (R,); NaN where undefined: see the head of this file, kappa where truth and
        prediction are all of one class, `within_one` for two classes.
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
    recall = _ratio(hits, true)
    f1 = _ratio(2.0 * hits, true + predicted)
    return {
        "accuracy": _ratio(hits.sum(axis=1), total),
        "balanced_accuracy": np.where(missing, np.nan, recall.mean(axis=1)),
        "macro_f1": np.where(missing, np.nan, f1.mean(axis=1)),
        "quadratic_kappa": 1.0 - _ratio((matrices * distance**2).sum(axis=(1, 2)), chance),
        "within_one": _ratio(near, total),
    }


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(
        part, whole, out=np.full(np.shape(part), np.nan), where=(whole > 0) & np.isfinite(part)
    )


def confusion_matrix(predictions: Predictions) -> np.ndarray:
    """int64 (C, C), cases by [truth, prediction]."""
    from sklearn import metrics

    labels = range(predictions.probabilities.shape[1])
    return metrics.confusion_matrix(predictions.truth, predictions.predicted, labels=labels)


def per_class(matrix: np.ndarray, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Precision, recall, F1 and support of each class.

    Args:
        matrix: int (C, C), cases by [truth, prediction].
        names: C.

    Returns:
        A row a class, in order: `class`, `label`, `precision` (None if it was never predicted),
        `recall` and `f1` (None without a true case), `support` (true cases).
    """
    rows = []
    for number, name in enumerate(names):
        hits, true, predicted = (
            float(part) for part in (matrix[number, number], *_margins(matrix, number))
        )
        rows.append(
            {
                "class": number,
                "label": name,
                "precision": hits / predicted if predicted else None,
                "recall": hits / true if true else None,
                "f1": 2.0 * hits / (true + predicted) if true else None,
                "support": int(true),
            }
        )
    return rows


def _margins(matrix: np.ndarray, number: int) -> tuple[Any, Any]:
    return matrix[number].sum(), matrix[:, number].sum()


def mean_class_error(matrix: np.ndarray) -> float:
    """Mean distance, in classes, of prediction and truth.

    Args:
        matrix: (C, C), cases by [truth, prediction]; at least one case.
    """
    numbers = np.arange(len(matrix))
    return float((matrix * np.abs(np.subtract.outer(numbers, numbers))).sum() / np.sum(matrix))


def from_matrix(
    matrix: np.ndarray, names: tuple[str, ...], bootstrap: Bootstrap | None = None
) -> dict[str, Any]:
    """All that a published confusion matrix tells, under the names of `study.json`.

    Args:
        matrix: int (C, C), cases by [truth, prediction].
        names: C.
        bootstrap: Replicates and seed.

    Returns:
        `cases`, `confusion_matrix`, `per_class`, `mean_class_error` and the metrics; `auc` is None.
        A matrix does not tell whose its cases are: each counts as a patient of its own. Shares have
        Wilson's interval.
    """
    bootstrap = bootstrap or Bootstrap()
    matrix = np.asarray(matrix, np.int64)
    cells = np.repeat(np.arange(matrix.size), matrix.ravel())
    onehot = np.eye(matrix.size)[cells]

    def statistic(weights: np.ndarray) -> Mapping[str, np.ndarray]:
        return matrix_metrics((weights @ onehot).reshape(-1, *matrix.shape))

    found = estimate(statistic, [str(case) for case in range(len(cells))], bootstrap)
    for name in PROPORTIONS:
        metric = found[name]
        if metric is not None:
            metric["ci95"] = wilson(metric["value"] * len(cells), len(cells), bootstrap.level)
    return {
        "cases": len(cells),
        "confusion_matrix": matrix.tolist(),
        "per_class": per_class(matrix, names),
        "mean_class_error": mean_class_error(matrix),
        **found,
        "auc": None,
    }


def _class_auc(predictions: Predictions) -> Callable[[np.ndarray], np.ndarray]:
    """ROC AUC of two classes; of more, the mean over the classes of each against all others (macro one-vs-rest)."""
    classes = predictions.probabilities.shape[1]
    wanted = [1] if classes == 2 else range(classes)
    parts = [
        BinaryAUC(predictions.truth == number, predictions.probabilities[:, number])
        for number in wanted
    ]
    return lambda weights: np.mean([part(weights) for part in parts], axis=0)


class BinaryAUC:
    """Area under the ROC curve of weighted cases: the probability that a positive case has more than a negative one.

    Ties count half. Sorted once, so that a replicate costs a sum along the cases.

    Args:
        truth: bool (N,).
        score: float64 (N,).
    """

    def __init__(self, truth: np.ndarray, score: np.ndarray) -> None:
        self._order = np.argsort(score, kind="stable")
        ordered = score[self._order]
        # Where each run of equal scores begins.
        self._starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        self._positive = truth[self._order].astype(np.float64)

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """float64 (R,) from weights (R, N); NaN where one of the two sides has no case."""
        weights = weights[:, self._order]
        positive = np.add.reduceat(weights * self._positive, self._starts, axis=1)
        negative = np.add.reduceat(weights * (1.0 - self._positive), self._starts, axis=1)
        below = np.cumsum(negative, axis=1) - negative / 2.0
        return _ratio((positive * below).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1))


def mean(
    values: np.ndarray, patients: Sequence[str], bootstrap: Bootstrap
) -> dict[str, Any] | None:
    """The mean over rows, float64 (N,), with its interval over patients."""
    return estimate(_mean_of("mean", values), patients, bootstrap)["mean"]
