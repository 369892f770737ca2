"""The folder of a run: what it was begun with, and who may go on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tf_covid.errors import OutputError, TrainingError
from tf_covid.experiment.run_folder import FitRequest, exclusive_run_folder
from tf_covid.training import checkpoint as resume
from tf_covid.training.settings import Settings


@pytest.fixture
def wish(tmp_path: Path) -> FitRequest:
    (tmp_path / "manifest.csv").write_text("case,path\n")
    return FitRequest(tmp_path / "manifest.csv", "covid", "ltc", tmp_path / "run", Settings())


def said_by(wish: FitRequest, *, workers: int = 1, goes_on: bool = True) -> list[str]:
    said: list[str] = []
    with exclusive_run_folder(wish, workers=workers, goes_on=goes_on, say=said.append):
        pass
    return said


def change(wish: FitRequest, **values: object) -> None:
    """Make the run one that began somewhere else; None takes a fact away."""
    path = wish.out / "run.json"
    facts = json.loads(path.read_text())
    facts["environment"] = {
        key: value for key, value in (facts["environment"] | values).items() if value is not None
    }
    path.write_text(json.dumps(facts))


def test_a_run_says_what_it_ran_on(wish: FitRequest) -> None:
    assert said_by(wish, workers=3, goes_on=False) == []
    facts = json.loads((wish.out / "run.json").read_text())
    assert facts["workers"] == 3
    assert facts["environment"] == resume.environment()
    assert facts["environment"]["cpus"] == len(os.sched_getaffinity(0))
    assert facts["environment"]["device"]
    assert isinstance(facts["environment"]["device"], str)
    assert {"inter_op_threads", "intra_op_threads", "onednn", "tensorflow"} <= facts[
        "environment"
    ].keys()


def test_fewer_processors_are_another_environment() -> None:
    everyone = os.sched_getaffinity(0)
    if len(everyone) < 2:
        pytest.skip("one processor only")
    before = resume.environment()
    try:
        os.sched_setaffinity(0, {min(everyone)})
        assert "cpus" in resume.differences(before, resume.environment())
    finally:
        os.sched_setaffinity(0, everyone)
    assert resume.differences(before, resume.environment()) == []


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
    wish: FitRequest, changes: dict[str, object], other: str | None
) -> None:
    said_by(wish, goes_on=False)
    change(wish, **changes)
    # Workers only fill the cache, where a record is the same whoever made it.
    said = said_by(wish, workers=5)
    assert said == (
        [f"warning: the run began with other {other}: its weights will not be the same bit for bit"]
        if other
        else []
    )


def test_a_run_is_swept_when_it_is_opened(wish: FitRequest) -> None:
    said_by(wish, goes_on=False)
    (wish.out / "fold-0").mkdir()
    for folder in (wish.out, wish.out / "fold-0"):
        # Another host's, of long ago.
        (folder / ".state.npz.00000000.17.0123abcd.partial").touch()
        os.utime(folder / ".state.npz.00000000.17.0123abcd.partial", (0, 0))
    assert len(list(wish.out.rglob("*.partial"))) == 2
    with pytest.MonkeyPatch.context() as later:
        later.setattr("tf_covid.atomic._ABANDONED_S", -1.0)
        said_by(wish)
    assert not list(wish.out.rglob("*.partial"))


def test_a_folder_of_something_else_is_refused(wish: FitRequest) -> None:
    wish.out.mkdir()
    (wish.out / "thesis.tex").touch()
    with pytest.raises(OutputError, match="is not empty"):
        said_by(wish, goes_on=False)
    with pytest.raises(TrainingError, match="holds no run"):
        said_by(wish)
