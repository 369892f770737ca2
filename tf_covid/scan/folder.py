"""A folder, searched to its last file: what may not be read or lies elsewhere is counted."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path

from tf_covid.scan.leftovers import Leftovers
from tf_covid.scan.source import DiskFile

#: An answer of ours holds both of these, and files of no other name than those below.
_ANSWER = {"result.json", "report.html"}
_ANSWER_STEMS = {
    *("result", "report", "montage", "lungs", "lobes", "lesions", "attention"),
    *("summary", "attention_map", "report_pdf"),
}
#: What a killed run leaves beside its answers.
_HALF_WRITTEN = re.compile(r"\..+\.\d+\.[0-9a-f]{8}\.(old|partial)")


def walk(folder: Path) -> tuple[list[DiskFile], Leftovers]:
    """Every regular file below, in order of its name, without our own answers.

    Links to files are followed, links to folders are not: they may run in circles or through a
    whole disk. One that leads to a place below the folder leaves nothing out, any other is counted.
    """
    results: list[DiskFile] = []
    left = Leftovers()
    root = os.path.realpath(folder)
    ahead = [folder]
    while ahead:
        here = ahead.pop()
        try:
            with os.scandir(here) as listing:
                listed = sorted(listing, key=lambda entry: entry.name)
        except OSError:
            if here == folder:
                raise  # the input itself
            left += Leftovers(no_access=1)
            continue
        answer = _is_answer(
            [entry.name for entry in listed if not entry.is_dir(follow_symlinks=False)]
        )
        below: list[Path] = []
        for entry in listed:
            path = here / entry.name
            if entry.is_dir(follow_symlinks=False):
                if not _HALF_WRITTEN.fullmatch(entry.name):
                    below.append(path)
            elif not answer:
                source, one = _file(path, folder, root)
                left += one
                results += source
        ahead += reversed(below)
    return results, left


def _file(path: Path, folder: Path, root: str) -> tuple[list[DiskFile], Leftovers]:
    """The source of what is no folder, or why there is none."""
    try:
        status = path.stat()
    except PermissionError:
        return [], Leftovers(no_access=1)
    except OSError:  # a link to nothing or in a circle; or the file went away
        return [], Leftovers(broken_links=1)
    if stat.S_ISDIR(status.st_mode):
        inside = os.path.commonpath([os.path.realpath(path), root]) == root
        return [], Leftovers() if inside else Leftovers(linked_folders=1)
    if not stat.S_ISREG(status.st_mode):
        return [], Leftovers(special=1)
    if not os.access(path, os.R_OK):
        return [], Leftovers(no_access=1)
    return [DiskFile(path, path.relative_to(folder).as_posix(), status.st_size)], Leftovers()


def _is_answer(files: Sequence[str]) -> bool:
    stems = {name.partition(".")[0] for name in files if not name.startswith(".")}
    return _ANSWER.issubset(files) and stems <= _ANSWER_STEMS
