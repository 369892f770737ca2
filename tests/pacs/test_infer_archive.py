"""`tfcovid infer dicomweb:URL#UID --store URL`, as a user meets it, with a real archive."""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import pydicom
import pytest
from click.testing import CliRunner

pytest.importorskip("highdicom", reason="needs the extra [dicom]")

from tests.pacs.orthanc import PASSWORD, USER, Orthanc, free_port
from tf_covid.cli import main
from tf_covid.phantom import draw_chest
from tf_covid.phantom.files import write_dicom

pytestmark = pytest.mark.usefixtures("loaded_once")


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chest = draw_chest(5, (48, 128, 128), severity=3)
    return write_dicom(chest.hu, chest.affine, tmp_path_factory.mktemp("patient") / "ward", seed=5)


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TFCOVID_DICOMWEB_USER", USER)
    monkeypatch.setenv("TFCOVID_DICOMWEB_PASSWORD", PASSWORD)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


def infer(*arguments: Any, code: int = 0) -> Any:
    result = CliRunner().invoke(main, ["infer", *map(str, arguments), "--attention", "none"])
    assert result.exit_code == code, result.output + str(result.exception)
    assert PASSWORD not in result.output
    return result


def study_of(folder: Path) -> str:
    return str(pydicom.dcmread(next(folder.iterdir())).StudyInstanceUID)


def test_from_the_archive_and_back(
    orthanc: Orthanc, patient: Path, tmp_path: Path, login: None
) -> None:
    orthanc.put(*patient.iterdir())
    study = study_of(patient)
    out = tmp_path / "out"
    for _ in range(2):  # the second time the answer is kept, and nothing is stored again
        result = infer(f"dicomweb:{orthanc.url}#{study}", "--out", out, "--store", orthanc.url)
        assert orthanc.modalities() == ["CT", "OT", "SEG", "SR"]
        assert study not in result.output
    assert "(kept)" in result.stdout
    assert "0 of them new" in result.output
    (row,) = csv.DictReader((out / "summary.csv").open(encoding="utf-8"))
    assert row["class"] == "3"
    assert study not in (out / row["case"] / "result.json").read_text("utf-8")
    assert {one["PatientMainDicomTags"]["PatientID"] for one in studies(orthanc)} == {
        pydicom.dcmread(next(patient.iterdir())).PatientID
    }
    assert len(studies(orthanc)) == 1, "results are filed in the study that they are about"
    assert not list((tmp_path / "temporary").glob("tfcovid-*")), "no patient's images stay behind"


def studies(orthanc: Orthanc) -> list[Any]:
    return [orthanc.ask("GET", f"/studies/{study}") for study in orthanc.ask("GET", "/studies")]


def test_what_fails_is_said_and_the_rest_is_done(
    orthanc: Orthanc, patient: Path, tmp_path: Path, login: None
) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}/dicom-web"
    result = infer(
        f"dicomweb:{orthanc.url}#1.2.3.4",
        f"dicomweb:{nowhere}#1.2.3",
        f"dicomweb:{orthanc.url}#no-uid",
        patient,
        "--out",
        tmp_path / "out",
        code=1,
    )
    for code in ("pacs_unknown", "pacs_unreachable", "pacs_url"):
        assert result.stderr.count(f"error: {code}") == 1
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == ["ward"]


def test_a_wrong_password_ends_it(
    orthanc: Orthanc, patient: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFCOVID_DICOMWEB_USER", USER)
    monkeypatch.setenv("TFCOVID_DICOMWEB_PASSWORD", "wrong-word")
    orthanc.put(*patient.iterdir())
    address = f"dicomweb:{orthanc.url}#{study_of(patient)}"
    result = infer(address, "--out", tmp_path / "out", code=1)
    assert "error: pacs_denied" in result.stderr
    assert "wrong-word" not in result.output


@pytest.mark.slow
def test_answers_without_objects_are_no_success_where_they_are_to_be_stored(
    orthanc: Orthanc, patient: Path, tmp_path: Path, login: None
) -> None:
    for file in sorted(patient.iterdir()):
        image = pydicom.dcmread(file)
        image.StudyInstanceUID = "study"
        (tmp_path / "odd").mkdir(exist_ok=True)
        image.save_as(tmp_path / "odd" / file.name)
    out = tmp_path / "out"
    result = infer(tmp_path / "odd", "--out", out, "--store", orthanc.url, code=1)
    assert "error: odd: pacs_nothing" in result.stderr
    flags = json.loads((out / "odd" / "result.json").read_text("utf-8"))["quality_flags"]
    assert "no_dicom_results" in {flag["code"] for flag in flags}


@pytest.mark.slow
def test_a_store_that_is_not_there_leaves_the_answer(
    patient: Path, tmp_path: Path, login: None
) -> None:
    url = f"http://127.0.0.1:{free_port()}/dicom-web"
    result = infer(patient, "--out", tmp_path / "out", "--store", url, code=1)
    assert "error: ward: pacs_unreachable" in result.stderr
    assert (tmp_path / "out" / "ward" / "report.dcm").exists()
    refused = infer(patient, "--out", tmp_path / "other", "--store", "ftp://x", code=1)
    assert "error: pacs_url" in refused.stderr
    assert not (tmp_path / "other").exists()
