"""The embedded server under load.

What it costs, how many clients it bears, and whether it stays right and small.

    python benchmarks/serve.py [--model severity-i3d | --export DIR --model NAME] [--mixed 300]

Starts `tfcovid serve` on this machine's loopback twice, and stops it with SIGTERM. Exits with 1 if
any answer is wrong or lost, or a server does not end as it should. Seconds depend on the machine
and on what else it does; the overhead compares two processes that take turns, so it depends less.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import click
import numpy as np
from processes import Direct, Memory, ServerProcess, serving
from tables import number, say, table

from tf_covid import console

if TYPE_CHECKING:
    from load import Question

#: The server may cost that much more than the SavedModel alone.
AIM = 1.10

#: "Flat": memory grows by less than this share, or by less than these MB.
_GROWTH, _GROWTH_MB = 0.10, 100.0

#: Room in a message beside the scan, in MB.
_MARGIN_MB = 8


@dataclass(frozen=True)
class Load:
    """How much is asked; the options of the command."""

    model: str
    size: int
    slices: int
    small: tuple[int, int, int]
    runs: int
    clients: tuple[int, ...]
    requests: int
    seconds: float
    mixed: int
    mixed_clients: int
    queue: int
    message_mb: float
    patience_s: float
    seed: int


@click.command()
@click.option(
    "--model",
    default="severity-i3d",
    show_default=True,
    help="Shipped model, or its name in --export.",
)
@click.option(
    "--export",
    "models",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Folder that holds the exports MODEL and MODEL-clip; a temporary one if not given.",
)
@click.option(
    "--size",
    default=512,
    show_default=True,
    type=click.IntRange(16, 1024),
    help="Pixels a side, overhead.",
)
@click.option(
    "--slices",
    default=300,
    show_default=True,
    type=click.IntRange(1, 1000),
    help="Of the overhead's scan.",
)
@click.option(
    "--small",
    default=(48, 192, 192),
    show_default=True,
    type=(int, int, int),
    metavar="D H W",
    help="Scans of the other parts.",
)
@click.option(
    "--runs",
    default=7,
    show_default=True,
    type=click.IntRange(1),
    help="Overhead: runs of each way.",
)
@click.option(
    "--clients",
    default=(1, 2, 4, 8),
    show_default=True,
    multiple=True,
    type=click.IntRange(1, 64),
    help="Clients at once; several times.",
)
@click.option(
    "--requests",
    default=60,
    show_default=True,
    type=click.IntRange(1),
    help="Most for each table row.",
)
@click.option(
    "--seconds",
    default=8.0,
    show_default=True,
    type=click.FloatRange(0.1),
    help="Most for each table row.",
)
@click.option(
    "--mixed",
    default=300,
    show_default=True,
    type=click.IntRange(20),
    help="Requests of the mixed load.",
)
@click.option(
    "--mixed-clients",
    default=6,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Of the mixed load.",
)
@click.option(
    "--queue",
    default=4,
    show_default=True,
    type=click.IntRange(1),
    help="Of the server; small, to fill it.",
)
@click.option(
    "--message-mb",
    default=64.0,
    show_default=True,
    type=click.FloatRange(1, 2000),
    help="Largest request of the second server, so that oversize is cheap.",
)
@click.option(
    "--patience",
    "patience_s",
    default=120.0,
    show_default=True,
    type=click.FloatRange(1),
    help="Seconds after which a client takes its request for lost.",
)
@click.option("--seed", default=1, show_default=True, type=int)
def main(models: Path | None, **options: object) -> None:
    """Print the tables; exit with 1 if anything is wrong or lost."""
    # Here, not above: the process that calls the SavedModel imports this file and loads TensorFlow
    # for itself.
    console.import_tensorflow()
    from load import clip_questions, scan_questions

    start, faults = time.monotonic(), list[str]()
    load = Load(**options)  # type: ignore[arg-type]
    with ExitStack() as stack:
        if models is None:
            models = _exported(load.model, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        stratifier, clip = _versions(models, load.model)
        with Direct({load.model: stratifier, f"{load.model}-clip": clip}) as direct:
            say("right answers, by the SavedModel alone")
            scans = scan_questions(direct, load.model, load.small, 4)
            clips = clip_questions(direct, f"{load.model}-clip", _clip_shape(clip), 4)
            faults += overhead(models, load, direct)
        faults += many(models, load, scans, clips)
    minutes = (time.monotonic() - start) / 60
    print(
        "\n## Verdict\n\n"
        + ("\n".join(f"- {fault}" for fault in faults) or "Nothing wrong, nothing lost.")
    )
    print(f"\n{minutes:.1f} minutes in all")
    raise SystemExit(1 if faults else 0)


def overhead(models: Path, load: Load, direct: Direct) -> list[str]:
    """A large scan by gRPC against the SavedModel called directly; gives what was wrong."""
    from load import chest, message, scan_inputs

    from tf_covid.client.transport import GrpcServer, Rejected
    from tf_covid.exported import TOLERANCE
    from tf_covid.verify.reference import largest_difference

    shape = (load.slices, load.size, load.size)
    inputs = scan_inputs(chest(shape, load.seed))
    megabytes = max(1024, 2 * np.prod(shape) / 2**20 + _MARGIN_MB)
    faults = list[str]()
    with serving(models, "--message-mb", f"{megabytes:.0f}") as server:
        say(
            f"server of the overhead ready after {server.wait_until_ready({load.model}):.0f} s;"
            " warm-up"
        )
        client = GrpcServer(f"{server.grpc}")

        def by_grpc() -> float:
            begin = time.perf_counter()
            answer = client.predict(load.model, "serving_default", inputs)
            took = time.perf_counter() - begin
            difference, where = largest_difference(right, answer)
            if difference > TOLERANCE:
                faults.append(f"overhead: {where} differs by {difference:.1e}")
            return took

        def way_alone() -> float:
            begin = time.perf_counter()
            try:  # read as a whole, then refused for what is missing
                client.predict(load.model, "serving_default", {"hu": inputs["hu"]})
            except Rejected:
                return time.perf_counter() - begin
            raise SystemExit("a request without its depth was answered")

        right = {
            name: values[0]
            for name, values in direct.ask(load.model, "serving_default", inputs).items()
        }
        if not all(np.isfinite(values).all() for values in right.values()):
            raise SystemExit(f"the scan of {shape} has no answer")
        by_grpc(), way_alone()
        seconds: dict[str, list[float]] = {"direct": [], "gRPC": [], "way": []}
        for run in range(load.runs):
            # One after the other, and the first one takes turns, so that the machine's noise hits
            # both.
            for way in ("direct", "gRPC") if run % 2 == 0 else ("gRPC", "direct"):
                seconds[way].append(direct.again()[0] if way == "direct" else by_grpc())
            seconds["way"].append(way_alone())
            say(
                f"run {run + 1} of {load.runs}: "
                + ", ".join(f"{way} {took[-1]:.2f} s" for way, took in seconds.items())
            )
        client.close()
        begin = time.perf_counter()
        message(load.model, "serving_default", inputs)
        packing = time.perf_counter() - begin
        faults += _stopped(server, "server of the overhead")
    print(
        f"\n## Overhead: {load.size}×{load.size}×{load.slices} int16, serving_default, {load.runs}"
        " runs each\n"
    )
    names = {
        "direct": "SavedModel, called directly",
        "gRPC": "embedded server, gRPC",
        "way": "the way alone: the same message, refused before it is computed",
    }
    rows = [
        (names[way], *(f"{value:.2f}" for value in (np.median(t), min(t), max(t))))
        for way, t in seconds.items()
    ]
    print(table(("", "median, s", "least", "most"), rows))
    ratio = float(np.median(seconds["gRPC"]) / np.median(seconds["direct"]))
    pairs = float(
        np.median([g / d for g, d in zip(seconds["gRPC"], seconds["direct"], strict=True)])
    )
    least = min(seconds["gRPC"]) / min(seconds["direct"])
    share = float(np.median(seconds["way"]) / np.median(seconds["direct"]))
    verdict = "reached" if ratio < AIM else "NOT reached"
    ratios = (
        f"Ratio of the medians: {ratio:.3f} (aim: below {AIM:.2f}, {verdict}); of the least"
        f" {least:.3f}"
    )
    way = (
        f"The way alone is {share:.1%} of the direct call; of it, the client packs for"
        f" {packing:.2f} s."
    )
    print(f"\n{ratios}, median of the pairs {pairs:.3f}. {way}", flush=True)
    return faults


def many(
    models: Path, load: Load, scans: Sequence[Question], clips: Sequence[Question]
) -> list[str]:
    """Concurrent clients, then the mixed load, on one server; gives what was wrong."""
    from mixed import Site, mix, sent_by_kind

    with (
        serving(models, "--message-mb", f"{load.message_mb}", "--queue", f"{load.queue}") as server,
        Memory(server) as ram,
    ):
        ready = server.wait_until_ready({load.model, f"{load.model}-clip"})
        say(f"server of the load ready after {ready:.0f} s")
        loaded, faults = ram.now, concurrency(server, load, scans, clips)
        before, begin, files = ram.now, time.monotonic(), server.watched.num_fds()
        say(f"mixed load: {load.mixed} requests")
        site = Site(load.model, scans, clips, int(load.message_mb * 2**20))
        tallies = mix(
            server, site, load.mixed, load.mixed_clients, patience_s=load.patience_s, seed=load.seed
        )
        end = time.monotonic()
        faults += _idle(server)
        after, files_after = ram.now, server.watched.num_fds()
        faults += _stopped(server, "server of the load", scans[0], load.patience_s)
    print(
        f"\n## Mixed load: {load.mixed} requests from {load.mixed_clients} clients in"
        f" {end - begin:.0f} s\n"
    )
    rows = [
        (name, one.sent, one.right, one.lost, one.wrong, one.waits, f"{one.longest_s:.2f}")
        for name, one in tallies.items()
    ]
    total = sent_by_kind(tallies)
    rows.append(
        ("all", total["sent"], total["right"], total["lost"], total["wrong"], total["waits"], "")
    )
    print(
        table(
            ("kind", "sent", "as it should be", "lost", "wrong", "told to wait", "longest, s"), rows
        )
    )
    faults += [f"{name}: {fault}" for name, one in tallies.items() for fault in one.faults]
    first = ram.median(begin, begin + (end - begin) / 3)
    last = ram.median(end - (end - begin) / 3, end)
    growth = max(after, last) - first
    flat = growth < max(_GROWTH * first, _GROWTH_MB)
    print("\n## Resident memory of the server, MB\n")
    print(
        table(
            (
                "ready",
                "before the mixed load",
                "highest of all",
                "first third",
                "last third",
                "at the end",
            ),
            [[f"{size:.0f}" for size in (loaded, before, ram.highest(), first, last, after)]],
        )
    )
    print(
        "\nFirst third (median) to the end (the higher of the last third's median and idle):"
        f" {growth:+.0f} MB, {growth / first:+.1%}: {'flat' if flat else 'NOT flat'}. Open files:"
        f" {files} before the mixed load, {files_after} after it. Lines that the server wrote:"
        f" {len(server.lines)}."
    )
    for line in server.lines[:5]:
        say(f"server: {line}")
    return faults


def concurrency(
    server: ServerProcess, load: Load, scans: Sequence[Question], clips: Sequence[Question]
) -> list[str]:
    """Scans by both protocols and clips by gRPC, from more and more clients.

    Gives what was wrong.
    """
    from load import rush

    rows, faults = [], list[str]()
    for what, way, questions in (
        ("scan", "gRPC", scans),
        ("scan", "REST", scans),
        ("clip", "gRPC", clips),
    ):
        for count in load.clients:
            done = rush(
                server,
                way,
                questions,
                count,
                requests=load.requests,
                seconds=load.seconds,
                patience_s=load.patience_s,
                seed=load.seed,
            )
            p50, p90, p99 = (
                number(float(value)) for value in np.percentile(done.seconds, (50, 90, 99))
            )
            rate = number(len(done.seconds) / done.elapsed_s)
            rows.append(
                (
                    f"{what}, {way}",
                    count,
                    len(done.seconds),
                    rate,
                    p50,
                    p90,
                    p99,
                    done.waits,
                    len(done.faults),
                )
            )
            say(f"{count} clients, {what}, {way}: {rate} a second")
            faults += [f"{what}, {way}, {count} clients: {fault}" for fault in done.faults]
    d, h, w = load.small
    print(f"\n## Concurrent clients: scans of {d}×{h}×{w} and clips, queue of {load.queue}\n")
    header = (
        "what",
        "clients",
        "requests",
        "a second",
        "p50, s",
        "p90, s",
        "p99, s",
        "told to wait",
        "wrong or lost",
    )
    print(table(header, rows))
    print(
        "\nSeconds from the first try to the answer, with the pauses of who was told to wait.",
        flush=True,
    )
    return faults


def _idle(server: ServerProcess) -> Iterator[str]:
    """Nothing waits and nothing is computed once all clients have gone; else what does."""
    until = time.monotonic() + 30
    names = ("tfcovid_queue_depth", "tfcovid_running")
    while any(left := [server.gauge(name) for name in names]) and time.monotonic() < until:
        time.sleep(0.1)
    if any(left):
        yield (
            f"30 s after the mixed load, {left[0]:.0f} requests wait and {left[1]:.0f} are computed"
        )


def _stopped(
    server: ServerProcess, name: str, flying: Question | None = None, patience_s: float = 60
) -> list[str]:
    """Stop a server, with a request in flight if one is given; gives what was wrong."""
    from load import Client

    from tf_covid.server.settings import ServerSettings

    grace = float(ServerSettings.model_fields["grace_s"].default)
    faults, call = list[str](), None
    client = Client(server, patience_s)
    if flying is not None:
        call = client.call.future(flying.message, timeout=patience_s)
        until = time.monotonic() + 30
        while not (call.done() or server.gauge("tfcovid_running") or time.monotonic() > until):
            time.sleep(0.002)
    ended = server.terminate(grace)
    if ended.code != 0:
        faults.append(
            f"{name}: exit code {ended.code} {ended.seconds:.1f} s after SIGTERM, grace {grace:g} s"
        )
    say(f"{name}: exit code {ended.code} {ended.seconds:.1f} s after SIGTERM")
    if call is not None and flying is not None:
        reply = client.reply_of(call)
        if fault := (
            flying.fault_of(reply.outputs) if reply.code == "OK" else f"{reply.code} {reply.text}"
        ):
            faults.append(f"{name}: the request in flight at SIGTERM: {fault}")
    client.close()
    return faults


def _exported(name: str, folder: Path) -> Path:
    from tf_covid.export.savedmodel import export

    say(f"exporting {name}")
    export(name, folder / name)
    return folder


def _versions(models: Path, name: str) -> tuple[Path, Path]:
    """The folders that the server will serve: the highest versions."""
    from tf_covid.verify.verify import version_folder

    return version_folder(models / name), version_folder(models / f"{name}-clip")


def _clip_shape(version: Path) -> tuple[int, ...]:
    return tuple(
        json.loads((version / "assets.extra" / "model_card.json").read_text("utf-8"))["clip"]
    )


if __name__ == "__main__":
    main()
