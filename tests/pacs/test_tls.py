"""Archives behind TLS: theirs is checked, and ours is shown."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pacs.orthanc import PASSWORD, USER, Orthanc
from tf_covid.errors import PacsError
from tf_covid.pacs.address import Access
from tf_covid.pacs.dicomweb import DicomWeb


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`server.pem`, `client.pem` and `other.pem`: certificates that vouch for themselves, with keys."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl, for certificates")
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("server", "client", "other"):
        made = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
        made += ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
        made += ["-keyout", str(folder / "key"), "-out", str(folder / "certificate")]
        subprocess.run(made, check=True, capture_output=True)
        both = (folder / "key").read_bytes() + (folder / "certificate").read_bytes()
        (folder / f"{name}.pem").write_bytes(both)
    return folder


@pytest.fixture(params=[False, True], ids=["TLS", "TLS with a client's certificate"])
def behind_tls(orthanc: Orthanc, certificates: Path, request: Any) -> Iterator[tuple[str, bool]]:
    """A TLS proxy before the archive, and whether it asks for a client's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem")
    if request.param:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(certificates / "client.pem")

    def pump(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 14):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            source.close()
            target.close()

    def serve(plain: socket.socket) -> None:
        try:
            client = context.wrap_socket(plain, server_side=True)
        except OSError:
            return
        server = socket.create_connection(("127.0.0.1", orthanc.port))
        threading.Thread(target=pump, args=(client, server), daemon=True).start()
        pump(server, client)

    def accept(listener: socket.socket) -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(plain,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}/dicom-web", request.param


def ask(url: str, ca_file: Path | None, client_cert: Path | None) -> list[Any]:
    access = Access(USER, PASSWORD, "", ca_file, client_cert)
    with DicomWeb(url, access) as archive:
        return archive.series("1.2.3")


def test_an_archive_that_is_vouched_for(behind_tls: tuple[str, bool], certificates: Path) -> None:
    url, asks = behind_tls
    shown = certificates / "client.pem" if asks else None
    assert ask(url, certificates / "server.pem", shown) == []


def test_one_that_nobody_vouches_for(behind_tls: tuple[str, bool], certificates: Path) -> None:
    url, _ = behind_tls
    for ca_file in (None, certificates / "other.pem"):
        with pytest.raises(PacsError, match="pacs_tls: the certificate of"):
            ask(url, ca_file, certificates / "client.pem")


def test_another_client(behind_tls: tuple[str, bool], certificates: Path) -> None:
    url, asks = behind_tls
    if not asks:
        pytest.skip("this one asks for no certificate")
    for client_cert in (None, certificates / "other.pem"):
        with pytest.raises(PacsError, match=r"pacs_(tls|broken|unreachable)"):
            ask(url, certificates / "server.pem", client_cert)


def test_files_that_are_no_certificates(certificates: Path, tmp_path: Path) -> None:
    (tmp_path / "a.pem").write_text("no certificate", "utf-8")
    for access in (
        Access(ca_file=tmp_path / "a.pem"),
        Access(client_cert=tmp_path / "a.pem"),
        Access(client_cert=tmp_path / "none.pem"),
    ):
        with pytest.raises(PacsError, match="pacs_tls: --ca-file or --client-cert"):
            DicomWeb("https://127.0.0.1:1", access)
