"""The queue in front of the models: bounded, with a time limit for each request, and batches of clips."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from concurrent.futures import TimeoutError as FutureTimeout

import numpy as np

from tf_covid.server.errors import (
    ClientDisconnected,
    Failed,
    Fault,
    QueueFull,
    TooSlow,
    Unavailable,
)
from tf_covid.server.servable import Arrays, SignatureRunner, Version

_LOG = logging.getLogger("tf_covid.server")

Outputs = dict[str, np.ndarray]


class PendingRequest:
    """One request in the queue. It holds a lease on its version until it is answered or dropped.

    Args:
        version: Who answers it.
        entry: With which signature.
        inputs: Arrays that `SignatureRunner.check` has passed.
        deadline: `time.monotonic()` after which nobody wants the answer.
    """

    def __init__(
        self, version: Version, entry: SignatureRunner, inputs: Arrays, deadline: float
    ) -> None:
        self.version = version
        self.entry = entry
        self.inputs = inputs
        self.deadline = deadline
        self.future: Future[Outputs] = Future()
        self.rows, self.kind = _kind(version, entry, inputs)
        version.hold()
        self.future.add_done_callback(lambda _: version.release())


class Batcher:
    """Answers requests in turn with a few threads.

    Args:
        queue: Requests that may wait.
        workers: Requests, or batches, that are computed at once.
        batch: Most rows that are computed together.
        batch_wait_s: How long a batch waits for more of its kind, in seconds.
        observe: Is told the rows of every computation.
    """

    def __init__(
        self,
        queue: int,
        workers: int = 1,
        batch: int = 16,
        batch_wait_s: float = 0.005,
        observe: Callable[[float], None] = lambda rows: None,
    ) -> None:
        self._most = queue
        self._batch = batch
        self._batch_wait_s = batch_wait_s
        self._observe = observe
        self._waiting: deque[PendingRequest] = deque()
        self._running: list[PendingRequest] = []
        self._changed = threading.Condition()
        self._closing = self._closed = self._hurried = False
        for number in range(workers):
            threading.Thread(
                target=self._work, name=f"tfcovid-engine-{number}", daemon=True
            ).start()

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that are being computed."""
        return len(self._running)

    def submit(
        self, version: Version, entry: SignatureRunner, inputs: Arrays, deadline: float
    ) -> PendingRequest:
        """Put a request into the queue. The caller holds a lease on its version.

        Raises:
            QueueFull: If too many wait already.
            Unavailable: If the server is stopping.
        """
        with self._changed:
            if self._closing:
                raise Unavailable("the server is stopping")
            if len(self._waiting) >= self._most:
                raise QueueFull(
                    f"{len(self._waiting)} requests are waiting already; ask again later"
                )
            work = PendingRequest(version, entry, inputs, deadline)
            self._waiting.append(work)
            self._changed.notify_all()
        return work

    def drop(self, work: PendingRequest) -> None:
        """Forget a request that nobody waits for any more. One that is being computed is finished, unseen."""
        with self._changed:
            if work in self._waiting:
                self._waiting.remove(work)
                self._changed.notify_all()
        work.future.cancel()

    def wait(self, work: PendingRequest) -> Outputs:
        """The answer.

        Raises:
            Fault: Why there is none.
        """
        try:
            return work.future.result(max(work.deadline - time.monotonic(), 0))
        except FutureTimeout:
            raise too_slow() from None
        except CancelledError:
            raise ClientDisconnected("the client has gone") from None
        finally:
            self.drop(work)

    def close(self, grace_s: float) -> bool:
        """Take no more requests, and finish those that are here; False if that took longer than the grace time.

        A computation cannot be interrupted: whoever waits for one that goes on hears that the
        server is stopping.
        """

        def is_over() -> bool:
            return self._hurried or not (self._waiting or self._running)

        with self._changed:
            self._closing = True
            self._changed.wait_for(is_over, grace_s)
            left = [*self._waiting, *self._running]
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        for work in left:
            _settle(work, Unavailable("the server is stopping"))
        return not left

    def hurry(self) -> None:
        """End the grace time of `close` now."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            try:
                self._compute(batch)
            finally:
                with self._changed:
                    self._running = [work for work in self._running if work not in batch]
                    self._changed.notify_all()
                del batch  # a scan of 157 MB must not stay until the next one comes

    def _compute(self, batch: list[PendingRequest]) -> None:
        live = [work for work in batch if _begins(work)]
        late = [work for work in live if work.deadline <= time.monotonic()]
        for work in late:
            _settle(work, too_slow())
        self._answer([work for work in live if work not in late])

    def _next(self) -> list[PendingRequest] | None:
        """The next requests that are to be computed together; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return None
            first = self._waiting.popleft()
            self._running.append(first)
            batch, rows = [first], first.rows
            until = time.monotonic() + self._batch_wait_s
            while first.kind is not None:
                for work in [work for work in self._waiting if work.kind == first.kind]:
                    if rows + work.rows <= self._batch:
                        self._waiting.remove(work)
                        self._running.append(work)
                        batch.append(work)
                        rows += work.rows
                left = until - time.monotonic()
                if rows >= self._batch or left <= 0 or self._closing or first.future.cancelled():
                    break
                self._changed.wait(left)
            return batch

    def _answer(self, batch: Sequence[PendingRequest]) -> None:
        if len(batch) > 1 and self._answer_together(batch):
            return
        for work in batch:
            if work.deadline <= time.monotonic():
                _settle(work, too_slow())
                continue
            try:
                outputs = work.entry.run(work.inputs)
            except Fault as fault:
                _settle(work, fault)
            # the thread's outermost layer: it must live, and the client must hear something
            except Exception as error:
                _LOG.error("a computation failed: %s", type(error).__name__)
                _settle(work, Failed(f"the computation failed ({type(error).__name__})"))
            else:
                self._observe(work.rows)
                _settle(work, outputs)

    def _answer_together(self, batch: Sequence[PendingRequest]) -> bool:
        """Answer a batch at once; False if that does not work out, and each is to be asked for itself."""
        names = batch[0].inputs
        rows = sum(work.rows for work in batch)
        try:
            outputs = batch[0].entry.run(
                {name: np.concatenate([work.inputs[name] for work in batch]) for name in names}
            )
        except (
            Exception
        ):  # whoever spoils a batch hears of it when asked alone; the others must not
            return False
        if any(not array.ndim or len(array) != rows for array in outputs.values()):
            return False  # not one row an input row: whose is what cannot be told
        self._observe(rows)
        start = 0
        for work in batch:
            part = slice(start, start := start + work.rows)
            # A copy: a client's answer must not keep the whole batch alive.
            _settle(work, {name: array[part].copy() for name, array in outputs.items()})
        return True


def _begins(work: PendingRequest) -> bool:
    """Whether somebody still waits for an answer; not for one that was cancelled, or that `close` has answered."""
    if work.future.done():
        return False
    try:
        return work.future.set_running_or_notify_cancel()
    except RuntimeError:  # just now
        return False


def _settle(work: PendingRequest, answer: Outputs | Fault) -> None:
    """Answer a request, unless that has been done: the end of the server may have been faster."""
    # Of one that was cancelled, or that `close` has answered, nobody waits for more.
    with contextlib.suppress(InvalidStateError):
        if isinstance(answer, Fault):
            work.future.set_exception(answer)
        else:
            work.future.set_result(answer)


def too_slow() -> TooSlow:
    """The error for a request whose time is over."""
    return TooSlow("the time limit of this request is over")


def _kind(
    version: Version, entry: SignatureRunner, inputs: Arrays
) -> tuple[int, tuple[object, ...] | None]:
    """Rows of a request, and what it must share with another to be computed together; None: nothing will do."""
    rows = {len(array) if array.ndim else -1 for array in inputs.values()}
    if len(rows) != 1 or not entry.batchable or not (count := rows.pop()) > 0:
        return 1, None
    return count, (
        id(version),
        entry.name,
        *((name, inputs[name].shape[1:]) for name in sorted(inputs)),
    )
