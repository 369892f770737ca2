"""A proxy in front that speaks TLS: its pages may ask if it was named, and nobody else's."""

from __future__ import annotations

import re
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from tests.browser import browse_url
from tests.servers import start_server
from tf_covid.cli import main
from tf_covid.errors import ServingError
from tf_covid.server.settings import ServerSettings

PUBLIC = "https://ct.hospital.example"
BODY = {"inputs": [[1, 2, 3]]}
PAGE = """<script>
fetch("/v1/models/m:predict", {method: "POST", body: JSON.stringify({inputs: [[1, 2, 3]]})})
    .then(answer => answer.text().then(text => document.title = answer.status + " " + text))
</script>"""


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://ct.hospital.example", PUBLIC),
        ("https://ct.hospital.example/", PUBLIC),
        ("HTTPS://CT.Hospital.Example:443", PUBLIC),
        ("http://ct:80", "http://ct"),
        ("https://ct:8443", "https://ct:8443"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("https://10.0.0.7:8443/", "https://10.0.0.7:8443"),
        ("https://[2001:DB8::1]:8443", "https://[2001:db8::1]:8443"),
    ],
)
def test_a_url_is_kept_as_a_browser_writes_its_origin(
    tmp_path: Path, url: str, origin: str
) -> None:
    assert ServerSettings(models=tmp_path, public_urls=(url,)).public_urls == (origin,)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "does not begin with"),
        ("null", "does not begin with"),
        ("*", "does not begin with"),
        ("ct.hospital.example", "does not begin with"),
        ("ct.hospital.example:443", "does not begin with"),
        ("ftp://ct", "does not begin with"),
        ("file:///tmp", "does not begin with"),
        ("https://user:hidden@ct", "holds a user or a password"),
        ("https://ct/prefix", "goes on behind the host"),
        ("https://ct/?token=hidden", "goes on behind the host"),
        ("https://ct#hidden", "goes on behind the host"),
        ("https://", "names no host"),
        ("https:///", "names no host"),
        ("https://*.hospital.example", "names no host"),
        ("https://a,https://b", "goes on behind the host"),
        ("https://a b", "names no host"),
        ("https://.", "names no host"),
        ("https://ct:99999", "names no host"),
        ("https://ct:0", "names no host"),
        ("https://ct:port", "is no URL"),
        ("https://ct\r\nX: 1", "is no URL"),
        ("https://" + "a" * 70_000, "is no URL"),
    ],
)
def test_what_is_no_public_url_is_named_and_not_repeated(
    tmp_path: Path, url: str, reason: str
) -> None:
    with pytest.raises(ServingError, match=re.escape(reason)) as caught:
        ServerSettings(models=tmp_path, public_urls=(PUBLIC, url))
    assert "--public-url" in str(caught.value)
    assert "hidden" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_a_wrong_one_ends_the_command(tmp_path: Path) -> None:
    words = ["serve", "--models", str(tmp_path), "--public-url", "https://user:hidden@ct"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 1
    assert "--public-url" in result.stderr
    assert "hidden" not in result.output


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": PUBLIC}, 200),
        ({"Origin": "HTTPS://CT.HOSPITAL.EXAMPLE"}, 200),
        ({"Origin": "https://second.example:8443"}, 200),
        ({"Origin": PUBLIC, "Host": "ct.hospital.example"}, 200),  # the proxy passes the name on
        ({"Origin": PUBLIC, "Host": "ct.hospital.example:443"}, 200),
        ({"Origin": PUBLIC, "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "second.example:8443"}, 200),
        ({"Origin": "{own}"}, 200),  # and pages on this machine still may
        ({"Origin": "http://ct.hospital.example"}, 403),  # a page that was changed on its way
        ({"Origin": "https://ct.hospital.example:8443"}, 403),
        ({"Origin": "https://second.example"}, 403),
        ({"Origin": "https://hospital.example"}, 403),
        ({"Origin": "https://evil.ct.hospital.example"}, 403),
        ({"Origin": "https://ct.hospital.example.evil.example"}, 403),
        ({"Origin": "https://ct.hospital.example/"}, 403),  # no browser writes it so
        ({"Origin": f"{PUBLIC} https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": PUBLIC, "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": PUBLIC, "Host": "evil.example"}, 403),
        ({"Host": "ct.hospital.example.evil.example"}, 403),
    ],
)
def test_pages_of_the_named_proxies_may_ask(
    behind: Any, headers: dict[str, str], status: int
) -> None:
    sent = {name: value.format(own=behind.server.rest_url) for name, value in headers.items()}
    assert behind.ask("linear", BODY, headers=sent).status_code == status


def test_a_token_is_asked_for_all_the_same(start: Any, store: Any) -> None:
    store.put("linear-1", "m")
    running = start(public_urls=(PUBLIC,), token="a-token-for-tests")
    # The client of the tests sends it; a page that does not know it is refused.
    assert running.ask("m", BODY, headers={"Origin": PUBLIC}).status_code == 200
    response = running.ask("m", BODY, headers={"Origin": PUBLIC, "Authorization": "Bearer no"})
    assert response.status_code == 401


@pytest.mark.parametrize("passes_host", [True, False], ids=["its own Host", "the server's Host"])
def test_a_browser_asks_through_tls(
    start: Any, store: Any, tmp_path: Path, passes_host: bool
) -> None:
    """Chromium, TLS, a proxy: refused as long as the proxy is not named, answered after."""
    store.put("linear-1", "m")
    with tls_proxy(tmp_path, passes_host) as (url, point_to):
        said = []
        for named in ((), (url,)):
            running = start(public_urls=named)
            point_to(running.server.rest_url)
            page = browse_url(
                f"{url}/page",
                tmp_path,
                *("ignore-certificate-errors", "dump-dom", "virtual-time-budget=10000"),
            )
            said += re.findall("<title>([^<]*)", page.stdout)
    assert said[0].startswith("403 ")
    assert "--public-url" in said[0]
    assert said[1].startswith("200 ")
    assert '"y"' in said[1]


@pytest.fixture(scope="module")
def behind(new_store: Any) -> Iterator[Any]:
    """A server behind two proxies."""
    store = new_store()
    store.put("linear-1", "linear")
    with ExitStack() as stack:
        public_urls = (f"{PUBLIC}:443/", "https://second.example:8443")
        yield start_server(stack, store, public_urls=public_urls)


@contextmanager
def tls_proxy(folder: Path, passes_host: bool) -> Iterator[tuple[str, Callable[[str], None]]]:
    """A proxy as a hospital has one, and a page of its own at /page.

    Args:
        folder: Where its certificate lies.
        passes_host: Whether it passes on the Host header that the browser sent.

    Yields:
        Its URL, and what tells it where the server is.
    """
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("needs openssl, for a certificate")
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    made = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    made += ["-subj", "/CN=localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    behind = [""]

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200 if self.path == "/page" else 404, "text/html", PAGE.encode())

        def do_POST(self) -> None:
            headers = dict(self.headers)
            if not passes_host:
                del headers["Host"]
            body = self.rfile.read(int(headers["Content-Length"]))
            answer = httpx.post(behind[0] + self.path, content=body, headers=headers)
            self.reply(answer.status_code, answer.headers["content-type"], answer.content)

        def reply(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        proxy.socket = context.wrap_socket(proxy.socket, server_side=True)
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield f"https://localhost:{proxy.server_port}", lambda url: behind.__setitem__(0, url)
        finally:
            proxy.shutdown()
