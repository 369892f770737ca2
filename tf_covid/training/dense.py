"""A classifier with more teachers than it ships with.

Where the disease lies, at every cell of its features.

The class of a chest is five numbers' worth of truth; the phantom knows each voxel. A 1×1×1
convolution on the features of an endpoint is asked for the diseased share of each cell; it is
thrown away after training, the features stay. A network that pools its diseased cells keeps it.
"""

from __future__ import annotations

import keras
import tensorflow as tf
from keras import layers

from tf_covid.models.blocks import DISEASE
from tf_covid.tensor import Tensor


def add_deep_supervision(
    network: keras.Model, endpoints: tuple[str, ...]
) -> tuple[keras.Model, dict[str, tuple[int, int, int]]]:
    """Add an output for the disease at each endpoint.

    Raises:
        ValueError: If the cells of an endpoint do not fill the clip.

    Returns:
        A model with the outputs of `network` and, for each endpoint, `disease_<endpoint>` (N, d, h,
        w, 1) logits; and the cells (d, h, w) of those.
    """
    outputs = dict(network.output)
    grids: dict[str, tuple[int, int, int]] = {}
    own = {layer.name: layer for layer in network.layers}
    for endpoint in endpoints:
        features = network.get_layer(endpoint).output
        name = f"{DISEASE}{endpoint}"
        # A network that pools its diseased cells has this layer itself.
        outputs[name] = (
            own[name].output
            if name in own
            else layers.Conv3D(1, 1, name=name, dtype="float32")(features)
        )
        depth, height, width = (int(side) for side in features.shape[1:4])
        grids[name] = depth, height, width
        clip = network.input_shape[1:4]
        if any(
            -(-side // -(-side // count)) != count
            for side, count in zip(clip, grids[name], strict=True)
        ):
            raise ValueError(
                f"the {depth}×{height}×{width} cells of {endpoint} do not fill a clip of {clip}"
            )
    return keras.Model(network.input, outputs, name=f"{network.name}_supervised"), grids


def pooled(lesions: Tensor, cells: tuple[int, int, int]) -> Tensor:
    """Mean of (N, T, H, W) over the cells of a feature grid, (N, *cells, 1)."""
    steps = [-(-size // count) for size, count in zip(lesions.shape[1:], cells, strict=True)]
    return tf.nn.avg_pool3d(lesions[..., tf.newaxis], steps, steps, "SAME")
