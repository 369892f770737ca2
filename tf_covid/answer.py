"""What networks answer about one scan, on whichever backend they run; and the mean of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np

from tf_covid.errors import ScanRefused
from tf_covid.result import QualityFlag

if TYPE_CHECKING:
    from tf_covid.weights import Contract

#: What a backend keeps to explain its own answer. It is opaque to everybody else.
Evidence = TypeVar("Evidence")


@dataclass(frozen=True)
class Segmentation:
    """What the lung model says about one scan.

    Args:
        probability: Probability of lung, float32 (D, h, w) on the U-Net's grid.
        disease: Probability of diseased lung on the same grid; None where nothing looked for it.
        lobes: Share of each lobe, float32 (d, f, g, 5), on a coarse grid that covers the scan from
            edge to edge; None without a lobe network, as are the next two.
        effusion: Share of pleural effusion, float32 (d, f, g), on the same coarse grid.
        orientation: Logits, float32 (3,), of “stored feet first”, “back for front” and “left for
            right”.
    """

    probability: np.ndarray
    disease: np.ndarray | None = None
    lobes: np.ndarray | None = None
    effusion: np.ndarray | None = None
    orientation: np.ndarray | None = None


class ModelIdentity(Protocol):
    """Which network answered: a `weights.LoadedModel`, or one that a server has."""

    @property
    def name(self) -> str:
        """Shipped name, or name of the file."""

    @property
    def sha256(self) -> str:
        """Hash of the model's file, in hex."""

    @property
    def contract(self) -> Contract:
        """Task, classes and input that the model's file states."""


@dataclass(frozen=True)
class Answer(Generic[Evidence]):
    """What one network says about one scan.

    Args:
        model: Name, hash and contract of the network.
        probabilities: Probability of each class, float64 (classes,), summing to 1: the softmax of
            the logits, taken nowhere else.
        ct_score: Global CT Score, 0–25; None where the network has none.
        keep: Slices that the network saw, bool (D,).
        evidence: What the backend needs to explain the answer; only that backend reads it.
    """

    model: ModelIdentity
    probabilities: np.ndarray
    ct_score: float | None
    keep: np.ndarray
    evidence: Evidence


def finite_probabilities(name: str, logits: np.ndarray, ct_score: float | None) -> np.ndarray:
    """The softmax of one scan's logits (classes,), in float64.

    Raises:
        ScanRefused: If the logits or the CT score are not finite.
    """
    if not (np.isfinite(logits).all() and np.isfinite(ct_score or 0.0)):
        raise ScanRefused(
            [QualityFlag("not_finite", "error", f"The answer of {name} is not a finite number.")]
        )
    exponentials = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(exponentials / exponentials.sum())


def mean_answer(answers: Sequence[Answer[Evidence]]) -> tuple[np.ndarray, float | None]:
    """Mean probabilities (classes,), and the mean CT score of the networks that have one."""
    scores = [answer.ct_score for answer in answers]
    return np.mean([answer.probabilities for answer in answers], axis=0), mean_known(scores)


def mean_known(values: Sequence[float | None]) -> float | None:
    """The mean of the values that are not None; None where all are."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def mean_map(volumes: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of uint8 maps (D, H, W), scaled to 255 at its maximum.

    It is taken slice by slice, so that no volume is copied as float.
    """
    if len(volumes) == 1:
        return volumes[0]
    highest = max(
        int(sum(plane.astype(np.uint32) for plane in planes).max())
        for planes in zip(*volumes, strict=True)
    )
    mean = np.zeros_like(volumes[0])
    for plane, *planes in zip(mean, *volumes, strict=True):
        plane[:] = np.rint(
            sum(one.astype(np.float32) for one in planes) * (255.0 / max(highest, 1))
        )
    return mean
