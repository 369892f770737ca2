"""Inception-v1 (GoogLeNet with batch normalisation), the 2D parent of I3D."""

from __future__ import annotations

from typing import Literal

import keras

from tf_covid.models.blocks import classifier, functional
from tf_covid.models.inception import trunk
from tf_covid.tensor import DType


def InceptionV1(
    input_shape: tuple[int | None, int | None, int] = (224, 224, 3),
    classes: int = 1000,
    *,
    ct_score: bool = False,
    share: bool = False,
    dropout: float = 0.2,
    stem: Literal["same", "symmetric"] = "same",
    dtype: DType = None,
    name: str = "inception_v1",
) -> keras.Model:
    """Two-dimensional Inception-v1.

    Args:
        input_shape: (H, W, C) of a slice; at least 32 pixels a side where given.
        classes: Number of logits.
        ct_score: Add the second output `ct_score` (N, 1), 0–25.
        share: Add the output `share` (N, 1), 0–1: how much of a slice's lung is diseased.
        dropout: Share of features dropped before the logits, in training.
        stem: Padding of the first convolution, see `inception.trunk`.
        dtype: Keras dtype policy, e.g. "mixed_bfloat16".
        name: Name of the model.

    Returns:
        A model from slices (N, H, W, C) to `{"logits": (N, classes)}`.

    Raises:
        ValueError: If a side is shorter than 32 pixels.

    Source: Szegedy et al. 2015, with TF-Slim's endpoint names and 3×3 kernels in branch 2.
    """
    if any(side is not None and side < 32 for side in input_shape[:2]):
        raise ValueError(f"Inception-v1 needs at least 32×32 pixels, not {input_shape[:2]}")
    inputs = keras.Input(input_shape, name="slice")
    features = trunk(inputs, dtype, stem)
    outputs = classifier(
        features, classes, dropout=dropout, ct_score=ct_score, share=share, dtype=dtype
    )
    return functional(inputs, outputs, name)
