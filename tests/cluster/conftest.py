"""A Ray for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.servers import small_files  # a fixture

__all__ = ["small_files"]


@pytest.fixture(scope="package")
def ray() -> Iterator[Any]:
    """Ray on this machine, with four cores to promise whatever it has."""
    pytest.importorskip("ray", reason="needs the extra [ray]")
    from tf_covid.cluster.connection import ClusterOptions, connected

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.cpu_count", lambda: 4)
        with connected(ClusterOptions()) as module:
            yield module
