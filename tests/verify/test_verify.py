"""That `verify` finds agreement where there is some, and only there."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tf_covid.errors import ServingError
from tf_covid.verify import verify as room
from tf_covid.verify.reference import largest_difference
from tf_covid.verify.verify import verify, version_folder

SIGNATURES = {
    "serving_default",
    "explain",
    "segment",
    "serving_bytes",
    "infer_bytes",
    "classify_clip",
}


@pytest.mark.slow
def test_an_export_agrees_in_every_way(small_files, small_lungs, small_export):
    pytest.importorskip("openvino", reason="needs the extra [openvino]")
    checks = list(verify(small_files.network, small_export.stratifier))
    assert all(check.holds and check.difference is not None for check in checks), [
        one.line() for one in checks
    ]
    ways = {
        way: {one.signature for one in checks if one.route == way}
        for way in {one.route for one in checks}
    }
    assert ways == {
        "NIfTI against DICOM": {"Keras"},
        "SavedModel": SIGNATURES,
        "clip entry": {"serving_default"},
        "OpenVINO": {"serving_default", "explain", "segment", "classify_clip"},
        "REST": {"serving_bytes", "infer_bytes", "classify_clip"},
        "gRPC": SIGNATURES,
    }
    assert len({one.scan for one in checks}) == 2


@pytest.mark.slow
def test_another_models_export_does_not_agree(small_files, small_lungs, small_export):
    checks = []
    for check in verify(small_files.other, small_export.stratifier):
        checks.append(check)
        if check.route == "OpenVINO":
            break
    wrong = {one.signature for one in checks if not one.holds}
    assert {"serving_default", "explain", "classify_clip", "infer_bytes"} <= wrong
    assert "segment" not in wrong, "both have the same lung model"
    assert [one for one in checks if one.route == "clip entry" and not one.holds]
    assert all("DIFFERS" in one.line() for one in checks if not one.holds)


def test_no_export_is_named(tmp_path, small_export):
    with pytest.raises(ServingError, match="no export is there"):
        version_folder(tmp_path)
    assert version_folder(small_export.stratifier.parent).parent == small_export.stratifier.parent


def test_an_export_that_cannot_be_loaded_is_named(small_files, small_lungs, tmp_path):
    (tmp_path / "x" / "1").mkdir(parents=True)
    (tmp_path / "x" / "1" / "saved_model.pb").write_bytes(b"nothing")
    with pytest.raises(ServingError, match="cannot be read"):
        list(verify(small_files.network, tmp_path / "x"))


def test_an_export_that_runs_python_or_reads_files_is_not_loaded(
    small_files, small_lungs, store, tmp_path
):
    for kind in ("python", "reads"):
        folder = store.put(kind, kind)
        with pytest.raises(ServingError, match="operations that are not served"):
            list(verify(small_files.network, folder))


def test_the_name_of_a_link_is_the_models_name(small_export, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "7").symlink_to(small_export.stratifier)
    assert version_folder(tmp_path / "other") == tmp_path / "other" / "7"


@pytest.mark.parametrize("name", ["mask", "attention_axes"])
def test_nothing_that_is_answered_goes_unseen(small_models, name):
    from tf_covid.export import warmup
    from tf_covid.verify.reference import reference

    question = reference(small_models, "made", warmup.chest())
    (signature,) = [one for one, values in question.right.items() if name in values][:1]
    answer = {
        key: np.array(values)[np.newaxis] for key, values in question.right[signature].items()
    }
    assert largest_difference(question.right[signature], answer)[0] == 0
    answer[name] = answer[name] + 1.0
    assert largest_difference(question.right[signature], answer)[0] > 0.5


@pytest.mark.slow
def test_a_server_that_is_not_there_is_named(small_files, small_lungs, small_export, monkeypatch):
    monkeypatch.setattr(room, "_with_openvino", lambda *arguments: iter(()))
    with pytest.raises(ServingError, match="does not answer"):
        list(verify(small_files.network, small_export.stratifier, servers=["http://127.0.0.1:9"]))


@pytest.mark.parametrize(
    ("answer", "where"),
    [
        ({}, "logits"),
        ({"logits": [[1.0, 2.0]]}, "logits"),
        ({"logits": [[1.0, 2.0, float("nan")]]}, "logits"),
        ({"logits": [["a", "b", "c"]]}, "logits"),
    ],
)
def test_what_cannot_be_compared_differs(answer, where):
    assert largest_difference({"logits": np.array([1.0, 2.0, 3.0])}, answer) == (
        float("inf"),
        where,
    )


def test_differences_are_shares_of_what_a_value_can_be():
    right = {
        "logits": np.array([-20.0, 10.0]),
        "ct_score": np.float32(5.0),
        "probabilities": np.array([0.25, 0.75]),
    }
    answer = {"logits": [[-20.0, 10.0]], "ct_score": [5.5], "probabilities": [[0.25, 0.75]]}
    assert largest_difference(right, answer) == (pytest.approx(0.5 / 25), "ct_score")
    answer = {"logits": [[-20.0, 12.0]], "ct_score": [5.0], "probabilities": [[0.25, 0.75]]}
    assert largest_difference(right, answer) == (pytest.approx(0.1), "logits")


def test_a_check_that_was_not_made_is_no_proof_and_no_failure():
    check = room.Check("OpenVINO", "", "explain", None, "not installed")
    assert check.holds
    assert "not checked" in check.line()
    assert not dataclasses.replace(check, difference=float("inf")).holds
