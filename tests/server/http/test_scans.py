"""`POST /v1/scans`: a whole scan in, its answer out, and nothing left behind."""

from __future__ import annotations

import gzip
import io
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import pytest

from tf_covid.server.http.scan_process import FILES, infer_command

TOKEN = "a-token-for-tests"

#: A stand-in for `tfcovid infer`: a real program, which does as the upload's first word says.
#: UPLOAD, OUT, MODEL.
STAND_IN = textwrap.dedent("""
    import json, os, pathlib, signal, sys, time, zipfile
    upload, out, model = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
    word = zipfile.ZipFile(upload).read("word").decode() if upload.suffix == ".zip" else "answer"
    facts = {"upload": upload.name, "model": model, "token": os.environ.get("TFCOVID_TOKEN"), "pid": os.getpid(),
             "folder": str(upload.parent), "mode": oct(upload.parent.stat().st_mode & 0o777)}
    def answer(case, **values):
        folder = out / case
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps({"case": case, "status": "pass", "facts": facts, **values}))
        if values.get("status") != "refused":
            (folder / "report.html").write_text("<p>report</p>")
            (folder / "montage.png").write_bytes(b"png")
            (folder / "lungs.nii.gz").write_bytes(b"lungs")
            (folder / "secret.txt").write_text("not to be handed out")
    if word == "answer":
        answer("scan")
    elif word == "refuse":
        answer("scan", status="refused", quality_flags=[{"code": "few_slices"}])
        sys.exit(1)
    elif word == "several":
        answer("one"), answer("two")
    elif word == "nothing":
        sys.exit("Error: " + str(upload) + ": no readable scan")
    elif word == "said":
        sys.exit("Error: several_cases: the upload holds 3 cases")
    elif word in ("answered 504: slow", "answered 429: full", "does not answer (Timeout)"):
        sys.exit("Error: scan: http://127.0.0.1:1 " + word)
    elif word == "wait":
        (upload.parent / "began").write_text(str(os.getpid()))
        time.sleep(600)
    elif word == "memory":
        held = bytearray(4 << 30)
    elif word == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif word == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif word == "garbage":
        (out / "scan").mkdir(parents=True)
        (out / "scan/result.json").write_text("{")
    """)


def command(upload: Path, out: Path, model: str) -> Sequence[str]:
    return (sys.executable, "-c", STAND_IN, str(upload), str(out), model)


def saying(word: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("word", word)
    return data.getvalue()


def nifti() -> bytes:
    return nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)).to_bytes()


@pytest.fixture
def scans(start: Any, store: Any) -> Callable[..., Any]:
    def make(**settings: Any) -> Any:
        store.put("infers", "net")
        store.put("linear-1", "linear")
        return start(command, **settings)

    return make


def post(running: Any, content: bytes, model: str | None = None) -> httpx.Response:
    return running.http.post(
        "/v1/scans", content=content, params={} if model is None else {"model": model}
    )


def left_behind(running: Any) -> list[Path]:
    return list(running.server._scans._root.iterdir())


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (saying("answer"), "scan.zip"),
        (nifti(), "scan.nii"),
        (gzip.compress(nifti()), "scan.nii.gz"),
    ],
)
def test_an_answer_and_its_files(scans: Any, content: bytes, name: str) -> None:
    running = scans(token=TOKEN)
    response = post(running, content)
    assert response.status_code == 200
    result = response.json()
    facts = result["facts"]
    assert (result["status"], facts["upload"], facts["model"], facts["token"]) == (
        "pass",
        name,
        "net",
        TOKEN,
    )
    assert facts["mode"] == "0o700"
    assert stat.S_IMODE(running.server._scans._root.stat().st_mode) == 0o700
    assert not (Path(facts["folder"]) / name).exists()  # the upload is gone with the child
    assert set(result["files"]) == {"report.html", "montage.png", "lungs.nii.gz"} <= set(FILES)
    report = running.http.get(result["files"]["report.html"])
    assert report.text == "<p>report</p>"
    assert "default-src 'none'" in report.headers["content-security-policy"]
    assert "script" not in report.headers["content-security-policy"]
    assert report.headers["x-content-type-options"] == "nosniff"
    assert report.headers["content-type"].startswith("text/html")
    assert running.http.get(result["files"]["lungs.nii.gz"]).content == b"lungs"
    folder = result["files"]["report.html"].rsplit("/", 1)[0]
    for path in (
        "secret.txt",
        "result.json",
        "attention.nii.gz",
        "..%2fresult.json",
        "%2e%2e/%2e%2e/etc/passwd",
    ):
        assert running.http.get(f"{folder}/{path}").status_code == 404
    assert running.http.get("/v1/scans/unknown/report.html").status_code == 404
    assert running.http.delete(folder).status_code == 204
    assert running.http.get(result["files"]["report.html"]).status_code == 404
    assert running.http.delete(folder).status_code == 404
    assert left_behind(running) == []
    assert 'tfcovid_scans_total{code="200"} 1.0' in running.http.get("/metrics").text


@pytest.mark.parametrize(
    ("word", "status", "says"),
    [
        ("several", 422, "2 cases"),
        ("said", 422, "3 cases"),
        ("answered 504: slow", 503, "ask again later"),
        ("answered 429: full", 503, "ask again later"),
        ("does not answer (Timeout)", 503, "ask again later"),
        ("nothing", 400, "Error: scan.zip: no readable scan"),
        ("memory", 507, "out_of_memory"),
        ("killed", 507, "out_of_memory"),
        ("crash", 500, "crashed"),
        ("garbage", 500, "cannot be read"),
    ],
)
def test_no_answer(scans: Any, word: str, status: int, says: str) -> None:
    running = scans(scan_memory_gb=1.0)
    response = post(running, saying(word))
    assert (response.status_code, list(response.json())) == (status, ["error"])
    assert says in response.json()["error"]
    assert "/" not in response.json()["error"]
    assert left_behind(running) == []


def test_a_refused_scan(scans: Any) -> None:
    running = scans()
    response = post(running, saying("refuse"))
    assert response.status_code == 422
    assert response.json()["quality_flags"] == [{"code": "few_slices"}]
    assert response.json()["files"] == {}
    assert left_behind(running) == []


@pytest.mark.parametrize("content", [b"", b"PK", b"DICM", b"<html>", b"\0" * 400, b"n+1\0" * 100])
def test_an_upload_that_is_no_scan(scans: Any, content: bytes) -> None:
    running = scans()
    response = post(running, content)
    assert response.status_code == 400
    assert "NIfTI" in response.json()["error"]
    assert left_behind(running) == []


def test_models_that_are_not_there_or_cannot(scans: Any) -> None:
    running = scans()
    assert post(running, saying("answer"), "net").status_code == 200
    unknown = post(running, saying("answer"), "nobody")
    assert (unknown.status_code, unknown.json()["error"]) == (
        404,
        "Servable not found for request: Latest(nobody)",
    )
    assert post(running, saying("answer"), "linear").status_code == 400
    assert post(running, saying("answer"), "--help").status_code == 404


def test_no_model_for_whole_scans(start: Any, store: Any) -> None:
    store.put("linear-1", "m")
    assert post(start(command), saying("answer")).status_code == 404


def has_begun(running: Any) -> bool:
    return any((folder / "began").exists() for folder in left_behind(running))


def test_one_at_a_time_and_the_time_limit(scans: Any, until: Any) -> None:
    running = scans(scan_time_limit_s=4.0)
    first = running.in_thread(lambda: post(running, saying("wait")))
    until(lambda: has_begun(running))
    full = post(running, saying("answer"))
    assert full.status_code == 429
    assert first.result().status_code == 504
    assert left_behind(running) == []
    assert post(running, saying("answer")).status_code == 200


def test_the_child_of_a_client_that_has_gone_is_killed(scans: Any, until: Any) -> None:
    running = scans()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{running.server.rest_url}/v1/scans",
            content=saying("wait"),
            trust_env=False,
            timeout=1.0,
        )
    until(lambda: left_behind(running) == [])
    until(lambda: post(running, saying("answer")).status_code == 200)


def test_a_stop_ends_the_child_and_deletes_everything(scans: Any, until: Any) -> None:
    running = scans(grace_s=0.2)
    root = running.server._scans._root
    assert post(running, saying("answer")).status_code == 200
    assert len(left_behind(running)) == 1
    call = running.in_thread(lambda: post(running, saying("wait")))
    until(lambda: has_begun(running))
    running.server.stop()
    assert call.result().status_code == 503
    assert not root.exists()


def test_old_answers_are_deleted(scans: Any, until: Any) -> None:
    running = scans(scan_kept=2, scan_keep_minutes=0.05)
    links = [post(running, saying("answer")).json()["files"]["report.html"] for _ in range(3)]
    assert running.http.get(links[0]).status_code == 404
    assert len(left_behind(running)) <= 2
    until(lambda: left_behind(running) == [])
    assert running.http.get(links[2]).status_code == 404


def test_too_large_an_upload(scans: Any) -> None:
    running = scans(message_mb=0.01)
    response = post(running, saying("answer" + "x" * 20_000))
    assert response.status_code == 413
    assert left_behind(running) == []


def test_the_real_command_takes_these_options(tmp_path: Path) -> None:
    from tf_covid import cli

    words = list(
        infer_command(lambda: "http://127.0.0.1:1")(tmp_path / "scan.zip", tmp_path / "out", "net")
    )
    assert words[1:5] == ["-P", "-m", "tf_covid.cli", "infer"]
    options = {name for parameter in cli.infer.params for name in parameter.opts}
    assert "--server" in options
    assert {word for word in words if word.startswith("--")} <= options


def test_several_cases_are_refused_before_any_is_answered(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from tf_covid import cli

    (tmp_path / "scans").mkdir()
    for name in ("one.nii", "two.nii"):
        (tmp_path / "scans" / name).write_bytes(nifti())
    words = [
        str(tmp_path / "scans"),
        "--out",
        str(tmp_path / "out"),
        "--one-case",
        "--server",
        "http://127.0.0.1:1",
    ]
    run = CliRunner().invoke(cli.infer, words)
    assert run.exit_code == 1
    assert "several_cases: the upload holds 2 cases" in run.output
    assert not (tmp_path / "out").exists()


def test_a_client_that_does_not_send_its_scan_keeps_nobody_out(scans: Any, until: Any) -> None:
    running = scans()
    host, port = running.server.rest_url.removeprefix("http://").rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/scans HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nPK"
        )
        until(lambda: left_behind(running))
        assert post(running, saying("answer")).status_code == 200


def test_uploads_have_a_limit(scans: Any, until: Any, monkeypatch: Any) -> None:
    running = scans(message_mb=0.01)
    server = running.server._scans
    first = running.in_thread(lambda: post(running, saying("wait") + b"x" * 9000))
    until(lambda: has_begun(running))
    assert server._here > 9000
    monkeypatch.setattr(server, "_here", server._here + 9000)
    full = post(running, saying("answer") + b"x" * 9000)
    assert full.status_code == 429
    assert "arriving" in full.json()["error"]
    monkeypatch.setattr("tf_covid.server.http.scans._UPLOADS", 0)
    full = post(running, saying("answer"))
    assert full.status_code == 429
    assert "arriving" in full.json()["error"]
    running.server.stop(0.2)
    assert first.result().status_code == 503


SERVER = textwrap.dedent("""
    import importlib.util, sys
    from pathlib import Path
    from tf_covid.server import server
    from tf_covid.server.settings import ServerSettings
    spec = importlib.util.spec_from_file_location("stand_in", sys.argv[2])
    stand_in = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stand_in)
    real = server.Server
    server.Server = lambda settings: real(settings, stand_in.command)
    server.serve(ServerSettings(models=Path(sys.argv[1]), port=0, grpc_port=0), lambda line: print(line, flush=True))
    """)


@pytest.fixture
def program(
    store: Any, tmp_path: Path
) -> Iterator[Callable[[], tuple[subprocess.Popen[str], str]]]:
    """Starts a server as a program of its own, with folders for uploads below `tmp_path/tmp`."""
    store.put("infers", "net")
    (tmp_path / "tmp").mkdir()
    (tmp_path / "stand_in.py").write_text(
        f"import sys\nSTAND_IN = {STAND_IN!r}\ndef command(upload, out, model):\n    return"
        " (sys.executable, '-c', STAND_IN, str(upload), str(out), model)\n"
    )
    with ExitStack() as stack:

        def make() -> tuple[subprocess.Popen[str], str]:
            child = subprocess.Popen(
                [sys.executable, "-c", SERVER, str(store.folder), str(tmp_path / "stand_in.py")],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
            )
            stack.callback(child.wait)
            stack.callback(child.kill)
            assert child.stdout is not None
            stack.enter_context(child.stdout)
            return child, child.stdout.readline().split()[1]

        yield make


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_what_a_killed_server_leaves(program: Any, tmp_path: Path, until: Any, later: Any) -> None:
    """Its child ends with it, and the next server deletes its uploads, but not those of one that
    lives."""

    def ready(url: str) -> bool:
        return httpx.get(f"{url}/readyz", trust_env=False).status_code == 200

    living, url = program()
    until(lambda: ready(url))
    response = httpx.post(f"{url}/v1/scans", content=saying("answer"), trust_env=False, timeout=60)
    report = response.json()["files"]["report.html"]
    killed, other = program()
    until(lambda: ready(other))
    call = later(
        lambda: httpx.post(f"{other}/v1/scans", content=saying("wait"), trust_env=False, timeout=60)
    )
    until(lambda: list(tmp_path.glob("tmp/*/*/began")))
    (began,) = tmp_path.glob("tmp/*/*/began")
    until(lambda: began.read_text())
    pid = int(began.read_text())
    assert is_alive(pid)
    killed.kill()
    with pytest.raises(httpx.HTTPError):
        call.result()
    until(lambda: not is_alive(pid))
    assert began.exists()
    program()
    assert not began.parent.parent.exists()
    assert httpx.get(url + report, trust_env=False).status_code == 200
    living.send_signal(signal.SIGHUP)
    assert living.wait(60) == 0
    assert len(list((tmp_path / "tmp").glob("*"))) == 1  # the third one's


def test_the_real_command_finds_no_scan_in_a_zip_of_none(start: Any, store: Any) -> None:
    store.put("infers", "net")
    running = start()
    response = post(running, saying("no scan at all"))
    assert response.status_code in (400, 422), response.text
    assert str(running.server._scans._root) not in response.text
    assert os.sep + "tmp" not in response.text
    assert left_behind(running) == []


@pytest.mark.parametrize("packed", [False, True])
def test_a_tar_upload_is_named_as_one(packed: bool) -> None:
    import gzip
    import tarfile

    from tf_covid.server.http.scans import _suffix

    block = tarfile.TarInfo("1.dcm").tobuf()
    assert _suffix(gzip.compress(block) if packed else block) == (".tar.gz" if packed else ".tar")
    assert _suffix(gzip.compress(bytes(512))) == ".nii.gz"
    assert _suffix(b"\x1f\x8b" + b"?" * 50) == ".nii.gz"
