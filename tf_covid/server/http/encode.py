"""Arrays → TF Serving's REST JSON: rows (`predictions`) and columns (`outputs`)."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Mapping

import numpy as np

from tf_covid.server.errors import Failed, InvalidArgument

#: More floats than this are written with the digits of a double, which is faster and the same
#: value.
_MOST_SHORT = 1_000_000


def predict_response(outputs: Mapping[str, np.ndarray], *, rows: bool) -> bytes:
    """The body of the answer.

    NaN and Infinity as TF Serving writes them, bytes of `…_bytes` as `{"b64": …}`.

    Args:
        outputs: Arrays by name.
        rows: As `predictions`, one for each index of axis 0; otherwise as `outputs`.

    Raises:
        InvalidArgument: If rows were asked for, and the outputs do not have the same number of
            them.
        Failed: If an output cannot be written as JSON.
    """
    if not outputs:
        raise InvalidArgument("Cannot convert empty tensor map to JSON")
    texts = {name: _written(name, array, rows=rows) for name, array in outputs.items()}
    if not rows:
        one, *others = texts.values()
        full = (
            "{" + ", ".join(f"{json.dumps(name)}: {text}" for name, (text,) in texts.items()) + "}"
        )
        return f'{{\n    "outputs": {full if others else one[0]}\n}}'.encode()
    sizes = {name: len(text) for name, text in texts.items()}
    if len(set(sizes.values())) > 1:
        raise InvalidArgument(
            f"the outputs have inconsistent batch sizes: {sizes}; ask with 'inputs' instead of"
            " 'instances'"
        )
    if len(texts) == 1:
        lines: Iterable[str] = next(iter(texts.values()))
    else:
        keys = [json.dumps(name) for name in texts]
        lines = (
            "{" + ", ".join(f"{key}: {text}" for key, text in zip(keys, row, strict=True)) + "}"
            for row in zip(*texts.values(), strict=True)
        )
    return f'{{\n    "predictions": [{", ".join(lines)}]\n}}'.encode()


def _written(name: str, array: np.ndarray, *, rows: bool) -> list[str]:
    """An output as JSON: a text for each index of axis 0, or one for all of it."""
    if rows and not array.ndim:
        raise InvalidArgument(
            f"Tensor name: {name} has no shape information; ask with 'inputs' instead of"
            " 'instances'"
        )
    texts = _tokens(name, array)
    first = 1 if rows else 0
    for axis in range(array.ndim - 1, first - 1, -1):
        size, groups = array.shape[axis], math.prod(array.shape[:axis])
        texts = [
            f"[{', '.join(texts[start * size : (start + 1) * size])}]" for start in range(groups)
        ]
    return texts


def _tokens(name: str, array: np.ndarray) -> list[str]:
    flat = array.ravel()
    kind = flat.dtype.kind
    if kind == "O":
        return [_string(name, bytes(value)) for value in flat]
    if kind == "b":
        return ["true" if value else "false" for value in flat]
    if kind in "iu":
        return list(map(str, flat.tolist()))
    if kind == "c" or flat.dtype.names:
        raise Failed(f"output '{name}': {flat.dtype} cannot be written as JSON; ask over gRPC")
    if (
        flat.dtype.itemsize <= 4 and flat.size <= _MOST_SHORT
    ):  # 0.2, not the 0.20000000298023224 of a double
        texts = list(map(str, flat.astype(np.float32)))
    else:
        texts = list(map(repr, flat.astype(np.float64).tolist()))
    special = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
    return [special.get(text, text) for text in texts]


def _string(name: str, value: bytes) -> str:
    if name.endswith("_bytes"):
        return f'{{"b64": "{base64.b64encode(value).decode("ascii")}"}}'
    try:
        return json.dumps(value.decode())
    except UnicodeDecodeError as error:
        raise Failed(
            f"output '{name}': is not UTF-8, so it cannot be written as JSON; ask over gRPC"
        ) from error
