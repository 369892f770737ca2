"""The lungs by lobe, as radiologists' forms draw them: seen from the front, the right at the left.

A scheme, not this patient's shape. `report.html.j2` draws it as inline SVG.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tf_covid.severity import LOBES

if TYPE_CHECKING:
    from tf_covid.result import Lobe

#: Width and height of the drawing, in SVG units.
SIZE = (360, 276)

#: Outline of each lobe, and where its score stands, in the order of `severity.LOBES`. Neighbours
#: share their fissures' curves.
_OUTLINES = (
    (
        "M112 14C134 12 148 44 152 78C154 94 150 108 150 122C110 118 66 124 27 138"
        "C34 80 66 22 112 14Z",
        (104, 84),
    ),
    (
        "M150 122C152 150 160 190 162 224C150 208 136 200 118 198C96 160 62 142 27 138"
        "C66 124 110 118 150 122Z",
        (122, 160),
    ),
    (
        "M27 138C62 142 96 160 118 198C80 196 44 218 20 262C14 220 18 180 27 138Z",
        (57, 190),
    ),
    (
        "M248 14C294 22 326 80 333 126C300 134 268 164 246 204C240 210 234 216 228 224"
        "C246 196 248 160 224 136C210 122 207 98 208 78C212 44 226 12 248 14Z",
        (258, 96),
    ),
    (
        "M333 126C342 180 346 220 340 262C316 216 280 196 246 204C268 164 300 134 333 126Z",
        (305, 186),
    ),
)

#: Involvement that the scores 1–5 stand for, as `severity.lobe_score` has it.
_RANGES = ("below 5 %", "5 to 25 %", "up to 50 %", "up to 75 %", "above 75 %")


@dataclass(frozen=True)
class DrawnLobe:
    """One lobe of the drawing.

    Args:
        name: Name of the lobe, one of `severity.LOBES`.
        path: SVG path of its outline.
        label: (x, y) of the middle of its score.
        symbol: Score as text; a dash where the lobe has none.
        score: Score 0–5, for the colour; None where the lobe has none.
    """

    name: str
    path: str
    label: tuple[int, int]
    symbol: str
    score: int | None


def draw_lobes(lobes: tuple[Lobe, ...]) -> list[DrawnLobe]:
    """The five lobes to draw.

    Raises:
        ValueError: If they are not the five lobes in the order of `severity.LOBES`.
    """
    if tuple(lobe.name for lobe in lobes) != LOBES:
        raise ValueError(f"the five lobes are drawn in their order, not {lobes}")
    return [
        DrawnLobe(
            lobe.name, path, label, "–" if lobe.score is None else str(lobe.score), lobe.score
        )
        for lobe, (path, label) in zip(lobes, _OUTLINES, strict=True)
    ]


def legend() -> list[tuple[int, str]]:
    """(score, involvement that it stands for) of each lobe score."""
    from tf_covid.lobes import HEALTHY_PERCENT

    return list(enumerate((f"below {HEALTHY_PERCENT:g} %", *_RANGES)))
