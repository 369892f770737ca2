"""TF_CONFIG, and workers that meet before they train, over real sockets."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tf_covid.errors import TrainingError
from tf_covid.training.meeting import meet
from tf_covid.training.tf_config import TfConfig

WORKERS = ["here:2222", "there:2222", "[::1]:2223"]


def config(cluster: Any, task: Any) -> str:
    return json.dumps({"cluster": cluster, "task": task})


def test_the_environment_says_who_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", config({"worker": WORKERS}, {"type": "worker", "index": 2}))
    read = TfConfig.read()
    assert (read.addresses, read.index, read.is_chief) == (tuple(WORKERS), 2, False)
    monkeypatch.setenv("TF_CONFIG", config({"worker": WORKERS}, {"type": "worker", "index": 0}))
    assert TfConfig.read().is_chief


OWN = {"type": "worker", "index": 0}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is not set"),
        ("{", "it holds '{'"),
        ("[]", "it holds"),
        ("{}", "it holds"),
        (config({"worker": WORKERS}, {"type": "worker"}), "it holds"),
        (config(WORKERS, OWN), "it holds"),
        (config({"worker": WORKERS, "ps": ["a:1"]}, OWN), "it has ps; worker 0 is the chief"),
        (config({"worker": WORKERS, "chief": ["a:1"]}, OWN), "it has chief"),
        (config({"worker": WORKERS}, {"type": "evaluator", "index": 0}), "type 'evaluator'"),
        (config({"worker": "here:1"}, OWN), "no list of HOST:PORT"),
        (config({"worker": ["here", "there:1"]}, OWN), "no list of HOST:PORT"),
        (config({"worker": ["here:0", "there:1"]}, OWN), "no list of HOST:PORT"),
        (config({"worker": ["here:99999", "there:1"]}, OWN), "no list of HOST:PORT"),
        (config({"worker": [7, "there:1"]}, OWN), "no list of HOST:PORT"),
        (config({"worker": ["here:1", "here:1"]}, OWN), "the same address"),
        (config({"worker": ["here:1"]}, OWN), "it has one worker"),
        (config({"worker": []}, OWN), "it has one worker|no list"),
        (config({"worker": WORKERS}, {"type": "worker", "index": 3}), "worker '3' of 3, from 0"),
        (config({"worker": WORKERS}, {"type": "worker", "index": -1}), "worker '-1' of 3"),
        (config({"worker": WORKERS}, {"type": "worker", "index": "0"}), "worker '0' of 3"),
        (config({"worker": WORKERS}, {"type": "worker", "index": True}), "worker 'True' of 3"),
    ],
)
def test_a_wrong_environment_is_said(text: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(TrainingError, match=rf"^tf_config: .*({why})"):
        TfConfig.read()


def free_port() -> int:
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        return int(line.getsockname()[1])


class Meeting:
    """Workers of this process, a thread each."""

    def __init__(self, count: int, wait_s: float = 20.0) -> None:
        self.addresses = tuple(f"127.0.0.1:{free_port()}" for _ in range(count))
        self.wait_s = wait_s
        self.outcomes: dict[int, str] = {}
        self.messages: list[str] = []
        self._threads: list[threading.Thread] = []

    def start(self, index: int, asked: dict[str, Any], addresses: tuple[str, ...] = ()) -> None:
        def work() -> None:
            try:
                own = TfConfig(addresses or self.addresses, index)
                meet(own, asked, on_message=self.messages.append, wait_s=self.wait_s)
                self.outcomes[index] = "met"
            except TrainingError as error:
                self.outcomes[index] = str(error)

        self._threads.append(threading.Thread(target=work))
        self._threads[-1].start()

    def wait(self) -> dict[int, str]:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        return self.outcomes

    def say(self, data: bytes) -> None:
        """A stranger at the chief's port, who is there before anybody else."""
        host, _, port = self.addresses[0].partition(":")
        for _ in range(100):
            try:
                line = socket.create_connection((host, int(port)), 1)
                break
            except OSError:
                threading.Event().wait(0.05)
        line.sendall(data)
        line.close()


ASKED = {"settings": {"clip": [16, 32, 32], "seed": 1}, "tensorflow": "2.99", "init": "scratch"}


def test_workers_that_were_asked_alike_meet() -> None:
    meeting = Meeting(3)
    # The first to come waits for the chief.
    for index in (2, 0, 1):
        meeting.start(index, {**ASKED, "settings": {"seed": 1, "clip": (16, 32, 32)}})
    assert meeting.wait() == dict.fromkeys(range(3), "met")
    assert "worker 0 of 3: waiting for the others" in meeting.messages


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({**ASKED, "settings": {"clip": [16, 32, 32], "seed": 2}}, "settings"),
        ({**ASKED, "tensorflow": "2.98", "init": "abc"}, "init, tensorflow"),
        ({**ASKED, "lobes_sha256": "1"}, "lobes_sha256"),
        ({"settings": ASKED["settings"]}, "init, tensorflow"),
    ],
)
def test_workers_that_were_asked_otherwise_hear_it(other: dict[str, Any], why: str) -> None:
    meeting = Meeting(2)
    meeting.start(0, ASKED)
    meeting.start(1, other)
    expected = f"workers_differ: worker 1 ({meeting.addresses[1]}) and worker 0 differ in {why}"
    assert meeting.wait() == {0: expected, 1: expected}


def test_workers_of_another_list_differ() -> None:
    meeting = Meeting(2)
    meeting.start(0, ASKED)
    meeting.start(1, ASKED, (meeting.addresses[0], "127.0.0.1:9"))
    assert "differ in the workers of TF_CONFIG" in meeting.wait()[1]


def test_a_worker_that_does_not_come_is_named() -> None:
    meeting = Meeting(3, wait_s=1.5)
    meeting.start(0, ASKED)
    meeting.start(2, ASKED)
    expected = f"workers_missing: worker 1 ({meeting.addresses[1]}) did not come in time"
    assert meeting.wait() == {0: expected, 2: expected}


def test_a_chief_that_does_not_come_is_named() -> None:
    meeting = Meeting(2, wait_s=1.0)
    meeting.start(1, ASKED)
    outcome = meeting.wait()[1]
    assert outcome.startswith(f"workers_missing: worker 0 ({meeting.addresses[0]}) was not there")


@pytest.mark.parametrize(
    "stranger",
    [
        lambda meeting: meeting.say(b"GET / HTTP/1.1\r\n\r\n"),
        lambda meeting: meeting.say(b""),
        lambda meeting: meeting.say(b"{}\n"),
        lambda meeting: meeting.say(b"[1, 2]\n"),
        lambda meeting: meeting.say(b'{"index": 7}\n'),
        lambda meeting: meeting.say(b'{"index": true}\n'),
        lambda meeting: meeting.say(b"[" * 200_000 + b"\n"),
        lambda meeting: meeting.say(b"\xff" * 3_000_000 + b"\n"),
    ],
)
def test_strangers_at_the_port_are_nobody(stranger: Callable[[Meeting], None]) -> None:
    meeting = Meeting(2)
    meeting.start(0, ASKED)
    stranger(meeting)
    meeting.start(1, ASKED)
    assert meeting.wait() == {0: "met", 1: "met"}


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        meeting = Meeting(2)
        meeting.addresses = (f"127.0.0.1:{port}", meeting.addresses[1])
        meeting.start(0, ASKED)
        assert meeting.wait()[0].startswith(f"tf_config: worker 0 cannot listen at port {port}")
