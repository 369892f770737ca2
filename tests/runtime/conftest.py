"""Small real models, and a cache folder of a module's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.servers import small_files  # fixtures
from tf_covid.runtime import cache


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.VARIABLE, str(folder))
    return folder
