"""Weight files that promise little and take much.

Refused before it is taken, or read for what they promise.
"""

from __future__ import annotations

import functools
import io
import json
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from tf_covid.errors import ModelError, UnsafeFile
from tf_covid.models import UNet
from tf_covid.weights import Contract, load, quarantine, save_model
from tf_covid.weights.files import build

#: Reads files as `tfcovid import` does; of each its code, and the peak of the memory so far, of
#: this process and of its largest child, in MB.
READER = """
import re, resource, sys
from pathlib import Path
from tf_covid.errors import UnsafeFile
from tf_covid.weights.foreign import list_checkpoint, private, read_checkpoint
for name in sys.argv[1:]:
    try:
        with private(Path(name)) as copy:
            list_checkpoint(copy)
            read_checkpoint(copy)
        code = "read"
    except UnsafeFile as error:
        code = error.code
    own = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    print(code, own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
"""

#: What Python, NumPy and HDF5 take before they read anything, in MB.
EMPTY = 250


def packed(
    file: h5py.File, name: str, shape: tuple[int, ...], chunk: bytes, kind: str = "f4"
) -> None:
    """A dataset of one chunk behind deflate, whose bytes are given."""
    item = file.create_dataset(name, shape, kind, chunks=shape, compression="gzip")
    item.id.write_direct_chunk((0,) * len(shape), chunk)


@functools.cache
def zeros(megabytes: int) -> bytes:
    """A deflate stream of that many MB of zeros."""
    packer = zlib.compressobj(9)
    return b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(megabytes)), packer.flush()])


def over_inflating(file: h5py.File) -> None:
    """A chunk of 1 MB whose stream gives 1 GB."""
    packed(file, "a/kernel", (250_000,), zeros(1000))


def one_chunk(file: h5py.File) -> None:
    """A chunk of 4 GB, honestly packed to 4 MB."""
    packed(file, "a/kernel", ((1 << 30) - 1,), bytes(4_000_000))


def many_small(file: h5py.File) -> None:
    """990 datasets of 1 MB each in 1 KB, with names of no layer."""
    chunk = zlib.compress(bytes(1_000_000))
    for number in range(990):
        packed(file, f"d{number}/kernel", (500_000,), chunk, "f2")


def three_bytes(file: h5py.File) -> None:
    """Fletcher-32 sums the last four bytes of a chunk: HDF5 crashes where there are three."""
    item = file.create_dataset("a/kernel", (4,), "f4", chunks=(4,), fletcher32=True)
    item.id.write_direct_chunk((0,), b"abc")


def never_written(file: h5py.File) -> None:
    """Half of the chunks are there; HDF5 makes up the rest."""
    item = file.create_dataset("a/kernel", (8,), "f4", chunks=(4,), compression="gzip")
    item.id.write_direct_chunk((0,), zlib.compress(bytes(16)))


def filled(file: h5py.File) -> None:
    """A trillion sevens in no byte at all."""
    file.create_dataset("a/kernel", (10**12,), "f4", fillvalue=7)


def cut_chunk(file: h5py.File) -> None:
    """A deflate stream without its end."""
    packed(file, "a/kernel", (1000,), zlib.compress(np.arange(1000, dtype="f4").tobytes())[:-5])


def short_chunk(file: h5py.File) -> None:
    """A deflate stream that gives half of the chunk."""
    packed(file, "a/kernel", (1000,), zlib.compress(np.arange(500, dtype="f4").tobytes()))


def flipped_chunk(file: h5py.File) -> None:
    """A deflate stream with a wrong checksum."""
    packed(
        file, "a/kernel", (1000,), zlib.compress(np.arange(1000, dtype="f4").tobytes())[:-1] + b"x"
    )


def filter_skipped(file: h5py.File) -> None:
    """A chunk whose own mask says that it was not packed."""
    item = file.create_dataset("a/kernel", (4,), "f4", chunks=(4,), compression="gzip")
    item.id.write_direct_chunk((0,), bytes(16), filter_mask=1)


def twice_shuffled(file: h5py.File) -> None:
    """Deflate and then shuffle, which nobody writes."""
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_chunk((4,))
    made.set_deflate(4)
    made.set_shuffle()
    group = file.create_group("a")
    h5py.h5d.create(
        group.id, b"kernel", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((4,)), made
    ).write(h5py.h5s.ALL, h5py.h5s.ALL, np.ones(4, "f4"))


def typed(kind: object, value: object) -> Callable[[h5py.File], object]:
    return lambda file: file.create_dataset("a/kernel", data=np.array(value, dtype=kind))


def odd_float(file: h5py.File) -> None:
    """Floats of 20 bits in 32: HDF5 converts them, we take none."""
    kind = h5py.h5t.IEEE_F32LE.copy()
    kind.set_fields(19, 14, 5, 0, 14)
    kind.set_precision(20)
    h5py.h5d.create(file.create_group("a").id, b"kernel", kind, h5py.h5s.create_simple((4,))).write(
        h5py.h5s.ALL, h5py.h5s.ALL, np.ones(4, "f4")
    )


#: What it is → its code, and how the HDF5 file is written.
HDF5: dict[str, tuple[str, Callable[[h5py.File], object]]] = {
    "a chunk that inflates to more than its size": ("shape_bomb", over_inflating),
    "one chunk of 4 GB": ("shape_bomb", one_chunk),
    "990 small datasets": ("shape_bomb", many_small),
    "three bytes behind Fletcher-32": ("unknown_packing", three_bytes),
    "chunks that were never written": ("damaged", never_written),
    "a trillion numbers that were never written": ("shape_bomb", filled),
    "a chunk that is cut": ("damaged", cut_chunk),
    "a chunk that unpacks to less": ("damaged", short_chunk),
    "a chunk with a wrong checksum": ("damaged", flipped_chunk),
    "a chunk that skips its filter": ("unknown_packing", filter_skipped),
    "filters in another order": ("unknown_packing", twice_shuffled),
    "scale-offset": (
        "unknown_packing",
        lambda f: f.create_dataset("x", data=np.arange(99), scaleoffset=True),
    ),
    "a structure": ("not_numbers", typed([("a", "f4")], [(1,)])),
    "complex numbers": ("not_numbers", typed("c8", [1j])),
    "references": (
        "not_numbers",
        lambda f: f.create_dataset("x", data=[f.ref], dtype=h5py.ref_dtype),
    ),
    "names for numbers": (
        "not_numbers",
        lambda f: f.create_dataset("x", data=[1], dtype=h5py.enum_dtype({"A": 1}, "i4")),
    ),
    "arrays of any length": (
        "not_numbers",
        lambda f: f.create_dataset("x", (1,), h5py.vlen_dtype("f4")),
    ),
    "arrays for numbers": (
        "not_numbers",
        lambda f: f.create_dataset("x", (2,), np.dtype(("f4", (2,)))),
    ),
    "floats of 20 bits": ("not_numbers", odd_float),
    "a name that is not a text": ("damaged", lambda f: h5py.h5g.create(f.id, b"a\xff")),
    "a name with a line break": (
        "damaged",
        lambda f: f.create_dataset("a\nb/kernel", data=np.ones(2, "f4")),
    ),
    "a config of 5 MB": (
        "shape_bomb",
        lambda f: f.attrs.__setitem__("model_config", "x" * 5_000_000),
    ),
    "a layer's name of 2 KB": (
        "shape_bomb",
        lambda f: f.create_dataset("layers/a/vars/0", data=[1.0]).parent.attrs.__setitem__(
            "name", "x" * 2000
        ),
    ),
    "a million letters": (
        "hdf5_items",
        lambda f: [
            f.create_dataset(f"{number:060000d}/kernel", data=[1.0]) for number in range(20)
        ],
    ),
}


def store(write: Callable[[h5py.File], object]) -> bytes:
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        write(file)
    return memory.getvalue()


def archive(
    path: Path, weights: bytes, method: int = zipfile.ZIP_DEFLATED, config: str = "{}"
) -> Path:
    """A `.keras` file by hand."""
    with zipfile.ZipFile(path, "w", method) as made:
        made.writestr("config.json", config)
        made.writestr("model.weights.h5", weights)
    return path


def halves(path: Path) -> Path:
    """Fifty million zeros of 16 bits: 100 MB in a zip of 0.1 MB, and 200 MB of float32."""
    return archive(
        path, store(lambda file: file.create_dataset("a/kernel", data=np.zeros(50_000_000, "f2")))
    )


def twice(path: Path) -> Path:
    """Two members of one name."""
    archive(path, store(typed("f4", [1.0])))
    with zipfile.ZipFile(path, "a") as made, pytest.warns(UserWarning, match="Duplicate"):
        made.writestr("config.json", "{}")
    return path


def long_list(path: Path) -> Path:
    """A zip whose list of files is small by the number of 32 bits, and 3 MB by that of 64."""
    archive(path, store(typed("f4", [1.0])))
    content = path.read_bytes()
    end = content.rindex(b"PK\x05\x06")
    size, start = struct.unpack("<II", content[end + 12 : end + 20])
    wide = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 2, 2, 3_000_000, start)
    path.write_bytes(
        content[:end] + wide + struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1) + content[end:]
    )
    assert size < 3_000_000
    return path


def tensors(path: Path, text: str, data: bytes = bytes(8)) -> Path:
    """A `.safetensors` by hand."""
    path.write_bytes(struct.pack("<Q", len(text)) + text.encode() + data)
    return path


def entry(shape: list[int], ends: list[int], kind: str = "F32") -> str:
    return json.dumps({"dtype": kind, "shape": shape, "data_offsets": ends})


#: What it is → its code, and how the file is written.
FILES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "a chunk that inflates, in a .keras": (
        "shape_bomb",
        lambda t: archive(t / "a.keras", store(over_inflating)),
    ),
    "Fletcher-32 in a .keras": (
        "unknown_packing",
        lambda t: archive(t / "a.keras", store(three_bytes)),
    ),
    "half floats in a .keras": ("zip_bomb", lambda t: halves(t / "a.keras")),
    "a config of 4 GB": (
        "zip_bomb",
        lambda t: archive(t / "a.keras", b"", config='"' + " " * 100_000_000 + '"'),
    ),
    "two files of one name": ("ambiguous_name", lambda t: twice(t / "a.keras")),
    "LZMA": ("unknown_packing", lambda t: archive(t / "a.keras", b"", zipfile.ZIP_LZMA)),
    "a long list in 64 bits": ("zip_bomb", lambda t: long_list(t / "a.keras")),
    "a shape whose product overflows": (
        "damaged",
        lambda t: tensors(t / "a.safetensors", f'{{"a": {entry([2**33, 2**33], [0, 8])}}}'),
    ),
    "a shape below zero": (
        "damaged",
        lambda t: tensors(t / "a.safetensors", f'{{"a": {entry([-2, -1], [0, 8])}}}'),
    ),
    "offsets that overlap": (
        "damaged",
        lambda t: tensors(
            t / "a.safetensors", f'{{"a": {entry([2], [0, 8])}, "b": {entry([1], [4, 8])}}}'
        ),
    ),
    "a hole between two tensors": (
        "damaged",
        lambda t: tensors(
            t / "a.safetensors",
            f'{{"a": {entry([1], [0, 4])}, "b": {entry([1], [8, 12])}}}',
            bytes(12),
        ),
    ),
    "bytes that no tensor has": (
        "damaged",
        lambda t: tensors(t / "a.safetensors", f'{{"a": {entry([1], [0, 4])}}}', bytes(8)),
    ),
    "one name twice": (
        "damaged",
        lambda t: tensors(
            t / "a.safetensors", f'{{"a": {entry([2], [0, 8])}, "a": {entry([1], [0, 8], "F64")}}}'
        ),
    ),
    "a header of 100 MB": (
        "damaged",
        lambda t: tensors(
            t / "a.safetensors", f'{{"a": {entry([2], [0, 8])}}}' + " " * 100_000_000
        ),
    ),
}


def judged(*paths: Path) -> list[tuple[str, float]]:
    """The code with which each file is refused, and the most memory that a process took so far, in
    MB."""
    command = [sys.executable, "-c", READER, *map(str, paths)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    lines = [line.split() for line in found.stdout.splitlines()]
    return [(code, max(float(own), float(child))) for code, own, child in lines]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, float]]:
    """All of them, in one process."""
    paths = {}
    for what, (_, write) in HDF5.items():
        paths[what] = tmp_path_factory.mktemp("hdf5") / "a.h5"
        paths[what].write_bytes(store(write))
        assert paths[what].stat().st_size < 7_000_000
    paths |= {what: make(tmp_path_factory.mktemp("file")) for what, (_, make) in FILES.items()}
    return dict(zip(paths, judged(*paths.values()), strict=True))


@pytest.mark.parametrize("what", [*HDF5, *FILES])
def test_it_is_refused_for_little(what: str, verdicts: dict[str, tuple[str, float]]) -> None:
    said, peak = verdicts[what]
    assert said == (HDF5 | FILES)[what][0]
    assert peak < EMPTY


def test_what_is_read_takes_its_own_size_and_little_more(tmp_path: Path) -> None:
    """Random numbers, in one piece, in packed chunks and as halves: 120 MB of float32 each time."""
    values = np.random.default_rng(0).integers(0, 2**14, (1000, 30_000)).astype("u2").view("f2")
    packed = {"chunks": (100, 3000), "compression": "gzip", "compression_opts": 1, "shuffle": True}
    for name, options in {"whole": {}, "packed": packed}.items():
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file.create_dataset("a/kernel", data=values, **options)
    for said, peak in judged(tmp_path / "whole.h5", tmp_path / "packed.h5"):
        assert said == "read"
        assert peak < EMPTY + 2 * 120


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of ours in a file."""
    arguments = {"input_shape": [32, 32, 1], "depth": 2, "filters": 4}
    path = tmp_path_factory.mktemp("honest") / "unet.keras"
    save_model(
        UNet(**arguments),
        Contract(model="unet", arguments=arguments, task="lungs", note="drawn"),
        path,
    )
    return path


def rewritten(source: Path, target: Path, **members: bytes) -> Path:
    """The same zip with members replaced, by the beginning of their names."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, members.get(name.split(".")[0], old.read(name)))
    return target


def spoilt(path: Path, kernel: Callable[[h5py.File], object]) -> bytes:
    """The weights of a file of ours, with another first kernel in its place."""
    with zipfile.ZipFile(path) as archive:
        memory = io.BytesIO(archive.read("model.weights.h5"))
    with h5py.File(memory, "a") as file:
        del file["layers/conv2d/vars/0"]
        kernel(file)
    return memory.getvalue()


def inflating_kernel(file: h5py.File) -> None:
    packed(file, "layers/conv2d/vars/0", (3, 3, 1, 4), zeros(30))


def summed_kernel(file: h5py.File) -> None:
    item = file.create_dataset(
        "layers/conv2d/vars/0", (3, 3, 1, 4), "f4", chunks=(3, 3, 1, 4), fletcher32=True
    )
    item.id.write_direct_chunk((0, 0, 0, 0), b"abc")


@pytest.mark.parametrize(
    ("code", "kernel"),
    [
        ("unknown_packing", summed_kernel),
        ("shape_bomb", inflating_kernel),
        ("shape_bomb", one_chunk),
        ("do not fit the architecture", over_inflating),
        (r"do not fit the architecture \(\d+ of shape \[3, 3, 1, 4\], not", lambda file: None),
    ],
)
def test_a_model_file_of_a_user_is_looked_at_apart(
    code: str, kernel: Callable[[h5py.File], object], honest: Path, tmp_path: Path
) -> None:
    """What `infer --model` reads.

    It dies of nothing that is in the file, and reads no number of a wrong shape.
    """
    with pytest.raises(ModelError, match=code):
        load(rewritten(honest, tmp_path / "a.keras", model=spoilt(honest, kernel)))


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        ("ltc", {"input_shape": [9984, 9984, 9984, 1], "dense": 9999}),
        ("unet", {"input_shape": [32, 32, 1], "depth": 10, "filters": 9}),
    ],
)
def test_a_network_larger_than_its_file_is_not_built(
    model: str, arguments: dict[str, object], honest: Path, tmp_path: Path
) -> None:
    contract = {"model": model, "arguments": arguments, "task": "lungs", "note": "drawn"}
    with pytest.raises(ModelError, match="do not fit the architecture"):
        load(rewritten(honest, tmp_path / "a.keras", tf_covid=json.dumps(contract).encode()))


def test_a_folder_does_not_vouch_for_itself(honest: Path, tmp_path: Path) -> None:
    """A card beside a file of somebody else's may name its sha256."""
    path = rewritten(honest, tmp_path / "model.keras", model=store(three_bytes))
    (tmp_path / "README.md").write_text(f"sha256 `{quarantine.sha256(path)}`")
    with pytest.raises(UnsafeFile, match="unknown_packing"):
        load(path)


@pytest.mark.parametrize("key", ["input_shape", "depth", "filters"])
def test_arguments_of_another_kind_are_named(key: str) -> None:
    odd = [
        None,
        -1,
        0,
        1.5,
        "x",
        [],
        {},
        [1],
        [[1]],
        [-32, 32, 1],
        True,
        float("nan"),
        float("-inf"),
        -(2**63),
        2**63,
    ]
    for value in odd:
        given = {"input_shape": [32, 32, 1], "depth": 2, "filters": 4, key: value}
        with pytest.raises(
            ModelError, match=r"a\.keras: .*(cannot be built from its arguments|is over 10000)"
        ):
            build("unet", given, Path("a.keras"), held=10**9)
