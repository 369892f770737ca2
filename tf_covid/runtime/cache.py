"""Where what was made once is kept, and whether it still is what was written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from tf_covid.atomic import write_text
from tf_covid.errors import OutputError

#: Environment variable that names another folder.
VARIABLE = "TFCOVID_CACHE"

#: Name of the list of a folder's files with their sha256.
SUMS = "sha256.json"


def cache_folder() -> Path:
    """The folder for what can be made again: `TFCOVID_CACHE`, or the user's cache folder.

    Raises:
        OutputError: If this machine has no folder for it.
    """
    if named := os.environ.get(VARIABLE):
        return Path(named).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "tf_covid"
    except RuntimeError as error:
        raise OutputError(f"there is no home folder; name one for caches in {VARIABLE}") from error


def key_of(parts: Iterable[object]) -> str:
    """A name for what these parts decide: the first half of a sha256, in hex."""
    text = json.dumps(list(parts), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def seal(folder: Path, names: Iterable[str]) -> None:
    """Write down the sha256 of files of a folder.

    Raises:
        OutputError: If the list cannot be written.
    """
    sums = {name: _sha256(folder / name) for name in names}
    write_text(json.dumps(sums, indent=1), folder / SUMS)


def intact(folder: Path) -> frozenset[str]:
    """Names of the files of a folder that are what was written; none without a readable list."""
    try:
        sums = json.loads((folder / SUMS).read_text("utf-8"))
        return frozenset(
            name
            for name, sha256 in sums.items()
            if (folder / name).is_file() and _sha256(folder / name) == sha256
        )
    except (OSError, ValueError, AttributeError, TypeError):
        return frozenset()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
