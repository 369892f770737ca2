"""`tfcovid fit` from outside: a run, its kill and its end, its refusals."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import keras
import numpy as np
import psutil
import pytest
from click.testing import CliRunner

from tf_covid.cli import main
from tf_covid.weights import load, load_model, read_contract, save_model

pytestmark = pytest.mark.slow

CONFIG = """
clip = [16, 32, 32]
working_grid = [24, 48, 48]
batch = 2
validation_fraction = 0.3
keep = "best"
ct_score_weight = 5.0
"""

#: Small and of several stages; and, since I3D takes half a minute to trace, as short as can be
#: killed.
LTC = (
    'epochs = 4\nnetwork = {{ dense = 16 }}\n{more}\n[[stages]]\nepochs = 1\ntrain_from = "head"\n'
)
I3D = 'epochs = 2\ndisease_endpoints = ["Mixed_3c"]\n'


def command(
    manifest: Path, out: Path, *more: str, task: str = "covid", model: str = "ltc"
) -> list[str]:
    cache = manifest.parent / "cache"
    return [
        *(
            sys.executable,
            "-m",
            "tf_covid.cli",
            "fit",
            str(manifest),
            "--task",
            task,
            "--model",
            model,
        ),
        *("--out", str(out), "--folds", "2", "--cache", str(cache), *more),
    ]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=900, check=False)


def refused(*arguments: str) -> str:
    """What a command says that ends before it trains.

    In this process, where TensorFlow is loaded.
    """
    done = CliRunner().invoke(main, arguments[3:])
    assert isinstance(done.exception, SystemExit), done.output
    assert done.exit_code == 1
    assert not done.stdout
    return done.stderr


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
    assert "cache: 10 scans at 24×48×48, " in done.stderr
    assert "left" in done.stderr
    return folder / "run"


def test_a_run_leaves_what_the_contract_says(finished: Path, small_cohort: Path) -> None:
    study = json.loads((finished / "study.json").read_text())
    assert (study["task"], study["model"], study["init"], study["folds"], study["cases"]) == (
        "covid",
        "ltc",
        "scratch",
        2,
        10,
    )
    assert study["cohort"] == {
        "name": small_cohort.name,
        "sha256": hashlib.sha256(small_cohort.read_bytes()).hexdigest(),
        "scans": 10,
    }
    assert abs(datetime.fromisoformat(study["measured_at"]).timestamp() - time.time()) < 3600
    for name in ("confusion", "reliability", "learning", "roc"):
        assert (finished / "figures" / f"{name}.svg").is_file()
        assert (finished / "figures" / f"{name}.csv").is_file()
    assert np.sum(study["confusion_matrix"]) == 10
    assert set(study["accuracy"]) >= {"value", "ci95"}
    for fold in (0, 1):
        path = finished / f"fold-{fold}" / "model.keras"
        assert keras.saving.load_model(path, compile=False).input_shape == (None, 16, 32, 32, 1)
        assert load_model(path).input_shape == (None, 16, 32, 32, 1)
        contract = read_contract(path)
        assert contract.task == "covid"
        assert f"fold {fold}" in contract.origin
        assert not list((finished / f"fold-{fold}").glob("*.npz"))
    folds = json.loads((finished / "folds.json").read_text())["test"]
    assert sorted(folds.values()).count(0) == 5


def test_a_model_of_a_run_answers_a_scan(
    finished: Path, small_cohort: Path, tmp_path: Path
) -> None:
    scan = next(small_cohort.parent.glob("case-*/ct.nii.gz"))
    model = finished / "fold-0" / "model.keras"
    done = run(
        sys.executable,
        "-m",
        "tf_covid.cli",
        "infer",
        str(scan),
        "--model",
        str(model),
        "--out",
        str(tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    assert "COVID-19 " in done.stdout


def test_a_run_is_not_written_over(finished: Path, small_cohort: Path, tmp_path: Path) -> None:
    again = refused(*command(small_cohort, finished))
    assert "is not empty: --resume goes on" in again
    other = refused(*command(small_cohort, finished, "--resume"))
    assert "the run there differs in settings" in other
    before = (finished / "study.json").read_bytes()
    same = run(*command(small_cohort, finished, "--resume", "--config", str(config(tmp_path))))
    assert same.returncode == 0
    assert "fold 1: done" in same.stderr
    assert (finished / "study.json").read_bytes() == before
    # A run of before that its curves said when: they were written then.
    for fold in (0, 1):
        curves = finished / f"fold-{fold}" / "curves.json"
        kept = json.loads(curves.read_text())
        del kept["measured_at"]
        curves.write_text(json.dumps(kept))
        os.utime(curves, (1e9, 1e9 + fold))
    again = CliRunner().invoke(
        main,
        command(small_cohort, finished, "--resume", "--config", str(config(tmp_path)))[3:],
    )
    assert again.exit_code == 0, again.output
    assert json.loads((finished / "study.json").read_text())["measured_at"] == (
        "2001-09-09T01:46:41Z"
    )


def weights(path: Path) -> list[np.ndarray]:
    return list(load_model(path).get_weights())


def killed_after(arguments: list[str], line: str) -> None:
    """Start a command and kill it as soon as it has said this, with a little more work done."""
    with subprocess.Popen(
        arguments, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
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
def test_a_killed_run_ends_with_the_same_weights(
    finished: Path, small_cohort: Path, tmp_path: Path, kind: str
) -> None:
    whole, settings, moments = (
        finished,
        config(tmp_path, model=kind),
        ["fold 0: epoch 2/4", "fold 1: epoch 1/4"],
    )
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
    assert ("fold 0: done" in done.stderr) == (kind == "ltc")
    assert "bit for bit" not in done.stderr
    for fold in ("fold-0", "fold-1"):
        pairs = zip(
            weights(whole / fold / "model.keras"),
            weights(tmp_path / "run" / fold / "model.keras"),
            strict=True,
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
    lines = refused(
        *command(small_cohort, tmp_path / "run", "--config", str(config(tmp_path)), *changes)
    )
    assert said in lines.splitlines()[-1]
    assert "Traceback" not in lines


def test_a_clip_that_the_network_cannot_take_is_named(small_cohort: Path, tmp_path: Path) -> None:
    settings = config(tmp_path)
    settings.write_text(settings.read_text().replace("clip = [16, 32, 32]", "clip = [8, 32, 32]"))
    said = refused(*command(small_cohort, tmp_path / "run", "--config", str(settings)))
    assert said.splitlines()[-1].startswith(
        "error: clip = [8, 32, 32], network = {'dense': 16}: LTC needs a clip of known size"
    )


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_with_a_name(small_cohort: Path, tmp_path: Path) -> None:
    settings = config(tmp_path, "learning_rate = 1e30\ngradient_clip_norm = 1e30")
    done = run(*command(small_cohort, tmp_path / "run", "--config", str(settings)))
    assert done.returncode == 1
    assert re.match(  # the scans decide which of the two is met first
        "error: not_finite: (the loss|a weight) became NaN or infinite in epoch ",
        done.stderr.splitlines()[-1],
    )


def test_two_processes_do_not_share_a_run(small_cohort: Path, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = run(*command(small_cohort, tmp_path / "run"))
    assert done.returncode == 1
    assert "another process is working there" in done.stderr


def test_folds_of_another_cohort_are_refused(
    finished: Path, small_cohort: Path, tmp_path: Path
) -> None:
    fewer = json.loads((finished / "folds.json").read_text())
    fewer["test"].pop(next(iter(fewer["test"])))
    (tmp_path / "folds.json").write_text(json.dumps(fewer))
    said = refused(
        *command(small_cohort, tmp_path / "run", "--folds", str(tmp_path / "folds.json"))
    )
    assert "1 case(s) without a fold" in said


def test_folds_that_do_not_teach_a_class_are_refused(
    finished: Path, small_cohort: Path, tmp_path: Path
) -> None:
    folds = json.loads((finished / "folds.json").read_text())
    with small_cohort.open(newline="") as file:
        folds["test"] = {row["case"]: int(row["covid"] == "1") for row in csv.DictReader(file)}
    (tmp_path / "folds.json").write_text(json.dumps(folds))
    said = refused(
        *command(small_cohort, tmp_path / "run", "--folds", str(tmp_path / "folds.json"))
    )
    assert "error: fold 0 cannot learn class 0; fold 1 cannot learn class 1: " in said
    assert not (tmp_path / "run").exists(), "before any scan was read"


@pytest.mark.slow
def test_folds_and_weights_of_another_run_are_used(
    finished: Path, small_cohort: Path, tmp_path: Path
) -> None:
    folds = json.loads((finished / "folds.json").read_text())
    # Not those that the seed would give: two cases of the same class change sides.
    with small_cohort.open(newline="") as file:
        label = {row["case"]: row["covid"] for row in csv.DictReader(file)}
    one, other = next(
        (one, other)
        for one in label
        for other in label
        if label[one] == label[other] and (folds["test"][one], folds["test"][other]) == (0, 1)
    )
    folds["test"] |= {one: 1, other: 0}
    (tmp_path / "folds.json").write_text(json.dumps(folds))
    # Weights of somebody who looked through another window.
    source = load(finished / "fold-0" / "model.keras")
    window = source.contract.preprocessing.model_copy(
        update={"level_hu": -600.0, "width_hu": 1500.0}
    )
    save_model(
        source.network,
        source.contract.model_copy(update={"preprocessing": window}),
        tmp_path / "init.keras",
    )
    settings = config(tmp_path)
    settings.write_text(settings.read_text().replace("epochs = 4", "epochs = 1"))
    out = tmp_path / "run"
    done = run(
        *command(
            small_cohort, out, "--config", str(settings), "--folds", str(tmp_path / "folds.json")
        ),
        *("--init", str(tmp_path / "init.keras")),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "folds.json").read_text()) == folds
    for fold in (0, 1):
        with (out / f"fold-{fold}" / "predictions.csv").open(newline="") as file:
            tested = {row["case"] for row in csv.DictReader(file)}
        assert tested == {case for case, number in folds["test"].items() if number == fold}
        contract = read_contract(out / f"fold-{fold}" / "model.keras")
        assert contract.preprocessing == window
        assert "started from the weights" in contract.origin
    assert f"window: -1350 to 150 HU, as {tmp_path / 'init.keras'} was trained with" in done.stderr


def children(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def running(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
def test_workers_of_a_killed_run_end(small_cohort: Path, tmp_path: Path) -> None:
    asked = [
        *command(small_cohort, tmp_path / "run"),
        "--cache",
        str(tmp_path / "cache"),
        "--workers",
        "2",
    ]
    with subprocess.Popen(
        asked, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        try:
            # The second line comes when the first record is there: both workers are in the midst of
            # it.
            next(line for line in process.stderr if line.startswith("read 2/10"))
            workers = children(process)
            assert len([worker for worker in workers if running(worker)]) >= 2
            process.kill()
            process.wait()
            end = time.monotonic() + 20.0
            while any(map(running, workers)) and time.monotonic() < end:
                time.sleep(0.1)
            assert not [worker for worker in workers if running(worker)]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_full_disk_ends_a_run_and_nothing_is_lost(
    finished: Path, small_cohort: Path, tmp_path: Path
) -> None:
    """The system refuses to write more than 2 MB into a file, from the second fold's first epoch
    on."""
    asked = command(small_cohort, tmp_path / "run", "--config", str(config(tmp_path)))
    with subprocess.Popen(asked, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("fold 1: epoch 1/4"):
                resource.prlimit(
                    process.pid, resource.RLIMIT_FSIZE, (2 << 20, resource.RLIM_INFINITY)
                )
        process.wait(600)
    folder = tmp_path / "run"
    assert process.returncode == 1
    assert re.fullmatch(
        r"error: .*fold-1/(state|best)\.npz: cannot be written: File too large\n", said[-1]
    )
    assert "Traceback" not in "".join(said)
    assert not list(folder.rglob("*.partial"))
    whole = (folder / "fold-0" / "model.keras").read_bytes()
    assert (folder / "fold-0" / "predictions.csv").exists()
    assert not (folder / "fold-1" / "model.keras").exists()
    again = run(*asked, "--resume")
    assert again.returncode == 0, again.stderr
    assert "fold 0: done" in again.stderr
    assert (folder / "fold-0" / "model.keras").read_bytes() == whole
    epochs = [int(found) for found in re.findall(r"fold 1: epoch (\d)/4", "".join(said))]
    assert f"fold 1: epoch {epochs[-1] + 1}/4" in again.stderr
    assert "fold 1: epoch 1/4" not in again.stderr
    pairs = zip(
        weights(finished / "fold-1" / "model.keras"),
        weights(folder / "fold-1" / "model.keras"),
        strict=True,
    )
    assert all(np.array_equal(one, other) for one, other in pairs)
