"""Lobes on the scan: exact planes, sums, sides, islands, scores and fluid; by hand-made lungs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tf_covid.lobes import (
    FLUID,
    HEALTHY_PERCENT,
    LEAST_LOBE_ML,
    LEFT,
    RIGHT,
    ct_score_read,
    effusion_ml,
    label_lobes,
    lobes_within,
    more_right,
)
from tf_covid.lungs import read_lungs
from tf_covid.result import Lobe
from tf_covid.severity import LOBES

SHAPE, GRID, COARSE = (24, 96, 120), (48, 60), (12, 16, 20)
KEEP = np.ones(SHAPE[0], bool)
SPACING = (10.0, 2.5, 2.5)
R = (slice(2, 22), slice(20, 80), slice(10, 50))
L = (slice(2, 22), slice(20, 80), slice(70, 110))


def body(*lungs, hu=-850):
    """HU (D, H, W) of soft tissue with boxes of lung, and the probability on the coarse grid."""
    volume = np.full(SHAPE, 40, np.int16)
    probability = np.zeros((SHAPE[0], *GRID), np.float32)
    for slices, rows, columns in lungs:
        volume[slices, rows, columns] = hu
        coarse = [slice(part.start // 2, part.stop // 2) for part in (rows, columns)]
        probability[slices, coarse[0], coarse[1]] = 1
    return volume, probability


def centres(size, cells):
    """Centres of `cells` cells over an axis of `size` voxels, in voxels from its edge."""
    return (np.arange(cells) + 0.5) * size / cells


def ramps(borders=(8.0, 16.0), left_border=11.0, middle=60.0):
    """Lobes whose borders are level planes at known depths, in voxels from the head's edge."""
    depth = centres(SHAPE[0], COARSE[0])[:, None, None]
    right = (centres(SHAPE[2], COARSE[2]) < middle)[None, None, :]
    field = np.zeros((*COARSE, 5), np.float32)

    def above(border):
        return np.clip(0.5 + (border - depth) / 8.0, 0, 1)

    upper, not_lower = above(borders[0]), above(borders[1])
    field[..., 0] = np.where(right, upper, 0)
    field[..., 2] = np.where(right, 1 - not_lower, 0)
    field[..., 1] = np.where(right, not_lower - upper, 0)
    field[..., 3] = np.where(right, 0, above(left_border))
    field[..., 4] = np.where(right, 0, 1 - above(left_border))
    return field


def read(lobes=None, lungs=(R, L), **more):
    hu, probability = body(*lungs)
    return read_lungs(
        hu, probability, KEEP, SPACING, lobes=ramps() if lobes is None else lobes, **more
    )


def test_lobes_fill_the_lungs_exactly_and_their_volumes_add_up():
    reading = read()
    labels, lobes = reading.voxels.lobes, reading.lobes
    assert labels.dtype == np.uint8
    assert labels.shape == SHAPE
    np.testing.assert_array_equal(labels > 0, reading.voxels.sides > 0)
    assert set(np.unique(labels[reading.voxels.sides == RIGHT])) <= {1, 2, 3}
    assert set(np.unique(labels[reading.voxels.sides == LEFT])) <= {4, 5}
    assert [lobe.name for lobe in lobes] == list(LOBES)
    assert sum(lobe.volume_ml for lobe in lobes[:3]) == pytest.approx(reading.lungs.right_ml)
    assert sum(lobe.volume_ml for lobe in lobes[3:]) == pytest.approx(reading.lungs.left_ml)


@pytest.mark.parametrize("border", [6.0, 9.0, 11.0, 17.0])
def test_two_lobes_part_at_the_plane_where_they_are_equally_probable(border):
    labels = read(ramps(left_border=border)).voxels.lobes[..., 70:110][:, 25:75, 5:-5]
    middles = np.arange(SHAPE[0]) + 0.5
    inside = (middles > 2) & (middles < 22)
    for depth in np.flatnonzero(inside):
        assert (labels[depth] == (4 if middles[depth] < border else 5)).all(), depth


def test_a_slanted_plane_is_smooth_and_not_made_of_coarse_cells():
    field = np.zeros((*COARSE, 5), np.float32)
    rows = centres(SHAPE[1], COARSE[1])[None, :, None]
    depth = centres(SHAPE[0], COARSE[0])[:, None, None] * 4.0
    excess = np.broadcast_to((rows - depth) / 400.0, COARSE)
    right = centres(SHAPE[2], COARSE[2]) < 60
    field[..., 2], field[..., 0] = 0.5 + excess, 0.5 - excess
    field[..., 4], field[..., 3] = 0.5 + excess, 0.5 - excess
    field[..., :3] *= right[:, None]
    field[..., 3:] *= ~right[:, None]
    reading = read(field)
    depth, rows, _ = np.nonzero(reading.voxels.sides)
    ahead = (rows + 0.5) < (depth + 0.5) * 4.0
    far = np.abs((rows + 0.5) - (depth + 0.5) * 4.0) > 0.25
    upper = np.isin(reading.voxels.lobes[reading.voxels.sides > 0], (1, 4))
    np.testing.assert_array_equal(upper[far], ahead[far])


def test_the_lobe_network_tells_right_from_left_where_the_middle_of_the_body_does_not():
    # Both lungs lie on the right of the body's middle: a shifted chest, one large effusion.
    shifted = (R[0], R[1], slice(2, 28)), (R[0], R[1], slice(32, 56))
    by_network = read(ramps(middle=30.0), shifted)
    assert (by_network.voxels.sides[5:15, 25:75, 4:26] == RIGHT).all()
    assert (by_network.voxels.sides[5:15, 25:75, 34:54] == LEFT).all()
    hu, probability = body(*shifted)
    assert read_lungs(hu, probability, KEEP, SPACING).lungs.left_ml == 0


def test_touching_lungs_stay_apart_with_a_lobe_network():
    bridge = (slice(9, 11), slice(20, 24), slice(48, 72))
    labels = read(lungs=(R, L, bridge)).voxels.sides
    assert (labels[:, 30:70, 12:48][2:22] == RIGHT).all()
    assert (labels[:, 30:70, 72:108][2:22] == LEFT).all()


def test_a_lobe_of_the_other_lung_is_never_given():
    wrong = ramps()
    wrong[5:7, 6:8, 3:5] = (0.05, 0.1, 0.05, 0.8, 0)  # "left upper" within the right lung
    labels = read(wrong).voxels.lobes
    assert set(np.unique(labels[..., :60])) == {0, 1, 2, 3}


def test_a_small_island_belongs_to_the_lobe_around_it():
    field, clean = ramps(borders=(4.0, 10.0)), ramps(borders=(4.0, 10.0))
    field[8, 8, 5, :3] = (0.9, 0.05, 0.05)  # one cell of upper lobe deep in the lower one
    assert (ramps(borders=(4.0, 10.0))[8, 8, 5].argmax()) == 2
    reading = read(field)
    assert not (reading.voxels.lobes[14:] == 1).any()
    np.testing.assert_array_equal(reading.voxels.lobes, read(clean).voxels.lobes)


def test_where_the_network_sees_no_lung_the_nearest_cell_speaks():
    field = ramps()
    field[:, :, :4] = 0  # the outer half of the right lung
    reading = read(field)
    np.testing.assert_array_equal(reading.voxels.lobes, read().voxels.lobes)


def test_a_cell_that_speaks_is_found_however_far_it_is():
    """Farther than the margin around a lung that is searched first."""
    field = np.zeros((30, 30, 30, 5), np.float32)
    field[2, 2, 2, 1] = 1.0
    sides = np.zeros((30, 30, 30), np.uint8)
    sides[25:28, 25:28, 25:28] = RIGHT
    labels = label_lobes(lobes_within(field, sides), sides)
    np.testing.assert_array_equal(labels, np.where(sides > 0, 2, 0))
    right_half = more_right(field, sides > 0)
    assert right_half[sides > 0].all()


def test_a_lung_that_the_network_does_not_see_at_all_gives_no_lobes():
    field = ramps()
    field[..., 3:] = 0
    sides = np.zeros((SHAPE[0], *GRID), np.uint8)
    sides[:, :, 5:20] = LEFT
    assert lobes_within(field, sides) is None
    reading = read(np.zeros_like(field))
    assert reading.voxels.lobes is reading.lobes is None
    assert reading.lungs.right_ml == pytest.approx(reading.lungs.left_ml, rel=0.05)


def test_lobes_are_cut_to_a_users_mask():
    mask = np.zeros(SHAPE, bool)
    mask[R] = mask[L] = True
    mask[:, 50:] = False
    mask[5, 30, 30] = False
    hu, _ = body(R, L)
    probability = mask[:, ::2, ::2].astype(np.float32)
    reading = read_lungs(hu, probability, KEEP, SPACING, mask, lobes=ramps())
    np.testing.assert_array_equal(reading.voxels.lobes > 0, mask)
    voxel_ml = float(np.prod(SPACING)) / 1000
    assert sum(lobe.volume_ml for lobe in reading.lobes) == pytest.approx(mask.sum() * voxel_ml)


def test_each_lobe_has_the_mean_probability_within_it():
    disease = np.zeros((SHAPE[0], *GRID), np.float32)
    disease[:, :, :30] = np.where(np.arange(SHAPE[0]) < 8, 0.6, 0.2)[:, None, None]
    disease[:, :, 30:] = 0.004
    reading = read(disease=disease)
    upper, middle, lower, *left = reading.lobes
    assert upper.involvement_percent == pytest.approx(60)
    assert upper.score == 4
    for lobe in (middle, lower):
        assert lobe.involvement_percent == pytest.approx(20)
        assert lobe.score == 2
    for lobe in left:
        assert lobe.involvement_percent == pytest.approx(0.4)
        assert lobe.score == 0, "below what a healthy lobe has"
    assert ct_score_read(reading.lobes) == 8
    # Lobe by lobe and as a whole: the same cells are counted.
    whole = sum(lobe.involvement_percent * lobe.volume_ml for lobe in reading.lobes)
    whole /= sum(lobe.volume_ml for lobe in reading.lobes)
    assert reading.lungs.involvement_percent == pytest.approx(whole, rel=0.02)


def test_density_is_read_lobe_by_lobe_where_no_model_finds_disease():
    hu, probability = body(R, L)
    hu[2:11, 20:80, 70:110] = -300
    lobes = read_lungs(hu, probability, KEEP, SPACING, lobes=ramps()).lobes
    assert lobes[3].involvement_percent > 90
    assert lobes[3].score == 5
    assert [lobe.score for lobe in lobes[:3]] == [0, 0, 0]


def test_a_lobe_that_is_hardly_there_has_no_score_and_the_sum_none():
    reading = read(ramps(borders=(2.0, 16.0)))
    upper = reading.lobes[0]
    assert upper.volume_ml < 30
    assert upper.involvement_percent is None
    assert upper.score is None
    assert ct_score_read(reading.lobes) is None


def test_the_score_read_is_the_sum_of_five():
    lobes = [Lobe(name, 900.0, 10.0, score) for name, score in zip(LOBES, range(1, 6), strict=True)]
    assert ct_score_read(lobes) == 15
    assert ct_score_read(lobes[:4]) is None
    assert ct_score_read(None) is None


def test_fluid_is_counted_outside_the_lungs():
    effusion = np.full(COARSE, 2 * FLUID - 1, np.float32)  # the border lies halfway
    effusion[4:8, 12:16, 2:8] = 1.0  # rows 72–96, columns 12–48 of the scan, slices 8–16
    hu, probability = body(R, L)
    lungs = read_lungs(hu, probability, KEEP, SPACING, effusion=effusion).lungs
    outside = 8 * 16 * 36 * np.prod(SPACING) / 1000  # rows 80–96
    assert lungs.effusion_ml == pytest.approx(outside, rel=0.06)
    assert read().lungs.effusion_ml is None
    assert read(effusion=np.zeros(COARSE)).lungs.effusion_ml is None, "a network without fluid"
    assert read(effusion=np.full(COARSE, 0.6)).lungs.effusion_ml == 0, "no fluid is sure"
    everywhere = effusion_ml(np.ones(COARSE, np.float32), probability > 0.5, (10.0, 5.0, 5.0))
    assert everywhere == pytest.approx(float((probability <= 0.5).sum()) * 0.25)
    assert effusion_ml(np.zeros(COARSE), probability > 0.5, (10.0, 5.0, 5.0)) == 0


def test_lobes_of_another_count_are_refused():
    with pytest.raises(ValueError, match=r"must be \(D', h', w', 5\)"):
        read(np.zeros((*COARSE, 6), np.float32))


def test_no_lung_at_all_has_five_lobes_without_anything():
    hu, probability = body()
    reading = read_lungs(hu, probability, ~KEEP, SPACING, lobes=ramps(), effusion=np.zeros(COARSE))
    assert [lobe.volume_ml for lobe in reading.lobes] == [0] * 5
    assert ct_score_read(reading.lobes) is None
    assert not reading.voxels.lobes.any()


def test_labels_on_a_coarser_grid_than_the_networks():
    """A scan of few slices: the fields are averaged, and no slice is left out."""
    sides = np.full((4, 8, 10), RIGHT, np.uint8)
    labels = label_lobes(lobes_within(ramps(), sides), sides)
    assert set(np.unique(labels[0])) == {1}
    assert set(np.unique(labels[3])) == {3}


def test_the_docs_state_the_thresholds():
    text = (Path(__file__).parents[1] / "docs" / "outputs.md").read_text("utf-8")
    assert f"is 0 below {HEALTHY_PERCENT:g} %" in text
    assert f"less than {LEAST_LOBE_ML:g} ml" in text
