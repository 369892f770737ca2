"""Predictions on cases that the networks had not seen: one table a task."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from tf_covid.errors import TfCovidError
from tf_covid.severity import CLASS_UPPER_SCORES, LOBES
from tf_covid.tasks import TASKS

#: Class names of each task that classifies, in the order of the class numbers.
CLASSES = {name: task.study_labels for name, task in TASKS.items() if task.classifies_scans}

#: Largest distance from 1 of the sum of a case's probabilities: float32 softmax, averaged.
SUM_TOLERANCE = 1e-3

#: The highest score of a lobe.
LARGEST_LOBE_SCORE = 5

#: Columns that older tables lack.
_LOBE_READINGS = ("read_score", "lobe_scores", "read_lobe_scores")


class StudyError(TfCovidError):
    """Predictions or runs that cannot be read, joined, averaged or compared."""


class _Columns:
    """What the tables have in common: columns of one length, one row a prediction."""

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


def _freeze(table: _Columns, name: str, dtype: type[np.generic]) -> None:
    """Replace a column by a read-only copy of a type."""
    array = np.array(getattr(table, name), dtype)
    array.setflags(write=False)
    object.__setattr__(table, name, array)


@dataclass(frozen=True, eq=False)
class Predictions(_Columns):
    """Predictions of a classification: one row a case, by the network of the fold that tests it.

    Args:
        task: Task, "severity" (C = 5 classes) or "covid" (C = 2).
        cases: Name of each case, N texts, each once.
        patients: Patient of each case, N texts.
        folds: Fold that tests the case, int (N,), from 0.
        truth: True class, int (N,).
        probabilities: Probability of each class, float64 (N, C); rows sum to 1. The predicted class
            is the largest, the first of equal ones.
        ct_score: True Global CT Score, 0–25, float64 (N,); NaN where unknown.
        predicted_score: Predicted Global CT Score, float64 (N,); NaN where the network has none.
        read_score: Global CT Score read from the lobes, 0–25, float64 (N,): the sum of the five
            lobe scores, in which the network has no say; NaN where unknown.
        lobe_scores: True score of each lobe, in the order of `severity.LOBES`, 0–5, float64 (N, 5);
            NaN where unknown.
        read_lobe_scores: Score read of each lobe, likewise; NaN of a lobe that the scan hardly
            shows.
        sex: Sex of the patient, N texts; None where unknown.
        age: Age of the patient in years, float64 (N,); NaN where unknown.
        site: Site of the scan, N texts; None where unknown.

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
    read_score: np.ndarray
    lobe_scores: np.ndarray
    read_lobe_scores: np.ndarray
    sex: tuple[str | None, ...]
    age: np.ndarray
    site: tuple[str | None, ...]

    def __post_init__(self) -> None:
        for name in ("folds", "truth"):
            _freeze(self, name, np.int64)
        for name in ("probabilities", "ct_score", "predicted_score", "age", *_LOBE_READINGS):
            _freeze(self, name, np.float64)
        self._check_lengths()
        if len(set(self.cases)) != len(self.cases):
            raise ValueError("a case is listed twice")
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
        for name in ("ct_score", "read_score"):
            self._check_range(name, 0, CLASS_UPPER_SCORES[-1], unknown=True)
        for name in ("lobe_scores", "read_lobe_scores"):
            values = getattr(self, name)
            if values.shape != (len(self.cases), len(LOBES)):
                raise ValueError(f"{name} must be (N, {len(LOBES)}), not {values.shape}")
            self._check_range(name, 0, LARGEST_LOBE_SCORE, unknown=True)
            if (np.mod(values[np.isfinite(values)], 1) != 0).any():
                raise ValueError(f"{name} must be whole numbers")
        self._check_range("age", 0, 130, unknown=True)

    @property
    def knows_lobes(self) -> bool:
        """Whether something is known of the lobes of a case."""
        return any(np.isfinite(getattr(self, name)).any() for name in _LOBE_READINGS)

    @property
    def predicted(self) -> np.ndarray:
        """The class of the largest probability, int64 (N,)."""
        predicted: np.ndarray = self.probabilities.argmax(axis=1)
        return predicted


@dataclass(frozen=True, eq=False)
class SlicePredictions(_Columns):
    """Predictions on axial slices: is the slice diseased, and how much of its lung?

    Args:
        cases: Case of each slice, N texts.
        patients: Patient of each slice, N texts.
        folds: Fold that tests the case, int (N,), from 0.
        slices: Index of the slice from head to feet, int (N,), from 0; each once in its case.
        truth: 1 where the slice is diseased, else 0, int (N,).
        probability: Predicted probability of disease, 0–1, float64 (N,).
        fraction: True fraction of the slice's lung that is diseased, 0–1, float64 (N,); NaN where
            unknown.
        predicted_fraction: Predicted fraction, float64 (N,); NaN where the network has none.

    Raises:
        ValueError: If columns differ in length, or a value is impossible.
    """

    cases: tuple[str, ...]
    patients: tuple[str, ...]
    folds: np.ndarray
    slices: np.ndarray
    truth: np.ndarray
    probability: np.ndarray
    fraction: np.ndarray
    predicted_fraction: np.ndarray
    task: ClassVar[Literal["slices"]] = "slices"

    def __post_init__(self) -> None:
        for name in ("folds", "slices", "truth"):
            _freeze(self, name, np.int64)
        for name in ("probability", "fraction", "predicted_fraction"):
            _freeze(self, name, np.float64)
        self._check_lengths()
        if len(set(zip(self.cases, self.slices.tolist(), strict=True))) != len(self.cases):
            raise ValueError("a slice is listed twice")
        self._check_range("folds", 0, np.inf)
        self._check_range("slices", 0, np.inf)
        self._check_range("truth", 0, 1)
        self._check_range("probability", 0, 1)
        self._check_range("fraction", 0, 1, unknown=True)


@dataclass(frozen=True, eq=False)
class LungPredictions(_Columns):
    """Predictions of lung masks: how much of each case's true mask was found.

    Args:
        cases: Name of each case, N texts, each once.
        patients: Patient of each case, N texts.
        folds: Fold that tests the case, int (N,), from 0.
        dice: Dice of predicted and true mask over all voxels of the case, 0–1, float64 (N,).
        sex: Sex of the patient, N texts; None where unknown.
        age: Age of the patient in years, float64 (N,); NaN where unknown.
        site: Site of the scan, N texts; None where unknown.

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
        _freeze(self, "folds", np.int64)
        for name in ("dice", "age"):
            _freeze(self, name, np.float64)
        self._check_lengths()
        if len(set(self.cases)) != len(self.cases):
            raise ValueError("a case is listed twice")
        self._check_range("folds", 0, np.inf)
        self._check_range("dice", 0, 1)
        self._check_range("age", 0, 130, unknown=True)


@dataclass(frozen=True, eq=False)
class LobePredictions(_Columns):
    """Predictions of lobes: how much of each case's true lobes was found.

    Args:
        cases: Name of each case, N texts, each once.
        patients: Patient of each case, N texts.
        folds: Fold that tests the case, int (N,), from 0.
        dice: Mean Dice of the lobes that the case shows, 0–1, float64 (N,).
        lobes: Dice of each lobe, in the order of `severity.LOBES`, 0–1, float64 (N, 5); NaN of a
            lobe that the case does not show.
        effusion_error_ml: Predicted less true pleural effusion, float64 (N,); NaN where unknown.
        sex: Sex of the patient, N texts; None where unknown.
        age: Age of the patient in years, float64 (N,); NaN where unknown.
        site: Site of the scan, N texts; None where unknown.

    Raises:
        ValueError: If columns differ in length, or a value is impossible.
    """

    cases: tuple[str, ...]
    patients: tuple[str, ...]
    folds: np.ndarray
    dice: np.ndarray
    lobes: np.ndarray
    effusion_error_ml: np.ndarray
    sex: tuple[str | None, ...]
    age: np.ndarray
    site: tuple[str | None, ...]
    task: ClassVar[Literal["lobes"]] = "lobes"

    def __post_init__(self) -> None:
        _freeze(self, "folds", np.int64)
        for name in ("dice", "lobes", "effusion_error_ml", "age"):
            _freeze(self, name, np.float64)
        self._check_lengths()
        if len(set(self.cases)) != len(self.cases):
            raise ValueError("a case is listed twice")
        if self.lobes.shape != (len(self.cases), len(LOBES)):
            raise ValueError(f"lobes must be (N, {len(LOBES)}), not {self.lobes.shape}")
        self._check_range("folds", 0, np.inf)
        self._check_range("dice", 0, 1)
        self._check_range("lobes", 0, 1, unknown=True)
        self._check_range("age", 0, 130, unknown=True)


AnyPredictions = Predictions | SlicePredictions | LungPredictions | LobePredictions

#: Tables with a row a scan.
ScanPredictions = Predictions | LungPredictions | LobePredictions
