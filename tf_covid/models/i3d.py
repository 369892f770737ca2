"""I3D: Inception-v1 inflated to three dimensions."""

from __future__ import annotations

from typing import Literal

import keras
from keras import layers

from tf_covid.models.blocks import classifier, functional, pooled_disease
from tf_covid.models.inception import trunk
from tf_covid.tensor import DType

#: The last endpoint: what Grad-CAM explains where no diseased cells are pooled.
LAST_ENDPOINT = "Mixed_5c"


def I3D(
    input_shape: tuple[int | None, int | None, int | None, int] = (64, 224, 224, 1),
    classes: int = 5,
    *,
    head: Literal["global", "kinetics"] = "global",
    ct_score: bool = False,
    dropout: float = 0.5,
    stem: Literal["same", "symmetric"] = "same",
    disease_pooling: str = "",
    dtype: DType = None,
    name: str = "i3d",
) -> keras.Model:
    """Inflated 3D Inception-v1.

    Args:
        input_shape: (D, H, W, C) of a clip; sides that are given are at least 8×32×32 (16×224×224
            with the "kinetics" head, whose pooling window is 2×7×7 after strides of 8 and 32).
        classes: Number of logits.
        head: "global" pools all features once. "kinetics" is the published head: average pooling
            2×7×7, a 1×1×1 convolution and the mean over time; for networks imported with their
            Kinetics classes.
        ct_score: Add the second output `ct_score` (N, 1), 0–25; only with the "global" head.
        dropout: Share of features dropped before the logits, in training.
        stem: Padding of the first convolution, see `inception.trunk`.
        disease_pooling: Endpoint whose diseased cells speak beside the features that are pooled
            over the whole clip, see `blocks.pooled_disease`; "": none. Only with the "global"
            head and a clip of known size. What Grad-CAM explains is this endpoint or one before.
        dtype: Keras dtype policy, e.g. "mixed_bfloat16".
        name: Name of the model.

    Returns:
        A model from clips (N, D, H, W, C) to `{"logits": (N, classes)}`.

    Raises:
        ValueError: If a side is too short, the head does not exist or has no `ct_score`, or
            `disease_pooling` cannot be done.

    Source: Carreira & Zisserman 2017 (arXiv 1705.07750).
    """
    shortest = {"global": (8, 32, 32), "kinetics": (16, 224, 224)}.get(head)
    if shortest is None:
        raise ValueError(f'head must be "global" or "kinetics", not {head!r}')
    if any(
        side is not None and side < least
        for side, least in zip(input_shape, shortest, strict=False)
    ):
        raise ValueError(
            f"I3D with the {head} head needs a clip of at least {shortest}, not {input_shape[:3]}"
        )
    if ct_score and head == "kinetics":
        raise ValueError("the kinetics head has no ct_score")
    if disease_pooling and head == "kinetics":
        raise ValueError("the kinetics head has no disease_pooling")
    inputs = keras.Input(input_shape, name="clip")
    features = trunk(inputs, dtype, stem)
    if head == "global":
        outputs = classifier(
            features,
            classes,
            dropout=dropout,
            ct_score=ct_score,
            disease=pooled_disease(inputs, features, disease_pooling, name),
            dtype=dtype,
        )
    else:
        x = layers.AveragePooling3D(
            (2, 7, 7), strides=1, padding="valid", name="AvgPool3d_6a_7x7", dtype=dtype
        )(features)
        x = layers.Dropout(dropout, name="dropout", dtype=dtype)(x)
        x = layers.Conv3D(classes, 1, name="Conv3d_0c_1x1", dtype="float32")(x)
        outputs = {"logits": layers.GlobalAveragePooling3D(name="logits", dtype="float32")(x)}
    return functional(inputs, outputs, name)
