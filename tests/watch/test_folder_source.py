"""A folder that scans are put into: DICOM in any order and depth, archives, volumes, rubbish."""

from __future__ import annotations

import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from tf_covid.errors import PacsUnavailable, ScanRefused, WatchError
from tf_covid.phantom.files import write_dicom
from tf_covid.scan import find_cases
from tf_covid.watch.folder_source import FolderSource
from tf_covid.watch.journal import JournalRow, SeenSeries

AFFINE = np.array([[0, 0, 0.8, -120.0], [0, 0.9, 0, -150.0], [-2.5, 0, 0, 300.0], [0, 0, 0, 1]])


def chest_like(seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Air and tissue, so that the gate takes it for HU."""
    random = np.random.default_rng(seed)
    hu = np.where(random.random(shape) < 0.5, -870.0, 40.0)
    return (hu + random.normal(0, 20, shape)).astype(np.int16)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three patients' series, 12 slices each; not to be changed."""
    made = []
    for seed in range(3):
        hu = chest_like(seed, (12, 32, 32))
        made.append(write_dicom(hu, AFFINE, tmp_path_factory.mktemp("series") / "s", seed=seed))
    return made


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    (tmp_path / "watched").mkdir()
    return tmp_path / "watched"


def source_of(watched: Path) -> FolderSource:
    return FolderSource(watched, find_cases, quiet_s=0.3)


def seen_by(source: FolderSource, count: int, patience_s: float = 10.0) -> list[SeenSeries]:
    end, seen = time.monotonic() + patience_s, []
    while len(seen) < count:
        assert time.monotonic() < end, f"{len(seen)} of {count} were seen"
        seen += source.poll()
        time.sleep(0.05)
    time.sleep(0.4)
    assert list(source.poll()) == []
    return seen


def entry_of(seen: SeenSeries) -> JournalRow:
    images = (seen.images_sha256, len(seen.images), seen.case_name)
    return JournalRow(
        1, seen.source, seen.study_uid, seen.series_uid, *images, "running", 0, 0, "", 0, 0
    )


def nifti(path: Path, seed: int = 0) -> Path:
    import nibabel

    hu = chest_like(seed, (16, 16, 12))
    nibabel.save(nibabel.Nifti1Image(hu, np.diag([2.0, 2.0, 2.5, 1])), path)
    return path


def test_loose_files_of_several_patients_are_a_series_each(
    watched: Path, series: list[Path]
) -> None:
    for number, folder in enumerate(series):
        for file in folder.iterdir():
            shutil.copy(file, watched / f"{number}-{file.name}")
    source = source_of(watched)
    assert list(source.poll()) == [], "a look tells nothing of how long"
    seen = seen_by(source, 3)
    assert len({one.case_name for one in seen}) == 3
    for one in seen:
        with source.case(entry_of(one)) as case:
            scan = case.read()
            assert scan.hu.shape == (12, 32, 32)
            assert scan.case == one.case_name


def test_a_folder_a_patient_a_zip_and_volumes(watched: Path, series: list[Path]) -> None:
    shutil.copytree(series[0], watched / "deep" / "er")
    with zipfile.ZipFile(watched / "second.zip", "w") as packed:
        for file in series[1].iterdir():
            packed.write(file, file.name)
    nifti(watched / "third.nii.gz")
    (watched / "sub").mkdir()
    nifti(watched / "sub" / "third.nii.gz", seed=1)
    source = source_of(watched)
    seen = seen_by(source, 4)
    assert len({one.case_name for one in seen}) == 4, "two files of a name are two cases"
    shapes = []
    for one in seen:
        with source.case(entry_of(one)) as case:
            assert not case.quality_flags, "what lies beside it is no matter of it"
            shapes.append(case.read().hu.shape[0])
    assert sorted(shapes) == [12, 12, 12, 12]


def test_two_series_of_one_study_are_two(watched: Path, series: list[Path]) -> None:
    for suffix in ("1", "2"):
        for file in series[0].iterdir():
            image = pydicom.dcmread(file)
            for name in ("SeriesInstanceUID", "SOPInstanceUID"):
                setattr(image, name, generate_uid(entropy_srcs=[image[name].value, suffix]))
            image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
            image.save_as(watched / f"{suffix}{file.name}")
    assert len(seen_by(source_of(watched), 2)) == 2


def test_files_that_still_come_and_late_ones(watched: Path, series: list[Path]) -> None:
    files = sorted(series[0].iterdir())
    source = source_of(watched)
    for file in files[:8]:
        shutil.copy(file, watched)
        assert list(source.poll()) == []
        time.sleep(0.1)
    (seen,) = seen_by(source, 1)
    assert len(seen.images) == 8
    for file in files[8:]:
        shutil.copy(file, watched)
    (late,) = seen_by(source, 1)
    assert (len(late.images), late.case_name) == (12, seen.case_name)
    with pytest.raises(WatchError, match="series_changed"), source.case(entry_of(seen)):
        pass


def test_a_volume_that_is_still_written(watched: Path) -> None:
    whole = nifti(watched.parent / "whole.nii.gz").read_bytes()
    source = source_of(watched)
    with (watched / "a.nii.gz").open("wb") as file:
        for first in range(0, len(whole), len(whole) // 5):
            file.write(whole[first : first + len(whole) // 5])
            file.flush()
            assert list(source.poll()) == []
            time.sleep(0.15)
    (seen,) = seen_by(source, 1)
    with source.case(entry_of(seen)) as case:
        assert case.read().hu.shape == (12, 16, 16)
    nifti(watched / "a.nii.gz", seed=9)
    assert len(seen_by(source, 1)) == 1, "other content is another question"


def test_rubbish_is_left_alone_or_refused_and_holds_up_nothing(
    watched: Path, series: list[Path]
) -> None:
    (watched / "notes.txt").write_text("hello", "utf-8")
    (watched / "empty").mkdir()
    source = source_of(watched)
    time.sleep(0.4)
    assert list(source.poll()) == []
    (watched / "broken.zip").write_bytes(b"PK\x03\x04" + b"x" * 50)
    (watched / "half.nii.gz").write_bytes(b"\x1f\x8b\x08")
    (watched / "link").symlink_to("/nowhere")
    shutil.copytree(series[2], watched / "good")
    seen = seen_by(source, 2)
    read = []
    for one in seen:
        with source.case(entry_of(one)) as case:
            try:
                read.append(case.read().hu.shape)
            except ScanRefused as refused:
                read.append(str(refused))
    assert (12, 32, 32) in read
    assert any("half" in one.case_name for one in seen)


def test_what_went_away(watched: Path, series: list[Path]) -> None:
    shutil.copytree(series[0], watched / "s")
    source = source_of(watched)
    (seen,) = seen_by(source, 1)
    shutil.rmtree(watched / "s")
    assert list(source.poll()) == []
    with pytest.raises(WatchError, match="series_gone"), source.case(entry_of(seen)):
        pass
    shutil.rmtree(watched)
    with pytest.raises(PacsUnavailable, match=r"watch_folder: .* cannot be read now"):
        list(source.poll())


def test_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    for path in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(WatchError, match="is no folder"):
            source_of(path)


def test_a_search_that_failed_is_said_and_repeated(
    watched: Path, series: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tf_covid.result import QualityFlag
    from tf_covid.scan import Case

    shutil.copytree(series[0], watched / "s")
    fails = [True, True]

    def find(path: Path) -> list[Case]:
        if fails:
            fails.pop()
            return [Case("x", path, quality_flags=(QualityFlag("reader_failed", "error", "."),))]
        return find_cases(path)

    source = FolderSource(watched, find, quiet_s=0.1)
    for _ in range(2):
        with pytest.raises(PacsUnavailable, match=r"watch_folder: .* \(reader_failed\)"):
            list(source.poll())
    assert len(seen_by(source, 1)) == 1
