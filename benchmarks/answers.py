"""What several severity models, and their mean, say about many chests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from cases import DrawnCase
from tables import NONE, correlation, mean, number, percent, table

from tf_covid.pipeline import gate, refuses
from tf_covid.severity import LABELS

if TYPE_CHECKING:
    from tf_covid.local import LocalModels

TOGETHER = "mean of all"
CLASSES = range(len(LABELS))

#: Between which shares of diseased lung, in percent, chests are counted together.
EXTENTS = (0.0, 0.5, 1.0, 2.0, 5.0, 100.0)


@dataclass(frozen=True)
class Answers:
    """The answers about N chests that were not refused, and their truth.

    Args:
        probabilities: (N, 5) of each model.
        scores: (N,) CT scores of each model; NaN where it has none.
        classes: (N,), the truth.
        true_scores: (N,), the truth.
        involved: (N,) percent of the true lungs that lie in lesions.
        settings: What was drawn about each chest, its slice thickness among it.
        refused: How many chests had too little lung for an answer.
    """

    probabilities: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]
    classes: np.ndarray
    true_scores: np.ndarray
    involved: np.ndarray
    settings: list[dict[str, Any]]
    refused: int

    def found(self, model: str) -> np.ndarray:
        """The class that a model answers, (N,)."""
        return self.probabilities[model].argmax(axis=1)


def names(models: LocalModels) -> list[str]:
    """Every model, and their mean where there are several."""
    alone = [member.model.name for member in models.members]
    return [*alone, *([TOGETHER] if len(alone) > 1 else [])]


def answer(
    models: LocalModels,
    hu: np.ndarray,
    probability: np.ndarray,
    spacing_mm: tuple[float, float, float],
) -> tuple[np.ndarray, np.ndarray] | None:
    """Probabilities (models, 5) and CT scores (models,), the mean last.

    None where the pipeline refuses the scan.
    """
    if refuses(gate(models, probability, spacing_mm)):
        return None
    answers = models.classify(hu, probability)
    shares = np.array([one.probabilities for one in answers])
    scores = np.array([np.nan if one.ct_score is None else one.ct_score for one in answers])
    if len(answers) > 1:
        shares = np.concatenate([shares, shares.mean(axis=0, keepdims=True)])
        # As the pipeline does it: the mean of the networks that have a score.
        held = scores[np.isfinite(scores)]
        scores = np.append(scores, held.mean() if len(held) else np.nan)
    return shares, scores


def ask(models: LocalModels, cases: Iterable[DrawnCase]) -> Answers:
    """Every model's answer about every case."""
    shares, scores, truths, settings, refused = [], [], [], [], 0
    for case in cases:
        found = answer(models, case.hu, models.segment(case.hu).probability, case.spacing_mm)
        if found is None:
            refused += 1
            continue
        shares.append(found[0])
        scores.append(found[1])
        truths.append((case.severity, case.ct_score, 100.0 * np.mean(case.lesions[case.lungs])))
        settings.append({**case.settings, "slice_thickness_mm": case.spacing_mm[0]})
    if not shares:
        raise SystemExit("every chest was refused: is this lung model trained?")
    named = names(models)
    classes, true_scores, involved = (np.array(column) for column in zip(*truths, strict=True))
    return Answers(
        probabilities=dict(zip(named, np.stack(shares, axis=1), strict=True)),
        scores=dict(zip(named, np.stack(scores, axis=1), strict=True)),
        classes=classes,
        true_scores=true_scores.astype(float),
        involved=involved,
        settings=settings,
        refused=refused,
    )


def agreement_table(answers: Answers) -> str:
    """A row a model: how its classes and CT scores agree with the truth."""
    header = (
        *("model", "quadratic kappa [95 %]", "accuracy", "within one class"),
        *("CT score: mean error", "within ±3", "r"),
    )
    return table(header, ([model, *_agreement(answers, model)] for model in answers.probabilities))


def _agreement(answers: Answers, model: str) -> list[str]:
    away = np.abs(answers.found(model) - answers.classes)
    errors = np.abs(answers.scores[model] - answers.true_scores)
    low, high = _kappa_interval(answers.classes, answers.found(model))
    return [
        f"{number(_kappa(answers.classes, answers.found(model)))} [{number(low)}, {number(high)}]",
        number(mean(away == 0)),
        number(mean(away <= 1)),
        number(mean(errors)),
        percent(mean(errors <= 3)) if np.isfinite(errors).all() else NONE,
        number(correlation(answers.scores[model], answers.true_scores), 3),
    ]


def _kappa(truth: np.ndarray, found: np.ndarray) -> float:
    """Cohen's kappa with quadratic weights; NaN where there is only one class."""
    from sklearn.metrics import cohen_kappa_score

    if len(set(truth) | set(found)) < 2:
        return float("nan")
    return float(cohen_kappa_score(truth, found, weights="quadratic", labels=CLASSES))


def _kappa_interval(truth: np.ndarray, found: np.ndarray, draws: int = 1000) -> tuple[float, float]:
    """The middle 95 % of kappa over chests drawn again, with replacement."""
    rng = np.random.default_rng(0)
    chosen = (rng.integers(0, len(truth), len(truth)) for _ in range(draws))
    low, high = np.nanpercentile([_kappa(truth[one], found[one]) for one in chosen], (2.5, 97.5))
    return float(low), float(high)


def recall_table(answers: Answers) -> str:
    """A row a model: of the chests of each class, the share that it answers with this class."""
    counts = [int((answers.classes == one).sum()) for one in CLASSES]
    header = (
        "model",
        *(f"{one} {LABELS[one]} (n = {count})" for one, count in zip(CLASSES, counts, strict=True)),
    )
    return table(
        header,
        (
            [
                model,
                *(
                    number(mean(answers.found(model)[answers.classes == one] == one))
                    for one in CLASSES
                ),
            ]
            for model in answers.probabilities
        ),
    )


def missed_table(answers: Answers) -> str:
    """A row for each extent of disease: how many of these chests are answered “no findings”.

    Args:
        answers: Of chests with disease and without; those without do not count.
    """
    header = (
        "of the lungs diseased",
        "chests",
        *(f"{model}: {LABELS[0]}" for model in answers.probabilities),
    )
    rows = []
    for low, high in pairwise(EXTENTS):
        there = (answers.classes > 0) & (answers.involved > low) & (answers.involved <= high)
        counts = (int((answers.found(model)[there] == 0).sum()) for model in answers.probabilities)
        rows.append([f"over {low:g} to {high:g} %", int(there.sum()), *counts])
    return table(header, rows)


def confusion_tables(answers: Answers) -> list[str]:
    """A table a model: rows are the truth, columns the answer."""
    from sklearn.metrics import confusion_matrix

    def one(model: str) -> str:
        counts: Sequence[Sequence[int]] = confusion_matrix(
            answers.classes, answers.found(model), labels=CLASSES
        )
        header = (f"{model}: truth", *(f"answered {number}" for number in CLASSES))
        return table(
            header,
            (
                [f"{truth} {LABELS[truth]}", *row]
                for truth, row in zip(CLASSES, counts, strict=True)
            ),
        )

    return [one(model) for model in answers.probabilities]
