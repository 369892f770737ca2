"""The calibration of the disease logit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from sklearn.linear_model import LogisticRegression

from tf_covid.training.calibration import calibrate_disease, fitted_involvement


def drawn(scale: float, offset: float, slices: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Logits and disease of slices (S, P), whose extent differs from slice to slice."""
    rng = np.random.default_rng(5)
    logits = rng.normal(np.linspace(-6.0, 3.0, slices)[:, np.newaxis], 2.0, (slices, 5_000))
    chance = 1.0 / (1.0 + np.exp(-(scale * logits + offset)))
    return logits, rng.random(logits.shape) < chance


def pooled(logits: np.ndarray, disease: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    edges = np.linspace(-30.0, 30.0, 601)
    counts = np.stack([np.histogram(row, edges)[0] for row in logits]).astype(float)
    return (edges[1:] + edges[:-1]) / 2, counts, disease.mean(axis=1)


def involvement(logits: np.ndarray, scale: float, offset: float) -> np.ndarray:
    means: np.ndarray = (1.0 / (1.0 + np.exp(-(scale * logits + offset)))).mean(axis=1)
    return means


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (0.4, -1.5), (2.0, 0.7)])
def test_a_known_scale_and_offset_come_back(scale: float, offset: float) -> None:
    values = fitted_involvement(*pooled(*drawn(scale, offset)))
    assert values == pytest.approx((scale, offset), abs=0.1)


def test_a_logit_without_an_error_has_a_finite_scale() -> None:
    logits = np.array([-2.0, -1.0, 1.0, 2.0])
    scale, offset = fitted_involvement(
        logits, np.array([[8, 2, 0, 0], [5, 0, 0, 5], [0, 0, 3, 7.0]]), np.array([0, 0.5, 1.0])
    )
    assert 1.0 < scale <= 20.0
    assert abs(offset) < scale


def test_sure_errors_that_cancel_out_do_not_involve_the_clean() -> None:
    """At borders a network is sure and wrong both ways; the diseased share is right all the same.

    The likelihood of pixels would flatten the curve: logistic regression involves clean slices."""
    rng = np.random.default_rng(3)
    logits, disease = drawn(2.0, 0.0)
    for row in disease[15:]:
        ill, well = np.flatnonzero(row), np.flatnonzero(~row)
        count = min(len(ill), len(well)) // 5
        row[rng.choice(ill, count, replace=False)] = False
        row[rng.choice(well, count, replace=False)] = True
    clean = slice(0, 10)
    truth = disease[clean].mean(axis=1)
    fitted = involvement(logits, *fitted_involvement(*pooled(logits, disease)))[clean]
    pixels = LogisticRegression(C=1e9).fit(logits.reshape(-1, 1), disease.ravel())
    likeliest = involvement(logits, pixels.coef_[0, 0], pixels.intercept_[0])[clean]
    assert np.abs(fitted - truth).max() < 0.01
    assert np.abs(likeliest - truth).max() > 0.03


class _Slices:
    """An objective whose pictures are the logits themselves."""

    def __init__(self, masks: int, logits: np.ndarray, disease: np.ndarray) -> None:
        lungs = np.ones_like(disease)
        lungs[..., ::2] = False
        self.masks = masks
        self._truth = np.stack([lungs, disease & lungs], axis=-1).astype(np.float32)
        self._logits = np.stack([logits, np.where(lungs, logits, 30.0)], axis=-1)

    def slices_of(self, records: Any) -> Any:
        for index in range(len(records)):
            yield index, {}, tf.constant(self._logits), {"logits": tf.constant(self._truth)}


def network(pictures: Any, training: bool = False) -> dict[str, Any]:
    return {"logits": pictures}


def test_pixels_within_the_lungs_decide() -> None:
    logits, truth = drawn(0.5, -0.3)
    shape = (40, 50, 100)
    objective = _Slices(2, logits.reshape(shape), truth.reshape(shape))
    records: Any = [SimpleNamespace()] * 2
    values = calibrate_disease(network, objective, records)  # type: ignore[arg-type]
    assert values == pytest.approx((0.5, -0.3), abs=0.1)


def test_where_nothing_is_to_be_learned_there_is_no_calibration() -> None:
    shape = (1, 4, 8)
    logits, healthy = np.zeros(shape), np.zeros(shape, bool)
    for objective, count in ((_Slices(1, logits, healthy), 1), (_Slices(2, logits, healthy), 1)):
        records: Any = [SimpleNamespace()] * count
        assert calibrate_disease(network, objective, records) is None  # type: ignore[arg-type]
    assert calibrate_disease(network, _Slices(2, logits, healthy), []) is None  # type: ignore[arg-type]
