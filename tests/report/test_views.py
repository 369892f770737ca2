"""What is chosen to be shown."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from tf_covid.lung_voxels import LungVoxels
from tf_covid.report import headfeet, html, text
from tf_covid.report.views import choose, choose_slices, lung_box
from tf_covid.result import Severity
from tf_covid.severity import LABELS


def peak(depth: int, at: int, width: float) -> np.ndarray:
    values: np.ndarray = np.exp(-(((np.arange(depth) - at) / width) ** 2))
    return values


def test_the_highest_of_both_are_among_the_slices() -> None:
    chosen = choose_slices(peak(100, 70, 9), peak(100, 30, 9), np.arange(10, 90), 8)
    why = {one.reason: one.index for one in chosen}
    assert why["highest attention"] == 70
    assert why["largest involved area"] == 30


@pytest.mark.parametrize("first", [0, 10])
@pytest.mark.parametrize("depth", [1, 5, 8, 40, 300])
@pytest.mark.parametrize("attention", [0.0, 1.0])
def test_slices_are_kept_ones_in_order_and_apart(first: int, depth: int, attention: float) -> None:
    candidates = np.arange(first, first + depth)
    size = first + depth + 5
    chosen = [
        one.index
        for one in choose_slices(attention * peak(size, 20, 4), np.zeros(size), candidates, 8)
    ]
    assert len(chosen) == min(8, depth)
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(candidates.tolist())
    if depth >= 40:
        assert np.diff(chosen).min() >= depth // 20
        assert chosen[-1] - chosen[0] > depth / 2


def test_the_planes_go_through_the_attention_else_the_involvement(make_case: Any) -> None:
    result, scan = make_case()
    views = choose(result, scan)
    assert views.position == (24, 36, 20)
    assert "attention" in views.position_reason
    result, scan = make_case(attention=False)
    views = choose(result, scan)
    assert "involved" in views.position_reason
    assert result.maps.lungs[views.position] == 1
    assert result.lungs.involvement_per_slice[views.position[0]] > 0


def healthy(case: Any, class_index: int = 0) -> tuple[Any, Any]:
    """The case with half of a percent involved, and of this class."""
    result, scan = case
    per_slice = tuple(min(value, 4.0) for value in result.lungs.involvement_per_slice)
    lungs = dataclasses.replace(
        result.lungs, involvement_percent=0.5, involvement_per_slice=per_slice
    )
    found = Severity(class_index, LABELS[class_index], (0.2,) * 5, 0.4)
    return dataclasses.replace(result, lungs=lungs, severity=found), scan


def test_no_slice_of_a_healthy_scan_is_called_involved(make_case: Any) -> None:
    result, scan = healthy(make_case())
    views = choose(result, scan)
    reasons = [shown.reason for shown in views.slices]
    assert reasons.count("by position") == 7
    assert reasons.count("highest attention") == 1
    assert views.position_reason == "the middle of the larger lung"
    assert "which need not mean disease" in text.slices_choice(views)
    assert text.slices_heading(result) == "Axial slices, by position"
    without, scan = healthy(make_case(attention=False))
    assert {shown.reason for shown in choose(without, scan).slices} == {"by position"}


def test_a_mild_answer_keeps_its_attention(make_case: Any) -> None:
    views = choose(*healthy(make_case(), class_index=1))
    reasons = {shown.reason for shown in views.slices}
    assert reasons == {"highest attention", "high attention", "by position"}
    assert "attention" in views.position_reason


def test_slices_with_next_to_nothing_are_not_called_involved(make_case: Any) -> None:
    result, scan = make_case(attention=False)
    percent = np.zeros(40)
    percent[10:30], percent[20] = 0.9, 30.0
    lungs = dataclasses.replace(result.lungs, involvement_per_slice=tuple(percent))
    views = choose(dataclasses.replace(result, lungs=lungs), scan)
    assert [s.index for s in views.slices if s.reason != "by position"] == [20]


def test_slices_without_colour_are_not_called_attention(make_case: Any) -> None:
    result, scan = make_case()
    shown = {
        s.index: s.reason for s in choose(result, scan).slices if s.reason.endswith("attention")
    }
    assert shown
    coloured = result.maps.attention >= 128
    assert all((coloured[index] & (result.maps.lungs[index] > 0)).any() for index in shown)


def test_the_middle_row_is_that_of_the_lungs(make_case: Any) -> None:
    result, scan = make_case()
    assert choose(result, scan).middle_row == 30
    nothing = dataclasses.replace(
        result.maps, voxels=LungVoxels.of(np.zeros_like(result.maps.lungs))
    )
    assert choose(dataclasses.replace(result, maps=nothing), scan).middle_row == 30


def test_attention_outside_the_lungs_does_not_choose_the_position(make_case: Any) -> None:
    result, scan = make_case()
    attention = np.zeros_like(result.maps.attention)
    attention[2, 2, 2], attention[20, 30, 54] = 255, 140
    result = dataclasses.replace(result, maps=dataclasses.replace(result.maps, attention=attention))
    assert choose(result, scan).position == (20, 30, 54)


def test_the_box_holds_the_lungs_and_stays_in_the_volume() -> None:
    lungs = np.zeros((50, 80, 90), np.uint8)
    lungs[10:30, 20:60, 1:70] = 1
    box = lung_box(lungs, (5.0, 2.0, 2.0))
    assert box == (slice(5, 35), slice(10, 70), slice(0, 80))
    assert lung_box(np.zeros_like(lungs), (5.0, 2.0, 2.0)) == (
        slice(0, 50),
        slice(0, 80),
        slice(0, 90),
    )


@pytest.mark.parametrize(
    ("highest", "top"), [(0.0, 10.0), (10.0, 10.0), (10.1, 20.0), (34.0, 50.0), (100.0, 100.0)]
)
def test_axes_end_at_round_numbers(highest: float, top: float) -> None:
    assert headfeet.nice_top(highest, 10.0) == top


def test_the_curves_lie_beside_the_coronal_view(make_case: Any) -> None:
    result, scan = make_case()
    views = choose(result, scan)
    figure = headfeet.layout(result, scan, views, True)
    assert not any(curve.cuts for curve in figure.curves)
    first, last = views.box[0].start, views.box[0].stop
    step = figure.height / (last - first)
    assert figure.height == pytest.approx((last - first) * scan.spacing_mm[0] * figure.px_per_mm)
    kept = np.flatnonzero(result.maps.kept)
    assert figure.kept == (pytest.approx(((kept[0] - first) * step, len(kept) * step)),)
    assert [mark for mark, _ in figure.marks] == pytest.approx(
        [(s.index - first + 0.5) * step for s in views.slices]
    )
    assert figure.width <= headfeet.WIDTH
    assert figure.width == pytest.approx(
        2 * (headfeet.AXIS + figure.picture_width + figure.curve_width) + 3 * headfeet.GAP
    )


def test_where_the_curve_is_cut_off_its_value_is_said(make_case: Any) -> None:
    result, scan = make_case()
    kept = np.flatnonzero(result.maps.kept)
    percent = np.full(40, 4.0)
    percent[kept[-1] + 1 : kept[-1] + 4] = 52.0, 79.0, 60.0
    percent[kept[0] - 1] = 33.0
    lungs = dataclasses.replace(result.lungs, involvement_per_slice=tuple(percent))
    result = dataclasses.replace(result, lungs=lungs)
    assert headfeet.cut_off(result, scan) == [
        (kept[0] - 1, kept[0] - 1, 33.0),
        (kept[-1] + 1, kept[-1] + 3, 79.0),
    ]
    assert headfeet.involvement(result, scan).max() == 10.0
    figure = headfeet.layout(result, scan, choose(result, scan), True)
    involved, attention = figure.curves
    first = choose(result, scan).box[0].start
    step = figure.height / len(range(*choose(result, scan).box[0].indices(40)))
    assert [text for _, text in involved.cuts] == ["33 %", "79 %"]
    assert involved.cuts[1][0] == pytest.approx((kept[-1] + 2.5 - first) * step)
    assert attention.cuts == ()
    page = html.render(result, scan)
    assert ">79 %</text>" in page
    assert "An arrow marks slices" in page
    assert "An arrow marks slices" not in html.render(*make_case())
