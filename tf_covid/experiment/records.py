"""The records that a run trains on: what the cache is to hold of each scan, and what it holds."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tf_covid.atomic import write_text
from tf_covid.cohort import cache
from tf_covid.cohort.manifest import ManifestRow
from tf_covid.errors import TrainingError
from tf_covid.experiment.run_folder import FitRequest
from tf_covid.tasks import TASKS
from tf_covid.weights import Preprocessing, catalog, quarantine
from tf_covid.weights.catalog import NO_LOBES


def cache_spec(
    request: FitRequest, rows: Sequence[ManifestRow], preprocessing: Preprocessing
) -> cache.CacheSpec:
    """What the cache is to hold of each scan.

    Args:
        request: What is to be trained.
        rows: Rows of the manifest.
        preprocessing: Slice rule and lung box of the network.

    Raises:
        TrainingError: If the working grid is too large, or lesion masks are missing.
    """
    settings, limits, task = request.settings, cache.LARGEST_GRID, TASKS[request.task]
    grid = settings.working_grid or tuple(
        max(min(2 * side, limit), side) for side, limit in zip(settings.clip, limits, strict=True)
    )
    if task.cache_kind == "volumes":
        # The labels of such a record are twice as fine; the scan is as the network meets it.
        grid = settings.working_grid or settings.clip
    if settings.working_grid and any(
        side > limit for side, limit in zip(grid, limits, strict=True)
    ):
        raise TrainingError(f"working_grid must lie within {limits}, not be {grid}")
    if settings.disease_endpoints and (
        lacking := [row.case for row in rows if row.lesions is None]
    ):
        raise TrainingError(
            f"disease_endpoints need lesion masks of all cases; {len(lacking)} have none"
        )
    if task.cache_kind == "planes":
        # A lung model meets whole slices at its own size.
        slices = settings.working_grid[0] if settings.working_grid else limits[0]
        grid = slices, *settings.clip[1:]
    lesions = {
        "always": True,
        "where all have them": all(row.lesions for row in rows),
        "for deep supervision": bool(settings.disease_endpoints),
        "never": False,
    }[task.lesions]
    sha256 = quarantine.sha256(catalog.find(request.lungs))
    d, h, w = grid
    lobes = request.lobes_model
    return cache.CacheSpec(
        task.cache_kind,
        (d, h, w),
        preprocessing,
        request.lungs,
        sha256,
        lesions,
        lobes,
        "" if lobes == NO_LOBES else quarantine.sha256(catalog.find(lobes)),
    )


def fill_cache(
    request: FitRequest,
    rows: Sequence[ManifestRow],
    spec: cache.CacheSpec,
    *,
    workers: int,
    on_message: Callable[[str], None],
    progress: cache.Progress | None,
) -> dict[str, cache.CacheRecord]:
    """Read the scans of a cohort into the cache; write down which could not be used, and why.

    Args:
        request: What is to be trained.
        rows: Rows of the manifest.
        spec: What the cache is to hold of each scan.
        workers: Processes that read scans.
        on_message: Hears of each step, in a line.
        progress: Shows the scans that are read.

    Returns:
        Case → record, of the scans that the run began with.

    Raises:
        CohortError: If more scans than allowed are unusable.
        TrainingError: If none is usable, or one has changed since the run began.
        OutputError: If something cannot be written.
    """
    folder = request.cache or request.out / "cache"
    size = cache.needed_bytes(len(rows), spec) / 1e6
    on_message(
        f"cache: {len(rows)} scans at {'×'.join(map(str, spec.grid))}, {size:.0f} MB at most, in"
        f" {folder}"
    )
    filled = cache.fill(
        rows, folder, spec, workers=workers, max_skipped=request.max_skipped, progress=progress
    )
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([("case", "reason"), *filled.skipped.items()])
    write_text(table.getvalue(), request.out / "skipped.csv")
    for case, why in filled.skipped.items():
        on_message(f"skipped {case}: {why}")
    if doubtful := [
        case for case, record in filled.records.items() if "mask_doubtful" in record.quality_flags
    ]:
        listed = ", ".join(doubtful[:20]) + (
            f" and {len(doubtful) - 20} more" if len(doubtful) > 20 else ""
        )
        on_message(
            f"warning: look at the lung masks of {listed}: much of them is no aerated lung, or"
            " outside of the body"
        )
    if not filled.records:
        raise TrainingError("no scan of the manifest can be used")
    return records_of_run(request.out / "records.json", filled.records, on_message)


def records_of_run(
    path: Path, records: dict[str, cache.CacheRecord], on_message: Callable[[str], None]
) -> dict[str, cache.CacheRecord]:
    """The scans that the run began with, checked to be the same; a new run writes down which.

    Raises:
        TrainingError: If one of them has changed or can no longer be read.
    """
    now = {case: record.path.stem for case, record in records.items()}
    if not path.exists():
        write_text(json.dumps(now, indent=1), path)
        return records
    try:
        before: dict[str, str] = dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise TrainingError(f"{path}: cannot be read; begin anew in another folder") from error
    if lost := sorted(before.keys() - now.keys()):
        raise TrainingError(f"the run began with {', '.join(lost)}, which cannot be read now")
    if changed := sorted(case for case, fingerprint in before.items() if now[case] != fingerprint):
        raise TrainingError(f"since the run began, scan or masks changed of {', '.join(changed)}")
    if late := sorted(now.keys() - before.keys()):
        on_message(f"left out, since the run began without them: {', '.join(late)}")
    return {case: record for case, record in records.items() if case in before}


def identities(
    rows: Sequence[ManifestRow],
    records: Mapping[str, cache.CacheRecord],
    on_message: Callable[[str], None],
) -> dict[str, dict[str, str]]:
    """Hashes of patient, DICOM study and pixels of each case: none may be on both sides of a fold.

    An id that most patients have is the placeholder of an anonymiser, and is left out.
    """
    owners: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        owners[records[row.case].fingerprints.get("patient", "")].add(row.patient)
    max_patients = max(2, len({row.patient for row in rows}) // 2)
    common = {
        identity
        for identity, patients in owners.items()
        if identity and len(patients) > max_patients
    }
    if common:
        on_message(
            "warning: most scans have the same PatientID in their headers: it is left out of the"
            " audit for leakage"
        )
    of_case = {}
    for row in rows:
        hashes = dict(records[row.case].fingerprints)
        patient_id = hashes.pop("patient", "")
        of_case[row.case] = {
            "patient": row.patient,
            "DICOM patient": "" if patient_id in common else patient_id,
            **hashes,
        }
    return of_case
