"""Geometry of a header, held against the rest of the file and against what a chest can be."""

from __future__ import annotations

import numpy as np

from tf_covid.result import QualityFlag

#: How far two statements of a voxel's size may differ: 0.703 for 0.703125 is rounding.
_SIZE_SHARE = 5e-4
#: How far two statements of a direction may differ, in degrees.
_DEGREES = 0.2
#: No coordinate of a scanner is larger, in mm.
_FARTHEST_MM = 1e4


def disagreement(taken: np.ndarray, other: np.ndarray, *, size_only: bool = False) -> str:
    """How a second affine contradicts the one that was taken, in words; empty if it does not.

    Args:
        taken: (4, 4), index → mm; regular.
        other: (4, 4), from another field of the header.
        size_only: Whether `other` knows nothing of directions.
    """
    size, other_size = (np.linalg.norm(affine[:3, :3], axis=0) for affine in (taken, other))
    if (np.abs(other_size - size) > _SIZE_SHARE * size).any():
        return (
            f"its voxels are {_times(size)} mm, and {_times(other_size)} mm by another field of the"
            " header"
        )
    if size_only:
        return ""
    if np.linalg.det(taken[:3, :3]) * np.linalg.det(other[:3, :3]) < 0:
        return "another field of the header shows the scan mirrored: left and right may be swapped"
    cosines = np.clip((taken[:3, :3] / size * (other[:3, :3] / other_size)).sum(axis=0), -1.0, 1.0)
    angle = float(np.degrees(np.arccos(cosines)).max())
    if angle > _DEGREES:
        return f"another field of the header turns the scan by {angle:.1f} degrees against it"
    return ""


def no_position() -> QualityFlag:
    """Said of a header that places its voxels nowhere, though it orients them."""
    message = (
        "The header does not say where its first voxel lies; (0, 0, 0) mm is assumed. The answer"
        " needs no position."
    )
    return QualityFlag("position_unknown", "info", message)


def position_flags(affine: np.ndarray) -> tuple[QualityFlag, ...]:
    """A warning where a header places the scan metres away.

    The answer needs no position, but other programs do.

    Args:
        affine: (4, 4), index → mm; finite.
    """
    farthest = float(np.abs(affine[:3, 3]).max())
    if farthest <= _FARTHEST_MM:
        return ()
    message = (
        f"The header places the scan {farthest / 1000:.3g} m from the origin: its position is not"
        " to be trusted."
    )
    return (QualityFlag("position_unlikely", "warning", message, farthest),)


def in_millimetres(unit: str, factor: float) -> tuple[np.ndarray, tuple[QualityFlag, ...]]:
    """The matrix that turns a unit of length into mm, and the flag that says so.

    Args:
        unit: Unit of length, as it is written.
        factor: mm in one of it.
    """
    if factor == 1.0:
        return np.eye(4), ()
    message = (
        f"The header measures in {unit}; its numbers were converted to mm, which some programs do"
        " not do."
    )
    return np.diag([factor, factor, factor, 1.0]), (
        QualityFlag("units_converted", "warning", message, unit),
    )


def _times(size: np.ndarray) -> str:
    return "×".join(f"{value:.4g}" for value in size)
