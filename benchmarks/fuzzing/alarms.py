"""Warnings and refusals where there is nothing to warn of: real scans and phantoms, unchanged."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from tf_covid.phantom import draw_chest
from tf_covid.phantom.files import write_dicom, write_nifti_volume
from tf_covid.scan import find_cases

_ROOT = "1.2.840.10008.1.2"
_SYNTAXES = (
    f"{_ROOT}.1",
    _ROOT,
    f"{_ROOT}.5",
    f"{_ROOT}.4.70",
    f"{_ROOT}.4.80",
    f"{_ROOT}.4.90",
    f"{_ROOT}.1.99",
)
#: Voxels of a phantom: small, since many are drawn, yet of no more than 12 mm.
_SHAPE = (64, 128, 128)
#: Parts of the names of files that are masks and no scans.
_MASKS = ("seg", "lung", "mask", "label", "lm-")


def alarms(phantoms: int, real: Path | None) -> int:
    """Read them all; print and count what is not read without a warning."""
    count = 0
    for name, path in _real(real):
        count += _told(name, path)
    for seed in range(phantoms):
        with tempfile.TemporaryDirectory() as folder:
            count += _told(f"phantom {seed}", _phantom(seed, Path(folder)))
    print(f"{count} warnings or refusals")
    return count


def _told(name: str, path: Path) -> int:
    count = 0
    for case in find_cases(path):
        try:
            flags = case.read().quality_flags
        except Exception as error:  # whatever comes is what is looked for
            print(f"{name}: {error}", flush=True)
            count += 1
            continue
        for flag in flags:
            if flag.level != "info":
                print(f"{name}: {flag.code} ({flag.level}): {flag.message}", flush=True)
                count += 1
    return count


def _real(folder: Path | None) -> Iterator[tuple[str, Path]]:
    """Folders that hold DICOM, and volume files, once each."""
    if folder is None:
        return
    series = set()
    for path in sorted(Path(folder).rglob("*")):
        lower = path.name.lower()
        if not path.is_file() or lower.startswith("lm-") or any(part in lower for part in _MASKS):
            continue
        if lower.endswith((".nii", ".nii.gz", ".nrrd", ".mha", ".zip")):
            yield path.relative_to(folder).as_posix(), path
        elif lower.endswith((".dcm", ".ima")) and path.parent not in series:
            series.add(path.parent)
            yield path.parent.relative_to(folder).as_posix(), path.parent


def _phantom(seed: int, folder: Path) -> Path:
    chest = draw_chest(seed, _SHAPE, severity=seed % 5)
    if seed % 4 == 3:
        return write_nifti_volume(chest.hu, chest.affine, folder / "scan.nii.gz")
    syntax = _SYNTAXES[seed % len(_SYNTAXES)]
    return write_dicom(chest.hu, chest.affine, folder / "series", transfer_syntax=syntax, seed=seed)
