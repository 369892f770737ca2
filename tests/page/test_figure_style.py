"""Figures look alike whatever the user's own settings are, and leave them alone."""

from __future__ import annotations

import io

import matplotlib
import pytest
from PIL import Image

from tests.marks import warnings_are_errors
from tf_covid.page.figure_style import FIGURE, SLIDE, drawable, new_figure, styled, to_bytes

pytestmark = warnings_are_errors


def draw(form: str = "png") -> bytes:
    figure = new_figure(4.0, 3.0, 50, layout="constrained")
    figure.add_subplot().set_title("title")
    return to_bytes(figure, form)  # type: ignore[arg-type]


def test_the_users_settings_neither_show_nor_change() -> None:
    expected = styled()(draw)()
    with matplotlib.rc_context(
        {"axes.titlesize": 30, "font.family": "serif", "lines.linewidth": 9}
    ):
        before = dict(matplotlib.rcParams)
        assert styled()(draw)() == expected
        assert dict(matplotlib.rcParams) == before
        assert draw() != expected


def test_a_failure_leaves_the_settings_alone() -> None:
    before = dict(matplotlib.rcParams)
    with pytest.raises(ZeroDivisionError):
        styled(SLIDE)(lambda: 1 / 0)()
    assert dict(matplotlib.rcParams) == before


def test_a_slide_is_a_figure_in_the_dark() -> None:
    light, dark = (Image.open(io.BytesIO(styled(style)(draw)())) for style in (FIGURE, SLIDE))
    assert light.size == dark.size == (200, 150)
    assert light.getpixel((0, 0)) == (255, 255, 255, 255)
    assert dark.getpixel((0, 0)) == (0x0D, 0x11, 0x15, 255)


def test_the_same_figure_is_the_same_svg() -> None:
    first = styled()(draw)("svg")
    assert first == styled()(draw)("svg")
    assert b"<svg" in first


def test_what_the_font_lacks_is_a_question_mark() -> None:
    assert drawable("Ørsted – $x$ Ω") == "Ørsted – $x$ Ω"
    assert drawable("日本\n") == "???"
