"""TF Serving's REST JSON → arrays: rows (`instances`) and columns (`inputs`).

`encode.py` is the way back.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tf_covid.server.errors import InvalidArgument
from tf_covid.server.http.json_text import parse
from tf_covid.server.servable import SignatureRunner
from tf_covid.server.tensor_proto import MOST_AXES
from tf_covid.server.tensor_spec import TensorSpec
from tf_covid.tensor import Json

#: Largest whole number up to which each float type holds all of them: TF Serving refuses larger
#: ones.
_EXACT = {np.dtype(np.float32): 2**24 - 1, np.dtype(np.float64): 2**53 - 1}


@dataclass(frozen=True)
class PredictRequest:
    """A predict request.

    Args:
        runner: The signature that is asked.
        inputs: Arrays by name, checked against it.
        rows: Whether it came as `instances`, and the answer goes as `predictions`.
    """

    runner: SignatureRunner
    inputs: dict[str, np.ndarray]
    rows: bool


def parse_predict_request(
    body: bytes | bytearray, runner_of: Callable[[str], SignatureRunner]
) -> PredictRequest:
    """Read the body of `:predict`: a `PredictRequest`, checked against the signature.

    Args:
        body: JSON.
        runner_of: The signature of a name, "" for the default one.

    Raises:
        InvalidArgument: If it is malformed, or not what the signature asks for; the text names the
            input.
    """
    document = parse(body)
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise InvalidArgument(
            "JSON Value: not formatted correctly. 'signature_name' key must be a string value."
        )
    runner = runner_of(name)
    if ("instances" in document) == ("inputs" in document):
        raise InvalidArgument(
            "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist"
            if "inputs" in document
            else "Missing 'inputs' or 'instances' key"
        )
    if not runner.inputs:
        raise InvalidArgument(f"Failed to get input map for signature: {name or 'DEFAULT'}")
    rows = "instances" in document
    inputs = (
        _of_rows(document["instances"], runner) if rows else _of_columns(document["inputs"], runner)
    )
    runner.check(inputs)
    return PredictRequest(runner, inputs, rows)


def _of_rows(instances: Json, runner: SignatureRunner) -> dict[str, np.ndarray]:
    if not isinstance(instances, list):
        raise InvalidArgument("Expecting 'instances' to be an list/array")
    if not instances:
        raise InvalidArgument("No values in 'instances' array")
    if not _is_named(instances[0]):
        if len(runner.inputs) > 1:
            raise InvalidArgument(
                "instances is a plain list, but expecting list of objects as multiple input"
                f" tensors required as per tensorinfo_map: {', '.join(runner.inputs)}"
            )
        if any(map(_is_named, instances)):
            raise InvalidArgument("Expecting value/list but got object in 'instances' list")
        (spec,) = runner.inputs.values()
        return {spec.name: to_array(instances, spec)}
    for index, instance in enumerate(instances):
        if not _is_named(instance):
            raise InvalidArgument(f"Expecting object but got list at item {index} of input list")
        if instance.keys() != runner.inputs.keys():
            wrong = sorted(instance.keys() ^ runner.inputs.keys())
            raise InvalidArgument(
                f"Failed to process element: {index} of 'instances' list. JSON object: keys must"
                f" be equal to: {','.join(runner.inputs)} (missing or unknown:"
                f" {','.join(name[:100] for name in wrong[:20])})"
            )
    return {
        name: to_array([row[name] for row in instances], spec)
        for name, spec in runner.inputs.items()
    }


def _of_columns(inputs: Json, runner: SignatureRunner) -> dict[str, np.ndarray]:
    if not _is_named(inputs):
        if len(runner.inputs) > 1:
            raise InvalidArgument(
                "inputs is a plain value/list, but expecting an object as multiple input tensors"
                f" required as per tensorinfo_map: {', '.join(runner.inputs)}"
            )
        (spec,) = runner.inputs.values()
        return {spec.name: to_array(inputs, spec)}
    for name in runner.inputs:
        if name not in inputs:
            raise InvalidArgument(f"Missing named input: {name} in 'inputs' object.")
    if unknown := sorted(set(inputs) - set(runner.inputs)):
        raise InvalidArgument(
            f"Unknown named input: {', '.join(name[:100] for name in unknown[:20])} in 'inputs'"
            " object."
        )
    return {name: to_array(inputs[name], spec) for name, spec in runner.inputs.items()}


def _is_named(value: Json) -> bool:
    """Whether a value is an object of named inputs, not one string in base64."""
    return isinstance(value, dict) and not (
        value.keys() == {"b64"} and isinstance(value["b64"], str)
    )


def to_array(value: Json, spec: TensorSpec) -> np.ndarray:
    """A JSON value as an array of the type of an input.

    Args:
        value: Nested lists, all of the same lengths.
        spec: What the signature takes.

    Raises:
        InvalidArgument: If the lists are ragged, or a value does not fit the type without loss.
    """
    flat, shape = _flattened(value, spec)
    return _typed(flat, spec).reshape(shape)


def _flattened(value: Json, spec: TensorSpec) -> tuple[list[Any], tuple[int, ...]]:
    """The values of nested lists in order, and the lists' lengths; without recursion."""
    level, shape = [value], list[int]()
    while True:
        lists = sum(isinstance(part, list) for part in level)
        if not lists:
            return level, tuple(shape)
        if lists != len(level):
            raise InvalidArgument(
                f"input '{spec.name}': JSON Value found at incorrect level: its lists are ragged"
            )
        sizes = set(map(len, level))
        if len(sizes) > 1:
            raise InvalidArgument(
                f"input '{spec.name}': Encountered list at unexpected size: lists of {min(sizes)}"
                f" and {max(sizes)}"
            )
        if len(shape) == MOST_AXES:
            raise InvalidArgument(f"input '{spec.name}': its lists are nested too deeply")
        shape.append(sizes.pop())
        level = list(itertools.chain.from_iterable(level))
        if not level:
            return level, tuple(shape)


def _typed(values: list[Any], spec: TensorSpec) -> np.ndarray:
    """Values without lists as an array of one axis, of the type of the input."""
    dtype = spec.dtype
    if dtype.name == "string":
        array: np.ndarray = np.empty(len(values), object)
        array[:] = [_as_bytes(value, spec) for value in values]
        return array
    kinds = set(map(type, values))
    if dtype.is_bool:
        allowed: set[type] = {bool}
    elif dtype.is_integer and not dtype.is_quantized:
        allowed = {int}
    elif dtype.is_floating:
        allowed = {int, float}
    else:
        raise InvalidArgument(
            f"input '{spec.name}': {dtype.name} is not served by REST; ask over gRPC"
        )
    if not kinds <= allowed:
        wrong = next(value for value in values if type(value) not in allowed)
        raise InvalidArgument(
            f"input '{spec.name}': JSON Value: {_shown(wrong)} is not of expected type:"
            f" {dtype.name}"
        )
    target = np.dtype(dtype.as_numpy_dtype)
    if dtype.is_bool:
        return np.array(values, target)
    return (
        _floats(values, kinds, target, spec) if dtype.is_floating else _whole(values, target, spec)
    )


def _whole(values: list[int], target: np.dtype, spec: TensorSpec) -> np.ndarray:
    limits = np.iinfo(target)
    try:
        # NumPy 1 wraps what is below 0 around in an unsigned type, instead of an error.
        unsigned = target == np.uint64 and min(values, default=0) >= 0
        wide = np.array(values, np.uint64 if unsigned else np.int64)
        if not wide.size or (wide.min() >= limits.min and wide.max() <= limits.max):
            return wide.astype(target)
    except OverflowError:
        pass
    wrong = next(value for value in values if not limits.min <= value <= limits.max)
    raise InvalidArgument(
        f"input '{spec.name}': JSON Value: {_shown(wrong)} is out of the range of {target.name}"
    )


def _floats(
    values: list[float], kinds: set[type], target: np.dtype, spec: TensorSpec
) -> np.ndarray:
    largest, exact = float(spec.dtype.max), _EXACT.get(target)
    try:
        wide = np.array(values, np.float64)
        sizes = np.abs(wide)
        lost = np.isfinite(wide) & (sizes > largest)
        if exact is not None and int in kinds:
            lost |= np.fromiter(
                (type(value) is int and abs(value) > exact for value in values), bool, len(values)
            )
        if not lost.any():
            return wide.astype(target)
        wrong: Any = values[int(lost.argmax())]
    except OverflowError:
        wrong = max(values, key=abs)
    raise InvalidArgument(
        f"input '{spec.name}': Cannot convert JSON value: {_shown(wrong)} to {target.name} without"
        " loss of precision."
    )


def _as_bytes(value: Json, spec: TensorSpec) -> bytes:
    try:
        if isinstance(value, str):
            return value.encode()
        if not _is_named(value) and isinstance(value, dict):
            text = value["b64"]
            return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidArgument(
            f"input '{spec.name}': Unable to base64 decode, or not UTF-8"
        ) from error
    raise InvalidArgument(
        f"input '{spec.name}': JSON Value: {_shown(value)} is not of expected type: string"
    )


def _shown(value: Json) -> str:
    """A value that was sent, short: its digits where it is a number, otherwise only its kind."""
    if isinstance(value, (bool, float)) or (isinstance(value, int) and value.bit_length() < 200):
        return json.dumps(value)
    return {int: "Number", dict: "Object", str: "String", type(None): "Null"}.get(
        type(value), "Array"
    )
