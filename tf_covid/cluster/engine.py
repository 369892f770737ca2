"""The driver of a run on a cluster: cases out, outcomes in, each once."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tf_covid.cluster.connection import ClusterOptions, connected, described, room_for
from tf_covid.cluster.done import Done
from tf_covid.cluster.folder_storage import FolderStorage
from tf_covid.cluster.pool import Ended, Pool
from tf_covid.cluster.storage import Storage
from tf_covid.cluster.storages import storage_at
from tf_covid.cluster.worker import WorkerTask, deciding_versions, not_stored
from tf_covid.cohort.cases import SUMMARY
from tf_covid.errors import ClusterError, ModelError, OutputError, TfCovidError
from tf_covid.infer import Options, Run
from tf_covid.outcomes import CaseOutcome, Summary
from tf_covid.report import summary_row
from tf_covid.scan import Case
from tf_covid.tensor import Ray

#: A summary at a URL is sent so often, in seconds, and at the end.
_SUMMARY_S = 30.0


def infer_on_cluster(
    cases: Iterable[Case],
    out: str,
    options: Options,
    cluster: ClusterOptions,
    *,
    overwrite: bool = False,
    yield_kept: bool = False,
    on_message: Callable[[str], None] = lambda _: None,
) -> Iterator[CaseOutcome]:
    """Answer cases on the workers of a Ray, in the order in which they end; see `Run.answer`.

    Each case is answered once. What was done when an earlier run ended, by whatever, is not done
    again, and not yielded. A case whose worker dies three times is one without an answer.

    Args:
        cases: What is answered, taken as workers become free; every node sees their files at the
            same paths.
        out: A folder that every node sees, or a URL of fsspec.
        options: What decides the answer.
        cluster: Where the workers are, and what each is given.
        overwrite: Replace an answer of the same name to another question.
        yield_kept: Yield what was done before as well.
        on_message: Hears what happens to workers, in lines.

    Raises:
        ClusterError: If Ray is not there or goes away, another run holds `out`, or no worker can
            work.
        ServingError: If Ray or another extra that is asked for is not installed.
        ModelError: If a named model does not exist.
        OutputError: If `out` cannot be written to.
    """
    options = _everywhere(options)
    with ExitStack() as stack:
        storage = storage_at(out)
        staging = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tfcovid-")))
        # A model that is not there is named before any work.
        identity = Run(staging, options).identity
        own = deciding_versions(options)
        stack.enter_context(storage.held())
        todo = _Todo(cases, Done(storage, identity), storage)
        table = _Table(storage, staging, todo.done)
        faults, spoken = list[str](), False
        first = next(iter(todo), None)
        if first is not None:
            token = stack.enter_context(storage.prepared())
            ray = stack.enter_context(connected(cluster))
            _say_room(ray, cluster, on_message)
            task = WorkerTask(storage.out, options, overwrite, cluster.cpus, token, identity, own)
            room = functools.partial(room_for, ray, cluster)
            pool = Pool(ray, task, cluster.workers, room, gpus=cluster.gpus, on_message=on_message)
            try:
                for ended in pool.answer(itertools.chain([first], todo)):
                    outcome, trace = _outcome(ended, storage)
                    faults += [trace] if trace else []
                    try:
                        todo.end(ended, outcome)
                        table.add(outcome)
                    except OutputError as error:  # the answers are there, the tables come later
                        if not spoken:
                            on_message(str(error))
                        spoken = True
                    yield outcome
                    if yield_kept:
                        yield from todo.kept()
            except TfCovidError:
                with contextlib.suppress(OutputError):
                    todo.done.write()
                    table.write(todo.names)
                raise
        if yield_kept:
            yield from todo.kept()
        todo.done.write()
        table.write(todo.names)
        if todo.before:
            on_message(f"{todo.before} of {len(todo.names)} cases were done before")
        if faults:
            fault = RuntimeError(f"on a worker: {faults[0].strip().splitlines()[-1]}")
            fault.add_note(faults[0])
            raise fault


class _Todo:
    """The cases that are not done yet, as they come."""

    def __init__(self, cases: Iterable[Case], done: Done, storage: Storage) -> None:
        self.done, self._cases, self._storage = done, iter(cases), storage
        #: Names of all cases so far, and how many of them were done before.
        self.names, self.before = list[str](), 0
        self._asked: dict[str, str] = {}
        self._kept: list[CaseOutcome] = []

    def __iter__(self) -> Iterator[Case]:
        for one in self._cases:
            case = dataclasses.replace(one, path=one.path.absolute())
            self.names.append(case.name)
            asked = self.done.asked(case)
            values = self.done.answer(case.name, asked)
            if values is None:
                self._asked[case.name] = asked
                yield case
                continue
            self.before += 1
            folder = Path(self._storage.out) / case.name
            self._kept.append(
                CaseOutcome(
                    case.name, values, folder, kept=True, url=_url(self._storage, case.name)
                )
            )

    def kept(self) -> Iterator[CaseOutcome]:
        """What was done before, and was not yielded yet."""
        while self._kept:
            yield self._kept.pop(0)

    def end(self, ended: Ended, outcome: CaseOutcome) -> None:
        """Take down what became of a case.

        Raises:
            OutputError: If it cannot be written; it waits to be.
        """
        name = ended.case.name
        self.done.add(name, _row(outcome, ended), asked=self._asked.pop(name))


def whole_path(name: str | None) -> str | None:
    """A file by its whole path: a worker works in another folder. Other names stay."""
    return str(Path(name).absolute()) if name and Path(name).is_file() else name


def _everywhere(options: Options) -> Options:
    models = tuple(str(whole_path(name)) for name in options.models)
    return dataclasses.replace(
        options,
        models=models,
        lungs=options.lungs.absolute() if options.lungs else None,
        lungs_model=whole_path(options.lungs_model),
        lobes_model=whole_path(options.lobes_model),
    )


def _say_room(ray: Ray, cluster: ClusterOptions, on_message: Callable[[str], None]) -> None:
    """Say what the nodes have room for, where that is less than what is asked for.

    Raises:
        ClusterError: If this machine has no room for a worker, and no node can join.
    """
    room = room_for(ray, cluster)
    needs = f"{cluster.cpus} cores" + (f" and {cluster.gpus:g} GPUs" if cluster.gpus else "")
    if not room and cluster.asked is None:
        raise ClusterError(f"no_room: this machine has no {needs} for a worker: {described(ray)}")
    if not room:
        on_message(f"no node has {needs} for a worker yet: {described(ray)}; waiting for one")
    elif cluster.workers is not None and cluster.workers > room:
        on_message(f"room for {room} workers of {needs}: {described(ray)}")


def _url(storage: Storage, name: str) -> str | None:
    """Where an answer is, if that is no folder."""
    return None if isinstance(storage, FolderStorage) else f"{storage.shown.rstrip('/')}/{name}"


def _outcome(ended: Ended, storage: Storage) -> tuple[CaseOutcome, str | None]:
    """What became of a case, at the place of its answer, and the fault of ours if there was one.

    Raises:
        ModelError: If the models can answer nothing.
    """
    name, fault = ended.case.name, None
    if ended.answered is None:
        text = f"No worker could answer this scan, {ended.tries} tried; the last: {ended.why}."
        outcome = not_stored(storage, name, "worker_lost", text)
    elif ended.answered.outcome is None:
        raise ModelError(str(ended.answered.error))
    else:
        outcome, fault = ended.answered.outcome, ended.answered.fault
    folder = Path(storage.out) / name
    return dataclasses.replace(outcome, folder=folder, url=_url(storage, name)), fault


def _row(outcome: CaseOutcome, ended: Ended) -> dict[str, Any]:
    return {
        "status": outcome.values["status"],
        # The code alone: messages for a terminal may hold paths.
        "problem": outcome.problem and outcome.problem.partition(":")[0],
        "request": outcome.values["versions"].get("request"),
        "kept": outcome.kept,
        "node": ended.node,
        "tries": ended.tries,
        "ended_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "row": summary_row(outcome.values),
    }


class _Table:
    """`summary.csv`, in the folder, or made here and sent to a URL."""

    def __init__(self, storage: Storage, staging: Path, done: Done) -> None:
        self._storage = storage
        self._url = not isinstance(storage, FolderStorage)
        self._summary = Summary(staging if self._url else Path(storage.out))
        if self._url:
            self._summary.rows.update(done.summary_rows())
        self._sent = time.monotonic()

    def add(self, outcome: CaseOutcome) -> None:
        self._summary.add(outcome)
        if self._url and time.monotonic() - self._sent > _SUMMARY_S:
            self.write([])

    def write(self, order: Sequence[str]) -> None:
        self._summary.write(order)
        if self._url:
            self._storage.write(SUMMARY, self._summary.path.read_text("utf-8"))
            self._sent = time.monotonic()
