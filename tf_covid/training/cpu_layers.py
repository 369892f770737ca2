"""Layers that a CPU trains faster, with the same answers and weights."""

from __future__ import annotations

import functools
import os
import platform
import sys
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from tf_covid.layers.pool import max_pool_by_axis
from tf_covid.tensor import Tensor


class CpuMaxPool3D(layers.Layer):
    """Max pooling of values ≥ 0 by axis: the answer of `MaxPooling3D`, a faster gradient on a CPU.

    Faster than TensorFlow's own kernel of the gradient; oneDNN's is faster still, see `has_onednn`.

    Args:
        pool_size: Window along D, H, W.
        strides: Stride along D, H, W.

    Input: (N, D, H, W, C), ≥ 0 (after a ReLU): the padding is 0. Padding is "same".
    """

    def __init__(self, pool_size: tuple[int, ...], strides: tuple[int, ...], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pool_size, self.strides = tuple(pool_size), tuple(strides)

    def call(self, x: Tensor) -> Tensor:
        """Features → pooled features."""
        return max_pool_by_axis(
            x,
            self.pool_size,
            self.strides,
            "same",
            fill=0,
            maximum=lambda taps: functools.reduce(tf.maximum, taps),
        )

    def get_config(self) -> dict[str, Any]:
        """Arguments that rebuild the layer."""
        return {**super().get_config(), "pool_size": self.pool_size, "strides": self.strides}


class CpuStem(layers.Layer):
    """The 7×7×7 convolution of stride 2 that I3D begins with, as one of stride 1: the same answer.

    Its gradient on a CPU falls back to a kernel that is some hundred times slower for most sizes of
    a batch (19 s where this takes 0.1 s, for four clips of 16×48×48). Two voxels along each axis
    become channels, and so do the weights that meet them.

    Args:
        filters: Number of filters of the convolution.
        padding: Padding of the convolution, "same" or "valid".

    Input: (N, D, H, W, C). The kernel is that of the `Conv3D`, (7, 7, 7, C, filters).
    """

    def __init__(self, filters: int, padding: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters, self.padding = filters, padding

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Make the kernel."""
        self.kernel = self.add_weight(name="kernel", shape=(7, 7, 7, shape[-1], self.filters))

    def call(self, x: Tensor) -> Tensor:
        """Features of half the size."""
        pads = [[0, 0]]
        for side in x.shape[1:4]:
            out = -(-side // 2) if self.padding == "same" else (side - 7) // 2 + 1
            before = max((out - 1) * 2 + 7 - side, 0) // 2 if self.padding == "same" else 0
            pads.append([before, 2 * out + 6 - side - before])
        x = tf.pad(x, [*pads, [0, 0]])
        depth, height, width, channels = x.shape[1:]
        x = tf.reshape(x, [tf.shape(x)[0], depth // 2, 2, height // 2, 2, width // 2, 2, channels])
        x = tf.reshape(
            tf.transpose(x, [0, 1, 3, 5, 2, 4, 6, 7]),
            [tf.shape(x)[0], depth // 2, height // 2, width // 2, 8 * channels],
        )
        kernel = tf.pad(tf.cast(self.kernel, x.dtype), [[0, 1], [0, 1], [0, 1], [0, 0], [0, 0]])
        kernel = tf.transpose(
            tf.reshape(kernel, [4, 2, 4, 2, 4, 2, channels, self.filters]), [0, 2, 4, 1, 3, 5, 6, 7]
        )
        return tf.nn.conv3d(
            x, tf.reshape(kernel, [4, 4, 4, 8 * channels, self.filters]), [1] * 5, "VALID"
        )

    def get_config(self) -> dict[str, Any]:
        """Arguments that rebuild the layer."""
        return {**super().get_config(), "filters": self.filters, "padding": self.padding}


def has_onednn() -> bool:
    """Whether TensorFlow's 3D operations are surely oneDNN's in this process.

    Elsewhere than on x86 they never are; there, they are if the environment asks for it, as the
    command line does. Without the variable TensorFlow decides by the processor, and does not say.
    """
    asked = os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "1"
    x86 = platform.machine().lower() in {"x86_64", "amd64"}
    return asked and x86 and sys.platform in {"linux", "win32"}


def cpu_optimised(network: keras.Model) -> keras.Model:
    """The network with `CpuStem` and, without oneDNN, `CpuMaxPool3D` in place.

    The weights are in the same order. With oneDNN's pools a step of I3D takes two thirds of the
    time that it takes with ours (`benchmarks/pools.py`).
    """
    by_axis = not has_onednn()

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        if by_axis and isinstance(layer, layers.MaxPooling3D) and layer.padding == "same":
            return CpuMaxPool3D(
                layer.pool_size, layer.strides, name=layer.name, dtype=layer.dtype_policy
            )
        if isinstance(layer, layers.Conv3D) and (layer.kernel_size, layer.strides) == (
            (7, 7, 7),
            (2, 2, 2),
        ):
            return CpuStem(layer.filters, layer.padding, name=layer.name, dtype=layer.dtype_policy)
        return layer.__class__.from_config(layer.get_config())

    copy = keras.models.clone_model(network, clone_function=clone)
    copy.set_weights(network.get_weights())
    return copy
