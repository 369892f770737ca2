"""Whose objects they are, which they are, and what a research archive may know of it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from tests.dicom_results.grids import answer
from tf_covid.dicom_results.options import DicomOptions
from tf_covid.dicom_results.uids import uid
from tf_covid.report.montage import montage
from tf_covid.scan import read

ALL = DicomOptions(map=True, pdf=True)
NAMES = ("lungs", "attention", "summary", "report", "attention_map", "report_pdf")


def objects(folder: Path) -> dict[str, Dataset]:
    found = {path.stem: pydicom.dcmread(path) for path in folder.glob("*.dcm")}
    assert sorted(found) == sorted(NAMES)
    return found


def test_they_belong_to_the_patient_and_the_study(series: Path, write: Any) -> None:
    source = pydicom.dcmread(next(series.iterdir()))
    for one in objects(write(answer(read(series)), ALL)).values():
        for keyword in (
            "PatientID",
            "PatientName",
            "PatientBirthDate",
            "PatientSex",
            "StudyInstanceUID",
            "StudyID",
            "StudyDate",
            "StudyTime",
            "AccessionNumber",
        ):
            assert one[keyword].value == source[keyword].value, keyword
        assert one.SeriesInstanceUID != source.SeriesInstanceUID
        assert "tfcovid" in one.SeriesDescription


def test_each_is_a_series_of_its_own(series: Path, write: Any) -> None:
    found = objects(write(answer(read(series)), ALL)).values()
    assert len({one.SeriesInstanceUID for one in found}) == len(NAMES)
    assert len({one.SOPInstanceUID for one in found}) == len(NAMES)
    assert len({one.SeriesNumber for one in found}) == len(NAMES)


@pytest.mark.parametrize("options", [ALL, dataclasses.replace(ALL, deidentified=True)])
def test_the_same_answer_gives_the_same_bytes(
    series: Path, write: Any, options: DicomOptions
) -> None:
    answered = answer(read(series))
    first, second = (write(answered, options, name=name) for name in ("first", "second"))
    for name in NAMES:
        assert (first / f"{name}.dcm").read_bytes() == (second / f"{name}.dcm").read_bytes(), name


def test_the_same_answer_is_drawn_alike(series: Path, write: Any) -> None:
    answered = answer(read(series))
    pages = [montage(answered.result, answered.scan) for _ in range(2)]
    first, second = (write(answered, ALL, name=f"page-{n}", page=pages[n]) for n in range(2))
    for name in ("summary", "report_pdf"):
        assert (first / f"{name}.dcm").read_bytes() == (second / f"{name}.dcm").read_bytes()


def test_their_time_is_that_of_the_answer(series: Path, write: Any) -> None:
    for name, one in objects(write(answer(read(series)), ALL)).items():
        said = re.findall(
            r"(Instance Creation|Content|Series) (Date|Time)\s+\w\w: '(\d+)", str(one)
        )
        assert {value for _, what, value in said if what == "Date"} == {"20260131"}, name
        assert {value for _, what, value in said if what == "Time"} == {"093000"}, name


def test_another_question_gives_other_uids_and_names_the_report_before(
    series: Path, write: Any, errors_of: Any
) -> None:
    answered = answer(read(series))
    first = write(answered, ALL, name="first")
    second = write(answered, ALL, name="second", identity="another", previous=first / "report.dcm")
    before, after = objects(first), objects(second)
    for name in NAMES:
        assert before[name].SOPInstanceUID != after[name].SOPInstanceUID
        assert before[name].SeriesInstanceUID == after[name].SeriesInstanceUID
    assert "PredecessorDocumentsSequence" not in before["report"]
    (study,) = after["report"].PredecessorDocumentsSequence
    (document,) = study.ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert document.ReferencedSOPInstanceUID == before["report"].SOPInstanceUID
    assert not errors_of(second / "report.dcm")


def test_a_report_of_another_study_or_a_foreign_file_is_no_predecessor(
    series: Path, edit: Any, write: Any, tmp_path: Path
) -> None:
    first = write(answer(read(series)), ALL, name="first")
    again = write(answer(read(series)), ALL, name="again", previous=first / "report.dcm")
    assert "PredecessorDocumentsSequence" not in objects(again)["report"], "the same question"
    (tmp_path / "foreign.dcm").write_bytes(b"no DICOM")
    edit(series, lambda image: setattr(image, "StudyInstanceUID", "1.2.3.4"))
    other = answer(read(series))
    for number, path in enumerate(
        (first / "report.dcm", first / "lungs.dcm", tmp_path / "foreign.dcm", tmp_path / "none")
    ):
        written = write(other, ALL, name=f"other-{number}", previous=path)
        assert "PredecessorDocumentsSequence" not in objects(written)["report"]


def test_an_odd_report_in_the_folder_is_no_predecessor(series: Path, write: Any) -> None:
    first = write(answer(read(series)), ALL, name="first")
    changes = {
        "no series": lambda image: delattr(image, "SeriesInstanceUID"),
        "a series that is no UID": lambda image: setattr(image, "SeriesInstanceUID", "1.02"),
        "somebody else's": lambda image: setattr(image, "Manufacturer", "OTHER"),
        "no class": lambda image: delattr(image, "SOPClassUID"),
    }
    for number, change in enumerate(changes.values()):
        odd = pydicom.dcmread(first / "report.dcm")
        change(odd)
        odd.save_as(first / f"odd-{number}.dcm", enforce_file_format=False)
        written = write(
            answer(read(series)),
            ALL,
            name=f"after-{number}",
            identity="another",
            previous=first / f"odd-{number}.dcm",
        )
        assert "PredecessorDocumentsSequence" not in objects(written)["report"]


def test_two_reports_do_not_each_follow_the_other(series: Path, write: Any) -> None:
    answered = answer(read(series))
    first = write(answered, ALL, name="first")
    second = write(answered, ALL, name="b", identity="b", previous=first / "report.dcm")
    third = write(answered, ALL, name="third", previous=second / "report.dcm")
    assert (third / "report.dcm").read_bytes() == (first / "report.dcm").read_bytes()


def test_results_beside_a_series_are_no_slices_that_were_lost(series: Path, write: Any) -> None:
    """So it lies in an archive, and comes out of it."""
    scan = read(series)
    for path in write(answer(scan), ALL).glob("*.dcm"):
        path.rename(series / path.name)
    again = read(series)
    assert "unreadable_files" not in [flag.code for flag in again.quality_flags]
    assert again.source_images == scan.source_images


def test_other_slices_give_other_uids(series: Path, write: Any) -> None:
    first = objects(write(answer(read(series)), ALL, name="first"))
    sorted(series.iterdir())[-1].unlink()
    scan = read(series)
    maps = answer(scan).result.maps
    cut = dataclasses.replace(
        maps,
        voxels=dataclasses.replace(maps.voxels, codes=maps.voxels.codes[1:]),
        attention=maps.attention[1:],
        kept=maps.kept[1:],
    )
    second = objects(write(answer(scan, cut), ALL, name="second"))
    for name in NAMES:
        assert first[name].SOPInstanceUID != second[name].SOPInstanceUID
        assert first[name].SeriesInstanceUID == second[name].SeriesInstanceUID


def test_uids_are_of_their_parts_not_of_their_letters() -> None:
    assert uid("a", "b") != uid("ab") != uid("a", "b", "")
    assert uid("1:a", "b") != uid("1", "a:b")
    assert uid("a") == uid("a")
    assert pydicom.uid.UID(uid("a")).is_valid


def planted(image: Dataset) -> None:
    """A marker in every text of a header that may hold one."""
    texts = {
        "PatientName": "Zqmarkername^Zqmarkergiven",
        "PatientID": "ZQMARKERID",
        "IssuerOfPatientID": "ZQMARKERISSUER",
        "OtherPatientIDs": "ZQMARKEROTHER",
        "PatientAddress": "Zqmarkerstreet 1",
        "PatientComments": "Zqmarkercomment",
        "PatientBirthDate": "19470229",
        "PatientAge": "073Y",
        "EthnicGroup": "ZQMARKERGROUP",
        "AccessionNumber": "ZQMARKERACC",
        "StudyID": "ZQMARKERSTUDY",
        "StudyDescription": "Zqmarkerdescription",
        "SeriesDescription": "Zqmarkerseries",
        "ProtocolName": "Zqmarkerprotocol",
        "ReferringPhysicianName": "Zqmarkerdoctor",
        "PerformingPhysicianName": "Zqmarkerperformer",
        "OperatorsName": "Zqmarkeroperator",
        "InstitutionName": "Zqmarkerhospital",
        "InstitutionAddress": "Zqmarkercity",
        "StationName": "ZQMARKERSTATION",
        "DeviceSerialNumber": "ZQMARKERSERIAL",
        "ImageComments": "Zqmarkerimage",
        "StudyDate": "20210917",
        "StudyTime": "101112",
        "ContentDate": "20210917",
        "AcquisitionDate": "20210917",
    }
    for keyword, value in texts.items():
        setattr(image, keyword, value)


def everything(path: Path) -> str:
    return path.read_bytes().decode("latin-1").casefold()


def test_a_research_archive_learns_nothing_of_whose_they_are(
    series: Path, edit: Any, write: Any, errors_of: Any
) -> None:
    edit(series, planted)
    source = [pydicom.dcmread(file) for file in series.iterdir()]
    scan = read(series)
    folder = write(answer(scan, case="zqmarker-case"), dataclasses.replace(ALL, deidentified=True))
    uids = {one.SOPInstanceUID for one in source}
    uids |= {source[0].StudyInstanceUID, source[0].SeriesInstanceUID}
    uids |= {source[0].FrameOfReferenceUID}
    for path in folder.glob("*.dcm"):
        text = everything(path)
        for marker in ("zqmarker", "19470229", "20210917", "101112", "073y", *uids):
            assert marker not in text, (path.name, marker)
        assert "20260131" not in text, (path.name, "the date of the answer")
        assert not errors_of(path), path.name
        written = pydicom.dcmread(path)
        assert written.PatientIdentityRemoved == "YES"
        assert re.fullmatch("TFCOVID-[0-9A-F]{16}", written.PatientID)
    studies = {pydicom.dcmread(path).StudyInstanceUID for path in folder.glob("*.dcm")}
    assert len(studies) == 1


def test_an_archive_gets_patient_and_study_and_nothing_else(
    series: Path, edit: Any, write: Any
) -> None:
    edit(series, planted)
    folder = write(answer(read(series)), ALL)
    for path in folder.glob("*.dcm"):
        found = set(re.findall("zqmarker[a-z]*", everything(path)))
        assert {"zqmarkername", "zqmarkerid", "zqmarkeracc"} <= found
        allowed = ["name", "given", "id", "issuer", "acc", "study", "description", "doctor"]
        assert found <= {f"zqmarker{word}" for word in allowed}, path.name
