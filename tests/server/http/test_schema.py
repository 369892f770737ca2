"""The OpenAPI document: what it says of `/v1/scans` is what the server does."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tf_covid import __version__
from tf_covid.server.errors import RequestError
from tf_covid.server.http import schema
from tf_covid.server.http.scan_process import FILES
from tf_covid.server.http.scans import _suffix


@pytest.fixture
def document(running: Any) -> dict[str, Any]:
    response = running.http.get("/openapi.json")
    assert response.status_code == 200
    found: dict[str, Any] = response.json()
    return found


def test_it_is_openapi_and_tells_of_scans_only(document: dict[str, Any]) -> None:
    assert re.fullmatch(r"3\.1\.\d+", document["openapi"])
    assert document["info"]["version"] == __version__
    assert "not a medical device" in document["info"]["description"]
    assert {path: sorted(methods) for path, methods in document["paths"].items()} == {
        "/v1/scans": ["post"],
        "/v1/scans/{scan}": ["delete"],
        "/v1/scans/{scan}/{file}": ["get"],
    }
    text = json.dumps(document)
    assert "HTTPValidationError" not in text
    operations = [one for methods in document["paths"].values() for one in methods.values()]
    assert len({one["operationId"] for one in operations}) == len(operations)
    for one in operations:
        assert one["responses"]
        assert all(answer["description"] for answer in one["responses"].values())


def test_every_error_of_the_server_is_in_it(document: dict[str, Any]) -> None:
    said = set(document["paths"]["/v1/scans"]["post"]["responses"])
    kinds = {kind.http for kind in RequestError.__subclasses__()}
    # 499 is an answer that nobody is there to see.
    assert said == {"200", "422", *map(str, kinds - {499})}


def test_what_it_says_is_taken_and_given(document: dict[str, Any], running: Any) -> None:
    post = document["paths"]["/v1/scans"]["post"]
    assert [one["name"] for one in post["parameters"]] == ["model"]
    assert set(post["requestBody"]["content"]) == set(schema.UPLOADS)
    assert _suffix(b"PK\x03\x04") == ".zip"
    file = document["paths"]["/v1/scans/{scan}/{file}"]["get"]
    assert set(file["responses"]["200"]["content"]) == set(FILES.values())
    for method, path in (("GET", "/v1/scans/none/report.html"), ("DELETE", "/v1/scans/none")):
        answer = running.http.request(method, path)
        assert answer.status_code == 404
        assert list(answer.json()) == ["error"]


def test_a_token_guards_it(start: Any) -> None:
    server = start(token="a-token-of-some-length")
    assert server.http.get("/openapi.json").status_code == 200
    answer = server.http.get("/openapi.json", headers={"Authorization": "Bearer of-another"})
    assert answer.status_code == 401
