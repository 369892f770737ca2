"""A series whose images state several patients or studies is no scan of any of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest

from tf_covid.errors import ScanRefused
from tf_covid.phantom.files import write_dicom
from tf_covid.scan import find_cases

SPLITS = {
    "every second slice without PatientID": ("PatientID", "", slice(None, None, 2)),
    "every second slice of another patient": ("PatientID", "OTHER", slice(None, None, 2)),
    "the upper half of another study": ("StudyInstanceUID", "1.2.3.4", slice(7, None)),
    "one slice of another study": ("StudyInstanceUID", "1.2.3.4", slice(5, 6)),
}


@pytest.mark.parametrize("split", SPLITS)
def test_parts_of_a_torn_series_are_refused(split: str, series: Path) -> None:
    keyword, value, some = SPLITS[split]
    for file in sorted(series.iterdir())[some]:
        dataset = pydicom.dcmread(file)
        setattr(dataset, keyword, value)
        if keyword == "PatientID" and not value:
            dataset.PatientName = dataset.PatientBirthDate = ""
        dataset.save_as(file)
    cases = find_cases(series)
    assert len(cases) == 2
    for case in cases:
        with pytest.raises(ScanRefused) as caught:
            case.read()
        assert "torn_series" in {flag.code for flag in caught.value.quality_flags}


def test_scans_over_each_other_with_one_series_uid_stay_two(
    marker, master: Path, tmp_path: Path, edit: Callable[..., None]
) -> None:
    """What an anonymiser leaves that gives every patient the same SeriesInstanceUID."""
    folder = tmp_path / "two"
    shutil.copytree(master, folder / "a")
    write_dicom(marker.hu, marker.affine, folder / "b", seed=2)
    uid = pydicom.dcmread(next(iter((folder / "a").iterdir()))).SeriesInstanceUID

    def same(dataset: pydicom.Dataset) -> None:
        dataset.SeriesInstanceUID, dataset.PatientID = uid, "SECOND"

    edit(folder / "b", same)
    cases = find_cases(folder)
    assert len(cases) == 2
    for case in cases:
        assert case.read().shape == marker.hu.shape
