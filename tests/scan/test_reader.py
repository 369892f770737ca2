"""The reader process: a case that it dies of is one refused case, and the next is read."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tf_covid.atomic import alive
from tf_covid.errors import ScanRefused
from tf_covid.result import QualityFlag
from tf_covid.scan import Case, Limits, find_cases, read
from tf_covid.scan.checks import refusal
from tf_covid.scan.reader import Reader

#: Cases on which a reader dies, in a module that the child can import.
DEADLY = """
import os, signal, time
from dataclasses import dataclass
from tf_covid.scan import Case

@dataclass(frozen=True)
class Deadly(Case):
    how: str = ""
    def read(self):
        if self.how == "raise": raise KeyError("Doe^Jane")
        if self.how == "exit": os._exit(3)
        if self.how == "memory": return [bytearray(1 << 28) for _ in range(64)]
        if self.how == "time": os.kill(os.getpid(), signal.SIGXCPU)
        if self.how == "wait": time.sleep(60)
        os.kill(os.getpid(), getattr(signal, self.how))
    fingerprint = read
"""


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    with Reader() as reader:
        yield reader


@pytest.fixture
def deadly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "deadly_cases.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("deadly_cases", None)
    import deadly_cases  # type: ignore[import-not-found]

    return deadly_cases.Deadly


def test_it_reads_what_this_process_reads(reader: Reader, series: Path, marker) -> None:
    (case,) = reader.find(series)
    scan, here = reader.read(case), read(series)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert scan.hu.dtype == np.int16
    assert scan.hu.flags.c_contiguous
    assert scan.hu.flags.writeable
    assert (scan.fingerprint, scan.quality_flags, scan.source.shape) == (
        here.fingerprint,
        here.quality_flags,
        here.source.shape,
    )
    np.testing.assert_array_equal(scan.affine, here.affine)
    assert reader.fingerprint(case) == here.fingerprint
    assert reader.check(case).status == "pass"


def test_a_sagittal_volume_comes_back_in_its_shape(reader: Reader, marker, tmp_path: Path) -> None:
    import nibabel

    stored = np.ascontiguousarray(np.moveaxis(marker.hu[::-1], 0, 1))
    affine = np.array([[0, 0, -0.8, 0], [0.9, 0, 0, 0], [0, 2.5, 0, 0], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(stored, affine), tmp_path / "a.nii")  # type: ignore[no-untyped-call]
    (case,) = reader.find(tmp_path / "a.nii")
    here = read(tmp_path / "a.nii")
    np.testing.assert_array_equal(reader.read(case).hu, here.hu)


def test_a_refusal_comes_back_whole(reader: Reader, series: Path, tmp_path: Path) -> None:
    sorted(series.iterdir())[4].write_bytes(sorted(series.iterdir())[4].read_bytes()[:-100])
    (case,) = reader.find(series)
    with pytest.raises(ScanRefused) as there:
        reader.read(case)
    with pytest.raises(ScanRefused) as here:
        case.read()
    assert there.value.quality_flags == here.value.quality_flags
    (gone,) = reader.find(tmp_path / "gone")
    assert [flag.code for flag in gone.quality_flags] == ["not_found"]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("SIGSEGV", "SIGSEGV"),
        ("SIGFPE", "SIGFPE"),
        ("SIGABRT", "SIGABRT"),
        ("SIGKILL", "memory"),
        ("time", "processor time"),
        ("exit", "code 3"),
        ("raise", "KeyError at deadly_cases"),
    ],
)
def test_a_case_that_it_dies_of_is_refused(deadly: Any, series: Path, how: str, words: str) -> None:
    (case,) = find_cases(series)
    warning = QualityFlag("unreadable_files", "warning", "1 file", 1)
    with Reader() as reader:
        bad = deadly("bad", series, how=how, quality_flags=(warning,))
        with pytest.raises(ScanRefused) as caught:
            reader.read(bad)
        first, second = caught.value.quality_flags
        assert (first.code, first.level, second) == ("reader_failed", "error", warning)
        assert words in first.message
        assert "Jane" not in first.message
        assert reader.fingerprint(bad) == ""
        checked = reader.check(bad)
        assert (checked.status, checked.quality_flags[0].code) == ("refused", "reader_failed")
        assert reader.read(case).shape == (14, 40, 32)


def test_memory_is_bounded(deadly: Any, series: Path) -> None:
    with Reader(memory_bytes=1 << 29) as reader, pytest.raises(ScanRefused, match="MemoryError"):
        reader.read(deadly("bad", series, how="memory", limits=Limits(voxels=1000)))


def test_a_reader_that_hangs_is_ended(deadly: Any, series: Path) -> None:
    with Reader(wait_s=5.0) as reader:
        reader.find(series)
        reader._line.settimeout(0.3)  # type: ignore[union-attr]
        with pytest.raises(ScanRefused, match="without an answer"):
            reader.read(deadly("bad", series, how="wait"))


def test_one_that_died_between_two_cases_is_started_again(series: Path) -> None:
    with Reader() as reader:
        (case,) = reader.find(series)
        assert reader._child is not None
        reader._child.kill()
        reader._child.wait()
        assert reader.read(case).shape == (14, 40, 32)


def test_none_is_left_behind(series: Path) -> None:
    with Reader() as reader:
        reader.find(series)
        child = reader._child
    assert child is not None
    assert child.returncode is not None
    assert reader._line is None


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), 9)", "raise SystemExit"])
def test_it_ends_with_its_parent(end: str, tmp_path: Path) -> None:
    code = (
        "import os\nfrom tf_covid.scan.reader import Reader\n"
        "reader = Reader()\nreader.find('nothing')\nprint(reader._child.pid, flush=True)\n" + end
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=Path.cwd()
    )
    pid, until = int(done.stdout), time.monotonic() + 10
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(pid)


def test_it_never_imports_tensorflow(deadly: Any, series: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom tf_covid.scan.reader import Reader\n"
        "with Reader() as reader:\n"
        "    (case,) = reader.find(sys.argv[1])\n"
        "    maps = open(f'/proc/{reader._child.pid}/maps').read()\n"
        "print('tensorflow' in maps, 'tensorflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(series)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]


def test_the_folder_of_the_input_is_no_place_to_import_from(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("json", "socket", "pydicom"):
        (series / f"{name}.py").write_text("import os\nos._exit(7)\n")
    monkeypatch.chdir(series)
    monkeypatch.setattr("sys.path", [path for path in sys.path if path not in ("", ".")])
    with Reader() as reader:
        assert reader.read(reader.find(".")[0]).shape == (14, 40, 32)


def test_what_goes_over_the_line_can_be_pickled(series: Path) -> None:
    (case,) = find_cases(series)
    assert pickle.loads(pickle.dumps(case)) == case
    assert isinstance(case, Case)
    error = refusal("not_hu", "The values are none.", 3)
    again = pickle.loads(pickle.dumps(error))
    assert again.quality_flags == error.quality_flags
    assert str(again) == str(error)
    assert pickle.loads(pickle.dumps(case.read())).fingerprint == case.fingerprint()
