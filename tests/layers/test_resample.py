"""Resampling as matrices: laws, and a second library's answer."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from tf_covid.layers.resample import (
    axis_matrix,
    clipped_hu,
    full_axis_matrix,
    in_plane,
    over_chunks,
)


@pytest.mark.parametrize(("size_in", "size_out"), [(512, 128), (64, 128), (100, 37), (7, 7)])
def test_full_resize_equals_tensorflows_antialiased_bilinear(size_in, size_out):
    planes = np.random.default_rng(1).normal(size=(2, size_in, size_in)).astype(np.float32)
    matrix = full_axis_matrix(size_out, size_in)
    theirs = tf.image.resize(
        planes[..., None], (size_out, size_out), method="bilinear", antialias=True
    )[..., 0]
    np.testing.assert_allclose(in_plane(matrix, planes, matrix), theirs, atol=2e-5)


def test_every_row_sums_to_one_even_where_the_range_leaves_the_axis():
    matrix = axis_matrix(tf.constant([-3.0]), tf.constant([13.0]), 20, 10).numpy()
    inside = matrix.sum(axis=-1)[0]
    np.testing.assert_allclose(inside[5:15], 1, atol=1e-6)
    assert set(np.round(inside, 5)) <= {0.0, 1.0}


def test_same_size_is_the_identity():
    np.testing.assert_allclose(full_axis_matrix(9, 9)[0], np.eye(9), atol=1e-6)


def test_a_crop_takes_the_cells_of_the_crop():
    matrix = axis_matrix(tf.constant([2.0]), tf.constant([6.0]), 4, 10).numpy()[0]
    np.testing.assert_allclose(matrix, np.eye(10)[2:6], atol=1e-6)


def test_padding_outside_the_field_of_view_is_air_before_any_averaging():
    np.testing.assert_array_equal(
        clipped_hu(np.array([-3024, -2000, -1024, 0, 30000], np.int16)),
        [-1024, -1024, -1024, 0, 3071],
    )


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 40])
def test_chunks_meet_every_number_once(count):
    def body(numbers, seen):
        valid = tf.boolean_mask(numbers, numbers >= 0)
        return tf.tensor_scatter_nd_add(seen, valid[:, None], tf.ones_like(valid))

    seen = over_chunks(tf.constant(count), 16, body, tf.zeros([40], tf.int32)).numpy()
    assert seen[:count].tolist() == [1] * count
    assert not seen[count:].any()
