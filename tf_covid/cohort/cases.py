"""Inputs → cases, one after the other: files, folders, and the rows of manifests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tf_covid.cohort.manifest import ManifestRow, read_manifest
from tf_covid.result import QualityFlag
from tf_covid.scan import Case, find_cases
from tf_covid.scan.cases import only_case

#: Name of the table in the output folder.
SUMMARY = "summary.csv"


def cases_of(
    inputs: Sequence[Path], find: Callable[[Path], list[Case]] = find_cases
) -> Iterator[Case]:
    """The cases of all inputs, with names that are unique among them.

    Args:
        inputs: Scans, folders, archives, and manifests (`.csv`), whose names of cases are used.
        find: What finds the cases of a path: `find_cases`, or the same in another process.

    Raises:
        ManifestError: If a manifest has a wrong row.
    """
    names = {SUMMARY}  # a folder of this name would be in the table's place
    for path in inputs:
        manifest = path.suffix.lower() == ".csv" and not path.is_dir()
        for case in _of_manifest(path, find) if manifest else find(path):
            name, suffix = case.name, 2
            while name.lower() in names:
                name, suffix = f"{case.name}-{suffix}", suffix + 1
            names.add(name.lower())
            yield dataclasses.replace(case, name=name)


def _of_manifest(path: Path, find: Callable[[Path], list[Case]]) -> Iterator[Case]:
    return (case_of_row(line, find) for line in read_manifest(path))


def case_of_row(line: ManifestRow, find: Callable[[Path], list[Case]] = find_cases) -> Case:
    """The case of a row of a manifest.

    One that refuses where the row's path holds more than one.
    """
    results = find(line.path)
    case = only_case(results)
    if case is None:
        message = f"The path of this row holds {len(results)} studies or files; a row names one."
        flag = QualityFlag("several_cases", "error", message, len(results))
        return dataclasses.replace(results[0], name=line.case, quality_flags=(flag,))
    return dataclasses.replace(case, name=line.case)
