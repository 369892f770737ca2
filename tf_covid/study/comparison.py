"""`comparison.json`, `comparison.html` and figures: finished runs and the paper side by side."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tf_covid.atomic import make_folder, write_text
from tf_covid.study import groups, html, metrics, paper, scores
from tf_covid.study.bootstrap import Bootstrap, estimate
from tf_covid.study.combine import select
from tf_covid.study.comparison_figures import comparison_figures, earlier_figures
from tf_covid.study.predictions import read_predictions
from tf_covid.study.records import (
    CLASSES,
    AnyPredictions,
    Predictions,
    SlicePredictions,
    StudyError,
)
from tf_covid.study.seen import MODEL, START, seen_sentences
from tf_covid.study.study import plain_dict, to_json
from tf_covid.study.study_figure import write_figures

#: Largest study.json in bytes; an honest one lists the Dice of every case of a large cohort.
_MAX_BYTES = 64_000_000
#: Largest difference of a metric in study.json from that of predictions.csv beside it.
_TOLERANCE = 1e-6


#: What is said of a run without folds.
VALIDATED = "Measured on validation cases, which may have chosen the epoch."


class _Metric(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    value: float
    ci95: tuple[float, float] | None = None
    left_out: int = 0
    unit: str | None = None


class _Seen(BaseModel):
    """See `seen.as_seen`."""

    model_config = ConfigDict(frozen=True)

    cases: int
    seen: list[str]
    patients_seen: list[str] | None = None
    unchecked: dict[str, list[str]] = {}


class _StoredCohort(BaseModel):
    """See `study.build_study`."""

    model_config = ConfigDict(frozen=True)

    name: str
    sha256: str | None = None
    phantom_mark: str | None = None
    scans: int


class _StoredStudy(BaseModel):
    """What is read from a study.json; the rest follows from the predictions beside it."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    task: Literal["severity", "covid", "slices", "lungs", "lobes"]
    model: str
    init: str
    note: str = ""
    seen_in_training: _Seen | None = None
    cohort: _StoredCohort | None = None
    folds: Annotated[int, Field(ge=1)]
    measured_on: Literal["test cases", "validation cases"] = "test cases"
    measured_at: str | None = None
    cases: Annotated[int, Field(ge=1)]
    seconds: float | None = None
    accuracy: _Metric | None = None
    balanced_accuracy: _Metric | None = None
    macro_f1: _Metric | None = None
    quadratic_kappa: _Metric | None = None
    within_one: _Metric | None = None
    auc: _Metric | None = None
    mae: _Metric | None = None
    dice: _Metric | None = None


@dataclass(frozen=True)
class _Run:
    folder: Path
    study: _StoredStudy
    predictions: AnyPredictions


def compare(runs: Sequence[Path], out: Path, bootstrap: Bootstrap | None = None) -> dict[str, Any]:
    """Write `comparison.json`, `comparison.html` and figures of finished runs of one task.

    Differences between two runs are taken on the cases that both have answered, with paired
    intervals: both runs are measured on the same drawn patients.

    Args:
        runs: Folders with `study.json` and `predictions.csv`; at least one, which then stands
            beside the paper alone.
        out: Folder of the comparison; made if it is not there.
        bootstrap: Replicates and seed of the intervals of the differences; the default where None.

    Returns:
        What `comparison.json` holds: `task`, `runs`, `paper` (None for slices, lungs and lobes),
        `differences`.

    Raises:
        StudyError: If a run is missing, unfinished, damaged or foreign, if tasks differ, or if two
            runs contradict each other about a case that both have.
        OutputError: If it cannot be written.
    """
    bootstrap = bootstrap or Bootstrap()
    stored = [_read(folder) for folder in runs]
    if not stored:
        raise StudyError("no run was given")
    tasks = {run.study.task: run.folder for run in stored}
    if len(tasks) > 1:
        listed = ", ".join(f"{folder} is of the task {task}" for task, folder in tasks.items())
        raise StudyError(f"runs of different tasks do not compare: {listed}")
    task = stored[0].study.task
    names = _names([run.folder for run in stored])
    comparison = plain_dict(
        {
            "task": task,
            "runs": [
                _summary(name, run, bootstrap) for name, run in zip(names, stored, strict=True)
            ],
            "paper": _paper(task, bootstrap),
            "differences": [
                _difference(names[first], stored[first], names[second], stored[second], bootstrap)
                for first, second in itertools.combinations(range(len(stored)), 2)
            ],
            "bootstrap": {
                "replicates": bootstrap.replicates,
                "seed": bootstrap.seed,
                "unit": "patient",
            },
        }
    )
    own, shared = comparison_figures(comparison, [run.predictions for run in stored])
    page = html.comparison_page(comparison, own, shared)
    make_folder(out)
    write_figures(
        [figure for drawn in (*own, shared) for figure in drawn.values()],
        out,
        earlier_figures(out),
    )
    write_text(page, out / "comparison.html")
    write_text(to_json(comparison), out / "comparison.json")
    return comparison


def _read(folder: Path) -> _Run:
    path = folder / "study.json"
    if not folder.is_dir():
        raise StudyError(f"{folder}: there is no such folder")
    if not path.is_file():
        raise StudyError(
            f"{folder}: has no study.json: either this is not a run, or it is not finished"
            " (--resume)"
        )
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise StudyError(f"{path}: is larger than {_MAX_BYTES} bytes, which no study is")
        study = _StoredStudy.model_validate_json(path.read_bytes())
    except OSError as error:
        raise StudyError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StudyError(
            f"{path}: is not a study of ours ({where + ': ' if where else ''}{first['msg']})"
        ) from error
    predictions = read_predictions(folder / "predictions.csv")
    _check(folder, study, predictions)
    return _Run(folder, study, predictions)


def _check(folder: Path, study: _StoredStudy, predictions: AnyPredictions) -> None:
    """Refuse a study.json that was made of other predictions than those beside it."""
    mismatch = f"{folder}: study.json and predictions.csv are not of one run"
    if study.task != predictions.task:
        raise StudyError(
            f"{mismatch}: one is of the task {study.task}, the other of {predictions.task}"
        )
    if study.cases != len(set(predictions.cases)):
        raise StudyError(
            f"{mismatch}: {study.cases} cases in one, {len(set(predictions.cases))} in the other"
        )
    for name, values in metrics.statistic_of(predictions)(
        np.ones((1, len(predictions.cases)))
    ).items():
        written, computed = getattr(study, name), float(values[0])
        if (written is None) != np.isnan(computed) or (
            written is not None and abs(written.value - computed) > _TOLERANCE
        ):
            shown = "undefined" if written is None else f"{written.value:g}"
            raise StudyError(f"{mismatch}: {name} is {shown} in one, {computed:g} from the other")


def _names(folders: Sequence[Path]) -> list[str]:
    """A name for each run: that of its folder; with its parent where two are called alike."""
    resolved = [folder.resolve() for folder in folders]
    repeated = [path for path, count in Counter(resolved).items() if count > 1]
    if repeated:
        raise StudyError(f"{repeated[0]}: was given twice")
    name_counts = Counter(path.name for path in resolved)
    return [
        path.name if name_counts[path.name] == 1 else f"{path.parent.name}/{path.name}"
        for path in resolved
    ]


def _summary(name: str, run: _Run, bootstrap: Bootstrap) -> dict[str, Any]:
    study, predictions = run.study, run.predictions
    summary: dict[str, Any] = {
        "name": name,
        **{key: getattr(study, key) for key in ("model", "init", "folds", "cases", "seconds")},
        "note": _note(study),
        "cohort": study.cohort and study.cohort.model_dump(exclude_none=True),
        "measured_at": study.measured_at,
        "patients": len(set(predictions.patients)),
        "metrics": {
            key: metric.model_dump() if isinstance(metric := getattr(study, key), _Metric) else None
            for key in (*metrics.METRICS, "mae", "dice")
        },
        **dict.fromkeys(("confusion_matrix", "per_class", "mann_whitney", "calibration")),
        **dict.fromkeys(("score_agreement", "lobe_agreement")),
    }
    if isinstance(predictions, Predictions):
        matrix = metrics.confusion_matrix(predictions)
        summary |= {
            "confusion_matrix": matrix,
            "per_class": metrics.per_class(matrix, CLASSES[predictions.task]),
            "mann_whitney": groups.mann_whitney(predictions),
            "calibration": groups.calibration(predictions, bootstrap),
            "score_agreement": scores.score_agreement(predictions, bootstrap),
            "lobe_agreement": scores.lobe_agreement(predictions, bootstrap),
        }
    return summary


def _note(study: _StoredStudy) -> str:
    """What a reader must know first: the note of the run, which cases had a say, or were known."""
    seen = study.seen_in_training.model_dump() if study.seen_in_training else None
    chosen_by = study.measured_on == "validation cases" and VALIDATED
    sentences = seen_sentences(seen, MODEL if study.init == "frozen" else START)
    return " ".join(filter(None, [study.note, chosen_by or "", *sentences]))


def _paper(task: str, bootstrap: Bootstrap) -> dict[str, Any] | None:
    if task == "severity":
        below = [
            {"groups": [low, high], "p_below": p}
            for low, high, p in paper.SEVERITY_MANN_WHITNEY_BELOW
        ]
        return {"source": paper.CITATION, "mann_whitney": below} | paper.severity_results(bootstrap)
    if task == "covid":
        rows = [
            {
                "label": label,
                "column": column,
                "precision": triple[0],
                "recall": triple[1],
                "f1": triple[2],
            }
            for label, triples in paper.COVID_PERCENT.items()
            for column, triple in zip(paper.COVID_COLUMNS, triples, strict=True)
        ]
        return {
            "source": paper.CITATION,
            "columns": list(paper.COVID_COLUMNS),
            "per_class_percent": rows,
        }
    return None


def _difference(
    name: str, run: _Run, other_name: str, other: _Run, bootstrap: Bootstrap
) -> dict[str, Any]:
    """The second run minus the first, on the cases of both."""
    mine, theirs = _keys(run.predictions), _keys(other.predictions)
    shared = [key for key in mine if key in theirs]
    row: dict[str, Any] = {
        "first": name,
        "second": other_name,
        "cases": len({case for case, _ in shared}),
        "patients": 0,
        "only_first": len({case for case, _ in mine} - {case for case, _ in theirs}),
        "only_second": len({case for case, _ in theirs} - {case for case, _ in mine}),
        "metrics": None,
    }
    if not shared:
        return row
    before = select(run.predictions, np.array([mine[key] for key in shared]))
    after = select(other.predictions, np.array([theirs[key] for key in shared]))
    _check_same_truth(before, after, f"{name} and {other_name}")
    first, second = metrics.statistic_of(before), metrics.statistic_of(after)

    def statistic(weights: np.ndarray) -> Mapping[str, np.ndarray]:
        minuend, subtrahend = second(weights), first(weights)
        return {key: minuend[key] - subtrahend[key] for key in minuend}

    row["patients"] = len(set(before.patients))
    row["metrics"] = estimate(statistic, before.patients, bootstrap, difference=True)
    return row


def _keys(predictions: AnyPredictions) -> dict[tuple[str, int], int]:
    """Row of each case, or of each slice of it."""
    slices = (
        predictions.slices.tolist()
        if isinstance(predictions, SlicePredictions)
        else [0] * len(predictions.cases)
    )
    return {key: row for row, key in enumerate(zip(predictions.cases, slices, strict=True))}


def _check_same_truth(before: AnyPredictions, after: AnyPredictions, names: str) -> None:
    for name in ("patients", "truth", "ct_score", "fraction"):
        if hasattr(before, name):
            mine, theirs = np.asarray(getattr(before, name)), np.asarray(getattr(after, name))
            # NaN, unknown in both, is the same; it is the only value that differs from itself.
            differs = (mine != theirs) & ~((mine != mine) & (theirs != theirs))
            if differs.any():
                case = before.cases[int(differs.argmax())]
                raise StudyError(
                    f"{names} contradict each other: case {case!r} has different {name}"
                )
