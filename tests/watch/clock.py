"""A clock that a test sets."""

from __future__ import annotations


class Clock:
    """Gives the time that it is set to."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now
