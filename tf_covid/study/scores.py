"""How near CT scores come to the true one: the network's, and the one that is read from the lobes.

The second owes nothing to the network: it is counted from the lobes and the disease in each, by the
lung models in front of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tf_covid.severity import LOBES
from tf_covid.study.bootstrap import Bootstrap, Statistic, estimate
from tf_covid.study.metrics import matrix_metrics, mean_of, ratio
from tf_covid.study.records import LARGEST_LOBE_SCORE, Predictions

#: Column of each of the two scores.
SCORES = {"predicted": "predicted_score", "read": "read_score"}

#: Distances from the true score, in points, that a share of the cases is given for.
NEAR_POINTS = (1, 3)

#: A sum of squares below this is what is left of rounding.
_NOTHING = 1e-9


def score_agreement(
    predictions: Predictions, bootstrap: Bootstrap
) -> dict[str, dict[str, Any] | None] | None:
    """The CT score of the network, and that read from the lobes, beside the true one.

    Args:
        predictions: Predictions of a classification.
        bootstrap: Replicates and seed of the intervals.

    Returns:
        `predicted` and `read`, each None where no case has it, else: `cases`, those that have both
        scores; `mae`, the mean distance from the truth, and `bias`, the mean of score less truth,
        in points; `within_1` and `within_3`, the share of the cases that are at most so many points
        off; `icc`, see `intraclass`. All but the first as `metrics.measure` gives them. None where
        no case has a read and a true score.
    """
    parts = {
        name: _agreement(predictions, getattr(predictions, column), bootstrap)
        for name, column in SCORES.items()
    }
    return parts if parts["read"] else None


def lobe_agreement(
    predictions: Predictions, bootstrap: Bootstrap
) -> dict[str, dict[str, Any] | None] | None:
    """The score read of each lobe beside its true one.

    Args:
        predictions: Predictions of a classification.
        bootstrap: Replicates and seed of the intervals.

    Returns:
        For each lobe by its name: `cases`, those that have both scores; `mae` and `bias` in points;
        `exact`, the share of the cases that have the true score; `quadratic_kappa` of the scores
        0–5. None of a lobe that no case has, and altogether where no lobe is known.
    """
    results: dict[str, dict[str, Any] | None] = {}
    for index, name in enumerate(LOBES):
        truth, read = predictions.lobe_scores[:, index], predictions.read_lobe_scores[:, index]
        known = np.isfinite(truth) & np.isfinite(read)
        statistic = _of_lobe(truth[known], read[known])
        results[name] = _measured(statistic, predictions, known, ("exact",), bootstrap)
    return results if any(results.values()) else None


def _of_lobe(truth: np.ndarray, read: np.ndarray) -> Statistic:
    """What `lobe_agreement` says of a lobe, from its scores, float64 (M,)."""
    classes = LARGEST_LOBE_SCORE + 1
    cells = np.eye(classes * classes)[(truth * classes + read).astype(int)]
    error = _error(read - truth)

    def statistic(weights: np.ndarray) -> Mapping[str, np.ndarray]:
        agreed = matrix_metrics((weights @ cells).reshape(-1, classes, classes))
        return {
            **error(weights),
            "exact": agreed["accuracy"],
            "quadratic_kappa": agreed["quadratic_kappa"],
        }

    return statistic


def _agreement(
    predictions: Predictions, score: np.ndarray, bootstrap: Bootstrap
) -> dict[str, Any] | None:
    known = np.isfinite(predictions.ct_score) & np.isfinite(score)
    truth, given = predictions.ct_score[known], score[known]
    distance = np.abs(given - truth)
    shares = {f"within_{points}": distance <= points for points in NEAR_POINTS}
    error, icc = _error(given - truth), intraclass(truth, given)

    def statistic(weights: np.ndarray) -> Mapping[str, np.ndarray]:
        values = dict(error(weights))
        for name, near in shares.items():
            values |= mean_of(name, near.astype(np.float64))(weights)
        return {**values, "icc": icc(weights)}

    return _measured(statistic, predictions, known, tuple(shares), bootstrap)


def _error(error: np.ndarray) -> Statistic:
    """Mean distance and mean of an error, as functions of the weights of the cases."""
    distance, bias = mean_of("mae", np.abs(error)), mean_of("bias", error)
    return lambda weights: {**distance(weights), **bias(weights)}


def _measured(
    statistic: Statistic,
    predictions: Predictions,
    known: np.ndarray,
    proportions: Sequence[str],
    bootstrap: Bootstrap,
) -> dict[str, Any] | None:
    """A statistic of the cases that are known, with its intervals; None where there is none."""
    if not known.any():
        return None
    patients = [predictions.patients[row] for row in np.flatnonzero(known)]
    measured = estimate(statistic, patients, bootstrap, proportions=proportions)
    for name in ("mae", "bias"):
        if (metric := measured[name]) is not None:
            metric["unit"] = "points"
    return {"cases": int(known.sum()), **measured}


def intraclass(one: np.ndarray, other: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """ICC(2,1): absolute agreement of two readings of each case, 1 where they are the same.

    The variance between cases, of all variance: a constant difference of the two lowers it, as a
    correlation's would not.

    Args:
        one: Reading of each case, float64 (N,).
        other: The other reading, float64 (N,).

    Returns:
        Function from the weights of the cases, (R, N), a weight saying how often a case is there,
        to float64 (R,); NaN of fewer than two cases, or where all readings are one number.

    Source: Shrout & Fleiss 1979, doi 10.1037/0033-2909.86.2.420.
    """
    middle = np.concatenate([one, other]).mean() if len(one) else 0.0
    total, difference = one + other - 2.0 * middle, other - one

    def of_weights(weights: np.ndarray) -> np.ndarray:
        count = weights.sum(axis=1)
        # Of two readings, the mean squares between cases, between readings and of the rest follow
        # from sum and difference of each case.
        between, error = (_variance(weights, count, values) / 2.0 for values in (total, difference))
        across = count * ratio(weights @ difference, count) ** 2 / 2.0
        spread = between + error + 2.0 * ratio(across - error, count)
        return ratio(between - error, np.where(spread > _NOTHING, spread, 0.0))

    return of_weights


def _variance(weights: np.ndarray, count: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Variance of weighted cases, with their number less one below the line."""
    mean = ratio(weights @ values, count)
    squares = weights @ values**2 - count * mean**2
    return ratio(squares, count - 1.0)
