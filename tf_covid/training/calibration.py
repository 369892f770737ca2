"""A logit of diseased lung made to say how much of the lung is diseased."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
from scipy.optimize import minimize

from tf_covid.cohort.cache import CacheRecord
from tf_covid.training.tasks import MaskObjective

#: Logits are pooled in bins of this width, up to this far from 0; what lies beyond is in the last.
_WIDTH, _REACH = 0.1, 40.0

#: Bounds of scale and offset: where a logit parts healthy from diseased lung without an error, the
#: best scale is infinite.
_SCALES, _OFFSETS = (0.05, 20.0), (-20.0, 20.0)

#: Pull towards (1, 0): where two answers are as good, the one nearer to the network's own.
_PULL = 1e-5


def calibrate_disease(
    network: keras.Model, objective: MaskObjective, records: Sequence[CacheRecord]
) -> tuple[float, float] | None:
    """Scale and offset of the disease logit, from the true lungs in all slices of some records.

    Args:
        network: A lung network with two outputs, lung and diseased lung.
        objective: The objective that it was trained with.
        records: Records that it was not trained on, such as those of validation.

    Returns:
        What to put into `Contract.disease_calibration`; None where there is nothing to learn from:
        one output, no record, or pixels of one kind only.
    """
    if objective.masks < 2:
        return None
    counts: list[np.ndarray] = []
    shares: list[float] = []
    for _, _, pictures, truth in objective.slices_of(records):
        logits = network(pictures, training=False)["logits"].numpy()[..., 1]
        masks = truth["logits"].numpy() > 0
        for values, lungs, disease in zip(logits, masks[..., 0], masks[..., 1], strict=True):
            if lungs.any():
                counts.append(_pooled(values[lungs]))
                shares.append(float(disease[lungs].mean()))
    if not shares or not 0 < np.mean(shares) < 1:
        return None
    bins = np.arange(len(counts[0]))
    return fitted_involvement((bins + 0.5) * _WIDTH - _REACH, np.stack(counts), np.asarray(shares))


def _pooled(logits: np.ndarray) -> np.ndarray:
    """How many of the logits lie in each bin, float64 (B,)."""
    bins = round(2 * _REACH / _WIDTH)
    index = np.floor((logits.astype(np.float64) + _REACH) / _WIDTH)
    return np.bincount(np.clip(index, 0, bins - 1).astype(int), minlength=bins).astype(float)


def fitted_involvement(
    logits: np.ndarray, counts: np.ndarray, shares: np.ndarray
) -> tuple[float, float]:
    """Scale and offset with which the mean sigmoid in a slice is its diseased share.

    Least squares of the square roots, a slice weighed by its pixels: the root gives a point more
    or less in a clean slice the weight of many in a white one. Platt's likelihood of pixels, which
    stood here before, is no measure of this: a few pixels of which a network is sure and wrong
    flatten the curve, and all clean lungs are involved a little.

    Args:
        logits: Logit of each bin, float64 (B,).
        counts: Pixels of each slice by bin, float64 (S, B); none is empty.
        shares: Diseased share of each slice, 0 … 1, float64 (S,).

    Returns:
        (scale, offset); the scale lies within 0.05 … 20, the offset within ±20.
    """
    pixels = counts.sum(axis=1)
    weights, parts = pixels / pixels.sum(), counts / pixels[:, np.newaxis]
    roots = np.sqrt(shares)

    def loss(values: np.ndarray) -> float:
        answer = np.clip(np.exp(values[0]) * logits + values[1], -500, 500)
        means = parts @ (1.0 / (1.0 + np.exp(-answer)))
        pull = _PULL * float(values @ values)
        return float(weights @ np.square(np.sqrt(means) - roots)) + pull

    bounds = [tuple(np.log(_SCALES)), _OFFSETS]
    # Without derivatives: two unknowns, and a root that has none at 0.
    starts = [(0.0, 0.0), (1.0, 0.0), (-1.0, 0.0)]
    best = min(
        (minimize(loss, start, method="Nelder-Mead", bounds=bounds) for start in starts),
        key=lambda result: result.fun,
    )
    return float(np.exp(best.x[0])), float(best.x[1])
