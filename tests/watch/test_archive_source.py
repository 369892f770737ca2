"""An archive that is looked at again and again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import generate_uid

from tests.pacs.orthanc import PASSWORD, USER, Orthanc, bad_line, free_port
from tf_covid.errors import PacsError, PacsUnavailable, WatchError
from tf_covid.pacs.address import Access
from tf_covid.pacs.dicomweb import DicomWeb
from tf_covid.scan import find_cases
from tf_covid.watch.archive_source import ArchiveSource
from tf_covid.watch.journal import JournalRow, SeenSeries

ACCESS = Access(USER, PASSWORD)


def source_at(url: str, folder: Path, **options: Any) -> ArchiveSource:
    settings = {"quiet_s": 0.5, "study_days": None, "on_message": lambda line: None} | options
    return ArchiveSource(DicomWeb(url, ACCESS, read_s=3.0), folder, find_cases, **settings)


@pytest.fixture
def source(orthanc: Orthanc, tmp_path: Path) -> Iterator[ArchiveSource]:
    source = source_at(orthanc.url, tmp_path / "retrieved")
    yield source
    source.close()


def seen_by(source: ArchiveSource, patience_s: float = 3.0) -> list[SeenSeries]:
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        if seen := list(source.poll()):
            return seen
        time.sleep(0.1)
    return []


def entry_of(seen: SeenSeries) -> JournalRow:
    images = (seen.images_sha256, len(seen.images), seen.case_name)
    return JournalRow(
        1, seen.source, seen.study_uid, seen.series_uid, *images, "running", 0, 0, "", 0, 0
    )


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def other_modality(file: Path, path: Path) -> Path:
    image = pydicom.dcmread(file)
    image.Modality, image.SOPClassUID = "MR", "1.2.840.10008.5.1.4.1.1.4"
    image.SeriesInstanceUID, image.SOPInstanceUID = generate_uid(), generate_uid()
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.save_as(path)
    return path


def test_a_series_is_seen_once_it_is_quiet_and_its_case_is_whole(
    orthanc: Orthanc, source: ArchiveSource, chest: Path, tmp_path: Path
) -> None:
    assert list(source.poll()) == []
    orthanc.put(*files_of(chest), other_modality(files_of(chest)[0], tmp_path / "mr.dcm"))
    assert list(source.poll()) == [], "a look tells nothing of how long"
    (seen,) = seen_by(source)
    assert seen.images == {pydicom.dcmread(file).SOPInstanceUID for file in files_of(chest)}
    assert list(source.poll()) == []
    with source.case(entry_of(seen)) as case:
        assert len(case.members) == len(seen.images)
        assert case.name == seen.case_name
    assert not list((tmp_path / "retrieved").iterdir()), "no images stay behind"


def test_a_series_that_grows_is_waited_for_and_late_images_are_seen(
    orthanc: Orthanc, source: ArchiveSource, chest: Path
) -> None:
    files = files_of(chest)
    for first in range(0, 12, 3):
        orthanc.put(*files[first : first + 3])
        assert list(source.poll()) == []
        time.sleep(0.2)
    (first_seen,) = seen_by(source)
    assert len(first_seen.images) == 12
    orthanc.put(*files[12:])
    (second,) = seen_by(source)
    assert len(second.images) == len(files)
    assert second.case_name == first_seen.case_name
    with pytest.raises(WatchError, match=r"series_changed: it had 12 images"):
        source.case(entry_of(first_seen)).__enter__()


def test_an_archive_that_counts_no_images(
    orthanc: Orthanc, source: ArchiveSource, chest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = DicomWeb.ct_series

    def uncounted(self: DicomWeb, since: Any = None) -> Any:
        return [type(one)(one.study_uid, one.uid, None) for one in whole(self, since)]

    monkeypatch.setattr(DicomWeb, "ct_series", uncounted)
    orthanc.put(*files_of(chest)[:5])
    (seen,) = seen_by(source)
    assert len(seen.images) == 5
    assert list(source.poll()) == []
    orthanc.put(*files_of(chest)[5:9])
    (seen,) = seen_by(source)
    assert len(seen.images) == 9


def test_old_studies_may_be_left_alone(orthanc: Orthanc, chest: Path, tmp_path: Path) -> None:
    today = time.strftime("%Y%m%d")
    for number, day in enumerate(("19990101", today)):
        image = pydicom.dcmread(files_of(chest)[0])
        image.StudyDate = day
        for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            setattr(image, name, generate_uid())
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.save_as(tmp_path / f"{number}.dcm")
        orthanc.put(tmp_path / f"{number}.dcm")
    sources = [source_at(orthanc.url, tmp_path / "a", study_days=days) for days in (None, 1, 2)]
    assert [len(seen_by(source)) for source in sources] == [2, 1, 1]
    for source in sources:
        source.close()


def test_a_cut_while_it_is_retrieved_gives_no_half_series(
    orthanc: Orthanc, chest: Path, tmp_path: Path
) -> None:
    orthanc.put(*files_of(chest))
    with bad_line(orthanc.port) as line:
        source = source_at(line.url, tmp_path / "retrieved")
        (seen,) = seen_by(source)
        source.close()
        source = source_at(line.url, tmp_path / "retrieved")  # its connections are new ones
        line.cut_answers += [30_000] * 500
        with pytest.raises(PacsError), source.case(entry_of(seen)):
            pytest.fail("half a series was handed over")
        assert len(line.cut_answers) < 500, "it was cut, and asked for again"
        line.cut_answers.clear()
        with source.case(entry_of(seen)) as case:
            assert len(case.members) == len(files_of(chest))
        source.close()


def test_what_a_killed_watch_left_is_removed(orthanc: Orthanc, tmp_path: Path) -> None:
    (tmp_path / "retrieved" / "series-1").mkdir(parents=True)
    (tmp_path / "retrieved" / "series-1" / "000000.dcm").write_text("a patient's", "utf-8")
    source_at(orthanc.url, tmp_path / "retrieved").close()
    assert not (tmp_path / "retrieved").exists()


def test_an_archive_that_is_not_there_or_another_thing(
    orthanc: Orthanc, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tf_covid.pacs.connection._PAUSE_S", 0.05)
    for url in (
        f"http://127.0.0.1:{free_port()}/dicom-web",
        f"http://127.0.0.1:{orthanc.port}/no-such-path",
    ):
        source = source_at(url, tmp_path / "retrieved")
        for ask in (source.check, lambda source=source: list(source.poll())):
            with pytest.raises(PacsUnavailable, match=r"pacs_(unreachable|unknown)"):
                ask()
        source.close()


def test_a_study_that_is_gone(orthanc: Orthanc, source: ArchiveSource, chest: Path) -> None:
    orthanc.put(*files_of(chest)[:4])
    (seen,) = seen_by(source)
    orthanc.clear()
    with pytest.raises(WatchError, match=r"series_changed: .* has 0 now"):
        source.case(entry_of(seen)).__enter__()
    assert list(source.poll()) == []
    orthanc.put(*files_of(chest)[:4])
    (again,) = seen_by(source)
    assert again == seen


def test_counts_that_do_not_fit_and_odd_series_hold_up_nothing(
    orthanc: Orthanc, chest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, lines = DicomWeb.ct_series, []

    def odd(self: DicomWeb, since: Any = None) -> Any:
        listed = [type(one)(one.study_uid, one.uid, 77) for one in whole(self, since)]
        return [type(listed[0])("1.2", "1.2.03", 5), *listed] if listed else []

    monkeypatch.setattr(DicomWeb, "ct_series", odd)
    source = source_at(orthanc.url, tmp_path / "retrieved", on_message=lines.append)
    orthanc.put(*files_of(chest)[:5])
    (seen,) = seen_by(source)
    assert len(seen.images) == 5
    assert list(source.poll()) == []
    assert sum("1 series without valid UIDs" in line for line in lines) == 1
    source.close()


def test_one_series_uid_in_two_studies_is_seen_twice(
    orthanc: Orthanc, source: ArchiveSource, chest: Path, tmp_path: Path
) -> None:
    for study in range(2):
        for file in files_of(chest)[:3]:
            image = pydicom.dcmread(file)
            image.StudyInstanceUID = f"1.2.3.{study}"
            image.PatientID = f"patient {study}"
            image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            image.save_as(tmp_path / "one.dcm")
            orthanc.put(tmp_path / "one.dcm")
    seen: list[SeenSeries] = []
    for _ in range(30):
        seen += source.poll()
        time.sleep(0.1)
    assert sorted(one.study_uid for one in seen) == ["1.2.3.0", "1.2.3.1"]
    assert len({one.case_name for one in seen}) == 2
