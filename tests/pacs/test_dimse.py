"""Objects to a real archive by C-STORE, and addresses of DICOM nodes."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pydicom
import pytest

pytest.importorskip("pynetdicom", reason="needs the extra [dicom]")

from tests.pacs.orthanc import Orthanc, free_port
from tf_covid.errors import PacsError, PacsUnavailable
from tf_covid.pacs.dimse import DimseAddress, DimseNode, dimse_address, is_aet


def node_of(orthanc: Orthanc, aet: str = "ORTHANC", own: str = "TFCOVID") -> DimseNode:
    return DimseNode(DimseAddress(aet, "127.0.0.1", orthanc.dimse_port), own)


@pytest.mark.parametrize(
    ("text", "aet", "host", "port"),
    [
        ("dimse:PACS@pacs.example:104", "PACS", "pacs.example", 104),
        ("dimse:MY PACS@10.0.0.1:11112", "MY PACS", "10.0.0.1", 11112),
        ("dimse:A@[::1]:104", "A", "::1", 104),
        ("A@h:1", "A", "h", 1),
    ],
)
def test_addresses(text: str, aet: str, host: str, port: int) -> None:
    address = dimse_address(text)
    assert (address.aet, address.host, address.port) == (aet, host, port)
    assert dimse_address(f"dimse:{address}") == address


@pytest.mark.parametrize(
    "text",
    [
        *(
            "dimse:",
            "dimse:A",
            "dimse:A@h",
            "dimse:A@h:",
            "dimse:@h:1",
            "dimse:A@:1",
            "dimse:A@h:x",
        ),
        *("dimse:A@h:70000", "dimse:SEVENTEEN_LETTERS@h:1", "dimse:A\\B@h:1", "dimse:   @h:1"),
        *("dimse:A\n@h:1", "dimse:Ä@h:1", "dimse:A@h:1/x", "dimse:A@http://h:1", "dimse:A@h:1:2"),
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(PacsError, match="dimse_address"):
        dimse_address(text)


def test_titles() -> None:
    assert all(map(is_aet, ("A", "A B", "x" * 16)))
    assert not any(map(is_aet, ("", " ", "x" * 17, "a\\b", "a\tb")))


def test_objects_are_there_afterwards_and_once(orthanc: Orthanc, chest: Path) -> None:
    node = node_of(orthanc)
    node.check()
    lines: list[str] = []
    files = sorted(chest.iterdir())[:4]
    for _ in range(2):
        node.store(files, lines.append)
    assert len(orthanc.ask("GET", "/instances")) == 4
    assert lines[0].endswith("4 objects were taken")


def test_a_title_that_the_archive_does_not_know(orthanc: Orthanc, chest: Path) -> None:
    files = sorted(chest.iterdir())[:1]
    with pytest.raises(PacsError, match=r"pacs_denied: .* does not let TFCOVID in"):
        node_of(orthanc, aet="OTHER").store(files, print)
    with pytest.raises(PacsError, match=r"pacs_(denied|not_stored|broken|unreachable)"):
        node_of(orthanc, own="STRANGER").store(files, print)
    assert orthanc.ask("GET", "/instances") == []


def _refusing(result: int, source: int, reason: int) -> Any:
    """A node that refuses every association and closes at once."""
    pdu = bytes([3, 0, 0, 0, 0, 4, 0, result, source, reason])

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                head = client.recv(6, socket.MSG_WAITALL)
                client.recv(int.from_bytes(head[2:], "big"), socket.MSG_WAITALL)
                client.sendall(pdu)
                client.close()

    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    return listener


@pytest.mark.parametrize(
    ("result", "source", "reason", "error", "message"),
    [
        (1, 1, 7, PacsError, r"pacs_denied: .* let B in \(Called AE title not recognised\)"),
        (1, 1, 3, PacsError, r"pacs_denied: .* let B in \(Calling AE title not recognised\)"),
        (2, 3, 2, PacsUnavailable, r"pacs_unreachable: .* for now \(Local limit exceeded\)"),
        (2, 3, 1, PacsUnavailable, r"pacs_unreachable: .* for now \(Temporary congestion\)"),
    ],
)
@pytest.mark.parametrize("late", [False, True])
def test_a_refusal_is_named_however_late_it_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
    late: bool,
    result: int,
    source: int,
    reason: int,
    error: type[Exception],
    message: str,
) -> None:
    import pynetdicom.acse

    send = pynetdicom.acse.ACSE.send_request

    def slow(acse: Any) -> None:
        """A busy machine: the answer and the end of the connection are there before we look."""
        send(acse)
        time.sleep(0.5)

    if late:
        monkeypatch.setattr(pynetdicom.acse.ACSE, "send_request", slow)
    with _refusing(result, source, reason) as listener:
        node = DimseNode(DimseAddress("A", "127.0.0.1", listener.getsockname()[1]), "B")
        with pytest.raises(PacsError, match=message) as caught:
            node.check()
    assert type(caught.value) is error


def test_nobody_there() -> None:
    node = DimseNode(DimseAddress("A", "127.0.0.1", free_port()), "B")
    with pytest.raises(PacsUnavailable, match="pacs_unreachable"):
        node.check()


def test_one_that_takes_the_call_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tf_covid.pacs.dimse._AGREE_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = DimseAddress("A", "127.0.0.1", listener.getsockname()[1])
        with pytest.raises(PacsUnavailable, match="pacs_unreachable"):
            DimseNode(address, "B").check()


def _serve(classes: list[str], status: int, abort: bool = False) -> Any:
    import pynetdicom

    def received(event: Any) -> int:
        if abort:
            event.assoc.abort()
        return status

    node = pynetdicom.AE(ae_title="A")
    for one in classes:
        node.add_supported_context(one, pynetdicom.ALL_TRANSFER_SYNTAXES)
    handlers = [(pynetdicom.evt.EVT_C_STORE, received)]
    return node.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)


CT = "1.2.840.10008.5.1.4.1.1.2"


@pytest.mark.parametrize(
    ("classes", "status", "abort", "code"),
    [
        ([CT], 0x0000, False, None),
        ([CT], 0xB000, False, None),
        ([CT], 0xA700, False, "pacs_not_stored: .* A700"),
        ([CT], 0xC123, False, "pacs_not_stored: .* C123"),
        (["1.2.840.10008.5.1.4.1.1.4"], 0, False, "pacs_not_stored: .* takes no CT Image Storage"),
        ([CT], 0x0000, True, "pacs_broken"),
    ],
)
def test_what_a_node_may_say(
    chest: Path, classes: list[str], status: int, abort: bool, code: str | None
) -> None:
    server = _serve(classes, status, abort)
    try:
        node = DimseNode(DimseAddress("A", "127.0.0.1", server.server_address[1]), "B")
        files = sorted(chest.iterdir())[:2]
        if code is None:
            node.store(files, lambda line: None)
            return
        with pytest.raises(PacsError, match=code):
            node.store(files, lambda line: None)
    finally:
        server.shutdown()


def test_no_message_holds_an_identity(orthanc: Orthanc, chest: Path, capfd: Any) -> None:
    image = pydicom.dcmread(next(chest.iterdir()))
    with pytest.raises(PacsError) as refused:
        node_of(orthanc, aet="OTHER").store([next(chest.iterdir())], print)
    said = str(refused.value) + "".join(capfd.readouterr())
    for name in ("PatientID", "StudyInstanceUID", "SOPInstanceUID"):
        assert str(image[name].value) not in said
