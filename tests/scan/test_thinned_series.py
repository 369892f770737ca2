"""A series of which every second file is gone has even positions.

Its numbers and its thickness tell.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest

from tf_covid.scan import read


def flags(folder: Path) -> dict[str, str]:
    return {flag.code: flag.level for flag in read(folder).quality_flags}


@pytest.fixture
def numbered(series: Path, edit: Callable[..., None]) -> Path:
    for number, file in enumerate(sorted(series.iterdir()), 1):

        def change(dataset: pydicom.Dataset, number: int = number) -> None:
            dataset.InstanceNumber, dataset.SliceThickness = number, "2.5"

        edit(file, change)
    return series


def test_a_whole_series_says_nothing(numbered: Path) -> None:
    assert not {"thinned_series", "instance_gaps"} & flags(numbered).keys()


@pytest.mark.parametrize("step", [2, 3])
def test_every_second_or_third_file_alone(step: int, numbered: Path) -> None:
    for number, file in enumerate(sorted(numbered.iterdir())):
        if number % step:
            file.unlink()
    assert flags(numbered)["thinned_series"] == "warning"


def test_numbers_in_steps_of_whole_slices_are_for_information(
    numbered: Path, edit: Callable[..., None]
) -> None:
    for number, file in enumerate(sorted(numbered.iterdir())):

        def change(dataset: pydicom.Dataset, number: int = number) -> None:
            dataset.InstanceNumber = 10 * number + 7

        edit(file, change)
    assert flags(numbered)["instance_gaps"] == "info"
