"""`tfcovid fit`: a manifest in; cache, folds, a network a fold, and the study of their answers out.

RUN/run.json          what was asked for; a run that is resumed must ask for the same
RUN/folds.json        who is tested in which fold
RUN/records.json      which record of the cache each case is: a scan that changes under a run is
                      noticed
RUN/skipped.csv       scans that cannot be used, and why
RUN/cache/            records of the scans, if no other folder was named
RUN/fold-<k>/         model.keras, predictions.csv, curves.json; state.npz while it trains; board/
                      for TensorBoard
RUN/predictions.csv, study.json, study.html, figures/

Without folds (`--folds none`), one network learns from all but the validation cases, and the study
is that of the validation cases:

RUN/split.json        which case trains, and which validates
RUN/model.keras, curves.json, board/; state.npz while it trains
RUN/predictions.csv, study.json, study.html, figures/
RUN/chests.json       of `phantom:N`: class of the chests of the first epoch, in place of split.json
                      and records.json
RUN/fresh/            of `phantom:N`: records of chests that came later, as long as they are needed
"""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

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
from tf_covid.experiment import phantom_source
from tf_covid.experiment.checks import check_network, check_splits, report_window, seen_by_init
from tf_covid.experiment.one_network import (
    EpochProgress,
    Sides,
    note_of,
    train_and_test,
    trained_on_scans,
    with_ancestors,
)
from tf_covid.experiment.records import cache_spec, fill_cache, identities
from tf_covid.experiment.run_folder import FitRequest, exclusive_fold, exclusive_run_folder
from tf_covid.phantom.mark import phantom_mark
from tf_covid.pipeline import utc, versions
from tf_covid.study.combine import join
from tf_covid.study.predictions import write_predictions
from tf_covid.study.records import AnyPredictions
from tf_covid.study.study import build_study, write_study
from tf_covid.training import checkpoint
from tf_covid.training.fold import SameRecords
from tf_covid.training.network_spec import NetworkSpec
from tf_covid.training.tasks import ClipObjective, Objective, labels_of, objective_for
from tf_covid.training.worker_group import WorkerGroup
from tf_covid.weights.contract import TrainedOn

Prepared = TypeVar("Prepared")


def fit(
    request: FitRequest,
    *,
    resume: bool = False,
    workers: int = 1,
    on_message: Callable[[str], None],
    epoch_progress: EpochProgress,
    progress: cache.Progress | None = None,
    group: WorkerGroup | None = None,
    elsewhere: Callable[[FoldsPlan, Sequence[int]], None] | None = None,
) -> Path:
    """Train a network for each fold and write the study; what is done already is kept.

    Args:
        request: What is to be trained.
        resume: Whether the run's folder holds a run that is to be finished.
        workers: Processes that fill the cache.
        on_message: Hears of each step, in a line.
        epoch_progress: Shows the epochs.
        progress: Shows the scans that are read.
        group: Workers that train each network together; all of them call this, with the same
            request. The chief alone writes the run's folder; each reads the scans that its cache
            lacks.
        elsewhere: Has the given folds trained by `train_fold` in other processes, and returns when
            they are done.

    Returns:
        `study.html`; for a worker that is not the chief, where the chief writes it.

    Raises:
        ManifestError, CohortError: If the cohort is not usable.
        TrainingError: If the run cannot start, go on or be resumed.
        ModelError: If `init` or the lung model is missing or damaged.
        OutputError: If something cannot be written.
    """
    if group is not None:
        with group.together():
            if group.is_chief:
                return _fit(
                    request, resume, workers, on_message, epoch_progress, progress, group=group
                )
            # Of the cache there may be one for all, or one on each machine.
            shared = request.chests is None and request.out.absolute().parent.is_dir()
            own = request.cache or (request.out / "cache" if shared else None)
            with tempfile.TemporaryDirectory(prefix="tfcovid-") as folder:
                scratch = dataclasses.replace(request, out=Path(folder), cache=own)
                _fit(scratch, False, workers, on_message, epoch_progress, progress, group=group)
            return request.out / "study.html"
    return _fit(request, resume, workers, on_message, epoch_progress, progress, elsewhere=elsewhere)


def _fit(
    request: FitRequest,
    resume: bool,
    workers: int,
    on_message: Callable[[str], None],
    epoch_progress: EpochProgress,
    progress: cache.Progress | None,
    *,
    group: WorkerGroup | None = None,
    elsewhere: Callable[[FoldsPlan, Sequence[int]], None] | None = None,
) -> Path:
    if request.chests is not None:
        return _fit_phantom(request, resume, workers, on_message, epoch_progress, group)
    rows = read_manifest(request.manifest)
    network = NetworkSpec.of(request.task, request.model, rows, request.settings, request.init)
    labels = labels_of(rows, request.task)
    check_splits(request, rows, labels)
    with exclusive_run_folder(request, workers=workers, resume=resume, on_message=on_message):
        report_window(network, on_message)
        spec = cache_spec(request, rows, network.preprocessing)
        objective = objective_for(request.task, network, rows, labels, request.settings, spec.grid)
        check_network(request, network)
        records = _in_turn(
            group,
            request,
            functools.partial(
                fill_cache,
                request,
                rows,
                spec,
                workers=workers,
                on_message=on_message,
                progress=progress,
            ),
        )
        rows = [row for row in rows if row.case in records]
        if request.single:
            return _fit_single(
                request,
                network,
                objective,
                rows,
                labels,
                records,
                on_message,
                epoch_progress,
                group,
            )
        folds = _folds(request, rows, labels, on_message)
        audit(identities(rows, records, on_message), folds)
        seen_in_training = seen_by_init(request, rows, records, on_message)
        cohort = _Cohort(rows, labels, records, folds)
        if elsewhere is not None:
            plan = FoldsPlan(request, network, cohort, spec.grid)
            elsewhere(plan, [fold for fold in plan.folds if not plan.done(fold)])
        parts = [
            _run_fold(request, network, objective, cohort, fold, on_message, epoch_progress, group)
            for fold in range(len(folds.names))
        ]
        return _finish(request, parts, len(rows), seen_in_training)


def _fit_single(
    request: FitRequest,
    network: NetworkSpec,
    objective: Objective,
    rows: Sequence[ManifestRow],
    labels: Mapping[str, int],
    records: Mapping[str, cache.CacheRecord],
    on_message: Callable[[str], None],
    epoch_progress: EpochProgress,
    group: WorkerGroup | None,
) -> Path:
    """One network, trained on all scans but the validation cases, which it answers in the end."""
    train_cases, validation_cases = split_validation(
        [row.case for row in rows],
        rows,
        labels,
        request.settings.validation_fraction,
        request.settings.seed,
    )
    sides = {"training": train_cases, "validation": validation_cases}
    audit(
        identities(rows, records, on_message),
        Folds(
            kind="stratified",
            seed=request.settings.seed,
            names=tuple(sides),
            test={case: side for side, cases in enumerate(sides.values()) for case in cases},
        ),
    )
    write_text(json.dumps(sides, indent=1), request.out / "split.json")
    validation_rows = [row for row in rows if row.case in set(validation_cases)]
    seen_in_training = seen_by_init(request, validation_rows, records, on_message)
    part = train_and_test(
        request,
        network,
        objective,
        Sides(
            name="training",
            folder=request.out,
            fold=0,
            training_set=SameRecords([records[case] for case in train_cases]),
            validation=[records[case] for case in validation_cases],
            tested=[records[case] for case in validation_cases],
            rows={row.case: row for row in rows},
            labels=labels,
            trained_on=lambda _: trained_on_scans(
                request, [*train_cases, *validation_cases], rows, records
            ),
        ),
        on_message,
        epoch_progress,
        group,
    )
    return _finish(request, [part], len(rows), seen_in_training)


def _fit_phantom(
    request: FitRequest,
    resume: bool,
    workers: int,
    on_message: Callable[[str], None],
    epoch_progress: EpochProgress,
    group: WorkerGroup | None,
) -> Path:
    """One network, trained on synthetic chests that are drawn for it."""
    examples = phantom_source.example_rows()
    network = NetworkSpec.of(request.task, request.model, examples, request.settings, request.init)
    with exclusive_run_folder(request, workers=workers, resume=resume, on_message=on_message):
        report_window(network, on_message)
        spec = cache_spec(request, examples, network.preprocessing)
        check_network(request, network)
        with phantom_source.PhantomCohort(
            request.task,
            request.settings,
            request.chests or 0,
            spec,
            out=request.out,
            folder=request.cache or request.out / "cache",
            shared=request.cache is not None,
            workers=workers,
            on_message=on_message,
        ) as chests:
            objective = objective_for(
                request.task, network, examples, chests.labels, request.settings, spec.grid
            )
            if isinstance(objective, ClipObjective):
                # Later chests are known once they are drawn.
                objective = dataclasses.replace(objective, rows=chests.rows)
            on_message(
                f"phantom {phantom_mark()}: {request.chests} chests,"
                f" {chests.fresh} of them new in each epoch"
            )
            # Each draws its own, all at once; where a run goes on, of the same first chests.
            _in_turn(group, request, lambda: None)
            validation = chests.start()
            rows = [chests.rows[record.case] for record in validation]
            records = {record.case: record for record in validation}
            seen_in_training = seen_by_init(request, rows, records, on_message)
            part = train_and_test(
                request,
                network,
                objective,
                Sides(
                    name="training",
                    folder=request.out,
                    fold=0,
                    training_set=chests,
                    validation=validation,
                    tested=validation,
                    rows=chests.rows,
                    labels=chests.labels,
                    trained_on=lambda epochs: with_ancestors(
                        request, TrainedOn(unchecked=chests.describe(epochs))
                    ),
                    origin=f", phantom {phantom_mark()}",
                ),
                on_message,
                epoch_progress,
                group,
            )
        return _finish(request, [part], request.chests or 0, seen_in_training)


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


@dataclass(frozen=True)
class FoldsPlan:
    """All that the folds of a run are trained from; it can be pickled.

    Args:
        request: What is to be trained; its paths are seen by whoever trains.
        network: The network, complete.
        cohort: The scans of the run.
        grid: Frames, height and width of their records.
    """

    request: FitRequest
    network: NetworkSpec
    cohort: _Cohort
    grid: tuple[int, int, int]

    @property
    def folds(self) -> range:
        """Indices of the folds."""
        return range(len(self.cohort.folds.names))

    def name(self, fold: int) -> str:
        """What a fold is called at the terminal."""
        return f"fold {self.cohort.folds.names[fold]}"

    def done(self, fold: int) -> bool:
        """Whether a fold is trained and tested."""
        return (self.request.out / f"fold-{fold}" / "predictions.csv").exists()

    def files(self) -> list[Path]:
        """What has to be there for whoever trains."""
        return [
            self.request.out / "run.json",
            *(record.path for record in self.cohort.records.values()),
        ]


def train_fold(
    plan: FoldsPlan,
    fold: int,
    *,
    on_message: Callable[[str], None],
    epoch_progress: EpochProgress,
) -> None:
    """Train and test one fold of a run whose folder another process holds, or go on with it.

    Args:
        plan: What the folds are trained from.
        fold: Index of the fold.
        on_message: Hears of each step, in a line.
        epoch_progress: Shows the epochs.

    Raises:
        TrainingError: If the network cannot be trained, or another process trains it.
        OutputError: If something cannot be written.
    """
    request, cohort = plan.request, plan.cohort
    objective = objective_for(
        request.task, plan.network, cohort.rows, cohort.labels, request.settings, plan.grid
    )
    with exclusive_fold(request, fold):
        _run_fold(request, plan.network, objective, cohort, fold, on_message, epoch_progress, None)


def _in_turn(
    group: WorkerGroup | None, request: FitRequest, work: Callable[[], Prepared]
) -> Prepared:
    """Read or draw what a run learns from: the chief of a group first, and the others the same."""
    if group is None:
        return work()
    return group.after_chief(request.out, ("records.json", "folds.json", "chests.json"), work)


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
    group: WorkerGroup | None,
) -> AnyPredictions | None:
    """Train and test one fold, unless it is done."""
    folder, name = request.out / f"fold-{fold}", f"fold {cohort.folds.names[fold]}"
    training_side, test_cases = cohort.folds.split(fold)
    train_cases, validation_cases = split_validation(
        training_side,
        cohort.rows,
        cohort.labels,
        request.settings.validation_fraction,
        request.settings.seed,
    )
    return train_and_test(
        request,
        network,
        objective,
        Sides(
            name=name,
            folder=folder,
            fold=fold,
            training_set=SameRecords([cohort.records[case] for case in train_cases]),
            validation=[cohort.records[case] for case in validation_cases],
            tested=[cohort.records[case] for case in test_cases],
            rows={row.case: row for row in cohort.rows},
            labels=cohort.labels,
            # The validation cases had a say in when to stop.
            trained_on=lambda _: trained_on_scans(
                request, [*train_cases, *validation_cases], cohort.rows, cohort.records
            ),
        ),
        on_message,
        epoch_progress,
        group,
    )


def _finish(
    request: FitRequest,
    parts: Sequence[Any],
    scans: int,
    seen_in_training: dict[str, Any] | None,
) -> Path:
    if None in parts:  # the chief's are whole
        return request.out / "study.html"
    joined: AnyPredictions = join(parts)
    files = [
        folder / "curves.json"
        for folder in (
            [request.out]
            if request.single
            else [request.out / f"fold-{fold}" for fold in range(len(parts))]
        )
    ]
    kept = [json.loads(file.read_text("utf-8")) for file in files]
    curves = {fold: one["curves"] for fold, one in enumerate(kept)}
    study = build_study(
        joined,
        model=request.model,
        init=str(request.init) if request.init else "scratch",
        config=request.settings.model_dump(mode="json"),
        seconds=sum(one["seconds"] for one in kept),
        versions=versions() | checkpoint.environment(),
        note=note_of(request),
        seen_in_training=seen_in_training,
        measured_on="validation cases" if request.single else "test cases",
        cohort=request.cohort(scans),
        # When the last network answered: a run that is finished again keeps its time. Files of an
        # earlier version do not say it; they were written then.
        measured_at=max(
            one.get("measured_at") or utc(file.stat().st_mtime)
            for one, file in zip(kept, files, strict=True)
        ),
    )
    write_predictions(joined, request.out / "predictions.csv")
    write_study(study, joined, curves, request.out)
    return request.out / "study.html"
