"""Hostile weight files: refused with their code, in a process of its own that is watched while it reads them."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from tf_covid.weights import hdf5
from tf_covid.weights.pickles import check_pickle

#: Reads a file as `tfcovid import` does, and tells what it cost: code, seconds, peak of the memory in MB.
READER = """
import re, sys, time
from pathlib import Path
from tf_covid.errors import UnsafeFile
from tf_covid.weights.foreign import read_checkpoint
start = time.perf_counter()
try:
    read_checkpoint(Path(sys.argv[1]))
    code = "read"
except UnsafeFile as error:
    code = error.code
    assert str(error).startswith(code + ": ") and "\\n" not in str(error), error
# Not ru_maxrss, which remembers the process that forked this one.
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
assert "tensorflow" not in sys.modules
print(code, time.perf_counter() - start, peak)
"""


class Runs:
    """A pickle that makes a file where it is loaded."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self._trace}",)


def keras_file(path: Path, config: object, weights: bytes | None = None, **further: bytes) -> Path:
    """A `.keras` file by hand."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", config if isinstance(config, str) else json.dumps(config))
        archive.writestr("model.weights.h5", store(lambda file: None) if weights is None else weights)
        for name, content in further.items():
            archive.writestr(name, content)
    return path


def store(write: Callable[[h5py.File], object]) -> bytes:
    """The bytes of an HDF5 file."""
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        write(file)
    return memory.getvalue()


def h5(path: Path, write: Callable[[h5py.File], object]) -> Path:
    """An HDF5 file."""
    path.write_bytes(store(write))
    return path


def layer(**config: object) -> dict[str, object]:
    """The config of a functional model with one layer."""
    return {"class_name": "Functional", "module": "keras.src.models.functional", "config": {"layers": [config]}}


def marshalled(trace: Path) -> dict[str, object]:
    """A Lambda whose function is bytecode, as Keras 2 saved it."""
    return layer(class_name="Lambda", config={"name": "x", "function": ["4wEAAA==", None, None], "trace": str(trace)})


def symlink(path: Path) -> Path:
    """A zip with a link to the password file."""
    link = zipfile.ZipInfo("model.weights.h5")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    return path


def torch_zip(path: Path, content: bytes, *, name: str = "archive/data.pkl", twice: bytes | None = None) -> Path:
    """A `.pt` of today around a pickle."""
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings(action="ignore"):
        archive.writestr(name, content)
        if twice is not None:
            archive.writestr(name, twice)
        archive.writestr("archive/version", "3")
    return path


def torch_old(path: Path, content: bytes) -> Path:
    """A `.pth` of before torch 1.6."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in head) + content + pickle.dumps([], protocol=2))
    return path


def safetensors(path: Path, header: object, data: bytes = b"") -> Path:
    """A `.safetensors` by hand."""
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def linked_twice(file: h5py.File) -> None:
    """2^30 paths to one group."""
    group = file
    for _ in range(30):
        below = group.create_group("a")
        group["b"] = below
        group = below


def deep(file: h5py.File) -> None:
    group = file
    for _ in range(40):
        group = group.create_group("a")


def many(file: h5py.File) -> None:
    for number in range(hdf5.MOST_ITEMS + 2):
        file.create_group(f"g{number}")


def zeros(path: Path, members: int = 1) -> Path:
    """A zip of a gigabyte of zeros in a megabyte."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        with archive.open("model.weights.h5", "w") as file:
            for _ in range(1024):
                file.write(bytes(1 << 20))
    return path


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (4,))
    file.create_virtual_dataset("x", layout)


def external(file: h5py.File) -> None:
    file.create_dataset("x", (4,), "f4", external=[("/etc/hostname", 0, 16)])


NESTED = '{"a":' * 100_000 + "1" + "}" * 100_000

#: What it is → its code, and how it is made; `t` is the folder, `trace` a file that must not appear.
HOSTILE: dict[str, tuple[str, Callable[[Path, Path], Path]]] = {
    "CVE-2024-3660: a Lambda's bytecode": ("lambda_layer", lambda t, x: keras_file(t / "a.keras", marshalled(x))),
    "CVE-2025-1550: a module that is not Keras": (
        "unknown_class",
        lambda t, x: keras_file(
            t / "a.keras", layer(class_name="system", module="os", config=f"touch {x}", registered_name=None)
        ),
    ),
    "CVE-2025-8747: a function of Keras that writes files": (
        "lambda_layer",
        lambda t, x: keras_file(
            t / "a.keras", layer(class_name="function", module="keras.utils", config="get_file", registered_name="f")
        ),
    ),
    "CVE-2025-9905: a Lambda in .h5, where safe mode is not asked": (
        "lambda_layer",
        lambda t, x: h5(t / "a.h5", lambda f: f.attrs.__setitem__("model_config", json.dumps(marshalled(x)))),
    ),
    "CVE-2025-9906: a config that switches safe mode off": (
        "unknown_class",
        lambda t, x: keras_file(
            t / "a.keras", layer(class_name="enable_unsafe_deserialization", module="keras.config", config={})
        ),
    ),
    "CVE-2025-12060: a path out of the archive": (
        "archive_path", lambda t, x: keras_file(t / "a.keras", {}, **{"../../trace": b"x"})
    ),
    "an absolute path": ("archive_path", lambda t, x: keras_file(t / "a.keras", {}, **{str(x): b"x"})),
    "a path of Windows": ("archive_path", lambda t, x: keras_file(t / "a.keras", {}, **{"c:\\trace": b"x"})),
    "CVE-2026-0897: a shape bomb": (
        "shape_bomb",
        lambda t, x: h5(t / "a.h5", lambda f: f.create_dataset("x", (10**6, 10**6), "f4", chunks=(1, 10**4))),
    ),
    "a shape bomb below the limit": (
        "shape_bomb",
        lambda t, x: h5(t / "a.h5", lambda f: f.create_dataset("x", (10**4, 10**4), "f4", chunks=(1, 10**4))),
    ),
    "a shape bomb, packed": (
        "shape_bomb",
        lambda t, x: h5(
            t / "a.h5", lambda f: f.create_dataset("x", (10**4, 10**4), "f4", chunks=(1, 10**4), compression="gzip")
        ),
    ),
    "CVE-2026-1669: an external link": (
        "hdf5_link", lambda t, x: h5(t / "a.h5", lambda f: f.__setitem__("x", h5py.ExternalLink("/etc/passwd", "/")))
    ),
    "a soft link": ("hdf5_link", lambda t, x: h5(t / "a.h5", lambda f: f.__setitem__("x", h5py.SoftLink("/y")))),
    "external storage": ("hdf5_outside", lambda t, x: h5(t / "a.h5", external)),
    "a virtual dataset": ("hdf5_outside", lambda t, x: h5(t / "a.h5", virtual)),
    "inside a .keras file too": (
        "hdf5_link",
        lambda t, x: keras_file(t / "a.keras", {}, store(lambda f: f.__setitem__("x", h5py.SoftLink("/y")))),
    ),
    "one group at 2^30 places": ("hdf5_link", lambda t, x: h5(t / "a.h5", linked_twice)),
    "groups in groups": ("hdf5_depth", lambda t, x: h5(t / "a.h5", deep)),
    "ten thousand groups": ("hdf5_link", lambda t, x: h5(t / "a.h5", many)),
    "text for numbers": ("not_numbers", lambda t, x: h5(t / "a.h5", lambda f: f.create_dataset("x", data=[b"abc"]))),
    "a number that is not finite": (
        "not_finite", lambda t, x: h5(t / "a.h5", lambda f: f.create_dataset("a/kernel", data=np.array([np.nan], "f4")))
    ),
    "a zip bomb": ("zip_bomb", lambda t, x: zeros(t / "a.keras")),
    "JSON in JSON": ("damaged", lambda t, x: keras_file(t / "a.keras", NESTED)),
    "a .keras without weights": ("damaged", lambda t, x: keras_file(t / "a.keras", {}, b"nothing")),
    "CVE-2025-32434 and others: a pickle that runs": (
        "unsafe_pickle", lambda t, x: torch_zip(t / "a.pt", pickle.dumps(Runs(x), protocol=2))
    ),
    "a pickle with a name put together": (
        "unsafe_pickle", lambda t, x: torch_zip(t / "a.pt", pickle.dumps(Runs(x), protocol=4))
    ),
    "an old pickle that runs": (
        "unsafe_pickle", lambda t, x: torch_old(t / "a.pth", pickle.dumps(Runs(x), protocol=2))
    ),
    "a pickle that is cut off": (
        "damaged", lambda t, x: torch_zip(t / "a.pt", pickle.dumps({"a": 1}, protocol=2)[:-1])
    ),
    "a .pt without pickle": ("damaged", lambda t, x: torch_zip(t / "a.pt", b"", name="archive/other")),
    "a .pt that is packed": ("zip_bomb", lambda t, x: keras_file(t / "a.pt", {})),
    "two pickles under one name": (
        "damaged",
        lambda t, x: torch_zip(t / "a.pt", pickle.dumps(Runs(x), protocol=2), twice=pickle.dumps({}, protocol=2)),
    ),
    "a pickle in capitals": (
        "unsafe_pickle", lambda t, x: torch_zip(t / "a.pt", pickle.dumps(Runs(x), protocol=2), name="archive/DATA.PKL")
    ),
    "an old pickle with a zip behind it": (
        "unsafe_pickle",
        lambda t, x: _bytes(
            t / "a.pt",
            torch_old(t / "a.pt", pickle.dumps(Runs(x), protocol=2)).read_bytes()
            + torch_zip(t / "a.pt", pickle.dumps({}, protocol=2)).read_bytes(),
        ),
    ),
    "a long pickle": ("unsafe_pickle", lambda t, x: torch_zip(t / "a.pt", b"\x80\x02" + b"N" * 2_000_000 + b".")),
    "a header of a gigabyte": (
        "damaged", lambda t, x: _bytes(t / "a.safetensors", struct.pack("<Q", 2**30) + bytes(5_000_000))
    ),
    "a layer of Keras 2 that is not Keras'": (
        "unknown_class",
        lambda t, x: h5(
            t / "a.h5",
            lambda f: f.attrs.__setitem__(
                "model_config", json.dumps({"class_name": "Model", "config": {"layers": [{"class_name": "Evil"}]}})
            ),
        ),
    ),
    "a config that is not one text": (
        "not_numbers", lambda t, x: h5(t / "a.h5", lambda f: f.attrs.__setitem__("model_config", ["{}", "{}"]))
    ),
    "an empty dataspace": (
        "not_numbers", lambda t, x: h5(t / "a.h5", lambda f: f.__setitem__("x", h5py.Empty("f4")))
    ),
    "an unknown filter": (
        "not_numbers",
        lambda t, x: h5(t / "a.h5", lambda f: f.create_dataset("x", data=np.ones(99, "f4"), compression="lzf")),
    ),
    "a symbolic link in a zip": ("archive_path", lambda t, x: symlink(t / "a.keras")),
    "a folder": ("unknown_format", lambda t, x: _folder(t / "a.h5")),
    "a pipe": ("unknown_format", lambda t, x: _pipe(t / "a.h5")),
    "a header longer than the file": (
        "damaged", lambda t, x: _bytes(t / "a.safetensors", struct.pack("<Q", 2**40) + b"{}")
    ),
    "tensors beyond the file": (
        "damaged",
        lambda t, x: safetensors(
            t / "a.safetensors", {"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, b"abc"
        ),
    ),
    "tensors that overlap": (
        "damaged",
        lambda t, x: safetensors(
            t / "a.safetensors",
            {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, b"abcd",
        ),
    ),
    "an empty file": ("damaged", lambda t, x: _bytes(t / "a.h5", b"")),
    "no tensor at all": ("no_tensors", lambda t, x: h5(t / "a.h5", lambda f: f.create_group("layers"))),
}  # fmt: skip


def _bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_and_does_nothing(name: str, tmp_path: Path) -> None:
    code, make = HOSTILE[name]
    folder = tmp_path / "in" / "deep"
    folder.mkdir(parents=True)
    trace = tmp_path / "trace"
    path = make(folder, trace)
    before = sorted(tmp_path.rglob("*"))
    found = subprocess.run([sys.executable, "-c", READER, path], capture_output=True, text=True, timeout=60, cwd=folder)
    assert found.returncode == 0, found.stderr
    said, seconds, peak = found.stdout.split()
    assert said == code
    assert float(seconds) < 10 and float(peak) < 1000
    assert sorted(tmp_path.rglob("*")) == before


def test_an_honest_pickle_passes_the_gate(tmp_path: Path) -> None:
    """What torch.save writes of a state_dict, opcode by opcode, but for the tensors' numbers."""
    text = (
        b"\x80\x02ccollections\nOrderedDict\n)R(X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n"
        b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQK\x00"
        b"K\x01\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRu."
    )
    check_pickle(torch_zip(tmp_path / "a.pt", text))
    check_pickle(torch_old(tmp_path / "a.pth", text))
    try:
        import torch
    except ImportError:
        pytest.skip("torch is not installed: a file that it wrote itself was not read")
    torch.save({"a.weight": torch.ones(2, 3)}, tmp_path / "real.pt")
    check_pickle(tmp_path / "real.pt")
