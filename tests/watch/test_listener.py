"""The C-STORE listener, sent to by real senders: good ones, killed ones, and ones that mean harm."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pydicom
import pynetdicom
import pytest
from pydicom.dataset import Dataset

from tf_covid.errors import WatchError
from tf_covid.pacs.dimse import DimseAddress, DimseNode
from tf_covid.pacs.tls import client_context, server_context
from tf_covid.scan import find_cases
from tf_covid.watch.listener import ListenerSource

CT = "1.2.840.10008.5.1.4.1.1.2"
LABELMAP = "1.2.840.10008.5.1.4.1.1.66.7"
EXPLICIT = "1.2.840.10008.1.2.1"
PATIENCE_S = 20.0


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def send(
    port: int,
    files: list[Path],
    called: str = "TFCOVID",
    calling: str = "SCANNER",
    pause_s: float = 0.0,
    **options: Any,
) -> subprocess.Popen[str]:
    program = [sys.executable, Path(__file__).with_name("sender.py")]
    arguments = [str(port), called, calling, str(pause_s), *map(str, files)]
    return subprocess.Popen([*program, *arguments], stdout=subprocess.PIPE, text=True, **options)


def statuses(sender: subprocess.Popen[str], code: int = 0) -> set[str]:
    out, _ = sender.communicate(timeout=60)
    assert sender.returncode == code
    return set(out.split())


def until(there: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE_S
    while not (value := there()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
    return value


def associate(port: int, *classes: str, called: str = "TFCOVID", calling: str = "X") -> Any:
    node = pynetdicom.AE(ae_title=calling)
    node.acse_timeout = node.dimse_timeout = 10
    for one in classes or (CT,):
        node.add_requested_context(one, EXPLICIT)
    return node.associate("127.0.0.1", port, ae_title=called)


def an_image(storage_class: str = CT, **elements: Any) -> Dataset:
    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = storage_class, "1.2.3.4"
    image.StudyInstanceUID, image.SeriesInstanceUID = "1.2", "1.2.3"
    for name, value in elements.items():
        setattr(image, name, value)
    image.file_meta = pydicom.dataset.FileMetaDataset()
    image.file_meta.TransferSyntaxUID = EXPLICIT
    return image


def test_a_series_comes_in_whole(listen: Any, chest: Path, tmp_path: Path) -> None:
    listener = listen()
    assert statuses(send(listener.port, files_of(chest))) == {"0000"}
    (seen,) = until(lambda: list(listener.poll()))
    sent = [pydicom.dcmread(file) for file in files_of(chest)]
    assert seen.images == {image.SOPInstanceUID for image in sent}
    kept = sorted((tmp_path / "kept" / "received").rglob("*.dcm"))
    pixels = {pydicom.dcmread(file).PixelData for file in kept}
    assert pixels == {image.PixelData for image in sent}
    assert listener.taken == len(sent)
    assert list(listener.poll()) == []


def test_a_sender_that_is_killed_leaves_no_series(listen: Any, chest: Path) -> None:
    listener = listen(broken_s=6.0)
    sender = send(listener.port, files_of(chest), pause_s=0.1)
    until(lambda: listener.taken >= 5)
    sender.send_signal(signal.SIGKILL)
    sender.wait()
    taken = listener.taken
    time.sleep(2.0)  # four times the quiet time
    assert list(listener.poll()) == []
    assert statuses(send(listener.port, files_of(chest))) == {"0000"}
    (seen,) = until(lambda: list(listener.poll()))
    assert taken < len(seen.images) == len(files_of(chest))


def test_one_that_aborts_is_no_better_than_killed(listen: Any) -> None:
    listener = listen(broken_s=4.0)
    association = associate(listener.port)
    assert association.send_c_store(an_image()).Status == 0
    association.abort()
    start = time.monotonic()
    time.sleep(1.5)
    assert list(listener.poll()) == []
    until(lambda: list(listener.poll()))
    assert time.monotonic() - start > 3.5


def test_every_class_is_taken_and_ct_alone_is_kept(listen: Any, tmp_path: Path) -> None:
    listener = listen()
    classes = [context.abstract_syntax for context in pynetdicom.AllStoragePresentationContexts]
    classes = [*classes, LABELMAP]
    for first in range(0, len(classes), 100):
        some = classes[first : first + 100]
        association = associate(listener.port, *some)
        assert {context.abstract_syntax for context in association.accepted_contexts} == set(some)
        for one in some[::12] + [one for one in some if one.startswith(CT)] + some[-1:]:
            uid = "1.9." + one.replace(".", "")[:40]
            assert association.send_c_store(an_image(one, SOPInstanceUID=uid)).Status == 0
        association.release()
    kept = {pydicom.dcmread(file).SOPClassUID for file in (tmp_path / "kept").rglob("*.dcm")}
    assert kept == {CT, CT + ".1", CT + ".2"}


def test_it_answers_to_an_echo(listen: Any) -> None:
    listener = listen()
    DimseNode(DimseAddress("TFCOVID", "127.0.0.1", listener.port), "ANY").check()


def test_who_may_call_and_by_which_name(listen: Any, chest: Path) -> None:
    listener = listen(called_aet="WATCH", allowed_aets=("SCANNER", "PACS"))
    few = files_of(chest)[:2]
    assert statuses(send(listener.port, few, called="WATCH", calling="SCANNER")) == {"0000"}
    statuses(send(listener.port, few, called="TFCOVID", calling="SCANNER"), code=2)
    statuses(send(listener.port, few, called="WATCH", calling="OTHER"), code=2)
    assert listener.taken == 2


def test_a_full_disk_is_said_to_the_sender_and_the_series_waits(
    listen: Any, chest: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listener = listen(broken_s=8.0, free_bytes=1 << 20)
    room = iter([True] * 3)
    usage = shutil.disk_usage(tmp_path)

    def disk_usage(path: Any) -> Any:
        return usage if next(room, False) else usage._replace(free=1 << 20)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    assert statuses(send(listener.port, files_of(chest))) == {"0000", "A700"}
    assert (listener.taken, listener.refused) == (3, len(files_of(chest)) - 3)
    time.sleep(1.5)
    assert list(listener.poll()) == [], "its sender thinks that it is done, and it is not whole"
    monkeypatch.undo()
    assert statuses(send(listener.port, files_of(chest))) == {"0000"}
    (seen,) = until(lambda: list(listener.poll()))
    assert len(seen.images) == len(files_of(chest))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a disk")
def test_a_disk_that_is_really_full(listen: Any, chest: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", tmp_path / "kept"], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    try:
        listener = listen(broken_s=30.0)
        found = statuses(send(listener.port, files_of(chest)))
        assert found == {"0000", "A700"}
        assert 0 < listener.taken < len(files_of(chest))
        for file in (tmp_path / "kept" / "received").rglob("*.dcm"):
            pydicom.dcmread(file).PixelData  # noqa: B018  # none is cut
        assert not list((tmp_path / "kept").rglob("*.partial"))
        listener.close()
    finally:
        subprocess.run(["umount", tmp_path / "kept"], check=True)


@pytest.mark.parametrize(
    ("elements", "status"),
    [
        ({"SeriesInstanceUID": "../../etc/passwd"}, 0xA900),
        ({"SeriesInstanceUID": ""}, 0xA900),
        ({"StudyInstanceUID": "1." * 60}, 0xA900),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR UI", "ignore:The value length")
def test_uids_that_are_none(
    listen: Any, tmp_path: Path, elements: dict[str, str], status: int
) -> None:
    listener = listen()
    association = associate(listener.port)
    assert association.send_c_store(an_image(**elements)).Status == status
    assert association.send_c_store(an_image()).Status == 0, "the next one is taken"
    association.release()
    assert len(list(tmp_path.rglob("*.dcm"))) == 1
    assert not (tmp_path.parent / "etc").exists()


def test_an_image_that_never_ends(
    listen: Any, chest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tf_covid.watch.listener._MOST_BYTES", 3 << 20)
    listener = listen()
    association = associate(listener.port)
    large = an_image(PixelData=bytes(12 << 20), Rows=1, Columns=1, BitsAllocated=16)
    status = association.send_c_store(large)
    assert "Status" not in status
    until(lambda: not association.is_established)
    assert listener.taken == 0
    # Many small ones are no large one.
    assert statuses(send(listener.port, files_of(chest))) == {"0000"}


def test_noise_and_silence_keep_nobody_out(listen: Any, chest: Path) -> None:
    listener = listen()
    lines = []
    for content in (
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x01\0\xff\xff\xff\xff" + b"A" * 1000,
        os.urandom(500),
    ):
        line = socket.create_connection(("127.0.0.1", listener.port))
        line.sendall(content)
        lines.append(line)
    assert statuses(send(listener.port, files_of(chest)[:3])) == {"0000"}
    for line in lines:
        line.close()


def test_tls(listen: Any, certificates: Path, chest: Path) -> None:
    server = certificates / "server.pem"
    listener = listen(tls=server_context(certificates / "client.pem", server))
    silent = socket.create_connection(("127.0.0.1", listener.port))  # never begins a handshake
    address = DimseAddress("TFCOVID", "127.0.0.1", listener.port)
    DimseNode(address, "A", client_context(server, certificates / "client.pem")).check()
    node = DimseNode(address, "A", client_context(server, certificates / "client.pem"))
    node.store(files_of(chest)[:3], lambda line: None)
    assert listener.taken == 3
    for own in (certificates / "other.pem", None):
        stranger = DimseNode(address, "A", client_context(server, own))
        with pytest.raises(Exception, match="pacs_"):
            stranger.store(files_of(chest)[3:5], lambda line: None)
    with pytest.raises(Exception, match="pacs_unreachable"):
        DimseNode(address, "A").check()
    with pytest.raises(Exception, match="pacs_unreachable"):
        DimseNode(address, "A", client_context(certificates / "other.pem", None)).check()
    assert listener.taken == 3
    silent.close()


def test_a_port_that_is_taken(listen: Any) -> None:
    listener = listen()
    with pytest.raises(WatchError, match="watch_listen: nobody can listen at"):
        ListenerSource(
            DimseAddress("A", "127.0.0.1", listener.port), Path("unused"), find_cases, quiet_s=1
        )


def test_a_message_longer_than_any_takes_no_memory(listen: Any) -> None:
    listener = listen()
    before = psutil.Process().memory_info().rss
    with socket.create_connection(("127.0.0.1", listener.port)) as line:
        line.settimeout(10)
        line.sendall(struct.pack(">BBL", 1, 0, 0xFFFFFF00))
        sent = 0
        try:
            while sent < 200 << 20:
                sent += line.send(bytes(1 << 20))
        except OSError:
            pass
    assert sent < 200 << 20, "it hung up"
    assert psutil.Process().memory_info().rss - before < 100 << 20


def test_a_refused_image_leaves_its_series_incomplete(listen: Any) -> None:
    listener = listen(broken_s=3.0)
    association = associate(listener.port)
    assert association.send_c_store(an_image(SOPInstanceUID="1.2.3.1")).Status == 0
    assert association.send_c_store(an_image(SOPInstanceUID="x")).Status == 0xA900
    association.release()
    time.sleep(1.5)
    assert list(listener.poll()) == []
    assert until(lambda: list(listener.poll()))


def test_headers_are_in_no_log(listen: Any, capfd: Any, tmp_path: Path) -> None:
    image = an_image(SOPInstanceUID="1.2.840.03", PatientName="Doe^John")
    image.save_as(tmp_path / "odd.dcm", enforce_file_format=True)
    listener = listen()
    capfd.readouterr()
    sender = send(listener.port, [tmp_path / "odd.dcm"], stderr=subprocess.DEVNULL)
    assert statuses(sender) == {"0000"}
    until(lambda: list(listener.poll()))
    # What a library logs and nobody takes goes to standard error.
    said = "".join(capfd.readouterr())
    assert "DOE" not in said.upper()
    assert "840.03" not in said
