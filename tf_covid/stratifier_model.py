"""A preprocessor and a network as one Keras model, from int16 HU to logits.

The file is not called `stratifier.py`: `tf_covid.stratifier` is the public function.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tf_covid.errors import ModelError
from tf_covid.preprocessor import Preprocessor, default_lobes
from tf_covid.tensor import Tensor
from tf_covid.weights import Preprocessing, contract_of, load
from tf_covid.weights.catalog import LUNGS, NO_LOBES
from tf_covid.weights.contract import check_trained


@keras.saving.register_keras_serializable("tf_covid")
class Stratifier(keras.Model):
    """A preprocessor and the network behind it: int16 HU in, logits out.

    Args:
        network: Classifier from clips (N, D, H, W, C) of fixed D, H, W to `{"logits": …}`.
        lungs: U-Net from slices (n, h, w, 1) to `{"logits": …}`; a second output is diseased lung,
            which the network never sees.
        preprocessing: Window, slice rule, box and input scaling of the network.
        lungs_preprocessing: Window of the U-Net; what came with it, else the network's.
        lobes: 3D network whose lobes gate the U-Net's mask; None: the mask is taken as it is.
        calibration: Scale and offset of the U-Net's logit of diseased lung; what came with it.
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
        lobes: keras.Model | None = None,
        calibration: tuple[float, float] | None = None,
        chunk: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        shape = network.input_shape
        if len(shape) != 5 or None in shape[1:]:
            raise ModelError(
                f"the stratifier needs a network from clips of a known size, not {shape}"
            )
        # All are attributes of the model itself, so that Keras saves and restores their weights.
        self.network, self.lungs, self.lobes = network, lungs, lobes
        self.preprocessor = Preprocessor(
            lungs,
            shape[1:],
            preprocessing,
            lungs_preprocessing,
            chunk=chunk,
            lobes=lobes,
            calibration=calibration,
        )

    def segment(self, hu: Tensor, depth: Tensor) -> dict[str, Tensor]:
        """What the U-Net finds, on its own grid: see `Preprocessor.segment`."""
        return self.preprocessor.segment(hu, depth)

    def prepare(self, hu: Tensor, probability: Tensor) -> dict[str, Tensor]:
        """The clip of each scan, and what brings it back: see `Preprocessor.prepare`."""
        return self.preprocessor.prepare(hu, probability)

    def call(self, inputs: dict[str, Tensor], training: bool = False) -> dict[str, Tensor]:
        """Answer scans, from HU to logits: see the class."""
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
            "lobes": None
            if self.lobes is None
            else keras.saving.serialize_keras_object(self.lobes),
            "calibration": list(self.preprocessor.segmenter.calibration),
            "preprocessing": self.preprocessor.settings.model_dump(mode="json"),
            "lungs_preprocessing": self.preprocessor.lungs_settings.model_dump(mode="json"),
            "chunk": self.preprocessor.chunk,
        }

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Nothing to build: both networks come with their weights' places."""

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> Stratifier:
        """Rebuild the model."""
        config = dict(config)
        for part in ("network", "lungs", "lobes"):
            if config.get(part) is None:
                continue
            config[part] = keras.saving.deserialize_keras_object(
                config[part], custom_objects=custom_objects
            )
        for part in ("preprocessing", "lungs_preprocessing"):
            config[part] = Preprocessing(**config[part])
        return cls(**config)


def stratifier(
    network: keras.Model | str | Path,
    lungs: keras.Model | str | Path = LUNGS,
    lobes: keras.Model | str | Path | None = None,
    *,
    preprocessing: Preprocessing | None = None,
    precision: str = "float32",
    chunk: int = 16,
) -> Stratifier:
    """Join window, U-Net, slice rule, box, resampling, mask, scaling and network into one model.

    Args:
        network: A shipped name, a `.keras` file, or any `keras.Model` from clips to `{"logits":
            …}`.
        lungs: The lung U-Net: a shipped name, a `.keras` file, or a `keras.Model`.
        lobes: The 3D lobe network, whose lobes gate the U-Net's mask, likewise; "none" for the
            mask as it is; None: the shipped one where the network was trained behind it.
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
    contract = contract_of(network)
    if lobes is None:
        lobes = default_lobes([contract] if contract else [])
    if not isinstance(lobes, keras.Model):
        lobes = None if lobes == NO_LOBES else _trained(lobes, "float32")
    if preprocessing is None:
        preprocessing = contract.preprocessing if contract else Preprocessing()
    return Stratifier(network, lungs, preprocessing, lobes=lobes, chunk=chunk)


def _trained(source: str | Path, precision: str) -> keras.Model:
    # A network that is handed over in memory may have been trained since it was read.
    loaded = load(source, precision=precision)
    check_trained(loaded.name, loaded.contract)
    return loaded.network
