"""Deep supervision, losses, quicker layers and weights to start from: parts of a training."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tf_covid.errors import ModelError, TrainingError
from tf_covid.models import I3D, LTC, UNet
from tf_covid.training.cpu_layers import cpu_optimised
from tf_covid.training.dense import add_deep_supervision, pooled
from tf_covid.training.initialise import data_dependent_init, start_from
from tf_covid.training.losses import disease_loss, mask_loss
from tf_covid.training.network_spec import NetworkSpec
from tf_covid.training.settings import Settings
from tf_covid.weights import Contract, load, save_model


@pytest.mark.slow
@pytest.mark.parametrize("stem", ["same", "symmetric"])
@pytest.mark.parametrize("clip", [(9, 40, 36, 1), (16, 33, 47, 3)])
@pytest.mark.parametrize("onednn", ["0", "1"])
def test_what_trains_faster_answers_the_same(clip, stem, onednn, monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", onednn)
    network = I3D(clip, classes=3, stem=stem)
    copy = cpu_optimised(network)
    clips = np.random.default_rng(0).random((2, *clip), np.float32)
    np.testing.assert_allclose(copy(clips)["logits"], network(clips)["logits"], atol=1e-5)
    stems = [model.get_layer("Conv3d_1a_7x7_conv").get_weights()[0] for model in (network, copy)]
    np.testing.assert_array_equal(*stems)


def test_pools_are_ours_where_onednn_has_none(monkeypatch):
    def ours(machine, asked):
        monkeypatch.setattr("platform.machine", lambda: machine)
        monkeypatch.setattr("sys.platform", "linux")
        monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", asked)
        return [
            layer.name
            for layer in cpu_optimised(network).layers
            if type(layer).__name__ == "CpuMaxPool3D"
        ]

    network = I3D((8, 32, 32, 1), classes=3)
    pools = [layer for layer in network.layers if type(layer).__name__ == "MaxPooling3D"]
    assert len(ours("x86_64", "0")) == len(ours("aarch64", "1")) == len(pools) > 10
    assert ours("x86_64", "1") == []


def test_the_disease_is_asked_for_on_the_cells_of_the_endpoints():
    network = I3D((8, 32, 32, 1), classes=3)
    trained, grids = add_deep_supervision(network, ("Mixed_3c", "Mixed_4f"))
    assert grids == {"disease_Mixed_3c": (4, 4, 4), "disease_Mixed_4f": (2, 2, 2)}
    outputs = trained(np.zeros((1, 8, 32, 32, 1), np.float32))
    assert {name: tuple(outputs[name].shape) for name in grids} == {
        "disease_Mixed_3c": (1, 4, 4, 4, 1),
        "disease_Mixed_4f": (1, 2, 2, 2, 1),
    }


def test_a_network_that_pools_its_diseased_cells_is_taught_at_them():
    network = I3D((8, 32, 32, 1), classes=3, ct_score=True, disease_pooling="Mixed_3c")
    trained, _ = add_deep_supervision(network, ("Mixed_3c", "Mixed_4f"))
    own = network.get_layer("disease_Mixed_3c")
    assert trained.get_layer("disease_Mixed_3c") is own
    clips = np.random.default_rng(0).random((2, 8, 32, 32, 1), np.float32)
    before = trained(clips)
    own.bias.assign([1.0])
    after = trained(clips)
    np.testing.assert_allclose(
        after["disease_Mixed_3c"] - before["disease_Mixed_3c"], 5.0, atol=1e-5
    )
    # What is taught there is what the answer is made of.
    assert np.abs(after["logits"] - before["logits"]).max() > 1e-4
    np.testing.assert_array_equal(after["disease_Mixed_4f"], before["disease_Mixed_4f"])


@pytest.mark.slow
def test_a_network_that_pools_its_diseased_cells_starts_from_one_that_does_not(tmp_path):
    arguments = {"input_shape": [8, 32, 32, 1], "classes": 5, "ct_score": True}
    plain = I3D((8, 32, 32, 1), classes=5, ct_score=True)
    contract = Contract(model="i3d", arguments=arguments, task="severity", note="-")
    save_model(plain, contract, tmp_path / "plain.keras")
    network = I3D((8, 32, 32, 1), classes=5, ct_score=True, disease_pooling="Mixed_3c")
    start_from(network, tmp_path / "plain.keras")
    clips = np.random.default_rng(0).random((2, 8, 32, 32, 1), np.float32)
    # What is new begins nearly silent, so that it answers as the file does.
    np.testing.assert_allclose(network(clips)["logits"], plain(clips)["logits"], atol=0.05)
    np.testing.assert_allclose(network(clips)["ct_score"], plain(clips)["ct_score"], atol=0.3)


@pytest.fixture
def pooling(tmp_path):
    """The file of an LTC that pools its diseased cells."""
    arguments = {"input_shape": [16, 32, 32, 1], "dense": 8, "disease_pooling": "conv3"}
    contract = Contract(model="ltc", arguments=arguments, task="severity", note="-")
    save_model(LTC(**arguments), contract, tmp_path / "ltc.keras")
    return tmp_path / "ltc.keras"


def test_the_seed_decides_what_reads_disease_too():
    quiet = []
    for seed in (1, 2, 1):
        keras.utils.set_random_seed(seed)
        network = LTC((16, 32, 32, 1), dense=8, disease_pooling="conv3")
        quiet.append(network.get_layer("disease_logits").get_weights()[0])
    np.testing.assert_array_equal(quiet[0], quiet[2])
    assert (quiet[0] != quiet[1]).all()


def test_what_pools_diseased_cells_alone_is_no_start(pooling):
    other = I3D((16, 32, 32, 1), disease_pooling="Mixed_3c")
    with pytest.raises(ModelError, match="no convolution"):
        start_from(other, pooling)


def test_first_clips_do_not_set_what_reads_disease_that_nobody_has_taught_yet():
    network = LTC((16, 32, 32, 1), dense=8, disease_pooling="conv3")
    names = [layer.name for layer in network.layers if layer.weights]
    before = {name: network.get_layer(name).get_weights() for name in names}
    data_dependent_init(network, np.random.default_rng(0).random((4, 16, 32, 32, 1), np.float32))
    changed = {
        name
        for name in names
        if any(
            (old != new).any()
            for old, new in zip(before[name], network.get_layer(name).get_weights(), strict=True)
        )
    }
    assert changed == {"conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"}


def test_what_pools_its_diseased_cells_goes_on_doing_so(pooling):
    spec = NetworkSpec.of("covid", "ltc", [], Settings(), pooling)
    assert spec.arguments["disease_pooling"] == "conv3"
    own = Settings(network={"disease_pooling": ""})
    spec = NetworkSpec.of("covid", "ltc", [], own, pooling)
    assert spec.arguments["disease_pooling"] == ""


def test_disease_is_pooled_only_where_something_teaches_it():
    asked = {"disease_pooling": "conv3"}
    with pytest.raises(TrainingError, match="conv3 is not among disease_endpoints"):
        NetworkSpec.of("severity", "ltc", [], Settings(network=asked))
    with pytest.raises(TrainingError, match="conv3 is not among disease_endpoints"):
        NetworkSpec.of("severity", "ltc", [], Settings(network=asked, disease_endpoints=("conv4",)))
    taught = Settings(network=asked, disease_endpoints=("conv3", "conv4"))
    spec = NetworkSpec.of("severity", "ltc", [], taught)
    assert spec.arguments["disease_pooling"] == "conv3"


@pytest.mark.slow
def test_training_starts_from_what_fits_of_a_file(tmp_path):
    contract = Contract(
        model="unet", arguments={"input_shape": [32, 32, 1], "filters": 2}, task="lungs", note="-"
    )
    one = UNet((32, 32, 1), filters=2)
    save_model(one, contract, tmp_path / "one.keras")
    two = UNet((32, 32, 1), filters=2, outputs=2)
    assert load(tmp_path / "one.keras").sha256 in start_from(two, tmp_path / "one.keras")
    for layer in one.layers:
        if layer.name != "logits":
            for ours, theirs in zip(
                layer.get_weights(), two.get_layer(layer.name).get_weights(), strict=True
            ):
                np.testing.assert_allclose(ours, theirs)
    with pytest.raises(ModelError, match="no convolution"):
        start_from(UNet((32, 32, 1), filters=3), tmp_path / "one.keras")
    assert start_from(two, None) == ""


def test_disease_that_is_missed_costs_more_than_disease_that_is_none():
    mask = np.zeros((1, 8, 8, 2), np.float32)
    mask[:, :, :4] = 1  # half of the pixels, so that nothing else tells the two mistakes apart
    for tissue, ratio in enumerate((1.0, 2.0)):
        missed, invented = (np.where(mask, 6.0, -6.0).astype(np.float32) for _ in range(2))
        missed[..., tissue], invented[..., tissue] = -6.0, 6.0
        wrong = missed, invented
        even, weighted = (
            [mask_loss(mask, one) for one in wrong],
            [mask_loss(mask, one, pixel_weights=(1, 2)) for one in wrong],
        )
        # Soft Dice is the same with and without weights.
        assert float(weighted[0] - even[0]) == pytest.approx((ratio - 1) * 2 * 6.0 / 4, abs=0.02)
        assert float(weighted[1]) == pytest.approx(float(even[1]), abs=0.02)


def test_the_disease_of_a_corner_is_asked_for_in_that_corner():
    lesions = np.zeros((1, 8, 16, 32), np.float32)
    lesions[0, 6:, 4:8, :8] = 1.0
    cells = pooled(lesions, (4, 4, 4)).numpy()
    assert cells.shape == (1, 4, 4, 4, 1)
    assert cells[0, 3, 1, 0, 0] == 1.0
    assert cells.sum() == 1.0
    logits = np.where(cells > 0, 9.0, -9.0).astype(np.float32)
    assert float(disease_loss(cells, logits)) < 0.01 < 1.0 < float(disease_loss(cells, -logits))
