"""A blank slide in pixels, and what is written and drawn on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tf_covid.page import palette
from tf_covid.page.figure_style import drawable, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Size of the slide in pixels, 16:9.
WIDTH_PX, HEIGHT_PX = 1600.0, 900.0

#: Pixels of an inch, for the sizes of type.
_DPI = 100


def blank_slide() -> tuple[Figure, Axes]:
    """A slide, and axes over all of it in pixels from the top left: it is laid out, not plotted."""
    figure = new_figure(WIDTH_PX / _DPI, HEIGHT_PX / _DPI, _DPI)
    page = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    set_limits(page)
    page.axis("off")
    return figure, page


def set_limits(page: Axes) -> None:
    """Let the axes show the slide again: drawing a picture moves their limits to it."""
    page.set(xlim=(0, WIDTH_PX), ylim=(HEIGHT_PX, 0))


def write(
    page: Axes,
    x: float,
    y: float,
    text: str,
    size_px: float = 17,
    color: str = palette.SLIDE.ink,
    **options: Any,
) -> None:
    """Write text as it is: no formula between dollar signs, "?" for what the font lacks.

    Args:
        page: Axes of the slide.
        x: Left edge of the text in pixels, or another by `ha`.
        y: Base line of the text in pixels from the top.
        text: The text.
        size_px: Size of the type in pixels.
        color: Colour of the type.
        options: More arguments of matplotlib's `Axes.text`.
    """
    points = size_px * 72 / _DPI
    page.text(
        x,
        y,
        drawable(text),
        fontsize=points,
        color=color,
        parse_math=False,
        va="baseline",
        zorder=4,
        **options,
    )


def shortened(text: str, max_length: int) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= max_length else text[: max_length - 1].rstrip() + "…"


def rectangle(page: Axes, x: float, y: float, width: float, height: float, color: str) -> None:
    """Draw a filled rectangle; all lengths in pixels, from its top left corner."""
    from matplotlib.patches import Rectangle

    page.add_patch(Rectangle((x, y), width, height, facecolor=color, edgecolor="none"))
