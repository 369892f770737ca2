"""The head-to-feet figure of the report: curves beside the coronal view, on one axis.

Computes coordinates only; `report.html.j2` draws them as inline SVG.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tf_covid.report.views import Views
    from tf_covid.result import Result
    from tf_covid.scan.scan import Scan

#: Width of the figure and of its parts, in SVG units (CSS pixels at full size): room for an axis at
#: either side, gaps between the panels, a panel of a curve.
WIDTH = 1080.0
AXIS, GAP, CURVE = 52.0, 12.0, 148.0
_HIGHEST = 620.0


@dataclass(frozen=True)
class Curve:
    """One value per slice, drawn downwards; x = 0 at the left edge of its panel.

    Args:
        title: Name of the quantity, with its unit.
        line: SVG path of the curve.
        area: SVG path of the area between the curve and zero.
        ticks: Ticks of the value axis, as (x, text).
        cuts: Where the curve is cut off at the edge, as (y, highest value there with its unit).
    """

    title: str
    line: str
    area: str
    ticks: tuple[tuple[float, str], ...]
    cuts: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class HeadFeet:
    """Everything that the figure draws, in SVG units; y = 0 at the top of every panel.

    Args:
        width: Width of the figure with its axes.
        height: Height of every panel.
        picture_width: Width of a coronal picture.
        px_per_mm: Scale of the figure.
        curve_width: Width of the panel of a curve.
        curves: Panels from left to right.
        mm_ticks: Ticks in mm, left of the pictures, as (y, text).
        slice_ticks: Ticks in slice numbers, right of the panels, as (y, text).
        kept: Runs of kept slices, as (y, height).
        interpolated: y of each interpolated slice.
        marks: Slices that are shown, as (y, slice number from 1).
    """

    width: float
    height: float
    picture_width: float
    px_per_mm: float
    curve_width: float
    curves: tuple[Curve, ...]
    mm_ticks: tuple[tuple[float, str], ...]
    slice_ticks: tuple[tuple[float, str], ...]
    kept: tuple[tuple[float, float], ...]
    interpolated: tuple[float, ...]
    marks: tuple[tuple[float, int], ...]


def layout(result: Result, scan: Scan, views: Views, has_attention: bool) -> HeadFeet:
    """Lay out the figure for an answered case.

    Args:
        result: The answer, with its maps.
        scan: The scan behind it.
        views: What is shown.
        has_attention: True with a panel for the attention map.
    """
    spacing = scan.spacing_mm[0]
    first, last = views.box[0].start, views.box[0].stop
    columns = views.box[2].stop - views.box[2].start
    width_mm, height_mm = columns * scan.spacing_mm[2], (last - first) * spacing
    panels = 2 if has_attention else 1
    room = WIDTH - 2 * AXIS - panels * (CURVE + GAP) - GAP
    scale = min(room / 2 / width_mm, _HIGHEST / height_mm)
    picture = width_mm * scale

    def y(slice_position: float) -> float:
        return float((slice_position - first) * spacing * scale)

    step = y(first + 1) - y(first)
    cuts = tuple(
        (y((low + high + 1) / 2), f"{percent:.0f} %")
        for low, high, percent in cut_off(result, scan)
        if first <= low and high < last
    )
    curves = [_curve("involved lung, %", involvement(result, scan)[first:last], step, 10.0, cuts)]
    if has_attention:
        curves.append(_curve("mean attention, 0–1", views.attention[first:last], step, 0.05))
    return HeadFeet(
        width=2 * AXIS + 2 * picture + GAP + panels * (CURVE + GAP),
        height=(last - first) * spacing * scale,
        picture_width=picture,
        px_per_mm=scale,
        curve_width=CURVE,
        curves=tuple(curves),
        mm_ticks=_mm_ticks(first * spacing, last * spacing, scale),
        slice_ticks=_slice_ticks(first, last, y),
        kept=_runs(np.flatnonzero(_kept(result, scan)), y),
        interpolated=tuple(y(index + 0.5) for index in scan.interpolated if first <= index < last),
        marks=tuple((y(chosen.index + 0.5), chosen.index + 1) for chosen in views.slices),
    )


def involvement(result: Result, scan: Scan) -> np.ndarray:
    """Involved fraction of the lung in each slice, in percent, (D,), cut off above the kept slices.

    The limit is a round number above the value of every kept slice. Above and below these a few
    voxels of lung are easily "100 % involved": they must not set the scale.
    """
    limited: np.ndarray = np.minimum(_percent(result, scan), _limit(result, scan))
    return limited


def cut_off(result: Result, scan: Scan) -> list[tuple[int, int, float]]:
    """Runs of slices that `involvement` cuts off: first, last, and the highest percent in them."""
    percent = _percent(result, scan)
    over = np.flatnonzero(percent > _limit(result, scan))
    groups = np.split(over, np.flatnonzero(np.diff(over) > 1) + 1) if len(over) else []
    return [(int(run[0]), int(run[-1]), float(percent[run].max())) for run in groups]


def _percent(result: Result, scan: Scan) -> np.ndarray:
    per_slice = result.lungs.involvement_per_slice if result.lungs else np.zeros(scan.shape[0])
    return np.asarray(per_slice, float)


def _limit(result: Result, scan: Scan) -> float:
    kept = _percent(result, scan)[_kept(result, scan)]
    return nice_top(float(kept.max(initial=0.0)), 10.0)


def _kept(result: Result, scan: Scan) -> np.ndarray:
    return result.maps.kept if result.maps is not None else np.ones(scan.shape[0], bool)


def nice_top(highest: float, min_top: float) -> float:
    """A round number (1, 2 or 5 times a power of ten) not below `highest` nor `min_top`."""
    lower_bound = max(highest, min_top)
    power = 10.0 ** np.floor(np.log10(lower_bound))
    return float(
        next(
            step * power
            for step in (1.0, 2.0, 5.0, 10.0)
            if step * power >= lower_bound * (1 - 1e-9)
        )
    )


def _curve(
    title: str,
    values: np.ndarray,
    step: float,
    min_top: float,
    cuts: tuple[tuple[float, str], ...] = (),
) -> Curve:
    top = nice_top(float(values.max(initial=0.0)), min_top)
    points = [(value / top * CURVE, (row + 0.5) * step) for row, value in enumerate(values)]
    line = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    area = f"M0 {points[0][1]:.1f}L" + line[1:] + f"L0 {points[-1][1]:.1f}Z"
    ticks = tuple((part * CURVE, f"{part * top:g}") for part in (0.0, 0.5, 1.0))
    return Curve(title, line, area, ticks, cuts)


def _mm_ticks(first_mm: float, last_mm: float, scale: float) -> tuple[tuple[float, str], ...]:
    step = 50 if last_mm - first_mm > 120 else 10
    ticks = np.arange(np.ceil(first_mm / step) * step, last_mm + 1e-6, step)
    return tuple(((mm - first_mm) * scale, f"{mm:.0f}") for mm in ticks)


def _slice_ticks(
    first: int, last: int, y: Callable[[float], float]
) -> tuple[tuple[float, str], ...]:
    step = max(1, int(nice_top((last - first) / 10.0, 1.0)))
    numbers = [
        index for index in range(first + 1, last + 1) if index % step == 0 or index == first + 1
    ]
    # The first number of the picture is shown unless it would touch its neighbour.
    if len(numbers) > 1 and numbers[1] - numbers[0] < step / 2:
        numbers = numbers[1:]
    return tuple((y(index - 0.5), str(index)) for index in numbers)


def _runs(kept: np.ndarray, y: Callable[[float], float]) -> tuple[tuple[float, float], ...]:
    if not len(kept):
        return ()
    groups = np.split(kept, np.flatnonzero(np.diff(kept) > 1) + 1)
    return tuple((y(group[0]), y(group[-1] + 1) - y(group[0])) for group in groups)
