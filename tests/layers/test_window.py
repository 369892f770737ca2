"""The HU window and the mask, by their laws."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tf_covid.layers import HUWindow, MaskedClip


def test_window_ends_are_zero_and_one_and_the_outside_is_clipped():
    hu = np.array([-3024, -1100, -400, 300, 3071], np.int16)
    np.testing.assert_allclose(HUWindow()(hu), [0, 0, 0.5, 1, 1], atol=1e-7)


def test_window_is_linear_between_its_ends():
    hu = np.linspace(-1000, 200, 13)
    shares = HUWindow(level_hu=-400, width_hu=1400)(hu.astype(np.float32)).numpy()
    np.testing.assert_allclose(np.diff(shares), 100 / 1400, atol=1e-6)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_window_computes_in_float32_and_casts_last(policy):
    # −1003 HU is no bfloat16 number: cast first, it would become −1000 or −1004.
    layer = HUWindow(dtype=policy)
    exact = (-1003 + 1100) / 1400
    answer = layer(np.array([-1003], np.int16))
    assert answer.dtype == layer.compute_dtype
    assert float(answer[0]) == float(tf.cast(exact, layer.compute_dtype))


def test_window_needs_a_positive_width():
    with pytest.raises(ValueError, match="width_hu must be positive, not 0"):
        HUWindow(width_hu=0)


def test_outside_the_lungs_is_zero_and_channels_are_equal():
    rng = np.random.default_rng(0)
    clip, lungs = rng.random((2, 3, 4, 5), np.float32), rng.random((2, 3, 4, 5), np.float32)
    out = MaskedClip(channels=3)(clip, lungs).numpy()
    assert out.shape == (2, 3, 4, 5, 3)
    assert (out[lungs < 0.5] == 0).all()
    np.testing.assert_array_equal(out[..., 0], out[..., 2])
    np.testing.assert_array_equal(out[lungs >= 0.5][:, 0], clip[lungs >= 0.5])


def test_masked_clip_needs_a_channel():
    with pytest.raises(ValueError, match="channels must be positive"):
        MaskedClip(channels=0)
