"""The queue in front of the models.

Bounded, with a time limit for each request, and batches of clips.
"""

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
    QueueFull,
    RequestError,
    TooSlow,
    Unavailable,
)
from tf_covid.server.servable import Arrays, SignatureRunner, Version

_LOG = logging.getLogger("tf_covid.server")

Outputs = dict[str, np.ndarray]


class PendingRequest:
    """One request in the queue. It holds a lease on its version until it is answered or dropped.

    Args:
        version: Version of the model that answers.
        runner: With which signature.
        inputs: Arrays that `SignatureRunner.check` has passed.
        deadline: `time.monotonic()` after which nobody wants the answer.
    """

    def __init__(
        self, version: Version, runner: SignatureRunner, inputs: Arrays, deadline: float
    ) -> None:
        self.version = version
        self.runner = runner
        self.inputs = inputs
        self.deadline = deadline
        self.future: Future[Outputs] = Future()
        self.rows, self.batch_key = _batch_key(version, runner, inputs)
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
        self._max_queue = queue
        self._batch = batch
        self._batch_wait_s = batch_wait_s
        self._observe = observe
        self._waiting: deque[PendingRequest] = deque()
        self._running: list[PendingRequest] = []
        self._changed = threading.Condition()
        self._closing = self._closed = self._grace_ended = False
        for index in range(workers):
            threading.Thread(
                target=self._work, name=f"tfcovid-batcher-{index}", daemon=True
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
        self, version: Version, runner: SignatureRunner, inputs: Arrays, deadline: float
    ) -> PendingRequest:
        """Put a request into the queue. The caller holds a lease on its version.

        Raises:
            QueueFull: If too many wait already.
            Unavailable: If the server is stopping.
        """
        with self._changed:
            if self._closing:
                raise Unavailable("the server is stopping")
            if len(self._waiting) >= self._max_queue:
                raise QueueFull(
                    f"{len(self._waiting)} requests are waiting already; ask again later"
                )
            request = PendingRequest(version, runner, inputs, deadline)
            self._waiting.append(request)
            self._changed.notify_all()
        return request

    def drop(self, request: PendingRequest) -> None:
        """Forget a request that nobody waits for any more.

        One that is being computed is finished, unseen.
        """
        with self._changed:
            if request in self._waiting:
                self._waiting.remove(request)
                self._changed.notify_all()
        request.future.cancel()

    def wait(self, request: PendingRequest) -> Outputs:
        """The answer.

        Raises:
            RequestError: Why there is none.
        """
        try:
            return request.future.result(max(request.deadline - time.monotonic(), 0))
        except FutureTimeout:
            raise too_slow() from None
        except CancelledError:
            raise ClientDisconnected("the client has gone") from None
        finally:
            self.drop(request)

    def close(self, grace_s: float) -> bool:
        """Take no more requests, and finish those that are here.

        False if that took longer than the grace time.

        A computation cannot be interrupted: whoever waits for one that goes on hears that the
        server is stopping.
        """

        def is_over() -> bool:
            return self._grace_ended or not (self._waiting or self._running)

        with self._changed:
            self._closing = True
            self._changed.wait_for(is_over, grace_s)
            left = [*self._waiting, *self._running]
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        for request in left:
            _settle(request, Unavailable("the server is stopping"))
        return not left

    def end_grace_time(self) -> None:
        """End the grace time of `close` now."""
        with self._changed:
            self._grace_ended = True
            self._changed.notify_all()

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            try:
                self._compute(batch)
            finally:
                with self._changed:
                    self._running = [request for request in self._running if request not in batch]
                    self._changed.notify_all()
                del batch  # a scan of 157 MB must not stay until the next one comes

    def _compute(self, batch: list[PendingRequest]) -> None:
        live = [request for request in batch if _begins(request)]
        late = [request for request in live if request.deadline <= time.monotonic()]
        for request in late:
            _settle(request, too_slow())
        self._answer([request for request in live if request not in late])

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
            while first.batch_key is not None:
                for request in [
                    request for request in self._waiting if request.batch_key == first.batch_key
                ]:
                    if rows + request.rows <= self._batch:
                        self._waiting.remove(request)
                        self._running.append(request)
                        batch.append(request)
                        rows += request.rows
                left = until - time.monotonic()
                if rows >= self._batch or left <= 0 or self._closing or first.future.cancelled():
                    break
                self._changed.wait(left)
            return batch

    def _answer(self, batch: Sequence[PendingRequest]) -> None:
        if len(batch) > 1 and self._answer_together(batch):
            return
        for request in batch:
            if request.deadline <= time.monotonic():
                _settle(request, too_slow())
                continue
            try:
                outputs = request.runner.run(request.inputs)
            except RequestError as error:
                _settle(request, error)
            # the thread's outermost layer: it must live, and the client must hear something
            except Exception as error:
                _LOG.error("a computation failed: %s", type(error).__name__)
                _settle(request, Failed(f"the computation failed ({type(error).__name__})"))
            else:
                self._observe(request.rows)
                _settle(request, outputs)

    def _answer_together(self, batch: Sequence[PendingRequest]) -> bool:
        """Answer a batch at once; False if that fails, and each is to be asked alone."""
        names = batch[0].inputs
        rows = sum(request.rows for request in batch)
        try:
            outputs = batch[0].runner.run(
                {
                    name: np.concatenate([request.inputs[name] for request in batch])
                    for name in names
                }
            )
        except (
            Exception
        ):  # whoever spoils a batch hears of it when asked alone; the others must not
            return False
        if any(not array.ndim or len(array) != rows for array in outputs.values()):
            return False  # not one row an input row: whose is what cannot be told
        self._observe(rows)
        start = 0
        for request in batch:
            part = slice(start, start := start + request.rows)
            # A copy: a client's answer must not keep the whole batch alive.
            _settle(request, {name: array[part].copy() for name, array in outputs.items()})
        return True


def _begins(request: PendingRequest) -> bool:
    """Whether somebody still waits for an answer.

    Not for one that was cancelled, or that `close` has answered.
    """
    if request.future.done():
        return False
    try:
        return request.future.set_running_or_notify_cancel()
    except RuntimeError:  # just now
        return False


def _settle(request: PendingRequest, answer: Outputs | RequestError) -> None:
    """Answer a request, unless that has been done: the end of the server may have been faster."""
    # Of one that was cancelled, or that `close` has answered, nobody waits for more.
    with contextlib.suppress(InvalidStateError):
        if isinstance(answer, RequestError):
            request.future.set_exception(answer)
        else:
            request.future.set_result(answer)


def too_slow() -> TooSlow:
    """The error for a request whose time is over."""
    return TooSlow("the time limit of this request is over")


def _batch_key(
    version: Version, runner: SignatureRunner, inputs: Arrays
) -> tuple[int, tuple[object, ...] | None]:
    """Rows of a request, and what it must share with another to be computed together.

    None: nothing will do.
    """
    rows = {len(array) if array.ndim else -1 for array in inputs.values()}
    if len(rows) != 1 or not runner.batchable or not (count := rows.pop()) > 0:
        return 1, None
    return count, (
        id(version),
        runner.name,
        *((name, inputs[name].shape[1:]) for name in sorted(inputs)),
    )
