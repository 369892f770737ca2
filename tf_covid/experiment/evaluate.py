"""`tfcovid evaluate`: frozen models on somebody else's labelled cohort."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tf_covid.atomic import make_folder
from tf_covid.cohort import cache
from tf_covid.cohort.manifest import ManifestRow, read_manifest
from tf_covid.errors import CohortError, ModelError, OutputError
from tf_covid.experiment.predict import as_predictions
from tf_covid.local import check_ensemble
from tf_covid.pipeline import now, versions
from tf_covid.preprocessor import LungModels, default_lobes
from tf_covid.study.combine import ensemble
from tf_covid.study.predictions import write_predictions
from tf_covid.study.records import AnyPredictions
from tf_covid.study.seen import as_seen, seen_sentences
from tf_covid.study.study import build_study, write_study
from tf_covid.tasks import TASKS
from tf_covid.training.network_spec import NetworkSpec
from tf_covid.training.settings import Settings
from tf_covid.training.tasks import labels_of, objective_for
from tf_covid.weights import LoadedModel, load, quarantine, seen
from tf_covid.weights.catalog import LUNGS, NO_LOBES
from tf_covid.weights.contract import check_trained


def evaluate(
    sources: Sequence[str | Path],
    manifest: Path,
    out: Path,
    *,
    lungs: str | Path | None = None,
    lobes: str | Path | None = None,
    allow_other_lungs: bool = False,
    max_skipped: int = 0,
    workers: int = 1,
    on_message: Callable[[str], None],
    progress: cache.Progress | None = None,
) -> Path:
    """Measure frozen models; several classifiers answer with the mean of their probabilities.

    Cases that a model was trained on are answered as well, and the study says how many they are;
    and where a file does not say what it was trained on, the study says that.

    Args:
        sources: Shipped names or `.keras` files, of one task.
        manifest: The cohort, with what is true of it.
        out: Folder of `study.json`, `study.html`, their figures, `predictions.csv` and the cache,
            which a killed call goes on with.
        lungs: 2D lung model; None: the one that ships.
        lobes: 3D lobe model, or "none"; None: the shipped one, where the models were trained behind
            it.
        allow_other_lungs: Measure behind other lung models than they were trained behind.
        max_skipped: Most scans that may be unusable.
        workers: Processes that read scans.
        on_message: Hears of each step, in a line.
        progress: Shows the scans that are read.

    Returns:
        `study.html`.

    Raises:
        ManifestError, CohortError: If the cohort is not usable.
        ModelError: If a model is missing, damaged or untrained, or they do not go together.
        OutputError: If something cannot be written.
    """
    if (out / "run.json").exists():
        raise OutputError(
            f"{out}: holds a run of tfcovid fit, whose study would be written over; choose another"
            " --out"
        )
    models = [load(source) for source in sources]
    pair = LungModels.read(
        lungs or LUNGS, lobes or default_lobes([model.contract for model in models])
    )
    for warning in _check_models(models, pair, allow_other_lungs):
        on_message(f"warning: {warning}")
    task = models[0].contract.task
    rows = read_manifest(manifest)
    manifest_sha256 = quarantine.sha256(manifest)
    labels = labels_of(rows, task)
    make_folder(out)
    members: list[Any] = []
    sightings: list[seen.Sighting] = []
    patients = {row.case: row.patient for row in rows}
    skipped: dict[str, str] = {}
    for model in models:
        filled = cache.fill(
            rows,
            out / "cache",
            _cache_spec(model, rows, pair),
            workers=workers,
            max_skipped=max_skipped,
            progress=progress,
        )
        skipped |= filled.skipped
        members.append(_answers(model, rows, labels, filled.records, pair))
        pixels = {case: record.fingerprints["pixels"] for case, record in filled.records.items()}
        sightings.append(seen.look(model.name, model.contract, pixels, patients))
    measured_at = now()
    for case, why in skipped.items():
        on_message(f"skipped {case}: {why}")
    results: AnyPredictions = ensemble(members) if len(members) > 1 else members[0]
    known = as_seen(sightings, len(set(results.cases)))
    for sentence in seen_sentences(known):
        on_message(f"warning: {sentence}")
    study = build_study(
        results,
        model=" + ".join(model.name for model in models),
        init="frozen",
        config={"models": [model.sha256 for model in models], "skipped": skipped},
        seconds=None,
        versions=versions(),
        note=" ".join(dict.fromkeys(model.contract.note for model in models)),
        seen_in_training=known,
        cohort={
            "name": manifest.name,
            "sha256": manifest_sha256,
            "scans": len(set(results.cases)),
        },
        measured_at=measured_at,
    )
    write_predictions(results, out / "predictions.csv")
    write_study(study, results, {}, out)
    return out / "study.html"


def _check_models(
    models: Sequence[LoadedModel], pair: LungModels, allow_other_lungs: bool
) -> Iterator[str]:
    """Refuse models that do not go together; a line for each that stands behind other lungs."""
    for model in models:
        check_trained(model.name, model.contract)
    tasks = sorted({model.contract.task for model in models})
    if len(tasks) > 1 or tasks[0] not in TASKS:
        raise ModelError(
            f"models of one task, {', '.join(TASKS)}, are needed, not {', '.join(tasks)}"
        )
    task = TASKS[tasks[0]]
    if not task.classifies_scans and len(models) > 1:
        raise ModelError(
            f"several models of the task {tasks[0]} do not answer together; evaluate them one"
            " by one"
        )
    if task.classifies_scans:
        check_ensemble(models)
    for model in models if task.cache_kind == "clips" else ():
        if reason := pair.differs_from(model.contract):
            if not allow_other_lungs:
                raise ModelError(
                    f"other_lungs: {model.name} {reason}; --allow-other-lungs answers all the same"
                )
            yield f"other_lungs: {model.name} {reason}"


def _cache_spec(
    model: LoadedModel, rows: Sequence[ManifestRow], pair: LungModels
) -> cache.CacheSpec:
    """Records on the network's own grid: the clip is the one that `infer` makes."""
    task, shape = TASKS[model.contract.task], model.network.input_shape
    d, h, w = shape[1:4] if len(shape) == 5 else (cache.LARGEST_GRID[0], *shape[1:3])
    lesions = {
        "always": True,
        "where all have them": all(row.lesions for row in rows),
        "for deep supervision": False,
        "never": False,
    }[task.lesions]
    lobes = pair.lobes
    return cache.CacheSpec(
        task.cache_kind,
        (d, h, w),
        model.contract.preprocessing,
        pair.lungs.source,
        pair.lungs.file_sha256,
        lesions,
        lobes.source if lobes else NO_LOBES,
        lobes.file_sha256 if lobes else "",
    )


def _answers(
    model: LoadedModel,
    rows: Sequence[ManifestRow],
    labels: Mapping[str, int],
    records: Mapping[str, cache.CacheRecord],
    pair: LungModels,
) -> AnyPredictions:
    used = [row for row in rows if row.case in records]
    if not used:
        raise CohortError("no scan of the manifest can be used")
    spec = _cache_spec(model, rows, pair)
    shape = model.network.input_shape
    clip = shape[1:4] if len(shape) == 5 else (1, *shape[1:3])
    contract = model.contract
    arguments = contract.arguments | {"input_shape": list(shape[1:])}
    objective = objective_for(
        contract.task,
        NetworkSpec(contract.model, arguments, contract.preprocessing),
        used,
        labels,
        Settings(clip=clip),
        spec.grid,
    )
    asked = [records[row.case] for row in used]
    answers = objective.answers(model.network, asked)
    return as_predictions(model.contract.task, used, labels, answers, 0, asked)
