"""Which slices are kept, and how they become a clip."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tf_covid.layers.resample import axis_matrix, clipped_hu, in_plane, over_chunks, triangle_matrix
from tf_covid.tensor import Tensor


@keras.saving.register_keras_serializable("tf_covid")
class SliceRule(keras.layers.Layer):
    """Keep the slices whose lung mask covers at least a fraction of the image (the study: 5 %).

    Args:
        minimum: Smallest fraction of the image, 0 … 1, that is lung.

    Input: lung probability (N, D, h, w). Output: bool (N, D); padding slices hold no lung and are
    not kept.

    Raises:
        ValueError: If `minimum` is not within (0, 1).
    """

    def __init__(self, minimum: float = 0.05, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        if not 0 < minimum < 1:
            raise ValueError(f"minimum must lie within (0, 1), not {minimum}")
        self.minimum = float(minimum)

    def call(self, probability: Tensor) -> Tensor:
        """Lung probability → kept or not."""
        inside = tf.cast(probability > 0.5, tf.float32)
        cells = tf.cast(tf.shape(probability)[2] * tf.shape(probability)[3], tf.float32)
        # Whole numbers on both sides: a mean in float32 could put exactly 5 % on either side.
        return tf.reduce_sum(inside, axis=(2, 3)) >= tf.round(self.minimum * cells * 1e3) / 1e3

    def compute_output_spec(self, probability: Tensor) -> keras.KerasTensor:
        """(N, D), bool."""
        return keras.KerasTensor(probability.shape[:2], dtype="bool")

    def get_config(self) -> dict[str, Any]:
        """Arguments that rebuild the layer."""
        return {**super().get_config(), "minimum": self.minimum}


@keras.saving.register_keras_serializable("tf_covid")
class ClipSampler(keras.layers.Layer):
    """Resample the kept slices inside the box onto the clip grid.

    The kept slices are put one behind the other, whatever lay between them, and resampled along
    depth as in the plane: linearly when enlarging, averaged over an output cell when reducing, so
    that a scan of 1 mm slices and one of 8 mm look alike.

    Args:
        frames, height, width: Size of the clip.
        chunk: Slices at a time; memory grows with it, not with the number of slices.

    Input: a volume (N, D, H, W), HU or any other; `keep` bool (N, D); `box` (N, 4) as fractions of
    the image. Output: float32 (N, frames, height, width); 0 where no slice is kept. HU outside
    −1024 … 3071 are clipped first.

    Raises:
        ValueError: If a size is not positive.
    """

    def __init__(
        self, frames: int, height: int, width: int, chunk: int = 16, **kwargs: Any
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        if min(frames, height, width, chunk) < 1:
            raise ValueError(f"sizes must be positive, not {(frames, height, width, chunk)}")
        self.frames, self.height, self.width, self.chunk = (
            int(frames),
            int(height),
            int(width),
            int(chunk),
        )

    def call(self, volume: Tensor, keep: Tensor, box: Tensor) -> Tensor:
        """Volume → clip."""
        shape = tf.shape(volume)
        kept = tf.where(keep)  # (K, 2): scan, slice
        rows, columns = self._plane(box, shape)
        along = tf.transpose(depth_matrix(keep, self.frames), [0, 2, 1])  # (N, D, T)
        cells = self.height * self.width

        def body(indices: Tensor, clip: Tensor) -> Tensor:
            slices = tf.gather(kept, tf.maximum(indices, 0))
            planes = clipped_hu(tf.gather_nd(volume, slices))
            owner = slices[:, 0]
            small = in_plane(tf.gather(rows, owner), planes, tf.gather(columns, owner))
            weights = tf.gather_nd(along, slices) * tf.cast(indices >= 0, tf.float32)[:, tf.newaxis]
            owners = tf.one_hot(owner, shape[0], dtype=tf.float32)
            spread = tf.reshape(
                owners[:, :, tf.newaxis] * weights[:, tf.newaxis, :], [self.chunk, -1]
            )
            return clip + tf.matmul(
                spread, tf.reshape(small, [self.chunk, cells]), transpose_a=True
            )

        clip = over_chunks(
            tf.shape(kept)[0], self.chunk, body, tf.zeros([shape[0] * self.frames, cells])
        )
        return tf.reshape(clip, [shape[0], self.frames, self.height, self.width])

    def _plane(self, box: Tensor, shape: Tensor) -> tuple[Any, Any]:
        height, width = tf.cast(shape[2], tf.float32), tf.cast(shape[3], tf.float32)
        rows = axis_matrix(box[:, 0] * height, box[:, 1] * height, self.height, shape[2])
        columns = axis_matrix(box[:, 2] * width, box[:, 3] * width, self.width, shape[3])
        return rows, columns

    def compute_output_spec(self, volume: Tensor, keep: Tensor, box: Tensor) -> keras.KerasTensor:
        """(N, frames, height, width), float32."""
        return keras.KerasTensor(
            (volume.shape[0], self.frames, self.height, self.width), dtype="float32"
        )

    def get_config(self) -> dict[str, Any]:
        """Arguments that rebuild the layer."""
        sizes = {
            "frames": self.frames,
            "height": self.height,
            "width": self.width,
            "chunk": self.chunk,
        }
        return {**super().get_config(), **sizes}


def depth_matrix(keep: Tensor, frames: int) -> Tensor:
    """Weights from slices to frames, (N, frames, D).

    Only kept slices take part, at their rank among the kept.

    Args:
        keep: bool (N, D).
        frames: Number of frames of the clip.
    """
    taken = tf.cast(keep, tf.float32)
    rank = tf.cumsum(taken, axis=1, exclusive=True)
    positions = tf.where(keep, rank, tf.fill(tf.shape(rank), float("-inf")))
    count = tf.reduce_sum(taken, axis=1)
    return triangle_matrix(tf.zeros_like(count), count, frames, positions)
