"""HU window and masking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_covid.tensor import Tensor

#: The study's window: −1100 … 300 HU map to 0 … 1.
LEVEL_HU, WIDTH_HU = -400.0, 1400.0


@keras.saving.register_keras_serializable("tf_covid")
class HUWindow(keras.layers.Layer):
    """Map Hounsfield units linearly onto [0, 1] and clip.

    This is DICOM's LINEAR_EXACT VOI function (PS3.3 C.11.2.1.3.2).

    Args:
        level_hu: Window centre, in HU.
        width_hu: Window width, in HU; positive.

    Input: any shape, HU, any numeric type. Output: the same shape, in [0, 1]; computed in float32,
    then cast to the compute dtype.

    Raises:
        ValueError: If `width_hu` is not positive.
    """

    def __init__(
        self, level_hu: float = LEVEL_HU, width_hu: float = WIDTH_HU, **kwargs: Any
    ) -> None:
        # Autocasting would bring HU to bfloat16 first, whose steps are 4 HU wide at −1000.
        super().__init__(autocast=False, **kwargs)
        if not width_hu > 0:
            raise ValueError(f"width_hu must be positive, not {width_hu}")
        self.level_hu, self.width_hu = float(level_hu), float(width_hu)

    def call(self, hu: Tensor) -> Tensor:
        """HU → [0, 1]."""
        lowest = self.level_hu - self.width_hu / 2
        fraction = (tf.cast(hu, tf.float32) - lowest) / self.width_hu
        return tf.cast(tf.clip_by_value(fraction, 0.0, 1.0), self.compute_dtype)

    def compute_output_spec(self, hu: Tensor) -> keras.KerasTensor:
        """The input's shape in the compute dtype."""
        return keras.KerasTensor(hu.shape, dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Arguments that rebuild the layer."""
        return {**super().get_config(), "level_hu": self.level_hu, "width_hu": self.width_hu}


def input_scaling(scale: Sequence[float], offset: Sequence[float]) -> keras.layers.Rescaling:
    """The last layer before a network.

    `scale × x + offset`, one number for all channels or one for each.
    """
    return keras.layers.Rescaling(
        *(value[0] if len(value) == 1 else list(value) for value in (scale, offset)),
        dtype="float32",
    )


@keras.saving.register_keras_serializable("tf_covid")
class MaskedClip(keras.layers.Layer):
    """Set everything outside the lungs to 0 and add the channel axis.

    Args:
        channels: Number of equal channels; three for networks that came from natural images.

    Input: a windowed clip (N, D, H, W) in [0, 1], and the lung fraction of its voxels, same shape,
    in [0, 1]; a voxel is lung from a fraction of one half. Output: (N, D, H, W, channels), compute
    dtype.

    Raises:
        ValueError: If `channels` is not positive.
    """

    def __init__(self, channels: int = 1, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        if channels < 1:
            raise ValueError(f"channels must be positive, not {channels}")
        self.channels = int(channels)

    def call(self, clip: Tensor, lungs: Tensor) -> Tensor:
        """Clip × (lungs ≥ ½)."""
        inside = tf.cast(lungs >= 0.5, clip.dtype)
        return tf.cast(
            tf.repeat((clip * inside)[..., tf.newaxis], self.channels, axis=-1), self.compute_dtype
        )

    def compute_output_spec(self, clip: Tensor, lungs: Tensor) -> keras.KerasTensor:
        """The clip's shape with channels."""
        return keras.KerasTensor((*clip.shape, self.channels), dtype=self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Arguments that rebuild the layer."""
        return {**super().get_config(), "channels": self.channels}
