"""What a network starts from: the weights of a file, or a data-dependent initialisation."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tf_covid.errors import ModelError
from tf_covid.models.blocks import DISEASE
from tf_covid.weights import Preprocessing, catalog, load, read_contract

log = logging.getLogger(__name__)


def preprocessing_of_init(init: str | Path | None) -> tuple[Preprocessing, int, dict[str, Any]]:
    """What a network that starts from a file must share with it, or its weights meet another input.

    Returns:
        Preprocessing with the file's HU window and input scaling, channels of the input, further
        arguments of the builder.
    """
    if init is None:
        return Preprocessing(), 1, {}
    contract = read_contract(catalog.find(init))
    kept = contract.preprocessing.model_dump(
        include={"level_hu", "width_hu", "input_scale", "input_offset"}
    )
    shared: dict[str, Any] = {
        key: contract.arguments[key]
        for key in ("stem", "trunk", "disease_pooling")
        if key in contract.arguments
    }
    return Preprocessing(**kept), int(contract.arguments["input_shape"][-1]), shared


def start_from(network: keras.Model, init: str | Path | None) -> str:
    """Copy the weights of a file of ours into a network, where name and shapes are the same.

    Returns:
        What the origin says of it: the file's sha256; "" without a file.

    Raises:
        ModelError: If the file is damaged, or no layer fits.
    """
    if init is None:
        return ""
    source = load(init)
    weights = {layer.name: layer.get_weights() for layer in source.network.layers if layer.weights}
    taken = 0
    for layer in network.layers:
        values = weights.get(layer.name, [])
        if values and [value.shape for value in values] == [
            tuple(weight.shape) for weight in layer.weights
        ]:
            layer.set_weights(values)
            # Vectors alone, of batch norms that happen to be called alike, are no start.
            # Nor is what pools diseased cells, which has the same shape in all networks.
            convolves = any(value.ndim > 2 for value in values)
            taken += convolves and not layer.name.startswith(DISEASE)
            del weights[layer.name]
    if not taken:
        raise ModelError(f"{init}: no convolution has the name and shape of one of {network.name}")
    log.info(
        "%d layers with weights start from %s; left there: %s",
        taken,
        init,
        ", ".join(weights) or "none",
    )
    return f", started from the weights {source.sha256}"


def data_dependent_init(network: keras.Model, clips: np.ndarray) -> None:
    """Set what a network without batch normalisation starts from.

    Each unit has mean 0 and variance 1 on `clips`.

    A dense unit has few values to tell its variance by, one a clip, so that all units of its layer
    share theirs.

    With He's rule alone the clips of two patients, mostly the same dark air, leave the last of
    LTC's layers nearly alike, and its classes stay at chance for hundreds of steps.

    Args:
        network: Changed in place, layer after layer; its last layers, without ReLU, are left.
        clips: float32 (N, D, H, W, C), as the network meets them.

    Source: Krähenbühl, Doersch, Donahue & Darrell 2016 (arXiv 1511.06856), section 3.1, without its
    rescaling.
    """
    for layer in network.layers:
        if getattr(layer, "activation", None) is not keras.activations.relu:
            continue
        if layer.name.startswith(DISEASE):
            continue  # how much disease the cells show changes as soon as they are taught
        before = keras.Model(network.input, layer.input)
        # Called, not `predict`: that would trace a graph for each layer.
        layer.activation = keras.activations.linear
        # Sums over a few clips at a time, in float64: a layer's output of all clips may not fit
        # into memory, and sums in bfloat16 stall.
        count, total, squares, rank = 0, np.zeros(1), np.zeros(1), 0
        for first in range(0, len(clips), 4):
            results = (
                layer(before(clips[first : first + 4], training=False)).numpy().astype(np.float64)
            )
            rank, axes = results.ndim, tuple(range(results.ndim - 1))
            count += results[..., 0].size
            total, squares = total + results.sum(axes), squares + np.square(results).sum(axes)
        layer.activation = keras.activations.relu
        mean = total / count
        spread = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
        spread = spread + 1e-6 if rank > 2 else np.sqrt(np.mean(spread**2)) + 1e-6
        kernel, bias = layer.get_weights()
        layer.set_weights([kernel / spread, (bias - mean) / spread])
