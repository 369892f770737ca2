"""Made-up answers about a small asymmetric chest, and readers of what is written about them."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset

pytest.importorskip("highdicom", reason="needs the extra [dicom]")

from tests.dicom_results.grids import AFFINE, HU, Answered, edit_files
from tf_covid.dicom_results.options import DicomOptions
from tf_covid.dicom_results.write import DicomResults
from tf_covid.phantom.files import write_dicom


@pytest.fixture(scope="session")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chest as a DICOM series; not to be changed."""
    return write_dicom(HU, AFFINE, tmp_path_factory.mktemp("master") / "series")


@pytest.fixture
def series(master: Path, tmp_path: Path) -> Path:
    """A copy of the series, to be changed; its files are in order from feet to head."""
    return Path(shutil.copytree(master, tmp_path / "series"))


@pytest.fixture(scope="session")
def page() -> bytes:
    """A small page in the place of the montage."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (90, 160, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def write(tmp_path: Path, page: bytes) -> Callable[..., Path]:
    """Writes the objects about a scan into a new folder, `write(answered, …)`."""

    def into(
        answered: Answered,
        options: DicomOptions | None = None,
        *,
        name: str = "out",
        identity: str = "a question",
        previous: Path | None = None,
        page: bytes = page,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "montage.png").write_bytes(page)
        weights = {"severity-i3d": "ab" * 32, "lung model": "cd" * 32}
        DicomResults(
            answered.result, answered.scan, identity, weights, options or DicomOptions(), previous
        ).write(folder)
        return folder

    return into


@pytest.fixture(scope="session")
def errors_of() -> Callable[[Path], list[str]]:
    """What dciodvfy finds wrong in an object."""
    program = Path(sys.executable).with_name("dciodvfy")

    def errors(path: Path) -> list[str]:
        run = subprocess.run([program, path], capture_output=True, text=True, errors="replace")
        lines = (run.stdout + run.stderr).splitlines()
        found = [line for line in lines if line.startswith("Error")]
        return found or [f"exit code {run.returncode}"] * (run.returncode != 0)

    return errors


@pytest.fixture
def by_dcmqi(tmp_path: Path) -> Callable[[str, Path], list[np.ndarray]]:
    """Segments or a map as dcmqi reads them, each on the chest's own grid, canonical."""
    from tests.dicom_results.grids import of_dcmqi

    return lambda program, path: of_dcmqi(program, path, tmp_path / f"dcmqi-{path.stem}")


@pytest.fixture(scope="session")
def edit() -> Callable[[Path, Callable[[Dataset], object]], None]:
    """Change a DICOM file, or every file of a folder, in place."""
    return edit_files
