"""The lobes that stand in front of a classifier, from the cache to `study.json`."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tf_covid.cohort import cache
from tf_covid.cohort.manifest import read_manifest
from tf_covid.experiment.evaluate import evaluate
from tf_covid.experiment.fit import fit
from tf_covid.experiment.phantom_source import PhantomCohort
from tf_covid.experiment.run_folder import FitRequest
from tf_covid.local import LocalModels
from tf_covid.phantom.cohort import write_cohort
from tf_covid.pipeline import stratify
from tf_covid.preprocessor import LOBES, LUNGS
from tf_covid.result import Result
from tf_covid.scan import find_cases
from tf_covid.severity import LOBES as NAMES
from tf_covid.study import read_predictions
from tf_covid.training.settings import PhantomPool, Settings
from tf_covid.weights import Preprocessing, catalog, load, quarantine

if TYPE_CHECKING:
    from tests.servers import SmallFiles

pytestmark = pytest.mark.slow

COLUMNS = [name.replace(" ", "_") for name in NAMES]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four chests, of classes 1 and 3, with the true score of each lobe."""
    folder = tmp_path_factory.mktemp("read")
    classes = [0, 2, 0, 2, 0]
    return write_cohort(folder, 4, seed=8, size=96, slices=64, format="nifti", per_class=classes)


@pytest.fixture(scope="module")
def answers(cohort: Path, small_files: SmallFiles) -> dict[str, Result]:
    """What `infer` says of each, behind the shipped pair."""
    models = LocalModels([small_files.network], lungs=LUNGS, lobes=LOBES)
    return {
        row.case: stratify(find_cases(row.path)[0].read(), models, attention="none")
        for row in read_manifest(cohort)
    }


def spec(**changes: Any) -> cache.CacheSpec:
    made = cache.CacheSpec(
        "clips",
        (16, 32, 32),
        Preprocessing(),
        LUNGS,
        quarantine.sha256(catalog.find(LUNGS)),
        lobes=LOBES,
        lobes_sha256=quarantine.sha256(catalog.find(LOBES)),
    )
    return dataclasses.replace(made, **changes)


@pytest.fixture(scope="module")
def filled(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, cache.CacheRecord]:
    return cache.fill(read_manifest(cohort), tmp_path_factory.mktemp("cache"), spec()).records


def test_a_record_reads_the_lobes_as_infer_does(
    filled: dict[str, cache.CacheRecord], answers: dict[str, Result]
) -> None:
    for case, result in answers.items():
        assert result.lobes is not None
        assert result.lungs is not None
        assert filled[case].lobes == result.lobes
        assert filled[case].involvement_percent == result.lungs.involvement_percent
    assert (
        len({result.severity and result.severity.ct_score_read for result in answers.values()}) > 1
    )


@pytest.mark.parametrize("harm", ["unread", "read otherwise", "no lobes"])
def test_a_record_of_an_older_version_is_read_anew(
    cohort: Path, filled: dict[str, cache.CacheRecord], harm: str
) -> None:
    """Under its name, so that a run which began with it goes on."""
    row = read_manifest(cohort)[0]
    record = filled[row.case]
    path, clip = record.path.with_suffix(".json"), record.path.read_bytes()
    facts = json.loads(path.read_text("utf-8"))
    old = {
        key: facts[key] for key in facts if key not in ("lobes", "involvement_percent", "reading")
    }
    if harm == "read otherwise":
        old = facts | {"reading": cache.READING - 1}
    if harm == "no lobes":
        old = facts | {"lobes": [{"name": "right upper"}]}
    path.write_text(json.dumps(old))
    folder = record.path.parent
    if harm == "unread":
        # Whoever does not ask for lobes takes it as it is.
        unread = cache.make(row, folder, spec(read=False))
        assert unread == dataclasses.replace(record, lobes=None, involvement_percent=None)
    assert cache.make(row, folder, spec()) == record
    assert record.path.read_bytes() == clip
    assert json.loads(path.read_text("utf-8")) == facts


def test_without_a_lobe_model_nothing_is_read(cohort: Path, tmp_path: Path) -> None:
    row = read_manifest(cohort)[0]
    tmp_path.joinpath("cache").mkdir()
    record = cache.make(row, tmp_path / "cache", spec(lobes="none", lobes_sha256=""))
    assert isinstance(record, cache.CacheRecord)
    assert record.lobes is record.involvement_percent is None


def check(study: dict[str, Any], table: Path, cohort: Path, answers: dict[str, Result]) -> None:
    """The study of a run says of its cases what `infer` says."""
    found, rows = read_predictions(table), {row.case: row for row in read_manifest(cohort)}
    distances = []
    for index, case in enumerate(found.cases):
        severity, lobes = answers[case].severity, answers[case].lobes
        assert severity is not None
        assert lobes is not None
        np.testing.assert_array_equal(
            found.read_lobe_scores[index], np.array([lobe.score for lobe in lobes], float)
        )
        np.testing.assert_array_equal(found.lobe_scores[index], rows[case].lobe_scores)
        if severity.ct_score_read is None:
            assert np.isnan(found.read_score[index])
        else:
            assert found.read_score[index] == severity.ct_score_read
            distances.append(abs(severity.ct_score_read - (rows[case].ct_score or 0)))
    part = study["score_agreement"]["read"]
    assert part["cases"] == len(distances) > 1
    assert part["mae"]["value"] == pytest.approx(np.mean(distances))
    assert list(study["lobe_agreement"]) == list(NAMES)


def test_evaluate_keeps_what_infer_reads(
    cohort: Path, answers: dict[str, Result], small_files: SmallFiles, tmp_path: Path
) -> None:
    # Two networks that keep their clips in the same place.
    page = evaluate(
        [small_files.network, small_files.other],
        cohort,
        tmp_path / "out",
        lungs=LUNGS,
        lobes=LOBES,
        on_message=lambda text: None,
    )
    study = json.loads((tmp_path / "out" / "study.json").read_text("utf-8"))
    check(study, tmp_path / "out" / "predictions.csv", cohort, answers)
    assert study["score_agreement"]["predicted"]["cases"] == 4
    assert "read from the lobes" in page.read_text("utf-8")
    evaluate(
        [small_files.network],
        cohort,
        tmp_path / "plain",
        lungs=LUNGS,
        lobes="none",
        on_message=lambda text: None,
    )
    study = json.loads((tmp_path / "plain" / "study.json").read_text("utf-8"))
    assert study["score_agreement"] is study["lobe_agreement"] is None
    assert study["mae"] is not None


@contextlib.contextmanager
def silent(label: str, steps: int) -> Iterator[Callable[[int, str], None]]:
    yield lambda epoch, text: None


def test_fit_keeps_what_infer_reads(
    cohort: Path, answers: dict[str, Result], tmp_path: Path
) -> None:
    settings = Settings(clip=(16, 32, 32), epochs=1, batch=2, network={"dense": 8})
    request = FitRequest(
        cohort, "severity", "ltc", tmp_path / "run", settings, folds=2, lungs=LUNGS, lobes=LOBES
    )
    fit(request, on_message=lambda text: None, epoch_progress=silent)
    run = tmp_path / "run"
    study = json.loads((run / "study.json").read_text("utf-8"))
    check(study, run / "predictions.csv", cohort, answers)
    # A fold that an older version has finished knows nothing of lobes; the run goes on.
    kept = (run / "fold-0" / "predictions.csv").read_text("utf-8").splitlines()
    rows = list(csv.DictReader(kept))
    lobes = {"read_score", *(f"{lobe}_{kind}" for lobe in COLUMNS for kind in ("score", "read"))}
    names = [name for name in rows[0] if name not in lobes]
    with (run / "fold-0" / "predictions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    fit(request, resume=True, on_message=lambda text: None, epoch_progress=silent)
    found = read_predictions(run / "predictions.csv")
    assert np.isnan(found.read_lobe_scores[found.folds == 0]).all()
    assert np.isfinite(found.read_lobe_scores[found.folds == 1]).any()
    assert load(run / "fold-0" / "model.keras").contract.lobes_sha256


def test_only_chests_that_validate_are_read(tmp_path: Path) -> None:
    pool = PhantomPool(fresh=0.0, slices=(60, 60), side_pixels=(64, 64))
    settings = Settings(epochs=1, validation_fraction=0.5, phantom=pool)
    folder = tmp_path / "cache"
    with PhantomCohort(
        "severity",
        settings,
        4,
        spec(),
        out=tmp_path,
        folder=folder,
        shared=False,
        workers=1,
        on_message=lambda text: None,
    ) as chests:
        for record in chests.start():
            assert record.lobes is not None
            assert len(chests.rows[record.case].lobe_scores or ()) == 5
        assert [record.lobes for record in chests.of_epoch(0)] == [None, None]
