"""TLS with archives: who may vouch for the other side, and what we show of us."""

from __future__ import annotations

import ssl
from pathlib import Path

from tf_covid.errors import PacsError


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


def _unusable(error: Exception) -> PacsError:
    return PacsError(
        f"pacs_tls: --ca-file or --client-cert cannot be used ({type(error).__name__}): PEM files"
        " are needed, with the key beside the certificate"
    )
