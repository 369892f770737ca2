"""The masks of lung and diseased lung, slice by slice in chunks, and the box around the lungs."""

from __future__ import annotations

from typing import Any, Literal

import keras
import tensorflow as tf

from tf_covid.layers.resample import clipped_hu, full_axis_matrix, in_plane, over_chunks
from tf_covid.layers.window import LEVEL_HU, WIDTH_HU, HUWindow
from tf_covid.tensor import Tensor


@keras.saving.register_keras_serializable("tf_covid")
class LungSegmenter(keras.layers.Layer):
    """Probability of lung, and of diseased lung, in every slice on the grid of the U-Net.

    Args:
        unet: Network from slices (n, h, w, 1) in [0, 1] to `{"logits": (n, h, w, outputs)}`; h and
            w are known and are the mask grid. Output 0 is lung; output 1, if there is one, is
            diseased lung.
        level_hu: Window centre, in HU.
        width_hu: Window width, in HU.
        chunk: Slices at a time; memory grows with it, not with the number of slices.
        calibration: Scale and offset of the logit of diseased lung, so that its sigmoid is the
            share of such cells that are diseased (Platt 1999).

    Input: int16 HU (N, D, H, W), and `depth` int32 (N,), the number of true slices of each scan:
    later ones are padding. Output: float32 (N, D, h, w, outputs) in [0, 1], the sigmoid of each
    logit; 0 in padding slices. `with_planes` gives the HU of the same cells as well.

    Raises:
        ValueError: If the U-Net's input has no fixed size or more than one channel, or if it has
            neither one nor two outputs.
    """

    def __init__(
        self,
        unet: keras.Model,
        level_hu: float = LEVEL_HU,
        width_hu: float = WIDTH_HU,
        chunk: int = 16,
        calibration: tuple[float, float] = (1.0, 0.0),
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        height, width, channels = unet.input_shape[1:]
        if height is None or width is None or channels != 1:
            raise ValueError(
                f"the lung U-Net needs a fixed input of one channel, not {unet.input_shape[1:]}"
            )
        outputs = unet.output["logits"].shape[-1]
        if outputs not in (1, 2):
            raise ValueError(
                "the lung U-Net needs one output (lung) or two (lung, diseased lung), not"
                f" {outputs}"
            )
        self.unet, self.chunk = unet, int(chunk)
        self.grid, self.outputs = (int(height), int(width)), int(outputs)
        self.window = HUWindow(level_hu, width_hu, dtype="float32")
        self.calibration = float(calibration[0]), float(calibration[1])

    def call(self, hu: Tensor, depth: Tensor) -> Tensor:
        """HU → probabilities."""
        return tf.stack(self.with_planes(hu, depth)[0], axis=-1)

    def with_planes(self, hu: Tensor, depth: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """HU → the probabilities of each output, and the HU of the cells: (N, D, h, w) each."""
        shape, grid, outputs = tf.shape(hu), self.grid, self.outputs
        scale, offset = (
            tf.constant([first, value][:outputs])
            for first, value in zip((1.0, 0.0), self.calibration, strict=True)
        )
        # A depth for each scan, within its slices: a wrong one would pass for a scan without lungs.
        wrong = "depth holds one number a scan, from 0 to its number of slices"
        checks = [
            tf.debugging.assert_equal(tf.shape(depth)[0], shape[0], wrong),
            tf.debugging.assert_less_equal(depth, shape[1], wrong),
            tf.debugging.assert_non_negative(depth, wrong),
        ]
        with tf.control_dependencies([check for check in checks if check is not None]):
            depth = tf.identity(depth)
        valid = tf.where(tf.sequence_mask(depth, shape[1]))  # (S, 2): scan, slice
        rows = full_axis_matrix(grid[0], shape[2])
        columns = full_axis_matrix(grid[1], shape[3])
        count = tf.shape(valid)[0]

        row = valid[:, 0] * tf.cast(shape[1], valid.dtype) + valid[:, 1]

        def body(indices: Tensor, written: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            numbers = tf.maximum(indices, 0)
            planes = tf.gather_nd(hu, tf.gather(valid, numbers))
            small = in_plane(rows, clipped_hu(planes), columns)
            logits = self.unet(self.window(small)[..., tf.newaxis], training=False)["logits"]
            keep = tf.cast(indices >= 0, tf.float32)[:, tf.newaxis, tf.newaxis]
            probability = tf.sigmoid(tf.cast(logits, tf.float32) * scale + offset)
            where = tf.gather(row, numbers)[:, tf.newaxis]
            return tuple(
                tf.tensor_scatter_nd_add(volume, where, values * keep)
                for volume, values in zip(
                    written, (*tf.unstack(probability, axis=-1), small), strict=True
                )
            )

        # Each written where it stays: a second volume of results would be held beside the first.
        empty = tuple(tf.zeros([shape[0] * shape[1], *grid]) for _ in range(outputs + 1))
        *results, planes = (
            tf.reshape(volume, [shape[0], shape[1], *grid])
            for volume in over_chunks(count, self.chunk, body, empty)
        )
        return tuple(results), planes

    def compute_output_spec(self, hu: Tensor, depth: Tensor) -> keras.KerasTensor:
        """(N, D, h, w, outputs), float32."""
        return keras.KerasTensor((*hu.shape[:2], *self.grid, self.outputs), dtype="float32")

    def get_config(self) -> dict[str, Any]:
        """Arguments that rebuild the layer, the U-Net's architecture included."""
        return {
            **super().get_config(),
            "unet": keras.saving.serialize_keras_object(self.unet),
            "level_hu": self.window.level_hu,
            "width_hu": self.window.width_hu,
            "chunk": self.chunk,
            "calibration": list(self.calibration),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LungSegmenter:
        """Rebuild the layer."""
        config = dict(config)
        return cls(keras.saving.deserialize_keras_object(config.pop("unet")), **config)


@keras.saving.register_keras_serializable("tf_covid")
class LungBox(keras.layers.Layer):
    """The box in the plane around the lungs of the kept slices, as fractions of the image.

    Args:
        box: "lungs" for the box of the mask plus a margin; "none" for the full frame, as in the
            paper.
        margin: Fraction of the box's side added on each side, cut at the image's border.
        noise: A row or column belongs to the box when it holds at least this fraction of the
            fullest one's lung: a stray pixel of the mask must not move the box.

    Input: lung probability (N, D, h, w), and `keep` bool (N, D). Output: float32 (N, 4): top,
    bottom, left, right as fractions of height and width, 0 … 1; the full frame where nothing is
    kept.

    Raises:
        ValueError: If `box` is neither, or a fraction is not within [0, 1).
    """

    def __init__(
        self,
        box: Literal["lungs", "none"] = "lungs",
        margin: float = 0.04,
        noise: float = 0.02,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        if box not in ("lungs", "none"):
            raise ValueError(f'box must be "lungs" or "none", not {box!r}')
        if not (0 <= margin < 1 and 0 <= noise < 1):
            raise ValueError(f"margin and noise must lie within [0, 1), not {margin} and {noise}")
        self.box, self.margin, self.noise = box, float(margin), float(noise)

    def call(self, probability: Tensor, keep: Tensor) -> Tensor:
        """Mask and kept slices → box."""
        if self.box == "none":
            full = tf.constant([0.0, 1.0, 0.0, 1.0])
            return tf.repeat(full[tf.newaxis], tf.shape(probability)[0], axis=0)
        inside = (
            tf.cast(probability > 0.5, tf.float32)
            * tf.cast(keep, tf.float32)[:, :, tf.newaxis, tf.newaxis]
        )
        sides = [self._extent(tf.reduce_sum(inside, axis=axes)) for axes in ((1, 3), (1, 2))]
        return tf.concat(sides, axis=1)

    def _extent(self, profile: Tensor) -> Tensor:
        size = tf.shape(profile)[1]
        fullest = tf.reduce_max(profile, axis=1, keepdims=True)
        taken = (profile > 0) & (profile >= self.noise * fullest)
        cell = tf.range(size, dtype=tf.float32)[tf.newaxis]
        length = tf.cast(size, tf.float32)
        first = tf.reduce_min(tf.where(taken, cell, length), axis=1) / length
        last = tf.reduce_max(tf.where(taken, cell + 1.0, 0.0), axis=1) / length
        extra = self.margin * (last - first)
        any_lung = last > first
        start = tf.where(any_lung, tf.maximum(first - extra, 0.0), 0.0)
        stop = tf.where(any_lung, tf.minimum(last + extra, 1.0), 1.0)
        return tf.stack([start, stop], axis=1)

    def compute_output_spec(self, probability: Tensor, keep: Tensor) -> keras.KerasTensor:
        """(N, 4), float32."""
        return keras.KerasTensor((probability.shape[0], 4), dtype="float32")

    def get_config(self) -> dict[str, Any]:
        """Arguments that rebuild the layer."""
        return {**super().get_config(), "box": self.box, "margin": self.margin, "noise": self.noise}
