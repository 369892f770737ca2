"""Images that were sent: kept before that is said, and complete only when their sender is done."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset

from tests.watch.clock import Clock
from tf_covid.errors import WatchError
from tf_covid.scan import find_cases
from tf_covid.watch.inbox import Inbox, Unreadable
from tf_covid.watch.journal import JournalRow, SeenSeries

QUIET, BROKEN = 60.0, 600.0


@pytest.fixture
def inbox(tmp_path: Path, clock: Clock) -> Inbox:
    return at(tmp_path, clock)


def at(folder: Path, clock: Clock) -> Inbox:
    return Inbox(folder, "dimse:A", quiet_s=QUIET, broken_s=BROKEN, clock=clock)


def image(number: int, series: str = "1.2.3", study: str = "1.2", **elements: Any) -> bytes:
    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    one.StudyInstanceUID, one.SeriesInstanceUID = study, series
    one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"1.9.{number}"
    for name, value in elements.items():
        setattr(one, name, value)
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, one, enforce_file_format=True)
    return stream.getvalue()


def complete(inbox: Inbox) -> list[tuple[str, int]]:
    return [(seen.series_uid, len(seen.images)) for seen in inbox.complete()]


def test_quiet_after_a_sender_is_done(inbox: Inbox, clock: Clock) -> None:
    for number in range(4):
        inbox.put(image(number), "a")
        clock.now += 1
    inbox.ended("a", released=True)
    clock.now += QUIET - 2
    assert complete(inbox) == []
    clock.now += 1
    assert complete(inbox) == [("1.2.3", 4)]
    clock.now += 10 * BROKEN
    assert complete(inbox) == [], "once"
    inbox.put(image(4), "b")
    inbox.ended("b", released=True)
    clock.now += QUIET
    assert complete(inbox) == [("1.2.3", 5)], "late images make it another one"


@pytest.mark.parametrize("how", ["broke off", "still open"])
def test_one_that_is_not_done_is_waited_for(inbox: Inbox, clock: Clock, how: str) -> None:
    inbox.put(image(0), "a")
    if how == "broke off":
        inbox.ended("a", released=False)
    clock.now += BROKEN - 1
    assert complete(inbox) == []
    clock.now += 1
    assert complete(inbox) == [("1.2.3", 1)], "but not for ever"


def test_one_that_broke_off_and_sends_all_again(inbox: Inbox, clock: Clock) -> None:
    for number in range(2):
        inbox.put(image(number), "a")
    inbox.ended("a", released=False)
    for number in range(5):
        inbox.put(image(number), "b")
    clock.now += QUIET
    assert complete(inbox) == [], "the second one is still sending"
    inbox.ended("b", released=True)
    assert complete(inbox) == [("1.2.3", 5)]


def test_two_at_once(inbox: Inbox, clock: Clock) -> None:
    inbox.put(image(0), "a")
    inbox.put(image(1), "b")
    inbox.put(image(2, series="1.5"), "b")
    inbox.ended("b", released=True)
    clock.now += QUIET
    assert complete(inbox) == [("1.5", 1)]
    inbox.ended("a", released=True)
    assert complete(inbox) == [("1.2.3", 2)]


def test_one_image_an_association(inbox: Inbox, clock: Clock) -> None:
    for number in range(5):
        inbox.put(image(number), number)
        inbox.ended(number, released=True)
        clock.now += 20
        assert complete(inbox) == []
    clock.now += QUIET
    assert complete(inbox) == [("1.2.3", 5)]


@pytest.mark.parametrize("released", [True, False])
def test_a_watch_that_starts_again_knows_what_was_done(
    tmp_path: Path, clock: Clock, released: bool
) -> None:
    inbox = at(tmp_path, clock)
    for number in range(3):
        inbox.put(image(number), "a")
    if released:
        inbox.ended("a", released=True)
    (tmp_path / "received" / next((tmp_path / "received").iterdir()).name / "x.tmp").write_text("")
    again = at(tmp_path, clock)
    clock.now += QUIET
    assert complete(again) == ([("1.2.3", 3)] if released else [])
    clock.now += BROKEN
    assert complete(again) == ([] if released else [("1.2.3", 3)])


def test_a_new_image_takes_the_release_back_before_it_is_there(
    tmp_path: Path, clock: Clock
) -> None:
    inbox = at(tmp_path, clock)
    inbox.put(image(0), "a")
    inbox.ended("a", released=True)
    inbox.put(image(1), "b")  # and now everything is killed
    again = at(tmp_path, clock)
    clock.now += BROKEN - 1
    assert complete(again) == []


def test_the_same_image_twice_is_one_and_the_first(inbox: Inbox, tmp_path: Path) -> None:
    name = inbox.put(image(0, PatientID="first"), "a")
    assert inbox.put(image(0, PatientID="second"), "b") == name
    (path,) = (tmp_path / "received" / name).iterdir()
    assert pydicom.dcmread(path).PatientID == "first"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no DICOM",
        image(0)[:150],
        image(0, series=""),
        image(0, study="../../etc"),
        image(0, series="../" * 20),
        image(0, SOPInstanceUID="1.2/../3"),
        image(0, SOPInstanceUID="1." * 40),
    ],
    ids=["empty", "text", "cut", "no series", "path", "deep path", "slash", "long"],
)
def test_what_is_of_no_series(inbox: Inbox, tmp_path: Path, content: bytes) -> None:
    with pytest.raises(Unreadable):
        inbox.put(content, "a")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_names_of_files_hold_no_uid(inbox: Inbox, tmp_path: Path) -> None:
    inbox.put(image(7, series="1.2.840.77"), "a")
    inbox.ended("a", released=True)
    names = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")]
    assert not [name for name in names if "1.2" in name or "1.9" in name]


def entry_of(seen: SeenSeries) -> JournalRow:
    images = (seen.images_sha256, len(seen.images), seen.case_name)
    return JournalRow(
        1, seen.source, seen.study_uid, seen.series_uid, *images, "running", 0, 0, "", 0, 0
    )


def test_its_case_and_what_becomes_of_it(inbox: Inbox, tmp_path: Path, clock: Clock) -> None:
    name = inbox.put(image(0), "a")
    inbox.ended("a", released=True)
    clock.now += QUIET
    (seen,) = inbox.complete()
    entry = entry_of(seen)
    with inbox.case(entry, find_cases) as case:
        assert case.name == entry.case_name == name
    inbox.put(image(1), "b")
    with pytest.raises(WatchError, match=r"series_changed: it had 1 images"):
        inbox.case(entry, find_cases).__enter__()
    assert not inbox.remove(name), "more of it is coming"
    inbox.ended("b", released=True)
    assert not inbox.remove(name), "more of it has come than was answered"
    assert (tmp_path / "received" / name).exists()
    clock.now += QUIET
    assert complete(inbox) == [("1.2.3", 2)]
    assert inbox.remove(name)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    with pytest.raises(WatchError, match="series_gone"):
        inbox.case(entry, find_cases).__enter__()


def test_images_of_two_patients_in_one_series_are_no_case(inbox: Inbox, clock: Clock) -> None:
    pixels = {"Rows": 1, "Columns": 1, "BitsAllocated": 16, "PixelData": b"\0\0", "Modality": "CT"}
    inbox.put(image(0, PatientID="A", PatientName="A", **pixels), "a")
    inbox.put(image(1, PatientID="B", PatientName="B", **pixels), "a")
    inbox.ended("a", released=True)
    clock.now += QUIET
    (seen,) = inbox.complete()
    with pytest.raises(WatchError, match="several_cases"):
        inbox.case(entry_of(seen), find_cases).__enter__()


def test_an_image_that_comes_while_a_series_is_given_out_is_another_set(
    inbox: Inbox, clock: Clock
) -> None:
    inbox.put(image(0), "a")
    inbox.ended("a", released=True)
    clock.now += QUIET
    giving = inbox.complete()
    assert len(next(giving).images) == 1
    inbox.put(image(1), "b")
    inbox.ended("b", released=True)
    assert list(giving) == []
    clock.now += QUIET
    assert complete(inbox) == [("1.2.3", 2)]


@pytest.mark.parametrize("first", ["aborted", "released"])
def test_one_that_broke_off_is_not_healed_by_another_that_sends_less(
    inbox: Inbox, clock: Clock, first: str
) -> None:
    inbox.put(image(0), "a")
    inbox.put(image(1), "a")
    inbox.put(image(2), "b")
    for sender in ("a", "b") if first == "aborted" else ("b", "a"):
        inbox.ended(sender, released=sender == "b")
    clock.now += BROKEN - 1
    assert complete(inbox) == []
    for number in range(3):
        inbox.put(image(number), "c")
    inbox.ended("c", released=True)
    assert complete(inbox) == [("1.2.3", 3)], "one that sends everything does"


def test_images_that_came_while_the_folder_was_searched_are_not_answered(
    inbox: Inbox, clock: Clock
) -> None:
    pixels = {"Rows": 1, "Columns": 1, "BitsAllocated": 16, "PixelData": b"\0\0", "Modality": "CT"}
    inbox.put(image(0, **pixels), "a")
    inbox.ended("a", released=True)
    clock.now += QUIET
    (seen,) = inbox.complete()

    def find(path: Path) -> Any:
        inbox.put(image(1, **pixels), "b")
        return find_cases(path)

    with pytest.raises(WatchError, match="series_changed: 1 images came"):
        inbox.case(entry_of(seen), find).__enter__()


def test_uids_with_leading_zeros_are_kept(inbox: Inbox, clock: Clock) -> None:
    inbox.put(image(0, series="1.2.03"), "a")
    inbox.ended("a", released=True)
    clock.now += QUIET
    assert complete(inbox) == [("1.2.03", 1)]


def test_one_that_ended_before_its_image_was_kept(inbox: Inbox, clock: Clock) -> None:
    inbox.put(image(0), "a")
    inbox.ended("b", released=False)  # of which nothing is known
    inbox.put(image(1), "b")
    inbox.ended("b", released=False)  # as the listener says when it sees that
    inbox.ended("a", released=True)
    clock.now += QUIET
    assert complete(inbox) == []
    clock.now += BROKEN
    assert complete(inbox) == [("1.2.3", 2)]
