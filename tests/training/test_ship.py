"""What the weights that ship are trained and shipped with."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

from tf_covid.cohort.augment import Augmentation
from tf_covid.cohort.manifest import ManifestRow
from tf_covid.cohort.training_input import SliceTrainingInput
from tf_covid.models import I3D, LTC, UNet
from tf_covid.training import losses
from tf_covid.training.dense import add_deep_supervision
from tf_covid.training.fold import FoldPlan, _freeze, _weights_of_start
from tf_covid.training.network_spec import NetworkSpec
from tf_covid.training.settings import Settings, Stage, read_settings
from tf_covid.training.tasks import objective_for
from tf_covid.weights import Contract, Preprocessing, load, read_contract, save_model
from tools.ship import as_toml, main

CONFIGS = Path(__file__).parents[2] / "configs"
ROW = ManifestRow(
    case="a", patient="a", path=Path("x"), lungs=Path("x"), lesions=Path("x"), severity=1
)


def plan(settings: Settings, init: Path | None = None) -> FoldPlan:
    network = NetworkSpec.of("lungs", "unet", [ROW], settings, init)
    objective = objective_for("lungs", network, [ROW], {"a": 0}, settings, (4, 32, 32))
    return FoldPlan(network, objective, settings, 0)


def unet(path: Path, filters: int = 2) -> Path:
    arguments = {"input_shape": [32, 32, 1], "filters": filters, "outputs": 2}
    contract = Contract(model="unet", arguments=arguments, task="lungs", note="made by hand")
    save_model(UNet(**arguments), contract, path)
    return path


def test_pixels_of_lung_and_disease_weigh_what_the_settings_say() -> None:
    rng = np.random.default_rng(1)
    mask = tf.constant(rng.integers(0, 2, (2, 32, 32, 2)), tf.float32)
    logits = tf.constant(rng.normal(size=(2, 32, 32, 2)), tf.float32)
    for weights in ((1.0, 1.0), (1.0, 2.0)):
        objective = plan(Settings(clip=(1, 32, 32), mask_weights=weights)).objective
        loss = objective.losses(["a"])[0]["logits"]
        np.testing.assert_allclose(
            loss(mask, logits), losses.mask_loss(mask, logits, pixel_weights=weights)
        )
    one = losses.mask_loss(mask, logits)
    np.testing.assert_allclose(losses.mask_loss(mask, logits, pixel_weights=(1.0, 1.0)), one)


def test_the_start_has_its_share_only_where_it_fits(tmp_path: Path) -> None:
    settings = Settings(clip=(1, 32, 32), network={"filters": 2}, init_share=0.5)
    asked = plan(settings, unet(tmp_path / "start.keras"))
    network = UNet(**asked.network.arguments)
    source = load(tmp_path / "start.keras").network
    network.set_weights(source.get_weights())
    start = _weights_of_start(asked, network, UNet(**asked.network.arguments))
    for one, other in zip(start, source.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(Exception, match="init_share needs --init"):
        _weights_of_start(plan(settings), network, network)
    other = plan(settings, unet(tmp_path / "wide.keras", filters=4))
    with pytest.raises(Exception, match="another architecture"):
        _weights_of_start(other, network, network)
    assert _weights_of_start(plan(Settings(clip=(1, 32, 32))), network, network) == []


def test_the_disease_outputs_can_learn_alone() -> None:
    plain = I3D(input_shape=(16, 32, 32, 1), classes=5, ct_score=True)
    network, _ = add_deep_supervision(plain, ("Mixed_3c",))
    _freeze(network, network, Stage(epochs=1, train_from="disease"))
    learning = {layer.name for layer in network.layers if layer.trainable}
    assert learning == {"disease_Mixed_3c"}
    with pytest.raises(Exception, match="without disease_endpoints"):
        _freeze(plain, plain, Stage(epochs=1, train_from="disease"))


@pytest.mark.parametrize("train_from", ["head", "fc6", "conv5", "disease"])
def test_what_reads_diseased_cells_learns_at_every_stage(train_from: str) -> None:
    plain = LTC((16, 32, 32, 1), dense=8, ct_score=True, disease_pooling="conv3")
    network, _ = add_deep_supervision(plain, ("conv3", "conv4"))
    _freeze(network, network, Stage(epochs=1, train_from=train_from))
    weighty = {layer.name for layer in network.layers if layer.weights}
    learning = {name for name in weighty if network.get_layer(name).trainable}
    disease = {name for name in weighty if name.startswith("disease_")}
    assert len(disease) == 6
    rest = {
        "head": {"fc6", "fc7", "logits", "ct_score_share"},
        "fc6": {"fc6", "fc7", "logits", "ct_score_share"},
        "conv5": {"conv5", "fc6", "fc7", "logits", "ct_score_share"},
        "disease": set[str](),
    }
    assert learning == disease | rest[train_from]


def test_old_settings_change_a_slice_as_before() -> None:
    """New kinds of change draw no number where they are not asked for."""
    rng = np.random.default_rng(2)
    inputs = {
        "hu": tf.constant(rng.integers(-1000, 100, (2, 32, 32)), tf.int16),
        "lungs": tf.constant(rng.integers(0, 256, (2, 128)), tf.uint8),
        "lesions": tf.constant(rng.integers(0, 256, (2, 128)), tf.uint8),
        "seed": tf.constant([[3, 4], [3, 5]], tf.int32),
    }

    def changed(**how: object) -> np.ndarray:
        layer = SliceTrainingInput(
            (32, 32),
            (32, 32),
            masked=False,
            augmentation=Augmentation(**how),  # type: ignore[arg-type]
            preprocessing=Preprocessing(),
            channels=1,
        )
        pictures, _ = layer(**inputs, training=True)
        return np.asarray(pictures)

    np.testing.assert_array_equal(
        changed(), changed(uneven=0.05, shift_along=0.04, largest_scale=1 / 0.9)
    )
    for other in ({"flip_vertical": 1.0}, {"coarse": 1.0}, {"largest_scale": 3.0}):
        assert not np.array_equal(changed(), changed(**other))


def finished(folder: Path) -> Path:
    """A run as `fit` leaves it."""
    folder.mkdir()
    unet(folder / "model.keras")
    settings = read_settings(CONFIGS / "ship-lungs.toml").model_dump(mode="json")
    question = {
        "chests": 800,
        "phantom_mark": "0123456789ab",
        "task": "lungs",
        "model": "unet",
        "init": "0" * 64,
        "folds": "none",
        "settings": settings,
    }
    files = {
        "run.json": {"question": question, "init": "lungs-unet"},
        "curves.json": {"curves": {"loss": [2.0, 1.0], "val_loss": [2.5, 1.5]}, "seconds": 60.0},
        "study.json": {
            "cases": 40,
            "measured_on": "validation cases",
            "seconds": 120.0,
            "dice": {"value": 0.98, "ci95": [0.97, 0.99]},
            "config": settings,
        },
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    return folder


def test_a_finished_run_becomes_weights_and_a_card(tmp_path: Path) -> None:
    run, out = finished(tmp_path / "run"), tmp_path / "lungs-unet"
    (tmp_path / "more.json").write_text('{"Dice, real": "0.97"}')
    asked = [str(run), str(out), "--figures", str(tmp_path / "more.json")]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 0, done.output
    contract = read_contract(out / "model.keras")
    assert contract.licence == "Apache-2.0"
    assert (out / "model.keras").stat().st_size < (run / "model.keras").stat().st_size
    card = (out / "README.md").read_text("utf-8")
    command = (
        "    tfcovid fit phantom:800 --task lungs --model unet --folds none --config config.toml"
        " --init lungs-unet --out RUN\n"
    )
    for text in (
        *(command, "phantom 0123456789ab", "| Dice, real | 0.97 |", "| 2 | 1.0000 | 1.5000 |"),
        *("| dice, 40 validation cases | 0.980 (0.970 to 0.990) |", "may have chosen the epoch"),
    ):
        assert text in card
    toml = card.split("```toml\n")[1].split("```")[0]
    assert Settings.model_validate(tomllib.loads(toml)) == read_settings(
        CONFIGS / "ship-lungs.toml"
    )


def test_a_run_that_is_not_finished_is_not_shipped(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    (run / "study.json").unlink()
    done = CliRunner().invoke(main, [str(run), str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "a finished run" in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.name)
def test_settings_survive_the_card(path: Path) -> None:
    settings = read_settings(path)
    defaults = Settings().model_dump(mode="json")
    text = "\n".join(as_toml(settings.model_dump(mode="json"), defaults))
    assert Settings.model_validate(tomllib.loads(text)) == settings
