"""Layers that make a network's input of what the cache holds, on the device.

Resampling, augmentation, window, mask.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tf_covid.cohort.augment import Augmentation, Draws, affine_matrices, flip, jittered_hu, warp
from tf_covid.cohort.mask_augment import coarsened, worse_mask
from tf_covid.layers import HUWindow, MaskedClip, input_scaling
from tf_covid.layers.resample import axis_matrix, full_axis_matrix, in_plane
from tf_covid.tensor import Tensor
from tf_covid.weights import Preprocessing


def unpacked(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Packed bits uint8 (N, bytes) → float32 (N, *shape) of 0 and 1."""
    shifts = tf.constant([7, 6, 5, 4, 3, 2, 1, 0], tf.uint8)
    spread = tf.bitwise.bitwise_and(
        tf.bitwise.right_shift(bits[..., tf.newaxis], shifts), tf.constant(1, tf.uint8)
    )
    cells = 1
    for side in shape:
        cells *= side
    flat = tf.reshape(spread, [tf.shape(bits)[0], -1])[:, :cells]
    return tf.reshape(tf.cast(flat, tf.float32), [-1, *shape])


class TrainingInput(keras.layers.Layer):
    """What clips and slices have in common: records → HU, lungs and lesions on the network's grid.

    Args:
        grid: Frames, height and width of the records.
        clip: Frames, height and width of the network's input.
        preprocessing: Window and input scaling.
        channels: Channels of the network's input.
        augmentation: Ranges of the random changes in training.
    """

    def __init__(
        self,
        grid: tuple[int, int, int],
        clip: tuple[int, int, int],
        preprocessing: Preprocessing,
        channels: int,
        augmentation: Augmentation,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.grid, self.clip, self.augmentation = tuple(grid), tuple(clip), augmentation
        self.window = HUWindow(preprocessing.level_hu, preprocessing.width_hu, dtype="float32")
        self.masked = MaskedClip(channels, dtype="float32")
        self.scaling = input_scaling(preprocessing.input_scale, preprocessing.input_offset)

    def spread(
        self, hu: Tensor, lungs: Tensor, lesions: Tensor, seed: Tensor, training: bool
    ) -> list[Any]:
        """HU, share of lung and share of disease, each float32 (N, T, h, w).

        Args:
            hu: (N, D, H, W).
            lungs: Lung mask, uint8 (N, bytes), packed bits.
            lesions: Lesion mask, uint8 (N, bytes), packed bits.
            seed: int32 (N, 2); the first row is what the whole batch is drawn from.
            training: Whether they are changed at random.
        """
        draws, how = Draws(seed[0]), self.augmentation
        parts = [tf.cast(hu, tf.float32), unpacked(lungs, self.grid), unpacked(lesions, self.grid)]
        if training and how.slice_drop:
            parts = self._dropped(draws, parts)
        reach = how.shift if how.shift_along is None else how.shift_along
        along = self._along(draws, tf.shape(hu)[0], reach if training else 0.0)
        parts = [self._resampled(part, along) for part in parts]
        if training:
            parts = self._moved(draws, parts)
            if how.coarse:
                parts[0] = coarsened(draws, parts[0], how.coarse)
            parts[0] = jittered_hu(draws, parts[0], how)
        return parts

    def finish(self, hu: Tensor, lungs: Tensor) -> Tensor:
        """Window, mask and input scaling, as in the stratifier; (N, T, h, w, channels)."""
        return self.scaling(self.masked(self.window(hu), lungs))

    def _along(self, draws: Draws, count: Tensor, reach: float) -> Tensor:
        """Weights from the record's frames to the clip's.

        In training from a little further in or out.
        """
        depth, frames = self.grid[0], self.clip[0]
        if not reach or depth == 1:
            return full_axis_matrix(frames, depth)
        start = draws.uniform([count], -reach, reach) * depth
        stop = (1.0 + draws.uniform([count], -reach, reach)) * depth
        return axis_matrix(start, stop, frames, depth)

    def _resampled(self, part: Tensor, along: Tensor) -> Tensor:
        (depth, height, width), (frames, rows, columns) = self.grid, self.clip
        count = tf.shape(part)[0]
        thin = tf.matmul(along, tf.reshape(part, [count, depth, height * width]))
        planes = tf.reshape(thin, [count * frames, height, width])
        small = in_plane(full_axis_matrix(rows, height), planes, full_axis_matrix(columns, width))
        return tf.reshape(small, [count, frames, rows, columns])

    def _dropped(self, draws: Draws, parts: list[Any]) -> list[Any]:
        """Put a slice's neighbour towards the head in its place, now and then."""
        shape = [tf.shape(parts[0])[0], self.grid[0]]
        lost = tf.cast(draws.uniform(shape, 0.0, 1.0) < self.augmentation.slice_drop, tf.int32)
        numbers = tf.maximum(tf.range(self.grid[0])[tf.newaxis] - lost, 0)
        return [tf.gather(part, numbers, batch_dims=1) for part in parts]

    def _moved(self, draws: Draws, parts: list[Any]) -> list[Any]:
        """Rotate, scale, shift and mirror in the plane: HU and masks alike."""
        how, (frames, rows, columns), count = self.augmentation, self.clip, tf.shape(parts[0])[0]
        matrices = affine_matrices(
            draws,
            count,
            degrees=how.degrees,
            scale=(1 - how.scale, how.largest_scale or 1 / (1 - how.scale)),
            shift=how.shift,
            side=rows,
            width=columns,
            uneven=how.scale / 2 if how.uneven is None else how.uneven,
        )
        # Air has to come in from outside: HU + 1024 is 0 there. Frames as channels: one warp for
        # all.
        planes = tf.transpose(tf.concat([parts[0] + 1024.0, *parts[1:]], axis=1), [0, 2, 3, 1])
        planes = flip(warp(planes, matrices, 0.0), 2, draws.chance(count, how.flip))
        if how.flip_vertical:
            planes = flip(planes, 1, draws.chance(count, how.flip_vertical))
        hu, lungs, lesions = tf.split(tf.transpose(planes, [0, 3, 1, 2]), 3, axis=1)
        return [
            tf.ensure_shape(part, [None, frames, rows, columns])
            for part in (hu - 1024.0, lungs, lesions)
        ]


class ClipTrainingInput(TrainingInput):
    """Records of the cache → clips, as the stratifier makes them of a scan.

    Changed at random in training.

    Input: see `TrainingInput.spread`. Output: clips (N, T, h, w, channels), and the diseased
    fraction within their lungs, float32 (N, T, h, w).
    """

    def call(
        self, hu: Tensor, lungs: Tensor, lesions: Tensor, seed: Tensor, training: bool = False
    ) -> tuple[Any, Any]:
        """Records → clips and their lesions."""
        hu, lungs, lesions = self.spread(hu, lungs, lesions, seed, training)
        how = self.augmentation
        if training and (how.mask_change or how.mask_bites):
            # The second number of the first row is used for nothing else.
            lungs = worse_mask(Draws(seed[0] + [0, 1 << 30]), lungs, how)
        return self.finish(hu, lungs), lesions * tf.cast(lungs >= 0.5, tf.float32)


class SliceTrainingInput(TrainingInput):
    """Slices of records → a 2D network's input and the masks that go with it.

    Changed at random in training.

    Args:
        grid: Height and width of the records' slices.
        size: Height and width of the network's input.
        masked: Set everything outside the lungs to 0, as in a clip; a lung model sees all.
        **kwargs: See `TrainingInput`; no slice takes its neighbour's place.

    Input: `hu` (N, H, W), and see `TrainingInput.spread`. Output: slices (N, h, w, channels), and
    the masks of lungs and of disease within them, float32 (N, h, w, 2) of 0 and 1.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        size: tuple[int, int],
        *,
        masked: bool,
        augmentation: Augmentation,
        **kwargs: Any,
    ) -> None:
        still = augmentation.model_copy(update={"slice_drop": 0.0})
        # A slice is a clip of one frame.
        super().__init__((1, *grid), (1, *size), augmentation=still, **kwargs)
        self.masks_lungs = masked

    def call(
        self, hu: Tensor, lungs: Tensor, lesions: Tensor, seed: Tensor, training: bool = False
    ) -> tuple[Any, Any]:
        """Records → slices and masks."""
        hu, lungs, lesions = self.spread(hu[:, tf.newaxis], lungs, lesions, seed, training)
        pictures = self.finish(hu, lungs if self.masks_lungs else tf.ones_like(lungs))[:, 0]
        lungs, lesions = (tf.cast(part[:, 0] >= 0.5, tf.float32) for part in (lungs, lesions))
        return pictures, tf.stack([lungs, lesions * lungs], axis=-1)
