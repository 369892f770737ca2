"""The folder of a case: complete, exact, and never half."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK

from tf_covid import atomic
from tf_covid.errors import OutputError
from tf_covid.report import html, write_case
from tf_covid.result import Result

ANSWERED = {"result.json", "report.html", "montage.png", "lungs.nii.gz", "attention.nii.gz"}

#: Writes a refused case as another process would; `{before}` runs first.
_WRITER = """
import os, pathlib, signal, sys
from tf_covid.report import html, write_case
from tf_covid.result import QualityFlag, Result
{before}
flag = QualityFlag("not_ct", "error", "Not a CT.")
result = Result("case-1", "refused", (flag,), {{"run": "killed"}})
write_case(result, None, pathlib.Path(sys.argv[1]))
"""


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def killed_writer(folder: Path, before: str) -> None:
    """Run the writer until it kills itself as the system would: no handler, no cleaning up."""
    run = subprocess.run(
        [sys.executable, "-c", _WRITER.format(before=before), str(folder)], check=False
    )
    assert run.returncode == -signal.SIGKILL


def test_an_answered_case_has_every_file(make_case: Any, tmp_path: Path) -> None:
    result, scan = make_case()
    write_case(result, scan, tmp_path / "out/case-1")
    assert names(tmp_path / "out/case-1") == ANSWERED
    assert names(tmp_path / "out") == {"case-1"}


def test_without_attention_there_is_no_map(make_case: Any, tmp_path: Path) -> None:
    result, scan = make_case(attention=False)
    write_case(result, scan, tmp_path / "case-1")
    assert names(tmp_path / "case-1") == ANSWERED - {"attention.nii.gz"}


def test_lobes_and_lesions_come_back_on_the_source_grid(
    lobe_case: Any, make_case: Any, tmp_path: Path
) -> None:
    result, scan = lobe_case()
    folder = tmp_path / "case-1"
    write_case(result, scan, folder)
    assert names(folder) == ANSWERED | {"lobes.nii.gz", "lesions.nii.gz"}
    for name, volume in (("lobes", result.maps.lobes), ("lesions", result.maps.lesions)):
        image = nibabel.load(folder / f"{name}.nii.gz")
        assert image.get_data_dtype() == np.uint8
        np.testing.assert_allclose(image.affine, scan.source.affine_ras, atol=1e-4)
        np.testing.assert_array_equal(image.get_fdata(), scan.source.from_canonical(volume))
    # In mm: what is low in the left lung is the left lower lobe, wherever the file stores it.
    stored = SimpleITK.ReadImage(str(folder / "lobes.nii.gz"))
    for voxel, lobe in (((14, 30, 54), 4), ((26, 30, 54), 5), ((26, 40, 22), 3), ((26, 25, 22), 2)):
        point = (scan.affine @ (*voxel, 1.0))[:3]
        assert stored[stored.TransformPhysicalPointToIndex(point.tolist())] == lobe
    # An answer without them replaces the folder as a whole.
    write_case(*make_case(), folder)
    assert names(folder) == ANSWERED


def test_a_refused_case_has_its_reason_only(refused: Result, tmp_path: Path) -> None:
    write_case(refused, None, tmp_path / "case-1")
    assert names(tmp_path / "case-1") == {"result.json", "report.html"}
    assert refused.quality_flags[0].message in (tmp_path / "case-1/report.html").read_text("utf-8")


def test_result_json_is_the_result(make_case: Any, tmp_path: Path) -> None:
    result, scan = make_case()
    write_case(result, scan, tmp_path / "case-1")
    text = (tmp_path / "case-1/result.json").read_text("utf-8")
    assert text == result.to_json()
    assert json.loads(text)["severity"]["class"] == 2


def test_the_answer_states_how_long_it_took(make_case: Any, tmp_path: Path) -> None:
    result, scan = make_case(timings_s={"read": 1.5, "total": 1.5})
    written = write_case(result, scan, tmp_path / "case-1", since=time.perf_counter() - 100)
    assert list(written.timings_s) == ["read", "write", "total"]
    assert written.timings_s["total"] == pytest.approx(100 + written.timings_s["write"], abs=5)
    assert (tmp_path / "case-1/result.json").read_text("utf-8") == written.to_json()
    assert f"total {written.timings_s['total']:.2f}" in (tmp_path / "case-1/report.html").read_text(
        "utf-8"
    )


def test_the_volumes_come_back_on_the_source_grid(make_case: Any, tmp_path: Path) -> None:
    result, scan = make_case()
    write_case(result, scan, tmp_path / "case-1")
    attention = nibabel.load(tmp_path / "case-1/attention.nii.gz")
    assert attention.get_data_dtype() == np.uint8
    np.testing.assert_allclose(attention.affine, scan.source.affine_ras, atol=1e-4)
    stored = scan.source.from_canonical(result.maps.attention)
    np.testing.assert_allclose(attention.get_fdata(), stored / 255.0, atol=1e-6)
    assert attention.get_fdata().max() == pytest.approx(1.0)

    # A second library, asked in mm: the lesion's voxel lies in the right lung, wherever the file
    # stores it.
    lungs = SimpleITK.ReadImage(str(tmp_path / "case-1/lungs.nii.gz"))
    for voxel, side in (((24, 36, 20), 1), ((24, 36, 56), 2), ((1, 1, 1), 0)):
        point = (scan.affine @ (*voxel, 1.0))[:3]
        assert lungs[lungs.TransformPhysicalPointToIndex(point.tolist())] == side


def test_a_failure_keeps_the_old_answer(
    make_case: Any, refused: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "case-1"
    write_case(refused, None, folder)
    before = (folder / "result.json").read_bytes()

    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(html, "render", full)
    result, scan = make_case()
    with pytest.raises(OutputError, match="No space left on device"):
        write_case(result, scan, folder)
    assert (folder / "result.json").read_bytes() == before
    assert names(tmp_path) == {"case-1"}


def test_a_failure_of_the_first_write_leaves_nothing(
    make_case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(html, "render", lambda *_: 1 / 0)
    result, scan = make_case()
    with pytest.raises(ZeroDivisionError):
        write_case(result, scan, tmp_path / "case-1")
    assert names(tmp_path) == set()


def test_a_kill_while_writing_keeps_the_old_answer(refused: Result, tmp_path: Path) -> None:
    folder = tmp_path / "case-1"
    write_case(refused, None, folder)
    killed_writer(folder, "html.render = lambda *_: os.kill(os.getpid(), signal.SIGKILL)")
    assert (folder / "result.json").read_text("utf-8") == refused.to_json()
    assert len(names(tmp_path)) == 2, "the killed run leaves its half-written folder"
    write_case(refused, None, folder)
    assert names(tmp_path) == {"case-1"}


def test_a_kill_while_swapping_keeps_the_old_answer(refused: Result, tmp_path: Path) -> None:
    folder = tmp_path / "case-1"
    write_case(refused, None, folder)
    killed_writer(
        folder,
        "rename = pathlib.Path.rename\n"
        "pathlib.Path.rename = lambda *both: (rename(*both), os.kill(os.getpid(), signal.SIGKILL))",
    )
    assert not folder.exists()
    atomic.recover_folder(folder)
    assert (folder / "result.json").read_text("utf-8") == refused.to_json()
    assert names(tmp_path) == {"case-1"}


def test_other_cases_and_living_writers_are_left_alone(refused: Result, tmp_path: Path) -> None:
    mine = atomic._sibling(tmp_path / "case-1", "partial").name
    other_case = atomic._sibling(tmp_path / "case-10", "partial").name.replace(
        str(os.getpid()), "1234567"
    )
    others = {
        mine.replace(str(os.getpid()), str(os.getppid())),
        other_case,
        ".case-1.x.partial",
        "notes",
    }
    for name in others:
        (tmp_path / name).mkdir()
    write_case(refused, None, tmp_path / "case-1")
    assert names(tmp_path) == others | {"case-1"}


def test_another_hosts_leftovers_are_left_alone_for_a_day(
    refused: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers share a folder and process ids, but no process list: this id may run there."""
    folder = tmp_path / "case-1"
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(atomic, "_where", lambda: "0123abcd")
        siblings = {atomic._sibling(folder, kind).name for kind in ("partial", "old", "old")}
    assert len(siblings) == 3
    assert all(name.startswith(".case-1.0123abcd.") for name in siblings)
    for name in siblings:
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (0, 0))  # an old answer that was set aside just now
    write_case(refused, None, folder)
    assert names(tmp_path) == siblings | {"case-1"}
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 90_000)
    atomic.recover_folder(folder)
    assert names(tmp_path) == {"case-1"}


@pytest.mark.parametrize(
    "name", [".git", ".notes", ".lungs.nii.gz", ".result.json.part", "._folder/"]
)
def test_hidden_files_of_somebody_are_not_removed(
    name: str, refused: Result, tmp_path: Path
) -> None:
    folder = tmp_path / "case-1"
    folder.mkdir()
    (folder / name).mkdir() if name.endswith("/") else (folder / name).write_text("work")
    with pytest.raises(OutputError, match=name.strip("/")):
        write_case(refused, None, folder)
    assert (folder / name).exists()


def test_litter_is_replaced(refused: Result, tmp_path: Path) -> None:
    folder = tmp_path / "case-1"
    folder.mkdir()
    half = atomic._sibling(folder / "lungs.nii.gz").name
    for name in (".DS_Store", "._report.html", ".lungs.nii.gz.0123abcd.part", half):
        (folder / name).touch()
    write_case(refused, None, folder)
    assert names(folder) == {"result.json", "report.html"}


def test_a_folder_with_anything_else_is_not_replaced(refused: Result, tmp_path: Path) -> None:
    folder = tmp_path / "case-1"
    folder.mkdir()
    (folder / "IM000001").write_bytes(b"somebody's scan")
    with pytest.raises(OutputError, match="IM000001"):
        write_case(refused, None, folder)
    assert (folder / "IM000001").read_bytes() == b"somebody's scan"


@pytest.mark.parametrize("blocked", ["case-1", "out"])
def test_a_file_in_the_way_is_an_output_error(
    blocked: str, refused: Result, tmp_path: Path
) -> None:
    (tmp_path / blocked).write_text("a file")
    with pytest.raises(OutputError):
        write_case(refused, None, tmp_path / (blocked if blocked == "case-1" else "out/case-1"))


def test_an_answer_needs_its_scan(make_case: Any, tmp_path: Path) -> None:
    result, _ = make_case()
    with pytest.raises(ValueError, match="scan"):
        write_case(result, None, tmp_path / "case-1")
    assert names(tmp_path) == set()


def test_importing_the_room_is_cheap() -> None:
    code = (
        "import sys, tf_covid.report; print([m for m in ('numpy', 'matplotlib', 'PIL', 'jinja2') if"
        " m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )
