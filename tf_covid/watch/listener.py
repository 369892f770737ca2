"""A DICOM node that takes images by C-STORE (PS3.4 B), as archives and scanners forward them."""

from __future__ import annotations

import shutil
import ssl
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_covid.errors import OutputError, WatchError
from tf_covid.extras import optional_import
from tf_covid.pacs.dimse import DimseAddress, silence
from tf_covid.scan import Case
from tf_covid.watch.inbox import BROKEN_S, Inbox, Unreadable
from tf_covid.watch.journal import JournalRow, SeenSeries
from tf_covid.watch.source import Find

if TYPE_CHECKING:
    from pynetdicom.events import Event

#: CT, Enhanced CT and Legacy Converted Enhanced CT Image Storage.
_CT = frozenset(f"1.2.840.10008.5.1.4.1.1.2{suffix}" for suffix in ("", ".1", ".2"))
#: Storage classes that pynetdicom 3.0 has no name for: Label Map Segmentation.
_FURTHER_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.7",)
#: Answers to C-STORE (PS3.4 B.2.3): taken; no room; no image of a series; not understood.
_TAKEN, _NO_ROOM, _NO_IMAGE, _NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000
#: Associations at once, bytes of one image, and bytes of the disk that stay free.
_ASSOCIATIONS, _MOST_BYTES, _FREE_BYTES = 16, 1 << 30, 2 << 30
#: Bytes of one message: what we ask for is 16 kB, and a call that offers all classes has some 100.
_MOST_PDU_BYTES = 1 << 20
#: Seconds to wait for the next message of a sender.
_SILENT_S = 60.0


@dataclass(eq=False)
class _Association:
    """What came by one association.

    Args:
        lost: Whether an image was not taken: its sender may think that the series is complete.
        pending: Bytes of the message that is coming in.
        released: Whether the other side said that it was done.
        over: Whether it has ended.
    """

    lost: bool = False
    pending: int = 0
    released: bool = False
    over: bool = False


class ListenerSource:
    """CT images that others send.

    Every storage class is taken, so that nobody's job fails; what is no CT is not kept.

    Args:
        address: Own AE title, and where to listen; port 0: a free one.
        folder: Keeps what is received.
        find: Finds the cases of a path.
        quiet_s: Seconds without a further image after which a series is complete.
        called_aet: The AE title that senders must call, instead of the own one.
        allowed_aets: AE titles that may send; none: all.
        tls: For TLS; None: without.
        free_bytes: Of the disk, which stay free.
        broken_s: Seconds to wait for more where a sender broke off.
        on_image: Called for each CT image with whether it was kept.

    Raises:
        WatchError: If nobody can listen there.
    """

    def __init__(
        self,
        address: DimseAddress,
        folder: Path,
        find: Find,
        *,
        quiet_s: float,
        called_aet: str | None = None,
        allowed_aets: Collection[str] = (),
        tls: ssl.SSLContext | None = None,
        free_bytes: int = _FREE_BYTES,
        broken_s: float = BROKEN_S,
        on_image: Callable[[bool], None] | None = None,
    ) -> None:
        pynetdicom = optional_import("pynetdicom", "dicom")
        silence()
        self.name = f"dimse:{address}"
        self._folder, self._find, self._free_bytes = folder, find, free_bytes
        self.inbox = Inbox(folder, self.name, quiet_s=quiet_s, broken_s=broken_s)
        self._lock = threading.Lock()
        self._open: dict[Any, _Association] = {}
        #: How many images were taken in, and how many were refused.
        self.taken = self.refused = 0
        self._on_image = on_image
        node = pynetdicom.AE(ae_title=called_aet or address.aet)
        node.require_called_aet = True
        node.require_calling_aet = sorted(allowed_aets)
        node.maximum_associations = _ASSOCIATIONS
        node.network_timeout = node.dimse_timeout = _SILENT_S
        node.acse_timeout = 30
        for context in pynetdicom.AllStoragePresentationContexts:
            node.add_supported_context(context.abstract_syntax, pynetdicom.ALL_TRANSFER_SYNTAXES)
        for storage_class in _FURTHER_CLASSES:
            node.add_supported_context(storage_class, pynetdicom.ALL_TRANSFER_SYNTAXES)
        node.add_supported_context("1.2.840.10008.1.1")  # C-ECHO
        events = pynetdicom.evt
        try:
            self._server: Any = node.start_server(
                (address.host, address.port),
                block=False,
                ssl_context=tls,
                evt_handlers=[
                    (events.EVT_CONN_OPEN, _bound_messages),
                    (events.EVT_ACCEPTED, self._accepted),
                    (events.EVT_C_STORE, self._received),
                    (events.EVT_PDU_RECV, self._count),
                    (events.EVT_RELEASED, self._released),
                    (events.EVT_CONN_CLOSE, self._closed),
                ],
            )
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise WatchError(f"watch_listen: nobody can listen at {address}: {reason}") from None
        self.port: int = self._server.server_address[1]

    def check(self) -> None:
        """See `Source.check`; who listens is there."""

    def poll(self) -> Iterator[SeenSeries]:
        """See `Source.poll`."""
        return self.inbox.complete()

    def case(self, entry: JournalRow) -> AbstractContextManager[Case]:
        """See `Source.case`."""
        return self.inbox.case(entry, self._find)

    def remove(self, case_name: str) -> bool:
        """See `Source.remove`."""
        return self.inbox.remove(case_name)

    def close(self) -> None:
        """Stop listening; associations that are open break off."""
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        for association in server.active_associations:
            association.abort()

    def _accepted(self, event: Event) -> None:
        with self._lock:
            self._open[event.assoc] = _Association()

    def _count(self, event: Event) -> None:
        """Bound what one image may take: the library holds it in memory until it is whole."""
        association = self._association(event)
        fragments = getattr(event.pdu, "presentation_data_value_items", None)
        if fragments is None:
            return
        for fragment in fragments:
            data = fragment.presentation_data_value or b""
            association.pending += len(data)
            if data[:1] and data[0] & 2:  # the last fragment of a command or a data set
                association.pending = 0
        if association.pending > _MOST_BYTES:
            event.assoc.abort()

    def _received(self, event: Event) -> int:
        """Keep an image, and only then say so."""
        association = self._association(event)
        if str(event.request.AffectedSOPClassUID) not in _CT:
            return _TAKEN
        try:
            content = event.encoded_dataset()
            if shutil.disk_usage(self._folder).free < self._free_bytes + len(content):
                raise OutputError("the disk is full")
            self.inbox.put(content, association)
        except Unreadable:
            association.lost = True
            self._count_image(taken=False)
            return _NO_IMAGE
        except (OutputError, OSError):
            association.lost = True
            self._count_image(taken=False)
            return _NO_ROOM
        except Exception:  # whatever it is: the sender must not take it for done
            association.lost = True
            self._count_image(taken=False)
            return _NOT_UNDERSTOOD
        if association.over:  # it broke off while the image was written
            self.inbox.ended(association, released=False)
        self._count_image(taken=True)
        return _TAKEN

    def _released(self, event: Event) -> None:
        self._association(event).released = True

    def _closed(self, event: Event) -> None:
        """The end of every association, in whichever way."""
        with self._lock:
            association = self._open.pop(event.assoc, None)
        if association is not None:
            association.over = True
            released = association.released and not association.lost
            self.inbox.ended(association, released=released)

    def _association(self, event: Event) -> _Association:
        with self._lock:
            return self._open.get(event.assoc) or _Association(over=True)

    def _count_image(self, *, taken: bool) -> None:
        with self._lock:
            self.taken += taken
            self.refused += not taken
        if self._on_image is not None:
            self._on_image(taken)


def _bound_messages(event: Event) -> None:
    """Let nobody have us read a longer message than was agreed on; the library would."""
    line = event.assoc.dul.socket
    if line is None:
        return
    receive = line.recv

    def bounded(size: int) -> bytearray:
        if size > _MOST_PDU_BYTES:
            raise OSError("a message longer than any that is agreed on")
        content: bytearray = receive(size)
        return content

    line.recv = bounded  # type: ignore[assignment, method-assign]
