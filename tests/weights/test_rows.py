"""Every row of the table of sources in docs/import.md, from the command line to a file that any
Keras loads."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import pytest
from click.testing import CliRunner

import tf_covid
from tf_covid.cli import main
from tf_covid.models import I3D, InceptionV1
from tf_covid.weights.quarantine import sha256

Make = Callable[[ModuleType, Path], Path]

I3D_NEW = "--model i3d --allow-missing-head --clip 8 32 32"
INFLATED = "--model i3d --inflate --allow-missing-head --clip 8 32 32"
FLAT = "--model inception_v1 --clip 1 64 32"
C3D = "--model ltc --clip 16 32 32"


def safetensors(style: str) -> Make:
    return lambda c, t: c.write_safetensors(c.torch(c.sonnet(), style), t / f"{style}.safetensors")


def inception(kind: str) -> Make:
    return lambda c, t: c.write_inception(kind, c.inceptions()[kind.removesuffix(" 3")], t)


def port(c: ModuleType, t: Path, *, top: bool = True) -> Path:
    tensors = c.keras_i3d(c.sonnet())
    return c.write_legacy_h5(
        {name: v for name, v in tensors.items() if top or "6a" not in name}, t / "port.h5"
    )


def slots(c: ModuleType, t: Path) -> Path:
    tensors = c.sonnet(classes=600, prefix="")
    return c.write_tf(
        tensors | {"Conv3d_1a_7x7/conv_3d/w/Momentum": tensors["Conv3d_1a_7x7/conv_3d/w"]},
        t / "k.ckpt",
    )


def ours(build: Callable[..., keras.Model], shape: tuple[int, ...], ending: str) -> Make:
    def make(c: ModuleType, t: Path) -> Path:
        network, path = build(shape, classes=5), t / f"ours{ending}"
        network.save_weights(path) if ending == ".weights.h5" else network.save(path)
        return path

    return make


#: Row → how its file is made, the options, and what the JSON says: begin of `source`, mapped,
#: ignored, left, fresh, channels, classes. 114 is 57 units of a kernel and their batch
#: normalisations: 228 with three variables each.
ROWS: dict[str, tuple[Make, str, tuple[Any, ...]]] = {
    "DeepMind's I3D on Kinetics-400": (
        lambda c, t: c.write_tf(c.sonnet(), t / "model.ckpt"),
        I3D_NEW,
        ("DeepMind's I3D on Kinetics-400, RGB", 228, 0, 2, ["logits"], 1, 5),
    ),
    "DeepMind's I3D on Kinetics-600": (
        slots,
        I3D_NEW,
        ("DeepMind's I3D on Kinetics-600", 228, 1, 2, ["logits"], 1, 5),
    ),
    "PyTorch port, branch_1.0": (
        safetensors("branch"),
        I3D_NEW,
        ("a PyTorch port of I3D (mixed_3b.branch_1.0)", 228, 57, 2, ["logits"], 1, 5),
    ),
    "PyTorch port, b1a": (
        safetensors("b1a"),
        f"{I3D_NEW} --rgb",
        ("a PyTorch port of I3D (Mixed_3b.b1a)", 228, 57, 2, ["logits"], 3, 5),
    ),
    "Keras port with top": (port, I3D_NEW, ("the Keras port of I3D", 228, 0, 2, ["logits"], 1, 5)),
    "Keras port without top": (
        lambda c, t: port(c, t, top=False),
        f"{I3D_NEW} --classes 2",
        ("the Keras port of I3D", 228, 0, 0, ["logits"], 1, 2),
    ),
    "TF-Slim's Inception-v1": (
        inception("slim"),
        FLAT,
        ("TF-Slim's Inception-v1", 230, 1, 0, [], 1, 1001),
    ),
    "TF-Slim's Inception-v1, inflated": (
        inception("slim"),
        INFLATED,
        ("TF-Slim's Inception-v1", 228, 1, 2, ["logits"], 1, 5),
    ),
    "Keras port of Inception-v1": (
        inception("keras"),
        FLAT,
        ("the Keras port of Inception-v1", 230, 0, 0, [], 1, 1001),
    ),
    "Keras port of Inception-v1, inflated": (
        inception("keras 3"),
        INFLATED,
        ("the Keras port of Inception-v1", 228, 0, 2, ["logits"], 1, 5),
    ),
    "torchvision's GoogLeNet": (
        inception("torchvision"),
        FLAT,
        ("torchvision's GoogLeNet", 230, 0, 2, [], 1, 1001),
    ),
    "torchvision's GoogLeNet, inflated": (
        inception("torchvision"),
        INFLATED,
        ("torchvision's GoogLeNet", 228, 0, 4, ["logits"], 1, 5),
    ),
    "C3D in Keras": (
        lambda c, t: c.c3d("keras", t)[0],
        C3D,
        ("C3D on Sports-1M (Keras)", 16, 0, 2, ["fc6", "fc7", "logits"], 3, 5),
    ),
    "C3D in Keras, into LTC": (
        lambda c, t: c.c3d("keras", t)[0],
        f"{C3D} --trunk ltc",
        ("C3D on Sports-1M (Keras)", 6, 0, 12, ["conv4", "conv5", "fc6", "fc7", "logits"], 3, 5),
    ),
    "C3D in PyTorch": (
        lambda c, t: c.c3d("torch", t)[0],
        C3D,
        ("C3D on Sports-1M (PyTorch)", 16, 0, 2, ["fc6", "fc7", "logits"], 3, 5),
    ),
    "C3D in PyTorch, numbered": (
        lambda c, t: c.c3d("features", t)[0],
        C3D,
        ("C3D on UCF-101", 16, 0, 1, ["fc6", "fc7", "logits"], 3, 5),
    ),
    "C3D of MMAction2": (
        lambda c, t: c.c3d("mmaction", t)[0],
        C3D,
        ("C3D on Sports-1M (MMA", 16, 0, 2, ["fc6", "fc7", "logits"], 3, 5),
    ),
    "PyTorch U-Net": (
        lambda c, t: c.write_safetensors(c.torch_unet(classes=2), t / "unet.safetensors"),
        "--model unet --clip 1 32 32",
        ("a PyTorch U-Net, 3 levels", 78, 0, 0, [], 1, 1),
    ),
    "ours, .keras": (
        ours(I3D, (8, 32, 32, 1), ".keras"),
        "--model i3d --clip 8 32 32",
        ("a file of ours", 230, 0, 0, [], 1, 5),
    ),
    "ours, .weights.h5, inflated": (
        ours(InceptionV1, (32, 32, 1), ".weights.h5"),
        "--model i3d --inflate --clip 8 32 32",
        ("a file of ours", 230, 0, 0, [], 1, 5),
    ),
}


@pytest.mark.parametrize(
    "row", [pytest.param(r, marks=() if r == "PyTorch U-Net" else pytest.mark.slow) for r in ROWS]
)
def test_it_works_from_the_command_line(row: str, checkpoints: ModuleType, tmp_path: Path) -> None:
    make, options, expected = ROWS[row]
    path, out = make(checkpoints, tmp_path), tmp_path / "new" / "x.keras"
    found = CliRunner().invoke(main, ["import", str(path), *options.split(), "--out", str(out)])
    assert found.exit_code == 0, found.output
    done = json.loads(found.stdout)
    source, mapped, ignored, left, fresh, channels, classes = expected
    assert done["source"].startswith(source)
    assert [len(done[key]) for key in ("mapped", "ignored", "left")] == [mapped, ignored, left]
    assert (done["fresh"], done["input"]["channels"], done["classes"]) == (fresh, channels, classes)
    assert done["sha256"] == sha256(out)
    assert done["inflated"] == ("--inflate" in options)
    ours, anyones = tf_covid.load_model(out), keras.saving.load_model(out, safe_mode=True)
    assert not [
        layer for layer in anyones.layers if not type(layer).__module__.startswith("keras.")
    ]
    clip = np.random.default_rng(0).random((1, *ours.input_shape[1:]), np.float32)
    logits = ours(clip)["logits"].numpy()
    assert np.isfinite(logits).all()
    assert logits.shape[-1] == classes
    np.testing.assert_array_equal(logits, anyones(clip)["logits"])


@pytest.mark.slow
def test_the_program_itself(checkpoints: ModuleType, tmp_path: Path) -> None:
    """One row as a process of its own: its exit code, and nothing on standard output but JSON."""
    path = checkpoints.write_safetensors(checkpoints.torch_unet(), tmp_path / "unet.safetensors")
    command = [
        Path(sys.executable).with_name("tfcovid"),
        "import",
        path,
        "--model",
        "unet",
        "--out",
    ]
    good = subprocess.run(
        [*command, tmp_path / "x.keras"], capture_output=True, text=True, check=True
    )
    assert json.loads(good.stdout)["out"] == str(tmp_path / "x.keras")
    assert not good.stderr
