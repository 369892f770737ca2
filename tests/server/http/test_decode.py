"""TF Serving's JSON, and messages that lie.

What a request may hold, and what it hears when it does not.
"""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

from tf_covid.server import tensor_proto
from tf_covid.server.errors import Failed, InvalidArgument, TooLarge
from tf_covid.server.http import decode, encode
from tf_covid.server.servable import SignatureRunner
from tf_covid.server.tensor_spec import TensorSpec

HU = TensorSpec("hu", tf.int16, (None, None, None))
X = TensorSpec("x", tf.float32, (None, 3))


def spec(dtype: Any, *shape: int | None, name: str = "x") -> TensorSpec:
    return TensorSpec(name, dtype, shape)


def runner(*inputs: TensorSpec) -> SignatureRunner:
    return SignatureRunner("serving_default", {one.name: one for one in inputs}, {}, lambda: None)


def read(body: Any, *inputs: TensorSpec) -> dict[str, np.ndarray]:
    text = body if isinstance(body, (bytes, bytearray)) else json.dumps(body).encode()
    return decode.parse_predict_request(text, lambda name: runner(*inputs)).inputs


def test_rows_and_columns_are_the_same() -> None:
    wanted = np.array([[1, 2, 3], [4, 5, 6.5]], np.float32)
    for body in (
        {"instances": wanted.tolist()},
        {"instances": [{"x": row} for row in wanted.tolist()]},
        {"inputs": wanted.tolist()},
        {"inputs": {"x": wanted.tolist()}},
    ):
        got = read(body, X)["x"]
        np.testing.assert_array_equal(got, wanted)
        assert got.dtype == np.float32


def test_several_inputs_by_name() -> None:
    a, b = spec(tf.float32, None, name="a"), spec(tf.uint8, None, 2, name="b")
    got = read({"instances": [{"a": 1, "b": [2, 3]}, {"a": 4.5, "b": [5, 255]}]}, a, b)
    np.testing.assert_array_equal(got["a"], [1, 4.5])
    np.testing.assert_array_equal(got["b"], [[2, 3], [5, 255]])


def test_strings_plain_and_base64() -> None:
    data = spec(tf.string, None, name="data")
    encoded = base64.b64encode(b"\0\xff").decode()
    assert read({"instances": [{"b64": encoded}, "ä"]}, data)["data"].tolist() == [
        b"\0\xff",
        "ä".encode(),
    ]
    assert read({"inputs": {"data": [{"b64": encoded.rstrip("=")}]}}, data)["data"].tolist() == [
        b"\0\xff"
    ]
    scalar = spec(tf.string, name="data")
    assert read({"inputs": {"b64": encoded}}, scalar)["data"].item() == b"\0\xff"


def test_long_lists_of_numbers() -> None:
    volume = np.random.default_rng(1).integers(-1024, 3000, (2, 9, 64, 32)).astype(np.int16)
    one = TensorSpec("hu", tf.int16, (None, None, None, None))
    for body in (
        json.dumps({"instances": volume.tolist()}),
        json.dumps({"instances": [{"hu": part.tolist()} for part in volume]}),
        json.dumps({"inputs": {"hu": volume.tolist()}}, indent=1),
        json.dumps({"inputs": volume.tolist(), "signature_name": "[[1,2" + "3" * 5000}),
    ):
        np.testing.assert_array_equal(read(body.encode(), one)["hu"], volume)
    mixed = [["NaN"] * 3, *[[1.5] * 3] * 2000]
    with pytest.raises(InvalidArgument, match="'x': 3 of 6003 numbers are NaN or infinite"):
        read(json.dumps({"inputs": mixed}).replace('"NaN"', "NaN").encode(), X)


@pytest.mark.parametrize("size", [1, 3000])
@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ("1.5", tf.int16),
        ("1.0", tf.int16),
        ("40000", tf.int16),
        ("-1", tf.uint8),
        ("1e3", tf.int32),
        ("99999999999999999999999", tf.int64),
        ("-1", tf.uint64),
        ("18446744073709551616", tf.uint64),
        ("true", tf.int32),
        ("1", tf.bool),
        ("null", tf.float32),
        ('"1"', tf.float32),
        ("true", tf.float32),
        ("1e39", tf.float32),
        ("1e999", tf.float32),
        ("16777217", tf.float32),
        ("9007199254740993", tf.float64),
        ("1e6", tf.float16),
        ("1", tf.string),
        ('{"b64": 5}', tf.string),
        ('{"b64": "***"}', tf.string),
        ('{"b64": "aGk=", "more": 1}', tf.string),
        ('{"a": 1}', tf.float32),
        ('"\\ud800"', tf.string),
        ("[1]", tf.float32),
        ("01", tf.int32),
        ("+1", tf.float32),
        (".5", tf.float32),
        ("1.", tf.float32),
        ("1 2", tf.int32),
        ("--1", tf.int32),
        ("", tf.int32),
        ("1" * 5000, tf.int64),
    ],
)
def test_a_value_that_does_not_fit_is_refused_and_the_input_is_named(
    value: str, dtype: Any, size: int
) -> None:
    good = {tf.string: '"a"', tf.bool: "true"}.get(dtype, "1")
    text = ",".join([good] * size + [value])
    with pytest.raises(
        InvalidArgument, match=r"input 'x'|JSON Parse error|'instances' list|Unknown named input"
    ):
        read(f'{{"instances": [{text}]}}'.encode(), spec(dtype, None))
    with pytest.raises(
        InvalidArgument, match=r"input 'x'|JSON Parse error|Unknown named input|Missing named input"
    ):
        read(f'{{"inputs": {{"x": [{text}]}}}}'.encode(), spec(dtype, None))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[]",
        b"null",
        b"12",
        b'"x"',
        b"{}",
        b"\xff\xfe",
        b'{"instances": "\xff"}',
        '{"instances": [[1,2,3]]}'.encode("utf-16"),
        b'{"instances": [[1,2,3]]} trailing',
        b'{"instances": [[1,2,3]], "inputs": [[1,2,3]]}',
        b'{"instances": []}',
        b'{"instances": {}}',
        b'{"instances": 5}',
        b'{"instances": null}',
        b'{"instances": [[1,2,3],{"x": [1,2,3]}]}',
        b'{"instances": [{"x": [1,2,3]}, [1,2,3]]}',
        b'{"instances": [{"x": [1,2,3], "z": 1}]}',
        b'{"instances": [{"z": [1,2,3]}]}',
        b'{"instances": [{}]}',
        b'{"instances": [[1,2,3],[1,2]]}',
        b'{"instances": [[1,2,[3]]]}',
        b'{"instances": [[[1,2,3]]]}',
        b'{"instances": [1,2,3]}',
        b'{"instances": [[1,2,3,4]]}',
        b'{"instances": [[]]}',
        b'{"inputs": {"z": 1}}',
        b'{"inputs": {"x": [[1,2,3]], "z": 1}}',
        b'{"inputs": {}}',
        b'{"inputs": null}',
        b'{"inputs": []}',
        b'{"signature_name": 5, "inputs": [[1,2,3]]}',
        b'{"signature_name": null, "inputs": [[1,2,3]]}',
        b'{"instances": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"instances": ' + b"[" * 100_000,
        b'{"instances": ' + b"[" * 40 + b"1" + b"]" * 40 + b"}",
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        b'{"instances": [' + b"[]," * 3000 + b"[]]}",
        b'{"instances": [' + b"[1,2,3]," * 3000 + b"[1,2]]}",
        b'{"instances": [' + b"[1,2,3]," * 3000 + b"[1,2,3],]}",
        b'{"instances": [' + b"[1,2,3]," * 3000 + b"4]}",
        b'{"instances": [' + b"[1,2,3]," * 3000 + b"[[1,2,3]]]}",
        b'{"instances": [' + b"[1,2,3] " * 3000 + b"]}",
        b'{"instances": [' + b"[1,2,3]," * 3000 + b"[1,2,-]]}",
        b'{"instances": [' + b"[1,2,3]," * 3000 + b"[1,2,3]",
        b'{"instances": [4,' + b"[1,2,3]," * 3000 + b"[1,2,3]]}",
        b'{"instances": ' + b"[1,2,3]" * 3000 + b"}",
        b'{"instances": ' + b"]" * 5000 + b"}",
    ],
    ids=lambda body: body[:40].decode("latin-1") + f"…{len(body)}",
)
def test_malformed_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidArgument):
        read(body, X)


def test_a_body_holds_two_million_values() -> None:
    within = 1_999_990
    row = spec(tf.int16, None)
    got = read(b'{"inputs": [' + b"7," * within + b"7]}", row)["x"]
    assert got.shape == (within + 1,)
    for body in (
        b'{"inputs": [' + b"7," * 2_000_000 + b"7]}",
        b'{"inputs": [' + b"," * 2_500_000 + b"]}",
        b'{"inputs": [' + b"[]," * 1_500_000 + b"[]]}",
        b'{"instances": [' + b"{}," * 1_500_000 + b"{}]}",
        b"[" * 3_000_000,
    ):
        with pytest.raises(TooLarge, match=r"at most 2000000 values: send hu_bytes .* or gRPC"):
            read(body, row)


def test_what_is_ragged_asks_for_no_memory() -> None:
    with pytest.raises(InvalidArgument, match="unexpected size"):
        read(
            b'{"inputs": [[' + b"1," * 60_000 + b"1]" + b",[]" * 900_000 + b"]}",
            spec(tf.float32, None, None),
        )


def test_a_plain_list_needs_one_input() -> None:
    two = (spec(tf.float32, None, name="a"), spec(tf.float32, None, name="b"))
    for body in ({"instances": [1, 2]}, {"inputs": [1, 2]}):
        with pytest.raises(InvalidArgument, match="a, b"):
            read(body, *two)
    with pytest.raises(InvalidArgument, match="Missing named input: b"):
        read({"inputs": {"a": [1]}}, *two)


def test_answers_in_rows_and_columns() -> None:
    y, z = np.array([[0.2, 1], [1e20, -3]], np.float32), np.array([1, 2], np.int64)
    assert json.loads(encode.predict_response({"y": y}, rows=True)) == {
        "predictions": [[0.2, 1.0], [1e20, -3.0]]
    }
    assert json.loads(encode.predict_response({"y": y}, rows=False)) == {
        "outputs": [[0.2, 1.0], [1e20, -3.0]]
    }
    assert json.loads(encode.predict_response({"y": y, "z": z}, rows=True)) == {
        "predictions": [{"y": [0.2, 1.0], "z": 1}, {"y": [1e20, -3.0], "z": 2}]
    }
    assert json.loads(encode.predict_response({"y": y, "z": z}, rows=False)) == {
        "outputs": {"y": [[0.2, 1.0], [1e20, -3.0]], "z": [1, 2]}
    }
    assert b"1.0" in encode.predict_response({"y": y}, rows=True)
    with pytest.raises(InvalidArgument, match="inconsistent"):
        encode.predict_response({"y": y, "z": z[:1]}, rows=True)
    with pytest.raises(InvalidArgument, match="no shape"):
        encode.predict_response({"y": y.sum()}, rows=True)
    assert json.loads(encode.predict_response({"y": np.float32(2.5)}, rows=False)) == {
        "outputs": 2.5
    }
    empty = np.zeros((2, 0, 3), np.float32)
    assert json.loads(encode.predict_response({"y": empty}, rows=True)) == {"predictions": [[], []]}
    assert json.loads(encode.predict_response({"y": empty[:0]}, rows=False)) == {"outputs": []}


def test_odd_values_are_written_as_tf_serving_does() -> None:
    body = encode.predict_response(
        {"y": np.array([np.nan, np.inf, -np.inf, 1.0], np.float32)}, rows=True
    )
    assert body.split() == b'{ "predictions": [NaN, Infinity, -Infinity, 1.0] }'.split()
    assert b"[true, false]" in encode.predict_response({"y": np.array([True, False])}, rows=False)
    raw = np.array([b"\0\xff", b"ok"], object)
    assert json.loads(encode.predict_response({"a_bytes": raw}, rows=True)) == {
        "predictions": [{"b64": "AP8="}, {"b64": "b2s="}]
    }
    with pytest.raises(Failed, match="output 'a'"):
        encode.predict_response({"a": raw}, rows=True)
    assert json.loads(encode.predict_response({"a": raw[1:]}, rows=True)) == {"predictions": ["ok"]}


@pytest.mark.parametrize(
    "dtype",
    [
        tf.float16,
        tf.bfloat16,
        tf.float32,
        tf.float64,
        tf.int8,
        tf.int16,
        tf.uint16,
        tf.int64,
        tf.uint64,
        tf.bool,
    ],
)
@pytest.mark.parametrize("boxed", [True, False])
def test_messages_round_trip(dtype: Any, boxed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_proto, "MOST_BOXED", 1000 if boxed else 0)
    array = np.arange(12).reshape(3, 4).astype(dtype.as_numpy_dtype)
    one = TensorSpec("x", dtype, (None, 4))
    message = tensor_proto.to_proto(array, one)
    np.testing.assert_array_equal(tf.make_ndarray(message), array)
    np.testing.assert_array_equal(tensor_proto.to_array(message, one, 1 << 20), array)
    np.testing.assert_array_equal(
        tensor_proto.to_array(tf.make_tensor_proto(array), one, 1 << 20), array
    )
    assert bool(message.tensor_content) != boxed


def test_strings_round_trip_in_messages() -> None:
    array = np.array([[b"a", b"\0\xff"]], object)
    one = TensorSpec("x", tf.string, (None, 2))
    message = tensor_proto.to_proto(array, one)
    assert message.string_val == [b"a", b"\0\xff"]
    np.testing.assert_array_equal(tensor_proto.to_array(message, one, 1 << 20), array)


def test_as_in_tensorflow_the_last_value_stands_for_all_that_are_missing() -> None:
    message = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT, float_val=[1, 2])
    message.tensor_shape.dim.add(size=4)
    np.testing.assert_array_equal(
        tensor_proto.to_array(message, spec(tf.float32, None), 1 << 20), tf.make_ndarray(message)
    )


def lie(dtype: int = types_pb2.DT_FLOAT, shape: tuple[int, ...] = (2,), **values: Any) -> Any:
    message = tensor_pb2.TensorProto(dtype=dtype, **values)
    for size in shape:
        message.tensor_shape.dim.add(size=size)
    return message


def unknown_rank() -> Any:
    message = lie(shape=(), float_val=[1])
    message.tensor_shape.unknown_rank = True
    return message


@pytest.mark.parametrize(
    "message",
    [
        lie(shape=(-1,), float_val=[1]),
        lie(shape=(-(2**63),)),
        lie(shape=(2**62, 4), tensor_content=b"1234"),
        lie(shape=(2**32, 2**32)),
        lie(shape=(2**40,), float_val=[1]),
        lie(shape=(2**25,), float_val=[1]),
        lie(shape=(2**18 + 1,), float_val=[1]),
        lie(shape=(2,) * 33),
        lie(shape=(0, 2**62)),
        lie(tensor_content=b"1234567"),
        lie(tensor_content=b"123456789"),
        lie(float_val=[1, 2, 3]),
        lie(dtype=types_pb2.DT_DOUBLE, double_val=[1, 2]),
        lie(dtype=types_pb2.DT_INT32, int_val=[1, 2]),
        lie(dtype=types_pb2.DT_STRING, string_val=[b"a", b"b"]),
        lie(dtype=types_pb2.DT_VARIANT),
        lie(dtype=types_pb2.DT_RESOURCE),
        lie(dtype=0),
        lie(dtype=9999),
        unknown_rank(),
    ],
    ids=str,
)
def test_messages_that_lie_are_refused(message: Any) -> None:
    with pytest.raises(InvalidArgument, match="input 'x'"):
        tensor_proto.to_array(message, spec(tf.float32, None), 2**30)


def test_values_out_of_range_in_a_message() -> None:
    for value in (40_000, -40_000):
        message = lie(dtype=types_pb2.DT_INT16, shape=(1,), int_val=[value])
        with pytest.raises(InvalidArgument, match="out of the range of int16"):
            tensor_proto.to_array(message, spec(tf.int16, None), 2**20)
    with pytest.raises(InvalidArgument, match="a bool is 0 or 1"):
        tensor_proto.to_array(
            lie(dtype=types_pb2.DT_BOOL, tensor_content=b"\1\2"), spec(tf.bool, None), 2**20
        )
    with pytest.raises(InvalidArgument, match="strings come in string_val"):
        tensor_proto.to_array(
            lie(dtype=types_pb2.DT_STRING, tensor_content=b"\1\2"), spec(tf.string, None), 2**20
        )


def test_a_large_scan_is_not_copied() -> None:
    volume = np.zeros((4, 64, 64), np.int16)
    message = tf.make_tensor_proto(volume)
    got = tensor_proto.to_array(message, HU, 2**30)
    assert not got.flags.owndata
    assert not got.flags.writeable


def test_half_floats_of_rest() -> None:
    got = read({"inputs": [1.5, 65504]}, spec(tf.bfloat16, None))["x"]
    assert got.dtype == tf.bfloat16.as_numpy_dtype
    assert math.isclose(float(got[0]), 1.5)
