"""Workers meet before they train: all are there, and all were asked for the same.

TensorFlow's own start waits for workers that never come without an end, and cannot be interrupted.
The chief listens at its own address of TF_CONFIG, hears from each other worker what it was asked
for, and tells all of them whether that is the same. The port is TensorFlow's afterwards.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

from tf_covid.errors import TrainingError
from tf_covid.tensor import Json
from tf_covid.training.tf_config import TfConfig

#: Seconds that workers wait for each other: machines of a queue do not start at once.
WAIT_S = 600.0

#: Seconds that a connection may take to say what it is, and bytes that it may take.
_HELLO_S, _MOST_BYTES = 10.0, 1 << 20

#: Seconds that workers which are on their way may take, once others are known to differ.
_LATE_S = 60.0

_AGREED = "agreed"


def meet(
    config: TfConfig,
    asked: Mapping[str, Any],
    *,
    on_message: Callable[[str], None],
    wait_s: float = WAIT_S,
) -> None:
    """Wait until all workers are there, and compare what they were asked for.

    Args:
        config: The workers.
        asked: Name → what this worker was asked for, ready for JSON.
        on_message: Hears whom it waits for.
        wait_s: Longest wait, in seconds.

    Raises:
        TrainingError: If a worker does not come, or was asked for something else.
    """
    own = {"workers": list(config.addresses), "index": config.index, "asked": dict(asked)}
    until = time.monotonic() + wait_s
    if config.is_chief:
        _receive(config, own, until, on_message)
    else:
        _report(config, own, until, on_message)


def _receive(
    config: TfConfig, own: dict[str, Any], until: float, on_message: Callable[[str], None]
) -> None:
    """The chief's side."""
    missing = set(range(1, len(config.addresses)))
    lines: dict[int, socket.socket] = {}
    problems: dict[int, str] = {}
    on_message(f"worker 0 of {len(config.addresses)}: waiting for the others")
    with ExitStack() as open_until_the_end, _listening(config.addresses[0]) as listener:
        while missing:
            listener.settimeout(max(until - time.monotonic(), 0.01))
            try:
                line, _ = listener.accept()
            except TimeoutError:
                break
            open_until_the_end.enter_context(line)
            heard = _hear(line)
            index = heard.get("index") if heard else None
            if heard is None or type(index) is not int or not isinstance(heard.get("asked"), dict):
                continue  # nobody of ours
            # One that was started again comes again.
            lines[index] = line
            missing.discard(index)
            if differing := _differing(own, heard):
                at = (
                    f" ({config.addresses[index]})" if index in range(len(config.addresses)) else ""
                )
                problems[index] = (
                    f"worker {index}{at} and worker 0 differ in {', '.join(differing)}"
                )
                # Those that are on their way hear of it, too.
                until = min(until, time.monotonic() + _LATE_S)
        absent = ", ".join(f"{one} ({config.addresses[one]})" for one in sorted(missing))
        verdict = _AGREED
        if problems:
            verdict = f"workers_differ: {'; '.join(problems.values())}"
        elif missing:
            verdict = f"workers_missing: worker {absent} did not come in time"
        for line in lines.values():
            _send(line, verdict)
    if verdict != _AGREED:
        raise TrainingError(verdict)


def _report(
    config: TfConfig, own: dict[str, Any], until: float, on_message: Callable[[str], None]
) -> None:
    """The side of the others."""
    _listening(config.addresses[config.index], config.index).close()  # TensorFlow's, soon
    host, _, port = config.addresses[0].rpartition(":")
    on_message(f"worker {config.index} of {len(config.addresses)}: reporting to worker 0")
    why = "does not answer"
    while time.monotonic() < until:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), 10.0) as line:
                _send(line, own)
                line.settimeout(max(until - time.monotonic() + _HELLO_S, 0.01))
                verdict = _read(line)
        except OSError as error:
            why = error.strerror or str(error) or why
            verdict = None
        if verdict == _AGREED:
            return
        if isinstance(verdict, str):
            raise TrainingError(verdict)
        time.sleep(0.5)
    raise TrainingError(
        f"workers_missing: worker 0 ({config.addresses[0]}) was not there in time ({why})"
    )


def _listening(address: str, index: int = 0) -> socket.socket:
    """A socket at the port of an address.

    Raises:
        TrainingError: If this machine cannot listen there.
    """
    host, _, port = address.rpartition(":")
    try:
        kind = socket.AF_INET6 if ":" in host.strip("[]") else socket.AF_INET
        return socket.create_server(("", int(port)), family=kind, backlog=64)
    except OSError as error:
        raise TrainingError(
            f"tf_config: worker {index} cannot listen at port {port} ({error.strerror or error})"
        ) from error


def _hear(line: socket.socket) -> dict[str, Any] | None:
    """What a worker says of itself; None where it is none."""
    line.settimeout(_HELLO_S)
    with suppress(OSError):
        heard = _read(line)
        if isinstance(heard, dict):
            return heard
    return None


def _read(line: socket.socket) -> Json:
    """A line of JSON; None where there is none, or too long a one."""
    text = bytearray()
    while not text.endswith(b"\n"):
        part = line.recv(1 << 16)
        text += part
        if not part or len(text) > _MOST_BYTES:
            return None
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    return None


def _send(line: socket.socket, value: Json) -> None:
    with suppress(OSError):
        line.sendall(json.dumps(value).encode() + b"\n")


def _differing(own: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of what two workers were not asked alike."""
    if other.get("workers") != own["workers"]:
        return ["the workers of TF_CONFIG"]
    asked, others = json.loads(json.dumps(own["asked"])), other.get("asked")
    others = others if isinstance(others, dict) else {}
    return sorted(name for name in {*asked, *others} if asked.get(name) != others.get(name))
