"""The drawing of the lungs by lobe: shapes that share borders, sides, and an honest legend."""

from __future__ import annotations

import itertools
import re

import pytest

from tf_covid.lobes import HEALTHY_PERCENT
from tf_covid.page import palette
from tf_covid.report.lobe_drawing import SIZE, draw_lobes, legend
from tf_covid.result import Lobe
from tf_covid.severity import LOBES, lobe_score

FIVE = tuple(Lobe(name, 900.0, 10.0, 2) for name in LOBES)


def nodes(path: str) -> set[tuple[int, int]]:
    """The ends of the curves of an SVG path of M and C commands."""
    numbers = [
        tuple(int(number) for number in re.findall(r"\d+", part))
        for part in re.findall(r"[MC][^MCZ]*", path)
    ]
    return {(part[-2], part[-1]) for part in numbers}


def test_neighbours_share_their_fissures_and_lungs_do_not_touch() -> None:
    corners = {lobe.name: nodes(lobe.path) for lobe in draw_lobes(FIVE)}
    for one, other in itertools.combinations(LOBES, 2):
        shared = corners[one] & corners[other]
        assert bool(shared) == (one.split()[0] == other.split()[0]), (one, other)


def test_the_right_is_at_the_left_and_upper_is_up() -> None:
    upper_right, middle, lower_right, upper_left, lower_left = draw_lobes(FIVE)
    for lobe in (upper_right, middle, lower_right):
        assert max(x for x, _ in nodes(lobe.path)) < SIZE[0] / 2
    for lobe in (upper_left, lower_left):
        assert min(x for x, _ in nodes(lobe.path)) > SIZE[0] / 2
    assert upper_right.label[1] < middle.label[1] < lower_right.label[1]
    assert upper_left.label[1] < lower_left.label[1]
    for lobe in draw_lobes(FIVE):
        assert all(0 <= x <= SIZE[0] and 0 <= y <= SIZE[1] for x, y in nodes(lobe.path))


def test_a_lobe_without_a_score_has_a_dash() -> None:
    lobes = (Lobe(LOBES[0], 4.0, None, None), *FIVE[1:])
    first, second, *_ = draw_lobes(lobes)
    assert (first.symbol, first.score) == ("–", None)
    assert (second.symbol, second.score) == ("2", 2)


def test_other_lobes_are_not_drawn() -> None:
    with pytest.raises(ValueError, match="in their order"):
        draw_lobes(FIVE[::-1])


def test_the_legend_says_what_the_scale_does() -> None:
    texts = dict(legend())
    assert list(texts) == list(range(6)) == list(range(len(palette.LOBE_SCORE)))
    assert texts[0] == f"below {HEALTHY_PERCENT:g} %"
    for score in range(1, 6):
        bound = float(re.findall(r"\d+", texts[score])[-1])
        inside = {1: -0.01, 5: 0.01}.get(score, 0.0)
        assert lobe_score(bound + inside) == score
        assert lobe_score(bound + (0.01 if score < 5 else 0.0)) != score
