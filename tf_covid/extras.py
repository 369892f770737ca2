"""What the extra `[serve]` brings, and what is said where it is not there."""

from __future__ import annotations

import importlib
from types import ModuleType

from tf_covid.errors import ServingError


def optional_import(module: str, extra: str = "serve") -> ModuleType:
    """Import a module of an extra.

    Raises:
        ServingError: Naming the extra, if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = (error.name or module).partition(".")[0]
        raise ServingError(
            f'{missing} is not installed; pip install -e ".[{extra}]" in the checkout brings it'
        ) from error
