"""Damaged weight files: read equal, read with the damaged numbers that nothing betrays, or refused.

Never a crash.
"""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from tf_covid.errors import UnsafeFile
from tf_covid.weights import apart
from tf_covid.weights.foreign import private, read_checkpoint

#: Reads many HDF5 files as `apart.hdf5` does, each in a child of its own that is forked and not
#: started, for its time.
#: Of each: "read" and the digest of the numbers; the code; or how it died.
READER = """
import hashlib, json, os, pathlib, sys, tempfile
from tf_covid.weights import hdf5_child
folder = pathlib.Path(tempfile.mkdtemp(dir=sys.argv[1]))
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.h5")):
    child = os.fork()
    if not child:
        hdf5_child.main(path, folder, path.name, "numbers")
        os._exit(0)
    _, status, used = os.wait4(child, 0)
    seconds, megabytes = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
    answer = json.loads((folder / "answer.json").read_text()) if status == 0 else {"code": f"status {status}"}
    if "code" not in answer:
        answer = {"code": "read", "numbers": hashlib.sha256((folder / "numbers.raw").read_bytes()).hexdigest()}
    print(json.dumps({**answer, "name": path.name, "seconds": seconds, "megabytes": megabytes}))
"""

VALUES = np.random.default_rng(0).normal(size=(3, 5, 40, 8))


def legacy(file: h5py.File) -> None:
    for number in range(4):
        file.create_dataset(
            f"conv{number}/conv{number}/kernel:0", data=VALUES[number % 3].astype("f4")
        )
    file.attrs["model_config"] = json.dumps({"class_name": "Functional", "config": {"layers": []}})


def keras_3(file: h5py.File) -> None:
    for number in range(4):
        group = file.create_group(f"layers/conv2d_{number}/vars")
        group.attrs["name"] = f"down{number}"
        group.create_dataset("0", data=VALUES[number % 3].astype("f4"))


def packed(file: h5py.File) -> None:
    for number in range(4):
        file.create_dataset(
            f"conv{number}/kernel",
            data=VALUES,
            dtype="f2",
            chunks=(1, 3, 40, 8),
            compression="gzip",
            shuffle=number > 1,
        )


#: What is written, and with which options of HDF5.
KINDS: dict[str, tuple[Callable[[h5py.File], None], dict[str, object]]] = {
    "legacy": (legacy, {}),
    "keras 3": (keras_3, {}),
    "packed": (packed, {}),
    "latest": (keras_3, {"libver": "latest"}),
    "latest packed": (packed, {"libver": "latest"}),
    "userblock": (legacy, {"userblock_size": 512}),
}


def damaged(whole: bytes, seed: int) -> bytes:
    """Bytes flipped, zeroed, copied elsewhere, an address replaced, or the end cut off."""
    rng = random.Random(seed)
    content = bytearray(whole)
    start = rng.randrange(len(content) - 8)
    match seed % 5:
        case 0:
            for _ in range(rng.choice([1, 2, 8])):
                content[rng.randrange(len(content))] = rng.randrange(256)
        case 1:
            content[rng.randrange(2048)] = rng.choice([0, 1, 127, 128, 255])
        case 2:
            content[start : start + 8] = struct.pack(
                "<Q", rng.choice([0, 1, 2**31, 2**63, 2**64 - 1, start])
            )
        case 3:
            other = rng.randrange(len(content) - 64)
            content[start : start + 64] = content[other : other + 64]
        case 4:
            del content[start:]
    return bytes(content)


def made(path: Path, kind: str) -> Path:
    write, options = KINDS[kind]
    with h5py.File(path, "w", **options) as file:
        write(file)
    return path


@pytest.mark.parametrize(
    "count", [20, pytest.param(400, marks=pytest.mark.slow)], ids=["a few", "many"]
)  # of each kind
def test_damage_is_named_or_harmless(count: int, tmp_path: Path) -> None:
    for kind in KINDS:
        whole = made(tmp_path / f"{kind}.h5", kind).read_bytes()
        for seed in range(count):
            (tmp_path / f"{kind} {seed:04d}.h5").write_bytes(damaged(whole, seed))
    command = [sys.executable, "-c", READER, str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout
    answers = {one["name"]: one for one in map(json.loads, found.splitlines())}
    assert len(answers) == len(KINDS) * (count + 1)
    codes = Counter(one["code"] for one in answers.values())
    assert codes["read"] > count
    assert codes["damaged"] > count
    # A reader that dies is a refusal, and rare; no honest refusal is an exception of Python.
    assert (
        sum(number for code, number in codes.items() if code.startswith("status"))
        <= count * len(KINDS) // 100
    )
    for name, one in answers.items():
        kind = name.split(".")[0].rstrip("0123456789").strip()
        assert one["seconds"] < 8, name
        assert one["megabytes"] < 200, name
        if one["code"] == "read" and "packed" in kind:  # checksums guard its numbers
            assert one["numbers"] == answers[f"{kind}.h5"]["numbers"], name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("numbers", [False, True], ids=["names", "numbers"])
def test_another_process_reads_what_h5py_reads(kind: str, numbers: bool, tmp_path: Path) -> None:
    path = made(tmp_path / "a.h5", kind)
    store = apart.hdf5(path, "a.h5", numbers=numbers)
    with h5py.File(path) as file:
        assert store.texts == (
            {"model_config": file.attrs["model_config"]} if "model_config" in file.attrs else {}
        )
        for one in store.variables:
            values = file[one.path][()].astype("f4")
            assert one.values.dtype == np.float32
            assert one.values.shape == values.shape
            assert not numbers or np.array_equal(one.values, values)
    assert len(store.variables) == 4
    assert {one.layer for one in store.variables} == (
        {f"down{number}" for number in range(4)} if store.layers else {None}
    )


@pytest.mark.parametrize(
    ("value", "options"),
    [
        (np.arange(7, dtype=">f4"), {}),
        (np.arange(7, dtype=">f8"), {"chunks": (3,), "compression": "gzip", "shuffle": True}),
        (np.arange(35, dtype="f2").reshape(5, 7), {"chunks": (2, 4), "shuffle": True}),
        (np.arange(35, dtype=">u4").reshape(5, 7), {"chunks": (2, 4)}),
        (np.array(3.5, "f4"), {}),
        (np.zeros((0, 4), "f4"), {}),
        (np.zeros((0, 4), "f4"), {"chunks": (1, 4), "maxshape": (None, 4)}),
        (np.array([True, False]), {}),
        (np.arange(5, dtype="f4"), {"chunks": (8,), "maxshape": (None,), "compression": "gzip"}),
        (np.arange(5_000_000, dtype="f4"), {}),
    ],
    ids=[
        "big-endian",
        "packed",
        "shuffled",
        "integers",
        "scalar",
        "empty",
        "empty chunks",
        "bool",
        "wide",
        "long",
    ],
)
def test_every_honest_layout_is_read(
    value: np.ndarray, options: dict[str, object], tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=value, **options)
    (one,) = apart.hdf5(tmp_path / "a.h5", "a.h5").variables
    assert one.values.shape == value.shape
    assert np.array_equal(one.values, value)


def test_numbers_in_a_header_are_read(tmp_path: Path) -> None:
    """The compact layout keeps them there."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.COMPACT)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        space = h5py.h5s.create_simple((9,))
        h5py.h5d.create(file.id, b"x", h5py.h5t.IEEE_F32LE, space, plan).write(
            h5py.h5s.ALL, h5py.h5s.ALL, np.arange(9, dtype="f4")
        )
    (one,) = apart.hdf5(tmp_path / "a.h5", "a.h5").variables
    assert np.array_equal(one.values, np.arange(9))


def test_datasets_on_the_same_bytes_are_refused(tmp_path: Path) -> None:
    """The address of one is written over that of the other: both would have its numbers."""
    path = made(tmp_path / "a.h5", "legacy")
    with h5py.File(path) as file:
        first, second = (
            file[f"conv{number}/conv{number}/kernel:0"].id.get_offset() for number in (0, 1)
        )
    content = path.read_bytes()
    assert content.count(struct.pack("<Q", second)) == 1
    path.write_bytes(content.replace(struct.pack("<Q", second), struct.pack("<Q", first)))
    with pytest.raises(UnsafeFile, match="lie on the same bytes"):
        apart.hdf5(path, "a.h5", numbers=False)


@pytest.mark.parametrize(
    ("fails", "how"),
    [
        ("os.abort()", "SIGABRT"),
        ("hdf5_child.limit(1000); bytearray(2**31)", "MemoryError"),
        ("hdf5_child.limit(1000, seconds=1)\nwhile True: pass", "SIGXCPU"),
        ("time.sleep(60)", "not read within 1 s"),
        ("pass", "left no answer"),
    ],
    ids=["crash", "memory", "loop", "hang", "silence"],
)
def test_a_reader_that_falls_over_falls_alone(
    fails: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "falls_apart.py").write_text(
        f"import os, time\nfrom tf_covid.weights import hdf5_child\n{fails}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(apart, "_READER", "falls_apart")
    if "sleep" in fails:
        monkeypatch.setattr(apart, "_MAX_SECONDS", 1)
    with pytest.raises(UnsafeFile, match=how) as caught:
        apart.hdf5(made(tmp_path / "a.h5", "legacy"), "a.h5")
    assert caught.value.code == "reader_failed"


def test_damaged_safetensors_are_named_or_harmless(checkpoints, tmp_path: Path) -> None:
    values = {f"layer{number}.weight": VALUES[number].astype("f4") for number in range(3)}
    path = checkpoints.write_safetensors(values, tmp_path / "a.safetensors")
    whole, codes = path.read_bytes(), Counter()
    for seed in range(300):
        path.write_bytes(damaged(whole, seed))
        try:
            with private(path) as copy:
                read = read_checkpoint(copy)
            codes["read"] += 1
            assert all(value.dtype == np.float32 for value in read.tensors.values())
        except UnsafeFile as error:
            codes[error.code] += 1
    assert codes["read"] > 30
    assert codes["damaged"] > 60


def test_a_damaged_keras_file_is_equal_or_named(tmp_path: Path) -> None:
    """A zip sums all that it holds: nothing is read differently."""
    path, weights = tmp_path / "a.keras", made(tmp_path / "w.h5", "keras 3")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.write(weights, "model.weights.h5")
    whole, first, codes = path.read_bytes(), read_checkpoint(path), Counter()
    for seed in range(120):
        path.write_bytes(damaged(whole, seed))
        try:
            read = read_checkpoint(path)
            codes["read"] += 1
            assert read.tensors.keys() == first.tensors.keys()
            assert all(
                np.array_equal(read.tensors[name], first.tensors[name]) for name in first.tensors
            )
        except UnsafeFile as error:
            codes[error.code] += 1
    assert codes["damaged"] > 60
