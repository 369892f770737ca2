"""The statistics of batch norms.

A momentum that fits the run, and means and variances of the whole training set.

In training a batch norm divides by what its batch has; afterwards by running statistics, which
start at mean 0 and variance 1 and forget that by its momentum. With Keras' 0.99, 82 % of it is left
after 20 steps: the network that is saved is not the one that was trained. So the momentum follows
from the number of steps; and before a network is judged or saved its statistics are taken anew from
its training set, unchanged and in one order.

Source: Wu & Johnson 2021, “Rethinking ‘Batch’ in BatchNorm” (arXiv 2105.07576), section 3,
“PreciseBN”.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_covid.cohort.cache import CacheRecord
from tf_covid.tensor import Tensor
from tf_covid.training.tasks import LobesObjective, Objective

#: The momentum of Keras, which long runs keep.
SLOWEST = 0.99

#: A run forgets what its batch norms started with to e^−10, 5·10⁻⁵ of it, where it has so many
#: steps.
_TIMES = 10.0

#: Clips, or slices, that statistics are taken from where a network is judged after each epoch.
MOST_JUDGED = 256

#: The same, where a network answers for each cell of a whole scan.
MOST_SCANS = 32

#: Layer → its mean and variance, float32 (channels,) each.
Statistics = dict[str, tuple[np.ndarray, np.ndarray]]


def norms_of(network: keras.Model) -> list[keras.layers.BatchNormalization]:
    """The batch norms of a network, in its order; none for LTC."""
    return [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]


def fitting_momentum(steps: int) -> float:
    """The momentum of a run of so many steps: at most Keras' own 0.99, and at least a half."""
    return min(SLOWEST, max(0.5, 1.0 - _TIMES / max(steps, 1)))


def set_momentum(network: keras.Model, steps: int) -> None:
    """Give all batch norms of a network in training the momentum of a run of so many steps.

    The network that is saved is built anew, so that this never reaches a file.
    """
    for norm in norms_of(network):
        norm.momentum = fitting_momentum(steps)


class Census:
    """Takes the statistics of what reaches each batch norm over all clips that were trained on.

    Each batch is normalised by its own statistics, as in training; those of all batches together
    are exact for what reaches a batch norm that way. Nothing is changed at random, and no dropout
    is in the way.

    Args:
        network: Without what was there for the training only; its weights are overwritten.
        objective: What makes clips of records.
        records: The training set, in a fixed order; may be replaced by that of another epoch.
    """

    def __init__(
        self, network: keras.Model, objective: Objective, records: Sequence[CacheRecord]
    ) -> None:
        self.network, self._objective, self.records = network, objective, records
        self.norms = norms_of(network)
        self._graphs: dict[frozenset[str], Any] = {}

    def take(self, learning: Collection[str], *, max_clips: int | None = None) -> Statistics:
        """Statistics of the network as it is now.

        Args:
            learning: Names of the batch norms that learn; the others normalise by what they have,
                as in training.
            max_clips: Clips, or slices, to take them from, evenly chosen; None: all.

        Returns:
            Those of each layer that learns.
        """
        chosen = [norm for norm in self.norms if norm.name in learning]
        if not chosen:
            return {}
        count = len(self.records)
        if max_clips is not None:
            if isinstance(self._objective, LobesObjective):
                # Each cell of a whole scan is asked for an answer of its own.
                max_clips = min(max_clips, MOST_SCANS)
            count = min(count, max(1, max_clips // self._objective.each))
        order = np.linspace(0, len(self.records) - 1, count).round().astype(int)[np.newaxis]
        data = self._objective.batches(self.records, order=order, seed=0, even=True)
        graph = self._graph(frozenset(norm.name for norm in chosen), chosen)
        before = self.network.get_weights()
        clips, means, squares = 0, [0.0] * len(chosen), [0.0] * len(chosen)
        for inputs, targets in data:
            batch, _ = self._objective.prepare(inputs, targets, False)
            size = int(batch.shape[0])
            clips += size
            for index, (mean, variance) in enumerate(graph(batch)):
                # In float64: a variance is a difference of two large sums.
                average = mean.numpy().astype(np.float64)
                means[index] += size * average
                squares[index] += size * (variance.numpy().astype(np.float64) + average**2)
        self.network.set_weights(before)  # the running means have moved with each batch
        results = {}
        for norm, mean, square in zip(chosen, means, squares, strict=True):
            average = np.asarray(mean) / clips
            spread = np.maximum(np.asarray(square) / clips - average**2, 0.0)
            results[norm.name] = average.astype(np.float32), spread.astype(np.float32)
        return results

    def _graph(
        self, names: frozenset[str], chosen: Sequence[keras.layers.BatchNormalization]
    ) -> Tensor:
        """Clips → (mean, variance) of what reaches each chosen layer.

        A graph for each set of layers that learn.
        """
        if names not in self._graphs:
            for norm in self.norms:
                norm.trainable = norm.name in names
            # No dropout lies before a batch norm: those of our networks stand before the dense
            # layers.
            reaching = keras.Model(self.network.input, [norm.input for norm in chosen])

            def moments(clips: Tensor) -> list[tuple[Any, Any]]:
                results = reaching(clips, training=True)
                parts = results if isinstance(results, list) else [results]
                return [
                    tf.nn.moments(tf.cast(part, tf.float32), [*range(len(part.shape) - 1)])
                    for part in parts
                ]

            clip = tf.TensorSpec([None, *self.network.input_shape[1:]], tf.float32)
            self._graphs[names] = tf.function(moments, input_signature=[clip], jit_compile=False)
            self._graphs[names].get_concrete_function()
        return self._graphs[names]


def learning(network: keras.Model) -> list[str]:
    """Names of the batch norms that learn.

    Those of a frozen stage normalise by what they have, in training too.
    """
    return [norm.name for norm in norms_of(network) if norm.trainable]


def statistics_of(network: keras.Model) -> Statistics:
    """Mean and variance that the batch norms of a network have now."""
    return {
        norm.name: (np.asarray(norm.moving_mean), np.asarray(norm.moving_variance))
        for norm in norms_of(network)
    }


def give(network: keras.Model, statistics: Statistics) -> None:
    """Put statistics into the batch norms of a network."""
    for name, (mean, variance) in statistics.items():
        norm = network.get_layer(name)
        norm.moving_mean.assign(mean)
        norm.moving_variance.assign(variance)


def copy_weights(trained: keras.Model, plain: keras.Model) -> None:
    """All weights of a network in training into the plain one, which lacks what training added."""
    for layer in plain.layers:
        layer.set_weights(trained.get_layer(layer.name).get_weights())


class Judged(keras.callbacks.Callback):
    """Measures a network with statistics of its training set; it goes on with the running ones.

    What training itself goes on with is never touched, so that a resumed run meets the same
    numbers.

    Args:
        network: The one in training.
        census: Census of the plain network.
    """

    def __init__(self, network: keras.Model, census: Census) -> None:
        super().__init__()
        self._network, self._census = network, census
        self._running: Statistics = {}

    def on_test_begin(self, logs: dict[str, float] | None = None) -> None:
        """Take statistics, and measure with them."""
        if names := learning(self._network):
            self._running = statistics_of(self._network)
            copy_weights(self._network, self._census.network)
            give(self._network, self._census.take(names, max_clips=MOST_JUDGED))

    def on_test_end(self, logs: dict[str, float] | None = None) -> None:
        """Go on with the running ones."""
        give(self._network, self._running)
