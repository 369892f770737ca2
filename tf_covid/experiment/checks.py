"""What is looked at before hours of reading scans: can this run be trained, and on what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tf_covid.attention import feature_axes, split
from tf_covid.cohort import cache
from tf_covid.cohort.folds import check_classes, make_folds, read_folds, split_validation
from tf_covid.cohort.manifest import ManifestRow
from tf_covid.errors import ModelError, TrainingError
from tf_covid.experiment.one_network import lung_models
from tf_covid.experiment.run_folder import FitRequest
from tf_covid.models import NETWORKS
from tf_covid.study.seen import START, as_seen, seen_sentences
from tf_covid.tasks import TASKS
from tf_covid.training.network_spec import NetworkSpec
from tf_covid.weights import Preprocessing, catalog, read_contract, seen
from tf_covid.weights.files import build


def check_network(request: FitRequest, network: NetworkSpec) -> None:
    """A network that cannot be built, or read back, is an error now, not after hours of reading.

    Raises:
        ModelError: If the settings name arguments that the network does not have.
        TrainingError: If it cannot be built with these settings, or lacks the layer to be
            explained.
    """
    lung_models(request)
    try:
        built = build(network.model, dict(network.arguments), request.out)
    except ModelError as error:
        if not isinstance(error.__cause__, ValueError):
            raise
        # No file is at fault, as the message of `build` has it, but what was asked for.
        own = request.settings.network
        given = f"clip = {list(request.settings.clip)}" + (f", network = {own}" if own else "")
        facts = str(error.__cause__).partition("\n")[0]
        raise TrainingError(f"{given}: {facts}") from error
    endpoint = request.settings.endpoint
    if endpoint is not None and endpoint not in {layer.name for layer in built.layers}:
        raise TrainingError(f"endpoint: {network.model} has no layer {endpoint}")
    usual = NETWORKS[network.model].endpoint
    if TASKS[request.task].classifies_scans and usual is not None:
        explained = endpoint or usual(dict(network.arguments))
        try:
            split(built, explained)
            feature_axes(built, explained)
        except (ValueError, TypeError) as error:
            raise TrainingError(f"endpoint: {explained} cannot be explained: {error}") from error


def check_splits(
    request: FitRequest, rows: Sequence[ManifestRow], labels: Mapping[str, int]
) -> None:
    """Refuse folds and validation sets that cannot be made, before hours of reading scans.

    Raises:
        TrainingError, CohortError: If they cannot.
    """
    if (
        request.settings.validation_fraction
        and not split_validation(
            list(labels), rows, labels, request.settings.validation_fraction, 0
        )[1]
    ):
        raise TrainingError(
            "validation_fraction: no class has two patients, so none can be left for validation"
        )
    if request.single:
        return
    if request.folds_file:
        check_classes(read_folds(request.folds_file), labels)
    elif not (request.out / "folds.json").exists():
        make_folds(rows, labels, request.folds, request.settings.seed, by_site=request.by_site)


def seen_by_init(
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


def report_window(network: NetworkSpec, on_message: Callable[[str], None]) -> None:
    """Say with which window a network goes on that was trained with another than the usual one."""
    preprocessing = network.preprocessing
    level, width = preprocessing.level_hu, preprocessing.width_hu
    if network.init and (level, width) != (Preprocessing().level_hu, Preprocessing().width_hu):
        on_message(
            f"window: {level - width / 2:g} to {level + width / 2:g} HU, as {network.init} was"
            " trained with"
        )
