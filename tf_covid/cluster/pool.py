"""The workers of a run: each is started, given one case at a time, and replaced when it dies."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tf_covid.cluster.worker import Answered, Ready, Worker, WorkerTask
from tf_covid.errors import ClusterError
from tf_covid.scan import Case
from tf_covid.tensor import Ray

#: How often a case is tried when the worker that has it dies.
TRIES = 3

#: Longest wait for a first worker, and longest work on one case, in seconds.
_WAIT_S, _CASE_S = 600.0, 3600.0

#: Workers that may die or be unfit one after the other, without an answer between them, for each
#: worker that is wanted.
_FAILURES = 4


@dataclass
class _Job:
    """A case that a worker has, and since when."""

    case: Case
    worker: Ray
    since: float


@dataclass(frozen=True)
class Ended:
    """What became of a case.

    Args:
        case: The case.
        answered: What its worker said; None if every worker that had it died.
        tries: How many workers had it.
        why: What the last worker died of, where all did.
        node: The machine that answered.
    """

    case: Case
    answered: Answered | None
    tries: int
    why: str = ""
    node: str = ""


class Pool:
    """Workers of one task on a connected Ray.

    A case is with one worker at a time: what its worker cannot answer since it died goes to
    another. A worker whose node is cut off may still write; it writes the same answer into the same
    folder, and is heard no more.

    Args:
        ray: The module, connected.
        task: What they do.
        count: How many there are at a time.
        gpus: GPUs of each, or a fraction of one.
        on_message: Hears of workers that died or do not fit, in a line each.
        wait_s: Longest wait for a first worker, in seconds.
    """

    def __init__(
        self,
        ray: Ray,
        task: WorkerTask,
        count: int,
        *,
        gpus: float = 0.0,
        on_message: Callable[[str], None] = lambda _: None,
        wait_s: float = _WAIT_S,
    ) -> None:
        self._ray, self._task, self._count, self._note = ray, task, count, on_message
        self._wait_s = wait_s
        self._actor = ray.remote(
            num_cpus=task.cpus,
            num_gpus=gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": {"TF_CPP_MIN_LOG_LEVEL": "3"}},
        )(Worker)
        self._starting: dict[Ray, Ray] = {}
        self._idle: list[Ray] = []
        self._jobs: dict[Ray, _Job] = {}
        self._nodes: dict[Ray, str] = {}
        self._failures, self._reasons = 0, list[str]()

    def answer(self, cases: Iterable[Case]) -> Iterator[Ended]:
        """Every case, in the order in which they end.

        Args:
            cases: Taken as workers become free; of different names.

        Raises:
            ClusterError: If no worker can work: nodes that differ, a folder that is not shared,
                models that cannot be loaded.
        """
        coming, waiting = iter(cases), deque[Case]()
        tries: dict[str, int] = {}
        began = time.monotonic()
        try:
            while True:
                # No more cases than workers wait here: a cohort need not fit into memory.
                waiting.extend(itertools.islice(coming, max(0, self._count - len(waiting))))
                if not (waiting or self._jobs):
                    break
                self._start(min(self._count, len(waiting) + len(self._jobs)))
                while waiting and self._idle:
                    case, worker = waiting.popleft(), self._idle.pop()
                    tries[case.name] = tries.get(case.name, 0) + 1
                    job = _Job(case, worker, time.monotonic())
                    self._jobs[worker.answer.remote(case)] = job
                asked = [*self._starting, *self._jobs]
                ended, _ = self._ray.wait(asked, num_returns=1, timeout=5.0)
                for reference in ended:
                    if reference in self._starting:
                        self._started(reference)
                        continue
                    job = self._jobs.pop(reference)
                    result = self._result(reference, job.worker)
                    if isinstance(result, Answered) and result.unseen is not None:
                        self._ray.kill(job.worker)
                        there = job.case.path.exists()
                        result = f"{result.unseen} does not see its files"
                        if not there:  # no node's fault
                            tries[job.case.name], result = TRIES, "its files are not there any more"
                    if isinstance(result, Answered):
                        self._failures = 0
                        self._idle.append(job.worker)
                        node, count = self._nodes[job.worker], tries.pop(job.case.name)
                        yield Ended(job.case, result, count, node=node)
                    elif tries[job.case.name] < TRIES:
                        waiting.appendleft(job.case)
                        self._failed(f"{job.case.name}: {result}; it is tried again")
                    else:
                        count = tries.pop(job.case.name)
                        self._failed(f"{job.case.name}: {result}")
                        yield Ended(job.case, None, count, why=str(result))
                self._end_stuck()
                if not (self._idle or self._jobs) and time.monotonic() - began > self._wait_s:
                    raise ClusterError(
                        f"no_worker: none of {len(self._starting)} workers has started within"
                        f" {self._wait_s:.0f} s; the cluster has no room for one, or its nodes are"
                        " not there"
                    )
                if self._idle or self._jobs:
                    began = time.monotonic()
        finally:
            for worker in [*self._idle, *self._starting.values()]:
                self._ray.kill(worker)
            for job in self._jobs.values():
                self._ray.kill(job.worker)

    def _start(self, count: int) -> None:
        there = len(self._starting) + len(self._idle) + len(self._jobs)
        for _ in range(count - there):
            worker = self._actor.remote(self._task)
            self._starting[worker.prepare.remote()] = worker

    def _started(self, reference: Ray) -> None:
        worker = self._starting.pop(reference)
        ready = self._result(reference, worker)
        if not isinstance(ready, Ready):
            self._failed(f"a worker did not start: {ready}")
        elif ready.problem is None:
            self._nodes[worker] = ready.node
            self._idle.append(worker)
        else:
            self._ray.kill(worker)
            if ready.fatal:
                raise ClusterError(ready.problem)
            self._failed(ready.problem)

    def _failed(self, reason: str) -> None:
        """Note it; and give up where nothing but that happens."""
        self._note(reason)
        self._failures += 1
        if reason not in self._reasons:
            self._reasons.append(reason)
        if self._failures >= _FAILURES * self._count:
            raise ClusterError(f"no_worker: {'; '.join(self._reasons[-4:])}")

    def _result(self, reference: Ray, worker: Ray) -> Answered | Ready | str:
        """What a call returned, or what its worker died of, in a line."""
        try:
            value: Answered | Ready = self._ray.get(reference)
            return value
        except self._ray.exceptions.RayTaskError as error:
            # Not of the scan: the code of this node could not even be called.
            self._ray.kill(worker)
            return " ".join(str(error).split())[-300:]
        except self._ray.exceptions.RayError as error:
            return _shortened(error)

    def _end_stuck(self) -> None:
        for job in self._jobs.values():
            if time.monotonic() - job.since > _CASE_S:
                self._ray.kill(job.worker)  # seen as dead at the next look


def _shortened(error: Exception) -> str:
    """Ray's paragraph about a death, in a line."""
    name, text = type(error).__name__, " ".join(str(error).split()).lower()
    if name == "OutOfMemoryError":
        return "its worker was ended since its node had no memory left"
    if name in ("ActorDiedError", "RayActorError", "ActorUnavailableError"):
        node = any(known in text for known in ("node has died", "node was terminated", "node died"))
        return "its node died" if node else "its worker died"
    return f"its worker was lost ({name})"
