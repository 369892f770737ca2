"""Pictures: orientation, proportions, the window, and where mask and attention are drawn."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from tf_covid.report import pictures
from tf_covid.report.views import Box

WHOLE: Box = (slice(None), slice(None), slice(None))


def marked(case: Any) -> Any:
    """The case with metal in the patient's right, anterior, upper corner."""
    result, scan = case
    hu = np.full_like(scan.hu, -1000)
    hu[:8, :12, :15] = 2000
    return result, dataclasses.replace(scan, hu=hu)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_right_is_left_anterior_and_head_are_up(axis: int, make_case: Any) -> None:
    result, scan = marked(make_case())
    picture = pictures.plain(pictures.cut(scan, result.maps, axis, 3, WHOLE), 2.0)
    bright = np.asarray(picture) > 128
    rows, columns = np.nonzero(bright)
    # Axial: right at the left, anterior up. Coronal: right at the left, head up. Sagittal: anterior
    # left, head up.
    assert rows.max() < bright.shape[0] * 0.3
    assert columns.max() < bright.shape[1] * 0.3


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_proportions_are_those_of_the_body(axis: int, make_case: Any) -> None:
    result, scan = make_case()
    plane = pictures.cut(scan, result.maps, axis, 20, WHOLE)
    size_mm = [size * spacing for size, spacing in zip(scan.shape, scan.spacing_mm, strict=True)]
    del size_mm[axis]
    assert plane.size_mm == pytest.approx(size_mm)
    for draw in (pictures.plain, pictures.overlay):
        width, height = draw(plane, 1.5).size
        assert (height, width) == (round(size_mm[0] * 1.5), round(size_mm[1] * 1.5))


def test_the_lung_window_ends_at_black_and_white(make_case: Any) -> None:
    result, scan = make_case()
    plane = pictures.cut(scan, result.maps, 0, 0, WHOLE)
    for hu, grey in ((-2000, 0), (-1100, 0), (-400, 128), (300, 255), (3000, 255)):
        flat = dataclasses.replace(plane, hu=np.full_like(plane.hu, hu))
        assert np.unique(np.asarray(pictures.plain(flat, 1.0))).tolist() == [
            pytest.approx(grey, abs=1)
        ]


def test_coarse_voxels_are_enlarged_smoothly(make_case: Any) -> None:
    result, scan = make_case()
    picture = np.asarray(pictures.plain(pictures.cut(scan, result.maps, 1, 30, WHOLE), 2.0)).astype(
        int
    )
    # A voxel is 14 × 9 pixels here: squares would give steps of the full contrast between two
    # pixels.
    assert np.ptp(picture) > 150
    assert np.abs(np.diff(picture, axis=0)).max() < np.ptp(picture) / 3


def test_attention_and_contour_are_drawn_where_they_are(make_case: Any) -> None:
    result, scan = make_case()
    plane = pictures.cut(scan, result.maps, 0, 24, WHOLE)
    grey = np.asarray(pictures.plain(plane, 2.0), float)
    colour = np.asarray(pictures.overlay(plane, 2.0), float)
    change = np.abs(colour - grey[..., None]).max(axis=2)
    row, column = int(36.5 * 9), int(20.5 * 9)
    assert change[row, column] > 60, "the middle of the attention is coloured"
    assert change[row, column + 40 * 9] < 2, "the other side is not"
    # On the contour of the left lung, where there is no attention: sky blue, and only there.
    inside = np.flatnonzero((plane.lungs == 2).any(axis=0))
    edge = slice(int(inside[0] - 1) * 9, int(inside[0] + 2) * 9)
    blue = colour[int(30.5 * 9), edge, 2] - colour[int(30.5 * 9), edge, 0]
    assert blue.max() > 100
    assert (blue > 60).sum() <= 5


def test_touching_lungs_have_a_border_each() -> None:
    lungs = np.ones((20, 40), np.uint8)
    lungs[:, 20:] = 2
    plane = pictures.Plane(np.full((20, 40), -850, np.int16), lungs, None, (4.0, 4.0))
    colour = np.asarray(pictures.overlay(plane, 2.0), float)
    assert (colour[80, 150:170, 2] - colour[80, 150:170, 0]).max() > 100


def test_lobes_have_a_thinner_border_than_lungs() -> None:
    lungs = np.ones((40, 40), np.uint8)
    lobes = np.full((40, 40), 1, np.uint8)
    lobes[20:] = 3
    plane = pictures.Plane(np.full((40, 40), -850, np.int16), lungs, None, (4.0, 4.0), lobes)
    colour = np.asarray(pictures.overlay(plane, 2.0), float)
    blue = colour[:, 160, 2] - colour[:, 160, 0]
    assert 70 < blue[155:165].max() < 170
    assert 1 <= (blue > 60).sum() <= 3
    assert abs(int(blue.argmax()) - 160) <= 1
    plain = pictures.Plane(plane.hu, lungs, None, (4.0, 4.0))
    assert np.ptp(np.asarray(pictures.overlay(plain, 2.0), float)[100:200, 160]) == 0


def ring(grey: bool = False) -> np.ndarray:
    """Brightness, or green less red, along the border of a round lesion."""
    rows, columns = np.indices((60, 60))
    lesions = ((rows - 30) ** 2 + (columns - 30) ** 2 < 15**2).astype(np.uint8)
    hu = np.full((60, 60), -500, np.int16)
    plane = pictures.Plane(hu, np.zeros_like(lesions), None, (2.0, 2.0), lesions=lesions)
    colour = np.asarray(pictures.overlay(plane, 2.0), float)
    angle = np.linspace(0, 2 * np.pi, 1000)
    # Voxels are 4 pixels wide; the border lies at 15 voxels but for the stairs of the mask.
    at = np.round(122 + 59 * np.stack([np.sin(angle), np.cos(angle)])).astype(int)
    line = colour[at[0], at[1]]
    return line.mean(axis=1) if grey else line[:, 1] - line[:, 0]


def test_diseased_lung_is_outlined_in_dashes_that_show_in_grey() -> None:
    green = ring() > 30
    dashes = np.count_nonzero(np.diff(green.astype(int)) == 1)
    # 2π · 59 pixels hold 34 dashes and gaps of 11 pixels, and the stairs of the mask some more.
    assert 28 <= dashes <= 50
    light = ring(grey=True)
    assert np.percentile(light, 95) - np.percentile(light, 5) > 90, "light dashes on a dark line"


def test_no_disease_draws_nothing() -> None:
    hu = np.full((30, 30), -850, np.int16)
    lungs = np.ones((30, 30), np.uint8)
    without = pictures.Plane(hu, lungs, None, (2.0, 2.0))
    none_found = dataclasses.replace(without, lesions=np.zeros_like(lungs))
    assert pictures.overlay(none_found, 2.0).tobytes() == pictures.overlay(without, 2.0).tobytes()
    whole = dataclasses.replace(without, lesions=np.ones_like(lungs))
    assert pictures.overlay(whole, 2.0).size == (120, 120), "a line along the edge of the picture"


@pytest.mark.parametrize("px_per_mm", [0.1, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("voxels", [(0, 0), (20, 30), (np.arange(40), 7), (slice(None), 0)])
def test_disease_however_small_is_a_picture(voxels: Any, px_per_mm: float) -> None:
    hu = np.full((40, 60), -850, np.int16)
    lesions = np.zeros(hu.shape, np.uint8)
    lesions[voxels] = 1
    plane = pictures.Plane(hu, np.ones_like(lesions), None, (1.0, 0.7), lesions=lesions)
    assert pictures.overlay(plane, px_per_mm).size[0] == max(1, round(42 * px_per_mm))


def test_attention_colours_grow_lighter() -> None:
    """Readable without colour vision and on a grey print."""
    light = pictures.attention_scale_rgb(24) @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(light) > 0).all()


def test_attention_is_coloured_from_half_of_the_maximum() -> None:
    _, opacity = pictures.attention_colours()
    assert not opacity[:128].any()
    assert opacity[128] > 0.25, "colour has an edge that can be seen"
    assert (np.diff(opacity[128:]) > 0).all()
