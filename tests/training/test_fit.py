"""`tfcovid fit` from outside: a run, its kill and its end, its refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest

from tf_covid.weights import load_model, read_contract

CONFIG = """
clip = [16, 32, 32]
working_grid = [24, 48, 48]
batch = 2
held_out = 0.3
keep = "best"
ct_score_weight = 5.0
"""

#: Small and of several stages; and, since I3D takes half a minute to trace, as short as can be killed.
LTC = 'epochs = 4\nnetwork = {{ dense = 16 }}\n{more}\n[[stages]]\nepochs = 1\ntrain_from = "head"\n'
I3D = 'epochs = 2\ndisease_endpoints = ["Mixed_3c"]\n'


def command(manifest: Path, out: Path, *more: str, task: str = "covid", model: str = "ltc") -> list[str]:
    cache = manifest.parent / "cache"
    return [
        *(sys.executable, "-m", "tf_covid.cli", "fit", str(manifest), "--task", task, "--model", model),
        *("--out", str(out), "--folds", "2", "--cache", str(cache), *more),
    ]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=900, check=False)


def config(folder: Path, more: str = "", model: str = "ltc") -> Path:
    path = folder / "config.toml"
    path.write_text(CONFIG + (LTC.format(more=more) if model == "ltc" else I3D))
    return path


@pytest.fixture(scope="module")
def finished(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("run")
    done = run(*command(small_cohort, folder / "run", "--config", str(config(folder))))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{folder / 'run' / 'study.html'}\n"
    assert "cache: 10 scans at 24×48×48, " in done.stderr and "left" in done.stderr
    return folder / "run"


def test_a_run_leaves_what_the_contract_says(finished: Path) -> None:
    study = json.loads((finished / "study.json").read_text())
    assert (study["task"], study["model"], study["init"], study["folds"], study["cases"]) == (
        "covid", "ltc", "scratch", 2, 10,
    )  # fmt: skip
    assert np.sum(study["confusion_matrix"]) == 10
    assert set(study["accuracy"]) >= {"value", "ci95"}
    for fold in (0, 1):
        path = finished / f"fold-{fold}" / "model.keras"
        assert keras.saving.load_model(path, compile=False).input_shape == (None, 16, 32, 32, 1)
        assert load_model(path).input_shape == (None, 16, 32, 32, 1)
        contract = read_contract(path)
        assert contract.task == "covid" and f"fold {fold}" in contract.origin
        assert not list((finished / f"fold-{fold}").glob("*.npz"))
    folds = json.loads((finished / "folds.json").read_text())["test"]
    assert sorted(folds.values()).count(0) == 5


def test_a_model_of_a_run_answers_a_scan(finished: Path, small_cohort: Path, tmp_path: Path) -> None:
    scan = next(small_cohort.parent.glob("case-*/ct.nii.gz"))
    model = finished / "fold-0" / "model.keras"
    done = run(
        sys.executable, "-m", "tf_covid.cli", "infer", str(scan), "--model", str(model), "--out", str(tmp_path / "out")
    )
    assert done.returncode == 0, done.stderr
    assert "COVID-19 " in done.stdout


def test_a_run_is_not_written_over(finished: Path, small_cohort: Path, tmp_path: Path) -> None:
    again = run(*command(small_cohort, finished))
    assert again.returncode == 1 and "is not empty: --resume goes on" in again.stderr
    other = run(*command(small_cohort, finished, "--resume"))
    assert other.returncode == 1 and "the run there differs in settings" in other.stderr
    before = (finished / "study.json").read_bytes()
    same = run(*command(small_cohort, finished, "--resume", "--config", str(config(tmp_path))))
    assert same.returncode == 0 and "fold 1: done" in same.stderr
    assert (finished / "study.json").read_bytes() == before


def weights(path: Path) -> list[np.ndarray]:
    return list(load_model(path).get_weights())


def killed_after(arguments: list[str], line: str) -> None:
    """Start a command and kill it as soon as it has said this, with a little more work done."""
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        said = ""
        for text in lines(process.stderr):
            said += text
            if line in text:
                break
        else:
            pytest.fail(f"it ended before it was killed: {said}")
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL


def lines(stream: Iterator[str]) -> Iterator[str]:
    yield from stream


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ltc", "i3d"])
def test_a_killed_run_ends_with_the_same_weights(finished: Path, small_cohort: Path, tmp_path: Path, kind: str) -> None:
    whole, settings, moments = finished, config(tmp_path, model=kind), ["fold 0: epoch 2/4", "fold 1: epoch 1/4"]
    if kind == "i3d":
        whole, moments = tmp_path / "whole", ["fold 0: epoch 1/2"]
        done = run(*command(small_cohort, whole, "--config", str(settings), model="i3d"))
        assert done.returncode == 0, done.stderr
    asked = command(small_cohort, tmp_path / "run", "--config", str(settings), model=kind)
    for line in moments:
        killed_after(asked, line)
        asked = [*asked, "--resume"]
    done = run(*asked)
    assert done.returncode == 0, done.stderr
    assert ("fold 0: done" in done.stderr) == (kind == "ltc") and "bit for bit" not in done.stderr
    for fold in ("fold-0", "fold-1"):
        pairs = zip(
            weights(whole / fold / "model.keras"), weights(tmp_path / "run" / fold / "model.keras"), strict=True
        )
        assert all(np.array_equal(one, other) for one, other in pairs)
        assert (whole / fold / "predictions.csv").read_text() == (
            tmp_path / "run" / fold / "predictions.csv"
        ).read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (("--task", "lungs"), "the task lungs is for unet, not for ltc"),
        (("--folds", "7"), "7 folds need 7 patients of each class"),
        (("--folds", "nowhere.json"), "holds no folds"),
        (("--init", "nowhere.keras"), "neither a file nor a shipped model"),
        (("--init", "lungs-unet"), "no convolution has the name and shape"),
    ],
)
def test_what_cannot_be_trained_is_named(
    small_cohort: Path, tmp_path: Path, changes: tuple[str, ...], said: str
) -> None:
    done = run(*command(small_cohort, tmp_path / "run", "--config", str(config(tmp_path)), *changes))
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_loss_that_is_no_number_ends_with_a_name(small_cohort: Path, tmp_path: Path) -> None:
    settings = config(tmp_path, "learning_rate = 1e30\nclip_norm = 1e30")
    done = run(*command(small_cohort, tmp_path / "run", "--config", str(settings)))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: not_finite: the loss is no number any more in epoch ")


def test_two_processes_do_not_share_a_run(small_cohort: Path, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run(*command(small_cohort, tmp_path / "run"))
    assert done.returncode == 1 and "another process is working there" in done.stderr


def test_folds_of_another_run_are_used(finished: Path, small_cohort: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    copy.mkdir()
    swapped = json.loads((finished / "folds.json").read_text())
    swapped["test"].pop(next(iter(swapped["test"])))
    (tmp_path / "folds.json").write_text(json.dumps(swapped))
    shutil.rmtree(copy)
    done = run(*command(small_cohort, copy, "--folds", str(tmp_path / "folds.json")))
    assert done.returncode == 1 and "1 case(s) without a fold" in done.stderr
