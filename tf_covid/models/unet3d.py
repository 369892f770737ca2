"""The 3D U-Net that sees a whole scan coarsely: lobes, and what is taken for lung."""

from __future__ import annotations

import keras
from keras import layers

from tf_covid.models.blocks import functional
from tf_covid.tensor import DType, Tensor

#: Scale and offset from the input's window, −1100 … 500 HU, to that of soft tissue, −150 … 250 HU:
#: organs, fluid and consolidation lie within 60 HU of each other.
SOFT_TISSUE = (4.0, -2.375)


def UNet3D(
    input_shape: tuple[int, int, int, int] = (48, 64, 64, 1),
    *,
    depth: int = 3,
    filters: int = 8,
    outputs: int = 14,
    dtype: DType = None,
    name: str = "unet3d",
) -> keras.Model:
    """3D U-Net with batch normalisation, and a head that tells flipped scans; stock layers only.

    Args:
        input_shape: (D, H, W, 1) of the whole scan, windowed; sides are multiples of 2**depth.
        depth: Number of down-samplings (Çiçek: 3).
        filters: Channels of the first level; doubled at each down-sampling.
        outputs: Number of tissues, background among them.
        dtype: Keras dtype policy, e.g. "mixed_bfloat16".
        name: Name of the model.

    Returns:
        A model from scans (N, D, H, W, 1) in [0, 1] to `logits` (N, D, H, W, outputs), float32,
        whose softmax is the share of each tissue; and `flips` (N, 3), float32 logits of “stored
        feet first”, “back for front” and “left for right”.

    Raises:
        ValueError: If a side is not a multiple of 2**depth, or the scan has more than one channel.

    Source: Çiçek et al. 2016 (arXiv 1606.06650).
    """
    if input_shape[-1] != 1 or any(side % 2**depth for side in input_shape[:3]):
        raise ValueError(
            f"a 3D U-Net of depth {depth} needs one channel and sides in multiples of {2**depth},"
            f" not {tuple(input_shape)}"
        )
    inputs = keras.Input(input_shape, name="scan")
    soft = layers.Rescaling(*SOFT_TISSUE, name="soft_tissue", dtype="float32")(inputs)
    soft = layers.ReLU(max_value=1.0, name="soft_tissue_window", dtype="float32")(soft)
    windows = layers.Concatenate(name="windows", dtype=dtype)([inputs, soft])
    x, skips = windows, []
    for level in range(depth):
        x = _double_conv(x, f"down{level}", filters * 2**level, dtype)
        skips.append(x)
        x = layers.MaxPooling3D(2, name=f"down{level}_pool", dtype=dtype)(x)
    x = _double_conv(x, "bottom", filters * 2**depth, dtype)
    for level in reversed(range(depth)):
        x = layers.Conv3DTranspose(
            filters * 2**level,
            2,
            strides=2,
            kernel_initializer="he_normal",
            name=f"up{level}",
            dtype=dtype,
        )(x)
        x = layers.Concatenate(name=f"up{level}_skip", dtype=dtype)([skips[level], x])
        x = _double_conv(x, f"up{level}", filters * 2**level, dtype)
    logits = layers.Conv3D(outputs, 1, name="logits", dtype="float32")(x)
    return functional(inputs, {"logits": logits, "flips": _flips(windows, dtype)}, name)


def _flips(x: Tensor, dtype: DType) -> Tensor:
    """Logits of the three flips (N, 3), from a small stack of its own.

    The tissues' features only ever meet scans that are the right way round.
    """
    x = layers.AveragePooling3D(2, name="flips_pool", dtype=dtype)(x)
    for index, filters in enumerate((16, 32, 48, 64)):
        x = _conv(x, f"flips{index}", filters, dtype, strides=2 if index else 1)
    x = layers.Flatten(name="flips_flat", dtype=dtype)(x)
    return layers.Dense(3, name="flips", dtype="float32")(x)


def _double_conv(x: Tensor, name: str, filters: int, dtype: DType) -> Tensor:
    for index in (1, 2):
        x = _conv(x, f"{name}_conv{index}", filters, dtype)
    return x


def _conv(x: Tensor, name: str, filters: int, dtype: DType, strides: int = 1) -> Tensor:
    x = layers.Conv3D(
        filters,
        3,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
        dtype=dtype,
    )(x)
    x = layers.BatchNormalization(name=f"{name}_bn", dtype=dtype)(x)
    return layers.ReLU(name=f"{name}_relu", dtype=dtype)(x)
