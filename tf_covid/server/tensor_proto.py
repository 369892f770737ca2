"""TensorProto ⇄ arrays: no needless copy of a large scan, no trust in what a message claims.

Why not `tf.make_ndarray` and `tf.make_tensor_proto`: the first copies (157 MB of int16: 0.22 s
against 0.15 s) and unfolds a message of a few bytes that claims 2²⁸ values into a gigabyte; the
second puts small answers into `tensor_content`, where clients that read `float_val`, as TF Serving
writes it, find nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from tf_covid.server.errors import Failed, InvalidArgument
from tf_covid.tensor import Message

if TYPE_CHECKING:
    from tf_covid.server.tensor_spec import TensorSpec

#: Ranks above this are no tensors of ours; TensorFlow's own limit is 254.
MOST_AXES = 32

#: Most values that are sent in the fields of their type, as TF Serving does, so that clients which
#: read `float_val` work; longer ones go as `tensor_content`, which `tf.make_ndarray` reads as well
#: and which does not box each number.
MOST_BOXED = 65_536

#: Largest array that a message which leaves values out may unfold into, in bytes: few bytes must
#: not ask for many.
_MOST_FILLED = 2**20

#: Field of the values of each type.
_FIELDS = {
    tf.float16: "half_val",
    tf.bfloat16: "half_val",
    tf.float32: "float_val",
    tf.float64: "double_val",
    tf.int8: "int_val",
    tf.int16: "int_val",
    tf.int32: "int_val",
    tf.uint8: "int_val",
    tf.uint16: "int_val",
    tf.int64: "int64_val",
    tf.uint32: "uint32_val",
    tf.uint64: "uint64_val",
    tf.bool: "bool_val",
    tf.string: "string_val",
}


def to_arrays(
    inputs: Mapping[str, Any], specs: Mapping[str, TensorSpec], max_bytes: int
) -> dict[str, np.ndarray]:
    """The inputs of a request, by name.

    Args:
        inputs: `TensorProto` by name.
        specs: What the signature takes; names that it does not know are left to
            `SignatureRunner.check`, and not decoded.
        max_bytes: Largest array that a message may unfold into, in bytes.

    Raises:
        InvalidArgument: If one of them is not what it says, or of another type.
    """
    return {
        name: to_array(proto, specs[name], max_bytes) if name in specs else np.empty(0)
        for name, proto in inputs.items()
    }


def to_array(proto: Message, spec: TensorSpec, max_bytes: int) -> np.ndarray:
    """One input, of the type of the signature.

    A view of the message's bytes where there is `tensor_content`.

    Args:
        proto: `TensorProto`.
        spec: What the signature takes.
        max_bytes: Largest array that a message may unfold into, in bytes.

    Raises:
        InvalidArgument: If it is not what it says, or of another type.
    """

    def wrong(text: str) -> InvalidArgument:
        return InvalidArgument(f"tensor parsing error: input '{spec.name}': {text}")

    if proto.dtype != spec.dtype.as_datatype_enum:
        sent = (
            tf.dtypes.as_dtype(proto.dtype).name
            if proto.dtype in _KNOWN
            else f"of unknown type {proto.dtype}"
        )
        raise wrong(f"is {sent}, but the signature wants {spec.dtype.name}")
    if spec.dtype not in _FIELDS:
        raise wrong(f"{spec.dtype.name} is not served")
    shape = _shape(proto.tensor_shape, wrong)
    count, dtype = math.prod(shape), _numpy(spec.dtype)
    if count * dtype.itemsize > max_bytes:
        raise wrong(f"a tensor of shape {list(shape)} is larger than {max_bytes} bytes")
    if proto.tensor_content and spec.dtype != tf.string:
        content = proto.tensor_content
        if len(content) != count * dtype.itemsize:
            raise wrong(
                f"{len(content)} bytes do not fill shape {list(shape)} of {spec.dtype.name}"
            )
        if spec.dtype == tf.bool and content.strip(b"\0\1"):
            raise wrong("a bool is 0 or 1")
        return np.frombuffer(content, dtype).reshape(shape)
    if proto.tensor_content:
        raise wrong("strings come in string_val")
    return _boxed(getattr(proto, _FIELDS[spec.dtype]), dtype, count, wrong).reshape(shape)


def _shape(proto: Message, wrong: Message) -> tuple[int, ...]:
    if proto.unknown_rank:
        raise wrong("has no shape")
    if len(proto.dim) > MOST_AXES:
        raise wrong(f"has {len(proto.dim)} axes")
    shape = tuple(axis.size for axis in proto.dim)
    if any(size < 0 or size > 2**40 for size in shape):
        raise wrong(f"has the impossible shape {list(shape)}")
    return shape


def _boxed(values: Message, dtype: np.dtype, count: int, wrong: Message) -> np.ndarray:
    """Values of a repeated field.

    As in TensorFlow, the last one stands for all that are missing, and none for 0.
    """
    if len(values) > count:
        raise wrong(f"{len(values)} values for {count} places")
    if dtype.hasobject:
        array: np.ndarray = np.empty(len(values), object)
        array[:] = list(values)
        filler: Any = values[-1] if len(values) else b""
    else:
        is_half = (
            dtype.itemsize == 2 and dtype.kind not in "iu"
        )  # float16 and bfloat16 come as the bits of an integer
        plain = np.dtype(np.uint16) if is_half else dtype
        if plain.kind in "iu":
            wide = np.fromiter(values, np.uint64 if plain == np.uint64 else np.int64, len(values))
            limits = np.iinfo(plain)
            if wide.size and (wide.min() < limits.min or wide.max() > limits.max):
                raise wrong(f"a value is out of the range of {plain.name}")
            array = wide.astype(plain)
        else:
            array = np.fromiter(values, plain, len(values))
        array = array.view(dtype) if is_half else array
        filler = array[-1] if array.size else np.zeros((), dtype)[()]
    if len(array) == count:
        return array
    if count * dtype.itemsize > _MOST_FILLED:
        raise wrong(f"{len(values)} values for {count} places")
    full: np.ndarray = np.full(count, filler, dtype)
    full[: len(array)] = array
    return full


def to_proto(array: np.ndarray, spec: TensorSpec) -> Message:
    """An output as `TensorProto`.

    Raises:
        Failed: If its type is not served.
    """
    if spec.dtype not in _FIELDS:
        raise Failed(f"output '{spec.name}': {spec.dtype.name} is not served")
    proto = tensor_pb2.TensorProto(dtype=spec.dtype.as_datatype_enum)
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if array.size > MOST_BOXED and spec.dtype != tf.string:
        proto.tensor_content = np.ascontiguousarray(array).tobytes()
        return proto
    flat = array.ravel()
    values: Iterable[Any] = (
        flat.view(np.uint16) if _FIELDS[spec.dtype] == "half_val" else flat
    ).tolist()
    getattr(proto, _FIELDS[spec.dtype]).extend(values)
    return proto


def _numpy(dtype: Message) -> np.dtype:
    return np.dtype(object if dtype == tf.string else dtype.as_numpy_dtype)


_KNOWN = {dtype.as_datatype_enum for dtype in _FIELDS}
