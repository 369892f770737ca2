"""Answers from a server, ours or TF Serving.

What `tfcovid infer --server` hands to the pipeline.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from pydantic import ValidationError

from tf_covid import attention
from tf_covid.answer import Answer, Segmentation, finite_probabilities, mean_known, mean_map
from tf_covid.attention import Axis
from tf_covid.client.transport import AskedServer, Inputs, Rejected, ServerUnavailable
from tf_covid.errors import ModelError, ScanRefused, ServingError
from tf_covid.export.signatures import METHOD, TARGET
from tf_covid.result import QualityFlag
from tf_covid.tasks import TASKS
from tf_covid.weights import Contract
from tf_covid.weights.contract import check_trained

#: What a scan is asked with: all that `infer` needs, in one call.
SIGNATURE = "infer_bytes"

#: A scan of air, to ask for a model's card with: every answer brings it.
AIR = np.full((1, 8, 8), -1000, np.int16)

#: How often a busy or restarting server is asked again.
TRIES = 6


@dataclass(frozen=True)
class RemoteModel:
    """A model that a server has, as its card says."""

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
class RemoteEvidence:
    """What came back from a server to explain its answer.

    Args:
        cells: Attention map as the explained layer has it, float32 (d, f, g).
        axes: Step and first centre of its cells in clip voxels, for D, H and W.
        box: Box of the clip in the scan, float32 (4,): top, bottom, left, right as fractions.
    """

    cells: np.ndarray
    axes: tuple[Axis, Axis, Axis]
    box: np.ndarray


class RemoteModels:
    """One or more models of one task that a server has; the counterpart of `local.LocalModels`.

    Args:
        server: Server, from `connect`; or several, from `client.pool`.
        names: Names of the models on the server.
        on_message: Called with a line when the server has to be asked again.

    Raises:
        ServingError: If the server or one of the models cannot be reached, or is none of ours.
        ModelError: If the models do not go together.
    """

    def __init__(
        self,
        server: AskedServer,
        names: Sequence[str],
        on_message: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._server, self._on_message = server, on_message
        #: The scan that was sent last, and what came back for it.
        self._last: tuple[np.ndarray, list[dict[str, Any]]] | None = None
        self.models = [self._described(name, self._ask(name, AIR)) for name in names]
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
        self._sources = list(names)

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
    def versions(self) -> dict[str, str]:
        """Of the server's side."""
        return {"server": "; ".join(dict.fromkeys(model.version for model in self.models))}

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
        lungs = _mask(answer, "lungs_bytes", len(hu))
        disease = _mask(answer, "disease_bytes", len(hu)) if self.finds_disease else None
        if disease is not None and disease.shape != lungs.shape:
            raise ServingError(f"{self._server.url}: its two masks have different grids")
        if not self.finds_lobes:
            return Segmentation(lungs, disease)
        lobes = _volume(answer, "lobes_bytes", (None, None, None, 5))
        effusion = _volume(answer, "effusion_bytes", lobes.shape[:3])
        orientation = _volume(answer, "orientation_bytes", (3,))
        return Segmentation(lungs, disease, lobes, effusion, orientation)

    def from_mask(self, mask: np.ndarray) -> Segmentation:
        """Refused: a server finds the lungs itself."""
        raise ModelError(
            "a server finds the lungs itself; a mask of one's own needs the models in this process"
        )

    def classify(self, hu: np.ndarray, probability: np.ndarray) -> list[Answer[RemoteEvidence]]:
        """Every model's answer about the scan.

        `probability` is the server's own, from `segment`.
        """
        answers = self._scan(hu)
        while len(answers) < len(self.models):
            answers.append(self._asked(len(answers), hu))
        return [
            self._answer(model, answer, hu)
            for model, answer in zip(self.models, answers, strict=True)
        ]

    def explain(
        self,
        answers: Sequence[Answer[RemoteEvidence]],
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
                "models in this process"
            )
        volumes, fractions = [], []
        for model, answer in zip(self.models, answers, strict=True):
            evidence = answer.evidence
            volume, fraction = attention.onto_scan(
                evidence.cells, evidence.axes, model.clip, answer.keep, evidence.box, lungs
            )
            volumes.append(volume)
            fractions.append(fraction)
        return mean_map(volumes), mean_known(fractions)

    def _scan(self, hu: np.ndarray) -> list[dict[str, Any]]:
        # The very same array, held here so that no other can take its place in memory.
        if self._last is None or self._last[0] is not hu:
            self._last = (hu, [self._asked(0, hu)])
        return self._last[1]

    def _asked(self, index: int, hu: np.ndarray) -> dict[str, Any]:
        model = self.models[index]
        try:
            answer = self._ask(self._sources[index], hu)
        except Rejected as error:
            raise ScanRefused([QualityFlag("server_refused", "error", str(error))]) from error
        if card_sha256s(answer, self._server.url) != (model.sha256, *model.lungs_sha256s):
            raise ServingError(
                f"{self._server.url}: its model {model.name} is another one now; run again"
            )
        return answer

    def _ask(self, name: str, hu: np.ndarray) -> dict[str, Any]:
        inputs = one_scan(hu)
        for index in range(1, TRIES + 1):
            try:
                return self._server.predict(name, SIGNATURE, inputs)
            except ServerUnavailable as error:
                if index == TRIES:
                    raise
                self._on_message(f"{error}; asking again")
                time.sleep(min(0.5 * 2**index, 15.0))
        raise AssertionError("the last try returns or raises")

    def _described(self, name: str, answer: dict[str, Any]) -> RemoteModel:
        try:
            facts = json.loads(_text(answer, "card_bytes"))
            contract = Contract(
                **{key: facts[key] for key in Contract.model_fields if key in facts}
            )
            lungs = _lungs_sha256s(facts)
            return RemoteModel(
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
            raise ServingError(
                f"{self._server.url}: {name} is no export of `tfcovid export`"
            ) from error

    def _answer(
        self, model: RemoteModel, answer: dict[str, Any], hu: np.ndarray
    ) -> Answer[RemoteEvidence]:
        classes = len(model.contract.classes) or len(TASKS[self.task].labels)
        logits = _array(answer, "logits", (classes,))
        score = float(_array(answer, "ct_score", ())) if "ct_score" in answer else None
        keep = _array(answer, "keep", (len(hu),)) > 0
        depth, height, width = (
            Axis(float(step), float(first))
            for step, first in _array(answer, "attention_axes", (3, 2))
        )
        cells = _array(answer, "attention_cells", (None, None, None))
        return Answer(
            model=model,
            probabilities=finite_probabilities(model.name, logits, score),
            ct_score=score,
            keep=keep,
            evidence=RemoteEvidence(cells, (depth, height, width), _array(answer, "box", (4,))),
        )


def one_scan(hu: np.ndarray) -> Inputs:
    """Inputs of `SIGNATURE` for one scan, int16 (D, H, W)."""
    return {
        "hu_bytes": np.array([np.ascontiguousarray(hu, "<i2").tobytes()], object),
        "shape": np.array([hu.shape], np.int32),
    }


def _array(answer: dict[str, Any], name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """float32 values of the only scan of an answer, of this shape (None: any size)."""
    try:
        values = np.asarray(answer[name], np.float32)
    except (KeyError, TypeError, ValueError) as error:
        raise ServingError(f"the server's answer has no usable {name}") from error
    expected = (1, *shape)
    fits = values.ndim == len(expected) and all(
        asked in (None, size) for asked, size in zip(expected, values.shape, strict=True)
    )
    if not fits:
        raise ServingError(f"the server's {name} has the shape {values.shape}, not {expected}")
    return np.asarray(values[0])


def _text(answer: dict[str, Any], name: str) -> bytes:
    try:
        (text,) = list(answer[name])
    except (KeyError, TypeError, ValueError) as error:
        raise ServingError(
            f"the server's answer has no {name}: it is no export of `tfcovid export`"
        ) from error
    if not isinstance(text, bytes):
        raise ServingError(f"the server's {name} are no bytes")
    return text


def _mask(answer: dict[str, Any], name: str, slices: int) -> np.ndarray:
    """A probability, float32 (D, h, w)."""
    return _volume(answer, name, (slices, None, None))


def _volume(answer: dict[str, Any], name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """float32 values of this shape (None: any size) from a serialized tensor."""
    try:
        values = np.asarray(tf.io.parse_tensor(_text(answer, name), tf.float32))
    except tf.errors.OpError as error:
        raise ServingError(f"the server's {name} are no tensor") from error
    if values.ndim != len(shape) or any(
        asked not in (None, size) for asked, size in zip(shape, values.shape, strict=True)
    ):
        expected = " × ".join("any" if side is None else str(side) for side in shape)
        raise ServingError(f"the server's {name} have the shape {values.shape}, not {expected}")
    return values


def _lungs_sha256s(facts: dict[str, Any]) -> tuple[str, ...]:
    """Identities of the lung models that a card names."""
    lobes = facts.get("lobes")
    return str(facts["lungs"]["sha256"]), *([str(lobes["sha256"])] if lobes else [])


def card_sha256s(answer: dict[str, Any], url: str) -> tuple[str, ...]:
    """Identities of the network and of its lung models, from an answer of `infer_bytes`.

    Raises:
        ServingError: If it tells none.
    """
    try:
        facts = json.loads(_text(answer, "card_bytes"))
        return str(facts["sha256"]), *_lungs_sha256s(facts)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ServingError(f"{url}: its card cannot be read") from error
