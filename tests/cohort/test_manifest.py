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
        {
            "case": "a",
            "patient": "p1",
            "path": "a.nii.gz",
            "ct_score": 11,
            "severity": 2,
            "covid": 1,
            "lobe_scores": (0, 1, 2, 3, 5),
            "lungs": "mask.nii.gz",
            "age": 61,
            "sex": "F",
            "scanner": "X",
        },
        {"case": "b", "patient": "p2", "path": "b.nii.gz"},
    ]
    write_manifest(rows, folder / "manifest.csv")
    first, second = read_manifest(folder / "manifest.csv")
    assert first.path == folder / "a.nii.gz"
    assert first.lungs == folder / "mask.nii.gz"
    assert (first.ct_score, first.severity, first.covid, first.lobe_scores) == (
        11,
        2,
        1,
        (0, 1, 2, 3, 5),
    )
    assert first.model_extra == {"scanner": "X"}
    assert second.ct_score is None
    assert second.lobe_scores is None


def test_a_byte_order_mark_is_fine(folder):
    path = write(folder, "case,patient,path\na,p,a.nii.gz\n", "utf-8-sig")
    assert read_manifest(path)[0].case == "a"


def test_columns_without_a_name_or_a_value_are_ignored(folder):
    path = write(
        folder, "case,,patient,path,,\na,,p,a.nii.gz,,\n\nb,,p,b.nii.gz\n../c,,p,a.nii.gz,,,\n"
    )
    with pytest.raises(
        ManifestError, match=r"1 error.*\nrow 5, case"
    ):  # an empty line is a row to a spreadsheet
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
        "row 2, ct_score",
        "row 3, path: there is no such file",
        "row 4, case",
        "row 5, patient",
        "row 6, case: 'B' stands in row 3 already",
        "row 7, ct_score: 9 is not the sum",
        "row 7, severity: 1 does not",
        "row 8, lobe_scores",
    ):
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
        "row 2, path: there is no such file",
        "row 2, lungs: there is no such file",
        "row 2, covid",
        "row 2, age",
        "row 2, severity",
        "row 3, case: 'a' stands in row 2",
        "row 3, covid",
        "row 3, age",
        "row 3, column 7: holds a",
        "row 4, path: there is no such file",
        "row 4, age",
        "row 4, lobe_scores",
        "row 5, severity: 4 does not belong to a CT score of 1",
    ]
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
        (
            "case,,patient,path,\nb,,p,b.nii.gz,\na,x,p,a.nii.gz,\n",
            "row 3, column 2: holds a value",
        ),
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


HEADER = ["case", "patient", "path", "ct_score", "severity", "age", "sex"]
ROWS = [["a", "p1", "a.nii.gz", "11", "2", "61", "F"], ["b", "p 2", "b.nii.gz", "", "0", "", ""]]


def table(delimiter=",", rows=ROWS, header=HEADER, end="\n"):
    return end.join(delimiter.join(cells) for cells in [header, *rows]) + end


ODD = {
    "semicolons": table(";"),
    "tabs": table("\t"),
    "bars": table("|"),
    "Windows' line ends": table(";", end="\r\n"),
    "old Macs' line ends": table(end="\r"),
    "sep=;": "sep=;\n" + table(";"),
    "SEP=,": "SEP=,\r\n" + table(end="\r\n"),
    "quoted sep": '"sep=;"\n' + table(";"),
    "sep=tab": "sep=\t\n" + table("\t"),
    "sep=\\t": "sep=\\t\n" + table("\t"),
    "sep with commas behind": "sep=,,,,\n" + table(),
    "empty rows of Excel": table(";") + ";;;;;;\n" * 3 + "\n;;;;;;;;\n",
    "empty rows between": table(rows=[ROWS[0], [""] * 7, [" "] * 7, ['""'] * 7, [], ROWS[1]]),
    "empty rows above": "\n,,,,,,\n" + table(),
    "empty columns behind": table(";", [[*row, "", ""] for row in ROWS], [*HEADER, "", ""]),
    "decimal commas": table(";", [["a", "p1", "a.nii.gz", "11,0", "2,0", "61,0", "F"], ROWS[1]]),
    "quoted decimal commas": table(
        rows=[["a", "p1", "a.nii.gz", '"11,0"', "2", '"61,00"', "F"], ROWS[1]]
    ),
    "floats of Excel": table(rows=[["a", "p1", "a.nii.gz", "11.0", "2.0", "61.", "F"], ROWS[1]]),
    "capitals": table(header=[name.upper() for name in HEADER]),
    "spaces": table(header=[" Case", "Patient ", "PATH", "CT Score", "Severity", "Age", "Sex"]),
    "dashes": table(header=["case", "patient", "path", "ct-score", "severity", "age", "sex"]),
    "no dash": table(header=["case", "patient", "path", "CTScore", "severity", "age", "sex"]),
    "all quoted": table(rows=[[f'"{cell}"' for cell in row] for row in ROWS]),
    "spaces around cells": table(rows=[[f" {cell}\u00a0" for cell in row] for row in ROWS]),
    "a signed number": table(rows=[["a", "p1", "a.nii.gz", "+11", "2", "61", "F"], ROWS[1]]),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ODD)
def test_tables_as_spreadsheets_write_them(folder, name, encoding):
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    first, second = read_manifest(write(folder, mark + ODD[name], encoding))
    assert (first.case, first.patient, first.path) == ("a", "p1", folder / "a.nii.gz")
    assert (first.ct_score, first.severity, first.age, first.sex) == (11, 2, 61, "F")
    assert (second.case, second.patient, second.ct_score, second.severity) == ("b", "p 2", None, 0)
    assert not first.model_extra
    assert not second.model_extra


def test_a_cell_may_hold_a_line_break_and_the_delimiter(folder):
    text = 'case;patient;path;site\na;"p\n1";a.nii.gz;"North; ""A"""\nb;p2;b.nii.gz;\n'
    first, second = read_manifest(write(folder, text))
    assert (first.patient, first.site, second.case) == ("p\n1", 'North; "A"', "b")
    bad = write(folder, text + "c;p3;gone.nii.gz;\n")
    with pytest.raises(
        ManifestError, match=r"\nrow 4, path"
    ):  # a spreadsheet's rows, not a text editor's lines
        read_manifest(bad)


def test_rows_are_counted_as_a_spreadsheet_shows_them(folder):
    for text in ("sep=;\n" + table(";", [*ROWS, [""] * 7, ["../c", "p", "a.nii.gz"]]),):
        with pytest.raises(ManifestError, match=r"\nrow 5, case"):
            read_manifest(write(folder, text))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("case,patient,path,severty", "'severty' is nearly severity"),
        ("case,patient,path,lung", "'lung' is nearly lungs"),
        ("case,patient,path,lesion", "'lesion' is nearly lesions"),
        ("case,patient,path,lobe_score", "'lobe_score' is nearly lobe_scores"),
        ("case,patient,path,covid19", "'covid19' is nearly covid"),
        ("case,patient,path,ct_scor", "'ct_scor' is nearly ct_score"),
        (
            "case,pateint,path,x",
            "row 1 has no column patient; 'pateint' is nearly patient; its columns: case, pateint",
        ),
        ("cases,patients,paths,x", "no column case, patient, path; 'cases' is nearly case"),
        (
            "name;id;file;x",
            "row 1 has no column case, patient, path; its columns: name, id, file, x",
        ),
        ("case,patient,path,Path", "more than one column path"),
        ("case,patient,path,CT score,ct_score", "more than one column ct_score"),
        ("case:patient:path:age", "its columns: case:patient:path:age"),
    ],
)
def test_columns_that_are_no_columns_are_named(folder, header, message):
    cells = "a,p,a.nii.gz,1,1\n"
    with pytest.raises(ManifestError, match=message):
        read_manifest(write(folder, header + "\n" + cells))


@pytest.mark.parametrize(
    "name", ["scanner", "kernel", "date", "size", "state", "image", "lung_volume", "note", "ward"]
)
def test_columns_of_others_are_kept(folder, name):
    (row,) = read_manifest(write(folder, f"case,patient,path,{name}\na,p,a.nii.gz,1\n"))
    assert row.model_extra == {name: "1"}


NO_NUMBERS = [
    "1_0",
    "\uff11\uff10",
    "\u0661",
    "1e1",
    "0x1",
    "ten",
    "nan",
    "NaN",
    "inf",
    "Infinity",
    "1 0",
    "1.0.0",
    "1,0,0",
    "\u00bd",
    "\u00b2",
    "--1",
    "1-",
    "#N/A",
    "#REF!",
    "TRUE",
    "-",
    ".",
]


@pytest.mark.parametrize("column", ["ct_score", "severity", "covid", "age", "lobe_scores"])
@pytest.mark.parametrize("text", NO_NUMBERS, ids=ascii)
def test_a_number_is_written_in_digits(folder, column, text):
    if column == "lobe_scores":
        text = f"1 2 3 4 {text.replace(' ', '_').replace(',', '_')}"
    with pytest.raises(ManifestError, match=f"row 2, {column}"):
        read_manifest(write(folder, f"case;patient;path;{column}\na;p;a.nii.gz;{text}\n"))


def test_half_points_are_no_class(folder):
    for column, text in (
        ("severity", "1.5"),
        ("severity", "1,5"),
        ("covid", "0,5"),
        ("lobe_scores", "1 1 1 1 1.5"),
    ):
        with pytest.raises(ManifestError, match=f"row 2, {column}"):
            read_manifest(write(folder, f"case;patient;path;{column}\na;p;a.nii.gz;{text}\n"))
    for text in ("7,5", "7.5"):
        assert (
            read_manifest(write(folder, f"case;patient;path;ct_score\na;p;a.nii.gz;{text}\n"))[
                0
            ].ct_score
            == 7.5
        )
    for text in ("1 2 3 4 5", "1,2,3,4,5", "1/2/3/4/5", "1, 2, 3, 4, 5"):
        found = read_manifest(
            write(folder, f"case;patient;path;lobe_scores\na;p;a.nii.gz;{text}\n")
        )
        assert found[0].lobe_scores == (1, 2, 3, 4, 5)


def test_a_comma_that_shifts_cells_is_seen(folder):
    with pytest.raises(ManifestError, match="row 2, column 5: holds a value"):
        read_manifest(write(folder, "case,patient,path,ct_score\na,p,a.nii.gz,11,5\n"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK\3\4" + b"\1" * 99, "is a workbook"),
        (b"\xd0\xcf\x11\xe0" + b"\1" * 99, "is a workbook"),
        (table().encode("utf-16-le"), "no text in UTF-8 or UTF-16"),
        (table().encode("utf-32"), "no text in UTF-8 or UTF-16"),
        (table(rows=[["\u00e4", *ROWS[0][1:]]]).encode("cp1252"), "CSV in UTF-8"),
        (table().encode("utf-16")[:-1], "CSV in UTF-8"),
        (b"sep=;\n", "no column case, patient, path; its columns: none"),
        (b";;;\n\n", "no column case, patient, path; its columns: ;;;"),
    ],
)
def test_what_is_no_table_is_named(folder, data, message):
    (folder / "manifest.csv").write_bytes(data)
    with pytest.raises(ManifestError, match=message):
        read_manifest(folder / "manifest.csv")


def test_a_spreadsheets_error_is_no_patient(folder):
    with pytest.raises(ManifestError, match="row 2, patient: #REF! is a spreadsheet's error"):
        read_manifest(write(folder, "case,patient,path\na,#REF!,a.nii.gz\n"))
