"""LOGITS → MAP: Grad-CAM by tf-keras-vis on the head, behind a backbone that ran once.

Polarity, everywhere: larger means that more of the feature there raises the target. Nothing below
0, nothing inverted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import keras
import numpy as np
import tensorflow as tf

from tf_covid.layers.pool import max_pool_by_axis
from tf_covid.tensor import Tensor

Method = Literal["gradcam", "gradcam++", "layercam"]

#: What is explained: logits (N, classes) → score (N,).
Target = Callable[[Any], Any]

#: Features (N, d, h, w, C), float32 → the target (N, 1) and its gradient by the features.
Step = Callable[[Any], tuple[Any, Any]]

#: Name of the head's first layer, which tf-keras-vis explains.
_FIRST = "features"


class Cut(Protocol):
    """What can be explained: a `Split`, or what stands for one."""

    @property
    def endpoint(self) -> str:
        """Name of the layer at the cut."""

    def explained(self, target: Target) -> keras.Model:
        """Features → the target, from `explained_by`."""


def explained_by(step: Step, features: Sequence[int]) -> keras.Model:
    """The model that tf-keras-vis explains: features → the target (N, 1).

    Args:
        step: Computes the target and its gradient.
        features: Shape (d, h, w, C) of the features.
    """
    # float32 under any policy: tf-keras-vis multiplies and sums over the channels in the features'
    # type.
    inputs = keras.Input(tuple(features), dtype="float32", name="seed")
    # tf-keras-vis differentiates by the output of a layer, and an input is none.
    first = keras.layers.Activation("linear", dtype="float32", name=_FIRST)(inputs)
    return keras.Model(inputs, CompiledTarget(step, dtype="float32")(first), name="explained")


@dataclass(frozen=True)
class Split:
    """A network cut in two at an endpoint.

    Args:
        backbone: Clip → features.
        head: Features → `{"logits": …}` and `ct_score` where the network has one.
        tie_sharing_head: `head` with the same answers and weights, with pools whose gradient is
            right (`TieSharingMaxPool3D`), and sums and scalings whose gradient OpenVINO knows.
        endpoint: Name of the layer at the cut.
    """

    backbone: keras.Model
    head: keras.Model
    tie_sharing_head: keras.Model
    endpoint: str
    _explained: dict[Target, keras.Model] = field(default_factory=dict, repr=False, compare=False)
    _steps: dict[Target, Any] = field(default_factory=dict, repr=False, compare=False)

    def explained(self, target: Target) -> keras.Model:
        """Features (1, d, h, w, C), float32 → the target (1, 1); the first layer is "features".

        It is made once for each target, and traced when it is first explained.
        """
        if target not in self._explained:
            shape = self.tie_sharing_head.input_shape[1:]
            self._explained[target] = explained_by(self.step(target), shape)
        return self._explained[target]

    def step(self, target: Target) -> Any:  # noqa: ANN401  # a tf.function
        """The target and its gradient as one compiled step, made once for each target."""
        if target in self._steps:
            return self._steps[target]

        def differentiated(features: Tensor) -> tuple[Tensor, Tensor]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(features)
                value = target(self.tie_sharing_head(features, training=False)["logits"])
            # Each scan's score depends on its own features alone.
            return value[:, tf.newaxis], tape.gradient(value, features)

        step = tf.function(differentiated, autograph=False, reduce_retracing=True)
        return self._steps.setdefault(target, step)


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
    sharing = keras.models.clone_model(head, clone_function=_with_shared_ties)
    return Split(backbone, head, sharing, endpoint)


class CompiledTarget(keras.layers.Layer):
    """A head and its target as one layer, whose value and gradient are one compiled step.

    tf-keras-vis runs its model outside a graph. There every operation of a head waits for Python,
    and each convolution's gradient by its kernel is computed, which nobody asks for.

    Args:
        step: Computes both.
    """

    def __init__(self, step: Step, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._step = step

    def call(self, features: Tensor) -> Tensor:
        """Features (N, d, h, w, C) → scores (N, 1)."""
        # A tape outside must not differentiate the step once more.
        value, gradient = self._step(tf.stop_gradient(features))

        def scaled(upstream: Tensor) -> Tensor:
            return gradient * tf.reshape(upstream, [-1, *[1] * (len(gradient.shape) - 1)])

        return tf.custom_gradient(lambda _: (value, scaled))(features)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, int]:
        """Shape of the scores; nothing is traced for it."""
        return (input_shape[0], 1)

    def compute_output_spec(self, features: keras.KerasTensor) -> keras.KerasTensor:
        """Likewise."""
        return keras.KerasTensor(self.compute_output_shape(features.shape), dtype="float32")


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
            maximum=lambda taps: _shared_maximum(*taps),
        )


@tf.custom_gradient
def _shared_maximum(*taps: Tensor) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
    """The elementwise maximum, whose gradient is divided among the taps that hold it."""
    highest = functools.reduce(tf.maximum, taps)

    def gradient(upstream: Tensor) -> list[Tensor]:
        held = [tf.cast(tap >= highest, upstream.dtype) for tap in taps]
        each = upstream / tf.add_n(held)
        return [each * holds for holds in held]

    return highest, gradient


# Of `a + b` and `a * b` TensorFlow asks in the graph along which axes one was broadcast
# (`BroadcastGradientArgs`), which OpenVINO cannot tell. Nothing is broadcast in these two.


class _SumOfEquals(keras.layers.Add):
    """The sum of tensors of one shape."""

    def call(self, inputs: list[Tensor]) -> Tensor:
        """The same as `keras.layers.Add` gives."""
        return tf.add_n(inputs)


class _ScalarRescaling(keras.layers.Rescaling):
    """The product with one number, and the sum with another."""

    def call(self, inputs: Tensor) -> Tensor:
        """The same as `keras.layers.Rescaling` gives."""

        @tf.custom_gradient
        def rescaled(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
            return x * self.scale + self.offset, lambda upstream: upstream * self.scale

        return rescaled(tf.cast(inputs, self.compute_dtype))


def _with_shared_ties(layer: keras.layers.Layer) -> keras.layers.Layer:
    """The layer itself, weights and all, or what takes the place of a pool, a sum or a scaling."""
    kind: type[keras.layers.Layer] | None = None
    if isinstance(layer, keras.layers.MaxPooling3D):
        kind = TieSharingMaxPool3D
    elif type(layer) is keras.layers.Add and len({one.shape for one in layer.input}) == 1:
        kind = _SumOfEquals
    elif type(layer) is keras.layers.Rescaling and not np.shape(layer.scale) + np.shape(
        layer.offset
    ):
        kind = _ScalarRescaling
    return kind.from_config(layer.get_config()) if kind else layer


def expected_class(logits: Tensor) -> Tensor:
    """Expected class index, Σ k·pₖ, of logits (N, classes): what raises it raises severity.

    Shape (N,).
    """
    probabilities = tf.nn.softmax(tf.cast(logits, tf.float32))
    return tf.reduce_sum(probabilities * tf.range(tf.shape(logits)[-1], dtype=tf.float32), axis=-1)


@functools.cache
def class_logit(class_index: int) -> Callable[[Any], Any]:
    """The logit of one class, the paper's target; the same function for the same class."""
    return lambda logits: tf.cast(logits[:, class_index], tf.float32)


def attention_map(
    cut: Cut,
    features: Tensor,
    target: Target,
    method: Method = "gradcam",
) -> np.ndarray:
    """The raw map of one scan on the grid of its features.

    Args:
        cut: The network, cut where the features are.
        features: (1, d, h, w, C).
        target: `expected_class`, or what `class_logit` gives.
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
    raw = methods[method](cut.explained(target), clone=False)(
        lambda scores: scores[:, 0],
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
