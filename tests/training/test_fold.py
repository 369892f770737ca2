"""Training one fold, on records of noise: what learns, what stays, what is kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tf_covid.cohort.cache import CacheRecord, _example
from tf_covid.cohort.manifest import ManifestRow
from tf_covid.errors import TrainingError
from tf_covid.training import checkpoint
from tf_covid.training.fold import FoldPlan, SameRecords, Trained, train
from tf_covid.training.network_spec import NetworkSpec
from tf_covid.training.settings import Settings, Stage
from tf_covid.training.tasks import objective_for

GRID = (16, 32, 32)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[CacheRecord]:
    """Eight records; the darker, the lower the class, and a lesion in the bright half."""
    folder, found = tmp_path_factory.mktemp("records"), []
    for number in range(8):
        hu = np.random.default_rng(number).normal(-900 + 100 * number, 50, GRID).astype("<i2")
        lungs = np.zeros(GRID, bool)
        lungs[:, 4:28, 4:28] = True
        lesions = lungs & (np.arange(GRID[1])[:, None] < 3 * number)
        path = folder / f"{number}.tfrecord"
        with tf.io.TFRecordWriter(str(path)) as writer:
            writer.write(
                _example({"hu": hu, "lungs": lungs, "lesions": lesions}).SerializeToString()
            )
        found.append(CacheRecord(f"case{number}", path, {}, (), GRID, GRID[0]))
    return found


def plan(task: str, model: str, settings: Settings, **more: object) -> FoldPlan:
    rows = [
        ManifestRow(
            case=f"case{n}",
            patient=f"p{n}",
            path=Path("x"),
            ct_score=3 * n,
            covid=n > 3,
            lungs=Path("x"),
            lesions=Path("x"),
        )
        for n in range(8)
    ]
    labels = {
        row.case: min(number * 5 // 8, 4) if task == "severity" else number % 2
        for number, row in enumerate(rows)
    }
    network = NetworkSpec.of(task, model, rows, settings)
    objective = objective_for(task, network, rows, labels, settings, GRID)
    return FoldPlan(network, objective, settings, 0, **more)  # type: ignore[arg-type]


def ltc(**changes: object) -> Settings:
    return Settings(clip=GRID, batch=4, network={"dense": 8}, **changes)  # type: ignore[arg-type]


def run(asked: FoldPlan, records: list[CacheRecord], folder: Path, validation: int = 0) -> Trained:
    folder.mkdir(exist_ok=True)
    return train(asked, SameRecords(records[validation:]), records[:validation], folder)


@pytest.mark.parametrize(
    ("task", "model", "more"),
    [
        # Slow, so not run on the oldest set: bfloat16 training on a CPU is meant for the newest
        # TensorFlow.
        pytest.param(
            "severity",
            "i3d",
            {"clip": (8, 32, 32), "precision": "mixed", "disease_endpoints": ("Mixed_3c",)},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "slices",
            "inception_v1",
            {"clip": (1, 32, 32), "slices_per_scan": 2},
            marks=pytest.mark.slow,
        ),
        (
            "lungs",
            "unet",
            {"clip": (1, 32, 32), "slices_per_scan": 2, "network": {"filters": 4, "depth": 2}},
        ),
    ],
)
def test_every_task_trains_and_answers(
    records: list[CacheRecord], tmp_path: Path, task: str, model: str, more: dict[str, object]
) -> None:
    asked = plan(task, model, Settings(epochs=1, batch=4, **more))  # type: ignore[arg-type]
    try:
        trained = run(asked, records, tmp_path / "fold")
    except TrainingError as error:
        # oneDNN's bfloat16 gradient of a 3×3×3 convolution is not a number on such processors
        # (docs/training.md).
        if (
            "not_finite" in str(error)
            and "precision" in more
            and "avx512_bf16" in Path("/proc/cpuinfo").read_text()
        ):
            pytest.skip(
                "bfloat16 gradients of TensorFlow are no numbers on this processor (avx512_bf16)"
            )
        raise
    assert np.isfinite(trained.curves["loss"]).all()
    assert len(trained.curves["loss"]) == 1
    assert all(
        weight.dtype == np.float32 and np.isfinite(weight).all()
        for weight in trained.network.get_weights()
    )
    answers = asked.objective.answers(trained.network, records[:2])
    if task == "severity":
        assert answers["probabilities"].shape == (2, 5)
        np.testing.assert_allclose(answers["probabilities"].sum(axis=1), 1.0)
        assert ((answers["ct_score"] >= 0) & (answers["ct_score"] <= 25)).all()
    elif task == "slices":
        assert answers["record"].tolist() == [0] * 16 + [1] * 16
        assert (
            answers["truth"].sum() == 0
        )  # the first has no lesion, the second none within the lungs
        assert ((answers["probability"] > 0) & (answers["probability"] < 1)).all()
    else:
        assert ((answers["dice"] >= 0) & (answers["dice"] <= 1)).all()


def test_a_network_learns_what_can_be_learned(records: list[CacheRecord], tmp_path: Path) -> None:
    trained = run(
        plan("severity", "ltc", ltc(epochs=12, learning_rate=1e-3, ct_score_weight=1.0)),
        records,
        tmp_path,
    )
    loss = trained.curves["logits_loss"]
    assert min(loss[-3:]) < 0.8 * loss[0]


def test_a_frozen_stage_changes_the_head_only(records: list[CacheRecord], tmp_path: Path) -> None:
    before = run(
        plan("covid", "ltc", ltc(epochs=1, stages=(Stage(epochs=1, train_from="head"),))),
        records,
        tmp_path,
    )
    again = run(
        plan("covid", "ltc", ltc(epochs=2, stages=(Stage(epochs=2, train_from="head"),))),
        records,
        tmp_path / "longer",
    )
    for layer in before.network.layers:
        if layer.weights:
            same = np.array_equal(
                layer.get_weights()[0], again.network.get_layer(layer.name).get_weights()[0]
            )
            assert same == layer.name.startswith("conv"), layer.name


@pytest.mark.slow
def test_the_best_weights_are_kept(records: list[CacheRecord], tmp_path: Path) -> None:
    settings = ltc(
        epochs=5,
        learning_rate=0.01,
        validation_fraction=0.3,
        keep="best",
        class_weights=False,
        ct_score_weight=0.0,
    )
    asked = plan("covid", "ltc", settings)
    trained = run(asked, records, tmp_path, validation=4)
    shares = asked.objective.answers(trained.network, records[:4])["probabilities"]
    loss = -np.log(shares[np.arange(4), [0, 1, 0, 1]]).mean()
    assert loss == pytest.approx(min(trained.curves["val_loss"]), rel=1e-3)


@pytest.mark.slow
def test_patience_ends_a_training(records: list[CacheRecord], tmp_path: Path) -> None:
    settings = ltc(epochs=50, learning_rate=0.1, validation_fraction=0.3, patience=1, keep="best")
    trained = run(plan("covid", "ltc", settings), records, tmp_path, validation=4)
    watched = trained.curves["val_loss"]
    assert len(watched) < 50
    assert np.argmin(watched) == len(watched) - 2


def test_a_damaged_state_is_named(records: list[CacheRecord], tmp_path: Path) -> None:
    (tmp_path / "state.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(TrainingError, match="the state is damaged"):
        run(plan("covid", "ltc", ltc(epochs=1)), records, tmp_path)
    variables = [tf.Variable([1.0, 2.0])]
    checkpoint.save(tmp_path / "state.npz", variables, checkpoint.TrainingState(epoch=1))
    with pytest.raises(TrainingError, match="of another network"):
        run(plan("covid", "ltc", ltc(epochs=1)), records, tmp_path)
    assert checkpoint.restore(tmp_path / "state.npz", variables).epoch == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (ltc(epochs=1, stages=(Stage(epochs=1, train_from="conv9"),)), "no layer 'conv9'"),
        (ltc(epochs=1, disease_endpoints=("conv9",)), "no layer conv9"),
        (
            Settings(clip=(25, 32, 32), network={"dense": 8}, disease_endpoints=("conv4",)),
            "cells of conv4 do not fill a clip",
        ),
        (Settings(clip=(8, 32, 32)), "cannot be built with these settings"),
        (Settings(clip=GRID, network={"width": 3}), "cannot be built with these settings"),
    ],
)
def test_settings_that_do_not_fit_the_network_are_named(
    records: list[CacheRecord], tmp_path: Path, settings: Settings, said: str
) -> None:
    with pytest.raises(TrainingError, match=said):
        run(plan("severity", "ltc", settings), records, tmp_path)


MIRRORED = """
import sys
import numpy as np
import tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_fold import records, ltc, plan, run
from tf_covid.cohort.augment import Augmentation
class Factory:
    def mktemp(self, name):
        folder = Path(sys.argv[2]) / name
        folder.mkdir()
        return folder
found = records.__wrapped__(Factory()) if hasattr(records, "__wrapped__") else records.__pytest_wrapped__.obj(Factory())
still = Augmentation(flip=0, degrees=0, scale=0, shift=0, hu_shift=0, hu_scale=0, noise_hu=0, slice_drop=0)
settings = ltc(
    epochs=2, augmentation=still, dropout=0.0, warmup_epochs=0.0, validation_fraction=0.3,
    learning_rate=1e-4, gradient_clip_norm=1e9,
)
asked = [plan("covid", "ltc", settings, mirrored=mirrored) for mirrored in (False, True)]
one, two = (run(one, found, Path(sys.argv[2]) / str(one.mirrored), validation=3) for one in asked)
assert tf.distribute.get_strategy().num_replicas_in_sync == 1
np.testing.assert_allclose(one.curves["loss"], two.curves["loss"], rtol=0.02)
for a, b in zip(one.network.get_weights(), two.network.get_weights()):
    assert np.abs(a - b).mean() < 2e-4, np.abs(a - b).mean()
print("alike")
"""


@pytest.mark.slow
def test_two_devices_train_as_one_does(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MIRRORED, str(Path(__file__).parent), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "alike\n"


def test_devices_must_share_a_batch_evenly(records: list[CacheRecord], tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match="devices need a batch that they share evenly, and as many records"
    ):
        run(plan("covid", "ltc", ltc(epochs=1), mirrored=True), records[:2], tmp_path)
