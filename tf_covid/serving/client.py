"""Answers from a server, ours or TF Serving, by REST or gRPC: what `tfcovid infer --server` hands to the pipeline."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import tensorflow as tf
from pydantic import ValidationError

from tf_covid import attention
from tf_covid.attention import Axis
from tf_covid.errors import ModelError, ScanRefused, ServingError
from tf_covid.local import Answer, Segmentation, finite_probabilities, mean_map, mean_share
from tf_covid.result import Finding
from tf_covid.serving.needs import need
from tf_covid.serving.signatures import METHOD, TARGET
from tf_covid.weights import Contract

#: Seconds that one request may take, and how often a busy or restarting server is asked again.
TIMEOUT_S, TRIES = 600.0, 6

_LARGEST = 2**31 - 1  # of a gRPC message, in bytes

Inputs = Mapping[str, np.ndarray]


class Unavailable(ServingError):
    """The server is not there, is starting, or has no room now: worth another try."""


class Rejected(ServingError):
    """The server will not answer this request, however often it is asked."""


class RestServer:
    """TF Serving's REST API.

    Args:
        url: `http://host:port` or `https://host:port`.
        token: Sent as a bearer token, if any.
        timeout_s: Of one request.
    """

    def __init__(self, url: str, token: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        httpx = need("httpx")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._errors = httpx.HTTPError
        # trust_env: a scan must not go through a proxy that some environment variable names.
        self._client = httpx.Client(base_url=url, headers=headers, timeout=timeout_s, trust_env=False)
        self.url = url

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def predict(self, model: str, signature: str, inputs: Inputs) -> dict[str, Any]:
        """Named outputs, as nested lists, and bytes for names that end in `_bytes`.

        Raises:
            Unavailable, Rejected: As the server says.
        """
        text = json.dumps({"signature_name": signature, "inputs": {name: _as_json(inputs[name]) for name in inputs}})
        try:
            # Encoded before it is sent: HTTP's own JSON path would hold the scan twice more.
            response = self._client.post(
                f"/v1/models/{model}:predict", content=text.encode(), headers={"Content-Type": "application/json"}
            )
        except self._errors as error:
            raise Unavailable(f"{self.url} does not answer ({type(error).__name__})") from error
        try:
            values = response.json()
        except ValueError as error:
            raise ServingError(f"{self.url} answered {response.status_code} with what is no JSON") from error
        if response.status_code != 200:
            fact = str(values.get("error", ""))[:500] if isinstance(values, dict) else ""
            kind = Unavailable if response.status_code in (429, 503) else Rejected
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
        timeout_s: Of one request.
        secure: TLS with the system's certificates.
    """

    def __init__(
        self, address: str, token: str | None = None, timeout_s: float = TIMEOUT_S, *, secure: bool = False
    ) -> None:
        self._grpc = grpc = need("grpc")
        service = need("tensorflow_serving.apis.prediction_service_pb2_grpc")
        self._messages = need("tensorflow_serving.apis.predict_pb2")
        options = [("grpc.max_send_message_length", _LARGEST), ("grpc.max_receive_message_length", _LARGEST),
                   ("grpc.enable_http_proxy", 0)]  # fmt: skip
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

    def predict(self, model: str, signature: str, inputs: Inputs) -> dict[str, Any]:
        """Named outputs, as arrays.

        Raises:
            Unavailable, Rejected: As the server says.
        """
        request = self._messages.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = model, signature
        for name, values in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
        try:
            response = self._predict(request, self._timeout_s, metadata=self._metadata)
        except self._grpc.RpcError as error:
            code = error.code()
            busy = code in (self._grpc.StatusCode.UNAVAILABLE, self._grpc.StatusCode.RESOURCE_EXHAUSTED)
            # A scan above the server's message size is the same code as a full queue; it does not get smaller.
            busy = busy and "larger than max" not in (error.details() or "")
            kind = Unavailable if busy else Rejected
            raise kind(f"{self.url} answered {code.name}: {(error.details() or '')[:500]}") from error
        return {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}


def connect(url: str, token: str | None = None, timeout_s: float = TIMEOUT_S) -> RestServer | GrpcServer:
    """A server by its URL: `http://`, `https://` (REST), `grpc://` or `grpcs://`.

    Raises:
        ServingError: If the URL is none of these, or the extra `[serve]` is not installed.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ServingError(f"{url!r} is no address of a server ({error})") from error
    if parts.scheme not in ("http", "https", "grpc", "grpcs") or not parts.hostname or parts.username:
        raise ServingError(f"{url!r} is no address of a server: http://HOST:8501 or grpc://HOST:8500 is")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ServingError(f"{url!r}: only scheme, host and port belong into the address of a server")
    if parts.scheme.startswith("http"):
        return RestServer(url.rstrip("/"), token, timeout_s)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return GrpcServer(f"{host}:{port or 8500}", token, timeout_s, secure=parts.scheme == "grpcs")


@dataclass(frozen=True)
class RemoteModel:
    """A model that a server has, as its card says."""

    name: str
    sha256: str
    contract: Contract
    clip: tuple[int, int, int]
    endpoint: str
    lungs_sha256: str
    finds_disease: bool
    version: str


class RemoteModels:
    """One or more models of one task that a server has; the counterpart of `local.LocalModels`.

    Args:
        server: From `connect`.
        names: Names of the models on the server.
        say: Told when the server has to be asked again.

    Raises:
        ServingError: If the server or one of the models cannot be reached, or is none of ours.
        ModelError: If the models do not go together.
    """

    def __init__(
        self, server: RestServer | GrpcServer, names: Sequence[str], say: Callable[[str], None] = lambda text: None
    ) -> None:
        self._server, self._say = server, say
        #: The scan that was sent last, and what came back for it.
        self._last: tuple[np.ndarray, list[dict[str, Any]]] | None = None
        # A scan of air: every answer brings the model's card.
        air = np.full((1, 8, 8), -1000, np.int16)
        self.models = [self._described(name, self._ask(name, air)) for name in names]
        tasks = {model.contract.task for model in self.models}
        if len(tasks) != 1 or not tasks <= {"severity", "covid"}:
            raise ModelError(f"models of one task, severity or covid, are needed, not {', '.join(sorted(tasks))}")
        if len({(model.lungs_sha256, model.contract.preprocessing.slice_minimum) for model in self.models}) > 1:
            raise ModelError("models with different lung models or slice rules do not answer together")
        self._sources = list(names)

    @property
    def task(self) -> str:
        """severity or covid."""
        return self.models[0].contract.task

    @property
    def finds_disease(self) -> bool:
        """Whether the lung model has a second output."""
        return self.models[0].finds_disease

    @property
    def slice_minimum(self) -> float:
        """The least share of a slice that must be lung."""
        return self.models[0].contract.preprocessing.slice_minimum

    @property
    def endpoint(self) -> str:
        """The explained layers."""
        return " + ".join(dict.fromkeys(model.endpoint for model in self.models))

    @property
    def versions(self) -> dict[str, str]:
        """Of the server's side."""
        return {"server": "; ".join(dict.fromkeys(model.version for model in self.models))}

    @property
    def marks(self) -> list[str]:
        """sha256 of all weights that have a say, as a local run counts them."""
        return [*(model.sha256 for model in self.models), self.models[0].lungs_sha256]

    def segment(self, hu: np.ndarray) -> Segmentation:
        """Lung and diseased lung of one scan, int16 (D, H, W); the first model's answer comes with them."""
        start = time.perf_counter()
        answer = self._scan(hu)[0]
        lungs = _mask(answer, "lungs_bytes", len(hu))
        disease = _mask(answer, "disease_bytes", len(hu)) if self.finds_disease else None
        if disease is not None and disease.shape != lungs.shape:
            raise ServingError(f"{self._server.url}: its two masks have different grids")
        return Segmentation(lungs, time.perf_counter() - start, disease)

    def from_mask(self, mask: np.ndarray) -> Segmentation:
        """Refused: a server finds the lungs itself."""
        raise ModelError("a server finds the lungs itself; a mask of one's own needs the models in this process")

    def classify(self, hu: np.ndarray, probability: np.ndarray) -> list[Answer]:
        """Every model's answer about the scan; `probability` is the server's own, from `segment`."""
        start = time.perf_counter()
        answers = self._scan(hu)
        while len(answers) < len(self.models):
            answers.append(self._asked(len(answers), hu))
        found = [self._answer(model, answer, hu) for model, answer in zip(self.models, answers, strict=True)]
        seconds = (time.perf_counter() - start) / len(found)
        return [Answer(**{**vars(one), "seconds": seconds}) for one in found]

    def attend(
        self, answers: Sequence[Answer], lungs: np.ndarray, target: str, number: int, method: str
    ) -> tuple[np.ndarray, float | None]:
        """The mean of the models' attention maps on the scan; see `LocalModels.attend`.

        Raises:
            ModelError: If another method or target is asked for than the exports hold.
        """
        if (method, target) != (METHOD, TARGET):
            raise ModelError(f"exports explain by {METHOD} what raises {TARGET}; {method} of {target} needs the "
                             "models in this process")  # fmt: skip
        volumes, shares = [], []
        for model, answer in zip(self.models, answers, strict=True):
            cells, axes = answer.features
            volume, share = attention.onto_scan(cells, axes, model.clip, answer.keep, answer.box, lungs)
            volumes.append(volume)
            shares.append(share)
        return mean_map(volumes), mean_share(shares)

    def _scan(self, hu: np.ndarray) -> list[dict[str, Any]]:
        # The very same array, held here so that no other can take its place in memory.
        if self._last is None or self._last[0] is not hu:
            self._last = (hu, [self._asked(0, hu)])
        return self._last[1]

    def _asked(self, number: int, hu: np.ndarray) -> dict[str, Any]:
        model = self.models[number]
        try:
            answer = self._ask(self._sources[number], hu)
        except Rejected as error:
            raise ScanRefused([Finding("server_refused", "error", str(error))]) from error
        if _card(answer, self._server.url) != (model.sha256, model.lungs_sha256):
            raise ServingError(f"{self._server.url}: its model {model.name} is another one now; run again")
        return answer

    def _ask(self, name: str, hu: np.ndarray) -> dict[str, Any]:
        inputs = {
            "hu_bytes": np.array([np.ascontiguousarray(hu, "<i2").tobytes()], object),
            "shape": np.array([hu.shape], np.int32),
        }
        for number in range(1, TRIES + 1):
            try:
                return self._server.predict(name, "infer_bytes", inputs)
            except Unavailable as error:
                if number == TRIES:
                    raise
                self._say(f"{error}; asking again")
                time.sleep(min(0.5 * 2**number, 15.0))
        raise AssertionError("the last try returns or raises")

    def _described(self, name: str, answer: dict[str, Any]) -> RemoteModel:
        try:
            facts = json.loads(_text(answer, "card_bytes"))
            contract = Contract(**{key: facts[key] for key in Contract.model_fields if key in facts})
            return RemoteModel(
                name=str(facts["name"]), sha256=str(facts["sha256"]), contract=contract,
                clip=tuple(facts["clip"][:3]), endpoint=str(facts["endpoint"]),
                lungs_sha256=str(facts["lungs"]["sha256"]), finds_disease=bool(facts["lungs"]["disease"]),
                version=f"{name}: " + ", ".join(f"{key} {value}" for key, value in facts["versions"].items()),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError, ValidationError) as error:
            raise ServingError(f"{self._server.url}: {name} is no export of `tfcovid export`") from error

    def _answer(self, model: RemoteModel, answer: dict[str, Any], hu: np.ndarray) -> Answer:
        classes = len(model.contract.classes) or (5 if self.task == "severity" else 2)
        logits = _array(answer, "logits", (classes,))
        score = float(_array(answer, "ct_score", ())) if "ct_score" in answer else None
        keep = _array(answer, "keep", (len(hu),)) > 0
        axes = tuple(Axis(float(step), float(first)) for step, first in _array(answer, "attention_axes", (3, 2)))
        cells = _array(answer, "attention_cells", (None, None, None))
        return Answer(
            model=model,
            probabilities=finite_probabilities(model.name, logits, score),
            ct_score=score,
            keep=keep,
            box=_array(answer, "box", (4,)),
            features=(cells, axes),
            seconds=0.0,
        )


def _as_json(values: np.ndarray) -> Any:
    if values.dtype == object:
        return [{"b64": base64.b64encode(text).decode("ascii")} for text in values]
    return values.tolist()


def _from_json(name: str, value: Any) -> Any:
    if not name.endswith("_bytes"):
        return value
    try:
        texts = value if isinstance(value, list) else [value]
        return [base64.b64decode(text["b64"], validate=True) for text in texts]
    except (TypeError, KeyError, ValueError) as error:
        raise ServingError(f"the server's {name} are no base64") from error


def _array(answer: dict[str, Any], name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """float32 values of the only scan of an answer, of this shape (None: any size)."""
    try:
        values = np.asarray(answer[name], np.float32)
    except (KeyError, TypeError, ValueError) as error:
        raise ServingError(f"the server's answer has no usable {name}") from error
    expected = (1, *shape)
    fits = values.ndim == len(expected) and all(
        asked in (None, size) for asked, size in zip(expected, values.shape, strict=True)
    )
    if not fits:
        raise ServingError(f"the server's {name} has the shape {values.shape}, not {expected}")
    return values[0]


def _text(answer: dict[str, Any], name: str) -> bytes:
    try:
        (text,) = list(answer[name])
    except (KeyError, TypeError, ValueError) as error:
        raise ServingError(f"the server's answer has no {name}: it is no export of `tfcovid export`") from error
    if not isinstance(text, bytes):
        raise ServingError(f"the server's {name} are no bytes")
    return text


def _mask(answer: dict[str, Any], name: str, slices: int) -> np.ndarray:
    """A probability, float32 (D, h, w)."""
    try:
        values = tf.io.parse_tensor(_text(answer, name), tf.float32).numpy()
    except tf.errors.OpError as error:
        raise ServingError(f"the server's {name} are no tensor") from error
    if values.ndim != 3 or len(values) != slices:
        raise ServingError(f"the server's {name} have the shape {values.shape}, for a scan of {slices} slices")
    return values


def _card(answer: dict[str, Any], url: str) -> tuple[str, str]:
    try:
        facts = json.loads(_text(answer, "card_bytes"))
        return str(facts["sha256"]), str(facts["lungs"]["sha256"])
    except (KeyError, TypeError, ValueError) as error:
        raise ServingError(f"{url}: its card cannot be read") from error
