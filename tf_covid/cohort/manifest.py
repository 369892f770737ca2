"""The manifest: a CSV with a row for each scan of a cohort, and what is known about it."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tf_covid import severity
from tf_covid.atomic import replacing
from tf_covid.cohort.table import decimal_number, read_table, whole_number
from tf_covid.errors import ManifestError
from tf_covid.tensor import Json

#: Columns that mean something to us, in the order in which we write them; others are kept as they
#: are.
COLUMNS = (
    "case",
    "patient",
    "path",
    "ct_score",
    "severity",
    "covid",
    "lobe_scores",
    "lungs",
    "lesions",
    "lobes",
    "tissues",
    "age",
    "sex",
    "site",
)

#: Columns that name files.
_FILES = ("path", "lungs", "lesions", "lobes", "tissues")

_SCANS = (".dcm", ".nii", ".nii.gz", ".mha", ".nrrd", ".zip")


_Whole = BeforeValidator(whole_number)
_Decimal = BeforeValidator(decimal_number)


def _scores(value: Json) -> Json:
    return tuple(re.split(r"[\s,;|/]+", value.strip())) if isinstance(value, str) else value


class ManifestRow(BaseModel):
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
        lobes: Label file: 1–5 in the order of `severity.LOBES`, 0 outside of the lungs.
        tissues: Label file of the numbers of `tissues.TISSUES`, 0 where it is not known.
        age: Years.
        sex, site: Free text.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    case: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]
    patient: Annotated[str, Field(min_length=1)]
    path: Path
    ct_score: Annotated[float, _Decimal, Field(ge=0, le=25)] | None = None
    severity: Annotated[int, _Whole, Field(ge=0, le=4)] | None = None
    covid: Annotated[int, _Whole, Field(ge=0, le=1)] | None = None
    lobe_scores: (
        Annotated[
            tuple[Annotated[int, _Whole, Field(ge=0, le=5)], ...],
            BeforeValidator(_scores),
            Field(min_length=5, max_length=5),
        ]
        | None
    ) = None
    lungs: Path | None = None
    lesions: Path | None = None
    lobes: Path | None = None
    tissues: Path | None = None
    age: Annotated[float, _Decimal, Field(ge=0, le=130)] | None = None
    sex: str | None = None
    site: str | None = None


def read_manifest(path: Path) -> list[ManifestRow]:
    """Every row of a manifest, checked in one pass.

    Args:
        path: CSV as `table.read_table` takes it; paths in it are relative to its folder.

    Raises:
        ManifestError: With a line for each wrong cell: a missing file, an impossible value, a case
            named twice, scores that contradict each other; or with what is wrong with the file or
            its columns.
    """
    rows: list[ManifestRow] = []
    seen: dict[str, int] = {}
    table, errors = read_table(path, ("case", "patient", "path"), COLUMNS)
    for index, cells in table:
        files = {key: path.parent / cells[key] for key in _FILES if cells.get(key)}
        errors += [
            f"row {index}, {key}: there is no such file"
            for key, file in files.items()
            if not _exists(file)
        ]
        case = cells["case"].lower()
        if case and case in seen:
            errors.append(
                f"row {index}, case: {cells['case']!r} stands in row {seen[case]} already"
            )
        seen.setdefault(case, index)
        try:
            row = ManifestRow.model_validate(
                {key: value for key, value in cells.items() if value != ""}
            )
        except ValidationError as error:
            errors += [f"row {index}, {item['loc'][0]}: {_reason(item)}" for item in error.errors()]
            continue
        errors += [f"row {index}, {text}" for text in _contradictions(row)]
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


def unexpected_folders(folder: Path, known: Sequence[str]) -> list[str]:
    """A line for each folder of a data set that would be passed by although it holds scans.

    Args:
        folder: Folder of the data set.
        known: Names in it that are read; everything hidden is left alone, and so are files.
    """
    others = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name not in known]
    return [
        f"{path.name}: is not a folder of the data set, and holds scans"
        for path in others
        if path.name[0] != "."
        and any(file.name.lower().endswith(_SCANS) for file in path.rglob("*"))
    ]


def _row_of(line: str) -> int:
    results = re.match(r"(?:\S+: )?row (\d+)", line)
    return int(results[1]) if results else 0


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long, a folder that may not be searched
        return False


def _reason(error: Json) -> str:
    """What pydantic says, or, where we said it, without pydantic's prefix."""
    return str(error["msg"]).removeprefix("Value error, ")


def _contradictions(row: ManifestRow) -> list[str]:
    results = []
    total = None if row.lobe_scores is None else sum(row.lobe_scores)
    if total is not None and row.ct_score is not None and total != row.ct_score:
        results.append(f"ct_score: {row.ct_score:g} is not the sum of the lobe scores, {total}")
    score = total if row.ct_score is None else row.ct_score
    if score is not None and row.severity not in (None, severity.severity_class(score)):
        results.append(f"severity: {row.severity} does not belong to a CT score of {score:g}")
    return results


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
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *others], lineterminator="\n")
        writer.writeheader()
        for row in table:
            writer.writerow({key: _cell(value) for key, value in row.items()})


def _cell(value: Json) -> Json:
    return " ".join(str(item) for item in value) if isinstance(value, (list, tuple)) else value
