"""A training of shipped weights that was killed goes on where it was, and its curves are whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_covid.atomic import _where
from tf_covid.errors import TrainingError
from tf_covid.training import run


def _train(out, die_at=None):
    """Five epochs of two steps.

    The process kills itself in the epoch that needs the batch `die_at`.
    """

    def batches():
        for number in range(10**6):
            if number == die_at:
                # Batches are read ahead: the epochs that have theirs come to their end first, and
                # their backup too.
                while len(run._curves(out)) < die_at // 2:
                    time.sleep(0.05)
                time.sleep(1)
                os.kill(os.getpid(), signal.SIGKILL)
            yield np.full((2, 1), number, np.float32), np.ones((2, 1), np.float32)

    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    spec = tf.TensorSpec([2, 1], tf.float32)
    data = tf.data.Dataset.from_generator(batches, output_signature=(spec, spec))
    return run.fit(network, data, out, epochs=5, steps=2, rate=1e-3, loss="mse"), network


def test_a_killed_training_keeps_its_curves_and_goes_on(tmp_path):
    with subprocess.Popen([sys.executable, __file__, str(tmp_path), "7"]) as child:
        assert child.wait(timeout=300) == -signal.SIGKILL
    before = run._curves(tmp_path)
    assert len(before) == 3, "killed while the fourth epoch ran"
    # What a kill in the middle of writing leaves.
    (tmp_path / f".{run.CURVES}.{_where()}.{child.pid}.0123abcd.partial").write_text('{"0": {"lo')
    curves, network = _train(tmp_path)
    assert [len(values) for values in curves.values()] == [5]
    assert curves["loss"][: len(before)] == pytest.approx([row["loss"] for row in before.values()])
    assert int(network.optimizer.iterations.numpy()) == 10, "the optimizer went on too"
    assert not list(tmp_path.iterdir()), "neither backup nor curves are left"


def test_a_process_that_continues_has_another_order_of_batches(tmp_path):
    assert run.setup(3, tmp_path) == 3
    (tmp_path / run.CURVES).write_text('{"0": {"loss": 1.5}, "1": {"loss": 1.25}}')
    assert run.setup(3, tmp_path) == 3, "curves of a run that cannot be continued"
    (tmp_path / run.BACKUP).mkdir()
    assert run.setup(3, tmp_path) not in (3, 4)


def test_a_new_output_learns_alone():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((4,))
    features = keras.layers.BatchNormalization(name="norm")(
        keras.layers.Dense(8, name="trunk")(inputs)
    )
    frozen = keras.layers.Dense(8, name="kept", trainable=False)(features)
    network = keras.Model(
        inputs,
        {
            "old": keras.layers.Dense(1, name="old")(frozen),
            "new": keras.layers.Dense(1, name="new")(features),
        },
    )
    before = {layer.name: layer.get_weights() for layer in network.layers}
    x = np.random.default_rng(0).normal(3.0, 2.0, (64, 4)).astype(np.float32)
    truth = x.sum(axis=1, keepdims=True)
    data = tf.data.Dataset.from_tensors((x, {"old": truth, "new": truth})).repeat()

    def error():
        return float(np.mean((network.predict(x, verbose=0)["new"] - truth) ** 2))

    first = error()
    run.train_only(network, ["new"], data, steps=300, rate=3e-2, loss={"old": "mse", "new": "mse"})
    assert error() < 0.1 * first
    for layer in network.layers:
        same = all(
            np.array_equal(*pair)
            for pair in zip(layer.get_weights(), before[layer.name], strict=True)
        )
        assert same == (layer.name != "new"), layer.name
    assert {layer.name for layer in network.layers if not layer.trainable} == {"kept"}


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_training_whose_loss_is_no_number_ends(tmp_path):
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, name="new")])
    data = tf.data.Dataset.from_tensors(
        (np.full((2, 1), np.nan, np.float32), np.ones((2, 1), np.float32))
    ).repeat()
    with pytest.raises(
        TrainingError, match="not_finite: the loss became NaN or infinite in epoch 1"
    ):
        run.fit(network, data, tmp_path, epochs=3, steps=2, rate=1e-3, loss="mse")
    learned = tf.data.Dataset.from_tensors(
        (np.ones((2, 1), np.float32), np.ones((2, 1), np.float32))
    ).repeat()
    network.set_weights([np.zeros((1, 1)), np.zeros(1)])
    with pytest.raises(
        TrainingError, match="not_finite: the weights became NaN or infinite in epoch 1"
    ):
        run.fit(network, learned, tmp_path, epochs=1, steps=1, rate=float("inf"), loss="mse")
    network = keras.Model(network.inputs, {"new": network.outputs[0]})
    data = data.map(lambda x, y: (x, {"new": y}))
    with pytest.raises(TrainingError, match="not_finite: the loss of new"):
        run.train_only(network, ["new"], data, steps=2, rate=1e-3, loss={"new": "mse"})


if __name__ == "__main__":  # the process that is killed
    _train(Path(sys.argv[1]), int(sys.argv[2]))
