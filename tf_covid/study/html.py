"""`study.html` and `comparison.html`: one file each, without network or scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_covid.page.data_uri import png_size, png_uri
from tf_covid.page.templates import template
from tf_covid.result import DISCLAIMER
from tf_covid.study import formatting
from tf_covid.study.records import (
    CLASSES,
    AnyPredictions,
    LobePredictions,
    LungPredictions,
    Predictions,
    ScanPredictions,
)
from tf_covid.study.seen import MODEL, START, seen_in_short, seen_sentences
from tf_covid.study.study_figure import FOLDER, KINDS, StudyFigure

#: Rows of a list of cases; a page is read, the CSV beside it has them all.
_MAX_CASES = 100
#: The worst lung masks that are listed.
_MAX_MASKS = 20


def study_page(
    study: Mapping[str, Any], predictions: AnyPredictions, figures: Mapping[str, StudyFigure]
) -> str:
    """The page of one run.

    Args:
        study: Result of `build_study`.
        predictions: Predictions that it was built from.
        figures: Result of `study_figure.study_figures`.
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
        pictures=_pictures(figures),
        cases=_cases(predictions),
        config=json.dumps(study["config"], indent=2, ensure_ascii=False),
    )


def comparison_page(
    comparison: Mapping[str, Any],
    run_figures: Sequence[Mapping[str, StudyFigure]],
    shared_figures: Mapping[str, StudyFigure],
) -> str:
    """The page of several runs, side by side.

    Args:
        comparison: Result of `comparison.compare`.
        run_figures: Figures of each of its runs, by their kind.
        shared_figures: The ROC curves of all runs ("roc"), and the confusion matrix of the paper
            ("paper"), where there is one.
    """
    task = comparison["task"]
    return template("tf_covid.study", "comparison.html.j2").render(
        comparison=comparison,
        formatting=formatting,
        disclaimer=DISCLAIMER,
        classes=CLASSES.get(task, ()),
        runs=[
            {"run": run, "pictures": _pictures(figures)}
            for run, figures in zip(comparison["runs"], run_figures, strict=True)
        ],
        pictures=_pictures(shared_figures),
        paper=comparison["paper"],
    )


def _pictures(figures: Mapping[str, StudyFigure]) -> dict[str, Any]:
    """Pictures by kind, None for a kind that there is not: a template asks for each."""
    return dict.fromkeys((*KINDS, "paper")) | {
        kind: _picture(figure) for kind, figure in figures.items()
    }


def _picture(figure: StudyFigure) -> dict[str, Any]:
    """A figure as a part of the page: data URI, alternative text, size there, and its file."""
    png = figure.draw(form="png")
    # Half its pixels, for sharp prints. With its size the page does not jump while it loads.
    width, height = png_size(png)
    return {
        "uri": png_uri(png),
        "alt": figure.alt,
        "width": width // 2,
        "height": height // 2,
        "file": f"{FOLDER}/{figure.name}",
    }


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
