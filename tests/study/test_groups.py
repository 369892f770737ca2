"""Mann–Whitney with Holm, calibration, ROC."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import auc, brier_score_loss, roc_auc_score

from tests.marks import warnings_are_errors
from tf_covid.study import groups

pytestmark = warnings_are_errors


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1 gives 0.04, 0.06, 0.06, 0.04; never less than
    # the one before.
    assert groups.holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert groups.holm([0.6, 0.7]) == [1.0, 1.0]
    assert groups.holm([]) == []
    assert groups.holm([0.2]) == [0.2]


def test_mann_whitney_by_hand(make: Any) -> None:
    # Predicted 0: scores 0 and 2. Predicted 1: 1, 3, 5. Of six pairs the higher class wins five.
    found = make.answers([0, 0, 1, 1, 1], [0, 0, 1, 1, 1], ct_score=[0, 2, 1, 3, 5])
    first, *others = groups.mann_whitney(found)
    assert first["groups"] == [0, 1]
    assert first["n"] == [2, 3]
    assert first["u"] == 5.0
    assert first["effect"] == pytest.approx(2 * 5 / 6 - 1)
    # Exact: of the 10 ways to choose two ranks, 2 are as extreme upwards: 2 · 2/10.
    assert first["p"] == pytest.approx(0.4)
    assert first["p_holm"] == pytest.approx(0.4), "the only pair with cases"
    assert [row["n"] for row in others] == [[3, 0], [0, 0], [0, 0]]
    for row in others:
        assert row["u"] is row["p"] is row["p_holm"] is row["effect"] is None


def test_mann_whitney_says_which_way(make: Any) -> None:
    predictions = make.severity(noise=0.1)
    assert all(
        row["effect"] > 0.9 and row["p_holm"] < 0.001 for row in groups.mann_whitney(predictions)
    )
    upside_down = make.answers([0, 0, 1, 1], [0, 0, 1, 1], ct_score=[9, 9, 3, 3])
    assert groups.mann_whitney(upside_down)[0]["effect"] == -1.0
    equal = make.answers([0, 0, 1, 1], [0, 0, 1, 1], ct_score=[3, 3, 3, 3])
    assert groups.mann_whitney(equal)[0]["effect"] == 0.0
    assert groups.mann_whitney(equal)[0]["p"] == 1.0


def test_cases_without_a_score_are_left_out(make: Any) -> None:
    found = make.answers([0, 0, 1, 1], [0, 0, 1, 1], ct_score=[0, np.nan, 3, np.nan])
    assert groups.mann_whitney(found)[0]["n"] == [1, 1]


def test_calibration_by_hand(make: Any) -> None:
    # All with 0.8; three of four right: the error is 0.05.
    found = groups.calibration(make.answers([0, 1, 2, 3], [0, 1, 2, 4]), make.quick)
    assert found["ece"]["value"] == pytest.approx(0.05)
    assert found["brier"]["value"] == pytest.approx((3 * 0.2**2 + 0.8**2) / 4)
    (row,) = found["bins"]
    assert (row["n"], row["right"]) == (4, 0.75)
    assert row["low"] < 0.8 <= row["high"] + 1e-9


def test_calibration_is_scikit_learns(make: Any) -> None:
    predictions = make.severity()
    right = predictions.truth == predictions.predicted
    top = predictions.probabilities.max(axis=1)
    found = groups.calibration(predictions, make.quick)
    assert found["brier"]["value"] == pytest.approx(brier_score_loss(right, top))
    assert sum(row["n"] for row in found["bins"]) == len(top)
    for row in found["bins"]:
        inside = (top > row["low"]) & (top <= row["high"])
        assert row["n"] == inside.sum()
        assert row["right"] == pytest.approx(right[inside].mean())
        assert row["right_ci95"][0] <= row["right"] <= row["right_ci95"][1]


def test_the_roc_curve_has_the_area(make: Any) -> None:
    truth, score = np.arange(4000) % 2, np.random.default_rng(0).normal(np.arange(4000) % 2)
    found = groups.roc(truth, score)
    assert found is not None
    assert len(found["false_positive_rate"]) <= 500
    assert found["threshold"][0] is None
    area = auc(found["false_positive_rate"], found["true_positive_rate"])
    assert area == pytest.approx(roc_auc_score(truth, score), abs=1e-3)
    assert groups.roc(np.zeros(5, int), np.linspace(0, 1, 5)) is None
