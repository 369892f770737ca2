"""Scans that a server is asked about, and clients that ask by REST and gRPC."""

from __future__ import annotations

import base64
import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from processes import Direct, ServerProcess
from tensorflow_serving.apis import predict_pb2

from tf_covid.export import warmup
from tf_covid.exported import TOLERANCE
from tf_covid.tensor import Tensor
from tf_covid.verify.reference import largest_difference

#: Code of a request that nobody answered.
LOST = "lost"

#: Seconds of the first pause of a client that was told to wait; each further one is twice as long,
#: up to the last.
_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 1.0

_PREDICT = "/tensorflow.serving.PredictionService/Predict"


@dataclass(frozen=True)
class Reply:
    """What came back: HTTP status or name of the gRPC code, or `LOST`.

    The error's text; the outputs.
    """

    code: str
    text: str = ""
    outputs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_wait(self) -> bool:
        """Whether the server is full, and wants to be asked again."""
        # A message above the server's limit has the same gRPC code; it does not get smaller.
        return self.code == "429" or (
            self.code == "RESOURCE_EXHAUSTED" and "larger than max" not in self.text
        )


@dataclass(frozen=True)
class Question:
    """One scan or clip, ready to be sent, and its right answer.

    Args:
        model: Who is asked.
        message: `PredictRequest`, as bytes.
        body: Of REST; empty for a clip, which REST would write as text.
        right: Values by name, of the only scan.
    """

    model: str
    message: bytes
    body: bytes
    right: Mapping[str, np.ndarray]

    def fault_of(self, outputs: Mapping[str, Any]) -> str:
        """What is wrong with an answer; "" for nothing."""
        if set(outputs) != set(self.right):
            return f"outputs {sorted(outputs)}"
        difference, where = largest_difference(dict(self.right), dict(outputs))
        return "" if difference <= TOLERANCE else f"{where} differs by {difference:.1e}"


def message(
    model: str, signature: str, inputs: Mapping[str, np.ndarray], version: int | None = None
) -> Tensor:
    """A `PredictRequest`."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model, signature
    if version is not None:
        request.model_spec.version.value = version
    for name, values in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
    return request


def rest_body(hu: np.ndarray, shape: Sequence[int]) -> bytes:
    """A question of `serving_bytes`."""
    text = base64.b64encode(hu.astype("<i2").tobytes()).decode("ascii")
    inputs = {"hu_bytes": [{"b64": text}], "shape": [list(shape)]}
    return json.dumps({"signature_name": "serving_bytes", "inputs": inputs}).encode()


def chest(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """int16 HU: the chest of the warm-up at any size, with noise and lesions of each seed."""
    rng = np.random.default_rng(seed)
    small = warmup.chest()
    places = [np.arange(size) * have // size for size, have in zip(shape, small.shape, strict=True)]
    hu = small[np.ix_(*places)]
    d, h, w = np.ogrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j, -1 : 1 : shape[2] * 1j]
    for centre in rng.uniform((-0.7, -0.4, -0.7), (0.7, 0.4, 0.7), (3 * seed, 3)):
        ball = ((d - centre[0]) ** 2 + (h - centre[1]) ** 2 + (w - centre[2]) ** 2) < 0.04
        hu = np.where(ball & (hu < -500), np.int16(rng.integers(-700, 0)), hu)
    return hu + rng.integers(-20, 20, shape, np.int16)


def scan_inputs(hu: np.ndarray) -> dict[str, np.ndarray]:
    """The inputs of `serving_default`."""
    return {"hu": hu[np.newaxis], "depth": np.array([len(hu)], np.int32)}


def scan_questions(
    direct: Direct, model: str, shape: tuple[int, int, int], count: int
) -> list[Question]:
    """Different small scans, and what the SavedModel says about each.

    Raises:
        SystemExit: If two answers are so alike that one could pass for the other.
    """
    found = []
    for seed in range(count):
        hu = chest(shape, seed)
        inputs = scan_inputs(hu)
        right = direct.ask(model, "serving_default", inputs)
        payload = message(model, "serving_default", inputs).SerializeToString()
        found.append(Question(model, payload, rest_body(hu, hu.shape), _first(right)))
    return _distinct(found)


def clip_questions(
    direct: Direct, model: str, shape: tuple[int, ...], count: int
) -> list[Question]:
    """Different clips for the model that takes clips only; else as `scan_questions`."""
    found = []
    for seed in range(count):
        hu = chest((shape[0], shape[1], shape[2]), seed).astype(np.float32)
        clip = np.clip((hu + 1100) / 1400, 0, 1)[np.newaxis, ..., np.newaxis].repeat(shape[3], -1)
        right = direct.ask(model, "serving_default", {"clip": clip})
        payload = message(model, "", {"clip": clip}).SerializeToString()
        found.append(Question(model, payload, b"", _first(right)))
    return _distinct(found)


def _first(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values[0] for name, values in outputs.items()}


def _distinct(questions: list[Question]) -> list[Question]:
    for one, other in itertools.permutations(questions, 2):
        answer = {name: values[np.newaxis] for name, values in one.right.items()}
        if (
            one.fault_of(answer)
            or largest_difference(dict(other.right), answer)[0] < 10 * TOLERANCE
        ):
            raise SystemExit(
                "the scans are too alike, or have no answer: a swapped answer would not be seen"
            )
    return questions


class Client:
    """Asks one server; one of its own for each thread, with a connection of its own.

    Args:
        server: Who is asked.
        patience_s: How long it waits for an answer.
    """

    def __init__(self, server: ServerProcess, patience_s: float) -> None:
        self.server, self.patience_s = server, patience_s
        options = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self._channel = grpc.insecure_channel(server.grpc, options)
        # Bytes go as they are: also those that are no message.
        self.call = self._channel.unary_unary(
            _PREDICT, None, predict_pb2.PredictResponse.FromString
        )

    def close(self) -> None:
        """Close its connection."""
        self._channel.close()

    def by_grpc(self, payload: bytes) -> Reply:
        """Ask by gRPC."""
        return self.reply_of(self.call.future(payload, timeout=self.patience_s))

    def reply_of(self, future: Tensor) -> Reply:
        """The reply of a call that has begun."""
        try:
            response = future.result(self.patience_s + 5)
        except grpc.FutureCancelledError:
            return Reply("CANCELLED")
        except grpc.FutureTimeoutError:
            return Reply(LOST, "no answer")
        except grpc.RpcError as error:
            code = error.code().name
            lost = code in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN")
            return Reply(LOST if lost else code, f"{code} {error.details()}"[:300])
        return Reply(
            "OK", "", {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}
        )

    def by_rest(
        self, path: str, pieces: Sequence[bytes], *, pause_s: float = 0.0, length: int | None = None
    ) -> Reply:
        """Ask by REST, on a new connection.

        Args:
            path: That is posted to.
            pieces: Of the body.
            pause_s: Before each of them, in seconds.
            length: The length that is announced, if not the true one.
        """
        connection = self.connect()
        try:
            size = sum(map(len, pieces))
            self.begin(connection, path, size if length is None else length)
            try:
                for piece in pieces:
                    time.sleep(pause_s)
                    connection.send(piece)
            except (BrokenPipeError, ConnectionResetError):
                pass  # refused before the end: the answer says why, if it came through
            answer = connection.getresponse()
            return _read(answer.status, answer.read())
        except (OSError, HTTPException, ValueError) as error:
            return Reply(LOST, f"{type(error).__name__}: {error}"[:300])
        finally:
            connection.close()

    def predict(self, model: str, body: bytes) -> Reply:
        """Ask a model by REST."""
        return self.by_rest(f"/v1/models/{model}:predict", [body])

    def connect(self) -> HTTPConnection:
        """A new connection for REST."""
        host, port = self.server.rest.rsplit(":", 1)
        return HTTPConnection(host, int(port), timeout=self.patience_s)

    @staticmethod
    def begin(connection: HTTPConnection, path: str, length: int) -> None:
        """Send the headers of a POST."""
        connection.putrequest("POST", path)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(length))
        connection.endheaders()


def _read(status: int, body: bytes) -> Reply:
    values = json.loads(body)
    if status == 200 and isinstance(values.get("outputs"), dict):
        return Reply("200", "", values["outputs"])
    return Reply(str(status), str(values.get("error", values))[:300])


def patiently(ask: Callable[[], Reply], until: float) -> tuple[Reply, int]:
    """The reply of a client that asks again, after a pause, while the server is full.

    And how often it was.
    """
    for number in itertools.count():
        reply = ask()
        if not reply.is_wait:
            return reply, number
        if time.monotonic() > until:
            return Reply(LOST, f"full to the end: {reply.text}"), number + 1
        time.sleep(min(_PAUSE_S * 2**number, _LONGEST_PAUSE_S) * random.uniform(0.8, 1.2))
    raise AssertionError("the loop returns")


@dataclass
class Rush:
    """What became of the requests of several clients at once."""

    elapsed_s: float = 0.0
    seconds: list[float] = field(default_factory=list)
    waits: int = 0
    faults: list[str] = field(default_factory=list)


def rush(
    server: ServerProcess,
    way: str,
    questions: Sequence[Question],
    clients: int,
    *,
    requests: int,
    seconds: float,
    patience_s: float,
    seed: int,
) -> Rush:
    """Let several clients ask, one question after the other, until enough are asked.

    Args:
        server: Who is asked.
        way: "gRPC" or "REST".
        questions: One is drawn for each request.
        clients: How many ask at once.
        requests: Most that are asked.
        seconds: After which no more are asked.
        patience_s: How long a client waits for one answer, with all the times that it was told to
            wait.
        seed: Of the draw.
    """
    result, lock, numbers, start = Rush(), threading.Lock(), iter(range(requests)), time.monotonic()

    def work(client: Client, rng: random.Random) -> None:
        while time.monotonic() < start + seconds:
            with lock:
                if next(numbers, None) is None:
                    return
            question, begin = rng.choice(questions), time.monotonic()
            ask = (
                (lambda q=question: client.by_grpc(q.message))
                if way == "gRPC"
                else (lambda q=question: client.predict(q.model, q.body))
            )
            reply, waits = patiently(ask, begin + patience_s)
            took = time.monotonic() - begin
            good = reply.code in ("OK", "200")
            fault = question.fault_of(reply.outputs) if good else f"{reply.code}: {reply.text}"
            with lock:
                result.waits += waits
                result.faults += [fault] if fault else []
                result.seconds.append(took)

    in_threads(server, patience_s, clients, seed, work)
    result.elapsed_s = time.monotonic() - start
    return result


def in_threads(
    server: ServerProcess,
    patience_s: float,
    count: int,
    seed: int,
    work: Callable[[Client, random.Random], None],
) -> None:
    """Run `work` in several threads, each with a client and a source of chance of its own."""
    clients = [Client(server, patience_s) for _ in range(count)]
    with ThreadPoolExecutor(count) as threads:
        chances = [random.Random(seed * 1000 + number) for number in range(count)]
        list(threads.map(work, clients, chances))  # an error of any thread is raised here
    for client in clients:
        client.close()
