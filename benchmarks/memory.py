"""What a server needs for a scan: seconds and memory of an export, by the number of slices.

    python benchmarks/memory.py [--model severity-i3d] [--export DIR] [--slices 100 --slices 300
    --slices 800]

Each line is a process of its own that holds nothing but TensorFlow and the SavedModel, and asks the
signature `explain` twice, about 512×512 slices; the peak is the kernel's (`ru_maxrss`), the input
included. Prints a Markdown table.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import click
from tables import table

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


@click.command()
@click.option("--model", default="severity-i3d", show_default=True)
@click.option(
    "--export", "folder", type=click.Path(path_type=Path, exists=True), help="A version's folder."
)
@click.option(
    "--slices",
    multiple=True,
    type=click.IntRange(1, 2000),
    default=(100, 300, 800),
    show_default=True,
)
def main(model: str, folder: Path | None, slices: tuple[int, ...]) -> None:
    """Seconds and memory of one scan, by its slices."""
    with tempfile.TemporaryDirectory() as temporary:
        if folder is None:
            from tf_covid.export.savedmodel import export

            folder = export(model, Path(temporary) / model).stratifier
        rows = []
        for number in slices:
            command = [sys.executable, "-c", _CHILD, str(folder), str(number)]
            found = json.loads(
                subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            )
            rows.append(
                [
                    str(number),
                    f"{found['mib']:.0f} MiB",
                    f"{found['seconds']:.1f} s",
                    f"{found['before']:.2f} GiB",
                    f"{found['peak']:.2f} GiB",
                    str(found["kept"]),
                ]
            )
        head = ["slices of 512×512", "input", "seconds", "resident before", "peak", "slices kept"]
        click.echo(table(head, rows))


if __name__ == "__main__":
    main()
