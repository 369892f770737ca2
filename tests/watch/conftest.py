"""What the tests of watching share: archives, a chest, and senders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("highdicom", reason="needs the extra [dicom]")
pytest.importorskip("pynetdicom", reason="needs the extra [dicom]")

from tests.pacs.conftest import archive, chest, orthanc, started
from tests.pacs.test_tls import certificates
from tests.servers import small_files, small_models
from tests.watch.clock import Clock
from tf_covid.pacs.dimse import DimseAddress
from tf_covid.scan import find_cases
from tf_covid.watch.listener import ListenerSource


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[Callable[..., ListenerSource]]:
    listeners: list[ListenerSource] = []

    def start(**options: Any) -> ListenerSource:
        address = DimseAddress("TFCOVID", "127.0.0.1", 0)
        settings = {"quiet_s": 0.5, "free_bytes": 0} | options
        listeners.append(ListenerSource(address, tmp_path / "kept", find_cases, **settings))
        return listeners[-1]

    yield start
    for listener in listeners:
        listener.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()
