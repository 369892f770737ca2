"""`tfcovid fit`: a manifest in; cache, folds, a network a fold, and the study of their answers out.

RUN/run.json          what was asked for; a run that is resumed must ask for the same
RUN/folds.json        who is tested in which fold
RUN/records.json      which record of the cache each case is: a scan that changes under a run is
                      noticed
RUN/skipped.csv       scans that cannot be used, and why
RUN/cache/            records of the scans, if no other folder was named
RUN/fold-<k>/         model.keras, predictions.csv, curves.json; state.npz while it trains; board/
                      for TensorBoard
RUN/predictions.csv, study.json, study.html
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tf_covid.atomic import write_text
from tf_covid.cohort import cache
from tf_covid.cohort.folds import (
    Folds,
    audit,
    check_classes,
    check_folds,
    make_folds,
    near_cases,
    read_folds,
    split_validation,
    write_folds,
)
from tf_covid.cohort.manifest import ManifestRow, read_manifest
from tf_covid.errors import TrainingError
from tf_covid.experiment.predict import as_predictions
from tf_covid.experiment.records import cache_spec, fill_cache, identities
from tf_covid.experiment.run_folder import FitRequest, exclusive_run_folder
from tf_covid.pipeline import versions
from tf_covid.study.combine import join
from tf_covid.study.predictions import read_predictions, write_predictions
from tf_covid.study.records import AnyPredictions
from tf_covid.study.seen import START, as_seen, seen_sentences
from tf_covid.study.study import build_study, write_study
from tf_covid.tasks import TASKS
from tf_covid.training import checkpoint
from tf_covid.training.fold import FoldPlan, train
from tf_covid.training.network_spec import NetworkSpec
from tf_covid.training.tasks import Objective, labels_of, objective_for
from tf_covid.weights import (
    Contract,
    Preprocessing,
    catalog,
    load,
    quarantine,
    read_contract,
    save_model,
    seen,
)
from tf_covid.weights.contract import TrainedOn
from tf_covid.weights.files import build

#: (label, number of steps) → a context whose value is called after each step with its number, from
#: 0, and a text.
EpochProgress = Callable[[str, int], AbstractContextManager[Callable[[int, str], None]]]


def fit(
    request: FitRequest,
    *,
    resume: bool = False,
    workers: int = 1,
    on_message: Callable[[str], None],
    epoch_progress: EpochProgress,
    progress: cache.Progress | None = None,
) -> Path:
    """Train a network for each fold and write the study; what is done already is kept.

    Args:
        request: What is to be trained.
        resume: Whether the run's folder holds a run that is to be finished.
        workers: Processes that fill the cache.
        on_message: Hears of each step, in a line.
        epoch_progress: Shows the epochs.
        progress: Shows the scans that are read.

    Returns:
        `study.html`.

    Raises:
        ManifestError, CohortError: If the cohort is not usable.
        TrainingError: If the run cannot start, go on or be resumed.
        ModelError: If `init` or the lung model is missing or damaged.
        OutputError: If something cannot be written.
    """
    rows = read_manifest(request.manifest)
    network = NetworkSpec.of(request.task, request.model, rows, request.settings, request.init)
    labels = labels_of(rows, request.task)
    _check_splits(request, rows, labels)
    with exclusive_run_folder(request, workers=workers, resume=resume, on_message=on_message):
        _report_window(network, on_message)
        spec = cache_spec(request, rows, network.preprocessing)
        objective = objective_for(request.task, network, rows, labels, request.settings, spec.grid)
        # A network that cannot be built, or read back, is an error now, not after hours of reading.
        build(network.model, dict(network.arguments), request.out)
        records = fill_cache(
            request, rows, spec, workers=workers, on_message=on_message, progress=progress
        )
        rows = [row for row in rows if row.case in records]
        folds = _folds(request, rows, labels, on_message)
        audit(identities(rows, records, on_message), folds)
        seen_in_training = _seen_by_init(request, rows, records, on_message)
        cohort = _Cohort(rows, labels, records, folds)
        parts = [
            _run_fold(request, network, objective, cohort, fold, on_message, epoch_progress)
            for fold in range(len(folds.names))
        ]
        return _finish(request, parts, seen_in_training)


@dataclass(frozen=True)
class _Cohort:
    """The scans of a run.

    Args:
        rows: Rows of the manifest whose scans can be used.
        labels: Case → class.
        records: Case → record of the cache.
        folds: Fold that tests each case.
    """

    rows: Sequence[ManifestRow]
    labels: Mapping[str, int]
    records: Mapping[str, cache.CacheRecord]
    folds: Folds


def _check_splits(
    request: FitRequest, rows: Sequence[ManifestRow], labels: Mapping[str, int]
) -> None:
    """Refuse folds and validation sets that cannot be made, before hours of reading scans."""
    if (
        request.settings.validation_fraction
        and not split_validation(
            list(labels), rows, labels, request.settings.validation_fraction, 0
        )[1]
    ):
        raise TrainingError(
            "validation_fraction: no class has two patients, so none can be left for validation"
        )
    if request.folds_file:
        check_classes(read_folds(request.folds_file), labels)
    elif not (request.out / "folds.json").exists():
        make_folds(rows, labels, request.folds, request.settings.seed, by_site=request.by_site)


def _seen_by_init(
    request: FitRequest,
    rows: Sequence[ManifestRow],
    records: Mapping[str, cache.CacheRecord],
    on_message: Callable[[str], None],
) -> dict[str, Any] | None:
    """How many scans the file of `init` was trained on, ready for JSON; None without `init`.

    Its scans are tested in some fold: their answers say nothing about new patients, and the study
    says so.
    """
    if request.init is None:
        return None
    contract = read_contract(catalog.find(request.init))
    patients = {row.case: row.patient for row in rows}
    pixels = {row.case: records[row.case].fingerprints["pixels"] for row in rows}
    results = as_seen(
        [seen.look(catalog.name_of(request.init), contract, pixels, patients)], len(rows)
    )
    for sentence in seen_sentences(results, START):
        on_message(f"warning: {sentence}")
    return results


def _report_window(network: NetworkSpec, on_message: Callable[[str], None]) -> None:
    preprocessing = network.preprocessing
    level, width = preprocessing.level_hu, preprocessing.width_hu
    if network.init and (level, width) != (Preprocessing().level_hu, Preprocessing().width_hu):
        on_message(
            f"window: {level - width / 2:g} to {level + width / 2:g} HU, as {network.init} was"
            " trained with"
        )


def _folds(
    request: FitRequest,
    rows: Sequence[ManifestRow],
    labels: Mapping[str, int],
    on_message: Callable[[str], None],
) -> Folds:
    """Those of the run, of another one, or new ones."""
    own = request.out / "folds.json"
    if own.exists() or request.folds_file:
        folds = read_folds(own if own.exists() else request.folds_file or own)
        check_folds(folds, rows)
        check_classes(folds, labels)
    else:
        folds = make_folds(
            rows, labels, request.folds, request.settings.seed, by_site=request.by_site
        )
    for cases in near_cases(rows):
        on_message(
            f"the patients of {' and '.join(cases)} have near-equal ids: they share a fold, as one"
            " person's would"
        )
    write_folds(folds, own)
    return folds


def _run_fold(
    request: FitRequest,
    network: NetworkSpec,
    objective: Objective,
    cohort: _Cohort,
    fold: int,
    on_message: Callable[[str], None],
    epoch_progress: EpochProgress,
) -> AnyPredictions:
    """Train and test one fold, unless it is done."""
    folder, name = request.out / f"fold-{fold}", f"fold {cohort.folds.names[fold]}"
    done = folder / "predictions.csv"
    if done.exists():
        on_message(f"{name}: done")
        return read_predictions(done)
    folder.mkdir(parents=True, exist_ok=True)
    training_side, test_cases = cohort.folds.split(fold)
    train_cases, validation_cases = split_validation(
        training_side,
        cohort.rows,
        cohort.labels,
        request.settings.validation_fraction,
        request.settings.seed,
    )
    plan = FoldPlan(network, objective, request.settings, fold, request.mirrored)
    on_message(
        f"{name}: train {len(train_cases)}, validation {len(validation_cases)},"
        f" test {len(test_cases)}"
    )
    with epoch_progress(name, request.settings.epochs) as step:
        trained = train(
            plan,
            [cohort.records[case] for case in train_cases],
            [cohort.records[case] for case in validation_cases],
            folder,
            on_epoch_end=lambda epoch, values: step(
                epoch, _line(epoch, request.settings.epochs, values)
            ),
            board=folder / "board",
        )
    origin = (
        f"tfcovid fit {request.task}, {request.model}, seed {request.settings.seed},"
        f" {name}{trained.origin}"
    )
    # The validation cases had a say in when to stop.
    trained_on = _trained_on(request, [*train_cases, *validation_cases], cohort)
    save_model(
        trained.network, _contract(request, network, origin, trained_on), folder / "model.keras"
    )
    write_text(
        json.dumps({"curves": trained.curves, "seconds": trained.seconds}), folder / "curves.json"
    )
    # Tested on the file: what it answers is what its user gets.
    tested = [cohort.records[case] for case in test_cases]
    answers = objective.answers(load(folder / "model.keras").network, tested)
    by_case = {row.case: row for row in cohort.rows}
    results = as_predictions(
        request.task, [by_case[case] for case in test_cases], cohort.labels, answers, fold
    )
    write_predictions(results, done)
    for state in ("state.npz", "best.npz"):
        (folder / state).unlink(missing_ok=True)
    return results


def _contract(
    request: FitRequest, network: NetworkSpec, origin: str, trained_on: tuple[TrainedOn, ...]
) -> Contract:
    task: Any = request.task
    needs_lungs = TASKS[task].cache_kind == "clips"
    return Contract(
        model=network.model,
        arguments=dict(network.arguments),
        task=task,
        preprocessing=network.preprocessing,
        classes=TASKS[task].labels,
        lungs_sha256=quarantine.sha256(catalog.find(request.lungs)) if needs_lungs else None,
        note=request.note,
        origin=origin,
        trained_on=trained_on,
    )


def _trained_on(
    request: FitRequest,
    cases: Sequence[str],
    cohort: _Cohort,
) -> tuple[TrainedOn, ...]:
    """Fingerprints of what a fold, and the weights that it started from, learned from."""
    pixels = [cohort.records[case].fingerprints["pixels"] for case in cases]
    patients = (
        {row.patient for row in cohort.rows if row.case in set(cases)}
        if request.patient_fingerprints
        else ()
    )
    own = seen.fingerprints(pixels, patients, seed=request.settings.seed)
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


def _finish(
    request: FitRequest, parts: Sequence[Any], seen_in_training: dict[str, Any] | None
) -> Path:
    joined: AnyPredictions = join(parts)
    kept = [
        json.loads((request.out / f"fold-{fold}" / "curves.json").read_text("utf-8"))
        for fold in range(len(parts))
    ]
    curves = {fold: one["curves"] for fold, one in enumerate(kept)}
    study = build_study(
        joined,
        model=request.model,
        init=str(request.init) if request.init else "scratch",
        config=request.settings.model_dump(mode="json"),
        seconds=sum(one["seconds"] for one in kept),
        versions=versions() | checkpoint.environment(),
        note=request.note,
        seen_in_training=seen_in_training,
    )
    write_predictions(joined, request.out / "predictions.csv")
    write_study(study, joined, curves, request.out)
    return request.out / "study.html"
