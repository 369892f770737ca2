"""A network in training.

What comes from the pipeline is made into its input on the device, step by step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from tf_covid.tensor import Tensor

if TYPE_CHECKING:
    from tf_covid.training.worker_group import WorkerGroup

Prepare = Callable[[dict[str, Any], dict[str, Any], bool], tuple[Any, dict[str, Any]]]


class TrainerModel(keras.Model):
    """A network and the layers in front of it.

    Args:
        network: Network from clips or slices to a dict of outputs.
        prepare: (inputs, targets, training) of a batch → the network's input and the truth of each
            of its outputs.
        group: The workers that train it together; None: this process alone.
    """

    def __init__(
        self,
        network: keras.Model,
        prepare: Prepare,
        *,
        group: WorkerGroup | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.network, self._prepare, self._group = network, prepare, group
        self.built = True  # the network is

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        """The network's outputs."""
        return self.network(inputs, training=training)

    def train_step(self, data: Tensor) -> dict[str, Any]:
        """One step on a batch as it leaves the pipeline."""
        inputs, targets = data
        prepared = self._prepare(inputs, targets, True)
        if self._group is None:
            return dict(super().train_step(prepared))
        return self._step_together(self._group, prepared)

    def _step_together(self, group: WorkerGroup, prepared: Tensor) -> dict[str, Any]:
        """Keras' own step, with the network's work shared by the workers.

        Each answers its part of the batch, and all compute the loss of all answers: some losses are
        no means over rows. What is changed at random is drawn for the whole batch, which each
        worker has therefore made ready.
        """
        x, y = prepared
        with tf.GradientTape() as tape:
            outputs = group.gathered(self(group.part(x), training=True))
            loss = self.compute_loss(x=x, y=y, y_pred=outputs)
            scaled = self.optimizer.scale_loss(loss)
        weights = self.trainable_weights
        # Each has the gradient by its own rows.
        gradients = [tf.convert_to_tensor(one) for one in tape.gradient(scaled, weights)]
        self.optimizer.apply_gradients(zip(group.total(gradients), weights, strict=True))
        self._loss_tracker.update_state(loss, sample_weight=tf.shape(x)[0])
        return dict(self.compute_metrics(x, y, outputs))

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
