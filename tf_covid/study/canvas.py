"""What the study's figures have in common: size, colours, type, and the bytes that they become."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Format = Literal["png", "svg"]

#: Pixels of an inch: twice what a page shows, for sharp prints and screens.
DPI = 160

INK, SOFT, LINE, ACCENT = "#16202b", "#5b6876", "#d6dbe1", "#0b64a8"
#: The colours of the classes, as in the report of a case; of two classes the first and the fourth.
RANKS = ("#3f74a8", "#f2c14e", "#ee8a2a", "#c6491c", "#6d1a52")
#: Runs and folds, apart from each other for every kind of colour vision (Okabe and Ito, without
#: yellow).
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")


def new(width_in: float, height_in: float) -> tuple[Figure, Axes]:
    """A figure with one set of axes, of a size in inches."""
    figure = blank(width_in, height_in)
    return figure, styled(figure.add_subplot())


def blank(width_in: float, height_in: float) -> Figure:
    """A figure without axes, of a size in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def styled(axes: Axes) -> Axes:
    """The axes in the colours of the page."""
    for side in axes.spines.values():
        side.set_color(LINE)
    axes.tick_params(colors=SOFT, labelsize=10)
    return axes


def label(axes: Axes, x: str, y: str, title: str) -> None:
    """Name the axes and the figure."""
    axes.set_xlabel(x, fontsize=11, color=INK, labelpad=7)
    axes.set_ylabel(y, fontsize=11, color=INK, labelpad=7)
    axes.set_title(
        drawable(title), fontsize=12, color=INK, weight="bold", loc="left", pad=10, parse_math=False
    )


def percent_ticks(axes: Axes) -> None:
    """Both axes from 0 to 100 %."""
    ticks = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    axes.set_xticks(ticks, [f"{tick * 100:.0f} %" for tick in ticks])
    axes.set_yticks(ticks, [f"{tick * 100:.0f} %" for tick in ticks])
    axes.grid(color=LINE, linewidth=0.6, alpha=0.6)
    axes.set_axisbelow(True)


def numbered(number: int, name: str, classes: int) -> str:
    """Classes of a scale carry their number; yes and no do not."""
    return f"{number} {name}" if classes > 2 else name


def drawable(text: str) -> str:
    """Text whose every letter the font has: Latin, and "?" for the rest."""
    return re.sub(r"[^\n\x20-\x7e\xa0-\xff–−]", "?", text)


def finished(figure: Figure, form: Format) -> bytes:
    """The figure as a file."""
    buffer = io.BytesIO()
    # Without a date: when it was drawn says nothing about the study.
    figure.savefig(buffer, format=form, metadata={"Date": None} if form == "svg" else None)
    return buffer.getvalue()
