"""A network whose head was drawn at random: it is there to be trained, and answers nowhere."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

import tf_covid
from tf_covid.cli import main
from tf_covid.errors import ModelError, ServingError
from tf_covid.experiment.evaluate import evaluate
from tf_covid.export.savedmodel import export
from tf_covid.local import LocalModels
from tf_covid.models import LTC
from tf_covid.phantom import draw_chest
from tf_covid.phantom.files import write_nifti_volume
from tf_covid.weights import Contract, contract_of, load_model, read_contract, save_model
from tf_covid.weights.contract import TrainedOn, check_trained
from tf_covid.weights.import_plan import ImportRequest
from tf_covid.weights.importing import import_weights

SHAPE = (16, 32, 32, 1)
NEW_HEAD = ImportRequest("ltc", classes=5, allow_missing_head=True, clip=SHAPE[:3])


def arguments(classes: int) -> dict[str, Any]:
    return {"input_shape": list(SHAPE), "classes": classes, "dense": 8}


def saved(path: Path, classes: int, **facts: Any) -> Path:
    contract = Contract(
        model="ltc", arguments=arguments(classes), note="Small.", **({"task": "severity"} | facts)
    )
    save_model(LTC(**arguments(classes)), contract, path)
    return path


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An import of a network of two classes, with a new head for five."""
    folder = tmp_path_factory.mktemp("untrained")
    import_weights(saved(folder / "two.keras", 2, task="covid"), NEW_HEAD, folder / "new.keras")
    return folder / "new.keras"


def test_an_import_with_a_new_head_says_so(untrained: Path) -> None:
    contract = read_contract(untrained)
    assert contract.untrained_head
    assert contract.task == "severity"
    assert load_model(untrained).input_shape == (
        None,
        *SHAPE,
    ), "in Python it is there to be trained"


def test_it_stays_so_when_it_is_imported_again(untrained: Path, tmp_path: Path) -> None:
    for wish in (ImportRequest("ltc"), NEW_HEAD, ImportRequest("ltc", clip=SHAPE[:3])):
        import_weights(untrained, wish, tmp_path / "again.keras")
        assert read_contract(tmp_path / "again.keras").untrained_head


def test_an_import_that_keeps_its_head_is_trained(tmp_path: Path) -> None:
    part = TrainedOn(salt="0" * 32, scans=("1" * 16,))
    path = saved(tmp_path / "five.keras", 5, trained_on=(part,))
    import_weights(path, NEW_HEAD, tmp_path / "same.keras")
    contract = read_contract(tmp_path / "same.keras")
    assert not contract.untrained_head
    assert contract.trained_on == (part,)
    import_weights(
        path, ImportRequest("ltc", classes=2, allow_missing_head=True), tmp_path / "other.keras"
    )
    contract = read_contract(tmp_path / "other.keras")
    assert contract.untrained_head, "its trunk has seen them"
    assert contract.trained_on == (part,), "its trunk has seen them"


def _ensemble(path: Path, folder: Path) -> None:
    LocalModels(["severity-ltc", path])


def _stratifier(path: Path, folder: Path) -> None:
    tf_covid.stratifier(path)


def _stratify(path: Path, folder: Path) -> None:
    scan = folder / "ct.nii"
    chest = draw_chest(1, (60, 64, 64), severity=0)
    write_nifti_volume(chest.hu, chest.affine, scan)
    tf_covid.stratify(tf_covid.read(scan), model=path)


def _export(path: Path, folder: Path) -> None:
    export(path, folder / "served")


def _evaluate(path: Path, folder: Path) -> None:
    evaluate([path], folder / "manifest.csv", folder / "out", on_message=pytest.fail)


@pytest.mark.parametrize("ask", [_ensemble, _stratifier, _stratify, _export, _evaluate])
def test_whoever_asks_it_is_told_how_to_train_it(
    untrained: Path, tmp_path: Path, ask: Callable[[Path, Path], None]
) -> None:
    with pytest.raises(
        ModelError, match=r"^untrained_head: .*tfcovid fit .*--task severity --model ltc --init"
    ):
        ask(untrained, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name != "ct.nii"], "nothing was written"


def test_a_network_in_memory_may_have_been_trained_since(untrained: Path) -> None:
    network = load_model(untrained)
    assert tf_covid.stratifier(network, lungs="lungs-unet").network is network


def test_the_command_line_refuses_it(untrained: Path, tmp_path: Path) -> None:
    chest = draw_chest(1, (60, 64, 64), severity=0)
    write_nifti_volume(chest.hu, chest.affine, tmp_path / "scan.nii")
    command = [
        "infer",
        str(tmp_path / "scan.nii"),
        "--model",
        str(untrained),
        "--out",
        str(tmp_path / "out"),
    ]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1
    assert "untrained_head: " in done.stderr
    assert "tfcovid fit" in done.stderr
    assert not list((tmp_path / "out").rglob("result.json"))


def test_a_file_of_before_the_field_is_known_by_its_note() -> None:
    old = Contract(
        model="i3d",
        arguments={},
        task="severity",
        note="Untrained: logits; its answers mean nothing before training.",
    )
    with pytest.raises(ModelError, match="untrained_head: x"):
        check_trained("x", old)
    check_trained("x", old.model_copy(update={"note": "Trained on 40 patients."}))


def test_files_of_before_read_as_trained_and_are_written_as_before(tmp_path: Path) -> None:
    path = saved(tmp_path / "old.keras", 5)
    with zipfile.ZipFile(path) as archive:
        facts = json.loads(archive.read("tf_covid.json"))
    assert not {"untrained_head", "trained_on"} & facts.keys(), (
        "older versions refuse fields that they do not know"
    )
    contract = read_contract(path)
    assert not contract.untrained_head
    assert contract.trained_on is None
    assert contract_of(load_model(path)) == contract
    for name in ("severity-i3d", "severity-ltc", "lungs-unet"):
        check_trained(name, read_contract(tf_covid.weights.catalog.find(name)))


def test_any_keras_reads_the_file(untrained: Path) -> None:
    clip = np.zeros((1, *SHAPE), np.float32)
    theirs = keras.saving.load_model(untrained, compile=False, safe_mode=True)
    np.testing.assert_array_equal(theirs(clip)["logits"], load_model(untrained)(clip)["logits"])


def test_a_server_does_not_load_an_export_of_before(untrained: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow_serving.apis", reason="needs the extra [serve]")
    from tf_covid.server import servable

    class Answering(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def serving_default(self, x: Any) -> dict[str, Any]:
            return {"y": x}

    module = Answering()
    tf.saved_model.save(
        module, str(tmp_path), signatures={"serving_default": module.serving_default}
    )
    assert servable.load("x", 1, tmp_path).name == "x"
    (tmp_path / "assets.extra").mkdir()
    card = {
        "name": "kinetics",
        **read_contract(untrained).model_dump(mode="json"),
        "endpoint": "conv3",
    }
    (tmp_path / "assets.extra" / "model_card.json").write_text(json.dumps(card))
    with pytest.raises(ServingError, match="untrained_head: kinetics"):
        servable.load("x", 1, tmp_path)
    (tmp_path / "assets.extra" / "model_card.json").write_text("[]")
    assert servable.load("x", 1, tmp_path).name == "x", "whose export it is does not matter"
