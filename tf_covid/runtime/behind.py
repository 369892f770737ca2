"""Which models are asked for, and what decides what is made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from tf_covid.weights import catalog, quarantine
from tf_covid.weights.catalog import LOBES, LUNGS, NO_LOBES

#: The project, and the rooms of it that beside its modules decide what a graph computes.
_PROJECT = Path(__file__).parents[1]
_ROOMS = ("attention", "export", "layers", "models", "runtime", "scan", "weights")


@dataclass(frozen=True)
class Behind:
    """The lung models that a network answers behind.

    Args:
        lungs: 2D lung model, by name or file; None: the one that ships.
        lobes: 3D lobe model, likewise, or "none"; None: the shipped one, which gates only where the
            network was trained behind it.
        allow_other_lungs: Answer behind other lung models than the network was trained behind.
    """

    lungs: str | Path | None = None
    lobes: str | Path | None = None
    allow_other_lungs: bool = False

    def files_sha256(self, sources: Sequence[str | Path]) -> list[str]:
        """sha256 of the files of networks and these, in the order of `Models.files_sha256`.

        Raises:
            ModelError: If a file is missing or cannot be read.
        """
        return [quarantine.sha256(catalog.find(file)) for file in self._files(sources)]

    def decides(self, sources: Sequence[str | Path], files_sha256: Sequence[str]) -> list[Any]:
        """What decides the graphs of networks behind these, as JSON has it: weights, options, code.

        Args:
            sources: Networks.
            files_sha256: What `files_sha256` gave.
        """
        return [
            list(files_sha256),
            [catalog.name_of(file) for file in self._files(sources)],
            [self.lobes is None, self.allow_other_lungs],
            metadata.version("tf-covid"),
            _code(),
        ]

    def _files(self, sources: Sequence[str | Path]) -> list[str | Path]:
        lobes = self.lobes
        if lobes is None:
            lobes = LOBES if LOBES in catalog.shipped() else NO_LOBES
        return [*sources, self.lungs or LUNGS, *([] if lobes == NO_LOBES else [lobes])]


def _code() -> str:
    """sha256 of our own code: who changes a layer must not meet a graph of before."""
    digest = hashlib.sha256()
    folders = [_PROJECT, *(_PROJECT / room for room in _ROOMS)]
    for path in sorted(path for folder in folders for path in folder.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
