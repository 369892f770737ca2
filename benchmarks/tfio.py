"""Our DICOM reader and the tensorflow-io graph on the same series, in turns.

    python benchmarks/tfio.py [--slices 300] [--size 512] [--runs 5] [SERIES...]

Needs the extra: pip install -e '.[tfio]', in a virtual environment of its own. SERIES are folders
of your own.

`read` is `tf_covid.read`: headers, pixels, sha256 of the files and the checks of the values.
`graph` is one pass over a `dicom_dataset` that is there, `first` its making with one pass. Seconds
depend on the machine and on what else it does; the ratios, taken within a turn, do less, and those
of processor time hardly.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import click
import numpy as np

import tf_covid
from tf_covid.cohort.tfio import dicom_dataset
from tf_covid.phantom import draw_chest
from tf_covid.phantom.files import Pixels, write_dicom

KINDS = {
    "uncompressed": "1.2.840.10008.1.2.1",
    "JPEG lossless": "1.2.840.10008.1.2.4.70",
    "JPEG 2000": "1.2.840.10008.1.2.4.90",
}
#: Drawn once and repeated: what a slice shows matters to the decoders, and not which.
DRAWN = 10


def timed(work: Callable[[], Any]) -> tuple[np.ndarray, Any]:
    """(seconds, processor seconds) that it took, and what came of it."""
    start = time.perf_counter(), time.process_time()
    result = work()
    return np.array([time.perf_counter() - start[0], time.process_time() - start[1]]), result


def first_pass(folder: Path) -> tuple[Any, np.ndarray]:
    """A dataset of one series, and its volume."""
    data = dicom_dataset([folder])
    return data, next(iter(data)).numpy()


def compare(name: str, folder: Path, runs: int) -> None:
    """Print the medians of one series."""
    turns = []
    for number in range(runs + 1):
        read, ours = timed(lambda: tf_covid.read(folder).hu)
        first, (data, theirs) = timed(lambda: first_pass(folder))
        graph, _ = timed(lambda data=data: next(iter(data)).numpy())
        if not np.array_equal(ours, theirs):
            raise SystemExit(f"{name}: the readers differ")
        if number:  # the first turn loads libraries
            turns.append(
                np.concatenate([[read[0], graph[0], first[0]], graph / read, first / read])
            )
    seconds = np.median(turns, axis=0)
    print(f"{name:15}{len(ours):7}" + "".join(f"{value:9.2f}" for value in seconds[:3]), end="")
    print("".join(f"{value:13.1f}×" for value in seconds[3:]), flush=True)


@click.command()
@click.argument("series", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--slices", default=300, show_default=True)
@click.option("--size", default=512, show_default=True)
@click.option("--runs", default=5, show_default=True)
def main(series: tuple[Path, ...], slices: int, size: int, runs: int) -> None:
    """Print the median of each reader, and the medians of the ratios to ours."""
    print(f"median of {runs} turns, {os.cpu_count()} cores; synthetic series are {size}×{size}")
    names = ("graph/read", "(processor)", "first/read", "(processor)")
    print(
        f"{'':15}{'slices':>7}{'read s':>9}{'graph s':>9}{'first s':>9}"
        + "".join(f"{name:>14}" for name in names)
    )
    for folder in series:
        compare(folder.name, folder, runs)
    chest = draw_chest(3, (DRAWN, size, size), severity=2)
    hu = np.concatenate([chest.hu] * -(-slices // DRAWN))[:slices]
    affine = chest.affine.copy()
    affine[:3, 0] *= DRAWN / slices
    for kind, syntax in KINDS.items():
        with tempfile.TemporaryDirectory() as place:
            pixels = Pixels(bits=12, signed=False)
            compare(
                kind,
                write_dicom(hu, affine, Path(place) / "s", transfer_syntax=syntax, pixels=pixels),
                runs,
            )


if __name__ == "__main__":
    main()
