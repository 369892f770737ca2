"""Time and memory of every stage of `tfcovid infer`, on a synthetic 512×512×300 chest.

    python benchmarks/stages.py [--slices 300] [--size 512] [--precision float32]

Figures are for orientation: they depend on the machine and on what else it does. Two ratios do not:
attention to classification, and the whole road to its peer in the same run, SimpleITK reading the
same files.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as the command line has it

import click
import numpy as np

from tf_covid.cohort.cases import cases_of
from tf_covid.infer import Options, Run
from tf_covid.phantom import draw_chest
from tf_covid.phantom.files import write_dicom

STAGES = ("read", "lungs", "classify", "attention", "write", "total")


def peer_seconds(folder: Path) -> float:
    """SimpleITK reading the same DICOM folder, nothing else."""
    import SimpleITK

    start = time.perf_counter()
    files = SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    SimpleITK.ReadImage(files)
    return time.perf_counter() - start


@click.command()
@click.option("--size", default=512, show_default=True)
@click.option("--slices", default=300, show_default=True)
@click.option("--precision", default="float32", show_default=True)
@click.option(
    "--runs", default=3, show_default=True, help="The first one is cold: graphs are traced."
)
def main(size: int, slices: int, precision: str, runs: int) -> None:
    """Print the stages of every run."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        chest = draw_chest(3, (slices, size, size), severity=2)
        print(f"phantom {size}×{size}×{slices}: {time.perf_counter() - start:.1f} s")
        write_dicom(chest.hu, chest.affine, Path(folder) / "scan", seed=3)
        del chest
        run = Run(Path(folder) / "out", Options(precision=precision), overwrite=True)
        print(" ".join(f"{name:>10}" for name in ("run", *STAGES)))
        seconds: list[dict[str, float]] = []
        for number in range(runs):
            (case,) = cases_of([Path(folder) / "scan"])
            answer = Path(folder) / "out" / "scan" / "result.json"
            answer.unlink(missing_ok=True)
            outcome = run.answer(case)
            if outcome.problem:
                raise SystemExit(outcome.problem)
            seconds.append(outcome.values["timings_s"])
            label = "cold" if number == 0 else f"warm {number}"
            print(" ".join([f"{label:>10}", *(f"{seconds[-1][name]:10.2f}" for name in STAGES)]))
        warm = {
            name: float(np.median([one[name] for one in seconds[1:] or seconds])) for name in STAGES
        }
        peer = peer_seconds(Path(folder) / "scan")
        print(
            "peak resident memory:"
            f" {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB"
        )
        share = warm["attention"] / (warm["lungs"] + warm["classify"])
        print(f"attention on top of lungs and classification: {share:+.1%}")
        print(f"attention on top of the network alone: {warm['attention'] / warm['classify']:+.1%}")
        print(f"reading: {warm['read'] / peer:.2f} times SimpleITK's {peer:.2f} s")
        print(f"the whole road: {warm['total'] / peer:.1f} times SimpleITK's reading")


if __name__ == "__main__":
    main()
