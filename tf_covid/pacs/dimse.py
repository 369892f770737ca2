"""DICOM nodes as they are named on the command line, and objects to one by C-STORE (PS3.4 B)."""

from __future__ import annotations

import logging
import re
import ssl
import warnings
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydicom

from tf_covid.errors import PacsError, PacsUnavailable
from tf_covid.extras import optional_import

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pynetdicom.association import Association
    from pynetdicom.events import Event
    from pynetdicom.pdu import A_ASSOCIATE_RJ

PREFIX = "dimse:"
#: Up to 16 characters without a backslash or control character (PS3.5 6.2, AE).
_AET = re.compile(r"(?! +$)[ -\[\]-~]{1,16}")
_ADDRESS = re.compile(
    r"(?P<aet>[^@]+)@(\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[^:@/]+)):(?P<port>\d{1,5})"
)
_VERIFICATION = "1.2.840.10008.1.1"
#: Result of an A-ASSOCIATE-RJ: the same request may be let in later.
_TRANSIENT = 2
#: Seconds to connect, to agree, and for each answer.
_CONNECT_S, _AGREE_S, _ANSWER_S = 5.0, 30.0, 120.0


@dataclass(frozen=True)
class DimseAddress:
    """A DICOM node.

    Args:
        aet: AE title by which it is called.
        host: Name or address of its machine.
        port: Port that it listens at.
    """

    aet: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.aet}@{host}:{self.port}"


def is_aet(text: str) -> bool:
    """Whether a text can be an AE title."""
    return _AET.fullmatch(text) is not None


def dimse_address(text: str) -> DimseAddress:
    """Read `dimse:AET@HOST:PORT`.

    Raises:
        PacsError: If it is none.
    """
    match = _ADDRESS.fullmatch(text.removeprefix(PREFIX))
    if match is None or not is_aet(match["aet"]) or int(match["port"]) > 65535:
        raise PacsError(
            "dimse_address: dimse:AET@HOST:PORT is needed, with an AE title of at most 16 letters"
        )
    return DimseAddress(match["aet"], match["six"] or match["host"], int(match["port"]))


class DimseNode:
    """A DICOM node that objects are sent to.

    Args:
        address: Where it is.
        own_aet: The AE title by which we call.
        tls: For TLS; None: without.
    """

    def __init__(
        self, address: DimseAddress, own_aet: str, tls: ssl.SSLContext | None = None
    ) -> None:
        self._library = optional_import("pynetdicom", "dicom")
        silence()
        self.shown = f"dimse:{address}"
        self._address, self._own_aet, self._tls = address, own_aet, tls

    def check(self) -> None:
        """Ask it whether it is there (C-ECHO).

        Raises:
            PacsUnavailable: If nobody answers, or it lets nobody in for now.
            PacsError: If it does not let us in.
        """
        with self._association({(_VERIFICATION, "1.2.840.10008.1.2")}) as association:
            try:
                status: Any = association.send_c_echo()
            except (RuntimeError, ValueError):
                status = None
        if getattr(status, "Status", None) is None:
            raise PacsUnavailable(f"pacs_broken: {self.shown} does not answer to C-ECHO")

    def store(self, paths: Iterable[Path], on_message: Callable[[str], None]) -> None:
        """Send objects; each is stored once the node says so.

        What it has already, it gets again: under the same UID it is the same answer.

        Args:
            paths: DICOM files.
            on_message: Called with a line when all were taken.

        Raises:
            PacsError: If one of them was not taken; those before it were.
        """
        objects = [(path, *_kind_of(path)) for path in paths]
        kinds = {(storage_class, syntax) for _, storage_class, syntax in objects}
        with self._association(kinds) as association:
            accepted = {context.abstract_syntax for context in association.accepted_contexts}
            for path, storage_class, _ in objects:
                if storage_class not in accepted:
                    name = pydicom.uid.UID(storage_class).name
                    raise PacsError(f"pacs_not_stored: {self.shown} takes no {name} ({path.name})")
            for path, _, _ in objects:
                self._send(association, path)
        on_message(f"{self.shown}: {len(objects)} objects were taken")

    def close(self) -> None:
        """Nothing is open between two calls."""

    def _send(self, association: Association, path: Path) -> None:
        try:
            status = association.send_c_store(path)
        except (RuntimeError, ValueError) as error:
            raise PacsUnavailable(
                f"pacs_broken: the connection to {self.shown} broke off ({type(error).__name__})"
            ) from None
        code = getattr(status, "Status", None)
        if code is None:
            raise PacsUnavailable(f"pacs_broken: {self.shown} did not answer for {path.name}")
        # Success, and the warnings of PS3.4 B.2.3: stored, with elements changed or left out.
        if code != 0x0000 and code >> 8 != 0xB0:
            raise PacsError(
                f"pacs_not_stored: {self.shown} did not take {path.name} (status {code:04X})"
            )

    @contextmanager
    def _association(self, contexts: set[tuple[str, str]]) -> Iterator[Association]:
        node = self._library.AE(ae_title=self._own_aet)
        node.connection_timeout, node.acse_timeout = _CONNECT_S, _AGREE_S
        node.dimse_timeout = node.network_timeout = _ANSWER_S
        for storage_class, syntax in sorted(contexts):
            node.add_requested_context(storage_class, syntax)
        # The library says "rejected" only if it looks before the connection is closed again.
        refusals: list[A_ASSOCIATE_RJ] = []

        def heard(event: Event) -> None:
            if isinstance(event.pdu, self._library.pdu.A_ASSOCIATE_RJ):
                refusals.append(event.pdu)

        address = self._address
        tls: dict[str, Any] = {} if self._tls is None else {"tls_args": (self._tls, address.host)}
        try:
            association = node.associate(
                address.host,
                address.port,
                ae_title=address.aet,
                evt_handlers=[(self._library.evt.EVT_PDU_RECV, heard)],
                **tls,
            )
        except (OSError, ValueError) as error:  # its name is not known, for one
            raise PacsUnavailable(
                f"pacs_unreachable: {self.shown} cannot be reached ({type(error).__name__})"
            ) from None
        if refusals:
            raise self._refused(refusals[0])
        if not association.is_established and association.rejected_contexts:
            names = {pydicom.uid.UID(one).name for one, _ in contexts}
            raise PacsError(
                f"pacs_not_stored: {self.shown} takes no {' and no '.join(sorted(names))}"
            )
        if not association.is_established:
            raise PacsUnavailable(
                f"pacs_unreachable: {self.shown} does not answer, breaks off or wants"
                f" {'no ' if self._tls else ''}TLS"
            )
        try:
            yield association
        finally:
            if association.is_established:
                association.release()

    def _refused(self, refusal: A_ASSOCIATE_RJ) -> PacsError:
        """What a refusal says (PS3.8 9.3.4)."""
        reason = refusal.reason_str
        if refusal.result == _TRANSIENT:
            return PacsUnavailable(
                f"pacs_unreachable: {self.shown} lets nobody in for now ({reason})"
            )
        return PacsError(
            f"pacs_denied: {self.shown} does not let {self._own_aet} in ({reason}): see the AE"
            " titles that it knows"
        )


def silence() -> None:
    """Keep messages of libraries, which repeat headers, out of every log of this process."""
    for name in ("pynetdicom", "pydicom"):
        logger = logging.getLogger(name)
        if logger.propagate:
            logger.addHandler(logging.NullHandler())
            logger.propagate = False
    # Threads read headers: a filter for a moment would be everybody's.
    warnings.filterwarnings("ignore", module=r"pydicom")


def _kind_of(path: Path) -> tuple[str, str]:
    """Storage class and transfer syntax of a file."""
    header = pydicom.dcmread(path, stop_before_pixels=True)
    return str(header.SOPClassUID), str(header.file_meta.TransferSyntaxUID)
