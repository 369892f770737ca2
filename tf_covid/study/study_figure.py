"""The figures of a study: of each what it shows, what draws it, and the numbers that are drawn.

The page shows them as PNG; beside it they lie as FOLDER/figures/<name>.svg and <name>.csv.
"""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tf_covid.atomic import make_folder, output_errors, replacing
from tf_covid.page.formats import harmless_cell
from tf_covid.study import figures, violins
from tf_covid.study.records import (
    CLASSES,
    AnyPredictions,
    LobePredictions,
    LungPredictions,
    Predictions,
)

#: Folder of the files, beside the page.
FOLDER = "figures"

#: Every figure that a study may have.
KINDS = ("confusion", "violins", "reliability", "roc", "dice", "learning")

#: A row of a CSV; None becomes an empty cell.
Row = tuple[str | int | float | None, ...]

#: ROC curve and AUC of a run: points of `groups.roc`, and `{"value", "ci95"}` or None.
RocCurve = tuple[Mapping[str, Sequence[Any]], Mapping[str, Any] | None]

_ROC_COLUMNS = ("false_positive_rate", "true_positive_rate", "threshold")


@dataclass(frozen=True)
class StudyFigure:
    """A figure of a study.

    Args:
        name: Name of its files, without a suffix.
        alt: What it shows, for a reader who does not see it.
        draw: Gives the figure as a file; `form` is "png" or "svg".
        columns: Names of the columns of its CSV.
        rows: The numbers that are drawn, cells in the order of the columns.
    """

    name: str
    alt: str
    draw: Callable[..., bytes]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


def study_figures(
    study: Mapping[str, Any], predictions: AnyPredictions, curves: figures.Curves
) -> dict[str, StudyFigure]:
    """The figures of a run, by their kind; those that it has something for.

    Args:
        study: Result of `build_study`.
        predictions: Predictions that it was built from.
        curves: Learning curves by fold and name, a value an epoch; may be empty.
    """
    drawn = run_figures(study, predictions)
    if study["roc"]:
        drawn["roc"] = roc_figure("roc", {"": (study["roc"], study["auc"])})
    if rows := _learning_rows(curves):
        drawn["learning"] = StudyFigure(
            "learning",
            "learning curves, a colour a fold",
            functools.partial(figures.learning, curves),
            ("fold", "name", "epoch", "value"),
            rows,
        )
    return drawn


def run_figures(
    run: Mapping[str, Any], predictions: AnyPredictions, *, title: str = "", prefix: str = ""
) -> dict[str, StudyFigure]:
    """The figures that a run has alone and beside others, by their kind.

    Args:
        run: Result of `build_study`, or a run of `comparison.compare`.
        predictions: Predictions that it was built from.
        title: Title above each figure; empty: what it shows.
        prefix: First part of the names of the files.
    """
    drawn: dict[str, StudyFigure] = {}
    if isinstance(predictions, Predictions):
        drawn["confusion"] = confusion_figure(
            prefix + "confusion",
            run["confusion_matrix"],
            CLASSES[predictions.task],
            title=title,
        )
        if np.isfinite(predictions.ct_score).any():
            drawn["violins"] = _violins_figure(prefix + "violins", run, predictions, title)
        drawn["reliability"] = _reliability_figure(
            prefix + "reliability", run["calibration"], title
        )
    elif isinstance(predictions, LungPredictions | LobePredictions):
        title = title or ("Lobes" if isinstance(predictions, LobePredictions) else "Lung masks")
        drawn["dice"] = StudyFigure(
            prefix + "dice",
            "histogram of the Dice of the cases",
            functools.partial(figures.dice, predictions.dice, title=title),
            ("case", "dice"),
            tuple(zip(predictions.cases, predictions.dice.tolist(), strict=True)),
        )
    return drawn


def confusion_figure(
    name: str,
    matrix: Sequence[Sequence[int]],
    classes: Sequence[str],
    *,
    title: str = "",
    alt: str = "confusion matrix; its numbers are in the CSV file of the same name",
) -> StudyFigure:
    """A confusion matrix; a row of its CSV is a cell.

    Args:
        name: Name of its files, without a suffix.
        matrix: Number of cases by [truth][prediction].
        classes: Name of each class.
        title: Title above the figure.
        alt: What it shows, for a reader who does not see it.
    """
    rows = tuple(
        (truth, classes[truth], predicted, classes[predicted], cases, _fraction(cases, sum(counts)))
        for truth, counts in enumerate(matrix)
        for predicted, cases in enumerate(counts)
    )
    return StudyFigure(
        name,
        alt,
        functools.partial(figures.confusion, np.array(matrix), classes, title=title),
        ("truth", "truth_label", "predicted", "predicted_label", "cases", "share_of_truth"),
        rows,
    )


def roc_figure(name: str, curves: Mapping[str, RocCurve]) -> StudyFigure:
    """ROC curves, one a run; the CSV names the runs where they have names.

    Args:
        name: Name of its files, without a suffix.
        curves: ROC curve and AUC by name of the run.
    """
    named = any(curves)
    rows = tuple(
        ((run,) if named else ()) + point
        for run, (points, _) in curves.items()
        for point in zip(*(points[column] for column in _ROC_COLUMNS), strict=True)
    )
    return StudyFigure(
        name,
        "ROC curves of all runs" if named else "ROC curve",
        functools.partial(figures.roc, curves),
        (*(["run"] if named else []), *_ROC_COLUMNS),
        rows,
    )


def write_figures(drawn: Iterable[StudyFigure], folder: Path, possible: Iterable[str]) -> None:
    """Write `figures/<name>.svg` and `.csv`, each atomically, and remove what is out of date.

    Args:
        drawn: Figures that there are now.
        folder: Folder of the page; must be there.
        possible: Names of the figures that an earlier call may have written: those that are not
            there now are removed. All other files stay.

    Raises:
        OutputError: If one cannot be written, or removed.
    """
    drawn, target = list(drawn), folder / FOLDER
    if drawn:
        make_folder(target)
    for figure in drawn:
        with replacing(target / f"{figure.name}.svg") as partial:
            partial.write_bytes(figure.draw(form="svg"))
        with (
            replacing(target / f"{figure.name}.csv") as partial,
            partial.open("w", encoding="utf-8", newline="") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(figure.columns)
            writer.writerows([_cell(value) for value in row] for row in figure.rows)
    for name in {*possible} - {figure.name for figure in drawn}:
        for old in (target / f"{name}.svg", target / f"{name}.csv"):
            with output_errors(old, "removed"):
                old.unlink(missing_ok=True)


def _violins_figure(
    name: str, run: Mapping[str, Any], predictions: Predictions, title: str
) -> StudyFigure:
    names = CLASSES[predictions.task]
    rows = tuple(
        (case, predicted, names[predicted], score)
        for case, predicted, score in zip(
            predictions.cases,
            predictions.predicted.tolist(),
            predictions.ct_score.tolist(),
            strict=True,
        )
        if math.isfinite(score)
    )
    return StudyFigure(
        name,
        "true CT score of the cases of each predicted class",
        functools.partial(
            violins.violins,
            predictions.ct_score,
            predictions.predicted,
            run["mann_whitney"],
            names,
            title=title,
        ),
        ("case", "predicted", "predicted_label", "ct_score"),
        rows,
    )


def _reliability_figure(name: str, calibration: Mapping[str, Any], title: str) -> StudyFigure:
    plain = ("low", "high", "n", "probability", "right")
    rows = tuple(
        (*(row[column] for column in plain), *row["right_ci95"]) for row in calibration["bins"]
    )
    return StudyFigure(
        name,
        "reliability diagram",
        functools.partial(figures.reliability, calibration, title=title),
        (*plain, "right_ci95_low", "right_ci95_high"),
        rows,
    )


def _learning_rows(curves: figures.Curves) -> tuple[Row, ...]:
    """What is drawn of the curves: the finite values, by epoch from 1."""
    return tuple(
        (fold, name, epoch, float(value))
        for fold, by_name in curves.items()
        for name, values in by_name.items()
        for epoch, value in enumerate(values, 1)
        if math.isfinite(value)
    )


def _fraction(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _cell(value: str | float | None) -> str | float | None:
    return harmless_cell(value) if isinstance(value, str) else value
