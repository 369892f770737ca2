"""Inputs → cases: what lies in a path, what it is called, what identifies it."""

from __future__ import annotations

import dataclasses
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tf_covid import atomic
from tf_covid.errors import ScanRefused
from tf_covid.phantom.files import Facts, write_dicom, write_nifti_volume
from tf_covid.report import files
from tf_covid.scan import find_cases, read


def pack(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent))
    return path


def test_a_hospital_folder(marker, tmp_path: Path, quality_flags) -> None:
    """Nested, without extensions, with a viewer, a DICOMDIR, a report and a text beside the
    images."""
    root = tmp_path / "export"
    write_dicom(marker.hu, marker.affine, root / "A" / "B" / "C", shuffle_names=True)
    (root / "VIEWER").mkdir()
    (root / "VIEWER" / "autorun.exe").write_bytes(b"MZ" + bytes(500))
    (root / "readme").write_text("hello")
    (root / "empty").touch()
    (root / "nested.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    (root / "DICOMDIR").write_bytes(
        bytes(128) + b"DICM" + bytes.fromhex("02000000554c0400") + bytes(4) + bytes(100)
    )
    scan = read(root)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert scan.case == "export"
    assert quality_flags(scan)["foreign_files"].value == 5
    assert read(root / "DICOMDIR").case == "export"


@pytest.mark.parametrize("order", ["folder", "members"])
def test_zip(marker, series: Path, tmp_path: Path, order: str) -> None:
    scan = read(pack(series, tmp_path / "Scan 7.zip"))
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert scan.case == "Scan_7"
    assert scan.fingerprint == read(series).fingerprint


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
def test_zip_of_a_volume(marker, tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    write_nifti_volume(marker.hu, marker.affine, tmp_path / "in" / name)
    np.testing.assert_array_equal(read(pack(tmp_path / "in", tmp_path / "b.zip")).hu, marker.hu)


def test_a_folder_of_volumes(marker, tmp_path: Path) -> None:
    root = tmp_path / "cohort"
    (root / "x").mkdir(parents=True)
    for name in ("one.nii.gz", "two.nii", "x/one.nii.gz"):
        write_nifti_volume(marker.hu, marker.affine, root / name)
    cases = find_cases(root)
    assert [case.name for case in cases] == ["cohort-one", "cohort-two", "cohort-x_one"]
    assert [case.read().case for case in cases] == [case.name for case in cases]
    with pytest.raises(ScanRefused, match=r"several_cases.*find_cases"):
        read(root)


def test_several_patients(marker, tmp_path: Path) -> None:
    root = tmp_path / "ward"
    for number in (1, 2):
        facts = Facts(patient_id=f"P-{number}00", patient_name=f"Name{number}^X")
        write_dicom(marker.hu, marker.affine, root / f"bed{number}", seed=number, facts=facts)
    cases = find_cases(root)
    assert [case.name for case in cases] == ["ward-bed1", "ward-bed2"]
    assert len({case.fingerprint() for case in cases}) == 2
    for case in cases:
        np.testing.assert_array_equal(case.read().hu, marker.hu)
    with pytest.raises(ScanRefused, match="2 studies"):
        read(root)


def test_studies_mixed_in_one_folder_are_numbered(marker, tmp_path: Path) -> None:
    root = tmp_path / "mixed"
    root.mkdir()
    for number in (1, 2):
        folder = write_dicom(marker.hu, marker.affine, tmp_path / f"p{number}", seed=number)
        for file in folder.iterdir():
            shutil.move(file, root / f"{number}-{file.name}")
    assert [case.name for case in find_cases(root)] == ["mixed-1", "mixed-2"]


FACTS = Facts(
    patient_id="12-34 567",
    patient_name="Müller-Øst^Jane^^Dr",
    accession_number="ACC99",
    birth_date="19470203",
)


@pytest.mark.parametrize(
    "name",
    [
        "UID",
        "ct_JANE",
        "Muller scan",
        "x12-34567",
        "1234567",
        "acc99",
        "b19470203",
        "J.A.N.E",
        "MÜLLER",
        "øst-ct",
    ],
)
def test_a_name_with_the_patient_in_it_becomes_a_hash(marker, tmp_path: Path, name: str) -> None:
    folder = write_dicom(marker.hu, marker.affine, tmp_path / name, facts=FACTS)
    if name == "UID":
        folder = folder.rename(tmp_path / find_cases(folder)[0].instances[0].study_uid)
    (case,) = find_cases(folder)
    assert case.name.startswith("case-")
    assert len(case.name) == 17
    assert find_cases(pack(folder, tmp_path / "other.zip"))[0].name == "other"
    (again,) = find_cases(pack(folder, tmp_path / f"{folder.name}.zip"))
    assert again.name == case.name


@pytest.mark.parametrize("name", ["Li_Wu", "liwu-ct", "WuLi", "ct Li", "x_7", "Lí.scan", "LiAnWu"])
def test_a_short_name_or_id_becomes_a_hash(marker, tmp_path: Path, name: str) -> None:
    facts = dataclasses.replace(FACTS, patient_name="Li^Wu An^^Dr", patient_id="7")
    folder = write_dicom(marker.hu, marker.affine, tmp_path / name, facts=facts)
    assert find_cases(folder)[0].name.startswith("case-")


@pytest.mark.parametrize("name", ["clinic", "wuhan", "ct-77", "plan"])
def test_a_word_that_only_holds_a_short_name_stays(marker, tmp_path: Path, name: str) -> None:
    facts = dataclasses.replace(FACTS, patient_name="Li^Wu An^^Dr", patient_id="7")
    assert (
        find_cases(write_dicom(marker.hu, marker.affine, tmp_path / name, facts=facts))[0].name
        == name
    )


def test_numbers_of_ours_are_no_patient_id(marker, tmp_path: Path) -> None:
    root = tmp_path / "mixed"
    root.mkdir()
    for number in (1, 2):
        facts = dataclasses.replace(FACTS, patient_id=str(number))
        folder = write_dicom(
            marker.hu, marker.affine, tmp_path / f"p{number}", seed=number, facts=facts
        )
        for file in folder.iterdir():
            shutil.move(file, root / f"x{number}-{file.name}")
    assert [case.name for case in find_cases(root)] == ["mixed-1", "mixed-2"]


def test_a_file_named_by_its_sop_instance_uid(marker, series: Path, tmp_path: Path) -> None:
    file = sorted(series.iterdir())[0]
    uid = find_cases(file)[0].instances[0].sop_uid
    assert find_cases(Path(shutil.copy(file, tmp_path / f"{uid}.dcm")))[0].name.startswith("case-")
    assert find_cases(pack(series, tmp_path / f"{uid}.zip"))[0].name.startswith("case-")


def test_a_link_keeps_its_own_name(
    marker, series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """git-annex keeps every file under the hash of its content and links to it."""
    store = tmp_path / "annex"
    store.mkdir()
    write_nifti_volume(marker.hu, marker.affine, store / "SHA256E-s1--abc.nii.gz")
    (tmp_path / "scan 7.nii.gz").symlink_to(store / "SHA256E-s1--abc.nii.gz")
    (tmp_path / "ward").symlink_to(series)
    (store / "SHA256E-s1--def").write_bytes(bytes(200))
    (series / "DICOMDIR").symlink_to(store / "SHA256E-s1--def")
    monkeypatch.chdir(tmp_path / "ward")
    paths = [
        tmp_path / "scan 7.nii.gz",
        tmp_path / "ward",
        tmp_path / "ward/DICOMDIR",
        "DICOMDIR",
        ".",
    ]
    assert [read(path).case for path in paths] == ["scan_7", "ward", "ward", "series", "series"]
    (tmp_path / "series" / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "series" / "sub")
    assert read("..").case == "series"


def test_answers_of_ours_are_no_input(marker, series: Path, quality_flags) -> None:
    """`infer . --out out`, again: the masks of the first run are volumes too."""
    before = read(series)
    answer = series / "out" / "series"
    killed = atomic._sibling(answer)
    for folder in (answer, killed):
        folder.mkdir(parents=True)
        write_nifti_volume(marker.hu, marker.affine, folder / "lungs.nii.gz")
    for name in (*files.CASE_FILES, ".DS_Store"):
        (answer / name).touch()
    after = read(series)
    assert after.quality_flags == before.quality_flags
    assert after.fingerprint == before.fingerprint
    assert "no_scan" in {flag.code for case in find_cases(answer) for flag in case.quality_flags}
    # Somebody else's files of these names lie beside images, which are not passed over.
    for name in ("result.json", "report.html"):
        (series / name).touch()
    assert quality_flags(read(series))["foreign_files"].value == 2


@pytest.mark.parametrize("name", ["scan", "ct-12", "drx", "3"])
def test_a_name_without_the_patient_stays(marker, tmp_path: Path, name: str) -> None:
    assert (
        find_cases(write_dicom(marker.hu, marker.affine, tmp_path / name, facts=FACTS))[0].name
        == name
    )


def test_a_subfolder_with_another_patients_name(marker, tmp_path: Path) -> None:
    write_dicom(marker.hu, marker.affine, tmp_path / "in" / "jane", facts=FACTS, seed=1)
    write_dicom(
        marker.hu,
        marker.affine,
        tmp_path / "in" / "b",
        facts=dataclasses.replace(FACTS, patient_id="X"),
        seed=2,
    )
    names = [case.name for case in find_cases(tmp_path / "in")]
    assert names[0] == "in-b"
    assert names[1].startswith("case-")


@pytest.mark.parametrize("name", ["..hidden", "a b/c", "ü", "x" * 300, "-rf"])
def test_names_are_safe(name: str) -> None:
    from tf_covid.scan.names import case_names

    (made,) = case_names(Path("/data") / name.replace("/", ":"), [""], [()])
    assert made
    assert len(made) <= 80
    assert made.isascii()
    assert not set(made) & set("/\\: ")
    assert made[0] not in ".-"


def test_identifiers_are_there_and_nowhere_else(marker, tmp_path: Path, edit) -> None:
    folder = write_dicom(marker.hu, marker.affine, tmp_path / "a", facts=FACTS)
    sorted(folder.iterdir())[5].unlink()
    scan = read(folder)
    assert set(scan.identifiers) == {
        *("patient_id", "patient_name", "birth_date", "accession_number", "study_uid", "uid"),
    }
    assert scan.identifiers["patient_id"] == "12-34 567"
    public = repr(scan) + scan.chosen_because + "".join(flag.message for flag in scan.quality_flags)
    for value in (*scan.identifiers.values(), "Jane", "ller"):
        assert value not in public


def test_the_fingerprint_is_of_the_bytes(marker, series: Path, tmp_path: Path) -> None:
    before = find_cases(series)[0].fingerprint()
    (series / "note.txt").write_text("not part of the case")
    moved = tmp_path / "moved"
    shutil.copytree(series, moved)
    first = sorted(moved.glob("*.dcm"))[0]
    first.rename(moved / "renamed")
    assert find_cases(moved)[0].fingerprint() == before == read(series).fingerprint
    data = bytearray((moved / "renamed").read_bytes())
    data[-1] ^= 1
    (moved / "renamed").write_bytes(data)
    assert find_cases(moved)[0].fingerprint() != before


def test_a_file_without_preamble_and_meta(marker, series: Path) -> None:
    for file in series.iterdir():
        data = file.read_bytes()
        length = int.from_bytes(data[140:144], "little")
        file.write_bytes(data[144 + length :])
    np.testing.assert_array_equal(read(series).hu, marker.hu)


def test_no_tensorflow() -> None:
    import subprocess
    import sys

    code = (
        "import sys, tf_covid.scan, tf_covid.phantom.files; sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
