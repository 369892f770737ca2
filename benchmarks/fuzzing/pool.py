"""Worker processes that read the inputs.

One that dies of a signal, hangs or grows is an outcome, not the end.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from fuzzing.draw import Input, draw, put
from fuzzing.judge import Outcome, Truth, outcome_of, truth_of
from fuzzing.seeds import Base, chest
from tf_covid.errors import ScanRefused

#: A worker's address space; what is above `judge.MOST_MIB` of resident memory is counted before.
_ADDRESS_BYTES = 8 << 30
_CPU_S, _WALL_S = 40, 120
#: Small files in memory, where there is such a place.
_ROOM = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

Record = dict[str, Any]


def records(
    numbers: Iterable[int], seed: int, bases: list[Base], known: dict[str, Truth], workers: int
) -> Iterator[Record]:
    """What became of each input, in the order in which they end.

    Args:
        numbers: Of the inputs.
        seed: Of the whole run.
        bases: All of them.
        known: What the bases are read as (`truths`); inputs of others must not be asked for.
        workers: Processes that read.
    """
    context, todo = multiprocessing.get_context("fork"), iter(numbers)
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_ROOM) as room:
        held = [_Worker(context, seed, bases, known, Path(room)) for _ in range(workers)]
        try:
            busy = [worker for worker in held if worker.give(next(todo, None))]
            while busy:
                ready = wait([worker.connection for worker in busy], timeout=1)
                for worker in list(busy):
                    record = worker.take(worker.connection in ready)
                    if record is None:
                        continue
                    yield record
                    if not worker.give(next(todo, None)):
                        busy.remove(worker)
        finally:
            for worker in held:
                worker.end()


def truths(bases: list[Base]) -> tuple[dict[str, Truth], dict[str, str]]:
    """What every base is read as, by its name, and what is wrong with how it is read."""
    found: dict[str, Truth] = {}
    why: dict[str, str] = {}
    hu, affine = chest()
    for base in bases:
        with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_ROOM) as folder:
            try:
                truth = truth_of(put(base, Path(folder)))
            except (ScanRefused, ValueError) as error:
                why[base.name] = str(error)
                continue
        away = (
            np.abs(truth.hu.astype(np.int32) - hu).max() if truth.hu.shape == hu.shape else np.inf
        )
        if away > base.tolerance or not np.allclose(truth.affine, affine, atol=1e-3):
            why[base.name] = f"read wrongly, by {away} HU"
            continue
        if truth.codes:
            why[base.name] = f"a warning where nothing is wrong: {', '.join(sorted(truth.codes))}"
        found[base.name] = truth
    return found, why


class _Worker:
    """A process that is started anew where it dies."""

    def __init__(
        self,
        context: SpawnContext,
        seed: int,
        bases: list[Base],
        truths: dict[str, Truth],
        room: Path,
    ) -> None:
        self._context, self._arguments = context, (seed, bases, truths, room)
        self._number: int | None = None
        self._since = 0.0
        self._start()

    def _start(self) -> None:
        ours, theirs = self._context.Pipe()
        self.connection: Connection = ours
        self._process: BaseProcess = self._context.Process(
            target=_work, args=(theirs, *self._arguments), daemon=False
        )
        self._process.start()
        theirs.close()

    def give(self, number: int | None) -> bool:
        """Hand over the next number; False if there is none."""
        self._number, self._since = number, time.monotonic()
        if number is not None:
            self.connection.send(number)
        return number is not None

    def take(self, ready: bool) -> Record | None:
        """The record of the number in hand, if it is done, dead or late."""
        if ready:
            try:
                return self.connection.recv()
            except (EOFError, ConnectionResetError):
                return self._dead("")
        return self._dead("no answer") if time.monotonic() - self._since > _WALL_S else None

    def _dead(self, why: str) -> Record:
        if why:
            self._process.kill()
        self._process.join()
        code = self._process.exitcode or 0
        name = signal.Signals(-code).name if code < 0 else f"exit {code}"
        late = bool(why) or name == "SIGXCPU"
        seed, bases = self._arguments[:2]
        assert self._number is not None
        record = _record_of(
            draw(seed, self._number, bases),
            Outcome("over time" if late else "crash", why=why or name),
        )
        self._start()
        return record

    def end(self) -> None:
        """Let the process go."""
        self.connection.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()


def _work(
    connection: Connection, seed: int, bases: list[Base], truths: dict[str, Truth], room: Path
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_BYTES, _ADDRESS_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    noise = os.memfd_create("noise")
    os.dup2(noise, 1)
    os.dup2(noise, 2)
    while True:
        try:
            number = connection.recv()
        except EOFError:
            return
        connection.send(_one(number, seed, bases, truths, room, noise))


def _one(
    number: int, seed: int, bases: list[Base], truths: dict[str, Truth], room: Path, noise: int
) -> Record:
    spent = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (spent + _CPU_S, resource.RLIM_INFINITY))
    folder = Path(tempfile.mkdtemp(dir=room))
    try:
        drawn = draw(seed, number, bases)
        path = put(drawn.changed.base, folder, drawn.changed.archive)
        outcome = outcome_of(path, drawn, truths[drawn.base])
    except Exception:  # a fault of the mutator must not end the run, but be seen
        text = traceback.format_exc().splitlines()
        record = {
            "number": number,
            "base": "?",
            "group": "?",
            "kind": "fault of the mutator",
            "detail": text[-3:],
        }
        return {**record, "harmless": False, **asdict(Outcome("crash", why=f"mutator: {text[-1]}"))}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    said = os.pread(noise, 300, 0).decode("utf-8", "replace")
    os.ftruncate(noise, 0)
    os.lseek(noise, 0, os.SEEK_SET)
    return _record_of(drawn, replace(outcome, noise=said))


def _record_of(drawn: Input, outcome: Outcome) -> Record:
    return {
        "number": drawn.number,
        "base": drawn.base,
        "group": drawn.mutation.group,
        "kind": drawn.mutation.kind,
        "detail": drawn.changed.detail,
        "harmless": drawn.changed.harmless,
        **asdict(outcome),
    }
