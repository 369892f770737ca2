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
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from tf_covid.cluster.connection import ClusterOptions, connected, described, room_for
from tf_covid.cluster.engine import whole_path
from tf_covid.cluster.pool import TRIES, death_of
from tf_covid.errors import ClusterError, TfCovidError, TrainingError
from tf_covid.experiment.fit import FoldsPlan, train_fold
from tf_covid.experiment.run_folder import FitRequest
from tf_covid.tensor import Ray
from tf_covid.training.checkpoint import deterministic, environment

#: Seconds between two looks at what the workers say.
_LOOK_S = 0.5


def deciding_environment() -> dict[str, str]:
    """Versions that decide what a network learns, on this machine."""
    here = environment()
    return {name: str(here[name]) for name in ("tensorflow", "keras", "numpy")}


def everywhere(request: FitRequest) -> FitRequest:
    """The same request with paths that do not depend on where a process was started."""
    return dataclasses.replace(
        request,
        manifest=request.manifest.absolute(),
        out=request.out.absolute(),
        cache=request.cache.absolute() if request.cache else None,
        folds_file=request.folds_file.absolute() if request.folds_file else None,
        init=whole_path(str(request.init)) if request.init else None,
        lungs=str(whole_path(request.lungs)),
        lobes=whole_path(request.lobes),
    )


@dataclass(frozen=True)
class FoldTask:
    """What a worker is to train.

    Args:
        plan: What the folds are trained from.
        fold: Index of the fold.
        cpus: Threads of TensorFlow.
        environment: Versions that the driver has.
    """

    plan: FoldsPlan
    fold: int
    cpus: int
    environment: dict[str, str]


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
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(task.cpus)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        for device in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(device, True)  # others may share it
        deterministic()
        try:
            if problem := _unfit(task):
                return problem
            train_fold(
                task.plan, task.fold, on_message=lines.put, epoch_progress=_reported_to(lines)
            )
        except TfCovidError as error:
            return str(error)
        return None


def folds_on_cluster(
    plan: FoldsPlan,
    folds: Sequence[int],
    options: ClusterOptions,
    *,
    on_message: Callable[[str], None],
) -> None:
    """Train folds on the workers of a Ray; returns when all of them are done.

    Args:
        plan: What they are trained from; every node sees its files at the same paths.
        folds: Indices of those that are to be trained.
        options: Where the workers are, and what each is given; cores of 0 are shared out.
        on_message: Hears of each step, in a line.

    Raises:
        ClusterError: If Ray is not there or goes away, or a fold's workers died.
        ServingError: If Ray is not installed.
        TrainingError: If a fold cannot be trained; the others are, first.
    """
    if not folds:
        return
    with connected(options) as ray:
        options = _with_cores(ray, options, len(folds))
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
        on_message(f"{len(folds)} folds on {described(ray)}, {options.cpus} cores each")
        problems = _train(ray, actor, plan, folds, options, lines, on_message)
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
    known, tries, problems = deciding_environment(), dict.fromkeys(folds, 0), list[str]()
    jobs: dict[Ray, tuple[int, Ray]] = {}

    def start(fold: int) -> None:
        tries[fold] += 1
        worker = actor.remote()
        task = FoldTask(plan, fold, options.cpus, known)
        jobs[worker.train.remote(task, lines)] = fold, worker

    for fold in folds:
        start(fold)
    while jobs:
        ended, _ = ray.wait(list(jobs), num_returns=1, timeout=_LOOK_S)
        while not lines.empty():
            on_message(lines.get())
        for reference in ended:
            fold, worker = jobs.pop(reference)
            name = plan.name(fold)
            try:
                problem = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                problem = f"a fault of its worker ({type(error.cause).__name__}: {error.cause})"
            except ray.exceptions.RayError as error:
                why = death_of(error)
                if tries[fold] < TRIES:
                    on_message(f"{name}: {why}; it goes on in another worker")
                    start(fold)
                    continue
                problem = f"worker_lost: {why}, for the {TRIES}rd time"
            ray.kill(worker)
            if problem is not None:
                problems.append(f"{name}: {problem}")
                on_message(problems[-1])
    while not lines.empty():
        on_message(lines.get())
    return problems


def _with_cores(ray: Ray, options: ClusterOptions, folds: int) -> ClusterOptions:
    """Cores for each fold where none were asked for: all there are, shared out."""
    if options.cpus:
        return options
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return dataclasses.replace(options, cpus=max(1, min(max(nodes), sum(nodes) // folds)))


def _unfit(task: FoldTask) -> str | None:
    """Why this node would not train what the driver's would; None if it would."""
    node, request = platform.node(), task.plan.request
    own = deciding_environment()
    if differ := sorted(name for name in own if own[name] != task.environment.get(name)):
        there = ", ".join(f"{name} {own[name]}" for name in differ)
        return f"node_differs: {node} has {there}"
    if missing := [path for path in task.plan.files() if not path.exists()]:
        return f"node_out: {node} does not see {missing[0].name} at its path"
    asked = (request.out / "run.json").read_text("utf-8")
    if not _same_weights(request, asked):
        return f"node_differs: {node} has other weights, or another manifest (sha256)"
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
    own = json.loads(json.dumps(request.identity()))
    hashes = [name for name in own if name == "init" or name.endswith("sha256")]
    return all(own[name] == began.get(name) for name in hashes)


def _reported_to(
    lines: Ray,
) -> Callable[[str, int], AbstractContextManager[Callable[[int, str], None]]]:
    @contextmanager
    def progress(label: str, steps: int) -> Iterator[Callable[[int, str], None]]:
        yield lambda _, text: lines.put(f"{label}: {text}")

    return progress
