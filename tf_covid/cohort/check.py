"""Many inputs, each read and judged by the gate, several at a time: what `tfcovid check` does."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from tf_covid.scan import Case
from tf_covid.scan.check import Checked
from tf_covid.scan.reader import Reader


def check_cases(
    cases: Sequence[Case], workers: int, first: Reader | None = None
) -> Iterator[Checked]:
    """What the gate says of each case, in order.

    Args:
        cases: Cases, from `cases_of`.
        workers: Processes that read at once.
        first: One of them, if it runs already.
    """
    idle: deque[Reader] = deque([first] if first else [])
    started: list[Reader] = []

    def work(case: Case) -> Checked:
        try:
            reader = idle.popleft()
        except IndexError:
            started.append(reader := Reader())
        try:
            return reader.check(case)
        finally:
            idle.append(reader)

    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[Checked]] = deque()
    try:
        for case in cases:
            waiting.append(pool.submit(work, case))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        for reader in started:
            reader.close()
