"""What can be asked of a scan: a row a task, with what every room needs to know of it.

Training adds targets and losses (`training/tasks.py`), experiment the table of the predictions
(`experiment/predict.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from tf_covid import severity


class KnownTruth(Protocol):
    """What a manifest knows of a scan; None where it does not."""

    @property
    def severity(self) -> int | None:
        """Severity class, 0–4."""

    @property
    def ct_score(self) -> float | None:
        """Global CT Score, 0–25."""

    @property
    def covid(self) -> int | None:
        """0 or 1."""

    @property
    def lungs(self) -> Path | None:
        """Mask of the lungs."""

    @property
    def lesions(self) -> Path | None:
        """Mask of the disease."""

    @property
    def lobes(self) -> Path | None:
        """Labels of the five lobes."""


@dataclass(frozen=True)
class Task:
    """A row of the table of tasks.

    Args:
        labels: Names of the logits in model files, in order; empty where there are no classes.
        study_labels: Names of the classes in studies, in order.
        networks: Rows of `models.NETWORKS` that can learn the task.
        columns: Columns of the manifest that hold the truth, in words.
        label_of: A scan's class (0 where the task has no classes); None where it is not known.
        classifies_scans: Whether one answer is about a whole scan, from a clip of it.
        scored: Whether a network may answer with a CT score as well.
        cache_kind: `CacheSpec.kind` of its records.
        lesions: Whether its records hold lesion masks: of every scan, where all scans have one, or
            where deep supervision asks for them; or never.
    """

    labels: tuple[str, ...]
    study_labels: tuple[str, ...]
    networks: tuple[str, ...]
    columns: str
    label_of: Callable[[KnownTruth], int | None]
    classifies_scans: bool
    scored: bool
    cache_kind: Literal["clips", "planes", "volumes"]
    lesions: Literal["always", "where all have them", "for deep supervision", "never"]


def _severity(truth: KnownTruth) -> int | None:
    if truth.severity is not None or truth.ct_score is None:
        return truth.severity
    return severity.severity_class(truth.ct_score)


#: Name of the task → its row.
TASKS = {
    "severity": Task(
        labels=severity.LABELS,
        study_labels=severity.LABELS,
        networks=("i3d", "ltc"),
        columns="severity or ct_score",
        label_of=_severity,
        classifies_scans=True,
        scored=True,
        cache_kind="clips",
        lesions="for deep supervision",
    ),
    "covid": Task(
        labels=("negative", "positive"),
        study_labels=("non-COVID", "COVID"),
        networks=("i3d", "ltc"),
        columns="covid",
        label_of=lambda truth: truth.covid,
        classifies_scans=True,
        scored=False,
        cache_kind="clips",
        lesions="for deep supervision",
    ),
    "lungs": Task(
        labels=(),
        study_labels=(),
        networks=("unet",),
        columns="lungs",
        label_of=lambda truth: 0 if truth.lungs else None,
        classifies_scans=False,
        scored=False,
        cache_kind="planes",
        lesions="where all have them",
    ),
    "lobes": Task(
        labels=(),
        study_labels=(),
        networks=("unet3d",),
        columns="lobes",
        label_of=lambda truth: 0 if truth.lobes else None,
        classifies_scans=False,
        scored=False,
        cache_kind="volumes",
        lesions="never",
    ),
    "slices": Task(
        labels=("clear", "diseased"),
        study_labels=("clear", "diseased"),
        networks=("inception_v1",),
        columns="lesions",
        label_of=lambda truth: 0 if truth.lesions else None,
        classifies_scans=False,
        scored=False,
        cache_kind="clips",
        lesions="always",
    ),
}
