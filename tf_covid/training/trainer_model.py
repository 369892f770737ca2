"""A network in training.

What comes from the pipeline is made into its input on the device, step by step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tf_covid.tensor import Tensor

Prepare = Callable[[dict[str, Any], dict[str, Any], bool], tuple[Any, dict[str, Any]]]


class TrainerModel(keras.Model):
    """A network and the layers in front of it.

    Args:
        network: Network from clips or slices to a dict of outputs.
        prepare: (inputs, targets, training) of a batch → the network's input and the truth of each
            of its outputs.
    """

    def __init__(self, network: keras.Model, prepare: Prepare, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.network, self._prepare = network, prepare
        self.built = True  # the network is

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        """The network's outputs."""
        return self.network(inputs, training=training)

    def train_step(self, data: Tensor) -> dict[str, Any]:
        """One step on a batch as it leaves the pipeline."""
        inputs, targets = data
        return dict(super().train_step(self._prepare(inputs, targets, True)))

    def test_step(self, data: Tensor) -> dict[str, Any]:
        """Measure a batch as it leaves the pipeline."""
        inputs, targets = data
        return dict(super().test_step(self._prepare(inputs, targets, False)))

    def _symbolic_build(self, iterator: Tensor = None, data_batch: Tensor = None) -> None:
        # Where there are several devices Keras builds its metrics from a made-up batch, all floats:
        # it has to be of the types that leave the pipeline, and prepared.
        inputs, targets = data_batch
        types = {"hu": tf.int16, "volume_ml": tf.float32}
        types |= dict.fromkeys(("lungs", "lesions", "labels"), tf.uint8)
        inputs = {
            name: tf.zeros(tf.shape(value), types.get(name, tf.int32))
            for name, value in inputs.items()
        }
        super()._symbolic_build(data_batch=self._prepare(inputs, targets, False))
