"""TLS with archives and senders: who may vouch for the other side, and what we show of us."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path
from typing import Any

from tf_covid.errors import PacsError

#: Seconds that a sender may take for each step of a handshake.
_HANDSHAKE_S = 30.0


def client_context(ca_file: Path | None, client_cert: Path | None) -> ssl.SSLContext:
    """For connections that we open.

    Args:
        ca_file: Certificates (PEM) of those who may vouch for the other side; None: the system's.
        client_cert: Our certificate and its key (PEM).

    Raises:
        PacsError: If one cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
        if client_cert is not None:
            context.load_cert_chain(client_cert)
    except (OSError, ssl.SSLError) as error:
        raise _unusable(error) from None
    return context


def server_context(ca_file: Path | None, own_cert: Path) -> ssl.SSLContext:
    """For connections that others open.

    Args:
        ca_file: Certificates (PEM) of those who may vouch for them; None: nobody need.
        own_cert: Our certificate and its key (PEM).

    Raises:
        PacsError: If one cannot be read.
    """
    context = _ServerContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(own_cert)
        if ca_file is not None:
            context.load_verify_locations(ca_file)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise _unusable(error) from None
    return context


class _ServerContext(ssl.SSLContext):
    """Leaves the handshake to the first read.

    pynetdicom would do it in the thread that takes connections: one that says nothing would keep
    out all others.
    """

    def wrap_socket(self, sock: socket.socket, *args: Any, **options: Any) -> ssl.SSLSocket:
        """A socket whose handshake is still to come."""
        sock.settimeout(_HANDSHAKE_S)
        return super().wrap_socket(sock, *args, **options | {"do_handshake_on_connect": False})


def _unusable(error: Exception) -> PacsError:
    return PacsError(
        f"pacs_tls: --ca-file or --client-cert cannot be used ({type(error).__name__}): PEM files"
        " are needed, with the key beside the certificate"
    )
