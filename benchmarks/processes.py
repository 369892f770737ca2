"""The processes that `serve.py` measures.

The embedded server, and the same SavedModel called directly.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from tf_covid import console

#: Seconds that a server may take to load its models, and a process to load and answer.
_READY_S, _ANSWER_S = 300.0, 300.0

#: Seconds between two looks at a server's memory.
_TICK_S = 0.2


@dataclass(frozen=True)
class Ended:
    """How a server ended: exit code (None: it had to be killed), and seconds from SIGTERM."""

    code: int | None
    seconds: float


class ServerProcess:
    """`tfcovid serve` on free ports of this machine; see `serving`.

    Args:
        models: Folder of the exports.
        options: More of the command's options.
    """

    def __init__(self, models: Path, options: tuple[str, ...]) -> None:
        command = [
            sys.executable,
            "-m",
            "tf_covid.cli",
            "serve",
            "--models",
            str(models),
            "--port",
            "0",
        ]
        environment = {name: value for name, value in os.environ.items() if name != "TFCOVID_TOKEN"}
        self._process = subprocess.Popen(
            [*command, "--grpc-port", "0", *options],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        #: All that it has said.
        self.lines: list[str] = []
        self._ended = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()
        self.watched = psutil.Process(self._process.pid)
        self.rest = self.grpc = ""

    def wait_until_ready(self, names: set[str]) -> float:
        """Wait until it serves these models; gives the seconds.

        Raises:
            SystemExit: If it ends, or is not ready in time.
        """
        start = time.monotonic()
        while time.monotonic() < start + _READY_S and not self._ended.wait(0.1):
            said = dict(
                line.split(maxsplit=1)
                for line in list(self.lines)
                if line.startswith(("REST  ", "gRPC  "))
            )
            if len(said) == 2:
                self.rest, self.grpc = said["REST"].removeprefix("http://"), said["gRPC"]
                if names <= set(self._served()):
                    return time.monotonic() - start
        raise SystemExit(f"the server does not serve {', '.join(sorted(names))}: {self.lines}")

    def gauge(self, name: str) -> float:
        """A figure of `/metrics`."""
        lines = self.get("/metrics").decode().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))

    def get(self, path: str) -> bytes:
        """The body of a GET; of an error, too."""
        # Not through a proxy that some environment variable names.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://{self.rest}{path}", timeout=30) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            return bytes(error.read())

    def terminate(self, within_s: float) -> Ended:
        """Send SIGTERM, and wait for the end."""
        start = time.monotonic()
        self._process.terminate()
        try:
            code: int | None = self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            code = None
        return Ended(code, time.monotonic() - start)

    def kill(self) -> None:
        """End it at once, if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def _served(self) -> list[str]:
        return list(json.loads(self.get("/readyz")).get("models", ()))

    def _listen(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as said:
            for line in said:
                self.lines.append(line.rstrip())
        self._ended.set()


@contextmanager
def serving(models: Path, *options: str) -> Iterator[ServerProcess]:
    """A server that is killed at the end, unless it was stopped before."""
    process = ServerProcess(models, options)
    try:
        yield process
    finally:
        process.kill()


class Memory:
    """Resident memory of a server, sampled in a thread while the block runs."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        #: (time.monotonic(), MB), one a tick.
        self.samples: list[tuple[float, float]] = []

    def __enter__(self) -> Memory:
        """Start."""
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop."""
        self._stop.set()
        self._thread.join()

    @property
    def now(self) -> float:
        """MB (2²⁰ bytes)."""
        return float(self._server.watched.memory_info().rss) / 2**20

    def highest(self) -> float:
        """MB, of all samples."""
        return max(size for _, size in self.samples)

    def median(self, begin: float, end: float) -> float:
        """MB, of the samples between two times; NaN if there are none."""
        held = [size for when, size in self.samples if begin <= when <= end]
        return float(np.median(held)) if held else float("nan")

    def _sample(self) -> None:
        while not self._stop.wait(_TICK_S):
            try:
                self.samples.append((time.monotonic(), self.now))
            except psutil.Error:  # it has ended
                return


class Direct:
    """The exports, loaded with `tf.saved_model.load` in a process of its own and called there.

    Args:
        folders: Name → folder of a version.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_answer_directly, args=(theirs, dict(folders)), daemon=True
        )
        self._process.start()
        theirs.close()

    def __enter__(self) -> Direct:
        """Nothing more: it loads while others start."""
        return self

    def __exit__(self, *error: object) -> None:
        """End it."""
        self._process.kill()
        self._process.join()

    def ask(
        self, model: str, signature: str, inputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """The outputs; it keeps the request for `again`."""
        self._pipe.send((model, signature, dict(inputs)))
        return self._received()[1]

    def again(self) -> tuple[float, dict[str, np.ndarray]]:
        """Seconds from arrays to arrays, and outputs, of the last request once more."""
        self._pipe.send(None)
        return self._received()

    def _received(self) -> tuple[float, dict[str, np.ndarray]]:
        try:
            if self._pipe.poll(_ANSWER_S):
                return self._pipe.recv()  # type: ignore[no-any-return]
        except EOFError:
            pass
        raise SystemExit("the process that calls the SavedModel directly does not answer")


def _answer_directly(pipe: Connection, folders: Mapping[str, Path]) -> None:
    """The other side of `Direct`."""
    console.import_tensorflow()
    import tensorflow as tf

    loaded = {name: tf.saved_model.load(str(folder)) for name, folder in folders.items()}
    held: tuple[str, str, dict[str, Any]] = ("", "", {})
    while True:
        held = pipe.recv() or held
        model, signature, inputs = held
        start = time.perf_counter()
        tensors = {name: tf.constant(array) for name, array in inputs.items()}
        answer = loaded[model].signatures[signature](**tensors)
        outputs = {name: tensor.numpy() for name, tensor in answer.items()}
        pipe.send((time.perf_counter() - start, outputs))
