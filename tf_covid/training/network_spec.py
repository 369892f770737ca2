"""A network that is to be trained: complete, and frozen, before anything is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tf_covid.cohort.manifest import ManifestRow
from tf_covid.errors import TrainingError
from tf_covid.tasks import TASKS
from tf_covid.tissues import CLASSES, LOBE_CLASSES
from tf_covid.training.initialise import preprocessing_of_init
from tf_covid.training.settings import Settings
from tf_covid.weights import Preprocessing

#: Arguments that follow from the task, so that no setting may name them.
_FIXED = {"input_shape", "classes", "ct_score", "outputs", "share", "dtype"}

#: The HU window of networks that start from nothing, where it is not the study's: −1100 … 500 HU
#: show air and contrast medium alike.
_WINDOWS = {"lobes": {"level_hu": -300.0, "width_hu": 1600.0}}


@dataclass(frozen=True)
class NetworkSpec:
    """All that a network is built from.

    Args:
        model: Row of `models.NETWORKS`.
        arguments: Arguments of its builder.
        preprocessing: Slice rule, lung box, HU window and input scaling.
        init: Shipped name or file whose weights it starts from; None: at random.
    """

    model: str
    arguments: Mapping[str, Any]
    preprocessing: Preprocessing
    init: str | Path | None = None

    @property
    def channels(self) -> int:
        """Channels of the network's input."""
        return int(self.arguments["input_shape"][-1])

    @classmethod
    def of(
        cls,
        task: str,
        model: str,
        rows: Sequence[ManifestRow],
        settings: Settings,
        init: str | Path | None = None,
    ) -> NetworkSpec:
        """The network of a training.

        Args:
            task: Name of the task.
            model: Row of `models.NETWORKS`.
            rows: Rows of the manifest: what they know decides the network's outputs.
            settings: Settings of the training.
            init: Shipped name or file whose weights it starts from; None: at random.

        Raises:
            TrainingError: If the network cannot learn the task, or a setting contradicts it.
            ModelError: If `init` is missing or damaged.
        """
        networks = TASKS[task].networks
        if model not in networks:
            raise TrainingError(f"the task {task} is for {' or '.join(networks)}, not for {model}")
        if fixed := settings.network.keys() & _FIXED:
            raise TrainingError(f"network: {', '.join(sorted(fixed))} follow from the task")
        preprocessing, channels, shared = preprocessing_of_init(init)
        if init is None and task in _WINDOWS:
            preprocessing = preprocessing.model_copy(update=_WINDOWS[task])
        own = {} if settings.dropout is None else {"dropout": settings.dropout}
        arguments = _arguments(task, rows, settings, channels) | shared | own | settings.network
        pooled = arguments.get("disease_pooling")
        if pooled and pooled not in {*settings.disease_endpoints, shared.get("disease_pooling")}:
            raise TrainingError(
                f"disease_pooling: {pooled} is not among disease_endpoints, so that nothing teaches"
                " its cells where disease is"
            )
        return cls(
            model,
            arguments,
            settings.preprocessing(preprocessing),
            init,
        )


def _arguments(
    task: str, rows: Sequence[ManifestRow], settings: Settings, channels: int
) -> dict[str, Any]:
    """Input shape and outputs, which follow from the task and what the cohort knows."""
    row = TASKS[task]
    if row.classifies_scans:
        known = any(one.ct_score is not None for one in rows)
        return {
            "input_shape": [*settings.clip, channels],
            "classes": len(row.labels),
            "ct_score": bool(row.scored and known and settings.ct_score_weight),
        }
    if row.cache_kind == "volumes":
        outputs = len(CLASSES) if any(one.tissues for one in rows) else LOBE_CLASSES.stop
        return {"input_shape": [*settings.clip, channels], "outputs": outputs}
    picture = {"input_shape": [*settings.clip[1:], channels]}
    if row.labels:
        return picture | {"classes": len(row.labels), "share": True}
    return picture | {"outputs": 2 if all(one.lesions for one in rows) else 1}
