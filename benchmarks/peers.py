"""What a scan takes here, and the same work with other libraries, in one run: `make bench`.

    python benchmarks/peers.py --peers PYTHON [--slices 148] [--repeats 3] [--work NAME …] [--write]

PYTHON is that of an environment with `benchmarks/peers.txt`; `peer_works.py` runs there, a process
each. All networks but the shipped ones have random weights: what they take does not depend on them.
Each figure is the median of the repeats after one that does not count (graphs are traced, kernels
chosen; what takes a peer more than half a minute is measured once). From the shell the command is
started anew each time; "the first start" finds nothing that was kept, and is measured once.

Prints a Markdown table; --write puts it into docs/benchmarks.md.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as the command line does

import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import keras
import numpy as np
import tensorflow as tf
from tables import DOCS, NONE, Page, say, table

from tf_covid import attention, read
from tf_covid.cohort.cases import cases_of
from tf_covid.infer import Options, Run
from tf_covid.models import NETWORKS
from tf_covid.phantom import draw_chest
from tf_covid.phantom.files import write_dicom
from tf_covid.pipeline import versions
from tf_covid.runtime import cache
from tf_covid.weights import load
from tf_covid.weights.files import POLICIES

#: JPEG lossless, first-order prediction: what many scanners and archives send.
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"

#: Frames, height and width of the I3D that is compared: those of its paper.
CLIP = (64, 224, 224)

#: What a processor that computes in bfloat16 has, one or the other.
BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16"})

#: Side of the slices that lungmask works on, and slices that ours is given at a time.
SIDE, BATCH = 256, 16


@dataclass(frozen=True)
class Bench:
    """What the works are done on.

    Args:
        folder: Files that our process and the peers read.
        peers: Python of the peers.
        repeats: How often each work is measured.
    """

    folder: Path
    peers: str
    repeats: int

    def ours(self, work: Callable[[], Any]) -> float:
        """Seconds of a work in this process."""
        work()
        return float(np.median([_timed(work) for _ in range(self.repeats)]))

    def peer(self, name: str) -> dict[str, Any]:
        """What `peer_works.py` measures: seconds, and the libraries that did the work."""
        say(f"peer: {name}")
        command = [self.peers, str(Path(__file__).with_name("peer_works.py")), name]
        done = subprocess.run(
            [*command, str(self.folder), str(self.repeats)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env={**os.environ, "KERAS_BACKEND": "torch"},
        )
        results: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return results


#: Work, ours, and the peers' figures: "name seconds (times ours)".
Row = list[str]


def reading(bench: Bench) -> list[Row]:
    """A DICOM folder of JPEG lossless slices into an array."""
    own = bench.ours(lambda: read(bench.folder / "scan"))
    peers = [bench.peer(f"read_{name}") for name in ("simpleitk", "monai", "gdcm")]
    return [_row("read the slices, JPEG lossless", own, peers)]


def lung_network(bench: Bench) -> list[Row]:
    """The network alone, all slices, each at the size that it works on."""
    peer, rows = bench.peer("lungmask_network"), []
    for precision in precisions():
        network = load("lungs-unet", precision=precision).network
        _, height, width, _ = network.input_shape
        name = f"lung network ({height}×{width}; lungmask {SIDE}×{SIDE}){_in(precision)}"
        rows.append(_row(name, _segment_s(bench, network), [peer]))
    return rows


def _segment_s(bench: Bench, network: keras.Model) -> float:
    """Seconds of our lung network for all slices."""
    _, height, width, _ = network.input_shape
    slices = np.load(bench.folder / "slices.npy")[
        :, :: SIDE // height, :: SIDE // width, np.newaxis
    ]
    run = tf.function(lambda x: network(x, training=False)["logits"], jit_compile=False)

    def segment() -> None:
        for first in range(0, len(slices), BATCH):
            run(tf.constant(slices[first : first + BATCH]))

    return bench.ours(segment)


def classifier(bench: Bench) -> list[Row]:
    """I3D of 64×224×224, and its Grad-CAM."""
    network = NETWORKS["i3d"].build(input_shape=[*CLIP, 1])
    network.save(bench.folder / "i3d.keras")
    clip = tf.constant(np.load(bench.folder / "clip.npy"))
    answer = tf.function(lambda x: network(x, training=False)["logits"], jit_compile=False)
    network.export(bench.folder / "i3d", verbose=False)
    peers = [bench.peer("openvino_i3d"), bench.peer("torch_i3d")]
    rows = [_row("I3D, 64×224×224", bench.ours(lambda: answer(clip)), peers)]
    if "bfloat16" in precisions():
        rows.append(_bfloat16_row(bench, network.get_weights(), clip))
    monai = bench.peer("monai_gradcam")
    for endpoint in ("Mixed_5c", "Mixed_3c"):
        network_s, map_s = _explained(bench, network, endpoint, clip)
        rows.append(
            [
                f"Grad-CAM of it at `{endpoint}`, on top of its classification",
                f"{map_s:.2f} s ({map_s / network_s:+.0%})",
                f"{_named(monai)} {monai['seconds']:.1f} s"
                f" ({monai['seconds'] / monai['network_s']:+.0%} of its own network, DenseNet121)",
            ]
        )
    shipped = load("severity-i3d")
    size = (1, *shipped.network.input_shape[1:])
    clip = tf.constant(np.random.default_rng(0).random(size, np.float32))
    endpoint = shipped.contract.endpoint or attention_endpoint(shipped)
    network_s, map_s = _explained(bench, shipped.network, endpoint, clip)
    rows.append(
        [
            f"Grad-CAM of `severity-i3d`, as it ships, at `{endpoint}`",
            f"{map_s:.2f} s ({map_s / network_s:+.0%})",
            NONE,
        ]
    )
    return rows


def _bfloat16_row(bench: Bench, weights: list[np.ndarray], clip: tf.Tensor) -> Row:
    """The same I3D in bfloat16."""
    network = NETWORKS["i3d"].build(input_shape=[*CLIP, 1], dtype=POLICIES["bfloat16"])
    network.set_weights(weights)
    answer = tf.function(lambda x: network(x, training=False)["logits"], jit_compile=False)
    own = bench.ours(lambda: answer(clip))
    return _row(f"I3D, 64×224×224{_in('bfloat16')}", own, [bench.peer("openvino_i3d_bfloat16")])


def attention_endpoint(model: Any) -> str:  # noqa: ANN401  # a LoadedModel
    """Where a network is cut that does not say it."""
    last = NETWORKS[model.contract.model].endpoint
    if last is None:
        raise SystemExit(f"{model.name} has no endpoint")
    return last(model.contract.arguments)


def _explained(
    bench: Bench, network: keras.Model, endpoint: str, clip: tf.Tensor
) -> tuple[float, float]:
    """Seconds of a classification cut at an endpoint, and of Grad-CAM on top of it."""
    parts = attention.split(network, endpoint)

    @tf.function(jit_compile=False)
    def classify(x: tf.Tensor) -> tuple[Any, Any]:
        features = parts.backbone(x, training=False)
        return features, parts.head(features, training=False)

    features, _ = classify(clip)
    return bench.ours(lambda: classify(clip)), bench.ours(
        lambda: attention.attention_map(parts, features, attention.expected_class, "gradcam")
    )


def road(bench: Bench) -> list[Row]:
    """A DICOM folder to its report."""
    rows = [
        [f"DICOM folder to report, warm{_in(precision)}", _s(_road_s(bench, precision)), NONE]
        for precision in precisions()
    ]
    # The graphs and the conversion are made here, whatever this user has.
    environment = {**os.environ, cache.VARIABLE: str(bench.folder / "cache")}
    for runtime in ("tensorflow", "openvino"):
        command = [sys.executable, "-m", "tf_covid.cli", "infer", str(bench.folder / "scan")]
        command += ["--out", str(bench.folder / runtime), "--runtime", runtime]

        def shell(command: Sequence[str] = command, out: Path = bench.folder / runtime) -> None:
            shutil.rmtree(out, ignore_errors=True)  # an answer that is there is kept
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, env=environment
            )
            if done.returncode:
                raise SystemExit(done.stderr)

        for start, seconds in (("first", _timed(shell)), ("next", bench.ours(shell))):
            name = f"the same from the shell, the {start} start, `--runtime {runtime}`"
            rows.append([name, _s(seconds), NONE])
    return rows


def _road_s(bench: Bench, precision: str) -> float:
    """Seconds of a DICOM folder to its report, in this process."""
    out = bench.folder / "out"
    run = Run(out, Options(precision=precision), overwrite=True)

    def answer() -> None:
        (out / "scan" / "result.json").unlink(missing_ok=True)
        (case,) = cases_of([bench.folder / "scan"])
        outcome = run.answer(case)
        if outcome.problem:
            raise SystemExit(outcome.problem)

    return bench.ours(answer)


WORKS = {
    "reading": reading,
    "classifier": classifier,
    "road": road,
    "lung_network": lung_network,
}


def _timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _s(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"


def _named(peer: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in peer["libraries"].items())


def _row(work: str, own: float, peers: Sequence[dict[str, Any]]) -> Row:
    others = "; ".join(
        f"{_named(peer)} {_s(peer['seconds'])} ({peer['seconds'] / own:.1f} times)"
        for peer in peers
    )
    return [work, _s(own), others]


def precisions() -> list[str]:
    """Those that this processor computes in: elsewhere bfloat16 is made of other operations."""
    return ["float32", *(["bfloat16"] if BFLOAT16 & set(_kinds()) else [])]


def _in(precision: str) -> str:
    return "" if precision == "float32" else f", {precision}"


def _facts() -> str:
    return Path("/proc/cpuinfo").read_text("utf-8") if Path("/proc/cpuinfo").exists() else ""


def _kinds() -> list[str]:
    """Kinds of operations that this processor has, of those that decide here."""
    known = _facts().partition("flags")[2].partition("\n")[0].split()
    return [kind for kind in ("avx2", "avx512f", *sorted(BFLOAT16)) if kind in known]


def _machine() -> str:
    name = next(
        (line.split(":")[1].strip() for line in _facts().splitlines() if "model name" in line), ""
    )
    kinds = ", ".join(_kinds()) or "no AVX"
    return f"{name or platform.machine()}, {os.cpu_count()} cores, {kinds}"


@click.command()
@click.option("--peers", required=True, help="Python of an environment with the peers.")
@click.option("--slices", default=148, show_default=True, type=click.IntRange(32, 2000))
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1, 100))
@click.option("--work", "names", multiple=True, type=click.Choice(list(WORKS)), help="All if none.")
@click.option("--write", is_flag=True, help="Put the table into docs/benchmarks.md.")
def main(peers: str, slices: int, repeats: int, names: tuple[str, ...], write: bool) -> None:
    """Seconds of our works, and those of the peers."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        say(f"a chest of {slices} slices of 512×512")
        chest = draw_chest(3, (slices, 512, 512), severity=2)
        write_dicom(chest.hu, chest.affine, folder / "scan", seed=3, transfer_syntax=JPEG_LOSSLESS)
        window = np.clip((chest.hu[:, ::2, ::2] + 1100) / 1400, 0, 1).astype(np.float32)
        np.save(folder / "slices.npy", window[:, :SIDE, :SIDE])
        np.save(folder / "clip.npy", np.random.default_rng(0).random((1, *CLIP, 1), np.float32))
        del chest, window
        bench, rows = Bench(folder, peers, repeats), list[Row]()
        for name in names or WORKS:
            say(f"work: {name}")
            rows += WORKS[name](bench)
    own = versions()
    facts = f"{_machine()}; TensorFlow {own['tensorflow']}, Keras {own['keras']}."
    lacking = "" if "bfloat16" in precisions() else " It does not compute in bfloat16: no such row."
    Page(DOCS / "benchmarks.md", write).put(
        "peers",
        f"{slices} slices of 512×512, float32 unless it says otherwise, medians of {repeats}."
        f" {facts}{lacking}",
        table(["work", "ours", "peers"], rows),
    )


if __name__ == "__main__":
    main()
