"""Why a request is not answered.

One class for each reason, with its HTTP status and its gRPC code.
"""

from __future__ import annotations

from typing import ClassVar

from tf_covid.errors import ServingError


class RequestError(ServingError):
    """A request that is not answered; the text goes to who asked.

    Subclasses say with which codes.
    """

    http: ClassVar[int] = 500
    grpc: ClassVar[str] = "INTERNAL"


class Failed(RequestError):
    """The server's or the model's own failure."""


class InvalidArgument(RequestError):
    """A request that makes no sense: malformed, or not what the signature asks for."""

    http, grpc = 400, "INVALID_ARGUMENT"


class NoSignature(RequestError):
    """gRPC's code for a signature that the model does not have, as TF Serving's."""

    http, grpc = 400, "FAILED_PRECONDITION"


class Unauthenticated(RequestError):
    """No token, or not the right one."""

    http, grpc = 401, "UNAUTHENTICATED"


class Forbidden(RequestError):
    """A web page of another site that asks through somebody's browser."""

    http, grpc = 403, "PERMISSION_DENIED"


class NotFound(RequestError):
    """No such model, version or answer."""

    http, grpc = 404, "NOT_FOUND"


class SlowClient(RequestError):
    """A body that does not arrive in time."""

    http, grpc = 408, "DEADLINE_EXCEEDED"


class TooLarge(RequestError):
    """A body above the limit."""

    http, grpc = 413, "RESOURCE_EXHAUSTED"


class Unsupported(RequestError):
    """A body in an encoding that is not read."""

    http, grpc = 415, "INVALID_ARGUMENT"


class QueueFull(RequestError):
    """Too much to do already; ask again later."""

    http, grpc = 429, "RESOURCE_EXHAUSTED"


class ClientDisconnected(RequestError):
    """Who asked has gone; nobody sees this answer."""

    http, grpc = 499, "CANCELLED"


class Unavailable(RequestError):
    """The server is stopping."""

    http, grpc = 503, "UNAVAILABLE"


class TooSlow(RequestError):
    """The time limit is over."""

    http, grpc = 504, "DEADLINE_EXCEEDED"


class OutOfMemory(RequestError):
    """The computation needed more memory than it may have."""

    http, grpc = 507, "RESOURCE_EXHAUSTED"


def servable_not_found(name: str, version: int | None) -> NotFound:
    """The error for an unknown model or version, in TF Serving's words."""
    asked = f"Latest({name})" if version is None else f"Specific({name}, {version})"
    return NotFound(f"Servable not found for request: {asked}")
