"""Bootstrap intervals over patients, each drawn with all their cases: these are not independent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Cells of one chunk of weights (replicates × cases) at a time: 32 MB.
_CHUNK_CELLS = 4_000_000
#: Percentiles of fewer replicates than this are noise.
_MIN_REPLICATES = 50

#: From weights, float64 (R, N), to a value a replicate, float64 (R,), by name; NaN where undefined.
Statistic = Callable[[np.ndarray], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made.

    Args:
        replicates: Number of times that the patients are drawn again.
        seed: Seed of the draws; the same seed draws the same patients.
        level: Fraction of the replicates that an interval holds.
    """

    replicates: int = 2000
    seed: int = 0
    level: float = 0.95

    def draws(self, patients: int) -> np.ndarray:
        """Number of times that each patient is drawn.

        Args:
            patients: Number of patients.

        Returns:
            int64 (replicates, patients); every row sums to `patients`.
        """
        rng = np.random.default_rng(self.seed)
        return rng.multinomial(patients, np.full(patients, 1.0 / patients), size=self.replicates)


def estimate(
    statistic: Statistic,
    patients: Sequence[str],
    bootstrap: Bootstrap,
    *,
    difference: bool = False,
    proportions: Sequence[str] = (),
) -> dict[str, dict[str, Any] | None]:
    """The value of every metric of a statistic, with its percentile interval.

    Args:
        statistic: Function from the weights of the cases to values; a weight says how often a case
            is there.
        patients: Patient of each case, N texts.
        bootstrap: Replicates, seed and level.
        difference: True where the values are differences: an interval without width then says that
            there is none.
        proportions: Values that are fractions of cases. One that is 0 or 1 has Wilson's interval,
            with the patients as its trials: drawing again what is all right cannot give anything
            else.

    Returns:
        By name `{"value", "ci95", "left_out"}`, or None where the metric is undefined. `left_out`
        counts the replicates in which it is. `ci95` is None where it would be no answer: a single
        patient, hardly a replicate left, or all replicates alike (a perfect result stays perfect
        however often it is drawn).
    """
    names, index = np.unique(np.asarray(patients), return_inverse=True)
    values = {name: float(value[0]) for name, value in statistic(np.ones((1, len(index)))).items()}
    draws = bootstrap.draws(len(names))
    step = max(1, _CHUNK_CELLS // len(index))
    chunks = [
        statistic(draws[start : start + step, index].astype(np.float64))
        for start in range(0, len(draws), step)
    ]
    estimates: dict[str, dict[str, Any] | None] = {}
    for name, value in values.items():
        if not math.isfinite(value):
            estimates[name] = None
            continue
        replicates = np.concatenate([chunk[name] for chunk in chunks])
        interval = _interval(replicates[np.isfinite(replicates)], bootstrap.level, difference)
        if len(names) < 2:
            interval = None
        if name in proportions and value in (0.0, 1.0):
            interval = wilson(round(value * len(names)), len(names), bootstrap.level)
        left_out = int((~np.isfinite(replicates)).sum())
        estimates[name] = {"value": value, "ci95": interval, "left_out": left_out}
    return estimates


def _interval(replicates: np.ndarray, level: float, difference: bool) -> list[float] | None:
    if len(replicates) < _MIN_REPLICATES or (not difference and np.ptp(replicates) < 1e-12):
        return None
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(replicates, (tail, 100.0 - tail))
    return [float(low), float(high)]


def wilson(successes: int, total: int, level: float = 0.95) -> list[float] | None:
    """Wilson's score interval of a proportion, or None of nothing.

    Args:
        successes: Number of cases with the property, 0 to `total`.
        total: Number of cases.
        level: Probability that the interval covers the true proportion.

    Source: Wilson 1927, doi 10.1080/01621459.1927.10502953.
    """
    if total <= 0:
        return None
    from scipy.stats import binomtest

    low, high = binomtest(successes, total).proportion_ci(level, method="wilson")
    return [float(low), float(high)]
