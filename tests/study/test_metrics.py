"""Every metric: a case computed by hand, and scikit-learn on the drawn cases themselves."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as reference

from tests.marks import warnings_are_errors
from tf_covid.severity import LABELS
from tf_covid.study import Bootstrap, from_matrix, groups, paper
from tf_covid.study.bootstrap import estimate, wilson
from tf_covid.study.metrics import (
    BinaryAUC,
    confusion_matrix,
    matrix_metrics,
    measure,
    per_class,
    statistic_of,
)

pytestmark = warnings_are_errors


def test_the_papers_matrix_gives_the_papers_figures() -> None:
    found = paper.severity_results()
    assert found["cases"] == 202
    assert found["accuracy"]["value"] == pytest.approx(121 / 202)
    assert round(found["accuracy"]["value"], 3) == 0.599
    assert [round(bound, 3) for bound in found["accuracy"]["ci95"]] == [0.530, 0.664], "Wilson"
    assert round(found["macro_f1"]["value"], 3) == 0.596
    assert round(found["within_one"]["value"], 3) == 0.906
    assert round(found["mean_class_error"], 3) == 0.515
    assert round(found["quadratic_kappa"]["value"], 3) == 0.781
    assert found["auc"] is None, "a matrix does not tell it"
    assert [row["support"] for row in found["per_class"]] == [34, 33, 52, 46, 37]
    for name in ("balanced_accuracy", "macro_f1", "quadratic_kappa"):
        low, high = found[name]["ci95"]
        assert low < found[name]["value"] < high


def test_two_classes_by_hand(make: Any) -> None:
    # Truth 0 0 0 1 1, predicted 0 0 1 1 0: 3 of 5 right.
    found = make.answers([0, 0, 0, 1, 1], [0, 0, 1, 1, 0], task="covid")
    values = {
        name: metric and metric["value"] for name, metric in measure(found, make.quick).items()
    }
    assert values["accuracy"] == pytest.approx(3 / 5)
    assert values["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert values["macro_f1"] == pytest.approx((4 / 6 + 2 / 4) / 2)
    # Chance: (3·3 + 2·2)/25 = 13/25 agree; (3/5 − 13/25) / (1 − 13/25) = 1/6.
    assert values["quadratic_kappa"] == pytest.approx(1 / 6)
    assert values["within_one"] is None, "of two classes it says nothing"
    # Positives have 0.8 and 0.2, negatives 0.2, 0.2, 0.8: of six pairs 2 are won, and 3 are ties.
    assert values["auc"] == pytest.approx((2 + 3 / 2) / 6)
    assert values["mae"] is None


def test_five_classes_by_hand(make: Any) -> None:
    found = make.answers(
        [0, 1, 2, 3, 4],
        [0, 3, 2, 2, 4],
        ct_score=[0, 1, 7, 13, 19],
        predicted_score=[1, 1, 7, 15, 19],
    )
    values = {
        name: metric and metric["value"] for name, metric in measure(found, make.quick).items()
    }
    assert values["accuracy"] == pytest.approx(3 / 5)
    assert values["within_one"] == pytest.approx(4 / 5)
    assert values["balanced_accuracy"] == pytest.approx(3 / 5)
    assert values["macro_f1"] == pytest.approx((1 + 0 + 2 / 3 + 0 + 1) / 5)
    assert values["mae"] == pytest.approx(3 / 5)
    rows = per_class(confusion_matrix(found), LABELS)
    assert rows[1] == {
        "class": 1,
        "label": "mild",
        "precision": None,
        "recall": 0.0,
        "f1": 0.0,
        "support": 1,
    }
    assert rows[2]["precision"] == 0.5
    assert rows[2]["recall"] == 1.0
    assert rows[2]["f1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("task", ["severity", "covid"])
def test_the_replicates_are_scikit_learns(task: str, make: Any) -> None:
    predictions = make.tables[task]()
    classes = predictions.probabilities.shape[1]
    weights = np.random.default_rng(3).multinomial(60, np.full(60, 1 / 60), size=12).astype(float)
    found = statistic_of(predictions)(weights)
    for replicate, times in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(60), times)
        truth, predicted, shares = (
            values[rows]
            for values in (predictions.truth, predictions.predicted, predictions.probabilities)
        )
        several = {"multi_class": "ovr", "labels": range(classes)} if classes > 2 else {}
        expected = {
            "accuracy": reference.accuracy_score(truth, predicted),
            "balanced_accuracy": reference.balanced_accuracy_score(truth, predicted),
            "macro_f1": reference.f1_score(
                truth, predicted, average="macro", labels=range(classes)
            ),
            "quadratic_kappa": reference.cohen_kappa_score(
                truth, predicted, weights="quadratic", labels=np.arange(classes)
            ),
            "auc": reference.roc_auc_score(
                truth, shares if classes > 2 else shares[:, 1], **several
            ),
        }
        if classes > 2:
            expected["within_one"] = np.mean(np.abs(truth - predicted) <= 1)
        for name, value in expected.items():
            assert found[name][replicate] == pytest.approx(value), name


def test_auc_with_many_ties_and_weights() -> None:
    rng = np.random.default_rng(0)
    truth, score = rng.integers(0, 2, 200), rng.integers(0, 5, 200) / 4.0
    weights = rng.integers(0, 4, (5, 200)).astype(float)
    found = BinaryAUC(truth == 1, score)(weights)
    expected = [reference.roc_auc_score(truth, score, sample_weight=row) for row in weights]
    np.testing.assert_allclose(found, expected)


def test_what_is_undefined_is_null_and_not_invented(make: Any) -> None:
    found = measure(make.answers([0, 0, 1], [0, 1, 1]), make.quick)
    assert found["accuracy"]
    assert found["within_one"]
    assert found["quadratic_kappa"]
    assert found["balanced_accuracy"] is found["macro_f1"] is found["auc"] is None, (
        "three classes have no case"
    )
    alone = measure(make.answers([2, 2], [2, 2]), make.quick)
    assert alone["quadratic_kappa"] is None
    assert alone["accuracy"]["value"] == 1.0
    assert np.isnan(matrix_metrics(np.zeros((1, 5, 5)))["accuracy"]).all()


def test_replicates_without_a_class_are_left_out_and_counted(make: Any) -> None:
    # The only case of class 4 is in no draw with a probability of about (1 − 1/20)^20 = 36 %.
    truth = [*range(4)] * 4 + [0, 1, 2, 4]
    found = measure(make.answers(truth, [1, *truth[1:-1], 3]), Bootstrap(1000))
    assert found["accuracy"]["left_out"] == 0
    # Class 3 has four cases and is hardly ever missing: 1.2 %.
    assert 300 < found["balanced_accuracy"]["left_out"] < 420
    assert found["balanced_accuracy"]["ci95"] is not None


def test_a_perfect_result_has_no_interval_without_width(make: Any) -> None:
    found = measure(make.answers([*range(5)] * 8, [*range(5)] * 8), make.quick)
    assert found["accuracy"]["ci95"] == pytest.approx(wilson(40, 40))
    assert found["accuracy"]["ci95"][0] < 0.92
    assert found["macro_f1"]["value"] == 1.0
    assert found["macro_f1"]["ci95"] is None
    one = measure(make.answers([0, 1, 2, 3, 4], [0, 1, 2, 3, 3], patients=["p"] * 5), make.quick)
    assert one["accuracy"]["ci95"] is None, "one patient tells nothing about others"


def test_wilson_by_hand() -> None:
    # Of no successes in n: z² / (n + z²).
    assert wilson(0, 10) == pytest.approx([0.0, 1.959964**2 / (10 + 1.959964**2)])
    assert wilson(121, 202) == pytest.approx([0.5302, 0.6641], abs=1e-4)
    assert wilson(0, 0) is None


@pytest.mark.parametrize(
    ("successes", "total", "level", "interval"),
    [
        (0, 4, 0.95, [0.0, 0.4898908364545973]),
        (3, 4, 0.95, [0.3006418425824019, 0.9544127391902995]),
        (29, 34, 0.95, [0.6987194350454783, 0.9355055855521754]),
        (114, 201, 0.95, [0.4980421088602457, 0.6337671457478957]),
        (7, 7, 0.95, [0.6456695649333126, 1.0]),
        (201, 201, 0.99, [0.9680453685308473, 1.0]),
    ],
)
def test_wilson_gives_the_numbers_of_the_formula_it_replaced(
    successes: int, total: int, level: float, interval: list[float]
) -> None:
    """Written down from `centre ± half` of Wilson's formula, which published studies have."""
    found = wilson(successes, total, level)
    assert found == pytest.approx(interval, abs=1e-14)
    assert found is not None
    assert (found[0] == 0.0) == (successes == 0), "the ends are exact"
    assert (found[1] == 1.0) == (successes == total)


def test_intervals_hold_the_truth_about_as_often_as_they_say(make: Any) -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        right = rng.uniform(size=120) < 0.7
        metric = measure(make.answers(np.zeros(120, int), np.where(right, 0, 1)), Bootstrap(300))[
            "accuracy"
        ]
        held += metric["ci95"][0] <= 0.7 <= metric["ci95"][1]
    assert 0.89 < held / 200 < 0.99


def test_cases_of_one_patient_do_not_count_as_independent(make: Any) -> None:
    # Eight cases each of twenty patients, all right or all wrong.
    truth, predicted = np.zeros(160, int), np.repeat(np.arange(20) % 2, 8)
    width = {}
    for who, patients in (("patients", np.repeat(np.arange(20), 8).astype(str)), ("cases", None)):
        low, high = measure(make.answers(truth, predicted, patients=patients), Bootstrap(500))[
            "accuracy"
        ]["ci95"]
        width[who] = high - low
    assert width["patients"] / width["cases"] == pytest.approx(np.sqrt(8), rel=0.15)


def test_a_seed_draws_the_same_again(make: Any) -> None:
    predictions = make.severity()
    first, again, other = (measure(predictions, Bootstrap(200, seed)) for seed in (4, 4, 5))
    assert first == again != other


def test_chunks_do_not_change_the_draws(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    predictions = make.slices()
    full = measure(predictions, make.quick)
    monkeypatch.setattr("tf_covid.study.bootstrap._CHUNK_CELLS", 1000)
    again = measure(predictions, make.quick)
    for name in full:
        assert again[name]["ci95"] == pytest.approx(full[name]["ci95"])


def test_slices_and_lungs(make: Any) -> None:
    slices = make.slices()
    found = measure(slices, make.quick)
    assert found["auc"]["value"] == pytest.approx(
        reference.roc_auc_score(slices.truth, slices.probability)
    )
    assert found["mae"]["value"] == pytest.approx(
        np.abs(slices.fraction - slices.predicted_fraction).mean()
    )
    lungs = make.lungs()
    dice = measure(lungs, make.quick)["dice"]
    assert dice["value"] == pytest.approx(lungs.dice.mean())
    assert dice["ci95"][0] < dice["value"] < dice["ci95"][1]


def test_any_statistic_can_be_estimated() -> None:
    values = np.arange(10.0)
    found = estimate(
        lambda weights: {"sum": weights @ values}, [str(row) for row in range(10)], Bootstrap(400)
    )
    assert found["sum"] is not None
    assert found["sum"]["value"] == 45.0


def test_from_matrix_is_what_the_cases_give(make: Any) -> None:
    predictions = make.severity()
    matrix = confusion_matrix(predictions)
    found, expected = from_matrix(matrix, LABELS, make.quick), measure(predictions, make.quick)
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "quadratic_kappa", "within_one"):
        assert found[name]["value"] == pytest.approx(expected[name]["value"])
    assert found["mean_class_error"] == pytest.approx(
        np.abs(predictions.truth - predictions.predicted).mean()
    )


def test_subgroups_add_up_and_small_ones_are_null(make: Any) -> None:
    predictions = make.severity()
    found = groups.subgroups(predictions, make.quick)
    for rows in found.values():
        assert sum(row["n"] for row in rows) == len(predictions.cases)
    assert [row["group"] for row in found["sex"]] == ["F", "M"]
    assert [row["group"] for row in found["age"]] == ["<40", "40-59", "60-79", "80+"]
    assert [row["group"] for row in found["site"]] == ["A", "B", "unknown"]
    women = np.array([sex == "F" for sex in predictions.sex])
    right = (predictions.truth == predictions.predicted)[women].mean()
    assert found["sex"][0]["accuracy"]["value"] == pytest.approx(right)
    few = groups.subgroups(make.answers([0, 1], [0, 1], age=[39.9, 40.0]), make.quick)
    assert few["sex"] is few["site"] is None
    assert [(row["group"], row["n"], row["macro_f1"]) for row in few["age"]] == [
        ("<40", 1, None),
        ("40-59", 1, None),
    ]


def test_no_warning_about_anything(make: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for table in make.tables.values():
            make.study(table())
        make.study(make.answers([0], [4]))
