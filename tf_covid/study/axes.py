"""What the axes of the study's figures have in common, beside their style (`page.figure_style`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tf_covid.page.figure_style import drawable, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Pixels of an inch: twice what a page shows, for sharp prints and screens.
DPI = 160


def blank_figure(width_in: float, height_in: float) -> Figure:
    """A figure without axes, of a size in inches."""
    return new_figure(width_in, height_in, DPI, layout="constrained")


def new_axes(width_in: float, height_in: float) -> tuple[Figure, Axes]:
    """A figure with one set of axes, of a size in inches."""
    figure = blank_figure(width_in, height_in)
    return figure, figure.add_subplot()


def label(axes: Axes, x: str, y: str, title: str) -> None:
    """Name the axes and the figure."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(drawable(title), parse_math=False)


def percent_ticks(axes: Axes) -> None:
    """Both axes from 0 to 100 %."""
    ticks = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    axes.set_xticks(ticks, [f"{tick * 100:.0f} %" for tick in ticks])
    axes.set_yticks(ticks, [f"{tick * 100:.0f} %" for tick in ticks])
    axes.grid()
    axes.set_axisbelow(True)


def class_names(names: Sequence[str]) -> list[str]:
    """Classes of a scale with their number; yes and no without."""
    return [f"{index} {name}" for index, name in enumerate(names)] if len(names) > 2 else [*names]
