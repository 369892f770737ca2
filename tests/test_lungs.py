"""Lungs after the graph: pieces, sides, volumes, involvement; by hand-made bodies."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from tf_covid.lungs import LEFT, RIGHT, read_lungs

SHAPE, GRID = (20, 96, 120), (48, 60)
KEEP = np.ones(SHAPE[0], bool)


def body(*lungs, hu=-850):
    """HU (D, H, W) of soft tissue with boxes of lung, and the probability on the coarse grid."""
    volume = np.full(SHAPE, 40, np.int16)
    probability = np.zeros((SHAPE[0], *GRID), np.float32)
    for slices, rows, columns in lungs:
        volume[slices, rows, columns] = hu
        coarse = [slice(part.start // 2, part.stop // 2) for part in (rows, columns)]
        probability[slices, coarse[0], coarse[1]] = 1
    return volume, probability


R = (slice(2, 18), slice(20, 80), slice(10, 50))
L = (slice(2, 18), slice(20, 80), slice(70, 110))


def test_right_is_on_the_patients_right_and_volumes_are_those_of_the_voxels():
    hu, probability = body(R, (slice(2, 18), slice(20, 80), slice(70, 90)))
    reading = read_lungs(hu, probability, KEEP, (5.0, 1.0, 1.0))
    assert set(np.unique(reading.voxels.sides[..., :60])) == {0, RIGHT}
    assert set(np.unique(reading.voxels.sides[..., 60:])) == {0, LEFT}
    assert reading.lungs.right_ml == pytest.approx(16 * 60 * 40 * 5 / 1000, rel=0.03)
    assert reading.lungs.left_ml == pytest.approx(16 * 60 * 20 * 5 / 1000, rel=0.05)
    assert reading.lungs.volume_ml == reading.lungs.right_ml + reading.lungs.left_ml


def test_touching_lungs_are_told_apart():
    bridge = (slice(9, 11), slice(20, 24), slice(48, 72))
    hu, probability = body(R, L, bridge)
    labels = read_lungs(hu, probability, KEEP, (5.0, 1.0, 1.0)).voxels.sides
    assert (labels[:, 30:70, 12:48][2:18] == RIGHT).all()
    assert (labels[:, 30:70, 72:108][2:18] == LEFT).all()


def test_a_lung_in_two_pieces_keeps_its_side():
    apex, base = (slice(2, 7), *R[1:]), (slice(9, 18), *R[1:])
    hu, probability = body(apex, base, L)
    labels = read_lungs(hu, probability, KEEP, (5.0, 1.0, 1.0)).voxels.sides
    assert set(np.unique(labels[..., :60])) == {0, RIGHT}


def test_small_pieces_go_and_holes_are_filled():
    gas = (slice(3, 5), slice(88, 92), slice(56, 62))
    hu, probability = body(R, L, gas)
    probability[8:10, 20:24, 10:14] = 0  # a hole in the right lung's mask
    labels = read_lungs(hu, probability, KEEP, (5.0, 1.0, 1.0)).voxels.sides
    assert not labels[3:5, 86:94, 54:64].any()
    assert (labels[8:10, 40:48, 20:28] == RIGHT).all()


def test_a_separate_lobe_beside_touching_lungs_keeps_its_side():
    """Right lung and left upper lobe joined in front, the left lower lobe apart.

    Common in severe disease.
    """
    upper, lower = (slice(2, 9), *L[1:]), (slice(11, 18), *L[1:])
    hu, probability = body(R, upper, lower, (slice(4, 6), slice(20, 24), slice(48, 72)))
    labels = read_lungs(hu, probability, KEEP, (5.0, 1.0, 1.0)).voxels.sides
    assert (labels[2:18, 30:70, 12:46] == RIGHT).all()
    assert (labels[2:9, 30:70, 74:108] == LEFT).all()
    assert (labels[11:18, 30:70, 74:108] == LEFT).all()


def test_the_heart_between_lungs_that_touch_is_no_hole():
    front, back = ((slice(6, 12), rows, slice(48, 72)) for rows in (slice(20, 24), slice(76, 80)))
    hu, probability = body(R, L, front, back)
    labels = read_lungs(hu, probability, KEEP, (5.0, 1.0, 1.0)).voxels.sides
    assert not labels[:, 30:70, 54:66].any()


def test_a_users_mask_is_taken_voxel_by_voxel():
    hu, probability = body(R, L)
    mask = np.zeros(SHAPE, bool)
    mask[R] = mask[L] = True
    mask[5, 40, 30] = False
    reading = read_lungs(hu, probability, KEEP, (5.0, 1.0, 1.0), mask)
    np.testing.assert_array_equal(reading.voxels.sides > 0, mask)
    assert reading.lungs.volume_ml == pytest.approx(mask.sum() * 5 / 1000)


def test_involvement_does_not_jump_with_the_field_of_view():
    hu, probability = body(R, L)
    hu[4:16, 30:70, 16:40] = -450
    found = [
        read_lungs(hu, probability, KEEP, (5.0, mm, mm)).lungs.involvement_percent
        for mm in np.linspace(1.2, 1.4, 9)
    ]
    assert max(found) - min(found) < 0.5


def test_one_lung_only_is_one_side():
    hu, probability = body(R)
    lungs = read_lungs(hu, probability, KEEP, (5.0, 1.0, 1.0)).lungs
    assert lungs.left_ml == 0
    assert lungs.right_ml > 0


def test_involvement_is_the_dense_share_without_thin_vessels():
    hu, probability = body(R, L)
    lesion = np.zeros(SHAPE, bool)
    lesion[6:14, 30:70, 20:44] = True
    hu[lesion] = -500
    hu[2:18, 40:43, 72:108] = -200  # a vessel of 3 mm
    reading = read_lungs(hu, probability, KEEP, (5.0, 1.0, 1.0))
    truth = 100 * lesion.sum() / (2 * 16 * 60 * 40)
    assert reading.lungs.involvement_percent == pytest.approx(truth, abs=0.7)
    per_slice = np.array(reading.lungs.involvement_per_slice)
    assert (per_slice[6:14] > 15).all()
    assert (per_slice[[2, 3, 16, 17]] < 1.5).all()
    assert len(per_slice) == SHAPE[0]
    assert (per_slice[[0, 1, 18, 19]] == 0).all()


def test_involvement_is_the_mean_probability_within_the_lungs_only():
    hu, probability = body(R, L, (slice(3, 5), slice(88, 92), slice(56, 62)))
    disease = np.zeros_like(probability)
    disease[6:8, 15:18, 10:12] = 0.9  # 2 × 3 × 2 cells in the right lung: as thin as a vessel
    disease[3:5, 44:46, 28:31] = 0.9  # in a piece that is cleaned away
    disease[:, :, 26:34] = 0.9  # between the lungs
    disease[10, 20, 20] = 0.5  # counts as a half, and is not drawn
    hu[10:14, 30:70, 74:100] = -300  # dense, but not marked: the rule on density plays no part
    reading = read_lungs(hu, probability, KEEP, (5.0, 1.0, 1.0), disease=disease)
    cells = 2 * 30 * 20
    assert reading.lungs.involvement_by == "disease_probability"
    assert reading.lungs.involvement_percent == pytest.approx(100 * (12 * 0.9 + 0.5) / (16 * cells))
    per_slice = np.array(reading.lungs.involvement_per_slice)
    np.testing.assert_allclose(per_slice[6:8], 100 * 6 * 0.9 / cells, rtol=1e-6)
    assert per_slice[10] == pytest.approx(100 * 0.5 / cells)
    assert np.count_nonzero(per_slice) == 3
    marked = np.zeros(probability.shape, bool)
    marked[6:8, 15:18, 10:12] = True
    np.testing.assert_array_equal(reading.involved, marked)


def test_lesions_lie_in_the_lungs_where_disease_is_more_probable_than_not():
    hu, probability = body(R, L)
    disease = np.zeros_like(probability)
    disease[6:9, 4:20, :] = 0.9  # over the lungs' front border, across both and the middle
    disease[12, 20:30, 10:20] = 0.5
    reading = read_lungs(hu, probability, KEEP, (5.0, 1.0, 1.0), disease=disease)
    lesions = reading.voxels.lesions
    assert lesions.dtype == np.uint8
    assert lesions.shape == SHAPE
    assert lesions[6:9, 21:39, 12:48].all()
    assert not lesions[reading.voxels.sides == 0].any()
    assert not lesions[[*range(6), *range(9, 20)]].any()
    assert not lesions[:, 42:].any()
    assert read_lungs(hu, probability, KEEP, (5.0, 1.0, 1.0)).voxels.lesions is None


def test_lesions_are_those_of_the_whole_field_interpolated():
    hu, probability = body(R, L)
    rng = np.random.default_rng(4)
    disease = np.zeros_like(probability)
    disease[5:9, 12:20, 8:22] = rng.random((4, 8, 14), np.float32)
    reading = read_lungs(hu, probability, KEEP, (5.0, 1.0, 1.0), disease=disease)
    field = ndimage.zoom(disease, (1, 2, 2), order=1, mode="nearest", grid_mode=True)
    expected = (field > 0.5) & (reading.voxels.sides > 0)
    clear = np.abs(field - 0.5) > 1e-5
    np.testing.assert_array_equal(reading.voxels.lesions[clear], expected[clear])


def test_disease_is_cut_to_a_users_mask():
    hu, _ = body(R, L)
    mask = np.zeros(SHAPE, bool)
    mask[R] = True
    probability = mask[:, ::2, ::2].astype(np.float32)
    reading = read_lungs(hu, probability, KEEP, (5.0, 1.0, 1.0), mask, np.ones_like(probability))
    np.testing.assert_array_equal(reading.involved, probability > 0)
    np.testing.assert_array_equal(reading.voxels.lesions, mask)
    assert reading.lungs.involvement_percent == 100
    assert reading.lungs.left_ml == 0


def test_no_disease_found_is_zero_and_not_the_rule_on_density():
    hu, probability = body(R, L, hu=-300)
    by_rule = read_lungs(hu, probability, KEEP, (5.0, 1.0, 1.0))
    learned = read_lungs(hu, probability, KEEP, (5.0, 1.0, 1.0), disease=np.zeros_like(probability))
    assert by_rule.lungs.involvement_by == "hu_rule"
    assert by_rule.lungs.involvement_percent > 90
    assert by_rule.lungs.involvement_percent == pytest.approx(
        100 * by_rule.involved.sum() / (probability > 0.5).sum()
    )
    assert learned.lungs.involvement_by == "disease_probability"
    assert learned.lungs.involvement_percent == 0


def test_disease_on_another_grid_is_refused():
    hu, probability = body(R, L)
    with pytest.raises(ValueError, match="not on the grid of the lungs"):
        read_lungs(hu, probability, KEEP, (5.0, 1.0, 1.0), disease=probability[:, :1])


def test_healthy_lungs_have_no_involvement():
    hu, probability = body(R, L)
    assert read_lungs(hu, probability, KEEP, (5.0, 1.0, 1.0)).lungs.involvement_percent == 0


def test_no_lung_at_all_is_zeros_not_a_crash():
    hu, probability = body()
    reading = read_lungs(hu, probability, ~KEEP, (5.0, 1.0, 1.0))
    assert reading.lungs.volume_ml == 0
    assert reading.lungs.slices_kept == 0
    assert not reading.voxels.sides.any()
    ill = read_lungs(hu, probability, ~KEEP, (5.0, 1.0, 1.0), disease=np.ones_like(probability))
    assert ill.lungs.involvement_percent == 0
    assert not ill.involved.any()
