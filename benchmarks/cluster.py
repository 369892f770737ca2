"""How much faster several workers of `tfcovid infer --engine ray` are than one, a core each.

    python benchmarks/cluster.py [--scans 24] [--workers 1 --workers 2] [--model severity-ltc]
    [--address A] [--worker-cpus 1] [--slices 64] [--side 128]

Drawn chests of 64 slices of 128×128, four of them, under as many names as there are scans. The rate
is that of the scans after each worker's first one, which loads models and traces graphs; the whole
command's time stands beside it. Prints a Markdown table, with the first line as the measure.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
from tables import table


def make_scans(folder: Path, count: int, slices: int, side: int) -> None:
    """So many files of four chests."""
    from tf_covid.phantom import draw_chest
    from tf_covid.phantom.files import write_nifti_volume

    drawn = []
    for seed in range(min(4, count)):
        chest = draw_chest(seed, (slices, side, side), severity=seed)
        drawn.append(folder / f"chest-{seed:04d}.nii.gz")
        write_nifti_volume(chest.hu, chest.affine, drawn[-1])
    for number in range(len(drawn), count):
        shutil.copy(drawn[number % 4], folder / f"chest-{number:04d}.nii.gz")


def measured(command: list[str], workers: int) -> tuple[float, float, int]:
    """Scans a minute once all workers work, seconds of the command, and how many were answered.

    Raises:
        SystemExit: If the command fails.
    """
    begin = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    ended = [time.perf_counter() for line in process.stdout or () if "report.html" in line]
    if process.wait() != 0:
        raise SystemExit(f"{' '.join(command)} failed")
    seconds = time.perf_counter() - begin
    rate = 60 * (len(ended) - workers) / (ended[-1] - ended[workers - 1])
    return rate, seconds, len(ended)


@click.command()
@click.option("--scans", default=24, show_default=True, type=click.IntRange(8, 10_000))
@click.option("--workers", multiple=True, type=click.IntRange(1, 1000), default=(1, 2))
@click.option("--worker-cpus", default=1, show_default=True)
@click.option("--model", default="severity-ltc", show_default=True)
@click.option("--slices", default=64, show_default=True, type=click.IntRange(32, 2000))
@click.option("--side", default=128, show_default=True, type=click.IntRange(64, 1024))
@click.option("--address", help="Of a cluster whose nodes see this machine's temporary folder.")
def main(
    scans: int,
    workers: tuple[int, ...],
    worker_cpus: int,
    model: str,
    slices: int,
    side: int,
    address: str | None,
) -> None:
    """Scans a minute, by workers."""
    rows: list[list[str]] = []
    first = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "in"
        folder.mkdir()
        make_scans(folder, scans, slices, side)
        for count in workers:
            out = Path(temporary) / f"out-{count}-{len(rows)}"
            command = [sys.executable, "-m", "tf_covid.cli", "infer", str(folder)]
            command += ["--out", str(out), "--model", model, "--engine", "ray"]
            command += ["--workers", str(count), "--worker-cpus", str(worker_cpus)]
            command += ["--address", address] if address else []
            rate, seconds, answered = measured(command, count)
            first = first or rate
            rows.append(
                [
                    str(count),
                    str(answered),
                    f"{seconds:.0f} s",
                    f"{rate:.1f}",
                    f"{rate / first:.2f}",
                ]
            )
    click.echo(table(["workers", "scans", "command", "scans a minute", "times the first"], rows))


if __name__ == "__main__":
    main()
