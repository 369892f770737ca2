"""The stratifier in one SavedModel."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from tf_covid import severity
from tf_covid.errors import ModelError, OutputError
from tf_covid.export import warmup
from tf_covid.export.savedmodel import export
from tf_covid.exported import TOLERANCE
from tf_covid.verify.reference import largest_difference, reference


def call(loaded, signature, **inputs):
    outputs = loaded.signatures[signature](
        **{name: tf.constant(values) for name, values in inputs.items()}
    )
    return {name: values.numpy() for name, values in outputs.items()}


def scan(depth, seed=0):
    """int16 (depth, 128, 128): noisy lungs with something in them."""
    hu, rng = warmup.chest()[:depth].copy(), np.random.default_rng(seed)
    hu[:, 50:70, 30:40] = -300
    return (hu + rng.integers(-100, 100, hu.shape)).astype(np.int16)


@pytest.fixture(scope="module")
def loaded(small_export):
    return tf.saved_model.load(str(small_export.stratifier))


def test_every_signature_has_names_types_and_free_sizes(loaded):
    inputs = {
        name: {
            key: (spec.dtype, spec.shape.as_list())
            for key, spec in one.structured_input_signature[1].items()
        }
        for name, one in loaded.signatures.items()
    }
    free = [None] * 4
    hu = {"hu": (tf.int16, free), "depth": (tf.int32, [None])}
    texts = {"hu_bytes": (tf.string, [None]), "shape": (tf.int32, [None, 3])}
    clip = {"clip": (tf.float32, [None, 16, 32, 32, 1])}
    assert inputs == {
        "serving_default": hu,
        "explain": hu,
        "segment": hu,
        "serving_bytes": texts,
        "infer_bytes": texts,
        "classify_clip": clip,
    }
    answers = {"probabilities", "logits", "ct_score", "slices_kept"}
    outputs = {name: set(one.structured_outputs) for name, one in loaded.signatures.items()}
    assert outputs["serving_default"] == outputs["serving_bytes"] == answers
    looked = {"attention_cells", "attention_axes", "keep", "box"}
    assert outputs["explain"] == answers | looked | {"attention"}
    masks = {"lungs", "disease", "lobes", "effusion", "orientation"}
    assert outputs["segment"] == {"mask"} | masks
    octets = {f"{name}_bytes" for name in masks}
    assert outputs["infer_bytes"] == answers | looked | octets | {"card_bytes"}
    assert outputs["classify_clip"] == answers - {"slices_kept"}


def test_it_answers_as_keras_and_explains_as_tf_keras_vis(loaded, small_models):
    """The Grad-CAM of the graph is a second implementation; all else is the same layers."""
    question = reference(small_models, "made", scan(24))
    assert question.right["explain"]["attention"].max() > 0, "nothing to compare"
    for signature, inputs in question.inputs.items():
        difference, where = largest_difference(
            question.right[signature], call(loaded, signature, **inputs)
        )
        assert difference <= TOLERANCE, (signature, where)


def test_scans_of_unequal_depth_in_one_batch_answer_as_if_alone(loaded):
    scans = [scan(24), scan(11, seed=1), scan(17, seed=2)]
    batch = np.zeros((3, 24, 128, 128), np.int16)
    for place, one in zip(batch, scans, strict=True):
        place[: len(one)] = one
    depth = np.array([24, 11, 17], np.int32)
    together = call(loaded, "explain", hu=batch, depth=depth)
    texts = np.array([one.tobytes() for one in scans], object)
    as_bytes = call(
        loaded,
        "serving_bytes",
        hu_bytes=texts,
        shape=np.array([one.shape for one in scans], np.int32),
    )
    for number, one in enumerate(scans):
        alone = call(loaded, "explain", hu=one[np.newaxis], depth=depth[number : number + 1])
        for name, values in alone.items():
            mine = together[name][number]
            np.testing.assert_allclose(
                mine[: len(one)] if name == "keep" else mine, values[0], atol=1e-5, err_msg=name
            )
        np.testing.assert_allclose(as_bytes["logits"][number], alone["logits"][0], atol=1e-5)
    assert len({tuple(np.round(row, 4)) for row in together["logits"]}) == 3, (
        "the scans answer alike: nothing is shown"
    )


def test_no_kept_slice_is_said_and_answers_nothing(loaded):
    water = np.full((1, 4, 64, 64), 40, np.int16)
    found = call(loaded, "explain", hu=water, depth=np.array([4], np.int32))
    assert found["slices_kept"].tolist() == [0]
    assert not found["keep"].any()
    for name in ("probabilities", "logits", "ct_score", "attention", "attention_cells"):
        assert np.isnan(found[name]).all(), name


@pytest.mark.parametrize(
    ("signature", "inputs", "message"),
    [
        (
            "serving_default",
            {"hu": np.zeros((1, 3, 64, 64), np.int16), "depth": np.array([4], np.int32)},
            "depth",
        ),
        (
            "serving_default",
            {"hu": np.zeros((2, 3, 64, 64), np.int16), "depth": np.array([3], np.int32)},
            "depth",
        ),
        (
            "serving_default",
            {"hu": np.zeros((1, 3, 64, 64), np.int16), "depth": np.array([0], np.int32)},
            "depth",
        ),
        (
            "explain",
            {"hu": np.zeros((1, 3, 64, 64), np.int16), "depth": np.array([-1], np.int32)},
            "depth",
        ),
        (
            "segment",
            {"hu": np.zeros((2, 3, 64, 64), np.int16), "depth": np.array([3, -1], np.int32)},
            "depth",
        ),
        (
            "segment",
            {"hu": np.zeros((1, 3, 64, 64), np.int16), "depth": np.array([-(2**31)], np.int32)},
            "depth",
        ),
        (
            "serving_default",
            {"hu": np.zeros((0, 3, 64, 64), np.int16), "depth": np.zeros(0, np.int32)},
            "above 0",
        ),
        (
            "serving_default",
            {"hu": np.zeros((1, 3, 0, 64), np.int16), "depth": np.array([3], np.int32)},
            "above 0",
        ),
        (
            "serving_bytes",
            {"hu_bytes": [b"\0" * 10], "shape": np.array([[1, 2, 3]], np.int32)},
            "reshape|10|size",
        ),
        (
            "serving_bytes",
            {"hu_bytes": [b"\0" * 11], "shape": np.array([[1, 2, 3]], np.int32)},
            "multiple|11",
        ),
        (
            "serving_bytes",
            {"hu_bytes": [b"\0" * 12], "shape": np.array([[1, -2, -3]], np.int32)},
            "above 0",
        ),
        (
            "serving_bytes",
            {"hu_bytes": [b"\0" * 12] * 2, "shape": np.array([[1, 2, 3]], np.int32)},
            "one row a scan",
        ),
        (
            "serving_bytes",
            {"hu_bytes": [b"\0" * 12] * 2, "shape": np.array([[1, 2, 3], [1, 3, 2]], np.int32)},
            "same",
        ),
        (
            "serving_bytes",
            {"hu_bytes": [b""], "shape": np.array([[2**30, 2**30, 16]], np.int32)},
            "at most 4096",
        ),
        (
            "serving_bytes",
            {
                "hu_bytes": [b"\0\0"] * 99 + [b"\0" * 200],
                "shape": np.array([[1, 1, 1]] * 99 + [[100, 1, 1]], np.int32),
            },
            "at most 4096",
        ),
        (
            "explain",
            {"hu": np.zeros((1, 5000, 2, 2), np.int16), "depth": np.array([5000], np.int32)},
            "at most 4096",
        ),
        (
            "segment",
            {"hu": np.zeros((1, 1, 2, 5000), np.int16), "depth": np.array([1], np.int32)},
            "at most 4096",
        ),
        ("classify_clip", {"clip": np.zeros((65, 16, 32, 32, 1), np.float32)}, "at most 64 clips"),
        ("classify_clip", {"clip": np.full((1, 16, 32, 32, 1), np.nan, np.float32)}, "finite"),
        ("classify_clip", {"clip": np.full((2, 16, 32, 32, 1), -np.inf, np.float32)}, "finite"),
    ],
)
def test_wrong_inputs_are_errors_never_answers(loaded, signature, inputs, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        call(loaded, signature, **inputs)


#: What leaves the graph: Python, files, other machines.
LEAVES = (
    "py_func",
    "pyfunc",
    "readfile",
    "writefile",
    "matchingfiles",
    "reader",
    "dataset",
    "lookuptable",
    "print",
    "debug",
    "custom",
    "xla",
    "mkl",
)


def test_only_ops_of_a_stock_server(small_export):
    """Every op of graph and functions is registered by plain TensorFlow, and none leaves the
    graph."""
    from tensorflow.python.framework import op_def_registry

    for folder in (small_export.stratifier, small_export.clip):
        saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
        (graph,) = [meta.graph_def for meta in saved.meta_graphs]
        functions = {function.signature.name for function in graph.library.function}
        nodes = [
            *graph.node,
            *(node for function in graph.library.function for node in function.node_def),
        ]
        ops = {node.op for node in nodes} - functions
        assert {"Conv3D", "MatMul"} <= ops
        assert not [op for op in ops if op_def_registry.get(op) is None]
        assert not [op for op in ops if any(word in op.lower() for word in LEAVES)]
        # The saver's own functions name the CPU, in every SavedModel.
        bodies = [
            one.node_def for one in graph.library.function if "_traced_" not in one.signature.name
        ]
        assert not [node.op for body in bodies for node in body if node.device], (
            "bound to a device of this machine"
        )


def test_its_warm_up_holds_a_request_for_every_signature(small_export, loaded):
    records = dict(warmup.read(small_export.stratifier / "assets.extra"))
    assert set(records) == set(loaded.signatures)
    for signature, inputs in records.items():
        answers = call(loaded, signature, **inputs)
        if "slices_kept" in answers:
            assert answers["slices_kept"][0] > 0, "the network is not reached"
    (one,) = warmup.read(small_export.clip / "assets.extra")
    clip = tf.saved_model.load(str(small_export.clip))
    assert one[0] == "serving_default"
    assert set(call(clip, *one[:1], **one[1])) == {
        "probabilities",
        "logits",
        "ct_score",
    }


def test_card_contract_and_labels_lie_beside_it(small_export, small_models):
    papers = small_export.stratifier / "assets.extra"
    card = json.loads((papers / "model_card.json").read_text())
    assert card["sha256"] == small_models.members[0].model.sha256
    assert card["lungs"]["sha256"] == small_models.lungs.sha256
    assert card["lobes"]["sha256"] == small_models.lung_models.lobes.sha256
    assert card["other_lungs"] is False
    assert card["note"] == "Random."
    assert (papers / "labels.txt").read_text().splitlines() == list(severity.LABELS)
    contract = json.loads((papers / "input_contract.json").read_text())
    assert contract["preprocessing"]["width_hu"] == 1400
    assert "head to feet" in contract["inputs"]["hu"]


def test_a_version_is_never_written_over_and_the_next_one_is_counted(
    small_lungs, small_files, small_export
):
    before = (small_export.stratifier / "saved_model.pb").read_bytes()
    with pytest.raises(OutputError, match="this version is there already"):
        export(
            small_files.network, small_export.stratifier.parent, int(small_export.stratifier.name)
        )
    assert (small_export.stratifier / "saved_model.pb").read_bytes() == before
    done = export(small_files.network, small_export.stratifier.parent)
    assert done.stratifier.name == done.clip.name == str(int(small_export.stratifier.name) + 1)


def test_what_cannot_be_exported_is_named(tmp_path):
    with pytest.raises(ModelError, match="severity or covid"):
        export("lungs-unet", tmp_path / "lungs")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        export("severity-ltc", tmp_path / "file" / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["..", ".hidden", "with space", "a:b", "ü"])
def test_a_name_that_no_server_takes_is_refused(tmp_path, name):
    with pytest.raises(OutputError, match="a server has no model of this name"):
        export("severity-ltc", tmp_path / name)


@pytest.mark.slow
def test_what_a_killed_export_left_is_removed(small_lungs, small_files, tmp_path):
    from tf_covid import atomic

    (tmp_path / "m").mkdir()
    with atomic.temporary_directory(tmp_path / "m" / "1") as folder:
        name = folder.name
    number = name.split(".")[-3]
    dead = tmp_path / "m" / name.replace(f".{number}.", ".4194999.")
    dead.mkdir()
    done = export(small_files.network, tmp_path / "m")
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == [done.stratifier.name]


def test_a_full_disk_leaves_nothing(tmp_path):
    """A real limit on the size of a file, which the weights do not fit into."""

    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (15_000_000, 15_000_000))

    out = tmp_path / "models" / "x"
    command = [sys.executable, "-m", "tf_covid.cli", "export", "severity-ltc", "--out", str(out)]
    done = subprocess.run(
        command, capture_output=True, text=True, preexec_fn=small_files_only, check=False
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [
        path
        for path in (tmp_path / "models").rglob("*")
        if path.is_file() or path.name.startswith(".")
    ]
