"""How the embedded server is set up."""

from __future__ import annotations

import ipaddress
import re
import socket
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tf_covid.errors import ServingError
from tf_covid.extras import optional_import

_Port = Annotated[int, Field(ge=0, le=65_535)]
_Positive = Annotated[float, Field(gt=0, le=86_400)]


class ServerSettings(BaseModel):
    """Settings of the embedded server.

    Args:
        models: Folder of the models: `models/<name>/<version>/saved_model.pb`.
        host: Address to listen at. One that others can reach needs a token.
        port: Port of REST; 0: any free one.
        grpc_port: Port of gRPC; 0: any free one.
        token: Asked for as `Authorization: Bearer …` everywhere but `/healthz`; None: nobody is
            asked.
        public_urls: `https://NAME[:PORT]` of proxies in front, as a browser sees them: their pages
            may ask, and their names may stand in the Host header. Kept as browsers write an origin.
        queue: Requests that may wait; the next one is refused.
        workers: Requests, or batches, that are computed at once. TensorFlow uses all cores for
            each.
        time_limit_s: Longest time of a request from its arrival, in seconds.
        read_limit_s: Within which the headers, and then the body, of a request must arrive, in
            seconds.
        message_mb: Largest request and answer, in MB (2²⁰ bytes).
        poll_s: Seconds between two looks at the folder of models.
        batch: Most rows that are computed together.
        batch_wait_ms: How long a batch waits for more of its kind, in milliseconds.
        grace_s: How long a stop waits for requests in flight, in seconds.
        scan_children: Scans (`POST /v1/scans`) that are answered at once; the next one is refused.
        scan_time_limit_s: Longest time of one scan, in seconds.
        scan_memory_gb: Address space of the process that answers one scan, in GB (2³⁰ bytes).
        scan_keep_minutes: After which a scan's files are deleted.
        scan_kept: Most answers that are kept; the oldest is deleted.

    Raises:
        ServingError: If others could reach `host` and there is no token, `host` is unknown, the
            token is none, or a public URL names no host, or more than a host.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: Path
    host: str = "127.0.0.1"
    port: _Port = 8501
    grpc_port: _Port = 8500
    token: Annotated[str | None, Field(repr=False)] = None
    public_urls: tuple[str, ...] = ()
    queue: Annotated[int, Field(ge=1, le=10_000)] = 8
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    time_limit_s: _Positive = 120.0
    read_limit_s: _Positive = 60.0
    message_mb: Annotated[float, Field(gt=0, lt=2048)] = 1024
    poll_s: _Positive = 2.0
    batch: Annotated[int, Field(ge=1, le=1024)] = 16
    batch_wait_ms: Annotated[float, Field(ge=0, le=10_000)] = 5.0
    grace_s: Annotated[float, Field(ge=0, le=3_600)] = 30.0
    scan_children: Annotated[int, Field(ge=1, le=16)] = 1
    scan_time_limit_s: _Positive = 300.0
    scan_memory_gb: Annotated[float, Field(gt=0, le=4096)] = 8.0
    scan_keep_minutes: _Positive = 10.0
    scan_kept: Annotated[int, Field(ge=1, le=1000)] = 16

    @field_validator("token")
    @classmethod
    def _is_sendable(cls, token: str | None) -> str | None:
        if token is not None and not re.fullmatch(r"[!-~]{8,512}", token):
            # Not a ValueError, whose text pydantic would show together with the token.
            raise ServingError(
                "TFCOVID_TOKEN: a token has 8 to 512 visible ASCII characters and no spaces"
            )
        return token

    @field_validator("public_urls")
    @classmethod
    def _are_origins(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_origin(url) for url in urls)

    @model_validator(mode="after")
    def _is_safe(self) -> Self:
        self.address()
        return self

    @property
    def max_message_bytes(self) -> int:
        """Largest request and answer, in bytes."""
        return int(self.message_mb * 2**20)

    def address(self) -> str:
        """The IP address to listen at, looked up now, so that what was checked is what is bound.

        Raises:
            ServingError: If others could reach it and there is no token, or the name is unknown.
        """
        try:
            results = socket.getaddrinfo(
                self.host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except (OSError, UnicodeError) as error:
            raise ServingError(f"--host {self.host}: is no address of this machine") from error
        addresses = [str(record[4][0]) for record in results]
        if self.token is None and not all(is_loopback(address) for address in addresses):
            raise ServingError(
                f"--host {self.host}: others could reach the server there, so it needs a token "
                "(TFCOVID_TOKEN); without one it listens at 127.0.0.1 only"
            )
        return addresses[0]


def _origin(url: str) -> str:
    """Scheme, host and port of a URL as a browser writes them into the Origin header.

    Lower case, other alphabets in punycode, and no port where it is the scheme's own.

    Raises:
        ServingError: If it is no such URL; what it may hide beside the host is not repeated.
    """
    httpx = optional_import("httpx")
    expected = (
        "--public-url: https://NAME or https://NAME:PORT is needed, as browsers see the proxy"
    )
    try:
        parsed = httpx.URL(url.lower())
        netloc = parsed.netloc.decode("ascii")
    except (httpx.InvalidURL, UnicodeError) as error:
        raise ServingError(f"{expected}; this is no URL") from error
    if parsed.scheme not in ("http", "https"):
        raise ServingError(f"{expected}; this does not begin with https:// or http://")
    if parsed.userinfo:
        raise ServingError(f"{expected}; this holds a user or a password")
    if parsed.raw_path != b"/" or parsed.fragment:
        raise ServingError(
            f"{expected}; this goes on behind the host; the server answers at its root only"
        )
    host = r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?|\[[0-9a-f:.]+\]"
    port = 1 if parsed.port is None else parsed.port
    if not re.fullmatch(rf"({host})(:\d+)?", netloc) or not 0 < port <= 65_535:
        raise ServingError(f"{expected}; this names no host, or no port, that there can be")
    return f"{parsed.scheme}://{netloc}"


def is_loopback(address: str) -> bool:
    """Whether an IP address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:  # e.g. with a scope, fe80::1%eth0
        return False
