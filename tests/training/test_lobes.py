"""The task lobes: what is in a cell, which way a scan is stored, and a network that learns both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_covid.cohort import cache
from tf_covid.cohort.augment import Augmentation, Draws, randomly_convolved
from tf_covid.cohort.manifest import ManifestRow, write_manifest
from tf_covid.cohort.planes import OUTSIDE_LOBES, UNKNOWN
from tf_covid.cohort.training_input import COUNTED, LABELS_EACH, VolumeTrainingInput
from tf_covid.errors import TrainingError
from tf_covid.experiment.evaluate import evaluate
from tf_covid.experiment.fit import fit
from tf_covid.experiment.run_folder import FitRequest
from tf_covid.models import UNet3D
from tf_covid.phantom import draw_chest
from tf_covid.phantom.files import write_nifti_volume
from tf_covid.tissues import CLASSES, EFFUSION_CLASS
from tf_covid.training import losses
from tf_covid.training.flips import VIEWS, with_flipped_views
from tf_covid.training.fold import FoldPlan, SameRecords, train
from tf_covid.training.network_spec import NetworkSpec
from tf_covid.training.settings import Settings
from tf_covid.training.tasks import LobesObjective, lobe_dice, objective_for
from tf_covid.weights import Preprocessing, load

GRID = (16, 32, 32)
STILL = Augmentation(
    flip=0, degrees=0, scale=0, shift=0, hu_shift=0, hu_scale=0, noise_hu=0, slice_drop=0
)
SETTINGS = Settings(
    clip=GRID, epochs=2, batch=2, network={"depth": 2, "filters": 2}, learning_rate=3e-3
)


def counts_of(
    labels: np.ndarray, how: Augmentation = STILL, *, training: bool = False, seed: int = 0
) -> np.ndarray:
    """Shares of the labels of one scan on a grid of half its size, (d, h, w, COUNTED)."""
    grid = tuple(side // 2 for side in labels.shape)
    layer = VolumeTrainingInput(grid, grid, Preprocessing(), how)  # type: ignore[arg-type]
    hu, seeds = np.zeros((1, *grid), np.int16), np.array([[seed, 1]], np.int32)
    return np.asarray(layer(hu, labels[np.newaxis], seeds, training=training)[1])[0] / LABELS_EACH


def test_a_half_filled_cell_has_a_share_of_one_half() -> None:
    labels = np.zeros((8, 16, 16), np.uint8)
    labels[:, :5] = 3  # two cells and a half
    labels[0], labels[1:3, 6:8] = UNKNOWN, OUTSIDE_LOBES
    shares = counts_of(labels)
    assert shares.sum(axis=-1) == pytest.approx(1.0)
    assert (shares[1:, :2, :, 3] == 1.0).all()
    assert (shares[1:, 2, :, (0, 3)] == 0.5).all()
    assert (shares[0, 0, :, UNKNOWN % COUNTED] == 0.5).all()
    assert (shares[0, 3, :, OUTSIDE_LOBES % COUNTED] == 0.5).all()


def test_a_flip_of_the_scan_flips_its_shares() -> None:
    labels = np.random.default_rng(0).integers(0, len(CLASSES), (8, 16, 32)).astype(np.uint8)
    shares = counts_of(labels)
    for axis in range(3):
        assert np.array_equal(counts_of(np.flip(labels, axis)), np.flip(shares, axis))
    for label in range(len(CLASSES)):
        assert shares[..., label].mean() == pytest.approx((labels == label).mean())


def test_scan_and_labels_move_alike() -> None:
    # A bright box whose label is its own; the same seed moves both.
    how = STILL.model_copy(
        update={"degrees": 15.0, "scale": 0.1, "shift": 0.05, "cut": 0.3, "coronal_degrees": 5.0}
    )
    labels = np.zeros((32, 64, 64), np.uint8)
    labels[8:20, 16:40, 30:50] = 7
    hu = np.where(labels[::2, ::2, ::2] == 7, 100, -1024).astype(np.int16)
    layer = VolumeTrainingInput(GRID, GRID, Preprocessing(), how)
    moved = []
    for seed in range(4):
        seeds = np.array([[seed, 5]], np.int32)
        scan, counts = layer(hu[np.newaxis], labels[np.newaxis], seeds, training=True)
        bright = scan.numpy()[0, ..., 0]
        bright = (bright - bright.min()) / np.ptp(bright)
        share = counts.numpy()[0, ..., 7] / LABELS_EACH
        assert np.abs(bright - share).mean() < 0.02
        assert np.corrcoef(bright.ravel(), share.ravel())[0, 1] > 0.95
        moved.append(share)
    assert not np.array_equal(moved[0], moved[1])


def test_new_augmentations_are_off_unless_they_are_asked_for() -> None:
    how = Augmentation()
    names = ("coronal_degrees", "cut", "blur", "gamma", "convolution")
    assert [getattr(how, name) for name in names] == [0.0] * 5


@pytest.mark.parametrize("frames", [1, 8])
def test_a_random_convolution_keeps_mean_and_spread(frames: int) -> None:
    hu = tf.random.stateless_normal([3, frames, 24, 24], [1, 2]) * 200.0 - 300.0
    one = randomly_convolved(Draws(tf.constant([1, 2])), hu, 1.0).numpy()
    same = randomly_convolved(Draws(tf.constant([1, 2])), hu, 1.0).numpy()
    assert np.array_equal(one, same)
    assert np.abs(one - hu.numpy()).max() > 10.0
    assert one.mean() == pytest.approx(-300.0, abs=15.0)
    for seed in range(8):
        mixed = randomly_convolved(Draws(tf.constant([seed, 3])), hu, 1.0).numpy()
        assert np.corrcoef(mixed.ravel(), hu.numpy().ravel())[0, 1] > 0.0
    assert np.array_equal(randomly_convolved(Draws(tf.constant([1, 2])), hu, 0.0), hu)


def shares_of(*labels: int) -> Any:
    """Counts of one cell, (1, 1, 1, 1, COUNTED)."""
    counts = np.bincount([label % COUNTED for label in labels], minlength=COUNTED)
    return tf.constant(counts.reshape(1, 1, 1, 1, -1) * (LABELS_EACH // len(labels)), tf.uint8)


def test_the_loss_of_a_cell_by_hand() -> None:
    logits = tf.zeros([1, 1, 1, 1, len(CLASSES)])
    loss = losses.tissue_loss(len(CLASSES))
    classes = len(CLASSES)
    dice = 1.0 - np.mean([1.0 / (1.0 / classes + 1.0)] * 5)
    assert float(loss(shares_of(0), logits)) == pytest.approx(np.log(classes) + dice, rel=1e-5)
    rare = float(loss(shares_of(EFFUSION_CLASS), logits))
    assert rare == pytest.approx(
        losses.RARE_WEIGHTS["pleural effusion"] * np.log(classes) + dice, rel=1e-5
    )
    outside = float(loss(shares_of(OUTSIDE_LOBES), logits))
    assert outside == pytest.approx(-np.log(9 / 14) + dice, rel=1e-5)
    assert float(loss(shares_of(UNKNOWN), logits)) == pytest.approx(0.0, abs=1e-6)
    six = losses.tissue_loss(6)
    for label in (0, EFFUSION_CLASS, OUTSIDE_LOBES):
        here = float(six(shares_of(label), tf.constant([[[[[9.0, 0, 0, 0, 0, 0]]]]])))
        assert here < 0.01


def test_unknown_cells_have_no_gradient() -> None:
    logits = tf.Variable(tf.random.stateless_normal([1, 1, 1, 2, len(CLASSES)], [1, 1]))
    counts = tf.concat([shares_of(UNKNOWN), shares_of(2)], axis=3)
    with tf.GradientTape() as tape:
        loss = losses.tissue_loss(len(CLASSES))(counts, logits)
    gradient = tape.gradient(loss, logits).numpy()
    assert (gradient[0, 0, 0, 0] == 0).all()
    assert np.abs(gradient[0, 0, 0, 1]).max() > 0


def test_the_dice_of_a_lobe_that_is_not_there_is_not_known() -> None:
    truth = np.array([[[0, 1, 1, 2, UNKNOWN % COUNTED]]])
    predicted = np.array([[[0, 1, 2, 2, 1]]])
    dice = lobe_dice(predicted, truth)
    assert dice[:2].tolist() == pytest.approx([2 / 3, 2 / 3])
    assert np.isnan(dice[2:]).all()


def test_the_flips_see_views_of_their_own() -> None:
    network = UNet3D((*GRID, 1), depth=2, filters=2, outputs=6)
    both = with_flipped_views(network)
    assert {layer.name for layer in network.layers} <= {layer.name for layer in both.layers}
    scans = np.random.default_rng(1).random((2, *GRID, 1), np.float32)
    views = [np.roll(np.flip(scans, 1), number, axis=2) for number in range(VIEWS)]
    answer = both(np.concatenate([scans, *views], axis=-1))
    np.testing.assert_allclose(answer["logits"], network(scans)["logits"], atol=1e-5)
    assert answer["flips"].shape == (2, 3 * VIEWS)
    for number, view in enumerate(views):
        here = answer["flips"][:, 3 * number : 3 * number + 3]
        np.testing.assert_allclose(here, network(view)["flips"], atol=1e-5)


def test_a_scan_is_flipped_for_the_flips_only() -> None:
    network = NetworkSpec.of("lobes", "unet3d", [], SETTINGS)
    objective = objective_for("lobes", network, [], {}, SETTINGS, GRID)
    hu = np.random.default_rng(2).integers(-1000, 400, (2, *GRID)).astype(np.int16)
    labels = np.zeros((2, *(2 * side for side in GRID)), np.uint8)
    turns = set()
    for seed in range(12):
        inputs = {"hu": hu, "labels": labels, "seed": np.array([[seed, 1]] * 2, np.int32)}
        views, truth = objective.prepare(inputs, {}, False)
        for scan, flipped in zip(views.numpy(), truth["flips"].numpy(), strict=True):
            for number, turn in enumerate(flipped.reshape(VIEWS, 3), 1):
                axes = [axis for axis in range(3) if turn[axis]]
                whole = scan[..., 0]
                expected = np.flip(whole, axes) if axes else whole
                assert np.array_equal(expected, scan[..., number])
                turns.add(tuple(turn))
    assert len(turns) > 3


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small chests; all but one have tissues, with an effusion."""
    folder = tmp_path_factory.mktemp("lobes")
    rows = []
    for number in range(4):
        chest = draw_chest(20 + number, (48, 64, 64), severity=number)
        tissues = np.where(chest.hu < -900, 1, 3).astype(np.uint8)
        tissues[36:42, 30:40, 20:30] = 6
        files = {"ct": chest.hu, "lobes": chest.lobes, "tissues": tissues}
        for name, voxels in files.items():
            write_nifti_volume(voxels, chest.affine, folder / f"{name}-{number}.nii.gz")
        rows.append(
            {
                "case": f"case-{number}",
                "patient": f"p{number}",
                "path": f"ct-{number}.nii.gz",
                "lobes": f"lobes-{number}.nii.gz",
                "tissues": f"tissues-{number}.nii.gz" if number else None,
            }
        )
    write_manifest(rows, folder / "manifest.csv")
    return folder / "manifest.csv"


class _Silent:
    def __enter__(self) -> Any:
        return lambda epoch, text: None

    def __exit__(self, *error: object) -> None:
        pass


@pytest.mark.slow
def test_fit_trains_a_lobe_network_and_measures_its_lobes(cohort: Path, tmp_path: Path) -> None:
    said: list[str] = []
    settings = SETTINGS.model_copy(
        update={
            "augmentation": Augmentation(
                degrees=15, coronal_degrees=4, cut=0.3, blur=1.0, gamma=0.2, convolution=0.5
            ),
            "validation_fraction": 0.4,
        }
    )
    request = FitRequest(cohort, "lobes", "unet3d", tmp_path / "run", settings, folds=2)
    page = fit(request, on_message=said.append, epoch_progress=lambda label, steps: _Silent())
    assert "right middle" in page.read_text("utf-8")
    study = json.loads((tmp_path / "run" / "study.json").read_text())
    assert (study["task"], study["cases"], study["folds"]) == ("lobes", 4, 2)
    assert list(study["dice_per_lobe"]) == [
        "right upper",
        "right middle",
        "right lower",
        "left upper",
        "left lower",
    ]
    assert sorted(study["dice_per_case"]) == [f"case-{number}" for number in range(4)]
    assert study["mae"]["unit"] == "ml"
    model = load(tmp_path / "run" / "fold-0" / "model.keras")
    evaluate(
        [tmp_path / "run" / "fold-0" / "model.keras"],
        cohort,
        tmp_path / "other",
        on_message=said.append,
    )
    again = json.loads((tmp_path / "other" / "study.json").read_text())
    folds = json.loads((tmp_path / "run" / "folds.json").read_text())["test"]
    for case, fold in folds.items():
        if fold == 0:
            assert again["dice_per_case"][case] == pytest.approx(study["dice_per_case"][case])
    assert model.contract.task == "lobes"
    preprocessing = model.contract.preprocessing
    assert (preprocessing.level_hu, preprocessing.width_hu) == (-300.0, 1600.0)
    assert model.network.output["logits"].shape[1:] == (*GRID, len(CLASSES))
    assert model.network.input_shape == (None, *GRID, 1)
    curves = json.loads((tmp_path / "run" / "fold-0" / "curves.json").read_text())["curves"]
    assert {"logits_loss", "flips_loss", "val_loss"} <= set(curves)


@pytest.mark.slow
def test_a_lobe_network_learns(cohort: Path, tmp_path: Path) -> None:
    folder = cohort.parent
    rows = [
        ManifestRow(
            case=f"case-{number}",
            patient=f"p{number}",
            path=folder / f"ct-{number}.nii.gz",
            lobes=folder / f"lobes-{number}.nii.gz",
        )
        for number in range(4)
    ]
    spec = cache.CacheSpec("volumes", GRID, Preprocessing(), "lungs-unet", "0" * 64)
    records = list(cache.fill(rows, tmp_path / "cache", spec).records.values())
    settings = SETTINGS.model_copy(
        update={
            "epochs": 30,
            "augmentation": STILL,
            "learning_rate": 1e-2,
            "network": {"depth": 2, "filters": 4},
        }
    )
    network = NetworkSpec.of("lobes", "unet3d", rows, settings)
    assert network.arguments["outputs"] == 6
    objective = objective_for("lobes", network, rows, {}, settings, GRID)
    assert isinstance(objective, LobesObjective)
    plain = keras.utils.set_random_seed(1) or UNet3D((*GRID, 1), depth=2, filters=4, outputs=6)
    before = objective.answers(plain, records)
    trained = train(FoldPlan(network, objective, settings, 0), SameRecords(records), [], tmp_path)
    after = objective.answers(trained.network, records)
    assert trained.curves["logits_loss"][-1] < 0.6 * trained.curves["logits_loss"][0]
    # Sixty steps tell lung from all else, and one lobe from the others.
    assert np.nanmax(after["lobes"]) > 0.4 > np.nanmax(before["lobes"])
    assert np.isnan(after["effusion_error_ml"]).all()


def test_settings_that_do_not_fit_lobes_are_named(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="outputs follow from the task"):
        NetworkSpec.of("lobes", "unet3d", [], Settings(network={"outputs": 3}))
    odd = SETTINGS.model_copy(update={"clip": (10, 32, 32)})
    request = FitRequest(cohort, "lobes", "unet3d", tmp_path, odd, folds=2)
    with pytest.raises(
        TrainingError, match=r"^clip = \[10, 32, 32\], network = .*'depth': 2.* multiples of 4, not"
    ):
        fit(request, on_message=print, epoch_progress=lambda label, steps: _Silent())
    settings = SETTINGS.model_copy(update={"disease_endpoints": ("down0_conv1",)})
    network = NetworkSpec.of("lobes", "unet3d", [], settings)
    with pytest.raises(TrainingError, match="of no use to the task lobes"):
        objective_for("lobes", network, [], {}, settings, GRID)
