"""Every colour of the pages and figures, by name.

The two style files of matplotlib cannot import these; `tests/page/test_palette.py` compares them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class Theme:
    """The colours of a page, as CSS hex codes.

    Args:
        page: Background of the page.
        panel: Background of a section.
        ink: Text.
        soft: Text of less weight: labels, captions.
        line: Borders and grid lines.
        track: Background of a bar that is not full, and of code.
        accent: Bars, curves and numbers that stand out.
        warn: Text of a warning.
        warn_page: Background of a warning.
        warn_line: Border of a warning.
        bad: Text and border of an error.
        kept: Shade over the slices that the network was given; with opacity.
    """

    page: str
    panel: str
    ink: str
    soft: str
    line: str
    track: str
    accent: str
    warn: str
    warn_page: str
    warn_line: str
    bad: str
    kept: str

    def css(self) -> str:
        """The theme as CSS variables, `warn_page` as `--warn-page`."""
        return " ".join(
            f"--{field.name.replace('_', '-')}: {getattr(self, field.name)};"
            for field in fields(self)
        )


LIGHT = Theme(
    page="#f3f4f6",
    panel="#ffffff",
    ink="#16202b",
    soft="#5b6876",
    line="#d6dbe1",
    track="#e7eaee",
    accent="#0b64a8",
    warn="#8a4b00",
    warn_page="#fff3dc",
    warn_line="#e8a33d",
    bad="#a0154c",
    kept="#0b64a81c",
)

DARK = Theme(
    page="#0e1216",
    panel="#171d23",
    ink="#e8edf2",
    soft="#9aa7b4",
    line="#2c353e",
    track="#27303a",
    accent="#58b0f0",
    warn="#ffcf87",
    warn_page="#2c2212",
    warn_line="#b97a1c",
    bad="#ff8fb3",
    kept="#58b0f026",
)

#: Black on white, with borders instead of backgrounds.
PRINT = replace(
    LIGHT,
    page="#ffffff",
    ink="#000000",
    soft="#444444",
    line="#bbbbbb",
    warn="#6b3a00",
    warn_page="#ffffff",
    warn_line="#b97a1c",
)

#: The montage: the dark theme with a little more contrast, since a slide is seen from afar.
SLIDE = replace(DARK, page="#0d1115", ink="#eef2f5", soft="#9daab6")

#: A bar of the slide that is not the answer.
SLIDE_BAR = "#6d7a86"

#: Severity classes 0–4, from blue to dark purple, each darker than the one before: background, and
#: the text on it.
SEVERITY = (
    ("#3f74a8", "#ffffff"),
    ("#f2c14e", "#231a00"),
    ("#ee8a2a", "#231200"),
    ("#c6491c", "#ffffff"),
    ("#6d1a52", "#ffffff"),
)

#: Lobe scores 0–5, one hue that darkens with each score, unlike the classes': background, and the
#: text on it.
LOBE_SCORE = (
    ("#eef3f2", "#16202b"),
    ("#c5dfdb", "#16202b"),
    ("#93c5be", "#10201e"),
    ("#579f98", "#08110f"),
    ("#27706d", "#ffffff"),
    ("#0b4244", "#ffffff"),
)

#: Severity classes 0–4 in figures.
SEVERITY_FILL = tuple(background for background, _ in SEVERITY)

#: No and yes in figures, in the colours of the first and the fourth severity class.
BINARY_FILL = (SEVERITY_FILL[0], SEVERITY_FILL[3])

#: Runs and folds, apart from each other for every kind of colour vision (Okabe and Ito, without
#: yellow).
RUNS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")

#: Letters of orientation and marked slices on a picture of the scan.
ON_PICTURE = "#ffe9a8"

#: The lung contour, sky blue: apart from grey and from every colour of the attention map, for every
#: kind of colour vision.
CONTOUR = "#4ac9ff"

#: The contour of diseased lung, light green: lighter than the lungs' contour, in no colour of the
#: attention map; its dashes tell it apart where colours do not.
LESION = "#b7ff8a"


def rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue, 0–255, of a colour in the form "#rrggbb"."""
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red, green, blue
