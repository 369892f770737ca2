"""Colours: one list, which the style files and templates agree with."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from tf_covid.page import palette

HOUSE = Path(palette.__file__).parents[1]


@pytest.mark.parametrize(
    ("file", "theme"),
    [("figure", palette.LIGHT), ("slide", palette.SLIDE)],
    ids=["figure", "slide"],
)
def test_a_style_file_has_the_colours_of_its_theme(file: str, theme: palette.Theme) -> None:
    text = (HOUSE / "page" / f"{file}.mplstyle").read_text("utf-8")
    colours = {f"#{code}" for code in re.findall(r": ([0-9a-f]{6})$", text, re.MULTILINE)}
    assert colours
    assert colours <= set(vars(theme).values())


def test_no_colour_is_written_down_elsewhere() -> None:
    """Black, white and the grey under the key of the contour are no colours of the palette."""
    files = [file for room in ("page", "report", "study") for file in (HOUSE / room).iterdir()]
    texts = {file: file.read_text("utf-8") for file in files if file.suffix in (".py", ".j2")}
    codes = {
        (file.name, code)
        for file, text in texts.items()
        if file.name != "palette.py"
        for code in re.findall(r"#[0-9a-f]{6}\b|#[0-9a-f]{3}\b", text)
    }
    assert {code for _, code in codes} <= {"#000", "#fff", "#000000", "#2e2e2e"}, codes


def test_a_theme_becomes_css_variables() -> None:
    variables = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+);", palette.LIGHT.css()))
    assert variables["warn-page"] == palette.LIGHT.warn_page
    assert len(variables) == len(vars(palette.LIGHT))


def luminance(colour: str) -> float:
    linear = [
        (part / 255 / 12.92) if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4
        for part in palette.rgb(colour)
    ]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [palette.LIGHT, palette.DARK, palette.PRINT, palette.SLIDE])
def test_text_can_be_read(theme: palette.Theme) -> None:
    """WCAG 2.1 AA: a contrast of 4.5."""
    for text in (theme.ink, theme.soft):
        assert min(contrast(text, theme.page), contrast(text, theme.panel)) >= 4.5
    assert contrast(theme.warn, theme.warn_page) >= 4.5
    assert contrast(theme.bad, theme.panel) >= 4.5


def test_each_severity_class_but_the_first_is_darker_than_the_one_before() -> None:
    light = [luminance(colour) for colour in palette.SEVERITY_FILL[1:]]
    assert light == sorted(light, reverse=True)
    assert all(contrast(*pair) >= 4.5 for pair in palette.SEVERITY)
    assert palette.rgb("#4ac9ff") == (74, 201, 255)


def test_lobe_scores_darken_and_can_be_read() -> None:
    lightness = [luminance(ground) for ground, _ in palette.LOBE_SCORE]
    for lighter, darker in itertools.pairwise(lightness):
        assert (lighter + 0.05) / (darker + 0.05) > 1.25, "told apart on a grey print"
    for ground, letter in palette.LOBE_SCORE:
        assert contrast(ground, letter) >= 4.5
