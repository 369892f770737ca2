"""Public data sets → manifests.

The folder as it was downloaded goes in, nothing is moved or copied.

What a data set calls severity is never taken for the severity classes of this project: it has a
column of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tf_covid.cohort.covid_ct_md import covid_ct_md_rows
from tf_covid.cohort.manifest import ManifestRow, refuse, write_manifest
from tf_covid.cohort.mosmed import mosmed_rows
from tf_covid.cohort.stoic import stoic_rows
from tf_covid.errors import ManifestError
from tf_covid.tensor import Json

#: Name of a data set → what reads its folder. Each gives rows with `Path` objects for files.
ADAPTERS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    "mosmed": mosmed_rows,
    "stoic": stoic_rows,
    "covid-ct-md": covid_ct_md_rows,
}


def adapt(folder: Path, kind: str, out: Path) -> Path:
    """Write the manifest of a public data set.

    Args:
        folder: Folder of the data set, as downloaded and unpacked.
        kind: A key of `ADAPTERS`.
        out: The manifest. Paths in it are relative to its folder where they lie below it, absolute
            elsewhere.

    Returns:
        `out`.

    Raises:
        ManifestError: If there is no such data set or folder, the folder is laid out otherwise or
            empty, or with a line for everything in it that is missing, doubled, unknown or
            impossible. Nothing is written then.
        OutputError: If the manifest cannot be written.
    """
    if kind not in ADAPTERS:
        raise ManifestError(f"there is no data set {kind!r}; known are {', '.join(ADAPTERS)}")
    if not folder.is_dir():
        raise ManifestError(f"{folder}: there is no such folder")
    try:
        rows = ADAPTERS[kind](folder)
    except OSError as error:
        raise ManifestError(
            f"{error.filename or folder}: cannot be read ({error.strerror})"
        ) from error
    errors = []
    for row in rows:
        try:
            ManifestRow.model_validate(
                {key: value for key, value in row.items() if value is not None}
            )
        except ValidationError as error:
            errors += [f"{row['case']}, {item['loc'][0]}: {item['msg']}" for item in error.errors()]
    refuse(folder.name, errors)
    base = out.parent.absolute()
    write_manifest(({key: _cell(value, base) for key, value in row.items()} for row in rows), out)
    return out


def _cell(value: Json, base: Path) -> Json:
    if not isinstance(value, Path):
        return value
    path = value.absolute()  # not resolve(): a link that the user made is the name that he knows
    return (path.relative_to(base) if path.is_relative_to(base) else path).as_posix()
