"""TF_CONFIG: which workers train together, and which of them this process is."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Self

from tf_covid.errors import TrainingError


@dataclass(frozen=True)
class TfConfig:
    """The workers of one training.

    Args:
        addresses: "HOST:PORT" of each worker, in the same order for all of them.
        index: Which one this process is; 0 is the chief, who writes the run's folder.
    """

    addresses: tuple[str, ...]
    index: int

    @property
    def is_chief(self) -> bool:
        """Whether this process is the chief."""
        return self.index == 0

    @classmethod
    def read(cls) -> Self:
        """What the environment variable TF_CONFIG says.

        Raises:
            TrainingError: If it is not set, cannot be read, or is not of workers only.
        """
        text = os.environ.get("TF_CONFIG", "")
        if not text:
            raise _wrong("it is not set")
        try:
            values = json.loads(text)
            cluster, task = values["cluster"], values["task"]
            workers, kind, index = cluster["worker"], task["type"], task["index"]
        except (ValueError, KeyError, TypeError) as error:
            raise _wrong(f"it holds {text[:80]!r}") from error
        if others := sorted(set(cluster) - {"worker"}):
            raise _wrong(f"it has {', '.join(others)}; worker 0 is the chief")
        if kind != "worker":
            raise _wrong(f"this process is of type {str(kind)[:40]!r}")
        if not isinstance(workers, list) or not all(map(_is_address, workers)):
            raise _wrong("its workers are no list of HOST:PORT")
        if len(set(workers)) < len(workers):
            raise _wrong("two of its workers have the same address")
        if len(workers) < 2:
            raise _wrong("it has one worker; --strategy one is for that")
        if (
            isinstance(index, bool)
            or not isinstance(index, int)
            or index not in range(len(workers))
        ):
            raise _wrong(f"this process is worker {str(index)[:40]!r} of {len(workers)}, from 0")
        return cls(tuple(workers), index)


def _is_address(value: object) -> bool:
    if not isinstance(value, str):
        return False
    host, _, port = value.rpartition(":")
    return bool(host) and port.isascii() and port.isdigit() and 0 < int(port) < 65536


def _wrong(what: str) -> TrainingError:
    return TrainingError(
        f"tf_config: --strategy multiworker needs TF_CONFIG, and {what}; it is"
        ' {"cluster": {"worker": ["HOST:PORT", "HOST:PORT"]}, "task": {"type": "worker",'
        ' "index": 0}}, with the index of each worker'
    )
