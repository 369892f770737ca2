"""Blocks that several networks share, in two or three dimensions. Stock Keras layers only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from tf_covid.tensor import DType, Tensor

#: Batch-norm epsilon of the published Inception-v1 and I3D weights.
INCEPTION_EPSILON = 1e-3

#: Most regions of a clip whose disease is read apart: from head to feet, front to back, side to
#: side.
REGIONS = (4, 2, 2)

#: Log odds that a cell is diseased, before anything is learned: few are.
_RARE = -4.0

#: Spread of weights that say next to nothing, and yet let a gradient through.
_QUIET = 1e-3

#: What the names of all layers begin with that tell disease in cells, or read what they tell.
DISEASE = "disease_"

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
    disease: Tensor | None = None,
    dtype: DType = None,
) -> dict[str, Any]:
    """Global average pooling, dropout and dense outputs.

    `logits` (N, classes), and what else is asked for.

    The outputs are float32 under any policy; `ct_score` (N, 1) is bounded to 0–25 by a scaled
    sigmoid, `share` (N, 1) to 0–1 by a sigmoid. `disease` is what `pooled_disease` makes.
    """
    rank = len(x.shape) - 2
    x = _GLOBAL_POOL[rank](name="global_pool", dtype=dtype)(x)
    outputs = dense_outputs(
        x, classes, dropout=dropout, ct_score=ct_score, disease=disease, dtype=dtype
    )
    if share:
        outputs["share"] = layers.Dense(1, activation="sigmoid", name="share", dtype="float32")(x)
    return outputs


def dense_outputs(
    x: Tensor,
    classes: int,
    *,
    dropout: float,
    ct_score: bool,
    disease: Tensor | None = None,
    dtype: DType = None,
) -> dict[str, Any]:
    """Dropout, `logits` (N, classes) and, if asked for, `ct_score` (N, 1), of features (N, C).

    With `disease` (N, F) each is a sum: what the features say, and what the diseased cells say. The
    layers of the first bear the same names with and without, and the second begins nearly silent,
    so that a network of the one kind starts from the other.
    """
    x = layers.Dropout(dropout, name="dropout", dtype=dtype)(x)
    logits = layers.Dense(classes, name="logits", dtype="float32")(x)
    if disease is not None:
        said = _quiet_dense(classes, "disease_logits")(disease)
        logits = layers.Add(name="logits_sum", dtype="float32")([logits, said])
    outputs = {"logits": logits}
    if ct_score:
        dense = layers.Dense(
            1,
            activation="sigmoid" if disease is None else None,
            name="ct_score_share",
            dtype="float32",
        )
        fraction = dense(x)
        if disease is not None:
            said = _quiet_dense(1, "disease_ct_score")(disease)
            fraction = layers.Add(name="ct_score_sum", dtype="float32")([fraction, said])
            fraction = layers.Activation("sigmoid", name="ct_score_sigmoid", dtype="float32")(
                fraction
            )
        outputs["ct_score"] = layers.Rescaling(25.0, name="ct_score", dtype="float32")(fraction)
    return outputs


def _quiet_dense(units: int, name: str) -> keras.layers.Dense:
    # An initialiser of its own: a shared one has its seed from the time of import, whatever seed a
    # training sets.
    quiet = keras.initializers.RandomNormal(stddev=_QUIET)
    return layers.Dense(units, kernel_initializer=quiet, name=name, dtype="float32")


def pooled_disease(clip: Tensor, features: Tensor, endpoint: str, name: str) -> Tensor | None:
    """What the diseased cells of an endpoint say about the whole clip, float32 (N, 64).

    A 1×1×1 convolution tells how much of each cell is diseased: the layer `disease_<endpoint>`,
    which is that of deep supervision (`training.dense`). Of each of 4×2×2 regions of the clip (of
    fewer, where the cells cannot be cut into so many of one size), some two to a lobe, the mean and
    the largest share are kept, so that one dense spot counts where an average over everything
    drowns it. The same weights read each side, and the mean of both is what speaks: cells that are
    mirrored left to right say the same, if their number is even.

    Args:
        clip: Input of the network, (N, D, H, W, C).
        features: Its last features, behind the endpoint.
        endpoint: Name of a layer between whose output is (N, d, h, w, C), of known size; "":
            nothing is pooled, and None is returned.
        name: Name of the network, for the errors.

    Raises:
        ValueError: If there is no such layer, or its cells are not known.
    """
    if not endpoint:
        return None
    outputs = {
        layer.name: layer.output
        for layer in keras.Model(clip, features).layers
        if not isinstance(layer, layers.InputLayer)
    }
    if endpoint not in outputs:
        # A name may come out of somebody's file.
        raise ValueError(f"disease_pooling: {name} has no layer {endpoint!r:.60}")
    cells = outputs[endpoint].shape[1:-1]
    if len(cells) != 3 or None in cells:
        raise ValueError(f"disease_pooling: {endpoint} has {cells} cells, not three known sides")
    logits = layers.Conv3D(
        1,
        1,
        bias_initializer=keras.initializers.Constant(_RARE),
        name=f"{DISEASE}{endpoint}",
        dtype="float32",
    )(outputs[endpoint])
    share = layers.Activation("sigmoid", name="disease_share", dtype="float32")(logits)
    window = [-(-side // count) for side, count in zip(cells, REGIONS, strict=True)]
    mean = layers.AveragePooling3D(window, padding="same", name="disease_mean", dtype="float32")
    largest = layers.MaxPooling3D(window, padding="same", name="disease_largest", dtype="float32")
    # Means are small: a tenth is much disease.
    tenths = layers.Rescaling(10.0, name="disease_tenths", dtype="float32")(mean(share))
    x = layers.Concatenate(name="disease_regions", dtype="float32")([tenths, largest(share)])
    dense = {"activation": "relu", "kernel_initializer": "he_normal", "dtype": "float32"}
    x = layers.Conv3D(64, (*x.shape[1:3], 1), name="disease_sides", **dense)(x)
    x = layers.GlobalAveragePooling3D(name="disease_both_sides", dtype="float32")(x)
    return layers.Dense(64, name="disease_dense", **dense)(x)


def functional(inputs: Tensor, outputs: dict[str, Any], name: str) -> keras.Model:
    """A functional model with named outputs (a dict keeps the names in an export)."""
    return keras.Model(inputs, outputs, name=name)
