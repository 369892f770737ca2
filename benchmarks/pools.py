"""What I3D's pools cost: a training step with oneDNN's and with ours.

    python benchmarks/pools.py [--steps 5]

Both ways take turns within one run; seconds are the median of all steps.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any
from unittest import mock

os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"  # as the command line has it

import click
import keras
import tensorflow as tf
from tables import number, table

from tf_covid.models import I3D
from tf_covid.training import cpu_layers

#: A batch of the study's clips, (N, D, H, W, C).
BATCH = (8, 24, 80, 80, 1)


def step(onednn: bool) -> Callable[[], Any]:
    """A training step of I3D, traced, with oneDNN's pools or with ours."""
    with mock.patch.object(cpu_layers, "has_onednn", return_value=onednn):
        network = cpu_layers.cpu_optimised(I3D(BATCH[1:], ct_score=True))
    optimizer = keras.optimizers.Adam(1e-4)
    optimizer.build(network.trainable_variables)
    clips = tf.random.stateless_normal(BATCH, [0, 1])

    @tf.function(jit_compile=False)
    def run() -> tf.Tensor:
        with tf.GradientTape() as tape:
            outputs = network(clips, training=True)
            loss = tf.add_n([tf.reduce_mean(tf.square(value)) for value in outputs.values()])
        gradients = tape.gradient(loss, network.trainable_variables)
        optimizer.apply(gradients, network.trainable_variables)
        return loss

    run()
    return lambda: run().numpy()


@click.command()
@click.option("--steps", default=5, show_default=True, help="Steps of each way.")
def main(steps: int) -> None:
    """Print the table."""
    ways = {"ours, by axis": step(onednn=False), "oneDNN's": step(onednn=True)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(steps):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    first = median(seconds["ours, by axis"])
    shape = "×".join(map(str, BATCH))
    rows = [
        [name, number(median(all_)), number(first / median(all_))] for name, all_ in seconds.items()
    ]
    print(f"A training step of I3D, {shape}:\n")
    print(table(("pools", "seconds", "times as fast"), rows))


if __name__ == "__main__":
    main()
