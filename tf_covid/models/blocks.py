"""Blocks that several networks share, in two or three dimensions. Stock Keras layers only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from tf_covid.tensor import DType, Tensor

#: Batch-norm epsilon of the published Inception-v1 and I3D weights.
INCEPTION_EPSILON = 1e-3

# Keras names a layer class by its rank; these tables are the only place that spells it out.
_CONV = {2: layers.Conv2D, 3: layers.Conv3D}
_MAX_POOL = {2: layers.MaxPooling2D, 3: layers.MaxPooling3D}
_ZERO_PAD = {2: layers.ZeroPadding2D, 3: layers.ZeroPadding3D}
_GLOBAL_POOL = {2: layers.GlobalAveragePooling2D, 3: layers.GlobalAveragePooling3D}


def conv_unit(
    x: Tensor,
    name: str,
    filters: int,
    kernel: int | Sequence[int],
    stride: int | Sequence[int] = 1,
    *,
    padding: str = "same",
    dtype: DType = None,
) -> Tensor:
    """Convolution, batch normalisation without scale, ReLU: the unit of Inception-v1 and I3D.

    Args:
        x: (N, H, W, C) or (N, D, H, W, C); the rank chooses two or three dimensions.
        name: Name of the unit's output, the ReLU; the others are `<name>_conv` and `<name>_bn`.
        filters: Output channels.
        kernel: Kernel size.
        stride: Stride.
        padding: "same" or "valid".
        dtype: Keras dtype policy.

    Source: the released weights have no convolution bias and no batch-norm gamma.
    """
    rank = len(x.shape) - 2
    x = _CONV[rank](
        filters,
        kernel,
        strides=stride,
        padding=padding,
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
        dtype=dtype,
    )(x)
    x = layers.BatchNormalization(
        scale=False, epsilon=INCEPTION_EPSILON, name=f"{name}_bn", dtype=dtype
    )(x)
    return layers.ReLU(name=name, dtype=dtype)(x)


def zero_pad(x: Tensor, name: str, pixels: int, dtype: DType = None) -> Tensor:
    """Zeros on every side, in two or three dimensions, by the rank of `x`."""
    return _ZERO_PAD[len(x.shape) - 2](pixels, name=name, dtype=dtype)(x)


def max_pool(
    x: Tensor,
    name: str,
    size: int | Sequence[int],
    stride: int | Sequence[int],
    padding: str = "same",
    dtype: DType = None,
) -> Tensor:
    """Max-pooling in two or three dimensions, by the rank of `x`."""
    return _MAX_POOL[len(x.shape) - 2](
        size, strides=stride, padding=padding, name=name, dtype=dtype
    )(x)


def classifier(
    x: Tensor,
    classes: int,
    *,
    dropout: float,
    ct_score: bool,
    share: bool = False,
    dtype: DType = None,
) -> dict[str, Any]:
    """Global average pooling, dropout and dense outputs.

    `logits` (N, classes), and what else is asked for.

    The outputs are float32 under any policy; `ct_score` (N, 1) is bounded to 0–25 by a scaled
    sigmoid, `share` (N, 1) to 0–1 by a sigmoid.
    """
    rank = len(x.shape) - 2
    x = _GLOBAL_POOL[rank](name="global_pool", dtype=dtype)(x)
    outputs = dense_outputs(x, classes, dropout=dropout, ct_score=ct_score, dtype=dtype)
    if share:
        outputs["share"] = layers.Dense(1, activation="sigmoid", name="share", dtype="float32")(x)
    return outputs


def dense_outputs(
    x: Tensor, classes: int, *, dropout: float, ct_score: bool, dtype: DType = None
) -> dict[str, Any]:
    """Dropout, `logits` (N, classes) and, if asked for, `ct_score` (N, 1), of features (N, C)."""
    x = layers.Dropout(dropout, name="dropout", dtype=dtype)(x)
    outputs = {"logits": layers.Dense(classes, name="logits", dtype="float32")(x)}
    if ct_score:
        fraction = layers.Dense(1, activation="sigmoid", name="ct_score_share", dtype="float32")(x)
        outputs["ct_score"] = layers.Rescaling(25.0, name="ct_score", dtype="float32")(fraction)
    return outputs


def functional(inputs: Tensor, outputs: dict[str, Any], name: str) -> keras.Model:
    """A functional model with named outputs (a dict keeps the names in an export)."""
    return keras.Model(inputs, outputs, name=name)
