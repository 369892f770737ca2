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
from tf_covid.training import run


def _train(out, die_at=None):
    """Five epochs of two steps; the process kills itself in the epoch that needs the batch `die_at`."""

    def batches():
        for number in range(10**6):
            if number == die_at:
                # Batches are read ahead: the epochs that have theirs come to their end first, and their backup too.
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


if __name__ == "__main__":  # the process that is killed
    _train(Path(sys.argv[1]), int(sys.argv[2]))
