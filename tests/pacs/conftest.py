"""An archive, and a chest that may lie in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("httpx", reason="needs the extra [dicom]")

from tests.pacs.orthanc import PASSWORD, USER, Orthanc, running
from tf_covid.pacs.address import Access
from tf_covid.pacs.dicomweb import DicomWeb
from tf_covid.phantom.files import write_dicom

AFFINE = np.array([[0, 0, 0.8, -120.0], [0, 0.9, 0, -150.0], [-2.5, 0, 0, 300.0], [0, 0, 0, 1]])


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with running(tmp_path_factory.mktemp("orthanc")) as orthanc:
        yield orthanc


@pytest.fixture
def orthanc(started: Orthanc) -> Orthanc:
    """An archive that holds nothing."""
    started.clear()
    return started


@pytest.fixture
def archive(orthanc: Orthanc) -> Iterator[DicomWeb]:
    with DicomWeb(orthanc.url, Access(USER, PASSWORD)) as archive:
        yield archive


@pytest.fixture(scope="session")
def chest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 slices of noise, 1.3 MB a dozen; not to be changed."""
    hu = np.random.default_rng(0).integers(-1000, 400, (30, 192, 192)).astype(np.int16)
    return write_dicom(hu, AFFINE, tmp_path_factory.mktemp("chest") / "series")
