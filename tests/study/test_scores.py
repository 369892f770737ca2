"""CT scores beside the true one: the network's, and that read from the lobes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from tests.marks import warnings_are_errors
from tf_covid.severity import LOBES
from tf_covid.study import compare
from tf_covid.study.bootstrap import wilson
from tf_covid.study.scores import intraclass, lobe_agreement, score_agreement

pytestmark = warnings_are_errors


def values(part: dict[str, Any]) -> dict[str, Any]:
    return {name: metric["value"] for name, metric in part.items() if isinstance(metric, dict)}


def test_agreement_of_two_scores_by_hand(make: Any) -> None:
    found = score_agreement(
        make.answers(
            [0, 1, 2, 3],
            [0, 1, 2, 3],
            ct_score=[0, 6, 12, 18],
            predicted_score=[0.5, 7.5, 12.0, np.nan],
            read_score=[1.0, 6.0, 8.0, 15.0],
        ),
        make.quick,
    )
    assert found is not None
    network, read = found["predicted"], found["read"]
    assert network is not None
    assert read is not None
    assert (network["cases"], read["cases"]) == (3, 4)
    expected = {"mae": 2 / 3, "bias": 2 / 3, "within_1": 2 / 3, "within_3": 1.0}
    for name, value in expected.items():
        assert values(network)[name] == pytest.approx(value)
    expected = {"mae": 8 / 4, "bias": -6 / 4, "within_1": 2 / 4, "within_3": 3 / 4}
    for name, value in expected.items():
        assert values(read)[name] == pytest.approx(value)
    assert network["within_3"]["ci95"] == wilson(3, 3)
    assert network["mae"]["unit"] == "points"
    # Sums 1 12 20 33: their variance is 545/3, between cases 545/6. Differences 1 0 −4 −3: variance
    # 17/3, rest 17/6. Between readings 4·1.5²/2 = 4.5.
    icc = (545 / 6 - 17 / 6) / (545 / 6 + 17 / 6 + 2 * (4.5 - 17 / 6) / 4)
    assert values(read)["icc"] == pytest.approx(icc)


def anova(one: np.ndarray, other: np.ndarray) -> float:
    """ICC(2,1) from the sums of squares of Shrout & Fleiss."""
    table = np.stack([one, other], axis=1)
    n, k = table.shape
    rows, columns, total = table.mean(axis=1), table.mean(axis=0), table.mean()
    between = k * ((rows - total) ** 2).sum() / (n - 1)
    readings = n * ((columns - total) ** 2).sum() / (k - 1)
    rest = ((table - rows[:, None] - columns + total) ** 2).sum() / ((n - 1) * (k - 1))
    return float((between - rest) / (between + (k - 1) * rest + k * (readings - rest) / n))


def test_a_weight_says_how_often_a_case_is_there() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 26, 30).astype(float)
    read = np.clip(truth + rng.normal(1.0, 3.0, 30), 0, 25)
    weights = rng.multinomial(30, np.full(30, 1 / 30), size=20)
    found = intraclass(truth, read)(weights.astype(float))
    for times, value in zip(weights, found, strict=True):
        rows = np.repeat(np.arange(30), times)
        assert value == pytest.approx(anova(truth[rows], read[rows]))


def test_where_no_agreement_is_defined() -> None:
    one, same = np.array([3.0]), np.full(4, 7.0)
    assert np.isnan(intraclass(one, one)(np.ones((1, 1))))
    assert np.isnan(intraclass(same, same)(np.ones((1, 4))))
    assert intraclass(np.arange(4.0), np.arange(4.0))(np.ones((1, 4))) == pytest.approx(1.0)
    # A constant difference is no agreement, though the correlation is 1.
    assert intraclass(np.arange(4.0), np.arange(4.0) + 5)(np.ones((1, 4))) < 0.2


def test_each_lobe_by_hand(make: Any) -> None:
    truth, read = np.full((5, 5), np.nan), np.full((5, 5), np.nan)
    truth[:, 0], read[:, 0] = [0, 1, 2, 5, 3], [0, 2, 2, 3, np.nan]
    truth[:, 1] = 1.0
    read[:, 2] = 1.0
    truth[:, 3] = read[:, 3] = [0, 1, 2, 3, 4]
    found = lobe_agreement(
        make.answers([0] * 5, [0] * 5, lobe_scores=truth, read_lobe_scores=read), make.quick
    )
    assert found is not None
    assert list(found) == list(LOBES)
    assert found["right middle"] is found["right lower"] is found["left lower"] is None
    upper = found["right upper"]
    assert upper is not None
    assert upper["cases"] == 4
    assert values(upper)["exact"] == pytest.approx(2 / 4)
    assert values(upper)["mae"] == pytest.approx(3 / 4)
    assert values(upper)["bias"] == pytest.approx(-1 / 4)
    kappa = cohen_kappa_score([0, 1, 2, 5], [0, 2, 2, 3], weights="quadratic", labels=range(6))
    assert values(upper)["quadratic_kappa"] == pytest.approx(kappa)
    perfect = found["left upper"]
    assert perfect is not None
    assert perfect["exact"]["ci95"] == wilson(5, 5)
    assert values(perfect)["quadratic_kappa"] == 1.0


def test_a_run_without_a_lobe_model_has_neither(make: Any, finished: Callable[..., Path]) -> None:
    truth = np.tile([0.0, 1, 2, 3, 4], (60, 1))
    for predictions in (make.severity(), make.covid(), make.severity(lobe_scores=truth)):
        assert score_agreement(predictions, make.quick) is None
        assert lobe_agreement(predictions, make.quick) is None
    page = (finished(make.severity()) / "study.html").read_text("utf-8")
    assert "read from the lobes" not in page
    # Read, and nothing to compare with.
    assert score_agreement(make.answers([0], [0], read_score=[3.0]), make.quick) is None


@pytest.mark.usefixtures("undrawn")
def test_study_and_comparison_show_both_scores(
    make: Any, finished: Callable[..., Path], tmp_path: Path
) -> None:
    predictions = make.read()
    run, plain = finished(predictions), finished(make.severity(), "plain")
    study = json.loads((run / "study.json").read_text("utf-8"))
    assert study["score_agreement"]["read"]["cases"] == 58
    assert study["score_agreement"]["predicted"]["cases"] == 60
    assert study["score_agreement"]["predicted"]["mae"]["value"] == study["mae"]["value"]
    assert [part["cases"] for part in study["lobe_agreement"].values()] == [58, 57, 58, 58, 58]
    page = (run / "study.html").read_text("utf-8")
    for said in ("read from the lobes", "ICC(2,1)", "Within ±3 points", "right middle", "Exactly"):
        assert said in page
    assert "nan" not in page.lower().replace("finan", "")
    found = compare([run, plain], tmp_path / "out", make.quick)
    for key in ("score_agreement", "lobe_agreement"):
        assert found["runs"][0][key] == study[key]
    assert found["runs"][1]["score_agreement"] is found["runs"][1]["lobe_agreement"] is None
    page = (tmp_path / "out" / "comparison.html").read_text("utf-8")
    assert "run: read from the lobes" in page
    assert "Lobe by lobe, read: run" in page
    assert "plain: read" not in page
