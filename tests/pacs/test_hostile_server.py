"""Servers that are no archive, or a bad one: a named error each, in time, and nothing leaks."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pydicom
import pytest

from tf_covid.errors import PacsError
from tf_covid.pacs.address import Access
from tf_covid.pacs.dicomweb import DicomWeb
from tf_covid.pacs.retrieve import retrieve_study
from tf_covid.pacs.store import store_objects

STUDY = "1.2.3"
ACCESS = Access("user", "secret-word", "", None, None)
JSON, MULTIPART = (
    "application/dicom+json",
    'multipart/related; type="application/dicom"; boundary=b',
)

Answer = tuple[int, str, bytes]


def item(**elements: str) -> dict[str, Any]:
    tags = {"series": "0020000E", "modality": "00080060", "instance": "00080018"}
    return {tags[name]: {"vr": "UI", "Value": [value]} for name, value in elements.items()}


def listing(*items: dict[str, Any]) -> Answer:
    return 200, JSON, json.dumps(items).encode()


SERIES = listing(item(series="1.2.3.1", modality="CT"))
INSTANCES = listing(item(instance="1.2.3.1.1"), item(instance="1.2.3.1.2"))


@pytest.fixture
def server() -> Iterator[Any]:
    """A server that answers what a test says, by what the path ends in."""

    class Server(ThreadingHTTPServer):
        answers: dict[str, Answer | Callable[[BaseHTTPRequestHandler], None]]
        seen: list[str]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.server.seen.append(f"{self.path} {self.headers.get('Authorization')}")
            path = self.path.partition("?")[0]
            ends = [end for end in self.server.answers if path.endswith(end)]
            answer = self.server.answers[max(ends, key=len)] if ends else (404, "text/plain", b"")
            if callable(answer):
                return answer(self)
            status, kind, body = answer
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            if 300 <= status < 400:
                self.send_header("Location", body.decode())
            self.end_headers()
            self.wfile.write(body)
            return None

        do_POST = do_GET

        def log_message(self, *_: Any) -> None: ...

    with Server(("127.0.0.1", 0), Handler) as running:
        running.answers, running.seen = {}, []
        running.url = f"http://127.0.0.1:{running.server_port}/dicom-web"
        threading.Thread(target=running.serve_forever, daemon=True).start()
        try:
            yield running
        finally:
            running.shutdown()


def retrieve(server: Any, folder: Path) -> str:
    folder.mkdir(exist_ok=True)
    with (
        DicomWeb(server.url, ACCESS, read_s=2.0) as archive,
        pytest.raises(PacsError) as caught,
    ):
        retrieve_study(archive, STUDY, folder, lambda line: None)
    text = str(caught.value)
    assert "secret-word" not in text
    assert "\n" not in text
    assert not list(folder.glob("*.dcm"))
    return text


def part(body: bytes, head: bytes = b"Content-Type: application/dicom") -> bytes:
    return b"\r\n--b\r\n" + head + b"\r\n\r\n" + body


def dicom(chest: Path, number: int, **values: str) -> bytes:
    import io

    image = pydicom.dcmread(sorted(chest.iterdir())[number])
    image.StudyInstanceUID = STUDY
    for keyword, value in values.items():
        setattr(image, keyword, value)
    stream = io.BytesIO()
    image.save_as(stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((200, "text/html", b"<html>Log in</html>"), "pacs_answer"),
        ((200, JSON, b""), "pacs_answer"),
        ((200, JSON, b"null"), "pacs_answer"),
        ((200, JSON, b'{"a": 1}'), "pacs_answer"),
        ((200, JSON, b"[1, 2]"), "pacs_answer"),
        ((200, JSON, b"[[]]"), "pacs_answer"),
        ((200, JSON, b"[{}]"), "pacs_answer"),
        ((200, JSON, b'[{"0020000E": null}]'), "pacs_answer"),
        ((200, JSON, b'[{"0020000E": {"Value": "1.2"}}]'), "pacs_answer"),
        ((200, JSON, b'[{"0020000E": {"Value": [{"a": 1}]}}]'), "pacs_answer"),
        ((200, JSON, b'[{"0020000E": {"Value": ["../../etc"]}}]'), "pacs_answer"),
        ((200, JSON, b'[{"0020000E": {"Value": ["1.2?x=1"]}}]'), "pacs_answer"),
        ((200, JSON, b"[" * 100_000), "pacs_answer"),
        ((200, JSON, b"\xff\xfe[]"), "pacs_answer"),
        ((200, JSON, b"[]"), "pacs_unknown"),
        ((204, JSON, b""), "pacs_unknown"),
        ((404, "text/plain", b""), "pacs_unknown"),
        ((401, "text/plain", b"who?"), "pacs_denied"),
        ((403, "text/plain", b"no"), "pacs_denied"),
        ((302, "text/plain", b"http://127.0.0.1:9/elsewhere"), "pacs_answer"),
        ((500, "text/plain", b"oh"), "pacs_broken"),
        ((503, "text/plain", b"busy"), "pacs_broken"),
    ],
)
def test_a_list_that_is_none(server: Any, tmp_path: Path, answer: Answer, reason: str) -> None:
    server.answers["/series"] = answer
    assert retrieve(server, tmp_path / "in").startswith(reason)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((200, "application/dicom", b"DICM"), "pacs_answer"),
        ((200, "multipart/related", b""), "pacs_answer"),
        ((200, MULTIPART, b""), "pacs_incomplete"),
        ((200, MULTIPART, b"--b--\r\n"), "pacs_incomplete"),
        ((200, MULTIPART, part(b"no DICOM") + b"\r\n--b--"), "pacs_incomplete"),
        ((200, MULTIPART, part(b"") * 1000 + b"\r\n--b--"), "pacs_incomplete"),
        ((200, MULTIPART, b"x" * 1_000_000), "pacs_answer"),
        ((200, MULTIPART, part(b"", b"y" * 1_000_000)), "pacs_answer"),
        ((404, "text/plain", b""), "pacs_unknown"),
        ((406, "text/plain", b"no such syntax"), "pacs_answer"),
    ],
)
def test_images_that_are_none(server: Any, tmp_path: Path, answer: Answer, reason: str) -> None:
    server.answers |= {"/series": SERIES, "/instances": INSTANCES, "/1.2.3.1": answer}
    server.answers |= {"/1.2.3.1.1": answer, "/1.2.3.1.2": answer}
    assert retrieve(server, tmp_path / "in").startswith(reason)


@pytest.mark.parametrize(
    ("of", "uids"),
    [
        ("study", {"StudyInstanceUID": "9.9.9"}),
        ("series", {"StudyInstanceUID": STUDY, "SeriesInstanceUID": "9.9.9"}),
    ],
)
def test_an_image_of_another_one_ends_it(
    server: Any, chest: Path, tmp_path: Path, of: str, uids: dict[str, str]
) -> None:
    """It would be answered as a slice of this patient."""
    other = dicom(chest, 0, **uids)
    body = part(other) + b"\r\n--b--"
    server.answers |= {
        "/series": SERIES,
        "/instances": INSTANCES,
        "/1.2.3.1": (200, MULTIPART, body),
    }
    text = retrieve(server, tmp_path / "in")
    assert text.startswith("pacs_answer")
    assert f"another {of}" in text


def test_the_same_image_many_times_is_one(server: Any, chest: Path, tmp_path: Path) -> None:
    body = (
        part(dicom(chest, 0, SeriesInstanceUID="1.2.3.1", SOPInstanceUID="1.2.3.1.1")) * 50
        + b"\r\n--b--"
    )
    server.answers |= {
        "/series": SERIES,
        "/instances": INSTANCES,
        "/1.2.3.1": (200, MULTIPART, body),
    }
    server.answers |= {f"/1.2.3.1.{number}": (200, MULTIPART, body) for number in (1, 2)}
    folder = tmp_path / "in"
    folder.mkdir()
    with (
        DicomWeb(server.url, ACCESS) as archive,
        pytest.raises(PacsError, match="gave 1 of them"),
    ):
        retrieve_study(archive, STUDY, folder, lambda line: None)
    assert len(list(folder.iterdir())) == 1


def test_a_redirect_gets_no_password(server: Any, tmp_path: Path) -> None:
    server.answers["/series"] = (302, "text/plain", f"{server.url}/elsewhere".encode())
    retrieve(server, tmp_path / "in")
    assert not [line for line in server.seen if "elsewhere" in line]


def test_a_byte_a_second_is_too_slow(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tf_covid.pacs.connection._TOTAL_S", 2.0)

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", JSON)
        handler.end_headers()
        try:
            for _ in range(100):
                handler.wfile.write(b" " * (1 << 18))
                handler.wfile.flush()
                time.sleep(0.2)
        except OSError:
            pass

    server.answers["/series"] = drip
    start = time.monotonic()
    assert retrieve(server, tmp_path / "in").startswith("pacs_timeout")
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    "answer",
    [
        (200, JSON, b""),
        (200, JSON, b"{}"),
        (200, JSON, b'{"00081199": {"Value": []}}'),
        (202, JSON, b'{"00081198": {"Value": [{"00081155": {"Value": ["1.2"]}}]}}'),
        (409, JSON, b'{"00081198": {"Value": [{"00081197": {"Value": [272]}}]}}'),
        (200, JSON, b"[]"),
        (200, JSON, b"no JSON"),
        (200, JSON, b'{"00081199": 3}'),
        (200, JSON, b'{"00081199": {"Value": [null]}}'),
        (400, "text/plain", b"bad"),
        (413, "text/plain", b"too large"),
        (507, "text/plain", b"full"),
    ],
)
def test_nothing_is_stored_by_an_archive_that_does_not_list_it(
    server: Any, chest: Path, answer: Answer
) -> None:
    server.answers |= {"/studies": answer, "/instances": listing()}
    with (
        DicomWeb(server.url, ACCESS) as archive,
        pytest.raises(PacsError, match=r"pacs_(not_stored|answer|broken)"),
    ):
        store_objects(archive, [next(chest.iterdir())], lambda line: None)


def test_an_archive_that_says_it_took_it_and_does_not_list_it(server: Any, chest: Path) -> None:
    path = next(chest.iterdir())
    uid = str(pydicom.dcmread(path).SOPInstanceUID)
    said = json.dumps({"00081199": {"Value": [{"00081155": {"Value": [uid]}}]}}).encode()
    server.answers |= {"/studies": (200, JSON, said), "/instances": listing()}
    with (
        DicomWeb(server.url, ACCESS) as archive,
        pytest.raises(PacsError, match="pacs_not_stored"),
    ):
        store_objects(archive, [path], lambda line: None)
