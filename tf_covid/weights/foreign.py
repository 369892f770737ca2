"""Tensors of a checkpoint that somebody else wrote, by name, whatever its format; nothing in it is run.

Every reader looks at names, types and shapes before it reads a number; `quarantine`, `hdf5` and `pickles` say what is
refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tf_covid.errors import ModelError, UnsafeFile
from tf_covid.weights import bundle, hdf5, quarantine
from tf_covid.weights.pickles import check_pickle

#: File name ending → format. A TensorFlow checkpoint is named by its prefix, its `.index` or its `.data-…`.
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
MOST_HEADER = 4_000_000

#: Bytes of a checkpoint's file: weights, and the optimizer's that a training keeps beside them.
MOST_FILE = 4 * quarantine.MOST_WEIGHTS

#: What reads a TensorFlow checkpoint, and how long it may take, TensorFlow's own start on a busy machine included.
_READER, _MOST_SECONDS = "tf_covid.weights.bundle", 300

#: Names of a Keras layer's variables, in the order in which Keras 3 saves them, by kind and number.
_KERAS_3 = {
    ("batch_normalization", 4): ("gamma", "beta", "moving_mean", "moving_variance"),
    ("batch_normalization", 3): ("beta", "moving_mean", "moving_variance"),
}

_SHARDS = r"(\.index|\.data-\d{5}-of-\d{5})"
_TYPES = {
    "F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1",
    "BOOL": "?",
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Args:
        format: A value of `ENDINGS`.
        tensors: Name → float32 values. A variable of Keras is called "layer/variable".
        others: Name → type and shape of all that are no floating-point tensors.
        sha256: Of the file; of a TensorFlow checkpoint in several, of their digests in the order of their names.
        layers: Layers of a Keras file, those without variables too.
    """

    format: str
    tensors: Mapping[str, np.ndarray]
    others: Mapping[str, str]
    sha256: str
    layers: frozenset[str] = frozenset()


@contextlib.contextmanager
def private(path: Path) -> Iterator[Path]:
    """A copy of a checkpoint: what was looked at and hashed is what is read, whatever happens to the file meanwhile.

    Args:
        path: As for `read_checkpoint`.

    Yields:
        The copy's path, under the same file name; what is raised in the block names the original.

    Raises:
        UnsafeFile: If there is no such file, it is no file, or is too large.
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
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as source, target.open("wb") as copy:
            facts = os.fstat(source.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise UnsafeFile("unknown_format", f"{file}: is no regular file")
            left = MOST_FILE + 1 if facts.st_size <= MOST_FILE else 0
            while left > 0 and (piece := source.read(min(left, 1 << 20))):
                left -= copy.write(piece)
            if left <= 0:
                raise UnsafeFile("shape_bomb", f"{file}: is larger than {MOST_FILE} bytes")
    except OSError as error:
        raise ModelError(f"{file}: cannot be copied to {target.parent} ({error.strerror})") from error


def read_checkpoint(path: Path) -> Checkpoint:
    """Every tensor of a file that nobody changes meanwhile, see `private`.

    Args:
        path: A TensorFlow checkpoint (prefix, `.index`, `.data-…`, or the one file of the first format),
            `.safetensors`, `.pt`, `.pth`, `.pickle`, `.h5`, `.weights.h5` or `.keras`.

    Raises:
        UnsafeFile: If it is no such file, damaged, hostile, or holds a number that is not finite; its `code` says
            which.
    """
    kind, files = _format(path)
    digest = hashlib.sha256()
    for file in files:
        digest.update(bytes.fromhex(quarantine.sha256(file)))
    sha256 = quarantine.sha256(files[0]) if len(files) == 1 else digest.hexdigest()
    layers: set[str] = set()
    found = {
        "safetensors": lambda: _safetensors(path),
        "torch": lambda: _torch(path),
        "hdf5": lambda: _hdf5(path, layers),
        "keras": lambda: _keras(path, layers),
        "tensorflow": lambda: _tensorflow(_prefix(path)),
    }[kind]()
    tensors: dict[str, np.ndarray] = {}
    others: dict[str, str] = {}
    for name, value in found:
        if name in tensors or name in others:
            raise UnsafeFile("ambiguous_name", f"{path}: holds {name!r} twice")
        if isinstance(value, str):
            others[name] = value
        elif value.dtype.kind == "f" or value.dtype.name == "bfloat16":
            with np.errstate(over="ignore"):
                tensors[name] = np.asarray(value, np.float32)
            if not np.isfinite(tensors[name]).all():
                raise UnsafeFile("not_finite", f"{path}: {name} holds a number that is not finite in float32")
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
            file for file in path.parent.iterdir() if re.fullmatch(re.escape(prefix.name) + _SHARDS, file.name)
        )
        files = [path] if path.exists() and path == prefix else shards
        if known in (None, "tensorflow"):
            if path.exists() and path == prefix and known is None and not shards:
                raise UnsafeFile("unknown_format", f"{path}: ends with none of {', '.join(ENDINGS)}, .index")
            known, files = "tensorflow", shards or files
        if not files or (known == "tensorflow" and shards and not any(f.suffix == ".index" for f in shards)):
            raise UnsafeFile("no_file", f"{path}: no such file, and no TensorFlow checkpoint with an .index")
        if not all(stat.S_ISREG(file.stat().st_mode) for file in files):
            raise UnsafeFile("unknown_format", f"{path}: is no regular file")
        if known == "tensorflow" and re.search(r"[][*?\\]", str(prefix)):
            raise UnsafeFile("unknown_format", f"{path}: has a name that TensorFlow takes for a pattern; rename it")
        if known == "tensorflow" and prefix.is_dir():
            # TensorFlow would follow the file "checkpoint" in it, wherever that leads.
            raise UnsafeFile("unknown_format", f"{prefix}: is a folder, too")
    except (OSError, ValueError) as error:
        raise UnsafeFile("no_file", f"{path}: {getattr(error, 'strerror', None) or error}") from error
    return known, files


#: Name and values, or what stands there instead.
Found = Iterator[tuple[str, np.ndarray | str]]


def _safetensors(path: Path) -> Found:
    import safetensors

    try:
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        if header > min(MOST_HEADER, path.stat().st_size):
            raise UnsafeFile("damaged", f"{path}: its header claims {header} bytes")
        if path.stat().st_size > quarantine.MOST_WEIGHTS:
            raise UnsafeFile("shape_bomb", f"{path}: is larger than {quarantine.MOST_WEIGHTS} bytes")
        # Its reader checks that the tensors fill the file exactly.
        found = safetensors.deserialize(path.read_bytes())
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UnsafeFile("damaged", f"{path}: is no readable .safetensors file ({error})") from error
    for name, facts in found:
        kind, shape, data = facts["dtype"], facts["shape"], facts["data"]
        if kind == "BF16":
            # The upper half of a float32.
            yield name, (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").reshape(shape)
        elif kind in _TYPES:
            yield name, np.frombuffer(data, _TYPES[kind]).reshape(shape)
        else:
            yield name, f"{kind} {list(shape)}"


def _torch(path: Path) -> Found:
    check_pickle(path)
    try:
        import torch
    except ImportError as error:
        raise UnsafeFile(
            "torch_missing",
            f"{path}: reading it needs torch (pip install -e '.[torch]' in the checkout); or save the same state_dict "
            "as .safetensors where torch is installed (safetensors.torch.save_file), which needs nothing here",
        ) from error
    if tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2]) < (2, 6):
        # CVE-2025-32434: before 2.6 `weights_only=True` could be led to run code.
        raise UnsafeFile("torch_too_old", f"{path}: the reader of torch {torch.__version__} is not safe; 2.6 is")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly everything
        facts = str(error).partition("\n")[0]
        raise UnsafeFile("damaged", f"{path}: torch cannot read it as weights only ({facts})") from error
    # Training scripts put the weights beside optimizer and epoch.
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict):
        raise UnsafeFile("unsafe_pickle", f"{path}: holds a {type(state).__name__}, not named tensors")
    for name, value in state.items():
        yield str(name), _from_torch(f"{path}: {name}", value)


def _from_torch(name: str, value: Any) -> np.ndarray | str:
    if isinstance(value, (int, float, str, list, tuple, dict)) or value is None:
        return type(value).__name__  # a setting that a training script keeps among the weights
    if str(value.layout) != "torch.strided" or value.is_quantized or value.device.type != "cpu":
        raise UnsafeFile("not_numbers", f"{name} is no plain tensor")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise UnsafeFile("shape_bomb", f"{name} of shape {list(value.shape)} asks for more than the file holds")
    value = value.detach()
    return np.asarray((value.float() if value.is_floating_point() else value).numpy())


def _hdf5(path: Path, layers: set[str]) -> Found:
    with hdf5.checked(path, str(path)) as file:
        for key in ("model_config", "training_config"):
            if (config := hdf5.text(file, key, str(path))) is not None:
                quarantine.check_config(path, quarantine.parse(path, key, config))
        yield from _variables(path, file, layers)


def _keras(path: Path, layers: set[str]) -> Found:
    with quarantine.opened(path) as archive, tempfile.TemporaryDirectory() as folder:
        quarantine.check_config(path, quarantine.as_json(archive, quarantine.CONFIG))
        weights = Path(folder) / quarantine.WEIGHTS
        with weights.open("wb") as target:
            quarantine.unpack(archive, quarantine.WEIGHTS, target, quarantine.MOST_WEIGHTS)
        with hdf5.checked(weights, str(path)) as file:
            yield from _variables(path, file, layers)


def _variables(path: Path, file: h5py.File, layers: set[str]) -> Found:
    """Layer and variable → values, from Keras 3's layout or from the one before it."""
    found: list[tuple[str, h5py.Dataset]] = []

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found.append((name, item))

    file.visititems(visit)
    if "layers" in file or "_layer_checkpoint_dependencies" in file:
        layers.update(file.get("layers", {}))
        yield from _keras_3(path, found)
        return
    for name, item in found:
        parts = name.removeprefix("model_weights/").split("/")
        variable = parts[-1].removesuffix(":0")
        # Keras 1 called them after the layer: "conv1_W".
        variable = {"W": "kernel", "b": "bias"}.get(variable.removeprefix(f"{parts[0]}_"), variable)
        if parts[0] in ("optimizer_weights", "optimizer"):
            yield name, f"{item.dtype} {list(item.shape)}"
        else:
            yield f"{parts[0]}/{variable}", item[()]


def _keras_3(path: Path, found: list[tuple[str, h5py.Dataset]]) -> Found:
    groups: dict[str, list[tuple[int, h5py.Dataset]]] = {}
    for name, item in found:
        group = re.fullmatch(r"(?:_layer_checkpoint_dependencies|layers)/([^/]+)/vars/([0-9]{1,3})", name)
        if group:
            groups.setdefault(group[1], []).append((int(group[2]), item))
        elif name.startswith(("optimizer", "vars/")) or "/seed_generator/" in name:
            yield name, f"{item.dtype} {list(item.shape)}"
        else:
            raise UnsafeFile("unknown_layout", f"{path}: {name} is no variable of a layer of a functional model")
    for place, items in groups.items():
        kind = re.sub(r"_\d+$", "", place)
        names = _KERAS_3.get((kind, len(items)), ("kernel", "bias"))
        if len(items) > len(names):
            raise UnsafeFile("unknown_layout", f"{path}: {place} has {len(items)} variables")
        # Its name stands beside its variables; files of older Keras call a layer by its class and number only.
        layer = hdf5.text(items[0][1].parent, "name", str(path)) or place
        for variable, (_, item) in zip(names, sorted(items, key=lambda entry: entry[0]), strict=False):
            yield f"{layer}/{variable}", item[()]


def _tensorflow(prefix: Path) -> Found:
    """What `bundle.py` finds in a process of its own: if TensorFlow's reader falls over, it falls alone.

    Raises:
        UnsafeFile: As there; if it crashed, or ran out of its memory or time.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # -P: not from the folder that the user stands in, where the checkpoint may have come with Python files.
        command = [sys.executable, "-P", "-m", _READER, str(prefix.absolute()), name]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "-1",
        }  # fmt: skip
        with (folder / "errors.txt").open("w+b") as said:
            try:
                code = subprocess.run(
                    command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said,
                    cwd=folder, timeout=_MOST_SECONDS, check=False,
                ).returncode  # fmt: skip
            except subprocess.TimeoutExpired as error:
                raise UnsafeFile("reader_failed", f"{prefix}: was not read within {_MOST_SECONDS} s") from error
            if code:
                said.seek(max(said.seek(0, os.SEEK_END) - 300, 0))
                last = said.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
                how = signal.Signals(-code).name if code < 0 else last or f"exit code {code}"
                raise UnsafeFile(
                    "reader_failed", f"{prefix}: TensorFlow's reader crashed or ran out of its memory or time ({how})"
                )
        answer = quarantine.parse(prefix, bundle.ANSWER, (folder / bundle.ANSWER).read_bytes())
        if "code" in answer:
            raise UnsafeFile(str(answer["code"]), str(answer["facts"]))
        names = answer["names"]
        # A file without tensors is none for its reader.
        for number, value in _safetensors(folder / bundle.TENSORS) if names else ():
            yield names[int(number)], value
        yield from answer["others"].items()
