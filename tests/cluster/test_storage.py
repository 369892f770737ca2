"""Where a cluster's answers go: a folder or a URL, one answer at a time, whole or not there."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fsspec", reason="needs the extra [ray]")

import fsspec

from tf_covid.cluster import folder_storage
from tf_covid.cluster import url_storage as module
from tf_covid.cluster.folder_storage import FolderStorage
from tf_covid.cluster.storages import storage_at
from tf_covid.cluster.url_storage import UrlStorage
from tf_covid.errors import ClusterError, OutputError


@pytest.fixture(params=["folder", "file", "memory"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()
        return "memory://bucket/answers"
    (tmp_path / "out").mkdir()
    return str(tmp_path / "out") if request.param == "folder" else f"file://{tmp_path}/out"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "_SETTLE_S", 0.05)


def answer(storage: Any, case: str, files: dict[str, str]) -> None:
    with storage.folder(case) as folder:
        target = folder / case
        target.mkdir(exist_ok=True)
        for old in target.iterdir():
            old.unlink()
        for name, text in files.items():
            (target / name).parent.mkdir(exist_ok=True)
            (target / name).write_text(text)


@pytest.mark.parametrize("url", ["file:///x", "memory://x", "simplecache::file:///x/y"])
def test_a_url_is_told_from_a_folder(url):
    assert isinstance(storage_at(url), UrlStorage)


def test_a_folder_may_have_a_colon(tmp_path):
    assert isinstance(storage_at(str(tmp_path / "a:b")), FolderStorage)


def test_texts(out):
    storage = storage_at(out)
    assert storage.read("a") is None
    storage.remove("a")
    storage.write("a", "é")
    assert storage.read("a") == "é"
    storage.write("a", "two")
    assert storage_at(out).read("a") == "two"
    storage.remove("a")
    assert storage.read("a") is None


def test_lines_are_added(out):
    storage = storage_at(out)
    assert storage.appended("rows") == ""
    storage.append("rows", "1\n2\n")
    storage.append("rows", "3\n")
    again = storage_at(out)
    assert again.appended("rows").split() == ["1", "2", "3"]
    again.append("rows", "4\n")
    storage.write("rows.txt", "no part")
    assert storage_at(out).appended("rows").split() == ["1", "2", "3", "4"]


def test_a_torn_line_spoils_no_other(tmp_path):
    storage = FolderStorage(str(tmp_path))
    storage.append("rows", "1\n")
    with (tmp_path / "rows").open("a") as file:
        file.write('{"to')
    storage.append("rows", "2\n")
    assert storage.appended("rows").splitlines() == ["1", '{"to', "2"]


def test_an_answer_takes_the_place_of_another(out):
    storage = storage_at(out)
    assert storage.read("a/result.json") is None
    answer(storage, "a", {"result.json": "1", "old.txt": "x", "deep/old.txt": "x"})
    assert storage.read("a/result.json") is not None
    answer(storage, "b", {"result.json": "b"})
    if isinstance(storage, FolderStorage):
        return  # `Run` itself replaces the folder
    answer(storage, "a", {"result.json": "2", "new.txt": "y"})
    assert storage.read("a/result.json") == "2"
    assert storage.read("a/new.txt") == "y"
    assert storage.read("a/old.txt") is None
    assert storage.read("a/deep/old.txt") is None
    assert storage.read("b/result.json") == "b"


def test_an_answer_that_is_kept_is_not_sent_again(out, monkeypatch):
    storage = storage_at(out)
    answer(storage, "a", {"result.json": "1", "x": "x"})
    if isinstance(storage, UrlStorage):
        monkeypatch.setattr(storage, "_send", lambda *_: pytest.fail("sent again"))
    with storage.folder("a") as folder:
        assert (folder / "a" / "result.json").read_text() == "1"
    assert storage.read("a/x") == "x"


def test_what_could_not_be_sent_whole_is_no_answer(tmp_path, monkeypatch):
    storage = UrlStorage(f"file://{tmp_path}/out")
    answer(storage, "a", {"result.json": "1", "x": "x"})
    sent = []

    def full(path: str, to: str) -> None:
        sent.append(to)
        if len(sent) == 2:
            raise OSError(28, "No space left on device")
        shutil_copy(path, to)

    shutil_copy = storage.files.put_file
    monkeypatch.setattr(storage.files, "put_file", full)
    with pytest.raises(OutputError, match=r"cannot be used \(No space left on device\)"):
        answer(storage, "a", {"result.json": "2", "x": "y", "z": "z"})
    assert storage.read("a/result.json") is None
    assert len(sent) == 2
    monkeypatch.undo()
    answer(storage, "a", {"result.json": "2", "x": "y", "z": "z"})
    assert storage.read("a/result.json") is not None


def test_the_result_comes_last(tmp_path, monkeypatch):
    storage = UrlStorage(f"file://{tmp_path}/out")
    sent, put = [], storage.files.put_file
    monkeypatch.setattr(
        storage.files, "put_file", lambda path, to: (sent.append(to), put(path, to))
    )
    answer(storage, "a", {"result.json": "1", "b": "b", "z": "z"})
    assert [Path(to).name for to in sent][-1] == "result.json"
    assert len(sent) == 3


def test_one_run_at_a_time(out):
    one, two = storage_at(out), storage_at(out)
    with one.held():
        with pytest.raises(ClusterError, match=r"^run_runs: .*another run"), two.held():
            pass
        with pytest.raises(ClusterError, match=r"^run_runs"), two.held():
            pass
    with two.held():
        pass


def test_of_two_that_begin_at_once_the_last_one_has_it(tmp_path, monkeypatch):
    one, two = (UrlStorage(f"file://{tmp_path}/out") for _ in range(2))
    monkeypatch.setattr(module, "_BEAT_S", 0.02)

    def second(_: float) -> None:
        monkeypatch.setattr(module.time, "sleep", lambda _: None)
        two._beat("second")

    monkeypatch.setattr(module.time, "sleep", second)
    with pytest.raises(ClusterError, match=r"^run_runs"), one.held():
        pass
    assert two._holder()[0] == "second"  # what it said is not taken away


def test_a_run_whose_place_was_taken_writes_no_row(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BEAT_S", 0.02)
    one, two = (UrlStorage(f"file://{tmp_path}/out") for _ in range(2))
    with one.held():
        one.append("rows", "1\n")
        two._beat("second")
        until = time.monotonic() + 10
        while not one._taken:
            assert time.monotonic() < until
            time.sleep(0.01)
        with pytest.raises(ClusterError, match=r"^run_runs"):
            one.append("rows", "2\n")
    assert two._holder()[0] == "second"


def test_lines_that_do_not_fit_are_taken_back(tmp_path, monkeypatch):
    storage = FolderStorage(str(tmp_path))
    storage.append("rows", "1\n")
    write = folder_storage.os.write
    monkeypatch.setattr(folder_storage.os, "write", lambda file, data: write(file, data[:1]))
    with pytest.raises(OutputError, match=r"No space left"):
        storage.append("rows", "22\n")
    monkeypatch.undo()
    storage.append("rows", "3\n")
    assert storage.appended("rows") == "1\n3\n"


def test_a_folder_whose_mount_is_gone_is_not_seen(tmp_path):
    storage = FolderStorage(str(tmp_path))
    with storage.prepared() as token:
        assert storage.sees(token)
    assert not storage.sees(token)


def test_a_dead_run_holds_nothing(tmp_path):
    storage = UrlStorage(f"file://{tmp_path}/out")
    storage.write(".running.json", json.dumps({"run": "x", "at": time.time() - 1000}))
    with storage.held():
        assert json.loads(storage.read(".running.json") or "")["run"] != "x"
    assert storage.read(".running.json") is None
    storage.write(".running.json", "[]")
    with storage.held():
        pass


def test_a_run_says_that_it_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_BEAT_S", 0.02)
    storage = UrlStorage(f"file://{tmp_path}/out")
    with storage.held():
        first = json.loads(storage.read(".running.json") or "")["at"]
        until = time.monotonic() + 10
        while json.loads(storage.read(".running.json") or "{}").get("at") == first:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_a_node_that_shares_it_sees_the_token(out):
    storage = storage_at(out)
    with storage.prepared() as token:
        assert storage_at(out).check(token) is None
    assert "not shared" in str(storage.check(token))


def test_a_node_with_another_folder_of_this_name_is_found_out(tmp_path):
    here, there = (FolderStorage(str(tmp_path / name)) for name in ("here", "there"))
    here.path.mkdir()
    there.path.mkdir()
    with here.prepared() as token:
        assert "not shared" in str(there.check(token))


def test_a_node_that_cannot_write_says_so(tmp_path, monkeypatch):
    storage = FolderStorage(str(tmp_path))
    with storage.prepared() as token:

        def refused(*_: Any) -> None:
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr(Path, "rename", refused)
        monkeypatch.setattr(folder_storage, "write_text", lambda text, path: _raise(path))
        assert "cannot be written" in str(storage.check(token))


def _raise(path: Path) -> None:
    raise OutputError(f"{path}: cannot be written (Read-only file system)")


@pytest.mark.parametrize(
    "out",
    [
        "nothing-of-this-kind://x/y",
        "adl://user:secret@x/y",
        "ftp://me:pa@secret@127.0.0.1:1/x",
        "ftp://me:pa/secret@127.0.0.1:1/x",
        "simplecache::ftp://me:secret@127.0.0.1:1/x",
    ],
)
def test_a_url_that_nothing_can_write_is_named(out):
    with pytest.raises((ClusterError, OutputError)) as raised:
        storage_at(out)
    assert "cannot be used" in str(raised.value)
    assert "secret" not in str(raised.value)


def test_the_lock_of_a_killed_run_is_gone(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".run-0123").write_text("0123")
    with FolderStorage(str(tmp_path)).held():
        assert not (tmp_path / ".run-0123").exists()
