"""A watch from its settings: journal, sources, destination, and the loop over them."""

from __future__ import annotations

import re
import signal
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tf_covid.errors import OptionError
from tf_covid.infer import Options, Run
from tf_covid.pacs import address as archives
from tf_covid.pacs import dimse
from tf_covid.pacs.address import Access, archive_url
from tf_covid.pacs.dicomweb import DicomWeb
from tf_covid.pacs.dimse import DimseNode, dimse_address, is_aet, silence
from tf_covid.pacs.store import StowNode
from tf_covid.pacs.tls import client_context, server_context
from tf_covid.pipeline import Models
from tf_covid.scan.reader import Reader
from tf_covid.watch.archive_source import ArchiveSource
from tf_covid.watch.folder_source import FolderSource
from tf_covid.watch.health import Health, serve_health
from tf_covid.watch.journal import WAITING, Journal
from tf_covid.watch.listener import ListenerSource
from tf_covid.watch.source import Find, Source
from tf_covid.watch.watcher import FREE_BYTES, Destination, Watcher

#: Seconds in which a further signal is taken for the same.
_SAME_SIGNAL_S = 10.0
#: The AE title by which we call where no source gives us one.
_OWN_AET = "TFCOVID"


@dataclass(frozen=True)
class WatchSettings:
    """What a watch looks at, and what it does with it.

    Args:
        out: Folder of the answers.
        sources: `dicomweb:URL`, `dimse:AET@ADDRESS:PORT`, or folders.
        store: `dicomweb:URL` or `dimse:AET@HOST:PORT`; None: results stay in `out`.
        access: Credentials and certificates.
        quiet_s: Seconds without a change after which a series is complete.
        keep_days: Days until answers and received images are deleted; None: never.
        study_days: Of an archive, only studies of so many days; None: all.
        called_aet: The AE title that senders must call; None: that of the source.
        allowed_aets: AE titles that may send; none: all.
        dimse_tls: DIMSE through TLS.
        health_port: Where `/healthz` and `/metrics` are; 0: a free port, None: nowhere.
        retry_failed: Try what failed again.
    """

    out: Path
    sources: tuple[str, ...]
    store: str | None = None
    access: Access = field(default_factory=Access)
    quiet_s: float = 60.0
    keep_days: float | None = None
    study_days: int | None = None
    called_aet: str | None = None
    allowed_aets: tuple[str, ...] = ()
    dimse_tls: bool = False
    health_port: int | None = None
    retry_failed: bool = False

    def __post_init__(self) -> None:
        for aet in (self.called_aet, *self.allowed_aets):
            if aet is not None and not is_aet(aet):
                raise OptionError(f"{aet!r} is no AE title: at most 16 letters, no backslash.")
        if self.dimse_tls and self.access.client_cert is None:
            raise OptionError("--dimse-tls needs our certificate and its key: --client-cert.")


def run_watch(
    settings: WatchSettings,
    options: Options,
    on_message: Callable[[str], None],
    load_models: Callable[[], Models[Any]],
) -> None:
    """Watch until a signal ends it.

    Args:
        settings: What to look at.
        options: What decides the answers.
        on_message: Called with a line about what is done.
        load_models: Loads the models, before the first scan.

    Raises:
        PacsError, WatchError: If the journal, a source or the destination cannot be used.
        ModelError, ServingError: If the models cannot answer any scan.
    """

    def note(line: str) -> None:
        on_message(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}")

    with _ended_by_signals(), ExitStack() as stack:
        try:
            _watch(settings, options, note, load_models, stack)
        except KeyboardInterrupt:
            note("ended by a signal; what was begun goes on at the next start")


def _watch(
    settings: WatchSettings,
    options: Options,
    on_message: Callable[[str], None],
    load_models: Callable[[], Models[Any]],
    stack: ExitStack,
) -> None:
    journal = stack.enter_context(Journal(settings.out))
    reader = stack.enter_context(Reader())  # starts while this process imports the rest
    run = Run(settings.out, options, overwrite=True, load_models=load_models, reader=reader)
    health = Health()
    destination = _destination(settings, stack)
    if destination is not None:
        destination.check()
    sources = [
        _source(text, settings, journal.folder, reader.find, stack, health, on_message)
        for text in dict.fromkeys(settings.sources)
    ]
    for source in sources:
        source.check()
    if settings.health_port is not None:
        server = serve_health(health, settings.health_port)
        stack.callback(server.shutdown)
        on_message(f"health: http://127.0.0.1:{server.server_address[1]}/healthz")
    resumed = journal.resume(failed=settings.retry_failed)
    again = f"; {resumed} series are taken up again" if resumed else ""
    silence()
    names = {source.name for source in sources}
    strangers = sum(row.state == WAITING and row.source not in names for row in journal.rows())
    if strangers:
        on_message(f"{strangers} series wait for sources that are not watched now, see --status")
    on_message(f"watching {', '.join(source.name for source in sources)}{again}")
    watcher = Watcher(
        journal,
        sources,
        run,
        destination,
        health,
        on_message,
        poll_s=min(10.0, max(settings.quiet_s / 4, 0.5)),
        keep_days=settings.keep_days,
    )
    watcher.forever()


def _destination(settings: WatchSettings, stack: ExitStack) -> Destination | None:
    if settings.store is None:
        return None
    if settings.store.startswith(dimse.PREFIX):
        tls = _client_tls(settings) if settings.dimse_tls else None
        return DimseNode(dimse_address(settings.store), _own_aet(settings), tls)
    archive = DicomWeb(archive_url(settings.store), settings.access)
    return StowNode(stack.enter_context(archive))


def _source(
    text: str,
    settings: WatchSettings,
    kept: Path,
    find: Find,
    stack: ExitStack,
    health: Health,
    on_message: Callable[[str], None],
) -> Source:
    """The source of an address.

    Args:
        text: The address.
        settings: What holds for all.
        kept: Folder for what is received.
        find: Finds the cases of a path.
        stack: Closes it.
        health: Counts what is received.
        on_message: Called with a line about what is done.
    """
    source: Source
    if text.startswith(archives.PREFIX):
        archive = DicomWeb(archive_url(text), settings.access)
        source = ArchiveSource(
            archive,
            kept / "retrieved",
            find,
            quiet_s=settings.quiet_s,
            study_days=settings.study_days,
            on_message=on_message,
            free_bytes=FREE_BYTES,
        )
    elif text.startswith(dimse.PREFIX):
        address = dimse_address(text)
        # A folder for each: two listeners know nothing of each other. Whoever moves one to another
        # address finds in it what was received.
        own = re.sub("[^A-Za-z0-9]", "_", address.aet)
        source = ListenerSource(
            address,
            kept / f"dimse-{own}-{address.port}",
            find,
            quiet_s=settings.quiet_s,
            called_aet=settings.called_aet,
            allowed_aets=settings.allowed_aets,
            tls=_server_tls(settings) if settings.dimse_tls else None,
            on_image=health.image,
        )
    else:
        folder = Path(text)
        if settings.out.resolve().is_relative_to(folder.resolve()):
            raise OptionError(f"--out lies in the folder that is watched ({folder}).")
        source = FolderSource(folder, find, quiet_s=settings.quiet_s)
    stack.callback(source.close)
    return source


def _own_aet(settings: WatchSettings) -> str:
    """The AE title by which we call: the one by which we are called."""
    if settings.called_aet is not None:
        return settings.called_aet
    own = [dimse_address(one).aet for one in settings.sources if one.startswith(dimse.PREFIX)]
    return own[0] if own else _OWN_AET


def _client_tls(settings: WatchSettings) -> ssl.SSLContext:
    return client_context(settings.access.ca_file, settings.access.client_cert)


def _server_tls(settings: WatchSettings) -> ssl.SSLContext:
    cert = settings.access.client_cert
    if cert is None:
        raise RuntimeError("unreachable: the settings were checked")
    return server_context(settings.access.ca_file, cert)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM end this process as Ctrl-C does."""
    last = -float("inf")

    def end(signum: int, frame: object) -> None:
        # Who ends a group of processes often signals twice; the second must not meet the clean-up.
        nonlocal last
        now = time.monotonic()
        if now - last < _SAME_SIGNAL_S:
            return
        last = now
        raise KeyboardInterrupt

    before = [(one, signal.signal(one, end)) for one in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield
    finally:
        for one, handler in before:
            signal.signal(one, handler)
