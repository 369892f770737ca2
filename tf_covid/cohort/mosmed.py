"""MosMedData (Morozov et al. 2020, doi 10.1101/2020.05.20.20100362) → rows of a manifest.

The folder as it is distributed (`COVID19_1110/`):

    studies/CT-0/study_0001.nii.gz …    CT-0 to CT-4, 1,110 studies; some copies are unpacked,
                                        `.nii`
    masks/study_0255_mask.nii.gz …      50 studies of CT-1: ground glass and consolidation, 1 in the
                                        voxels
    dataset_registry.xlsx, README_*     not read: the registry repeats what the folders say

**CT-0 … CT-4 are not the severity classes 0 … 4 of this project.** They are classes of involved
lung as a radiologist saw it: none, < 25 %, 25–50 %, 50–75 %, > 75 %. The severity of Francone et
al. is a sum over five lobes, which a share of the whole lung does not give. So the class goes into
a column of its own, `mosmed_class`, and `severity` and `ct_score` stay empty: nothing that trains
on `severity` can take one for the other.

`covid` stays empty too, in CT-0 as in the others: the set tells what the images show ("not
consistent with pneumonia, including COVID-19" for CT-0), and no test for the virus. It names no
patients either: each study counts as a patient of its own. Most volumes hold every tenth slice
only, 8 mm apart.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tf_covid.cohort.manifest import refuse, unexpected_folders
from tf_covid.errors import ManifestError

CLASSES = ("CT-0", "CT-1", "CT-2", "CT-3", "CT-4")
_STUDY = re.compile(r"(study_\d{4,})\.nii(\.gz)?")
_MASK = re.compile(r"(study_\d{4,})_mask\.nii(\.gz)?")


def mosmed_rows(folder: Path) -> list[dict[str, Any]]:
    """A row for each study of a MosMedData folder, in order of its name.

    Args:
        folder: The one that holds `studies/` and `masks/`.

    Returns:
        Rows with `case`, `patient` (both the study's name), `path`, `lesions` for the studies with
        a mask, `mosmed_class` (0–4) and `source`.

    Raises:
        ManifestError: If the folder is not laid out like that, or with a line for everything in it
            that is missing, doubled, or neither a study nor a mask.
    """
    studies, masks = folder / "studies", folder / "masks"
    missing = [f"studies/{name}" for name in CLASSES if not (studies / name).is_dir()]
    if len(missing) == len(CLASSES):
        raise ManifestError(
            f"{folder.name}: not a MosMedData folder: it has no folder studies/CT-0 … studies/CT-4"
        )
    errors = [f"{name}: the folder is missing" for name in missing]
    errors += unexpected_folders(folder, ("studies", "masks"))
    errors += [
        f"studies/{name}" + ": holds scans of no class CT-0 … CT-4" for name in _others(studies)
    ]
    results: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(CLASSES):
        if (studies / name).is_dir():
            files, wrong = _files(studies / name, _STUDY, "a study (study_0001.nii.gz)")
            errors += wrong
            if not files and not wrong:
                errors.append(f"studies/{name}: the folder is empty")
            for case, file in files:
                if case in results:
                    errors.append(
                        f"{case}: is there twice, in {_relative(results[case]['path'])} and"
                        f" {_relative(file)}"
                    )
                row = {
                    "case": case,
                    "patient": case,
                    "path": file,
                    "mosmed_class": index,
                    "source": "MosMedData",
                }
                results.setdefault(case, row)
    if masks.is_dir():
        files, wrong = _files(masks, _MASK, "a mask (study_0001_mask.nii.gz)")
        errors += wrong
        for case, file in files:
            if case not in results:
                errors.append(f"masks/{file.name}: there is no study {case}")
            elif "lesions" in results[case]:
                errors.append(
                    f"{case}: has two masks, {results[case]['lesions'].name} and {file.name}"
                )
            else:
                results[case]["lesions"] = file
    refuse(folder.name, errors)
    return [results[case] for case in sorted(results)]


def _relative(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"


def _others(studies: Path) -> list[str]:
    """What lies beside CT-0 … CT-4: a class of another release would be left out otherwise."""
    return sorted(
        path.name for path in studies.iterdir() if path.name not in CLASSES and path.name[0] != "."
    )


def _files(
    folder: Path, pattern: re.Pattern[str], what: str
) -> tuple[list[tuple[str, Path]], list[str]]:
    """(case, file) of every file that fits, and a line for each that does not.

    Hidden ones are left alone.
    """
    files, wrong = [], []
    for path in sorted(folder.iterdir()):
        match = pattern.fullmatch(path.name)
        if match and path.is_file():
            files.append((match[1], path))
        elif not path.name.startswith("."):
            wrong.append(f"{folder.name}/{path.name}: is not {what}")
    return files, wrong
