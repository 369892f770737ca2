"""The manifest: one pass, every error with its row and column."""

from __future__ import annotations

import pytest

from tf_covid.cohort import read_manifest, write_manifest
from tf_covid.errors import ManifestError


@pytest.fixture
def folder(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz", "mask.nii.gz"):
        (tmp_path / name).touch()
    return tmp_path


def write(folder, text, encoding="utf-8"):
    path = folder / "manifest.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_round_trip_keeps_values_unknown_columns_and_resolves_paths(folder):
    rows = [
        {"case": "a", "patient": "p1", "path": "a.nii.gz", "ct_score": 11, "severity": 2, "covid": 1,
         "lobe_scores": (0, 1, 2, 3, 5), "lungs": "mask.nii.gz", "age": 61, "sex": "F", "scanner": "X"},
        {"case": "b", "patient": "p2", "path": "b.nii.gz"},
    ]  # fmt: skip
    write_manifest(rows, folder / "manifest.csv")
    first, second = read_manifest(folder / "manifest.csv")
    assert first.path == folder / "a.nii.gz" and first.lungs == folder / "mask.nii.gz"
    assert (first.ct_score, first.severity, first.covid, first.lobe_scores) == (11, 2, 1, (0, 1, 2, 3, 5))
    assert first.model_extra == {"scanner": "X"}
    assert second.ct_score is None and second.lobe_scores is None


def test_a_byte_order_mark_is_fine(folder):
    path = write(folder, "case,patient,path\na,p,a.nii.gz\n", "utf-8-sig")
    assert read_manifest(path)[0].case == "a"


def test_columns_without_a_name_or_a_value_are_ignored(folder):
    path = write(folder, "case,,patient,path,,\na,,p,a.nii.gz,,\n\nb,,p,b.nii.gz\n../c,,p,a.nii.gz,,,\n")
    with pytest.raises(ManifestError, match=r"1 error.*\nrow 5, case"):  # an empty line is a row to a spreadsheet
        read_manifest(path)
    rows = read_manifest(write(folder, path.read_text("utf-8").rpartition("../")[0]))
    assert [(row.case, row.model_extra) for row in rows] == [("a", {}), ("b", {})]


def test_every_error_is_listed_with_row_and_column(folder):
    path = write(
        folder,
        "case,patient,path,ct_score,severity,lobe_scores\n"
        "a,p1,a.nii.gz,30,1,\n"
        "b,p2,gone.nii.gz,,,\n"
        "../c,p3,a.nii.gz,,,\n"
        "d,,a.nii.gz,,,\n"
        "B,p5,a.nii.gz,,,\n"
        "e,p6,a.nii.gz,9,1,1 2 3 4 5\n"
        "f,p7,a.nii.gz,,,1 2 3\n",
    )
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    lines = str(caught.value).splitlines()
    for start in (
        "row 2, ct_score", "row 3, path: there is no such file", "row 4, case", "row 5, patient",
        "row 6, case: 'B' stands in row 3 already", "row 7, ct_score: 9 is not the sum", "row 7, severity: 1 does not",
        "row 8, lobe_scores",
    ):  # fmt: skip
        assert any(line.startswith(start) for line in lines), (start, lines)


def test_every_wrong_cell_of_a_row_is_listed(folder):
    long = "n" * 5000
    path = write(
        folder,
        "case,patient,path,covid,age,sex,,lungs,severity,lobe_scores\n"
        "a,p1,gone.nii.gz,2,old,F,,none.nii.gz,9,\n"
        "a,p2,a.nii.gz,nan,-3,,stray,,,\n"
        f"b,p3,{long},,inf,,,,,1 2 3 4 x\n"
        "c,p4,b.nii.gz,1,61,,,,4,0 0 0 0 1\n"
        ",,,,,,,,,\n",
    )
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    first, *lines = str(caught.value).splitlines()
    starts = [
        "row 2, path: there is no such file", "row 2, lungs: there is no such file", "row 2, covid", "row 2, age",
        "row 2, severity", "row 3, case: 'a' stands in row 2", "row 3, covid", "row 3, age", "row 3, column 7: holds a",
        "row 4, path: there is no such file", "row 4, age", "row 4, lobe_scores",
        "row 5, severity: 4 does not belong to a CT score of 1", "row 6, case", "row 6, patient", "row 6, path",
    ]  # fmt: skip
    assert first == f"manifest.csv: {len(starts)} error(s)"
    assert sorted(lines, key=lambda line: int(line.split()[1][:-1])) == lines
    for start in starts:
        assert sum(line.startswith(start) for line in lines) == 1, (start, lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column case, patient, path"),
        ("case,patient,path\n", "holds no row"),
        ("case,path\na,a.nii.gz\n", "no column patient"),
        ("case,patient,path\na,p,a.nii.gz,more\n", "row 2, column 4: holds a value"),
        ("case,,patient,path,\nb,,p,b.nii.gz,\na,x,p,a.nii.gz,\n", "row 3, column 2: holds a value"),
        ("case,patient,path,age,age\na,p,a.nii.gz,1,2\n", "row 1 has more than one column age"),
        ('case,patient,path\n"a,p', "cannot be read as a CSV"),
    ],
)
def test_broken_tables_are_named(folder, text, message):
    with pytest.raises(ManifestError, match=message):
        read_manifest(write(folder, text))


def test_other_encodings_and_missing_files_are_named(folder):
    with pytest.raises(ManifestError, match="CSV in UTF-8"):
        read_manifest(write(folder, "case,patient,path\nä,p,a.nii.gz\n", "latin-1"))
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(folder / "none.csv")
