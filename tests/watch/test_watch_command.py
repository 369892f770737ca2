"""`tfcovid watch` as a user meets it: what ends it, what it shows, and what survives its kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from tests.pacs.orthanc import PASSWORD, USER, Orthanc, free_port
from tf_covid.cli import main
from tf_covid.watch.journal import DONE, FAILED, Journal, SeenSeries, read_rows

PATIENCE_S = 60.0


def watch(*arguments: Any, code: int) -> Any:
    result = CliRunner().invoke(main, ["watch", *map(str, arguments)])
    assert result.exit_code == code, result.output + str(result.exception)
    return result


@contextmanager
def running(*arguments: Any, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tf_covid.cli", "watch", *map(str, arguments)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until(there: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
    end = time.monotonic() + patience_s
    while not (value := there()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)
    return value


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ((), 2, "A SOURCE is needed"),
        (("dimse:A@127.0.0.1:1", "--called-aet", "SEVENTEEN_LETTERS"), 2, "is no AE title"),
        (("dimse:A@127.0.0.1:1", "--allow-aet", "A\\B"), 2, "is no AE title"),
        (("dimse:A@127.0.0.1:1", "--dimse-tls"), 2, "--client-cert"),
        (("dimse:A@127.0.0.1",), 1, "error: dimse_address: dimse:AET@HOST:PORT is needed"),
        (("dimse:A@192.0.2.1:104",), 1, "error: watch_listen: nobody can listen at"),
        (("dicomweb:ftp://pacs",), 1, "error: pacs_url"),
        (("dicomweb:",), 1, "error: pacs_url"),
        (("no-such-folder",), 1, "error: watch_folder: no-such-folder is no folder"),
        ((".", "--model", "no-such-model"), 1, "error: "),
        ((".", "--store", "elsewhere"), 1, "error: pacs_url"),
        ((".", "--store", "dimse:x"), 1, "error: dimse_address"),
        ((".", "--status"), 1, "error: journal_missing"),
        ((".", "--quiet-seconds", "-1"), 2, "--quiet-seconds"),
    ],
)
def test_what_cannot_be_watched(
    tmp_path: Path, arguments: tuple[str, ...], code: int, text: str
) -> None:
    assert text in watch(*arguments, "--out", tmp_path / "out", code=code).stderr


@pytest.mark.parametrize("module", ["highdicom", "prometheus_client", "pynetdicom"])
def test_without_the_extra_it_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    refused = watch(tmp_path, "--out", tmp_path.parent / "none", code=1)
    assert f'error: {module} is not installed; pip install -e ".[dicom]"' in refused.stderr
    assert not (tmp_path.parent / "none").exists()


def test_a_folder_that_holds_its_answers(tmp_path: Path) -> None:
    for out in (tmp_path, tmp_path / "below" / "out"):
        refused = watch(tmp_path, "--out", out, code=2)
        assert "--out lies in the folder that is watched" in refused.stderr


def test_archives_that_cannot_be_used(
    orthanc: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tf_covid.pacs.connection._PAUSE_S", 0.01)
    monkeypatch.setenv("TFCOVID_DICOMWEB_USER", USER)
    monkeypatch.setenv("TFCOVID_DICOMWEB_PASSWORD", "wrong-word")
    nowhere = f"dicomweb:http://127.0.0.1:{free_port()}/dicom-web"
    lost = f"dicomweb:http://127.0.0.1:{orthanc.port}/elsewhere"
    for source, code in (
        (f"dicomweb:{orthanc.url}", "pacs_denied"),
        (nowhere, "pacs_unreachable"),
        (lost, "pacs_"),
    ):
        for arguments in ((source,), (tmp_path, "--store", source)):
            refused = watch(*arguments, "--out", tmp_path.parent / "o", code=1)
            assert f"error: {code}" in refused.stderr
            assert "wrong-word" not in refused.output
    monkeypatch.setenv("TFCOVID_DICOMWEB_PASSWORD", PASSWORD)
    refused = watch(lost, "--out", tmp_path / "out", code=1)
    assert "error: pacs_unknown" in refused.stderr, "a wrong path is no empty archive"


def test_the_journal_as_text_and_as_json(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        for number in range(3):
            journal.add(SeenSeries("folder:/a", f"1.{number}", f"2.{number}", frozenset("ab")))
        first, second = journal.start(["folder:/a"]), journal.start(["folder:/a"])
        assert first is not None
        assert second is not None
        journal.end(first, DONE)
        journal.end(second, FAILED, "pacs_not_stored: no")
        # While a watch has it.
        shown = watch("--status", "--out", tmp_path, code=0).stdout.splitlines()
    assert shown[0] == "1 waiting, 1 done, 1 failed"
    assert " failed (2 images) study 1.1: pacs_not_stored: no" in shown[2]
    lines = watch("--status", "--json", "--out", tmp_path, code=0).stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["state"] for row in rows] == ["done", "failed", "waiting"]
    assert rows[0]["study_uid"] == "1.0"
    assert rows[0]["seen_at"].endswith("Z")


def test_a_watch_from_start_to_end(tmp_path: Path) -> None:
    """Without a scan: no TensorFlow is loaded."""
    (tmp_path / "in").mkdir()
    log, port = tmp_path / "log", free_port()
    arguments = [tmp_path / "in", f"dimse:A@127.0.0.1:{free_port()}", "--out", tmp_path / "out"]
    with running(*arguments, "--health-port", port, log=log) as process:

        def health() -> httpx.Response | None:
            try:
                return httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False)
            except httpx.HTTPError:
                return None

        answer = until(health)
        assert (answer.status_code, answer.json()) == (200, {"status": "ok", "problems": {}})
        until(lambda: "watching folder:" in log.read_text("utf-8"))
        metrics = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text
        assert 'tfcovid_watch_series{state="done"} 0.0' in until(
            lambda: metrics if "tfcovid_watch_series{" in metrics else None
        )
        assert "tfcovid_watch_images_total" in metrics
        assert httpx.get(f"http://127.0.0.1:{port}/x", trust_env=False).status_code == 404
        second = watch(tmp_path / "in", "--out", tmp_path / "out", code=1)
        assert "error: watch_runs: another watch uses" in second.stderr
        (tmp_path / "in").rename(tmp_path / "away")
        until(lambda: health().status_code == 503)  # type: ignore[union-attr]
        (tmp_path / "away").rename(tmp_path / "in")
        until(lambda: health().status_code == 200)  # type: ignore[union-attr]
        for _ in range(3):  # as who ends a group of processes does
            process.terminate()
            time.sleep(0.05)
        assert process.wait(PATIENCE_S) == 0
    assert "ended by a signal" in log.read_text("utf-8")
    assert "Traceback" not in log.read_text("utf-8")
    with running(*arguments, log=log) as process:
        until(lambda: log.read_text("utf-8").count("watching folder:") == 2)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.slow
def test_kills_and_restarts_lose_nothing_and_answer_nothing_twice(tmp_path: Path) -> None:
    """`benchmarks/watch.py`, with fewer studies."""
    program = Path(__file__).parents[2] / "benchmarks" / "watch.py"
    arguments = ["--studies", "10", "--kills", "5", "--restarts", "1", "--folder", tmp_path]
    done = subprocess.run(
        [sys.executable, program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=1500,
    )
    if "no Orthanc" in done.stderr:
        pytest.skip("needs Orthanc and its DICOMweb plugin: make test-system, as root")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "10 of 10 studies answered once and stored once" in done.stdout
    rows = read_rows(tmp_path / "answers")
    assert [entry.state for entry in rows] == [DONE] * 10
