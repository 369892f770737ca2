"""The programs that made the shipped weights still run, on a handful of tiny cases."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from tf_covid.errors import ModelError
from tf_covid.models import I3D, UNet
from tf_covid.preprocessor import Preprocessor
from tf_covid.training import augment, cases
from tf_covid.training.average import averaged
from tf_covid.training.average import main as average_lungs
from tf_covid.training.clips import Clips, make_clips, masked, read_clips
from tf_covid.training.cpu_layers import cpu_optimised
from tf_covid.training.dense import add_deep_supervision, pooled
from tf_covid.training.initialise import start_from
from tf_covid.training.losses import disease_loss, mask_loss
from tf_covid.training.lungs import main as train_lungs
from tf_covid.training.severity import RECIPES, teach
from tf_covid.training.severity import main as train_severity
from tf_covid.weights import Contract, load, save_model


@pytest.mark.slow
def test_both_networks_train_and_write_file_and_card(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(cases, "case_shape", lambda seed: (12, 64, 64))
    folder = tmp_path / "cases"
    cases.draw_cases(folder, range(0))
    for seed in (*range(4), *range(cases.UNSEEN, cases.UNSEEN + 5)):
        cases._draw(folder, seed)
    for module in ("lungs", "severity", "average"):
        monkeypatch.setattr(f"tf_covid.training.{module}.draw_cases", lambda folder, seeds: None)
    common = [
        "--cases",
        str(folder),
        "--train",
        "4",
        "--unseen",
        "5",
        "--epochs",
        "2",
        "--steps",
        "2",
        "--batch",
        "2",
    ]
    # oneDNN's bfloat16 gradient of a 3×3×3 convolution is not a number on such processors
    # (docs/training.md).
    broken = Path("/proc/cpuinfo").exists() and "avx512_bf16" in Path("/proc/cpuinfo").read_text()
    behind = ["--lungs", str(tmp_path / "lungs" / "model.keras")]
    runs = {
        "lungs": (train_lungs, ["--side", "32", "--filters", "2"]),
        "severity": (train_severity, ["--model", "i3d", "--clip", "8", "32", "32", *behind]),
        "severity-ltc": (
            train_severity,
            [
                "--model",
                "ltc",
                "--clip",
                "16",
                "32",
                "32",
                "--precision",
                "float32" if broken else "bfloat16",
                *behind,
            ],
        ),
        "severity-more": (
            train_severity,
            [
                "--model",
                "i3d",
                "--clip",
                "8",
                "32",
                "32",
                *behind,
                "--init",
                str(tmp_path / "severity/model.keras"),
            ],
        ),
    }
    caplog.set_level(logging.INFO)
    for name, (program, options) in runs.items():
        result = CliRunner().invoke(program, [*common, "--out", str(tmp_path / name), *options])
        assert result.exit_code == 0, result.exception
        model = load(tmp_path / name / "model.keras")
        assert model.contract.task == name.split("-")[0]
        assert model.name == name
        card = (tmp_path / name / "README.md").read_text()
        assert model.sha256 in card
        assert "| 2 | " in card
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == [
            "README.md",
            "model.keras",
        ]
    first, more = (
        load(tmp_path / name / "model.keras").network for name in ("severity", "severity-more")
    )
    before, after = (
        network.get_layer("Conv3d_1a_7x7_conv").get_weights()[0] for network in (first, more)
    )
    assert not np.array_equal(before, after), "what is written is what was taught"
    np.testing.assert_allclose(before, after, atol=0.02, err_msg="it did not go on from the file")
    assert caplog.text.count("alone: loss") == 1, (
        "what has learned before meets its new outputs' gradients late"
    )
    lungs = load(tmp_path / "lungs" / "model.keras")
    assert lungs.network.output["logits"].shape[-1] == 2, "lung, and diseased lung"
    for name in ("severity", "severity-ltc", "severity-more"):
        assert load(tmp_path / name / "model.keras").contract.lungs_sha256 == lungs.sha256
    file, out = str(tmp_path / "lungs" / "model.keras"), tmp_path / "mean"
    options = ["--part", "0.5", file, "--part", "0.5", file, "--unseen", "5", "--out", str(out)]
    result = CliRunner().invoke(average_lungs, ["--cases", str(folder), *options])
    assert result.exit_code == 0, result.exception
    mean = load(out / "model.keras")
    assert mean.contract.origin.count(lungs.sha256) == 2
    assert mean.sha256 in (out / "README.md").read_text()
    for ours, theirs in zip(mean.network.get_weights(), lungs.network.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_slices_and_masks_change_alike_and_clips_stay_masked():
    rng = np.random.default_rng(0)
    mask = np.zeros((6, 64, 64), np.float32)
    mask[:, 16:48, 12:30] = 1
    hu = np.where(mask > 0, -850.0, 40.0).astype(np.float32)
    half = mask.copy()
    half[:, 30:] = 0
    changed, marked = augment.slice_and_mask(hu, np.stack([mask, half], axis=-1))
    changed, (marked, part) = changed.numpy(), np.moveaxis(marked.numpy() > 0, -1, 0)
    assert set(np.unique(marked)) == {False, True}
    assert np.median(changed[marked]) < -700
    assert not (part & ~marked).any()
    assert 0.2 < part.sum() / marked.sum() < 0.7
    clip = 0.2 + 0.6 * rng.random((3, 8, 32, 32), np.float32)
    lungs, lesions = np.zeros_like(clip), np.zeros_like(clip)
    lungs[:, :, :, 10:], lesions[:, 2:6, 8:24, 4:20] = 1, 1
    masked, found = (array.numpy() for array in augment.clips(clip, lungs, lesions))
    assert masked.shape == (*clip.shape, 1)
    assert masked.min() >= 0
    assert masked.max() <= 1
    assert (masked == 0).mean() > 0.15
    assert found.max() <= 1, "no disease outside the mask"
    assert not found[masked[..., 0] == 0].any(), "no disease outside the mask"
    assert found.sum() > 100


@pytest.mark.parametrize("stem", ["same", "symmetric"])
@pytest.mark.parametrize("clip", [(9, 40, 36, 1), (16, 33, 47, 3)])
def test_what_trains_faster_answers_the_same(clip, stem):
    network = I3D(clip, classes=3, stem=stem)
    copy = cpu_optimised(network)
    clips = np.random.default_rng(0).random((2, *clip), np.float32)
    np.testing.assert_allclose(copy(clips)["logits"], network(clips)["logits"], atol=1e-5)
    stems = [model.get_layer("Conv3d_1a_7x7_conv").get_weights()[0] for model in (network, copy)]
    np.testing.assert_array_equal(*stems)


def test_the_disease_is_asked_for_on_the_cells_of_the_endpoints():
    network = I3D((8, 32, 32, 1), classes=3)
    trained, grids = add_deep_supervision(network, ("Mixed_3c", "Mixed_4f"))
    assert grids == {"disease_Mixed_3c": (4, 4, 4), "disease_Mixed_4f": (2, 2, 2)}
    outputs = trained(np.zeros((1, 8, 32, 32, 1), np.float32))
    assert {name: tuple(outputs[name].shape) for name in grids} == {
        "disease_Mixed_3c": (1, 4, 4, 4, 1),
        "disease_Mixed_4f": (1, 2, 2, 2, 1),
    }


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


@pytest.mark.slow
def test_the_mean_of_lung_models_is_that_of_all_their_weights(tmp_path):
    models = []
    for number, filters in enumerate((2, 2, 3)):
        arguments = {"input_shape": [32, 32, 1], "filters": filters}
        contract = Contract(model="unet", arguments=arguments, task="lungs", note="-")
        network = UNet((32, 32, 1), filters=filters)
        # Moving statistics too: drawn anew, all of them are 0 and 1.
        network.set_weights([value + number + 1 for value in network.get_weights()])
        save_model(network, contract, tmp_path / f"{number}.keras")
        models.append(load(tmp_path / f"{number}.keras"))
    parts = [model.network.get_weights() for model in models[:2]]
    for found, one, two in zip(
        averaged(models[:2], [0.25, 0.75]).get_weights(), *parts, strict=True
    ):
        np.testing.assert_allclose(found, 0.25 * one + 0.75 * two, atol=1e-6)
    for wrong in ([0.5, 0.6], [1.5, -0.5], [0.0, 0.0]):
        with pytest.raises(ModelError, match="sum to 1"):
            averaged(models[:2], wrong)
    with pytest.raises(ModelError, match="one architecture"):
        averaged(models[1:], [0.5, 0.5])


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


def test_a_case_comes_back_as_it_was_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(cases, "case_shape", lambda seed: (12, 64, 64))
    cases.draw_cases(tmp_path, range(0))
    cases._draw(tmp_path, 3)
    case = cases.read_case(tmp_path, 3)
    assert case.hu.shape == case.lungs.shape == (12, 64, 64)
    assert case.lungs.any()
    assert not (case.lesions & ~case.lungs).any()
    assert sum(case.lobe_scores) == case.ct_score


def test_the_training_clip_is_the_clip_that_infer_makes(tmp_path, monkeypatch, threshold_unet):
    monkeypatch.setattr(cases, "case_shape", lambda seed: (24, 64, 64))
    cases.draw_cases(tmp_path, range(0))
    cases._draw(tmp_path, 3)
    unet = threshold_unet({"input_shape": (32, 32, 1), "depth": 1, "filters": 2, "outputs": 2})
    road = Preprocessor(unet, (8, 32, 40, 1))
    made = read_clips(tmp_path, make_clips(tmp_path, range(3, 4), road, "0" * 64), range(3, 4))
    assert made.planes.shape == (1, 3, 8, 32, 40)
    assert made.classes.tolist() == [3]
    case = cases.read_case(tmp_path, 3)
    probability = road.segment(case.hu[None], np.array([len(case.hu)], np.int32))["lungs"]
    clip = road.prepare(case.hu[None], probability)["clip"].numpy()
    difference = np.abs(clip - masked(made, road))
    assert clip.any()
    assert difference.mean() < 0.01
    assert np.median(difference) <= 1 / 255


def test_the_disease_of_a_corner_is_asked_for_in_that_corner():
    lesions = np.zeros((1, 8, 16, 32), np.float32)
    lesions[0, 6:, 4:8, :8] = 1.0
    cells = pooled(lesions, (4, 4, 4)).numpy()
    assert cells.shape == (1, 4, 4, 4, 1)
    assert cells[0, 3, 1, 0, 0] == 1.0
    assert cells.sum() == 1.0
    logits = np.where(cells > 0, 9.0, -9.0).astype(np.float32)
    assert float(disease_loss(cells, logits)) < 0.01 < 1.0 < float(disease_loss(cells, -logits))


@pytest.mark.parametrize("killed", [False, True])
def test_new_outputs_learn_alone_at_the_start_only(tmp_path, monkeypatch, killed):
    """And the arithmetic is that of the precision.

    No network is trained here, the calls are looked at.
    """
    calls = []
    monkeypatch.setattr(
        "tf_covid.training.severity.train_only",
        lambda trained, *_, **__: calls.append(("alone", trained)),
    )
    monkeypatch.setattr(
        "tf_covid.training.severity.fit",
        lambda trained, *_, **__: calls.append(("fit", trained)) or {},
    )
    if killed:
        (tmp_path / "curves.json").write_text('{"0": {"loss": 1.5}}')
        (tmp_path / "backup").mkdir()
    network = RECIPES["ltc"].build(
        (16, 32, 32, 1), classes=5, ct_score=True, dense=8, dtype="mixed_bfloat16"
    )
    unet = UNet((32, 32, 1), depth=1, filters=2)
    clips = Clips(
        np.zeros((2, 3, 16, 32, 32), np.uint8), np.zeros(2, np.int32), np.zeros(2, np.float32)
    )
    teach(
        network,
        RECIPES["ltc"],
        Preprocessor(unet, network.input_shape[1:]),
        clips,
        tmp_path,
        epochs=1,
        steps=1,
        batch=2,
        rate=1e-3,
        seed=0,
        knows=True,
    )
    assert [name for name, _ in calls] == ["fit"] if killed else ["alone", "fit"]
    trained = calls[0][1]
    assert {output.dtype for output in trained.output.values()} == {"float32"}
    assert len(trained.output) == 4
    convolutions = ("conv1", "conv2", "conv3", "conv4", "conv5")
    assert {trained.get_layer(name).compute_dtype for name in convolutions} == {"bfloat16"}


def test_an_i3d_is_not_trained_in_bfloat16(tmp_path):
    options = ["--cases", str(tmp_path), "--out", str(tmp_path / "x"), "--precision", "bfloat16"]
    result = CliRunner().invoke(train_severity, options)
    assert result.exit_code == 2
    assert "not a number in bfloat16" in result.output


def test_ltc_is_not_trained_on_a_clip_that_it_does_not_see_whole(tmp_path):
    options = [
        "--model",
        "ltc",
        "--cases",
        str(tmp_path),
        "--out",
        str(tmp_path / "x"),
        "--clip",
        "24",
        "64",
        "64",
    ]
    result = CliRunner().invoke(train_severity, options)
    assert result.exit_code == 2
    assert "16×32×32" in result.output
