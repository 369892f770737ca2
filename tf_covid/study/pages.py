"""`study.html` and `comparison.html`: one file each, without network or scripts; no statistician needed."""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_covid.result import DISCLAIMER
from tf_covid.study import figures, wording
from tf_covid.study.records import CLASSES, AnyPredictions, LungPredictions, Predictions
from tf_covid.study.seen import MODEL, START, seen_in_short, seen_sentences

if TYPE_CHECKING:
    import jinja2

#: Every figure that a page may have; a template asks for each.
_PICTURES = ("confusion", "violins", "reliability", "roc", "dice", "learning", "paper")

#: Rows of a list of cases; a page is read, the CSV beside it has them all.
_MOST_CASES = 100
#: The worst lung masks that are listed.
_WORST_MASKS = 20


def study_page(
    study: Mapping[str, Any],
    predictions: AnyPredictions,
    curves: Mapping[Any, Mapping[str, Sequence[float]]],
) -> str:
    """The page of one run.

    Args:
        study: Of `build_study`.
        predictions: What it was built from.
        curves: Learning curves by fold and name, a value an epoch; may be empty.
    """
    return _template("study.html.j2").render(
        study=study,
        words=wording,
        disclaimer=DISCLAIMER,
        classes=CLASSES.get(study["task"], ()),
        headline=wording.headline(study),
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
        comparison: Of `comparison.compare`.
        parts: The predictions of its runs, in the same order.
        rocs: The points of their ROC curves, or None.
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
    return _template("comparison.html.j2").render(
        comparison=comparison,
        words=wording,
        disclaimer=DISCLAIMER,
        classes=CLASSES.get(task, ()),
        runs=runs,
        pictures=pictures,
        paper=paper,
    )


@functools.cache
def _template(name: str) -> jinja2.Template:
    import jinja2

    def read(part: str) -> str:
        return resources.files("tf_covid.study").joinpath(part).read_text("utf-8")

    # Names of cases, sites and models come from files that anybody may have written: everything is
    # escaped.
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _picture(png: bytes, what: str) -> dict[str, Any]:
    """A figure as a part of the page, with its size there: half its pixels."""
    # Width and height of a PNG, so that the page does not jump while it loads.
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    uri = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
    return {"uri": uri, "alt": what, "width": width // 2, "height": height // 2}


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
            drawn = figures.violins(
                predictions.ct_score, predictions.predicted, run["mann_whitney"], names, title=title
            )
            pictures["violins"] = _picture(
                drawn, "true CT score of the cases of each predicted class"
            )
        drawn = figures.reliability(run["calibration"], title=title)
        pictures["reliability"] = _picture(drawn, "reliability diagram")
    elif isinstance(predictions, LungPredictions):
        pictures["dice"] = _picture(
            figures.dice(predictions.dice, title=title), "histogram of the Dice of the cases"
        )
    return pictures


def _cases(predictions: AnyPredictions) -> dict[str, Any] | None:
    """The cases to look at: how many there are, and the first of them, worst first."""
    if isinstance(predictions, LungPredictions):
        order = np.argsort(predictions.dice, kind="stable")[:_WORST_MASKS]
        rows = [
            {
                "case": predictions.cases[row],
                "fold": int(predictions.folds[row]),
                "dice": float(predictions.dice[row]),
            }
            | _person(predictions, row)
            for row in order
        ]
        return {"total": len(predictions.cases), "rows": rows}
    if not isinstance(predictions, Predictions):
        return None
    off = np.abs(predictions.predicted - predictions.truth)
    top = predictions.probabilities.max(axis=1)
    least = 2 if predictions.probabilities.shape[1] > 2 else 1
    # Furthest off first, of those the surest.
    order = np.lexsort((-top, -off))[: int((off >= least).sum())]
    rows = [
        {
            "case": predictions.cases[row],
            "fold": int(predictions.folds[row]),
            "truth": int(predictions.truth[row]),
            "predicted": int(predictions.predicted[row]),
            "probability": float(top[row]),
            "ct_score": _known(predictions.ct_score[row]),
            "predicted_score": _known(predictions.predicted_score[row]),
        }
        | _person(predictions, row)
        for row in order[:_MOST_CASES]
    ]
    return {"total": len(order), "rows": rows}


def _person(predictions: Predictions | LungPredictions, row: int) -> dict[str, Any]:
    return {
        "sex": predictions.sex[row],
        "age": _known(predictions.age[row]),
        "site": predictions.site[row],
    }


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
