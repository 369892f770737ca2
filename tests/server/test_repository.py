"""Which version is served: new ones, broken ones, dangerous ones, and those that vanish."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from tf_covid.errors import ServingError
from tf_covid.export import graph_ops
from tf_covid.server.errors import NotFound
from tf_covid.server.repository import Repository
from tf_covid.server.servable import WARMUP

ONE = {"x": np.ones((1, 3), np.float32)}


@pytest.fixture
def repository(store: Any) -> Repository:
    return Repository(store.folder)


def served(repository: Repository) -> dict[str, int]:
    return {name: version.number for name, version in repository.available().items()}


def answer(repository: Repository, name: str = "m") -> int:
    with repository.lease(name) as version:
        return int(version.runner("").run(ONE)["version"][0])


def state(repository: Repository, version: int, name: str = "m") -> tuple[str, str]:
    (status,) = repository.statuses(name, version)
    return status.state, status.error


def warm_up(
    folder: Path, *, signature: str = "serving_default", columns: int = 3, kind: str = "predict"
) -> None:
    log = prediction_log_pb2.PredictionLog()
    if kind == "predict":
        request = log.predict_log.request
        request.model_spec.signature_name = signature
        request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.ones((1, columns), np.float32)))
    else:
        log.classify_log.SetInParent()
    path = folder / WARMUP
    path.parent.mkdir()
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(log.SerializeToString())


def test_the_latest_version_is_served_and_a_new_one_takes_its_place(
    store: Any, repository: Repository
) -> None:
    store.put("linear-1", "m", 1)
    store.put("linear-2", "m", 9)
    repository.poll()
    assert served(repository) == {"m": 9}
    assert answer(repository) == 2
    with pytest.raises(NotFound, match=r"Specific\(m, 1\)"), repository.lease("m", 1):
        pass
    store.put("linear-3", "m", 10)  # a number, not a text: 10 comes after 9
    repository.poll()
    assert served(repository) == {"m": 10}
    assert answer(repository) == 3
    assert [(s.version, s.state) for s in repository.statuses("m")] == [
        (10, "AVAILABLE"),
        (9, "END"),
    ]


def test_the_old_version_stays_until_its_last_request_is_finished(
    store: Any, repository: Repository
) -> None:
    store.put("linear-1", "m", 1)
    repository.poll()
    with repository.lease("m") as old:
        store.put("linear-2", "m", 2)
        repository.poll()
        assert state(repository, 1) == ("UNLOADING", "")
        assert int(old.runner("").run(ONE)["version"][0]) == 1
        assert answer(repository) == 2
    assert state(repository, 1) == ("END", "")
    assert old.signatures == ()


def test_models_come_and_go(store: Any, repository: Repository) -> None:
    repository.poll()
    assert served(repository) == {}
    with (
        pytest.raises(NotFound, match=r"^Servable not found for request: Latest\(m\)$"),
        repository.lease("m"),
    ):
        pass
    with pytest.raises(NotFound, match="Could not find any versions of model m"):
        repository.statuses("m")
    store.put("linear-1", "m")
    store.put("linear-2", "n")
    repository.poll()
    assert served(repository) == {"m": 1, "n": 1}
    shutil.rmtree(store.folder / "m")
    repository.poll()
    assert served(repository) == {"n": 1}
    assert state(repository, 1) == ("END", "")
    store.put("linear-1", "m")
    repository.poll()
    assert served(repository) == {"m": 1, "n": 1}
    assert state(repository, 1) == ("AVAILABLE", "")


def test_a_version_that_vanishes_gives_way_to_an_older_one(
    store: Any, repository: Repository
) -> None:
    store.put("linear-1", "m", 1)
    store.put("linear-2", "m", 2)
    repository.poll()
    shutil.rmtree(store.folder / "m/2")
    repository.poll()
    assert served(repository) == {"m": 1}
    assert answer(repository) == 1


def test_what_is_no_version_is_ignored(store: Any, repository: Repository) -> None:
    store.put("linear-1", "m", 1)
    for name in ("2-draft", "tmp", "0", "-3", "1.5", "٣", "007", ".4", "99999999999999999999"):
        shutil.copytree(store.export("linear-2"), store.folder / "m" / name)
    (store.folder / "m/5").mkdir()  # still being copied
    (store.folder / "m/6").write_text("a file")
    (store.folder / "notes.txt").write_text("a file")
    (store.folder / "empty").mkdir()
    repository.poll()
    assert served(repository) == {"m": 1}


def test_links_are_followed(store: Any, repository: Repository, tmp_path: Path) -> None:
    shutil.copytree(store.export("linear-2"), tmp_path / "elsewhere/4")
    (store.folder / "m").symlink_to(tmp_path / "elsewhere")
    repository.poll()
    assert served(repository) == {"m": 4}


def damage(folder: Path) -> None:
    (folder / "saved_model.pb").write_bytes(b"\xff" * 100)


def cut_weights(folder: Path) -> None:
    next((folder / "variables").glob("*.data-*")).write_bytes(b"")


def remove_weights(folder: Path) -> None:
    shutil.rmtree(folder / "variables")


def no_model(folder: Path) -> None:
    (folder / "saved_model.pb").write_bytes(b"")


@pytest.mark.parametrize(
    ("breaking", "says"),
    [
        (damage, "damaged"),
        (cut_weights, "cannot be loaded"),
        (remove_weights, "cannot be loaded"),
        (no_model, "one graph"),
        (lambda folder: warm_up(folder, columns=4), "warm-up request 0 fails: input 'x'"),
        (lambda folder: warm_up(folder, signature="none"), "warm-up request 0 fails"),
        (lambda folder: warm_up(folder, kind="classify"), "no predict_log"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_broken_version_is_refused_and_the_old_one_stays(
    store: Any, repository: Repository, breaking: Any, says: str, tmp_path: Path
) -> None:
    store.put("linear-1", "m", 1)
    repository.poll()
    copy = tmp_path / "copy"
    shutil.copytree(store.export("linear-2"), copy)
    breaking(copy)
    copy.rename(store.folder / "m/2")
    repository.poll()
    assert served(repository) == {"m": 1}
    assert answer(repository) == 1
    where, error = state(repository, 2)
    assert where == "END"
    assert says in error
    assert "\n" not in error
    assert len(error) < 1000


def test_a_broken_version_is_not_tried_again_until_it_changes(
    store: Any, repository: Repository
) -> None:
    store.put("linear-1", "m", 1)
    folder = store.put("linear-2", "m", 2)
    good = (folder / "saved_model.pb").read_bytes()
    damage(folder)
    repository.poll()
    model = repository._models["m"]
    before = model.states[2]
    repository.poll()
    assert model.states[2] is before  # not looked at again
    (folder / "saved_model.pb").write_bytes(good)
    repository.poll()
    assert served(repository) == {"m": 2}
    assert answer(repository) == 2


def test_the_warm_up_is_replayed(store: Any, repository: Repository, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(store.export("linear-2"), copy)
    warm_up(copy, signature="only_y")
    (store.folder / "m").mkdir()
    copy.rename(store.folder / "m/1")
    repository.poll()
    assert served(repository) == {"m": 1}


@pytest.mark.parametrize(
    ("kind", "operation"),
    [("reads", "ReadFile"), ("saves", "SaveV2"), ("python", "EagerPyFunc|PyFunc")],
)
def test_a_graph_that_touches_files_or_runs_python_is_refused(
    store: Any, repository: Repository, kind: str, operation: str
) -> None:
    store.put(kind, "m")
    repository.poll()
    assert served(repository) == {}
    where, error = state(repository, 1)
    assert where == "END"
    assert any(name in error for name in operation.split("|"))


def test_a_name_does_not_make_a_saver(store: Any) -> None:
    """A function named like the saver's own is not trusted where a signature leads to it, or a
    caller can."""
    graph = saved_model_pb2.SavedModel.FromString(
        (store.export("saves") / "saved_model.pb").read_bytes()
    ).meta_graphs[0]
    functions = graph.graph_def.library.function
    (inner,) = [
        f
        for f in functions
        if any(n.op == "SaveV2" for n in f.node_def) and "traced" not in f.signature.name
    ]
    old, new = inner.signature.name, "__inference__traced_save_999"
    inner.signature.name = new
    for node in [
        *graph.graph_def.node,
        *(node for function in functions for node in function.node_def),
    ]:
        for value in node.attr.values():
            if value.func.name == old:
                value.func.name = new
    with pytest.raises(ServingError, match="SaveV2"):
        graph_ops.check(graph)  # a signature leads to it
    graph.signature_def.clear()
    known = graph.object_graph_def.concrete_functions
    known[new].CopyFrom(known.pop(old))
    with pytest.raises(ServingError, match="SaveV2"):
        graph_ops.check(graph)  # whoever loads it can call it
    del known[new]
    graph_ops.check(graph)


def test_every_denied_operation_is_one_of_tensorflow() -> None:
    known = {name for name in dir(tf.raw_ops) if name[0].isupper()}
    denied = {name for name in known if graph_ops._NEVER.fullmatch(name)}
    must = {
        "ReadFile",
        "WriteFile",
        "PyFunc",
        "PyFuncStateless",
        "EagerPyFunc",
        "MatchingFiles",
        "TFRecordDataset",
        "TFRecordDatasetV2",
        "TextLineDataset",
        "FixedLengthRecordDatasetV2",
        "SqlDataset",
        "CSVDatasetV2",
        "WholeFileReaderV2",
        "SaveDatasetV2",
        "LoadDataset",
        "CacheDatasetV2",
        "SnapshotDatasetV2",
        "LMDBReader",
        "InitializeTableFromTextFileV2",
        "CreateSummaryFileWriter",
        "DebugIdentityV2",
        "DataServiceDatasetV4",
        "ExperimentalLMDBDataset",
        "DatasetToTFRecord",
        "LoadAndRemapMatrix",
        "FileSystemSetConfiguration",
    }
    assert must <= denied
    innocent = {
        "ReadVariableOp",
        "Snapshot",
        "TensorArrayReadV3",
        "Conv3D",
        "DecodeImage",
        "IdentityReaderV2",
    }
    assert not innocent & denied


def test_one_odd_entry_hides_no_other(
    store: Any,
    repository: Repository,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store.put("linear-1", "z")
    (store.folder / "loop").symlink_to("loop")
    (store.folder / "a").mkdir()
    (store.folder / "a/1").symlink_to("1")
    repository.poll()
    assert served(repository) == {"z": 1}
    assert [record.getMessage() for record in caplog.records if "loop" in record.getMessage()]
    is_file = Path.is_file

    def denied(path: Path) -> bool:
        if path.parts[-3] in ("a", "z"):
            raise PermissionError(13, "Permission denied")
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", denied)  # root may read everything
    store.put("linear-2", "m")
    repository.poll()
    assert served(repository) == {
        "m": 1,
        "z": 1,
    }  # what was loaded before it became unreadable stays
    assert state(repository, 1, "a")[0] == "END"


def test_models_that_are_gone_are_forgotten(store: Any, repository: Repository) -> None:
    for number in range(20):
        (store.folder / f"m{number}/1").mkdir(parents=True)
        (store.folder / f"m{number}/1/saved_model.pb").write_bytes(b"")
    repository.poll()
    assert len(repository._models) == 20
    for number in range(20):
        shutil.rmtree(store.folder / f"m{number}")
    repository.poll()
    assert len(repository._models) == 8
    with pytest.raises(NotFound):
        repository.statuses("m0")


def test_errors_tell_no_paths_of_the_server(store: Any, repository: Repository) -> None:
    folder = store.put("linear-1", "m")
    remove_weights(folder)
    repository.poll()
    where, error = state(repository, 1)
    assert where == "END"
    assert "cannot be loaded" in error
    assert "variables" in error
    assert str(store.folder) not in error


@pytest.mark.parametrize(
    ("source", "good"), [(b"", True), (b"local://", True), (b"/etc/passwd", False)]
)
@pytest.mark.parametrize("operation", ["DecodeProtoV2", "EncodeProto"])
def test_descriptions_of_messages_in_files_are_refused(
    operation: str, source: bytes, good: bool
) -> None:
    graph = saved_model_pb2.SavedModel().meta_graphs.add()
    node = graph.graph_def.node.add(name="n", op=operation)
    graph_ops.check(graph)
    node.attr["descriptor_source"].s = source
    if good:
        graph_ops.check(graph)
    else:
        with pytest.raises(ServingError, match=operation):
            graph_ops.check(graph)


def test_an_unreadable_folder_keeps_what_is_loaded(store: Any, repository: Repository) -> None:
    store.put("linear-1", "m")
    repository.poll()
    store.folder.rename(store.folder.with_name("away"))
    repository.poll()
    assert served(repository) == {"m": 1}
