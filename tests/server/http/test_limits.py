"""What happens to too many, too large, too slow, uninvited and unwanted requests, and when the
server stops."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
)

from tf_covid.errors import ServingError
from tf_covid.server.http.middleware import is_token
from tf_covid.server.server import Server
from tf_covid.server.settings import ServerSettings, is_loopback

Code = grpc.StatusCode
ONE = {"inputs": {"x": [1.0]}}
TOKEN = "a-token-for-tests"


def answered(connection: socket.socket) -> bytes:
    """An answer, as far as the end of its JSON."""
    text = b""
    while not text.endswith(b"}") and (piece := connection.recv(65536)):
        text += piece
    return text


def message(model: str = "gate", signature: str = "", name: str = "x", value: Any = (1.0,)) -> Any:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    request.inputs[name].CopyFrom(tf.make_tensor_proto(np.array(value, np.float32)))
    return request


@contextmanager
def raw(running: Any) -> Iterator[socket.socket]:
    host, port = running.server.rest_url.removeprefix("http://").rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        yield connection


def heads(path: str, *lines: str, host: str = "127.0.0.1") -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", f"Host: {host}", *lines, "", ""]).encode()


def received(connection: socket.socket) -> bytes:
    """All until the other side closes."""
    pieces = []
    while piece := connection.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def test_one_too_many_is_refused_by_both_protocols(gate: Any, until: Any) -> None:
    running = gate(queue=2)
    engine = running.server.batcher
    first = running.in_thread(lambda: running.ask("gate", ONE))
    until(lambda: engine.running == 1)
    waiting = [running.in_thread(lambda: running.ask("gate", ONE)) for _ in range(2)]
    until(lambda: engine.depth == 2)
    full = running.ask("gate", ONE)
    assert full.status_code == 429
    assert "waiting" in full.json()["error"]
    with pytest.raises(grpc.RpcError) as caught:
        running.predict.Predict(message(), 60)
    assert caught.value.code() == Code.RESOURCE_EXHAUSTED
    for _ in range(3):
        running.open_gate()
    assert [call.result().status_code for call in (first, *waiting)] == [200, 200, 200]


def test_the_time_limit_and_what_waits_longer_is_not_computed(gate: Any, until: Any) -> None:
    running = gate(time_limit_s=2.0)
    engine = running.server.batcher
    late = [running.in_thread(lambda: running.ask("gate", ONE)) for _ in range(2)]
    assert [call.result().status_code for call in late] == [504, 504]
    with pytest.raises(grpc.RpcError) as caught:
        running.predict.Predict(message(), 60)
    assert caught.value.code() == Code.DEADLINE_EXCEEDED
    until(
        lambda: engine.depth == 0 and engine.running == 1
    )  # the first one, which cannot be interrupted
    running.open_gate(value=1.0)
    until(lambda: engine.running == 0)
    running.open_gate(value=5.0)  # nobody has used it up meanwhile
    assert running.ask("gate", ONE).json() == {"outputs": [6.0]}


def test_a_clients_own_deadline(gate: Any, until: Any) -> None:
    running = gate()
    first = running.in_thread(lambda: running.ask("gate", ONE))
    until(lambda: running.server.batcher.running == 1)
    with pytest.raises(grpc.RpcError) as caught:
        running.predict.Predict(message(), 0.5)
    assert caught.value.code() == Code.DEADLINE_EXCEEDED
    until(lambda: running.server.batcher.depth == 0)
    running.open_gate()
    assert first.result().status_code == 200


def test_the_work_of_a_client_that_has_gone_is_dropped(gate: Any, until: Any) -> None:
    running = gate()
    engine = running.server.batcher
    first = running.in_thread(lambda: running.ask("gate", ONE))
    until(lambda: engine.running == 1)
    body = json.dumps(ONE).encode()
    with raw(running) as connection:
        connection.sendall(heads("/v1/models/gate:predict", f"Content-Length: {len(body)}") + body)
        until(lambda: engine.depth == 1)
    until(lambda: engine.depth == 0)
    call = running.predict.Predict.future(message(), timeout=60)
    until(lambda: engine.depth == 1)
    call.cancel()
    until(lambda: engine.depth == 0)
    running.open_gate()
    assert first.result().status_code == 200


def test_clips_that_wait_together_are_one_batch(gate: Any, until: Any) -> None:
    running = gate(batch=4, queue=8)
    engine = running.server.batcher
    first = running.in_thread(lambda: running.ask("gate", ONE))
    until(lambda: engine.running == 1)
    calls = []
    for number in range(4):
        body = message("gate", "classify_clip", "clip", [[float(number)]])
        calls.append(running.predict.Predict.future(body, timeout=60))
        until(lambda n=number: engine.depth == n + 1)
    running.open_gate()
    running.open_gate(value=100.0)  # one for all four
    for number, call in enumerate(calls):
        outputs = call.result(60).outputs
        assert list(outputs["logits"].float_val) == [2 * number + 100]
        assert list(outputs["together"].int_val) == [4]
    first.result()


@pytest.fixture
def small(start: Any, store: Any) -> Any:
    store.put("linear-1", "m")
    return start(message_mb=0.01, read_limit_s=1.0)


def test_too_large(small: Any) -> None:
    path = "/v1/models/m:predict"
    large = json.dumps({"inputs": [[1, 2, 3]] * 4000}).encode()
    for length in (
        "99999999999999999999",
        str(len(large)),
    ):  # by what it says, before a byte of it is read
        with raw(small) as connection:
            connection.sendall(heads(path, f"Content-Length: {length}"))
            assert answered(connection).startswith(b"HTTP/1.1 413")
    with raw(small) as connection:  # by what comes
        chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
        connection.sendall(heads(path, "Transfer-Encoding: chunked") + chunk * 3)
        answer = answered(connection)
        assert answer.startswith(b"HTTP/1.1 413")
        assert b'{"error": ' in answer
    with pytest.raises(grpc.RpcError) as caught:
        small.predict.Predict(message("m", value=[[1, 2, 3]] * 4000), 60)
    assert caught.value.code() == Code.RESOURCE_EXHAUSTED
    assert small.ask("m", {"inputs": [[1, 2, 3]]}).status_code == 200


def test_a_client_that_is_too_slow(small: Any) -> None:
    with raw(small) as connection:
        connection.sendall(heads("/v1/models/m:predict", "Content-Length: 100") + b"{")
        assert connection.recv(65536).startswith(b"HTTP/1.1 408")
    for beginning in (b"", b"POST /v1/models/m:pre"):
        with raw(small) as connection:
            connection.sendall(beginning)
            assert received(connection) == b""  # closed, where uvicorn alone would wait for ever
    with raw(small) as connection:  # the second request of a connection, too
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /healthz HT")
        received(connection)


def test_packed_bodies_are_not_unpacked(small: Any) -> None:
    response = small.http.post(
        "/v1/models/m:predict", content=b"x", headers={"Content-Encoding": "gzip"}
    )
    assert response.status_code == 415
    assert "gzip" in response.json()["error"]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\xff\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/models/m:predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -5\r\n\r\n",
        (
            b"POST /v1/models/m:predict HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding:"
            b" chunked\r\n\r\nzz\r\n"
        ),
        b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
    ],
    ids=lambda garbage: garbage[:20].decode("latin-1"),
)
def test_no_http(small: Any, garbage: bytes) -> None:
    with raw(small) as connection:
        connection.sendall(garbage)
        assert connection.recv(65536).startswith((b"HTTP/1.1 4", b""))
    assert small.http.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:1234", 200),
        ("localhost:8501", 200),
        ("LOCALHOST", 200),
        ("[::1]:8501", 200),
        ("evil.example", 403),
        ("evil.example:8501", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost:evil", 403),
        ("", 403),
    ],
)
def test_host_header(running: Any, host: str, status: int) -> None:
    """A web page whose name points at this machine must not read answers through the browser."""
    response = running.http.get("/v1/models/linear", headers={"Host": host})
    assert response.status_code == status
    if status == 403:
        assert "Host" in response.json()["error"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "{url}"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),  # another program's page on this machine
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "{url}", "Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_pages_of_other_sites(running: Any, headers: dict[str, str], status: int) -> None:
    """A web page must not have the browser ask in its place, even where it cannot read the
    answer."""
    sent = {name: value.format(url=running.server.rest_url) for name, value in headers.items()}
    body = {"inputs": [[1, 2, 3]]}
    response = running.ask("linear", body, headers=sent)
    assert response.status_code == status
    if status == 403:
        assert "page" in response.json()["error"]


def test_a_body_that_a_thread_still_holds_counts(
    start: Any, store: Any, until: Any, monkeypatch: Any
) -> None:
    store.put("linear-1", "m")
    running = start(time_limit_s=0.5)
    reader, go = running.server._rest._reader, threading.Event()
    monkeypatch.setattr(
        "tf_covid.server.http.routes.decode.parse_predict_request",
        lambda body, runner_of: go.wait(60),
    )
    assert running.ask("m", {"inputs": [[1, 2, 3]]}).status_code == 504
    assert reader._here > 0
    go.set()
    until(lambda: reader._here == 0)


def test_without_the_token_nothing_is_answered(start: Any, store: Any) -> None:
    store.put("linear-1", "m")
    running = start(token=TOKEN)
    body = {"inputs": [[1, 2, 3]]}
    assert running.ask("m", body).status_code == 200
    asked = [
        ("POST", "/v1/models/m:predict"),
        ("GET", "/v1/models/m"),
        ("GET", "/v1/models/m/metadata"),
        ("GET", "/metrics"),
        ("GET", "/monitoring/prometheus/metrics"),
        ("GET", "/readyz"),
        ("POST", "/v1/scans"),
        ("GET", "/openapi.json"),
        ("GET", "/v1/scans/a/report.html"),
        ("GET", "/nothing"),
    ]
    with httpx.Client(base_url=running.server.rest_url, trust_env=False) as stranger:
        assert stranger.get("/healthz").status_code == 200
        for method, path in asked:
            for given in (
                None,
                "Bearer wrong-token",
                f"Basic {TOKEN}",
                f"Bearer {TOKEN}x",
                TOKEN,
                "Bearer",
            ):
                headers = {} if given is None else {"Authorization": given}
                response = stranger.request(method, path, headers=headers)
                assert response.status_code == 401
                assert response.json()["error"]
                assert response.headers["www-authenticate"] == "Bearer"
    ask = message("m", value=[[1, 2, 3]])
    metadata, status = (
        get_model_metadata_pb2.GetModelMetadataRequest(),
        get_model_status_pb2.GetModelStatusRequest(),
    )
    status.model_spec.name = "m"
    right = (("authorization", f"Bearer {TOKEN}"),)
    for call, what in (
        (running.predict.Predict, ask),
        (running.predict.GetModelMetadata, metadata),
        (running.models.GetModelStatus, status),
    ):
        for given in ((), (("authorization", "Bearer wrong-token"),), (("token", TOKEN),)):
            with pytest.raises(grpc.RpcError) as caught:
                call(what, timeout=60, metadata=given)
            assert caught.value.code() == Code.UNAUTHENTICATED
    assert (
        running.predict.Predict(ask, timeout=60, metadata=right).outputs["version"].int_val[0] == 1
    )
    assert running.models.GetModelStatus(status, timeout=60, metadata=right).model_version_status


class Silent:
    """Calls that never send their message."""

    def __init__(self, running: Any, number: int, *metadata: tuple[str, str]) -> None:
        self._end = threading.Event()
        # Connections of their own: one connection may have only so many calls.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channels = [
            grpc.insecure_channel(running.server.grpc_address, options) for _ in range(number)
        ]
        method = "/tensorflow.serving.PredictionService/Predict"
        self.calls = [
            channel.stream_unary(method).future(self._never(), timeout=60, metadata=metadata)
            for channel in self._channels
        ]

    def _never(self) -> Iterator[bytes]:
        self._end.wait(60)
        yield from ()

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for channel in self._channels:
            channel.close()


def test_calls_without_a_message_and_a_token_are_refused_at_once(start: Any, store: Any) -> None:
    store.put("linear-1", "m")
    running = start(token=TOKEN)  # they may take a minute to send it
    right = (("authorization", f"Bearer {TOKEN}"),)
    with Silent(running, 40) as silent:
        assert {call.exception(20).code() for call in silent.calls} <= {
            Code.UNAUTHENTICATED,
            Code.RESOURCE_EXHAUSTED,
        }
        ask = message("m", value=[[1, 2, 3]])
        assert (
            running.predict.Predict(ask, timeout=20, metadata=right).outputs["version"].int_val[0]
            == 1
        )


@pytest.mark.parametrize("token", [None, TOKEN])
def test_calls_that_do_not_send_their_message_in_time_are_cancelled(
    start: Any, store: Any, token: str | None
) -> None:
    store.put("linear-1", "m")
    running = start(token=token, read_limit_s=1.0)
    right = () if token is None else (("authorization", f"Bearer {token}"),)
    with Silent(running, 40, *right) as silent:
        codes = [call.exception(20).code() for call in silent.calls]
        assert Code.CANCELLED in codes
        assert set(codes) <= {Code.CANCELLED, Code.RESOURCE_EXHAUSTED}
        ask = message("m", value=[[1, 2, 3]])
        assert (
            running.predict.Predict(ask, timeout=20, metadata=right).outputs["version"].int_val[0]
            == 1
        )


def test_messages_of_all_calls_together_have_a_limit(gate: Any, until: Any) -> None:
    running = gate(message_mb=0.01)
    held = [
        running.predict.Predict.future(message(value=[1.0] * 2000), timeout=60) for _ in range(2)
    ]
    until(lambda: running.server.batcher.running + running.server.batcher.depth == 2)
    with pytest.raises(grpc.RpcError) as caught:
        running.predict.Predict(message(value=[1.0] * 2000), 60)
    assert caught.value.code() == Code.RESOURCE_EXHAUSTED
    assert "arriving" in caught.value.details()
    for _ in held:
        running.open_gate()
    assert all(call.result(60) for call in held)
    running.open_gate()
    assert running.predict.Predict(message(value=[1.0] * 2000), 60)


def test_tokens() -> None:
    assert is_token(b"Bearer abc", "abc")
    assert is_token(b"bearer  abc ", "abc")
    for wrong in (
        b"",
        b"abc",
        b"Bearer",
        b"Bearer ABC",
        b"Bearer ab",
        b"Bearer abcd",
        b"Bearer \xff\xfe",
    ):
        assert not is_token(wrong, "abc")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.3.2.1"])
def test_hosts_that_nobody_else_can_reach(tmp_path: Path, host: str) -> None:
    assert is_loopback(ServerSettings(models=tmp_path, host=host).address())


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.1.2.3", "::ffff:127.0.0.1", "192.168.0.1", "8.8.8.8"]
)
def test_hosts_that_others_can_reach_need_a_token(tmp_path: Path, host: str) -> None:
    with pytest.raises(ServingError, match="token"):
        ServerSettings(models=tmp_path, host=host)
    ServerSettings(models=tmp_path, host=host, token=TOKEN)


@pytest.mark.parametrize(
    "token", ["", "short", "with space in it", "ümlaut-token", "line\nbreak-token"]
)
def test_tokens_that_cannot_be_sent(tmp_path: Path, token: str) -> None:
    with pytest.raises(ServingError, match="token"):
        ServerSettings(models=tmp_path, token=token)


def test_unknown_host_folder_and_taken_ports(tmp_path: Path, running: Any) -> None:
    with pytest.raises(ServingError, match="no address"):
        ServerSettings(models=tmp_path, host="no.such.host.invalid")
    with pytest.raises(ServingError, match="not a folder of models"):
        Server(ServerSettings(models=tmp_path / "none"))
    taken = int(running.server.rest_url.rsplit(":", 1)[1])
    with (
        pytest.raises(ServingError, match=f"{taken}: cannot listen"),
        Server(ServerSettings(models=tmp_path, port=taken)),
    ):
        pass
    taken = int(running.server.grpc_address.rsplit(":", 1)[1])
    settings = ServerSettings(models=tmp_path, port=0, grpc_port=taken)
    with pytest.raises(ServingError, match=f"{taken}: gRPC cannot listen"), Server(settings):
        pass


def test_open_to_others_any_host_name_will_do(store: Any, start: Any) -> None:
    store.put("linear-1", "m")
    running = start(host="0.0.0.0", token=TOKEN)
    port = running.server.rest_url.rsplit(":", 1)[1]
    headers = {"Host": "ct.hospital.example", "Authorization": f"Bearer {TOKEN}"}
    assert (
        httpx.get(f"http://127.0.0.1:{port}/readyz", headers=headers, trust_env=False).status_code
        == 200
    )
