"""Pages in a real browser: on a phone, and printed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest


def browse(page: Path, *switches: str) -> subprocess.CompletedProcess[str]:
    """Open a page in Chromium without a window; skip the test where there is none."""
    return browse_url(page.as_uri(), page.parent, *switches)


def browse_url(url: str, folder: Path, *switches: str) -> subprocess.CompletedProcess[str]:
    """Open a URL in Chromium without a window; skip the test where there is none.

    Args:
        url: What to open.
        folder: Holds the browser's profile.
        switches: Further ones, without `--`.
    """
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("needs Chromium: make test-system, as root")
    always = ("headless", "no-sandbox", "disable-gpu", "disable-quic")
    profile = f"user-data-dir={folder / 'profile'}"
    return subprocess.run(
        [browser, *(f"--{switch}" for switch in (*always, profile, *switches)), url],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )


def measured(text: str, expression: str, folder: Path) -> str:
    """What JavaScript says of a page in a frame of 390 px; the page itself has none and allows none.

    Args:
        text: The page.
        expression: JavaScript; its value, a text without angle brackets, is what comes back.
        folder: An empty folder, or one of an earlier call.
    """
    open_page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    (folder / "measured.html").write_text(
        f"{open_page}<script>parent.postMessage({expression}, '*')</script>", "utf-8"
    )
    (folder / "frame.html").write_text(
        "<script>onmessage = event => document.title = `said=${event.data}`</script>"
        '<iframe src="measured.html" style="width: 390px; height: 800px; border: 0"></iframe>',
        "utf-8",
    )
    run = browse(
        folder / "frame.html",
        *("dump-dom", "allow-file-access-from-files", "virtual-time-budget=5000"),
    )
    ((said),) = re.findall(r"<title>said=([^<]*)", run.stdout)
    return str(said)


def phone_widths(text: str, folder: Path) -> tuple[int, int]:
    """The width in px that a page needs on a phone, and the one that is there, 370 to 390."""
    root = "document.documentElement"
    said = measured(text, f"`${{{root}.scrollWidth}} ${{{root}.clientWidth}}`", folder)
    needed, there = map(int, said.split())
    assert 370 <= there <= 390
    return needed, there


def printed(text: str, folder: Path) -> list[str]:
    """The text of each page of a page's print; skip the test where it cannot be read."""
    reader = shutil.which("pdftotext")
    if reader is None:
        pytest.skip("needs pdftotext: make test-system, as root")
    (folder / "printed.html").write_text(text, "utf-8")
    pdf = folder / "printed.pdf"
    browse(folder / "printed.html", "no-pdf-header-footer", f"print-to-pdf={pdf}")
    run = subprocess.run([reader, pdf, "-"], capture_output=True, text=True, check=True)
    return run.stdout.split("\f")[:-1]
