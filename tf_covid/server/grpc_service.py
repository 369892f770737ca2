"""TF Serving's gRPC API: `PredictionService` and `ModelService`, with its own stubs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2

from tf_covid.errors import ServingError
from tf_covid.server import tensor_proto
from tf_covid.server.batcher import too_slow
from tf_covid.server.context import ServerContext, metadata
from tf_covid.server.errors import (
    ClientDisconnected,
    Failed,
    InvalidArgument,
    NoSignature,
    QueueFull,
    RequestError,
)
from tf_covid.server.http.middleware import is_token
from tf_covid.server.metrics import UNKNOWN
from tf_covid.tensor import Message

_LOG = logging.getLogger("tf_covid.server")

#: Calls beyond those that wait or are computed, so that one too many hears so at once.
_SPARE = 8

#: Milliseconds after which a connection that nobody uses is closed, and a used one is told to come
#: anew.
_IDLE_MS, _AGE_MS = 600_000, 3_600_000


def start(server: ServerContext, address: str) -> tuple[Any, int]:
    """Start the gRPC server; gives it and its port.

    Args:
        server: Settings, models, queue and counters of the server.
        address: IP address to listen at.

    Raises:
        ServingError: If the port is taken.
    """
    settings = server.settings
    limit = min(settings.max_message_bytes, 2**31 - 1)
    threads = settings.queue + settings.workers * settings.batch + _SPARE
    options = [
        ("grpc.max_concurrent_streams", threads),
        ("grpc.server_handshake_timeout_ms", int(settings.read_limit_s * 1000)),
        ("grpc.max_connection_idle_ms", _IDLE_MS),
        ("grpc.max_connection_age_ms", _AGE_MS),
        ("grpc.max_receive_message_length", limit),
        ("grpc.max_send_message_length", limit),
        ("grpc.so_reuseport", 0),  # two servers on one port would share its clients
    ]
    grpc_server = grpc.server(
        ThreadPoolExecutor(threads, "tfcovid-grpc"),
        interceptors=[] if settings.token is None else [AuthInterceptor(settings.token)],
        options=options,
        maximum_concurrent_rpcs=threads,
    )
    grpc_server.add_generic_rpc_handlers(_handlers(server))
    host = f"[{address}]" if ":" in address else address
    try:
        port = grpc_server.add_insecure_port(f"{host}:{settings.grpc_port}")
    except RuntimeError as error:
        raise ServingError(
            f"{host}:{settings.grpc_port}: gRPC cannot listen there; is it in use?"
        ) from error
    grpc_server.start()
    return grpc_server, port


class AuthInterceptor(grpc.ServerInterceptor):
    """Asks for the token."""

    def __init__(self, token: str) -> None:
        self._token = token

    def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: Message
    ) -> Message:
        """Hand a call on if it brings the token, and refuse it otherwise."""
        given = dict(handler_call_details.invocation_metadata).get("authorization", b"")
        header = given.encode("utf-8", "replace") if isinstance(given, str) else given
        if is_token(header, self._token):
            return continuation(handler_call_details)

        def refuse(requests: Message, context: grpc.ServicerContext) -> None:
            context.abort(
                grpc.StatusCode.UNAUTHENTICATED,
                "a token is needed: metadata authorization: Bearer …",
            )

        return grpc.stream_unary_rpc_method_handler(
            refuse
        )  # a unary one would wait for the message


class _Reader:
    """Reads the message of a call.

    In time, and bounded in what all calls together hold, as `body.Reader`.

    Args:
        max_bytes: Largest message, in bytes.
        limit_s: Seconds within which it must be here; later, the call is cancelled.
    """

    def __init__(self, max_bytes: int, limit_s: float) -> None:
        self._max_bytes = max_bytes
        self._limit_s = limit_s
        self._here = 0
        self._lock = threading.Lock()

    @contextmanager
    def read(
        self, kind: Message, messages: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[Any]:
        """A message, which counts as being here until the block ends.

        Raises:
            RequestError: If there is none, it is of another kind, or too many large ones are here.
        """
        timer = threading.Timer(self._limit_s, context.cancel)
        timer.daemon = True
        timer.start()
        try:
            data = next(messages, None)
        except grpc.RpcError:
            raise ClientDisconnected("the message did not arrive") from None
        finally:
            timer.cancel()
        if data is None:
            raise InvalidArgument("a call without a message")
        size = len(data)
        with self._lock:
            if self._here + size > 2 * self._max_bytes:
                raise QueueFull("too many large requests are arriving; ask again later")
            self._here += size
        try:
            request = kind.FromString(data)
            del data
            yield request
        except DecodeError:
            raise InvalidArgument(f"the message is no {kind.DESCRIPTOR.name}") from None
        finally:
            with self._lock:
                self._here -= size


def _handlers(server: ServerContext) -> tuple[Any, ...]:
    """The two services.

    Their calls are served as streams of one message, which looks the same to clients: a handler for
    one message would wait for it without an end.
    """
    reader = _Reader(server.settings.max_message_bytes, server.settings.read_limit_s)
    prediction, models = _Prediction(server, reader), _Models(server, reader)

    def handlers(**calls: Callable[..., Any]) -> dict[str, Any]:
        return {
            name: grpc.stream_unary_rpc_method_handler(
                call, response_serializer=lambda message: message.SerializeToString()
            )
            for name, call in calls.items()
        }

    return (
        grpc.method_handlers_generic_handler(
            "tensorflow.serving.PredictionService",
            handlers(
                Predict=prediction.predict,
                GetModelMetadata=prediction.metadata,
                Classify=_not_served,  # they take `tf.Example`, which holds no volumes
                Regress=_not_served,
                MultiInference=_not_served,
            ),
        ),
        grpc.method_handlers_generic_handler(
            "tensorflow.serving.ModelService",
            # The folder of models is all the configuration.
            handlers(GetModelStatus=models.status, HandleReloadConfigRequest=_not_served),
        ),
    )


@dataclass
class _Labels:
    model: str = UNKNOWN
    signature: str = UNKNOWN


class _Prediction:
    def __init__(self, server: ServerContext, reader: _Reader) -> None:
        self._server_context = server
        self._reader = reader

    def predict(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Message:
        """Answer a `PredictRequest`."""
        asked = time.monotonic()
        labels = _Labels()
        code = "INTERNAL"
        try:
            response = _guarded(lambda: self._read_and_predict(messages, context, labels))
            code = "OK" if not isinstance(response, RequestError) else response.grpc
        finally:
            self._server_context.metrics.count(
                labels.model, labels.signature, "grpc", code, time.monotonic() - asked
            )
        return _sent(response, context)

    def _read_and_predict(
        self, messages: Iterator[bytes], context: grpc.ServicerContext, labels: _Labels
    ) -> Message:
        with self._reader.read(predict_pb2.PredictRequest, messages, context) as request:
            return self._predict(request, context, labels)

    def _predict(self, request: Message, context: grpc.ServicerContext, labels: _Labels) -> Message:
        server = self._server_context
        server.check_open()
        # A client without a deadline has all the time in the world, which gRPC tells as None or as
        # a huge number.
        theirs = context.time_remaining()
        limit = min(
            server.settings.time_limit_s, server.settings.time_limit_s if theirs is None else theirs
        )
        deadline = time.monotonic() + limit
        with server.repository.lease(*_asked(request.model_spec)) as version:
            labels.model = version.name
            name = request.model_spec.signature_name
            if name and name not in version.signatures:
                raise NoSignature(f'Serving signature key "{name[:200]}" not found.')
            runner = version.runner(name)
            labels.signature = runner.name
            expected = _requested_outputs(request.output_filter, runner.outputs)
            inputs = tensor_proto.to_arrays(
                request.inputs, runner.inputs, server.settings.max_message_bytes
            )
            runner.check(inputs)
            if limit <= 0:
                raise too_slow()
            pending = server.batcher.submit(version, runner, inputs, deadline)
            if not context.add_callback(lambda: server.batcher.drop(pending)):
                server.batcher.drop(pending)
                raise ClientDisconnected("the client has gone")
            outputs = server.batcher.wait(pending)
            response = predict_pb2.PredictResponse()
            response.model_spec.name = version.name
            response.model_spec.version.value = version.number
            response.model_spec.signature_name = runner.name
            for name in expected:
                response.outputs[name].CopyFrom(
                    tensor_proto.to_proto(outputs[name], runner.outputs[name])
                )
            return response

    def metadata(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Message:
        """Answer a `GetModelMetadataRequest`."""

        def tell() -> Message:
            with self._reader.read(
                get_model_metadata_pb2.GetModelMetadataRequest, messages, context
            ) as request:
                if not request.metadata_field:
                    raise InvalidArgument(
                        "GetModelMetadataRequest must specify at least one metadata_field"
                    )
                for field in request.metadata_field:
                    if field != "signature_def":
                        raise InvalidArgument(f"Metadata field {field[:100]} is not supported")
                with self._server_context.repository.lease(*_asked(request.model_spec)) as version:
                    return metadata(version)

        return _sent(_guarded(tell), context)


class _Models:
    def __init__(self, server: ServerContext, reader: _Reader) -> None:
        self._server_context = server
        self._reader = reader

    def status(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Message:
        """Answer a `GetModelStatusRequest`."""

        def tell() -> Message:
            with self._reader.read(
                get_model_status_pb2.GetModelStatusRequest, messages, context
            ) as request:
                return self._server_context.status(*_asked(request.model_spec))

        return _sent(_guarded(tell), context)


def _guarded(call: Callable[[], Any]) -> Message:
    """A call's answer, or the fault that it raised."""
    try:
        return call()
    except RequestError as error:
        return error
    except (
        Exception
    ) as error:  # the outermost layer: gRPC would log a traceback, and send the text of any error
        _LOG.error("a call failed: %s", type(error).__name__)
        return Failed("internal error")


def _sent(answer: Message, context: grpc.ServicerContext) -> Message:
    if isinstance(answer, RequestError):
        context.abort(grpc.StatusCode[answer.grpc], str(answer))
    return answer


def _not_served(messages: Iterator[bytes], context: grpc.ServicerContext) -> NoReturn:
    context.abort(grpc.StatusCode.UNIMPLEMENTED, "not served here; use Predict")
    raise AssertionError("abort raises")


def _asked(spec: Message) -> tuple[str, int | None]:
    """Name and version of a `ModelSpec`."""
    if not spec.name:
        raise InvalidArgument("Missing ModelSpec.name in request")
    if spec.WhichOneof("version_choice") == "version_label":
        raise InvalidArgument(f"Unrecognized servable version label: {spec.version_label[:100]}")
    return spec.name, spec.version.value if spec.HasField("version") else None


def _requested_outputs(names: Message, outputs: Message) -> list[str]:
    """The outputs that are to be sent: those of the filter, or all."""
    for name in names:
        if name not in outputs:
            raise InvalidArgument(f"output tensor alias not found in signature: {name[:100]}")
    if len(set(names)) != len(names):
        raise InvalidArgument("duplicate output tensor alias in output_filter")
    return list(names) or list(outputs)
