"""`tfcovid infer --dicom` on a synthetic patient, as a user meets it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from click.testing import CliRunner

from tests.dicom_results.grids import edit_files
from tf_covid.cli import main
from tf_covid.dicom_results.options import DicomOptions
from tf_covid.infer import Options, Run
from tf_covid.phantom import draw_chest
from tf_covid.phantom.files import write_dicom, write_nifti_volume

pytestmark = pytest.mark.usefixtures("loaded_once")

OBJECTS = ["attention.dcm", "lungs.dcm", "report.dcm", "summary.dcm"]


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chest = draw_chest(5, (48, 128, 128), severity=3)
    folder = tmp_path_factory.mktemp("patient")
    write_dicom(chest.hu, chest.affine, folder / "ward", seed=5)
    write_nifti_volume(chest.hu, chest.affine, folder / "volume.nii.gz")
    return folder


def infer(*arguments: Any, code: int = 0) -> Any:
    result = CliRunner().invoke(main, ["infer", *map(str, arguments)])
    assert result.exit_code == code, result.output + str(result.exception)
    return result


def values_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text("utf-8")))


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.dcm"))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def answered(patient: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    infer(patient / "ward", patient / "volume.nii.gz", "--out", out, "--dicom")
    return out


def test_the_objects_lie_beside_the_other_files(answered: Path, errors_of: Any) -> None:
    assert files_of(answered / "ward") == OBJECTS
    for name in OBJECTS:
        assert not errors_of(answered / "ward" / name)


def test_they_say_what_the_other_files_say(answered: Path, by_dcmqi: Any) -> None:
    values = values_of(answered / "ward")
    report = pydicom.dcmread(answered / "ward" / "report.dcm").to_json()
    for model in values["models"]:
        assert f"sha256 of {model['name']}: {model['sha256']}" in report
    assert "sha256 of lung model" in report
    assert "sha256 of lobe model" in report
    when = pydicom.dcmread(answered / "ward" / "summary.dcm")
    stated = f"{when.ContentDate}{when.ContentTime}"
    assert stated == "".join(filter(str.isdigit, values["answered_at"]))
    segmentation = pydicom.dcmread(answered / "ward" / "lungs.dcm")
    stored = nibabel.load(answered / "ward" / "lungs.nii.gz").get_fdata()
    frames = segmentation.pixel_array
    for number, label in ((1, 1), (2, 2)):
        of_segment = [
            group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number
            for group in segmentation.PerFrameFunctionalGroupsSequence
        ]
        assert frames[of_segment].sum() == np.count_nonzero(stored == label)


def test_of_a_file_that_is_no_dicom_there_are_none_and_it_is_said(answered: Path) -> None:
    assert files_of(answered / "volume") == []
    (flag,) = [
        flag
        for flag in values_of(answered / "volume")["quality_flags"]
        if flag["code"] == "no_dicom_results"
    ]
    assert flag["level"] == "warning"
    assert "no DICOM series" in flag["message"]
    assert "no DICOM series" in (answered / "volume" / "report.html").read_text("utf-8")


def test_an_equal_question_keeps_answer_and_time(answered: Path, patient: Path) -> None:
    before = bytes_of(answered / "ward")
    result = infer(patient / "ward", "--out", answered, "--dicom", "--overwrite")
    assert "(kept)" in result.stdout
    assert bytes_of(answered / "ward") == before


def test_identifiers_are_in_the_objects_alone(patient: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ward"
    write = ["PatientName", "PatientID", "AccessionNumber", "StudyID", "StudyDescription"]
    shutil.copytree(patient / "ward", folder)
    edit_files(
        folder,
        lambda image: [setattr(image, word, f"ZQMARK{word[:9].upper()}") for word in write],
    )
    uids = {pydicom.dcmread(next(folder.iterdir())).StudyInstanceUID}
    result = infer(folder, "--out", tmp_path / "out", "--dicom", "--attention", "none")
    case = tmp_path / "out" / "ward"
    assert files_of(case) == ["lungs.dcm", "report.dcm", "summary.dcm"]
    for path in [*case.iterdir(), tmp_path / "out" / "summary.csv"]:
        data = path.read_bytes()
        found = b"ZQMARK" in data or any(uid.encode() in data for uid in uids)
        assert found == (path.suffix == ".dcm"), path.name
    assert "ZQMARK" not in result.output


@pytest.mark.slow
def test_another_model_names_the_report_that_it_replaces(patient: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    infer(patient / "ward", "--out", out, "--dicom", "--attention", "none")
    first = pydicom.dcmread(out / "ward" / "report.dcm")
    other = ["--model", "severity-ltc", "--attention", "none"]
    asked = infer(patient / "ward", "--out", out, "--dicom", *other, code=1)
    assert "name_taken" in asked.stderr
    assert pydicom.dcmread(out / "ward" / "report.dcm") == first
    infer(patient / "ward", "--out", out, "--dicom", *other, "--overwrite")
    second = pydicom.dcmread(out / "ward" / "report.dcm")
    assert second.SOPInstanceUID != first.SOPInstanceUID
    (study,) = second.PredecessorDocumentsSequence
    (document,) = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert document.ReferencedSOPInstanceUID == first.SOPInstanceUID


@pytest.mark.slow
def test_a_map_that_would_be_shown_at_wrong_places_is_not_written(tmp_path: Path) -> None:
    chest = draw_chest(5, (72, 128, 128), severity=3)
    for name in ("ward", "gap"):
        write_dicom(chest.hu, chest.affine, tmp_path / name, seed=5)
    sorted((tmp_path / "gap").iterdir())[30].unlink()
    out = tmp_path / "out"
    infer(tmp_path / "ward", tmp_path / "gap", "--out", out, "--dicom-map", "--dicom-pdf")
    both = sorted([*OBJECTS, "report_pdf.dcm"])
    assert files_of(out / "ward") == sorted([*both, "attention_map.dcm"])
    assert files_of(out / "gap") == both
    flags = {flag["code"]: flag for flag in values_of(out / "gap")["quality_flags"]}
    assert flags["no_dicom_map"]["level"] == "info"


@pytest.mark.slow
def test_objects_asked_for_later_bear_the_time_of_the_answer(patient: Path, tmp_path: Path) -> None:
    words = [patient / "ward", "--out", tmp_path, "--attention", "none"]
    infer(*words)
    path = tmp_path / "ward" / "result.json"
    before = values_of(tmp_path / "ward") | {"answered_at": "2026-01-31T09:30:00Z"}
    path.write_text(json.dumps(before), "utf-8")
    infer(*words, "--dicom", "--overwrite")
    assert values_of(tmp_path / "ward")["answered_at"] == "2026-01-31T09:30:00Z"
    assert pydicom.dcmread(tmp_path / "ward" / "summary.dcm").ContentDate == "20260131"


def test_all_that_decides_an_answer_tells_questions_apart(tmp_path: Path) -> None:
    """Two answers under one UID: an archive keeps the first, and nobody is told."""
    every = [
        Options(),
        Options(("severity-ltc",)),
        Options(("severity-i3d", "severity-ltc")),
        Options(precision="bfloat16"),
        Options(attention="layercam"),
        Options(attention="none"),
        Options(attention_target="class"),
        Options(lobes_model="none"),
        Options(lobes_model="lobes-unet3d"),
        Options(allow_other_lungs=True),
    ]
    decide = [json.dumps(Run(tmp_path, options)._decides) for options in every]
    assert len(set(decide)) == len(every)
    same = [Options(identifiers=True), Options(dicom=DicomOptions(map=True))]
    assert {json.dumps(Run(tmp_path, options)._decides) for options in same} == {decide[0]}


@pytest.mark.slow
def test_for_a_research_archive(patient: Path, tmp_path: Path) -> None:
    infer(patient / "ward", "--out", tmp_path, "--dicom-deidentified")
    source = pydicom.dcmread(next((patient / "ward").iterdir()))
    assert files_of(tmp_path / "ward") == OBJECTS
    for name in OBJECTS:
        one = pydicom.dcmread(tmp_path / "ward" / name)
        assert one.PatientIdentityRemoved == "YES"
        assert one.StudyInstanceUID != source.StudyInstanceUID


def test_without_the_extra_it_is_said_before_any_work(tmp_path: Path, patient: Path) -> None:
    program = (
        "import sys; sys.modules['highdicom'] = None\n"
        "from tf_covid.cli import main; main(sys.argv[1:])"
    )
    words = ["infer", str(patient / "ward"), "--out", str(tmp_path / "out"), "--dicom"]
    run = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "highdicom is not installed" in run.stderr
    assert ".[dicom]" in run.stderr
    assert not (tmp_path / "out").exists()


def test_a_plain_answer_imports_nothing_of_it() -> None:
    program = "import sys, tf_covid.infer, tf_covid.report; print('highdicom' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "False"
