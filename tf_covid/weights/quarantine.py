"""Reading a model file that somebody else wrote, without running anything from it.

A `.keras` file is a zip of `config.json` (an architecture that Keras would rebuild, code included) and
`model.weights.h5` (HDF5, which can point at other files of the host). We read the first as data only, and the second
after checking every link and shape. Known attacks: CVE-2024-3660, CVE-2025-1550, CVE-2025-8747, CVE-2025-9905,
CVE-2025-9906, CVE-2025-12060, CVE-2026-0897, CVE-2026-1669.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import h5py

from tf_covid.errors import ModelError

#: A `.keras` file holds these and nothing else that we read.
CONFIG, WEIGHTS, CONTRACT = "config.json", "model.weights.h5", "tf_covid.json"

#: Limits, in bytes: the LTC of 64×224×224 with 2048-wide dense layers takes 0.5 GB in float32.
MOST_JSON, MOST_WEIGHTS = 20_000_000, 4_000_000_000


def sha256(path: Path) -> str:
    """sha256 (hex) of a file's bytes.

    Raises:
        ModelError: If the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error


def unpack(archive: zipfile.ZipFile, name: str, target: BinaryIO, most: int) -> None:
    """Write one member of a `.keras` file to an open file, at most `most` bytes of it, a piece at a time.

    Raises:
        ModelError: If it is missing, larger than allowed, encrypted or damaged.
    """
    written = 0
    try:
        with archive.open(name) as file:
            while piece := file.read(1 << 20):
                written += len(piece)  # not the declared size: it may lie
                if written > most:
                    raise ModelError(f"{archive.filename}: {name} unpacks to more than {most} bytes")
                target.write(piece)
    except KeyError as error:
        raise ModelError(f"{archive.filename}: holds no {name}; not a model file that tf_covid can use") from error
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError, ValueError) as error:
        raise ModelError(f"{archive.filename}: {name} is damaged ({error})") from error


def as_json(archive: zipfile.ZipFile, name: str) -> Any:
    """A JSON member, as data.

    Raises:
        ModelError: If it is missing, too large or no JSON.
    """
    try:
        text = io.BytesIO()
        unpack(archive, name, text, MOST_JSON)
        return json.loads(text.getvalue())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{archive.filename}: {name} is no valid JSON") from error


def check_hdf5(path: Path) -> None:
    """Refuse an HDF5 file that reaches outside itself or promises more numbers than it holds.

    Raises:
        ModelError: On external, soft or virtual links, on a dataset that is not plain numbers, and where the shapes
            add up to more than the limit.
    """
    total = 0

    def visit(group: h5py.Group, depth: int) -> None:
        nonlocal total
        if depth > 32:
            raise ModelError(f"{path.name}: groups nested deeper than 32")
        for key in group:
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise ModelError(f"{path.name}: {key!r} is a soft or external link, which a weight file does not need")
            item = group[key]
            if isinstance(item, h5py.Group):
                visit(item, depth + 1)
                continue
            if not isinstance(item, h5py.Dataset) or item.is_virtual or item.external:
                raise ModelError(f"{path.name}: {key!r} keeps its numbers outside the file")
            if item.dtype.kind not in "fiub":
                # Keras stores no text in a network of stock layers; object arrays are an attack or another library.
                raise ModelError(f"{path.name}: {key!r} holds {item.dtype}, not numbers")
            total += math.prod(item.shape) * item.dtype.itemsize
            if total > MOST_WEIGHTS:
                raise ModelError(f"{path.name}: the shapes add up to more than {MOST_WEIGHTS} bytes")

    try:
        with h5py.File(path, "r") as file:
            visit(file, 0)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise ModelError(f"{path.name}: is no readable HDF5 file ({error})") from error


#: Settings of a layer that change its answer without changing the shapes of its weights.
_SETTINGS = (
    "activation", "axis", "data_format", "dilation_rate", "epsilon", "groups", "interpolation", "kernel_size",
    "offset", "padding", "pool_size", "scale", "size", "strides", "units", "use_bias",
)  # fmt: skip


def architecture(config: Any) -> list[tuple[str, str, dict[str, Any]]]:
    """(class, name, settings) of every layer of a functional model's `config.json`, read as data.

    Raises:
        ModelError: If it is not the config of a functional model.
    """
    try:
        if config["class_name"] not in ("Functional", "Model"):
            raise ModelError(f"the architecture is a {config['class_name']}, not a functional model of stock layers")
        layers = [(layer["class_name"], layer["config"]) for layer in config["config"]["layers"]]
        return [
            (kind, settings["name"], {key: settings[key] for key in _SETTINGS if key in settings})
            for kind, settings in layers
        ]
    except (KeyError, TypeError) as error:
        raise ModelError("config.json does not describe a functional Keras model") from error
