"""Clips a second from the cache, beside NumPy's reading, and its share of a training step.

python benchmarks/dataset.py [--records 200] [--steps 3]
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import click
import keras
import numpy as np
import tensorflow as tf

from tf_covid.cohort.augment import Augmentation
from tf_covid.cohort.cache import LARGEST_GRID, _example
from tf_covid.cohort.dataset import batches, visits
from tf_covid.cohort.training_input import ClipTrainingInput
from tf_covid.models import I3D
from tf_covid.training.cpu_layers import cpu_optimised
from tf_covid.weights import Preprocessing

BATCH = 8


def write(folder: Path, count: int, grid: tuple[int, int, int]) -> list[Path]:
    """Records of random HU: what they show does not matter to the reader."""
    rng, paths = np.random.default_rng(1), []
    for number in range(count):
        hu = rng.integers(-1000, 200, grid).astype("<i2")
        paths.append(folder / f"{number}.tfrecord")
        with tf.io.TFRecordWriter(str(paths[-1])) as writer:
            writer.write(
                _example({"hu": hu, "lungs": hu > -900, "lesions": hu > 0}).SerializeToString()
            )
        np.save(folder / f"{number}.npy", hu)
    return paths


def a_second(count: int, work: object) -> float:
    """How many of `count` are done in a second, by the best of three."""
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        work()  # type: ignore[operator]
        best = max(best, count / (time.perf_counter() - start))
    return best


@click.command()
@click.option("--records", default=200, show_default=True)
@click.option("--steps", default=3, show_default=True, help="Training steps that are timed.")
def main(records: int, steps: int) -> None:
    """Measure the pipeline on the clip's own grid and on the largest one."""
    for grid in ((32, 112, 112), LARGEST_GRID):
        with tempfile.TemporaryDirectory() as name:
            paths = write(Path(name), records, grid)
            order = visits(records, 0, 1, BATCH)[np.newaxis]
            data = batches(
                paths,
                {"logits": np.zeros(records, np.int32)},
                grid,
                order=order,
                batch=BATCH,
                seed=1,
            )

            def through_pipeline(data: tf.data.Dataset = data) -> None:
                for _ in data:
                    pass

            def through_numpy(paths: list[Path] = paths) -> None:
                for first in range(0, len(paths), BATCH):
                    np.stack(
                        [np.load(path.with_suffix(".npy")) for path in paths[first : first + BATCH]]
                    )

            ours, theirs = a_second(order.size, through_pipeline), a_second(records, through_numpy)
            print(
                f"{'×'.join(map(str, grid))}: {ours:.0f} clips/s, {ours / theirs:.2f} of np.load +"
                " np.stack of the HU"
            )
            if grid == (32, 112, 112):
                share(data, grid, ours, steps)


def share(data: tf.data.Dataset, grid: tuple[int, int, int], rate: float, steps: int) -> None:
    """What pipeline and input layers take of a training step of I3D at 32×112×112."""
    feed = ClipTrainingInput(grid, grid, Preprocessing(), 1, Augmentation())
    network = cpu_optimised(I3D((*grid, 1), ct_score=False))
    optimizer = keras.optimizers.Adam(1e-4)

    @tf.function(jit_compile=False)
    def prepare(inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        return feed(**inputs, training=True)[0]

    @tf.function(jit_compile=False)
    def step(clip: tf.Tensor, label: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            logits = network(clip, training=True)["logits"]
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits))
        gradients = tape.gradient(loss, network.trainable_variables)
        optimizer.apply_gradients(zip(gradients, network.trainable_variables, strict=True))
        return loss

    times = {"feed": [], "step": []}  # type: dict[str, list[float]]
    for number, (inputs, target) in enumerate(data.take(steps + 1)):
        marks = [time.perf_counter()]
        clip = prepare(inputs)
        clip.numpy()
        marks.append(time.perf_counter())
        step(clip, target["logits"]).numpy()
        marks.append(time.perf_counter())
        if number:  # the first one traces
            times["feed"].append(marks[1] - marks[0])
            times["step"].append(marks[2] - marks[1])
    feeding, stepping, reading = np.median(times["feed"]), np.median(times["step"]), BATCH / rate
    whole = feeding + stepping + reading
    print(
        f"a step of I3D, batch {BATCH}: {whole:.2f} s, of them reading {100 * reading / whole:.1f}"
        f" %, window, mask and augmentation {100 * feeding / whole:.1f} %, network"
        f" {100 * stepping / whole:.1f} %"
    )


if __name__ == "__main__":
    main()
