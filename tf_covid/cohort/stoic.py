"""STOIC2021 (Revel et al. 2021, doi 10.1148/radiol.2021210384) → rows of a manifest.

The public training set as it is distributed:

    data/mha/<PatientID>.mha     2,000 scans, one a patient; age and sex stand in the header of the
                                 file
    metadata/reference.csv       PatientID,probCOVID,probSevere: 0 or 1

`covid` is probCOVID, the result of RT-PCR. **probSevere is not the severity of this project**: it
says who died or was intubated within a month. It goes into a column of its own, `stoic_severe`, and
`severity` and `ct_score` stay empty. Ages come in steps of ten years (the set gives categories):
`age` is the number in the header, which stands for one.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tf_covid.cohort.manifest import refuse, unexpected_folders
from tf_covid.cohort.table import read_table
from tf_covid.errors import ManifestError, ScanRefused

_COLUMNS = ("PatientID", "probCOVID", "probSevere")
_PATIENT = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,73}"
)  # "stoic-" before it is a safe case name of 80 letters
_HEADER_BYTES = 1 << 16
_BITS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}
_UNITS = {"Y": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}


def stoic_rows(folder: Path) -> list[dict[str, Any]]:
    """A row for each patient of a STOIC2021 folder, in the order of `reference.csv`.

    Headers are read, and no voxels.

    Args:
        folder: The one that holds `data/` and `metadata/`.

    Returns:
        Rows with `case` (`stoic-<PatientID>`), `patient`, `path`, `covid`, `age` and `sex` as far
        as the header holds them, `stoic_severe` (0/1) and `source`. Further columns of
        `reference.csv` are kept as `stoic_<column>`.

    Raises:
        ManifestError: If the folder is not laid out like that, or with a line for each wrong cell
            of `reference.csv`, row without a scan, scan without a row, and header that cannot be
            read.
    """
    scans, reference = folder / "data" / "mha", folder / "metadata" / "reference.csv"
    needed = {"data/mha": scans.is_dir(), _name(reference): reference.is_file()}
    lost = [name for name, there in needed.items() if not there]
    if lost:
        raise ManifestError(
            f"{folder.name}: not a STOIC2021 folder: it has no {' and no '.join(lost)}"
        )
    table, wrong = read_table(reference, _COLUMNS)
    errors = [f"{_name(reference)}: {line}" for line in wrong]
    errors += unexpected_folders(folder, ("data", "metadata")) + unexpected_folders(
        folder / "data", ("mha",)
    )
    paths = [path for path in sorted(scans.iterdir()) if not path.name.startswith(".")]
    files = {path.stem: path for path in paths if path.suffix == ".mha" and path.is_file()}
    others = set(paths) - set(files.values())
    errors += [f"data/mha/{path.name}: is not a scan (<PatientID>.mha)" for path in sorted(others)]
    rows: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    for index, cells in table:
        row, wrong = _row(cells, files, seen)
        errors += [f"{_name(reference)}: row {index}, {text}" for text in wrong]
        seen.setdefault(cells["PatientID"], index)
        if row is not None:
            header, unread = _header(row["path"])
            errors += unread
            rows.append(row | header)
    errors += [
        f"data/mha/{path.name}: has no row in {_name(reference)}"
        for name, path in files.items()
        if name not in seen
    ]
    if not table:
        errors.append(f"{_name(reference)}: holds no row")
    refuse(folder.name, errors)
    return rows


def _row(
    cells: dict[str, str], files: dict[str, Path], seen: dict[str, int]
) -> tuple[dict[str, Any] | None, list[str]]:
    """What a row of `reference.csv` says of a scan, and "column: reason" for all that is wrong."""
    patient = cells["PatientID"]
    bits = {column: _BITS.get(cells[column]) for column in _COLUMNS[1:]}
    errors = [
        f"{column}: {cells[column]!r} is neither 0 nor 1"
        for column, bit in bits.items()
        if bit is None
    ]
    if bits["probCOVID"] == 0 and bits["probSevere"] == 1:
        errors.append("probSevere: 1 does not go with probCOVID 0: it is an outcome of COVID-19")
    if not _PATIENT.fullmatch(patient):
        errors.append(f"PatientID: {patient!r} is no name of a scan")
    elif patient in seen:
        errors.append(f"PatientID: {patient} stands in row {seen[patient]} already")
    elif patient not in files:
        errors.append(f"PatientID: there is no data/mha/{patient}.mha")
    else:
        row = {"case": f"stoic-{patient}", "patient": f"stoic-{patient}", "path": files[patient]}
        row |= {
            "covid": bits["probCOVID"],
            "stoic_severe": bits["probSevere"],
            "source": "STOIC2021",
        }
        return (
            row | {f"stoic_{key}": value for key, value in cells.items() if key not in _COLUMNS},
            errors,
        )
    return None, errors


def _name(reference: Path) -> str:
    return f"{reference.parent.name}/{reference.name}"


def _header(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Age and sex from the head of a MetaImage, and what is wrong with it."""
    from tf_covid.scan.metaimage import parse  # brings NumPy, which the command line does not need

    where = f"data/mha/{path.name}"
    try:
        with path.open("rb") as stream:
            header = parse(stream.read(_HEADER_BYTES))
    except ScanRefused as error:
        return {}, [f"{where}: {error}"]
    except OSError as error:
        return {}, [f"{where}: cannot be read ({error.strerror})"]
    if header.data_file:
        return {}, [f"{where}: its voxels lie in another file"]
    return person(header.fields.get("patientage", ""), header.fields.get("patientsex", ""), where)


def person(age: str, sex: str, where: str) -> tuple[dict[str, Any], list[str]]:
    """Age and sex of a patient as DICOM writes them (PS3.5 6.2, Age String): 065Y, 018M; M, F, O.

    Args:
        age: Value of PatientAge; empty where unknown.
        sex: Value of PatientSex; empty where unknown.
        where: File that they were read from, for a message.

    Returns:
        `{"age": years or None, "sex": text or None}`, and a line for each value that is neither
        empty nor possible.
    """
    errors = []
    years, text = None, sex.strip().upper()
    if age.strip():
        match = re.fullmatch(r"([0-9]{1,3})([YMWD])", age.strip().upper())
        years = round(int(match[1]) / _UNITS[match[2]], 2) if match else None
        if years is None or years > 130:
            errors.append(f"{where}: PatientAge {age!r} is no age")
    if text not in ("", "M", "F", "O"):
        errors.append(f"{where}: PatientSex {sex!r} is not M, F or O")
    return {"age": years if years is None or years % 1 else int(years), "sex": text or None}, errors
