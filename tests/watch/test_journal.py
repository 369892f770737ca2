"""The journal: a row a series, through kills, full disks and a second watch."""

from __future__ import annotations

import dataclasses
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.watch.clock import Clock
from tf_covid.errors import OutputError, WatchError
from tf_covid.watch.journal import (
    DONE,
    FAILED,
    MOST_INTERRUPTED,
    MOST_TRIES,
    REFUSED,
    REPLACED,
    RUNNING,
    WAITING,
    Journal,
    JournalRow,
    SeenSeries,
    read_rows,
)

SOURCE = "dicomweb:https://pacs.example"


def seen(series: str = "1.2.3", images: int = 3, source: str = SOURCE) -> SeenSeries:
    return SeenSeries(source, "1.2", series, frozenset(f"1.2.{n}" for n in range(images)))


@pytest.fixture
def journal(tmp_path: Path, clock: Clock) -> Any:
    with Journal(tmp_path, clock=clock) as journal:
        yield journal


def start(journal: Journal) -> JournalRow:
    entry = journal.start([SOURCE])
    assert entry is not None
    return entry


def states(journal: Journal) -> list[str]:
    return [entry.state for entry in journal.rows()]


def test_a_series_is_begun_once_and_done_once(journal: Journal) -> None:
    assert journal.add(seen())
    assert not journal.add(seen())
    entry = start(journal)
    assert (entry.series_uid, entry.images, entry.tries) == ("1.2.3", 3, 0)
    assert journal.start([SOURCE]) is None
    assert states(journal) == [RUNNING]
    journal.end(entry, DONE)
    assert not journal.add(seen()), "what is done does not come again"
    assert journal.start([SOURCE]) is None
    assert journal.counts() == {**dict.fromkeys(journal.counts(), 0), DONE: 1}


def test_the_same_series_in_two_sources_is_one(journal: Journal) -> None:
    assert journal.add(seen())
    assert not journal.add(seen(source="dimse:A@127.0.0.1:1"))


def test_late_images_are_a_second_row_of_the_same_case(journal: Journal) -> None:
    journal.add(seen(images=3))
    journal.end(start(journal), DONE)
    assert journal.add(seen(images=5))
    second = start(journal)
    assert second.images == 5
    assert len({entry.case_name for entry in journal.rows()}) == 1
    journal.end(second, DONE)
    assert states(journal) == [DONE, DONE]


def test_late_images_replace_what_waits_and_it_comes_back_with_its_images(journal: Journal) -> None:
    journal.add(seen(images=3))
    journal.add(seen(images=5))
    assert states(journal) == [REPLACED, WAITING]
    assert journal.add(seen(images=3)), "an archive that listed too much for a moment"
    assert states(journal) == [WAITING, REPLACED]
    assert start(journal).images == 3


def test_names_of_cases_differ_and_hold_no_uid(journal: Journal) -> None:
    names = {seen(f"1.2.3.{n}").case_name for n in range(200)}
    assert len(names) == 200
    assert not any("1.2.3" in name for name in names)


def test_five_tries_with_growing_pauses(journal: Journal, clock: Clock) -> None:
    journal.add(seen())
    pauses = []
    for _ in range(MOST_TRIES):
        entry = start(journal)
        state = journal.again(entry, "pacs_broken: it broke off")
        assert journal.start([SOURCE]) is None
        before = clock.now
        while state == WAITING and not _waits_no_longer(journal, clock):
            clock.now += 1
        pauses.append(clock.now - before)
    assert pauses == [10, 20, 40, 80, 0]
    (entry,) = journal.rows()
    assert (entry.state, entry.tries) == (FAILED, MOST_TRIES)
    assert entry.reason == "pacs_broken: it broke off"


def _waits_no_longer(journal: Journal, clock: Clock) -> bool:
    row = journal._database.execute("SELECT not_before FROM series").fetchone()
    return bool(row[0] <= clock.now)


def test_a_try_without_an_archive_does_not_count(journal: Journal, clock: Clock) -> None:
    journal.add(seen())
    for _ in range(3 * MOST_TRIES):
        assert journal.again(start(journal), "nobody", counts=False) == WAITING
        clock.now += 10
    assert start(journal).tries == 0


def test_what_was_tried_holds_up_nothing(journal: Journal, clock: Clock) -> None:
    journal.add(seen("1.1"))
    journal.add(seen("1.2"))
    journal.again(start(journal), "damaged")
    clock.now += 1000
    assert start(journal).series_uid == "1.2"
    assert start(journal).series_uid == "1.1"


def test_a_series_that_ends_the_program_is_given_up_in_the_end(
    tmp_path: Path, clock: Clock
) -> None:
    for index in range(MOST_INTERRUPTED):
        with Journal(tmp_path, clock=clock) as journal:
            journal.resume()
            journal.add(seen())
            if index:
                assert journal.start([SOURCE]) is None, "what waits beside it comes first"
            clock.now += 600
            assert journal.start([SOURCE]) is not None
    with Journal(tmp_path, clock=clock) as journal:
        assert journal.resume() == 1
        clock.now += 600
        assert journal.start([SOURCE]) is None
        (entry,) = journal.rows()
        assert entry.state == FAILED
        assert entry.reason == f"ended: the program ended in {MOST_INTERRUPTED} tries"
        assert journal.resume(failed=True) == 1
        assert start(journal).tries == 0


def test_only_what_these_sources_have_is_begun(journal: Journal) -> None:
    journal.add(seen(source="folder:/gone"))
    assert journal.start([SOURCE]) is None
    assert journal.start([SOURCE, "folder:/gone"]) is not None


def test_what_has_been_done_for_long_enough_is_named_once(journal: Journal, clock: Clock) -> None:
    journal.add(seen("1.1"))
    journal.add(seen("1.2"))
    journal.add(seen("1.3"))
    journal.end(start(journal), DONE)
    journal.end(start(journal), REFUSED, "no chest")
    clock.now += 3 * 86_400
    late = seen("1.1", images=7)  # of the first, which waits again
    journal.add(late)
    assert journal.expired(2) == [seen("1.2").case_name]
    assert journal.expired(4) == []
    journal.removed(seen("1.2").case_name)
    assert journal.expired(2) == []
    assert not journal.add(seen("1.2")), "its files are gone, and it is still known"


def test_a_kill_at_any_moment_loses_nothing(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from tf_covid.watch.journal import Journal, SeenSeries
with Journal(Path(sys.argv[1])) as journal:
    journal.resume()
    for n in range(100_000):
        journal.add(SeenSeries("folder:/a", "1.2", f"1.{n}", frozenset({"1"})))
        print(n, flush=True)
        if n % 3 == 0:
            entry = journal.start(["folder:/a"])
            if entry:
                journal.end(entry, "done")
"""
    known = -1
    for delay in (0.3, 0.05, 0.2):
        child = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        lines = child.stdout.read().split()
        child.wait()
        known = max([known, *map(int, lines[:-1])])
        there = {entry.series_uid for entry in read_rows(tmp_path)}
        assert {f"1.{n}" for n in range(known)} <= there
        assert sqlite3.connect(tmp_path / ".watch/journal.sqlite").execute(
            "PRAGMA integrity_check"
        ).fetchone() == ("ok",)


def test_a_second_watch_refuses_and_the_first_goes_on(journal: Journal, tmp_path: Path) -> None:
    with pytest.raises(WatchError, match="watch_runs: another watch uses"):
        Journal(tmp_path)
    assert journal.add(seen())
    assert [entry.state for entry in read_rows(tmp_path)] == [WAITING]


def test_others_may_not_read_it(journal: Journal, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / ".watch").stat().st_mode) == 0o700
    assert stat.S_IMODE(journal.path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "content",
    [b"no database at all", b"SQLite format 3\0" + b"\xff" * 5000],
    ids=["text", "damaged"],
)
def test_a_file_that_is_no_journal(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".watch").mkdir()
    (tmp_path / ".watch/journal.sqlite").write_bytes(content)
    for use in (Journal, read_rows):
        with pytest.raises(WatchError, match=r"journal_unusable: .*journal.sqlite"):
            use(tmp_path)
    assert (tmp_path / ".watch/journal.sqlite").read_bytes()[: len(content)] == content
    # The lock is free again.
    (tmp_path / ".watch/journal.sqlite").unlink()
    with Journal(tmp_path) as journal:
        assert journal.rows() == []


def test_a_cut_journal(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        for n in range(300):
            journal.add(seen(f"1.{n}"))
    path = tmp_path / ".watch/journal.sqlite"
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(WatchError, match="journal_unusable"), Journal(tmp_path) as journal:
        journal.rows()


def test_the_journal_of_another_program_or_version(tmp_path: Path) -> None:
    (tmp_path / ".watch").mkdir()
    path = tmp_path / ".watch/journal.sqlite"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE series (id)")
        other.execute("PRAGMA user_version = 1")
    with pytest.raises(WatchError, match="journal_unusable"):
        Journal(tmp_path)
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 9")
    with pytest.raises(WatchError, match="another version"):
        Journal(tmp_path)


def test_none_to_show(tmp_path: Path) -> None:
    with pytest.raises(WatchError, match="journal_missing: no watch has run"):
        read_rows(tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(OutputError, match="cannot be made"):
        Journal(tmp_path / "file" / "out")


def test_a_source_that_got_another_address_strands_nothing(journal: Journal) -> None:
    journal.add(seen(source="dicomweb:http://old"))
    assert not journal.add(seen(source="dicomweb:https://new"))
    assert journal.start(["dicomweb:https://new"]) is not None


def test_what_is_sent_again_after_its_removal_is_removed_again(
    journal: Journal, clock: Clock
) -> None:
    one = dataclasses.replace(seen(), received=True)
    journal.add(one)
    journal.end(start(journal), DONE)
    clock.now += 3 * 86_400
    journal.removed(*journal.expired(2))
    assert journal.expired(2) == []
    assert not journal.add(one)
    assert journal.expired(2) == [], "it is kept for as long again"
    clock.now += 3 * 86_400
    assert journal.expired(2) == [one.case_name]


def test_one_series_uid_in_two_studies_is_two(journal: Journal) -> None:
    assert journal.add(seen())
    assert journal.add(dataclasses.replace(seen(), study_uid="1.3"))
    assert len({row.case_name for row in journal.rows()}) == 2


def test_what_failed_is_kept_for_another_try(journal: Journal, clock: Clock) -> None:
    journal.add(seen())
    journal.end(start(journal), FAILED, "no")
    clock.now += 90 * 86_400
    assert journal.expired(2) == []


def test_a_row_that_is_done_stays_done(journal: Journal) -> None:
    journal.add(seen())
    row = start(journal)
    journal.end(row, DONE)
    journal.again(row, "a signal between two lines", counts=False)
    assert states(journal) == [DONE]
