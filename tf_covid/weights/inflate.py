"""From a trained 2D Inception-v1 to an I3D.

What the network knows of pictures, it knows of a clip of them.
"""

from __future__ import annotations

import keras
import numpy as np

from tf_covid.errors import ModelError


def inflate_kernel(kernel: np.ndarray, frames: int) -> np.ndarray:
    """A 2D kernel (H, W, C, F), repeated `frames` times along time and divided by that number.

    (frames, H, W, C, F).

    A clip of one slice repeated then gives the answer of that slice (Carreira & Zisserman 2017,
    section 2.4).
    """
    return np.repeat(kernel[np.newaxis] / frames, frames, axis=0)


def inflate(parent: keras.Model, network: keras.Model) -> None:
    """Fill a 3D network with the weights of its 2D parent, layer by layer.

    Args:
        parent: `models.InceptionV1`.
        network: `models.I3D` with the "global" head and the same channels; its weights are
            replaced. Dense outputs are taken over where their shapes agree, and otherwise left at
            their start.

    Raises:
        ModelError: If a layer of either trunk has no counterpart or another shape; all of them are
            listed.
    """
    theirs = {
        layer.name.replace("Conv2d", "Conv3d"): layer for layer in parent.layers if layer.weights
    }
    ours = {layer.name: layer for layer in network.layers if layer.weights}
    dense = {name for name, layer in ours.items() if isinstance(layer, keras.layers.Dense)}
    problems = [
        f"{name}: only in one of the two" for name in sorted((theirs.keys() ^ ours.keys()) - dense)
    ]
    filled: list[tuple[keras.layers.Layer, list[np.ndarray]]] = []
    for name in theirs.keys() & ours.keys():
        target, values = ours[name], theirs[name].get_weights()
        if isinstance(target, keras.layers.Conv3D):
            values[0] = inflate_kernel(values[0], target.kernel_size[0])
        if [value.shape for value in values] == [tuple(weight.shape) for weight in target.weights]:
            filled.append((target, values))
        elif name not in dense:
            problems.append(
                f"{name}: {[value.shape for value in values]} →"
                f" {[tuple(w.shape) for w in target.weights]}"
            )
    if problems:
        raise ModelError(
            "the 2D network does not inflate into this 3D network: " + "; ".join(problems)
        )
    for target, values in filled:
        target.set_weights(values)
