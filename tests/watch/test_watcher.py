"""The loop: each series answered once and stored once, whatever goes away meanwhile."""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from tests.pacs.orthanc import PASSWORD, USER, Orthanc, bad_line
from tf_covid.dicom_results.options import DicomOptions
from tf_covid.errors import ModelError
from tf_covid.infer import Options, Run
from tf_covid.pacs.address import Access
from tf_covid.pacs.dicomweb import DicomWeb
from tf_covid.pacs.dimse import DimseAddress, DimseNode
from tf_covid.pacs.store import StowNode
from tf_covid.phantom import draw_chest
from tf_covid.phantom.files import write_dicom
from tf_covid.scan import find_cases
from tf_covid.watch.archive_source import ArchiveSource
from tf_covid.watch.folder_source import FolderSource
from tf_covid.watch.health import Health
from tf_covid.watch.journal import DONE, FAILED, MOST_TRIES, REFUSED, WAITING, Journal
from tf_covid.watch.listener import ListenerSource
from tf_covid.watch.watcher import Watcher

ACCESS = Access(USER, PASSWORD)


class Clock:
    """The journal's time, which a test may let pass."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chest in water: the small U-Net takes all air for lung."""
    chest = draw_chest(5, (40, 64, 64), severity=3)
    hu = np.where(chest.lungs > 0, chest.hu, np.maximum(chest.hu, -100))
    return write_dicom(hu, chest.affine, tmp_path_factory.mktemp("patient") / "ward", seed=5)


class Bench:
    """A watch that a test drives step by step."""

    def __init__(self, out: Path, models: Any, stack: ExitStack) -> None:
        self.out, self.stack = out, stack
        self.clock, self.health, self.lines = Clock(), Health(), []
        self.journal = stack.enter_context(Journal(out, clock=self.clock))
        options = Options(attention="none", dicom=DicomOptions())
        self.run = Run(out, options, overwrite=True)
        self.run.__dict__["models"] = models
        self.answered = 0
        whole = self.run.answer

        def answer(case: Any) -> Any:
            outcome = whole(case)
            self.answered += not outcome.kept
            return outcome

        self.run.answer = answer  # type: ignore[method-assign]

    def watch(self, source: Any, destination: Any = None, **options: Any) -> Watcher:
        self.stack.callback(source.close)
        settings = {"poll_s": 0.0, "free_bytes": 0} | options
        return Watcher(
            self.journal,
            [source],
            self.run,
            destination,
            self.health,
            self.lines.append,
            **settings,
        )

    def archive(self, url: str) -> ArchiveSource:
        archive = DicomWeb(url, ACCESS, read_s=5.0)
        folder = self.out / ".watch" / "retrieved"
        return ArchiveSource(
            archive, folder, find_cases, quiet_s=0.2, study_days=None, on_message=self.lines.append
        )

    def stow(self, url: str) -> StowNode:
        return StowNode(self.stack.enter_context(DicomWeb(url, ACCESS, read_s=5.0)))

    def states(self) -> list[str]:
        return [entry.state for entry in self.journal.rows()]


@pytest.fixture
def bench(tmp_path: Path, small_models: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr("tf_covid.pacs.connection._PAUSE_S", 0.05)
    with ExitStack() as stack:
        yield Bench(tmp_path / "out", small_models, stack)


def until(watcher: Watcher, there: Callable[[], Any], patience_s: float = 60.0) -> None:
    end = time.monotonic() + patience_s
    while not there():
        assert time.monotonic() < end, watcher._journal.rows()
        watcher.step()
        time.sleep(0.05)


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_answered_once_stored_once_and_again_with_late_images(
    orthanc: Orthanc, patient: Path, bench: Bench
) -> None:
    files = files_of(patient)
    watcher = bench.watch(bench.archive(orthanc.url), bench.stow(orthanc.url))
    orthanc.put(*files[:-3])
    until(watcher, lambda: DONE in bench.states())
    assert orthanc.modalities() == ["CT", "OT", "SEG", "SR"]
    first = pydicom.dcmread(next(bench.out.glob("*/report.dcm")))
    for _ in range(10):  # its own results are no new study
        watcher.step()
        time.sleep(0.05)
    assert bench.states() == [DONE]
    orthanc.put(*files[-3:])
    until(watcher, lambda: bench.states() == [DONE, DONE])
    assert bench.answered == 2
    assert orthanc.modalities() == ["CT", "OT", "SEG", "SR"], "in the same series"
    assert len(orthanc.ask("GET", "/instances")) == len(files) + 6
    second = pydicom.dcmread(next(bench.out.glob("*/report.dcm")))
    named = second.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
    assert named.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == first.SOPInstanceUID
    watcher.step()
    (row,) = csv.DictReader((bench.out / "summary.csv").open(encoding="utf-8"))
    assert row["status"] == "pass" or row["status"] == "repaired"
    assert bench.health.problems() == {}


@pytest.mark.slow
def test_a_store_that_is_away_costs_no_try_and_no_second_answer(
    orthanc: Orthanc, patient: Path, bench: Bench
) -> None:
    orthanc.put(*files_of(patient))
    with bad_line(orthanc.port) as line:
        line.cut_requests += [1] * 10_000
        watcher = bench.watch(bench.archive(orthanc.url), bench.stow(line.url))
        until(watcher, lambda: bench.answered)
        for _ in range(2 * MOST_TRIES):
            bench.clock.ahead += 1000
            watcher.step()
        (entry,) = bench.journal.rows()
        assert (entry.state, entry.tries) == (WAITING, 0)
        assert list(bench.health.problems()) == [line.url]
        line.cut_requests.clear()
        bench.clock.ahead += 1000
        until(watcher, lambda: bench.states() == [DONE])
    assert bench.answered == 1
    assert bench.health.problems() == {}
    assert orthanc.modalities() == ["CT", "OT", "SEG", "SR"]


@pytest.mark.slow
def test_a_cut_while_it_is_stored_is_no_success(
    orthanc: Orthanc, patient: Path, bench: Bench
) -> None:
    orthanc.put(*files_of(patient))
    with bad_line(orthanc.port) as line:
        line.cut_requests += [20_000]
        watcher = bench.watch(bench.archive(orthanc.url), bench.stow(line.url))
        for _ in range(100):
            watcher.step()
            bench.clock.ahead += 500
            time.sleep(0.02)
            if bench.states() == [DONE]:
                break
        assert not line.cut_requests
    assert orthanc.modalities() == ["CT", "OT", "SEG", "SR"]


@pytest.mark.slow
def test_a_node_that_takes_nothing_is_given_up(
    orthanc: Orthanc, patient: Path, bench: Bench
) -> None:
    orthanc.put(*files_of(patient))
    node = DimseNode(DimseAddress("ORTHANC", "127.0.0.1", orthanc.dimse_port), "STRANGER")
    watcher = bench.watch(bench.archive(orthanc.url), node)
    node.check = lambda: None  # type: ignore[method-assign]  # it is there, and takes nothing
    for _ in range(200):
        watcher.step()
        bench.clock.ahead += 500
        time.sleep(0.02)
        if bench.states() == [FAILED]:
            break
    (entry,) = bench.journal.rows()
    assert (entry.state, entry.tries) == (FAILED, MOST_TRIES)
    assert entry.reason.startswith("pacs_")
    assert bench.answered == 1
    assert orthanc.modalities() == ["CT"]


def test_by_c_store_in_and_out(orthanc: Orthanc, patient: Path, bench: Bench) -> None:
    source = ListenerSource(
        DimseAddress("TFCOVID", "127.0.0.1", 0), bench.journal.folder, find_cases, quiet_s=0.2
    )
    node = DimseNode(DimseAddress("ORTHANC", "127.0.0.1", orthanc.dimse_port), "TFCOVID")
    watcher = bench.watch(source, node, keep_days=2)
    scanner = DimseNode(DimseAddress("TFCOVID", "127.0.0.1", source.port), "SCANNER")
    scanner.store(files_of(patient), lambda line: None)
    until(watcher, lambda: bench.states() == [DONE])
    assert orthanc.modalities() == ["OT", "SEG", "SR"]
    case = bench.journal.rows()[0].case_name
    received = bench.journal.folder / "received" / case
    assert len(list(received.iterdir())) == len(files_of(patient))

    def keep(days: float) -> None:
        bench.clock.ahead += days * 86_400
        watcher._tidied = -float("inf")
        watcher.step()

    keep(1.9)
    assert received.exists()
    assert (bench.out / case).exists()
    keep(0.2)
    assert not received.exists()
    assert not (bench.out / case).exists()
    assert bench.states() == [DONE]
    assert list(csv.DictReader((bench.out / "summary.csv").open(encoding="utf-8"))) == []


def test_no_chest_is_refused_and_nothing_is_stored(
    orthanc: Orthanc, chest: Path, bench: Bench
) -> None:
    orthanc.put(*files_of(chest))  # noise
    watcher = bench.watch(bench.archive(orthanc.url), bench.stow(orthanc.url))
    until(watcher, lambda: bench.states() == [REFUSED])
    (entry,) = bench.journal.rows()
    assert entry.reason.partition(":")[0] == "not_hu"
    assert orthanc.modalities() == ["CT"]
    values = json.loads((bench.out / entry.case_name / "result.json").read_text("utf-8"))
    assert values["status"] == "refused"


def test_a_full_disk_stops_and_room_lets_it_go_on(
    patient: Path, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(patient, tmp_path / "watched")
    source = FolderSource(tmp_path / "watched", find_cases, quiet_s=0.1)
    watcher = bench.watch(source, free_bytes=1 << 20)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    for _ in range(10):
        assert not watcher.step()
        time.sleep(0.05)
    assert bench.states() == [WAITING]
    assert bench.health.problems()["disk"].startswith("disk_full: 0 MB are free")
    assert sum("disk_full" in line for line in bench.lines) == 1, "said once"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    until(watcher, lambda: bench.states() == [DONE])
    assert bench.health.problems() == {}
    assert (tmp_path / "watched").exists(), "the folder is the user's"


@pytest.mark.slow
def test_an_archive_that_goes_away_and_comes_back(
    orthanc: Orthanc, patient: Path, bench: Bench
) -> None:
    orthanc.put(*files_of(patient))
    with bad_line(orthanc.port) as line:
        line.cut_answers += [1] * 10_000
        watcher = bench.watch(bench.archive(line.url))
        for _ in range(2):
            watcher.step()
        assert list(bench.health.problems()) == [f"dicomweb:{line.url}"]
        assert bench.states() == []
        line.cut_answers.clear()
        until(watcher, lambda: bench.states() == [DONE])
    assert bench.health.problems() == {}


def test_models_that_cannot_answer_end_it(patient: Path, bench: Bench, tmp_path: Path) -> None:
    shutil.copytree(patient, tmp_path / "watched")
    watcher = bench.watch(FolderSource(tmp_path / "watched", find_cases, quiet_s=0.0))

    def answer(case: Any) -> Any:
        raise ModelError("weights_damaged: no")

    bench.run.answer = answer  # type: ignore[method-assign]
    with pytest.raises(ModelError):
        until(watcher, lambda: False)


def test_a_fault_of_ours_is_tried_again_and_then_given_up(
    patient: Path, bench: Bench, tmp_path: Path
) -> None:
    shutil.copytree(patient, tmp_path / "watched")
    watcher = bench.watch(FolderSource(tmp_path / "watched", find_cases, quiet_s=0.0))

    def answer(case: Any) -> Any:
        raise ValueError("oh")

    bench.run.answer = answer  # type: ignore[method-assign]
    for _ in range(4 * MOST_TRIES):
        watcher.step()
        bench.clock.ahead += 500
    (entry,) = bench.journal.rows()
    assert (entry.state, entry.tries) == (FAILED, MOST_TRIES)
    assert entry.reason == "internal_error: ValueError", "its text may hold what a header holds"


def test_a_stop_in_the_middle_costs_no_try(patient: Path, bench: Bench, tmp_path: Path) -> None:
    shutil.copytree(patient, tmp_path / "watched")
    watcher = bench.watch(FolderSource(tmp_path / "watched", find_cases, quiet_s=0.0))

    def answer(case: Any) -> Any:
        raise KeyboardInterrupt

    bench.run.answer = answer  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        until(watcher, lambda: False)
    (entry,) = bench.journal.rows()
    assert (entry.state, entry.tries) == (WAITING, 0)


def test_identities_are_in_dicom_results_and_nowhere_else(
    orthanc: Orthanc, patient: Path, bench: Bench, tmp_path: Path
) -> None:
    """A marker in every element of text; the journal alone has UIDs, of study and series."""
    marker = "Zyxwv"
    texts = {"PN", "LO", "SH", "ST", "LT", "UT", "UC", "AE"}
    kept = {"Modality", "PatientPosition", "ImageType", "RescaleType"}
    changed = tmp_path / "marked"
    changed.mkdir()
    uids = set()
    for file in files_of(patient):
        image = pydicom.dcmread(file)
        for keyword in ("PatientName", "OtherPatientNames", "PatientID", "AccessionNumber"):
            setattr(image, keyword, f"{marker}{keyword}"[:16])
        for keyword in ("InstitutionName", "ReferringPhysicianName", "StudyDescription"):
            setattr(image, keyword, f"{marker}{keyword}")
        image.SeriesDescription, image.PatientComments = f"{marker} series", f"{marker} comment"
        image.StudyID, image.StationName = f"{marker}1", f"{marker}2"
        for element in image:
            if element.VR in texts and element.keyword not in kept and element.VM == 1:
                element.value = f"{marker}{element.value}"[:16]
        image.save_as(changed / file.name)
        uids |= {image.StudyInstanceUID, image.SeriesInstanceUID, image.SOPInstanceUID}
    orthanc.put(*files_of(changed))
    watcher = bench.watch(bench.archive(orthanc.url), bench.stow(orthanc.url))
    until(watcher, lambda: bench.states() == [DONE])
    watcher.step()
    files = [path for path in bench.out.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".json", ".html", ".csv", ".dcm", ".sqlite"}
    for path in files:
        content = path.read_bytes()
        if path.suffix == ".dcm":
            assert b"Zyxwv" in content
            continue
        assert marker.encode() not in content, path
        if not path.name.startswith("journal.sqlite"):
            assert not [uid for uid in uids if uid.encode() in content], path
    report = pydicom.dcmread(next(bench.out.glob("*/report.dcm")))
    assert report.PatientID == pydicom.dcmread(files_of(changed)[0]).PatientID
    log = "\n".join(bench.lines)
    assert marker not in log
    assert not [uid for uid in uids if uid in log]
