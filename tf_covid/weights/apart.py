"""Files that a reader in C takes apart are read in a process of their own.

If it falls over, it falls alone.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tf_covid.errors import UnsafeFile
from tf_covid.weights import hdf5_child

#: What reads HDF5, and the seconds that it may take on a busy machine.
_READER, _MAX_SECONDS = "tf_covid.weights.hdf5_child", 120

#: Bytes of a reader's answer: 10,000 names of tensors, with their shapes.
_MAX_ANSWER = 32_000_000


@dataclass(frozen=True)
class Variable:
    """A dataset of an HDF5 file.

    Args:
        path: Path of the dataset within the file, e.g. "layers/conv3d/vars/0".
        layer: The text "name" that its group bears; None where there is none.
        values: Values of the dataset, float32 or the file's integers; zeros that take no memory
            where only names were read.
    """

    path: str
    layer: str | None
    values: np.ndarray

    @property
    def facts(self) -> str:
        """Type and shape."""
        return f"{self.values.dtype} {list(self.values.shape)}"


@dataclass(frozen=True)
class Store:
    """What an HDF5 file holds.

    Args:
        variables: Datasets of the file, in the order of their paths.
        layers: Names in the group "layers".
        texts: Text attributes of the root group, by name: a `.h5` of Keras keeps its config so.
    """

    variables: tuple[Variable, ...]
    layers: frozenset[str]
    texts: Mapping[str, str]


def stand_in(shape: Sequence[int], kind: np.dtype) -> np.ndarray:
    """Zeros of a shape that take no memory; float32 for each floating-point type.

    Raises:
        ValueError: If it is not a shape of an array.
    """
    return np.broadcast_to(np.zeros((), np.float32 if kind.kind == "f" else kind), tuple(shape))


def hdf5(path: Path, name: str, *, numbers: bool = True) -> Store:
    """What an HDF5 file holds, looked at and read in a process of its own.

    Args:
        path: The file.
        name: Name of the file in an error message.
        numbers: Whether values are read, or names and shapes only.

    Raises:
        UnsafeFile: As `hdf5.checked` and `chunks.write`; if the reader crashed, or ran out of its
            memory or time.
    """
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        mode = "numbers" if numbers else "names"
        run(_READER, [str(path.absolute()), made, name, mode], folder, name, "HDF5", _MAX_SECONDS)
        said = answer(folder / hdf5_child.ANSWER, name, "HDF5")
        texts = {
            key: (folder / key).read_text("utf-8")
            for key in hdf5_child.TEXTS
            if (folder / key).is_file()
        }
        variables = []
        with (
            (folder / hdf5_child.NUMBERS).open("rb") if numbers else contextlib.nullcontext()
        ) as file:
            for one in said["variables"]:
                kind, shape = np.dtype(one["type"]), one["shape"]
                if file is None:
                    values = stand_in(shape, kind)
                else:
                    values = np.fromfile(file, kind, math.prod(shape)).reshape(shape)
                variables.append(Variable(one["path"], one["layer"], values))
    return Store(tuple(variables), frozenset(said["layers"]), texts)


def run(
    module: str, arguments: Sequence[str], folder: Path, name: str, whose: str, seconds: float
) -> None:
    """Run a module of ours until it ends.

    Args:
        module: Full name of the Python module.
        arguments: Arguments of the command line.
        folder: Working directory of the process; its standard error is kept there.
        name: Name of the file that is read, for error messages.
        whose: Name of the library that reads, for error messages.
        seconds: Largest running time.

    Raises:
        UnsafeFile: If it crashed, or ran out of its memory or time.
    """
    # -P: not from the folder that the user stands in, where the file may have come with Python
    # files.
    command = [sys.executable, "-P", "-m", module, *arguments]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "-1",
        "HDF5_PLUGIN_PRELOAD": "::",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    with (folder / "errors.txt").open("w+b") as said:
        try:
            code = subprocess.run(  # noqa: S603  # this interpreter, with a reader of ours
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=said,
                cwd=folder,
                timeout=seconds,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise UnsafeFile("reader_failed", f"{name}: was not read within {seconds} s") from error
        if code:
            said.seek(max(said.seek(0, os.SEEK_END) - 300, 0))
            last = said.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
            how = signal.Signals(-code).name if code < 0 else last or f"exit code {code}"
            raise UnsafeFile(
                "reader_failed",
                f"{name}: {whose}'s reader crashed or ran out of its memory or time ({how})",
            )


def answer(path: Path, name: str, whose: str) -> dict[str, Any]:
    """What a reader left.

    Raises:
        UnsafeFile: With the reader's own refusal, or if it left nothing that can be read.
    """
    try:
        if path.stat().st_size > _MAX_ANSWER:
            raise UnsafeFile("hdf5_items", f"{name}: its names are longer than {_MAX_ANSWER} bytes")
        said: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UnsafeFile(
            "reader_failed", f"{name}: {whose}'s reader left no answer ({error})"
        ) from error
    if "code" in said:
        raise UnsafeFile(str(said["code"]), str(said["facts"]))
    return said
