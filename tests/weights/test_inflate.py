"""Inflation by its law.

A boring clip (one slice repeated) gives the 2D parent's answer, in the interior.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tf_covid.errors import ModelError
from tf_covid.models import I3D, InceptionV1
from tf_covid.weights.inflate import inflate, inflate_kernel


def randomise(network, seed):
    rng = np.random.default_rng(seed)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            beta, mean, variance = (np.array(weight) for weight in layer.get_weights())
            layer.set_weights(
                [
                    beta + rng.normal(0, 0.1, beta.shape),
                    mean + rng.normal(0, 0.1, mean.shape),
                    variance + rng.random(variance.shape) * 0.1,
                ]
            )


def test_a_boring_clip_equals_the_parent_at_every_endpoint(checkpoints):
    keras.utils.set_random_seed(0)
    parent, network = InceptionV1((32, 32, 3), classes=5), I3D((128, 32, 32, 3), classes=5)
    randomise(parent, 1)
    inflate(parent, network)
    picture = np.random.default_rng(2).random((1, 32, 32, 3), np.float32)
    checkpoints.check_inflated(parent, network, picture)
    np.testing.assert_array_equal(
        network.get_layer("logits").kernel, parent.get_layer("logits").kernel
    )


def test_other_classes_keep_their_own_start():
    parent, network = (
        InceptionV1((32, 32, 1), classes=1000),
        I3D((8, 32, 32, 1), classes=5, ct_score=True),
    )
    before = network.get_layer("logits").kernel.numpy()
    inflate(parent, network)
    np.testing.assert_array_equal(network.get_layer("logits").kernel, before)
    kernel = parent.get_layer("Conv2d_1a_7x7_conv").kernel.numpy()
    np.testing.assert_allclose(
        network.get_layer("Conv3d_1a_7x7_conv").kernel.numpy().sum(axis=0), kernel, atol=1e-6
    )


def test_a_kernel_is_repeated_and_divided():
    kernel = np.random.default_rng(3).random((3, 3, 2, 4))
    deep = inflate_kernel(kernel, 3)
    assert deep.shape == (3, 3, 3, 2, 4)
    np.testing.assert_allclose(deep[1], kernel / 3)


def test_another_stem_is_refused_with_its_shapes():
    with pytest.raises(ModelError, match=r"Conv3d_1a_7x7_conv: .*3, 64\)\] → \[\(7, 7, 7, 1, 64\)"):
        inflate(InceptionV1((32, 32, 3)), I3D((8, 32, 32, 1)))
