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

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
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
from tf_covid.experiment.run_folder import FitRequest, exclusive_run_folder
from tf_covid.pipeline import versions
from tf_covid.study.combine import join
from tf_covid.study.predictions import read_predictions, write_predictions
from tf_covid.study.records import AnyPredictions
from tf_covid.study.seen import START, as_seen, seen_sentences
from tf_covid.study.study import build_study, write_study
from tf_covid.training import checkpoint
from tf_covid.training.fold import Plan, train
from tf_covid.training.initialise import inherited
from tf_covid.training.tasks import CLASSES, MODELS, Lesson, labels_of, lesson_for
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
    if request.model not in MODELS[request.task]:
        raise TrainingError(
            f"the task {request.task} is for {' or '.join(MODELS[request.task])}, not for {request.model}"
        )
    rows = read_manifest(request.manifest)
    labels = labels_of(rows, request.task)
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
        check_classes(read_folds(request.folds_file), labels)  # before hours of reading scans
    elif not (request.out / "folds.json").exists():
        make_folds(rows, labels, request.folds, request.settings.seed, by_site=request.by_site)
    with exclusive_run_folder(request, workers=workers, resume=resume, on_message=on_message):
        preprocessing, channels, shared = inherited(request.init)
        _report_window(preprocessing, request, on_message)
        preprocessing = request.settings.preprocessing(preprocessing)
        wanted = _wanted(request, rows, preprocessing)
        first = lesson_for(
            request.task,
            request.model,
            rows,
            labels,
            request.settings,
            preprocessing,
            channels,
            wanted.grid,
        )
        # A network that cannot be built, or read back, is no matter of hours later.
        build(request.model, first.arguments | shared | _extra(request), request.out)
        entries = _cached(
            request, rows, wanted, workers=workers, on_message=on_message, progress=progress
        )
        rows = [row for row in rows if row.case in entries]
        folds = _folds(request, rows, labels, on_message)
        audit(_marks(rows, entries, on_message), folds)
        parent = _parent(request, rows, entries, on_message)
        parts = []
        for fold in range(len(folds.names)):
            lesson = lesson_for(
                request.task,
                request.model,
                rows,
                labels,
                request.settings,
                preprocessing,
                channels,
                wanted.grid,
            )
            lesson.arguments |= shared | _extra(request)
            contract = _contract(request, lesson, preprocessing, wanted)
            parts.append(
                _fold(
                    request,
                    fold,
                    folds,
                    rows,
                    labels,
                    entries,
                    lesson,
                    contract,
                    on_message=on_message,
                    epoch_progress=epoch_progress,
                )
            )
        return _finish(request, parts, len(folds.names), parent)


def _parent(
    request: FitRequest,
    rows: Sequence[ManifestRow],
    entries: Mapping[str, cache.CacheRecord],
    on_message: Callable[[str], None],
) -> dict[str, Any] | None:
    """What the file that the run starts from says about the cohort, ready for JSON; None where it starts at random.

    Its scans are tested in some fold: their answers say nothing about new patients, and the study
    says so.
    """
    if request.init is None:
        return None
    contract = read_contract(catalog.find(request.init))
    patients = {row.case: row.patient for row in rows}
    pixels = {row.case: entries[row.case].fingerprints["pixels"] for row in rows}
    found = as_seen(
        [seen.look(catalog.name_of(request.init), contract, pixels, patients)], len(rows)
    )
    for sentence in seen_sentences(found, START):
        on_message(f"warning: {sentence}")
    return found


def _marks(
    rows: Sequence[ManifestRow],
    entries: Mapping[str, cache.CacheRecord],
    on_message: Callable[[str], None],
) -> dict[str, dict[str, str]]:
    """What must not be on both sides of a fold. An id that most patients have is the placeholder of an anonymiser."""
    owners: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        owners[entries[row.case].fingerprints.get("patient", "")].add(row.patient)
    most = max(2, len({row.patient for row in rows}) // 2)
    common = {mark for mark, patients in owners.items() if mark and len(patients) > most}
    if common:
        on_message(
            "warning: most scans have the same PatientID in their headers: it is left out of the"
            " audit for leakage"
        )
    found = {}
    for row in rows:
        fingerprints = dict(entries[row.case].fingerprints)
        ours = fingerprints.pop("patient", "")
        found[row.case] = {
            "patient": row.patient,
            "DICOM patient": "" if ours in common else ours,
            **fingerprints,
        }
    return found


def _report_window(
    preprocessing: Preprocessing, request: FitRequest, on_message: Callable[[str], None]
) -> None:
    level, width = preprocessing.level_hu, preprocessing.width_hu
    if (level, width) != (Preprocessing().level_hu, Preprocessing().width_hu):
        on_message(
            f"window: {level - width / 2:g} to {level + width / 2:g} HU, as {request.init} was trained"
            " with"
        )


def _wanted(
    request: FitRequest, rows: Sequence[ManifestRow], preprocessing: Any
) -> cache.CacheSpec:
    settings = request.settings
    most = cache.LARGEST_GRID
    d, h, w = settings.working_grid or (
        max(min(2 * side, limit), side) for side, limit in zip(settings.clip, most, strict=True)
    )
    if settings.working_grid and any(
        side > limit for side, limit in zip(settings.working_grid, most, strict=True)
    ):
        raise TrainingError(f"working_grid must lie within {most}, not be {settings.working_grid}")
    planes = request.task == "lungs"
    if planes:
        # A lung model meets whole slices at its own size.
        d, h, w = settings.working_grid[0] if settings.working_grid else most[0], *settings.clip[1:]
    lesions = request.task == "slices" or bool(settings.disease_endpoints)
    if settings.disease_endpoints and (
        lacking := [row.case for row in rows if row.lesions is None]
    ):
        raise TrainingError(
            f"disease_endpoints need lesion masks of all cases; {len(lacking)} have none"
        )
    if planes:
        lesions = all(row.lesions for row in rows)
    sha256 = quarantine.sha256(catalog.find(request.lungs))
    return cache.CacheSpec(
        "planes" if planes else "clips", (d, h, w), preprocessing, request.lungs, sha256, lesions
    )


def _extra(request: FitRequest) -> dict[str, Any]:
    dropout = {} if request.settings.dropout is None else {"dropout": request.settings.dropout}
    if fixed := request.settings.network.keys() & {
        "input_shape",
        "classes",
        "ct_score",
        "outputs",
        "share",
        "dtype",
    }:
        raise TrainingError(f"network: {', '.join(sorted(fixed))} follow from the task")
    return dropout | request.settings.network


def _cached(
    request: FitRequest,
    rows: Sequence[ManifestRow],
    wanted: cache.CacheSpec,
    *,
    workers: int,
    on_message: Callable[[str], None],
    progress: cache.Progress | None,
) -> dict[str, cache.CacheRecord]:
    folder = request.cache or request.out / "cache"
    size = cache.needed_bytes(len(rows), wanted) / 1e6
    on_message(
        f"cache: {len(rows)} scans at {'×'.join(map(str, wanted.grid))}, {size:.0f} MB at most, in"
        f" {folder}"
    )
    filled = cache.fill(
        rows, folder, wanted, workers=workers, max_skipped=request.max_skipped, progress=progress
    )
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([("case", "reason"), *filled.skipped.items()])
    write_text(table.getvalue(), request.out / "skipped.csv")
    for case, why in filled.skipped.items():
        on_message(f"skipped {case}: {why}")
    if doubtful := [
        case for case, entry in filled.entries.items() if "mask_doubtful" in entry.quality_flags
    ]:
        listed = ", ".join(doubtful[:20]) + (
            f" and {len(doubtful) - 20} more" if len(doubtful) > 20 else ""
        )
        on_message(
            f"warning: look at the lung masks of {listed}: much of them is no aerated lung, or"
            " outside of the body"
        )
    if not filled.entries:
        raise TrainingError("no scan of the manifest can be used")
    return _as_before(request.out / "records.json", filled.entries, on_message)


def _as_before(
    path: Path, entries: dict[str, cache.CacheRecord], on_message: Callable[[str], None]
) -> dict[str, cache.CacheRecord]:
    """The scans that the run began with, and that they are the same; a run that begins writes down which.

    Raises:
        TrainingError: If one of them has changed or can no longer be read.
    """
    now = {case: entry.path.stem for case, entry in entries.items()}
    if not path.exists():
        write_text(json.dumps(now, indent=1), path)
        return entries
    try:
        before: dict[str, str] = dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise TrainingError(f"{path}: cannot be read; begin anew in another folder") from error
    if lost := sorted(before.keys() - now.keys()):
        raise TrainingError(f"the run began with {', '.join(lost)}, which cannot be read now")
    if changed := sorted(case for case, mark in before.items() if now[case] != mark):
        raise TrainingError(f"since the run began, scan or masks changed of {', '.join(changed)}")
    if late := sorted(now.keys() - before.keys()):
        on_message(f"left out, since the run began without them: {', '.join(late)}")
    return {case: entry for case, entry in entries.items() if case in before}


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


def _contract(
    request: FitRequest, lesson: Lesson, preprocessing: Any, wanted: cache.CacheSpec
) -> Contract:
    task: Any = request.task
    return Contract(
        model=request.model,
        arguments=lesson.arguments,
        task=task,
        preprocessing=preprocessing,
        classes=CLASSES[request.task],
        lungs_sha256=None if request.task == "lungs" else wanted.lungs_sha256,
        note=request.note,
    )


def _fold(
    request: FitRequest,
    fold: int,
    folds: Folds,
    rows: Sequence[ManifestRow],
    labels: Mapping[str, int],
    entries: Mapping[str, cache.CacheRecord],
    lesson: Lesson,
    contract: Contract,
    *,
    on_message: Callable[[str], None],
    epoch_progress: EpochProgress,
) -> AnyPredictions:
    """Train and test one fold, unless it is done."""
    folder, name = request.out / f"fold-{fold}", f"fold {folds.names[fold]}"
    done = folder / "predictions.csv"
    if done.exists():
        on_message(f"{name}: done")
        return read_predictions(done)
    folder.mkdir(parents=True, exist_ok=True)
    training_side, test_cases = folds.split(fold)
    train_cases, validation_cases = split_validation(
        training_side, rows, labels, request.settings.validation_fraction, request.settings.seed
    )
    plan = Plan(request.model, lesson, request.settings, request.init, fold, request.mirrored)
    on_message(
        f"{name}: train {len(train_cases)}, validation {len(validation_cases)},"
        f" test {len(test_cases)}"
    )
    with epoch_progress(name, request.settings.epochs) as step:
        trained = train(
            plan,
            [entries[case] for case in train_cases],
            [entries[case] for case in validation_cases],
            folder,
            on_epoch_end=lambda epoch, values: step(
                epoch, _line(epoch, request.settings.epochs, values)
            ),
            board=folder / "board",
        )
    origin = f"tfcovid fit {request.task}, {request.model}, seed {request.settings.seed}, {name}{trained.origin}"
    # The validation cases had a say in when to stop.
    learned = _trained_on(request, [*train_cases, *validation_cases], rows, entries)
    contract = contract.model_copy(update={"origin": origin, "trained_on": learned})
    save_model(trained.network, contract, folder / "model.keras")
    write_text(
        json.dumps({"curves": trained.curves, "seconds": trained.seconds}), folder / "curves.json"
    )
    # Tested on the file: what it answers is what its user gets.
    tested = [entries[case] for case in test_cases]
    answers = lesson.answers(load(folder / "model.keras").network, tested)
    by_case = {row.case: row for row in rows}
    found = as_predictions(
        request.task, [by_case[case] for case in test_cases], labels, answers, fold
    )
    write_predictions(found, done)
    for state in ("state.npz", "best.npz"):
        (folder / state).unlink(missing_ok=True)
    return found


def _trained_on(
    request: FitRequest,
    cases: Sequence[str],
    rows: Sequence[ManifestRow],
    entries: Mapping[str, cache.CacheRecord],
) -> tuple[TrainedOn, ...]:
    """Fingerprints of what a fold learned from, and of what the weights that it started from had."""
    pixels = [entries[case].fingerprints["pixels"] for case in cases]
    patients = (
        {row.patient for row in rows if row.case in set(cases)}
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
    request: FitRequest, parts: Sequence[Any], count: int, parent: dict[str, Any] | None
) -> Path:
    joined: AnyPredictions = join(parts)
    kept = [
        json.loads((request.out / f"fold-{fold}" / "curves.json").read_text("utf-8"))
        for fold in range(count)
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
        seen_in_training=parent,
    )
    write_predictions(joined, request.out / "predictions.csv")
    write_study(study, joined, curves, request.out)
    return request.out / "study.html"
