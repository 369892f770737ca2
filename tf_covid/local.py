"""Answers from models in this process: what `pipeline.stratify` is handed, and a remote server could stand in for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from tf_covid import attention, severity
from tf_covid.attention import Axis, Split
from tf_covid.errors import ModelError, ScanRefused
from tf_covid.layers.resample import full_axis_matrix, in_plane
from tf_covid.models import NETWORKS
from tf_covid.preprocessor import Preprocessor
from tf_covid.result import QualityFlag
from tf_covid.weights import Contract, LoadedModel, load
from tf_covid.weights.contract import check_trained

LUNGS = "lungs-unet"

_HU = tf.TensorSpec([None] * 4, tf.int16)
_DEPTH = tf.TensorSpec([None], tf.int32)
_PROBABILITY = tf.TensorSpec([None] * 4, tf.float32)


@dataclass(frozen=True)
class Segmentation:
    """What the lung model says about one scan.

    Args:
        probability: float32 (D, h, w), lung, on the U-Net's grid.
        seconds: Time it took.
        disease: float32 (D, h, w), diseased lung on the same grid; None where nobody looked for it.
    """

    probability: np.ndarray
    seconds: float
    disease: np.ndarray | None = None


class Named(Protocol):
    """Which network answered: a `LoadedModel`, or one that a server has."""

    @property
    def name(self) -> str:
        """Its shipped or file name."""

    @property
    def sha256(self) -> str:
        """Of its file."""

    @property
    def contract(self) -> Contract:
        """What its file says about it."""


@dataclass(frozen=True)
class Answer:
    """What one network says about one scan.

    Args:
        model: The network's file and contract.
        probabilities: (classes,), summing to 1: the softmax of the logits, taken here and nowhere
            else.
        ct_score: 0–25, or None where the network has none.
        keep: bool (D,).
        box: float32 (4,).
        features: (1, d, h, w, C) at the endpoint.
        seconds: Time it took.
    """

    model: Named
    probabilities: np.ndarray
    ct_score: float | None
    keep: np.ndarray
    box: np.ndarray
    features: Any
    seconds: float


class EnsembleMember:
    """One network of an ensemble, joined with the lung model and cut at its endpoint."""

    def __init__(self, model: LoadedModel, lungs: keras.Model) -> None:
        self.model = model
        self.preprocessor = Preprocessor(
            lungs, model.network.input_shape[1:], model.contract.preprocessing
        )
        last = NETWORKS[model.contract.model].endpoint
        if last is None:
            raise ModelError(f"{model.name}: {model.contract.model} gives no class for a scan")
        endpoint = model.contract.endpoint or last(model.contract.arguments)
        try:
            self.split: Split = attention.split(model.network, endpoint)
            self.axes: tuple[Axis, Axis, Axis] = attention.feature_axes(model.network, endpoint)
        except ValueError as error:
            raise ModelError(f"{model.name}: {endpoint} cannot be explained ({error})") from error
        self.prepare = tf.function(self.preprocessor.prepare, input_signature=[_HU, _PROBABILITY])
        self.classify = tf.function(self._classify)

    def _classify(self, clip: Any) -> Any:
        features = self.split.backbone(clip, training=False)
        return features, self.split.head(features, training=False)

    def answer(self, hu: np.ndarray, probability: np.ndarray) -> Answer:
        """Classify one scan."""
        start = time.perf_counter()
        prepared = self.prepare(hu[np.newaxis], probability[np.newaxis])
        features, outputs = self.classify(prepared["clip"])
        score = float(outputs["ct_score"].numpy()[0, 0]) if "ct_score" in outputs else None
        return Answer(
            model=self.model,
            probabilities=finite_probabilities(
                self.model.name, outputs["logits"].numpy()[0], score
            ),
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
        ModelError: If a model is missing, foreign, damaged or untrained, if the tasks differ, or if
            a network was trained behind another lung model than the one that is here.
    """

    def __init__(self, sources: Sequence[str | Path], *, precision: str = "float32") -> None:
        if not sources:
            raise ModelError("no model was named")
        lungs = load(LUNGS, precision=precision)
        loaded = [load(source, precision=precision) for source in sources]
        tasks = sorted({model.contract.task for model in loaded})
        for model in loaded:
            check_trained(model.name, model.contract)
        if len(tasks) > 1 or tasks[0] not in ("severity", "covid"):
            raise ModelError(
                f"models of one task, severity or covid, are needed, not {', '.join(tasks)}"
            )
        if len({model.contract.preprocessing.slice_minimum for model in loaded}) > 1:
            raise ModelError("models that keep different slices do not answer together")
        for model in loaded:
            _check_classes(model)
            theirs = model.contract.lungs_sha256
            if theirs not in (None, lungs.sha256):
                raise ModelError(
                    f"{model.name} was trained behind the lung model {theirs[:12]}…, but {LUNGS} is"
                    f" {lungs.sha256[:12]}…"
                )
        self.task = tasks[0]
        self.lungs = lungs
        self.members = [EnsembleMember(model, lungs.network) for model in loaded]
        self.segment_graph = tf.function(
            self.members[0].preprocessor.segment, input_signature=[_HU, _DEPTH]
        )

    @property
    def finds_disease(self) -> bool:
        """Whether the lung model has a second output, diseased lung."""
        return self.members[0].preprocessor.finds_disease

    @property
    def versions(self) -> dict[str, str]:
        """None beside those of this process."""
        return {}

    @property
    def slice_minimum(self) -> float:
        """The least share of a slice that must be lung for the networks to keep it."""
        return self.members[0].model.contract.preprocessing.slice_minimum

    def segment(self, hu: np.ndarray) -> Segmentation:
        """Lung, and diseased lung if the lung model finds it, of one scan, int16 (D, H, W)."""
        start = time.perf_counter()
        found = self.segment_graph(hu[np.newaxis], np.array([len(hu)], np.int32))
        disease = found["disease"].numpy()[0] if "disease" in found else None
        return Segmentation(found["lungs"].numpy()[0], time.perf_counter() - start, disease)

    def from_mask(self, mask: np.ndarray) -> Segmentation:
        """A user's own mask, bool (D, H, W), on the U-Net's grid: the share of each cell that is lung."""
        start = time.perf_counter()
        height, width = self.members[0].preprocessor.lungs_grid
        rows, columns = (
            full_axis_matrix(height, mask.shape[1]),
            full_axis_matrix(width, mask.shape[2]),
        )
        planes = [
            in_plane(rows, mask[first : first + 16].astype(np.float32), columns)
            for first in range(0, len(mask), 16)
        ]
        return Segmentation(
            np.concatenate([part.numpy() for part in planes]), time.perf_counter() - start
        )

    def classify(self, hu: np.ndarray, probability: np.ndarray) -> list[Answer]:
        """Every network's answer about one scan."""
        return [member.answer(hu, probability) for member in self.members]

    def attend(
        self, answers: Sequence[Answer], lungs: np.ndarray, target: str, number: int, method: str
    ) -> tuple[np.ndarray, float | None]:
        """The mean of the networks' attention maps, on the grid of the scan.

        Args:
            answers: From `classify`.
            lungs: (D, H, W), not 0 within the lungs.
            target: "severity" (the expected class index) or "class" (the predicted class).
            number: The predicted class.
            method: "gradcam", "gradcam++" or "layercam".

        Returns:
            uint8 (D, H, W), 255 at its maximum; and the share that lay within the lungs, see
            `attention.onto_scan`.
        """
        score: Callable[[Any], Any] = (
            attention.expected_class if target == "severity" else attention.class_logit(number)
        )
        volumes, shares = [], []
        for member, answer in zip(self.members, answers, strict=True):
            raw = attention.attention_map(member.split.explained, answer.features, score, method)
            clip = member.model.network.input_shape[1:4]
            volume, share = attention.onto_scan(
                raw, member.axes, clip, answer.keep, answer.box, lungs
            )
            volumes.append(volume)
            shares.append(share)
        return mean_map(volumes), mean_share(shares)

    @property
    def endpoint(self) -> str:
        """Where the networks were cut, e.g. "Mixed_5c"."""
        return " + ".join(dict.fromkeys(member.split.endpoint for member in self.members))


def finite_probabilities(name: str, logits: np.ndarray, ct_score: float | None) -> np.ndarray:
    """The softmax (classes,) of one scan's logits, in float64.

    Raises:
        ScanRefused: If logits or CT score are not finite.
    """
    if not (np.isfinite(logits).all() and np.isfinite(ct_score or 0.0)):
        raise ScanRefused(
            [QualityFlag("not_finite", "error", f"The answer of {name} is not a finite number.")]
        )
    shares = np.exp(logits.astype(np.float64) - logits.max())
    return shares / shares.sum()


def mean_share(shares: Sequence[float | None]) -> float | None:
    """The mean of those that are there."""
    known = [share for share in shares if share is not None]
    return float(np.mean(known)) if known else None


def _check_classes(model: LoadedModel) -> None:
    """Refuse a network whose logits are not those of its task, in the order of `severity.LABELS`."""
    expected = len(severity.LABELS) if model.contract.task == "severity" else 2
    count = model.network.output["logits"].shape[-1]
    if count != expected:
        raise ModelError(
            f"{model.name}: {model.contract.task} has {expected} classes, the network {count}"
        )
    if model.contract.task == "severity" and model.contract.classes not in ((), severity.LABELS):
        raise ModelError(
            f"{model.name}: its classes are {model.contract.classes}, not {severity.LABELS}"
        )


def mean_map(volumes: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of uint8 maps (D, H, W), 255 at its maximum; slice by slice, without a float copy of a volume."""
    if len(volumes) == 1:
        return volumes[0]
    highest = max(
        int(sum(plane.astype(np.uint32) for plane in planes).max())
        for planes in zip(*volumes, strict=True)
    )
    out = np.zeros_like(volumes[0])
    for plane, *planes in zip(out, *volumes, strict=True):
        plane[:] = np.rint(
            sum(one.astype(np.float32) for one in planes) * (255.0 / max(highest, 1))
        )
    return out
