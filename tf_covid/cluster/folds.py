"""`tfcovid fit --engine ray`: the folds of a run as workers of a Ray, several at a time.

The driver reads the scans, holds the run's folder and writes the study; a worker trains one fold
into the folder, which all nodes share, from records that they share as well. A fold whose worker
dies goes on, in another one, where its last epoch ended.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass

from tf_covid.cluster.connection import ClusterOptions, connected, described, room_for
from tf_covid.cluster.engine import whole_path
from tf_covid.cluster.pool import TRIES, death_of
from tf_covid.cluster.worker import bind_tensorflow
from tf_covid.errors import ClusterError, TfCovidError, TrainingError
from tf_covid.experiment.fit import FoldsPlan, train_fold
from tf_covid.experiment.run_folder import FitRequest
from tf_covid.tensor import Ray
from tf_covid.training.checkpoint import deterministic, library_versions

#: Seconds between two looks at what the workers say.
_LOOK_S = 0.5

#: Longest wait for a first worker to start, and for the files of one that is done, in seconds.
_START_S, _LATE_S = 600.0, 60


def everywhere(request: FitRequest, cpus: int | None) -> FitRequest:
    """The same request for workers: with paths that do not depend on where one was started.

    Args:
        request: What is to be trained.
        cpus: Cores of each fold; None: all that there are, shared out.
    """
    return dataclasses.replace(
        request,
        manifest=request.manifest.absolute(),
        out=request.out.absolute(),
        cache=request.cache.absolute() if request.cache else None,
        folds_file=request.folds_file.absolute() if request.folds_file else None,
        init=whole_path(str(request.init)) if request.init else None,
        lungs=str(whole_path(request.lungs)),
        lobes=whole_path(request.lobes),
        trained_by=f"Ray, {cpus or 'shared'} cores",
    )


@dataclass(frozen=True)
class FoldTask:
    """What a worker is to train.

    Args:
        plan: What the folds are trained from.
        fold: Index of the fold.
        cpus: Threads of TensorFlow.
        versions: Those of the driver's libraries.
    """

    plan: FoldsPlan
    fold: int
    cpus: int
    versions: dict[str, str]


class FoldWorker:
    """An actor of Ray, a process of its own that trains one fold and ends."""

    def train(self, task: FoldTask, lines: Ray) -> str | None:
        """Train a fold.

        Args:
            task: Which one, and how.
            lines: Queue of Ray that hears of each step.

        Returns:
            Why it is not trained; None if it is.
        """
        bind_tensorflow(task.cpus)
        deterministic()

        def put(line: str) -> None:
            # Nobody may listen any more; the fold is none the worse for it.
            with suppress(Exception):
                lines.put(line)

        try:
            if problem := _unfit(task):
                return problem
            train_fold(task.plan, task.fold, on_message=put, epoch_progress=_reported_to(put))
        except TfCovidError as error:
            return str(error)
        return None


def folds_on_cluster(
    plan: FoldsPlan,
    folds: Sequence[int],
    *,
    address: str | None,
    cpus: int | None,
    gpus: float | None,
    on_message: Callable[[str], None],
) -> None:
    """Train folds on the workers of a Ray; returns when all of them are done.

    Args:
        plan: What they are trained from; every node sees its files at the same paths.
        folds: Indices of those that are to be trained.
        address: The Ray that is asked; see `ClusterOptions`.
        cpus: Cores of each fold; None: all that there are, shared out by all folds of the run, so
            that one that goes on has as many as before.
        gpus: GPUs of each fold; None: one, where there are any.
        on_message: Hears of each step, in a line.

    Raises:
        ClusterError: If Ray is not there or goes away, or a fold's workers died.
        ServingError: If Ray is not installed.
        TrainingError: If a fold cannot be trained; the others are, first.
    """
    if not folds:
        return
    with connected(ClusterOptions(address)) as ray:
        options = _room_of_a_fold(ray, address, cpus, gpus, len(plan.folds))
        if not room_for(ray, options):
            raise ClusterError(
                f"no_room: {described(ray)}, none with {options.cpus} cores"
                f"{f' and {options.gpus:g} GPUs' if options.gpus else ''} for a fold"
            )
        from ray.util.queue import Queue

        lines = Queue(actor_options={"num_cpus": 0})
        actor = ray.remote(
            num_cpus=options.cpus,
            num_gpus=options.gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": {"TF_CPP_MIN_LOG_LEVEL": "3"}},
        )(FoldWorker)
        on_message(
            f"{len(folds)} folds on {described(ray)}; for each {options.cpus} cores"
            f"{f', {options.gpus:g} GPUs' if options.gpus else ''}"
        )
        problems = _train(ray, actor, plan, folds, options, lines, on_message)
    # A file system of a network may show a file late.
    for _ in range(_LATE_S):
        if problems or all(map(plan.done, folds)):
            break
        time.sleep(1.0)
    else:
        problems = [f"{plan.name(fold)}: not done" for fold in folds if not plan.done(fold)]
    if problems:
        text = "; ".join(problems)
        raise TrainingError(f"{text}; --resume goes on where each fold is")


def _train(
    ray: Ray,
    actor: Ray,
    plan: FoldsPlan,
    folds: Sequence[int],
    options: ClusterOptions,
    lines: Ray,
    on_message: Callable[[str], None],
) -> list[str]:
    """Start the workers, and start them again where they die; what is wrong with folds."""
    known, tries, problems = library_versions(), dict.fromkeys(folds, 0), list[str]()
    jobs: dict[Ray, tuple[int, Ray]] = {}

    def start(fold: int) -> None:
        tries[fold] += 1
        worker = actor.remote()
        task = FoldTask(plan, fold, options.cpus, known)
        jobs[worker.train.remote(task, lines)] = fold, worker

    def listen() -> int:
        with suppress(ray.exceptions.RayError):  # the folds go on without
            waiting = lines.qsize()
            for line in lines.get_nowait_batch(waiting):
                on_message(line)
            return int(waiting)
        return 0

    for fold in folds:
        start(fold)
    heard, since = False, time.monotonic()
    while jobs:
        ended, _ = ray.wait(list(jobs), num_returns=1, timeout=_LOOK_S)
        heard = bool(listen()) or bool(ended) or heard
        if not heard and time.monotonic() - since > _START_S:
            raise ClusterError(
                f"no_worker: no fold has started within {_START_S:.0f} s; {described(ray)}, which"
                " others may use"
            )
        for reference in ended:
            fold, worker = jobs.pop(reference)
            name = plan.name(fold)
            try:
                problem = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                problem = f"a fault of its worker ({type(error.cause).__name__}: {error.cause})"
            except ray.exceptions.RayError as error:
                why = death_of(error)
                ray.kill(worker)  # it may live where nothing is heard of it
                if tries[fold] < TRIES:
                    on_message(f"{name}: {why}; it goes on in another worker")
                    start(fold)
                    continue
                problem = f"worker_lost: {TRIES} workers were lost with it; of the last one {why}"
            ray.kill(worker)
            if problem is not None:
                problems.append(f"{name}: {problem}")
                on_message(problems[-1])
    listen()
    return problems


def _room_of_a_fold(
    ray: Ray, address: str | None, cpus: int | None, gpus: float | None, folds: int
) -> ClusterOptions:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores = [int(node.get("CPU", 0)) for node in nodes]
    if cpus is None:
        cpus = max(1, min(max(cores), sum(cores) // folds))
    if gpus is None:
        gpus = float(any(node.get("GPU", 0) for node in nodes))
    return ClusterOptions(address, cpus=cpus, gpus=gpus)


def _unfit(task: FoldTask) -> str | None:
    """Why this node would not train what the driver's would; None if it would."""
    node, request = platform.node(), task.plan.request
    own = library_versions()
    if differ := sorted(name for name in own if own[name] != task.versions.get(name)):
        there = ", ".join(f"{name} {own[name]}" for name in differ)
        return f"node_differs: {node} has {there}"
    if missing := [path for path in task.plan.files() if not path.exists()]:
        return f"node_out: {node} does not see {missing[0].name} at its path"
    asked = (request.out / "run.json").read_text("utf-8")
    if not _same_weights(request, asked):
        return f"node_differs: {node} has other weights (sha256)"
    folder = request.out / f"fold-{task.fold}"
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return f"node_out: {node} cannot write into {folder.name} ({os.strerror(error.errno or 0)})"
    return None


def _same_weights(request: FitRequest, asked: str) -> bool:
    """Whether files of the same names hold here what the run began with."""
    began = json.loads(asked)["question"]
    return all(value == began.get(name) for name, value in request.weights().items())


def _reported_to(
    put: Callable[[str], None],
) -> Callable[[str, int], AbstractContextManager[Callable[[int, str], None]]]:
    @contextmanager
    def progress(label: str, steps: int) -> Iterator[Callable[[int, str], None]]:
        yield lambda _, text: put(f"{label}: {text}")

    return progress
