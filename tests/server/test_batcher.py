"""The queue: bounded, timely, and every row back to who sent it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tf_covid.server.batcher import Batcher, PendingRequest
from tf_covid.server.errors import (
    ClientDisconnected,
    Failed,
    InvalidArgument,
    QueueFull,
    TooSlow,
    Unavailable,
)
from tf_covid.server.servable import SignatureRunner, Version
from tf_covid.server.tensor_spec import TensorSpec

FOREVER_S = 60.0


class Switch:
    """A model that waits until it is let go, and writes down what it was given."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.began = threading.Semaphore(0)
        self.seen: list[np.ndarray] = []

    def __call__(self, clip: Any) -> dict[str, Any]:
        self.seen.append(clip.numpy())
        self.began.release()
        assert self.go.wait(FOREVER_S)
        tf.debugging.assert_non_negative(clip)
        return {"y": clip * 2}


@pytest.fixture
def switch() -> Switch:
    return Switch()


def version_of(
    function: Callable[..., Any],
    name: str = "classify_clip",
    out: tuple[int | None, ...] = (None, 2),
) -> Version:
    runner = SignatureRunner(
        name,
        {"clip": TensorSpec("clip", tf.float32, (None, None))},
        {"y": TensorSpec("y", tf.float32, out)},
        function,
    )
    return Version("model", 1, {name: runner}, {}, None)


@pytest.fixture
def engine() -> Iterator[Callable[..., Batcher]]:
    made: list[Batcher] = []

    def make(queue: int = 8, **options: Any) -> Batcher:
        made.append(Batcher(queue, **{"batch_wait_s": 0.0, **options}))
        return made[-1]

    yield make
    for one in made:
        one.close(0)


def ask(
    engine: Batcher,
    version: Version,
    value: float,
    rows: int = 1,
    columns: int = 2,
    limit_s: float = FOREVER_S,
) -> PendingRequest:
    name = version.signatures[0]
    clip = np.full((rows, columns), value, np.float32)
    return engine.submit(version, version.runner(name), {"clip": clip}, time.monotonic() + limit_s)


def test_one_too_many_is_refused_at_once(engine: Any, switch: Switch, until: Any) -> None:
    queue, version = engine(2), version_of(switch, "other")
    first = ask(queue, version, 1)
    switch.began.acquire()
    waiting = [ask(queue, version, 2), ask(queue, version, 3)]
    assert (queue.depth, queue.running) == (2, 1)
    with pytest.raises(QueueFull, match="2 requests are waiting"):
        ask(queue, version, 4)
    switch.go.set()
    assert [queue.wait(request)["y"][0, 0] for request in (first, *waiting)] == [2, 4, 6]
    until(lambda: queue.running == 0)
    ask(queue, version, 5)


def test_a_request_whose_time_is_over_is_not_computed(engine: Any, switch: Switch) -> None:
    queue, version = engine(), version_of(switch, "other")
    first = ask(queue, version, 1)
    switch.began.acquire()
    late = ask(queue, version, 2, limit_s=0.01)
    with pytest.raises(TooSlow):
        queue.wait(late)
    stale = ask(queue, version, 3, limit_s=0.0)  # nobody waits, so nobody drops it
    last = ask(queue, version, 4)
    switch.go.set()
    queue.wait(first), queue.wait(last)
    with pytest.raises(TooSlow):
        stale.future.result(FOREVER_S)
    assert [seen[0, 0] for seen in switch.seen] == [1, 4]


def test_a_request_that_was_dropped_is_not_computed_and_gives_its_version_back(
    engine: Any, switch: Switch, later: Any
) -> None:
    queue, version = engine(), version_of(switch, "other")
    first = ask(queue, version, 1)
    switch.began.acquire()
    gone = ask(queue, version, 2)
    waiter = later(lambda: queue.wait(gone))
    queue.drop(gone)
    with pytest.raises(ClientDisconnected):
        waiter.result()
    drained = threading.Event()
    version.retire(drained.set)
    assert not drained.is_set()
    switch.go.set()
    queue.wait(first)
    assert drained.wait(FOREVER_S)
    assert [seen[0, 0] for seen in switch.seen] == [1]
    assert version.signatures == ()


def test_those_that_wait_together_are_computed_together(engine: Any, switch: Switch) -> None:
    rows: list[float] = []
    queue, version = engine(20, batch=6, observe=rows.append), version_of(switch)
    first = ask(queue, version, 0)
    switch.began.acquire()
    works = [ask(queue, version, value, rows=1 + value % 2) for value in range(1, 9)]
    other = ask(queue, version, 100, columns=3)
    switch.go.set()
    for value, request in enumerate(works, 1):
        np.testing.assert_array_equal(
            queue.wait(request)["y"], np.full((1 + value % 2, 2), 2 * value)
        )
    np.testing.assert_array_equal(queue.wait(other)["y"], [[200, 200, 200]])
    queue.wait(first)
    sizes = [len(seen) for seen in switch.seen]
    assert sizes[0] == 1
    assert max(sizes) == 6
    assert sum(sizes) == 14
    assert rows == sizes


def test_a_batch_waits_a_little_for_more(engine: Any, switch: Switch) -> None:
    switch.go.set()
    queue, version = engine(batch=2, batch_wait_s=FOREVER_S), version_of(switch)
    works = [ask(queue, version, value) for value in (1, 2)]
    assert [queue.wait(request)["y"][0, 0] for request in works] == [2, 4]
    assert [len(seen) for seen in switch.seen] == [2]


def test_one_that_spoils_a_batch_fails_alone(engine: Any, switch: Switch) -> None:
    queue, version = engine(), version_of(switch)
    first = ask(queue, version, 0)
    switch.began.acquire()
    works = {value: ask(queue, version, value) for value in (1, -1, 2)}
    switch.go.set()
    queue.wait(first)
    assert queue.wait(works[1])["y"][0, 0] == 2
    assert queue.wait(works[2])["y"][0, 0] == 4
    with pytest.raises(InvalidArgument):
        queue.wait(works[-1])


def test_outputs_that_are_not_one_row_an_input_row_are_never_shared(
    engine: Any, later: Any
) -> None:
    go, began = threading.Event(), threading.Semaphore(0)

    def flipped(clip: Any) -> dict[str, Any]:
        began.release()
        assert go.wait(FOREVER_S)
        return {"y": tf.transpose(clip)}  # declared as (None, 2), but rows are columns

    queue, version = engine(), version_of(flipped)
    first = ask(queue, version, 0, columns=3)
    began.acquire()
    works = [ask(queue, version, value, columns=3) for value in (1, 2)]
    go.set()
    for value, request in enumerate(works, 1):
        np.testing.assert_array_equal(queue.wait(request)["y"], np.full((3, 1), value))
    queue.wait(first)
    assert not version_of(flipped, out=(2, 2)).runner("classify_clip").batchable
    assert not version_of(flipped, "other").runner("other").batchable
    assert version_of(flipped, "serving_default").runner("serving_default").batchable


def test_many_threads_each_get_their_own(engine: Any, later: Any) -> None:
    queue = engine(200, batch=8, batch_wait_s=0.002)
    version = version_of(lambda clip: {"y": clip * 2})

    def many(start: int) -> list[bool]:
        found = []
        for value in range(start, start + 40):
            rows = 1 + value % 3
            got = queue.wait(ask(queue, version, value, rows=rows))["y"]
            found.append(got.shape == (rows, 2) and bool((got == 2 * value).all()))
        return found

    calls = [later(lambda start=start: many(start)) for start in range(0, 16_000, 1000)]
    assert all(all(call.result()) for call in calls)


def test_a_failure_nobody_foresaw_does_not_end_the_engine(engine: Any) -> None:
    def fails(clip: Any) -> dict[str, Any]:
        raise RuntimeError("a secret of the patient")

    queue = engine()
    with pytest.raises(Failed, match=r"RuntimeError\)$") as caught:
        queue.wait(ask(queue, version_of(fails), 1))
    assert "secret" not in str(caught.value)
    assert queue.wait(ask(queue, version_of(lambda clip: {"y": clip}), 1))["y"][0, 0] == 1


def test_closing_finishes_what_is_there(
    engine: Any, switch: Switch, later: Any, until: Any
) -> None:
    queue, version = engine(), version_of(switch, "other")
    works = [ask(queue, version, value) for value in (1, 2)]
    switch.began.acquire()
    closing = later(lambda: queue.close(FOREVER_S))
    until(lambda: queue._closing)
    with pytest.raises(Unavailable):
        ask(queue, version, 3)
    switch.go.set()
    assert [queue.wait(request)["y"][0, 0] for request in works] == [2, 4]
    assert closing.result() is True


def test_closing_does_not_wait_for_ever(engine: Any, switch: Switch, until: Any) -> None:
    queue, version = engine(), version_of(switch, "other")
    works = [ask(queue, version, value) for value in (1, 2)]
    switch.began.acquire()
    assert queue.close(0.01) is False
    for request in (
        works
    ):  # the one that is being computed, too: nobody can interrupt it, and nobody waits for it
        with pytest.raises(Unavailable):
            queue.wait(request)
    switch.go.set()
    until(lambda: queue.running == 0)


def test_who_is_in_a_hurry_need_not_wait(
    engine: Any, switch: Switch, later: Any, until: Any
) -> None:
    queue, version = engine(), version_of(switch, "other")
    request = ask(queue, version, 1)
    switch.began.acquire()
    closing = later(lambda: queue.close(FOREVER_S))
    until(lambda: queue._closing)
    queue.end_grace_time()
    assert closing.result() is False
    with pytest.raises(Unavailable):
        queue.wait(request)
    switch.go.set()


def test_what_a_close_has_answered_does_not_begin(
    switch: Switch, caplog: pytest.LogCaptureFixture
) -> None:
    version = version_of(switch)
    queue = Batcher(8, workers=0)
    for answer in ("close", "drop"):
        request = PendingRequest(
            version,
            version.runner("classify_clip"),
            {"clip": np.ones((1, 2), np.float32)},
            time.monotonic(),
        )
        if answer == "close":
            request.future.set_exception(Unavailable("the server is stopping"))
        else:
            queue.drop(request)
        queue._compute([request])
    assert not switch.seen
    assert not caplog.records
    queue.close(0)
