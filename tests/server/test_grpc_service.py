"""TF Serving's gRPC API, asked with its own stubs as any client of TF Serving would."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

Code = grpc.StatusCode


def request(
    model: str, signature: str = "", version: int | None = None, **inputs: Any
) -> predict_pb2.PredictRequest:
    message = predict_pb2.PredictRequest()
    message.model_spec.name = model
    message.model_spec.signature_name = signature
    if version is not None:
        message.model_spec.version.value = version
    for name, value in inputs.items():
        message.inputs[name].CopyFrom(
            value if hasattr(value, "tensor_shape") else tf.make_tensor_proto(value)
        )
    return message


def refused(call: Any, message: Any, **options: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(message, **{"timeout": 60, **options})
    return caught.value.code(), caught.value.details()


ONE = np.array([[1, 2, 3]], np.float32)


def test_the_client_of_every_tutorial(running: Any) -> None:
    """Word for word what the documentation of TF Serving does."""
    message = predict_pb2.PredictRequest()
    message.model_spec.name = "linear"
    message.model_spec.signature_name = "serving_default"
    message.inputs["x"].CopyFrom(tf.make_tensor_proto([[1.0, 2.0, 3.0]], shape=[1, 3]))
    response = running.predict.Predict(message, 60.0)
    assert list(response.outputs["y"].float_val) == [2, 4, 6]
    np.testing.assert_array_equal(tf.make_ndarray(response.outputs["y"]), 2 * ONE)
    assert response.model_spec.name == "linear"
    assert response.model_spec.version.value == 7
    assert response.model_spec.signature_name == "serving_default"


def test_a_large_scan(running: Any) -> None:
    volume = np.random.default_rng(0).integers(-1024, 2000, (60, 256, 256)).astype(np.int16)
    response = running.predict.Predict(request("types", hu=volume), 60.0)
    np.testing.assert_array_equal(
        tf.make_ndarray(response.outputs["total"]), volume.sum((1, 2), np.int64)
    )


def test_strings(running: Any) -> None:
    response = running.predict.Predict(request("types", "strings", data=[b"\0\xff", b"abc"]), 60.0)
    assert list(response.outputs["same"].string_val) == [b"\0\xff", b"abc"]
    assert list(response.outputs["length"].int_val) == [2, 3]


def test_output_filter_and_version(running: Any) -> None:
    message = request("linear", version=7, x=ONE)
    message.output_filter.append("y")
    assert list(running.predict.Predict(message, 60.0).outputs) == ["y"]
    message.output_filter.append("y")
    assert refused(running.predict.Predict, message)[0] == Code.INVALID_ARGUMENT
    del message.output_filter[:]
    message.output_filter.append("z")
    code, text = refused(running.predict.Predict, message)
    assert code == Code.INVALID_ARGUMENT
    assert "z" in text


@pytest.mark.parametrize(
    ("message", "code", "says"),
    [
        (
            request("nobody", x=ONE),
            Code.NOT_FOUND,
            "Servable not found for request: Latest(nobody)",
        ),
        (request("linear", version=8, x=ONE), Code.NOT_FOUND, "Specific(linear, 8)"),
        (request("", x=ONE), Code.INVALID_ARGUMENT, "Missing ModelSpec.name"),
        (
            request("linear", "none", x=ONE),
            Code.FAILED_PRECONDITION,
            'Serving signature key "none" not found.',
        ),
        (request("linear"), Code.INVALID_ARGUMENT, "Missing but required: {x}"),
        (request("linear", x=ONE, z=ONE), Code.INVALID_ARGUMENT, "Sent extra: {z}"),
        (request("linear", z=ONE), Code.INVALID_ARGUMENT, "Missing but required: {x}"),
        (request("linear", x=ONE.astype(np.float64)), Code.INVALID_ARGUMENT, "float64"),
        (request("linear", x=ONE[0]), Code.INVALID_ARGUMENT, "has shape [3]"),
        (request("linear", x=ONE[:, :2]), Code.INVALID_ARGUMENT, "the signature wants [?,3]"),
        (request("net-clip", clip=ONE * np.nan), Code.INVALID_ARGUMENT, "NaN"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_codes(running: Any, message: Any, code: Any, says: str) -> None:
    got, text = refused(running.predict.Predict, message)
    assert got == code
    assert says in text


def hostile() -> list[Any]:
    def tensor(*shape: int, dtype: int = types_pb2.DT_FLOAT, **values: Any) -> Any:
        message = predict_pb2.PredictRequest().inputs["x"]
        message.dtype = dtype
        for name, value in values.items():
            if isinstance(value, bytes):
                setattr(message, name, value)
            else:
                getattr(message, name).extend(value)
        for size in shape:
            message.tensor_shape.dim.add(size=size)
        return message

    return [
        tensor(-1, 3, float_val=[1.0]),
        tensor(2**62, 3, tensor_content=b"0123"),
        tensor(2**30, 3, float_val=[1.0]),
        tensor(1, 3, tensor_content=b"0" * 13),
        tensor(1, 3, float_val=[1.0] * 100_000),
        tensor(*[1] * 300, float_val=[1.0]),
        tensor(1, 3, dtype=types_pb2.DT_VARIANT),
        tensor(1, 3, dtype=types_pb2.DT_RESOURCE),
        tensor(1, 3, dtype=1234),
    ]


@pytest.mark.parametrize("number", range(len(hostile())))
def test_messages_that_lie(running: Any, number: int) -> None:
    code, text = refused(running.predict.Predict, request("linear", x=hostile()[number]))
    assert code == Code.INVALID_ARGUMENT
    assert "'x'" in text
    assert (
        running.predict.Predict(request("linear", x=ONE), 60.0).outputs["version"].int_val[0] == 2
    )


def test_bytes_that_are_no_message(running: Any) -> None:
    call = running.channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    for garbage in (b"\xff" * 50, b"\x0a\xff\xff\xff\xff\x0f"):
        with pytest.raises(grpc.RpcError) as caught:
            call(garbage, timeout=60)
        assert caught.value.code() in (Code.INTERNAL, Code.INVALID_ARGUMENT)


def test_version_labels_are_not_known(running: Any) -> None:
    message = request("linear", x=ONE)
    message.model_spec.version_label = "stable"
    assert refused(running.predict.Predict, message) == (
        Code.INVALID_ARGUMENT,
        "Unrecognized servable version label: stable",
    )


def test_metadata(running: Any) -> None:
    message = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    message.model_spec.name = "linear"
    response = running.predict.GetModelMetadata(message, 60.0)
    assert response.model_spec.version.value == 7
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    inputs = signatures.signature_def["serving_default"].inputs
    assert inputs["x"].dtype == types_pb2.DT_FLOAT
    assert inputs["x"].tensor_shape.dim[1].size == 3
    message.metadata_field[:] = ["weights"]
    assert refused(running.predict.GetModelMetadata, message)[0] == Code.INVALID_ARGUMENT
    del message.metadata_field[:]
    assert refused(running.predict.GetModelMetadata, message)[0] == Code.INVALID_ARGUMENT


def test_status(running: Any) -> None:
    message = get_model_status_pb2.GetModelStatusRequest()
    message.model_spec.name = "linear"
    (status,) = running.models.GetModelStatus(message, 60.0).model_version_status
    assert (status.version, status.state, status.status.error_code) == (7, status.AVAILABLE, 0)
    message.model_spec.version.value = 8
    assert refused(running.models.GetModelStatus, message)[0] == Code.NOT_FOUND
    message.model_spec.name = "nobody"
    assert refused(running.models.GetModelStatus, message)[0] == Code.NOT_FOUND


def test_status_of_a_broken_version(start: Any, store: Any, until: Any) -> None:
    store.put("linear-1", "m", 1)
    server = start()
    folder = store.put("reads", "m", 2)
    message = get_model_status_pb2.GetModelStatusRequest()
    message.model_spec.name = "m"

    def states() -> dict[int, Any]:
        return {
            row.version: row
            for row in server.models.GetModelStatus(message, 60.0).model_version_status
        }

    until(lambda: 2 in states() and states()[2].state == states()[2].END)
    row = states()[2]
    assert row.status.error_code != 0
    assert "ReadFile" in row.status.error_message
    assert str(folder) not in row.status.error_message
    assert states()[1].state == row.AVAILABLE
    assert server.predict.Predict(request("m", x=ONE), 60.0).model_spec.version.value == 1


def test_what_is_not_served(running: Any) -> None:
    assert (
        refused(running.predict.Classify, classification_pb2.ClassificationRequest())[0]
        == Code.UNIMPLEMENTED
    )
    assert (
        refused(running.predict.Regress, regression_pb2.RegressionRequest())[0]
        == Code.UNIMPLEMENTED
    )
    reload = model_management_pb2.ReloadConfigRequest()
    assert refused(running.models.HandleReloadConfigRequest, reload)[0] == Code.UNIMPLEMENTED


def test_metrics(running: Any) -> None:
    running.predict.Predict(request("linear", "only_y", x=ONE), 60.0)
    text = running.http.get("/metrics").text
    assert (
        'tfcovid_requests_total{code="OK",model="linear",protocol="grpc",signature="only_y"}'
        in text
    )


def test_rows_of_clients_that_come_together(running: Any) -> None:
    def ask(start: int) -> bool:
        good = True
        for value in range(start, start + 20):
            clip = np.full((1 + value % 3, 2), value, np.float32)
            response = running.predict.Predict(request("net-clip", clip=clip), 60.0)
            good &= tf.make_ndarray(response.outputs["logits"]).tolist() == [[2.0 * value]] * len(
                clip
            )
        return good

    calls = [running.in_thread(lambda start=start: ask(start)) for start in range(0, 600, 100)]
    assert all(call.result() for call in calls)
