"""Seeded mutations of small scans in every format, and what the reader makes of each.

`python benchmarks/fuzz.py`.

    python benchmarks/fuzz.py --seed 1 --count 20000 --out fuzz.jsonl     # about half an hour on
                                                                          two cores
    python benchmarks/fuzz.py --seed 1 --show betrayed --out fuzz.jsonl --count 0
    python benchmarks/fuzz.py --seed 1 --only 4711 --keep folder          # one input, written down
                                                                          and read
    python benchmarks/fuzz.py --false-alarms 300 --real $TF_COVID_REAL_CT

A run goes on where its `--out` ends. The exit status is 1 where an answer was silent though the
file betrays it, where a reader crashed, took more than 1 GiB beside the scan or more than 10 s, and
where a harmless change was not read.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from fuzzing.alarms import alarms
from fuzzing.draw import base_of, draw, put
from fuzzing.judge import OUTCOMES, outcome_of
from fuzzing.pool import Record, records, truths
from fuzzing.seeds import Base, bases

#: Outcomes that must not be.
FAULTS = ("betrayed", "crash", "over memory", "over time")


def main() -> int:
    """Run, show or repeat; the exit status says whether there was a fault."""
    options = _options()
    if options.false_alarms is not None:
        return int(alarms(options.false_alarms, options.real) > 0)
    every = bases()
    known, unread = truths(every)
    for name, why in unread.items():
        print(f"{name}, unchanged: {why}", file=sys.stderr)
    if options.only is not None:
        return _only(options, every)
    done = _done(options.out, options.seed)
    wanted = set(known) if options.base is None else set(known) & set(options.base)
    asked = range(options.start, options.start + options.count)
    numbers = [n for n in asked if n not in done and base_of(options.seed, n, every).name in wanted]
    begun = time.monotonic()
    with Path(options.out or os.devnull).open("a", encoding="utf-8") as stream:
        for count, record in enumerate(
            records(numbers, options.seed, every, known, options.workers), 1
        ):
            done[record["number"]] = record
            print(json.dumps({"seed": options.seed, **record}), file=stream, flush=count % 50 == 0)
            if count % 1000 == 0:
                rate = count / (time.monotonic() - begun)
                print(
                    f"{count} of {len(numbers)}, {rate:.1f} a second", file=sys.stderr, flush=True
                )
    held = list(done.values())
    for by in options.by:
        print(f"\n{table(held, by)}")
    for shown in options.show:
        _show(held, shown)
    lost, loud = (
        [record for record in held if _misread(record)],
        [record for record in held if record["noise"]],
    )
    print(
        f"\n{len(held)} inputs; harmless changes not read as before: {len(lost)}; a library"
        f" printed: {len(loud)}"
    )
    if held:
        most = {key: max(record[key] for record in held) for key in ("cpu_s", "mib")}
        print(f"most processor time {most['cpu_s']:.1f} s, most memory {most['mib']:.0f} MiB")
    return int(bool(lost or loud or unread) or any(record["outcome"] in FAULTS for record in held))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=1, help="of the whole run")
    parser.add_argument("--start", type=int, default=0, help="number of the first input")
    parser.add_argument("--count", type=int, default=20_000, help="of inputs")
    parser.add_argument("--workers", type=int, default=2, help="processes that read")
    parser.add_argument("--out", help="JSON lines, one an input; a run goes on where they end")
    parser.add_argument("--base", action="append", help="only this base; may be repeated")
    parser.add_argument(
        "--by", action="append", choices=("group", "kind", "base"), help="rows of the table"
    )
    parser.add_argument(
        "--show", action="append", default=[], help="list an outcome, `harmless` or `noise`"
    )
    parser.add_argument("--only", type=int, help="read this one input and say what became of it")
    parser.add_argument(
        "--keep", type=Path, help="with --only: an empty folder for its files and those of its base"
    )
    parser.add_argument(
        "--false-alarms", type=int, metavar="N", help="read N phantoms and the real scans instead"
    )
    parser.add_argument(
        "--real", type=Path, help="folder of real scans", default=os.environ.get("TF_COVID_REAL_CT")
    )
    options = parser.parse_args()
    options.by = options.by or ["group", "kind"]
    return options


def _done(out: str | None, seed: int) -> dict[int, Record]:
    if out is None or not Path(out).is_file():
        return {}
    lines = Path(out).read_text("utf-8").splitlines()
    held = [json.loads(line) for line in lines if line.endswith("}")]
    return {record["number"]: record for record in held if record["seed"] == seed}


def _misread(record: Record) -> bool:
    return bool(record["harmless"]) and record["outcome"] != "equal"


def _only(options: argparse.Namespace, every: list[Base]) -> int:
    drawn = draw(options.seed, options.only, every)
    base = next(base for base in every if base.name == drawn.base)
    with tempfile.TemporaryDirectory() as spare:
        folder = options.keep or Path(spare)
        for name in ("base", "input"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        put(base, folder / "base")
        path = put(drawn.changed.base, folder / "input", drawn.changed.archive)
        outcome = outcome_of(path, drawn, truths([base])[0][base.name])
    print(f"{drawn.base}: {drawn.mutation.group}, {drawn.mutation.kind}: {drawn.changed.detail}")
    print(outcome)
    return int(outcome.outcome in FAULTS)


def table(held: list[Record], by: str) -> str:
    """A Markdown table: a row a group, kind or base, a column an outcome."""
    rows = sorted({record[by] for record in held})
    counts = Counter((record[by], record["outcome"]) for record in held)
    lines = [f"| {by} | inputs | {' | '.join(OUTCOMES)} |", f"|---|{'--:|' * (len(OUTCOMES) + 1)}"]
    for row in [*rows, None]:
        found = [
            sum(n for (one, out), n in counts.items() if out == o and row in (one, None))
            for o in OUTCOMES
        ]
        lines.append(f"| {row or '**all**'} | {sum(found)} | {' | '.join(map(str, found))} |")
    return "\n".join(lines)


def _show(held: list[Record], shown: str) -> None:
    print(f"\n{shown}:")
    for record in sorted(
        held, key=lambda record: (record["group"], record["kind"], record["base"])
    ):
        if (
            record["outcome"] == shown
            or (shown == "harmless" and _misread(record))
            or (shown == "noise" and record["noise"])
        ):
            told = (
                f"{record['betrayed_by'] or record['why']} {' '.join(record['codes'])}"
                f" {record['noise']}"
            )
            print(
                f"--only {record['number']}: {record['base']}: {record['kind']}: {record['detail']}"
                f" → {record['outcome']}, {record['most_hu']} HU: {told}"
            )


if __name__ == "__main__":
    sys.exit(main())
