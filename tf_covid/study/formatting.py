"""What the study's pages say: the names of metrics, their values as text, and the headline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_covid.page.formats import DASH, decimals, interval, moment, version
from tf_covid.study import paper
from tf_covid.study.metrics import mean_class_error

#: The metrics in the order of every table: name, whether in percent, and what it measures.
METRICS = {
    "accuracy": ("Accuracy", True, "Share of the cases that got the right class."),
    "within_one": (
        "Within one class",
        True,
        "Share of the cases that got the right class or the one beside it.",
    ),
    "balanced_accuracy": (
        "Balanced accuracy",
        True,
        "Share that got the right class, mean over the classes: rare ones count as much.",
    ),
    "macro_f1": (
        "Macro F1",
        False,
        "Mean over the classes of F1, which missed cases and false alarms lower. 1: perfect.",
    ),
    "quadratic_kappa": (
        "Quadratic weighted kappa",
        False,
        "Agreement with the truth beyond chance; far misses count more. 1: perfect, 0: chance.",
    ),
    "auc": ("AUC", False, "How well the probabilities order the cases. 1: perfect, 0.5: chance."),
    "mae": (
        "Mean absolute error",
        False,
        "How far the predicted amount lies from the true one, on average.",
    ),
    "dice": (
        "Dice",
        False,
        "Overlap of prediction and truth, mean over the cases. 1: the same.",
    ),
}

#: What AUC means with more than two classes.
MULTICLASS_AUC = "Mean over the classes of each one against all others."

#: What is said of a CT score, and of the scores of single lobes: the same three.
AGREEMENT = {
    "mae": ("Mean absolute error", False, "How many points off, on average."),
    "bias": (
        "Mean error",
        False,
        "Score less truth, on average. Above 0: the disease is put too high.",
    ),
    "within_1": ("Within ±1 point", True, "Share of the cases."),
    "within_3": ("Within ±3 points", True, "Share of the cases."),
    "icc": (
        "ICC(2,1)",
        False,
        "Agreement with the truth; a constant offset lowers it, too. 1: the same numbers.",
    ),
    "exact": ("Exactly right", True, "Share of the cases."),
    "quadratic_kappa": METRICS["quadratic_kappa"],
}

#: The scores of `scores.SCORES`, in words.
SCORES = {"predicted": "the network's score", "read": "read from the lobes"}

TASKS = {
    "severity": "severity of COVID-19, five classes",
    "covid": "COVID-19, yes or no",
    "slices": "diseased axial slices",
    "lungs": "lung masks",
    "lobes": "lobes of the lungs",
}

CITATION = paper.CITATION

#: Of the paper, beside every column of it.
PAPER_CAVEAT = "other patients, so not a contest"


def metric_name(name: str, task: str) -> str:
    """The name of a metric in a table."""
    if name == "mae" and task == "lobes":
        return "Pleural effusion, mean absolute error"
    if name == "mae":
        return (
            "CT score, mean absolute error"
            if task == "severity"
            else "Diseased share, mean absolute error"
        )
    return METRICS[name][0]


def metric_meaning(name: str, task: str) -> str:
    """What a metric says, in a sentence or two."""
    meaning = METRICS[name][2]
    return f"{meaning} {MULTICLASS_AUC}" if name == "auc" and task == "severity" else meaning


def metric_value(metric: Mapping[str, Any] | None, name: str) -> str:
    """The value of a metric, or a dash where it is undefined."""
    return DASH if metric is None else _digits(metric["value"], metric, name) + _unit(name)


def metric_interval(metric: Mapping[str, Any] | None, name: str) -> str:
    """The 95 % interval of a metric, or a dash where there is none."""
    if metric is None or not metric["ci95"]:
        return DASH
    low, high = (_digits(bound, metric, name) for bound in metric["ci95"])
    return interval(low, high, _unit(name))


def agreement_value(metric: Mapping[str, Any] | None, name: str) -> str:
    """A value of `AGREEMENT`; a mean error with its sign."""
    return difference(metric, name) if name == "bias" else metric_value(metric, name)


def difference(metric: Mapping[str, Any] | None, name: str) -> str:
    """A difference with its sign; of fractions in percentage points, without a unit."""
    if metric is None:
        return DASH
    text = _digits(metric["value"], metric, name)
    return text if text[0] == "−" or float(text) == 0.0 else f"+{text}"


def _digits(amount: float, metric: Mapping[str, Any], name: str) -> str:
    """An amount with as many decimals as the largest number beside it needs."""
    if _unit(name):
        return decimals(amount * 100)
    largest = max(abs(bound) for bound in (metric["value"], *(metric["ci95"] or ())))
    return decimals(amount, 2 if name in ("mae", "bias") and largest >= 0.2 else 3)


def _unit(name: str) -> str:
    known = METRICS.get(name) or AGREEMENT.get(name)
    return " %" if known and known[1] else ""


def is_clear(metric: Mapping[str, Any] | None) -> bool:
    """Whether the interval of a difference leaves out 0."""
    return bool(metric and metric["ci95"] and (metric["ci95"][0] > 0.0 or metric["ci95"][1] < 0.0))


def class_error(matrix: Sequence[Sequence[int]]) -> str:
    """The mean distance of prediction and truth, in classes."""
    return decimals(mean_class_error(np.array(matrix)), 2)


def provenance(study: Mapping[str, Any]) -> str:
    """When and on what was measured, by which version; what a study does not say is left out."""
    parts = []
    if study.get("measured_at"):
        parts.append(f"measured {moment(study['measured_at'])}")
    if cohort := study.get("cohort"):
        parts.append(f"{cohort['name']}: {cohort['scans']} scans, {cohort_identity(cohort, True)}")
    if ours := study["versions"].get("tf-covid"):
        parts.append(f"tf-covid {ours}")
    return " · ".join(parts)


def cohort_identity(cohort: Mapping[str, Any], short: bool = False) -> str:
    """What tells a cohort from another one of the same name.

    Args:
        cohort: `cohort` of `study.json`.
        short: The first digits of the hash only.
    """
    if cohort.get("phantom_mark"):
        return f"phantom {cohort['phantom_mark']}"
    sha256 = cohort.get("sha256") or DASH
    return f"sha256 {version(sha256) if short else sha256}"


def caution(cohorts: Sequence[Mapping[str, Any] | None]) -> str:
    """A few words that go wherever a figure goes.

    Args:
        cohorts: Cohorts behind the figure, None where one is not known.
    """
    drawn = all(cohort and cohort.get("phantom_mark") for cohort in cohorts)
    return "synthetic chests · not for diagnosis" if drawn else "research · not for diagnosis"


def headline(study: Mapping[str, Any]) -> list[str]:
    """The result in a few sentences, without any word that needs explaining."""
    cases = study["cases"]
    if study["task"] == "lungs":
        worst = min(study["dice_per_case"].values())
        return [
            f"{cases} lung masks: mean Dice {metric_value(study['dice'], 'dice')},"
            f" worst {worst:.3f}."
        ]
    if study["task"] == "lobes":
        each = ", ".join(
            f"{name} {metric_value(metric, 'dice')}"
            for name, metric in study["dice_per_lobe"].items()
        )
        return [
            f"Lobes of {cases} cases: mean Dice {metric_value(study['dice'], 'dice')}.",
            f"By lobe: {each}.",
        ]
    if study["task"] == "slices":
        return [f"Slices of {cases} cases: AUC {metric_value(study['auc'], 'auc')}."]
    matrix = study["confusion_matrix"]
    right = sum(matrix[row][row] for row in range(len(matrix)))
    if study["task"] == "covid":
        (true_negative, false_positive), (false_negative, true_positive) = matrix
        return [
            f"Of {true_positive + false_negative} cases with COVID-19, {true_positive} were found.",
            (
                f"Of {true_negative + false_positive} without it, {false_positive} were called"
                " positive."
            ),
        ]
    near = sum(
        count
        for row, counts in enumerate(matrix)
        for column, count in enumerate(counts)
        if abs(row - column) <= 1
    )
    far = cases - near
    return [
        f"Of {cases} cases, {right} got the right class, and {near - right} the one beside it.",
        f"{far or 'None'} {'were' if far > 1 else 'was'} two or more classes off.",
    ]
