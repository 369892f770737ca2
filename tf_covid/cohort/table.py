"""Tables of text as people and spreadsheets write them.

What is unambiguous is read, all else is named.
"""

from __future__ import annotations

import codecs
import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import zip_longest
from pathlib import Path
from typing import TextIO

from tf_covid.errors import ManifestError
from tf_covid.tensor import Json

#: More rows than any chest CT cohort has; a wrong file with this many is not read to its end.
MAX_ROWS = 1_000_000

#: What may stand between cells, the usual one first. Excel writes semicolons where the comma is the
#: decimal sign.
_DELIMITERS = (",", ";", "\t", "|")
_SEP = re.compile(r'"?sep=(.|\\t)"?[,;|\s]*', re.IGNORECASE)
#: Excel's "Unicode text" begins with one of these.
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
#: What a spreadsheet writes in place of a value that it could not compute.
_FAILED = re.compile(r"#(?:N/A|REF!|VALUE!|NAME\?|DIV/0!|NUM!|NULL!)", re.IGNORECASE)
_WHOLE = re.compile(r"([+-]?[0-9]{1,15})(?:[.,]0*)?")
_DECIMAL = re.compile(r"[+-]?[0-9]{1,15}(?:[.,][0-9]{0,15})?")
#: A column is a misspelt one of ours from this likeness on (difflib's ratio), if its name has so
#: many letters.
_LIKENESS, _LETTERS = 0.8, 4

_FLOAT = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:e[+-]?[0-9]{1,4})?", re.IGNORECASE)

Table = list[tuple[int, dict[str, str]]]


def whole_number(value: Json) -> Json:
    """A whole number from its digits: "3", or "3.0" and "3,0" as spreadsheets write it.

    What is no text stays.

    Raises:
        ValueError: If it is another text: "1_0", "1e3", digits of another script.
    """
    if not isinstance(value, str):
        return value
    results = _WHOLE.fullmatch(value.strip())
    if not results:
        raise ValueError(f"{value[:40]!r} is no whole number")
    return int(results[1])


def decimal_number(value: Json) -> Json:
    """A number from its digits, with a point or a comma: "11.5", "11,5". What is no text stays.

    Raises:
        ValueError: If it is another text: "1_0", "1e3", "nan", digits of another script.
    """
    if not isinstance(value, str):
        return value
    if not _DECIMAL.fullmatch(value.strip()):
        raise ValueError(f"{value[:40]!r} is not a number")
    return float(value.strip().replace(",", "."))


def written_float(value: Json) -> Json:
    """The text of a number as programs write it ("0.25", "1e-07"), unchanged.

    What is no text stays.

    Raises:
        ValueError: If it is another text that Python's `float` would read: "1_0", digits of another
            script.
    """
    if isinstance(value, str) and not _FLOAT.fullmatch(value.strip()):
        raise ValueError(f"{value[:40]!r} is not a number")
    return value


def read_table(
    path: Path, required: Sequence[str], known: Sequence[str] = ()
) -> tuple[Table, list[str]]:
    """The rows of a table whose first row names its columns, and what is wrong with single rows.

    Cells lie between commas, semicolons, tabs or bars, whichever gives the required columns, or
    what a first line `sep=;` says. Rows without any value are left out.

    Args:
        path: CSV in UTF-8, or Excel's "Unicode text" in UTF-16.
        required: Columns that must be there.
        known: All columns that mean something. A name that differs from one of these in case,
            spaces or dashes only is that column; one that is nearly one of them is an error.

    Returns:
        (row number as a spreadsheet shows it, stripped cells by column) for every row that is not
        empty, and a line for each value in a column without a name. Columns with neither name nor
        value, which spreadsheets add, are left out.

    Raises:
        ManifestError: If the file cannot be read as a table at all, or its columns are missing,
            doubled or misspelt.
    """
    rows: Table = []
    errors: list[str] = []
    try:
        encoding = _encoding(path)
        delimiter = _delimiter(path, encoding, required, known)
        with _records(path, encoding, delimiter) as records:
            first, written = next(records, (1, []))
            names = _names(path, first, written, required, known)
            for index, values in records:
                cells = [
                    (name, value.strip())
                    for name, value in zip_longest(names, values, fillvalue="")
                ]
                for column, (name, value) in enumerate(cells, 1):
                    if value and not name:
                        errors.append(
                            f"row {index}, column {column}: holds a value, and row {first} has no"
                            " name for it"
                        )
                    elif value and _FAILED.fullmatch(value) and (name in known or name in required):
                        errors.append(
                            f"row {index}, {name}: {value} is a spreadsheet's error, no value"
                        )
                rows.append((index, {name: value for name, value in cells if name}))
    except (OSError, UnicodeError, csv.Error) as error:
        raise ManifestError(f"{path.name}: cannot be read as a CSV in UTF-8 ({error})") from error
    return rows, errors


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(1024)
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)) or (
        not head.startswith(_WIDE) and b"\0" in head
    ):
        raise ManifestError(f"{path.name}: is no text in UTF-8 or UTF-16; save it as “CSV UTF-8”")
    if head.startswith((b"PK\3\4", b"\xd0\xcf\x11\xe0")):
        raise ManifestError(f"{path.name}: is a workbook, not a CSV; save it as “CSV UTF-8”")
    return "utf-16" if head.startswith(_WIDE) else "utf-8-sig"


@contextmanager
def _records(
    path: Path, encoding: str, delimiter: str | None
) -> Iterator[Iterator[tuple[int, list[str]]]]:
    """The rows that hold a value, with their numbers.

    A line `sep=;` is no row, as in a spreadsheet.
    """
    with path.open(encoding=encoding, newline="") as file:
        said = _said(file)
        if said is None:
            file.seek(0)
        reader = csv.reader(file, delimiter=said or delimiter or ",", strict=True)
        yield _filled(path, reader)


def _said(file: TextIO) -> str | None:
    """The delimiter that a line `sep=;` names, or None; the line is read."""
    results = _SEP.fullmatch(file.readline(64).rstrip("\r\n"))
    return None if results is None else "\t" if results[1] == "\\t" else results[1]


def _filled(path: Path, reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str]]]:
    for index, values in enumerate(reader, 1):
        if index > MAX_ROWS:
            raise ManifestError(f"{path.name}: has more than {MAX_ROWS} rows")
        if any(value.strip() for value in values):
            yield index, values


def _delimiter(path: Path, encoding: str, required: Sequence[str], known: Sequence[str]) -> str:
    """What lies between the cells of the first row: that which shows most of the columns."""
    best, limit = _DELIMITERS[0], (-1, 0)
    for delimiter in _DELIMITERS:
        try:
            with _records(path, encoding, delimiter) as records:
                _, names = next(records, (1, []))
        except csv.Error:
            continue
        plain = {_plain(name) for name in names}
        shown = (
            sum(_plain(name) in plain for name in dict.fromkeys([*required, *known])),
            len(names),
        )
        if shown > limit:
            best, limit = delimiter, shown
    return best


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.casefold())


def _names(
    path: Path, row: int, written: Sequence[str], required: Sequence[str], known: Sequence[str]
) -> list[str]:
    """The columns' names, ours as we write them.

    Raises:
        ManifestError: If one is missing, doubled or misspelt.
    """
    ours = {_plain(name): name for name in known}
    names = [ours.get(_plain(name), name.strip()) for name in written]
    doubled = [name for name, count in Counter(names).items() if name and count > 1]
    if doubled:
        raise ManifestError(f"{path.name}: row {row} has more than one column {', '.join(doubled)}")
    expected = dict.fromkeys([*required, *known])
    lacking = [name for name in expected if name not in names]
    near: dict[str, str] = {}
    for name in names:
        if len(name) >= _LETTERS and name not in expected:
            results = get_close_matches(_plain(name), lacking, 1, _LIKENESS)
            near |= {results[0]: name} if results else {}
    missing = [name for name in required if name not in names]
    if missing:
        hints = "".join(f"; {near[name]!r} is nearly {name}" for name in missing if name in near)
        there = ", ".join(name[:40] for name in names if name)[:400] or "none"
        text = f"row {row} has no column {', '.join(missing)}{hints}; its columns: {there}"
        raise ManifestError(f"{path.name}: {text}")
    if known and near:
        facts = "; ".join(f"{theirs[:40]!r} is nearly {name}" for name, theirs in near.items())
        raise ManifestError(
            f"{path.name}: row {row} has columns that look misspelt: {facts}; rename them"
        )
    return names
