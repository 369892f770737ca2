"""A synthetic cohort on disk: scans as a hospital sends them, their truth, and the manifest."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from tf_covid.cohort.manifest import write_manifest
from tf_covid.errors import OutputError
from tf_covid.phantom.chest import Chest, draw_chest
from tf_covid.phantom.files import Facts, write_dicom, write_nifti_volume
from tf_covid.phantom.settings import PhantomSettings
from tf_covid.scan.checks import VOXEL_MM
from tf_covid.severity import LABELS

_FORMATS = ("dicom", "nifti")
_SITES = ("north", "south", "west")

#: Scans of fewer slices do not reach far beyond the lungs: their slices would be thicker than 12 mm,
#: which no reader takes for a chest CT.
_FAR_SLICES = 84

Progress = Callable[[Iterable[int]], Iterable[int]]


def write_cohort(
    out: str | os.PathLike[str],
    cases: int,
    *,
    seed: int,
    size: int = 512,
    slices: int | None = None,
    format: str = "dicom",
    progress: Progress | None = None,
    settings: PhantomSettings | None = None,
    per_class: Sequence[int] | None = None,
) -> Path:
    """Draw a cohort and write each case's scan, truth masks and row of the manifest.

    A case is a folder `<case>/` with `dicom/` or `ct.nii.gz`, and `lungs.nii.gz` (0, 1 right, 2
    left), `lobes.nii.gz` (0, 1–5 in the order of `severity.LOBES`), `lesions.nii.gz` and
    `tissues.nii.gz` (numbers of `tissues.TISSUES`, 0 within the lungs). It is written under another
    name and renamed, and kept when it is there: a killed run goes on where it was. Classes are
    spread evenly, or as `per_class` says.

    Args:
        out: The cohort's folder; made if needed.
        cases: Number of cases, each a patient of its own.
        seed: Everything follows from it and the case's number.
        size: Pixels along each side of a slice.
        slices: Slices of every scan; drawn between 100 and 350 for each where None. With fewer
            than 84 no scan reaches far beyond the lungs, for its slices would be too thick.
        format: "dicom" or "nifti".
        progress: Wraps the case numbers, to show how far the work is.
        settings: Ranges of everything drawn.
        per_class: Patients of each severity class; their sum is `cases`.

    Returns:
        The path of `manifest.csv`; its paths are relative to it.

    Raises:
        OutputError: If a number or the format makes no sense, or `out` holds a cohort drawn
            otherwise.
    """
    if format not in _FORMATS:
        raise OutputError(f"a cohort is written as {' or '.join(_FORMATS)}, not as {format!r}")
    if cases < 1 or size < 32 or (slices is not None and slices < 8):
        raise OutputError(
            f"a cohort needs a case, 32 pixels and 8 slices at least, not {cases}, {size} and"
            f" {slices}"
        )
    if per_class is not None and (
        len(per_class) != len(LABELS) or min(per_class) < 0 or sum(per_class) != cases
    ):
        raise OutputError(
            f"{len(LABELS)} numbers of patients that sum to {cases} are needed, not"
            f" {list(per_class)}"
        )
    classes = _classes(cases, seed, per_class)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    counts = f", {' '.join(map(str, per_class))} of each class" if per_class is not None else ""
    _same_cohort(
        folder, f"seed {seed}, {size} pixels, {slices or 'drawn'} slices, {format}{counts}\n"
    )
    numbers: Iterable[int] = range(cases)
    for number in progress(numbers) if progress else numbers:
        if not _case_folder(folder, number).is_dir():
            _write_case(folder, number, seed, (slices, size), classes[number], format, settings)
    return _write_manifest(folder, cases)


def draw_readable(seed: int, shape: tuple[int, int, int], *, severity: int) -> Chest:
    """A chest, with more slices where those asked for lie so far apart that no scan's do.

    A reader refuses such a scan, so that nothing is to be learned from one, nor measured on it.

    Args:
        seed: Seed of the chest.
        shape: (D, H, W); D may come out larger.
        severity: Class, 0–4.
    """
    chest = draw_chest(seed, shape, severity=severity)
    if chest.spacing_mm[0] > VOXEL_MM[1]:
        slices = int(np.ceil(shape[0] * chest.spacing_mm[0] / VOXEL_MM[1])) + 1
        chest = draw_chest(seed, (slices, *shape[1:]), severity=severity)
    return chest


def _same_cohort(folder: Path, text: str) -> None:
    """Refuse to mix two cohorts in one folder."""
    path = folder / "cohort.txt"
    known = path.read_text(encoding="utf-8") if path.exists() else text
    if known != text:
        raise OutputError(f"{folder} holds a cohort of {known.strip()}; choose another folder")
    path.write_text(text, encoding="utf-8")


def _case_folder(folder: Path, number: int) -> Path:
    return folder / f"case-{number:04d}"


def _classes(cases: int, seed: int, per_class: Sequence[int] | None) -> list[int]:
    """The severity class of each case."""
    if per_class is not None:
        wanted = np.repeat(np.arange(len(LABELS)), per_class)
        return [int(label) for label in np.random.default_rng([seed, 2]).permutation(wanted)]
    # The order of the classes differs in each round of five, so that a prefix of the cohort is
    # balanced, too.
    rounds = range(-(-cases // len(LABELS)))
    turns = [np.random.default_rng([seed, number, 1]).permutation(len(LABELS)) for number in rounds]
    return [int(label) for turn in turns for label in turn][:cases]


def _draw(
    number: int,
    seed: int,
    grid: tuple[int | None, int],
    severity: int,
    settings: PhantomSettings | None,
) -> tuple[Chest, int]:
    """A case's chest, and the random number that its header follows from."""
    rng = np.random.default_rng([seed, number])
    slices = grid[0] or int(rng.integers(100, 351))
    chest_seed = int(rng.integers(2**31))
    if slices < _FAR_SLICES:
        settings = settings or PhantomSettings()
        near = dataclasses.replace(settings.scanner, p_far_above=0.0, p_far_below=0.0)
        settings = dataclasses.replace(settings, scanner=near)
    return (
        draw_chest(chest_seed, (slices, grid[1], grid[1]), severity=severity, settings=settings),
        chest_seed,
    )


def _write_case(
    folder: Path,
    number: int,
    seed: int,
    grid: tuple[int | None, int],
    severity: int,
    format: str,
    settings: PhantomSettings | None,
) -> None:
    """Draw and write one case as a whole."""
    chest, chest_seed = _draw(number, seed, grid, severity, settings)
    final = _case_folder(folder, number)
    part = final.with_name(f".{final.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    row = _row(chest, final.name, number, chest_seed, format)
    if format == "dicom":
        facts = Facts(
            patient_id=row["patient"],
            patient_name=f"PHANTOM^{number:04d}",
            sex=row["sex"],
            birth_date=f"{2020 - int(row['age'])}0101",
            accession_number=f"PH{number:04d}",
        )
        write_dicom(chest.hu, chest.affine, part / "dicom", facts=facts, seed=chest_seed)
    else:
        write_nifti_volume(chest.hu, chest.affine, part / "ct.nii.gz")
    for name, mask in (
        ("lungs", chest.lungs),
        ("lobes", chest.lobes),
        ("lesions", chest.lesions.astype(np.uint8)),
        ("tissues", chest.tissues),
    ):
        write_nifti_volume(mask, chest.affine, part / f"{name}.nii.gz")
    (part / "row.json").write_text(json.dumps(row), encoding="utf-8")
    part.rename(final)


def _row(chest: Chest, case: str, number: int, chest_seed: int, format: str) -> dict[str, str]:
    """The case's line of the manifest."""
    rng = np.random.default_rng([chest_seed, 2])
    return {
        "case": case,
        "patient": f"PHANTOM{number:04d}",
        "path": f"{case}/dicom" if format == "dicom" else f"{case}/ct.nii.gz",
        "ct_score": str(chest.ct_score),
        "severity": str(chest.severity),
        "covid": str(int(chest.covid)),
        "lobe_scores": " ".join(map(str, chest.lobe_scores)),
        "lungs": f"{case}/lungs.nii.gz",
        "lesions": f"{case}/lesions.nii.gz",
        "age": str(int(rng.integers(22, 90))),
        "sex": "F" if chest.settings["female"] else "M",
        "site": str(rng.choice(_SITES)),
        "lobes": f"{case}/lobes.nii.gz",
        "tissues": f"{case}/tissues.nii.gz",
    }


def _write_manifest(folder: Path, cases: int) -> Path:
    """Gather the cases' rows."""
    texts = [
        (_case_folder(folder, number) / "row.json").read_text(encoding="utf-8")
        for number in range(cases)
    ]
    path = folder / "manifest.csv"
    write_manifest(map(json.loads, texts), path)
    return path
