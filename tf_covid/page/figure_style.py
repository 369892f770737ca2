"""Figures of matplotlib in the style of the house, whatever the user's own settings are.

A figure is made by hand, not by pyplot: no window, and nothing that another figure sees. Its style
is set for the time that it is drawn in.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, ParamSpec, TypeVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Format = Literal["png", "svg"]

_Arguments = ParamSpec("_Arguments")
_Value = TypeVar("_Value")

#: A style is set for the whole process: two threads draw one after the other.
_DRAWING = threading.RLock()

#: The style files beside this one, as matplotlib names them.
FIGURE = ("tf_covid.page.figure",)
SLIDE = (*FIGURE, "tf_covid.page.slide")


def styled(
    style: tuple[str, ...] = FIGURE,
) -> Callable[[Callable[_Arguments, _Value]], Callable[_Arguments, _Value]]:
    """Decorator: the function draws in a style, from matplotlib's own defaults on.

    Args:
        style: `FIGURE` or `SLIDE`.
    """

    def decorate(draw: Callable[_Arguments, _Value]) -> Callable[_Arguments, _Value]:
        @functools.wraps(draw)
        def wrapped(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Value:
            import matplotlib.style

            with _DRAWING, matplotlib.style.context(list(style), after_reset=True):
                return draw(*args, **kwargs)

        return wrapped

    return decorate


def new_figure(width_in: float, height_in: float, dpi: int, layout: str | None = None) -> Figure:
    """A figure without axes.

    Args:
        width_in: Width in inches.
        height_in: Height in inches.
        dpi: Pixels of an inch.
        layout: Matplotlib's layout engine; None where every position is given.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), dpi=dpi, layout=layout)  # type: ignore[arg-type]
    FigureCanvasAgg(figure)
    return figure


def get_ready() -> None:
    """Import what draws, and draw nothing once: a first figure takes a second longer than others.

    For a thread beside the work that comes before the drawing; what fails here fails again there.
    """
    with contextlib.suppress(Exception):
        importlib.import_module("matplotlib.style")
        figure = new_figure(1, 1, 10)
        figure.add_axes((0, 0, 1, 1)).text(0, 0, "0")
        to_bytes(figure)
        _known_characters()


def to_bytes(figure: Figure, form: Format = "png") -> bytes:
    """The figure as a PNG or SVG file."""
    buffer = io.BytesIO()
    # Without a date: when it was drawn says nothing about what it shows.
    figure.savefig(buffer, format=form, metadata={"Date": None} if form == "svg" else None)
    return buffer.getvalue()


def drawable(text: str) -> str:
    """The text with a "?" for every character that the font lacks, line breaks among them."""
    known = _known_characters()
    return "".join(letter if ord(letter) in known else "?" for letter in text)


@functools.cache
def _known_characters() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = [
        get_font(findfont(FontProperties(family="DejaVu Sans", weight=weight)))
        for weight in ("normal", "bold")
    ]
    return frozenset.intersection(*(frozenset(font.get_charmap()) for font in fonts))
