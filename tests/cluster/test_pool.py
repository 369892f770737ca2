"""Workers that die, that are unfit, that never come: every case ends once, or the run says why.

Ray and its processes are real; what the workers do is scripted.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("ray", reason="needs the extra [ray]")

from tf_covid.cluster import pool as module
from tf_covid.cluster.connection import ClusterOptions, described, room_for
from tf_covid.cluster.pool import TRIES, Pool
from tf_covid.cluster.worker import WorkerTask
from tf_covid.errors import ClusterError
from tf_covid.infer import Options
from tf_covid.scan import Case


def scripted(folder: Path) -> type:
    """A worker that does what the names of the cases say, and counts how often."""

    class Scripted:
        def __init__(self, task: Any) -> None:
            pass

        def prepare(self) -> Any:
            from tf_covid.cluster.worker import Ready

            (folder / f"pid-{os.getpid()}").touch()
            for how in ("unfit", "fatal", "dies"):
                script = folder / how
                if script.exists():
                    if script.read_text() == "once":
                        script.unlink()
                    if how == "dies":
                        os.kill(os.getpid(), signal.SIGKILL)
                    return Ready("here", f"node_{how}: no", how == "fatal")
            return Ready("here")

        def answer(self, case: Any) -> Any:
            from tf_covid.cluster.worker import Answered

            with (folder / f"tries-{case.name}").open("a") as file:
                file.write(f"{os.getpid()}\n")
            if case.name.startswith("slow"):
                time.sleep(1)
            if case.name.startswith("stuck"):
                time.sleep(1000)
            if case.name.startswith("raises"):
                raise ValueError("no such thing")
            if case.name.startswith("unseen"):
                return Answered(None, unseen="this node does not see its files")
            kill = case.name.startswith("kills")
            if case.name.startswith("once"):
                kill = len((folder / f"tries-{case.name}").read_text().split()) == 1
            if kill:
                os.kill(os.getpid(), signal.SIGKILL)
            return Answered(case.name)  # type: ignore[arg-type]

    return Scripted


@pytest.fixture
def run(ray, tmp_path, monkeypatch):
    """Answers cases of these names by scripted workers: the ends, and what was said."""
    monkeypatch.setattr(module, "Worker", scripted(tmp_path))
    said: list[str] = []

    def answered(
        names: list[str], count: int | None = 2, path: Path = Path("x"), **options: Any
    ) -> tuple[list[Any], list[str]]:
        task = WorkerTask(str(tmp_path), Options(), False, 1, "token", "question", {})
        pool = Pool(ray, task, count, lambda: 4, on_message=said.append, **options)
        return list(pool.answer(Case(name, path) for name in names)), said

    answered.folder = tmp_path  # type: ignore[attr-defined]
    answered.said = said  # type: ignore[attr-defined]
    return answered


def test_every_case_ends_once(run):
    names = [f"c{index}" for index in range(20)] + [f"slow{index}" for index in range(8)]
    ends, said = run(names)
    assert sorted(end.case.name for end in ends) == sorted(names)
    assert {end.tries for end in ends} == {1}
    assert {end.node for end in ends} == {"here"}
    assert not said
    assert len(list(run.folder.glob("pid-*"))) == 2


def test_as_many_workers_as_there_is_room_for(run):
    run([f"slow{index}" for index in range(12)], count=None)
    assert len(list(run.folder.glob("pid-*"))) == 4


def test_no_more_workers_than_cases(run):
    ends, _ = run(["a"], count=4)
    assert [end.case.name for end in ends] == ["a"]
    assert len(list(run.folder.glob("pid-*"))) == 1


def test_no_case_is_no_work(run):
    assert run([]) == ([], [])


def test_what_a_dead_worker_had_goes_to_another(run):
    ends, said = run(["a", "once", "b", "c"])
    tries = {end.case.name: end.tries for end in ends}
    assert tries == {"a": 1, "once": 2, "b": 1, "c": 1}
    assert all(end.answered is not None for end in ends)
    assert said == ["once: its worker died; it is tried again"]


def test_a_case_that_kills_its_workers_is_given_up(run):
    ends, said = run(["a", "kills", "b", "c", "d"])
    assert {end.case.name for end in ends} == {"a", "kills", "b", "c", "d"}
    (killer,) = (end for end in ends if end.case.name == "kills")
    assert killer.answered is None
    assert (killer.tries, killer.why) == (TRIES, "its worker died")
    assert len((run.folder / "tries-kills").read_text().split()) == TRIES
    assert len(said) == TRIES


def test_what_the_code_of_a_node_cannot_do_is_told(run):
    ends, _ = run(["raises", "a"])
    (lost,) = (end for end in ends if end.answered is None)
    # Not the message: it may hold what is in a path.
    assert lost.why == "its node cannot run our code (ValueError)"
    assert len(ends) == 2


def test_a_scan_that_nobody_sees_costs_no_other(run):
    (run.folder / "scan").touch()
    names = ["unseen", *(f"slow{number}" for number in range(6))]
    ends, said = run(names, path=run.folder / "scan")
    assert {end.case.name for end in ends} == set(names)
    (lost,) = (end for end in ends if end.answered is None)
    assert (lost.case.name, lost.tries) == ("unseen", TRIES)
    assert lost.why == "this node does not see its files"
    assert said[0] == "unseen: this node does not see its files; it is tried again"


def test_nodes_that_see_no_scan_at_all_end_the_run(run):
    (run.folder / "scan").touch()
    with pytest.raises(ClusterError, match=r"^no_worker: unseen\d: this node does not see"):
        run(["unseen1", "unseen2"], path=run.folder / "scan")
    assert len(list(run.folder.glob("pid-*"))) == 4


def test_a_scan_that_is_gone_is_no_fault_of_nodes(run):
    ends, _ = run(["a", "unseen"], path=run.folder / "gone")
    (lost,) = (end for end in ends if end.answered is None)
    assert lost.why == "its files are not there any more"
    assert (run.folder / "tries-unseen").read_text().count("\n") == 1


def test_one_unfit_node_costs_nothing_but_a_line(run):
    (run.folder / "unfit").write_text("once")
    ends, said = run(["a", "b", "c"])
    assert len(ends) == 3
    assert said == ["node_unfit: no"]


def test_nodes_that_are_all_unfit_end_the_run(run):
    (run.folder / "unfit").write_text("always")
    with pytest.raises(ClusterError, match=r"^no_worker: node_unfit: no$"):
        run(["a", "b"])
    # Each room was tried once: what is unfit stays there, for the next would be as unfit.
    assert run.said == ["node_unfit: no"] * 4


def test_what_would_be_wrong_on_every_node_ends_the_run_at_once(run):
    (run.folder / "fatal").write_text("always")
    with pytest.raises(ClusterError, match=r"^node_fatal: no$"):
        run(["a", "b"])


def test_workers_that_die_as_they_start_end_the_run(run):
    (run.folder / "dies").write_text("always")
    with pytest.raises(ClusterError, match=r"no_worker: a worker did not start: its worker died"):
        run(["a"], count=1)


def test_a_case_that_never_ends_is_given_up(run, monkeypatch):
    monkeypatch.setattr(module, "_CASE_S", 0.5)
    monkeypatch.setattr(module, "TRIES", 1)
    ends, _ = run(["stuck", "a"])
    assert {end.case.name: end.answered is None for end in ends} == {"stuck": True, "a": False}


def test_a_cluster_without_room_is_waited_for_no_longer_than_that(run):
    with pytest.raises(ClusterError, match=r"no_worker: none of 1 workers has started within 1 s"):
        run(["a"], gpus=1, wait_s=1)


def test_workers_end_with_the_run(run):
    run(["slow", "a", "b"])
    pids = [int(path.name.removeprefix("pid-")) for path in run.folder.glob("pid-*")]
    until = time.monotonic() + 20
    while any(psutil.pid_exists(pid) for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.1)


def test_cases_are_taken_as_workers_become_free(ray, run, tmp_path):
    taken = []

    def cases() -> Any:
        for index in range(30):
            taken.append(index)
            yield Case(f"c{index}", Path("x"))

    task = WorkerTask(str(tmp_path), Options(), False, 1, "token", "question", {})
    for count, _ in enumerate(Pool(ray, task, 2, lambda: 4).answer(cases()), 1):
        assert len(taken) <= count + 4
    assert len(taken) == 30


def test_room_is_counted_node_by_node(ray):
    assert room_for(ray, ClusterOptions(cpus=1)) == 4
    assert room_for(ray, ClusterOptions(cpus=3)) == 1
    assert room_for(ray, ClusterOptions(cpus=5)) == 0
    assert room_for(ray, ClusterOptions(cpus=1, gpus=0.5)) == 0
    assert described(ray) == "1 nodes with 4 cores and 0 GPUs in all"
