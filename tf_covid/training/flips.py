"""A lobe network in training, whose head for flipped scans sees other views than the tissues."""

from __future__ import annotations

from typing import Any

import keras

from tf_covid.tensor import Tensor

#: The layer that the flips' head takes its input from, the head's first layer, and its last one.
_WINDOWS, _HEAD, _ANSWER = "windows", "flips_pool", "flips"

#: How often a scan is stored feet first, back for front, left for right in training.
FLIP_CHANCES = (0.5, 0.25, 0.5)

#: Views of a scan in a step. The head sees an eighth of the cells, so that several cost little, and
#: a scan beside its own mirror image says best what tells them apart.
VIEWS = 4


def with_flipped_views(network: keras.Model) -> keras.Model:
    """The network with further channels, views of the scan that only the head for flips sees.

    Args:
        network: `models.UNet3D` from scans (N, D, H, W, 1).

    Returns:
        A model from (N, D, H, W, 1 + VIEWS), the scan and its views, to `logits` of the scan and
        `flips` (N, 3 · VIEWS), those of view after view; with copies of all weights, in layers of
        the names that they have in `network`.
    """
    windows = network.get_layer(_WINDOWS).output
    channels = 1 + VIEWS
    readers = {
        layer.name
        for layer in network.layers
        if not isinstance(layer, keras.layers.InputLayer) and layer.input is windows
    }

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Tensor:
        if layer.name in readers:
            # Each window has all views, the scan first.
            shown = range(1, channels) if layer.name == _HEAD else (0,)
            views = [args[0][..., view::channels] for view in shown]
            return layer(keras.ops.concatenate(views, axis=0), *args[1:], **kwargs)
        if layer.name == _ANSWER:
            by_view = keras.ops.reshape(layer(*args, **kwargs), (VIEWS, -1, 3))
            return keras.ops.reshape(keras.ops.transpose(by_view, (1, 0, 2)), (-1, 3 * VIEWS))
        return layer(*args, **kwargs)

    shape = (*network.input_shape[1:4], channels)
    copy = keras.models.clone_model(
        network, input_tensors=keras.Input(shape, name=network.input.name), call_function=call
    )
    for layer in copy.layers:
        if layer.weights:
            layer.set_weights(network.get_layer(layer.name).get_weights())
    return copy
