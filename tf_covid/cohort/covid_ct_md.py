"""COVID-CT-MD (Afshar et al. 2021, doi 10.1038/s41597-021-00900-3) → rows of a manifest.

The folder as it is distributed; the first level is spelled in several ways ("COVID-19 Cases",
"COVID-19 subjects", "Cap Cases", "CAP", "Normal-76"), so upper and lower case, spaces, `_` and `-`
do not matter there, nor in what follows:

    COVID-19 Cases/P001/*.dcm       a series a patient, JPEG lossless; age and sex stand in the
                                    headers
    Cap Cases/cap001/*.dcm          community-acquired pneumonia
    Normal Cases/normal001/*.dcm
    Index.csv                       Label Index,Diagnosis,Relative Path,Folder/ID: who has labels
    Slice-level-labels.npy          (cases, slices): 1 where a slice shows infection
    Lobe-level-labels.npy           (cases, slices, 5): the same for each lobe: LLL, LUL, RLL, RML,
                                    RUL

`covid` is 1 for COVID-19 and 0 for the other two; `finding` tells the three apart. `severity`,
`ct_score` and `lobe_scores` stay empty for all of them: the labels say where there is infection and
not how much of a lobe, and for the normal ones nobody scored the lobes, either; who wants them as
severity 0 writes that into the manifest himself.

Known of the labels, and what is made of it:

- The authors corrected two cases in 2021, in `…-updated-1.npy`. The highest update that is there is
  used.
- "Label Index" has a gap (42 is followed by 44). An array with as many rows as the index has is
  read by position; one with a row for the gap, by the number itself; any other is refused. The row
  is told as `label_row`.
- Slices of the labels are in the order of SliceLocation (0020,1041), says the set's README; file
  names are not. Nothing here joins labels to slices: `slice_labels` and `lobe_labels` are the paths
  of the arrays.
- Whether the label files lie beside the folders or come apart depends on the download: a set
  without any is fine, one with a part of them is not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_covid.cohort.manifest import refuse, unexpected_folders
from tf_covid.cohort.stoic import person
from tf_covid.cohort.table import read_table
from tf_covid.errors import ManifestError

if TYPE_CHECKING:
    import numpy as np

#: finding → the plain name of its folder, and how its cases are called.
_FINDINGS = {
    "covid": (re.compile(r"covid\d*(cases|subjects|patients)?"), re.compile(r"p(\d+)"), "P"),
    "cap": (re.compile(r"cap\d*(cases|subjects|patients)?"), re.compile(r"cap(\d+)"), "cap"),
    "normal": (
        re.compile(r"normal\d*(cases|subjects|patients)?"),
        re.compile(r"normal(\d+)"),
        "normal",
    ),
}
_INDEX = ("Label Index", "Diagnosis", "Folder/ID")
_LOBES = 5


def covid_ct_md_rows(folder: Path) -> list[dict[str, Any]]:
    """A row for each patient of a COVID-CT-MD folder.

    COVID-19, then CAP, then normal, each in order of its number.

    Args:
        folder: The one that holds the three folders.

    Returns:
        Rows with `case` and `patient` (P001, cap001, normal001), `path`, `covid`, `age` and `sex`
        as far as the first header holds them, `finding` (covid, cap, normal), `source`, and for
        labelled patients `slice_labels`, `lobe_labels` (paths of arrays) and `label_row`.

    Raises:
        ManifestError: If the folder is not laid out like that, or with a line for each case that is
            empty, doubled or called otherwise, each file that is no slice, and each label that does
            not fit.
    """
    positions, errors = _folders(folder)
    rows: dict[str, dict[str, Any]] = {}
    for finding, position in positions.items():
        cases, wrong = _cases(position, finding)
        errors += wrong
        rows |= cases
    if not rows and not errors:
        errors.append("the folders hold no cases")
    errors += _add_labels(folder, rows)
    refuse(folder.name, errors)
    return list(rows.values())


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def _folders(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """The three folders by finding."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    positions: dict[str, Path] = {}
    errors = []
    for finding, (pattern, _, _) in _FINDINGS.items():
        fitting = [path for path in paths if path.is_dir() and pattern.fullmatch(_plain(path.name))]
        if len(fitting) > 1:
            errors.append(
                f"{' and '.join(path.name for path in fitting)}: all look like the folder of"
                f" {finding} cases"
            )
        elif not fitting:
            errors.append(f"there is no folder of {finding} cases")
        else:
            positions[finding] = fitting[0]
    if not positions and len(errors) == len(_FINDINGS):
        raise ManifestError(
            f"{folder.name}: not a COVID-CT-MD folder: it has no folder COVID-19 Cases, Cap Cases"
            " or Normal Cases"
        )
    known = [
        path.name
        for path in paths
        if any(one.fullmatch(_plain(path.name)) for one, _, _ in _FINDINGS.values())
    ]
    return positions, errors + unexpected_folders(folder, known)


def _cases(folder: Path, finding: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Rows of one finding by case, in order of their numbers."""
    _, pattern, prefix = _FINDINGS[finding]
    results: dict[int, Path] = {}
    errors = []
    for path in sorted(folder.iterdir()):
        match = pattern.fullmatch(_plain(path.name))
        if path.name.startswith("."):
            continue
        if not match or not path.is_dir():
            errors.append(f"{folder.name}/{path.name}: is not the folder of a case ({prefix}001)")
        elif int(match[1]) in results:
            errors.append(
                f"{folder.name}/{path.name}: is the same case as {results[int(match[1])].name}"
            )
        else:
            results[int(match[1])] = path
    if not results and not errors:
        errors.append(f"{folder.name}: the folder is empty")
    rows = {}
    for index, path in sorted(results.items()):
        case = f"{prefix}{index:03d}"
        header, wrong = _header(path)
        errors += wrong
        rows[case] = {
            "case": case,
            "patient": case,
            "path": path,
            "covid": int(finding == "covid"),
            **header,
            "finding": finding,
            "source": "COVID-CT-MD",
        }
    return rows, errors


def _slices(case: Path) -> list[Path]:
    return sorted(
        path for path in case.iterdir() if path.suffix.lower() == ".dcm" and path.name[0] != "."
    )


def _header(case: Path) -> tuple[dict[str, Any], list[str]]:
    """Age and sex from the first slice, and what lies in the folder that is none."""
    import pydicom  # not at import: the command line lists the adapters without it
    from pydicom.errors import InvalidDicomError

    where = f"{case.parent.name}/{case.name}"
    slices = _slices(case)
    errors = [
        f"{where}/{path.name}: is not a slice (.dcm)"
        for path in sorted(case.iterdir())
        if path not in slices and path.name[0] != "."
    ]
    if not slices:
        return {}, [*errors, f"{where}: holds no slices (.dcm)"]
    try:
        header = pydicom.dcmread(
            slices[0], stop_before_pixels=True, specific_tags=["PatientAge", "PatientSex"]
        )
        age, sex = str(header.get("PatientAge") or ""), str(header.get("PatientSex") or "")
    except (InvalidDicomError, OSError, EOFError, ValueError, KeyError, AttributeError):
        return {}, [*errors, f"{where}/{slices[0].name}: is not DICOM"]
    known, wrong = person(age, sex, f"{where}/{slices[0].name}")
    return known, errors + wrong


def _label_file(folder: Path, kind: str) -> Path | None:
    """The label file of a kind ("slice", "lobe") with the highest update number."""
    pattern = re.compile(rf"{kind}levellabels(?:updated(\d+))?\.npy")
    names = {path: pattern.fullmatch(_plain(path.name)) for path in sorted(folder.iterdir())}
    results = [(int(match[1] or 0), path) for path, match in names.items() if match]
    return max(results)[1] if results else None


def _add_labels(folder: Path, rows: dict[str, dict[str, Any]]) -> list[str]:
    """Put paths and row of the labels into the rows of labelled patients.

    What is wrong with the labels.
    """
    index = next(
        (path for path in sorted(folder.iterdir()) if path.name.lower() == "index.csv"), None
    )
    by_slice, by_lobe = _label_file(folder, "slice"), _label_file(folder, "lobe")
    if index is None or by_slice is None or by_lobe is None:
        names = {
            "Index.csv": index,
            "Slice-level-labels.npy": by_slice,
            "Lobe-level-labels.npy": by_lobe,
        }
        if not any(names.values()):
            return []
        return [
            f"{name}: is missing, and other label files are there"
            for name, file in names.items()
            if file is None
        ]
    slice_array, errors = _array(by_slice, 2)
    lobe_array, wrong = _array(by_lobe, 3)
    labelled, wrong_rows = _index(index, rows)
    errors += wrong + wrong_rows
    if slice_array is None or lobe_array is None or errors:
        return errors  # which row belongs to whom cannot be told from a part of the index
    row_of = _row_of(sorted(labelled), len(slice_array))
    if row_of is None or slice_array.shape != lobe_array.shape[:2]:
        shapes = f"{by_slice.name} {slice_array.shape} and {by_lobe.name} {lobe_array.shape}"
        last = max(labelled, default=-1)
        return [
            f"{shapes} do not fit {index.name}: {len(labelled)} rows, the last Label Index is"
            f" {last}"
        ]
    for ordinal, case in labelled.items():
        row = row_of(ordinal)
        slices = len(_slices(rows[case]["path"]))
        for file, array in ((by_slice, slice_array), (by_lobe, lobe_array)):
            errors += [
                f"{file.name}: row {row} ({case}): {text}" for text in _misfits(array[row], slices)
            ]
        rows[case] |= {"slice_labels": by_slice, "lobe_labels": by_lobe, "label_row": row}
    return errors


def _array(file: Path, axes: int) -> tuple[np.ndarray | None, list[str]]:
    """A label array, never unpickled."""
    import numpy as np

    try:
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = "pickled objects are not read" if "pickle" in str(error) else "damaged or cut off"
        return None, [f"{file.name}: cannot be read as an array of numbers ({reason})"]
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf" or array.ndim != axes:
        return None, [f"{file.name}: is not an array of numbers with {axes} axes"]
    if axes == 3 and array.shape[2] != _LOBES:
        return None, [
            f"{file.name}: its last axis has {array.shape[2]} places, and a lung has {_LOBES} lobes"
        ]
    return array, []


def _index(index: Path, rows: dict[str, dict[str, Any]]) -> tuple[dict[int, str], list[str]]:
    """Label Index → case."""
    table, wrong = read_table(index, _INDEX)
    errors = [f"{index.name}: {line}" for line in wrong]
    labelled: dict[int, str] = {}
    seen: dict[str, int] = {}
    cases = {_plain(case): case for case in rows} | {
        _plain(row["path"].name): case for case, row in rows.items()
    }
    for ordinal, cells in table:
        where = f"{index.name}: row {ordinal}"
        case = cases.get(_plain(cells["Folder/ID"]))
        plain = _plain(cells["Diagnosis"])
        diagnosis = next(
            (finding for finding, (folder, _, _) in _FINDINGS.items() if folder.fullmatch(plain)),
            None,
        )
        label = (
            int(cells["Label Index"]) if re.fullmatch(r"[0-9]{1,6}", cells["Label Index"]) else None
        )
        if label is None or label in labelled:
            problem = "is not a number" if label is None else "is there already"
            errors.append(f"{where}, Label Index: {cells['Label Index']!r} {problem}")
        if case is None:
            errors.append(f"{where}, Folder/ID: there is no folder of {cells['Folder/ID']!r}")
        elif case in seen:
            errors.append(f"{where}, Folder/ID: {case} stands in row {seen[case]} already")
        elif diagnosis != rows[case]["finding"]:
            position = rows[case]["path"].parent.name
            errors.append(
                f"{where}, Diagnosis: {cells['Diagnosis']!r}, and {case} lies in {position}"
            )
        if case is not None:
            seen.setdefault(case, ordinal)
            if label is not None:
                labelled.setdefault(label, case)
    return labelled, errors


def _row_of(labels: list[int], length: int) -> Callable[[int], int] | None:
    """Which row of an array of this length belongs to a Label Index."""
    if length == len(labels):
        return labels.index
    return (lambda label: label) if labels and length == labels[-1] + 1 else None


def _misfits(labels: np.ndarray, slices: int) -> list[str]:
    """What is wrong with the labels of one case.

    The array is as long as the longest series and filled up.
    """
    import numpy as np

    inside, beyond = labels[:slices], labels[slices:]
    texts = []
    if len(labels) < slices:
        texts.append(f"has {len(labels)} places, and the case {slices} slices")
    if not np.isin(inside, (0, 1)).all():
        texts.append("holds values other than 0 and 1")
    if (beyond == 1).any():
        texts.append(f"marks slices beyond the {slices} that the case has")
    return texts
