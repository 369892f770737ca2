"""Smooth scalar fields in patient millimetres: lattices, spline noise, distance functions, and their upsampling.

Every coordinate triple is (u, y, x): u from head to feet, y from anterior to posterior, x from the patient's right to
left, in mm, the canonical (D, H, W) directions of `tf_covid.scan`. u = 0 is the nominal apex of the lungs. A distance
function is negative inside, positive outside, and about one per mm near its surface.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

Field = np.ndarray


class Points(NamedTuple):
    """Coordinates in mm, arrays that broadcast to one (U, Y, X) shape."""

    u: Field
    y: Field
    x: Field


@dataclass(frozen=True)
class Grid:
    """The three axes of a rectilinear grid, in mm, ascending float32."""

    u: np.ndarray
    y: np.ndarray
    x: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """(U, Y, X)."""
        return len(self.u), len(self.y), len(self.x)

    def points(self) -> Points:
        """Open coordinate arrays that broadcast to `shape`."""
        return Points(self.u[:, None, None], self.y[None, :, None], self.x[None, None, :])

    def box(self, low: Sequence[float], high: Sequence[float]) -> tuple[slice, slice, slice]:
        """The slices of the grid that hold everything between two corners (u, y, x), one point more on each side."""
        found = []
        for axis, start, stop in zip((self.u, self.y, self.x), low, high, strict=True):
            first = max(int(np.searchsorted(axis, start)) - 1, 0)
            last = min(int(np.searchsorted(axis, stop)) + 1, len(axis))
            found.append(slice(min(first, last), last))
        return found[0], found[1], found[2]


def _axis_weights(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Left neighbours and fractions for linear interpolation; constant beyond the ends."""
    position = np.interp(target, source, np.arange(len(source)))
    left = np.minimum(position.astype(np.intp), max(len(source) - 2, 0))
    return left, (position - left).astype(np.float32)


def _axis_matrix(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(target, source) float32 matrix of linear interpolation."""
    left, fraction = _axis_weights(source, target)
    matrix = np.zeros((len(target), len(source)), np.float32)
    rows = np.arange(len(target))
    matrix[rows, left] = 1.0 - fraction
    matrix[rows, np.minimum(left + 1, len(source) - 1)] += fraction
    return matrix


Box = tuple[slice, slice, slice]


class Upsampler:
    """Linear interpolation of lattice fields onto parts of a finer grid.

    As matrix products, several times faster than `scipy.ndimage.map_coordinates` on a rectilinear grid.
    """

    def __init__(self, lattice: Grid, grid: Grid) -> None:
        self._left, self._fraction = _axis_weights(lattice.u, grid.u)
        self._rows = _axis_matrix(lattice.y, grid.y)
        self._columns = np.ascontiguousarray(_axis_matrix(lattice.x, grid.x).T)

    def __call__(self, field: Field, box: Box) -> Field:
        """The values of a lattice field within a box of the grid."""
        left, fraction = self._left[box[0]], self._fraction[box[0], None, None]
        right = np.minimum(left + 1, field.shape[0] - 1)
        slices = field[left] * (1.0 - fraction) + field[right] * fraction
        return self._rows[box[1]] @ (slices @ self._columns[:, box[2]])


def _spline_matrix(axis: np.ndarray, start: float, step: float, count: int) -> np.ndarray:
    """(len(axis), count) uniform cubic B-spline basis whose control points lie at start + i·step."""
    distance = np.abs((axis[:, None] - start) / step - np.arange(count)[None, :])
    inner = 2.0 / 3.0 - distance**2 + 0.5 * distance**3
    outer = np.maximum(2.0 - distance, 0.0) ** 3 / 6.0
    return np.where(distance < 1.0, inner, outer).astype(np.float32)


class SplineNoise:
    """Band-limited random field of zero mean and about unit deviation, fixed in the patient whatever the grid.

    Args:
        rng: Where the control values come from.
        step_mm: Distance of the control points; structures are about twice as large.
        low, high: Corners (u, y, x) in mm of the region that needs the field.
    """

    #: Deviation of a cubic B-spline sum of unit normals, averaged over positions: (151/315)^(3/2).
    _DEVIATION = 0.3319

    def __init__(
        self,
        rng: np.random.Generator,
        step_mm: float | Sequence[float],
        low: Sequence[float],
        high: Sequence[float],
    ) -> None:
        self._steps = np.broadcast_to(np.asarray(step_mm, float), (3,))
        self._starts = np.asarray(low, float) - 2 * self._steps
        counts = np.ceil((np.asarray(high, float) - self._starts) / self._steps).astype(int) + 3
        self._values = rng.standard_normal(counts, dtype=np.float32) / np.float32(self._DEVIATION)

    def __call__(self, grid: Grid) -> Field:
        """The field on a grid, float32."""
        along_u, along_y, along_x = (
            _spline_matrix(axis, start, step, count)
            for axis, start, step, count in zip(
                (grid.u, grid.y, grid.x), self._starts, self._steps, self._values.shape, strict=True
            )
        )
        values = np.tensordot(along_u, self._values, axes=1)
        return along_y @ (values @ np.ascontiguousarray(along_x.T))


def smooth_step(value: Field, low: float, high: float) -> Field:
    """0 below `low`, 1 above `high`, a cubic between (Hermite)."""
    t = np.clip((value - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def join(first: Field, second: Field, round_mm: float) -> Field:
    """Union of two distance functions with a fillet of about `round_mm` (Quilez' polynomial smooth minimum)."""
    h = np.maximum(round_mm - np.abs(first - second), 0.0)
    h *= h
    h *= 0.25 / round_mm
    return np.minimum(first, second) - h


def meet(first: Field, second: Field, round_mm: float) -> Field:
    """Intersection of two distance functions with a rounded edge."""
    return -join(-first, -second, round_mm)


def ellipsoid(q: Points, centre: Sequence[float], radii: Sequence[float]) -> Field:
    """Approximate distance to an ellipsoid: exact on its surface, of first order near it."""
    du, dy, dx = q.u - centre[0], q.y - centre[1], q.x - centre[2]
    ru, ry, rx = radii
    level = (du / ru) ** 2 + (dy / ry) ** 2 + (dx / rx) ** 2
    slope = (du / ru**2) ** 2 + (dy / ry**2) ** 2 + (dx / rx**2) ** 2
    root = np.sqrt(level)
    return root * (root - 1.0) / np.sqrt(slope + 1e-12)


def rotated(
    q: Points, centre: Sequence[float], about_u: float = 0.0, about_y: float = 0.0
) -> Points:
    """Coordinates in a frame turned about u (in the axial plane), then about y (in the coronal plane), radians."""
    dy, dx, du = q.y - centre[1], q.x - centre[2], q.u - centre[0]
    c, s = np.cos(about_u), np.sin(about_u)
    dy, dx = c * dy + s * dx, c * dx - s * dy
    c, s = np.cos(about_y), np.sin(about_y)
    du, dx = c * du + s * dx, c * dx - s * du
    return Points(du, dy, dx)


def tube(
    q: Points,
    path: Sequence[Sequence[float]],
    radii: float | Sequence[float],
    reach_mm: float | None = 45.0,
) -> Field:
    """Distance to a chain of round cones through the points `path` (u, y, x) with the given radii, in mm.

    Distances are cut off at `reach_mm`, and nothing is computed farther away, unless it is None.
    """
    widths = np.broadcast_to(np.asarray(radii, np.float32), (len(path),))
    nearest = np.full(
        np.broadcast_shapes(*(axis.shape for axis in q)), reach_mm or np.inf, np.float32
    )
    for start, stop, first, last in zip(path[:-1], path[1:], widths[:-1], widths[1:], strict=True):
        near = (slice(None),) * 3
        if reach_mm is not None:
            margin = reach_mm + max(float(first), float(last))
            near = _near(q, np.minimum(start, stop) - margin, np.maximum(start, stop) + margin)
        u, y, x = (axis[near] if axis.shape == nearest.shape else axis for axis in q)
        step = [float(b) - float(a) for a, b in zip(start, stop, strict=True)]
        du, dy, dx = u - start[0], y - start[1], x - start[2]
        length = step[0] ** 2 + step[1] ** 2 + step[2] ** 2
        t = np.clip((du * step[0] + dy * step[1] + dx * step[2]) / length, 0.0, 1.0)
        gap = np.sqrt((du - t * step[0]) ** 2 + (dy - t * step[1]) ** 2 + (dx - t * step[2]) ** 2)
        gap -= first + t * (last - first)
        nearest[near] = np.minimum(nearest[near], gap)
    return nearest


def _near(q: Points, low: np.ndarray, high: np.ndarray) -> Box:
    """The part of (U, Y, X) points, of a gently warped lattice, that may lie between two corners."""
    if any(axis.ndim != 3 or axis.shape != q.u.shape for axis in q):
        return slice(None), slice(None), slice(None)
    found = []
    for number, axis in enumerate(q):
        # Every third line is enough: the warp is smooth, and the reach far larger than what lies between.
        lines = np.moveaxis(axis, number, 0)[:, ::3, ::3].reshape(axis.shape[number], -1)
        inside = np.flatnonzero(
            (lines.max(axis=1) > low[number] - 4.0) & (lines.min(axis=1) < high[number] + 4.0)
        )
        found.append(slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0))
    return found[0], found[1], found[2]


def occupancy(distance: Field, width_mm: float) -> Field:
    """Share of a voxel inside a surface at `distance` from its centre: 1 inside, 0 outside, a ramp of `width_mm`."""
    return np.clip(0.5 - distance / width_mm, 0.0, 1.0)
