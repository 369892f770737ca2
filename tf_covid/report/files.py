"""The folder of one case, written atomically: it always holds a complete answer, new or old.

Everything goes into a hidden sibling folder first, which then takes the name of the case. What a
killed run leaves behind is put right at the next write of the same case, or by `recover`.
"""

from __future__ import annotations

import dataclasses
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tf_covid.atomic import output_errors, partial_of, replacing_folder
from tf_covid.errors import OutputError
from tf_covid.report import html
from tf_covid.report.montage import montage

if TYPE_CHECKING:
    from tf_covid.result import Result
    from tf_covid.scan.scan import Scan

#: DICOM objects, in the order in which an archive is to get them: what one refers to comes first.
OBJECT_FILES = (
    "lungs.dcm",
    "attention.dcm",
    "attention_map.dcm",
    "summary.dcm",
    "report_pdf.dcm",
    "report.dcm",
)


def objects_in(folder: Path) -> list[Path]:
    """The DICOM objects of a case, in the order in which an archive is to get them."""
    return [folder / name for name in OBJECT_FILES if (folder / name).exists()]


#: Everything that this project writes into the folder of a case.
CASE_FILES = (
    "result.json",
    "report.html",
    "montage.png",
    "lungs.nii.gz",
    "lobes.nii.gz",
    "lesions.nii.gz",
    "attention.nii.gz",
    *OBJECT_FILES,
)

#: Files that may be replaced unasked: what macOS leaves in every folder, and what a killed writer
#: of ours left.
_LITTER = re.compile(
    r"\.DS_Store|\._.*|\.(" + "|".join(map(re.escape, CASE_FILES)) + r")\.[0-9a-f]{8}\.part"
)
#: NIfTI slope of the attention map: stored 0–255, read back as 0–1.
_ATTENTION_SLOPE = 1.0 / 255.0


class FurtherFiles(Protocol):
    """What writes files of its own into the folder of an answered case."""

    def write(self, folder: Path) -> None:
        """Write them; `folder` holds the volumes and the montage already."""


def write_case(
    result: Result,
    scan: Scan | None,
    folder: Path,
    *,
    since: float | None = None,
    further: FurtherFiles | None = None,
) -> Result:
    """Write every file of one case, all or nothing.

    A refused case gets `result.json` and `report.html`; an answered one also `montage.png`,
    `lungs.nii.gz` and, of what was looked for, `lobes.nii.gz`, `lesions.nii.gz` and
    `attention.nii.gz`. An older answer in `folder` is replaced.

    Args:
        result: The answer, with its maps unless it is a refusal.
        scan: The scan behind it; None for a refusal only.
        folder: Folder of the case, named as the case. Missing parents are made.
        since: Start of the work on this case (`time.perf_counter`), in seconds: the answer then
            states the time of the writing and the total.
        further: Writes further files of an answered case.

    Returns:
        The result as it was written.

    Raises:
        OutputError: If it cannot be written, or if `folder` holds anything that is not an answer of
            ours.
        ValueError: If an answered case comes without its scan or its maps.
    """
    _refuse_foreign(folder)
    with replacing_folder(folder) as partial:
        drawn = None
        start = time.perf_counter()
        if result.status != "refused":
            drawn = _write_evidence(result, scan, partial)
            if further is not None:
                further.write(partial)
            # The two texts come last: they state how long the rest took.
            result = result if since is None else _timed(result, start, since)
        (partial / "report.html").write_text(html.render(result, scan, drawn), encoding="utf-8")
        (partial / "result.json").write_text(result.to_json(), encoding="utf-8")
    return result


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
    from tf_covid.lung_voxels import lesion_of, lobe_of, side_of
    from tf_covid.report.views import choose
    from tf_covid.scan import write_nifti

    maps = result.maps
    if scan is None or maps is None:
        raise ValueError("an answered case needs its scan and its maps to be written")
    # Compressing and drawing release the interpreter lock: the volumes are written beside the
    # drawing, and the report's pictures are drawn beside the montage.
    with ThreadPoolExecutor(2) as pool:
        views = choose(result, scan)
        drawing = pool.submit(html.draw, result, scan, views)
        voxels = maps.voxels
        jobs = [
            pool.submit(write_nifti, voxels.codes, scan, folder / f"{name}.nii.gz", read=read)
            for name, read, there in (
                ("lungs", side_of, True),
                ("lobes", lobe_of, voxels.has_lobes),
                ("lesions", lesion_of, voxels.has_lesions),
            )
            if there
        ]
        if maps.attention is not None:
            path = folder / "attention.nii.gz"
            jobs.append(pool.submit(write_nifti, maps.attention, scan, path, _ATTENTION_SLOPE))
        (folder / "montage.png").write_bytes(montage(result, scan, views))
        for job in jobs:
            job.result()
        return drawing.result()


def _refuse_foreign(folder: Path) -> None:
    """Stop before replacing a folder that holds more than an answer: it may be somebody's input."""
    with output_errors(folder):
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
    return (
        name in CASE_FILES or partial_of(name) in CASE_FILES or _LITTER.fullmatch(name) is not None
    )
