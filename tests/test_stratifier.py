"""The joined model: Keras, its `.keras` file and its parts answer alike."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import tf_covid
import tf_covid.layers  # registers them for keras.saving
from tf_covid.errors import ModelError
from tf_covid.models import I3D, LTC, UNet
from tf_covid.preprocessor import Preprocessor
from tf_covid.stratifier_model import Stratifier
from tf_covid.weights import Preprocessing


def dark_is_lung(outputs=1):
    """Masks without training: "lung" below 0.5 in the window, "disease" above 0.3."""
    inputs = keras.Input((32, 32, 1))
    logits = keras.layers.Conv2D(outputs, 1, name="logits")(inputs)
    network = keras.Model(inputs, {"logits": logits})
    slope, offset = (
        np.array([-40.0, 40.0], np.float32)[:outputs],
        np.array([20.0, -12.0], np.float32)[:outputs],
    )
    network.get_layer("logits").set_weights([slope.reshape(1, 1, 1, outputs), offset])
    return network


@pytest.fixture(scope="module")
def unet():
    return dark_is_lung()


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    return I3D((8, 32, 32, 1), ct_score=True)


@pytest.fixture(scope="module")
def model(network, unet):
    return Stratifier(network, unet)


@pytest.fixture(scope="module")
def model_with_disease(network):
    return Stratifier(network, dark_is_lung(outputs=2))


def scan(depth=14, seed=1):
    """Soft tissue with two dark lungs in the middle slices."""
    hu = np.random.default_rng(seed).integers(0, 80, (depth, 64, 72)).astype(np.int16)
    hu[3 : depth - 3, 16:48, 8:30] -= 860
    hu[3 : depth - 3, 16:48, 42:64] -= 860
    return hu


def test_padded_scans_of_one_batch_answer_as_each_alone(model):
    long, short = scan(14), scan(11, seed=2)
    padded = np.zeros((2, 14, 64, 72), np.int16)
    padded[0], padded[1, :11] = long, short
    together = model({"hu": padded, "depth": np.array([14, 11], np.int32)})
    assert together["slices_kept"].numpy().tolist() == [8, 5]
    for number, hu in enumerate((long, short)):
        alone = model({"hu": hu[None], "depth": np.array([len(hu)], np.int32)})
        np.testing.assert_allclose(together["logits"][number], alone["logits"][0], atol=1e-4)
        np.testing.assert_allclose(together["ct_score"][number], alone["ct_score"][0], atol=1e-4)


def test_it_is_a_preprocessor_and_a_network(model, network, unet):
    hu, depth = scan()[None], np.array([14], np.int32)
    alone = Preprocessor(unet, (8, 32, 32, 1))
    prepared = alone.prepare(hu, alone.segment(hu, depth)["lungs"])
    assert prepared["clip"].shape == (1, 8, 32, 32, 1)
    assert prepared["lungs"].shape == (1, 8, 32, 32)
    answer = model({"hu": hu, "depth": depth})
    np.testing.assert_array_equal(network(prepared["clip"])["logits"], answer["logits"])
    assert answer["slices_kept"].numpy().tolist() == [int(prepared["keep"].numpy().sum())]


def test_the_clip_is_the_windowed_lung_and_nothing_else(model):
    hu = scan()[None]
    prepared = model.prepare(hu, model.segment(hu, np.array([14], np.int32))["lungs"])
    clip = prepared["clip"].numpy()[0, ..., 0]
    lung = clip[clip > 0]
    # −860 … −780 HU in the window −1100 … 300.
    assert lung.min() > (-870 + 1100) / 1400
    assert lung.max() < 0.6
    assert 0.4 < (clip > 0).mean() < 0.95
    np.testing.assert_allclose(prepared["box"].numpy()[0], [0.25, 0.75, 1 / 9, 8 / 9], atol=0.06)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["model", "model_with_disease"])
def test_keras_file_round_trip(which, request, tmp_path):
    model = request.getfixturevalue(which)
    inputs = {"hu": scan()[None], "depth": np.array([14], np.int32)}
    before = model(inputs)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(again, Stratifier)
    np.testing.assert_array_equal(before["logits"], again(inputs)["logits"])
    masks, masks_again = (one.segment(**inputs) for one in (model, again))
    assert masks.keys() == masks_again.keys()
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, masks_again[name])


def test_the_second_output_is_a_mask_beside_the_lungs(model, model_with_disease):
    inputs = {"hu": scan()[None], "depth": np.array([13], np.int32)}
    lungs, both = model.segment(**inputs), model_with_disease.segment(**inputs)
    assert list(lungs) == ["lungs"]
    assert list(both) == ["lungs", "disease"]
    np.testing.assert_allclose(lungs["lungs"], both["lungs"], atol=1e-6)
    assert both["disease"].shape == (1, 14, 32, 32)
    assert both["disease"].dtype == "float32"
    disease = both["disease"].numpy()[0] > 0.5
    # Lung at −860 … −780 HU is 0.17 … 0.23 of the window, soft tissue 0.79 and more; the last slice
    # is padding.
    assert disease[:3].all()
    assert not disease[13].any()
    assert not disease[5, 10:22, 6:12].any()


def test_the_network_never_sees_the_disease(model, model_with_disease):
    inputs = {"hu": scan()[None], "depth": np.array([14], np.int32)}
    alone, beside = model(inputs), model_with_disease(inputs)
    assert alone.keys() == beside.keys()
    for name, value in alone.items():
        np.testing.assert_allclose(value, beside[name], atol=1e-5)


def test_input_scaling_is_a_layer_behind_window_and_mask(unet):
    network = I3D((8, 32, 32, 3))
    plain, scaled = (
        Stratifier(network, unet, Preprocessing(input_scale=scale, input_offset=offset))
        for scale, offset in (((1.0,), (0.0,)), ((2.0, 2.0, 4.0), (-1.0, -1.0, 0.5)))
    )
    hu, depth = scan()[None], np.array([14], np.int32)
    clips = [
        one.prepare(hu, one.segment(hu, depth)["lungs"])["clip"].numpy() for one in (plain, scaled)
    ]
    np.testing.assert_allclose(clips[1], clips[0] * [2, 2, 4] + [-1, -1, 0.5], atol=1e-6)


def test_nothing_kept_is_said_and_finite(model):
    answer = model({"hu": np.zeros((1, 9, 64, 64), np.int16), "depth": np.array([9], np.int32)})
    assert answer["slices_kept"].numpy().tolist() == [0]
    assert np.isfinite(answer["logits"]).all()


def test_public_function_takes_any_keras_model(unet):
    joined = tf_covid.stratifier(LTC((16, 32, 32, 1), dense=8), unet)
    assert joined({"hu": scan()[None], "depth": np.array([14], np.int32)})["logits"].shape == (1, 5)


def test_networks_of_unknown_size_are_refused(unet):
    with pytest.raises(ModelError, match="clips of a known size"):
        tf_covid.stratifier(I3D((None, None, None, 1)), unet)
    with pytest.raises(ModelError, match="clips of a known size"):
        tf_covid.stratifier(UNet((32, 32, 1), depth=2), unet)


@pytest.mark.slow
def test_shipped_names_join(tmp_path):
    joined = tf_covid.stratifier("severity-i3d", precision="bfloat16")
    answer = joined({"hu": scan(24)[None], "depth": np.array([24], np.int32)})
    assert answer["logits"].dtype == "float32"
    assert answer["logits"].shape == (1, 5)
