"""`tfcovid fit --strategy multiworker`: real workers of this machine, killed and resumed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from tests.small_fits import CONFIG, curves_of, fit_command

pytestmark = pytest.mark.slow


class Workers:
    """Two workers of this machine, a log each."""

    def __init__(self, asked: list[str], folder: Path, stack: ExitStack) -> None:
        folder.mkdir(exist_ok=True)
        lines = [stack.enter_context(socket.socket()) for _ in range(2)]
        for line in lines:
            line.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{line.getsockname()[1]}" for line in lines]
        for line in lines:
            line.close()
        self.logs = [folder / f"{index}.log" for index in range(2)]
        self.processes = []
        for index, log in enumerate(self.logs):
            task = {"type": "worker", "index": index}
            config = {"cluster": {"worker": addresses}, "task": task}
            file = stack.enter_context(log.open("w"))
            process = psutil.Popen(
                [*asked, "--strategy", "multiworker"],
                env={**os.environ, "TF_CONFIG": json.dumps(config)},
                stdout=file,
                stderr=file,
            )
            stack.callback(_end, process)
            self.processes.append(process)

    def wait(self) -> list[int]:
        return [process.wait(500) for process in self.processes]

    def wait_for(self, text: str) -> None:
        until = time.monotonic() + 400
        while text not in self.logs[0].read_text():
            assert all(process.poll() is None for process in self.processes), self.said()
            assert time.monotonic() < until, self.said()
            time.sleep(0.1)

    def said(self) -> list[str]:
        return [log.read_text() for log in self.logs]


def _end(process: psutil.Popen) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()


@pytest.fixture(scope="module", autouse=True)
def without_onednn() -> Iterator[None]:
    """It rounds by the shape of what it is given: half a batch otherwise than the whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
        yield


@pytest.fixture(scope="module")
def alone(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    done = subprocess.run(
        fit_command(small_cohort, folder), capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_two_workers_learn_what_one_does_and_go_on_after_a_kill(
    alone: Path, small_cohort: Path, tmp_path: Path
) -> None:
    killed = 1  # the chief's death was tried by hand: the other worker says the same
    asked = fit_command(small_cohort, tmp_path / "run")
    with ExitStack() as stack:
        workers = Workers(asked, tmp_path / "first", stack)
        workers.wait_for("fold 0: epoch 1/3")
        workers.processes[killed].send_signal(signal.SIGKILL)
        codes = workers.wait()
        said = workers.said()[1 - killed]
    assert codes[killed] == -signal.SIGKILL
    assert codes[1 - killed] == 1
    assert f"error: worker_lost: worker {1 - killed} does not reach another worker" in said
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "fold-0" / "model.keras").exists()
    with ExitStack() as stack:
        workers = Workers([*asked, "--resume"], tmp_path / "second", stack)
        assert workers.wait() == [0, 0], workers.said()
        said = workers.said()[0]
    assert "fold 0: epoch 1/3" not in said
    assert said.endswith(f"{tmp_path / 'run' / 'study.html'}\n")
    for own, others in zip(curves_of(tmp_path / "run"), curves_of(alone), strict=True):
        assert own.keys() == others.keys()
        for name, values in own.items():
            assert values == pytest.approx(others[name], abs=1e-4), name
    answers = [json.loads((run / "study.json").read_text()) for run in (tmp_path / "run", alone)]
    assert answers[0]["cases"] == answers[1]["cases"] == 10


def test_a_batch_that_cannot_be_shared_evenly_ends_all_workers(
    small_cohort: Path, tmp_path: Path
) -> None:
    config = CONFIG.replace("batch = 2", "batch = 3")
    asked = fit_command(small_cohort, tmp_path / "run", config=config)
    with ExitStack() as stack:
        workers = Workers(asked, tmp_path / "logs", stack)
        assert workers.wait() == [1, 1]
        assert "error: 2 workers need a batch that they share evenly" in workers.said()[0]
        assert "Traceback" not in "".join(workers.said())


def test_a_worker_that_is_left_alone_while_it_connects_ends() -> None:
    # TensorFlow itself would wait for ever, and hear no signal.
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{line.getsockname()[1]}"
    code = f"""
from tf_covid.training import worker_group
from tf_covid.training.tf_config import TfConfig
worker_group.CONNECT_S = 2.0
worker_group.WorkerGroup(TfConfig(("{address}", "127.0.0.1:9"), 0))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
