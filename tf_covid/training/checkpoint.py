"""The state of a training, on disk.

From it a killed run goes on as if nothing had happened, bit for bit.

`model.keras` and Keras' own backups lack the state of the dropout's random generators, the order of
the data and the callbacks' memory. All of it is here; what is drawn at random besides follows from
the run's seed and the epoch.
"""

from __future__ import annotations

import io
import json
import os
import platform
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import keras
import numpy as np
import tensorflow as tf

from tf_covid.atomic import replacing
from tf_covid.errors import TrainingError


@dataclass
class TrainingState:
    """How far a training is, besides its weights.

    Args:
        epoch: Epochs that are done.
        best: Lowest loss on the held-out patients so far.
        best_epoch: When it was reached, counted from 0; −1 before.
        stopped: Whether there is nothing more to do.
        curves: Name → a value for each epoch.
        seconds: Seconds of training, in all processes.
    """

    epoch: int = 0
    best: float = float("inf")
    best_epoch: int = -1
    stopped: bool = False
    curves: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0


def save(path: Path, variables: Sequence[Any], progress: TrainingState) -> None:
    """Write a state, as a whole.

    Raises:
        OutputError: If it cannot be written; the one before stays.
    """
    with replacing(path) as partial, partial.open("wb") as file:
        _write(file, variables, progress)
        file.flush()
        os.fsync(file.fileno())


def packed(variables: Sequence[Any], progress: TrainingState) -> bytes:
    """A state, for another process: what `restore` reads from a file of it."""
    file = io.BytesIO()
    _write(file, variables, progress)
    return file.getvalue()


def _write(file: IO[bytes], variables: Sequence[Any], progress: TrainingState) -> None:
    arrays = {f"v{index}": np.asarray(variable) for index, variable in enumerate(variables)}
    np.savez(file, progress=np.array(json.dumps(asdict(progress))), **arrays)  # type: ignore[arg-type]


def restore(path: Path | IO[bytes], variables: Sequence[Any]) -> TrainingState:
    """Put a state into the variables.

    Args:
        path: What `save` has written, or a file of what `packed` has.
        variables: Those of the same network and optimizer.

    Raises:
        TrainingError: If the file is damaged, or of another network.
    """
    name = path if isinstance(path, Path) else "what the chief sent"
    try:
        with np.load(path, allow_pickle=False) as file:
            progress = TrainingState(**json.loads(str(file["progress"])))
            values = [file[f"v{index}"] for index in range(len(file.files) - 1)]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise TrainingError(
            f"{name}: the state is damaged; remove its folder to train this fold anew"
        ) from error
    shapes = [tuple(variable.shape) for variable in variables]
    if [value.shape for value in values] != shapes:
        raise TrainingError(f"{name}: the state is of another network or optimizer")
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
    return progress


def deterministic() -> None:
    """Let TensorFlow choose the same kernels, in the same order, each time.

    For the whole process.
    """
    tf.config.experimental.enable_op_determinism()


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide what a network learns."""
    return {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
    }


def environment() -> dict[str, Any]:
    """What else decides the bits of a training.

    Versions, threads, kernels, and what they run on.
    """
    return {
        **library_versions(),
        "intra_op_threads": (
            tf.config.threading.get_intra_op_parallelism_threads() or os.cpu_count()
        ),
        "inter_op_threads": tf.config.threading.get_inter_op_parallelism_threads() or "default",
        "cpus": _cpus(),
        "device": _device(),
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1"),
    }


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of what is other in two environments.

    What only one of them has is none: an older run recorded less.
    """
    return sorted(key for key in before.keys() & now.keys() if before[key] != now[key])


def _cpus() -> int | None:
    """Processors that this process may use: TensorFlow takes a thread for each."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count()


def _device() -> str:
    """Kind of the GPUs, or of the processor: kernels are chosen by what it can do."""
    if gpus := tf.config.list_physical_devices("GPU"):
        return ", ".join(
            tf.config.experimental.get_device_details(gpu).get("device_name", "GPU") for gpu in gpus
        )
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        facts = ""
    names = (
        line.partition(":")[2].strip()
        for line in facts.splitlines()
        if line.startswith("model name")
    )
    return next(names, platform.processor() or platform.machine())
