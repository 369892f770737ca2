"""Severity models against the truth, and what else their answer follows.

The tables of docs/severity.md.

    python benchmarks/severity.py [--cases 300] [--healthy 100] [--real DIR] [--model NAME]...

Every model alone, and the mean of all, as `tfcovid infer` answers with several.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # small products: on a busy machine its threads wait for each other

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from answers import (
    Answers,
    agreement_table,
    answer,
    ask,
    confusion_tables,
    missed_table,
    names,
    recall_table,
)
from audit import healthy_table, shortcut_table
from cases import DrawnCase
from shared_scans import BASE, CIP, present
from stress import AIM, STRESSES, reached
from tables import DOCS, NONE, Page, mean, number, percent, shipped, table, unseen

import tf_covid
from tf_covid.phantom.mark import UNSEEN

if TYPE_CHECKING:
    from tf_covid.local import LocalModels

#: Seeds of the chests without disease: multiples of 5, far from the others.
HEALTHY = UNSEEN + 1_000_000

#: A change of the CT score below this is small.
SMALL = 2.0


def stress_table(models: LocalModels, cases: Iterable[DrawnCase]) -> tuple[str, int]:
    """A row a disturbance and a model: how the CT score changes; and the number of chests."""
    dices: dict[str, list[float]] = {name: [] for name in STRESSES}
    changes: dict[str, list[np.ndarray]] = {name: [] for name in STRESSES}
    lost, asked = dict.fromkeys(STRESSES, 0), 0
    for case in cases:
        probability = models.segment(case.hu).probability
        first = answer(models, case.hu, probability, case.spacing_mm)
        if first is None:
            continue
        asked += 1
        for name, disturb in STRESSES.items():
            disturbed = disturb(probability, _cell_mm(case, probability), case.seed)
            then = answer(models, case.hu, disturbed, case.spacing_mm)
            if then is None:
                lost[name] += 1
                continue
            dices[name].append(reached(probability, disturbed))
            changes[name].append(np.abs(then[1] - first[1]))
    header = (
        "mask: model",
        "Dice reached, mean",
        "lowest",
        "change of CT score: mean",
        "largest",
        f"below {SMALL:.0f}",
        "refused",
    )
    rows = [
        [
            f"{name}: {model}",
            *_change(dices[name], [one[column] for one in changes[name]]),
            lost[name],
        ]
        for name in STRESSES
        for column, model in enumerate(names(models))
    ]
    return table(header, rows), asked


def _change(dices: list[float], changes: list[float]) -> list[str]:
    if not changes:
        return [NONE] * 5
    figures = [
        number(mean(dices), 3),
        number(min(dices), 3),
        number(mean(changes)),
        number(max(changes)),
    ]
    return [
        *figures,
        percent(mean(one < SMALL for one in changes)) if np.isfinite(changes).all() else NONE,
    ]


def _cell_mm(case: DrawnCase, probability: np.ndarray) -> tuple[float, float, float]:
    """Size of a cell of the mask's grid."""
    depth, height, width = case.spacing_mm
    rows, columns = (
        size / cells for size, cells in zip(case.hu.shape[1:], probability.shape[1:], strict=True)
    )
    return depth, height * rows, width * columns


def real_table(models: LocalModels, paths: dict[str, Path]) -> str:
    """A row a scan: the whole road's answer, or why there is none."""
    alone = [member.model.name for member in models.members]
    header = (
        "scan",
        "status",
        "class",
        "CT score",
        *(f"CT score, {name}" for name in alone),
        "involvement, %",
    )
    rows = []
    for name, path in paths.items():
        result = tf_covid.stratify(tf_covid.read(path), models, attention="none")
        if result.severity is None or result.lungs is None:
            codes = ", ".join(flag.code for flag in result.quality_flags)
            rows.append([name, f"{result.status}: {codes}", *[NONE] * (len(header) - 2)])
            continue
        scores = [number(one.ct_score, 1) for one in result.models]
        involvement = number(result.lungs.involvement_percent, 1)
        label = f"{result.severity.class_index} {result.severity.label}"
        rows.append(
            [name, result.status, label, number(result.severity.ct_score, 1), *scores, involvement]
        )
    return table(header, rows)


def _counted(answers: Answers, kind: str) -> str:
    refused = f", {answers.refused} more refused for too little lung" if answers.refused else ""
    return f"{len(answers.classes)} {kind}{refused}"


@click.command()
@click.option(
    "--cases", default=300, show_default=True, help="Unseen synthetic chests: seeds 1000000 …."
)
@click.option(
    "--healthy",
    default=100,
    show_default=True,
    help="Chests without disease: seeds 2000000, 2000005 ….",
)
@click.option(
    "--stress",
    default=30,
    show_default=True,
    help="Chests whose masks are disturbed, of the unseen ones.",
)
@click.option(
    "--folder", type=click.Path(path_type=Path), default=Path("build/unseen"), show_default=True
)
@click.option(
    "--model",
    "chosen",
    multiple=True,
    help="A shipped name or a file; all severity models that ship.",
)
@click.option(
    "--real",
    envvar="TF_COVID_REAL_CT",
    type=click.Path(path_type=Path),
    help="Folder of real scans.",
)
@click.option(
    "--write/--no-write",
    default=True,
    show_default=True,
    help="Put the tables into docs/severity.md.",
)
def main(
    cases: int,
    healthy: int,
    stress: int,
    folder: Path,
    chosen: tuple[str, ...],
    real: Path | None,
    write: bool,
) -> None:
    """Measure, print, and renew docs/severity.md."""
    # Here, not above: the processes that draw the chests import this file and need no TensorFlow.
    from tf_covid.local import LocalModels

    page = Page(DOCS / "severity.md", write)
    models = LocalModels(list(chosen) or shipped())
    by = ", ".join(
        f"`{one.name}` `{one.sha256[:12]}…`"
        for one in (*(m.model for m in models.members), models.lungs)
    )
    answers = ask(models, unseen(folder, range(UNSEEN, UNSEEN + cases)))
    page.put(
        "agreement",
        f"{_counted(answers, 'unseen synthetic chests')}; {by}:",
        agreement_table(answers),
    )
    page.put("recall", recall_table(answers))
    page.put("confusion", *confusion_tables(answers))
    page.put("missed", missed_table(answers))
    sound = ask(models, unseen(folder, range(HEALTHY, HEALTHY + 5 * healthy, 5)))
    page.put(
        "healthy",
        f"{_counted(sound, 'synthetic chests without disease')}; {by}:",
        healthy_table(sound),
    )
    page.put("shortcuts", f"The same {len(sound.classes)} chests:", shortcut_table(sound))
    found, asked = stress_table(models, unseen(folder, range(UNSEEN, UNSEEN + min(stress, cases))))
    page.put("stress", f"{asked} unseen synthetic chests, aimed at a Dice of {AIM}; {by}:", found)
    paths = present(real, "cip/dicom", CIP, BASE)
    if paths:
        page.put("real", f"{by}:", real_table(models, paths))


if __name__ == "__main__":
    main()
