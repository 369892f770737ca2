"""The result of one scan and its JSON (`result.json`): values only, no computing, no writing."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tf_covid.tensor import Json

if TYPE_CHECKING:
    import numpy as np

    from tf_covid.lung_voxels import LungVoxels

Level = Literal["info", "warning", "error"]

DISCLAIMER = "Research software, not a medical device. Not for diagnosis or treatment decisions."


@dataclass(frozen=True)
class QualityFlag:
    """One thing that was noticed about a scan.

    Args:
        code: Stable name in snake_case, e.g. "missing_slices".
        level: "info" changes nothing, "warning" limits the answer, "error" refuses it.
        message: One sentence with the facts and units, without any identifier of the patient.
        value: The number or short text behind it, if there is one.
    """

    code: str
    level: Level
    message: str
    value: float | int | str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The flag for JSON; a value that is not a finite number is text, one of NumPy is plain."""
        value: Any = self.value
        if not isinstance(value, (int, float, str, type(None))):
            value = value.item() if hasattr(value, "item") else str(value)
        if isinstance(value, float) and not math.isfinite(value):
            value = str(value)
        return {"code": self.code, "level": self.level, "message": self.message, "value": value}


@dataclass(frozen=True)
class Series:
    """Geometry of the series that was read, on the canonical grid (D, H, W) after gap repair.

    `instance_numbers` has DICOM's InstanceNumber of each slice from head to feet, None for a slice
    that was interpolated: by it a viewing station finds the slice. None as a whole where the input
    is no DICOM file a slice. `slice_thickness_mm` is None where no header states it.
    """

    slices: int
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    interpolated: tuple[int, ...]
    chosen_because: str
    #: Only with `--keep-identifiers`: DICOM UIDs, patient id and friends.
    identifiers: dict[str, str] | None = None
    slice_thickness_mm: float | None = None
    instance_numbers: tuple[int | None, ...] | None = None


@dataclass(frozen=True)
class Lungs:
    """Volumes in millilitres and involvement in percent; lists run from head to feet.

    `involvement_by` says what counted as involved: "disease_probability", the mean of the lung
    model's calibrated probability of diseased lung, or "hu_rule", lung above −700 HU without
    vessels.
    """

    volume_ml: float
    left_ml: float
    right_ml: float
    slices_kept: int
    slices_total: int
    involvement_percent: float
    involvement_per_slice: tuple[float, ...]
    involvement_by: Literal["disease_probability", "hu_rule"] = "hu_rule"
    #: Pleural fluid in ml; None where no lobe network looked for it.
    effusion_ml: float | None = None


@dataclass(frozen=True)
class Lobe:
    """One lobe: its volume, its diseased share in percent, and the score 0–5 that follows from it.

    `name` is one of `severity.LOBES`; a lobe that the scan hardly shows (less than 30 ml of it) has
    neither involvement nor score. Below 2 % a lobe scores 0: a mean of probabilities is never 0.
    """

    name: str
    volume_ml: float
    involvement_percent: float | None
    score: int | None


@dataclass(frozen=True)
class Severity:
    """Severity of five classes. `class_index` is `class` in the JSON."""

    class_index: int
    label: str
    probabilities: tuple[float, ...]
    ct_score: float | None
    ct_score_interval: tuple[float, float] | None = None
    refer: bool | None = None
    #: Sum of the five lobe scores, read from lobes and disease; None where a lobe is missing.
    ct_score_read: int | None = None


@dataclass(frozen=True)
class Covid:
    """COVID yes or no; positive from a probability of 0.5."""

    probability: float
    positive: bool


@dataclass(frozen=True)
class Attention:
    """How the attention map was made. `per_slice` is its mean over the lungs of each slice, 0–1.

    `inside_lung_fraction` is the share of the map that lay within the lungs before it was cut to
    them.
    """

    method: str
    target: str
    endpoint: str
    inside_lung_fraction: float | None
    per_slice: tuple[float, ...]


@dataclass(frozen=True)
class ModelAnswer:
    """What one model of the ensemble answered, and which file it was."""

    name: str
    sha256: str
    note: str
    probabilities: tuple[float, ...]
    ct_score: float | None


@dataclass(frozen=True)
class Maps:
    """Volumes behind a result, on the canonical grid (D, H, W) of the scan.

    Args:
        voxels: Side, lobe and disease of each voxel, one byte each.
        attention: uint8; 255 is the maximum within this scan. None with `--attention none`.
        kept: bool (D,); the slices that hold at least the required share of lung.
    """

    voxels: LungVoxels
    attention: np.ndarray | None
    kept: np.ndarray

    @property
    def lungs(self) -> np.ndarray:
        """uint8, made anew at each call; 0 outside, 1 right, 2 left."""
        return self.voxels.sides

    @property
    def lobes(self) -> np.ndarray | None:
        """uint8, likewise; 1–5 in the order of `severity.LOBES`. None without a lobe network."""
        return self.voxels.lobes

    @property
    def lesions(self) -> np.ndarray | None:
        """uint8, likewise; 1 in diseased lung. None where nothing looked for disease."""
        return self.voxels.lesions


@dataclass(frozen=True)
class Result:
    """Everything that we say about one scan.

    A refused case has `case`, `status`, `quality_flags` and `versions` only; in Python it has
    `answered_at`, too, for its report.
    """

    case: str
    status: Literal["pass", "repaired", "refused"]
    quality_flags: tuple[QualityFlag, ...]
    versions: dict[str, str]
    series: Series | None = None
    lungs: Lungs | None = None
    #: The five lobes in the order of `severity.LOBES`; None without a lobe network.
    lobes: tuple[Lobe, ...] | None = None
    severity: Severity | None = None
    covid: Covid | None = None
    attention: Attention | None = None
    models: tuple[ModelAnswer, ...] = ()
    #: When the answer was given: ISO 8601, UTC, whole seconds, "2026-01-31T09:30:00Z".
    answered_at: str | None = None
    timings_s: dict[str, float] = field(default_factory=dict)
    #: Not part of the JSON: the volumes to write and to draw.
    maps: Maps | None = None

    def as_dict(self) -> dict[str, Any]:
        """The dictionary behind `result.json`, keys in the contract's order."""
        head: dict[str, Any] = {
            "case": self.case,
            "status": self.status,
            "quality_flags": [flag.as_dict() for flag in self.quality_flags],
        }
        if self.status == "refused":
            return head | {"versions": self.versions}

        def plain(value: Json) -> Json:
            return None if value is None else dataclasses.asdict(value)

        series = plain(self.series)
        if series is not None:
            series |= series.pop("identifiers") or {}
        severity = plain(self.severity)
        if severity is not None:
            severity = {"class": severity.pop("class_index")} | severity
        return head | {
            "series": series,
            "lungs": plain(self.lungs),
            "lobes": None if self.lobes is None else [plain(lobe) for lobe in self.lobes],
            "severity": severity,
            "covid": plain(self.covid),
            "attention": plain(self.attention),
            "models": [plain(model) for model in self.models],
            "answered_at": self.answered_at,
            "timings_s": self.timings_s,
            "versions": self.versions,
        }

    def to_json(self) -> str:
        """The text of `result.json`: UTF-8, floats rounded to six digits after the point.

        Raises:
            ValueError: If a number is not finite: a NaN is never an answer.
        """
        return (
            json.dumps(_rounded(self.as_dict()), indent=2, ensure_ascii=False, allow_nan=False)
            + "\n"
        )


def _rounded(value: object) -> object:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a result holds a number that is not finite")
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value
