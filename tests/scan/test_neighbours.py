"""One part of a series that differs from the rest: each slice against its neighbours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from tf_covid.phantom import draw_chest
from tf_covid.phantom.files import write_dicom
from tf_covid.scan import find_cases
from tf_covid.scan.neighbours import neighbour_flags


@pytest.fixture(scope="module")
def chest() -> np.ndarray:
    return draw_chest(5, (40, 96, 96), severity=2).hu


def codes(hu: np.ndarray, axis: int = 0) -> set[str]:
    return {flag.code for flag in neighbour_flags(hu, axis)}


def scaled(slices: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """HU of slices stored as HU + 1024, read with another rescale."""
    return np.clip((slices + 1024.0) * slope + intercept, -32768, 32767).astype(np.int16)


WHICH = {
    "one": [17],
    "first": [0],
    "last": [-1],
    "two": [17, 18],
    "half": list(range(20, 40)),
    "every_fourth": list(range(0, 40, 4)),
    "every_second": list(range(0, 40, 2)),
}


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_intercept_that_is_lost(chest: np.ndarray, which: str, axis: int) -> None:
    hu = np.moveaxis(chest.copy(), 0, axis)
    np.moveaxis(hu, axis, 0)[WHICH[which]] += 1024
    assert codes(hu, axis) == {"slice_values"}


@pytest.mark.parametrize(
    "rescale", [(2, -1024), (0.5, -1024), (1.25, -1024), (0.001, -1024), (1, -2048), (1, 1024)]
)
def test_an_absurd_rescale_of_one_slice(chest: np.ndarray, rescale: tuple[float, float]) -> None:
    hu = chest.copy()
    hu[17] = scaled(hu[17], *rescale)
    assert codes(hu) == {"slice_values"}


CONTENTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "scrambled": lambda one: np.random.default_rng(0).permutation(one.ravel()).reshape(one.shape),
    "bytes swapped": lambda one: one.byteswap(),
    "upside down": lambda one: one[::-1],
    "shifted": lambda one: np.roll(one, 30, axis=1),
    "sheared": lambda one: np.stack([np.roll(row, number) for number, row in enumerate(one)]),
    "half lost": lambda one: np.where(np.arange(len(one))[:, None] < len(one) // 2, one, -1000),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_slice_of_another_content(chest: np.ndarray, name: str) -> None:
    hu = chest.copy()
    hu[17] = CONTENTS[name](hu[17])
    assert codes(hu)


def test_swapped_slices(chest: np.ndarray) -> None:
    hu = chest.copy()
    hu[[5, 25]] = hu[[25, 5]]
    assert codes(hu) == {"slice_content"}


@pytest.mark.parametrize("seed", range(4))
def test_no_false_alarm_on_phantoms(seed: int) -> None:
    hu = draw_chest(seed, (24 + 12 * seed, 64, 64), severity=seed).hu
    assert not any(codes(hu, axis) for axis in range(3))


@pytest.mark.parametrize(
    "change",
    [
        lambda hu: hu[20:22, 40:48, 40:48].__setitem__(..., 3071),  # metal
        lambda hu: hu[::2].__iadd__(np.int16(15)),  # the tube's drift
        lambda hu: hu[10].__setitem__(..., -1000),  # a blank slice, which the gate names
        lambda hu: hu[:6, :10].__setitem__(..., -2000),  # padding in some slices only
        lambda hu: hu.__iadd__(np.random.default_rng(0).normal(0, 60, hu.shape).astype(np.int16)),
    ],
)
def test_no_false_alarm(chest: np.ndarray, change) -> None:
    hu = chest.copy()
    change(hu)
    assert not codes(hu)


@pytest.mark.parametrize(
    "path", ["cip/dicom", "cip/ct-64.nrrd", "lidc-0001", "totalsegmentator/example_ct.nii.gz"]
)
def test_no_false_alarm_on_real_scans(real_ct: Path, path: str) -> None:
    for case in find_cases(real_ct / path):
        hu = case.read().hu
        assert not any(codes(hu, axis) for axis in range(3))


@pytest.mark.parametrize("step", [14, 4])
@pytest.mark.parametrize("change", ["missing", "absurd"])
def test_dicom_without_its_rescale_in_some_slices(
    chest, tmp_path, edit, refused, step: int, change: str
) -> None:
    affine = np.array([[0, 0, 0.8, -120.0], [0, 0.9, 0, -150.0], [-2.5, 0, 0, 300.0], [0, 0, 0, 1]])
    folder = write_dicom(chest, affine, tmp_path / "a")

    def spoil(dataset: Dataset) -> None:
        if change == "missing":
            del dataset.RescaleSlope, dataset.RescaleIntercept
        else:
            dataset.RescaleSlope = "7.5"

    for file in sorted(folder.iterdir())[5::step]:
        edit(file, spoil)
    assert refused(folder).keys() & {"slice_values", "not_hu"}
