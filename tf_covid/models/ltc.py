"""LTC: long-term temporal convolutions, and the C3D trunk that its RGB variant starts from."""

from __future__ import annotations

from typing import Literal

import keras
from keras import layers

from tf_covid.models.blocks import dense_outputs, functional, max_pool, pooled_disease
from tf_covid.tensor import DType

# A row is a stage: its convolutions (name, filters), then one pool. The first pool leaves time
# alone.
TRUNKS: dict[str, tuple[tuple[tuple[str, int], ...], ...]] = {
    # Varol et al. 2018, section 3.1.
    "ltc": (
        (("conv1", 64),),
        (("conv2", 128),),
        (("conv3", 256),),
        (("conv4", 256),),
        (("conv5", 256),),
    ),
    # Tran et al. 2015: the layers of the Sports-1M weights.
    "c3d": (
        (("conv1a", 64),),
        (("conv2a", 128),),
        (("conv3a", 256), ("conv3b", 256)),
        (("conv4a", 512), ("conv4b", 512)),
        (("conv5a", 512), ("conv5b", 512)),
    ),
}

#: The last endpoint of each trunk before its pool: what Grad-CAM explains where no diseased cells
#: are pooled.
LAST_ENDPOINT = {trunk: stages[-1][-1][0] for trunk, stages in TRUNKS.items()}


def LTC(
    input_shape: tuple[int, int, int, int] = (64, 112, 112, 1),
    classes: int = 5,
    *,
    trunk: Literal["ltc", "c3d"] = "ltc",
    dense: int = 2048,
    ct_score: bool = False,
    dropout: float = 0.5,
    disease_pooling: str = "",
    dtype: DType = None,
    name: str = "ltc",
) -> keras.Model:
    """Long-term convolutions: 3×3×3 convolutions, five max-pools, two dense layers with dropout.

    Args:
        input_shape: (D, H, W, C) of a clip, at least 16×32×32: every side is known, since the dense
            layers depend on it (at 64×224×224 the first one alone has 103 M weights with
            `dense=2048`). The pools leave out what does not fill a window: sides in multiples of
            16×32×32 are seen whole.
        classes: Number of logits.
        trunk: "ltc" has Varol's five convolutions 64-128-256-256-256; "c3d" the eight of C3D.
        dense: Width of the two dense layers.
        ct_score: Add the second output `ct_score` (N, 1), 0–25.
        dropout: Share of features dropped after each dense layer, in training.
        disease_pooling: Convolution whose diseased cells speak beside the dense layers, see
            `blocks.pooled_disease`; "": none. What Grad-CAM explains is this layer or one before.
        dtype: Keras dtype policy, e.g. "mixed_bfloat16".
        name: Name of the model.

    Returns:
        A model from clips (N, D, H, W, C) to `{"logits": (N, classes)}`.

    Raises:
        ValueError: If the clip is too short for the five pools, a side is unknown, the trunk does
            not exist, or `disease_pooling` names none of its layers.

    Source: Varol, Laptev & Schmid 2018 (arXiv 1604.04494); C3D: Tran et al. 2015 (arXiv 1412.0767).
    """
    if trunk not in TRUNKS:
        raise ValueError(f"trunk must be one of {sorted(TRUNKS)}, not {trunk!r}")
    if any(
        side is None or side < least for side, least in zip(input_shape, (16, 32, 32), strict=False)
    ):
        raise ValueError(
            f"LTC needs a clip of known size, at least 16×32×32, not {input_shape[:3]}"
        )
    inputs = keras.Input(input_shape, name="clip")
    x = inputs
    for index, stage in enumerate(TRUNKS[trunk], 1):
        for conv, filters in stage:
            x = layers.Conv3D(
                filters,
                3,
                padding="same",
                activation="relu",
                kernel_initializer="he_normal",
                name=conv,
                dtype=dtype,
            )(x)
        size = (1, 2, 2) if index == 1 else (2, 2, 2)
        x = max_pool(x, f"pool{index}", size, size, padding="valid", dtype=dtype)
    disease = pooled_disease(inputs, x, disease_pooling, name)
    x = layers.Flatten(name="flatten", dtype=dtype)(x)
    x = layers.Dense(
        dense, activation="relu", kernel_initializer="he_normal", name="fc6", dtype=dtype
    )(x)
    x = layers.Dropout(dropout, name="dropout6", dtype=dtype)(x)
    x = layers.Dense(
        dense, activation="relu", kernel_initializer="he_normal", name="fc7", dtype=dtype
    )(x)
    outputs = dense_outputs(
        x, classes, dropout=dropout, ct_score=ct_score, disease=disease, dtype=dtype
    )
    return functional(inputs, outputs, name)
