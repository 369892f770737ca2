"""Slice rule, box, sampler and segmenter, by their laws."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tf_covid.layers import ClipSampler, HUWindow, LungBox, LungSegmenter, SliceRule
from tf_covid.models import UNet


def block(depth=10, side=20, rows=(4, 14), columns=(6, 16), slices=(2, 8)):
    """Lung probability (1, D, h, w): 0.9 in a block, 0.1 elsewhere."""
    probability = np.full((1, depth, side, side), 0.1, np.float32)
    probability[0, slices[0] : slices[1], rows[0] : rows[1], columns[0] : columns[1]] = 0.9
    return probability


def test_exactly_five_percent_is_kept_and_a_cell_less_is_not():
    probability = np.zeros((1, 3, 20, 20), np.float32)
    probability[0, 1].flat[:20] = 1  # 20 of 400 cells
    probability[0, 2].flat[:19] = 1
    assert SliceRule(0.05)(probability).numpy().tolist() == [[False, True, False]]


@pytest.mark.parametrize("minimum", [0, 1, -0.1])
def test_slice_rule_refuses_impossible_fractions(minimum):
    with pytest.raises(ValueError, match="minimum must lie within"):
        SliceRule(minimum)


def test_box_is_the_mask_plus_its_margin():
    keep = np.zeros((1, 10), bool)
    keep[0, 2:8] = True
    box = LungBox(margin=0.1)(block(), keep).numpy()
    np.testing.assert_allclose(box, [[0.15, 0.75, 0.25, 0.85]], atol=1e-6)


def test_box_ignores_stray_cells_and_slices_that_are_not_kept():
    probability = block()
    probability[0, 3, 0, 0] = 0.9  # one cell in the corner: under 2 % of the fullest row
    probability[0, 9] = 0.9  # a slice full of "lung" that is not kept
    keep = np.zeros((1, 10), bool)
    keep[0, 2:8] = True
    np.testing.assert_allclose(
        LungBox(margin=0)(probability, keep), [[0.2, 0.7, 0.3, 0.8]], atol=1e-6
    )


def test_full_frame_where_asked_for_and_where_nothing_is_kept():
    nothing = np.zeros((1, 10), bool)
    full = [[0, 1, 0, 1]]
    np.testing.assert_array_equal(LungBox()(block(), nothing), full)
    np.testing.assert_array_equal(LungBox("none")(block(), ~nothing), full)
    with pytest.raises(ValueError, match='box must be "lungs" or "none"'):
        LungBox("square")


def test_sampler_puts_kept_slices_one_behind_the_other():
    hu = np.zeros((1, 6, 8, 8), np.int16)
    hu[0] += np.arange(6, dtype=np.int16)[:, None, None] * 100
    keep = np.array([[True, False, True, True, False, True]])
    full = np.array([[0, 1, 0, 1]], np.float32)
    clip = ClipSampler(4, 8, 8)(hu, keep, full).numpy()
    np.testing.assert_allclose(clip[0, :, 4, 4], [0, 200, 300, 500], atol=1e-3)


def test_sampler_averages_when_reducing_and_interpolates_when_enlarging():
    ramp = np.tile(np.arange(64, dtype=np.int16)[:, None, None], (1, 8, 8))[None]
    keep, full = np.ones((1, 64), bool), np.array([[0, 1, 0, 1]], np.float32)
    few = ClipSampler(8, 8, 8)(ramp, keep, full).numpy()[0, :, 0, 0]
    np.testing.assert_allclose(few[1:-1], (np.arange(8) * 8 + 3.5)[1:-1], atol=1e-3)
    many = ClipSampler(128, 8, 8)(ramp, keep, full).numpy()[0, :, 0, 0]
    np.testing.assert_allclose(np.diff(many)[2:-2], 0.5, atol=1e-3)


@pytest.mark.parametrize("chunk", [1, 5, 16, 64])
def test_the_chunk_changes_nothing(chunk):
    rng = np.random.default_rng(2)
    hu = rng.integers(-1000, 200, (2, 21, 30, 40)).astype(np.int16)
    keep = rng.random((2, 21)) > 0.3
    box = np.array([[0.1, 0.9, 0.2, 0.8], [0, 1, 0.3, 0.7]], np.float32)
    expected = ClipSampler(8, 16, 16, chunk=7)(hu, keep, box)
    np.testing.assert_allclose(
        ClipSampler(8, 16, 16, chunk=chunk)(hu, keep, box), expected, atol=1e-2
    )


def test_scans_of_one_batch_do_not_meet():
    rng = np.random.default_rng(3)
    hu = rng.integers(-1000, 200, (2, 12, 32, 32)).astype(np.int16)
    keep = np.ones((2, 12), bool)
    box = np.array([[0, 1, 0, 1], [0.2, 0.8, 0.1, 0.9]], np.float32)
    together = ClipSampler(4, 16, 16)(hu, keep, box).numpy()
    for number in range(2):
        alone = ClipSampler(4, 16, 16)(
            hu[number : number + 1], keep[number : number + 1], box[number : number + 1]
        )
        np.testing.assert_allclose(together[number], alone[0], atol=1e-2)


def test_a_scan_without_kept_slices_is_an_empty_clip():
    clip = ClipSampler(4, 8, 8)(
        np.full((1, 5, 8, 8), 100, np.int16), np.zeros((1, 5), bool), np.ones((1, 4), np.float32)
    )
    assert not clip.numpy().any()


@pytest.fixture(scope="module")
def unet():
    keras.utils.set_random_seed(4)
    return UNet((32, 32, 1), depth=2, filters=4)


@pytest.mark.parametrize("chunk", [3, 16])
def test_segmenter_treats_padding_as_no_lung_and_each_scan_alone(unet, chunk):
    hu = np.random.default_rng(5).integers(-1000, 200, (2, 9, 48, 40)).astype(np.int16)
    segmenter = LungSegmenter(unet, chunk=chunk)
    together = segmenter(hu, np.array([9, 5], np.int32)).numpy()
    assert together.shape == (2, 9, 32, 32, 1)
    assert not together[1, 5:].any()
    np.testing.assert_allclose(
        segmenter(hu[1:, :5], np.array([5], np.int32))[0], together[1, :5], atol=1e-6
    )


@pytest.mark.parametrize("outputs", [1, 2])
def test_segmenter_is_the_unet_applied_to_the_windowed_slices(outputs):
    keras.utils.set_random_seed(6)
    unet = UNet((32, 32, 1), depth=2, filters=4, outputs=outputs)
    hu = np.random.default_rng(6).integers(-1000, 200, (2, 5, 32, 32)).astype(np.int16)
    depth = np.array([5, 2], np.int32)
    segmenter = LungSegmenter(unet, chunk=3)
    found = segmenter(hu, depth).numpy()
    logits = (
        unet(HUWindow()(hu.reshape(-1, 32, 32))[..., None])["logits"]
        .numpy()
        .reshape(2, 5, 32, 32, outputs)
    )
    expected = 1 / (1 + np.exp(-logits))
    expected[1, 2:] = 0
    np.testing.assert_allclose(found, expected, atol=1e-5)
    symbolic = segmenter(keras.Input((None, 32, 32), dtype="int16"), keras.Input((), dtype="int32"))
    assert symbolic.shape == (None, None, 32, 32, outputs)
    assert symbolic.dtype == found.dtype == "float32"


def test_segmenter_survives_a_batch_without_slices(unet):
    assert (
        not LungSegmenter(unet)(np.zeros((1, 3, 32, 32), np.int16), np.array([0], np.int32))
        .numpy()
        .any()
    )


def test_segmenter_needs_a_fixed_grid():
    with pytest.raises(ValueError, match="fixed input of one channel"):
        LungSegmenter(UNet((None, None, 1), depth=2, filters=4))


def test_segmenter_knows_no_third_output():
    with pytest.raises(ValueError, match=r"or two \(lung, diseased lung\), not 3"):
        LungSegmenter(UNet((32, 32, 1), depth=2, filters=4, outputs=3))
