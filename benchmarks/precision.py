"""Whether bfloat16 answers as float32 does: the same chests behind the same models, in each.

    python benchmarks/precision.py [--cases 300] [--folder build/unseen] [--write]

The chests are those of `severity.py` (seeds 1000000 and following), and so is the road: lungs,
gate, slice rule, class, all of it in one precision as `tfcovid infer --precision` does it. A class
may change where float32 itself hardly decides: its margin, the difference of its two largest
probabilities, stands beside each change. A processor that does not compute in bfloat16 rounds the
same, by other operations, and takes many times as long for it.

What was answered is kept beside the chests, in a file for these models and versions: a run that was
killed goes on where it was.

Prints a Markdown table; --write puts it into docs/benchmarks.md.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as the command line does
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hashlib
import json
from pathlib import Path

import click
import numpy as np
from answers import answer
from cases import DrawnCase, cases_folder
from tables import DOCS, Page, number, shipped, table, unseen

from tf_covid.atomic import write_text
from tf_covid.local import LocalModels
from tf_covid.phantom.mark import UNSEEN
from tf_covid.pipeline import versions
from tf_covid.runtime.behind import Behind

#: Below this margin of float32 a class may be another one in bfloat16.
DOUBTFUL = 0.04

#: Probabilities (models, classes) and CT scores (models,) of a chest; None where it is refused.
Told = tuple[np.ndarray, np.ndarray] | None


def both(models: list[LocalModels], case: DrawnCase) -> list[Told]:
    """What each precision says about a chest."""
    return [
        answer(one, case.hu, one.segment(case.hu).probability, case.spacing_mm) for one in models
    ]


class Kept:
    """What was answered before, a seed each, in a file of the folder of the chests.

    Args:
        folder: Of the chests.
        sources: Names or files of the models.
        models: The same, loaded in both precisions.
    """

    def __init__(self, folder: Path, sources: list[str], models: list[LocalModels]) -> None:
        # The files' hashes count what stands beside the weights, too; `decides` has our own code.
        decides = [Behind().decides(sources, models[0].files_sha256), versions()]
        key = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]
        self._path = cases_folder(folder) / f"precision-{key}.json"
        there = self._path.read_text("utf-8") if self._path.exists() else "{}"
        self._told = json.loads(there)

    def ask(self, models: list[LocalModels], case: DrawnCase) -> list[Told]:
        """What each precision says about a chest, now or before."""
        seed = str(case.seed)
        if seed not in self._told:
            pair = both(models, case)
            self._told[seed] = [one and [values.tolist() for values in one] for one in pair]
            write_text(json.dumps(self._told), self._path)
        return [
            None if one is None else (np.array(one[0]), np.array(one[1]))
            for one in self._told[seed]
        ]


def precision_table(names: list[str], pairs: list[list[Told]]) -> tuple[str, int]:
    """A row a model, and for how many chests the two differ on whether to answer at all."""
    held = [(one, other) for one, other in pairs if one is not None and other is not None]
    header = (
        *("model", "chests", "same class", f"another one, margin below {DOUBTFUL}"),
        *(f"another one, margin {DOUBTFUL} or more", "largest margin of a change"),
        *("CT score: mean change", "largest"),
    )
    rows = []
    for column, name in enumerate(names):
        shares, others = (np.array([pair[side][0][column] for pair in held]) for side in (0, 1))
        scores = np.abs([one[1][column] - other[1][column] for one, other in held])
        changed = shares.argmax(axis=1) != others.argmax(axis=1)
        best = np.sort(shares, axis=1)
        margins = (best[:, -1] - best[:, -2])[changed]
        largest = margins.max() if len(margins) else None
        rows.append(
            [
                *(name, len(held), int((~changed).sum()), int((margins < DOUBTFUL).sum())),
                *(int((margins >= DOUBTFUL).sum()), number(largest)),
                *(number(scores.mean(), 3), number(scores.max(), 3)),
            ]
        )
    return table(header, rows), sum((one is None) != (other is None) for one, other in pairs)


@click.command()
@click.option("--cases", default=300, show_default=True, type=click.IntRange(1))
@click.option(
    "--folder", type=click.Path(path_type=Path), default=Path("build/unseen"), show_default=True
)
@click.option("--model", "chosen", multiple=True, help="All severity models that ship, if none.")
@click.option("--write", is_flag=True, help="Put the table into docs/benchmarks.md.")
def main(cases: int, folder: Path, chosen: tuple[str, ...], write: bool) -> None:
    """Classes and CT scores in float32 and in bfloat16."""
    sources = list(chosen) or shipped()
    models = [LocalModels(sources, precision=name) for name in ("float32", "bfloat16")]
    chests = unseen(folder, range(UNSEEN, UNSEEN + cases))
    kept = Kept(folder, sources, models)
    pairs = [kept.ask(models, case) for case in chests]
    if not any(one is not None and other is not None for one, other in pairs):
        raise SystemExit("no chest was answered in both: is this lung model trained?")
    names = [member.model.name for member in models[0].members]
    found, torn = precision_table(names, pairs)
    refused = sum(one is None and other is None for one, other in pairs)
    Page(DOCS / "benchmarks.md", write).put(
        "precision",
        f"{len(pairs)} unseen synthetic chests; both refuse {refused}, one of them alone {torn}.",
        found,
    )


if __name__ == "__main__":
    main()
