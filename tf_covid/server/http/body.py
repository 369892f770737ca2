"""Reading a request's body.

Bounded in size, in time, and in what all clients together may have under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from uvicorn.protocols.http.h11_impl import H11Protocol

from tf_covid.server.errors import ClientDisconnected, QueueFull, SlowClient, TooLarge, Unsupported


@dataclass
class Body:
    """A body that has been read.

    Args:
        data: Bytes of the body.
        user: The work of a thread with it, which may go on when nobody waits for it any more.
    """

    data: bytearray
    user: Future[Any] | None = None


class BodyReader:
    """Reads bodies.

    Args:
        max_bytes: Largest body, in bytes.
        limit_s: Seconds within which it must be here.
    """

    def __init__(self, max_bytes: int, limit_s: float) -> None:
        self._max_bytes = max_bytes
        self._limit_s = limit_s
        self._here = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[Body]:
        """A body, which counts as being here until the block, and its user, ends.

        Raises:
            RequestError: If it is too large, too slow, packed, or the memory for bodies is full.
        """
        body, counted = Body(bytearray()), 0

        def keep(piece: bytes) -> None:
            nonlocal counted
            if self._here + len(piece) > 2 * self._max_bytes:
                raise QueueFull("too many large requests are arriving; ask again later")
            self._here += len(piece)
            counted += len(piece)
            body.data.extend(piece)

        def forget() -> None:
            self._here -= counted

        try:
            await self.pieces(request, keep)
            yield body
        finally:
            if body.user is None or body.user.done():
                forget()
            else:
                loop = asyncio.get_running_loop()

                def later(_: Future[Any]) -> None:
                    with suppress(RuntimeError):  # the server has ended meanwhile
                        loop.call_soon_threadsafe(forget)

                body.user.add_done_callback(later)

    async def pieces(self, request: Request, keep: Callable[[bytes], object]) -> int:
        """Hand a body over in pieces; gives its size in bytes.

        Raises:
            RequestError: If it is too large, too slow or packed, or the client goes.
        """
        if (encoding := request.headers.get("content-encoding", "identity")).lower() != "identity":
            raise Unsupported(
                f"Content-Encoding {encoding[:20]} is not read; send the body as it is"
            )
        length = request.headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit()) or int(length[:20]) > self._max_bytes:
            raise self._too_large()
        size, more = 0, True
        try:
            async with asyncio.timeout(self._limit_s):
                while more:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnected("the client has gone")
                    piece, more = message.get("body", b""), message.get("more_body", False)
                    if (size := size + len(piece)) > self._max_bytes:
                        raise self._too_large()
                    keep(piece)
        except TimeoutError:
            raise SlowClient(f"the body did not arrive within {self._limit_s:g} s") from None
        return size

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the request is larger than {self._max_bytes} bytes")


async def client_disconnected(request: Request) -> None:
    """Return when the client has gone; its body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def header_timeout_protocol(limit_s: float) -> type[H11Protocol]:
    """Uvicorn's protocol; closes a connection whose headers do not arrive in time.

    uvicorn itself waits for ever for the first request, so a few sleeping clients could use up all
    connections.
    """

    class HeaderTimeoutProtocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:  # noqa: ANN401  # as its parent
            super().connection_made(transport)
            self._start_timer()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._start_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._forget()

        def _is_idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _start_timer(self) -> None:
            if not self._is_idle():
                self._forget()
            elif self._timer is None:
                self._timer = self.loop.call_later(limit_s, self._close)

        def _close(self) -> None:
            self._timer = None
            if self._is_idle():
                self.transport.close()

        def _forget(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return HeaderTimeoutProtocol
