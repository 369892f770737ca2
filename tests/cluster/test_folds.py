"""`tfcovid fit --engine ray`: folds beside each other, on a Ray of this machine."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

pytest.importorskip("ray", reason="needs the extra [ray]")

from tests.small_fits import curves_of, fit_command
from tf_covid.cli import main
from tf_covid.cluster.folds import FoldTask, _unfit, everywhere
from tf_covid.experiment.run_folder import FitRequest
from tf_covid.training.checkpoint import library_versions
from tf_covid.training.settings import Settings


def refused(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["fit", "m.csv", "--task", "severity", *arguments])
    assert isinstance(done.exception, SystemExit), done.output
    return done.exit_code, done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--folds", "none", "--engine", "ray"), "there is one network"),
        (("--strategy", "multiworker", "--engine", "ray"), "has processes of its own"),
        (("--address", "auto"), "are of --engine ray"),
        (("--worker-cpus", "2"), "are of --engine ray"),
        (("--worker-gpus", "0"), "are of --engine ray"),
    ],
)
def test_what_contradicts_itself_is_said(arguments: tuple[str, ...], message: str) -> None:
    code, output = refused("--model", "ltc", "--out", "run", *arguments)
    assert code != 0
    assert message in " ".join(output.split())


@dataclass(frozen=True)
class Planned:
    """What `_unfit` asks of a plan."""

    request: FitRequest
    records: tuple[Path, ...]

    def files(self) -> list[Path]:
        return [self.request.out / "run.json", *self.records]


@pytest.fixture
def task(tmp_path: Path) -> FoldTask:
    """A fold that this machine can train."""
    manifest = tmp_path / "m.csv"
    manifest.write_text("case,path\n")
    request = FitRequest(manifest, "severity", "ltc", tmp_path / "run", Settings())
    request.out.mkdir()
    (request.out / "run.json").write_text(json.dumps({"question": request.identity()}))
    record = tmp_path / "a.tfrecord"
    record.write_bytes(b"")
    plan: Any = Planned(request, (record,))
    return FoldTask(plan, 1, 1, library_versions())


def test_a_node_like_the_drivers_is_fit(task: FoldTask) -> None:
    assert _unfit(task) is None
    assert not list((task.plan.request.out / "fold-1").iterdir())


def test_a_node_with_another_keras_is_not(task: FoldTask) -> None:
    problem = _unfit(replace(task, versions={**task.versions, "keras": "2"})) or ""
    assert problem.startswith("node_differs: ")
    assert f"keras {task.versions['keras']}" in problem


@pytest.mark.parametrize("gone", ["run/run.json", "a.tfrecord"])
def test_a_node_that_does_not_see_the_files_is_not(
    task: FoldTask, gone: str, tmp_path: Path
) -> None:
    (tmp_path / gone).unlink()
    assert (_unfit(task) or "").endswith(f"does not see {Path(gone).name} at its path")


def test_a_node_with_other_weights_is_not(task: FoldTask) -> None:
    file = task.plan.request.out / "run.json"
    began = json.loads(file.read_text())
    began["question"]["lungs_sha256"] = "0" * 64
    file.write_text(json.dumps(began))
    assert "has other weights (sha256)" in (_unfit(task) or "")


def test_a_node_that_cannot_write_there_is_not(task: FoldTask) -> None:
    (task.plan.request.out / "fold-1").write_text("a file of that name")
    assert (_unfit(task) or "").startswith("node_out: ")
    assert "cannot write into fold-1" in (_unfit(task) or "")


def test_paths_do_not_depend_on_where_a_process_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.keras").write_bytes(b"")
    given = FitRequest(
        Path("m.csv"), "severity", "ltc", Path("run"), Settings(), init="mine.keras", lobes="none"
    )
    there = everywhere(given, 3)
    assert there.manifest == tmp_path / "m.csv"
    assert there.out == tmp_path / "run"
    assert there.cache is None
    assert (there.init, there.lobes) == (str(tmp_path / "mine.keras"), "none")
    assert there.lungs == given.lungs
    assert there.trained_by == "Ray, 3 cores"


def fold_workers() -> list[psutil.Process]:
    busy = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any("FoldWorker.train" in part for part in one.cmdline()):
                busy.append(one)
    return busy


@pytest.mark.slow
def test_a_fold_whose_worker_dies_goes_on_in_another(small_cohort: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    asked = [*fit_command(small_cohort, tmp_path / "run"), "--engine", "ray", "--worker-cpus", "1"]
    with log.open("w") as file, psutil.Popen(asked, stdout=file, stderr=file) as driver:
        until = time.monotonic() + 300
        while "epoch 1/3" not in log.read_text():
            assert driver.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        fold_workers()[0].send_signal(signal.SIGKILL)
        assert driver.wait(600) == 0, log.read_text()
    said = log.read_text()
    assert said.count("its worker died; it goes on in another worker") == 1
    # No epoch twice; a line may be lost with its worker.
    assert max(said.count(f"fold {fold}: epoch 1/3") for fold in (0, 1)) == 1
    assert said.endswith(f"{tmp_path / 'run' / 'study.html'}\n")
    assert {len(one["loss"]) for one in curves_of(tmp_path / "run")} == {3}
    assert json.loads((tmp_path / "run" / "study.json").read_text())["cases"] == 10

    # A fold that cannot be trained is named, and nothing else is touched.
    (tmp_path / "run" / "fold-1" / "predictions.csv").unlink()
    state = tmp_path / "run" / "fold-1" / "state.npz"
    state.write_bytes(b"no state")
    again = subprocess.run(
        [*asked, "--resume"], capture_output=True, text=True, timeout=600, check=False
    )
    assert again.returncode == 1
    last = again.stderr.splitlines()[-1]
    assert last.startswith(f"error: fold 1: {state}: the state is damaged")
    assert last.endswith("--resume goes on where each fold is")
    assert (tmp_path / "run" / "fold-0" / "predictions.csv").exists()
