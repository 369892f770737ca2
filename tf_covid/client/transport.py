"""How a server is asked: TF Serving's REST API, and its gRPC API."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import numpy as np
import tensorflow as tf

from tf_covid.errors import ServingError
from tf_covid.extras import optional_import
from tf_covid.tensor import Json, Message

#: Seconds that one request may take.
TIMEOUT_S = 600.0

_LARGEST = 2**31 - 1  # of a gRPC message, in bytes

Inputs = Mapping[str, np.ndarray]


class AskedServer(Protocol):
    """What can be asked like a server: one of them, or several behind one front."""

    url: str

    def predict(
        self, model: str, signature: str, inputs: Inputs, version: int | None = None
    ) -> dict[str, Any]:
        """Named outputs for named inputs; see `RestServer.predict`."""


class ServerUnavailable(ServingError):
    """The server is not there, is starting, or has no room now: worth another try."""


class ServerBusy(ServerUnavailable):
    """The server works, and has no room for another request now."""


class ServerLost(ServerUnavailable):
    """The server took the request, and went away without an answer."""


class Rejected(ServingError):
    """The server will not answer this scan, however often it is asked.

    It is too large, or not what it takes.
    """


class RestServer:
    """TF Serving's REST API.

    Args:
        url: `http://host:port` or `https://host:port`.
        token: Sent as a bearer token, if any.
        timeout_s: Longest time of one request, in seconds.
    """

    def __init__(self, url: str, token: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self._httpx = httpx = optional_import("httpx")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # trust_env: a scan must not go through a proxy that some environment variable names.
        self._client = httpx.Client(
            base_url=url, headers=headers, timeout=timeout_s, trust_env=False
        )
        self.url = url

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def predict(
        self, model: str, signature: str, inputs: Inputs, version: int | None = None
    ) -> dict[str, Any]:
        """Named outputs, as nested lists, and bytes for names that end in `_bytes`.

        Args:
            model: Name of the model that is asked.
            signature: Name of the signature that is asked.
            inputs: Arrays by name.
            version: Version number; None: the one that the server has.

        Raises:
            ServerUnavailable, Rejected: As the server says.
        """
        text = json.dumps(
            {
                "signature_name": signature,
                "inputs": {name: _as_json(inputs[name]) for name in inputs},
            }
        )
        try:
            # Encoded before it is sent: HTTP's own JSON path would hold the scan twice more.
            position = quote(model, safe="") + ("" if version is None else f"/versions/{version}")
            response = self._client.post(
                f"/v1/models/{position}:predict",
                content=text.encode(),
                headers={"Content-Type": "application/json"},
            )
        except self._httpx.HTTPError as error:
            never = (self._httpx.ConnectError, self._httpx.ConnectTimeout)
            how = ServerUnavailable if isinstance(error, never) else ServerLost
            raise how(f"{self.url} does not answer ({type(error).__name__})") from error
        try:
            values = response.json()
        except ValueError as error:
            raise ServingError(
                f"{self.url} answered {response.status_code} with what is no JSON"
            ) from error
        if response.status_code != 200:
            fact = str(values.get("error", ""))[:500] if isinstance(values, dict) else ""
            # What is wrong with the scan refuses the scan; what is wrong with the server ends the
            # run.
            kinds = {
                429: ServerBusy,
                503: ServerUnavailable,
                400: Rejected,
                413: Rejected,
                422: Rejected,
            }
            kind = kinds.get(response.status_code, ServingError)
            raise kind(f"{self.url} answered {response.status_code}: {fact}")
        outputs = values.get("outputs") if isinstance(values, dict) else None
        if not isinstance(outputs, dict):
            raise ServingError(f"{self.url} answered without outputs")
        return {name: _from_json(name, value) for name, value in outputs.items()}


class GrpcServer:
    """TF Serving's gRPC API.

    Args:
        address: `host:port`.
        token: Sent as a bearer token, if any.
        timeout_s: Longest time of one request, in seconds.
        secure: TLS with the system's certificates.
    """

    def __init__(
        self,
        address: str,
        token: str | None = None,
        timeout_s: float = TIMEOUT_S,
        *,
        secure: bool = False,
    ) -> None:
        self._grpc = grpc = optional_import("grpc")
        service = optional_import("tensorflow_serving.apis.prediction_service_pb2_grpc")
        self._messages = optional_import("tensorflow_serving.apis.predict_pb2")
        options = [
            ("grpc.max_send_message_length", _LARGEST),
            ("grpc.max_receive_message_length", _LARGEST),
            ("grpc.enable_http_proxy", 0),
        ]
        self._channel = (
            grpc.secure_channel(address, grpc.ssl_channel_credentials(), options)
            if secure
            else grpc.insecure_channel(address, options)
        )
        self._predict = service.PredictionServiceStub(self._channel).Predict
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._timeout_s = timeout_s
        self.url = f"grpc{'s' if secure else ''}://{address}"

    def close(self) -> None:
        """Close its connection."""
        self._channel.close()

    def predict(
        self, model: str, signature: str, inputs: Inputs, version: int | None = None
    ) -> dict[str, Any]:
        """Named outputs, as arrays; see `RestServer.predict`.

        Raises:
            ServerUnavailable, Rejected: As the server says.
        """
        request = self._messages.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = model, signature
        if version is not None:
            request.model_spec.version.value = version
        for name, values in inputs.items():
            _put(values, request.inputs[name])
        try:
            response = self._predict(request, self._timeout_s, metadata=self._metadata)
        except self._grpc.RpcError as error:
            code, codes = error.code(), self._grpc.StatusCode
            kinds = {
                codes.UNAVAILABLE: ServerUnavailable,
                codes.RESOURCE_EXHAUSTED: ServerBusy,
                codes.INVALID_ARGUMENT: Rejected,
            }
            # A scan above the server's message size is the same code as a full queue; it does not
            # get smaller.
            too_large = code is codes.RESOURCE_EXHAUSTED and "larger than max" in (
                error.details() or ""
            )
            kind = Rejected if too_large else kinds.get(code, ServingError)
            # gRPC has one code for a server that is not there and one that went away.
            if code is codes.UNAVAILABLE and "connect" not in (error.details() or "").lower():
                kind = ServerLost
            raise kind(
                f"{self.url} answered {code.name}: {(error.details() or '')[:500]}"
            ) from error
        return {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}


def connect(
    url: str, token: str | None = None, timeout_s: float = TIMEOUT_S
) -> RestServer | GrpcServer:
    """A server by its URL: `http://`, `https://` (REST), `grpc://` or `grpcs://`.

    Raises:
        ServingError: If the URL is none of these, the token cannot be sent, or the extra `[serve]`
            is not installed.
    """
    if token and not re.fullmatch(r"[!-~]{1,4096}", token):
        raise ServingError(
            "TFCOVID_TOKEN: a token has visible ASCII characters only, and no spaces"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ServingError(f"{url!r} is no address of a server ({error})") from error
    host = parts.hostname or ""
    odd = parts.username or not re.fullmatch(r"[\w.:%-]+", host, re.ASCII)
    if parts.scheme not in ("http", "https", "grpc", "grpcs") or odd:
        raise ServingError(
            f"{url!r} is no address of a server: http://HOST:8501 or grpc://HOST:8500 is"
        )
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ServingError(
            f"{url!r}: only scheme, host and port belong into the address of a server"
        )
    if parts.scheme.startswith("http"):
        return RestServer(url.rstrip("/"), token, timeout_s)
    host = f"[{host}]" if ":" in host else host
    return GrpcServer(f"{host}:{port or 8500}", token, timeout_s, secure=parts.scheme == "grpcs")


def _put(values: np.ndarray, proto: Message) -> None:
    """Write an array into a message, without the copies of `tf.make_tensor_proto`."""
    proto.dtype = tf.as_dtype(
        values.dtype if values.dtype != object else tf.string
    ).as_datatype_enum
    for size in values.shape:
        proto.tensor_shape.dim.add(size=size)
    if values.dtype == object:
        proto.string_val.extend(values.ravel().tolist())
    else:
        proto.tensor_content = values.tobytes()


def _as_json(values: np.ndarray) -> Json:
    if values.dtype == object:
        return [{"b64": base64.b64encode(text).decode("ascii")} for text in values]
    return values.tolist()


def _from_json(name: str, value: Json) -> Json:
    if not name.endswith("_bytes"):
        return value
    try:
        texts = value if isinstance(value, list) else [value]
        return [base64.b64decode(text["b64"], validate=True) for text in texts]
    except (TypeError, KeyError, ValueError) as error:
        raise ServingError(f"the server's {name} are no base64") from error
