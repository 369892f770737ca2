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

#: A worker that does not see so many cases between two answers, or its first one, sees none.
_BLIND = 2


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

    A worker that its node makes unfit is left where it is, without work: in its room there would be
    the next one like it.

    Args:
        ray: The module, connected.
        task: What they do.
        count: How many there are at a time; None: as many as there is room for, nodes that join
            included.
        room: How many workers the nodes have room for.
        gpus: GPUs of each, or a fraction of one.
        on_message: Hears of workers that died or do not fit, in a line each.
        wait_s: Longest wait for a first worker, in seconds.
    """

    def __init__(
        self,
        ray: Ray,
        task: WorkerTask,
        count: int | None,
        room: Callable[[], int],
        *,
        gpus: float = 0.0,
        on_message: Callable[[str], None] = lambda _: None,
        wait_s: float = _WAIT_S,
    ) -> None:
        self._ray, self._task, self._note, self._wait_s = ray, task, on_message, wait_s
        self._fixed, self._room = count, room
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
        self._unfit: list[Ray] = []
        self._nodes: dict[Ray, str] = {}
        #: Cases that a worker did not see since it last answered; None before it ever did.
        self._unseen: dict[Ray, set[str] | None] = {}
        #: Workers that did not see a case.
        self._avoided: dict[str, list[Ray]] = {}
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
        working = time.monotonic()
        try:
            while True:
                count = self._fixed or max(1, self._room())
                # No more cases than workers wait here: a cohort need not fit into memory.
                waiting.extend(itertools.islice(coming, max(0, count - len(waiting))))
                if not (waiting or self._jobs):
                    break
                self._start(min(count, len(waiting) + len(self._jobs)))
                while pair := self._pair(waiting):
                    case, worker = pair
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
                    name, result = job.case.name, self._result(reference, job.worker)
                    if isinstance(result, Answered) and result.unseen is None:
                        self._failures, self._unseen[job.worker] = 0, set()
                        self._idle.append(job.worker)
                        self._avoided.pop(name, None)
                        node = self._nodes[job.worker]
                        yield Ended(job.case, result, tries.pop(name), node=node)
                        continue
                    why = str(result)
                    if isinstance(result, Answered):
                        why = str(result.unseen)
                        if self._blind(job):
                            tries[name] -= 1  # the node's fault, not the scan's
                        if not job.case.path.exists():
                            tries[name], why = TRIES, "its files are not there any more"
                    if tries[name] < TRIES:
                        waiting.append(job.case)  # others first: the fault may be its own
                        self._failed(f"{name}: {why}; it is tried again")
                    else:
                        self._failed(f"{name}: {why}")
                        self._avoided.pop(name, None)
                        yield Ended(job.case, None, tries.pop(name), why=why)
                self._end_stuck()
                if self._idle or self._jobs:
                    working = time.monotonic()
                else:
                    self._check_hope(time.monotonic() - working)
        finally:
            for worker in [*self._idle, *self._starting.values(), *self._unfit]:
                self._ray.kill(worker)
            for job in self._jobs.values():
                self._ray.kill(job.worker)

    def _pair(self, waiting: deque[Case]) -> tuple[Case, Ray] | None:
        """A case and an idle worker for it, taken out of both; None where there is no pair."""
        for index, case in enumerate(waiting):
            for worker in self._idle:
                # Where nobody else may come free, one that did not see it is asked again.
                if worker not in self._avoided.get(case.name, ()) or not self._jobs:
                    del waiting[index]
                    self._idle.remove(worker)
                    return case, worker
        return None

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
            self._nodes[worker], self._unseen[worker] = ready.node, None
            self._idle.append(worker)
        elif ready.fatal:
            self._ray.kill(worker)
            raise ClusterError(ready.problem)
        else:
            self._unfit.append(worker)
            self._failed(ready.problem)

    def _blind(self, job: _Job) -> bool:
        """Whether a worker that did not see a case sees none; else it gets others."""
        self._avoided.setdefault(job.case.name, []).append(job.worker)
        unseen = self._unseen[job.worker]
        if unseen is not None:
            unseen.add(job.case.name)
            if len(unseen) < _BLIND:
                self._idle.append(job.worker)
                return False
        self._unfit.append(job.worker)
        return True

    def _failed(self, reason: str) -> None:
        """Note it; and give up where nothing but that happens."""
        self._note(reason)
        self._failures += 1
        if reason not in self._reasons:
            self._reasons.append(reason)
        if self._failures >= _FAILURES * (self._fixed or max(1, self._room())):
            raise ClusterError(f"no_worker: {'; '.join(self._reasons[-4:])}")

    def _check_hope(self, idle_s: float) -> None:
        """Give up where no worker works, and none will."""
        reasons = "; ".join(self._reasons[-4:])
        if self._unfit and len(self._unfit) >= self._room():
            raise ClusterError(f"no_worker: {reasons}")
        if idle_s > self._wait_s:
            raise ClusterError(
                f"no_worker: none of {len(self._starting)} workers has started within"
                f" {self._wait_s:.0f} s; the cluster has no room for one, or its nodes are not"
                f" there{reasons and '; ' + reasons}"
            )

    def _result(self, reference: Ray, worker: Ray) -> Answered | Ready | str:
        """What a call returned, or what its worker died of, in a line."""
        try:
            value: Answered | Ready = self._ray.get(reference)
            return value
        except self._ray.exceptions.RayTaskError as error:
            # Not of the scan: the code of this node could not even be called.
            self._ray.kill(worker)
            return f"its node cannot run our code ({type(error.cause).__name__})"
        except self._ray.exceptions.RayError as error:
            return death_of(error)

    def _end_stuck(self) -> None:
        for job in self._jobs.values():
            if time.monotonic() - job.since > _CASE_S:
                self._ray.kill(job.worker)  # seen as dead at the next look


def death_of(error: Exception) -> str:
    """Ray's paragraph about a death, in a line."""
    name, text = type(error).__name__, " ".join(str(error).split()).lower()
    if name == "OutOfMemoryError":
        return "its worker was ended since its node had no memory left"
    if name in ("ActorDiedError", "RayActorError", "ActorUnavailableError"):
        node = any(known in text for known in ("node has died", "node was terminated", "node died"))
        return "its node died" if node else "its worker died"
    return f"its worker was lost ({name})"
