"""Layers that make a network's input of what the cache holds, on the device.

Resampling, augmentation, window, mask.
"""

from __future__ import annotations

import itertools
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_covid.cohort.augment import Augmentation, Draws, affine_matrices, flip, jittered_hu, warp
from tf_covid.cohort.mask_augment import coarsened, worse_mask
from tf_covid.cohort.planes import FINER
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


#: Labels that a cell can count: `tissues.CLASSES`, and the lowest four bits of `OUTSIDE_LOBES` and
#: `UNKNOWN`.
COUNTED = 16

#: Labels in a cell.
LABELS_EACH = FINER**3


class _Affine:
    """An affine map of a plane, from positions in the output to positions in the input.

    Both are shares of the side from the middle, −0.5 … 0.5. `rows` and `columns` hold the factors
    of row, column and 1 that they follow from, (N,) each.
    """

    def __init__(self, rows: tuple[Any, Any, Any], columns: tuple[Any, Any, Any]) -> None:
        self.rows, self.columns = rows, columns

    @classmethod
    def rotation(
        cls, angle: Tensor, aspect: float, zoom: tuple[Any, Any], shift: tuple[Any, Any]
    ) -> _Affine:
        """Rotate, scale each axis, shift.

        Args:
            angle: (N,), radians.
            aspect: Columns by rows.
            zoom: (N,) each, how much larger rows and columns become.
            shift: (N,) each, shares of the side by which the input is shifted.
        """
        cos, sin = tf.cos(angle), tf.sin(angle)
        return cls(
            (cos / zoom[0], -sin * aspect / zoom[0], shift[0]),
            (sin / aspect / zoom[1], cos / zoom[1], shift[1]),
        )

    def transforms(self, size: tuple[int, int]) -> Tensor:
        """(N, 8) projective transforms between planes of the same size, in pixels."""
        results = []
        for (row, column, one), side in ((self.columns, size[1]), (self.rows, size[0])):
            first = row * (0.5 / size[0] - 0.5) + column * (0.5 / size[1] - 0.5) + one
            results += [column * side / size[1], row * side / size[0], (first + 0.5) * side - 0.5]
        zero = tf.zeros_like(results[0])
        return tf.stack([*results, zero, zero], axis=1)

    def positions(self, rows: np.ndarray, columns: np.ndarray) -> tuple[Any, Any]:
        """Where in the input, 0 … 1, each of these positions in the output lies; (N, R, C) each."""
        y = tf.constant(rows - 0.5, tf.float32)[tf.newaxis, :, tf.newaxis]
        x = tf.constant(columns - 0.5, tf.float32)[tf.newaxis, tf.newaxis, :]
        return tuple(
            row[:, None, None] * y + column[:, None, None] * x + one[:, None, None] + 0.5
            for row, column, one in (self.rows, self.columns)
        )


class VolumeTrainingInput(keras.layers.Layer):
    """Records of whole scans → a 3D lobe network's input, and what is in each of its cells.

    Changed at random in training: cut at the head and the feet, rotated a little in the coronal
    plane and more in that of the slices, scaled and shifted there; then the HU. Never mirrored,
    since lobes have sides.

    Args:
        grid: D, H and W of the records' HU.
        clip: D, H and W of the network's input.
        preprocessing: Window and input scaling.
        augmentation: Ranges of the random changes in training.

    Input: `hu` int16 (N, D, H, W), `labels` uint8, `FINER` times as many along each axis, and
    `seed` int32 (N, 2), of which the first row is what the whole batch is drawn from.
    Output: scans (N, d, h, w, 1), and how many of the `LABELS_EACH` labels of each cell are of each
    class, uint8 (N, d, h, w, COUNTED); the last two count `OUTSIDE_LOBES` and `UNKNOWN`.
    """

    def __init__(
        self,
        grid: tuple[int, int, int],
        clip: tuple[int, int, int],
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.grid, self.clip, self.augmentation = tuple(grid), tuple(clip), augmentation
        self.window = HUWindow(preprocessing.level_hu, preprocessing.width_hu, dtype="float32")
        self.scaling = input_scaling(preprocessing.input_scale, preprocessing.input_offset)

    def call(
        self, hu: Tensor, labels: Tensor, seed: Tensor, training: bool = False
    ) -> tuple[Any, Any]:
        """Records → scans and the counts of their labels."""
        draws, how, count = Draws(seed[0]), self.augmentation, tf.shape(hu)[0]
        coronal, axial = self._maps(draws, count, training)
        hu = self._resampled(tf.cast(hu, tf.float32))
        if training:
            hu = jittered_hu(draws, self._moved(hu, coronal, axial), how)
        return self.scaling(self.window(hu)[..., tf.newaxis]), self._counts(labels, coronal, axial)

    def _maps(self, draws: Draws, count: Tensor, training: bool) -> tuple[_Affine, _Affine]:
        """Maps of the coronal plane (rows along the body) and of the axial one."""
        how, (frames, rows, columns) = self.augmentation, self.clip
        zero, one = tf.zeros([count]), tf.ones([count])
        if not training:
            straight = _Affine((one, zero, zero), (zero, one, zero))
            return straight, straight
        # Squared: most scans lose little.
        head, feet = (how.cut * tf.square(draws.uniform([count], 0.0, 1.0)) for _ in range(2))
        turn = np.pi / 180
        coronal = _Affine.rotation(
            draws.uniform([count], -how.coronal_degrees, how.coronal_degrees) * turn,
            columns / frames,
            (1.0 / (1.0 - head - feet), one),
            ((head - feet) / 2.0, zero),
        )
        reach = -float(np.log(1.0 - how.scale))
        axial = _Affine.rotation(
            draws.uniform([count], -how.degrees, how.degrees) * turn,
            columns / rows,
            tuple(tf.exp(draws.uniform([count], -reach, reach)) for _ in range(2)),
            tuple(draws.uniform([count], -how.shift, how.shift) for _ in range(2)),
        )
        return coronal, axial

    def _resampled(self, hu: Tensor) -> Tensor:
        if self.grid == self.clip:
            return hu
        (depth, height, width), (frames, rows, columns) = self.grid, self.clip
        thin = tf.matmul(
            full_axis_matrix(frames, depth), tf.reshape(hu, [-1, depth, height * width])
        )
        planes = tf.reshape(thin, [-1, height, width])
        small = in_plane(full_axis_matrix(rows, height), planes, full_axis_matrix(columns, width))
        return tf.reshape(small, [-1, frames, rows, columns])

    def _moved(self, hu: Tensor, coronal: _Affine, axial: _Affine) -> Tensor:
        """HU (N, d, h, w) after both maps; beyond the image lies air."""
        frames, rows, columns = self.clip
        how = self.augmentation
        if how.cut or how.coronal_degrees:
            planes = tf.transpose(hu, [0, 1, 3, 2])
            planes = tf.raw_ops.ImageProjectiveTransformV3(
                images=planes,
                transforms=coronal.transforms((frames, columns)),
                output_shape=[frames, columns],
                fill_value=0.0,
                interpolation="BILINEAR",
                fill_mode="NEAREST",
            )
            planes = tf.transpose(planes, [0, 3, 2, 1])
        else:
            planes = tf.transpose(hu, [0, 2, 3, 1])
        planes = warp(planes + 1024.0, axial.transforms((rows, columns)), 0.0) - 1024.0
        return tf.ensure_shape(tf.transpose(planes, [0, 3, 1, 2]), [None, frames, rows, columns])

    def _counts(self, labels: Tensor, coronal: _Affine, axial: _Affine) -> Tensor:
        """Labels in each cell by class, uint8 (N, d, h, w, COUNTED).

        Rows of labels are gathered, not single ones; and each label is one of sixteen digits of an
        integer, so that a sum of integers counts all classes at once.
        """
        count = tf.shape(labels)[0]
        (frames, rows, columns), sides = self.clip, [FINER * side for side in self.grid]
        along, down, across = (_sub_cells(side) for side in self.clip)
        y, x = coronal.positions(along.ravel(), _middles(sides[2]))
        chosen = _cell(y, sides[0]) * sides[2] + _cell(x, sides[2])
        planes = tf.reshape(
            tf.transpose(labels, [0, 1, 3, 2]), [count, sides[0] * sides[2], sides[1]]
        )
        planes = tf.gather(planes, tf.reshape(chosen, [count, -1]), batch_dims=1)
        planes = tf.reshape(planes, [count, FINER * frames, sides[2], sides[1]])
        planes = tf.reshape(
            tf.transpose(planes, [0, 3, 2, 1]), [count, sides[1] * sides[2], FINER * frames]
        )
        y, x = axial.positions(down.ravel(), across.ravel())
        # Beyond the image lies air, the first class, in a row of its own behind all others.
        inside = (y >= 0.0) & (y < 1.0) & (x >= 0.0) & (x < 1.0)
        chosen = tf.where(
            inside, _cell(y, sides[1]) * sides[2] + _cell(x, sides[2]), sides[1] * sides[2]
        )
        planes = tf.pad(planes, [[0, 0], [0, 1], [0, 0]])
        planes = tf.gather(planes, tf.reshape(chosen, [count, -1]), batch_dims=1)
        planes = tf.reshape(planes, [count, FINER, rows, FINER, columns, FINER, frames])
        digits = [
            tf.bitwise.left_shift(
                tf.constant(1, tf.int64),
                4 * tf.cast(tf.bitwise.bitwise_and(planes[:, i, :, j, :, k], 15), tf.int64),
            )
            for i, j, k in itertools.product(range(FINER), repeat=3)
        ]
        pairs = tf.bitcast(tf.transpose(tf.add_n(digits), [0, 3, 1, 2]), tf.uint8)
        low = tf.bitwise.bitwise_and(pairs, tf.constant(15, tf.uint8))
        high = tf.bitwise.right_shift(pairs, tf.constant(4, tf.uint8))
        return tf.reshape(tf.stack([low, high], axis=-1), [count, frames, rows, columns, COUNTED])


def _middles(count: int) -> np.ndarray:
    """Middles of so many cells over 0 … 1."""
    return (np.arange(count) + 0.5) / count


def _sub_cells(count: int) -> np.ndarray:
    """Middles of the labels of so many cells, (FINER, count): the first of each, then the next."""
    return _middles(FINER * count).reshape(count, FINER).T


def _cell(position: Tensor, count: int) -> Tensor:
    """Which of so many cells over 0 … 1 a position lies in; beyond them the outermost."""
    return tf.clip_by_value(tf.cast(tf.floor(position * count), tf.int32), 0, count - 1)
