"""Small studies of every task, made up."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tf_covid.study import (
    AnyPredictions,
    Bootstrap,
    LobePredictions,
    LungPredictions,
    Predictions,
    SlicePredictions,
    build_study,
    figures,
    violins,
    write_predictions,
    write_study,
)

NOTE = "Synthetic cohort: phantoms only."
COHORT = {"name": "cohort.csv", "sha256": "0123456789abcdef" * 4, "scans": 60}
QUICK = Bootstrap(replicates=200, seed=1)


def answers(
    truth: Any,
    predicted: Any,
    *,
    task: str = "severity",
    patients: Any = None,
    sure: float = 0.8,
    **columns: Any,
) -> Predictions:
    """Predictions with these classes, each of probability `sure`; what is not given is unknown."""
    n, classes = len(truth), 5 if task == "severity" else 2
    probabilities = np.full((n, classes), (1.0 - sure) / (classes - 1))
    probabilities[np.arange(n), predicted] = sure
    cases = tuple(f"case-{row}" for row in range(n))
    given: dict[str, Any] = {
        "cases": cases,
        "patients": tuple(patients) if patients is not None else cases,
        "folds": np.zeros(n),
        "truth": truth,
        "probabilities": probabilities,
        "sex": (None,) * n,
        "site": (None,) * n,
        **{name: np.full(n, np.nan) for name in ("ct_score", "predicted_score", "age")},
        **unread(n),
    }
    return Predictions(task=task, **(given | columns))  # type: ignore[arg-type]


def severity(seed: int = 0, noise: float = 2.0, n: int = 60, **columns: Any) -> Predictions:
    """The same cases for every seed, answered with errors of their own."""
    cohort = np.random.default_rng(0)
    truth = np.arange(n) % 5
    low, high = np.array([0, 1, 7, 13, 19]), np.array([0, 6, 12, 18, 25])
    score = cohort.integers(low[truth], high[truth] + 1).astype(float)
    score_given = np.clip(score + np.random.default_rng(seed).normal(0.0, noise, n), 0, 25)
    weight = np.exp(-(((score_given[:, None] - (-1.0, 3.5, 9.5, 15.5, 22.0)) / 3.0) ** 2))
    given: dict[str, Any] = {
        "task": "severity",
        "cases": tuple(f"case-{row:03d}" for row in range(n)),
        "patients": tuple(f"patient {row // 2}" for row in range(n)),
        "folds": np.arange(n) // 2 % 4,
        "truth": truth,
        "probabilities": weight / weight.sum(axis=1, keepdims=True),
        "ct_score": score,
        "predicted_score": score_given,
        "sex": tuple("F" if row % 2 else "M" for row in range(n)),
        "age": cohort.uniform(20, 95, n),
        "site": tuple(None if row % 7 == 0 else "AB"[row % 2] for row in range(n)),
        **unread(n),
    }
    return Predictions(**(given | columns))


def read(seed: int = 0, n: int = 60) -> Predictions:
    """`severity` behind a lobe model: true lobe scores, and read ones that are a point off at most.

    One case lacks its middle lobe, one has nothing read, one has no truth.
    """
    made = severity(seed, n=n)
    rng = np.random.default_rng(4)
    truth = np.array([rng.permutation(_shared(int(total))) for total in made.ct_score], float)
    lobes = np.clip(truth + rng.integers(-1, 2, truth.shape), 0, 5)
    lobes[0, 1] = lobes[1] = truth[2] = np.nan
    return dataclasses.replace(
        made, lobe_scores=truth, read_lobe_scores=lobes, read_score=lobes.sum(axis=1)
    )


def _shared(total: int) -> list[int]:
    return [total // 5 + (lobe < total % 5) for lobe in range(5)]


def unread(n: int) -> dict[str, Any]:
    """Columns of a study without a lobe model."""
    return {
        "read_score": np.full(n, np.nan),
        **{name: np.full((n, 5), np.nan) for name in ("lobe_scores", "read_lobe_scores")},
    }


def covid(seed: int = 0, n: int = 60) -> Predictions:
    """Half of the cases positive; most are found."""
    truth = np.arange(n) % 2
    positive = 1.0 / (
        1.0 + np.exp(-2.0 * np.random.default_rng(seed).normal(2.0 * truth - 1.0, 0.8))
    )
    return answers(
        truth, truth, task="covid", probabilities=np.stack([1.0 - positive, positive], axis=1)
    )


def lungs(n: int = 30) -> LungPredictions:
    """Masks of most lungs, well met."""
    cases = tuple(f"case-{row}" for row in range(n))
    dice = np.random.default_rng(0).beta(40, 2, n)
    return LungPredictions(
        cases, cases, np.arange(n) % 4, dice, ("F", None) * (n // 2), np.full(n, 50.0), (None,) * n
    )


def lobes(n: int = 30) -> LobePredictions:
    """Five lobes each, but for one that lacks its middle lobe and one without tissues."""
    cases = tuple(f"case-{row}" for row in range(n))
    rng = np.random.default_rng(3)
    dice, error = rng.beta(40, 4, (n, 5)), rng.normal(0.0, 30.0, n)
    dice[0, 1] = error[1] = np.nan
    return LobePredictions(
        cases,
        cases,
        np.arange(n) % 4,
        np.nanmean(dice, axis=1),
        dice,
        error,
        ("F", None) * (n // 2),
        np.full(n, 50.0),
        (None,) * n,
    )


def slices(cases: int = 12, each: int = 10) -> SlicePredictions:
    """Every other slice diseased."""
    n = cases * each
    rng, row = np.random.default_rng(0), np.arange(n)
    truth = row % 2
    names = tuple(f"case-{number // each}" for number in range(n))
    return SlicePredictions(
        names,
        names,
        row // each % 4,
        row % each,
        truth,
        np.clip(0.4 * truth + rng.uniform(0, 0.6, n), 0, 1),
        truth * 0.3,
        truth * 0.3 + rng.normal(0, 0.05, n),
    )


TABLES: dict[str, Callable[[], AnyPredictions]] = {
    "severity": severity,
    "covid": covid,
    "lungs": lungs,
    "lobes": lobes,
    "slices": slices,
}


def study_of(predictions: AnyPredictions, **options: Any) -> dict[str, Any]:
    """`build_study` with the rest filled in."""
    given: dict[str, Any] = {
        "model": "i3d",
        "init": "scratch",
        "config": {"epochs": 3},
        "seconds": 61.0,
        "versions": {"keras": "3.10"},
        "note": NOTE,
        "cohort": COHORT,
        "measured_at": "2026-11-28T17:20:15Z",
        "bootstrap": QUICK,
    }
    return build_study(predictions, **(given | options))


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """The makers above: test files of this folder cannot import each other."""
    return SimpleNamespace(
        answers=answers,
        severity=severity,
        read=read,
        covid=covid,
        lungs=lungs,
        lobes=lobes,
        slices=slices,
        study=study_of,
        note=NOTE,
        cohort=COHORT,
        quick=QUICK,
        tables=TABLES,
    )


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every figure is one white point: drawing takes most of the time of a study."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1), 255).save(buffer, "PNG")
    for name in ("confusion", "reliability", "roc", "dice", "learning"):
        monkeypatch.setattr(figures, name, lambda *_, **__: buffer.getvalue())
    monkeypatch.setattr(violins, "violins", lambda *_, **__: buffer.getvalue())


@pytest.fixture
def finished(tmp_path: Path) -> Callable[..., Path]:
    """Writer of a finished run's folder."""

    def write(predictions: AnyPredictions, name: str = "run", **options: Any) -> Path:
        folder = tmp_path / name
        write_study(study_of(predictions, **options), predictions, {}, folder)
        write_predictions(predictions, folder / "predictions.csv")
        return folder

    return write
