"""Batch norms of a trained network.

What is judged and saved answers as well as what was trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_covid.cohort.cache import CacheRecord, _example
from tf_covid.cohort.manifest import ManifestRow
from tf_covid.models import NETWORKS
from tf_covid.training import fold, norms
from tf_covid.training.fold import FoldPlan, SameRecords, Trained, train
from tf_covid.training.network_spec import NetworkSpec
from tf_covid.training.settings import Settings, Stage
from tf_covid.training.tasks import objective_for
from tf_covid.weights import Contract, load_model, save_model

GRID = (8, 32, 32)
UNET: dict[str, Any] = {
    "clip": (1, 32, 32),
    "slices_per_scan": 3,
    "network": {"filters": 4, "depth": 1},
}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[CacheRecord]:
    """Seven records: dark lungs of different size in bright noise."""
    folder, found = tmp_path_factory.mktemp("records"), []
    for number in range(7):
        lungs = np.zeros(GRID, bool)
        lungs[:, 4 + number : 28, 4 : 28 - number] = True
        hu = np.random.default_rng(number).normal(np.where(lungs, -850, 50), 60).astype("<i2")
        path = folder / f"{number}.tfrecord"
        with tf.io.TFRecordWriter(str(path)) as writer:
            writer.write(
                _example(
                    {"hu": hu, "lungs": lungs, "lesions": lungs & (hu > -830)}
                ).SerializeToString()
            )
        found.append(CacheRecord(f"case{number}", path, {}, (), GRID, GRID[0]))
    return found


def plan(task: str = "lungs", model: str = "unet", **changes: Any) -> FoldPlan:
    settings = Settings(**({"epochs": 3, "batch": 4, "learning_rate": 0.01} | UNET | changes))
    rows = [
        ManifestRow(
            case=f"case{n}",
            patient=f"p{n}",
            path=Path("x"),
            ct_score=3 * n,
            lungs=Path("x"),
            lesions=Path("x"),
        )
        for n in range(7)
    ]
    network = NetworkSpec.of(task, model, rows, settings)
    labels = {f"case{n}": 0 for n in range(7)}
    objective = objective_for(task, network, rows, labels, settings, GRID)
    return FoldPlan(network, objective, settings, 0)


def run(asked: FoldPlan, records: list[CacheRecord], folder: Path, validation: int = 0) -> Trained:
    folder.mkdir(exist_ok=True)
    return train(asked, SameRecords(records[validation:]), records[:validation], folder)


def clips(asked: FoldPlan, records: list[CacheRecord]) -> np.ndarray:
    order = np.arange(len(records))[np.newaxis]
    data = asked.objective.batches(records, order=order, seed=0, even=True)
    return np.concatenate([asked.objective.prepare(*batch, False)[0].numpy() for batch in data])


@pytest.mark.parametrize(
    ("steps", "momentum"), [(1, 0.5), (20, 0.5), (100, 0.9), (400, 0.975), (5000, 0.99)]
)
def test_the_momentum_fits_the_run(steps: int, momentum: float) -> None:
    assert norms.fitting_momentum(steps) == pytest.approx(momentum)
    assert steps < 20 or norms.fitting_momentum(steps) ** steps < 1e-4, (
        "what it started with is forgotten"
    )


def test_the_shortest_stage_counts() -> None:
    settings = Settings(
        epochs=30, stages=(Stage(epochs=3, train_from="head"), Stage(epochs=10, train_from="head"))
    )
    assert fold._shortest(settings) == 3
    assert fold._shortest(Settings(epochs=30)) == 30


def test_statistics_are_those_of_the_whole_set(records: list[CacheRecord]) -> None:
    """By hand: mean and variance of what the first convolution gives over all clips, whatever the
    batches."""
    asked = plan()
    network = NETWORKS["unet"].build(**asked.network.arguments)
    before = network.get_weights()
    found = norms.Census(network, asked.objective, records).take(
        [norm.name for norm in norms.norms_of(network)]
    )
    assert all(
        np.array_equal(old, new) for old, new in zip(before, network.get_weights(), strict=True)
    )
    first = norms.norms_of(network)[0]
    values = (
        keras.Model(network.input, first.input)(clips(asked, records)).numpy().astype(np.float64)
    )
    mean, variance = found[first.name]
    np.testing.assert_allclose(mean, values.mean(axis=(0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(variance, values.var(axis=(0, 1, 2)), rtol=1e-4, atol=1e-6)


def test_as_few_clips_as_asked_for_are_taken(
    records: list[CacheRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = plan()
    network = NETWORKS["unet"].build(**asked.network.arguments)
    seen: list[int] = []
    kind = type(asked.objective)
    prepare = kind.prepare

    def counting(objective: Any, inputs: Any, targets: Any, training: bool) -> Any:
        assert not training
        seen.append(int(inputs["hu"].shape[0]))
        return prepare(objective, inputs, targets, training)

    monkeypatch.setattr(kind, "prepare", counting)
    census = norms.Census(network, asked.objective, records)
    names = [norm.name for norm in norms.norms_of(network)]
    for max_clips, count in ((2, 3), (9, 9), (1000, 21), (None, 21)):
        seen.clear()
        census.take(names, max_clips=max_clips)
        assert sum(seen) == count
        assert max(seen) - min(seen) <= len(seen)


def test_frozen_layers_keep_what_they_have(records: list[CacheRecord]) -> None:
    asked = plan()
    network = NETWORKS["unet"].build(**asked.network.arguments)
    names = [norm.name for norm in norms.norms_of(network)]
    assert set(norms.Census(network, asked.objective, records).take(names[2:])) == set(names[2:])
    assert norms.Census(network, asked.objective, records).take([]) == {}


def test_a_frozen_stage_is_saved_as_it_learned(records: list[CacheRecord], tmp_path: Path) -> None:
    """What stands before the first layer that learns normalises by what it had, in training and
    afterwards."""
    asked = plan(epochs=2, stages=(Stage(epochs=2, train_from="up0_conv1"),))
    trained = run(asked, records, tmp_path)
    for norm in norms.norms_of(trained.network):
        still = not np.any(norm.moving_mean) and np.all(np.asarray(norm.moving_variance) == 1.0)
        assert still == (not norm.name.startswith("up0")), norm.name


@pytest.mark.slow
def test_a_network_answers_as_it_was_trained(records: list[CacheRecord], tmp_path: Path) -> None:
    """Its loss on its own clips is not far above that with the statistics of each batch, after a
    few steps only."""
    asked = plan(epochs=6)
    trained = run(asked, records, tmp_path)
    pictures, loss = clips(asked, records), asked.objective.losses([])[0]["logits"]
    data = asked.objective.batches(records, order=np.arange(7)[np.newaxis], seed=0, even=True)
    truth = np.concatenate(
        [asked.objective.prepare(*batch, False)[1]["logits"].numpy() for batch in data]
    )

    def measured(network: keras.Model, training: bool) -> float:
        return float(np.mean(loss(truth, network(pictures, training=training)["logits"])))

    inference, batch = measured(trained.network, False), measured(trained.network, True)
    assert inference < batch + 0.02, f"{inference} against {batch}"
    path = tmp_path / "model.keras"
    save_model(
        trained.network,
        Contract(model="unet", arguments=asked.network.arguments, task="lungs", note=""),
        path,
    )
    read = load_model(path)
    assert {norm.momentum for norm in norms.norms_of(read)} == {0.99}, (
        "that of the run stays in the run"
    )
    np.testing.assert_array_equal(read(pictures)["logits"], trained.network(pictures)["logits"])
    assert keras.saving.load_model(path, compile=False).input_shape == read.input_shape


@pytest.mark.slow
def test_what_judges_is_what_is_saved(records: list[CacheRecord], tmp_path: Path) -> None:
    """The loss of the best epoch on the held-out patients is that of the saved network.

    The same statistics.
    """
    asked = plan(epochs=4, validation_fraction=0.3, keep="best")
    trained = run(asked, records, tmp_path, validation=2)
    data = asked.objective.batches(records[:2], order=np.arange(2)[np.newaxis], seed=asked.seed)
    loss, found = asked.objective.losses([])[0]["logits"], []
    for batch in data:
        pictures, truth = asked.objective.prepare(*batch, False)
        found.append(
            (
                float(np.mean(loss(truth["logits"], trained.network(pictures)["logits"]))),
                len(pictures),
            )
        )
    mean = np.average([value for value, _ in found], weights=[count for _, count in found])
    assert mean == pytest.approx(min(trained.curves["val_loss"]), rel=1e-3)


@pytest.mark.slow
def test_judging_changes_nothing_of_the_training(
    records: list[CacheRecord], tmp_path: Path
) -> None:
    """The same weights with and without held-out patients, and after a stop between two epochs."""
    whole = run(plan(epochs=2), records[2:], tmp_path / "whole")
    watched = train(
        plan(epochs=2, validation_fraction=0.3),
        SameRecords(records[2:]),
        records[:2],
        _made(tmp_path / "watched"),
    )
    first = tmp_path / "stopped"

    class Stop(Exception):
        pass

    def stop(epoch: int, values: dict[str, float]) -> None:
        raise Stop

    asked = plan(epochs=2, validation_fraction=0.3)
    with pytest.raises(Stop):
        train(asked, SameRecords(records[2:]), records[:2], _made(first), on_epoch_end=stop)
    again = train(
        plan(epochs=2, validation_fraction=0.3), SameRecords(records[2:]), records[:2], first
    )
    for other in (watched, again):
        pairs = zip(whole.network.get_weights(), other.network.get_weights(), strict=True)
        assert all(np.array_equal(one, two) for one, two in pairs)
    assert again.curves == watched.curves


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_network_without_batch_norms_needs_nothing(records: list[CacheRecord]) -> None:
    asked = plan("severity", "ltc", clip=(16, 32, 32), network={"dense": 8})
    network = NETWORKS["ltc"].build(**asked.network.arguments)
    norms.set_momentum(network, 20)
    assert norms.norms_of(network) == [] == norms.learning(network)
    assert norms.Census(network, asked.objective, records).take([]) == {}
