"""The lobes of a whole scan seen coarsely, which way round it is, and the gate that they set."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_covid.layers.resample import full_axis_matrix, in_plane, over_chunks, triangle_matrix
from tf_covid.layers.window import HUWindow
from tf_covid.tensor import Tensor
from tf_covid.tissues import EFFUSION_CLASS, LOBE_CLASSES

#: Window of the 3D network: −1100 … 500 HU, from air to contrast medium.
WIDE_LEVEL_HU, WIDE_WIDTH_HU = -300.0, 1600.0

#: The views of a scan that are asked which way round it is: each axis of these flipped or not.
_VIEWS = tuple(itertools.product((False, True), (False,), (False, True)))


@keras.saving.register_keras_serializable("tf_covid")
class LobeSegmenter(keras.layers.Layer):
    """Share of each lobe and of pleural effusion in the cells of a coarse grid over the whole scan.

    Args:
        network: 3D network from scans (n, d, f, g, 1) in [0, 1] to `logits` (n, d, f, g, classes),
            in the order of `tissues.CLASSES`, and `flips` (n, 3); d, f and g are known.
        level_hu: Window centre, in HU.
        width_hu: Window width, in HU.

    Input: slices in HU, float32 (N, D, h, w), of any plane, and `depth` int32 (N,), the number of
    true slices of each scan: the coarse grid covers these from edge to edge. Output: a dict of
    `lobes` float32 (N, d, f, g, 5) and `effusion` (N, d, f, g), the softmax; and `orientation`
    (N, 3), mean logits over four views of “stored feet first”, “back for front” and “left for
    right”. What else the network was taught to tell apart ends here.

    Raises:
        ValueError: If the network's input has no fixed size, or it lacks one of the outputs.
    """

    def __init__(
        self,
        network: keras.Model,
        level_hu: float = WIDE_LEVEL_HU,
        width_hu: float = WIDE_WIDTH_HU,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        shape = network.input_shape
        if len(shape) != 5 or None in shape[1:] or shape[-1] != 1:
            raise ValueError(
                f"the lobe network needs whole scans of a fixed size and one channel, not {shape}"
            )
        outputs = network.output
        if not isinstance(outputs, dict) or not {"logits", "flips"} <= outputs.keys():
            raise ValueError("the lobe network needs the outputs logits and flips")
        classes = int(outputs["logits"].shape[-1])
        if classes < LOBE_CLASSES.stop:
            raise ValueError(f"the lobe network needs a logit for each lobe, and has {classes}")
        self.network = network
        self.grid = tuple(int(side) for side in shape[1:4])
        self.finds_effusion = classes > EFFUSION_CLASS
        self.window = HUWindow(level_hu, width_hu, dtype="float32")
        self._flips = keras.Model(network.input, outputs["flips"], name="flips_alone")

    def call(self, planes: Tensor, depth: Tensor) -> dict[str, Tensor]:
        """Slices → lobes, effusion, orientation."""
        cells = self.window(self._cells(planes, depth))[..., tf.newaxis]
        answer = self.network(cells, training=False)
        shares = tf.nn.softmax(tf.cast(answer["logits"], tf.float32))
        lobes = shares[..., LOBE_CLASSES]
        effusion = (
            shares[..., EFFUSION_CLASS] if self.finds_effusion else tf.zeros_like(lobes)[..., 0]
        )
        return {"lobes": lobes, "effusion": effusion, "orientation": self._orientation(cells)}

    def _cells(self, planes: Tensor, depth: Tensor) -> Tensor:
        """HU of the coarse cells, (N, d, f, g)."""
        shape, (slices, height, width) = tf.shape(planes), self.grid
        slice_index = tf.range(shape[1], dtype=tf.float32)[tf.newaxis]
        size = tf.cast(depth, tf.float32)
        # Padding slices take no part.
        positions = tf.where(slice_index < size[:, tf.newaxis], slice_index, float("-inf"))
        along = triangle_matrix(tf.zeros_like(size), size, slices, positions)
        thin = tf.matmul(along, tf.reshape(planes, [shape[0], shape[1], shape[2] * shape[3]]))
        thin = tf.reshape(thin, [shape[0] * slices, shape[2], shape[3]])
        cells = in_plane(
            full_axis_matrix(height, shape[2]), thin, full_axis_matrix(width, shape[3])
        )
        return tf.reshape(cells, [shape[0], slices, height, width])

    def _orientation(self, cells: Tensor) -> Tensor:
        """Logits (N, 3), positive where the scan is rather stored flipped along that axis."""
        total = tf.zeros([tf.shape(cells)[0], 3])
        for view in _VIEWS:
            shown = cells
            for axis, flipped in enumerate(view, 1):
                # One axis at a time: OpenVINO knows no reversal of several.
                shown = tf.reverse(shown, [axis]) if flipped else shown
            # A view that is flipped once more says the opposite about that axis.
            signs = tf.constant([-1.0 if flipped else 1.0 for flipped in view])
            total += signs * tf.cast(self._flips(shown, training=False), tf.float32)
        return total / len(_VIEWS)

    def compute_output_spec(self, planes: Tensor, depth: Tensor) -> dict[str, Any]:
        """`lobes` (N, d, f, g, 5), `effusion` (N, d, f, g), `orientation` (N, 3), float32."""
        count = planes.shape[0]
        shapes = {
            "lobes": (count, *self.grid, 5),
            "effusion": (count, *self.grid),
            "orientation": (count, 3),
        }
        return {name: keras.KerasTensor(shape, dtype="float32") for name, shape in shapes.items()}

    def get_config(self) -> dict[str, Any]:
        """Arguments that rebuild the layer, the network's architecture included."""
        return {
            **super().get_config(),
            "network": keras.saving.serialize_keras_object(self.network),
            "level_hu": self.window.level_hu,
            "width_hu": self.window.width_hu,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> LobeSegmenter:
        """Rebuild the layer."""
        config = dict(config)
        return cls(keras.saving.deserialize_keras_object(config.pop("network")), **config)


@keras.saving.register_keras_serializable("tf_covid")
class ContextGate(keras.layers.Layer):
    """Lung and disease in a slice's cells, given where in the body they lie.

    Where the lobes have no share the gate is closed: nothing there is lung or disease. It opens
    from so little on that the border stays the 2D network's, along a ramp instead of a step: two
    runtimes that differ in the seventh digit still agree. Where the lobes are sure, the odds of
    lung rise: lung that is consolidated whole looks like the chest wall beside it in a single
    slice. The 2D network still has to see a little of it: the lobes alone never make lung.

    Args:
        low: Share up to which the gate is closed.
        high: Share from which it is open.
        sure: Shares between which the factor of the odds rises from 1 to exp(`gain`).
        gain: Logarithm of that factor.
        chunk: Slices at a time; what is held beside the masks grows with it only.

    Input: `lobes` float32 (N, d, f, g, 5), probabilities `masks` (N, D, h, w, outputs) of lung and,
    if there is a second output, disease, and `depth` int32 (N,), the true slices, which the coarse
    grid covers from edge to edge. Output: the masks behind the gate, in their shape.

    Raises:
        ValueError: If not 0 ≤ low < high ≤ 1, or the same of `sure`, or `gain` is negative, or
            `chunk` is not positive.
    """

    def __init__(
        self,
        low: float = 0.05,
        high: float = 0.2,
        sure: tuple[float, float] = (0.7, 0.9),
        gain: float = 3.0,
        chunk: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        if not 0 <= low < high <= 1:
            raise ValueError(f"a gate needs 0 ≤ low < high ≤ 1, not {low} and {high}")
        if not 0 <= sure[0] < sure[1] <= 1 or gain < 0:
            raise ValueError(
                f"the odds need 0 ≤ sure ≤ 1, rising, and gain ≥ 0, not {sure}, {gain}"
            )
        if chunk < 1:
            raise ValueError(f"slices at a time must be positive, not {chunk}")
        self.low, self.high, self.gain = float(low), float(high), float(gain)
        self.chunk = int(chunk)
        self.sure = float(sure[0]), float(sure[1])

    def call(self, lobes: Tensor, masks: Tensor, depth: Tensor) -> Tensor:
        """Lobes and masks → masks behind the gate."""
        return tf.stack(self.each(lobes, tf.unstack(masks, axis=-1), depth), axis=-1)

    def each(self, lobes: Tensor, masks: Sequence[Tensor], depth: Tensor) -> tuple[Tensor, ...]:
        """`call` for masks (N, D, h, w) that are held one by one, and so stay: lung comes first."""
        total = tf.reduce_sum(lobes, axis=-1)
        shape, cells = tf.shape(masks[0]), tf.shape(total)
        # Cell i of a slice lies at (i + ½) · d / depth of the coarse grid.
        centres = tf.range(shape[1], dtype=tf.float32)[tf.newaxis] + 0.5
        step = tf.cast(cells[1], tf.float32) / tf.maximum(tf.cast(depth, tf.float32), 1.0)
        along = _linear(centres * step[:, tf.newaxis], cells[1])
        flat = tf.reshape(total, [cells[0], cells[1], cells[2] * cells[3]])
        count = shape[0] * shape[1]
        slices = tf.reshape(tf.matmul(along, flat), [count, cells[2], cells[3]])
        rows, columns = full_axis_matrix(shape[2], cells[2]), full_axis_matrix(shape[3], cells[3])

        def body(numbers: Tensor, volumes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            # Padding repeats the chunk's first slice, which is then written twice alike.
            own = tf.where(numbers < 0, numbers[0], numbers)
            fraction = in_plane(rows, tf.gather(slices, own), columns)
            gated = self._gated(fraction, [tf.gather(volume, own) for volume in volumes])
            return tuple(
                tf.tensor_scatter_nd_update(volume, own[:, tf.newaxis], values)
                for volume, values in zip(volumes, gated, strict=True)
            )

        # Each is written where it lies: memory grows with the slices at a time only.
        volumes = tuple(tf.reshape(mask, [count, shape[2], shape[3]]) for mask in masks)
        gated = over_chunks(count, self.chunk, body, volumes)
        return tuple(tf.reshape(volume, shape) for volume in gated)

    def _gated(self, fraction: Tensor, masks: Sequence[Tensor]) -> list[Tensor]:
        """Masks (n, h, w) behind the gate, where the lobes have this share of a cell."""
        factor = tf.exp(self.gain * _ramp(fraction, self.sure))
        lungs, *others = masks
        lungs = lungs * factor / (1.0 + lungs * (factor - 1.0))
        opened = _ramp(fraction, (self.low, self.high))
        return [mask * opened for mask in (lungs, *others)]

    def compute_output_spec(self, lobes: Tensor, masks: Tensor, depth: Tensor) -> keras.KerasTensor:
        """The masks' shape, float32."""
        return keras.KerasTensor(masks.shape, dtype="float32")

    def get_config(self) -> dict[str, Any]:
        """Arguments that rebuild the layer."""
        own = {"low": self.low, "high": self.high, "sure": list(self.sure), "gain": self.gain}
        return {**super().get_config(), **own, "chunk": self.chunk}


def _ramp(fraction: Tensor, limits: tuple[float, float]) -> Tensor:
    """0 up to the first limit, 1 from the second on."""
    return tf.clip_by_value((fraction - limits[0]) / (limits[1] - limits[0]), 0.0, 1.0)


def _linear(positions: Tensor, size: Tensor) -> Tensor:
    """Weights (N, M, size) of linear interpolation between cell centres, constant beyond the ends.

    Args:
        positions: Where the M values are wanted, float32 (N, M), in cells; cell j covers [j, j+1).
        size: Number of cells.
    """
    last = tf.cast(size, tf.float32) - 0.5
    inside = tf.clip_by_value(positions, 0.5, last)[..., tf.newaxis]
    centres = tf.range(size, dtype=tf.float32) + 0.5
    return tf.maximum(1.0 - tf.abs(inside - centres), 0.0)
