"""Layers, U-Net and network as one Keras model from int16 HU: what `infer` runs and what an export holds.

The file is not called `stratifier.py`: `tf_covid.stratifier` is the public function.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tf_covid.errors import ModelError
from tf_covid.layers import (
    ClipSampler,
    HUWindow,
    LungBox,
    LungSegmenter,
    MaskedClip,
    SliceRule,
    input_scaling,
)
from tf_covid.weights import Preprocessing, contract_of, load
from tf_covid.weights.contract import check_trained

#: What the U-Net's outputs are, in order.
OUTPUTS = ("lungs", "disease")


@keras.saving.register_keras_serializable("tf_covid")
class Stratifier(keras.Model):
    """The road from HU to logits.

    Args:
        network: Classifier from clips (N, D, H, W, C) of fixed D, H, W to `{"logits": …}`.
        lungs: U-Net from slices (n, h, w, 1) to `{"logits": …}`; a second output is diseased lung,
            which the network never sees.
        preprocessing: Window, slice rule, box and input scaling of the network.
        lungs_preprocessing: Window of the U-Net; what came with it, else the network's.
        chunk: Slices at a time through U-Net and resampling.

    Input: a dict of `hu` int16 (N, D, H, W) in canonical order (D from head to feet, H from
    anterior to posterior, W from the patient's right to left) and `depth` int32 (N,), the number of
    true slices of each scan. Output: a dict of `logits` (N, classes), `ct_score` (N,) where the
    network has one, and `slices_kept` int32 (N,). Where no slice is kept the clip is empty and the
    logits mean nothing: the caller refuses such a scan.
    """

    def __init__(
        self,
        network: keras.Model,
        lungs: keras.Model,
        preprocessing: Preprocessing | None = None,
        lungs_preprocessing: Preprocessing | None = None,
        chunk: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        settings = preprocessing or Preprocessing()
        shape = network.input_shape
        if len(shape) != 5 or None in shape[1:]:
            raise ModelError(
                f"the stratifier needs a network from clips of a known size, not {shape}"
            )
        frames, height, width, channels = shape[1:]
        if lungs_preprocessing is None:
            contract = contract_of(lungs)
            lungs_preprocessing = contract.preprocessing if contract else settings
        self.network, self.lungs, self.preprocessing, self.chunk = (
            network,
            lungs,
            settings,
            int(chunk),
        )
        self.lungs_preprocessing = lungs_preprocessing
        level_hu, width_hu = lungs_preprocessing.level_hu, lungs_preprocessing.width_hu
        self.segmenter = LungSegmenter(lungs, level_hu, width_hu, chunk, name="segmenter")
        self.slice_rule = SliceRule(settings.slice_minimum, name="slice_rule")
        self.lung_box = LungBox(settings.box, settings.box_margin, name="lung_box")
        self.sampler = ClipSampler(frames, height, width, chunk, name="sampler")
        self.window = HUWindow(settings.level_hu, settings.width_hu, dtype="float32", name="window")
        self.masked = MaskedClip(channels, dtype="float32", name="masked")
        self.scaling = input_scaling(settings.input_scale, settings.input_offset)

    def segment(self, hu: Any, depth: Any) -> dict[str, Any]:
        """What the U-Net finds, on its own grid. No component analysis: see `lungs.py`.

        Args:
            hu: int16 (N, D, H, W).
            depth: int32 (N,), the number of true slices of each scan.

        Returns:
            `lungs` float32 (N, D, h, w), the lung probability; and `disease`, the probability of
            diseased lung in the same shape, where the U-Net has two outputs.
        """
        probabilities = self.segmenter(hu, depth)
        return {
            name: probabilities[..., number]
            for number, name in enumerate(OUTPUTS[: self.segmenter.outputs])
        }

    def cut(self, hu: Any, probability: Any) -> dict[str, Any]:
        """The kept slices within the box, on the clip grid, before they are masked.

        Args:
            hu: int16 (N, D, H, W).
            probability: Lung probability (N, D, h, w).

        Returns:
            `clip` float32 (N, D', H', W') in [0, 1], `lungs` its lung probability, `keep` bool (N,
            D), `box` float32 (N, 4).
        """
        keep = self.slice_rule(probability)
        box = self.lung_box(probability, keep)
        # A probability is a share of 0 … 1; the sampler's clipping of HU leaves it as it is.
        lungs = self.sampler(probability, keep, box)
        return {
            "clip": self.window(self.sampler(hu, keep, box)),
            "lungs": lungs,
            "keep": keep,
            "box": box,
        }

    def finish(self, clip: Any, lungs: Any) -> Any:
        """Mask and scale what `cut` gave: the clip (N, D', H', W', C) as the network takes it."""
        return self.scaling(self.masked(clip, lungs))

    def prepare(self, hu: Any, probability: Any) -> dict[str, Any]:
        """The clip and what brings it back onto the scan.

        Args:
            hu: int16 (N, D, H, W).
            probability: Lung probability (N, D, h, w), `lungs` of `segment` or from a user's mask.

        Returns:
            `clip` float32 (N, D', H', W', C) as the network takes it, `keep` bool (N, D), `box`
            float32 (N, 4).
        """
        cut = self.cut(hu, probability)
        return {
            "clip": self.finish(cut["clip"], cut["lungs"]),
            "keep": cut["keep"],
            "box": cut["box"],
        }

    def call(self, inputs: dict[str, Any], training: bool = False) -> dict[str, Any]:
        """The whole road."""
        hu, depth = inputs["hu"], inputs["depth"]
        prepared = self.prepare(hu, self.segment(hu, depth)["lungs"])
        answer = self.network(prepared["clip"], training=training)
        outputs = {"logits": tf.cast(answer["logits"], tf.float32)}
        if "ct_score" in answer:
            outputs["ct_score"] = tf.cast(answer["ct_score"][:, 0], tf.float32)
        return outputs | {"slices_kept": tf.reduce_sum(tf.cast(prepared["keep"], tf.int32), axis=1)}

    def get_config(self) -> dict[str, Any]:
        """Arguments that rebuild the model, both architectures included."""
        return {
            "name": self.name,
            "network": keras.saving.serialize_keras_object(self.network),
            "lungs": keras.saving.serialize_keras_object(self.lungs),
            "preprocessing": self.preprocessing.model_dump(mode="json"),
            "lungs_preprocessing": self.lungs_preprocessing.model_dump(mode="json"),
            "chunk": self.chunk,
        }

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Nothing to build: both networks come with their weights' places."""

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Stratifier:
        """Rebuild the model."""
        config = dict(config)
        for part in ("network", "lungs"):
            config[part] = keras.saving.deserialize_keras_object(
                config[part], custom_objects=custom_objects
            )
        for part in ("preprocessing", "lungs_preprocessing"):
            config[part] = Preprocessing(**config[part])
        return cls(**config)


def stratifier(
    network: keras.Model | str | Path,
    lungs: keras.Model | str | Path = "lungs-unet",
    *,
    preprocessing: Preprocessing | None = None,
    precision: str = "float32",
    chunk: int = 16,
) -> Stratifier:
    """Join window, U-Net, slice rule, lung box, resampling, mask, input scaling and network into one model.

    Args:
        network: A shipped name, a `.keras` file, or any `keras.Model` from clips to `{"logits":
            …}`.
        lungs: The lung U-Net: a shipped name, a `.keras` file, or a `keras.Model`.
        preprocessing: Overrides what lies beside the network's weights; the paper's values where
            nothing does.
        precision: "float32" or "bfloat16", for models given by name or file.
        chunk: Slices at a time.

    Returns:
        A model from `{"hu": int16 (N, D, H, W), "depth": int32 (N,)}` to `{"logits", "ct_score",
        "slices_kept"}`.

    Raises:
        ModelError: If a model is missing, foreign, damaged, untrained, or takes no clip of a known
            size.
    """
    if not isinstance(network, keras.Model):
        network = _trained(network, precision)
    if not isinstance(lungs, keras.Model):
        lungs = _trained(lungs, precision)
    if preprocessing is None:
        contract = contract_of(network)
        preprocessing = contract.preprocessing if contract else Preprocessing()
    return Stratifier(network, lungs, preprocessing, chunk=chunk)


def _trained(source: str | Path, precision: str) -> keras.Model:
    """A network from a file whose head is trained; one that is handed over may have been trained since it was read."""
    loaded = load(source, precision=precision)
    check_trained(loaded.name, loaded.contract)
    return loaded.network
