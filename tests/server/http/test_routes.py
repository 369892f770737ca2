"""TF Serving's REST API, asked by a real HTTP client."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import httpx
import numpy as np
import pytest

from tf_covid.server.settings import ServerSettings


def error(response: httpx.Response) -> str:
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    assert isinstance(body["error"], str)
    return body["error"]


def test_rows_and_columns(running: Any) -> None:
    rows = running.ask("linear", {"instances": [[1, 2, 3], [4, 5, 6]]})
    assert (rows.status_code, rows.headers["content-type"]) == (200, "application/json")
    assert rows.json() == {
        "predictions": [
            {"y": [2.0, 4.0, 6.0], "version": 2},
            {"y": [8.0, 10.0, 12.0], "version": 2},
        ]
    }
    columns = running.ask("linear", {"inputs": {"x": [[1, 2, 3]]}})
    assert columns.json() == {"outputs": {"y": [[2.0, 4.0, 6.0]], "version": [2]}}


def test_a_signature_with_one_output_names_none(running: Any) -> None:
    body = {"signature_name": "only_y", "instances": [{"x": [1, 2, 3]}]}
    assert running.ask("linear", body).json() == {"predictions": [[2.0, 4.0, 6.0]]}
    assert running.ask("linear", {"signature_name": "only_y", "inputs": [[1, 2, 3]]}).json() == {
        "outputs": [[2.0, 4.0, 6.0]]
    }


def test_types(running: Any) -> None:
    def ask(signature: str, **body: Any) -> Any:
        response = running.ask("types", {"signature_name": signature, **body})
        assert response.status_code == 200, response.text
        return json.loads(response.text)

    encoded = base64.b64encode(b"abc").decode()
    assert ask("strings", instances=[{"b64": encoded}, "de"])["predictions"] == [
        {"length": 3, "same": "abc", "same_bytes": {"b64": encoded}},
        {"length": 2, "same": "de", "same_bytes": {"b64": base64.b64encode(b"de").decode()}},
    ]
    assert ask("two", instances=[{"a": 1, "b": [2, 3]}])["predictions"] == [6.0]
    assert ask("serving_default", inputs=[[[1, 2], [3, -4]]])["outputs"] == {
        "total": [2],
        "mean": 0.5,
    }
    assert ask("invert", instances=[True, False])["predictions"] == [False, True]
    assert ask("half", inputs=[0.1, 1])["outputs"] == pytest.approx([0.2, 2.0], abs=1e-3)
    assert ask("huge", inputs=[2**64 - 1, 0])["outputs"] == [2**64 - 1, 0]
    odd = running.ask("types", {"signature_name": "divide", "instances": [1, -1, 0]})
    assert "[Infinity, -Infinity, NaN]" in odd.text
    values = json.loads(odd.text)["predictions"]
    assert values[:2] == [math.inf, -math.inf]
    assert math.isnan(values[2])


def test_a_scan_as_json(running: Any) -> None:
    volume = np.random.default_rng(0).integers(-1024, 2000, (3, 40, 50))
    response = running.ask("types", {"inputs": {"hu": volume.tolist()}})
    assert response.json()["outputs"]["total"] == volume.sum((1, 2)).tolist()


def test_versions(running: Any) -> None:
    path = "/v1/models/linear/versions/{}:predict"
    body = {"inputs": [[1, 2, 3]]}
    assert running.http.post(path.format(7), json=body).json()["outputs"]["version"] == [2]
    wrong = running.http.post(path.format(8), json=body)
    assert (wrong.status_code, error(wrong)) == (
        404,
        "Servable not found for request: Specific(linear, 8)",
    )
    unknown = running.ask("nobody", body)
    assert (unknown.status_code, error(unknown)) == (
        404,
        "Servable not found for request: Latest(nobody)",
    )


def test_status(running: Any) -> None:
    wanted = {
        "model_version_status": [
            {
                "version": "7",
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
    }
    assert running.http.get("/v1/models/linear").json() == wanted
    assert running.http.get("/v1/models/linear/versions/7").json() == wanted
    for path in ("/v1/models/nobody", "/v1/models/linear/versions/8"):
        response = running.http.get(path)
        assert response.status_code == 404
        assert error(response).startswith("Could not find")


def test_metadata(running: Any) -> None:
    for path in ("/v1/models/linear/metadata", "/v1/models/linear/versions/7/metadata"):
        document = running.http.get(path).json()
        assert document["model_spec"] == {"name": "linear", "signature_name": "", "version": "7"}
        signature = document["metadata"]["signature_def"]["signature_def"]["serving_default"]
        assert signature["method_name"] == "tensorflow/serving/predict"
        assert signature["inputs"]["x"]["dtype"] == "DT_FLOAT"
        dims = signature["inputs"]["x"]["tensor_shape"]["dim"]
        assert [axis["size"] for axis in dims] == ["-1", "3"]
        assert set(signature["outputs"]) == {"y", "version"}
    assert running.http.get("/v1/models/nobody/metadata").status_code == 404
    assert running.http.get("/v1/models/linear/versions/8/metadata").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/models", 400),
        ("GET", "/v1/models/linear:predict", 400),
        ("POST", "/v1/models/linear", 400),
        ("PUT", "/v1/models/linear:predict", 400),
        ("POST", "/v1/models/linear:classify", 400),
        ("POST", "/v1/models/linear/versions/x:predict", 400),
        ("POST", "/v1/models/linear/versions/-1:predict", 400),
        ("POST", "/v1/models/linear/versions/99999999999999999999:predict", 400),
        ("GET", "/v1/models/linear/versions/x", 400),
        ("GET", "/v1/models/..%2f..%2fetc", 400),
        ("GET", "/v1/models/linear/nothing", 400),
        ("GET", "/v1/scans", 405),
        ("GET", "/docs", 404),
        ("DELETE", "/healthz", 405),
    ],
)
def test_urls_that_are_not_there(running: Any, method: str, path: str, status: int) -> None:
    response = running.http.request(method, path, content=b"{}" if method == "POST" else None)
    assert response.status_code == status
    assert error(response).startswith("Malformed request: ")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"instances": []}',
        b'{"instances": [[1,2]]}',
        b'{"instances": [[1,2,"3"]]}',
        b'{"instances": [[1,2,3],[1,2]]}',
        b'{"signature_name": "none", "instances": [[1,2,3]]}',
        b'{"instances": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    ],
    ids=lambda body: body[:30].decode("latin-1"),
)
def test_malformed_requests(running: Any, body: bytes) -> None:
    response = running.http.post("/v1/models/linear:predict", content=body)
    assert response.status_code == 400
    assert len(error(response)) < 1000


def test_a_graph_that_finds_fault_says_so_in_one_line(running: Any) -> None:
    response = running.http.post(
        "/v1/models/net-clip:predict", content=b'{"instances": [[1, NaN]]}'
    )
    assert response.status_code == 400
    assert "\n" not in error(response)
    assert "NaN" in error(response)


def test_health_and_readiness(running: Any) -> None:
    assert running.http.get("/healthz").status_code == 200
    assert running.http.get("/readyz").json() == {
        "status": "ready",
        "models": {"linear": 7, "types": 1, "net-clip": 1},
    }


def test_not_ready_before_a_model_is_there(start: Any, store: Any, until: Any) -> None:
    server = start()
    assert server.http.get("/healthz").status_code == 200
    response = server.http.get("/readyz")
    assert (response.status_code, error(response)) == (503, "no model is available yet")
    store.put("linear-1", "m")
    until(lambda: server.http.get("/readyz").status_code == 200)


def test_metrics(start: Any, store: Any) -> None:
    store.put("linear-1", "m")
    server = start()
    server.ask("m", {"inputs": [[1, 2, 3]]})
    server.ask("m", {"inputs": [[1, 2]]})
    for made_up in range(3):
        server.ask(f"made-up-{made_up}", {})
    for path in ("/metrics", "/monitoring/prometheus/metrics"):
        response = server.http.get(path)
        assert response.headers["content-type"].startswith("text/plain")
        lines = response.text.splitlines()
        row = 'tfcovid_requests_total{{code="{}",model="{}",protocol="rest",signature="{}"}} {}'
        assert row.format(200, "m", "serving_default", "1.0") in lines
        assert row.format(400, "m", "serving_default", "1.0") in lines
        assert row.format(404, "unknown", "unknown", "3.0") in lines
        assert "tfcovid_queue_depth 0.0" in lines
        assert "tfcovid_model_versions_available 1.0" in lines
        assert "tfcovid_batch_rows_count 1.0" in lines
        assert "made-up" not in response.text


def test_switch_of_versions_while_requests_run(start: Any, store: Any, until: Any) -> None:
    """None is lost, and none is answered by a mixture.

    The number of the version and its answer belong together.
    """
    store.put("linear-1", "m", 1)
    server = start(queue=64)
    stop, calls = [False], []

    def ask() -> list[int]:
        seen = []
        while not stop[0]:
            response = server.ask("m", {"instances": [[1, 2, 3]]})
            assert response.status_code == 200, response.text
            (row,) = response.json()["predictions"]
            assert row["y"] == [row["version"] * value for value in (1, 2, 3)]
            seen.append(row["version"])
        return seen

    calls = [server.in_thread(ask) for _ in range(4)]
    for version in (2, 3):
        store.put(f"linear-{version}", "m", version)
        assert server.server.repository.wait_for(
            lambda r, v=version: r.available()["m"].number == v, 60
        )
    until(
        lambda: server.ask("m", {"instances": [[1, 2, 3]]}).json()["predictions"][0]["version"] == 3
    )
    stop[0] = True
    for call in calls:
        seen = call.result()
        assert seen == sorted(seen)
        assert seen[0] == 1


def test_requests_that_come_together_each_get_their_own_rows(running: Any) -> None:
    def ask(start: int) -> bool:
        good = True
        for value in range(start, start + 10):
            rows = [[value, column] for column in range(1 + value % 3)]
            response = running.ask("net-clip", {"instances": rows})
            good &= response.json() == {
                "predictions": [[float(value + column)] for column in range(len(rows))]
            }
        return good

    calls = [running.in_thread(lambda start=start: ask(start)) for start in range(0, 600, 100)]
    assert all(call.result() for call in calls)


def test_the_settings_reject_typos(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="quue"):
        ServerSettings(models=tmp_path, quue=3)
    assert "secret" not in repr(ServerSettings(models=tmp_path, token="secret-secret"))


def test_a_json_list_of_a_whole_scan_is_too_large(running: Any) -> None:
    body = b'{"instances": [[' + b"0," * 2_000_000 + b"0]]}"
    response = running.http.post("/v1/models/linear:predict", content=body)
    assert response.status_code == 413
    assert error(response).startswith("a body of JSON holds at most 2000000 values: send hu_bytes")
