"""Reading a model file that somebody else wrote, without running anything from it.

A `.keras` file is a zip of `config.json` (an architecture that Keras would rebuild, code included)
and `model.weights.h5` (HDF5, which can point at other files of the host); a `.pt` is a pickle,
which is a program. We read the first as data only, the second after checking every link and shape
(`hdf5.py`), and the third only if every name that it calls is one of those that make tensors
(`pickles.py`). Known attacks: CVE-2024-3660, CVE-2025-1550, CVE-2025-8747, CVE-2025-9905,
CVE-2025-9906, CVE-2025-12060, CVE-2025-32434, CVE-2026-0897, CVE-2026-1669. No switch turns this
off.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO

from tf_covid.errors import ModelError, UnsafeFile
from tf_covid.tensor import Json
from tf_covid.weights import hdf5

#: A `.keras` file holds these and nothing else that we read.
CONFIG, WEIGHTS, CONTRACT = "config.json", "model.weights.h5", "tf_covid.json"

#: Limits, in bytes; the config of a large network of ours has 0.2 MB.
MAX_JSON, MAX_WEIGHTS = 4_000_000, hdf5.MAX_WEIGHTS

#: Members of an archive, bytes of its list of them, and how many times more than it holds a member
#: may give.
MAX_MEMBERS, MAX_LIST, MAX_RATIO = 10_000, 2_000_000, 200

#: Where Keras' own classes that a config may name live: no functions among them.
_CLASSES = {
    "layers",
    "models",
    "engine",
    "initializers",
    "regularizers",
    "constraints",
    "activations",
    "optimizers",
    "losses",
    "metrics",
    "dtype_policies",
    "mixed_precision",
}

#: Keras' own objects that live in its root, and what a config of a network of stock layers may
#: hold.
_ROOT = {
    "DTypePolicy",
    "FloatDTypePolicy",
    "Model",
    "Sequential",
    "Functional",
    "InputSpec",
    "Variable",
}

#: Layers that are code, or that read a file of the host.
_CODE = {"Lambda", "__lambda__", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer"}
#: Stock layers that a network of pictures is made of.
_STOCK = {
    "Activation",
    "Add",
    "AlphaDropout",
    "Average",
    "BatchNormalization",
    "Concatenate",
    "Cropping2D",
    "Cropping3D",
    "Dense",
    "DepthwiseConv2D",
    "Dropout",
    "ELU",
    "Flatten",
    "Functional",
    "GaussianDropout",
    "GaussianNoise",
    "GroupNormalization",
    "InputLayer",
    "LayerNormalization",
    "LeakyReLU",
    "Maximum",
    "Minimum",
    "Model",
    "Multiply",
    "Normalization",
    "PReLU",
    "Permute",
    "ReLU",
    "RepeatVector",
    "Rescaling",
    "Reshape",
    "Resizing",
    "SeparableConv2D",
    "Sequential",
    "Softmax",
    "Subtract",
    "UnitNormalization",
    *(
        f"{name}{rank}D"
        for name in (
            "AveragePooling",
            "Conv",
            "Convolution",
            "GlobalAveragePooling",
            "GlobalMaxPooling",
            "MaxPooling",
            "SpatialDropout",
            "UpSampling",
            "ZeroPadding",
        )
        for rank in (2, 3)
    ),
    *(f"Conv{rank}DTranspose" for rank in (2, 3)),
}
_READERS = {"StringLookup", "IntegerLookup", "TextVectorization", "HashedCrossing"}


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


@contextlib.contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """An archive whose members stay inside it, are not too many and not packed too tightly.

    Raises:
        UnsafeFile: If it is no zip, or one of those.
    """
    try:
        if (size := _list_size(path)) > MAX_LIST:
            raise UnsafeFile("zip_bomb", f"{path}: the list of its files has {size} bytes")
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise UnsafeFile("damaged", f"{path}: is no {path.suffix} file ({error})") from error
    with archive:
        members = archive.infolist()
        if len(members) > MAX_MEMBERS:
            raise UnsafeFile("zip_bomb", f"{path}: holds {len(members)} files")
        if len({member.filename for member in members}) < len(members):
            # One reader would take the first, another the last.
            raise UnsafeFile("ambiguous_name", f"{path}: two of the files inside have one name")
        for member in members:
            posix, windows = PurePosixPath(member.filename), PureWindowsPath(member.filename)
            if (
                posix.is_absolute()
                or windows.drive
                or windows.root
                or ".." in (*posix.parts, *windows.parts)
            ):
                raise UnsafeFile(
                    "archive_path", f"{path}: a file inside leads out of it ({member.filename!r})"
                )
            if stat.S_ISLNK(member.external_attr >> 16):
                raise UnsafeFile("archive_path", f"{path}: {member.filename!r} is a symbolic link")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                # bzip2 and LZMA take memory as their streams please; Keras writes neither.
                raise UnsafeFile(
                    "unknown_packing",
                    f"{path}: {member.filename!r} is packed with zip's method "
                    f"{member.compress_type}; 0 (stored) and 8 (deflated) are read",
                )
            if member.file_size > MAX_JSON and member.file_size > MAX_RATIO * member.compress_size:
                raise UnsafeFile(
                    "zip_bomb",
                    f"{path}: {member.filename!r} claims {member.file_size} bytes of"
                    f" {member.compress_size}",
                )
        yield archive


def _list_size(path: Path) -> int:
    """Bytes of a zip's list of files, as its end says.

    0 where that end is not found, which `zipfile` will say.
    """
    with path.open("rb") as file:
        file.seek(0, io.SEEK_END)
        file.seek(max(file.tell() - 66_000, 0))
        tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    if not 0 <= end <= len(tail) - 22:
        return 0
    long = tail.rfind(b"PK\x06\x06", 0, end)
    if tail[max(end - 20, 0) : end].startswith(b"PK\x06\x07") and long >= 0:
        # Its numbers of 64 bits are the ones that count.
        return int.from_bytes(tail[long + 40 : long + 48], "little")
    return int.from_bytes(tail[end + 12 : end + 16], "little")


def unpack(archive: zipfile.ZipFile, name: str, target: BinaryIO, max_bytes: int) -> None:
    """Write one member of a `.keras` file to an open file, piece by piece, within a limit.

    Raises:
        UnsafeFile: If it is missing, larger than allowed, encrypted or damaged.
    """
    written = 0
    try:
        with archive.open(name) as file:
            while piece := file.read(1 << 20):
                written += len(piece)  # not the declared size: it may lie
                if written > max_bytes:
                    raise UnsafeFile(
                        "zip_bomb",
                        f"{archive.filename}: {name} unpacks to more than {max_bytes} bytes",
                    )
                target.write(piece)
    except KeyError as error:
        raise UnsafeFile(
            "missing_member",
            f"{archive.filename}: holds no {name}; not a model file that tf_covid can use",
        ) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise UnsafeFile(
            "damaged", f"{archive.filename}: {name} cannot be unpacked ({error})"
        ) from error


def unpack_weights(archive: zipfile.ZipFile, target: BinaryIO) -> None:
    """Write the weights of a `.keras` file to an open file: weights do not pack.

    Raises:
        UnsafeFile: As `unpack`; if they are far larger than the file that holds them.
    """
    held = Path(str(archive.filename)).stat().st_size
    unpack(archive, WEIGHTS, target, min(MAX_WEIGHTS, hdf5.FREE_ALL + hdf5.MAX_RATIO * held))


def as_json(archive: zipfile.ZipFile, name: str) -> Json:
    """A JSON member, as data.

    Raises:
        UnsafeFile: If it is missing, too large or no JSON.
    """
    text = io.BytesIO()
    unpack(archive, name, text, MAX_JSON)
    return parse(Path(str(archive.filename)), name, text.getvalue())


def parse(path: Path, name: str, text: str | bytes) -> Json:
    """JSON that somebody else wrote, as data.

    Raises:
        UnsafeFile: If it is too large or no JSON.
    """
    if len(text) > MAX_JSON:
        raise UnsafeFile("zip_bomb", f"{path}: {name} is longer than {MAX_JSON} bytes")
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise UnsafeFile("damaged", f"{path}: {name} is no valid JSON") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys differ; of two equal ones a reader takes the one or the other."""
    if len(results := dict(pairs)) < len(pairs):
        raise ValueError("a key stands twice")
    return results


def check_config(path: Path, config: Json) -> None:
    """Refuse a Keras config that names code.

    A Lambda layer, a pickled function, a class that is not Keras' own.

    The config is data to us and its weights alone are read; but who sends code in it sends no
    honest weights.

    Raises:
        UnsafeFile: For each of these.
    """
    waiting = [config]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting.extend(part)
        if not isinstance(part, dict):
            continue
        waiting.extend(part.values())
        _check_layers(path, part.get("layers"))
        kind, module, registered = (
            part.get("class_name"),
            part.get("module"),
            part.get("registered_name"),
        )
        if kind == "function" and module == "builtins" and str(part.get("config")).isidentifier():
            continue  # the name of an activation or a loss, as Keras writes it; we look none up
        if kind in _CODE or kind == "function" or "__lambda__" in part:
            raise UnsafeFile(
                "lambda_layer",
                f"{path}: its config holds a {kind or 'lambda'}, code that it would have run; save"
                " its weights alone (save_weights)",
            )
        if kind is None:
            continue
        root, *inner = str(module or "keras.layers").replace("keras.src", "keras", 1).split(".")
        honest = root == "keras" and (inner[0] in _CLASSES if inner else kind in _ROOT)
        if not honest or kind in _READERS or ">" in str(registered or ""):
            raise UnsafeFile(
                "unknown_class",
                f"{path}: its config names {registered or kind} of {module}, not of Keras",
            )


def _check_layers(path: Path, layers: Json) -> None:
    """The classes of a list of layers: a config of Keras 2 names no module."""
    for layer in layers if isinstance(layers, list) else []:
        kind = layer.get("class_name") if isinstance(layer, dict) else None
        if kind is not None and kind not in _STOCK | _CODE and kind != "function":
            raise UnsafeFile(
                "unknown_class",
                f"{path}: its config holds a layer {kind}, which is not one of Keras' own",
            )


#: Settings of a layer that change its answer without changing the shapes of its weights.
_SETTINGS = (
    "activation",
    "axis",
    "data_format",
    "dilation_rate",
    "epsilon",
    "groups",
    "interpolation",
    "kernel_size",
    "offset",
    "padding",
    "pool_size",
    "scale",
    "size",
    "strides",
    "units",
    "use_bias",
)


def architecture(config: Json) -> list[tuple[str, str, dict[str, Any]]]:
    """(class, name, settings) of every layer of a functional model's `config.json`, read as data.

    Raises:
        ModelError: If it is not the config of a functional model.
    """
    try:
        if config["class_name"] not in ("Functional", "Model"):
            raise ModelError(
                f"the architecture is a {config['class_name']}, not a functional model of stock"
                " layers"
            )
        layers = [(layer["class_name"], layer["config"]) for layer in config["config"]["layers"]]
        return [
            (kind, settings["name"], {key: settings[key] for key in _SETTINGS if key in settings})
            for kind, settings in layers
        ]
    except (KeyError, TypeError) as error:
        raise ModelError("config.json does not describe a functional Keras model") from error
