"""The 2D U-Net that finds the lungs, slice by slice."""

from __future__ import annotations

import keras
from keras import layers

from tf_covid.models.blocks import functional
from tf_covid.tensor import DType, Tensor


def UNet(
    input_shape: tuple[int | None, int | None, int] = (128, 128, 1),
    *,
    depth: int = 4,
    filters: int = 16,
    outputs: int = 1,
    dtype: DType = None,
    name: str = "unet",
) -> keras.Model:
    """U-Net with batch normalisation; a slice in, mask logits out.

    Args:
        input_shape: (H, W, C) of a slice; sides that are given are multiples of 2**depth.
        depth: Number of down-samplings (Ronneberger: 4).
        filters: Channels of the first level; doubled at each down-sampling (Ronneberger: 64; the
            coarse default 16).
        outputs: Number of mask logits for each pixel.
        dtype: Keras dtype policy, e.g. "mixed_bfloat16".
        name: Name of the model.

    Returns:
        A model from slices (N, H, W, C) to `{"logits": (N, H, W, outputs)}`, float32.

    Raises:
        ValueError: If a side is not a multiple of 2**depth.

    Source: Ronneberger, Fischer & Brox 2015 (arXiv 1505.04597); "same" padding, so that the mask
    fits the slice.
    """
    if any(side is not None and side % 2**depth for side in input_shape[:2]):
        raise ValueError(
            f"a U-Net of depth {depth} needs sides in multiples of {2**depth}, not"
            f" {input_shape[:2]}"
        )
    inputs = keras.Input(input_shape, name="slice")
    x, skips = inputs, []
    for level in range(depth):
        x = _double_conv(x, f"down{level}", filters * 2**level, dtype)
        skips.append(x)
        x = layers.MaxPooling2D(2, name=f"down{level}_pool", dtype=dtype)(x)
    x = _double_conv(x, "bottom", filters * 2**depth, dtype)
    for level in reversed(range(depth)):
        x = layers.Conv2DTranspose(
            filters * 2**level,
            2,
            strides=2,
            kernel_initializer="he_normal",
            name=f"up{level}",
            dtype=dtype,
        )(x)
        x = layers.Concatenate(name=f"up{level}_skip", dtype=dtype)([skips[level], x])
        x = _double_conv(x, f"up{level}", filters * 2**level, dtype)
    logits = layers.Conv2D(outputs, 1, name="logits", dtype="float32")(x)
    return functional(inputs, {"logits": logits}, name)


def _double_conv(x: Tensor, name: str, filters: int, dtype: DType) -> Tensor:
    for index in (1, 2):
        x = layers.Conv2D(
            filters,
            3,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            name=f"{name}_conv{index}",
            dtype=dtype,
        )(x)
        x = layers.BatchNormalization(name=f"{name}_bn{index}", dtype=dtype)(x)
        x = layers.ReLU(name=f"{name}_relu{index}", dtype=dtype)(x)
    return x
