"""Answers from models in this process: the `Models` that `pipeline.stratify` asks by default."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from tf_covid import attention, severity
from tf_covid.answer import (
    Answer,
    ModelIdentity,
    Segmentation,
    finite_probabilities,
    mean_known,
    mean_map,
)
from tf_covid.attention import Axis, Cut, Split
from tf_covid.errors import ModelError
from tf_covid.layers.resample import full_axis_matrix, in_plane
from tf_covid.models import NETWORKS
from tf_covid.preprocessor import LungModels, Preprocessor, default_lobes
from tf_covid.tasks import TASKS
from tf_covid.tensor import Tensor
from tf_covid.weights import LoadedModel, catalog, load
from tf_covid.weights.catalog import LOBES, LUNGS, NO_LOBES
from tf_covid.weights.contract import check_trained

_HU = tf.TensorSpec([None] * 4, tf.int16)
_DEPTH = tf.TensorSpec([None], tf.int32)
_PROBABILITY = tf.TensorSpec([None] * 4, tf.float32)

#: Bytes that a tensor's first value is aligned to.
_ALIGNMENT = 64


@dataclass(frozen=True)
class LocalEvidence:
    """What a network of this process keeps to explain its answer.

    Args:
        features: Activations at the endpoint, (1, d, h, w, C).
        box: Box of the clip in the scan, float32 (4,): top, bottom, left, right as fractions.
    """

    features: Tensor
    box: np.ndarray


class Stages(ABC):
    """What one network does with a scan behind its lung models, stage by stage.

    Who inherits makes the stages: they are traced from networks, or were kept.

    Attributes:
        model: Name, hash and contract of the network.
        clip: Frames, height and width of its clip.
        axes: Step and first centre of the features' cells in clip voxels, for D, H and W.
        split: Where it is cut, and what is explained there.
    """

    model: ModelIdentity
    clip: tuple[int, int, int]
    axes: tuple[Axis, Axis, Axis]
    split: Cut

    @abstractmethod
    def prepare(self, hu: Tensor, probability: Tensor) -> dict[str, Tensor]:
        """`Preprocessor.prepare` of one scan: `clip`, `keep` and `box` at least."""

    @abstractmethod
    def classify(self, clip: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """A clip (1, D', H', W', C) → features at the endpoint, and the network's outputs."""

    def answer(self, hu: np.ndarray, probability: np.ndarray) -> Answer[LocalEvidence]:
        """Classify one scan, int16 (D, H, W), behind its lung mask, float32 (D, h, w)."""
        prepared = self.prepare(_shared(hu[np.newaxis]), tf.constant(probability[np.newaxis]))
        features, outputs = self.classify(prepared["clip"])
        score = float(outputs["ct_score"].numpy()[0, 0]) if "ct_score" in outputs else None
        return Answer(
            model=self.model,
            probabilities=finite_probabilities(
                self.model.name, outputs["logits"].numpy()[0], score
            ),
            ct_score=score,
            keep=prepared["keep"].numpy()[0],
            evidence=LocalEvidence(features, prepared["box"].numpy()[0]),
        )


class EnsembleMember(Stages):
    """One network of an ensemble, joined with the lung models and cut at its endpoint."""

    model: LoadedModel
    split: Split

    def __init__(self, model: LoadedModel, lung_models: LungModels) -> None:
        self.model = model
        frames, height, width, _ = model.network.input_shape[1:]
        self.clip = (frames, height, width)
        self.preprocessor = Preprocessor(
            lung_models.lungs.network,
            model.network.input_shape[1:],
            model.contract.preprocessing,
            lobes=lung_models.lobes.network if lung_models.lobes else None,
            gated=lung_models.gated,
        )
        last = NETWORKS[model.contract.model].endpoint
        if last is None:
            raise ModelError(f"{model.name}: {model.contract.model} gives no class for a scan")
        endpoint = model.contract.endpoint or last(model.contract.arguments)
        try:
            self.split = attention.split(model.network, endpoint)
            self.axes = attention.feature_axes(model.network, endpoint)
        except ValueError as error:
            raise ModelError(f"{model.name}: {endpoint} cannot be explained ({error})") from error
        clip = tf.TensorSpec([1, *model.network.input_shape[1:]], tf.float32)
        #: `prepare` and `classify` as graphs.
        self.prepare_graph = tf.function(
            self.preprocessor.prepare, input_signature=[_HU, _PROBABILITY], autograph=False
        )
        self.classify_graph = tf.function(self._classify, input_signature=[clip], autograph=False)

    def prepare(self, hu: Tensor, probability: Tensor) -> dict[str, Tensor]:
        """See `Stages.prepare`."""
        prepared: dict[str, Tensor] = self.prepare_graph(hu, probability)
        return prepared

    def classify(self, clip: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Stages.classify`."""
        features, outputs = self.classify_graph(clip)
        return features, outputs

    def _classify(self, clip: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        features = self.split.backbone(clip, training=False)
        return features, self.split.head(features, training=False)


class StagedModels(ABC):
    """One or more networks of one task behind one pair of lung models, ready to answer scans.

    Attributes:
        members: The networks.
        lungs_grid: Height and width that the lung model sees each slice at.
    """

    members: Sequence[Stages]
    lungs_grid: tuple[int, int]

    @abstractmethod
    def find_lungs(self, hu: Tensor, depth: Tensor) -> dict[str, Tensor]:
        """`Preprocessor.segment` of one scan, int16 (1, D, H, W)."""

    @property
    def versions(self) -> dict[str, str]:
        """Versions beside those of this process: there are none."""
        return {}

    @property
    def endpoint(self) -> str:
        """Where the networks were cut, e.g. "Mixed_5c"."""
        return " + ".join(dict.fromkeys(member.split.endpoint for member in self.members))

    @property
    def slice_minimum(self) -> float:
        """Fraction of a slice that must be lung for the networks to keep it."""
        return self.members[0].model.contract.preprocessing.slice_minimum

    def segment(self, hu: np.ndarray) -> Segmentation:
        """Lung, and what else the lung models find, of one scan, int16 (D, H, W)."""
        outputs = self.find_lungs(_shared(hu[np.newaxis]), tf.constant([len(hu)], tf.int32))
        values = {name: _seen(value)[0] for name, value in outputs.items()}
        return Segmentation(values.pop("lungs"), **values)

    def from_mask(self, mask: np.ndarray) -> Segmentation:
        """A user's mask, bool (D, H, W), on the U-Net's grid: lung fraction of each cell."""
        height, width = self.lungs_grid
        rows, columns = (
            full_axis_matrix(height, mask.shape[1]),
            full_axis_matrix(width, mask.shape[2]),
        )
        planes = [
            in_plane(rows, mask[first : first + 16].astype(np.float32), columns)
            for first in range(0, len(mask), 16)
        ]
        return Segmentation(np.concatenate([part.numpy() for part in planes]))

    def classify(self, hu: np.ndarray, probability: np.ndarray) -> list[Answer[LocalEvidence]]:
        """Every network's answer about one scan."""
        return [member.answer(hu, probability) for member in self.members]

    def explain(
        self,
        answers: Sequence[Answer[LocalEvidence]],
        lungs: np.ndarray,
        *,
        method: str,
        target: str,
        predicted_class: int,
    ) -> tuple[np.ndarray, float | None]:
        """The mean of the networks' attention maps, on the grid of the scan.

        Args:
            answers: Answers, from `classify`.
            lungs: (D, H, W), not 0 within the lungs.
            method: "gradcam", "gradcam++" or "layercam".
            target: "severity" (the expected class index) or "class" (the predicted class).
            predicted_class: Index of the class that the ensemble predicts.

        Returns:
            uint8 (D, H, W), 255 at its maximum; and the fraction of it that lay within the lungs
            before it was cut to them, see `attention.onto_scan`.
        """
        score: Callable[[Tensor], Tensor] = (
            attention.expected_class
            if target == "severity"
            else attention.class_logit(predicted_class)
        )
        volumes, fractions = [], []
        for member, answer in zip(self.members, answers, strict=True):
            features, box = answer.evidence.features, answer.evidence.box
            cells = attention.attention_map(member.split, features, score, method)
            volume, fraction = attention.onto_scan(
                cells, member.axes, member.clip, answer.keep, box, lungs
            )
            volumes.append(volume)
            fractions.append(fraction)
        return mean_map(volumes), mean_known(fractions)


class LocalModels(StagedModels):
    """Models from their files, which are built and traced here.

    Args:
        sources: Shipped names or `.keras` files.
        lungs: 2D lung model, by name or file; None: the one that ships.
        lobes: 3D lobe model, by name or file, whose lobes gate the 2D mask; "none": there is none;
            None: the one that ships, which gates only where the networks were trained behind it.
        precision: "float32" or "bfloat16".
        allow_other_lungs: Answer behind other lung models than the networks were trained behind.

    Raises:
        ModelError: If a model is missing, foreign, damaged or untrained, if the tasks differ, or if
            a network was trained behind other lung models than those that are here.
    """

    members: Sequence[EnsembleMember]

    def __init__(
        self,
        sources: Sequence[str | Path],
        *,
        lungs: str | Path | None = None,
        lobes: str | Path | None = None,
        precision: str = "float32",
        allow_other_lungs: bool = False,
    ) -> None:
        if not sources:
            raise ModelError("no model was named")
        loaded = [load(source, precision=precision) for source in sources]
        for model in loaded:
            check_trained(model.name, model.contract)
        check_ensemble(loaded)
        gated = True
        if lobes is None:
            lobes = default_lobes([model.contract for model in loaded])
            gated = lobes != NO_LOBES
            if not gated and LOBES in catalog.shipped():
                lobes = LOBES
        lung_models = LungModels.read(lungs or LUNGS, lobes, precision=precision, gated=gated)
        self.other_lungs = False
        for model in loaded:
            if reason := lung_models.differs_from(model.contract):
                if not allow_other_lungs:
                    raise ModelError(
                        f"other_lungs: {model.name} {reason}; --allow-other-lungs answers all the"
                        " same"
                    )
                self.other_lungs = True
        self.task = loaded[0].contract.task
        self.lung_models = lung_models
        self.members = [EnsembleMember(model, lung_models) for model in loaded]
        self.lungs_grid = self.members[0].preprocessor.lungs_grid
        #: `find_lungs` as a graph.
        self.segment_graph = tf.function(
            self.members[0].preprocessor.segment, input_signature=[_HU, _DEPTH], autograph=False
        )

    def find_lungs(self, hu: Tensor, depth: Tensor) -> dict[str, Tensor]:
        """See `StagedModels.find_lungs`."""
        lungs: dict[str, Tensor] = self.segment_graph(hu, depth)
        return lungs

    @property
    def finds_disease(self) -> bool:
        """Whether the lung model has a second output, diseased lung."""
        return self.members[0].preprocessor.finds_disease

    @property
    def finds_lobes(self) -> bool:
        """Whether there is a lobe model."""
        return self.lung_models.lobes is not None

    @property
    def weights_sha256(self) -> list[str]:
        """Identities of all weights that decide the answer: networks', then lung models'."""
        return [*(member.model.sha256 for member in self.members), *self.lung_models.sha256s]

    @property
    def files_sha256(self) -> list[str]:
        """Hashes of the files of all models, in the same order: known before any is loaded."""
        return [*(member.model.file_sha256 for member in self.members), *self.lung_models.files]

    @property
    def lungs(self) -> LoadedModel:
        """The 2D lung model."""
        return self.lung_models.lungs


def _shared(hu: np.ndarray) -> Tensor:
    """A tensor on the memory of an array, int16 of any shape, which nobody may write to meanwhile.

    TensorFlow copies an array twice. Memory that its kernels cannot read as it lies is copied once.
    """
    flags = hu.flags
    if not (flags.c_contiguous and flags.writeable and hu.ctypes.data % _ALIGNMENT == 0):
        memory = np.empty(hu.nbytes + _ALIGNMENT, np.uint8)
        first = -memory.ctypes.data % _ALIGNMENT
        copy = memory[first : first + hu.nbytes].view(np.int16).reshape(hu.shape)
        copy[...] = hu
        hu = copy
    return tf.experimental.dlpack.from_dlpack(hu.__dlpack__())


def _seen(value: Tensor) -> np.ndarray:
    """A tensor's values where they lie, to be read: `.numpy()` copies them."""
    return np.asarray(memoryview(value))


def check_ensemble(models: Sequence[LoadedModel]) -> None:
    """Refuse networks that do not answer scans together.

    Raises:
        ModelError: If their tasks, classes or slice rules differ.
    """
    tasks = sorted({model.contract.task for model in models})
    if len(tasks) > 1 or not _classifies_scans(tasks[0]):
        raise ModelError(
            f"models of one task, severity or covid, are needed, not {', '.join(tasks)}"
        )
    if len({model.contract.preprocessing.slice_minimum for model in models}) > 1:
        raise ModelError("models that keep different slices do not answer together")
    for model in models:
        _check_classes(model)


def _classifies_scans(task: str) -> bool:
    return task in TASKS and TASKS[task].classifies_scans


def _check_classes(model: LoadedModel) -> None:
    """Refuse a network whose logits are not its task's, in the order of `severity.LABELS`."""
    expected = len(TASKS[model.contract.task].labels)
    count = model.network.output["logits"].shape[-1]
    if count != expected:
        raise ModelError(
            f"{model.name}: {model.contract.task} has {expected} classes, the network {count}"
        )
    if model.contract.task == "severity" and model.contract.classes not in ((), severity.LABELS):
        raise ModelError(
            f"{model.name}: its classes are {model.contract.classes}, not {severity.LABELS}"
        )
