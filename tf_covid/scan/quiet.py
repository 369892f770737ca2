"""Silence for libraries that warn about what hospitals send; quality flags say what matters."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """No Python warnings within; the filters are set back afterwards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
