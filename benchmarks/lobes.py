"""Lobes, gate, lobe scores, effusion, orientation, against the truth: tables of docs/lobes.md.

    python benchmarks/lobes.py [--cases 100] [--real DIR] [--lungs-model F] [--lobes-model F]

Beside each figure behind the gate stands the one of the 2D mask alone, from the same scans.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from cases import DrawnCase
from sanity import dice, kept
from scipy import ndimage
from shared_scans import real_scans
from tables import DOCS, NONE, Page, correlation, mean, number, percent, table, unseen

from tf_covid import severity
from tf_covid.lobes import ct_score_read
from tf_covid.lungs import LungReading, read_lungs
from tf_covid.phantom.mark import UNSEEN
from tf_covid.pipeline import ORIENTATION_DOUBTFUL
from tf_covid.tissues import TISSUES

if TYPE_CHECKING:
    from tf_covid.answer import Segmentation
    from tf_covid.local import LocalModels

#: Marked tissue counts as false from this distance to the true lungs on.
FAR_MM = 10.0

#: Disease is heavy from this share of the lungs on.
HEAVY = 0.3

#: A chest has a belly where the scan shows so much of it.
BELLY_ML = 300.0

#: The flips that are asked about: name → axes.
FLIPS = {"head to feet": (0,), "left to right": (2,), "both": (0, 2)}

GATED, ALONE = "behind the gate", "2D mask alone"


@dataclass(frozen=True)
class Measured:
    """One synthetic chest.

    Args:
        severity: Its class.
        share: True share of its lungs that is diseased, 0–1.
        belly: Whether it shows a belly.
        lobe_dice: Dice of each lobe, NaN for one that the scan does not show.
        lungs_dice: Dice of the lungs, by mask.
        lungs_far_ml: Lung that is marked far from any lung, by mask.
        disease_far_ml: Disease that is marked far from any lung, by mask.
        involvement: Involvement in percent: true, and read.
        score: Sum of the lobe scores: true, and read (None where a lobe is missing).
        effusion_ml: True, and read.
        effusion_diseased: Share of the effusion that is called diseased lung.
        orientation: Logits (3,) of the scan as it is stored.
        flipped: Name of the flip → logits (3,) of the flipped scan.
        both_lungs: Whether both lungs lie in the scan.
    """

    severity: int
    share: float
    belly: bool
    lobe_dice: tuple[float, ...]
    lungs_dice: dict[str, float]
    lungs_far_ml: dict[str, float]
    disease_far_ml: dict[str, float]
    involvement: tuple[float, float]
    score: tuple[int, int | None]
    effusion_ml: tuple[float, float]
    effusion_diseased: float
    orientation: np.ndarray
    flipped: dict[str, np.ndarray]
    both_lungs: bool


def read(
    models: LocalModels, found: Segmentation, hu: np.ndarray, spacing_mm: tuple[float, float, float]
) -> LungReading:
    """Lungs, lobes and disease on the scan's own grid, as `tfcovid infer` reads them."""
    return read_lungs(
        hu,
        found.probability,
        kept(models, found.probability),
        spacing_mm,
        disease=found.disease,
        lobes=found.lobes,
        effusion=found.effusion,
    )


def measure(gated: LocalModels, alone: LocalModels, case: DrawnCase) -> Measured:
    """Everything about one synthetic chest."""
    voxel_ml = float(np.prod(case.spacing_mm)) / 1000.0
    far = ndimage.distance_transform_edt(~case.lungs, sampling=case.spacing_mm) > FAR_MM
    dices, lungs_far, disease_far, readings = {}, {}, {}, {}
    for name, models in ((GATED, gated), (ALONE, alone)):
        found = models.segment(case.hu)
        reading = readings[name] = read(models, found, case.hu, case.spacing_mm)
        # What the graph marks, before any cleaning: that is what a classifier meets.
        marked = {"lungs": found.probability, "disease": found.disease}
        on_scan = {
            key: np.zeros_like(far) if value is None else _onto(value, case.hu.shape)
            for key, value in marked.items()
        }
        dices[name] = dice(reading.voxels.sides > 0, case.lungs)
        lungs_far[name] = np.count_nonzero(on_scan["lungs"] & far) * voxel_ml
        both = on_scan["disease"] & on_scan["lungs"]
        disease_far[name] = np.count_nonzero(both & far) * voxel_ml
        if name == GATED:
            fluid = case.tissues == TISSUES["pleural effusion"]
            called = np.count_nonzero(both & fluid) / max(np.count_nonzero(fluid), 1)
            orientation = found.orientation
    reading = readings[GATED]
    true_lobes = [case.lobes == index for index in range(1, 6)]
    shown = [np.count_nonzero(lobe) * voxel_ml >= 10.0 for lobe in true_lobes]
    return Measured(
        severity=case.severity,
        share=case.lesions.sum() / max(case.lungs.sum(), 1),
        belly=_belly_ml(case.tissues, voxel_ml) > BELLY_ML,
        lobe_dice=tuple(
            dice(reading.voxels.lobes == index, lobe) if seen else float("nan")
            for index, (lobe, seen) in enumerate(zip(true_lobes, shown, strict=True), 1)
        ),
        lungs_dice=dices,
        lungs_far_ml=lungs_far,
        disease_far_ml=disease_far,
        involvement=(
            100.0 * case.lesions.sum() / max(case.lungs.sum(), 1),
            reading.lungs.involvement_percent,
        ),
        score=(case.ct_score, ct_score_read(reading.lobes)),
        effusion_ml=(float(fluid.sum() * voxel_ml), reading.lungs.effusion_ml or 0.0),
        effusion_diseased=called if fluid.sum() * voxel_ml >= 10.0 else float("nan"),
        orientation=orientation,
        flipped={
            name: gated.segment(np.ascontiguousarray(np.flip(case.hu, axes))).orientation
            for name, axes in FLIPS.items()
        },
        both_lungs=all(shown),
    )


def _belly_ml(tissues: np.ndarray, voxel_ml: float) -> float:
    organs = [TISSUES[name] for name in ("solid organ", "stomach", "bowel")]
    return float(np.isin(tissues, organs).sum() * voxel_ml)


def _onto(probability: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Bool (D, H, W): where a probability (D, h, w) exceeds one half, cell by cell."""
    rows, columns = (
        np.minimum(((np.arange(size) + 0.5) * cells / size).astype(int), cells - 1)
        for size, cells in zip(shape[1:], probability.shape[1:], strict=True)
    )
    return (probability > 0.5)[:, rows][:, :, columns]


def lobes_table(measured: Sequence[Measured]) -> str:
    """A row a group of chests: Dice of each lobe, and the lowest of all."""
    groups = {
        "all": measured,
        f"disease in less than {HEAVY:.0%} of the lungs": [m for m in measured if m.share < HEAVY],
        "heavy disease": [m for m in measured if m.share >= HEAVY],
    }
    rows = []
    for name, chosen in groups.items():
        values = np.array([one.lobe_dice for one in chosen]).reshape(len(chosen), 5)
        figures = [number(float(np.nanmean(v)) if len(v) else None, 3) for v in values.T]
        lowest = number(float(np.nanmin(values)) if len(values) else None, 3)
        rows.append([name, len(chosen), *figures, lowest])
    return table(("chests", "number", *severity.LOBES, "lowest"), rows)


def far_table(measured: Sequence[Measured]) -> str:
    """What is marked far from any lung: two rows a mask."""
    rows = []
    with_belly = [one for one in measured if one.belly]
    for mask in (GATED, ALONE):
        for what, values in (
            ("lung", [one.lungs_far_ml[mask] for one in with_belly]),
            ("disease", [one.disease_far_ml[mask] for one in with_belly]),
        ):
            figures = [number(float(f), 1) for f in _spread(values)]
            rows.append([f"{what}, {mask}", len(values), *figures])
    return table(("marked", "chests with a belly", "median, ml", "95th percentile", "most"), rows)


def _spread(values: Sequence[float]) -> list[float]:
    if not values:
        return [float("nan")] * 3
    return [float(np.median(values)), float(np.percentile(values, 95)), float(np.max(values))]


def lungs_table(measured: Sequence[Measured]) -> str:
    """Dice of the lungs by class of disease, behind the gate and without."""
    groups = {"no disease (0)": (0,), "mild to severe (1–3)": (1, 2, 3), "critical (4)": (4,)}
    rows = []
    for name, classes in groups.items():
        for mask in (GATED, ALONE):
            values = [one.lungs_dice[mask] for one in measured if one.severity in classes]
            figures = (
                [number(float(f(values)), 3) for f in (np.mean, np.median, np.min)]
                if values
                else [NONE] * 3
            )
            rows.append([f"{name}, {mask}", len(values), *figures])
    return table(("chests", "number", "Dice, mean", "median", "lowest"), rows)


def scores_table(measured: Sequence[Measured]) -> str:
    """How near the sum of the lobe scores, and the involvement, come to the truth."""
    known = [one.score for one in measured if one.score[1] is not None]
    truth, found = (np.array(values, float) for values in zip(*known, strict=True))
    near = [np.abs(found - truth) <= limit for limit in (1, 3)]
    mild = [one for one in measured if one.severity == 1]
    none = [one.involvement[1] for one in measured if one.severity == 0]
    rows = [
        ["chests with all five lobes", f"{len(known)} of {len(measured)}"],
        ["lobe-sum score within ±1", percent(float(near[0].mean()), 0)],
        ["lobe-sum score within ±3", percent(float(near[1].mean()), 0)],
        ["lobe-sum score, mean error", number(float(np.abs(found - truth).mean()), 2)],
        ["lobe-sum score, ICC(2,1) with the truth", number(agreement(truth, found), 3)],
        [
            "involvement, mean error in mild disease, points",
            number(mean(abs(a - b) for a, b in (one.involvement for one in mild)), 2),
        ],
        [
            "involvement, mean error in all, points",
            number(mean(abs(a - b) for a, b in (one.involvement for one in measured)), 2),
        ],
        [
            "involvement, r with the truth",
            number(correlation(*zip(*(one.involvement for one in measured), strict=True)), 3),
        ],
        [
            "without disease: involvement below 1 %",
            f"{sum(value < 1 for value in none)} of {len(none)}",
        ],
        ["without disease: highest involvement, %", number(max(none, default=float("nan")), 1)],
    ]
    return table(("measured", "value"), rows)


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """ICC(2,1), absolute agreement of two readings of each case (Shrout & Fleiss 1979)."""
    values = np.stack([one, other], axis=1)
    count, readers = values.shape
    total = values.mean()
    between = readers * ((values.mean(axis=1) - total) ** 2).sum() / (count - 1)
    across = count * ((values.mean(axis=0) - total) ** 2).sum() / (readers - 1)
    residual = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + total
    error = (residual**2).sum() / ((count - 1) * (readers - 1))
    spread = between + (readers - 1) * error + readers * (across - error) / count
    return float((between - error) / spread)


def effusion_table(measured: Sequence[Measured]) -> str:
    """Effusion: its volume, and how much of it is called diseased lung."""
    there = [one for one in measured if np.isfinite(one.effusion_diseased)]
    absent = [one.effusion_ml[1] for one in measured if one.effusion_ml[0] == 0]
    called = [one.effusion_diseased for one in there]
    rows = [
        ["chests with effusion", str(len(there))],
        ["of the effusion called diseased, mean", percent(mean(called), 1)],
        ["of the effusion called diseased, most", percent(max(called, default=float("nan")), 1)],
        [
            "volume, mean error, ml",
            number(mean(abs(a - b) for a, b in (one.effusion_ml for one in there)), 0),
        ],
        [
            "volume, r with the truth",
            number(correlation(*zip(*(one.effusion_ml for one in there), strict=True)), 3)
            if there
            else NONE,
        ],
        ["found where there is none, most, ml", number(max(absent, default=float("nan")), 0)],
    ]
    return table(("measured", "value"), rows)


def orientation_table(measured: Sequence[Measured]) -> str:
    """Flips found, and false alarms."""
    rows = []
    both = [one for one in measured if one.both_lungs]
    alarms = sum(bool((one.orientation > ORIENTATION_DOUBTFUL).any()) for one in measured)
    rows.append(["false alarms in scans as they are", f"{alarms} of {len(measured)}"])
    for name, axes in FLIPS.items():
        right = 0
        for one in both:
            said = {axis for axis in range(3) if one.flipped[name][axis] > ORIENTATION_DOUBTFUL}
            right += said == set(axes)
        rows.append([f"flipped {name}: named rightly", f"{right} of {len(both)}"])
    return table(("scans with both lungs", "value"), rows)


def real_table(models: LocalModels, folder: Path | None) -> str:
    """Flips of the real scans, and what is read of them."""
    rows = []
    for one in real_scans(folder):
        hu = one.scan.hu
        said = {"as stored": models.segment(hu).orientation} | {
            name: models.segment(np.ascontiguousarray(np.flip(hu, axes))).orientation
            for name, axes in FLIPS.items()
        }
        rows.append(
            [
                one.name,
                *(" ".join(f"{logit:+.1f}" for logit in logits) for logits in said.values()),
            ]
        )
    return table(("scan: logits of the three flips", "as stored", *FLIPS), rows)


def seconds_table(models: LocalModels, slices: int = 300, side: int = 512) -> str:
    """Seconds of the lung models on a long scan, with and without the 3D network and the gate."""
    from tf_covid.local import LocalModels

    hu = np.random.default_rng(0).integers(-1000, 400, (slices, side, side), np.int16)
    lungs = models.lungs.source
    plain = LocalModels(
        [models.members[0].model.source], lungs=lungs, lobes="none", allow_other_lungs=True
    )
    taken = {}
    for name, one in ((GATED, models), (ALONE, plain)):
        one.segment(hu[:32])
        runs = []
        for _ in range(3):
            start = time.perf_counter()
            one.segment(hu)
            runs.append(time.perf_counter() - start)
        taken[name] = float(np.median(runs))
    rows = [
        [f"{name}, {slices} slices of {side}×{side}", number(value, 2)]
        for name, value in taken.items()
    ]
    rows.append(["3D network and gate", number(taken[GATED] - taken[ALONE], 2)])
    return table(("lungs found by", "seconds, median of 3"), rows)


@click.command()
@click.option("--cases", default=100, show_default=True, help="Unseen chests: seeds 1000000 ….")
@click.option(
    "--folder", type=click.Path(path_type=Path), default=Path("build/unseen"), show_default=True
)
@click.option("--model", default="severity-i3d", show_default=True, help="Whose rules are used.")
@click.option("--lungs-model", help="2D lung model; the shipped one if not given.")
@click.option("--lobes-model", default="lobes-unet3d", show_default=True)
@click.option(
    "--real",
    envvar="TF_COVID_REAL_CT",
    type=click.Path(path_type=Path),
    help="Folder of real scans.",
)
@click.option(
    "--write/--no-write", default=True, show_default=True, help="Put the tables into docs/lobes.md."
)
def main(
    cases: int,
    folder: Path,
    model: str,
    lungs_model: str | None,
    lobes_model: str,
    real: Path | None,
    write: bool,
) -> None:
    """Measure, print, and renew docs/lobes.md."""
    from tf_covid.local import LocalModels

    page = Page(DOCS / "lobes.md", write)
    gated, alone = (
        LocalModels([model], lungs=lungs_model, lobes=lobes, allow_other_lungs=True)
        for lobes in (lobes_model, "none")
    )
    pair = gated.lung_models
    by = " and ".join(
        f"`{one.name}`, sha256 `{one.sha256[:12]}…`" for one in (pair.lobes, pair.lungs) if one
    )
    measured = [
        measure(gated, alone, case) for case in unseen(folder, range(UNSEEN, UNSEEN + cases))
    ]
    head = f"{len(measured)} unseen synthetic chests, {by}:"
    page.put("lobes", head, lobes_table(measured))
    page.put("lungs", head, lungs_table(measured))
    page.put("far", head, far_table(measured))
    page.put("scores", head, scores_table(measured))
    page.put("effusion", head, effusion_table(measured))
    page.put("orientation", head, orientation_table(measured))
    if real:
        page.put("real", f"{by}:", real_table(gated, real))
    page.put("seconds", seconds_table(gated))


if __name__ == "__main__":
    main()
