"""How the server ends, and what it leaves behind: no thread, and no word of a request in a log."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tf_covid.errors import ServingError
from tf_covid.server.server import Server
from tf_covid.server.settings import ServerSettings

Code = grpc.StatusCode
ONE = {"inputs": {"x": [1.0]}}


def message() -> Any:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "gate"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.array([1.0], np.float32)))
    return request


def test_a_stop_finishes_what_is_in_flight(gate: Any, until: Any) -> None:
    running = gate(grace_s=60.0)
    server = running.server
    rest = running.in_thread(lambda: running.ask("gate", ONE))
    until(lambda: server.batcher.running == 1)
    over_grpc = running.in_thread(lambda: running.predict.Predict(message(), 60))
    until(lambda: server.batcher.depth == 1)
    with httpx.Client(base_url=server.rest_url, trust_env=False, timeout=60) as other:
        stopping = running.in_thread(server.stop)
        until(lambda: server._context.closed.is_set())
        assert other.get("/readyz").status_code == 503
        assert other.get("/healthz").status_code == 200
        refused = other.post("/v1/models/gate:predict", json=ONE)
        assert refused.status_code == 503
        assert "stopping" in refused.json()["error"]
        version = server.repository.available()["gate"]
        for value in (1.0, 2.0):
            version.runner("open").run({"value": np.float32(value)})
        assert rest.result().json() == {"outputs": [2.0]}
        assert list(over_grpc.result().outputs["y"].float_val) == [3.0]
    assert stopping.result() is True
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.rest_url}/healthz", trust_env=False)


def test_a_stop_does_not_wait_for_ever(gate: Any, until: Any) -> None:
    running = gate()
    server = running.server
    version = server.repository.available()["gate"]
    runner = version.runner("open")
    stuck = running.in_thread(lambda: running.ask("gate", ONE))
    until(lambda: server.batcher.running == 1)
    waiting = running.in_thread(lambda: running.ask("gate", ONE))
    until(lambda: server.batcher.depth == 1)
    assert server.stop(grace_s=0.2) is False
    assert waiting.result().status_code == 503
    runner.run({"value": np.float32(0)})
    assert stuck.result().status_code == 503


@pytest.mark.slow
def test_the_program_ends_well(store: Any) -> None:
    store.put("gate", "gate")
    program = (
        "import sys; from pathlib import Path\n"
        "from tf_covid.server.server import serve; from tf_covid.server.settings import ServerSettings\n"
        "settings = ServerSettings(models=Path(sys.argv[1]), port=0, grpc_port=0, grace_s=600)\n"
        "serve(settings, lambda line: print(line, flush=True))\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(store.folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        url = child.stdout.readline().split()[1]
        address = child.stdout.readline().split()[1]
        with (
            httpx.Client(base_url=url, trust_env=False, timeout=60) as http,
            grpc.insecure_channel(address) as channel,
        ):
            end = time.monotonic() + 60
            while http.get("/readyz").status_code != 200:
                assert time.monotonic() < end
                time.sleep(0.05)
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            call = stub.Predict.future(message(), timeout=60)
            while "tfcovid_running 1.0" not in http.get("/metrics").text:
                assert time.monotonic() < end
                time.sleep(0.05)
            child.send_signal(signal.SIGTERM)
            assert "stopping" in child.stdout.readline()
            while http.get("/readyz").status_code != 503:  # it says so just before it does so
                assert time.monotonic() < end
            assert not call.done()
            child.send_signal(
                signal.SIGINT
            )  # the model would wait for ever: once more, and it ends at once
            assert call.exception(60).code() == Code.UNAVAILABLE
            _, err = child.communicate(timeout=60)
        assert child.returncode == 0, err
        assert "Traceback" not in err
    finally:
        child.kill()
        child.wait()


def test_logs_hold_no_more_than_the_route(
    start: Any, store: Any, caplog: pytest.LogCaptureFixture
) -> None:
    store.put("linear-1", "m")
    with caplog.at_level(logging.DEBUG):
        running = start()
        running.ask("m", {"inputs": [[1, 2, 31337]]})
        running.ask("Doe-Jane", {"inputs": "Doe^Jane"})
        running.http.get("/v1/scans/Doe-Jane/report.html")
        running.http.get("/Doe-Jane")
        running.http.get("/v1/models/m", headers={"Host": "doe-jane"})
    ours = [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith(("tf_covid", "uvicorn"))
    ]
    assert any(line.startswith("POST /v1/models/{name}:predict 200 ") for line in ours)
    assert any(line.startswith("GET unknown 404 ") for line in ours)
    text = "\n".join(ours)
    assert "31337" not in text
    assert "doe" not in text.lower()
    assert str(store.folder) not in text


def test_nothing_heavy_before_it_is_needed() -> None:
    code = (
        "import sys, tf_covid.server, tf_covid.server.settings, tf_covid.server.server\nprint([m"
        " for m in ('tensorflow', 'fastapi', 'grpc', 'uvicorn', 'prometheus_client') if m in"
        " sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_start_that_fails_leaves_nothing(
    store: Any, monkeypatch: pytest.MonkeyPatch, until: Any
) -> None:
    import uvicorn

    async def nothing(self: Any, sockets: Any = None) -> None: ...

    monkeypatch.setattr(uvicorn.Server, "serve", nothing)
    monkeypatch.setattr("tf_covid.server.server._START_S", 0.2)
    before = set(threading.enumerate())
    server = Server(ServerSettings(models=store.folder, port=0, grpc_port=0))
    with pytest.raises(ServingError, match="REST did not start"):
        server.__enter__()
    until(
        lambda: (
            not [
                one for one in set(threading.enumerate()) - before if one.name.startswith("tfcovid")
            ]
        )
    )
    assert not server._scans._root.exists()
    assert server._socket.fileno() == -1
    with (
        grpc.insecure_channel(server.grpc_address) as channel,
        pytest.raises(grpc.FutureTimeoutError),
    ):
        grpc.channel_ready_future(channel).result(1)


def test_threads_end_with_the_server(start: Any, store: Any, until: Any) -> None:
    before = set(threading.enumerate())
    store.put("linear-1", "m")
    running = start()
    server = running.server
    running.ask("m", {"inputs": [[1, 2, 3]]})
    server.stop()
    until(
        lambda: (
            not [
                one for one in set(threading.enumerate()) - before if one.name == "tfcovid-engine-0"
            ]
        )
    )
    for thread in (server._thread, server.repository._thread, server._scans._cleaner):
        assert not thread.is_alive()
