"""HDF5's own library, in a process of its own.

It is C that finds its way through what somebody else wrote.

`apart.py` runs `python -m tf_covid.weights.hdf5_child FILE FOLDER NAME names|numbers` and looks at
what it left in the folder as at any file. Memory, processor time and output are bounded.
"""

from __future__ import annotations

import json
import math
import resource
import sys
from pathlib import Path
from typing import Any

import h5py

from tf_covid.errors import UnsafeFile
from tf_covid.weights import chunks, hdf5

#: What is left in the folder: what the file holds or what is wrong with it, the numbers, and the
#: texts of its root.
ANSWER, NUMBERS, TEXTS = "answer.json", "numbers.raw", ("model_config", "training_config")

#: Bytes above what Python and HDF5 take themselves: two chunks, packed and not; and seconds of
#: processor time.
MAX_MEMORY, MAX_SECONDS = 600_000_000, 5


def limit(size: int, memory: int = MAX_MEMORY, seconds: int = MAX_SECONDS) -> None:
    """Bound this process from now on.

    Args:
        size: Bytes of the HDF5 file; a large one gets a second more for each 20 MB.
        memory: Bytes of it beyond what it has by now.
        seconds: Processor time for a small file.
    """
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    used = resource.getrusage(resource.RUSAGE_SELF)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, mapped + memory + hdf5.MAX_WEIGHTS))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hdf5.MAX_WEIGHTS + 20_000_000,) * 2)
    allowed = math.ceil(used.ru_utime + used.ru_stime) + seconds + size // 20_000_000
    resource.setrlimit(
        resource.RLIMIT_CPU, (allowed, allowed + 1)
    )  # the first ends it by a signal with a name
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def read(path: Path, folder: Path, name: str, *, numbers: bool) -> dict[str, Any]:
    """What a file holds: `variables` (path, shape, type, its group's name), `layers`.

    Args:
        path: The file.
        folder: Gets `TEXTS` and, where they are asked for, `NUMBERS`.
        name: Name of the file in an error message.
        numbers: Whether the numbers are read too, after all names and shapes.

    Raises:
        UnsafeFile: If `hdf5.checked` or `chunks.write` refuses the file.
    """
    with hdf5.checked(path, name) as file:
        datasets: list[tuple[str, h5py.Dataset]] = []

        def visit(path_inside: str, item: object) -> None:
            if isinstance(item, h5py.Dataset):
                datasets.append((path_inside, item))

        file.visititems(visit)
        for key in TEXTS:
            if (content := hdf5.text(file, key, name)) is not None:
                (folder / key).write_text(content, "utf-8", "replace")
        variables = [
            {
                "path": path_inside,
                "shape": list(item.shape),
                "type": item.dtype.str,
                "layer": hdf5.text(item.parent, "name", name, hdf5.MAX_NAME),
            }
            for path_inside, item in datasets
        ]
        layers = file.get("layers")
        if numbers:
            # A dataset in chunks is put together whole; by now it is known to be worth it.
            soft, hard = resource.getrlimit(resource.RLIMIT_AS)
            largest = max(
                (item.size * max(item.dtype.itemsize, 4) for _, item in datasets if item.chunks),
                default=0,
            )
            if soft != resource.RLIM_INFINITY:
                resource.setrlimit(resource.RLIMIT_AS, (min(soft + largest, hard), hard))
            with (folder / NUMBERS).open("wb") as target:
                types = [
                    chunks.write(path, item, target, f"{name}: {path_inside}")
                    for path_inside, item in datasets
                ]
            variables = [
                {**one, "type": kind.str} for one, kind in zip(variables, types, strict=True)
            ]
        return {
            "variables": variables,
            "layers": list(layers) if isinstance(layers, h5py.Group) else [],
        }


def main(path: Path, folder: Path, name: str, mode: str) -> None:
    """Read a file within limits, and leave in a folder what was found."""
    limit(path.stat().st_size)
    try:
        answer = read(path, folder, name, numbers=mode == "numbers")
    except UnsafeFile as error:
        answer = {"code": error.code, "facts": str(error).removeprefix(f"{error.code}: ")}
    (folder / ANSWER).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4])
