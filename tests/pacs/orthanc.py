"""A real archive for tests, Orthanc with its DICOMweb plugin, and a bad connection to it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

USER, PASSWORD = "tfcovid", "secret-word"
_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Orthanc:
    """An archive that runs.

    Args:
        port: Of its HTTP server.
        dimse_port: Of its DICOM node, ORTHANC; 0 for none.
    """

    port: int
    dimse_port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/dicom-web"

    def ask(self, method: str, path: str, **options: Any) -> Any:
        """Its own REST API."""
        response = httpx.request(
            method,
            f"http://127.0.0.1:{self.port}{path}",
            auth=(USER, PASSWORD),
            timeout=_PATIENCE_S,
            trust_env=False,
            **options,
        )
        response.raise_for_status()
        return response.json() if response.content else None

    def put(self, *files: Path) -> None:
        """Store files, by its own API."""
        for file in files:
            self.ask("POST", "/instances", content=file.read_bytes())

    def clear(self) -> None:
        """Remove everything."""
        for patient in self.ask("GET", "/patients"):
            self.ask("DELETE", f"/patients/{patient}")

    def modalities(self) -> list[str]:
        """Modality of every series that it holds."""
        return sorted(
            self.ask("GET", f"/series/{series}")["MainDicomTags"]["Modality"]
            for series in self.ask("GET", "/series")
        )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def running(
    folder: Path, ports: tuple[int, int] | None = None, **further: Any
) -> Iterator[Orthanc]:
    """Start an archive; skip the test where there is none.

    Args:
        folder: Holds what it stores.
        ports: Of HTTP and DICOM, for one that starts again; free ones without.
        further: Settings of its own.
    """
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    if program is None or not _PLUGIN.exists():
        pytest.skip("needs Orthanc and its DICOMweb plugin: make test-system, as root")
    orthanc = Orthanc(*(ports or (free_port(), free_port())))
    settings = {
        "StorageDirectory": str(folder / "db"),
        "IndexDirectory": str(folder / "db"),
        "HttpPort": orthanc.port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: PASSWORD},
        "DicomServerEnabled": True,
        "DicomPort": orthanc.dimse_port,
        "DicomAet": "ORTHANC",
        "DicomCheckCalledAet": True,
        "DicomAlwaysAllowStore": False,
        "DicomModalities": {"watch": ["TFCOVID", "127.0.0.1", 1]},
        "Plugins": [str(_PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        **further,
    }
    (folder / "orthanc.json").write_text(json.dumps(settings), "utf-8")
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(
            [program, folder / "orthanc.json"], stdout=log, stderr=subprocess.STDOUT
        )
    try:
        end = time.monotonic() + _PATIENCE_S
        while True:
            try:
                orthanc.ask("GET", "/system")
                break
            except httpx.HTTPError:
                assert process.poll() is None, (folder / "orthanc.log").read_text("utf-8")
                assert time.monotonic() < end, "Orthanc did not start"
                time.sleep(0.1)
        yield orthanc
    finally:
        process.terminate()
        process.wait(_PATIENCE_S)


@dataclass
class BadLine:
    """A connection to an archive that can be spoilt.

    Args:
        port: Where it listens.
        cut_answers: Bytes of answers after which each of the next connections breaks off.
        cut_requests: The same of requests.
        rate: Bytes a second of answers; 0 for no limit.
        silent: Whether it takes connections and never answers.
        on_answer: Called with the bytes that went back so far.
    """

    port: int = 0
    cut_answers: list[int] = field(default_factory=list)
    cut_requests: list[int] = field(default_factory=list)
    rate: int = 0
    silent: bool = False
    on_answer: Any = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/dicom-web"


@contextmanager
def bad_line(to: int) -> Iterator[BadLine]:
    """A proxy in front of a port of this machine, as good as its settings let it be."""
    line = BadLine()
    stop = threading.Event()

    def pump(source: socket.socket, target: socket.socket, most: int, answers: bool) -> None:
        done = 0
        try:
            while data := source.recv(1 << 14):
                if most and done + len(data) > most:
                    target.sendall(data[: most - done])
                    break
                target.sendall(data)
                done += len(data)
                if answers and line.rate:
                    time.sleep(len(data) / line.rate)
                if answers and line.on_answer is not None:
                    line.on_answer(done)
        except OSError:
            pass
        finally:
            for end in (source, target):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def serve(client: socket.socket) -> None:
        if line.silent:
            stop.wait(_PATIENCE_S)
            client.close()
            return
        # One connection is one cut; those of short answers count as well, so a test says 0 for them.
        server = socket.create_connection(("127.0.0.1", to))
        requests = line.cut_requests.pop(0) if line.cut_requests else 0
        answers = line.cut_answers.pop(0) if line.cut_answers else 0
        forth = threading.Thread(target=pump, args=(client, server, requests, False), daemon=True)
        forth.start()
        pump(server, client, answers, True)
        forth.join()
        client.close()
        server.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        line.port = listener.getsockname()[1]
        listener.settimeout(0.2)

        def accept() -> None:
            while not stop.is_set():
                try:
                    client, _ = listener.accept()
                except TimeoutError:
                    continue
                except OSError:
                    return
                client.settimeout(None)
                threading.Thread(target=serve, args=(client,), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield line
        finally:
            stop.set()
            thread.join()
