"""Seconds and memory of one scan, by the number of slices: of an export, and of `tfcovid infer`.

    python benchmarks/memory.py [--of export] [--of infer] [--model severity-i3d] [--export DIR]
    [--slices 100 --slices 300 --slices 800] [--runtime tensorflow]

Export: what a server needs. Each line is a process of its own that holds nothing but TensorFlow and
the SavedModel, and asks the signature `explain` twice, about 512×512 slices; the peak is the
kernel's (`ru_maxrss`), the input included.

infer: from a DICOM folder of a drawn chest of 512×512 slices to the report, from the shell. The
peak is of the command and its reading process together: every page once (`Pss`), looked at some
five times a second. Beside it what NumPy's own copy of the scan takes. It is refused while another
process has TensorFlow open: pages of its libraries would count in part for that one.

Prints a Markdown table each.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import psutil
from tables import table

#: Seconds between two looks at a command's memory: each look stops the command for a moment.
_TICK_S = 0.2

_CHILD = """
import json, resource, sys, time
import numpy as np
import tensorflow as tf
export, slices = sys.argv[1], int(sys.argv[2])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
road = tf.saved_model.load(export).signatures["explain"]
small = np.full((1, 2, 64, 64), -1000, np.int16)
road(hu=tf.constant(small), depth=tf.constant([2]))
before = peak()
h, w = np.ogrid[-1:1:512j, -1:1:512j]
plane = np.where((h / 0.5) ** 2 + ((np.abs(w) - 0.45) / 0.33) ** 2 <= 1, -850, 40).astype(np.int16)
hu = np.broadcast_to(plane, (1, slices, 512, 512)).copy()
seconds = []
for _ in range(2):
    start = time.perf_counter()
    answer = road(hu=tf.constant(hu), depth=tf.constant([slices]))
    kept = int(answer["slices_kept"][0])
    seconds.append(time.perf_counter() - start)
found = {"before": before, "peak": peak(), "seconds": min(seconds), "kept": kept}
print(json.dumps(found | {"mib": hu.nbytes / 2**20}))
"""


def export_table(model: str, folder: Path | None, slices: Sequence[int]) -> str:
    """Seconds and memory of an export."""
    with tempfile.TemporaryDirectory() as temporary:
        if folder is None:
            from tf_covid.export.savedmodel import export

            folder = export(model, Path(temporary) / model).stratifier
        rows = []
        for number in slices:
            command = [sys.executable, "-c", _CHILD, str(folder), str(number)]
            measured = json.loads(
                subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            )
            rows.append(
                [
                    str(number),
                    f"{measured['mib']:.0f} MiB",
                    f"{measured['seconds']:.1f} s",
                    f"{measured['before']:.2f} GiB",
                    f"{measured['peak']:.2f} GiB",
                    str(measured["kept"]),
                ]
            )
    head = ["slices of 512×512", "input", "seconds", "resident before", "peak", "slices kept"]
    return table(head, rows)


def infer_table(model: str, runtime: str, slices: Sequence[int]) -> str:
    """Seconds and memory of `tfcovid infer` from the shell."""
    from tf_covid.phantom import draw_chest
    from tf_covid.phantom.files import write_dicom

    if others := [pid for pid in psutil.pids() if "libtensorflow" in _mapped(pid)]:
        raise SystemExit(f"process {others[0]} has TensorFlow open: pages are shared with it")
    rows = []
    for number in slices:
        with tempfile.TemporaryDirectory() as temporary:
            folder, out = Path(temporary) / "scan", Path(temporary) / "out"
            chest = draw_chest(3, (number, 512, 512), severity=2)
            write_dicom(chest.hu, chest.affine, folder, seed=3)
            del chest
            command = ["-m", "tf_covid.cli", "infer", str(folder), "--out", str(out)]
            command += ["--model", model, "--runtime", runtime]
            start = time.perf_counter()
            peak = peak_bytes([sys.executable, *command])
            seconds = time.perf_counter() - start
            answer = json.loads((out / "scan" / "result.json").read_text("utf-8"))
            rows.append(
                [
                    str(number),
                    f"{number / 2:.0f} MiB",
                    f"{seconds:.1f} s",
                    f"{answer['timings_s']['total']:.1f} s",
                    f"{peak / 1e9:.2f} GB",
                ]
            )
    head = ["slices of 512×512", "one int16 volume", "seconds", "of them read to report", "peak"]
    return table(head, rows)


def peak_bytes(command: Sequence[str]) -> int:
    """The highest memory of a command and its children, every page once, that was seen.

    Raises:
        SystemExit: If the command fails.
    """
    with psutil.Popen(list(command), stdout=subprocess.DEVNULL) as process:
        highest = 0
        while process.poll() is None:
            try:
                family = [process, *process.children(recursive=True)]
            except psutil.Error:  # it has just ended
                break
            highest = max(highest, sum(_own_bytes(one.pid) for one in family))
            time.sleep(_TICK_S)
        if process.wait() != 0:
            raise SystemExit(f"{' '.join(command)} failed")
    return highest


def _mapped(pid: int) -> str:
    """The files that a process has mapped; none where we may not look."""
    try:
        return Path(f"/proc/{pid}/maps").read_text("utf-8", "replace")
    except OSError:
        return ""


def _own_bytes(pid: int) -> int:
    """Proportional set size: a page that two processes hold counts half in each."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    except OSError:  # it has just ended
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


@click.command()
@click.option(
    "--of",
    "parts",
    multiple=True,
    type=click.Choice(["export", "infer"]),
    help="Both, if not given.",
)
@click.option("--model", default="severity-i3d", show_default=True)
@click.option(
    "--export", "folder", type=click.Path(path_type=Path, exists=True), help="A version's folder."
)
@click.option(
    "--runtime",
    type=click.Choice(["tensorflow", "openvino"]),
    default="tensorflow",
    show_default=True,
    help="Of infer; openvino converts the models first if the cache lacks them: run it twice.",
)
@click.option(
    "--slices",
    multiple=True,
    type=click.IntRange(1, 2000),
    default=(100, 300, 800),
    show_default=True,
)
def main(
    parts: tuple[str, ...], model: str, folder: Path | None, runtime: str, slices: tuple[int, ...]
) -> None:
    """Seconds and memory of one scan, by its slices."""
    if "export" in parts or not parts:
        click.echo(export_table(model, folder, slices))
    if "infer" in parts or not parts:
        click.echo(infer_table(model, runtime, slices))


if __name__ == "__main__":
    main()
