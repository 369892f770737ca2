"""The structured report says what the answer says, and another reader finds it there."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import highdicom
import pydicom
import pytest
from pydicom.sr.codedict import codes

from tests.dicom_results.grids import answer
from tf_covid.dicom_results import codes as own
from tf_covid.result import DISCLAIMER, Covid, Lobe, Severity
from tf_covid.scan import read
from tf_covid.severity import LABELS, LOBES


@pytest.fixture
def report(series: Path, write: Any) -> highdicom.sr.Comprehensive3DSR:
    folder = write(answer(read(series)))
    return highdicom.sr.srread(folder / "report.dcm")


def measured(group: Any) -> dict[str, float]:
    """Values by the meaning of what was measured, and of what it is about."""
    found = {}
    for item in group.get_measurements():
        qualifier = item.qualifier
        name = item.name.meaning + ("" if qualifier is None else f": {qualifier.meaning}")
        found[name] = item.value
    return found


def test_of_both_lungs(report: highdicom.sr.Comprehensive3DSR) -> None:
    (group,) = report.content.get_image_measurement_groups(tracking_uid=None)
    values = measured(group)
    assert values["Global CT Score, predicted"] == 5.2
    assert values["Global CT Score, sum of the lobe scores"] == 10
    assert values["Diseased share"] == 12.4
    assert values["Volume"] == 4812
    assert [value for name, value in values.items() if name.startswith("Probability")] == [
        10,
        60,
        20,
        5,
        5,
    ]
    said = {item.name.meaning: item.value.meaning for item in group.get_qualitative_evaluations()}
    assert said["Severity (attribute)"] == "Mild"
    assert said["Status of the input"] == "pass"
    assert said["Quality flag"] == "missing slices"
    assert group.finding_type == codes.DCM.Opacity


def test_of_each_lung_and_lobe_with_its_segment(
    report: highdicom.sr.Comprehensive3DSR, tmp_path: Path
) -> None:
    segmentation = highdicom.seg.segread(tmp_path / "out" / "lungs.dcm")
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert len(groups) == 2 + 5
    by_label = {}
    for group in groups:
        (number,) = [
            item.ReferencedSOPSequence[0].ReferencedSegmentNumber
            for item in group[0].ContentSequence
            if item.ValueType == "IMAGE" and "ReferencedSOPSequence" in item
        ]
        description = segmentation.get_segment_description(number)
        assert group.tracking_uid == description.tracking_uid
        assert group.tracking_identifier == description.SegmentLabel
        by_label[description.SegmentLabel] = measured(group)
    assert by_label["Right lung"] == {"Volume": 2612}
    assert by_label["Left lung"] == {"Volume": 2200}
    for lobe in LOBES:
        assert by_label[f"{lobe.capitalize()} lobe"] == {
            "Volume": 900,
            "Diseased share": 8.1,
            "Lobe score": 2,
        }


def test_it_is_preliminary_and_says_what_it_is(report: highdicom.sr.Comprehensive3DSR) -> None:
    assert report.PreliminaryFlag == "PRELIMINARY"
    assert report.VerificationFlag == "UNVERIFIED"
    text = report.to_json()
    assert DISCLAIMER in text
    assert "sha256 of severity-i3d: " + "ab" * 32 in text
    assert "sha256 of lung model: " + "cd" * 32 in text
    assert "840539006" not in text, "it does not say that it is COVID-19"
    (scheme,) = report.CodingSchemeIdentificationSequence
    assert scheme.CodingSchemeDesignator == own.SCHEME


def test_the_interval_reaches_from_the_score(report: highdicom.sr.Comprehensive3DSR) -> None:
    (group,) = report.content.get_image_measurement_groups(tracking_uid=None)
    (score,) = group.get_measurements(name=own.CT_SCORE)
    reach = {
        item.ConceptNameCodeSequence[0].CodeMeaning[0]: float(
            item.MeasuredValueSequence[0].NumericValue
        )
        for item in score[0].ContentSequence
        if item.ValueType == "NUM"
    }
    assert reach == {"+": pytest.approx(3.3), "-": pytest.approx(2.2)}


@pytest.mark.parametrize("rank", range(5))
def test_every_class_has_its_code(series: Path, write: Any, errors_of: Any, rank: int) -> None:
    severity = Severity(rank, LABELS[rank], (0.2,) * 5, None)
    folder = write(answer(read(series), severity=severity))
    assert not errors_of(folder / "report.dcm")
    report = highdicom.sr.srread(folder / "report.dcm")
    (group,) = report.content.get_image_measurement_groups(tracking_uid=None)
    (said,) = group.get_qualitative_evaluations(name=codes.SCT.Severity)
    assert said.value == own.SEVERITIES[rank]
    assert not group.get_measurements(name=own.CT_SCORE)


@pytest.mark.parametrize(("refer", "value"), [(True, own.YES), (False, own.NO)])
def test_whether_to_refer(series: Path, write: Any, refer: bool, value: Any) -> None:
    answered = answer(read(series))
    severity = dataclasses.replace(answered.result.severity, refer=refer)
    folder = write(answer(answered.scan, severity=severity))
    report = highdicom.sr.srread(folder / "report.dcm")
    (group,) = report.content.get_image_measurement_groups(tracking_uid=None)
    (said,) = group.get_qualitative_evaluations(name=own.REFER)
    assert said.value == value


def test_a_covid_model_and_lobes_that_the_scan_hardly_shows(
    series: Path, write: Any, errors_of: Any
) -> None:
    lobes = (Lobe(LOBES[0], 12.0, None, None), *(Lobe(name, 900.0, 0.0, 0) for name in LOBES[1:]))
    folder = write(answer(read(series), severity=None, covid=Covid(0.83, True), lobes=lobes))
    assert not errors_of(folder / "report.dcm")
    report = highdicom.sr.srread(folder / "report.dcm")
    (group,) = report.content.get_image_measurement_groups(tracking_uid=None)
    assert measured(group)["Probability of COVID-19"] == 83
    regions = report.content.get_volumetric_roi_measurement_groups()
    assert {"Volume": 12} in [measured(region) for region in regions]


def test_dcmqi_reads_it(report: highdicom.sr.Comprehensive3DSR, tmp_path: Path) -> None:
    said = tmp_path / "said.json"
    command = [Path(sys.executable).with_name("tid1500reader"), "--outputMetadata", said]
    command += ["--inputDICOM", tmp_path / "out" / "report.dcm"]
    subprocess.run(command, check=True, capture_output=True)
    groups = json.loads(said.read_text("utf-8"))["Measurements"]
    assert len(groups) == 8
    volumes = {
        group["TrackingIdentifier"]: float(item["value"])
        for group in groups
        for item in group["measurementItems"]
        if item["quantity"]["CodeMeaning"] == "Volume"
    }
    assert (volumes["Right lung"], volumes["Left lung"]) == (2612, 2200)


def test_the_summary_is_the_montage(report: highdicom.sr.Comprehensive3DSR, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    summary = pydicom.dcmread(tmp_path / "out" / "summary.dcm")
    page = Image.open(tmp_path / "out" / "montage.png").convert("RGB")
    np.testing.assert_array_equal(summary.pixel_array, np.asarray(page))
    assert summary.get("PatientOrientation") in (None, "", [])
