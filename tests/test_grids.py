"""Grids over one scan: the same resampling as the layers', boxes that hold what they must."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from tf_covid import lungs
from tf_covid.grids import (
    CHUNK,
    axis_weights,
    box_of,
    box_of_label,
    box_on,
    hu_on_grid,
    on_grid,
    whole,
    wider,
)
from tf_covid.layers.resample import clipped_hu, full_axis_matrix, in_plane

SIZES = [(1, 1), (7, 7), (128, 512), (512, 128), (96, 130), (130, 96), (1, 9), (9, 1), (33, 64)]


@pytest.mark.parametrize(("size_out", "size_in"), SIZES)
def test_weights_are_those_of_the_layers(size_out, size_in):
    expected = full_axis_matrix(size_out, size_in)[0].numpy()
    np.testing.assert_allclose(axis_weights(size_out, size_in), expected, atol=2e-6)


@pytest.mark.parametrize("shape", [(20, 30, 40), (7, 64, 5), (40, 12, 33)])
@pytest.mark.parametrize("box", [None, (slice(3, 6), slice(0, 5), slice(2, 5))])
def test_fields_on_a_grid_are_those_of_the_layers(shape, box):
    fields = np.random.default_rng(0).random((3, 20, 12, 17), np.float32)
    along = full_axis_matrix(shape[0], 20)[0]
    rows, columns = full_axis_matrix(shape[1], 12), full_axis_matrix(shape[2], 17)
    expected = np.stack(
        [in_plane(rows, tf.tensordot(along, field, 1), columns).numpy() for field in fields]
    )
    got = np.full((3, *shape), np.nan, np.float32)
    for part, values in on_grid(fields, shape, box):
        assert values.dtype == np.float32
        assert part[0].stop - part[0].start <= CHUNK
        got[(slice(None), *part)] = values
    inside = (slice(None), *(box or whole(shape)))
    np.testing.assert_allclose(got[inside], expected[inside], atol=1e-5)
    outside = np.ones(got.shape, bool)
    outside[inside] = False
    assert np.isnan(got[outside]).all()


def test_an_empty_box_has_no_parts():
    assert not list(on_grid(np.ones((1, 4, 4, 4)), (8, 8, 8), box_of(np.zeros((8, 8, 8), bool))))


def test_hu_are_clipped_before_they_are_averaged():
    hu = np.random.default_rng(1).integers(-3024, 4000, (35, 50, 60)).astype(np.int16)
    rows, columns = full_axis_matrix(16, 50), full_axis_matrix(20, 60)
    expected = in_plane(rows, clipped_hu(tf.constant(hu)), columns)
    np.testing.assert_allclose(hu_on_grid(hu, (16, 20)), expected, atol=0.01)
    before = np.array(hu)
    hu_on_grid(hu, (16, 20))
    np.testing.assert_array_equal(hu, before)


def test_a_box_is_the_smallest_that_holds_a_mask():
    mask = np.zeros((6, 7, 8), bool)
    mask[2, 3, 4] = mask[4, 3, 7] = True
    assert box_of(mask) == (slice(2, 5), slice(3, 4), slice(4, 8))
    assert wider(box_of(mask), mask.shape) == (slice(1, 6), slice(2, 5), slice(3, 8))
    labels = np.where(mask, 2, 1).astype(np.uint8)
    assert box_of_label(labels, 2) == box_of(mask)
    assert box_of_label(labels, 1) == box_of(~mask)
    assert box_of_label(labels, 3) == box_of(np.zeros(mask.shape, bool))
    empty = box_of(np.zeros((6, 7, 8), bool))
    assert wider(empty, mask.shape, 3) == empty == (slice(0, 0),) * 3


@pytest.mark.parametrize(("old", "new"), [(128, 512), (512, 128), (96, 130), (3, 7), (148, 64)])
def test_a_box_on_another_grid_holds_all_that_it_touches(old, new):
    for start in range(0, old, 5):
        for stop in range(start + 1, old + 1, 7):
            (part,) = box_on((slice(start, stop),), (old,), (new,))
            touched = [
                cell
                for cell in range(new)
                if cell * old < stop * new and (cell + 1) * old > start * new
            ]
            assert (part.start, part.stop) == (touched[0], touched[-1] + 1)


def test_what_lies_beside_a_box_of_large_values_stays_below_them():
    """Effusion and lesions pass over the rest: that must lose nothing."""
    rng = np.random.default_rng(2)
    for shape in ((9, 40, 33), (30, 31, 70), (12, 7, 9)):
        field = rng.random((12, 14, 16), np.float32) ** 6
        box = box_on(wider(box_of(field > 0.9), field.shape), field.shape, shape)
        high = np.zeros(shape, bool)
        for part, (values,) in on_grid(field[np.newaxis], shape):
            high[part] = values > 0.9
        high[box] = False
        assert not high.any()


def test_holes_are_filled_slice_by_slice_and_each_lung_alone():
    rng = np.random.default_rng(3)
    sides = np.zeros((9, 40, 44), np.uint8)
    sides[1:8, 4:36, 3:21], sides[1:8, 4:36, 21:42] = 1, 2
    sides[rng.random(sides.shape) < 0.35] = 0
    sides[4] = 0
    sides[6, :10] = 1  # up to the edge of the slice
    expected = sides.copy()
    for plane in expected:
        for side in (1, 2):
            plane[ndimage.binary_fill_holes(plane == side) & (plane == 0)] = side
    assert (expected != sides).any()
    np.testing.assert_array_equal(lungs._filled(sides), expected)
