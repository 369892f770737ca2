"""The Ray that is asked: one of this machine, or a cluster's."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tf_covid.errors import ClusterError
from tf_covid.extras import optional_import
from tf_covid.tensor import Ray

#: Seconds within which the address of a cluster has to accept a connection.
_CONNECT_S = 10.0


@dataclass(frozen=True)
class ClusterOptions:
    """How many workers, and what each is given.

    Args:
        address: "auto" (the cluster that this machine belongs to), "HOST:6379" or
            "ray://HOST:10001"; None: what RAY_ADDRESS says, else a Ray of this machine alone.
        workers: Workers at a time; None: as many as the nodes have room for.
        cpus: Cores of each worker, which TensorFlow's threads are bound to.
        gpus: GPUs of each worker; a fraction shares one.
    """

    address: str | None = None
    workers: int | None = None
    cpus: int = 1
    gpus: float = 0.0

    @property
    def asked(self) -> str | None:
        """The address that counts; None for a Ray of this machine."""
        address = self.address or os.environ.get("RAY_ADDRESS") or None
        return None if address == "local" else address


@contextmanager
def connected(options: ClusterOptions) -> Iterator[Ray]:
    """The module `ray`, connected while the block runs.

    Raises:
        ClusterError: If Ray is not reachable, of another version there, or goes away.
        ServingError: If it is not installed.
    """
    # Nothing is told to anybody outside.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray = optional_import("ray", "ray")
    address = options.asked
    if address is not None and address != "auto":
        _check_reachable(address)
    local = {} if address else {"include_dashboard": False}
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            **local,
        )
    except Exception as error:  # Ray raises RuntimeError, ConnectionError, ValueError, OSError …
        text = " ".join(str(error).split())[:300]
        if address is not None and "RAY_AUTH_MODE" not in os.environ:
            text += "; a cluster that asks for a token needs RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        raise ClusterError(f"ray_failed: {address or 'a Ray of this machine'}: {text}") from error
    try:
        yield ray
    except ray.exceptions.RayError as error:
        text = " ".join(str(error).split())[:300]
        raise ClusterError(f"ray_lost: {text}; the same command goes on where it was") from error
    finally:
        ray.shutdown()


def room_for(ray: Ray, options: ClusterOptions) -> int:
    """How many workers the nodes that are there have room for, whatever else they do."""
    count = 0
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        resources = node["Resources"]
        fits = int(resources.get("CPU", 0) // options.cpus)
        if options.gpus:
            fits = min(fits, int(resources.get("GPU", 0) / options.gpus + 1e-9))
        count += fits
    return count


def described(ray: Ray) -> str:
    """The nodes, for a message: "2 nodes with 8 cores and 1 GPUs in all"."""
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores, gpus = (sum(node.get(kind, 0) for node in alive) for kind in ("CPU", "GPU"))
    return f"{len(alive)} nodes with {cores:g} cores and {gpus:g} GPUs in all"


def _check_reachable(address: str) -> None:
    """A plain connection first: Ray itself waits for minutes, and may end the process."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not (host and port.isdigit()):
        raise ClusterError(
            f'ray_address: {address} is no address; "auto", HOST:6379 or ray://HOST:10001 is one'
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ClusterError(f"ray_unreachable: {address} does not answer ({reason})") from error
    except OverflowError as error:
        raise ClusterError(f"ray_address: {address} has no such port") from error
