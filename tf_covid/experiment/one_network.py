"""One network of a run: trained, written as a file, and asked about the scans that test it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tf_covid.atomic import write_text
from tf_covid.cohort import cache
from tf_covid.cohort.manifest import ManifestRow
from tf_covid.experiment.phantom_source import SYNTHETIC_NOTE
from tf_covid.experiment.predict import as_predictions
from tf_covid.experiment.run_folder import NOTE, FitRequest
from tf_covid.pipeline import now
from tf_covid.preprocessor import LungModels
from tf_covid.study.predictions import read_predictions, write_predictions
from tf_covid.study.records import AnyPredictions
from tf_covid.tasks import TASKS
from tf_covid.training.calibration import calibrate_disease
from tf_covid.training.fold import FoldPlan, TrainingSet, train
from tf_covid.training.network_spec import NetworkSpec
from tf_covid.training.tasks import MaskObjective, Objective
from tf_covid.training.worker_group import WorkerGroup
from tf_covid.weights import Contract, catalog, load, read_contract, save_model, seen
from tf_covid.weights.contract import TrainedOn

#: (label, number of steps) → a context whose value is called after each step with its number, from
#: 0, and a text.
EpochProgress = Callable[[str, int], AbstractContextManager[Callable[[int, str], None]]]


@dataclass(frozen=True)
class Sides:
    """Who teaches a network, and who is asked afterwards.

    Args:
        name: What the training is called at the terminal.
        folder: Where the model file goes.
        fold: Index of the fold.
        training_set: What it learns from.
        validation: Records that the loss is validated on.
        tested: Records that the finished network answers.
        rows: Case → row of the manifest.
        labels: Case → class.
        trained_on: Number of trained epochs → what the model file says of the scans that it knows.
        origin: What its origin says besides.
    """

    name: str
    folder: Path
    fold: int
    training_set: TrainingSet
    validation: Sequence[cache.CacheRecord]
    tested: Sequence[cache.CacheRecord]
    rows: Mapping[str, ManifestRow]
    labels: Mapping[str, int]
    trained_on: Callable[[int], tuple[TrainedOn, ...]]
    origin: str = ""


def lung_models(request: FitRequest) -> LungModels | None:
    """The models that a classifier is trained behind; None for a task without them.

    Raises:
        ModelError: If one is missing, damaged, untrained or a model of another task.
    """
    if TASKS[request.task].cache_kind != "clips":
        return None
    return LungModels.read(request.lungs, request.lobes_model)


def train_and_test(
    request: FitRequest,
    network: NetworkSpec,
    objective: Objective,
    sides: Sides,
    on_message: Callable[[str], None],
    epoch_progress: EpochProgress,
    group: WorkerGroup | None,
) -> AnyPredictions | None:
    """Train a network, write its file, and ask it; unless that is done.

    None for a worker that is not the chief of its group.
    """
    folder, done = sides.folder, sides.folder / "predictions.csv"
    if done.exists() if group is None else group.decides(done.exists()):
        on_message(f"{sides.name}: done")
        return read_predictions(done) if group is None or group.is_chief else None
    folder.mkdir(parents=True, exist_ok=True)
    plan = FoldPlan(network, objective, request.settings, sides.fold, request.mirrored, group)
    tested = "" if sides.tested is sides.validation else f", test {len(sides.tested)}"
    on_message(
        f"{sides.name}: train {sides.training_set.size}, validation {len(sides.validation)}{tested}"
    )
    with epoch_progress(sides.name, request.settings.epochs) as step:
        trained = train(
            plan,
            sides.training_set,
            sides.validation,
            folder,
            on_epoch_end=lambda epoch, values: step(
                epoch, _line(epoch, request.settings.epochs, values)
            ),
            board=folder / "board",
        )
    if trained is None:
        return None
    calibration = None
    if isinstance(objective, MaskObjective) and sides.validation:
        calibration = calibrate_disease(trained.network, objective, sides.validation)
    part = "" if request.single else f", {sides.name}"
    origin = (
        f"tfcovid fit {request.task}, {request.model}, seed {request.settings.seed}"
        f"{part}{sides.origin}{trained.origin}"
    )
    save_model(
        trained.network,
        _contract(request, network, origin, sides.trained_on(trained.epochs), calibration),
        folder / "model.keras",
    )
    # Tested on the file: what it answers is what its user gets.
    answers = objective.answers(load(folder / "model.keras").network, sides.tested)
    facts = {"curves": trained.curves, "seconds": trained.seconds, "measured_at": now()}
    write_text(json.dumps(facts), folder / "curves.json")
    rows = [sides.rows[record.case] for record in sides.tested]
    results = as_predictions(request.task, rows, sides.labels, answers, sides.fold, sides.tested)
    write_predictions(results, done)
    for state in ("state.npz", "best.npz"):
        (folder / state).unlink(missing_ok=True)
    return results


def _contract(
    request: FitRequest,
    network: NetworkSpec,
    origin: str,
    trained_on: tuple[TrainedOn, ...],
    disease_calibration: tuple[float, float] | None,
) -> Contract:
    task: Any = request.task
    pair = lung_models(request)
    return Contract(
        model=network.model,
        arguments=dict(network.arguments),
        task=task,
        preprocessing=network.preprocessing,
        classes=TASKS[task].labels,
        endpoint=request.settings.endpoint,
        lungs_sha256=pair.lungs.sha256 if pair else None,
        lobes_sha256=pair.lobes.sha256 if pair and pair.lobes else None,
        disease_calibration=disease_calibration,
        note=note_of(request),
        origin=origin,
        trained_on=trained_on,
    )


def note_of(request: FitRequest) -> str:
    """What the model file says first; “on no patient” where that holds for all its ancestors."""
    if request.chests is None or request.note != NOTE:
        return request.note
    ancestor = read_contract(catalog.find(request.init)).note if request.init else SYNTHETIC_NOTE
    return SYNTHETIC_NOTE if ancestor == SYNTHETIC_NOTE else NOTE


def trained_on_scans(
    request: FitRequest,
    cases: Sequence[str],
    rows: Sequence[ManifestRow],
    records: Mapping[str, cache.CacheRecord],
) -> tuple[TrainedOn, ...]:
    """Fingerprints of what a network, and the weights that it started from, learned from."""
    pixels = [records[case].fingerprints["pixels"] for case in cases]
    patients = (
        {row.patient for row in rows if row.case in set(cases)}
        if request.patient_fingerprints
        else ()
    )
    return with_ancestors(request, seen.fingerprints(pixels, patients, seed=request.settings.seed))


def with_ancestors(request: FitRequest, own: TrainedOn) -> tuple[TrainedOn, ...]:
    """What a network learned from, and what the weights did that it started from."""
    if request.init is None:
        return (own,)
    return (
        own,
        *seen.ancestors(catalog.name_of(request.init), read_contract(catalog.find(request.init))),
    )


def _line(epoch: int, epochs: int, values: Mapping[str, float]) -> str:
    shown = ", ".join(
        f"{name} {value:.4g}" for name, value in values.items() if not name.endswith("_loss")
    )
    validated = f", val_loss {values['val_loss']:.4g}" if "val_loss" in values else ""
    return f"epoch {epoch + 1}/{epochs}: {shown}{validated}"
