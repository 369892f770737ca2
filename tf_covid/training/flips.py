"""A lobe network in training, whose head for flipped scans sees another view than the tissues."""

from __future__ import annotations

from typing import Any

import keras

from tf_covid.tensor import Tensor

#: The layer that the flips' head takes its input from, and the head's first layer.
_WINDOWS, _HEAD = "windows", "flips_pool"

#: How often a scan is stored feet first, back for front, left for right in training.
FLIP_CHANCES = (0.5, 0.25, 0.5)


def with_flipped_view(network: keras.Model) -> keras.Model:
    """The network with a second channel, a view of the scan that only the head for flips sees.

    Args:
        network: `models.UNet3D` from scans (N, D, H, W, 1).

    Returns:
        A model from (N, D, H, W, 2), the scan and its view, with copies of all weights; layers have
        the names that they have in `network`.
    """
    windows = network.get_layer(_WINDOWS).output
    readers = {
        layer.name
        for layer in network.layers
        if not isinstance(layer, keras.layers.InputLayer) and layer.input is windows
    }

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Tensor:
        if layer.name in readers:
            # Each window has both views, the scan first.
            view = 1 if layer.name == _HEAD else 0
            return layer(args[0][..., view::2], *args[1:], **kwargs)
        return layer(*args, **kwargs)

    shape = (*network.input_shape[1:4], 2)
    copy = keras.models.clone_model(
        network, input_tensors=keras.Input(shape, name=network.input.name), call_function=call
    )
    for layer in copy.layers:
        layer.set_weights(network.get_layer(layer.name).get_weights())
    return copy
