"""Kill `tfcovid watch` at random moments, restart its archive, and count what became of each study.

    python benchmarks/watch.py [--studies 50] [--kills 30] [--restarts 2] [--seed 1] [--folder DIR]

Starts a real Orthanc (make test-system, as root), which gets synthetic chests one after the other
while a watch answers them and stores its results there. Exits with 1 unless each study was answered
once and stored once.
"""

from __future__ import annotations

import collections
import csv
import importlib.util
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import httpx

CHECKOUT = Path(__file__).parents[1]
#: Seconds between two kills, at least and at most: a start takes some ten, an answer as many.
_LIVES_S = (4.0, 60.0)
#: Longest wait for a further study to be done once nothing is killed any more.
_PATIENCE_S = 300.0


def _archives() -> ModuleType:
    """The archive of the tests; not by its name, which a library takes as well."""
    spec = importlib.util.spec_from_file_location(
        "archives", CHECKOUT / "tests" / "pacs" / "orthanc.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["archives"] = module
    spec.loader.exec_module(module)
    return module


class Kills:
    """Watches that are killed, and an archive that is restarted between them.

    Args:
        archives: Module of the archive.
        folder: Holds the archive, the answers and the log.
        draw: Random moments.
    """

    def __init__(self, archives: ModuleType, folder: Path, draw: random.Random) -> None:
        self._archives, self._folder, self._draw = archives, folder, draw
        self._ports = archives.free_port(), archives.free_port()
        self._running: Any = None
        self.orthanc: Any = None
        self.start_archive()

    @property
    def out(self) -> Path:
        """Folder of the answers."""
        return self._folder / "answers"

    def start_archive(self) -> None:
        """Start the archive, with what it held."""
        self._running = self._archives.running(self._folder, self._ports)
        self.orthanc = self._running.__enter__()

    def stop_archive(self) -> None:
        """Stop the archive, and wait for it."""
        self._running.__exit__(None, None, None)

    def watch(self) -> subprocess.Popen[bytes]:
        """Start a watch."""
        environment = os.environ | {
            "TFCOVID_DICOMWEB_USER": self._archives.USER,
            "TFCOVID_DICOMWEB_PASSWORD": self._archives.PASSWORD,
        }
        address = f"dicomweb:{self.orthanc.url}"
        command = [sys.executable, "-m", "tf_covid.cli", "watch", address, "--store", address]
        command += ["--out", str(self.out), "--quiet-seconds", "3"]
        with (self._folder / "watch.log").open("ab") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def kill(self, times: int, restarts: int) -> None:
        """Let a watch live for a moment, and kill it, so many times."""
        with_restart = set(self._draw.sample(range(times), min(restarts, times)))
        for index in range(times):
            process = self.watch()
            life = self._draw.uniform(*_LIVES_S)
            if index in with_restart:
                time.sleep(life / 2)
                self.stop_archive()
                time.sleep(self._draw.uniform(0, 5))
                self.start_archive()
                time.sleep(life / 2)
            else:
                time.sleep(life)
            process.kill()
            process.wait()

    def finish(self, studies: int) -> int:
        """Let a watch do the rest; how it ended."""
        process, last, since = self.watch(), -1, time.monotonic()
        while True:
            done = sum(row.state == "done" for row in self.rows())
            if done != last:
                last, since = done, time.monotonic()
            if done == studies or time.monotonic() - since > _PATIENCE_S:
                break
            time.sleep(1.0)
        time.sleep(15.0)  # a study of its own results would show itself now
        process.terminate()
        return process.wait(120)

    def rows(self) -> list[Any]:
        """The rows of the journal, as far as there is one."""
        from tf_covid.errors import WatchError
        from tf_covid.watch.journal import read_rows

        try:
            return read_rows(self.out)
        except WatchError:
            return []


def _draw_chests(studies: int, seed: int, folder: Path) -> list[list[Path]]:
    from tf_covid.phantom.cohort import write_cohort

    write_cohort(folder, studies, seed=seed, size=64, slices=40, format="dicom")
    return [sorted(path.glob("dicom/*.dcm")) for path in sorted(folder.glob("case-*"))]


def _check(kills: Kills, studies: int) -> list[str]:
    """What is not as it must be."""
    rows, wrong = kills.rows(), []
    states = collections.Counter(row.state for row in rows)
    if states != {"done": studies}:
        wrong.append(f"the journal holds {dict(states)}")
    ask = kills.orthanc.ask
    per_study: dict[str, collections.Counter[tuple[str, int]]] = {}
    for study in ask("GET", "/studies"):
        series = ask("GET", f"/studies/{study}/series")
        per_study[study] = collections.Counter(
            (one["MainDicomTags"]["Modality"], len(one["Instances"]))
            for one in series
            if one["MainDicomTags"]["Modality"] != "CT"
        )
    once = [
        study
        for study, results in per_study.items()
        if results[("SR", 1)] == results[("OT", 1)] == 1
        and 1 <= results[("SEG", 1)] <= 2
        and all(instances == 1 for _, instances in results)
    ]
    if len(once) != studies:
        wrong.append(f"{studies - len(once)} studies have no result, or several of a kind")
    with (kills.out / "summary.csv").open(encoding="utf-8") as file:
        cases = [row["case"] for row in csv.DictReader(file)]
    if sorted(cases) != sorted({row.case_name for row in rows}):
        wrong.append(f"summary.csv has {len(cases)} rows")
    return wrong


@click.command()
@click.option("--studies", default=50, show_default=True)
@click.option("--kills", "times", default=30, show_default=True)
@click.option("--restarts", default=2, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Kept; without, a temporary one.")
def main(studies: int, times: int, restarts: int, seed: int, folder: Path | None) -> None:
    """Measure, print a line a fact, and exit with 1 if something was lost or done twice."""
    if not (shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")):
        sys.exit("no Orthanc here: make test-system, as root")
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = folder or Path(temporary)
        chests = _draw_chests(studies, seed, folder / "cohort")
        start = time.monotonic()
        kills = Kills(_archives(), folder, draw)

        def send() -> None:
            """One study after the other, while it is killed; what a restart refuses, again."""
            for files in chests:
                for file in files:
                    while True:
                        try:
                            kills.orthanc.put(file)
                            break
                        except httpx.HTTPError:  # it starts again
                            time.sleep(1.0)
                time.sleep(times * sum(_LIVES_S) / 2 / studies / 2)

        sender = threading.Thread(target=send)
        sender.start()
        kills.kill(times, restarts)
        sender.join()
        code = kills.finish(studies)
        wrong = _check(kills, studies)
        rows = kills.rows()
        kills.stop_archive()
        log = (folder / "watch.log").read_text("utf-8")
    if "Traceback" in log:
        wrong.append("the log holds a traceback")
    if code != 0:
        wrong.append(f"the last watch ended with {code}")
    tries = sum(row.tries + row.interrupted for row in rows)
    print(f"{times} kills, {restarts} restarts of the archive, {tries} tries")
    print(f"{time.monotonic() - start:.0f} s; most tries of one study:", end=" ")
    print(max((row.tries + row.interrupted for row in rows), default=0))
    if wrong:
        print("\n".join(wrong))
        print(log[-4000:])
        sys.exit(1)
    print(f"{studies} of {studies} studies answered once and stored once")


if __name__ == "__main__":
    main()
