"""Platt scaling: a logit of diseased lung made to say how much of the lung is diseased."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

from tf_covid.cohort.cache import CacheRecord
from tf_covid.training.tasks import MaskObjective

#: Logits are pooled in bins of this width, up to this far from 0; what lies beyond is in the last.
_WIDTH, _REACH = 0.05, 40.0

#: Bounds of the scale: where a logit parts healthy from diseased lung without an error, the best
#: one is infinite.
_SCALES = (0.05, 20.0)


def calibrate_disease(
    network: keras.Model, objective: MaskObjective, records: Sequence[CacheRecord]
) -> tuple[float, float] | None:
    """Scale and offset of the disease logit, from all pixels of the true lungs of some records.

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
    bins = round(2 * _REACH / _WIDTH)
    pixels, diseased, sums = (np.zeros(bins) for _ in range(3))
    for _, _, pictures, truth in objective.slices_of(records):
        logits = network(pictures, training=False)["logits"].numpy()[..., 1]
        masks = truth["logits"].numpy() > 0
        logit, disease = logits[masks[..., 0]].astype(np.float64), masks[..., 1][masks[..., 0]]
        logit = np.clip(logit, -_REACH, _REACH)
        bin_index = np.minimum(((logit + _REACH) / _WIDTH).astype(int), bins - 1)
        pixels += np.bincount(bin_index, minlength=bins)
        diseased += np.bincount(bin_index[disease], minlength=bins)
        sums += np.bincount(bin_index, weights=logit, minlength=bins)
    if not 0 < diseased.sum() < pixels.sum():
        return None
    filled = pixels > 0
    return fitted_logistic(sums[filled] / pixels[filled], diseased[filled], pixels[filled])


def fitted_logistic(
    logits: np.ndarray, positive: np.ndarray, total: np.ndarray
) -> tuple[float, float]:
    """Scale and offset with which the sigmoid of a logit is likeliest the share of positives.

    Newton's method on the mean log-likelihood, with a trace of pull towards (1, 0).

    Args:
        logits: Logit of each bin, float64 (B,).
        positive: How many of a bin are positive, (B,).
        total: How many there are in it, (B,).

    Returns:
        (scale, offset); the scale lies within 0.05 … 20.
    """
    weight = total / total.sum()
    fraction = positive / total
    design = np.stack([logits, np.ones_like(logits)], axis=1)
    start, pull = np.array([1.0, 0.0]), 1e-6

    def loss(values: np.ndarray) -> float:
        answer = design @ values
        entropy = np.logaddexp(0.0, answer) - fraction * answer
        return float(weight @ entropy + pull * np.square(values - start).sum())

    values = start
    for _ in range(100):
        shares = 1.0 / (1.0 + np.exp(-np.clip(design @ values, -500, 500)))
        gradient = design.T @ (weight * (shares - fraction)) + 2 * pull * (values - start)
        curvature = (design * (weight * shares * (1.0 - shares))[:, np.newaxis]).T @ design
        step = np.linalg.solve(curvature + 2 * pull * np.eye(2), gradient)
        size = 1.0
        while loss(values - size * step) > loss(values) and size > 1e-6:
            size /= 2.0
        values = values - size * step
        if np.abs(size * step).max() < 1e-9:
            break
    return float(np.clip(values[0], *_SCALES)), float(values[1])
