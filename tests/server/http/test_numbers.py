"""Numbers that are none: NaN and infinity are an invalid argument however they are sent."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tf_covid.server import tensor_proto
from tf_covid.server.errors import InvalidArgument
from tf_covid.server.http import decode
from tf_covid.server.servable import SignatureRunner
from tf_covid.server.tensor_spec import TensorSpec

SIZE = 6000


def runner(dtype: Any, *shape: int | None) -> SignatureRunner:
    return SignatureRunner(
        "serving_default", {"clip": TensorSpec("clip", dtype, shape)}, {}, lambda: None
    )


def by_json(values: np.ndarray, one: SignatureRunner, key: str) -> dict[str, np.ndarray]:
    return decode.parse_predict_request(
        json.dumps({key: values.tolist()}).encode(), lambda name: one
    ).inputs


def by_content(values: np.ndarray, one: SignatureRunner) -> dict[str, np.ndarray]:
    return arrays(tf.make_tensor_proto(values), one)


def by_values(values: np.ndarray, one: SignatureRunner) -> dict[str, np.ndarray]:
    proto = tensor_proto.to_proto(values[:, :100], one.inputs["clip"])
    assert not proto.tensor_content
    return arrays(proto, one)


def arrays(proto: Any, one: SignatureRunner) -> dict[str, np.ndarray]:
    found = tensor_proto.to_arrays({"clip": proto}, one.inputs, 2**20)
    one.check(found)
    return found


WAYS: dict[str, Callable[[np.ndarray, SignatureRunner], dict[str, np.ndarray]]] = {
    "instances": lambda values, one: by_json(values, one, "instances"),
    "inputs": lambda values, one: by_json(values, one, "inputs"),
    "tensor_content": by_content,
    "float_val": by_values,
}


@pytest.mark.parametrize(
    "dtype", [tf.float32, tf.float64, tf.float16, tf.bfloat16], ids=lambda dtype: dtype.name
)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_clip_with_what_is_no_number_is_an_invalid_argument(
    way: str, value: float, dtype: Any
) -> None:
    values = np.full((2, SIZE), 0.5, dtype.as_numpy_dtype)
    one = runner(dtype, None, None)
    WAYS[way](values, one)
    values[1, 7] = value
    with pytest.raises(InvalidArgument, match=r"'clip': 1 of .* numbers are NaN or infinite"):
        WAYS[way](values, one)


@pytest.mark.parametrize(
    "text", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "null", '"1"', "1_0", "+1", "٣"]
)
@pytest.mark.parametrize("count", [1, 3000])
def test_json_that_is_no_number(text: str, count: int) -> None:
    body = '{"instances": [[' + "0.5," * count + text + "]]}"
    with pytest.raises(InvalidArgument):
        decode.parse_predict_request(body.encode(), lambda name: runner(tf.float32, None, None))


@pytest.mark.parametrize(
    "text", ["1.0", "-1.5", "NaN", "1e2", "true", '"4"', "null", "2147483648", "1_0", "+3", "03"]
)
def test_a_depth_that_is_no_whole_number(text: str) -> None:
    with pytest.raises(InvalidArgument):
        decode.parse_predict_request(
            f'{{"inputs": [{text}]}}'.encode(), lambda name: runner(tf.int32, None)
        )


def test_a_depth_of_another_type_is_named() -> None:
    for dtype in (tf.int64, tf.float32, tf.int16, tf.uint8):
        with pytest.raises(InvalidArgument, match="the signature wants int32"):
            arrays(
                tf.make_tensor_proto(np.array([3], dtype.as_numpy_dtype)), runner(tf.int32, None)
            )


def test_bytes_are_no_numbers_until_the_graph_reads_them() -> None:
    body = json.dumps(
        {"instances": [{"b64": base64.b64encode(np.float32([np.nan]).tobytes()).decode()}]}
    )
    found = decode.parse_predict_request(body.encode(), lambda name: runner(tf.string, None)).inputs
    assert found["clip"].dtype == object
