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
    held_out,
    make_folds,
    near_cases,
    read_folds,
    write_folds,
)
from tf_covid.cohort.manifest import Row, read_manifest
from tf_covid.errors import TrainingError
from tf_covid.experiment.predict import as_predictions
from tf_covid.experiment.run_folder import FitRequest, exclusive_run_folder
from tf_covid.pipeline import versions
from tf_covid.study.predictions import AnyPredictions, join, read_predictions, write_predictions
from tf_covid.study.seen import START, as_seen, seen_sentences
from tf_covid.study.study import build_study, write_study
from tf_covid.training import checkpoint as resume
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
Watch = Callable[[str, int], AbstractContextManager[Callable[[int, str], None]]]


def fit(
    wish: FitRequest,
    *,
    goes_on: bool = False,
    workers: int = 1,
    say: Callable[[str], None],
    watch: Watch,
    progress: cache.Progress | None = None,
) -> Path:
    """Train a network for each fold and write the study; what is done already is kept.

    Args:
        wish: What is to be trained.
        goes_on: Whether the run's folder holds a run that is to be finished.
        workers: Processes that fill the cache.
        say: Hears of each step, in a line.
        watch: Shows the epochs.
        progress: Shows the scans that are read.

    Returns:
        `study.html`.

    Raises:
        ManifestError, CohortError: If the cohort is not usable.
        TrainingError: If the run cannot start, go on or be resumed.
        ModelError: If `init` or the lung model is missing or damaged.
        OutputError: If something cannot be written.
    """
    if wish.model not in MODELS[wish.task]:
        raise TrainingError(
            f"the task {wish.task} is for {' or '.join(MODELS[wish.task])}, not for {wish.model}"
        )
    rows = read_manifest(wish.manifest)
    labels = labels_of(rows, wish.task)
    if (
        wish.settings.held_out
        and not held_out(list(labels), rows, labels, wish.settings.held_out, 0)[1]
    ):
        raise TrainingError("held_out: no class has two patients, so nobody can tell when to stop")
    if wish.folds_file:
        check_classes(read_folds(wish.folds_file), labels)  # before hours of reading scans
    elif not (wish.out / "folds.json").exists():
        make_folds(rows, labels, wish.folds, wish.settings.seed, by_site=wish.by_site)
    with exclusive_run_folder(wish, workers=workers, goes_on=goes_on, say=say):
        preprocessing, channels, shared = inherited(wish.init)
        _say_window(preprocessing, wish, say)
        preprocessing = wish.settings.preprocessing(preprocessing)
        wanted = _wanted(wish, rows, preprocessing)
        first = lesson_for(
            wish.task, wish.model, rows, labels, wish.settings, preprocessing, channels, wanted.grid
        )
        # A network that cannot be built, or read back, is no matter of hours later.
        build(wish.model, first.arguments | shared | _extra(wish), wish.out)
        entries = _cached(wish, rows, wanted, workers=workers, say=say, progress=progress)
        rows = [row for row in rows if row.case in entries]
        folds = _folds(wish, rows, labels, say)
        audit(_marks(rows, entries, say), folds)
        parent = _parent(wish, rows, entries, say)
        parts = []
        for fold in range(len(folds.names)):
            lesson = lesson_for(
                wish.task,
                wish.model,
                rows,
                labels,
                wish.settings,
                preprocessing,
                channels,
                wanted.grid,
            )
            lesson.arguments |= shared | _extra(wish)
            contract = _contract(wish, lesson, preprocessing, wanted)
            parts.append(
                _fold(
                    wish, fold, folds, rows, labels, entries, lesson, contract, say=say, watch=watch
                )
            )
        return _finish(wish, parts, len(folds.names), parent)


def _parent(
    wish: FitRequest,
    rows: Sequence[Row],
    entries: Mapping[str, cache.CacheRecord],
    say: Callable[[str], None],
) -> dict[str, Any] | None:
    """What the file that the run starts from says about the cohort, ready for JSON; None where it starts at random.

    Its scans are tested in some fold: their answers say nothing about new patients, and the study
    says so.
    """
    if wish.init is None:
        return None
    contract = read_contract(catalog.find(wish.init))
    patients = {row.case: row.patient for row in rows}
    pixels = {row.case: entries[row.case].marks["pixels"] for row in rows}
    found = as_seen([seen.look(catalog.name_of(wish.init), contract, pixels, patients)], len(rows))
    for sentence in seen_sentences(found, START):
        say(f"warning: {sentence}")
    return found


def _marks(
    rows: Sequence[Row], entries: Mapping[str, cache.CacheRecord], say: Callable[[str], None]
) -> dict[str, dict[str, str]]:
    """What must not be on both sides of a fold. An id that most patients have is the placeholder of an anonymiser."""
    owners: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        owners[entries[row.case].marks.get("patient", "")].add(row.patient)
    most = max(2, len({row.patient for row in rows}) // 2)
    common = {mark for mark, patients in owners.items() if mark and len(patients) > most}
    if common:
        say(
            "warning: most scans have the same PatientID in their headers: it is left out of the"
            " audit for leakage"
        )
    found = {}
    for row in rows:
        marks = dict(entries[row.case].marks)
        ours = marks.pop("patient", "")
        found[row.case] = {
            "patient": row.patient,
            "DICOM patient": "" if ours in common else ours,
            **marks,
        }
    return found


def _say_window(preprocessing: Preprocessing, wish: FitRequest, say: Callable[[str], None]) -> None:
    level, width = preprocessing.level_hu, preprocessing.width_hu
    if (level, width) != (Preprocessing().level_hu, Preprocessing().width_hu):
        say(
            f"window: {level - width / 2:g} to {level + width / 2:g} HU, as {wish.init} was trained"
            " with"
        )


def _wanted(wish: FitRequest, rows: Sequence[Row], preprocessing: Any) -> cache.CacheSpec:
    settings = wish.settings
    most = cache.LARGEST_GRID
    d, h, w = settings.working_grid or (
        max(min(2 * side, limit), side) for side, limit in zip(settings.clip, most, strict=True)
    )
    if settings.working_grid and any(
        side > limit for side, limit in zip(settings.working_grid, most, strict=True)
    ):
        raise TrainingError(f"working_grid must lie within {most}, not be {settings.working_grid}")
    planes = wish.task == "lungs"
    if planes:
        # A lung model meets whole slices at its own size.
        d, h, w = settings.working_grid[0] if settings.working_grid else most[0], *settings.clip[1:]
    lesions = wish.task == "slices" or bool(settings.disease_endpoints)
    if settings.disease_endpoints and (
        lacking := [row.case for row in rows if row.lesions is None]
    ):
        raise TrainingError(
            f"disease_endpoints need lesion masks of all cases; {len(lacking)} have none"
        )
    if planes:
        lesions = all(row.lesions for row in rows)
    sha256 = quarantine.sha256(catalog.find(wish.lungs))
    return cache.CacheSpec(
        "planes" if planes else "clips", (d, h, w), preprocessing, wish.lungs, sha256, lesions
    )


def _extra(wish: FitRequest) -> dict[str, Any]:
    dropout = {} if wish.settings.dropout is None else {"dropout": wish.settings.dropout}
    if fixed := wish.settings.network.keys() & {
        "input_shape",
        "classes",
        "ct_score",
        "outputs",
        "share",
        "dtype",
    }:
        raise TrainingError(f"network: {', '.join(sorted(fixed))} follow from the task")
    return dropout | wish.settings.network


def _cached(
    wish: FitRequest,
    rows: Sequence[Row],
    wanted: cache.CacheSpec,
    *,
    workers: int,
    say: Callable[[str], None],
    progress: cache.Progress | None,
) -> dict[str, cache.CacheRecord]:
    folder = wish.cache or wish.out / "cache"
    size = cache.needed_bytes(len(rows), wanted) / 1e6
    say(
        f"cache: {len(rows)} scans at {'×'.join(map(str, wanted.grid))}, {size:.0f} MB at most, in"
        f" {folder}"
    )
    filled = cache.fill(
        rows, folder, wanted, workers=workers, max_skipped=wish.max_skipped, progress=progress
    )
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([("case", "reason"), *filled.skipped.items()])
    write_text(table.getvalue(), wish.out / "skipped.csv")
    for case, why in filled.skipped.items():
        say(f"skipped {case}: {why}")
    if doubtful := [
        case for case, entry in filled.entries.items() if "mask_doubtful" in entry.quality_flags
    ]:
        listed = ", ".join(doubtful[:20]) + (
            f" and {len(doubtful) - 20} more" if len(doubtful) > 20 else ""
        )
        say(
            f"warning: look at the lung masks of {listed}: much of them is no aerated lung, or"
            " outside of the body"
        )
    if not filled.entries:
        raise TrainingError("no scan of the manifest can be used")
    return _as_before(wish.out / "records.json", filled.entries, say)


def _as_before(
    path: Path, entries: dict[str, cache.CacheRecord], say: Callable[[str], None]
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
        say(f"left out, since the run began without them: {', '.join(late)}")
    return {case: entry for case, entry in entries.items() if case in before}


def _folds(
    wish: FitRequest, rows: Sequence[Row], labels: Mapping[str, int], say: Callable[[str], None]
) -> Folds:
    """Those of the run, of another one, or new ones."""
    own = wish.out / "folds.json"
    if own.exists() or wish.folds_file:
        folds = read_folds(own if own.exists() else wish.folds_file or own)
        check_folds(folds, rows)
        check_classes(folds, labels)
    else:
        folds = make_folds(rows, labels, wish.folds, wish.settings.seed, by_site=wish.by_site)
    for cases in near_cases(rows):
        say(
            f"the patients of {' and '.join(cases)} have near-equal ids: they share a fold, as one"
            " person's would"
        )
    write_folds(folds, own)
    return folds


def _contract(
    wish: FitRequest, lesson: Lesson, preprocessing: Any, wanted: cache.CacheSpec
) -> Contract:
    task: Any = wish.task
    return Contract(
        model=wish.model,
        arguments=lesson.arguments,
        task=task,
        preprocessing=preprocessing,
        classes=CLASSES[wish.task],
        lungs_sha256=None if wish.task == "lungs" else wanted.lungs_sha256,
        note=wish.note,
    )


def _fold(
    wish: FitRequest,
    fold: int,
    folds: Folds,
    rows: Sequence[Row],
    labels: Mapping[str, int],
    entries: Mapping[str, cache.CacheRecord],
    lesson: Lesson,
    contract: Contract,
    *,
    say: Callable[[str], None],
    watch: Watch,
) -> AnyPredictions:
    """Train and test one fold, unless it is done."""
    folder, name = wish.out / f"fold-{fold}", f"fold {folds.names[fold]}"
    done = folder / "predictions.csv"
    if done.exists():
        say(f"{name}: done")
        return read_predictions(done)
    folder.mkdir(parents=True, exist_ok=True)
    train_cases, test_cases = folds.split(fold)
    teach, watched = held_out(train_cases, rows, labels, wish.settings.held_out, wish.settings.seed)
    plan = Plan(wish.model, lesson, wish.settings, wish.init, fold, wish.mirrored)
    say(
        f"{name}: {len(teach)} cases teach, {len(watched)} tell when to stop, {len(test_cases)} are"
        " tested"
    )
    with watch(name, wish.settings.epochs) as step:
        trained = train(
            plan,
            [entries[case] for case in teach],
            [entries[case] for case in watched],
            folder,
            told=lambda epoch, values: step(epoch, _line(epoch, wish.settings.epochs, values)),
            board=folder / "board",
        )
    origin = (
        f"tfcovid fit {wish.task}, {wish.model}, seed {wish.settings.seed}, {name}{trained.origin}"
    )
    # Those that told when to stop had a say, too.
    learned = _trained_on(wish, [*teach, *watched], rows, entries)
    contract = contract.model_copy(update={"origin": origin, "trained_on": learned})
    save_model(trained.network, contract, folder / "model.keras")
    write_text(
        json.dumps({"curves": trained.curves, "seconds": trained.seconds}), folder / "curves.json"
    )
    # Tested on the file: what it answers is what its user gets.
    tested = [entries[case] for case in test_cases]
    answers = lesson.answers(load(folder / "model.keras").network, tested)
    by_case = {row.case: row for row in rows}
    found = as_predictions(wish.task, [by_case[case] for case in test_cases], labels, answers, fold)
    write_predictions(found, done)
    for state in ("state.npz", "best.npz"):
        (folder / state).unlink(missing_ok=True)
    return found


def _trained_on(
    wish: FitRequest,
    cases: Sequence[str],
    rows: Sequence[Row],
    entries: Mapping[str, cache.CacheRecord],
) -> tuple[TrainedOn, ...]:
    """Fingerprints of what a fold learned from, and of what the weights that it started from had."""
    pixels = [entries[case].marks["pixels"] for case in cases]
    patients = (
        {row.patient for row in rows if row.case in set(cases)} if wish.patient_fingerprints else ()
    )
    own = seen.fingerprints(pixels, patients, seed=wish.settings.seed)
    if wish.init is None:
        return (own,)
    return (
        own,
        *seen.ancestors(catalog.name_of(wish.init), read_contract(catalog.find(wish.init))),
    )


def _line(epoch: int, epochs: int, values: Mapping[str, float]) -> str:
    shown = ", ".join(
        f"{name} {value:.4g}" for name, value in values.items() if not name.endswith("_loss")
    )
    watched = f", val_loss {values['val_loss']:.4g}" if "val_loss" in values else ""
    return f"epoch {epoch + 1}/{epochs}: {shown}{watched}"


def _finish(
    wish: FitRequest, parts: Sequence[Any], count: int, parent: dict[str, Any] | None
) -> Path:
    joined: AnyPredictions = join(parts)
    kept = [
        json.loads((wish.out / f"fold-{fold}" / "curves.json").read_text("utf-8"))
        for fold in range(count)
    ]
    curves = {fold: one["curves"] for fold, one in enumerate(kept)}
    study = build_study(
        joined,
        model=wish.model,
        init=str(wish.init) if wish.init else "scratch",
        config=wish.settings.model_dump(mode="json"),
        seconds=sum(one["seconds"] for one in kept),
        versions=versions() | resume.environment(),
        note=wish.note,
        seen_in_training=parent,
    )
    write_predictions(joined, wish.out / "predictions.csv")
    write_study(study, joined, curves, wish.out)
    return wish.out / "study.html"
