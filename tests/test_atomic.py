"""Whole files or none, and what a kill leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tf_covid import atomic
from tf_covid.errors import OutputError

#: Writes half a file and waits.
WRITER = """
import sys, time
from pathlib import Path
from tf_covid.atomic import replacing, temporary_directory
out = Path(sys.argv[1])
with replacing(out / "a.txt") as partial, temporary_directory(out / "b.keras") as folder:
    partial.write_text("half")
    (folder / "part").write_text("half")
    print("written", flush=True)
    time.sleep(600)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A living process with a half-written file and folder in `tmp_path`."""
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        yield process
        process.kill()


def test_what_a_killed_process_left_is_swept(writer: subprocess.Popen[str], tmp_path: Path) -> None:
    left = names(tmp_path)
    assert len(left) == 2
    assert left[0].startswith(".a.txt.")
    assert left[1].startswith(".b.keras.")
    atomic.remove_leftovers(tmp_path)
    assert names(tmp_path) == left, "its writer lives"
    writer.kill()
    writer.wait()
    assert writer.returncode == -signal.SIGKILL
    assert names(tmp_path) == left
    atomic.remove_leftovers(tmp_path)
    assert names(tmp_path) == []


def test_a_killed_process_that_nobody_asked_for_is_dead(
    writer: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert atomic.alive(writer.pid)
    assert atomic.alive(os.getpid())
    assert not atomic.alive(2**70)
    writer.kill()
    os.waitid(os.P_PID, writer.pid, os.WEXITED | os.WNOWAIT)
    assert not atomic.alive(writer.pid), "a zombie writes no more"


def test_another_hosts_files_stay_for_a_day(
    writer: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.kill()
    writer.wait()
    left = names(tmp_path)
    monkeypatch.setattr(atomic, "_where", lambda: "0" * 8)
    atomic.remove_leftovers(tmp_path)
    assert names(tmp_path) == left, "over there, a process of this number may run"
    now = atomic.time.time()
    monkeypatch.setattr(atomic.time, "time", lambda: now + 90_000)
    atomic.remove_leftovers(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    [
        "a.partial",
        ".a.partial",
        ".a.1234567.partial",
        ".a.here.1234567.0123abcd.partial",
        "a.tfrecord",
        ".x",
    ],
)
def test_what_is_not_ours_is_not_swept(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    os.utime(tmp_path / name, (0, 0))
    atomic.remove_leftovers(tmp_path)
    assert names(tmp_path) == [name]
    atomic.remove_leftovers(tmp_path / "nowhere")


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    with atomic.replacing(tmp_path / "a") as one, atomic.replacing(tmp_path / "a") as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "one"


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    atomic.write_text("whole", tmp_path / "a")
    with pytest.raises(OutputError, match="a: cannot be written: No space left on device"):  # noqa: PT012, SIM117
        with atomic.replacing(tmp_path / "a") as partial:
            partial.write_text("half")
            raise OSError(28, "a paragraph of HDF5 about it")
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "whole"
    with pytest.raises(OutputError, match="cannot be written: No such file"):
        atomic.write_text("x", tmp_path / "nowhere" / "a")
    with (
        pytest.raises(OutputError, match="cannot be written"),
        atomic.temporary_directory(tmp_path / "nowhere" / "a"),
    ):
        pass
