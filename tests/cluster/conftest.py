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
    module = pytest.importorskip("ray", reason="needs the extra [ray]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        module.init(
            "local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
        yield module
        module.shutdown()
