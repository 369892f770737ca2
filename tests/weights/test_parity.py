"""Imported networks answer as the published ones.

Against forward passes written here, from the source's own tensors.

Nothing below uses a network, a table or a name of ours: plain TensorFlow operations (NumPy for the
U-Net) follow the published code, with the tensors as they are called and laid out in the source.
The network's part is `import_weights`.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tf_covid.errors import ModelError
from tf_covid.weights import load_model, read_contract
from tf_covid.weights.import_plan import ImportRequest
from tf_covid.weights.importing import import_weights

Tensors = dict[str, np.ndarray]

#: Stages of Inception-v1 after its stem: blocks, or the pool between them (kernel, stride), of each
#: axis of the plane.
STAGES = (("3b", "3c"), (3, 2), ("4b", "4c", "4d", "4e", "4f"), (2, 2), ("5b", "5c"))

#: A unit's name in the source: of its convolution, and of its batch normalisation. Places of a
#: block: 0, 1a … 3b.
Naming = Callable[[str], tuple[str, str]]


def sonnet_name(unit: str) -> tuple[str, str]:
    """kinetics-i3d's i3d.py, its misprint included."""
    block, _, place = unit.partition(".")
    if not place:
        name = f"Conv3d_{unit}"
    else:
        branch, letter = place[0], place[1:] or "a"
        kernel = "3x3" if place in ("1b", "2b") else "1x1"
        name = f"Mixed_{block}/Branch_{branch}/Conv3d_0{letter}_{kernel}"
        if (block, place) == ("5b", "2b"):
            name = "Mixed_5b/Branch_2/Conv3d_0a_3x3"
    return f"RGB/inception_i3d/{name}/conv_3d/", f"RGB/inception_i3d/{name}/batch_norm/"


def branch_name(unit: str) -> tuple[str, str]:
    """The port whose branches are sequences: "mixed_3b.branch_1.0"."""
    block, _, place = unit.partition(".")
    inner = {"": "", "0": "branch_0", "3b": "branch_3.1"}
    name = (
        f"conv3d_{unit}"
        if not place
        else f"mixed_{block}." + (inner.get(place) or f"branch_{place[0]}.{'ab'.index(place[1])}")
    )
    return f"{name}.conv3d.", f"{name}.batch3d."


def b1a_name(unit: str) -> tuple[str, str]:
    """The port whose units have letters: "Mixed_3b.b1a"."""
    block, _, place = unit.partition(".")
    name = f"Mixed_{block}.b{place}" if place else f"Conv3d_{unit}"
    return f"{name}.conv3d.", f"{name}.bn."


def keras_name(unit: str) -> tuple[str, str]:
    """The Keras port: "Conv3d_3b_1a_1x1"."""
    block, _, place = unit.partition(".")
    kernel = "3x3" if place in ("1b", "2b") else "1x1"
    name = (
        f"Conv3d_{block}_{place if place != '0' else '0a'}_{kernel}" if place else f"Conv3d_{unit}"
    )
    return f"{name}_conv/", f"{name}_bn/"


def slim_name(unit: str) -> tuple[str, str]:
    """TF-Slim's inception_v1.py: Sonnet's names with two dimensions, the misprint too."""
    name = (
        sonnet_name(unit)[0]
        .removesuffix("/conv_3d/")
        .removeprefix("RGB/inception_i3d/")
        .replace("Conv3d", "Conv2d")
    )
    return f"InceptionV1/{name}/", f"InceptionV1/{name}/BatchNorm/"


def keras_2d_name(unit: str) -> tuple[str, str]:
    """The Keras port of Inception-v1: "Mixed_3b_Branch_1_a_1x1"."""
    name = slim_name(unit)[0].removeprefix("InceptionV1/").strip("/")
    name = name.replace("5b/Branch_2/Conv2d_0a_3x3", "5b/Branch_2/Conv2d_0b_3x3").replace(
        "/Conv2d_0", "_"
    )
    name = name.replace("/", "_")
    return f"{name}_conv/", f"{name}_bn/"


def vision_name(unit: str) -> tuple[str, str]:
    """torchvision's googlenet.py; it counts blocks from "a", and branches from 1."""
    block, _, place = unit.partition(".")
    if not place:
        name = {"1a_7x7": "conv1", "2b_1x1": "conv2", "2c_3x3": "conv3"}[unit]
    else:
        branch = {"0": "1", "3b": "4.1"}.get(place) or f"{int(place[0]) + 1}.{'ab'.index(place[1])}"
        name = f"inception{block[0]}{chr(ord(block[1]) - 1)}.branch{branch}"
    return f"{name}.conv.", f"{name}.bn."


def windows(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis: TensorFlow's "SAME", as the PyTorch ports compute it."""
    total = max(kernel - (size % stride or stride), 0)
    return total // 2, total - total // 2


class Inception:
    """The published forward pass, in two or three dimensions.

    Args:
        tensors: The source's, with its names.
        naming: What it calls a unit.
        torch: Kernels are (out, in, …), and its variables have PyTorch's names.
        vision: It pads as torchvision's GoogLeNet does.
    """

    def __init__(
        self, tensors: Tensors, naming: Naming, *, torch: bool = False, vision: bool = False
    ) -> None:
        self.tensors, self.naming, self.torch, self.vision = tensors, naming, torch, vision

    def kernel(self, name: str) -> np.ndarray:
        if self.torch:
            kernel = self.tensors[f"{name}weight"]
            return np.transpose(kernel, (*range(2, kernel.ndim), 1, 0))
        return next(
            self.tensors[name + kind]
            for kind in ("w", "weights", "kernel")
            if name + kind in self.tensors
        )

    def pad(self, x: tf.Tensor, kernel: list[int], stride: list[int], *, pool: bool) -> tf.Tensor:
        sides = [int(side) for side in x.shape[1:-1]]
        if not self.vision:
            # The smallest number there is does as well as zeros in a pool: what goes in is not
            # negative.
            pads = [windows(*axis) for axis in zip(sides, kernel, stride, strict=True)]
        elif (
            pool and stride[0] > 1
        ):  # no padding, but windows that begin within the picture are taken whole
            pads = [(0, -(side - k) % s) for side, k, s in zip(sides, kernel, stride, strict=True)]
        else:
            pads = [(k // 2, k // 2) for k in kernel]
        return tf.pad(x, [(0, 0), *pads, (0, 0)])

    def unit(self, x: tf.Tensor, unit: str, stride: int = 1) -> tf.Tensor:
        conv, norm = self.naming(unit)
        kernel = self.kernel(conv)
        rank = kernel.ndim - 2
        x = self.pad(x, list(kernel.shape[:rank]), [stride] * rank, pool=False)
        x = tf.nn.convolution(x, kernel, strides=[stride] * rank, padding="VALID")
        kinds = (
            ("weight", "bias", "running_mean", "running_var")
            if self.torch
            else ("gamma", "beta", "moving_mean", "moving_variance")
        )
        gamma, beta, mean, variance = (
            np.ravel(self.tensors.get(norm + kind, [1.0])) for kind in kinds
        )
        return tf.nn.relu(tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3))

    def pool(self, x: tf.Tensor, kernel: list[int], stride: list[int]) -> tf.Tensor:
        return tf.nn.max_pool(self.pad(x, kernel, stride, pool=True), kernel, stride, "VALID")

    def features(self, x: tf.Tensor) -> tf.Tensor:
        rank = len(x.shape) - 2
        flat = ([1, 3, 3], [1, 2, 2]) if rank == 3 else ([3, 3], [2, 2])
        x = self.pool(self.unit(x, "1a_7x7", stride=2), *flat)
        x = self.pool(self.unit(self.unit(x, "2b_1x1"), "2c_3x3"), *flat)
        for stage in STAGES:
            if isinstance(stage[0], int):
                x = self.pool(x, [stage[0]] * rank, [stage[1]] * rank)
                continue
            for block in stage:
                pooled = self.pool(x, [3] * rank, [1] * rank)
                x = tf.concat(
                    [
                        self.unit(x, f"{block}.0"),
                        self.unit(self.unit(x, f"{block}.1a"), f"{block}.1b"),
                        self.unit(self.unit(x, f"{block}.2a"), f"{block}.2b"),
                        self.unit(pooled, f"{block}.3b"),
                    ],
                    axis=-1,
                )
        return x

    def kinetics_logits(self, clip: np.ndarray, head: str, bias: str) -> np.ndarray:
        x = tf.nn.avg_pool3d(self.features(tf.constant(clip)), [2, 7, 7], 1, "VALID")
        x = tf.nn.conv3d(x, self.kernel(head), [1] * 5, "VALID") + self.tensors[bias]
        assert x.shape[2:4] == (1, 1)
        return tf.reduce_mean(x, axis=(1, 2, 3)).numpy()[0]

    def imagenet_logits(self, picture: np.ndarray, head: str, bias: str) -> np.ndarray:
        x = tf.reduce_mean(self.features(tf.constant(picture)), axis=(1, 2))
        kernel = self.kernel(head)
        return (x @ kernel.reshape(kernel.shape[-2:]) + self.tensors[bias]).numpy()[0]


def drawn(shapes: dict[str, list[int]], seed: int) -> Tensors:
    """Tensors by the rule of the parity file, from the source's own names; γ and σ² are near 1."""
    found = {}
    for name, shape in shapes.items():
        x = np.random.default_rng(zlib.crc32(f"{seed}:{name}".encode())).standard_normal(
            shape, dtype=np.float32
        )
        if len(shape) > 1:
            outputs = shape[0] if name.endswith(".weight") else shape[-1]
            found[name] = x * np.sqrt(2 * outputs / np.prod(shape), dtype=np.float32)
        elif name.endswith(("running_var", "moving_variance")):
            found[name] = 1 + 0.1 * np.abs(x)
        else:
            found[name] = (
                1 + 0.1 * x if name.endswith((".batch3d.weight", ".bn.weight")) else 0.1 * x
            )
    return found


def port_of_keras(c, seed: int) -> Tensors:
    """The Keras port's published names, and its classifier, which a file without top lacks."""
    names = json.loads((c.DATA / "i3d_keras_names.json").read_text())
    shapes = {name.partition("::")[2]: shape for name, shape in names.items()}
    return drawn(
        shapes
        | {
            "Conv3d_6a_1x1_conv/kernel": [1, 1, 1, 1024, 400],
            "Conv3d_6a_1x1_conv/bias": [400],
        },
        seed,
    )


def port_of_torch(c, seed: int) -> Tensors:
    """A PyTorch port's published names."""
    shapes = json.loads((c.DATA / "i3d_pytorch_names.json").read_text())
    counters = {name: np.array(3) for name in shapes if name.endswith("num_batches_tracked")}
    return (
        drawn({name: shape for name, shape in shapes.items() if name not in counters}, seed)
        | counters
    )


def other_port_of_torch(c, seed: int) -> Tensors:
    """The other port's names."""
    held = c.torch(c.sonnet(seed), "b1a")
    return drawn({name: list(value.shape) for name, value in held.items() if value.shape}, seed)


#: Source → its tensors, its file, what it calls its units and its classifier, and whether it is
#: laid out as PyTorch's.
I3D = {
    "sonnet": (
        lambda c, seed: c.sonnet(seed),
        lambda c, t, path: c.write_tf(t, path / "model.ckpt"),
        sonnet_name,
        "RGB/inception_i3d/Logits/Conv3d_0c_1x1/conv_3d/",
        "b",
        False,
    ),
    "branch": (
        port_of_torch,
        lambda c, t, path: c.write_safetensors(t, path / "x.safetensors"),
        branch_name,
        "conv3d_0c_1x1.conv3d.",
        "bias",
        True,
    ),
    "b1a": (
        other_port_of_torch,
        lambda c, t, path: c.write_safetensors(t, path / "x.safetensors"),
        b1a_name,
        "logits.conv3d.",
        "bias",
        True,
    ),
    "keras": (
        port_of_keras,
        lambda c, t, path: c.write_legacy_h5(t, path / "x.h5"),
        keras_name,
        "Conv3d_6a_1x1_conv/",
        "bias",
        False,
    ),
}


def compare_i3d(
    source: str,
    seed: int,
    frames: int,
    path: Path,
    tensors: Tensors,
    out: Path,
    *,
    grey: bool = False,
) -> float:
    """The largest difference of an imported file's logits from the source's own, relative to the largest logit.

    With `grey` ours has one channel, and the source sees three equal ones.
    """
    naming, head, bias, torch = I3D[source][2:]
    done = import_weights(path, ImportRequest("i3d", clip=(frames, 224, 224), rgb=not grey), out)
    assert done["input"]["channels"] == (1 if grey else 3)
    shape = (1, frames, 224, 224, done["input"]["channels"])
    clip = np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)
    seen = np.repeat(clip, 3, axis=-1) if grey else clip
    theirs = Inception(tensors, naming, torch=torch).kinetics_logits(seen, head, head + bias)
    ours = load_model(out)(clip)["logits"].numpy()[0]
    assert ours.shape == theirs.shape == (400,)
    assert theirs.std() > 0.1 * np.abs(theirs).max()
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "frames"), [(11, 16), (7, 64)])
@pytest.mark.parametrize("source", I3D)
def test_i3d_answers_as_its_source(source, seed, frames, checkpoints, tmp_path, record_property):
    draw, write, *_ = I3D[source]
    tensors = draw(checkpoints, seed)
    path = write(checkpoints, tensors, tmp_path)
    difference = compare_i3d(source, seed, frames, path, tensors, tmp_path / "x.keras")
    record_property("difference", difference)
    assert difference < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("source", ["branch", "sonnet"])
def test_one_channel_answers_as_three_equal_ones(source, checkpoints, tmp_path, record_property):
    draw, write, *_ = I3D[source]
    tensors = draw(checkpoints, 13)
    path = write(checkpoints, tensors, tmp_path)
    difference = compare_i3d(source, 13, 16, path, tensors, tmp_path / "x.keras", grey=True)
    record_property("difference", difference)
    assert difference < 1e-4


def test_this_forward_pass_is_the_peers(checkpoints):
    """The file of parity holds what a third program answers: the ruler itself is measured."""
    peer = np.array(json.loads((checkpoints.DATA / "i3d_parity_seed7.json").read_text())["logits"])
    clip = np.random.default_rng(7).uniform(-1, 1, (1, 16, 224, 224, 3)).astype(np.float32)
    head, bias = I3D["sonnet"][3:5]
    found = Inception(checkpoints.sonnet(), sonnet_name).kinetics_logits(clip, head, head + bias)
    assert np.abs(found - peer).max() < 1e-4 * np.abs(peer).max()


INCEPTION = {
    "slim": (slim_name, "InceptionV1/Logits/Conv2d_0c_1x1/", "biases", False),
    "keras": (keras_2d_name, "Logits/", "bias", False),
    "keras 3": (keras_2d_name, "Logits/", "bias", False),
    "torchvision": (vision_name, "fc.", "bias", True),
}


def inception_source(c, kind: str, seed: int) -> Tensors:
    """The tensors of one of the published Inception-v1.

    Torchvision's with γ, which the others lack.
    """
    tensors = c.inceptions(seed)[kind.removesuffix(" 3")]
    gammas = {
        name: list(value.shape) for name, value in tensors.items() if name.endswith(".bn.weight")
    }
    return tensors | drawn(gammas, seed)


def compare_inception(kind: str, seed: int, path: Path, tensors: Tensors, out: Path) -> float:
    """As `compare_i3d`, with a picture of 96×64."""
    naming, head, bias, torch = INCEPTION[kind]
    import_weights(path, ImportRequest("inception_v1", clip=(96, 64), rgb=True), out)
    picture = np.random.default_rng(seed).uniform(-1, 1, (1, 96, 64, 3)).astype(np.float32)
    source = Inception(tensors, naming, torch=torch, vision=kind == "torchvision")
    theirs = source.imagenet_logits(picture, head, head + bias)
    ours = load_model(out)(picture)["logits"].numpy()[0]
    assert ours.shape == theirs.shape == (1001,)
    assert theirs.std() > 0.1 * np.abs(theirs).max()
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize(
    ("kind", "seed"),
    [
        pytest.param(
            kind, seed, marks=() if (kind, seed) == ("torchvision", 7) else pytest.mark.slow
        )
        for kind in INCEPTION
        for seed in (7, 11)
    ],
)
def test_inception_v1_answers_as_its_source(kind, seed, checkpoints, tmp_path, record_property):
    tensors = inception_source(checkpoints, kind, seed)
    path = checkpoints.write_inception(kind, tensors, tmp_path)
    difference = compare_inception(kind, seed, path, tensors, tmp_path / "x.keras")
    record_property("difference", difference)
    assert difference < 1e-4


def run_torch_unet(tensors: Tensors, x: np.ndarray, depth: int) -> np.ndarray:
    """The peer's forward pass in NumPy, in its own layout (C, H, W), to compare with."""

    def conv(x, name):
        kernel = tensors[f"{name}.weight"]
        side = kernel.shape[-1]
        padded = np.pad(x, ((0, 0), (side // 2, side // 2), (side // 2, side // 2)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(1, 2))
        found = np.einsum("ihwab,oiab->ohw", windows, kernel)
        return (
            found + tensors[f"{name}.bias"][:, None, None] if f"{name}.bias" in tensors else found
        )

    def norm(x, name):
        gamma, beta, mean, variance = (
            tensors[f"{name}.{kind}"][:, None, None]
            for kind in ("weight", "bias", "running_mean", "running_var")
        )
        return gamma * (x - mean) / np.sqrt(variance + 1e-5) + beta

    def double(x, name):
        for first in (0, 3):
            x = np.maximum(norm(conv(x, f"{name}.{first}"), f"{name}.{first + 1}"), 0)
        return x

    x = double(x, "inc.double_conv")
    skips = []
    for level in range(1, depth + 1):
        skips.append(x)
        c, h, w = x.shape
        x = double(
            x.reshape(c, h // 2, 2, w // 2, 2).max(axis=(2, 4)),
            f"down{level}.maxpool_conv.1.double_conv",
        )
    for level in range(1, depth + 1):
        kernel = tensors[f"up{level}.up.weight"]
        c, h, w = x.shape
        up = np.einsum("ihw,ioab->ohawb", x, kernel).reshape(kernel.shape[1], 2 * h, 2 * w)
        up = up + tensors[f"up{level}.up.bias"][:, None, None]
        x = double(np.concatenate([skips[-level], up]), f"up{level}.conv.double_conv")
    return conv(x, "outc.conv")


@pytest.mark.parametrize("bias", [False, True])
def test_a_torch_unet_answers_as_its_own_forward_pass(bias, checkpoints, tmp_path):
    tensors = checkpoints.torch_unet(bias=bias)
    path = checkpoints.write_safetensors(tensors, tmp_path / "unet.safetensors")
    done = import_weights(path, ImportRequest("unet", clip=(32, 32)), tmp_path / "x.keras")
    assert not done["fresh"]
    assert not done["left"]
    x = np.random.default_rng(8).random((1, 32, 32), np.float32)
    ours = load_model(tmp_path / "x.keras")(x[..., None])["logits"].numpy()[0, :, :, 0]
    theirs = run_torch_unet({k: v.astype(np.float64) for k, v in tensors.items()}, x, 3)[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
    assert read_contract(tmp_path / "x.keras").task == "lungs"


def test_two_classes_of_a_unet_become_their_difference(checkpoints, tmp_path):
    tensors = checkpoints.torch_unet(classes=2)
    path = checkpoints.write_safetensors(tensors, tmp_path / "unet.safetensors")
    import_weights(path, ImportRequest("unet", clip=(32, 32)), tmp_path / "x.keras")
    x = np.random.default_rng(8).random((1, 32, 32), np.float32)
    background, lung = run_torch_unet({k: v.astype(np.float64) for k, v in tensors.items()}, x, 3)
    ours = load_model(tmp_path / "x.keras")(x[..., None])["logits"].numpy()[0, :, :, 0]
    np.testing.assert_allclose(ours, lung - background, atol=1e-4 * np.abs(lung - background).max())
    many = checkpoints.write_safetensors(
        checkpoints.torch_unet(classes=3), tmp_path / "many.safetensors"
    )
    with pytest.raises(ModelError, match="which of them is lung"):
        import_weights(many, ImportRequest("unet", clip=(32, 32)), tmp_path / "y.keras")


@pytest.fixture
def torch() -> Any:
    """PyTorch, which no default install has: these tests run where it is."""
    return pytest.importorskip("torch", reason="needs PyTorch: pip install -e '.[torch]'")


@pytest.mark.parametrize(
    ("source", "old", "wrapped"),
    [("branch", False, False), pytest.param("b1a", True, True, marks=pytest.mark.slow)],
    ids=["branch", "b1a"],
)
def test_i3d_from_a_file_of_torch_itself(source, old, wrapped, torch, checkpoints, tmp_path):
    """What `torch.save` writes of a state_dict, in its format of today and of before 1.6, bare and
    beside an epoch."""
    tensors = I3D[source][0](checkpoints, 11)
    state = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
    held = {"epoch": 3, "state_dict": state} if wrapped else state
    torch.save(held, tmp_path / "x.pt", _use_new_zipfile_serialization=not old)
    assert compare_i3d(source, 11, 16, tmp_path / "x.pt", tensors, tmp_path / "x.keras") < 1e-4


def test_googlenet_from_a_file_of_torch_itself(torch, checkpoints, tmp_path):
    tensors = inception_source(checkpoints, "torchvision", 11)
    state = {name: torch.nn.Parameter(torch.from_numpy(value)) for name, value in tensors.items()}
    torch.save(state, tmp_path / "googlenet.pth")
    assert (
        compare_inception(
            "torchvision", 11, tmp_path / "googlenet.pth", tensors, tmp_path / "x.keras"
        )
        < 1e-4
    )


def test_googlenet_of_torchvision_itself(torch, tmp_path):
    """The peer's own class and forward pass, with weights and statistics drawn anew."""
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"needs the torchvision of this PyTorch ({error})")
    torch.manual_seed(5)
    peer = torchvision.models.GoogLeNet(num_classes=7, aux_logits=True, init_weights=False).eval()
    with torch.no_grad():
        for name, value in peer.state_dict().items():
            if name.endswith(("bn.weight", "running_var")):
                value.uniform_(0.5, 1.5)
            elif name.endswith(("bn.bias", "running_mean")):
                value.normal_(0, 0.1)
            elif value.ndim > 1:
                value.normal_(0, (2 / value[0].numel()) ** 0.5)
    torch.save(peer.state_dict(), tmp_path / "googlenet.pth")
    done = import_weights(
        tmp_path / "googlenet.pth",
        ImportRequest("inception_v1", clip=(96, 64), rgb=True),
        tmp_path / "x.keras",
    )
    assert done["left"]
    assert all(text.startswith("aux") for text in done["left"])
    picture = np.random.default_rng(3).uniform(-1, 1, (1, 96, 64, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = peer(torch.from_numpy(picture.transpose(0, 3, 1, 2).copy())).numpy()
    ours = load_model(tmp_path / "x.keras")(picture)["logits"].numpy()
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()
