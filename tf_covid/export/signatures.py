"""The stratifier as functions for a SavedModel: int16 HU in, answers out.

A stock TF Serving has all operations of them.
Every function takes and gives tensors with names, and answers each scan of a batch as if it had
come alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tf_covid import attention
from tf_covid.attention.grid import centre_weights
from tf_covid.exported import MASKS, METHOD, TARGET
from tf_covid.local import EnsembleMember, LocalModels
from tf_covid.pipeline import versions
from tf_covid.tensor import Tensor

#: Largest number of slices of a request, padding included, of pixels along a side, and of clips:
#: few bytes must not be able to ask for hours. 4,000 slices of 512×512 are what a message of gRPC
#: holds.
MAX_SLICES, MAX_PIXELS, MAX_CLIPS = 4096, 4096, 64


@dataclass(frozen=True)
class Signature:
    """A function of an export.

    Args:
        function: Takes its inputs by the names of `inputs`, gives a dict of named tensors.
        inputs: Shape and type of each input.
    """

    function: Callable[..., dict[str, Any]]
    inputs: tuple[tf.TensorSpec, ...]


class ServingModule:
    """Window, U-Net, slice rule, resampling, network and Grad-CAM of one model, ready to be saved.

    Args:
        models: One network behind its lung model.

    N is the number of scans, D the slices of the longest, (h, w) the grid of the U-Net, (D', H',
    W') the clip, (d, f, g) the grid of the explained layer. Where no slice is kept, `slices_kept`
    is 0 and every answer is NaN.
    """

    def __init__(self, models: LocalModels) -> None:
        member: EnsembleMember = models.members[0]
        self._member, self._preprocessor = member, member.preprocessor
        network = member.model.network
        #: Plain TensorFlow variables: what a SavedModel of the clip network, and of the stratifier,
        #: must hold.
        self.clip_weights = [variable.value for variable in network.variables]
        pair = models.lung_models
        self.weights = [
            *self.clip_weights,
            *(variable.value for variable in pair.lungs.network.variables),
            *(variable.value for variable in (pair.lobes.network.variables if pair.lobes else ())),
        ]
        self._clip = tuple(network.input_shape[1:4])
        self._finds_disease = models.finds_disease
        cells = member.split.backbone.output_shape[1:4]
        #: For each axis, the weights (clip voxels, cells) that bring a map onto the clip.
        self._onto_clip = [
            centre_weights((np.arange(size) - axis.first) / axis.step, count)
            for axis, size, count in zip(member.axes, self._clip, cells, strict=True)
        ]
        self._axes = np.array([[axis.step, axis.first] for axis in member.axes], np.float32)
        self.model_card = model_card(models)

    def answer(self, hu: Tensor, depth: Tensor) -> dict[str, Any]:
        """`serving_default`: severity (or covid) of each scan.

        Args:
            hu: int16 (N, D, H, W), HU in canonical order.
            depth: int32 (N,), true slices of each scan; later ones are padding.

        Returns:
            `probabilities` and `logits` float32 (N, classes), `ct_score` float32 (N,) where the
            network has one, `slices_kept` int32 (N,).
        """
        prepared = self._preprocessor.prepare(hu, self._segment(hu, depth)["lungs"])
        return self._answers(
            self._member.model.network(prepared["clip"], training=False), prepared["keep"]
        )

    def explain(self, hu: Tensor, depth: Tensor) -> dict[str, Any]:
        """`explain`: the same, with the attention map and what brings it back onto the scan.

        Returns:
            What `answer` gives; `attention` float32 (N, D', H', W') ≥ 0 on the clip, 0 outside the
            lungs; `attention_cells` (N, d, f, g), the map as the layer has it; `attention_axes` (N,
            3, 2), step and first centre of its cells in clip voxels, for D, H, W; `keep` bool (N,
            D), the slices of the scan that lie one behind the other in the clip; `box` (N, 4), top,
            bottom, left, right of the clip as fractions of the image.
        """
        probabilities = self._segment(hu, depth)
        return self._explained(hu, probabilities["lungs"])

    def segment(self, hu: Tensor, depth: Tensor) -> dict[str, Any]:
        """`segment`: the lungs on the grid of the U-Net.

        Returns:
            `mask` uint8 (N, D, h, w), 1 in the lungs; `lungs` float32 of the same shape, their
            probability; `disease`, that of diseased lung, where the U-Net finds it; behind a lobe
            network also `lobes` float32 (N, d, f, g, 5) and `effusion` (N, d, f, g) on its coarse
            grid, which covers the scan from edge to edge, and `orientation` (N, 3), logits of
            “stored feet first”, “back for front” and “left for right”.
        """
        probabilities = self._segment(hu, depth)
        return {"mask": tf.cast(probabilities["lungs"] > 0.5, tf.uint8), **probabilities}

    def answer_bytes(self, hu_bytes: Tensor, shape: Tensor) -> dict[str, Any]:
        """`serving_bytes`: `answer` for REST, whose base64 carries bytes but no int16.

        Args:
            hu_bytes: string (N,), little-endian int16 HU of each scan, C order.
            shape: int32 (N, 3), its slices, height and width; all scans of a request have the same
                plane.
        """
        return self.answer(*_from_bytes(hu_bytes, shape))

    def infer_bytes(self, hu_bytes: Tensor, shape: Tensor) -> dict[str, Any]:
        """`infer_bytes`: all that `tfcovid infer --server` needs for one scan, in one call.

        Returns:
            What `explain` gives but its `attention`; `lungs_bytes` and, where found,
            `disease_bytes`, `lobes_bytes`, `effusion_bytes` and `orientation_bytes`, string (N,):
            serialized TensorProtos of what `segment` gives for each scan, float32, since REST
            writes numbers as text; `card_bytes` string (N,), JSON: which
            model this is.
        """
        hu, depth = _from_bytes(hu_bytes, shape)
        answers = self.infer(hu, depth)
        masks = {
            f"{name}_bytes": _serialized(answers.pop(name)) for name in MASKS if name in answers
        }
        return (
            answers
            | masks
            | {"card_bytes": tf.repeat(tf.constant([self.model_card]), tf.shape(hu)[0])}
        )

    def infer(self, hu: Tensor, depth: Tensor) -> dict[str, Any]:
        """All that `tfcovid infer` needs, as tensors: what a runtime of this machine gives.

        Returns:
            What `explain` gives but its `attention`, and what `segment` gives but its `mask`.
        """
        probabilities = self._segment(hu, depth)
        answers = self._explained(hu, probabilities["lungs"])
        del answers["attention"]
        return answers | probabilities

    def classify_clip(self, clip: Tensor) -> dict[str, Any]:
        """`classify_clip`: a clip that was windowed, masked and scaled by the caller.

        Args:
            clip: float32 (N, D', H', W', C), as the network takes it.

        Returns:
            `probabilities`, `logits`, and `ct_score` where the network has one.
        """
        limit = f"at most {MAX_CLIPS} clips in a request"
        # A server that is not ours does not look, and "no findings" is what a network says about
        # NaN.
        finite = tf.reduce_all(tf.math.is_finite(clip))
        checks = [
            tf.debugging.assert_less_equal(tf.shape(clip)[0], MAX_CLIPS, limit),
            tf.debugging.assert_equal(
                finite, True, "every number of a clip is finite, none is NaN"
            ),
        ]
        with tf.control_dependencies([check for check in checks if check is not None]):
            clip = tf.identity(clip)
        return self._outputs(self._member.model.network(clip, training=False))

    def signatures(self) -> dict[str, Signature]:
        """The functions of an export by the names of their signatures.

        `serving_default` comes first.
        """
        hu = tf.TensorSpec([None] * 4, tf.int16, name="hu")
        depth = tf.TensorSpec([None], tf.int32, name="depth")
        texts = tf.TensorSpec([None], tf.string, name="hu_bytes")
        shape = tf.TensorSpec([None, 3], tf.int32, name="shape")
        return {
            "serving_default": Signature(self.answer, (hu, depth)),
            "explain": Signature(self.explain, (hu, depth)),
            "segment": Signature(self.segment, (hu, depth)),
            "serving_bytes": Signature(self.answer_bytes, (texts, shape)),
            "infer_bytes": Signature(self.infer_bytes, (texts, shape)),
            "classify_clip": self.clip_signature(),
        }

    def clip_signature(self) -> Signature:
        """The only one that is worth batching, since scans of unequal depth do not stack."""
        channels = self._member.model.network.input_shape[-1]
        return Signature(
            self.classify_clip,
            (tf.TensorSpec([None, *self._clip, channels], tf.float32, name="clip"),),
        )

    def _segment(self, hu: Tensor, depth: Tensor) -> dict[str, Any]:
        size = tf.shape(hu)
        checks = [
            # A 3D convolution ends with an unkind error where there is no scan.
            tf.debugging.assert_positive(size, "each scan needs slices, height and width above 0"),
            tf.debugging.assert_positive(
                depth, "depth holds one number a scan, from 1 to its number of slices"
            ),
            *_bounded(size[0], size[1], size[2:]),
        ]
        with tf.control_dependencies([check for check in checks if check is not None]):
            return self._preprocessor.segment(tf.identity(hu), depth)

    def _explained(self, hu: Tensor, lungs: Tensor) -> dict[str, Any]:
        prepared = self._preprocessor.prepare(hu, lungs)
        features = tf.cast(
            self._member.split.backbone(prepared["clip"], training=False), tf.float32
        )
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(features)
            outputs = self._member.split.tie_sharing_head(features, training=False)
            score = attention.expected_class(outputs["logits"])
        # Grad-CAM (Selvaraju 2017): each feature counts as its mean gradient says; what lowers the
        # target is cut.
        gradient = tape.gradient(score, features)
        weight = tf.reduce_mean(gradient, axis=(1, 2, 3), keepdims=True)
        cells = tf.nn.relu(tf.reduce_sum(features * weight, axis=-1))
        on_clip = cells
        for axis, weights in enumerate(self._onto_clip, 1):
            on_clip = _along(on_clip, weights, axis)
        inside = tf.cast(prepared["lungs"] >= 0.5, tf.float32)
        answers, kept = self._answers(outputs, prepared["keep"]), prepared["keep"]
        return answers | {
            "attention": _or_nan(on_clip * inside, answers["slices_kept"]),
            "attention_cells": _or_nan(cells, answers["slices_kept"]),
            "attention_axes": tf.repeat(
                tf.constant(self._axes)[tf.newaxis], tf.shape(hu)[0], axis=0
            ),
            "keep": kept,
            "box": prepared["box"],
        }

    def _answers(self, outputs: dict[str, Any], keep: Tensor) -> dict[str, Any]:
        kept = tf.reduce_sum(tf.cast(keep, tf.int32), axis=1)
        answers = {name: _or_nan(values, kept) for name, values in self._outputs(outputs).items()}
        return answers | {"slices_kept": kept}

    @staticmethod
    def _outputs(outputs: dict[str, Any]) -> dict[str, Any]:
        logits = tf.cast(outputs["logits"], tf.float32)
        answers = {"probabilities": tf.nn.softmax(logits), "logits": logits}
        if "ct_score" in outputs:
            answers["ct_score"] = tf.cast(outputs["ct_score"][:, 0], tf.float32)
        return answers


def model_card(models: LocalModels) -> str:
    """JSON about one model, with the sha256 of its weights and of the lung models'.

    What a client puts into its `result.json`.
    """
    model, lobes = models.members[0].model, models.lung_models.lobes
    facts = {
        "name": model.name,
        "sha256": model.sha256,
        # Not which scans it was trained on: nobody who asks the server needs that.
        **model.contract.model_dump(mode="json", exclude={"trained_on"}),
        "method": METHOD,
        "target": TARGET,
        "endpoint": models.endpoint,
        "clip": list(model.network.input_shape[1:]),
        "lungs": {
            "name": models.lungs.name,
            "sha256": models.lungs.sha256,
            "disease": models.finds_disease,
        },
        "lobes": lobes
        and {"name": lobes.name, "sha256": lobes.sha256, "gates": models.lung_models.gated},
        "other_lungs": models.other_lungs,
        "files": models.files_sha256,
        "versions": versions(),
    }
    return json.dumps(facts, sort_keys=True)


def _or_nan(values: Tensor, kept: Tensor) -> Tensor:
    """NaN for the scans without a kept slice; the shape of `values` stays."""
    rank = len(values.shape)
    there = tf.reshape(kept > 0, tf.concat([tf.shape(kept), [1] * (rank - 1)], axis=0))
    return tf.where(there, values, tf.constant(float("nan")))


def _along(values: Tensor, weights: np.ndarray, axis: int) -> Tensor:
    """The product of `weights` (out, in) with one axis of `values`, which stays in its place."""
    rank = len(values.shape)
    order = [other for other in range(rank) if other != axis] + [axis]
    back = sorted(range(rank), key=lambda axis: order[axis])
    moved = tf.matmul(tf.transpose(values, order), tf.constant(weights), transpose_b=True)
    return tf.transpose(moved, back)


def _bounded(scans: Tensor, slices: Tensor, plane: Tensor) -> list[Any]:
    """Checks that a request of `scans` scans of `slices` slices each is not too large."""
    # Whole numbers of 64 bits: a product must not wrap around.
    total = tf.cast(scans, tf.int64) * tf.cast(slices, tf.int64)
    rules = (
        f"at most {MAX_SLICES} slices in a request, padding included, of at most {MAX_PIXELS}"
        " pixels a side"
    )
    return [
        tf.debugging.assert_less_equal(total, tf.constant(MAX_SLICES, tf.int64), rules),
        tf.debugging.assert_less_equal(plane, MAX_PIXELS, rules),
    ]


def _from_bytes(texts: Tensor, shape: Tensor) -> tuple[Any, Any]:
    """int16 (N, D, H, W), shorter scans padded with zeros, and their depth (N,)."""
    rules = (
        "each scan needs slices, height and width above 0; all scans of a request have the same"
        " height and width"
    )
    first = shape[:1, 1:]
    checks = [
        tf.debugging.assert_equal(
            tf.shape(texts)[0], tf.shape(shape)[0], "hu_bytes and shape hold one row a scan"
        ),
        tf.debugging.assert_positive(shape, rules),
        tf.debugging.assert_equal(
            shape[:, 1:], tf.repeat(first, tf.shape(shape)[0], axis=0), rules
        ),
        *_bounded(tf.shape(shape)[0], tf.reduce_max(shape[:, 0]), shape[:, 1:]),
    ]
    with tf.control_dependencies([check for check in checks if check is not None]):
        shape = tf.identity(shape)
    deepest = tf.reduce_max(shape[:, 0])

    def one(item: tuple[Any, Any]) -> Tensor:
        text, size = item
        # A length that does not fit the shape ends here, as an invalid argument.
        volume = tf.reshape(tf.io.decode_raw(text, tf.int16, little_endian=True), size)
        return tf.pad(volume, [[0, deepest - size[0]], [0, 0], [0, 0]])

    # One after the other: a copy of each would be in memory at once.
    hu = tf.map_fn(
        one,
        (texts, shape),
        fn_output_signature=tf.TensorSpec([None] * 3, tf.int16),
        parallel_iterations=1,
    )
    return hu, shape[:, 0]


def _serialized(values: Tensor) -> Tensor:
    """float32 (N, …) as strings (N,), a TensorProto for each row."""
    text = tf.TensorSpec([], tf.string)
    return tf.map_fn(
        tf.io.serialize_tensor, values, fn_output_signature=text, parallel_iterations=1
    )
