"""CLIP → LOGITS: the networks, of stock Keras layers only, so that any Keras loads them.

A new network is a file here, a row in `NETWORKS` and a row in the shared model test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from tf_covid.models import i3d, ltc
from tf_covid.models.i3d import I3D
from tf_covid.models.inception_v1 import InceptionV1
from tf_covid.models.ltc import LTC
from tf_covid.models.unet import UNet
from tf_covid.models.unet3d import UNet3D

__all__ = ["I3D", "LTC", "NETWORKS", "InceptionV1", "Network", "UNet", "UNet3D"]


@dataclass(frozen=True)
class Network:
    """A row of the table of models.

    Args:
        build: Builds the network from its arguments.
        rank: 3 takes clips, 2 takes slices.
        endpoint: Layer whose output Grad-CAM explains, given the arguments; None where there is
            none.
        data_dependent_init: A training from scratch scales the first weights by the activations of
            its first clips (`training.initialise`), which stacks without batch normalisation need.
    """

    build: Callable[..., keras.Model]
    rank: int
    endpoint: Callable[[dict[str, Any]], str] | None = None
    data_dependent_init: bool = False


NETWORKS: dict[str, Network] = {
    "i3d": Network(I3D, 3, lambda arguments: arguments.get("disease_pooling") or i3d.LAST_ENDPOINT),
    "ltc": Network(
        LTC,
        3,
        lambda arguments: (
            arguments.get("disease_pooling") or ltc.LAST_ENDPOINT[arguments.get("trunk", "ltc")]
        ),
        data_dependent_init=True,
    ),
    "inception_v1": Network(InceptionV1, 2, lambda arguments: i3d.LAST_ENDPOINT),
    "unet": Network(UNet, 2),
    "unet3d": Network(UNet3D, 3),
}
