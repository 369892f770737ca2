"""Processes that work through a cohort beside this one, and end when it does, however it ends."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tf_covid.errors import CohortError
from tf_covid.tensor import Json

Item = TypeVar("Item")
Found = TypeVar("Found")


def results(work: Callable[[Item], Found], items: Sequence[Item], workers: int) -> Iterator[Found]:
    """What a function gives for each item, in order.

    Args:
        work: Can be pickled.
        items: What it is called with.
        workers: Number of processes; 1 works in this one.

    Raises:
        CohortError: If a process died.
    """
    if workers <= 1:
        yield from map(work, items)
        return
    try:
        with process_pool(workers) as pool:
            jobs = [pool.submit(work, item) for item in items]
            try:
                yield from (job.result() for job in jobs)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
    except BrokenProcessPool as error:
        raise killed_worker() from error


def process_pool(workers: int, *, niceness: int = 0) -> ProcessPoolExecutor:
    """Processes that share the cores of this machine and end when this process does.

    Args:
        workers: Number of processes.
        niceness: How far they stand back behind this process, 0–19; 0 is not at all.
    """
    # Spawned, since TensorFlow may already run threads in this process.
    return ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(max((os.cpu_count() or 1) // workers, 1), niceness),
    )


def killed_worker() -> CohortError:
    """What is raised where a process of a pool died."""
    return CohortError(
        "a process that makes records was killed, most likely for want of memory; what it made is"
        " kept: use fewer workers and start again"
    )


def end_with_parent() -> None:
    """Let this process end as soon as the one that started it is gone, even by SIGKILL.

    A worker of a pool waits for work at a pipe that it holds open itself, so that nothing else
    would wake it.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()


def _exit_with_parent(parent: Json) -> None:
    # Waits at a pipe that the parent alone holds open: the system closes it, whatever the parent
    # died of.
    parent.join()
    os._exit(1)


def _start(threads: int, niceness: int) -> None:
    end_with_parent()
    os.nice(niceness)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
