"""A DICOMweb service: QIDO-RS to list, WADO-RS to retrieve, STOW-RS to store."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from tf_covid.errors import PacsError, PacsUnavailable
from tf_covid.extras import optional_import
from tf_covid.pacs.address import Access, is_uid

if TYPE_CHECKING:
    import httpx

    from tf_covid.pacs.multipart import MultipartFile
    from tf_covid.tensor import Json

#: Seconds to connect, and between two pieces of an answer.
_CONNECT_S, _READ_S = 5.0, 60.0
#: Seconds that one request may take in all.
_TOTAL_S = 3600.0
#: How often a request is tried that found nobody, or a server that is busy or fails; seconds
#: between the first two, doubled each time.
_TRIES, _PAUSE_S = 3, 1.0
#: Instances that are asked for at once when a series is listed.
_PAGE = 1000
#: Most that may be listed of one study, and most bytes of one answer in JSON.
_MOST_INSTANCES, _MOST_JSON = 20_000, 1 << 28
_ANY_SYNTAX = 'multipart/related; type="application/dicom"; transfer-syntax=*'


@dataclass(frozen=True)
class ListedSeries:
    """A series of a study, as the archive lists it.

    Args:
        uid: SeriesInstanceUID.
        modality: Modality; "" where the archive does not say it.
    """

    uid: str = field(repr=False)
    modality: str


class DicomWeb:
    """One archive. Every call ends: connections, answers and tries are bounded.

    Args:
        url: Of the service, without a slash at its end.
        access: Credentials and certificates.
        read_s: Longest wait for the next piece of an answer, in seconds.

    Raises:
        PacsError: If a certificate cannot be read.
    """

    def __init__(self, url: str, access: Access, *, read_s: float = _READ_S) -> None:
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
            verify=_tls(access) if parsed.scheme == "https" else False,
            timeout=httpx.Timeout(read_s, connect=_CONNECT_S),
            # Neither a proxy that some variable names, nor a place that the archive points to, may
            # see a study or a password.
            trust_env=False,
            follow_redirects=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def series(self, study_uid: str) -> list[ListedSeries]:
        """The series of a study; none where the archive does not know it.

        Raises:
            PacsError: If the archive does not answer, or not as DICOMweb does.
        """
        listed = []
        for item in self._list(f"studies/{study_uid}/series"):
            uid = _text(item, "0020000E")
            if not is_uid(uid):
                raise self._no_dicomweb("a series without a SeriesInstanceUID")
            listed.append(ListedSeries(uid, _text(item, "00080060")))
        return listed

    def instances(self, study_uid: str, series_uid: str) -> set[str]:
        """SOPInstanceUIDs of a series.

        Raises:
            PacsError: If the archive does not answer, or not as DICOMweb does.
        """
        uids = set()
        for item in self._list(f"studies/{study_uid}/series/{series_uid}/instances"):
            uid = _text(item, "00080018")
            if not is_uid(uid):
                raise self._no_dicomweb("an instance without a SOPInstanceUID")
            uids.add(uid)
        return uids

    @contextmanager
    def retrieve(
        self, study_uid: str, series_uid: str, instance_uid: str = ""
    ) -> Iterator[tuple[str, Iterator[bytes]]]:
        """Content-Type and body of a series, or of one instance, as stored: no transcoding.

        The body may end too early without an error: neither HTTP nor the archive says so.

        Raises:
            PacsError: If the archive does not answer, or refuses.
        """
        path = f"studies/{study_uid}/series/{series_uid}"
        path += f"/instances/{instance_uid}" if instance_uid else ""
        with self._streamed("GET", path, headers={"Accept": _ANY_SYNTAX}) as response:
            self._check(response.status_code)
            yield response.headers.get("content-type", ""), self._bounded(response)

    def store(self, body: MultipartFile) -> dict[str, str]:
        """Store one object: what the archive says of each SOPInstanceUID, "" where it took it.

        An empty answer, as a broken connection may leave it, says nothing of any.

        Raises:
            PacsError: If the archive does not answer, or refuses.
        """
        headers = body.headers | {"Accept": "application/dicom+json"}
        status, content = self._request("POST", "studies", content=body, headers=headers)
        if status not in (200, 202, 409):
            self._check(status)
        said: dict[str, str] = {}
        try:
            answer = json.loads(content) if content.strip() else {}
            for item in answer.get("00081199", {}).get("Value", []):
                said[_text(item, "00081155")] = ""
            for item in answer.get("00081198", {}).get("Value", []):
                said[_text(item, "00081155")] = f"reason {_text(item, '00081197') or 'unknown'}"
        except (ValueError, AttributeError, TypeError, RecursionError):
            raise self._no_dicomweb("an answer to STOW-RS that is no DICOM JSON") from None
        return said

    def _list(self, path: str) -> list[Any]:
        """Every item of a QIDO-RS answer, page by page."""
        items: list[Any] = []
        first: object = None
        while len(items) < _MOST_INSTANCES:
            status, content = self._again(
                "GET",
                path,
                params={"limit": str(_PAGE), "offset": str(len(items))},
                headers={"Accept": "application/dicom+json"},
            )
            if status in (204, 404):
                return items
            self._check(status)
            page = self._json(content)
            if not isinstance(page, list) or not all(isinstance(item, dict) for item in page):
                raise self._no_dicomweb("an answer to QIDO-RS that is no list")
            # Some services know no pages, and send everything each time.
            if not page or page[0] == first:
                return items
            first = page[0]
            items += page
            if len(page) < _PAGE:
                return items
        raise PacsError(
            f"pacs_too_large: {self.shown} lists more than {_MOST_INSTANCES} images of one study"
        )

    def _json(self, content: bytes) -> Json:
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise self._no_dicomweb("an answer to QIDO-RS that is no JSON") from None

    def _again(self, method: str, path: str, **options: Any) -> tuple[int, bytes]:
        """Status and body of an answer in JSON; one that was cut short is asked for again.

        An archive that states no length cuts its list short without an error, and half a list is no
        JSON: it is no sign of a study without images.
        """
        for attempt in range(1, _TRIES + 1):
            try:
                status, content = self._request(method, path, **options)
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

    def _request(self, method: str, path: str, **options: Any) -> tuple[int, bytes]:
        """Status and whole body of an answer, tried again where another try may help."""
        with self._streamed(method, path, **options) as response:
            content = bytearray()
            for chunk in self._bounded(response):
                content += chunk
                if len(content) > _MOST_JSON:
                    raise self._no_dicomweb(f"more than {_MOST_JSON >> 20} MB of JSON")
            return response.status_code, bytes(content)

    @contextmanager
    def _streamed(self, method: str, path: str, **options: Any) -> Iterator[httpx.Response]:
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

    def _bounded(self, response: httpx.Response) -> Iterator[bytes]:
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

    def _check(self, status: int) -> None:
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

    def _no_dicomweb(self, what: str) -> PacsError:
        return PacsError(f"pacs_answer: {self.shown} is no DICOMweb service: it sent {what}")


def _of_certificate(error: BaseException | None) -> bool:
    """Whether a certificate was the reason, however deep."""
    while error is not None:
        if isinstance(error, ssl.SSLError) or "CERTIFICATE" in str(error).upper():
            return True
        error = error.__cause__ or error.__context__
    return False


def _tls(access: Access) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(
            cafile=None if access.ca_file is None else str(access.ca_file)
        )
        if access.client_cert is not None:
            context.load_cert_chain(access.client_cert)
    except (OSError, ssl.SSLError) as error:
        raise PacsError(
            f"pacs_tls: --ca-file or --client-cert cannot be used ({type(error).__name__}): PEM"
            " files are needed, with the key beside the certificate"
        ) from None
    return context


def _text(item: Json, tag: str) -> str:
    """The first value of an element of DICOM JSON, as text; "" where there is none."""
    if not isinstance(item, dict):
        return ""
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return str(values[0]) if isinstance(values, list) and values else ""
