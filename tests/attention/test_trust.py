"""Figures of trust, each against a case that was worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from tf_covid.attention.trust import brightest, centre_of_lung, energy_inside, pointing_game

SPACING = (5.0, 1.0, 2.0)


def empty(dtype: type = np.uint8) -> np.ndarray:
    return np.zeros((4, 20, 20), dtype)


def test_the_maximum_within_a_lesion_is_a_hit() -> None:
    attention, lesions = empty(), empty(bool)
    attention[1, 10, 10], attention[1, 3, 3] = 255, 254
    lesions[1, 10, 10] = True
    assert brightest(attention, SPACING) == (1, 10, 10)
    assert pointing_game(attention, lesions, SPACING, tolerance_mm=0.0)


@pytest.mark.parametrize(
    ("lesion", "distance_mm"),
    [
        ((3, 10, 10), 10.0),
        ((1, 2, 10), 8.0),
        ((1, 10, 14), 8.0),
        ((2, 10, 16), 13.0),
    ],  # the last: 5 and 12 → 13
)
def test_the_tolerance_is_a_distance_in_millimetres(
    lesion: tuple[int, int, int], distance_mm: float
) -> None:
    attention, lesions = empty(), empty(bool)
    attention[1, 10, 10] = 255
    lesions[lesion] = True
    assert pointing_game(attention, lesions, SPACING, distance_mm)
    assert not pointing_game(attention, lesions, SPACING, distance_mm - 0.01)


def test_of_several_maxima_the_one_nearest_to_their_centre_points() -> None:
    attention = empty()
    attention[0, 0, [0, 1, 5]] = 255  # their centre is column 2
    assert brightest(attention, SPACING) == (0, 0, 1)
    lesions = empty(bool)
    lesions[0, 0, 5] = True  # 4 columns of 2 mm from column 1
    assert pointing_game(attention, lesions, SPACING, 8.0)
    assert not pointing_game(attention, lesions, SPACING, 7.0)


def test_nothing_to_point_with_or_at_is_a_miss() -> None:
    attention, lesions = empty(), empty(bool)
    lesions[1, 1, 1] = True
    assert brightest(attention, SPACING) is None
    assert not pointing_game(attention, lesions, SPACING)
    attention[1, 1, 1] = 255
    assert not pointing_game(attention, np.zeros_like(lesions), SPACING)


def test_energy_is_the_share_of_the_sum() -> None:
    attention, lesions = empty(), empty(bool)
    attention[0, 0, :4] = 255, 200, 100, 45  # 600 in all; uint8 must not run over
    lesions[0, 0, 1:3] = True
    assert energy_inside(attention, lesions) == pytest.approx(300 / 600)
    assert energy_inside(empty(), lesions) == 0.0


def test_an_even_map_has_the_energy_of_the_lesions_share() -> None:
    lungs, lesions = empty(), empty(bool)
    lungs[1:3, 5:15, 5:15] = 1  # 200 voxels
    lesions[1, 5:10, 5:15] = True  # 50 of them
    assert energy_inside(lungs * 255, lesions) == pytest.approx(0.25)


def test_the_centre_of_the_lung_is_the_deepest_point_of_the_larger_one() -> None:
    lungs = np.zeros((9, 9, 24), np.uint8)
    lungs[1:8, 1:8, 1:8] = 1  # 343 voxels around (4, 4, 4): four from the first voxel outside
    lungs[2:7, 2:7, 12:23] = 2  # 275 voxels, three deep
    found = centre_of_lung(lungs)
    assert found.dtype == np.uint8
    assert found[4, 4, 4] == 255
    assert np.argwhere(found == 255).tolist() == [[4, 4, 4]]
    assert found[1, 4, 4] == round(255 / 4)
    assert found[2, 4, 4] == round(255 / 2)
    assert not found[lungs != 1].any()


def test_the_depth_is_measured_in_millimetres_and_ends_at_the_border_of_the_scan() -> None:
    lungs = np.ones((3, 5, 7), bool)
    found = centre_of_lung(lungs, (10.0, 2.0, 1.0))
    # 20 mm to the end of the slices, 6 mm to that of the rows, 4 to that of the columns: the
    # columns decide.
    assert found[1, 2].tolist() == [64, 128, 191, 255, 191, 128, 64]
    assert (found == found[1]).all()


def test_without_lungs_the_map_is_empty() -> None:
    assert not centre_of_lung(empty()).any()
