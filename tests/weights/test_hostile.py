"""Hostile weight files.

Refused with their code, in a process of its own that is watched while it reads them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tf_covid.errors import UnsafeFile
from tf_covid.weights import bundle, foreign, hdf5
from tf_covid.weights.foreign import private, read_checkpoint
from tf_covid.weights.pickles import check_pickle

#: Reads a file as `tfcovid import` does, and tells what it cost: code, seconds, peak of the memory
#: in MB.
READER = """
import re, sys, time
from pathlib import Path
from tf_covid.errors import UnsafeFile
from tf_covid.weights.foreign import private, read_checkpoint
start = time.perf_counter()
try:
    with private(Path(sys.argv[1])) as copy:
        read_checkpoint(copy)
    code = "read"
except UnsafeFile as error:
    code = error.code
    assert str(error).startswith(f"{code}: {Path(sys.argv[1]).with_suffix('')}") and "\\n" not in str(error), error
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
        archive.writestr(
            "model.weights.h5", store(lambda file: None) if weights is None else weights
        )
        for name, content in further.items():
            archive.writestr(name, content)
    return path


def zipped(path: Path, name: str, content: bytes) -> Path:
    """A zip of one file."""
    with zipfile.ZipFile(path, "w") as archive:
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
    return {
        "class_name": "Functional",
        "module": "keras.src.models.functional",
        "config": {"layers": [config]},
    }


def marshalled(trace: Path) -> dict[str, object]:
    """A Lambda whose function is bytecode, as Keras 2 saved it."""
    return layer(
        class_name="Lambda",
        config={"name": "x", "function": ["4wEAAA==", None, None], "trace": str(trace)},
    )


def symlink(path: Path) -> Path:
    """A zip with a link to the password file."""
    link = zipfile.ZipInfo("model.weights.h5")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    return path


def torch_zip(
    path: Path, content: bytes, *, name: str = "archive/data.pkl", twice: bytes | None = None
) -> Path:
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
    path.write_bytes(
        b"".join(pickle.dumps(part, protocol=2) for part in head)
        + content
        + pickle.dumps([], protocol=2)
    )
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
    for number in range(hdf5.MAX_ITEMS + 2):
        file.create_group(f"g{number}")


def zeros(path: Path) -> Path:
    """A zip of 128 MB of zeros in 128 KB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        with archive.open("model.weights.h5", "w") as file:
            for _ in range(128):
                file.write(bytes(1 << 20))
    return path


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (4,))
    file.create_virtual_dataset("x", layout)


def external(file: h5py.File) -> None:
    file.create_dataset("x", (4,), "f4", external=[("/etc/hostname", 0, 16)])


NESTED = '{"a":' * 100_000 + "1" + "}" * 100_000

#: What it is → its code, and how it is made; `t` is the folder, `trace` a file that must not
#: appear.
HOSTILE: dict[str, tuple[str, Callable[[Path, Path], Path]]] = {
    "CVE-2024-3660: a Lambda's bytecode": (
        "lambda_layer",
        lambda t, x: keras_file(t / "a.keras", marshalled(x)),
    ),
    "CVE-2025-1550: a module that is not Keras": (
        "unknown_class",
        lambda t, x: keras_file(
            t / "a.keras",
            layer(class_name="system", module="os", config=f"touch {x}", registered_name=None),
        ),
    ),
    "CVE-2025-8747: a function of Keras that writes files": (
        "lambda_layer",
        lambda t, x: keras_file(
            t / "a.keras",
            layer(
                class_name="function", module="keras.utils", config="get_file", registered_name="f"
            ),
        ),
    ),
    "CVE-2025-9905: a Lambda in .h5, where safe mode is not asked": (
        "lambda_layer",
        lambda t, x: h5(
            t / "a.h5", lambda f: f.attrs.__setitem__("model_config", json.dumps(marshalled(x)))
        ),
    ),
    "CVE-2025-9906: a config that switches safe mode off": (
        "unknown_class",
        lambda t, x: keras_file(
            t / "a.keras",
            layer(class_name="enable_unsafe_deserialization", module="keras.config", config={}),
        ),
    ),
    "CVE-2025-12060: a path out of the archive": (
        "archive_path",
        lambda t, x: keras_file(t / "a.keras", {}, **{"../../trace": b"x"}),
    ),
    "an absolute path": (
        "archive_path",
        lambda t, x: keras_file(t / "a.keras", {}, **{str(x): b"x"}),
    ),
    "a path of Windows": (
        "archive_path",
        lambda t, x: keras_file(t / "a.keras", {}, **{"c:\\trace": b"x"}),
    ),
    "CVE-2026-0897: a shape bomb": (
        "shape_bomb",
        lambda t, x: h5(
            t / "a.h5", lambda f: f.create_dataset("x", (10**6, 10**6), "f4", chunks=(1, 10**4))
        ),
    ),
    "a shape bomb below the limit": (
        "shape_bomb",
        lambda t, x: h5(
            t / "a.h5", lambda f: f.create_dataset("x", (10**4, 10**4), "f4", chunks=(1, 10**4))
        ),
    ),
    "a shape bomb, packed": (
        "shape_bomb",
        lambda t, x: h5(
            t / "a.h5",
            lambda f: f.create_dataset(
                "x", (10**4, 10**4), "f4", chunks=(1, 10**4), compression="gzip"
            ),
        ),
    ),
    "CVE-2026-1669: an external link": (
        "hdf5_link",
        lambda t, x: h5(
            t / "a.h5", lambda f: f.__setitem__("x", h5py.ExternalLink("/etc/passwd", "/"))
        ),
    ),
    "a soft link": (
        "hdf5_link",
        lambda t, x: h5(t / "a.h5", lambda f: f.__setitem__("x", h5py.SoftLink("/y"))),
    ),
    "external storage": ("hdf5_outside", lambda t, x: h5(t / "a.h5", external)),
    "a virtual dataset": ("hdf5_outside", lambda t, x: h5(t / "a.h5", virtual)),
    "inside a .keras file too": (
        "hdf5_link",
        lambda t, x: keras_file(
            t / "a.keras", {}, store(lambda f: f.__setitem__("x", h5py.SoftLink("/y")))
        ),
    ),
    "one group at 2^30 places": ("hdf5_link", lambda t, x: h5(t / "a.h5", linked_twice)),
    "groups in groups": ("hdf5_depth", lambda t, x: h5(t / "a.h5", deep)),
    "ten thousand groups": ("hdf5_items", lambda t, x: h5(t / "a.h5", many)),
    "text for numbers": (
        "not_numbers",
        lambda t, x: h5(t / "a.h5", lambda f: f.create_dataset("x", data=[b"abc"])),
    ),
    "a number that is not finite": (
        "not_finite",
        lambda t, x: h5(
            t / "a.h5", lambda f: f.create_dataset("a/kernel", data=np.array([np.nan], "f4"))
        ),
    ),
    "a zip bomb": ("zip_bomb", lambda t, x: zeros(t / "a.keras")),
    "JSON in JSON": ("damaged", lambda t, x: keras_file(t / "a.keras", NESTED)),
    "a .keras without weights": ("damaged", lambda t, x: keras_file(t / "a.keras", {}, b"nothing")),
    "CVE-2025-32434 and others: a pickle that runs": (
        "unsafe_pickle",
        lambda t, x: torch_zip(t / "a.pt", pickle.dumps(Runs(x), protocol=2)),
    ),
    "a pickle with a name put together": (
        "unsafe_pickle",
        lambda t, x: torch_zip(t / "a.pt", pickle.dumps(Runs(x), protocol=4)),
    ),
    "an old pickle that runs": (
        "unsafe_pickle",
        lambda t, x: torch_old(t / "a.pth", pickle.dumps(Runs(x), protocol=2)),
    ),
    "a pickle that is cut off": (
        "damaged",
        lambda t, x: torch_zip(t / "a.pt", pickle.dumps({"a": 1}, protocol=2)[:-1]),
    ),
    "a .pt without pickle": (
        "damaged",
        lambda t, x: torch_zip(t / "a.pt", b"", name="archive/other"),
    ),
    "a .pt that is packed": ("zip_bomb", lambda t, x: keras_file(t / "a.pt", {})),
    "two pickles under one name": (
        "ambiguous_name",
        lambda t, x: torch_zip(
            t / "a.pt", pickle.dumps(Runs(x), protocol=2), twice=pickle.dumps({}, protocol=2)
        ),
    ),
    "a pickle in capitals": (
        "unsafe_pickle",
        lambda t, x: torch_zip(
            t / "a.pt", pickle.dumps(Runs(x), protocol=2), name="archive/DATA.PKL"
        ),
    ),
    "an old pickle with a zip behind it": (
        "unsafe_pickle",
        lambda t, x: _bytes(
            t / "a.pt",
            torch_old(t / "a.pt", pickle.dumps(Runs(x), protocol=2)).read_bytes()
            + torch_zip(t / "a.pt", pickle.dumps({}, protocol=2)).read_bytes(),
        ),
    ),
    "a long pickle": (
        "unsafe_pickle",
        lambda t, x: torch_zip(t / "a.pt", b"\x80\x02" + b"N" * 2_000_000 + b"."),
    ),
    "a header of a gigabyte": (
        "damaged",
        lambda t, x: _bytes(t / "a.safetensors", struct.pack("<Q", 2**30) + bytes(5_000_000)),
    ),
    "a layer of Keras 2 that is not Keras'": (
        "unknown_class",
        lambda t, x: h5(
            t / "a.h5",
            lambda f: f.attrs.__setitem__(
                "model_config",
                json.dumps({"class_name": "Model", "config": {"layers": [{"class_name": "Evil"}]}}),
            ),
        ),
    ),
    "a config that is not one text": (
        "not_numbers",
        lambda t, x: h5(t / "a.h5", lambda f: f.attrs.__setitem__("model_config", ["{}", "{}"])),
    ),
    "an empty dataspace": (
        "not_numbers",
        lambda t, x: h5(t / "a.h5", lambda f: f.__setitem__("x", h5py.Empty("f4"))),
    ),
    "an unknown filter": (
        "unknown_packing",
        lambda t, x: h5(
            t / "a.h5", lambda f: f.create_dataset("x", data=np.ones(99, "f4"), compression="lzf")
        ),
    ),
    "a variable under two names that are one": (
        "ambiguous_name",
        lambda t, x: h5(
            t / "a.h5",
            lambda f: [
                f.create_dataset(f"conv/{group}/kernel:0", data=np.ones(2, "f4")) for group in "ab"
            ],
        ),
    ),
    "a .keras whose layers hold layers": (
        "unknown_layout",
        lambda t, x: keras_file(
            t / "a.keras",
            {},
            store(lambda f: f.create_dataset("layers/a/layers/b/vars/0", data=np.ones(2, "f4"))),
        ),
    ),
    "a layer of five variables": (
        "unknown_layout",
        lambda t, x: h5(
            t / "a.weights.h5",
            lambda f: [
                f.create_dataset(f"layers/a/vars/{number}", data=np.ones(2, "f4"))
                for number in range(5)
            ],
        ),
    ),
    "a .keras that lacks its weights": (
        "missing_member",
        lambda t, x: zipped(t / "a.keras", "config.json", b"{}"),
    ),
    "a .keras that lacks its config": (
        "missing_member",
        lambda t, x: zipped(t / "a.keras", "model.weights.h5", b""),
    ),
    "a symbolic link in a zip": ("archive_path", lambda t, x: symlink(t / "a.keras")),
    "a folder": ("unknown_format", lambda t, x: _folder(t / "a.h5")),
    "a pipe": ("unknown_format", lambda t, x: _pipe(t / "a.h5")),
    "a header longer than the file": (
        "damaged",
        lambda t, x: _bytes(t / "a.safetensors", struct.pack("<Q", 2**40) + b"{}"),
    ),
    "tensors beyond the file": (
        "damaged",
        lambda t, x: safetensors(
            t / "a.safetensors",
            {"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
            b"abc",
        ),
    ),
    "tensors that overlap": (
        "damaged",
        lambda t, x: safetensors(
            t / "a.safetensors",
            {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"},
            b"abcd",
        ),
    ),
    "an empty file": ("damaged", lambda t, x: _bytes(t / "a.h5", b"")),
    "no tensor at all": (
        "no_tensors",
        lambda t, x: h5(t / "a.h5", lambda f: f.create_group("layers")),
    ),
}


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
    found = subprocess.run(
        [sys.executable, "-c", READER, path], capture_output=True, text=True, timeout=60, cwd=folder
    )
    assert found.returncode == 0, found.stderr
    said, seconds, peak = found.stdout.split()
    assert said == code
    assert float(seconds) < 10
    assert float(peak) < 1000
    assert sorted(tmp_path.rglob("*")) == before


def refused(path: Path) -> str:
    """The code with which a file is refused."""
    with pytest.raises(UnsafeFile) as caught, private(path) as copy:
        read_checkpoint(copy)
    assert str(caught.value).startswith(f"{caught.value.code}: {path.parent}/")
    return caught.value.code


@pytest.fixture
def checkpoint(checkpoints: Any, tmp_path: Path) -> Path:
    """The prefix of an honest TensorFlow checkpoint."""
    return checkpoints.write_tf(
        {"a/w": np.ones((4, 4), np.float32), "step": np.array(3)}, tmp_path / "model.ckpt"
    )


def test_a_damaged_checkpoint_is_refused(checkpoint: Path) -> None:
    index, data = (
        checkpoint.with_name(checkpoint.name + end) for end in (".index", ".data-00000-of-00001")
    )
    whole = index.read_bytes()
    # In this process, where TensorFlow is started once, not for each: what the other one says of
    # such a file is tested with a text that bears a checkpoint's name.
    index.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnsafeFile, match="damaged"):
        bundle.read(checkpoint, 100)
    index.write_bytes(whole)
    honest = data.read_bytes()
    data.write_bytes(b"abc")
    with pytest.raises(UnsafeFile) as caught:
        bundle.read(checkpoint, 100)
    assert caught.value.code in ("shape_bomb", "damaged"), "older TensorFlow notices before we do"
    data.write_bytes(honest)
    rng = np.random.default_rng(0)
    for _ in range(20):
        spoilt = bytearray(whole)
        for place in rng.integers(0, len(whole), 4):
            spoilt[place] = rng.integers(256)
        index.write_bytes(spoilt)
        with pytest.raises(UnsafeFile):
            bundle.read(checkpoint, 100)


def test_names_that_tensorflow_would_follow_elsewhere(checkpoint: Path) -> None:
    """It takes some for patterns, and would follow the file "checkpoint" of a folder to wherever it
    leads."""
    checkpoint.mkdir()
    assert refused(checkpoint.with_name("model.ckpt.index")) == "unknown_format"
    (checkpoint.parent / "m[o]del.ckpt").write_bytes(b"x")
    assert refused(checkpoint.parent / "m[o]del.ckpt") == "unknown_format"


@pytest.mark.parametrize(
    ("fails", "how"),
    [
        ("os.abort()", "SIGABRT"),
        ("bundle.limit(1000); bytearray(2**31)", "MemoryError"),
        ("bundle.limit(1000, seconds=1)\nwhile True: pass", "SIGXCPU"),
        ("open('x', 'wb').write(bundle.limit(1000) or bytes(10**7))", "SIGXFSZ|File too large"),
        ("time.sleep(60)", "not read within 1 s"),
    ],
    ids=["crash", "memory", "loop", "disk", "hang"],
)
def test_a_reader_that_falls_over_falls_alone(
    fails: str, how: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "falls_over.py").write_text(
        f"import os, time\nfrom tf_covid.weights import bundle\n{fails}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(foreign, "_READER", "falls_over")
    if "sleep" in fails:
        monkeypatch.setattr(foreign, "_MAX_SECONDS", 1)
    with pytest.raises(UnsafeFile, match=how) as caught, private(checkpoint) as copy:
        read_checkpoint(copy)
    assert caught.value.code == "reader_failed"


def test_a_checkpoint_is_read_in_another_process(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which starts in no folder of the user's.

    Who sends a checkpoint could send a tensorflow.py with it.
    """
    for name in ("tensorflow", "numpy", "tf_covid"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    with private(Path(checkpoint.name)) as copy:
        read = read_checkpoint(copy)
    np.testing.assert_array_equal(read.tensors["a/w"], np.ones((4, 4)))
    assert dict(read.others) == {"step": "int64 []"}
    assert not (tmp_path / "trace").exists()


def test_a_file_that_changes_while_it_is_read_is_read_as_it_was(
    checkpoints: Any, tmp_path: Path
) -> None:
    path = checkpoints.write_safetensors({"a": np.ones(3, np.float32)}, tmp_path / "a.safetensors")
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    with private(path) as copy:
        checkpoints.write_safetensors({"a": np.zeros(3, np.float32)}, path)
        read = read_checkpoint(copy)
    assert read.sha256 == before
    assert read.tensors["a"].all()


def test_a_file_larger_than_any_checkpoint_is_not_copied(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        file.truncate(foreign.MAX_FILE + 1)  # takes no room on the disk; its copy would
    assert refused(path) == "shape_bomb"


def test_every_code_is_in_the_documentation() -> None:
    house = Path(foreign.__file__).parent
    codes = {
        code
        for file in house.glob("*.py")
        for code in re.findall(r'UnsafeFile\(\s*"(\w+)"', file.read_text())
    }
    table = (Path(__file__).parents[2] / "docs" / "import.md").read_text("utf-8")
    assert len(codes) > 15
    assert not [code for code in codes if f"`{code}`" not in table]


def test_an_honest_pickle_passes_the_gate(tmp_path: Path) -> None:
    """What torch.save writes of a state_dict, opcode by opcode, but for the tensors' numbers."""
    text = (
        b"\x80\x02ccollections\nOrderedDict\n)R(X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n"
        b"((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQK\x00"
        b"K\x01\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtRu."
    )
    check_pickle(torch_zip(tmp_path / "a.pt", text))
    check_pickle(torch_old(tmp_path / "a.pth", text))
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[torch]'")
    torch.save({"a.weight": torch.ones(2, 3)}, tmp_path / "real.pt")
    check_pickle(tmp_path / "real.pt")
