"""`study.html` and `comparison.html`: one file each, without network or scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_covid.page.data_uri import png_size, png_uri
from tf_covid.page.templates import template
from tf_covid.result import DISCLAIMER
from tf_covid.study import figures, formatting, violins
from tf_covid.study.records import (
    CLASSES,
    AnyPredictions,
    LobePredictions,
    LungPredictions,
    Predictions,
    ScanPredictions,
)
from tf_covid.study.seen import MODEL, START, seen_in_short, seen_sentences

#: Every figure that a page may have; a template asks for each.
_PICTURES = ("confusion", "violins", "reliability", "roc", "dice", "learning", "paper")

#: Rows of a list of cases; a page is read, the CSV beside it has them all.
_MAX_CASES = 100
#: The worst lung masks that are listed.
_MAX_MASKS = 20


def study_page(
    study: Mapping[str, Any],
    predictions: AnyPredictions,
    curves: Mapping[Any, Mapping[str, Sequence[float]]],
) -> str:
    """The page of one run.

    Args:
        study: Result of `build_study`.
        predictions: Predictions that it was built from.
        curves: Learning curves by fold and name, a value an epoch; may be empty.
    """
    return template("tf_covid.study", "study.html.j2").render(
        study=study,
        formatting=formatting,
        disclaimer=DISCLAIMER,
        classes=CLASSES.get(study["task"], ()),
        headline=formatting.headline(study),
        seen=seen_sentences(
            study["seen_in_training"], MODEL if study["init"] == "frozen" else START
        ),
        seen_in_short=seen_in_short(study["seen_in_training"]),
        pictures=_study_pictures(study, predictions, curves),
        cases=_cases(predictions),
        config=json.dumps(study["config"], indent=2, ensure_ascii=False),
    )


def comparison_page(
    comparison: Mapping[str, Any], parts: Sequence[AnyPredictions], rocs: Sequence[Any]
) -> str:
    """The page of several runs, side by side.

    Args:
        comparison: Result of `comparison.compare`.
        parts: Predictions of its runs, in the same order.
        rocs: Points of the ROC curve of each run, or None.
    """
    task = comparison["task"]
    runs = [
        {"run": run, "pictures": _run_pictures(run, part, run["name"])}
        for run, part in zip(comparison["runs"], parts, strict=True)
    ]
    pictures: dict[str, Any] = dict.fromkeys(_PICTURES)
    curves = {
        run["name"]: (points, run["metrics"].get("auc"))
        for run, points in zip(comparison["runs"], rocs, strict=True)
        if points is not None
    }
    if curves:
        pictures["roc"] = _picture(figures.roc(curves), "ROC curves of all runs")
    paper = comparison["paper"]
    if paper and paper.get("confusion_matrix"):
        drawn = figures.confusion(
            np.array(paper["confusion_matrix"]), CLASSES[task], title="The paper: I3D"
        )
        pictures["paper"] = _picture(drawn, "confusion matrix of the paper")
    return template("tf_covid.study", "comparison.html.j2").render(
        comparison=comparison,
        formatting=formatting,
        disclaimer=DISCLAIMER,
        classes=CLASSES.get(task, ()),
        runs=runs,
        pictures=pictures,
        paper=paper,
    )


def _picture(png: bytes, description: str) -> dict[str, Any]:
    """A figure as a part of the page: data URI, alternative text, and size there."""
    # Half its pixels, for sharp prints. With its size the page does not jump while it loads.
    width, height = png_size(png)
    return {"uri": png_uri(png), "alt": description, "width": width // 2, "height": height // 2}


def _study_pictures(
    study: Mapping[str, Any],
    predictions: AnyPredictions,
    curves: Mapping[Any, Mapping[str, Sequence[float]]],
) -> dict[str, Any]:
    pictures = _run_pictures(study, predictions)
    if study["roc"]:
        pictures["roc"] = _picture(figures.roc({"": (study["roc"], study["auc"])}), "ROC curve")
    drawn = figures.learning(curves)
    if drawn is not None:
        pictures["learning"] = _picture(drawn, "learning curves, a colour a fold")
    return pictures


def _run_pictures(
    run: Mapping[str, Any], predictions: AnyPredictions, title: str = ""
) -> dict[str, Any]:
    pictures: dict[str, Any] = dict.fromkeys(_PICTURES)
    if isinstance(predictions, Predictions):
        names = CLASSES[predictions.task]
        drawn = figures.confusion(np.array(run["confusion_matrix"]), names, title=title)
        pictures["confusion"] = _picture(
            drawn, "confusion matrix; its numbers are in predictions.csv"
        )
        if np.isfinite(predictions.ct_score).any():
            drawn = violins.violins(
                predictions.ct_score, predictions.predicted, run["mann_whitney"], names, title=title
            )
            pictures["violins"] = _picture(
                drawn, "true CT score of the cases of each predicted class"
            )
        drawn = figures.reliability(run["calibration"], title=title)
        pictures["reliability"] = _picture(drawn, "reliability diagram")
    elif isinstance(predictions, LungPredictions | LobePredictions):
        pictures["dice"] = _picture(
            figures.dice(predictions.dice, title=title), "histogram of the Dice of the cases"
        )
    return pictures


def _cases(predictions: AnyPredictions) -> dict[str, Any] | None:
    """The cases to look at: how many there are, and the first of them, worst first."""
    if isinstance(predictions, LungPredictions | LobePredictions):
        order = np.argsort(predictions.dice, kind="stable")[:_MAX_MASKS]
        rows = [
            {
                "case": predictions.cases[row],
                "fold": int(predictions.folds[row]),
                "dice": float(predictions.dice[row]),
            }
            | _patient(predictions, row)
            for row in order
        ]
        return {"total": len(predictions.cases), "rows": rows}
    if not isinstance(predictions, Predictions):
        return None
    distance = np.abs(predictions.predicted - predictions.truth)
    top = predictions.probabilities.max(axis=1)
    min_distance = 2 if predictions.probabilities.shape[1] > 2 else 1
    # Furthest from the truth first, of those the surest.
    order = np.lexsort((-top, -distance))[: int((distance >= min_distance).sum())]
    rows = [
        {
            "case": predictions.cases[row],
            "fold": int(predictions.folds[row]),
            "truth": int(predictions.truth[row]),
            "predicted": int(predictions.predicted[row]),
            "probability": float(top[row]),
            "ct_score": _known(predictions.ct_score[row]),
            "predicted_score": _known(predictions.predicted_score[row]),
            "read_score": _known(predictions.read_score[row]),
        }
        | _patient(predictions, row)
        for row in order[:_MAX_CASES]
    ]
    return {"total": len(order), "rows": rows}


def _patient(predictions: ScanPredictions, row: int) -> dict[str, Any]:
    return {
        "sex": predictions.sex[row],
        "age": _known(predictions.age[row]),
        "site": predictions.site[row],
    }


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
