"""How a watch is: `/healthz` for who starts it again, `/metrics` for Prometheus."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tf_covid.errors import WatchError
from tf_covid.watch.journal import STATES

#: Seconds without a step after which a watch counts as stuck: an answer takes far less.
_STUCK_S = 1800.0
_SECONDS = (5, 10, 15, 20, 30, 45, 60, 120, 300, 600)


class Health:
    """What a watch says about itself; any thread may ask."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._lock = threading.Lock()
        self._problems: dict[str, str] = {}
        self._step = time.monotonic()
        self._series = self._gauge("series", "Series in the journal.", ("state",))
        self._up = self._gauge("up", "Whether a source or destination answers.", ("name",))
        self._free = self._gauge("free_bytes", "Of the disk of the answers.")
        self._last = self._gauge("last_step_timestamp_seconds", "When it last did something.")
        self._seconds = Histogram(
            "tfcovid_watch_answer_seconds",
            "Seconds from the beginning of a series to the end of its answer.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._images = Counter(
            "tfcovid_watch_images",
            "CT images that were sent here, kept or refused.",
            ("taken",),
            registry=self.registry,
        )

    def step(self, counts: Mapping[str, int], free_bytes: int) -> None:
        """It lives.

        Args:
            counts: Series in each state.
            free_bytes: Of the disk of the answers.
        """
        with self._lock:
            self._step = time.monotonic()
        for state in STATES:
            self._series.labels(state).set(counts.get(state, 0))
        self._free.set(free_bytes)
        self._last.set_to_current_time()

    def problem(self, name: str, text: str | None) -> bool:
        """Whether something is wrong with a source, a destination or the disk; whether that is new.

        Args:
            name: What may be wrong.
            text: What is wrong; None: nothing any more.
        """
        self._up.labels(name).set(text is None)
        with self._lock:
            before = self._problems.pop(name, None)
            if text is not None:
                self._problems[name] = text
        return (before is None) != (text is None)

    def answered(self, seconds: float) -> None:
        """A series was answered."""
        self._seconds.observe(seconds)

    def image(self, taken: bool) -> None:
        """A CT image was sent here, and kept or refused."""
        self._images.labels("yes" if taken else "no").inc()

    def problems(self) -> dict[str, str]:
        """What is wrong, by what it is wrong with; empty if nothing is."""
        with self._lock:
            problems = dict(self._problems)
            still_s = time.monotonic() - self._step
        if still_s > _STUCK_S:
            problems["watch"] = f"watch_stuck: nothing was done for {still_s:.0f} s"
        return problems

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(f"tfcovid_watch_{name}", text, labels, registry=self.registry)


def serve_health(health: Health, port: int) -> ThreadingHTTPServer:
    """Answer `/healthz` and `/metrics` on this machine alone, in threads of their own.

    Args:
        health: What to answer.
        port: Where; 0: a free one.

    Raises:
        WatchError: If nobody can listen there.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            if self.path == "/healthz":
                problems = health.problems()
                text = json.dumps({"status": "failing" if problems else "ok", "problems": problems})
                self._answer(503 if problems else 200, "application/json", text.encode())
            elif self.path == "/metrics":
                kind = "text/plain; version=0.0.4; charset=utf-8"
                self._answer(200, kind, generate_latest(health.registry))
            else:
                self._answer(404, "text/plain", b"/healthz and /metrics are here\n")

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: it is asked every few seconds."""

        def _answer(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise WatchError(
            f"watch_listen: nobody can listen at 127.0.0.1:{port}: {error.strerror}"
        ) from None
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="tfcovid-health", daemon=True).start()
    return server
