"""`POST /v1/scans`: a whole scan in, its result out.

The files beside it are kept for some minutes.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import secrets
import shutil
import tempfile
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse

from tf_covid.server.context import ServerContext
from tf_covid.server.errors import (
    ClientDisconnected,
    InvalidArgument,
    NotFound,
    QueueFull,
    RequestError,
    Unavailable,
    servable_not_found,
)
from tf_covid.server.http import schema
from tf_covid.server.http.body import BodyReader, client_disconnected
from tf_covid.server.http.scan_process import FILES, Command, ProcessLimits, ScanAnswer, run

#: The signature of a model that answers whole scans.
SIGNATURE = "infer_bytes"

#: The report is one file that needs nothing from elsewhere, and runs nothing.
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}

#: Seconds between two looks whether all scans have been answered.
_TICK_S = 0.05

#: Most uploads that may arrive at once; all together may have twice the size of the largest one.
_UPLOADS = 32

#: The beginning of the names of folders for uploads.
_PREFIX = "tfcovid-scans-"

#: Bytes that tell what an upload is.
_HEAD = 4096


@dataclass(frozen=True)
class _Kept:
    folder: Path
    files: dict[str, Path]
    until: float


class Scans:
    """Answers whole scans, each with a child process, and keeps their files for a while.

    Nothing of a request becomes a path: names are looked up in a table.

    Args:
        context: What the parts of the server share.
        command: Gives the command line of a child from upload, output folder and model.
    """

    def __init__(self, context: ServerContext, command: Command) -> None:
        settings = context.settings
        self._context = context
        self._command = command
        self._reader = BodyReader(settings.max_message_bytes, settings.read_limit_s)
        self._limits = ProcessLimits(
            settings.scan_time_limit_s, int(settings.scan_memory_gb * 2**30)
        )
        self._keep_s = settings.scan_keep_minutes * 60
        self._free = settings.scan_children
        self._threads = ThreadPoolExecutor(settings.scan_children, "tfcovid-scan")
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._running: set[threading.Event] = set()
        self._stop = threading.Event()
        self._arriving = self._in_flight = self._here = 0  # on the event loop's thread only
        _remove_abandoned()
        self._root, self._own = _locked_folder()
        self._cleaner = threading.Thread(
            target=self._delete_expired, name="tfcovid-scans", daemon=True
        )
        self._cleaner.start()

    def add_routes(self, app: FastAPI) -> None:
        """Put the routes into an application."""
        for path, handler, method, described in (
            ("/v1/scans", self.answer, "POST", schema.answer()),
            ("/v1/scans/{scan}/{file}", self.file, "GET", schema.file()),
            ("/v1/scans/{scan}", self.delete, "DELETE", schema.delete()),
        ):
            app.add_api_route(
                path,
                handler,
                methods=[method],
                response_class=Response,
                response_model=None,
                **described,
            )

    def close(self) -> None:
        """Kill the children that still run, and delete everything."""
        self._stop.set()
        with self._lock:
            for given_up in self._running:
                given_up.set()
        self._threads.shutdown(wait=True)
        self._cleaner.join()
        self._kept.clear()
        shutil.rmtree(self._root, ignore_errors=True)
        os.close(self._own)

    def drain(self, left_s: Callable[[], float]) -> None:
        """Wait until no scan is in flight, or no seconds are left."""
        while self._in_flight and left_s() > 0:
            time.sleep(_TICK_S)

    async def answer(self, request: Request) -> Response:
        """`POST /v1/scans?model=NAME`: a zip of DICOM or a NIfTI file in, result.json out."""
        code = 500
        try:
            if self._context.stopping.is_set():
                raise Unavailable("the server is stopping")
            model = self._model(request.query_params.get("model"))
            self._in_flight += 1
            try:
                response = await self._answer(request, model)
            finally:
                self._in_flight -= 1
            code = response.status_code
            return response
        except RequestError as error:
            code = error.http
            raise
        finally:
            self._context.metrics.scans.labels(str(code)).inc()

    async def file(self, scan: str, file: str) -> Response:
        """`GET /v1/scans/{id}/{file}`."""
        kept = self._kept.get(scan)
        path = kept.files.get(file) if kept is not None and kept.until > time.monotonic() else None
        if path is None or not path.is_file():
            raise NotFound("no such file; answers are kept for some minutes only")
        return FileResponse(path, headers=_HEADERS, media_type=FILES[file])

    async def delete(self, scan: str) -> Response:
        """`DELETE /v1/scans/{id}`."""
        with self._lock:
            kept = self._kept.pop(scan, None)
        if kept is None:
            raise NotFound("no such scan; answers are kept for some minutes only")
        await asyncio.get_running_loop().run_in_executor(None, shutil.rmtree, kept.folder, True)
        return Response(status_code=204)

    def _model(self, asked: str | None) -> str:
        """The model that is to answer: the one that is asked for, or the first that can."""
        available = self._context.repository.available()
        if asked is None:
            able = sorted(
                name for name, version in available.items() if SIGNATURE in version.signatures
            )
            if not able:
                raise NotFound(f"no model with a signature {SIGNATURE} is available")
            return able[0]
        if asked not in available:
            raise servable_not_found(asked[:200], None)
        if SIGNATURE not in available[asked].signatures:
            raise InvalidArgument(
                f"model {asked} has no signature {SIGNATURE}, so it cannot answer whole scans"
            )
        return asked

    async def _answer(self, request: Request, model: str) -> Response:
        folder = Path(tempfile.mkdtemp(dir=self._root))
        scan = secrets.token_urlsafe(16)
        try:
            with self._disk() as keep:
                upload = await self._upload(request, folder, keep)
                with self._slot():
                    answer = await self._child(request, upload, folder, model)
                upload.unlink()
            refused = answer.values.get("status") == "refused"
            links = (
                {name: f"/v1/scans/{scan}/{name}" for name in answer.files} if not refused else {}
            )
            body = json.dumps({**answer.values, "files": links}, allow_nan=False)
            if links:
                self._keep(scan, _Kept(folder, dict(answer.files), time.monotonic() + self._keep_s))
            return Response(body, 422 if refused else 200, media_type="application/json")
        finally:
            if scan not in self._kept:
                shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _disk(self) -> Iterator[Callable[[int], None]]:
        """Counts the bytes of an upload, until it is deleted."""
        mine, limit = 0, 2 * self._context.settings.max_message_bytes

        def keep(size: int) -> None:
            nonlocal mine
            if self._here + size > limit:
                raise QueueFull("too many large scans are arriving; ask again later")
            self._here += size
            mine += size

        try:
            yield keep
        finally:
            self._here -= mine

    @contextmanager
    def _slot(self) -> Iterator[None]:
        """One of the children.

        Only for an upload that is here, since a client may take its time.
        """
        if self._free <= 0:
            raise QueueFull("another scan is being answered; ask again later")
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1

    async def _upload(self, request: Request, folder: Path, keep: Callable[[int], None]) -> Path:
        if self._arriving >= _UPLOADS:
            raise QueueFull("too many scans are arriving; ask again later")
        path = folder / "upload"
        self._arriving += 1
        try:
            with path.open("wb") as file:

                def write(piece: bytes) -> None:
                    keep(len(piece))
                    file.write(piece)

                await self._reader.pieces(request, write)
        finally:
            self._arriving -= 1
        with path.open("rb") as full:
            suffix = _suffix(full.read(_HEAD))
        return path.rename(folder / f"scan{suffix}")

    async def _child(self, request: Request, upload: Path, folder: Path, model: str) -> ScanAnswer:
        given_up, out = threading.Event(), folder / "out"
        token = self._context.settings.token
        with self._lock:
            self._running.add(given_up)
        if self._stop.is_set():
            given_up.set()

        def call() -> ScanAnswer:
            return run(
                self._command(upload, out, model), folder, out, token, self._limits, given_up
            )

        left = asyncio.ensure_future(client_disconnected(request))
        left.add_done_callback(lambda done: None if done.cancelled() else given_up.set())
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except ClientDisconnected:
            if self._stop.is_set():
                raise Unavailable("the server is stopping") from None
            raise
        finally:
            left.cancel()
            with self._lock:
                self._running.discard(given_up)

    def _keep(self, scan: str, kept: _Kept) -> None:
        with self._lock:
            self._kept[scan] = kept
            limit = self._context.settings.scan_kept
            old = [self._kept.popitem(last=False)[1] for _ in range(len(self._kept) - limit)]
        for answer in old:
            shutil.rmtree(answer.folder, ignore_errors=True)

    def _delete_expired(self) -> None:
        """Delete what has been kept for long enough."""
        while not self._stop.wait(min(self._keep_s / 4, 5)):
            now = time.monotonic()
            with self._lock:
                old = [
                    self._kept.pop(name)
                    for name, kept in list(self._kept.items())
                    if kept.until <= now
                ]
            for answer in old:
                shutil.rmtree(answer.folder, ignore_errors=True)


def _locked_folder() -> tuple[Path, int]:
    """A folder for nobody but us, and a lock on it that ends with this process."""
    path = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}"))  # 0700
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    # Only now under the name that `_remove_abandoned` looks for.
    return path.rename(path.with_name(path.name[1:])), lock


def _remove_abandoned() -> None:
    """Delete the folders of servers that were killed, with the scans in them."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # not a folder, another user's, or its server lives
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(lock).st_uid == os.getuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def _suffix(head: bytes) -> str:
    """The ending that says what an upload is, from its first bytes.

    Raises:
        InvalidArgument: If it is none of those that are read.
    """
    if head.startswith(b"PK\x03\x04"):
        return ".zip"
    if head.startswith(b"\x1f\x8b"):
        return ".tar.gz" if _is_tar(_unpacked(head)) else ".nii.gz"
    if _is_tar(head):
        return ".tar"
    if head[344:348] in (b"n+1\0", b"ni1\0") and head[:4] in (b"\x5c\x01\0\0", b"\0\0\x01\x5c"):
        return ".nii"
    raise InvalidArgument(
        "the upload is neither a zip or tar (.tar, .tar.gz) of DICOM files nor NIfTI (.nii,"
        " .nii.gz)"
    )


def _is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar"


def _unpacked(head: bytes) -> bytes:
    """The first 512 bytes behind a gzip header; none if it is damaged."""
    try:
        return zlib.decompressobj(31).decompress(head, 512)
    except zlib.error:
        return b""
