"""The outermost layer of REST.

Who may ask, and that every answer is JSON and no log holds more than a route.
"""

from __future__ import annotations

import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from tf_covid.server.errors import Failed, Forbidden, RequestError, Unauthenticated
from tf_covid.tensor import Message

_LOG = logging.getLogger("tf_covid.server")

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def is_token(header: bytes, token: str) -> bool:
    """Whether a header `Authorization: Bearer …` holds the token.

    Takes as long for a wrong one as for the right.
    """
    scheme, _, given = header.partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), token.encode("ascii"))


def error_body(text: str) -> bytes:
    """An error as TF Serving tells it."""
    return json.dumps({"error": text}).encode()


class AccessMiddleware:
    """ASGI middleware: token, Host on loopback and Origin; errors as JSON; a line in the log.

    Args:
        app: The application behind it.
        token: None: nobody is asked.
        hosts: Names that the Host header may hold; None: any.
        origins: Origins, besides the server's own, whose pages may ask: of proxies in front.
    """

    def __init__(
        self,
        app: Message,
        token: str | None,
        hosts: frozenset[str] | None,
        origins: frozenset[str] = frozenset(),
    ) -> None:
        self._app = app
        self._token = token
        self._hosts = hosts
        self._origins = {origin.encode("ascii") for origin in origins}

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        start, status, finished = time.monotonic(), 0, False

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal status, finished
            if message["type"] == "http.response.start":
                status = message["status"]
            finished = message["type"] == "http.response.body" and not message.get(
                "more_body", False
            )
            await send(message)

        try:
            try:
                self._check(scope)
                await self._app(scope, receive, watched)
            except RequestError as error:
                await _refuse(watched, error, started=bool(status))
            except (
                Exception
            ) as error:  # the outermost layer: uvicorn would log a traceback with what was asked
                _LOG.error("an answer failed: %s", type(error).__name__)
                if (
                    not finished
                ):  # FastAPI may have said so already, before it raised the error again
                    await _refuse(watched, Failed("internal error"), started=bool(status))
        finally:
            # FastAPI puts the route there; what does not fit one is not repeated in a log.
            route = getattr(scope.get("route"), "path", "unknown")
            _LOG.info(
                "%s %s %d %.3f s", scope["method"][:10], route, status, time.monotonic() - start
            )

    def _check(self, scope: _Scope) -> None:
        headers = dict(scope["headers"])
        if self._hosts is not None and host_name(headers.get(b"host", b"")) not in self._hosts:
            raise Forbidden(
                "the Host header does not name this machine; ask 127.0.0.1 or localhost, or name a "
                "proxy in front by --public-url"
            )
        # A browser says which page asks; one of another site must not, even if it could not read
        # the answer.
        own = scope.get("scheme", "http").encode("latin-1") + b"://" + headers.get(b"host", b"")
        if headers.get(b"origin", own).lower() not in {own.lower(), *self._origins}:
            raise Forbidden(
                "the Origin header names a page of another site; a proxy in front is told by "
                "--public-url"
            )
        if headers.get(b"sec-fetch-site", b"none").lower() not in (b"same-origin", b"none"):
            raise Forbidden("the Sec-Fetch-Site header tells of a page of another site")
        if self._token is None or scope["path"] == "/healthz":
            return
        if not is_token(headers.get(b"authorization", b""), self._token):
            raise Unauthenticated("a token is needed: Authorization: Bearer …")


def host_name(header: bytes) -> str:
    """The name in a Host header, without its port."""
    text = header.decode("latin-1").strip().lower()
    name, colon, port = text.rpartition(":")
    return name if colon and port.isdigit() and not name.endswith(":") else text


async def _refuse(send: _Send, error: RequestError, *, started: bool) -> None:
    if started:
        raise ConnectionError(
            "the answer broke off"
        ) from None  # uvicorn closes the connection, so that the client sees it
    body = error_body(str(error))
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.http, "headers": headers})
    await send({"type": "http.response.body", "body": body})
