"""The manifest: a CSV with a row for each scan of a cohort, and what is known about it."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tf_covid import severity
from tf_covid.errors import ManifestError, OutputError

#: Columns that mean something to us, in the order in which we write them; others are kept as they are.
COLUMNS = (
    "case", "patient", "path", "ct_score", "severity", "covid", "lobe_scores", "lungs", "lesions", "age", "sex", "site",
)  # fmt: skip

#: More rows than any chest CT cohort has; a wrong file with this many is not read to its end.
MOST_ROWS = 1_000_000

_SCANS = (".dcm", ".nii", ".nii.gz", ".mha", ".nrrd", ".zip")


def _scores(value: Any) -> Any:
    return tuple(value.split()) if isinstance(value, str) else value


class Row(BaseModel):
    """One scan of a cohort. Paths are absolute once read; whatever is not known is None.

    Args:
        case: Name of the case, safe as a folder name, unique in the manifest.
        patient: Who it is; rows of one patient stay together in cross-validation.
        path: The scan.
        ct_score: Global CT Score, 0–25.
        severity: Class, 0–4.
        covid: 0 or 1.
        lobe_scores: Five scores of 0–5.
        lungs, lesions: Mask files.
        age: Years.
        sex, site: Free text.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    case: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]
    patient: Annotated[str, Field(min_length=1)]
    path: Path
    ct_score: Annotated[float, Field(ge=0, le=25)] | None = None
    severity: Annotated[int, Field(ge=0, le=4)] | None = None
    covid: Annotated[int, Field(ge=0, le=1)] | None = None
    lobe_scores: (
        Annotated[
            tuple[Annotated[int, Field(ge=0, le=5)], ...], BeforeValidator(_scores), Field(min_length=5, max_length=5)
        ]
        | None
    ) = None
    lungs: Path | None = None
    lesions: Path | None = None
    age: Annotated[float, Field(ge=0, le=130)] | None = None
    sex: str | None = None
    site: str | None = None


def read_manifest(path: Path) -> list[Row]:
    """Every row of a manifest, checked in one pass.

    Args:
        path: CSV, UTF-8 (a byte order mark is fine); paths in it are relative to its folder.

    Raises:
        ManifestError: With a line for each wrong cell: a missing file, an impossible value, a case named twice,
            scores that contradict each other.
    """
    rows: list[Row] = []
    seen: dict[str, int] = {}
    table, errors = read_table(path, ("case", "patient", "path"))
    for number, cells in table:
        files = {key: path.parent / cells[key] for key in ("path", "lungs", "lesions") if cells.get(key)}
        errors += [f"row {number}, {key}: there is no such file" for key, file in files.items() if not _exists(file)]
        case = cells["case"].lower()
        if case and case in seen:
            errors.append(f"row {number}, case: {cells['case']!r} stands in row {seen[case]} already")
        seen.setdefault(case, number)
        try:
            row = Row.model_validate({key: value for key, value in cells.items() if value != ""})
        except ValidationError as error:
            errors += [f"row {number}, {item['loc'][0]}: {item['msg']}" for item in error.errors()]
            continue
        errors += [f"row {number}, {text}" for text in _contradictions(row)]
        rows.append(row.model_copy(update=files))
    refuse(path.name, errors)
    if not rows:
        raise ManifestError(f"{path.name}: holds no row")
    return rows


def refuse(name: str, errors: Sequence[str]) -> None:
    """Nothing where `errors` is empty, else all of them at once.

    Args:
        name: Of the file or folder that they were found in.
        errors: A line each, in the order in which they were found.

    Raises:
        ManifestError: With a line for each error, sorted by row.
    """
    if errors:
        lines = sorted(errors, key=_row_of)
        raise ManifestError(f"{name}: {len(lines)} error(s)\n" + "\n".join(lines))


def strays(folder: Path, known: Sequence[str]) -> list[str]:
    """A line for each folder of a data set that would be passed by although it holds scans.

    Args:
        folder: Of the data set.
        known: Names in it that are read; everything hidden is left alone, and so are files.
    """
    others = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name not in known]
    return [
        f"{path.name}: is no folder of the data set, and holds scans"
        for path in others
        if path.name[0] != "." and any(file.name.lower().endswith(_SCANS) for file in path.rglob("*"))
    ]


def _row_of(line: str) -> int:
    found = re.match(r"(?:\S+: )?row (\d+)", line)
    return int(found[1]) if found else 0


def read_table(path: Path, required: Sequence[str]) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    """The rows of a CSV whose first row names its columns, and what is wrong with single rows.

    Args:
        path: CSV, UTF-8 (a byte order mark is fine).
        required: Columns that must be there.

    Returns:
        (row number as a spreadsheet shows it, stripped cells by column) for every row that is not empty, and a line
        for each value in a column without a name. Columns with neither name nor value, which spreadsheets add, are
        left out.

    Raises:
        ManifestError: If the file cannot be read as a table at all, or its columns are missing or doubled.
    """
    rows: list[tuple[int, dict[str, str]]] = []
    errors: list[str] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            names = [name.strip() for name in next(reader, [])]
            missing = [name for name in required if name not in names]
            if missing:
                raise ManifestError(f"{path.name}: row 1 has no column {', '.join(missing)}")
            doubled = [name for name, count in Counter(names).items() if name and count > 1]
            if doubled:
                raise ManifestError(f"{path.name}: row 1 has more than one column {', '.join(doubled)}")
            for number, values in enumerate(reader, 2):
                if number > MOST_ROWS:
                    raise ManifestError(f"{path.name}: has more than {MOST_ROWS} rows")
                cells = [(name, value.strip()) for name, value in zip_longest(names, values, fillvalue="")]
                errors += [
                    f"row {number}, column {column}: holds a value, and row 1 has no name for it"
                    for column, (name, value) in enumerate(cells, 1)
                    if value and not name
                ]
                if values:
                    rows.append((number, {name: value for name, value in cells if name}))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{path.name}: cannot be read as a CSV in UTF-8 ({error})") from error
    return rows, errors


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long, a folder that may not be searched
        return False


def _contradictions(row: Row) -> list[str]:
    found = []
    total = None if row.lobe_scores is None else sum(row.lobe_scores)
    if total is not None and row.ct_score is not None and total != row.ct_score:
        found.append(f"ct_score: {row.ct_score:g} is not the sum of the lobe scores, {total}")
    score = total if row.ct_score is None else row.ct_score
    if score is not None and row.severity not in (None, severity.severity_class(score)):
        found.append(f"severity: {row.severity} does not belong to a CT score of {score:g}")
    return found


def write_manifest(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """Write a manifest atomically; columns of ours first, others behind in order of appearance.

    Args:
        rows: Cells by column; None and missing ones stay empty, sequences are joined by spaces.
        path: The file.

    Raises:
        OutputError: If it cannot be written.
    """
    table = list(rows)
    others = dict.fromkeys(key for row in table for key in row if key not in COLUMNS)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        try:
            with partial.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, [*COLUMNS, *others], lineterminator="\n")
                writer.writeheader()
                for row in table:
                    writer.writerow({key: _cell(value) for key, value in row.items()})
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


def _cell(value: Any) -> Any:
    return " ".join(str(item) for item in value) if isinstance(value, (list, tuple)) else value
