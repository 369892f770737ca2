"""A small scan that the small models of `tests.servers` answer, and how near two answers are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tf_covid.export import warmup
from tf_covid.scan import Scan, SourceGrid


def made_scan(seed: int = 0, slices: int | None = None, columns: int = 10) -> Scan:
    """A drawn chest with a dense piece of so many columns."""
    hu = warmup.chest().copy()
    hu[8:16, 50:70, 30 : 30 + columns] = -300
    hu = (hu + np.random.default_rng(seed).integers(-60, 60, hu.shape)).astype(np.int16)[:slices]
    # All air is lung to the threshold: so small that it is no more than a chest has.
    affine = np.diag([7.0, 2.2, 2.2, 1.0])
    return Scan("made", hu, affine, SourceGrid(hu.shape, affine, (0, 1, 2), (False,) * 3), "0" * 64)


def assert_near(one: Any, two: Any) -> None:
    """Two values of `result.json`: equal, and numbers nearly so."""
    assert type(one) is type(two)
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_near(one[key], two[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two)
        for left, right in zip(one, two, strict=True):
            assert_near(left, right)
    elif isinstance(one, float):
        # A voxel on the border of a lung is 0.03 ml.
        assert one == pytest.approx(two, abs=2e-3, rel=1e-4)
    else:
        assert one == two
