"""Changes that another grid, or another lung model, would bring."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tf_covid.cohort.augment import Augmentation, Draws
from tf_covid.cohort.mask_augment import coarsened, worse_mask


def draws(seed: int) -> Draws:
    return Draws(tf.constant([seed, 1], tf.int32))


def test_a_coarse_grid_keeps_a_plane_and_blurs_its_edges() -> None:
    plane = np.full((2, 1, 32, 48), -800.0, np.float32)
    plane[..., 24:] = 40.0
    for seed in range(5):
        result = coarsened(draws(seed), tf.constant(plane), 1.0).numpy()
        assert result.shape == plane.shape
        np.testing.assert_allclose(result[..., :16], -800.0, atol=1.0)
        np.testing.assert_allclose(result[..., -16:], 40.0, atol=1.0)
        assert not np.array_equal(result, plane)
    np.testing.assert_array_equal(coarsened(draws(0), tf.constant(plane), 0.0), plane)


def test_a_lung_mask_gets_worse_as_often_as_asked() -> None:
    lungs = np.zeros((64, 8, 16, 16), np.float32)
    lungs[:, :, 4:12, 4:12] = 1.0
    same = worse_mask(draws(1), tf.constant(lungs), Augmentation())
    np.testing.assert_array_equal(same, lungs)
    other = worse_mask(draws(1), tf.constant(lungs), Augmentation(mask_change=1.0)).numpy()
    volumes = (other >= 0.5).sum(axis=(1, 2, 3))
    assert volumes.min() < lungs[0].sum() < volumes.max()
    bitten = worse_mask(draws(1), tf.constant(lungs), Augmentation(mask_bites=0.5)).numpy()
    lost = (bitten >= 0.5).sum(axis=(1, 2, 3)) < lungs[0].sum()
    assert 0 < lost.sum() < 48
    assert (bitten <= lungs).all(), "a bite adds nothing"


def test_a_lung_mask_grows_and_shrinks_no_further_than_its_reach() -> None:
    lungs = np.zeros((64, 4, 48, 48), np.float32)
    lungs[:, :, 16:32, 16:32] = 1.0
    for reach in (1, 3, 5):
        how = Augmentation(mask_change=1.0, mask_reach=reach)
        other = worse_mask(draws(2), tf.constant(lungs), how).numpy() >= 0.5
        widths = other[:, 0, 24, :].sum(axis=1)  # through the middle, where its edge is straight
        assert widths.max() == 16 + 2 * reach, reach
        assert 16 - 2 * reach <= widths.min() < 16, reach
