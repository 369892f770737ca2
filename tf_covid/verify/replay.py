"""`python -m tf_covid.verify.replay EXPORT QUESTIONS ANSWERS`.

Ask a SavedModel in a process of its own.

Nothing else of `tf_covid` is imported: what answers is the export alone, as in a server.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

#: Marks an array of octets that stands for one string.
_STRING = "#string"


def pack(path: Path, named: Iterable[tuple[str, dict[str, Any]]]) -> None:
    """Write signatures with their named arrays, for one scan each.

    Args:
        path: New `.npz` file.
        named: Signature and arrays; an array of type object holds one string of bytes.
    """
    arrays: dict[str, Any] = {}
    for index, (signature, values) in enumerate(named):
        for name, array in values.items():
            key = f"{index}|{signature}|{name}"
            if array.dtype == object:
                (text,) = array
                arrays[key + _STRING] = np.frombuffer(text, np.uint8)
            else:
                arrays[key] = array
    np.savez(path, **arrays)


def unpack(path: Path) -> list[tuple[str, dict[str, np.ndarray]]]:
    """What `pack` wrote. Nothing is run from the file.

    Raises:
        OSError, ValueError: If it is no such file.
    """
    results: dict[int, tuple[str, dict[str, np.ndarray]]] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for key, array in arrays.items():
            index, signature, name = key.removesuffix(_STRING).split("|")
            if key.endswith(_STRING):
                array = np.array([array.tobytes()], object)
            results.setdefault(int(index), (signature, {}))[1][name] = array
    return [results[index] for index in sorted(results)]


def main(export: str, questions: str, answers: str) -> None:
    """Answer each question.

    Args:
        export: Folder of a version.
        questions: File of `pack`, written by the process that called.
        answers: File of `pack`, to be written.
    """
    import tensorflow as tf

    loaded = tf.saved_model.load(export)
    results = []
    for signature, inputs in unpack(Path(questions)):
        outputs = loaded.signatures[signature](
            **{name: tf.constant(values) for name, values in inputs.items()}
        )
        results.append((signature, {name: values.numpy() for name, values in outputs.items()}))
    pack(Path(answers), results)


if __name__ == "__main__":
    main(*sys.argv[1:])
