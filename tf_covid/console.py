"""Output of the command line: progress on a terminal, plain lines in a log, errors in one line."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

    from tf_covid.outcomes import CaseOutcome

Item = TypeVar("Item")


def error(message: str) -> None:
    """One line on standard error, whatever line breaks or control characters are in the message."""
    shown = "".join(letter if letter.isprintable() else " " for letter in message)
    click.echo(f"error: {shown}", err=True)


def outcome(case: CaseOutcome) -> None:
    """What became of one case: its answer on standard output, or an error."""
    if case.problem:
        error(f"{case.case}: {case.problem}")
    else:
        click.echo(case.line())


def note(message: str) -> None:
    """A line about what is going on, on standard error."""
    click.echo(message, err=True)


def progress(
    items: Iterable[Item], label: str, name: str = "case", total: int | None = None
) -> Iterator[Item]:
    """The items one after the other, with a bar on a terminal, or a line each on standard error.

    Args:
        items: What is worked through.
        label: What is being done, e.g. "infer".
        name: Attribute of an item that is shown, if it has it.
        total: Number of items, where `items` does not know it; 0 if nobody does.
    """
    if total is None:
        items = list(items)
        total = len(items)
    if not sys.stderr.isatty():
        for index, item in enumerate(items, 1):
            of = f"/{total}" if total else ""
            click.echo(f"{label} {index}{of} {getattr(item, name, item)}", err=True)
            yield item
        return
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=_terminal()
    ) as bars:
        task = bars.add_task(label, total=total or None)
        for item in items:
            bars.update(task, description=f"{label} {escape(str(getattr(item, name, item)))}")
            yield item
            bars.advance(task)


@contextmanager
def step_progress(label: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Show steps of some minutes each: a bar with the time left on a terminal, or a line each.

    Args:
        label: What is being done, e.g. "fold 0".
        total: Number of steps, with those that an earlier process did.

    Yields:
        To be called after each step with its number, from 0, and a text about it.
    """
    start, here = time.monotonic(), 0

    def left(step: int) -> str:
        # What an earlier process did took no time of this one.
        nonlocal here
        here += 1
        seconds = (time.monotonic() - start) / here * (total - step - 1)
        return f"{seconds / 60:.0f} min left" if seconds >= 90 else f"{seconds:.0f} s left"

    if not sys.stderr.isatty():

        def log(step: int, text: str) -> None:
            click.echo(f"{label}: {text}; {left(step)}", err=True)

        yield log
        return
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[left]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=_terminal()) as bars:
        task = bars.add_task(escape(label), total=total, left="")

        def show(step: int, text: str) -> None:
            bars.update(
                task,
                completed=step + 1,
                description=f"{escape(label)} {escape(text)}",
                left=left(step),
            )

        yield show


def _terminal() -> Console:
    from rich.console import Console

    return Console(stderr=True)


def import_tensorflow(*, starts: bool = True) -> None:
    """Import TensorFlow and find its devices without its start-up lines about missing GPUs.

    Args:
        starts: Whether it computes something, too; not where workers have to be connected first.
    """
    if "tensorflow" in sys.modules:
        return
    # Keras imports these where it finds them, two seconds or more, for wrappers and pictures that
    # nothing here uses; who needs them imports them afterwards.
    hidden = {"sklearn", "matplotlib"} - sys.modules.keys()
    with start_up_hidden():
        try:
            sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
            import tensorflow  # noqa: F401

            if starts:
                start_tensorflow()
        finally:
            for name in hidden:
                del sys.modules[name]


def start_tensorflow() -> None:
    """Let it find its devices, if it has not yet."""
    import tensorflow as tf

    tf.constant(0) + 1


@contextmanager
def start_up_hidden() -> Iterator[None]:
    """Nothing reaches standard error meanwhile; an error that Python raises comes through.

    TensorFlow's start-up lines are written by C++ code before any log level is read.
    """
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
