"""A look at the weights on your own scans, which needs no labels.

    python benchmarks/real.py FOLDER [--out build/real] [--model NAME] [--lungs-model NAME|FILE]
        [--lobes-model NAME|FILE|none]

Prints two tables, a row a scan, and writes them as real.json beside sheet.png, the worst slices as
pictures. FOLDER holds scans as `tfcovid infer` takes them. The lungs of each are held against a
threshold and a closing (reference.py), which is a peer and no truth: where it is not to be trusted
its row says so. Nothing of the scans' headers goes into the output.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # small products: on a busy machine its threads wait for each other

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from coarse import Blocks, blocks, near
from reference import Reference, reference_lungs
from sanity import dice, dice_with_halved, halved
from scipy import ndimage
from sheet import View, draw_scan, write_sheets
from tables import NONE, number, say, table

from tf_covid.cohort.cases import cases_of
from tf_covid.errors import ModelError, ScanRefused
from tf_covid.pipeline import stratify
from tf_covid.result import Lobe, QualityFlag, Result
from tf_covid.scan import Case, Scan

if TYPE_CHECKING:
    from tf_covid.answer import Segmentation
    from tf_covid.local import LocalModels

#: What is farther from the reference than this is outside the lungs, whatever their border is.
FAR_MM = 10.0

#: Disease outside the reference by more than its border's blur: the dome of the liver is less than
#: `FAR_MM` from the lung above it.
BLUR_MM = 3.0


@dataclass(frozen=True)
class Look:
    """What was seen of one scan: volumes in ml, shares in percent, Dice 0–1.

    Args:
        scan: Name of the case.
        reference_ml: Volume of the reference.
        doubts: Why the reference is not to be trusted; empty if nothing speaks against it.
        dice: Of the lungs and the reference.
        lungs_far_ml: Lung marked more than `FAR_MM` outside the reference.
        disease_far_ml: Diseased lung marked there; None where nothing looked for disease.
        disease_outside_ml: The same, more than `BLUR_MM` outside the reference.
        islands: Pieces of the network's own mask, before the cleaning, beside the two largest.
        islands_ml: Their volume.
        right_ml: Right lung.
        left_ml: Left lung.
        involvement_percent: As in `result.json`.
        disease_percent: Share of the lungs that is marked as diseased.
        effusion_ml: Pleural fluid; None where nothing looked for it.
        lobes_ml: Volume of each lobe by its name; None without a lobe network.
        dice_mirrored: Of the lungs and those of the scan mirrored; None where that was refused.
        dice_halved: Of the lungs and those of the scan with pixels of twice the size.
        warnings: The result's quality flags, but those that only inform.
    """

    scan: str
    reference_ml: float
    doubts: tuple[str, ...]
    dice: float
    lungs_far_ml: float
    disease_far_ml: float | None
    disease_outside_ml: float | None
    islands: int
    islands_ml: float
    right_ml: float
    left_ml: float
    involvement_percent: float
    disease_percent: float | None
    effusion_ml: float | None
    lobes_ml: dict[str, float] | None
    dice_mirrored: float | None
    dice_halved: float | None
    warnings: tuple[QualityFlag, ...]

    @property
    def left_to_right(self) -> float | None:
        """Volume of the left lung as a share of the right one's; 0.8 to 1 is usual."""
        return self.left_ml / self.right_ml if self.right_ml else None


@dataclass(frozen=True)
class Refused:
    """A scan that could not be read or answered, and the quality flags that say why."""

    scan: str
    reasons: tuple[QualityFlag, ...]


class Watched:
    """Models that keep the lungs as the network gave them, before anything was cleaned."""

    def __init__(self, models: LocalModels) -> None:
        self.models = models
        self.found: Segmentation | None = None

    def __getattr__(self, name: str) -> object:
        return getattr(self.models, name)

    def segment(self, *args: Any, **options: Any) -> Segmentation:
        """As the models' own, and kept as `found`."""
        self.found = self.models.segment(*args, **options)
        return self.found


def look(case: Case, models: LocalModels) -> tuple[Look | Refused, View | None]:
    """Read and answer one scan, and measure its lungs; with what there is to draw of it."""
    try:
        scan = case.read()
    except ScanRefused as refusal:
        return Refused(case.name, errors(refusal.quality_flags)), None
    watched = Watched(models)
    result = stratify(scan, watched, attention="none")
    if result.maps is None or result.lungs is None or watched.found is None:
        return Refused(case.name, errors(result.quality_flags)), None
    by = blocks(scan.shape, scan.spacing_mm)
    hu = by.hu(scan.hu)
    reference = reference_lungs(hu, by.spacing_mm)
    lungs, lesions = result.maps.lungs > 0, lesions_of(result, watched.found)
    view = View(
        name=case.name,
        hu=scan.hu,
        blocks=by,
        lungs=by.mask(lungs),
        reference=reference.lungs,
        far=~near(reference.lungs, by.spacing_mm, FAR_MM),
        disease=None if lesions is None else by.mask(lesions),
        lobes=None if result.maps.lobes is None else lobe_blocks(result.maps.lobes, by),
        doubts=reference.doubts,
    )
    return measured(case.name, scan, result, reference, view, watched), view


def measured(
    name: str, scan: Scan, result: Result, reference: Reference, view: View, watched: Watched
) -> Look:
    """The figures of one answered scan."""
    lungs, ml = result.lungs, view.blocks.ml
    assert lungs is not None
    assert result.maps is not None
    inside = result.maps.lungs > 0
    assert watched.found is not None
    count, islands_ml = islands(watched.found.probability > 0.5, scan)
    disease_percent = disease_far_ml = disease_outside_ml = None
    if view.disease is not None:
        within = np.count_nonzero(view.disease & view.lungs)
        disease_percent = 100.0 * within / max(np.count_nonzero(view.lungs), 1)
        disease_far_ml = np.count_nonzero(view.disease & view.far) * ml
        about = near(reference.lungs, view.blocks.spacing_mm, BLUR_MM)
        disease_outside_ml = np.count_nonzero(view.disease & ~about) * ml
    return Look(
        scan=name,
        reference_ml=reference.ml,
        doubts=reference.doubts,
        dice=dice(view.lungs, view.reference),
        lungs_far_ml=np.count_nonzero(view.lungs & view.far) * ml,
        disease_far_ml=disease_far_ml,
        disease_outside_ml=disease_outside_ml,
        islands=count,
        islands_ml=islands_ml,
        right_ml=lungs.right_ml,
        left_ml=lungs.left_ml,
        involvement_percent=lungs.involvement_percent,
        disease_percent=disease_percent,
        effusion_ml=lungs.effusion_ml,
        lobes_ml=None if result.lobes is None else lobe_volumes(result.lobes),
        dice_mirrored=_dice_mirrored(scan, inside, watched.models),
        dice_halved=_dice_halved(scan, inside, watched.models),
        warnings=tuple(flag for flag in result.quality_flags if flag.level != "info"),
    )


def lesions_of(result: Result, found: Segmentation) -> np.ndarray | None:
    """Diseased lung on the scan's grid, bool (D, H, W); None where nothing looked for it.

    The result's own where it has one, else the cells of the network's grid that are diseased.
    """
    maps = result.maps
    assert maps is not None
    if maps.lesions is not None:
        return maps.lesions > 0
    if found.disease is None:
        return None
    rows, columns = (
        np.minimum((np.arange(size) + 0.5) * cells / size, cells - 1).astype(int)
        for size, cells in zip(maps.lungs.shape[1:], found.disease.shape[1:], strict=True)
    )
    out = np.empty(maps.lungs.shape, bool)
    for plane, cells, lungs in zip(out, found.disease, maps.lungs, strict=True):
        plane[:] = (cells > 0.5)[rows][:, columns] & (lungs > 0)
    return out


def islands(mask: np.ndarray, scan: Scan) -> tuple[int, float]:
    """Number and ml of the pieces of a mask, bool (D, h, w), beside its two largest ones."""
    pieces, count = ndimage.label(mask)
    sizes = np.sort(np.bincount(pieces.ravel(), minlength=count + 1)[1:])[::-1]
    depth, height, width = (
        side * size / cells
        for side, size, cells in zip(scan.spacing_mm, scan.shape, mask.shape, strict=True)
    )
    return max(count - 2, 0), float(sizes[2:].sum()) * depth * height * width / 1000.0


def lobe_volumes(lobes: Sequence[Lobe]) -> dict[str, float]:
    """Ml of each lobe by its name."""
    return {lobe.name: lobe.volume_ml for lobe in lobes}


def lobe_blocks(lobes: np.ndarray, by: Blocks) -> np.ndarray:
    """uint8, the lobe in the middle of each block."""
    half = [size // 2 for size in by.factors]
    ends = [size // factor * factor for size, factor in zip(lobes.shape, by.factors, strict=True)]
    middle = tuple(
        slice(first, last, step) for first, last, step in zip(half, ends, by.factors, strict=True)
    )
    return lobes[middle]


def errors(quality_flags: Sequence[QualityFlag]) -> tuple[QualityFlag, ...]:
    """The quality flags that refused a scan."""
    return tuple(flag for flag in quality_flags if flag.level == "error")


def _dice_mirrored(scan: Scan, inside: np.ndarray, models: LocalModels) -> float | None:
    # Contiguous: TensorFlow copies what is not, and the mirrored scan is there only here.
    mirrored = np.ascontiguousarray(scan.hu[..., ::-1])
    result = stratify(dataclasses.replace(scan, hu=mirrored), models, attention="none")
    return None if result.maps is None else dice(inside, result.maps.lungs[..., ::-1] > 0)


def _dice_halved(scan: Scan, inside: np.ndarray, models: LocalModels) -> float | None:
    affine = scan.affine.copy()
    affine[:3, 1:3] *= 2.0
    small = dataclasses.replace(scan, hu=halved(scan.hu), affine=affine)
    if not small.hu.size:
        return None
    result = stratify(small, models, attention="none")
    return None if result.maps is None else dice_with_halved(inside, result.maps.lungs > 0)


def against_reference(looks: Sequence[Look]) -> str:
    """The table of what the reference says."""
    header = (
        "scan",
        "reference, ml",
        "Dice",
        f"lung > {FAR_MM:.0f} mm outside, ml",
        f"disease > {FAR_MM:.0f} mm outside, ml",
        f"disease > {BLUR_MM:.0f} mm outside, ml",
        "islands",
        "islands, ml",
        "the reference",
    )
    rows = [
        [
            one.scan,
            number(one.reference_ml, 0),
            number(one.dice, 3),
            number(one.lungs_far_ml, 1),
            number(one.disease_far_ml, 1),
            number(one.disease_outside_ml, 1),
            one.islands,
            number(one.islands_ml, 1),
            f"not to be trusted: {', '.join(one.doubts)}" if one.doubts else "holds",
        ]
        for one in looks
    ]
    return table(header, rows)


def by_itself(looks: Sequence[Look]) -> str:
    """The table of what the answer says of itself."""
    lobes = list(next((one.lobes_ml for one in looks if one.lobes_ml), {}))
    header = (
        "scan",
        "right, ml",
        "left, ml",
        "left/right",
        *(f"{name.replace('_', ' ')}, ml" for name in lobes),
        "involvement, %",
        "marked as diseased, %",
        "effusion, ml",
        "Dice mirrored",
        "Dice at half the size",
        "warnings",
    )
    rows = [
        [
            one.scan,
            number(one.right_ml, 0),
            number(one.left_ml, 0),
            number(one.left_to_right),
            *(number((one.lobes_ml or {}).get(name), 0) for name in lobes),
            number(one.involvement_percent, 1),
            number(one.disease_percent, 1),
            number(one.effusion_ml, 0),
            number(one.dice_mirrored, 3),
            number(one.dice_halved, 3),
            ", ".join(f"`{flag.code}`" for flag in one.warnings) or NONE,
        ]
        for one in looks
    ]
    return table(header, rows)


def not_measured(refused: Sequence[Refused]) -> str:
    """The table of the scans without figures."""
    rows = [
        [one.scan, "; ".join(f"`{flag.code}`: {flag.message}" for flag in one.reasons)]
        for one in refused
    ]
    return table(("scan", "refused"), rows)


def as_json(looks: Sequence[Look], refused: Sequence[Refused], models: LocalModels) -> str:
    """The text of real.json."""
    scans = []
    for one in looks:
        row = dataclasses.asdict(one) | {"left_to_right": one.left_to_right}
        scans.append(row | {"warnings": [flag.as_dict() for flag in one.warnings]})
    said = {
        "weights_sha256": models.weights_sha256,
        "far_mm": FAR_MM,
        "blur_mm": BLUR_MM,
        "scans": scans,
        "refused": [
            {"scan": one.scan, "reasons": [flag.as_dict() for flag in one.reasons]}
            for one in refused
        ],
    }
    return json.dumps(_rounded(said), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _rounded(value: object) -> object:
    if isinstance(value, (float, np.floating)):
        return round(float(value), 4)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("build/real"),
    show_default=True,
    help="Folder of real.json and sheet.png.",
)
@click.option(
    "--model", default="severity-i3d", show_default=True, help="Whose slice rule is used."
)
@click.option("--lungs-model", help="2D lung model, by name or file; else the one that ships.")
@click.option(
    "--lobes-model",
    help="3D lobe model, by name or file, or none; else the one that the model was trained behind.",
)
def main(
    folder: Path, out: Path, model: str, lungs_model: str | None, lobes_model: str | None
) -> None:
    """Judge the lung model on the scans in FOLDER, without labels."""
    from tf_covid.local import LocalModels

    cases = list(cases_of([folder]))
    # Its class is not printed, so behind which lung models it was trained does not matter.
    try:
        models = LocalModels([model], lungs=lungs_model, lobes=lobes_model, allow_other_lungs=True)
    except ModelError as error:
        raise click.ClickException(str(error)) from None
    looks: list[Look] = []
    refused: list[Refused] = []
    pictures = []
    for index, case in enumerate(cases, 1):
        # One at a time: of a scan nothing stays but its figures and its pictures.
        one, view = look(case, models)
        if isinstance(one, Look):
            looks.append(one)
        else:
            refused.append(one)
        if view is not None:
            pictures.append(draw_scan(view))
        del view
        say(f"{index} of {len(cases)}: {case.name}{' (refused)' if one in refused else ''}")
    out.mkdir(parents=True, exist_ok=True)
    (out / "real.json").write_text(as_json(looks, refused, models), "utf-8")
    for path in write_sheets(pictures, out):
        say(str(path))
    weights = ", ".join(f"`{sha256[:12]}…`" for sha256 in models.weights_sha256)
    print(f"{len(looks)} scans, weights {weights}:\n")
    parts = [against_reference(looks), by_itself(looks)] if looks else []
    print("\n\n".join([*parts, not_measured(refused)] if refused else parts))


if __name__ == "__main__":
    main()
