"""The lung mask and the involvement read off it, against the truth: the tables of docs/lungs.md.

    python benchmarks/lungs.py [--cases 100] [--real DIR] [--curve]

A peer stands beside each: a threshold with a closing beside the mask, the rule on density beside
the learned disease.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # small products: on a busy machine its threads wait for each other

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from cases import DrawnCase, read_case
from sanity import dice, kept, sanity_table
from shared_scans import RealScan, real_scans
from tables import DOCS, NONE, Page, correlation, mean, number, percent, table, unseen
from threshold import lungs_by_threshold

from tf_covid.lungs import LungReading, read_lungs
from tf_covid.phantom.mark import UNSEEN

if TYPE_CHECKING:
    from tf_covid.local import LocalModels

LEARNED, RULE = "learned", "rule on density"

#: What looks like disease on CT and is none, as the phantom draws it.
MIMICS = (
    "dependent",
    "band",
    "nodules",
    "mosaic",
    "buds",
    "breathing",
    "effusion_left",
    "effusion_right",
)

GROUPS = {
    "all": range(5),
    "no disease (class 0)": range(1),
    "mild to severe (1–3)": range(1, 4),
    "critical (4)": range(4, 5),
}

#: A slice is diseased from this share of its lung on.
DISEASED_SLICE = 0.01


@dataclass(frozen=True)
class Measured:
    """One synthetic chest.

    Args:
        severity: Its class.
        mimics: Something in it looks like disease and is none.
        dice: Of the mask.
        threshold_dice: Of the peer's mask.
        involvement: True percentage of diseased lung.
        diseased: bool, one for each kept slice.
        read: Percentage by each way of reading it.
        read_slices: The same, for each kept slice.
    """

    severity: int
    mimics: bool
    dice: float
    threshold_dice: float
    involvement: float
    diseased: np.ndarray
    read: dict[str, float]
    read_slices: dict[str, np.ndarray]


def readings(
    models: LocalModels, hu: np.ndarray, spacing_mm: tuple[float, float, float]
) -> tuple[np.ndarray, dict[str, LungReading]]:
    """The kept slices, and what each way of reading involvement says.

    The learned one only where the model has it.
    """
    found = models.segment(hu)
    keep = kept(models, found.probability)
    read = {RULE: read_lungs(hu, found.probability, keep, spacing_mm)}
    if found.disease is not None:
        read[LEARNED] = read_lungs(hu, found.probability, keep, spacing_mm, disease=found.disease)
    return keep, read


def measure(models: LocalModels, case: DrawnCase) -> Measured:
    """Everything about one synthetic chest."""
    keep, read = readings(models, case.hu, case.spacing_mm)
    lungs, lesions = (volume.sum(axis=(1, 2)) for volume in (case.lungs, case.lesions))
    return Measured(
        severity=case.severity,
        mimics=any(case.settings.get(name) for name in MIMICS),
        dice=dice(read[RULE].voxels.sides > 0, case.lungs),
        threshold_dice=dice(lungs_by_threshold(case.hu, case.spacing_mm), case.lungs),
        involvement=100.0 * lesions.sum() / max(lungs.sum(), 1),
        diseased=(lesions >= DISEASED_SLICE * np.maximum(lungs, 1))[keep],
        read={name: one.lungs.involvement_percent for name, one in read.items()},
        read_slices={
            name: np.array(one.lungs.involvement_per_slice)[keep] for name, one in read.items()
        },
    )


def dice_table(measured: Sequence[Measured]) -> str:
    """Two rows a group of classes: the network and its peer."""
    rows = []
    for group, classes in GROUPS.items():
        chosen = [one for one in measured if one.severity in classes]
        ways = {
            "lungs-unet": [one.dice for one in chosen],
            "threshold": [one.threshold_dice for one in chosen],
        }
        for way, found in ways.items():
            figures = (
                [number(float(f(found)), 3) for f in (np.mean, np.median, np.min)]
                if found
                else [NONE] * 3
            )
            rows.append([f"{group}: {way}", len(found), *figures])
    return table(("chests", "number", "Dice, mean", "median", "lowest"), rows)


def involvement_table(measured: Sequence[Measured]) -> str:
    """A row a way of reading and a group of chests."""
    groups = {
        "all": list(measured),
        "with mimics": [one for one in measured if one.mimics],
        "without mimics": [one for one in measured if not one.mimics],
    }
    header = (
        "reading",
        "chests",
        "r",
        "mean error, all",
        "mild (1)",
        "none (0)",
        "none (0), highest",
        "AUC of slices",
    )
    rows = [
        [f"{way}: {group}", len(chosen), *_involvement(way, chosen)]
        for way in (LEARNED, RULE)
        for group, chosen in groups.items()
        if all(way in one.read for one in measured)
    ]
    return table(header, rows)


def _involvement(way: str, chosen: Sequence[Measured]) -> list[str]:
    errors = {
        name: [abs(one.read[way] - one.involvement) for one in chosen if one.severity in classes]
        for name, classes in {"all": range(5), "mild": (1,), "none": (0,)}.items()
    }
    r = correlation([one.read[way] for one in chosen], [one.involvement for one in chosen])
    highest = max((one.read[way] for one in chosen if one.severity == 0), default=float("nan"))
    found = [number(r), *(number(mean(one), 1) for one in errors.values()), number(highest, 1)]
    return [*found, number(_slice_auc(way, chosen), 3)]


def _slice_auc(way: str, chosen: Sequence[Measured]) -> float:
    """How well a slice's involvement tells the diseased slices of all chests from the others."""
    from sklearn.metrics import roc_auc_score

    truth = np.concatenate([np.zeros(0, bool), *(one.diseased for one in chosen)])
    found = np.concatenate([np.zeros(0), *(one.read_slices[way] for one in chosen)])
    return float(roc_auc_score(truth, found)) if len(set(truth.tolist())) == 2 else float("nan")


def real_table(models: LocalModels, scans: Sequence[RealScan]) -> str:
    """Two rows a scan: the network and its peer; involvement by both ways of reading."""
    header = (
        "scan",
        "Dice",
        "of the lungs found",
        "of the mask outside",
        f"involvement, {LEARNED}",
        RULE,
    )
    rows = []
    for one in scans:
        hu, spacing_mm = one.scan.hu, one.scan.spacing_mm
        _, read = readings(models, hu, spacing_mm)
        involvement = [
            number(read[way].lungs.involvement_percent, 1) if way in read else NONE
            for way in (LEARNED, RULE)
        ]
        rows.append(
            [
                f"{one.name}: lungs-unet",
                *_overlap(read[RULE].voxels.sides > 0, one.lungs),
                *involvement,
            ]
        )
        rows.append(
            [
                f"{one.name}: threshold",
                *_overlap(lungs_by_threshold(hu, spacing_mm), one.lungs),
                NONE,
                NONE,
            ]
        )
    return table(header, rows)


def _overlap(mask: np.ndarray, lungs: np.ndarray) -> list[str]:
    both = np.count_nonzero(mask & lungs)
    outside = 1 - both / max(np.count_nonzero(mask), 1)
    return [
        number(dice(mask, lungs), 3),
        percent(both / np.count_nonzero(lungs), 1),
        percent(outside, 1),
    ]


@click.command()
@click.option(
    "--cases", default=100, show_default=True, help="Unseen synthetic chests: seeds 1000000 …."
)
@click.option(
    "--folder", type=click.Path(path_type=Path), default=Path("build/unseen"), show_default=True
)
@click.option(
    "--model", default="severity-i3d", show_default=True, help="Whose slice rule is used."
)
@click.option(
    "--real",
    envvar="TF_COVID_REAL_CT",
    type=click.Path(path_type=Path),
    help="Folder of real scans.",
)
@click.option(
    "--sanity",
    "few",
    default=5,
    show_default=True,
    help="Synthetic chests of the table without labels.",
)
@click.option(
    "--curve", is_flag=True, help="Only the mask's grids: their ceiling of Dice and their time."
)
@click.option(
    "--write/--no-write", default=True, show_default=True, help="Put the tables into docs/lungs.md."
)
def main(
    cases: int, folder: Path, model: str, real: Path | None, few: int, curve: bool, write: bool
) -> None:
    """Measure, print, and renew docs/lungs.md."""
    # Here, not above: the processes that draw the chests import this file and need no TensorFlow.
    from tf_covid.local import LocalModels

    page = Page(DOCS / "lungs.md", write)
    if curve:
        from grids import grid_table

        page.put("grids", grid_table())
        return
    models = LocalModels([model])
    by = f"`lungs-unet`, sha256 `{models.lungs.sha256[:12]}…`"
    measured = [measure(models, case) for case in unseen(folder, range(UNSEEN, UNSEEN + cases))]
    page.put("dice", f"{len(measured)} unseen synthetic chests, {by}:", dice_table(measured))
    page.put(
        "involvement",
        f"{len(measured)} unseen synthetic chests, {by}; percent of the lungs:",
        involvement_table(measured),
        *_without_learned(measured),
    )
    scans = real_scans(real)
    if scans:
        page.put("real", f"{by}:", real_table(models, scans))
    drawn = (read_case(folder, seed) for seed in range(UNSEEN, UNSEEN + min(few, cases)))
    page.put(
        "sanity",
        f"{by}{'' if scans else '; no real scans were given'}:",
        sanity_table(
            models,
            [
                *((one.name, one.scan.hu, one.scan.spacing_mm) for one in scans),
                *(
                    (f"phantom {case.seed}, class {case.severity}", case.hu, case.spacing_mm)
                    for case in drawn
                ),
            ],
        ),
    )


def _without_learned(measured: Sequence[Measured]) -> list[str]:
    learned = all(LEARNED in one.read for one in measured)
    return (
        []
        if learned
        else ["This lung model has no output for disease, so there is no learned reading."]
    )


if __name__ == "__main__":
    main()
