"""One byte holds side, lobe and disease of a voxel, and gives each of them back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tf_covid.lobes import LOBES_OF
from tf_covid.lung_voxels import (
    LEFT,
    RIGHT,
    LungVoxels,
    codes_of,
    lesion_of,
    lobe_of,
    side_of,
)
from tf_covid.severity import LOBES

EVERYTHING = np.array(
    [(0, 0, 0), *itertools.product((RIGHT, LEFT), range(len(LOBES) + 1), (0, 1))], np.uint8
)


def test_every_combination_comes_back():
    codes = codes_of(*EVERYTHING.T)
    assert codes.dtype == np.uint8
    assert len(np.unique(codes)) == len(EVERYTHING)
    for read, right in zip((side_of, lobe_of, lesion_of), EVERYTHING.T, strict=True):
        given = read(codes)
        assert given.dtype == np.uint8
        np.testing.assert_array_equal(given, right)
    np.testing.assert_array_equal(codes > 0, EVERYTHING[:, 0] > 0)
    assert max(part.stop for part in LOBES_OF.values()) == len(LOBES) <= 7


def test_what_was_not_looked_for_is_none():
    sides = np.array([[[0, 1, 2]]], np.uint8)
    lobes, lesions = np.array([[[0, 3, 5]]], np.uint8), np.array([[[0, 0, 255]]], np.uint8)
    plain, whole = LungVoxels.of(sides), LungVoxels.of(sides, lobes, lesions)
    assert plain.lobes is plain.lesions is None
    for voxels in (plain, whole):
        np.testing.assert_array_equal(voxels.sides, sides)
    np.testing.assert_array_equal(whole.lobes, lobes)
    np.testing.assert_array_equal(whole.lesions, lesions > 0)


@pytest.mark.parametrize(
    ("lesions", "none"), [(None, False), ([0, 0, 0], True), ([0, 1, 0], False)]
)
def test_no_lesion_is_only_none_where_it_was_looked_for(lesions, none):
    volume = None if lesions is None else np.array([[lesions]], np.uint8)
    assert LungVoxels.of(np.array([[[0, 1, 2]]], np.uint8), None, volume).finds_no_lesion is none


def test_what_is_read_off_changes_nothing():
    voxels = LungVoxels.of(np.array([[[0, 1, 2]]], np.uint8))
    before = voxels.codes.copy()
    voxels.sides[:] = 0
    np.testing.assert_array_equal(voxels.codes, before)
