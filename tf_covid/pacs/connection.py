"""HTTP with an archive: bounded in time, size and tries, and silent about secrets."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tf_covid.errors import PacsError, PacsUnavailable
from tf_covid.extras import optional_import
from tf_covid.pacs.address import Access
from tf_covid.pacs.tls import client_context

if TYPE_CHECKING:
    import httpx

    from tf_covid.tensor import Json

#: Seconds to connect, and between two pieces of an answer.
_CONNECT_S, READ_S = 5.0, 60.0
#: Seconds that one request may take in all.
_TOTAL_S = 3600.0
#: How often a request is tried that found nobody, or a server that is busy or fails; seconds
#: between the first two, doubled each time.
_TRIES, _PAUSE_S = 3, 1.0
#: Most bytes of one answer in JSON.
_MOST_JSON = 1 << 28


class Connection:
    """Requests to one archive. Every call ends: connections, answers and tries are bounded.

    Args:
        url: Of the service, without a slash at its end.
        access: Credentials and certificates.
        read_s: Longest wait for the next piece of an answer, in seconds.

    Raises:
        PacsError: If a certificate cannot be read.
    """

    def __init__(self, url: str, access: Access, *, read_s: float = READ_S) -> None:
        httpx = optional_import("httpx", "dicom")
        self._httpx = httpx
        headers = {"Authorization": f"Bearer {access.token}"} if access.token else {}
        auth = (access.user, access.password) if access.user or access.password else None
        parsed = httpx.URL(url)
        #: The service without user and password, for messages.
        self.shown = f"{parsed.scheme}://{parsed.netloc.decode('ascii')}{parsed.path}"
        self._client = httpx.Client(
            base_url=f"{url}/",
            headers=headers,
            auth=auth,
            verify=client_context(access.ca_file, access.client_cert)
            if parsed.scheme == "https"
            else False,
            timeout=httpx.Timeout(read_s, connect=_CONNECT_S),
            # Neither a proxy that some variable names, nor a place that the archive points to, may
            # see a study or a password.
            trust_env=False,
            follow_redirects=False,
        )

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def parsed(self, content: bytes) -> Json:
        """An answer in JSON.

        Raises:
            PacsError: If it is none.
        """
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise self.no_dicomweb("an answer to QIDO-RS that is no JSON") from None

    def request_json(self, method: str, path: str, **options: Any) -> tuple[int, bytes]:
        """Status and body of an answer in JSON; one that was cut short is asked for again.

        An archive that states no length cuts its list short without an error, and half a list is no
        JSON: it is no sign of a study without images.
        """
        for attempt in range(1, _TRIES + 1):
            try:
                status, content = self.request(method, path, **options)
                if status == 200:
                    json.loads(content)
                return status, content
            except (ValueError, RecursionError):
                if attempt == _TRIES:
                    return status, content
            except PacsUnavailable:
                if attempt == _TRIES:
                    raise
        raise RuntimeError("unreachable: the last try returns or raises")

    def request(self, method: str, path: str, **options: Any) -> tuple[int, bytes]:
        """Status and whole body of an answer, tried again where another try may help."""
        with self.streamed(method, path, **options) as response:
            content = bytearray()
            for chunk in self.pieces(response):
                content += chunk
                if len(content) > _MOST_JSON:
                    raise self.no_dicomweb(f"more than {_MOST_JSON >> 20} MB of JSON")
            return response.status_code, bytes(content)

    @contextmanager
    def streamed(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
        """A response whose body is not read yet."""

        def send() -> httpx.Response:
            request = self._client.build_request(method, path, **options)
            response: httpx.Response = self._client.send(request, stream=True)
            return response

        response = self._tried(send)
        try:
            yield response
        except self._httpx.HTTPError as error:
            raise self._lost(error) from None
        finally:
            response.close()

    def _tried(self, send: Callable[[], httpx.Response]) -> httpx.Response:
        for attempt in range(1, _TRIES + 1):
            try:
                response = send()
            except self._httpx.HTTPError as error:
                if attempt == _TRIES or isinstance(error, self._httpx.TimeoutException):
                    raise self._lost(error) from None
            except (ssl.SSLError, OSError, ValueError) as error:
                raise self._lost(error) from None
            else:
                busy = response.status_code in (429, 502, 503, 504)
                if not busy or attempt == _TRIES:
                    return response
                response.close()
            time.sleep(_PAUSE_S * 2 ** (attempt - 1))
        raise RuntimeError("unreachable: the last try returns or raises")

    def pieces(self, response: httpx.Response) -> Iterator[bytes]:
        """The body; a server that sends a byte a minute ends like one that sends none."""
        until = time.monotonic() + _TOTAL_S
        try:
            for chunk in response.iter_bytes(1 << 18):
                yield chunk
                if time.monotonic() > until:
                    raise PacsUnavailable(
                        f"pacs_timeout: {self.shown} did not end its answer in {_TOTAL_S:.0f} s"
                    )
        except self._httpx.RemoteProtocolError:
            return  # a body that breaks off ends; whoever reads it sees what is missing
        except self._httpx.HTTPError as error:
            raise self._lost(error) from None

    def check_status(self, status: int) -> None:
        """Raise where the status says that the request failed."""
        if status in (401, 403):
            raise PacsError(
                f"pacs_denied: {self.shown} does not let us in ({status}): see"
                " TFCOVID_DICOMWEB_USER, …_PASSWORD and …_TOKEN"
            )
        if status == 404:
            raise PacsError(f"pacs_unknown: {self.shown} does not have what was asked for (404)")
        if 300 <= status < 400:
            raise PacsError(
                f"pacs_answer: {self.shown} points elsewhere ({status}), which is not followed:"
                " give the URL that it points to"
            )
        if status == 429 or status >= 500:
            raise PacsUnavailable(f"pacs_broken: {self.shown} is busy or fails (status {status})")
        if status >= 300:
            raise PacsError(f"pacs_answer: {self.shown} answered with status {status}")

    def _lost(self, error: Exception) -> PacsError:
        """What became of a connection, without the URL, which may hold a password."""
        httpx = self._httpx
        if isinstance(error, httpx.ConnectTimeout):
            return PacsUnavailable(
                f"pacs_timeout: {self.shown} did not take the connection in {_CONNECT_S:.0f} s"
            )
        if isinstance(error, httpx.TimeoutException):
            return PacsUnavailable(f"pacs_timeout: {self.shown} took too long to answer")
        if _of_certificate(error):
            return PacsError(
                f"pacs_tls: the certificate of {self.shown} is not one that is trusted here; see"
                " --ca-file"
            )
        if isinstance(error, httpx.ConnectError):
            return PacsUnavailable(f"pacs_unreachable: nobody answers at {self.shown}")
        return PacsUnavailable(
            f"pacs_broken: the connection to {self.shown} broke off ({type(error).__name__})"
        )

    def no_dicomweb(self, what: str) -> PacsError:
        """The error of a service that sent something else, such as "a picture"."""
        return PacsError(f"pacs_answer: {self.shown} is no DICOMweb service: it sent {what}")


def _of_certificate(error: BaseException | None) -> bool:
    """Whether a certificate was the reason, however deep."""
    while error is not None:
        if isinstance(error, ssl.SSLError) or "CERTIFICATE" in str(error).upper():
            return True
        error = error.__cause__ or error.__context__
    return False
