"""`tfcovid fit phantom:N`: chests that are drawn while a network learns from them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tf_covid.cli import main
from tf_covid.cohort.cache import CacheSpec
from tf_covid.errors import ManifestError, TrainingError
from tf_covid.experiment.phantom_source import (
    SYNTHETIC_NOTE,
    PhantomCohort,
    chests_asked,
)
from tf_covid.experiment.run_folder import FitRequest, exclusive_run_folder
from tf_covid.phantom import draw_chest
from tf_covid.phantom.cohort import draw_readable
from tf_covid.phantom.mark import UNSEEN, VALIDATION, phantom_mark
from tf_covid.training.settings import PhantomPool, Settings
from tf_covid.weights import Preprocessing, load_model, read_contract

CONFIG = """
clip = [1, 32, 32]
working_grid = [8, 32, 32]
epochs = 3
batch = 4
slices_per_scan = 2
validation_fraction = 0.3
keep = "best"
mask_weights = [1.0, 2.0]
network = { filters = 2 }
[phantom]
fresh = 0.5
slices = [8, 12]
side_pixels = [32, 48]
"""


def settings(**changes: object) -> Settings:
    pool = PhantomPool(fresh=0.5, slices=(8, 12), side_pixels=(32, 48))
    values: dict[str, object] = {"epochs": 3, "validation_fraction": 0.25, "phantom": pool}
    return Settings(**(values | changes))  # type: ignore[arg-type]


def cohort(out: Path, said: list[str] | None = None, **changes: object) -> PhantomCohort:
    out.mkdir(exist_ok=True)
    return PhantomCohort(
        "lungs",
        settings(**changes),
        8,
        CacheSpec("planes", (8, 32, 32), Preprocessing(), "none", "0" * 64, lesions=True),
        out=out,
        folder=out / "cache",
        shared=False,
        workers=2,
        on_message=(said if said is not None else []).append,
    )


def command(out: Path, *more: str, manifest: str = "phantom:6", folds: str = "none") -> list[str]:
    return [
        *("fit", manifest, "--task", "lungs", "--model", "unet", "--folds", folds),
        *("--out", str(out), *more),
    ]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return path


@pytest.mark.slow
def test_a_share_of_the_chests_is_new_in_each_epoch(tmp_path: Path) -> None:
    with cohort(tmp_path / "run") as chests:
        validation = chests.start()
        assert [record.case for record in validation] == ["phantom-0900000", "phantom-0900001"]
        first = chests.of_epoch(0)
        assert [record.case for record in first] == [f"phantom-{n:07d}" for n in range(6)]
        bytes_of = {record.case: record.path.read_bytes() for record in first}
        second = chests.of_epoch(1)
        assert [record.case for record in second] == [f"phantom-{n:07d}" for n in range(3, 9)]
        assert not any(record.path.exists() for record in first[:3])
        assert all(record.path.exists() for record in (*second, *validation))
        bytes_of |= {record.case: record.path.read_bytes() for record in second}
        assert chests.describe(3).startswith(
            f"synthetic chests of tf_covid.phantom {phantom_mark()}, seeds 0 to 11; validated"
        )
    assert not (tmp_path / "run" / "fresh").exists()
    # A run that goes on in its second epoch knows the first one's cases, and draws none of them.
    with cohort(tmp_path / "run") as chests:
        chests.start()
        assert list(chests.cases) == [record.case for record in first]
        again = chests.of_epoch(1)
        assert {record.case: record.path.read_bytes() for record in again} == {
            record.case: bytes_of[record.case] for record in second
        }
        assert not any(record.path.exists() for record in first[:3])


def test_slices_never_lie_further_apart_than_a_scan_may_have_them() -> None:
    shape = (30, 64, 64)
    assert draw_chest(13, shape, severity=3).spacing_mm[0] > 12.0
    assert 11.0 < draw_readable(13, shape, severity=3).spacing_mm[0] <= 12.0
    near = draw_chest(5, (60, 64, 64), severity=3)
    np.testing.assert_array_equal(draw_readable(5, (60, 64, 64), severity=3).hu, near.hu)


def test_more_white_lungs_where_the_settings_say_so(tmp_path: Path) -> None:
    pool = PhantomPool(per_class=(1, 1, 1, 1, 3))
    chests = cohort(tmp_path / "run", phantom=pool)
    chests.__exit__(None, None, None)
    drawn = [chests._training_job(number).severity for number in range(7)]
    assert drawn == [0, 1, 2, 3, 4, 4, 4]


def test_no_seed_of_the_shipped_figures_is_ever_used(tmp_path: Path) -> None:
    pool = PhantomPool(first_seed=VALIDATION - 7)
    with pytest.raises(TrainingError, match="lower first_seed"):
        cohort(tmp_path / "run", phantom=pool)
    assert VALIDATION < UNSEEN
    assert chests_asked(Path(f"phantom:{VALIDATION}")) == VALIDATION


@pytest.mark.parametrize("text", ["0", "1", "abc", "", "-4", "1e3", str(VALIDATION + 1)])
def test_what_is_no_number_of_chests_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="whole number of chests from 2"):
        chests_asked(Path(f"phantom:{text}"))
    done = CliRunner().invoke(main, command(tmp_path / "run", manifest=f"phantom:{text}"))
    assert done.exit_code == 1
    assert "whole number of chests" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "folds", "why"),
    [
        (("validation_fraction = 0.3", 'x = "y"'), "none", "x"),
        (("fresh = 0.5", "fresh = 1.5"), "none", "phantom.fresh"),
        (("side_pixels = [32, 48]", "side_pixels = [48, 32]"), "none", "smaller"),
        (("side_pixels = [32, 48]", "side_pixels = [33, 48]"), "none", "multiple of 16"),
        (('keep = "best"', "per_class = [1]"), "none", "per_class"),
        (("fresh = 0.5", "per_class = [0, 0, 0, 0, 0]"), "none", "has to be drawn"),
        (
            ('validation_fraction = 0.3\nkeep = "best"', ""),
            "none",
            "needs validation_fraction > 0",
        ),
        (("", ""), "4", "is for --folds none"),
        (("epochs = 3", 'epochs = 3\nendpoint = "conv9"'), "none", "has no layer conv9"),
    ],
)
def test_misuse_is_an_error_that_says_why(
    change: tuple[str, str], folds: str, why: str, config: Path, tmp_path: Path
) -> None:
    config.write_text(CONFIG.replace(*change) if change[0] else CONFIG)
    asked = command(tmp_path / "run", "--config", str(config), folds=folds)
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 1, done.output
    assert why in done.stderr


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (
            'endpoint = "conv4"\ndisease_endpoints = ["conv3"]\n'
            'network = { dense = 8, disease_pooling = "conv3" }',
            "conv4 cannot be explained: the answer depends on layers before conv4",
        ),
        ('endpoint = "fc6"\nnetwork = { dense = 8 }', "fc6 cannot be explained"),
        (
            'disease_endpoints = ["conv9"]\nnetwork = { disease_pooling = "conv9" }',
            "ltc has no layer 'conv9'",
        ),
        ('network = { disease_pooling = "conv3" }', "conv3 is not among disease_endpoints"),
        ("network = { disease_pooling = 3 }", "disease_pooling"),
    ],
)
def test_disease_that_cannot_be_pooled_or_explained_is_named_before_any_chest_is_drawn(
    settings: str, why: str, tmp_path: Path
) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f"clip = [16, 32, 32]\nvalidation_fraction = 0.3\n{settings}\n")
    asked = [
        *("fit", "phantom:6", "--task", "severity", "--model", "ltc", "--folds", "none"),
        *("--config", str(path), "--out", str(tmp_path / "run")),
    ]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 1, done.output
    assert why in done.stderr
    assert not list((tmp_path / "run").glob("cache/*"))


def test_folds_by_site_and_no_folds_contradict_each_other(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, command(tmp_path / "run", "--by-site"))
    assert done.exit_code == 2


def test_a_run_of_another_phantom_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = FitRequest(Path("phantom:8"), "lungs", "unet", tmp_path / "run", settings(), folds=0)

    def enter(*, resume: bool) -> None:
        with exclusive_run_folder(asked, workers=1, resume=resume, on_message=print):
            pass

    enter(resume=False)
    enter(resume=True)
    monkeypatch.setattr("tf_covid.experiment.run_folder.phantom_mark", lambda: "another")
    with pytest.raises(TrainingError, match="differs in phantom_mark"):
        enter(resume=True)


def test_a_run_that_began_before_a_setting_was_there_goes_on(tmp_path: Path) -> None:
    asked = FitRequest(Path("phantom:8"), "lungs", "unet", tmp_path / "run", settings(), folds=0)
    with exclusive_run_folder(asked, workers=1, resume=False, on_message=print):
        pass
    path = tmp_path / "run" / "run.json"
    facts = json.loads(path.read_text())
    del facts["question"]["settings"]["init_share"]
    path.write_text(json.dumps(facts))
    with exclusive_run_folder(asked, workers=1, resume=True, on_message=print):
        pass


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_weights(config: Path, tmp_path: Path) -> None:
    def start(name: str, *more: str) -> subprocess.Popen[str]:
        asked = command(tmp_path / name, "--config", str(config), *more)
        return subprocess.Popen(
            [sys.executable, "-m", "tf_covid.cli", *asked],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    whole = start("whole")
    out, err = whole.communicate(timeout=600)
    assert whole.returncode == 0, err
    assert out == f"{tmp_path / 'whole' / 'study.html'}\n"
    killed = start("killed")
    state = tmp_path / "killed" / "state.npz"
    for _ in range(6000):
        if state.exists() or killed.poll() is not None:
            break
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    with contextlib.suppress(FileNotFoundError):
        # The first epoch's state is there, and the run is not done.
        assert state.stat().st_size
    assert not (tmp_path / "killed" / "model.keras").exists()
    resumed = start("killed", "--resume")
    _, err = resumed.communicate(timeout=600)
    assert resumed.returncode == 0, err
    weights = [
        load_model(tmp_path / name / "model.keras").get_weights() for name in ("whole", "killed")
    ]
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)
    # What --folds none leaves.
    run = tmp_path / "whole"
    names = {path.name for path in run.iterdir()} - {".lock"}
    assert names == {
        *("run.json", "chests.json", "cache", "board", "model.keras", "curves.json"),
        *("predictions.csv", "study.json", "study.html", "figures"),
    }
    study = json.loads((run / "study.json").read_text())
    assert (study["measured_on"], study["cases"], study["note"]) == (
        "validation cases",
        2,
        SYNTHETIC_NOTE,
    )
    assert study["cohort"] == {
        "name": "phantom:6",
        "phantom_mark": phantom_mark(),
        "scans": 6,
    }
    assert "These are the validation cases" in (run / "study.html").read_text()
    contract = read_contract(run / "model.keras")
    assert contract.trained_on is not None
    assert contract.trained_on[0].unchecked == (
        f"synthetic chests of tf_covid.phantom {phantom_mark()}, seeds 0 to 7; validated on seeds"
        " 900000 to 900001"
    )
    assert f"phantom {phantom_mark()}" in contract.origin
