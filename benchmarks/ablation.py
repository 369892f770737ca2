"""Which of the phantom's effects does a lung model need?

A small U-Net, trained without one group of them at a time.

    TF_COVID_REAL_CT=… python benchmarks/ablation.py [--cases 120] [--steps 300] [--folder
    build/ablation]

Prints a Markdown table and puts it into docs/phantom.md. Every finished run is kept in the folder
as JSON, so that a killed program goes on where it was; what was drawn from other settings is not
taken for it.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # a process for each core draws the chests

import hashlib
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from cases import DrawnCase, case_shape
from tables import DOCS, Page, mean, number, say, table, unseen

from tf_covid.phantom import PhantomSettings, draw_chest
from tf_covid.phantom.mark import UNSEEN
from tf_covid.tensor import Tensor

# Nothing here imports TensorFlow before the first network: the processes that draw import this
# file, too.
if TYPE_CHECKING:
    from shared_scans import RealScan

RUNS = 2

#: Name of a group of effects → patterns of the settings that make it. Settings that do not exist
#: are not missed.
GROUPS: dict[str, tuple[str, ...]] = {
    "disease": ("severity",),
    "things on and in the body": (
        *("p_arms*", "p_blanket", "p_wires", "p_table", "p_tubes", "p_tangle", "p_metal"),
    ),
    "gas outside the lungs": ("p_stomach_gas", "p_oesophagus_air"),
    "the scanner": (
        *("noise_hu", "shading_hu", "offset_hu", "blur_mm", "p_coarse", "p_sharp", "p_breathing"),
        *("p_streaks", "p_circle", "p_thin"),
    ),
    "what looks like disease": (
        *(
            "p_dependent",
            "p_band",
            "p_effusion*",
            "p_nodules",
            "p_buds",
            "p_mosaic",
            "p_emphysema",
            "p_high_dome",
        ),
    ),
}
ALL = "all five"


@dataclass(frozen=True)
class Variant:
    """A phantom without some effects.

    Args:
        name: What is left out.
        settings: What is drawn from.
        healthy: No disease is drawn.
        off: Names of the settings that were switched off.
    """

    name: str
    settings: PhantomSettings
    healthy: bool = False
    off: tuple[str, ...] = ()

    @property
    def mark(self) -> str:
        """Short hash of all that a chest is drawn from."""
        return hashlib.sha256(repr((self.settings, self.healthy)).encode()).hexdigest()[:12]


def switched_off(name: str, setting: Tensor) -> Tensor:
    """A probability of 0; a range collapsed onto its value nearest to 0."""
    if name.startswith("p_"):
        return 0.0
    nearest = min(max(0.0, setting[0]), setting[1])
    return (nearest, nearest)


def variant(name: str, patterns: Sequence[str]) -> Variant:
    """The phantom without the settings that one of the patterns fits."""
    settings = PhantomSettings()
    off: list[str] = []
    for section in fields(settings):
        part = getattr(settings, section.name)
        hit = [
            entry.name
            for entry in fields(part)
            if any(fnmatch(entry.name, one) for one in patterns)
        ]
        new = {entry: switched_off(entry, getattr(part, entry)) for entry in hit}
        settings, off = replace(settings, **{section.name: replace(part, **new)}), off + hit
    healthy = "severity" in patterns
    return Variant(name, settings, healthy, ("severity",) * healthy + tuple(off))


def variants() -> list[Variant]:
    """Everything, then without each group, then without any of them.

    Groups that the phantom does not have are out.
    """
    everything = [one for patterns in GROUPS.values() for one in patterns]
    found = [
        variant("nothing", ()),
        *(variant(*group) for group in GROUPS.items()),
        variant(ALL, everything),
    ]
    return [one for one in found if one.off or one.name == "nothing"]


def _draw(job: tuple[int, Variant]) -> tuple[np.ndarray, np.ndarray]:
    seed, without = job
    severity = 0 if without.healthy else seed % 5
    chest = draw_chest(seed, case_shape(seed), severity=severity, settings=without.settings)
    return chest.hu, chest.lungs > 0


def drawn(without: Variant, seeds: range, workers: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """HU and lungs of each training chest."""
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_draw, [(seed, without) for seed in seeds], chunksize=2)


@dataclass(frozen=True)
class Course:
    """How every run is trained and what it is measured on."""

    cases: int
    steps: int
    workers: int
    folder: Path
    scans: Sequence[RealScan]
    chests: Sequence[DrawnCase]

    def run(self, without: Variant, number: int) -> dict[str, Any]:
        """The figures of one run: from its file if it is there, else by training."""
        name = without.name.replace(" ", "-")
        sizes = f"{self.cases}x{self.steps}-{len(self.chests)}"
        held = f"{name}-{number}-{sizes}-{without.mark}"
        path = self.folder / f"{held}.json"
        if not path.exists():
            say(f"without {without.name}, run {number + 1}")
            figures = self._measure(without, number)
            partial = path.with_suffix(f".{os.getpid()}.partial")
            partial.write_text(json.dumps(figures, indent=1), "utf-8")
            partial.replace(path)
        found = json.loads(path.read_text("utf-8"))
        missing = [scan.name for scan in self.scans if scan.name not in found["real"]]
        if missing:
            say(f"{path} was measured without {', '.join(missing)}; remove it to measure again")
        return found

    def _measure(self, without: Variant, number: int) -> dict[str, Any]:
        import small_unet

        # Every run of a variant has its own phantoms; run k of each variant has the same patients.
        seeds = range(number * self.cases, (number + 1) * self.cases)
        scans = [small_unet.small(*scan) for scan in drawn(without, seeds, self.workers)]
        network = small_unet.train(scans, self.steps, number)
        return {
            "off": without.off,
            "real": {
                one.name: small_unet.dice_of(network, one.scan.hu, one.lungs) for one in self.scans
            },
            "unseen": [small_unet.dice_of(network, one.hu, one.lungs) for one in self.chests],
        }


def ablation_table(runs: dict[str, list[dict[str, Any]]], scans: Sequence[str], chests: int) -> str:
    """A row a variant, its runs side by side."""
    rows = []
    for name, found in runs.items():
        real = [" / ".join(number(run["real"].get(scan), 3) for run in found) for scan in scans]
        means = " / ".join(number(mean(run["unseen"]), 3) for run in found)
        lowest = " / ".join(number(min(run["unseen"], default=None), 3) for run in found)
        rows.append([name, *real, means, lowest])
    header = (
        "left out",
        *(f"`{scan}`" for scan in scans),
        f"{chests} unseen phantoms, mean",
        "lowest of them",
    )
    return table(header, rows)


def notes(runs: dict[str, list[dict[str, Any]]], cases: int, steps: int) -> str:
    """How it was trained, and what each row switched off."""
    off = {name: found[0]["off"] for name, found in runs.items() if found[0]["off"] and name != ALL}
    lines = [
        f"- {name}: {', '.join(f'`{setting}`' for setting in settings)}"
        for name, settings in off.items()
    ]
    text = (
        f"Each run: {cases} phantoms of its own, {steps} steps. Probabilities were set to 0, ranges"
        " to their value "
    )
    return "\n".join([text + "nearest to 0, `severity` to 0:", "", *lines])


@click.command()
@click.option(
    "--cases", default=120, show_default=True, help="Phantoms to learn from, in each run."
)
@click.option("--steps", default=300, show_default=True, help="Batches of 16 slices, in each run.")
@click.option(
    "--unseen",
    "held_out",
    default=30,
    show_default=True,
    help="Phantoms to measure on: seeds 1000000 ….",
)
@click.option(
    "--folder", type=click.Path(path_type=Path), default=Path("build/ablation"), show_default=True
)
@click.option(
    "--chests", type=click.Path(path_type=Path), default=Path("build/unseen"), show_default=True
)
@click.option(
    "--real",
    envvar="TF_COVID_REAL_CT",
    type=click.Path(path_type=Path),
    help="Folder of real scans.",
)
@click.option("--workers", default=2, show_default=True)
@click.option("--write/--no-write", default=True, help="Put the table into docs/phantom.md.")
def main(
    cases: int,
    steps: int,
    held_out: int,
    folder: Path,
    chests: Path,
    real: Path | None,
    workers: int,
    write: bool,
) -> None:
    """Print the table."""
    from shared_scans import BASE, CIP, real_scans

    folder.mkdir(parents=True, exist_ok=True)
    held = list(unseen(chests, range(UNSEEN, UNSEEN + held_out)))
    course = Course(cases, steps, workers, folder, real_scans(real), held)
    runs = {one.name: [course.run(one, number) for number in range(RUNS)] for one in variants()}
    page = Page(DOCS / "phantom.md", write)
    page.put("ablation", ablation_table(runs, (CIP, BASE), held_out), notes(runs, cases, steps))


if __name__ == "__main__":
    main()
