"""Several servers as one: shared work, one that dies, one that returns, one that is another."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

from tests.small_scans import made_scan
from tf_covid.cli import main
from tf_covid.client import pool as module
from tf_covid.client.pool import OtherExport, ServerPool
from tf_covid.client.remote import AIR, SIGNATURE, one_scan
from tf_covid.client.transport import Rejected, ServerBusy, ServerLost, ServerUnavailable, connect
from tf_covid.errors import ServingError
from tf_covid.phantom.files import write_nifti_volume
from tf_covid.server.server import Server
from tf_covid.server.settings import ServerSettings

CARD = json.dumps({"sha256": "a" * 64, "lungs": {"sha256": "b" * 64}}).encode()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "LOOK_AGAIN_S", (0.02, 0.05))
    monkeypatch.setattr(module, "PATIENCE_S", 5.0)


class Scripted:
    """A server that does what a script says: an error, a card, or an answer.

    Real ones die when they like; what the pool makes of each way to fail is tried with this.
    """

    def __init__(self, name: str, *script: Any, card: bytes = CARD) -> None:
        self.url, self.script, self.card = f"http://{name}:1", list(script), card
        self.asked: list[str] = []
        self.gate = threading.Event()
        self.gate.set()

    def predict(self, model: str, signature: str, inputs: Any, version: Any = None) -> Any:
        scan = int(inputs["shape"][0][0])
        self.asked.append("card" if scan == 1 else str(scan))
        self.gate.wait(10)
        step = self.script.pop(0) if self.script else None
        if isinstance(step, Exception):
            raise step
        return {"card_bytes": [self.card], "from": self.url, "scan": scan}


def ask(pool: ServerPool, slices: int = 20) -> Any:
    return pool.predict("m", SIGNATURE, one_scan(np.zeros((slices, 4, 4), np.int16)))


def pooled(*servers: Scripted, messages: list[str] | None = None) -> Any:
    said: list[str] = [] if messages is None else messages
    return contextlib.closing(ServerPool(servers, ["m"], said.append))


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def test_requests_go_to_the_server_that_has_the_fewest():
    one, two = Scripted("one"), Scripted("two")
    with pooled(one, two) as pool:
        one.gate.clear()
        thread = threading.Thread(target=ask, args=(pool, 20))
        thread.start()
        wait_for(lambda: "20" in one.asked + two.asked)
        for slices in (21, 22, 23):
            assert ask(pool, slices)["from"] == two.url
        one.gate.set()
        thread.join()
    assert one.asked[:2] == ["card", "20"]
    assert two.asked[:4] == ["card", "21", "22", "23"]


def test_idle_servers_take_turns():
    one, two, three = Scripted("one"), Scripted("two"), Scripted("three")
    with pooled(one, two, three) as pool:
        answers = [ask(pool)["from"] for _ in range(9)]
    assert sorted(answers) == sorted([one.url, two.url, three.url] * 3)


@pytest.mark.parametrize(
    "failure",
    [
        ServerUnavailable("http://one:1 does not answer (ConnectError)"),
        ServerLost("http://one:1 does not answer (ReadError)"),
        ServingError("http://one:1 answered 500: out of memory"),
        ServingError("http://one:1 answered 401: no token"),
    ],
)
def test_a_server_that_fails_is_left_out_the_scan_goes_to_another_and_it_returns(failure):
    said: list[str] = []
    one, two = Scripted("one", None, failure, failure, failure), Scripted("two")
    with pooled(one, two, messages=said) as pool:
        assert ask(pool)["from"] == two.url
        assert "one:1 is left out until it answers" in said[0]
        # Two failed looks in the background, then one that succeeds.
        wait_for(lambda: any("answers again" in line for line in said))
        assert {ask(pool)["from"] for _ in range(4)} == {one.url, two.url}
    assert one.asked[:5] == ["card", "20", "card", "card", "card"]
    assert len(said) == 2


def test_a_busy_server_is_no_failure():
    said: list[str] = []
    one, two = Scripted("one", None, ServerBusy("http://one:1 answered 429: full")), Scripted("two")
    with pooled(one, two, messages=said) as pool:
        assert ask(pool)["from"] == two.url
        assert "asking another server" in said[0]
        assert not any("left out" in line for line in said)
        assert {ask(pool)["from"] for _ in range(2)} == {one.url, two.url}


def test_servers_that_are_all_busy_say_so():
    full = ServerBusy("answered 429: full")
    with pooled(Scripted("one", None, full), Scripted("two", None, full)) as pool:
        with pytest.raises(ServerBusy, match="full"):
            ask(pool)
        assert ask(pool)["scan"] == 20


def test_a_scan_that_a_server_rejects_is_asked_about_once():
    servers = [Scripted(name, None, Rejected("answered 400: no scan")) for name in ("one", "two")]
    with pooled(*servers) as pool, pytest.raises(Rejected, match="no scan"):
        ask(pool)
    assert [server.asked for server in servers] == [["card", "20"], ["card"]]


def test_a_scan_that_servers_go_away_under_does_not_end_all_of_them():
    gone = ServerLost("does not answer (ReadError)")
    servers = [Scripted(str(number), None, gone) for number in range(5)]
    with pooled(*servers) as pool:
        with pytest.raises(Rejected, match="3 servers went away while they had this scan"):
            ask(pool, 30)
        assert sum("30" in server.asked for server in servers) == 3
        assert ask(pool, 31)["scan"] == 31


def test_faults_of_two_servers_end_the_request():
    fault = ServingError("answered 500: because")
    servers = [Scripted(str(number), None, fault) for number in range(4)]
    with pooled(*servers) as pool, pytest.raises(ServingError, match="because"):
        ask(pool, 30)
    assert sum("30" in server.asked for server in servers) == 2


def test_a_request_waits_for_a_server_to_return_and_gives_up_in_the_end(monkeypatch):
    gone = ServerUnavailable("does not answer (ConnectError)")
    one, two = Scripted("one", None, gone, gone), Scripted("two", None, gone, gone, gone)
    with pooled(one, two) as pool:
        assert ask(pool)["scan"] == 20
    monkeypatch.setattr(module, "PATIENCE_S", 0.2)
    never = [Scripted(name, None, *[gone] * 1000) for name in ("one", "two")]
    with pooled(*never) as pool, pytest.raises(ServerUnavailable, match="none of 2 servers"):
        ask(pool)


def test_no_server_at_all_is_named_with_every_reason():
    servers = [Scripted(name, *[ServerUnavailable(f"{name} is not there")] * 99) for name in "ab"]
    with pytest.raises(ServingError, match="no server answers: a is not there; b is not there"):
        ServerPool(servers, ["m"])


def test_one_that_is_not_there_at_first_joins_later():
    said: list[str] = []
    late = Scripted("late", *[ServerUnavailable("late does not answer")] * 2)
    with pooled(Scripted("one"), late, messages=said) as pool:
        assert ask(pool)["from"] == "http://one:1"
        wait_for(lambda: "http://late:1 answers again" in said)
        assert {ask(pool)["from"] for _ in range(2)} == {"http://one:1", late.url}


def other_card(**changes: Any) -> bytes:
    return json.dumps({**json.loads(CARD), **changes}).encode()


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (other_card(sha256="c" * 64), "has a model m cccccccccccc"),
        (other_card(lungs={"sha256": "d" * 64}), "dddddddddddd"),
        (other_card(versions={"keras": "3.0"}), "of the same weights in an export that differs"),
    ],
)
def test_servers_with_different_exports_do_not_answer_together(card, message):
    with pytest.raises(OtherExport, match=message):
        ServerPool([Scripted("one"), Scripted("two", card=card)], ["m"])


def test_an_answer_of_another_export_is_never_used_and_its_server_stays_out():
    said: list[str] = []
    one, two = Scripted("one"), Scripted("two")
    with pooled(one, two, messages=said) as pool:
        two.card = other_card(sha256="c" * 64)
        assert {ask(pool)["from"] for _ in range(6)} == {one.url}
        wait_for(lambda: any("stays left out" in line for line in said))
        one.card = other_card(sha256="c" * 64)
        with pytest.raises(ServingError, match="every server has another export now"):
            ask(pool)


def test_many_threads_lose_and_double_nothing():
    rng = np.random.default_rng(0)
    gone = ServerUnavailable("does not answer (ConnectError)")
    servers = [
        Scripted(str(number), None, *[gone if rng.random() < 0.3 else None for _ in range(60)])
        for number in range(4)
    ]
    answers: list[int] = []
    with pooled(*servers) as pool:

        def work(first: int) -> None:
            answers.extend(ask(pool, first + step)["scan"] for step in range(25))

        threads = [threading.Thread(target=work, args=(100 * (1 + at),)) for at in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        wait_for(lambda: all(one.in_flight == 0 for one in pool._pooled))
    assert sorted(answers) == [100 * (1 + at) + step for at in range(6) for step in range(25)]


def test_a_pool_that_is_closed_looks_at_nothing():
    gone = ServerUnavailable("does not answer")
    one, two = Scripted("one"), Scripted("two", *[gone] * 1000)
    with pooled(one, two):
        wait_for(lambda: len(two.asked) > 2)
    time.sleep(0.2)
    count = len(two.asked)
    time.sleep(0.2)
    assert len(two.asked) == count


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve small scans, each a little different, and one that is none."""
    folder = tmp_path_factory.mktemp("cohort")
    for number in range(12):
        scan = made_scan(number, columns=2 + number)
        write_nifti_volume(scan.hu, scan.affine, folder / f"scan-{number:02}.nii.gz")
    (folder / "torn.nii.gz").write_bytes((folder / "scan-00.nii.gz").read_bytes()[:5000])
    return folder


def answers(folder: Path) -> dict[str, Any]:
    """What each case was answered, without what differs between two equal answers."""
    found = {}
    for path in sorted(folder.glob("*/result.json")):
        values = json.loads(path.read_text("utf-8"))
        for name in ("timings_s", "answered_at", "versions"):
            values.pop(name, None)  # a refused case has no times
        found[path.parent.name] = values
    return found


def one_by_one(scans: list[Path], out: Path, url: str) -> None:
    words = ["infer", *map(str, scans), "--out", str(out), "--model", "small", "--server", url]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 1, done.output


def test_a_cohort_through_two_servers_is_the_cohort_through_one(small_export, cohort, tmp_path):
    folder = small_export.stratifier.parents[1]
    settings = ServerSettings(models=folder, port=0, grpc_port=0, poll_s=0.2)
    scans = [*sorted(cohort.glob("scan-*"))[:3], cohort / "torn.nii.gz"]
    with Server(settings) as first, Server(settings) as second:
        for each in (first, second):
            assert each.wait_until_ready(60, "small")
        before = sample(first), sample(second)
        words = ["infer", *map(str, scans), "--out", str(tmp_path / "two"), "--model", "small"]
        urls = ["--server", first.rest_url, "--server", f"grpc://{second.grpc_address}"]
        done = CliRunner().invoke(main, [*words, *urls])
        assert done.exit_code == 1, done.output
        assert "torn" in done.output
        # Both had some of the scans, and not the cards alone.
        cards = 1 + 2
        assert sample(first) - before[0] > 1
        assert sample(second) - before[1] > 1
        assert sample(first) + sample(second) - sum(before) >= 3 + cards
        one_by_one(scans, tmp_path / "one", first.rest_url)
    left, right = answers(tmp_path / "one"), answers(tmp_path / "two")
    assert left == right
    assert len(left) == 4
    assert left["torn"]["status"] == "refused"
    tables = [
        list(csv.DictReader((tmp_path / side / "summary.csv").open(encoding="utf-8")))
        for side in ("one", "two")
    ]
    assert [row["case"] for row in tables[0]] == [row["case"] for row in tables[1]]
    assert len(tables[1]) == 4


def sample(server: Server) -> int:
    """How many requests a server has answered."""
    text = httpx.get(f"{server.rest_url}/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("tfcovid_requests_total")]
    return int(sum(float(line.rsplit(maxsplit=1)[1]) for line in lines))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", "2"], "--workers are scans that a --server is asked about"),
        (["--server", "http://a:1", "--server", "http://a:1/"], "same server is named twice"),
        (["--server", "http://a:1", "--server", "ftp://b"], "no address of a server"),
    ],
)
def test_options_that_make_no_sense_are_named(words, message, cohort, tmp_path):
    done = CliRunner().invoke(main, ["infer", str(cohort), "--out", str(tmp_path / "out"), *words])
    assert done.exit_code in (1, 2)
    assert message in done.output
    assert "Traceback" not in done.output


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def serving(models: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """`tfcovid serve` in a process of its own, ready."""
    words = ["serve", "--models", str(models), "--port", str(port), "--grpc-port", "0"]
    with subprocess.Popen(
        [sys.executable, "-m", "tf_covid.cli", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    ) as process:
        try:
            deadline = time.monotonic() + 300
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                        break
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.3)
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_one_of_two_servers_is_killed_in_the_middle_and_returns(small_export, cohort, tmp_path):
    """Real processes and a SIGKILL: every scan is answered once, and rightly."""
    folder, ports = small_export.stratifier.parents[1], (free_port(), free_port())
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    servers = [word for url in urls for word in ("--server", url)]
    words = ["infer", str(cohort), "--out", str(tmp_path / "out"), "--model", "small"]
    with serving(folder, ports[0]), serving(folder, ports[1]) as second:
        one_by_one([cohort], tmp_path / "one", urls[0])
        with subprocess.Popen(
            [sys.executable, "-m", "tf_covid.cli", *words, *servers, "--workers", "3"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as running:
            assert running.stdout is not None
            lines, killed, back = [], False, contextlib.ExitStack()
            with back:
                for line in running.stdout:
                    lines.append(line)
                    if not killed and sum("report.html" in one for one in lines) == 4:
                        second.send_signal(signal.SIGKILL)
                        second.wait(30)
                        killed = True
                        back.enter_context(serving(folder, ports[1]))
            text = "".join(lines)
            assert running.wait(60) == 1, text
    assert killed
    assert text.count(f"{urls[1]} is left out until it answers") == 1, text
    assert answers(tmp_path / "out") == answers(tmp_path / "one")
    rows = list(csv.DictReader((tmp_path / "out" / "summary.csv").open(encoding="utf-8")))
    assert len(rows) == 13
    assert text.count("report.html") == 12


@pytest.mark.slow
def test_a_server_that_stops_is_left_out_by_both_protocols(small_export):
    folder = small_export.stratifier.parents[1]
    settings = ServerSettings(models=folder, port=0, grpc_port=0, poll_s=0.2)
    said: list[str] = []
    with Server(settings) as first:
        assert first.wait_until_ready(60, "small")
        with Server(settings) as second:
            assert second.wait_until_ready(60, "small")
            servers = [
                connect(first.rest_url),
                connect(second.rest_url),
                connect(f"grpc://{second.grpc_address}"),
            ]
            pool = ServerPool(servers, ["small"], said.append)
        with contextlib.closing(pool):
            for _ in range(4):
                answer = pool.predict("small", SIGNATURE, one_scan(AIR))
                (text,) = answer["card_bytes"]
                assert json.loads(text)["name"] == "network"
    assert {line.rsplit("; ", 1)[1] for line in said} == {
        f"{servers[1].url} is left out until it answers",
        f"{servers[2].url} is left out until it answers",
    }
