"""TF Serving's REST API, and what a machine that watches a server asks for."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from google.protobuf import json_format

from tf_covid import __version__
from tf_covid.server import context
from tf_covid.server.batcher import Outputs, PendingRequest, too_slow
from tf_covid.server.context import ServerContext
from tf_covid.server.errors import ClientDisconnected, Failed, InvalidArgument, RequestError
from tf_covid.server.http import decode, encode, schema
from tf_covid.server.http.body import BodyReader, client_disconnected
from tf_covid.server.http.middleware import AccessMiddleware, error_body
from tf_covid.server.http.scans import Scans
from tf_covid.server.metrics import UNKNOWN
from tf_covid.server.servable import SignatureRunner
from tf_covid.tensor import Message

_T = TypeVar("_T")

#: Write fields that hold their default, too, as TF Serving does; protobuf renamed the option in
#: 5.26.
_ALL_FIELDS = (
    "always_print_fields_with_no_presence"
    if "always_print_fields_with_no_presence"
    in inspect.signature(json_format.MessageToJson).parameters
    else "including_default_value_fields"
)

#: What the OpenAPI document says of the server.
DESCRIPTION = (
    "Whole chest CTs in, severity and its evidence out. Research software, not a medical device."
    " The same server speaks TF Serving's REST API under /v1/models, which is documented there."
)

#: Threads that read and write JSON; more would only wait for each other, and hold memory meanwhile.
_JSON_THREADS = 2


class RestApi:
    """The handlers of the REST API.

    Args:
        context: What the parts of the server share.
        scans: Answers whole scans.
    """

    def __init__(self, context: ServerContext, scans: Scans) -> None:
        self._context = context
        self._scans = scans
        self._reader = BodyReader(context.settings.max_message_bytes, context.settings.read_limit_s)
        self._json = ThreadPoolExecutor(_JSON_THREADS, "tfcovid-json")

    def app(self, hosts: frozenset[str] | None) -> AccessMiddleware:
        """The application for uvicorn.

        Args:
            hosts: Names that the Host header may hold; None: any.
        """
        settings = self._context.settings
        # No pages of documentation: they would load scripts from elsewhere.
        app = FastAPI(
            title="tfcovid serve",
            version=__version__,
            description=DESCRIPTION,
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,
        )
        model, version = "/v1/models/{name}", "/v1/models/{name}/versions/{version}"
        for path in (f"{version}:predict", f"{model}:predict"):
            app.add_api_route(path, self.predict, methods=["POST"], include_in_schema=False)
        for path in (f"{version}/metadata", f"{model}/metadata"):
            app.add_api_route(path, self.metadata, methods=["GET"], include_in_schema=False)
        for path in (version, model):
            app.add_api_route(path, self.status, methods=["GET"], include_in_schema=False)
        for path in ("/monitoring/prometheus/metrics", "/metrics"):
            app.add_api_route(path, self.metrics, methods=["GET"], include_in_schema=False)
        app.add_api_route("/healthz", self.healthy, methods=["GET"], include_in_schema=False)
        app.add_api_route("/readyz", self.ready, methods=["GET"], include_in_schema=False)
        self._scans.add_routes(app)
        document = schema.without_validation(app.openapi())
        app.openapi = lambda: document  # type: ignore[method-assign]
        app.add_exception_handler(RequestError, _on_request_error)
        for status in (404, 405):  # what the router itself says
            app.add_exception_handler(status, _on_no_route)
        app.add_exception_handler(Exception, _on_failure)
        return AccessMiddleware(app, settings.token, hosts, frozenset(settings.public_urls))

    def close(self) -> None:
        """End the threads."""
        self._json.shutdown(wait=False, cancel_futures=True)

    async def predict(self, request: Request) -> Response:
        """`POST /v1/models/{name}[/versions/{version}]:predict`."""
        start, model, signature, code = time.monotonic(), UNKNOWN, UNKNOWN, "500"
        deadline = start + self._context.settings.time_limit_s
        try:
            self._context.check_open()
            name, version_number = _asked(request)
            with self._context.repository.lease(name, version_number) as version:
                model = version.name

                def runner_of(name: str) -> SignatureRunner:
                    nonlocal signature
                    runner = version.runner(name)
                    signature = runner.name
                    return runner

                async with self._reader.read(request) as body:
                    body.user = self._json.submit(
                        decode.parse_predict_request, body.data, runner_of
                    )
                    asked = await _in_time(deadline, body.user)
                work = self._context.batcher.submit(version, asked.runner, asked.inputs, deadline)
                outputs = await self._result(request, work)
            writing = self._json.submit(encode.predict_response, outputs, rows=asked.rows)
            text = await _in_time(deadline, writing)
            code = "200"
            return _json(text)
        except RequestError as error:
            code = str(error.http)
            raise
        finally:
            self._context.metrics.count(model, signature, "rest", code, time.monotonic() - start)

    async def status(self, request: Request) -> Response:
        """`GET /v1/models/{name}[/versions/{version}]`."""
        name, version_number = _asked(request)
        return _json(_as_json(self._context.status(name, version_number)))

    async def metadata(self, request: Request) -> Response:
        """`GET /v1/models/{name}[/versions/{version}]/metadata`."""
        name, version_number = _asked(request)
        with self._context.repository.lease(name, version_number) as version:
            spec, signatures = (
                _as_json(context.metadata(version).model_spec),
                _as_json(context.signature_map(version)),
            )
        # As TF Serving writes it: without the "@type" of an Any.
        return _json(f'{{"model_spec": {spec}, "metadata": {{"signature_def": {signatures}}}}}')

    async def metrics(self) -> Response:
        """`GET /metrics`."""
        return Response(
            self._context.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    async def healthy(self) -> Response:
        """`GET /healthz`: the server is there."""
        return _json('{"status": "alive"}')

    async def ready(self) -> Response:
        """`GET /readyz`: a model is served, and the server is not stopping."""
        if self._context.stopping.is_set():
            return _json(error_body("the server is stopping"), 503)
        if not (models := self._context.repository.available()):
            return _json(error_body("no model is available yet"), 503)
        return _json(
            json.dumps(
                {"status": "ready", "models": {name: v.number for name, v in models.items()}}
            )
        )

    async def _result(self, request: Request, work: PendingRequest) -> Outputs:
        """The outputs, unless the client goes or its time is over: then the work is dropped."""
        answer = asyncio.wrap_future(work.future)
        left = asyncio.ensure_future(client_disconnected(request))
        try:
            limit = max(work.deadline - time.monotonic(), 0)
            both: set[asyncio.Future[Any]] = {answer, left}
            done, _ = await asyncio.wait(both, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if answer in done:
                return answer.result()
            raise ClientDisconnected("the client has gone") if left in done else too_slow()
        finally:
            left.cancel()
            answer.cancel()
            self._context.batcher.drop(work)


async def _in_time(deadline: float, work: Future[_T]) -> _T:
    """What a thread gives: what takes long for a large scan is done away from the event loop."""
    try:
        async with asyncio.timeout(max(deadline - time.monotonic(), 0)):
            return await asyncio.wrap_future(work)
    except TimeoutError:
        raise too_slow() from None


def _asked(request: Request) -> tuple[str, int | None]:
    """Name and version in the path.

    Raises:
        InvalidArgument: If the version is not a number, or the name holds a verb.
    """
    name, version = request.path_params["name"], request.path_params.get("version")
    if ":" in name or (
        version is not None and not (version.isascii() and version.isdigit() and len(version) < 19)
    ):
        raise InvalidArgument(_malformed(request))
    return name, None if version is None else int(version)


def _malformed(request: Request) -> str:
    return f"Malformed request: {request.method} {request.url.path[:200]}"


def _json(body: str | bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")


def _as_json(message: Message) -> str:
    options = {"preserving_proto_field_name": True, _ALL_FIELDS: True}
    return str(json_format.MessageToJson(message, **options))


async def _on_request_error(request: Request, error: Exception) -> Response:
    status = error.http if isinstance(error, RequestError) else Failed.http
    return _json(error_body(str(error)), status)


async def _on_no_route(request: Request, error: Exception) -> Response:
    path = request.url.path
    if path.startswith("/v1/") and not path.startswith(
        "/v1/scans"
    ):  # as TF Serving; the scans are ours
        return _json(error_body(_malformed(request)), InvalidArgument.http)
    status, headers = getattr(error, "status_code", 404), getattr(error, "headers", None)
    return Response(error_body(_malformed(request)), status, headers, "application/json")


async def _on_failure(request: Request, error: Exception) -> Response:
    return _json(error_body("internal error"), Failed.http)
