"""`study.json`, `study.html` and figures of a run, or of a frozen model on somebody's cohort."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tf_covid.atomic import make_folder, write_text
from tf_covid.study import groups, html, metrics, scores, study_figure
from tf_covid.study.bootstrap import Bootstrap
from tf_covid.study.records import (
    CLASSES,
    AnyPredictions,
    LobePredictions,
    LungPredictions,
    Predictions,
    SlicePredictions,
)

#: Everything that `study.json` has, in its order; what a task does not have is null.
KEYS = (
    "task",
    "model",
    "init",
    "note",
    "seen_in_training",
    "cohort",
    "folds",
    "measured_on",
    "measured_at",
    "cases",
    "patients",
    "confusion_matrix",
    "per_class",
    *metrics.METRICS,
    "mae",
    "score_agreement",
    "lobe_agreement",
    "dice",
    "dice_per_case",
    "dice_per_lobe",
    "mann_whitney",
    "calibration",
    "roc",
    "subgroups",
    "bootstrap",
    "config",
    "versions",
    "seconds",
)


def build_study(
    predictions: AnyPredictions,
    *,
    model: str,
    init: str,
    config: Mapping[str, Any],
    seconds: float | None,
    versions: Mapping[str, str],
    note: str = "",
    seen_in_training: Mapping[str, Any] | None = None,
    bootstrap: Bootstrap | None = None,
    measured_on: str = "test cases",
    cohort: Mapping[str, Any] | None = None,
    measured_at: str | None = None,
) -> dict[str, Any]:
    """All of `study.json`, from predictions.

    Args:
        predictions: Joined folds of a run, predictions of frozen models, or anybody's.
        model: Name of the architecture, or of the frozen models.
        init: What training began with: "scratch", a file, or "frozen" where nothing was trained.
        config: Settings of the run.
        seconds: Time of the training in seconds; None where nothing was trained.
        versions: Version of each library, by name.
        note: What a reader must know first, such as that the cohort is synthetic.
        seen_in_training: Result of `seen.as_seen`: which cases frozen models, or the weights that
            training started from, had been trained on; None where training started at random.
        bootstrap: Replicates and seed of the intervals.
        measured_on: "test cases", or "validation cases": they may have chosen the epoch.
        cohort: `name` of the manifest's file, its `sha256`, and the number of its `scans` that were
            used; of synthetic chests the `phantom_mark` in place of the hash. None: unknown.
        measured_at: Time at which the networks answered, UTC, as "2026-11-28T17:20:15Z". None:
            unknown.

    Returns:
        JSON-serialisable, with exactly `KEYS`; None where something is undefined or not part of the
        task. `folds` is the number of folds that have cases.
    """
    bootstrap = bootstrap or Bootstrap()
    study: dict[str, Any] = dict.fromkeys(KEYS)
    study |= {
        "task": predictions.task,
        "model": model,
        "init": init,
        "note": note,
        "seen_in_training": seen_in_training,
        "cohort": cohort,
        "folds": len(np.unique(predictions.folds)),
        "measured_on": measured_on,
        "measured_at": measured_at,
        "cases": len(set(predictions.cases)),
        "patients": len(set(predictions.patients)),
        "bootstrap": {
            "replicates": bootstrap.replicates,
            "seed": bootstrap.seed,
            "unit": "patient",
        },
        "config": config,
        "versions": versions,
        "seconds": seconds,
    }
    study |= metrics.measure(predictions, bootstrap)
    if isinstance(predictions, Predictions):
        matrix = metrics.confusion_matrix(predictions)
        study["confusion_matrix"] = matrix
        study["per_class"] = metrics.per_class(matrix, CLASSES[predictions.task])
        study["mann_whitney"] = groups.mann_whitney(predictions)
        study["calibration"] = groups.calibration(predictions, bootstrap)
        study["score_agreement"] = scores.score_agreement(predictions, bootstrap)
        study["lobe_agreement"] = scores.lobe_agreement(predictions, bootstrap)
        if predictions.task == "covid":
            study["roc"] = groups.roc(predictions.truth, predictions.probabilities[:, 1])
    elif isinstance(predictions, LungPredictions | LobePredictions):
        study["dice_per_case"] = dict(
            zip(predictions.cases, predictions.dice.tolist(), strict=True)
        )
        if isinstance(predictions, LobePredictions):
            study["dice_per_lobe"] = metrics.dice_per_lobe(predictions, bootstrap)
    else:
        study["roc"] = groups.roc(predictions.truth, predictions.probability)
    if not isinstance(predictions, SlicePredictions):
        study["subgroups"] = groups.subgroups(predictions, bootstrap)
    return plain_dict({key: study[key] for key in KEYS})


def write_study(
    study: Mapping[str, Any],
    predictions: AnyPredictions,
    curves: Mapping[Any, Mapping[str, Sequence[float]]],
    folder: Path,
) -> None:
    """Write the figures, `study.html`, then `study.json`, each atomically.

    Where the JSON is, all are. Figures that an earlier call wrote there, and of which there is
    nothing to draw now, are removed.

    Args:
        study: Result of `build_study`.
        predictions: Predictions that it was built from.
        curves: Learning curves by fold and name, a value an epoch; may be empty.
        folder: Folder of the run; made if it is not there.

    Raises:
        OutputError: If it cannot be written.
    """
    drawn = study_figure.study_figures(study, predictions, curves)
    page = html.study_page(study, predictions, drawn)
    make_folder(folder)
    study_figure.write_figures(drawn.values(), folder, study_figure.KINDS)
    write_text(page, folder / "study.html")
    write_text(to_json(study), folder / "study.json")


def to_json(value: Mapping[str, Any]) -> str:
    """JSON text that every reader accepts: no NaN, no infinity."""
    return json.dumps(plain_dict(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def plain_dict(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values in the types of JSON: lists for arrays, texts for paths, None for NaN."""
    return {str(key): _plain(value) for key, value in values.items()}


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return plain_dict(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
