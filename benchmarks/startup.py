"""How long a command takes to show its help, as a multiple of starting Python.

    python benchmarks/startup.py [--runs 20] [COMMAND...]

Seconds depend on the machine and on what else it does; the ratio to `python -c pass`, taken in
turns, does less. The smallest of the runs is shown. `tests/test_house.py` tests what the ratio
rests on: that `--help` loads no library but click.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

import click


def seconds(arguments: Sequence[str]) -> float:
    """The wall time of one Python process with these arguments, in seconds."""
    start = time.perf_counter()
    # What is run is this Python.
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


@click.command()
@click.option("--runs", default=20, show_default=True, help="Processes started for each figure.")
@click.argument("commands", nargs=-1)
def main(runs: int, commands: tuple[str, ...]) -> None:
    """Show the start-up time of `tfcovid --help`, and of each of COMMANDS with --help."""
    calls = {"python": ["-c", "pass"]}
    for words in ([], *([command] for command in commands or ("infer", "fit", "serve"))):
        arguments = [*words, "--help"]
        calls["tfcovid " + " ".join(arguments)] = ["-m", "tf_covid.cli", *arguments]
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, arguments in calls.items():
            times[name].append(seconds(arguments))
    least = {name: min(each) for name, each in times.items()}
    for name, each in least.items():
        print(f"{name:24} {1000 * each:5.0f} ms  {each / least['python']:4.1f} × python")


if __name__ == "__main__":
    main()
