"""A server's answers through the pipeline.

The same as those of models in this process, or a named error.
"""

from __future__ import annotations

import dataclasses
import http.server
import json
import threading

import numpy as np
import pytest

from tests.small_scans import assert_near, made_scan
from tf_covid.client import remote as client
from tf_covid.client.remote import RemoteModels
from tf_covid.client.transport import connect
from tf_covid.errors import ModelError, ScanRefused, ServingError
from tf_covid.export import warmup
from tf_covid.export.savedmodel import export
from tf_covid.pipeline import stratify
from tf_covid.server.server import Server
from tf_covid.server.settings import ServerSettings


@pytest.fixture(scope="module")
def server(small_export):
    folder = small_export.stratifier.parents[1]
    with Server(
        ServerSettings(models=folder, port=0, grpc_port=0, token="a-token-for-tests", poll_s=0.2)
    ) as running:
        assert running.wait_until_ready(60, "small", "small-clip")
        yield running


@pytest.fixture(params=["REST", "gRPC"])
def url(request, server):
    return server.rest_url if request.param == "REST" else f"grpc://{server.grpc_address}"


def test_a_result_from_a_server_is_the_result_from_here(url, small_models):
    there = RemoteModels(connect(url, "a-token-for-tests"), ["small"])
    assert (there.task, there.finds_disease, there.slice_minimum) == ("severity", True, 0.05)
    assert there.endpoint == small_models.endpoint
    assert there.weights_sha256 == small_models.weights_sha256
    assert len(there.weights_sha256) == len(there.files_sha256) == 3
    assert there.files_sha256 == small_models.files_sha256
    for seed in (0, 1):
        here, remote = (stratify(made_scan(seed), models) for models in (small_models, there))
        one, two = here.as_dict(), remote.as_dict()
        for values in (one, two):
            del values["timings_s"], values["answered_at"]
        assert two["versions"].pop("server").startswith("small: keras ")
        assert json.dumps(two, sort_keys=True)[:200]
        assert_near(one, two)
        np.testing.assert_array_equal(here.maps.lungs, remote.maps.lungs)
        np.testing.assert_allclose(
            here.maps.attention.astype(int), remote.maps.attention.astype(int), atol=1
        )
        assert here.maps.attention.any()


def test_one_scan_is_asked_about_once_and_never_gets_the_answer_to_another(server):
    asked = []

    class Counted:
        url = "counted"

        def __init__(self, inner):
            self.inner = inner

        def predict(self, model, signature, inputs):
            asked.append(signature)
            return self.inner.predict(model, signature, inputs)

    there = RemoteModels(Counted(connect(server.rest_url, "a-token-for-tests")), ["small"])
    one, two = made_scan(0).hu, made_scan(5).hu
    first = there.classify(one, there.segment(one).probability)[0].probabilities
    other = there.classify(two, there.segment(two).probability)[0].probabilities
    again = there.classify(one, there.segment(one).probability)[0].probabilities
    assert asked == ["infer_bytes"] * 4  # the card, and each scan when it came
    assert not np.allclose(first, other, atol=1e-6)
    np.testing.assert_array_equal(first, again)


@pytest.mark.slow
def test_several_models_answer_with_their_mean(small_files, small_lungs, small_export, tmp_path):
    from tf_covid.local import LocalModels

    export(small_files.network, tmp_path / "one")
    export(small_files.other, tmp_path / "two")
    with Server(ServerSettings(models=tmp_path, port=0, grpc_port=0)) as running:
        assert running.wait_until_ready(60, "one", "two")
        there = RemoteModels(connect(running.rest_url), ["one", "two"])
        here = LocalModels([small_files.network, small_files.other])
        left, right = (stratify(made_scan(), models) for models in (here, there))
    np.testing.assert_allclose(left.severity.probabilities, right.severity.probabilities, atol=1e-4)
    assert [model.sha256 for model in left.models] == [model.sha256 for model in right.models]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://127.0.0.1:1", "no address of a server"),
        ("127.0.0.1:8501", "no address of a server"),
        ("http://127.0.0.1:99999", "no address of a server"),
        ("http://user:word@127.0.0.1:1", "no address of a server"),
        ("http://127.0.0.1:8501/v1/models", "only scheme, host and port"),
        ("", "no address of a server"),
        ("http://a b:8501", "no address of a server"),
    ],
)
def test_what_is_no_address_is_named(url, message):
    with pytest.raises(ServingError, match=message):
        connect(url)


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_a_server_that_is_not_there_is_asked_again_and_then_named(kind, monkeypatch):
    monkeypatch.setattr(client, "TRIES", 3)
    said = []
    with pytest.raises(ServingError, match=r"does not answer|UNAVAILABLE"):
        RemoteModels(connect(f"{kind}://127.0.0.1:9", timeout_s=5), ["small"], said.append)
    assert len(said) == 2
    assert all("asking again" in line for line in said)


def test_a_wrong_token_a_wrong_name_and_a_model_that_is_none_of_ours(url, server):
    with pytest.raises(ServingError, match=r"401|UNAUTHENTICATED"):
        RemoteModels(connect(url, "another-token"), ["small"])
    with pytest.raises(ServingError, match=r"404|NOT_FOUND"):
        RemoteModels(connect(url, "a-token-for-tests"), ["nobody"])
    with pytest.raises(ServingError, match="infer_bytes"):
        RemoteModels(connect(url, "a-token-for-tests"), ["small-clip"])


@pytest.mark.parametrize("token", ["schlüssel", "two words", "line\nbreak"])
def test_a_token_that_cannot_be_sent_is_named_and_not_shown(token):
    for url in ("http://127.0.0.1:1", "grpc://127.0.0.1:1"):
        with pytest.raises(ServingError, match="visible ASCII") as failure:
            connect(url, token)
        assert token not in str(failure.value)


def test_a_trouble_of_the_server_ends_the_run_and_is_no_property_of_the_scan():
    """A scan is refused for what is wrong with it only."""
    codes = {
        400: ScanRefused,
        413: ScanRefused,
        500: ServingError,
        504: ServingError,
        401: ServingError,
    }

    for code, kind in codes.items():

        class Handler(http.server.BaseHTTPRequestHandler):
            code_now = code

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                body = b'{"error": "because"}'
                self.send_response(self.code_now)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments):
                """Quiet."""

        with http.server.HTTPServer(("127.0.0.1", 0), Handler) as other:
            threading.Thread(target=other.serve_forever, daemon=True).start()
            there = RemoteModels.__new__(RemoteModels)
            there._server, there._say = connect(f"http://127.0.0.1:{other.server_port}"), print
            there._sources, there.models, there._last = ["small"], [None], None
            with pytest.raises(kind, match="because"):
                there.segment(made_scan().hu)
            other.shutdown()


def test_what_an_export_does_not_hold_is_refused(server):
    there = RemoteModels(connect(server.rest_url, "a-token-for-tests"), ["small"])
    with pytest.raises(ModelError, match="the server finds the lungs itself"):
        stratify(made_scan(), there, lungs=warmup.chest() == -850)
    with pytest.raises(ModelError, match="exports explain by gradcam"):
        stratify(made_scan(), there, attention="layercam")


@pytest.mark.slow
def test_a_model_that_changes_under_a_run_ends_it(small_files, small_lungs, tmp_path):
    export(small_files.network, tmp_path / "m")
    with Server(ServerSettings(models=tmp_path, port=0, grpc_port=0, poll_s=0.1)) as running:
        assert running.wait_until_ready(60, "m")
        there = RemoteModels(connect(running.rest_url), ["m"])
        stratify(made_scan(), there)
        export(small_files.other, tmp_path / "m")
        assert running.repository.wait_for(lambda one: one.available()["m"].number == 2, 60)
        with pytest.raises(ServingError, match="is another one now"):
            stratify(made_scan(1), there)


def good_answer(server):
    hu = made_scan().hu
    inputs = {"hu_bytes": np.array([hu.tobytes()], object), "shape": np.array([hu.shape], np.int32)}
    return connect(server.rest_url, "a-token-for-tests").predict("small", "infer_bytes", inputs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"card_bytes": [b"{}"]}, "card|export"),
        ({"card_bytes": "text"}, "bytes|card|export"),
        ({"lungs_bytes": [b"nothing"]}, "are no tensor"),
        ({"lungs_bytes": []}, "has no lungs_bytes"),
        ({"logits": [[1.0, 2.0]]}, "shape"),
        ({"logits": None}, "shape"),
        ({"keep": [[True] * 3]}, "shape"),
        ({"attention_cells": [[1.0]]}, "shape"),
        ({"box": [["a", "b", "c", "d"]]}, "no usable box"),
    ],
)
def test_an_answer_that_makes_no_sense_is_named(server, change, message):
    answers = iter([good_answer(server), {**good_answer(server), **change}])

    class Odd:
        url = "odd"

        def predict(self, model, signature, inputs):
            return next(answers)

    there = RemoteModels(Odd(), ["small"])
    with pytest.raises(ServingError, match=message):
        stratify(made_scan(), there)


def test_logits_that_are_no_numbers_refuse_the_scan(server):
    answers = iter([good_answer(server), {**good_answer(server), "logits": [[float("nan")] * 5]}])

    class Odd:
        url = "odd"

        def predict(self, model, signature, inputs):
            return next(answers)

    result = stratify(made_scan(), RemoteModels(Odd(), ["small"]))
    assert result.status == "refused"
    assert result.quality_flags[0].code == "not_finite"


@pytest.mark.parametrize(
    "body", [b"<html>", b"[]", b'{"outputs": 3}', b'{"outputs": {"card_bytes": 3}}', b"{}"]
)
def test_a_web_server_that_is_no_tf_serving_is_named(body):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            """Quiet."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(ServingError):
            RemoteModels(connect(f"http://127.0.0.1:{other.server_port}"), ["small"])
        other.shutdown()


def test_a_scan_that_the_server_refuses_is_a_quality_flag_and_the_others_go_on(server):
    there = RemoteModels(connect(server.rest_url, "a-token-for-tests"), ["small"])
    empty = dataclasses.replace(made_scan(), hu=np.zeros((24, 0, 0), np.int16))
    with pytest.raises(ScanRefused, match="server_refused"):
        there.segment(empty.hu)
    assert stratify(made_scan(), there).status == "pass"
