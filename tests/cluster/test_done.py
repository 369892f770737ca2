"""What is done stays done, as long as it is what was asked."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tf_covid.cluster.done import NAME, Done
from tf_covid.cluster.folder_storage import FolderStorage
from tf_covid.pipeline import refused
from tf_covid.result import QualityFlag
from tf_covid.scan import Case


@pytest.fixture
def storage(tmp_path: Path) -> FolderStorage:
    (tmp_path / "out").mkdir()
    return FolderStorage(str(tmp_path / "out"))


def row(problem: str | None = None) -> dict[str, Any]:
    return {"problem": problem, "request": "r", "status": "pass", "row": {"case": "a"}}


def write_answer(storage: FolderStorage, case: str, request: str = "r") -> None:
    values = refused(case, [QualityFlag("no_lung", "error", "None.")]).as_dict()
    values["versions"]["request"] = request
    (storage.path / case).mkdir(exist_ok=True)
    (storage.path / case / "result.json").write_text(json.dumps(values))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    path = tmp_path / "a.nii"
    path.write_bytes(b"one")
    return Case("a", path)


def finish(storage: FolderStorage, case: Case, identity: str = "q", **changed: Any) -> None:
    done = Done(storage, identity)
    done.add(case.name, row(**changed), asked=done.asked(case))
    done.write()
    write_answer(storage, case.name)


def holds(storage: FolderStorage, case: Case, identity: str = "q") -> bool:
    done = Done(storage, identity)
    return done.answer(case.name, done.asked(case)) is not None


def test_a_case_that_is_done_is_held(storage, case):
    assert not holds(storage, case)
    finish(storage, case)
    assert holds(storage, case)
    assert Done(storage, "q").summary_rows() == {"a": {"case": "a"}}


def test_another_identity_is_none_that_was_answered(storage, case):
    finish(storage, case)
    assert not holds(storage, case, "another")


@pytest.mark.parametrize("how", ["longer", "same size", "same time", "replaced", "gone"])
def test_other_bytes_are_another_case(storage, case, how):
    finish(storage, case)
    before = case.path.stat()
    if how == "gone":
        case.path.unlink()
    elif how == "longer":
        case.path.write_bytes(b"longer")
    elif how == "replaced":
        other = case.path.with_name("other")
        other.write_bytes(b"two")
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        other.replace(case.path)
    else:
        case.path.write_bytes(b"two")
        if how == "same time":
            os.utime(case.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not holds(storage, case)


def test_a_file_of_a_folder_counts(storage, tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    for name in ("1", "2"):
        (folder / name).write_bytes(b"x")
    case = Case("a", folder, ("1", "2"))
    finish(storage, case)
    assert holds(storage, case)
    (folder / "2").write_bytes(b"yy")
    assert not holds(storage, case)


def test_data_beside_a_header_count(storage, tmp_path):
    (tmp_path / "a.mhd").write_bytes(b"header")
    (tmp_path / "a.raw").write_bytes(b"data")
    case = Case("a", tmp_path / "a.mhd", ("a.mhd", "a.raw"))
    finish(storage, case)
    assert holds(storage, case)
    (tmp_path / "a.raw").write_bytes(b"other data")
    assert not holds(storage, case)


def test_a_case_without_an_answer_is_tried_again(storage, case):
    finish(storage, case, problem="worker_lost: …")
    assert not holds(storage, case)


def test_an_answer_that_somebody_removed_is_made_again(storage, case):
    finish(storage, case)
    (storage.path / "a" / "result.json").unlink()
    assert not holds(storage, case)


def test_what_another_run_has_put_there_is_no_answer_of_ours(storage, case):
    finish(storage, case)
    write_answer(storage, case.name, "of another model")
    assert not holds(storage, case)
    for text in ("", "{}", '{"versions": {}}', "null"):
        (storage.path / "a" / "result.json").write_text(text)
        assert not holds(storage, case)


def test_the_last_row_of_a_case_counts(storage, case):
    finish(storage, case)
    finish(storage, case, problem="truncated_file: …")
    assert not holds(storage, case)
    finish(storage, case)
    assert holds(storage, case)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "null",
        "[]",
        '{"case": "a", "ask',
        '{"case": 1, "asked": "", "problem": null}',
        '{"case": "b", "asked": "x", "problem": null, "row": 7}',
        "\x00\x00",
    ],
)
def test_what_is_no_row_is_passed_over(storage, case, line):
    (storage.path / NAME).write_text(line)
    assert Done(storage, "q").rows == {}
    finish(storage, case)
    assert holds(storage, case)


def test_rows_wait_for_each_other(storage, case):
    done = Done(storage, "q", every_s=1000)
    done.add("a", row(), asked="x")
    assert not (storage.path / NAME).exists()
    for index in range(200):
        done.add(f"c{index}", row(), asked="x")
    assert len(storage.appended(NAME).splitlines()) == 200
    done.write()
    assert len(Done(storage, "q").rows) == 201
