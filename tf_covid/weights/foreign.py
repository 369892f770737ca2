"""Tensors of a checkpoint that somebody else wrote, by name, whatever its format.

Nothing in it is run.

Every reader looks at names, types and shapes before it reads a number; `quarantine`, `hdf5` and
`pickles` say what is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tf_covid.errors import ModelError, UnsafeFile
from tf_covid.weights import apart, bundle, quarantine
from tf_covid.weights.pickles import check_pickle

#: File name ending → format. A TensorFlow checkpoint is named by its prefix, its `.index` or its
#: `.data-…`.
ENDINGS = {
    ".safetensors": "safetensors",
    ".pt": "torch",
    ".pth": "torch",
    ".pickle": "torch",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".keras": "keras",
    ".ckpt": "tensorflow",
}

#: Bytes of the part of a `.safetensors` that names its tensors.
MAX_HEADER = 4_000_000

#: Bytes of a checkpoint's file: weights, and the optimizer's that a training keeps beside them.
MAX_FILE = 4 * quarantine.MAX_WEIGHTS

#: What reads a TensorFlow checkpoint and a file of torch, and how long it may take, the start of
#: such a library on a busy machine included.
_READER, _TORCH, _MAX_SECONDS = "tf_covid.weights.bundle", "tf_covid.weights.torch_child", 300

#: Names of a Keras layer's variables, in the order in which Keras 3 saves them, by kind and number.
_KERAS_3 = {
    ("batch_normalization", 4): ("gamma", "beta", "moving_mean", "moving_variance"),
    ("batch_normalization", 3): ("beta", "moving_mean", "moving_variance"),
}

_SHARDS = r"(\.index|\.data-\d{5}-of-\d{5})"
_TYPES = {
    "F16": "<f2",
    "F32": "<f4",
    "F64": "<f8",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Args:
        format: A value of `ENDINGS`.
        tensors: Name → float32 values. A variable of Keras is called "layer/variable".
        others: Name → type and shape of all that are not floating-point tensors.
        sha256: sha256 (hex) of the file; of a TensorFlow checkpoint in several files, of their
            digests in the order of their names.
        layers: Layers of a Keras file, those without variables too.
    """

    format: str
    tensors: Mapping[str, np.ndarray]
    others: Mapping[str, str]
    sha256: str
    layers: frozenset[str] = frozenset()


@contextlib.contextmanager
def private(path: Path) -> Iterator[Path]:
    """A copy of a checkpoint.

    What was looked at and hashed is what is read, whatever happens to the file meanwhile.

    Args:
        path: Checkpoint, as for `read_checkpoint`.

    Yields:
        The copy's path, under the same file name; what is raised in the block names the original.

    Raises:
        UnsafeFile: If there is no such file, it is not a regular file, or is too large.
        ModelError: If it cannot be copied.
    """
    _, files = _format(path)
    with tempfile.TemporaryDirectory() as folder:
        try:
            for file in files:
                _copy(file, Path(folder, file.name))
            yield Path(folder, path.name)
        except ModelError as error:
            error.args = (str(error).replace(f"{folder}/", str(path)[: -len(path.name)]),)
            raise


def _copy(file: Path, target: Path) -> None:
    try:
        # Without waiting: a pipe may have taken its place.
        with (
            open(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as source,  # noqa: PTH123
            target.open("wb") as copy,
        ):
            facts = os.fstat(source.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise UnsafeFile("unknown_format", f"{file}: is not a regular file")
            left = MAX_FILE + 1 if facts.st_size <= MAX_FILE else 0
            while left > 0 and (piece := source.read(min(left, 1 << 20))):
                left -= copy.write(piece)
            if left <= 0:
                raise UnsafeFile("shape_bomb", f"{file}: is larger than {MAX_FILE} bytes")
    except OSError as error:
        raise ModelError(
            f"{file}: cannot be copied to {target.parent} ({error.strerror})"
        ) from error


def list_checkpoint(path: Path) -> Checkpoint | None:
    """Names and shapes of what `read_checkpoint` would read, so that none is read in vain.

    Args:
        path: Checkpoint, as for `read_checkpoint`.

    Returns:
        The checkpoint with zeros for values, which take no memory, and no sha256; None for `.pt`
        and checkpoints of TensorFlow, which name and read at once, and never unpack to more than
        they hold.

    Raises:
        UnsafeFile: If `read_checkpoint` would refuse the names and shapes.
    """
    kind, _ = _format(path)
    return (
        _checkpoint(path, kind, "", numbers=False)
        if kind in ("safetensors", "hdf5", "keras")
        else None
    )


def read_checkpoint(path: Path) -> Checkpoint:
    """Every tensor of a file that does not change meanwhile, see `private`.

    Args:
        path: A TensorFlow checkpoint (prefix, `.index`, `.data-…`, or the one file of the first
            format), `.safetensors`, `.pt`, `.pth`, `.pickle`, `.h5`, `.weights.h5` or `.keras`.

    Raises:
        UnsafeFile: If there is no such file, it is damaged, hostile, or holds a number that is not
            finite; its `code` says which.
    """
    kind, files = _format(path)
    digest = hashlib.sha256()
    for file in files:
        digest.update(bytes.fromhex(quarantine.sha256(file)))
    sha256 = quarantine.sha256(files[0]) if len(files) == 1 else digest.hexdigest()
    return _checkpoint(path, kind, sha256, numbers=True)


def _checkpoint(path: Path, kind: str, sha256: str, *, numbers: bool) -> Checkpoint:
    layers: set[str] = set()
    results = {
        "safetensors": lambda: _safetensors(path, numbers=numbers),
        "torch": lambda: _torch(path),
        "hdf5": lambda: _hdf5(path, layers, numbers=numbers),
        "keras": lambda: _keras(path, layers, numbers=numbers),
        "tensorflow": lambda: _tensorflow(_prefix(path)),
    }[kind]()
    tensors: dict[str, np.ndarray] = {}
    others: dict[str, str] = {}
    for name, value in results:
        if name in tensors or name in others:
            raise UnsafeFile("ambiguous_name", f"{path}: holds {name!r} twice")
        if isinstance(value, str):
            others[name] = value
        elif value.dtype.kind == "f" or value.dtype.name == "bfloat16":
            with np.errstate(over="ignore"):
                tensors[name] = np.asarray(value, np.float32)
            if numbers and not np.isfinite(tensors[name]).all():
                raise UnsafeFile(
                    "not_finite", f"{path}: {name} holds a number that is not finite in float32"
                )
        else:
            others[name] = f"{value.dtype} {list(value.shape)}"
    if not tensors:
        raise UnsafeFile("no_tensors", f"{path}: holds no floating-point tensor")
    return Checkpoint(kind, tensors, others, sha256, frozenset(layers))


def _prefix(path: Path) -> Path:
    return path.with_name(re.sub(rf"{_SHARDS}$", "", path.name))


def _format(path: Path) -> tuple[str, list[Path]]:
    """Format and files of what a path names.

    Raises:
        UnsafeFile: If there is no such file, or none of a known kind.
    """
    try:
        if path.is_dir() or not path.name:
            raise UnsafeFile("unknown_format", f"{path}: is a folder, not a file")
        known = ENDINGS.get(path.suffix.lower())
        prefix = _prefix(path)
        shards = sorted(
            file
            for file in path.parent.iterdir()
            if re.fullmatch(re.escape(prefix.name) + _SHARDS, file.name)
        )
        files = [path] if path.exists() and path == prefix else shards
        if known in (None, "tensorflow"):
            if path.exists() and path == prefix and known is None and not shards:
                raise UnsafeFile(
                    "unknown_format", f"{path}: ends with none of {', '.join(ENDINGS)}, .index"
                )
            known, files = "tensorflow", shards or files
        if not files or (
            known == "tensorflow" and shards and not any(f.suffix == ".index" for f in shards)
        ):
            raise UnsafeFile(
                "no_file", f"{path}: no such file, and no TensorFlow checkpoint with an .index"
            )
        if not all(stat.S_ISREG(file.stat().st_mode) for file in files):
            raise UnsafeFile("unknown_format", f"{path}: is not a regular file")
        if known == "tensorflow" and re.search(r"[][*?\\]", str(prefix)):
            raise UnsafeFile(
                "unknown_format",
                f"{path}: has a name that TensorFlow takes for a pattern; rename it",
            )
        if known == "tensorflow" and prefix.is_dir():
            # TensorFlow would follow the file "checkpoint" in it, wherever that leads.
            raise UnsafeFile("unknown_format", f"{prefix}: is a folder, too")
    except (OSError, ValueError) as error:
        raise UnsafeFile(
            "no_file", f"{path}: {getattr(error, 'strerror', None) or error}"
        ) from error
    return known, files


#: Name and values, or what stands there instead.
Found = Iterator[tuple[str, np.ndarray | str]]


def _safetensors(path: Path, *, numbers: bool) -> Found:
    import safetensors

    try:
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
            if header > min(MAX_HEADER, path.stat().st_size):
                raise UnsafeFile("damaged", f"{path}: its header claims {header} bytes")
            if path.stat().st_size > quarantine.MAX_WEIGHTS:
                raise UnsafeFile(
                    "shape_bomb", f"{path}: is larger than {quarantine.MAX_WEIGHTS} bytes"
                )
            listed = quarantine.parse(path, "its header", file.read(header))
            # Its reader checks that the tensors fill the file exactly; it copies none.
            with safetensors.safe_open(path, "numpy") as checked:
                names = list(checked.keys())
            for name in names:
                kind, shape, (start, _) = (
                    listed[name][key] for key in ("dtype", "shape", "data_offsets")
                )
                if kind not in _TYPES and kind != "BF16":
                    yield name, f"{kind} {list(shape)}"
                elif not numbers:
                    yield name, apart.stand_in(shape, np.dtype(_TYPES.get(kind, "<f4")))
                else:
                    file.seek(8 + header + start)
                    values = np.fromfile(
                        file, np.dtype(_TYPES.get(kind, "<u2")), math.prod(shape)
                    ).reshape(shape)
                    # BF16 is the upper half of a float32.
                    yield (
                        name,
                        ((values.astype("<u4") << 16).view("<f4") if kind == "BF16" else values),
                    )
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise UnsafeFile(
            "damaged", f"{path}: is not a readable .safetensors file ({error})"
        ) from error


def _torch(path: Path) -> Found:
    check_pickle(path)
    yield from _left(_TORCH, path, str(path), "torch")


def _hdf5(path: Path, layers: set[str], *, numbers: bool) -> Found:
    store = apart.hdf5(path, str(path), numbers=numbers)
    for key, content in store.texts.items():
        quarantine.check_config(path, quarantine.parse(path, key, content))
    yield from _variables(path, store, layers)


def _keras(path: Path, layers: set[str], *, numbers: bool) -> Found:
    with quarantine.opened(path) as archive, tempfile.TemporaryDirectory() as folder:
        quarantine.check_config(path, quarantine.as_json(archive, quarantine.CONFIG))
        weights = Path(folder) / quarantine.WEIGHTS
        with weights.open("wb") as target:
            quarantine.unpack_weights(archive, target)
        store = apart.hdf5(weights, str(path), numbers=numbers)
    yield from _variables(path, store, layers)


def _variables(path: Path, store: apart.Store, layers: set[str]) -> Found:
    """Layer and variable → values, from Keras 3's layout or from the one before it."""
    tops = {one.path.split("/")[0] for one in store.variables}
    if store.layers or tops & {"layers", "_layer_checkpoint_dependencies"}:
        layers.update(store.layers)
        yield from _keras_3(path, store)
        return
    for one in store.variables:
        parts = one.path.removeprefix("model_weights/").split("/")
        variable = parts[-1].removesuffix(":0")
        # Keras 1 called them after the layer: "conv1_W".
        variable = {"W": "kernel", "b": "bias"}.get(variable.removeprefix(f"{parts[0]}_"), variable)
        if parts[0] in ("optimizer_weights", "optimizer"):
            yield one.path, one.facts
        else:
            yield f"{parts[0]}/{variable}", one.values


def _keras_3(path: Path, store: apart.Store) -> Found:
    groups: dict[str, list[tuple[int, apart.Variable]]] = {}
    for one in store.variables:
        group = re.fullmatch(
            r"(?:_layer_checkpoint_dependencies|layers)/([^/]+)/vars/([0-9]{1,3})", one.path
        )
        if group:
            groups.setdefault(group[1], []).append((int(group[2]), one))
        elif one.path.startswith(("optimizer", "vars/")) or "/seed_generator/" in one.path:
            yield one.path, one.facts
        else:
            raise UnsafeFile(
                "unknown_layout",
                f"{path}: {one.path} is not a variable of a layer of a functional model",
            )
    for position, items in groups.items():
        kind = re.sub(r"_\d+$", "", position)
        names = _KERAS_3.get((kind, len(items)), ("kernel", "bias"))
        if len(items) > len(names):
            raise UnsafeFile("unknown_layout", f"{path}: {position} has {len(items)} variables")
        # Its name stands beside its variables; files of older Keras call a layer by its class and
        # number only.
        layer = items[0][1].layer or position
        for variable, (_, one) in zip(
            names, sorted(items, key=lambda entry: entry[0]), strict=False
        ):
            yield f"{layer}/{variable}", one.values


def _tensorflow(prefix: Path) -> Found:
    yield from _left(_READER, prefix, str(prefix), "TensorFlow")


def _left(module: str, path: Path, name: str, whose: str) -> Found:
    """What another library finds in a process of its own: if its reader falls over, it falls alone.

    Raises:
        UnsafeFile: If the library refuses the file, crashed, or ran out of its memory or time.
    """
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        apart.run(module, [str(path.absolute()), made], folder, name, whose, _MAX_SECONDS)
        answer = apart.answer(folder / bundle.ANSWER, name, whose)
        names = answer["names"]
        # A file without tensors is none for its reader.
        for index, value in _safetensors(folder / bundle.TENSORS, numbers=True) if names else ():
            yield names[int(index)], value
        yield from answer["others"].items()
