"""TF Serving's gRPC API: `PredictionService` and `ModelService`, with its own stubs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from tensorflow_serving.apis import (
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tf_covid.errors import ServingError
from tf_covid.serving import parts as shared
from tf_covid.serving import protos
from tf_covid.serving.engine import too_slow
from tf_covid.serving.faults import Failed, Fault, Gone, Invalid
from tf_covid.serving.guard import is_token
from tf_covid.serving.metrics import UNKNOWN
from tf_covid.serving.parts import Parts

_LOG = logging.getLogger("tf_covid.serving")

#: Calls beyond those that wait or are computed, so that one too many hears so at once.
_SPARE = 8


def start(parts: Parts, address: str) -> tuple[Any, int]:
    """Start the gRPC server; gives it and its port.

    Args:
        parts: Of the server.
        address: IP address to listen at.

    Raises:
        ServingError: If the port is taken.
    """
    settings = parts.settings
    most = min(settings.most_bytes, 2**31 - 1)
    options = [
        ("grpc.max_receive_message_length", most),
        ("grpc.max_send_message_length", most),
        ("grpc.so_reuseport", 0),  # two servers on one port would share its clients
    ]
    threads = settings.queue + settings.workers * settings.batch + _SPARE
    server = grpc.server(
        ThreadPoolExecutor(threads, "tfcovid-grpc"),
        interceptors=[] if settings.token is None else [_Doorman(settings.token)],
        options=options,
        maximum_concurrent_rpcs=threads,
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Prediction(parts), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Models(parts), server)
    host = f"[{address}]" if ":" in address else address
    try:
        port = server.add_insecure_port(f"{host}:{settings.grpc_port}")
    except RuntimeError as error:
        raise ServingError(f"{host}:{settings.grpc_port}: gRPC cannot listen there; is it in use?") from error
    server.start()
    return server, port


class _Doorman(grpc.ServerInterceptor):
    """Asks for the token."""

    def __init__(self, token: str) -> None:
        self._token = token

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        given = dict(handler_call_details.invocation_metadata).get("authorization", b"")
        header = given.encode("utf-8", "replace") if isinstance(given, str) else given
        if is_token(header, self._token):
            return continuation(handler_call_details)

        def refuse(request: Any, context: Any) -> None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "a token is needed: metadata authorization: Bearer …")

        return grpc.unary_unary_rpc_method_handler(refuse)


@dataclass
class _Labels:
    model: str = UNKNOWN
    signature: str = UNKNOWN


class _Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def Predict(self, request: Any, context: Any) -> Any:
        """Answer a `PredictRequest`."""
        asked = time.monotonic()
        labels = _Labels()
        code = "INTERNAL"
        try:
            response = _guarded(lambda: self._predict(request, context, labels))
            code = "OK" if not isinstance(response, Fault) else response.grpc
        finally:
            self._parts.metrics.count(labels.model, labels.signature, "grpc", code, time.monotonic() - asked)
        return _sent(response, context)

    def _predict(self, request: Any, context: Any, labels: _Labels) -> Any:
        parts = self._parts
        parts.check_open()
        # A client without a deadline has all the time in the world, which gRPC tells as None or as a huge number.
        theirs = context.time_remaining()
        limit = min(parts.settings.time_limit_s, parts.settings.time_limit_s if theirs is None else theirs)
        deadline = time.monotonic() + limit
        with parts.repository.lease(*_asked(request.model_spec)) as version:
            labels.model = version.name
            entry = version.entry(request.model_spec.signature_name)
            labels.signature = entry.name
            wanted = _wanted(request.output_filter, entry.outputs)
            inputs = protos.to_arrays(request.inputs, entry.inputs, parts.settings.most_bytes)
            entry.check(inputs)
            if limit <= 0:
                raise too_slow()
            work = parts.engine.submit(version, entry, inputs, deadline)
            if not context.add_callback(lambda: parts.engine.drop(work)):
                parts.engine.drop(work)
                raise Gone("the client has gone")
            outputs = parts.engine.wait(work)
            response = predict_pb2.PredictResponse()
            response.model_spec.name = version.name
            response.model_spec.version.value = version.number
            response.model_spec.signature_name = entry.name
            for name in wanted:
                response.outputs[name].CopyFrom(protos.to_proto(outputs[name], entry.outputs[name]))
            return response

    def GetModelMetadata(self, request: Any, context: Any) -> Any:
        """Answer a `GetModelMetadataRequest`."""

        def tell() -> Any:
            if not request.metadata_field:
                raise Invalid("GetModelMetadataRequest must specify at least one metadata_field")
            for field in request.metadata_field:
                if field != "signature_def":
                    raise Invalid(f"Metadata field {field[:100]} is not supported")
            with self._parts.repository.lease(*_asked(request.model_spec)) as version:
                return shared.metadata(version)

        return _sent(_guarded(tell), context)

    def Classify(self, request: Any, context: Any) -> NoReturn:
        """Not served: it takes `tf.Example`, which holds no volumes."""
        _not_served(context)

    Regress = Classify
    MultiInference = Classify


class _Models(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def GetModelStatus(self, request: Any, context: Any) -> Any:
        """Answer a `GetModelStatusRequest`."""
        return _sent(_guarded(lambda: self._parts.status(*_asked(request.model_spec))), context)

    def HandleReloadConfigRequest(self, request: Any, context: Any) -> NoReturn:
        """Not served: the folder of models is all the configuration."""
        _not_served(context)


def _guarded(call: Callable[[], Any]) -> Any:
    """A call's answer, or the fault that it raised."""
    try:
        return call()
    except Fault as fault:
        return fault
    except Exception as error:  # the outermost layer: gRPC would log a traceback, and send the text of any error
        _LOG.error("a call failed: %s", type(error).__name__)
        return Failed("internal error")


def _sent(answer: Any, context: Any) -> Any:
    if isinstance(answer, Fault):
        context.abort(grpc.StatusCode[answer.grpc], str(answer))
    return answer


def _not_served(context: Any) -> NoReturn:
    context.abort(grpc.StatusCode.UNIMPLEMENTED, "not served here; use Predict")
    raise AssertionError("abort raises")


def _asked(spec: Any) -> tuple[str, int | None]:
    """Name and version of a `ModelSpec`."""
    if not spec.name:
        raise Invalid("Missing ModelSpec.name in request")
    if spec.WhichOneof("version_choice") == "version_label":
        raise Invalid(f"Unrecognized servable version label: {spec.version_label[:100]}")
    return spec.name, spec.version.value if spec.HasField("version") else None


def _wanted(names: Any, outputs: Any) -> list[str]:
    """The outputs that are to be sent: those of the filter, or all."""
    for name in names:
        if name not in outputs:
            raise Invalid(f"output tensor alias not found in signature: {name[:100]}")
    if len(set(names)) != len(names):
        raise Invalid("duplicate output tensor alias in output_filter")
    return list(names) or list(outputs)
