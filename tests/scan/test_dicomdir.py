"""A DICOMDIR is asked for what is not there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pydicom
import pytest
from pydicom.fileset import FileSet

from tf_covid.scan import find_cases


@pytest.fixture
def medium(series: Path, tmp_path: Path) -> Path:
    """The series as a file set with its DICOMDIR."""
    files = FileSet()
    for file in sorted(series.iterdir()):
        dataset = pydicom.dcmread(file)
        dataset.StudyID, dataset.StudyDate, dataset.StudyTime = "1", "20200101", "120000"
        dataset.SeriesNumber = 1
        files.add(dataset)
    files.write(tmp_path / "medium")
    return tmp_path / "medium"


def flags(folder: Path) -> dict[str, object]:
    return {flag.code: flag.value for case in find_cases(folder) for flag in case.quality_flags}


def images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "DICOMDIR")


def test_a_whole_medium_is_quiet(medium: Path) -> None:
    assert set(flags(medium)) <= {"foreign_files"}
    assert find_cases(medium)[0].read().shape[0] == 14


@pytest.mark.parametrize("some", [slice(-1, None), slice(None, None, 2), slice(0, 3)])
def test_images_that_are_listed_and_gone_are_counted(some: slice, medium: Path) -> None:
    gone = images(medium)[some]
    for file in gone:
        file.unlink()
    assert flags(medium)["dicomdir_missing"] == len(gone)


def test_names_may_have_changed_in_case_and_ending(medium: Path) -> None:
    for number, file in enumerate(images(medium)):
        file.rename(file.with_name(file.name.lower() + (".dcm" if number % 2 else "")))
    assert "dicomdir_missing" not in flags(medium)


def test_a_damaged_dicomdir_is_no_end(medium: Path) -> None:
    directory = medium / "DICOMDIR"
    data = directory.read_bytes()
    for part in (data[: len(data) // 2], data[:300] + bytes(200), b"", b"\0" * 5000):
        directory.write_bytes(part)
        assert find_cases(medium)[0].read().shape[0] == 14


def test_in_a_zip(medium: Path, tmp_path: Path) -> None:
    images(medium)[3].unlink()
    packed = shutil.make_archive(str(tmp_path / "m"), "zip", medium)
    assert flags(Path(packed))["dicomdir_missing"] == 1
