"""Cases answered several at a time, a thread each: for models that compute elsewhere.

Every thread has a reader and models of its own; what they share is safe to share. `summary.csv`
belongs to the thread that iterates.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence

from tf_covid.infer import Run, answer_one
from tf_covid.outcomes import CaseOutcome, Summary
from tf_covid.scan import Case


def run_in_threads(runs: Sequence[Run], cases: Sequence[Case]) -> Iterator[CaseOutcome]:
    """Answer the cases, as many at a time as there are runs, in the order in which they end.

    The rows of `summary.csv` are in the order of the cases in the end, whichever ended first.

    A fault of ours in one case costs the others nothing: the first one is raised in the end.

    Args:
        runs: Of one folder and the same options, each with a reader and models of its own.
        cases: What is answered, each once.

    Raises:
        ModelError, ServingError: If the models cannot answer any scan; what is being answered then
            is finished first.
        OutputError: If the summary cannot be written.
    """
    summary = Summary(runs[0].out)
    waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
    for case in cases:
        waiting.put(case)
    ended: queue.SimpleQueue[CaseOutcome | _Stopped] = queue.SimpleQueue()
    stop, faults = threading.Event(), list[Exception]()

    def work(run: Run) -> None:
        error: BaseException | None = None
        try:
            while not stop.is_set():
                outcome, fault = answer_one(run, waiting.get_nowait())
                if fault is not None:
                    faults.append(fault)
                ended.put(outcome)
        except queue.Empty:
            pass
        except BaseException as raised:  # handed on to the thread that iterates
            stop.set()
            error = raised
        ended.put(_Stopped(error))

    threads = [threading.Thread(target=work, args=(run,), daemon=True) for run in runs]
    for thread in threads:
        thread.start()
    running, raised = len(threads), None
    try:
        while running:
            outcome = ended.get()
            if isinstance(outcome, _Stopped):
                running -= 1
                raised = raised or outcome.error
                continue
            summary.add(outcome)
            yield outcome
    finally:
        stop.set()
    summary.write([case.name for case in cases])
    if raised is not None:
        raise raised
    if faults:
        raise faults[0]


class _Stopped:
    """A thread that has ended, and the error that it ended by, if any."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error
