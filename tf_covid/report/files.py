"""The folder of one case, written atomically: it always holds a complete answer, new or old.

Everything goes into a hidden sibling folder first, which then takes the name of the case. What a
killed run leaves behind is put right at the next write of the same case, or by `recover`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_covid.atomic import alive
from tf_covid.errors import OutputError
from tf_covid.report import html
from tf_covid.report.montage import montage

if TYPE_CHECKING:
    from tf_covid.result import Result
    from tf_covid.scan.scan import Scan

#: Everything that this project writes into the folder of a case.
CASE_FILES = (
    "result.json",
    "report.html",
    "montage.png",
    "lungs.nii.gz",
    "attention.nii.gz",
    "lungs.dcm",
    "attention.dcm",
    "report.dcm",
)

#: Files that may be replaced unasked: what macOS leaves in every folder, and what a killed writer
#: of ours left.
_LITTER = re.compile(
    r"\.DS_Store|\._.*|\.(" + "|".join(map(re.escape, CASE_FILES)) + r")\.[0-9a-f]{8}\.part"
)
#: Age in seconds after which another host's leftovers are put right: whether their writer still
#: runs cannot be asked.
_ABANDONED_S = 86_400

#: NIfTI slope of the attention map: stored 0–255, read back as 0–1.
_ATTENTION_SLOPE = 1.0 / 255.0


def write_case(
    result: Result, scan: Scan | None, folder: Path, *, since: float | None = None
) -> Result:
    """Write every file of one case, all or nothing.

    A refused case gets `result.json` and `report.html`; an answered one also `montage.png`,
    `lungs.nii.gz` and, with an attention map, `attention.nii.gz`. An older answer in `folder` is
    replaced.

    Args:
        result: The answer, with its maps unless it is a refusal.
        scan: The scan behind it; None for a refusal only.
        folder: Folder of the case, named as the case. Missing parents are made.
        since: Start of the work on this case (`time.perf_counter`), in seconds: the answer then
            states the time of the writing and the total.

    Returns:
        The result as it was written.

    Raises:
        OutputError: If it cannot be written, or if `folder` holds anything that is not an answer of
            ours.
        ValueError: If an answered case comes without its scan or its maps.
    """
    with _replacing(folder) as partial:
        drawn = None
        start = time.perf_counter()
        if result.status != "refused":
            drawn = _write_evidence(result, scan, partial)
            # The two texts come last: they state how long the rest took.
            result = result if since is None else _timed(result, start, since)
        (partial / "report.html").write_text(html.render(result, scan, drawn), encoding="utf-8")
        (partial / "result.json").write_text(result.to_json(), encoding="utf-8")
    return result


def recover(folder: Path) -> None:
    """Put right what killed runs left beside a folder.

    Half-written answers go; an old answer that was set aside comes back. Folders of a process that
    is still running are left alone, and another host's for a day.

    Args:
        folder: Folder of the case.

    Raises:
        OutputError: If the disk does not allow it.
    """
    with _as_output_error(folder):
        for leftover, kind in _leftovers(folder):
            if kind == "old" and not folder.exists():
                leftover.rename(folder)
            else:
                shutil.rmtree(leftover)


def _timed(result: Result, start: float, since: float) -> Result:
    now = time.perf_counter()
    stages = {
        stage: seconds
        for stage, seconds in result.timings_s.items()
        if stage not in ("write", "total")
    }
    return dataclasses.replace(
        result, timings_s=stages | {"write": now - start, "total": now - since}
    )


def _write_evidence(result: Result, scan: Scan | None, folder: Path) -> dict[str, Any]:
    """Write volumes and montage; return what the report shows of them."""
    from tf_covid.report.views import choose
    from tf_covid.scan import write_nifti

    maps = result.maps
    if scan is None or maps is None:
        raise ValueError("an answered case needs its scan and its maps to be written")
    # Compressing releases the interpreter lock, so the volumes are written beside the drawing.
    with ThreadPoolExecutor(1) as pool:
        jobs = [pool.submit(write_nifti, maps.lungs, scan, folder / "lungs.nii.gz", slope=1.0)]
        if maps.attention is not None:
            path = folder / "attention.nii.gz"
            jobs.append(
                pool.submit(write_nifti, maps.attention, scan, path, slope=_ATTENTION_SLOPE)
            )
        views = choose(result, scan)
        (folder / "montage.png").write_bytes(montage(result, scan, views))
        drawn = html.draw(result, scan, views)
        for job in jobs:
            job.result()
    return drawn


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """An empty sibling folder that replaces `folder` if the block succeeds, and goes if not."""
    recover(folder)
    _refuse_foreign(folder)
    partial, old = (_sibling(folder, kind) for kind in ("partial", "old"))
    with _as_output_error(folder):
        partial.mkdir(parents=True)
        try:
            yield partial
            if folder.exists():
                folder.rename(old)
            try:
                partial.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)
                raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        # The new answer is in place: what cannot be removed now goes at the next write.
        shutil.rmtree(old, ignore_errors=True)


def _refuse_foreign(folder: Path) -> None:
    """Stop before replacing a folder that holds more than an answer: it may be somebody's input."""
    with _as_output_error(folder):
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise OutputError(
                f"{folder}: exists and is not a folder; move it away or choose another output"
                " folder"
            )
        paths = sorted(folder.iterdir()) if folder.exists() else []
        foreign = [path.name for path in paths if not (_is_ours(path.name) and path.is_file())]
    if foreign:
        raise OutputError(
            f"{folder}: holds {foreign[0]!r}, which is not part of an answer; nothing was"
            " replaced. Choose another output folder, or move what is in this one."
        )


def _is_ours(name: str) -> bool:
    return name in CASE_FILES or _LITTER.fullmatch(name) is not None


def _host() -> str:
    """Containers that share a folder may share process ids; their host names differ."""
    return re.sub(r"[^A-Za-z0-9-]", "-", platform.node())[:40] or "-"


def _sibling(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{folder.name}.{_host()}.{os.getpid()}.{secrets.token_hex(4)}.{kind}")


def _leftovers(folder: Path) -> list[tuple[Path, str]]:
    """What earlier runs left beside `folder`, old answers first, as (path, "old" or "partial")."""
    pattern = re.compile(
        re.escape(f".{folder.name}.") + r"([A-Za-z0-9-]+)\.(\d+)\.[0-9a-f]{8}\.(old|partial)"
    )
    if not folder.parent.is_dir():
        return []
    found = []
    for path in folder.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if not match:
            continue
        with contextlib.suppress(FileNotFoundError):  # another host has put it right meanwhile
            status = path.stat()
            # Setting an old answer aside changes the time of its entry only, not that of its
            # content.
            age = time.time() - max(status.st_mtime, status.st_ctime)
            if not _runs_elsewhere(int(match[2])) if match[1] == _host() else age > _ABANDONED_S:
                found.append((status.st_mtime, path, match[3]))
    # By time, newest old answer first: that is the one to bring back.
    found.sort(key=lambda item: (item[2] != "old", -item[0]))
    return [(path, kind) for _, path, kind in found]


def _runs_elsewhere(pid: int) -> bool:
    """Whether another living process has this number."""
    return pid != os.getpid() and alive(pid)


@contextlib.contextmanager
def _as_output_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror or error}") from error
