"""What runs on a node: models and a reader of its own, and the same `Run` as in one process."""

from __future__ import annotations

import functools
import os
import platform
import traceback
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tf_covid.cluster.storage import Storage
from tf_covid.cluster.storages import storage_at
from tf_covid.errors import OutputError, TfCovidError
from tf_covid.extras import optional_import
from tf_covid.infer import Options, Run, answer_one
from tf_covid.outcomes import CaseOutcome, without_answer
from tf_covid.pipeline import Models, versions
from tf_covid.scan import Case
from tf_covid.scan.reader import Reader


@dataclass(frozen=True)
class WorkerTask:
    """What every worker is to do.

    Args:
        out: Folder or URL of the answers.
        options: What decides the answer.
        overwrite: Replace an answer of the same name to another question.
        cpus: Threads of each worker.
        token: What a worker has to see at `out`.
        identity: Hash of models and options, as the driver has it.
        versions: What decides the answer, as the driver has it.
    """

    out: str
    options: Options
    overwrite: bool
    cpus: int
    token: str
    identity: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Ready:
    """What a worker says when it has started.

    Args:
        node: Name of its machine.
        problem: Why it cannot work; None if it can.
        fatal: Whether it would be the same on any machine.
    """

    node: str
    problem: str | None = None
    fatal: bool = False


@dataclass(frozen=True)
class Answered:
    """What became of a case on a worker.

    Args:
        outcome: None where there is none; then one of the last two says why.
        fault: Traceback of a fault of ours, which cost this case its answer.
        error: Nothing can be answered by these models at all: a message.
        unseen: What this node does not see, and the driver's does.
    """

    outcome: CaseOutcome | None
    fault: str | None = None
    error: str | None = None
    unseen: str | None = None


class Worker:
    """An actor of Ray. Its process is its own: threads and memory are set for it alone."""

    def __init__(self, task: WorkerTask) -> None:
        self._task = task
        self._storage: Storage | None = None
        self._run: Run | None = None

    def prepare(self) -> Ready:
        """See that this node would answer as the driver's does, and load the models."""
        node, task = platform.node(), self._task
        try:
            own = deciding_versions(task.options)
            if own != task.versions:
                differ = sorted(name for name in own if own[name] != task.versions.get(name))
                there = ", ".join(f"{name} {own[name]}" for name in differ)
                here = ", ".join(task.versions.get(name, "none") for name in differ)
                return Ready(node, f"node_differs: {node} has {there}, not {here}")
            self._storage = storage_at(task.out)
            if problem := self._storage.check(task.token):
                return Ready(node, f"node_out: {node}: {problem}")
            with self._storage.folder(".none") as folder:
                # Once: what is answered later is answered by the weights of now, and says so.
                self._run = Run(
                    folder,
                    task.options,
                    overwrite=task.overwrite,
                    load_models=functools.partial(_load, task),
                    reader=Reader(),
                )
            if self._run.identity != task.identity:
                problem = f"node_differs: {node} has other weights, or another mask (sha256)"
                return Ready(node, problem)
        except TfCovidError as error:  # files or extras that are here, and not there
            return Ready(node, f"node_unfit: {node}: {error}")
        try:
            _ = self._run.models
        except TfCovidError as error:
            return Ready(node, str(error), fatal=True)
        return Ready(node)

    def answer(self, case: Case) -> Answered:
        """Answer one case; its folder is in the storage when this returns."""
        node, storage, run = platform.node(), self._storage, self._run
        if storage is None or run is None:
            raise RuntimeError("an answer was asked for before `prepare`")
        if not storage.sees(self._task.token):
            return Answered(None, unseen=f"{node} does not see the folder of the answers any more")
        if not (case.refused or _seen(case.path)):
            return Answered(None, unseen=f"{node} does not see its files")
        try:
            with storage.folder(case.name) as folder:
                run.out = folder
                outcome, fault = answer_one(run, case)
        except OutputError as error:
            return Answered(not_stored(storage, case.name, "not_written", str(error)))
        except TfCovidError as error:
            return Answered(None, error=str(error))
        if fault is None:
            return Answered(outcome)
        return Answered(outcome, fault="".join(traceback.format_exception(fault)))


def not_stored(storage: Storage, name: str, code: str, text: str) -> CaseOutcome:
    """The outcome of a case without a new answer; an earlier one in the storage stays."""
    try:
        before = storage.answer(name)
    except OutputError:
        before = None
    return without_answer(before, Path(storage.out) / name, code, text)


def _seen(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def deciding_versions(options: Options) -> dict[str, str]:
    """Versions of what decides an answer on this machine; OpenVINO's too where it computes.

    Raises:
        ServingError: If OpenVINO is to compute and is not installed.
    """
    if options.runtime != "openvino":
        return versions()
    optional_import("openvino", "openvino")
    return versions() | {"openvino": metadata.version("openvino")}


def _load(task: WorkerTask) -> Models[Any]:
    """The models, in the runtime that is asked for."""
    if task.options.runtime == "openvino":
        from tf_covid.runtime import models

        return models.of_options(task.options, threads=task.cpus)
    bind_tensorflow(task.cpus)
    from tf_covid.runtime import graphs

    return graphs.of_options(task.options)


def bind_tensorflow(cpus: int) -> None:
    """Give TensorFlow as many threads as the worker has cores, and no more memory than it needs."""
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as in the command line's own process
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(cpus)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    share_gpus()


def share_gpus() -> None:
    """Let TensorFlow take memory of GPUs as it needs it, before it computes anything."""
    import tensorflow as tf

    for device in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(device, True)  # others may share it
