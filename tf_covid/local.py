"""Answers from models in this process: what `pipeline.stratify` is handed, and a remote server could stand in for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_covid import attention
from tf_covid.attention import Axis, Split
from tf_covid.errors import ModelError
from tf_covid.layers.resample import full_axis_matrix, in_plane
from tf_covid.models import NETWORKS
from tf_covid.stratifier_model import Stratifier
from tf_covid.weights import LoadedModel, load

LUNGS = "lungs-unet"

_HU = tf.TensorSpec([None] * 4, tf.int16)
_DEPTH = tf.TensorSpec([None], tf.int32)
_PROBABILITY = tf.TensorSpec([None] * 4, tf.float32)


@dataclass(frozen=True)
class Segmentation:
    """What the lung model says about one scan.

    Args:
        probability: float32 (D, h, w), on the U-Net's grid.
        seconds: Time it took.
    """

    probability: np.ndarray
    seconds: float


@dataclass(frozen=True)
class Answer:
    """What one network says about one scan.

    Args:
        model: The network's file and contract.
        probabilities: (classes,), summing to 1: the softmax of the logits, taken here and nowhere else.
        ct_score: 0–25, or None where the network has none.
        keep: bool (D,).
        box: float32 (4,).
        features: (1, d, h, w, C) at the endpoint.
        seconds: Time it took.
    """

    model: LoadedModel
    probabilities: np.ndarray
    ct_score: float | None
    keep: np.ndarray
    box: np.ndarray
    features: Any
    seconds: float


class Member:
    """One network of an ensemble, joined with the lung model and cut at its endpoint."""

    def __init__(self, model: LoadedModel, lungs: keras.Model) -> None:
        self.model = model
        self.stratifier = Stratifier(model.network, lungs, model.contract.preprocessing)
        last = NETWORKS[model.contract.model].endpoint
        if last is None:
            raise ModelError(f"{model.name}: {model.contract.model} gives no class for a scan")
        endpoint = model.contract.endpoint or last(model.contract.arguments)
        try:
            self.split: Split = attention.split(model.network, endpoint)
            self.axes: tuple[Axis, Axis, Axis] = attention.feature_axes(model.network, endpoint)
        except ValueError as error:
            raise ModelError(f"{model.name}: {endpoint} cannot be explained ({error})") from error
        self.prepare = tf.function(self.stratifier.prepare, input_signature=[_HU, _PROBABILITY])
        self.classify = tf.function(self._classify)

    def _classify(self, clip: Any) -> Any:
        features = self.split.backbone(clip, training=False)
        return features, self.split.head(features, training=False)

    def answer(self, hu: np.ndarray, probability: np.ndarray) -> Answer:
        """Classify one scan."""
        start = time.perf_counter()
        prepared = self.prepare(hu[np.newaxis], probability[np.newaxis])
        features, outputs = self.classify(prepared["clip"])
        logits = outputs["logits"].numpy()[0].astype(np.float64)
        if not np.isfinite(logits).all():
            raise ModelError(f"{self.model.name}: the answer is not a finite number")
        shares = np.exp(logits - logits.max())
        score = float(outputs["ct_score"].numpy()[0, 0]) if "ct_score" in outputs else None
        return Answer(
            model=self.model,
            probabilities=shares / shares.sum(),
            ct_score=score,
            keep=prepared["keep"].numpy()[0],
            box=prepared["box"].numpy()[0],
            features=features,
            seconds=time.perf_counter() - start,
        )


class LocalModels:
    """One or more networks of one task behind one lung model, ready to answer scan after scan.

    Args:
        sources: Shipped names or `.keras` files.
        precision: "float32" or "bfloat16".

    Raises:
        ModelError: If a model is missing, foreign or damaged, if the tasks differ, or if a network was trained behind
            another lung model than the one that is here.
    """

    def __init__(self, sources: Sequence[str | Path], *, precision: str = "float32") -> None:
        if not sources:
            raise ModelError("no model was named")
        lungs = load(LUNGS, precision=precision)
        loaded = [load(source, precision=precision) for source in sources]
        tasks = sorted({model.contract.task for model in loaded})
        if len(tasks) > 1 or tasks[0] not in ("severity", "covid"):
            raise ModelError(f"models of one task, severity or covid, are needed, not {', '.join(tasks)}")
        for model in loaded:
            theirs = model.contract.lungs_sha256
            if theirs not in (None, lungs.sha256):
                raise ModelError(
                    f"{model.name} was trained behind the lung model {theirs[:12]}…, but {LUNGS} is "
                    f"{lungs.sha256[:12]}…"
                )
        self.task = tasks[0]
        self.lungs = lungs
        self.members = [Member(model, lungs.network) for model in loaded]
        self.segment_graph = tf.function(self.members[0].stratifier.segment, input_signature=[_HU, _DEPTH])

    @property
    def fingerprint(self) -> tuple[str, ...]:
        """sha256 of every file that has a say, the lung model's first."""
        return (self.lungs.sha256, *(member.model.sha256 for member in self.members))

    @property
    def slice_minimum(self) -> float:
        """The least share of a slice that must be lung for any of the networks to keep it."""
        return min(member.model.contract.preprocessing.slice_minimum for member in self.members)

    def segment(self, hu: np.ndarray) -> Segmentation:
        """Lung probability of one scan, int16 (D, H, W)."""
        start = time.perf_counter()
        probability = self.segment_graph(hu[np.newaxis], np.array([len(hu)], np.int32)).numpy()[0]
        return Segmentation(probability, time.perf_counter() - start)

    def from_mask(self, mask: np.ndarray) -> Segmentation:
        """A user's own mask, bool (D, H, W), on the U-Net's grid: the share of each cell that is lung."""
        start = time.perf_counter()
        height, width = self.members[0].stratifier.segmenter.grid
        rows, columns = full_axis_matrix(height, mask.shape[1]), full_axis_matrix(width, mask.shape[2])
        planes = [
            in_plane(rows, mask[first : first + 16].astype(np.float32), columns) for first in range(0, len(mask), 16)
        ]
        return Segmentation(np.concatenate([part.numpy() for part in planes]), time.perf_counter() - start)

    def classify(self, hu: np.ndarray, probability: np.ndarray) -> list[Answer]:
        """Every network's answer about one scan."""
        return [member.answer(hu, probability) for member in self.members]

    def attend(
        self, answers: Sequence[Answer], shape: tuple[int, int, int], target: str, number: int, method: str
    ) -> np.ndarray:
        """The mean of the networks' attention maps, uint8 (D, H, W), 255 at its maximum.

        Args:
            answers: From `classify`.
            shape: (D, H, W) of the scan.
            target: "severity" (the expected class index) or "class" (the predicted class).
            number: The predicted class.
            method: "gradcam", "gradcam++" or "layercam".
        """
        score: Callable[[Any], Any] = (
            attention.expected_class if target == "severity" else attention.class_logit(number)
        )
        total: np.ndarray | None = None
        for member, answer in zip(self.members, answers, strict=True):
            raw = attention.attention_map(member.split.explained, answer.features, score, method)
            clip = member.model.network.input_shape[1:4]
            volume = attention.onto_scan(raw, member.axes, clip, answer.keep, answer.box, shape)
            if len(self.members) == 1:
                return volume
            total = volume.astype(np.uint16) if total is None else total + volume
        assert total is not None
        highest = max(int(total.max()), 1)
        for plane in total:  # in place, slice by slice: no float copy of the volume
            plane[:] = np.rint(plane * (255.0 / highest))
        return total.astype(np.uint8)

    @property
    def endpoint(self) -> str:
        """Where the networks were cut, e.g. "Mixed_5c"."""
        return " + ".join(dict.fromkeys(member.split.endpoint for member in self.members))
