"""Models that answer all about a scan in one call: an export, behind a server or another runtime.

Which models they are, an export's card says, and it comes with every answer.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError

from tf_covid.answer import Answer, Segmentation, finite_probabilities, mean_known, mean_map
from tf_covid.attention.grid import Axis, onto_scan
from tf_covid.errors import ModelError, ServingError
from tf_covid.tasks import TASKS
from tf_covid.weights import Contract
from tf_covid.weights.contract import check_trained

#: The Grad-CAM of an export explains this, as `tfcovid infer` does by default.
METHOD, TARGET = "gradcam", "severity"

#: What an export finds slice by slice, and over the whole scan, where its lung models do.
MASKS = ("lungs", "disease", "lobes", "effusion", "orientation")


#: An export agrees where no value differs by more. Probabilities and masks as they are, logits
#: against the largest of the scan, the CT score against 25, attention against its maximum.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class ExportedModel:
    """A model, as the card of its export says."""

    name: str
    sha256: str
    contract: Contract
    clip: tuple[int, int, int]
    endpoint: str
    lungs_sha256s: tuple[str, ...]
    finds_disease: bool
    finds_lobes: bool
    other_lungs: bool
    files: tuple[str, ...]
    version: str


@dataclass(frozen=True)
class ExportedEvidence:
    """What came back to explain an answer.

    Args:
        cells: Attention map as the explained layer has it, float32 (d, f, g).
        axes: Step and first centre of its cells in clip voxels, for D, H and W.
        box: Box of the clip in the scan, float32 (4,): top, bottom, left, right as fractions.
    """

    cells: np.ndarray
    axes: tuple[Axis, Axis, Axis]
    box: np.ndarray


class ExportedModels(ABC):
    """One or more models of one task; the counterpart of `local.LocalModels`.

    Who inherits asks them: `asked` gives the named values of a scan. N is 1 throughout.

    Args:
        models: Models, from `described`.
        speaker: Who is at fault where an answer makes no sense, e.g. "the server".

    Raises:
        ModelError: If the models do not go together, or one is untrained.
    """

    def __init__(self, models: Sequence[ExportedModel], speaker: str) -> None:
        self.models, self._speaker = list(models), speaker
        #: The scan that was asked about last, and what came back for it.
        self._last: tuple[np.ndarray, list[dict[str, Any]]] | None = None
        for model in self.models:
            check_trained(model.name, model.contract)
        tasks = {model.contract.task for model in self.models}
        if len(tasks) != 1 or not tasks <= {"severity", "covid"}:
            raise ModelError(
                f"models of one task, severity or covid, are needed, not {', '.join(sorted(tasks))}"
            )
        if (
            len(
                {
                    (model.lungs_sha256s, model.contract.preprocessing.slice_minimum)
                    for model in self.models
                }
            )
            > 1
        ):
            raise ModelError(
                "models with different lung models or slice rules do not answer together"
            )

    @abstractmethod
    def asked(self, index: int, hu: np.ndarray) -> dict[str, Any]:
        """What a model answers about a scan: the values of `infer`, and those of `MASKS`.

        Args:
            index: Position of the model.
            hu: int16 (D, H, W).
        """

    @property
    def task(self) -> str:
        """Severity or covid."""
        return self.models[0].contract.task

    @property
    def finds_disease(self) -> bool:
        """Whether the lung model has a second output."""
        return self.models[0].finds_disease

    @property
    def finds_lobes(self) -> bool:
        """Whether there is a lobe model."""
        return self.models[0].finds_lobes

    @property
    def slice_minimum(self) -> float:
        """The least share of a slice that must be lung."""
        return self.models[0].contract.preprocessing.slice_minimum

    @property
    def endpoint(self) -> str:
        """The explained layers."""
        return " + ".join(dict.fromkeys(model.endpoint for model in self.models))

    @property
    @abstractmethod
    def versions(self) -> dict[str, str]:
        """Versions beside those of this process."""

    @property
    def weights_sha256(self) -> list[str]:
        """Identities of all weights that decide the answer: networks', then lung models'."""
        return [*(model.sha256 for model in self.models), *self.models[0].lungs_sha256s]

    @property
    def files_sha256(self) -> list[str]:
        """Hashes of the files of all models, in the same order."""
        return [*(model.files[0] for model in self.models), *self.models[0].files[1:]]

    @property
    def other_lungs(self) -> bool:
        """Whether a network was exported behind other lung models than it was trained behind."""
        return any(model.other_lungs for model in self.models)

    def segment(self, hu: np.ndarray) -> Segmentation:
        """What the lung models find in one scan, int16 (D, H, W).

        The first model's answer comes with it.
        """
        answer = self._scan(hu)[0]
        lungs = self._values(answer, "lungs", (len(hu), None, None))
        disease = (
            self._values(answer, "disease", (len(hu), None, None)) if self.finds_disease else None
        )
        if disease is not None and disease.shape != lungs.shape:
            raise ServingError(f"{self._speaker}'s two masks have different grids")
        if not self.finds_lobes:
            return Segmentation(lungs, disease)
        lobes = self._values(answer, "lobes", (None, None, None, 5))
        effusion = self._values(answer, "effusion", lobes.shape[:3])
        orientation = self._values(answer, "orientation", (3,))
        return Segmentation(lungs, disease, lobes, effusion, orientation)

    def from_mask(self, mask: np.ndarray) -> Segmentation:
        """Refused: an export finds the lungs itself."""
        raise ModelError(
            f"{self._speaker} finds the lungs itself; a mask of one's own needs the models of Keras"
            " in this process"
        )

    def classify(self, hu: np.ndarray, probability: np.ndarray) -> list[Answer[ExportedEvidence]]:
        """Every model's answer about the scan.

        `probability` is the export's own, from `segment`.
        """
        answers = self._scan(hu)
        while len(answers) < len(self.models):
            answers.append(self.asked(len(answers), hu))
        return [
            self._answer(model, answer, hu)
            for model, answer in zip(self.models, answers, strict=True)
        ]

    def explain(
        self,
        answers: Sequence[Answer[ExportedEvidence]],
        lungs: np.ndarray,
        *,
        method: str,
        target: str,
        predicted_class: int,
    ) -> tuple[np.ndarray, float | None]:
        """The mean of the models' attention maps on the scan; see `LocalModels.explain`.

        Raises:
            ModelError: If another method or target is asked for than the exports hold.
        """
        if (method, target) != (METHOD, TARGET):
            raise ModelError(
                f"exports explain by {METHOD} what raises {TARGET}; {method} of {target} needs the "
                "models of Keras in this process"
            )
        volumes, fractions = [], []
        for model, answer in zip(self.models, answers, strict=True):
            evidence = answer.evidence
            volume, fraction = onto_scan(
                evidence.cells, evidence.axes, model.clip, answer.keep, evidence.box, lungs
            )
            volumes.append(volume)
            fractions.append(fraction)
        return mean_map(volumes), mean_known(fractions)

    def _scan(self, hu: np.ndarray) -> list[dict[str, Any]]:
        # The very same array, held here so that no other can take its place in memory.
        if self._last is None or self._last[0] is not hu:
            self._last = (hu, [self.asked(0, hu)])
        return self._last[1]

    def _answer(
        self, model: ExportedModel, answer: dict[str, Any], hu: np.ndarray
    ) -> Answer[ExportedEvidence]:
        classes = len(model.contract.classes) or len(TASKS[self.task].labels)
        logits = self._values(answer, "logits", (classes,))
        score = float(self._values(answer, "ct_score", ())) if "ct_score" in answer else None
        keep = self._values(answer, "keep", (len(hu),)) > 0
        depth, height, width = (
            Axis(float(step), float(first))
            for step, first in self._values(answer, "attention_axes", (3, 2))
        )
        cells = self._values(answer, "attention_cells", (None, None, None))
        box = self._values(answer, "box", (4,))
        return Answer(
            model=model,
            probabilities=finite_probabilities(model.name, logits, score),
            ct_score=score,
            keep=keep,
            evidence=ExportedEvidence(cells, (depth, height, width), box),
        )

    def _values(
        self, answer: dict[str, Any], name: str, shape: tuple[int | None, ...]
    ) -> np.ndarray:
        """float32 values of the only scan of an answer, of this shape (None: any size)."""
        try:
            values = np.asarray(answer[name], np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise ServingError(f"{self._speaker}'s answer has no usable {name}") from error
        expected = (1, *shape)
        fits = values.ndim == len(expected) and all(
            asked in (None, size) for asked, size in zip(expected, values.shape, strict=True)
        )
        if not fits:
            needed = " × ".join("any" if side is None else str(side) for side in expected)
            raise ServingError(
                f"{self._speaker}'s {name} has the shape {values.shape}, not {needed}"
            )
        return np.asarray(values[0])


def described(text: bytes | str, source: str, name: str) -> ExportedModel:
    """A model by the card of its export.

    Args:
        text: The card, JSON.
        source: Who says so, for messages.
        name: What the model is called there.

    Raises:
        ServingError: If it is no card of ours.
    """
    try:
        facts = json.loads(text)
        contract = Contract(**{key: facts[key] for key in Contract.model_fields if key in facts})
        lungs = lungs_sha256s(facts)
        return ExportedModel(
            name=str(facts["name"]),
            sha256=str(facts["sha256"]),
            contract=contract,
            clip=tuple(facts["clip"][:3]),
            endpoint=str(facts["endpoint"]),
            lungs_sha256s=lungs,
            finds_disease=bool(facts["lungs"]["disease"]),
            finds_lobes=bool(facts.get("lobes")),
            other_lungs=bool(facts.get("other_lungs")),
            # Exports of before named models by their files.
            files=tuple(map(str, facts.get("files") or (facts["sha256"], *lungs))),
            version=f"{name}: "
            + ", ".join(f"{key} {value}" for key, value in facts["versions"].items()),
        )
    except (KeyError, TypeError, ValueError, AttributeError, ValidationError) as error:
        raise ServingError(f"{source}: {name} is no export of `tfcovid export`") from error


def largest_difference(
    right: Mapping[str, np.ndarray], answer: Mapping[str, np.ndarray | None]
) -> tuple[float, str]:
    """The value that differs most, in the units of `TOLERANCE`, and its name.

    Args:
        right: Right values of one scan.
        answer: Answered values in the same shapes; names that are not in `right` do not count.

    A missing name, another shape or what is not a number differs infinitely.
    """
    worst, where = 0.0, ""
    for name, expected in right.items():
        values, required = answer.get(name), np.asarray(expected, np.float64)
        if values is None or values.shape != required.shape:
            return float("inf"), name
        scale = {"ct_score": 25.0}.get(name, 1.0)
        if name in ("logits", "attention", "attention_cells", "orientation"):
            scale = max(float(np.abs(required).max(initial=0.0)), 1e-12)
        difference = float(np.abs(values - required).max(initial=0.0)) / scale
        # NaN compares as nothing: it must not pass for a small difference.
        difference = difference if np.isfinite(difference) else float("inf")
        if difference >= worst:
            worst, where = difference, name
    return worst, where


def lungs_sha256s(facts: dict[str, Any]) -> tuple[str, ...]:
    """Identities of the lung models that a card names."""
    lobes = facts.get("lobes")
    return str(facts["lungs"]["sha256"]), *([str(lobes["sha256"])] if lobes else [])
