"""TensorFlow's own reader of its checkpoints, in a process of its own.

It is C++ that reads what somebody else wrote.

`foreign.py` runs `python -m tf_covid.weights.bundle PREFIX FOLDER` and looks at what it left there
as at any file. The memory, processor time and output that it may use follow from the size of the
checkpoint's files.
"""

from __future__ import annotations

import json
import math
import re
import resource
import sys
from pathlib import Path

import numpy as np

from tf_covid.errors import UnsafeFile
from tf_covid.weights.hdf5 import MAX_WEIGHTS

#: What is left in the folder: the tensors by number, and what they are called or what went wrong.
TENSORS, ANSWER = "tensors.safetensors", "answer.json"


def limit(size: int, seconds: int = 10) -> None:
    """Bound this process from now on by what reading `size` bytes may take.

    Args:
        size: Bytes of the checkpoint.
        seconds: Processor time for a small one; a large one gets a second more for each 20 MB.
    """
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    used = resource.getrusage(resource.RUSAGE_SELF)
    # Halves become float32, and are copied once on the way out.
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 500_000_000 + 5 * size,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000 + 3 * size,) * 2)
    allowed = math.ceil(used.ru_utime + used.ru_stime) + seconds + size // 20_000_000
    resource.setrlimit(
        resource.RLIMIT_CPU, (allowed, allowed + 1)
    )  # the first ends it by a signal with a name


def read(prefix: Path, size: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Every tensor of a checkpoint.

    Args:
        prefix: The checkpoint's; of the first format, its file.
        size: Bytes of its files.

    Returns:
        Name → float32 values, and name → type and shape of all that are not floating-point tensors.

    Raises:
        UnsafeFile: If it is damaged, or promises more than it holds.
    """
    import tensorflow as tf

    errors = (ValueError, TypeError, LookupError, RuntimeError, tf.errors.OpError)
    try:
        reader = tf.compat.v1.train.NewCheckpointReader(str(prefix))
        shapes, types = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
        total = sum(
            math.prod(shape) * types[name].size
            for name, shape in shapes.items()
            if types[name].size
        )
    except errors as error:
        raise UnsafeFile(
            "damaged", f"{prefix}: is not a readable TensorFlow checkpoint ({_line(error)})"
        ) from error
    # Neither format packs, so that a checkpoint cannot hold more than its files.
    if total > min(size, MAX_WEIGHTS):
        raise UnsafeFile(
            "shape_bomb", f"{prefix}: its shapes ask for {total} bytes, its files hold {size}"
        )
    tensors: dict[str, np.ndarray] = {}
    others: dict[str, str] = {}
    for name in sorted(shapes):
        if not types[name].is_floating:
            others[name] = f"{types[name].name} {list(shapes[name])}"
            continue
        try:
            with np.errstate(over="ignore"):
                tensors[name] = np.asarray(reader.get_tensor(name), np.float32)
        except errors as error:
            raise UnsafeFile(
                "damaged", f"{prefix}: {name} cannot be read ({_line(error)})"
            ) from error
    return tensors, others


def main(prefix: Path, folder: Path) -> None:
    """Read a checkpoint within limits, and leave in a folder what was found."""
    # Before the limits: what it takes is not the file's doing.
    import tensorflow  # noqa: F401
    from safetensors.numpy import save_file

    shards = re.escape(prefix.name) + r"(\.index|\.data-\d{5}-of-\d{5})?"
    size = sum(
        file.stat().st_size for file in prefix.parent.iterdir() if re.fullmatch(shards, file.name)
    )
    limit(size)
    answer: dict[str, object]
    try:
        tensors, others = read(prefix, size)
        save_file(
            {
                str(index): np.ascontiguousarray(value)
                for index, value in enumerate(tensors.values())
            },
            folder / TENSORS,
        )
        answer = {"names": list(tensors), "others": others}
    except UnsafeFile as error:
        answer = {"code": error.code, "facts": str(error).removeprefix(f"{error.code}: ")}
    (folder / ANSWER).write_text(json.dumps(answer), encoding="utf-8")


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
