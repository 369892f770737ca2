"""The figures of `comparison.html`: those of each run, and those of all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tf_covid.scan.names import safe_name, unique
from tf_covid.study import groups
from tf_covid.study.records import CLASSES, AnyPredictions, SlicePredictions
from tf_covid.study.study_figure import (
    KINDS,
    StudyFigure,
    confusion_figure,
    roc_figure,
    run_figures,
)

#: What the figures are called that do not belong to a run, and what no run is called for it.
_ROC, _PAPER = "comparison-roc", "paper-confusion"
_RESERVED = ("comparison", "paper")

#: Of a run's name, so that what follows it still fits into the name of a file.
_MAX_LETTERS = 100


def comparison_figures(
    comparison: Mapping[str, Any], parts: Sequence[AnyPredictions]
) -> tuple[list[dict[str, StudyFigure]], dict[str, StudyFigure]]:
    """The figures of each run, and those that stand there once ("roc", "paper"), by their kind.

    Args:
        comparison: Result of `comparison.compare`.
        parts: Predictions of its runs, in the same order.
    """
    runs = comparison["runs"]
    prefixes = _prefixes([run["name"] for run in runs])
    own = [
        run_figures(run, part, title=run["name"], prefix=prefix)
        for run, part, prefix in zip(runs, parts, prefixes, strict=True)
    ]
    shared = {}
    curves = {
        run["name"]: (points, run["metrics"].get("auc"))
        for run, points in zip(runs, map(_roc, parts), strict=True)
        if points is not None
    }
    if curves:
        shared["roc"] = roc_figure(_ROC, curves)
    matrix = (comparison["paper"] or {}).get("confusion_matrix")
    if matrix:
        shared["paper"] = confusion_figure(
            _PAPER,
            matrix,
            CLASSES[comparison["task"]],
            title="The paper: I3D",
            alt="confusion matrix of the paper",
        )
    return own, shared


def earlier_figures(out: Path) -> list[str]:
    """Names of the figures that the comparison which lies in a folder may have."""
    try:
        runs = json.loads((out / "comparison.json").read_text("utf-8"))["runs"]
        prefixes = _prefixes([str(run["name"]) for run in runs])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        prefixes = []  # there is none, or it is not ours
    return [_ROC, _PAPER, *(prefix + kind for prefix in prefixes for kind in KINDS)]


def _prefixes(names: Sequence[str]) -> list[str]:
    """What the files of the runs' figures begin with, for each run another one."""
    safe = [safe_name(name)[:_MAX_LETTERS] or "run" for name in names]
    return [f"{name}-" for name in unique([*_RESERVED, *safe])[len(_RESERVED) :]]


def _roc(predictions: AnyPredictions) -> dict[str, Any] | None:
    if isinstance(predictions, SlicePredictions):
        return groups.roc(predictions.truth, predictions.probability)
    if predictions.task == "covid":
        return groups.roc(predictions.truth, predictions.probabilities[:, 1])
    return None
