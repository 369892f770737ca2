"""The calibration of the disease logit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tf_covid.training.calibration import calibrate_disease, fitted_logistic


def drawn(scale: float, offset: float, count: int = 200_000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    logits = rng.normal(-1.0, 3.0, count)
    chance = 1.0 / (1.0 + np.exp(-(scale * logits + offset)))
    return logits, rng.random(count) < chance


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (0.4, -1.5), (2.0, 0.7)])
def test_a_known_scale_and_offset_come_back(scale: float, offset: float) -> None:
    logits, truth = drawn(scale, offset)
    values = fitted_logistic(logits, truth.astype(float), np.ones(len(logits)))
    assert values == pytest.approx((scale, offset), abs=0.03)


def test_a_logit_without_an_error_has_a_finite_scale() -> None:
    logits = np.array([-2.0, -1.0, 1.0, 2.0])
    scale, offset = fitted_logistic(logits, np.array([0, 0, 9, 9.0]), np.full(4, 9.0))
    assert 1.0 < scale <= 20.0
    assert offset == pytest.approx(0.0, abs=0.1)


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
    shape = (2, 250, 400)
    objective = _Slices(2, logits.reshape(shape), truth.reshape(shape))
    records: Any = [SimpleNamespace()] * 2
    values = calibrate_disease(network, objective, records)  # type: ignore[arg-type]
    assert values == pytest.approx((0.5, -0.3), abs=0.04)


def test_where_nothing_is_to_be_learned_there_is_no_calibration() -> None:
    shape = (1, 4, 8)
    logits, healthy = np.zeros(shape), np.zeros(shape, bool)
    for objective, count in ((_Slices(1, logits, healthy), 1), (_Slices(2, logits, healthy), 1)):
        records: Any = [SimpleNamespace()] * count
        assert calibrate_disease(network, objective, records) is None  # type: ignore[arg-type]
    assert calibrate_disease(network, _Slices(2, logits, healthy), []) is None  # type: ignore[arg-type]
