"""What the networks of a cross-validation answered on the cases that they had not seen."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from tf_covid.errors import TfCovidError
from tf_covid.severity import CLASS_UPPER_SCORES, LABELS

#: Classes of each task that classifies, by name; the position is the class number.
CLASSES = {"severity": LABELS, "covid": ("non-COVID", "COVID")}

#: How far the probabilities of a case may sum from 1: float32 softmax, averaged.
SUM_TOLERANCE = 1e-3


class StudyError(TfCovidError):
    """Predictions or runs that cannot be read, joined, averaged or compared; the message has the facts."""


class _Columns:
    """What the three kinds have in common: columns of one length, one row an answer."""

    def _check_lengths(self) -> None:
        lengths = {
            field.name: len(value)
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
            if not isinstance(value := getattr(self, field.name), str)
        }
        if len(set(lengths.values())) != 1:
            raise ValueError(f"columns of different length: {lengths}")
        if not lengths["cases"]:
            raise ValueError("there is no prediction")

    def _check_range(self, name: str, low: float, high: float, *, unknown: bool = False) -> None:
        values = getattr(self, name)
        within = (values >= low) & (values <= high) | (unknown & np.isnan(values))
        if not within.all():
            raise ValueError(f"{name} must lie within {low:g}–{high:g}, not {values[~within][0]}")


def _set(owner: Any, name: str, value: Any, dtype: Any) -> None:
    array = np.array(value, dtype)
    array.setflags(write=False)
    object.__setattr__(owner, name, array)


@dataclass(frozen=True, eq=False)
class Predictions(_Columns):
    """One row a case, answered by the network of the fold that the case was held out of.

    Args:
        task: "severity" (C = 5) or "covid" (C = 2).
        cases: N names, each once.
        patients: N; rows of one patient belong together.
        folds: int (N,), from 0.
        truth: int (N,), the class.
        probabilities: float64 (N, C); rows sum to 1. The predicted class is the largest, the first
            of equal ones.
        ct_score: float64 (N,), true Global CT Score, 0–25; NaN unknown.
        predicted_score: float64 (N,), NaN where the network has none.
        sex, site: N texts, or None where unknown.
        age: float64 (N,), years; NaN unknown.

    Raises:
        ValueError: If columns differ in length, or a value is impossible.
    """

    task: Literal["severity", "covid"]
    cases: tuple[str, ...]
    patients: tuple[str, ...]
    folds: np.ndarray
    truth: np.ndarray
    probabilities: np.ndarray
    ct_score: np.ndarray
    predicted_score: np.ndarray
    sex: tuple[str | None, ...]
    age: np.ndarray
    site: tuple[str | None, ...]

    def __post_init__(self) -> None:
        for name in ("folds", "truth"):
            _set(self, name, getattr(self, name), np.int64)
        for name in ("probabilities", "ct_score", "predicted_score", "age"):
            _set(self, name, getattr(self, name), np.float64)
        self._check_lengths()
        if len(set(self.cases)) != len(self.cases):
            raise ValueError("a case stands there twice")
        classes = len(CLASSES[self.task])
        if self.probabilities.shape != (len(self.cases), classes):
            raise ValueError(
                f"probabilities must be (N, {classes}), not {self.probabilities.shape}"
            )
        self._check_range("folds", 0, np.inf)
        self._check_range("truth", 0, classes - 1)
        self._check_range("probabilities", 0, 1)
        if (np.abs(self.probabilities.sum(axis=1) - 1.0) > SUM_TOLERANCE).any():
            raise ValueError("the probabilities of a case must sum to 1")
        self._check_range("ct_score", 0, CLASS_UPPER_SCORES[-1], unknown=True)
        self._check_range("age", 0, 130, unknown=True)

    @property
    def predicted(self) -> np.ndarray:
        """Int (N,), the class of the largest probability."""
        return self.probabilities.argmax(axis=1)


@dataclass(frozen=True, eq=False)
class SlicePredictions(_Columns):
    """One row an axial slice: is it diseased, and how much of its lung?

    Args:
        cases, patients: N; a case has many rows.
        folds: int (N,), from 0.
        slices: int (N,), from head to feet, from 0; each once in its case.
        truth: int (N,), 0 or 1.
        probability: float64 (N,), 0–1.
        share: float64 (N,), true share of the slice's lung that is diseased, 0–1; NaN unknown.
        predicted_share: float64 (N,); NaN where the network has none.

    Raises:
        ValueError: If columns differ in length, or a value is impossible.
    """

    cases: tuple[str, ...]
    patients: tuple[str, ...]
    folds: np.ndarray
    slices: np.ndarray
    truth: np.ndarray
    probability: np.ndarray
    share: np.ndarray
    predicted_share: np.ndarray
    task: ClassVar[Literal["slices"]] = "slices"

    def __post_init__(self) -> None:
        for name in ("folds", "slices", "truth"):
            _set(self, name, getattr(self, name), np.int64)
        for name in ("probability", "share", "predicted_share"):
            _set(self, name, getattr(self, name), np.float64)
        self._check_lengths()
        if len(set(zip(self.cases, self.slices.tolist(), strict=True))) != len(self.cases):
            raise ValueError("a slice stands there twice")
        self._check_range("folds", 0, np.inf)
        self._check_range("slices", 0, np.inf)
        self._check_range("truth", 0, 1)
        self._check_range("probability", 0, 1)
        self._check_range("share", 0, 1, unknown=True)


@dataclass(frozen=True, eq=False)
class LungPredictions(_Columns):
    """One row a case: how well its lung mask was met.

    Args:
        cases: N names, each once.
        patients: N.
        folds: int (N,), from 0.
        dice: float64 (N,), 0–1, over all voxels of the case.
        sex, site: N texts, or None where unknown.
        age: float64 (N,), years; NaN unknown.

    Raises:
        ValueError: If columns differ in length, or a value is impossible.
    """

    cases: tuple[str, ...]
    patients: tuple[str, ...]
    folds: np.ndarray
    dice: np.ndarray
    sex: tuple[str | None, ...]
    age: np.ndarray
    site: tuple[str | None, ...]
    task: ClassVar[Literal["lungs"]] = "lungs"

    def __post_init__(self) -> None:
        _set(self, "folds", self.folds, np.int64)
        for name in ("dice", "age"):
            _set(self, name, getattr(self, name), np.float64)
        self._check_lengths()
        if len(set(self.cases)) != len(self.cases):
            raise ValueError("a case stands there twice")
        self._check_range("folds", 0, np.inf)
        self._check_range("dice", 0, 1)
        self._check_range("age", 0, 130, unknown=True)


AnyPredictions = Predictions | SlicePredictions | LungPredictions
