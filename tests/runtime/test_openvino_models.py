"""Models in OpenVINO: the answers of Keras, converted once, and never from what is damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("openvino", reason="needs the extra [openvino]")

from tests.small_scans import assert_near, made_scan
from tf_covid.cli import main
from tf_covid.errors import ModelError, OutputError, ScanRefused, ServingError
from tf_covid.local import LocalModels
from tf_covid.phantom.files import write_nifti_volume
from tf_covid.pipeline import stratify
from tf_covid.runtime import cache, convert
from tf_covid.runtime.behind import Behind
from tf_covid.runtime.convert import BLOB, CARD
from tf_covid.runtime.models import OpenVinoModels


@pytest.fixture(scope="module")
def behind(small_files: Any) -> Behind:
    return Behind(small_files.lungs, small_files.lobes)


@pytest.fixture(scope="module")
def here(small_files: Any) -> LocalModels:
    return LocalModels([small_files.network], lungs=small_files.lungs, lobes=small_files.lobes)


@pytest.mark.parametrize("attention", ["gradcam", "none"])
def test_a_result_is_that_of_keras(here, behind, small_files, in_folder, attention):
    there = OpenVinoModels([small_files.network], behind)
    assert (there.task, there.finds_disease, there.finds_lobes) == ("severity", True, True)
    assert there.endpoint == here.endpoint
    assert there.weights_sha256 == here.weights_sha256
    assert there.files_sha256 == here.files_sha256
    for seed, slices in ((0, None), (1, 20), (2, 31)):
        results = [
            stratify(made_scan(seed, slices), models, attention=attention)
            for models in (here, there)
        ]
        one, two = (result.as_dict() for result in results)
        for values in (one, two):
            del values["timings_s"], values["answered_at"]
        assert two["versions"].pop("openvino")
        assert_near(one, two)
        np.testing.assert_allclose(
            one["severity"]["probabilities"], two["severity"]["probabilities"], atol=1e-4
        )
        left, right = (result.maps for result in results)
        assert np.count_nonzero(left.lungs != right.lungs) <= 3
        if attention == "gradcam":
            np.testing.assert_allclose(
                left.attention.astype(int), right.attention.astype(int), atol=1
            )
            assert left.attention.any()


def test_an_answer_stays_when_the_next_scan_is_asked_about(behind, small_files, in_folder):
    there = OpenVinoModels([small_files.network], behind)
    one, two = made_scan(0).hu, made_scan(5).hu
    first = there.segment(one)
    kept = first.probability.copy()
    other = there.classify(two, there.segment(two).probability)[0].probabilities
    np.testing.assert_array_equal(first.probability, kept)
    again = there.classify(one, there.segment(one).probability)[0].probabilities
    assert not np.allclose(other, again, atol=1e-6)


def test_a_scan_without_lungs_is_refused_by_the_gate(behind, small_files, in_folder):
    there = OpenVinoModels([small_files.network], behind)
    scan = made_scan()
    scan.hu[:] = 40
    result = stratify(scan, there)
    assert result.status == "refused"
    assert [flag.code for flag in result.quality_flags if flag.level == "error"] == ["no_lung"]


@pytest.mark.slow
def test_several_models_answer_with_their_mean(behind, small_files, in_folder):
    sources = [small_files.network, small_files.other]
    here = LocalModels(sources, lungs=behind.lungs, lobes=behind.lobes)
    there = OpenVinoModels(sources, behind)
    left, right = (stratify(made_scan(), models) for models in (here, there))
    np.testing.assert_allclose(left.severity.probabilities, right.severity.probabilities, atol=1e-4)
    assert [model.sha256 for model in left.models] == [model.sha256 for model in right.models]
    assert [model.name for model in left.models] == [model.name for model in right.models]


@pytest.mark.slow
def test_a_network_that_pools_disease_is_converted(behind, small_files, in_folder, tmp_path):
    import keras

    from tf_covid.models import NETWORKS
    from tf_covid.weights.files import read_contract, save_model

    contract = read_contract(small_files.network)
    arguments = contract.arguments | {"disease_pooling": "conv3"}
    keras.utils.set_random_seed(5)
    network = NETWORKS["ltc"].build(**arguments)
    # It begins nearly silent.
    network.get_layer("disease_logits").kernel.assign(keras.random.normal((64, 5), stddev=0.1))
    path = tmp_path / "pools.keras"
    save_model(network, contract.model_copy(update={"arguments": arguments}), path)
    here = LocalModels([path], lungs=behind.lungs, lobes=behind.lobes)
    left, right = (
        stratify(made_scan(), models) for models in (here, OpenVinoModels([path], behind))
    )
    np.testing.assert_allclose(left.severity.probabilities, right.severity.probabilities, atol=1e-4)
    np.testing.assert_allclose(
        left.maps.attention.astype(int), right.maps.attention.astype(int), atol=1
    )
    assert left.maps.attention.any()


@pytest.mark.parametrize(
    ("name", "how"), [(BLOB, "flipped"), (BLOB, "cut"), (CARD, "gone"), (cache.SUMS, "empty")]
)
def test_what_is_damaged_is_converted_again(name, how, behind, small_files, in_folder):
    place = convert.converted(small_files.network, behind)
    path = place / name
    data = path.read_bytes()
    if how == "flipped":
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    elif how == "gone":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 3] if how == "cut" else b"")
    said: list[str] = []
    assert convert.converted(small_files.network, behind, said.append) == place
    assert [line.endswith("what was there is damaged") for line in said] == [True]
    assert cache.intact(place) >= {BLOB, CARD}
    said.clear()
    convert.converted(small_files.network, behind, said.append)
    assert said == []


def test_the_same_weights_and_options_are_converted_once(behind, small_files, in_folder, tmp_path):
    said: list[str] = []
    place = convert.converted(small_files.network, behind, said.append)
    copy = tmp_path / small_files.network.name
    copy.write_bytes(small_files.network.read_bytes())
    assert key_of(copy, behind) == place.name
    different = [
        key_of(small_files.other, behind),
        key_of(small_files.network, Behind(behind.lungs, "none")),
        key_of(small_files.network, Behind(None, behind.lobes)),
        key_of(small_files.network, Behind(behind.lungs, behind.lobes, True)),
        key_of(small_files.network, Behind(behind.lungs)),
    ]
    assert len({place.name, *different}) == 6


@pytest.mark.slow
def test_two_at_once_both_answer(behind, small_files, tmp_path, monkeypatch):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "new"))
    answers: list[Any] = []

    def work() -> None:
        models = OpenVinoModels([small_files.network], behind)
        answers.append(stratify(made_scan(), models).severity.probabilities)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 2
    np.testing.assert_array_equal(*answers)
    assert [path.name for path in (tmp_path / "new" / "openvino").iterdir()] == [
        key_of(small_files.network, behind)
    ]


def key_of(source: Path, behind: Behind) -> str:
    return convert._key(source, behind, behind.files_sha256([source]))


def test_a_file_that_changes_while_it_is_converted_is_not_kept(
    behind, here, small_files, tmp_path, monkeypatch
):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    monkeypatch.setattr("tf_covid.local.LocalModels", lambda *args, **named: here)
    with pytest.raises(ModelError, match="changed while it was read"):
        convert.converted(small_files.other, behind)
    assert list((tmp_path / "openvino").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_named(behind, small_files, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder", "utf-8")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file"))
    with pytest.raises(OutputError, match="file"):
        OpenVinoModels([small_files.network], behind)


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.delenv(cache.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "tf_covid"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_folder() == Path.home() / ".cache" / "tf_covid"
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "own"))
    assert cache.cache_folder() == tmp_path / "own"


def test_without_the_extra_it_is_named(behind, small_files, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ServingError, match=r"openvino is not installed.*\[openvino\]"):
        OpenVinoModels([small_files.network], behind)


def test_a_model_that_is_none_is_named(behind, in_folder, tmp_path):
    with pytest.raises(ModelError, match="neither a file nor a shipped model"):
        OpenVinoModels(["nobody"], behind)
    (tmp_path / "torn.keras").write_bytes(b"PK\x03\x04 and nothing more")
    with pytest.raises(ModelError, match="torn"):
        OpenVinoModels([tmp_path / "torn.keras"], behind)
    assert not any("torn" in path.name for path in (in_folder / "openvino").rglob("*"))


def test_a_conversion_that_answers_otherwise_is_not_kept(
    behind, small_files, tmp_path, monkeypatch
):
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path))
    answered = convert.Compiled.__call__

    def other(self: convert.Compiled, hu: np.ndarray) -> dict[str, np.ndarray]:
        answer = answered(self, hu)
        return answer | {"attention_cells": answer["attention_cells"] * 1.001}

    monkeypatch.setattr(convert.Compiled, "__call__", other)
    with pytest.raises(
        ServingError, match=r"attention_cells differs from TensorFlow's by 1\.0e-03"
    ):
        OpenVinoModels([small_files.network], behind)
    assert list((tmp_path / "openvino").iterdir()) == []


def test_a_failure_for_want_of_memory_refuses_the_scan_and_another_ends_the_run(
    behind, small_files, in_folder
):
    there = OpenVinoModels([small_files.network], behind)

    def failing(text: str) -> Any:
        def run(inputs: Any) -> Any:
            raise RuntimeError(text)

        return run

    there._compiled = [failing("Exception from src: Can not allocate 9 bytes")]
    with pytest.raises(ScanRefused, match="not enough memory"):
        there.segment(made_scan().hu)
    there._compiled = [failing("Check 'shape' failed")]
    with pytest.raises(ServingError, match="OpenVINO failed"):
        there.segment(made_scan().hu)


@pytest.mark.parametrize(
    "words",
    [
        ["--attention", "layercam"],
        ["--attention-target", "class"],
        ["--server", "http://127.0.0.1:1"],
        ["--lungs", "MASK"],
        ["--precision", "bfloat16"],
    ],
)
def test_options_that_it_cannot_answer_with_are_named(words, tmp_path):
    path = write_nifti_volume(made_scan().hu, made_scan().affine, tmp_path / "scan.nii.gz")
    words = [str(path) if word == "MASK" else word for word in words]
    options = ["infer", str(path), "--out", str(tmp_path / "out"), "--runtime", "openvino", *words]
    done = CliRunner().invoke(main, options)
    assert done.exit_code in (1, 2)
    assert "runtime" in done.output
    assert not list(tmp_path.glob("out/*/result.json"))


def test_the_second_run_imports_no_tensorflow(behind, small_files, in_folder, tmp_path):
    """And its answer is another request than the same of Keras: neither takes the other's place."""
    scan = write_nifti_volume(made_scan().hu, made_scan().affine, tmp_path / "scan.nii.gz")
    convert.converted(small_files.network, behind)
    words = [
        "infer",
        str(scan),
        "--out",
        str(tmp_path / "out"),
        "--model",
        str(small_files.network),
    ]
    words += ["--lungs-model", str(behind.lungs), "--lobes-model", str(behind.lobes)]
    program = (
        "import sys\n"
        "sys.modules['tensorflow'] = sys.modules['keras'] = None\n"
        "from tf_covid.cli import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", program, *words, "--runtime", "openvino"]
    environment = {**os.environ, cache.VARIABLE: str(in_folder)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    values = json.loads((tmp_path / "out" / "scan" / "result.json").read_text("utf-8"))
    assert values["severity"]["class"] in range(5)
    assert values["versions"]["openvino"]
    again = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert "(kept)" in again.stdout
    other = CliRunner().invoke(main, words)
    assert other.exit_code == 1
    assert "name_taken" in other.output
