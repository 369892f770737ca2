"""The folder of a run: what it was begun with, and who may go on."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from tf_covid.errors import OutputError, TrainingError
from tf_covid.experiment.run_folder import FitRequest, exclusive_fold, exclusive_run_folder
from tf_covid.training import checkpoint
from tf_covid.training.settings import Settings


@pytest.fixture
def fit_request(tmp_path: Path) -> FitRequest:
    (tmp_path / "manifest.csv").write_text("case,path\n")
    return FitRequest(tmp_path / "manifest.csv", "covid", "ltc", tmp_path / "run", Settings())


def said_by(fit_request: FitRequest, *, workers: int = 1, resume: bool = True) -> list[str]:
    said: list[str] = []
    with exclusive_run_folder(fit_request, workers=workers, resume=resume, on_message=said.append):
        pass
    return said


def change(fit_request: FitRequest, **values: object) -> None:
    """Make the run one that began somewhere else; None takes a fact away."""
    path = fit_request.out / "run.json"
    facts = json.loads(path.read_text())
    facts["environment"] = {
        key: value for key, value in (facts["environment"] | values).items() if value is not None
    }
    path.write_text(json.dumps(facts))


def test_a_run_says_what_it_ran_on(fit_request: FitRequest) -> None:
    assert said_by(fit_request, workers=3, resume=False) == []
    facts = json.loads((fit_request.out / "run.json").read_text())
    assert facts["workers"] == 3
    own = {"training_workers": 1, "trained_by": "this process"}
    assert facts["environment"] == checkpoint.environment() | own
    assert facts["environment"]["cpus"] == len(os.sched_getaffinity(0))
    assert facts["environment"]["device"]
    assert isinstance(facts["environment"]["device"], str)
    assert {"inter_op_threads", "intra_op_threads", "onednn", "tensorflow"} <= facts[
        "environment"
    ].keys()


def test_a_run_that_goes_on_with_other_workers_is_warned(fit_request: FitRequest) -> None:
    said_by(fit_request, workers=1, resume=False)
    other = dataclasses.replace(fit_request, training_workers=2, trained_by="Ray, 4 cores")
    (warning,) = said_by(other, workers=1, resume=True)
    assert "the run began with other trained_by, training_workers" in warning


@pytest.mark.parametrize("fold", [0, 3])
def test_a_fold_is_trained_by_one_process(fit_request: FitRequest, fold: int) -> None:
    fit_request.out.mkdir(parents=True, exist_ok=True)
    with exclusive_fold(fit_request, fold):
        with exclusive_fold(fit_request, fold + 1):
            pass
        with (
            pytest.raises(TrainingError, match=f"fold_runs: another process trains fold {fold}"),
            exclusive_fold(fit_request, fold, wait_s=0.0),
        ):
            pass
    with exclusive_fold(fit_request, fold, wait_s=0.0):
        pass


def test_fewer_processors_are_another_environment() -> None:
    everyone = os.sched_getaffinity(0)
    if len(everyone) < 2:
        pytest.skip("one processor only")
    before = checkpoint.environment()
    try:
        os.sched_setaffinity(0, {min(everyone)})
        assert "cpus" in checkpoint.differences(before, checkpoint.environment())
    finally:
        os.sched_setaffinity(0, everyone)
    assert checkpoint.differences(before, checkpoint.environment()) == []


@pytest.mark.parametrize(
    ("changes", "other"),
    [
        ({"device": "NVIDIA A100"}, "device"),
        ({"cpus": 999, "keras": "2.0"}, "cpus, keras"),
        ({"device": None, "cpus": None, "inter_op_threads": None}, None),
        ({"of tomorrow": 1}, None),
        ({}, None),
    ],
)
def test_another_environment_is_pointed_out(
    fit_request: FitRequest, changes: dict[str, object], other: str | None
) -> None:
    said_by(fit_request, resume=False)
    change(fit_request, **changes)
    # Workers only fill the cache, where a record is the same whoever made it.
    said = said_by(fit_request, workers=5)
    assert said == (
        [f"warning: the run began with other {other}: its weights will not be the same bit for bit"]
        if other
        else []
    )


def test_a_run_that_began_under_old_names_of_settings_goes_on(fit_request: FitRequest) -> None:
    said_by(fit_request, resume=False)
    path = fit_request.out / "run.json"
    facts = json.loads(path.read_text())
    settings = facts["question"]["settings"]
    settings["held_out"] = settings.pop("validation_fraction")
    settings["clip_norm"] = settings.pop("gradient_clip_norm")
    path.write_text(json.dumps(facts))
    assert said_by(fit_request) == []
    settings["held_out"] = 0.5
    path.write_text(json.dumps(facts))
    with pytest.raises(TrainingError, match="the run there differs in settings"):
        said_by(fit_request)


def test_leftovers_are_removed_when_a_run_is_opened(fit_request: FitRequest) -> None:
    said_by(fit_request, resume=False)
    (fit_request.out / "fold-0").mkdir()
    for folder in (fit_request.out, fit_request.out / "fold-0"):
        # Another host's, of long ago.
        (folder / ".state.npz.00000000.17.0123abcd.partial").touch()
        os.utime(folder / ".state.npz.00000000.17.0123abcd.partial", (0, 0))
    assert len(list(fit_request.out.rglob("*.partial"))) == 2
    with pytest.MonkeyPatch.context() as later:
        later.setattr("tf_covid.atomic._ABANDONED_S", -1.0)
        said_by(fit_request)
    assert not list(fit_request.out.rglob("*.partial"))


def test_a_folder_of_something_else_is_refused(fit_request: FitRequest) -> None:
    fit_request.out.mkdir()
    (fit_request.out / "thesis.tex").touch()
    with pytest.raises(OutputError, match="is not empty"):
        said_by(fit_request, resume=False)
    with pytest.raises(TrainingError, match="holds no run"):
        said_by(fit_request)
