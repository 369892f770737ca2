"""The embedded server: TF Serving's REST and gRPC API over a folder of models."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from tf_covid.errors import ServingError
from tf_covid.extras import optional_import
from tf_covid.server.settings import ServerSettings, is_loopback
from tf_covid.tensor import Message

_LOG = logging.getLogger("tf_covid.server")

#: Most connections at once; more are told 503.
_CONNECTIONS = 256

#: Seconds that uvicorn may take to begin.
_START_S = 30.0


class Server:
    """A running server; use it as a context manager.

    Models are loaded in the background: it answers `/healthz` at once, and `/readyz` with 503 until
    one is served.

    Args:
        settings: Settings of the server.
        command: For tests: gives the command line that answers a scan, from upload, output folder
            and model.

    Raises:
        ServingError: If a library is missing, the folder of models is none, or a port is taken.
    """

    def __init__(self, settings: ServerSettings, command: Message = None) -> None:
        for module in (
            "fastapi",
            "grpc",
            "prometheus_client",
            "tensorflow_serving.apis.predict_pb2",
            "uvicorn",
        ):
            optional_import(module)
        if not settings.models.is_dir():
            raise ServingError(f"{settings.models}: is not a folder of models")
        self.settings = settings
        self._command = command
        self._stopped = False
        self._scans: Any = None
        self._rest: Any = None
        self._grpc: Any = None
        self._uvicorn: Any = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Start to listen and to load."""
        # Here, so that `import tf_covid.server.server` needs neither TensorFlow nor the extra.
        from tf_covid.server import grpc_service
        from tf_covid.server.batcher import Batcher
        from tf_covid.server.context import ServerContext
        from tf_covid.server.http.routes import RestApi
        from tf_covid.server.http.scan_process import infer_command
        from tf_covid.server.http.scans import Scans
        from tf_covid.server.metrics import Metrics
        from tf_covid.server.repository import Repository

        settings, self._address = self.settings, self.settings.address()
        self._socket = _listen(self._address, settings.port)
        port = self._socket.getsockname()[1]
        self.rest_url = f"http://{_bracketed(self._address)}:{port}"
        repository = Repository(settings.models, settings.poll_s)
        metrics = Metrics(
            lambda: batcher.depth, lambda: batcher.running, lambda: len(repository.available())
        )
        batcher = Batcher(
            settings.queue,
            settings.workers,
            settings.batch,
            settings.batch_wait_ms / 1000,
            metrics.batch_rows.observe,
        )
        self.repository, self.batcher, self.metrics = repository, batcher, metrics
        self._context = ServerContext(settings, repository, batcher, metrics)
        try:
            self._grpc, grpc_port = grpc_service.start(self._context, self._address)
            self.grpc_address = f"{_bracketed(self._address)}:{grpc_port}"
            self._scans = Scans(
                self._context, self._command or infer_command(lambda: self._own_url(port))
            )
            self._rest = RestApi(self._context, self._scans)
            self._start_rest()
        except BaseException:
            self.stop(0)
            raise
        repository.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop: see `stop`."""
        self.stop()

    def wait_until_ready(self, timeout_s: float, *models: str) -> bool:
        """Wait until these models are served, or any one if none is named.

        False if they are not in that time.
        """

        def is_ready(repository: Message) -> bool:
            available = set(repository.available())
            return available >= set(models) if models else bool(available)

        return self.repository.wait_for(is_ready, timeout_s)

    def stop(self, grace_s: float | None = None) -> bool:
        """Take no more requests, finish those in flight, and end.

        Args:
            grace_s: Seconds that they may take; None: as in the settings.

        Returns:
            Whether all were finished in that time.
        """
        if self._stopped:
            return True
        self._stopped = True
        grace = self.settings.grace_s if grace_s is None else grace_s
        self._until = time.monotonic() + grace

        def left() -> float:
            return max(self._until - time.monotonic(), 0)

        self._context.stopping.set()
        if self._scans is not None:  # each of these may be None, where a start has failed
            self._scans.drain(left)  # before the doors close: its process asks here for its answers
        self._context.closed.set()
        over = None if self._grpc is None else self._grpc.stop(left())
        finished = self.batcher.close(left())
        if self._scans is not None:
            self._scans.close()
        if over is not None:
            over.wait(left() + 1)
        if self._uvicorn is not None:
            self._uvicorn.should_exit = True
        if self._thread is not None:
            self._thread.join(left() + 5)
        if self._rest is not None:
            self._rest.close()
        self._socket.close()
        self.repository.stop()
        return finished

    def end_grace_time(self) -> None:
        """End the grace time of a `stop` that goes on in another thread."""
        self._until = time.monotonic()
        self.batcher.end_grace_time()

    def _start_rest(self) -> None:
        import uvicorn

        from tf_covid.server.http.body import header_timeout_protocol

        config = uvicorn.Config(
            self._rest.app(self._hosts()),
            http=header_timeout_protocol(self.settings.read_limit_s),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,  # it would hold paths, which can hold names
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=max(int(self.settings.grace_s), 1),
        )
        self._uvicorn = uvicorn.Server(config)
        started, outer = threading.Event(), self._uvicorn.startup

        async def startup(sockets: list[socket.socket] | None = None) -> None:
            await outer(sockets)
            started.set()

        self._uvicorn.startup = startup
        # A thread of its own: uvicorn then leaves the signals to `serve`.
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._uvicorn.serve([self._socket])),
            name="tfcovid-rest",
            daemon=True,
        )
        self._thread.start()
        if not started.wait(_START_S):
            raise ServingError(f"{self.rest_url}: REST did not start")

    def _hosts(self) -> frozenset[str] | None:
        from tf_covid.server.http.middleware import host_name

        if not is_loopback(self._address):
            return None
        own = {"localhost", "127.0.0.1", "[::1]", _bracketed(self._address)}
        # A proxy may pass on the Host header that it was sent.
        public = [url.partition("//")[2] for url in self.settings.public_urls]
        return frozenset(own.union(host_name(host.encode("ascii")) for host in public))

    def _own_url(self, port: int) -> str:
        """The URL at which a process on this machine reaches the server."""
        # Nothing is bound here: the two wildcards are looked up.
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # a key, not an address
        return f"http://{_bracketed(everywhere.get(self._address, self._address))}:{port}"


def serve(settings: ServerSettings, on_message: Callable[[str], None]) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP, then finish what is in flight.

    For the main thread of a program.

    Args:
        settings: Settings of the server.
        on_message: Called with a line about where it listens and what it does.

    Raises:
        ServingError: If it cannot start.
    """
    stop, at_once = threading.Event(), threading.Event()

    def on_signal(number: int, frame: object) -> None:
        (at_once if stop.is_set() else stop).set()

    before = {
        number: signal.signal(number, on_signal)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    }
    try:
        with Server(settings) as server:
            on_message(f"REST  {server.rest_url}")
            on_message(f"gRPC  {server.grpc_address}")
            for url in settings.public_urls:
                on_message(
                    f"behind {url}"
                    + (
                        ""
                        if settings.token
                        else ": no token is asked for, so the proxy checks who asks"
                    )
                )
            while not stop.wait(
                1
            ):  # in steps: a wait without an end keeps Python from handling a signal
                pass
            on_message("stopping: finishing what is in flight (once more to stop at once)")
            ended = threading.Thread(target=server.stop, daemon=True)
            ended.start()
            while ended.is_alive():
                ended.join(0.2)
                if at_once.is_set():
                    server.end_grace_time()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listen(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
    except OSError as error:
        listener.close()
        raise ServingError(
            f"{_bracketed(address)}:{port}: cannot listen there ({error.strerror})"
        ) from error
    return listener


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
