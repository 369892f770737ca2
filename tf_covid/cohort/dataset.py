"""Records of the cache → batches.

Int16 HU and packed masks leave the pipeline; all else happens on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_covid.cohort.planes import FINER
from tf_covid.tensor import Tensor

#: Records that are read at the same time.
READERS = 4

#: Records whose slices are mixed with each other.
_MIXED = 16

Batch = tuple[dict[str, Any], dict[str, Any]]


def visits(count: int, epoch: int, seed: int, batch: int) -> np.ndarray:
    """The order in which an epoch of training sees the records: shuffled, and cut to whole batches.

    Args:
        count: Number of records.
        epoch: 0 ….
        seed: Same seed and epoch, same order, whatever happened before.
        batch: Records a batch; all of them where there are fewer.

    Returns:
        Numbers of the records, int64.
    """
    batch = min(batch, count)
    return np.random.default_rng([seed, epoch, 0xDA7A]).permutation(count)[: count // batch * batch]


def batches(
    paths: Sequence[Path],
    targets: Mapping[str, np.ndarray],
    grid: tuple[int, int, int],
    *,
    order: np.ndarray,
    batch: int,
    seed: int,
    first_epoch: int = 0,
    slices: int = 0,
    parse: Callable[[Tensor, tuple[int, int, int]], dict[str, Any]] | None = None,
) -> tf.data.Dataset:
    """Batches of records, in a given order, epoch after epoch.

    An epoch's last batch may be smaller.

    An epoch depends on nothing before it, so that a run that goes on with it sees what it would
    have seen.

    Args:
        paths: A TFRecord each.
        targets: Name → a value for each record, (N,) or (N, 1).
        grid: Frames, height and width of the records.
        order: int (E, V): which records, one after the other, in each epoch.
        batch: Records a batch, or slices where `slices` is given.
        seed: With epoch and place, what each element's changes are drawn from.
        first_epoch: Number of the first of `order`.
        slices: Draw so many slices from each record instead of all of it, and mix those of several
            records; −1 takes all of them, in order.
        parse: Reads another kind of record, see `parsed_volume`.

    Returns:
        ({`hu` int16 (N, D, H, W), `lungs` and `lesions` uint8 (N, bytes) packed bits, `seed` int32
        (N, 2)}, targets); for slices (N, H, W), with `slice` int32 (N,), their number. Lesions that
        nobody drew are all 0.
    """
    parse = parse or _parsed
    order = np.asarray(order, np.int64)
    epochs, visits_each = order.shape
    visit_numbers = (first_epoch + np.arange(epochs))[:, np.newaxis] * visits_each + np.arange(
        visits_each
    )
    files = tf.constant([str(path) for path in paths])
    tables = {name: tf.constant(values) for name, values in targets.items()}

    def read(record_index: Tensor, visit: Tensor) -> tf.data.Dataset:
        # One record a file: paths are shuffled, not volumes.
        target = {name: table[record_index] for name, table in tables.items()}
        visit_seed = tf.stack([tf.constant(seed, tf.int32), tf.cast(visit, tf.int32)])
        record = tf.data.TFRecordDataset(files[record_index])
        return record.map(lambda text: ({**parse(text, grid), "seed": visit_seed}, target))

    def epoch(record_indices: Tensor, visit_numbers: Tensor) -> tf.data.Dataset:
        results = tf.data.Dataset.from_tensor_slices((record_indices, visit_numbers)).interleave(
            read,
            cycle_length=READERS,
            block_length=1,
            num_parallel_calls=READERS,
            deterministic=True,
        )
        if slices:
            results = results.flat_map(lambda inputs, target: _slices(inputs, target, grid, slices))
        if slices > 0:
            graph = tf.compat.v1.get_default_graph()
            if graph.seed == 0:
                # With 0, `shuffle` compares the symbolic seed in Python, which fails.
                graph.seed = 1
            results = results.shuffle(
                _MIXED * slices, seed=seed + visit_numbers[0], reshuffle_each_iteration=False
            )
        return results.batch(batch)

    options = tf.data.Options()
    # A batch is split between replicas by its rows; there are no files to split by.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    results = tf.data.Dataset.from_tensor_slices((order, visit_numbers)).flat_map(epoch)
    each = visits_each * (slices if slices > 0 else grid[0] if slices else 1)
    # Keras warns of data sets whose end it does not know.
    counted = results.apply(tf.data.experimental.assert_cardinality(epochs * -(-each // batch)))
    return counted.prefetch(2).with_options(options)


def _parsed(text: Tensor, grid: tuple[int, int, int]) -> dict[str, Any]:
    parts = tf.io.parse_single_example(
        text, {name: tf.io.FixedLenFeature([], tf.string) for name in ("hu", "lungs", "lesions")}
    )
    cells = int(np.prod(grid))
    size = -(-cells // 8)
    zero_mask = tf.zeros([size], tf.uint8)
    lesions = tf.io.decode_raw(parts["lesions"], tf.uint8)
    return {
        "hu": tf.reshape(tf.io.decode_raw(parts["hu"], tf.int16), grid),
        "lungs": tf.ensure_shape(tf.io.decode_raw(parts["lungs"], tf.uint8), [size]),
        "lesions": tf.ensure_shape(
            tf.cond(tf.size(lesions) > 0, lambda: lesions, lambda: zero_mask), [size]
        ),
    }


def parsed_volume(text: Tensor, grid: tuple[int, int, int]) -> dict[str, Any]:
    """A record of kind "volumes", for `batches`.

    Args:
        text: The record's bytes.
        grid: D, H and W of its HU.

    Returns:
        `hu` int16 (D, H, W), `labels` uint8 (FINER·D, FINER·H, FINER·W), `volume_ml` float32 (1,).
    """
    parts = tf.io.parse_single_example(
        text, {name: tf.io.FixedLenFeature([], tf.string) for name in ("hu", "labels", "volume_ml")}
    )
    labels = tf.io.decode_raw(tf.io.decode_compressed(parts["labels"], "ZLIB"), tf.uint8)
    return {
        "hu": tf.reshape(tf.io.decode_raw(parts["hu"], tf.int16), grid),
        "labels": tf.reshape(labels, [FINER * side for side in grid]),
        "volume_ml": tf.ensure_shape(tf.io.decode_raw(parts["volume_ml"], tf.float32), [1]),
    }


def _slices(
    inputs: dict[str, Any], target: dict[str, Any], grid: tuple[int, int, int], count: int
) -> tf.data.Dataset:
    """Slices of one record, each with a seed of its own.

    Rows of a mask are whole bytes: see `plane_bytes`.
    """
    seed = inputs["seed"]
    chosen = tf.range(grid[0])
    if count > 0:
        chosen = tf.random.stateless_uniform([count], seed, 0, grid[0], tf.int32)
    size = plane_bytes(grid)
    parts = {"hu": tf.gather(inputs["hu"], chosen)}
    for name in ("lungs", "lesions"):
        parts[name] = tf.gather(tf.reshape(inputs[name], [grid[0], size]), chosen)
    total = tf.shape(chosen)[0]
    parts["seed"] = tf.stack([tf.repeat(seed[0], total), seed[1] * 4096 + tf.range(total)], axis=1)
    parts["slice"] = chosen
    repeated = {name: tf.repeat(value[tf.newaxis], total, axis=0) for name, value in target.items()}
    return tf.data.Dataset.from_tensor_slices((parts, repeated))


def plane_bytes(grid: tuple[int, int, int]) -> int:
    """Bytes of one plane of a packed mask.

    Raises:
        ValueError: If a plane does not fill whole bytes.
    """
    cells = grid[1] * grid[2]
    if cells % 8:
        raise ValueError(f"slices need planes of a multiple of 8 pixels, not {grid[1]}×{grid[2]}")
    return cells // 8
