"""LOGITS → MAP: Grad-CAM by tf-keras-vis on the head, behind a backbone that ran once.

Polarity, everywhere: larger means that more of the feature there raises the target. Nothing below
0, nothing inverted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from tf_covid.layers.pool import max_pool_by_axis
from tf_covid.tensor import Tensor

Method = Literal["gradcam", "gradcam++", "layercam"]

#: Name of the head's first layer, which tf-keras-vis explains.
_FIRST = "features"


@dataclass(frozen=True)
class Split:
    """A network cut in two at an endpoint.

    Args:
        backbone: Clip → features.
        head: Features → `{"logits": …}` and `ct_score` where the network has one.
        tie_sharing_head: `head` with the same answers and weights, with pools whose gradient is
            right (`TieSharingMaxPool3D`).
        explained: `tie_sharing_head`, logits only; its first layer is called "features".
        endpoint: Name of the layer at the cut.
    """

    backbone: keras.Model
    head: keras.Model
    tie_sharing_head: keras.Model
    explained: keras.Model
    endpoint: str


def split(network: keras.Model, endpoint: str) -> Split:
    """Cut a functional network at the output of a layer.

    Args:
        network: Model from clips to `{"logits": …}`.
        endpoint: Layer name, e.g. "Mixed_5c".

    Raises:
        ValueError: If there is no such layer, or the answer does not come from its output alone.
    """
    features = network.get_layer(endpoint).output
    backbone = keras.Model(network.input, features, name="backbone")
    past = f"the answer depends on layers before {endpoint} as well"
    try:
        head = keras.Model(features, network.output, name="head")
    except ValueError as error:
        raise ValueError(past) from error
    # Older Keras builds such a head, with the network's own input inside it, and fails on its use.
    if sum(isinstance(layer, keras.layers.InputLayer) for layer in head.layers) > 1:
        raise ValueError(past)
    # float32 under any policy: tf-keras-vis multiplies and sums over the channels in the features'
    # type.
    inputs = keras.Input(features.shape[1:], dtype="float32", name="seed")
    # tf-keras-vis differentiates by the output of a layer, and an input is none.
    first = keras.layers.Activation("linear", dtype="float32", name=_FIRST)(inputs)
    sharing = keras.models.clone_model(head, clone_function=_with_shared_ties)
    explained = keras.Model(inputs, sharing(first)["logits"], name="explained")
    return Split(backbone, head, sharing, explained, endpoint)


class TieSharingMaxPool3D(keras.layers.MaxPooling3D):
    """Max pooling whose gradient is shared by all cells of a window that hold its maximum.

    Outside the lungs a clip is constant, and so are the features: whole windows are ties.
    TensorFlow's own gradient on a CPU (without oneDNN, and always outside a graph) gives each of
    them the whole gradient, which multiplied the weight of the empty background in Grad-CAM many
    times over; oneDNN gives it to one of them. Here a window's gradient stays what it is, on every
    device.

    The arguments, the input and the output are those of `keras.layers.MaxPooling3D`, channels last.
    """

    def call(self, inputs: Tensor) -> Tensor:
        """Maximum along one axis after the other."""
        return max_pool_by_axis(
            inputs,
            self.pool_size,
            self.strides,
            self.padding,
            fill=inputs.dtype.min,
            # Its gradient is divided by the number of ties.
            maximum=lambda taps: tf.reduce_max(tf.stack(taps), axis=0),
        )


def _with_shared_ties(layer: keras.layers.Layer) -> keras.layers.Layer:
    """The layer itself, weights and all, or a tie-sharing pool in the place of a pool."""
    if isinstance(layer, keras.layers.MaxPooling3D):
        return TieSharingMaxPool3D.from_config(layer.get_config())
    return layer


def expected_class(logits: Tensor) -> Tensor:
    """Expected class index, Σ k·pₖ, of logits (N, classes): what raises it raises severity.

    Shape (N,).
    """
    probabilities = tf.nn.softmax(tf.cast(logits, tf.float32))
    return tf.reduce_sum(probabilities * tf.range(tf.shape(logits)[-1], dtype=tf.float32), axis=-1)


def class_logit(class_index: int) -> Callable[[Any], Any]:
    """The logit of one class: the paper's target."""
    return lambda logits: tf.cast(logits[:, class_index], tf.float32)


def attention_map(
    explained: keras.Model,
    features: Tensor,
    target: Callable[[Any], Any],
    method: Method = "gradcam",
) -> np.ndarray:
    """The raw map of one scan on the grid of its features.

    Args:
        explained: `Split.explained`.
        features: (1, d, h, w, C).
        target: Logits (1, classes) → score (1,).
        method: "gradcam" (Selvaraju 2017), "gradcam++" (Chattopadhay 2018) or "layercam" (Jiang
            2021).

    Returns:
        float32 (d, h, w), ≥ 0, neither normalised nor enlarged: tf-keras-vis would
        min-max-normalise and zoom corner-aligned without an affine.

    Raises:
        ValueError: If the method does not exist.
    """
    from tf_keras_vis.gradcam import Gradcam
    from tf_keras_vis.gradcam_plus_plus import GradcamPlusPlus
    from tf_keras_vis.layercam import Layercam

    methods = {"gradcam": Gradcam, "gradcam++": GradcamPlusPlus, "layercam": Layercam}
    if method not in methods:
        raise ValueError(f"method must be one of {', '.join(methods)}, not {method!r}")
    raw = methods[method](explained, clone=False)(
        target,
        tf.cast(features, tf.float32),
        penultimate_layer=_FIRST,
        seek_penultimate_conv_layer=False,
        expand_cam=False,
        normalize_cam=False,
    )
    # Grad-CAM++ can divide by a vanishing sum; such a cell counts as 0.
    positive = np.maximum(np.asarray(raw, np.float32)[0], 0.0)
    cells: np.ndarray = np.nan_to_num(positive, nan=0.0, posinf=0.0)
    return cells
