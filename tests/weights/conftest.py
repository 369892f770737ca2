"""Checkpoints drawn by a rule that anybody can follow, written in the formats and with the names of
those published."""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from types import ModuleType

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file

from tf_covid.models.inception import endpoint_names

DATA = Path(__file__).parents[1] / "data"
SONNET = "RGB/inception_i3d/"
Tensors = dict[str, np.ndarray]


def drawn(name: str, shape: tuple[int, ...], seed: int = 7) -> np.ndarray:
    """The rule of the parity file.

    He for kernels, 1 + 0.1·|x| for variances, 0.1·x for everything else.
    """
    x = np.random.default_rng(zlib.crc32(f"{seed}:{name}".encode())).standard_normal(
        shape, dtype=np.float32
    )
    if name.endswith("/w"):
        return x * np.sqrt(2 / np.prod(shape[:-1]), dtype=np.float32)
    return 1 + 0.1 * np.abs(x) if name.endswith("/moving_variance") else 0.1 * x


def sonnet(
    seed: int = 7, *, channels: int = 3, classes: int = 400, prefix: str = SONNET
) -> Tensors:
    """DeepMind's names, with their misprint in Mixed_5b."""
    found = {}
    for name, shape in json.loads((DATA / "i3d_kinetics_sonnet_names.json").read_text()).items():
        shape = list(shape)
        if name.endswith("Conv3d_1a_7x7/conv_3d/w"):
            shape[-2] = channels
        if "/Logits/" in name:
            shape[-1] = classes
        value = drawn(name, tuple(shape), seed)
        if "/batch_norm/" in name:
            value = value.reshape(1, 1, 1, 1, -1)  # as Sonnet keeps them
        found[prefix + name.removeprefix(SONNET)] = value
    return found


def flattened(tensors: Tensors) -> Tensors:
    """The misprint mended, batch norms with one axis, and no prefix.

    "Mixed_3b/Branch_0/Conv3d_0a_1x1/conv_3d/w".
    """
    found = {}
    for name, value in tensors.items():
        plain = name.removeprefix(SONNET).replace(
            "5b/Branch_2/Conv3d_0a_3x3", "5b/Branch_2/Conv3d_0b_3x3"
        )
        found[plain] = value if plain.endswith("/w") else value.ravel()
    return found


_KINDS = {
    "w": "weight",
    "b": "bias",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def torch(tensors: Tensors, style: str) -> Tensors:
    """A PyTorch port's names and layout; `style` is "branch" or "b1a"."""
    found: Tensors = {}
    for name, value in flattened(tensors).items():
        *place, group, kind = name.split("/")
        if place[0] == "Logits":
            unit = "conv3d_0c_1x1" if style == "branch" else "logits"
        elif len(place) == 1:
            unit = place[0].lower() if style == "branch" else place[0]
        else:
            block, branch, conv = place
            letter, number = conv[8], branch[-1]
            if style == "b1a":
                unit = f"{block}.b{number}{'' if number == '0' else letter}"
            else:
                inner = {"0": "", "3": ".1"}.get(number, f".{'ab'.index(letter)}")
                unit = f"{block.lower()}.branch_{number}{inner}"
        norm = "batch3d" if style == "branch" else "bn"
        if kind == "w":
            value = np.transpose(value, (4, 3, 0, 1, 2))
        if kind == "beta":
            found[f"{unit}.{norm}.weight"] = np.ones_like(value)
            found[f"{unit}.{norm}.num_batches_tracked"] = np.array(3)
        found[f"{unit}.{'conv3d' if group == 'conv_3d' else norm}.{_KINDS[kind]}"] = (
            np.ascontiguousarray(value)
        )
    return found


def keras_i3d(tensors: Tensors) -> Tensors:
    """The Keras port's "layer/variable"."""
    found: Tensors = {}
    for name, value in flattened(tensors).items():
        *place, group, kind = name.split("/")
        if place[0] == "Logits":
            unit = "Conv3d_6a_1x1"
        elif len(place) == 1:
            unit = place[0]
        else:
            block, branch, conv = place
            unit = f"Conv3d_{block[6:]}_{branch[-1]}{conv[8]}_{conv[10:]}"
        layer = unit + ("_conv" if group == "conv_3d" else "_bn")
        found[f"{layer}/{ {'w': 'kernel', 'b': 'bias'}.get(kind, kind) }"] = value
    return found


def slim(seed: int = 7) -> Tensors:
    """TF-Slim's Inception-v1.

    The same names with two dimensions, 1001 classes, and its global step.
    """
    found: Tensors = {}
    for name, value in sonnet(seed).items():
        flat = name.removeprefix(SONNET).replace("Conv3d", "Conv2d")
        *place, _, kind = flat.split("/")
        unit = "/".join(["InceptionV1", *place])
        if kind in ("w", "b"):
            shape = value.shape[1:] if kind == "w" else value.shape
            shape = (*shape[:-1], 1001) if "Logits" in unit else shape
            found[f"{unit}/{'weights' if kind == 'w' else 'biases'}"] = drawn(name, shape, seed)
        else:
            found[f"{unit}/BatchNorm/{kind}"] = drawn(name, (value.size,), seed)
    return found


def write_tf(tensors: Tensors, prefix: Path) -> Path:
    """A TensorFlow checkpoint of today's format."""
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=list(tensors.values()),
    )
    return prefix


def write_tf_v1(tensors: Tensors, path: Path) -> Path:
    """A TensorFlow checkpoint of the first format, one file."""
    tf.raw_ops.Save(filename=str(path), tensor_names=list(tensors), data=list(tensors.values()))
    return path


def write_safetensors(tensors: Tensors, path: Path) -> Path:
    """A `.safetensors` file."""
    save_file(tensors, path)
    return path


def write_legacy_h5(tensors: Tensors, path: Path, *, root: str = "") -> Path:
    """What `save_weights` of Keras 2 wrote.

    The layer's name twice, attributes that list the names.
    """
    layers: dict[str, Tensors] = {"input_1": {}, "lambda_1": {}}
    for name, value in tensors.items():
        layer, variable = name.split("/")
        layers.setdefault(layer, {})[f"{layer}/{variable}:0"] = value
    with h5py.File(path, "w") as file:
        top = file.require_group(root) if root else file
        top.attrs["layer_names"] = [layer.encode() for layer in layers]
        top.attrs["backend"], top.attrs["keras_version"] = b"tensorflow", b"2.2.4"
        for layer, variables in layers.items():
            group = top.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in variables]
            for name, value in variables.items():
                group.create_dataset(name, data=value)
    return path


def write_keras_3(tensors: Tensors, path: Path) -> Path:
    """What `save_weights` of Keras 3 writes, by Keras itself, from a model whose layers bear these
    names."""
    layers: dict[str, Tensors] = {}
    for name, value in tensors.items():
        layer, variable = name.split("/")
        layers.setdefault(layer, {})[variable] = value
    inputs, outputs = [], []
    for layer, variables in layers.items():
        if "kernel" in variables:
            *kernel, channels, filters = variables["kernel"].shape
            x = keras.Input((*(8 for _ in kernel), channels))
            kind = {2: keras.layers.Conv2D, 3: keras.layers.Conv3D}[len(kernel)]
            made = kind(filters, kernel, padding="same", use_bias="bias" in variables, name=layer)
        else:
            x = keras.Input((variables["beta"].size,))
            made = keras.layers.BatchNormalization(scale=False, name=layer)
        inputs.append(x)
        outputs.append(made(x))
    model = keras.Model(inputs, outputs)
    for layer, variables in layers.items():
        order = ("kernel", "bias", "beta", "moving_mean", "moving_variance")
        model.get_layer(layer).set_weights([variables[name] for name in order if name in variables])
    model.save_weights(path)
    return path


def inceptions(seed: int = 7) -> dict[str, Tensors]:
    """The same Inception-v1 with the names of TF-Slim, of the Keras port and of torchvision's
    GoogLeNet."""
    tensors = slim(seed)
    units: dict[str, Tensors] = {}
    for name, value in tensors.items():
        unit, _, kind = name.removeprefix("InceptionV1/").replace("/BatchNorm", "").rpartition("/")
        units.setdefault(
            unit.replace("5b/Branch_2/Conv2d_0a_3x3", "5b/Branch_2/Conv2d_0b_3x3"), {}
        )[kind] = value
    port: Tensors = {}
    vision: Tensors = {}
    stem = {"1a": "conv1", "2b": "conv2", "2c": "conv3"}
    for unit, parts in units.items():
        if unit.startswith("Logits"):
            port |= {"Logits/kernel": parts["weights"], "Logits/bias": parts["biases"]}
            vision |= {"fc.weight": parts["weights"][0, 0].T, "fc.bias": parts["biases"]}
            continue
        block, _, rest = unit.partition("/")
        if not rest:
            keras_unit, torch_unit = block, stem[block[7:9]]
        else:
            branch, conv = rest.split("/")
            keras_unit = f"{block}_{branch}_{conv[8]}_{conv[10:]}"
            number, letter = int(branch[-1]), conv[8]
            inner = {0: "", 3: ".1"}.get(number, f".{'ab'.index(letter)}")
            level = block[6] + chr(ord(block[7]) - 1)
            torch_unit = f"inception{level}.branch{number + 1}{inner}"
        port[f"{keras_unit}_conv/kernel"] = parts["weights"]
        vision[f"{torch_unit}.conv.weight"] = np.transpose(parts["weights"], (3, 2, 0, 1))
        for kind, theirs in (
            ("beta", "bias"),
            ("moving_mean", "running_mean"),
            ("moving_variance", "running_var"),
        ):
            port[f"{keras_unit}_bn/{kind}"] = parts[kind]
            vision[f"{torch_unit}.bn.{theirs}"] = parts[kind]
        vision[f"{torch_unit}.bn.weight"] = np.ones_like(parts["beta"])
    vision |= {
        "aux1.conv.conv.weight": np.ones((128, 512, 1, 1), np.float32),
        "aux2.fc2.bias": np.ones(8, np.float32),
    }
    vision = {name: np.ascontiguousarray(value) for name, value in vision.items()}
    return {
        "slim": tensors | {"global_step": np.array(1, np.int64)},
        "keras": port,
        "torchvision": vision,
    }


def write_inception(kind: str, tensors: Tensors, folder: Path) -> Path:
    """One of `inceptions` as it is published; "keras 3" is the Keras port saved anew."""
    write, name = {
        "slim": (write_tf_v1, "inception_v1.ckpt"),
        "keras": (write_legacy_h5, "port.h5"),
        "keras 3": (write_keras_3, "port.weights.h5"),
        "torchvision": (write_safetensors, "googlenet.safetensors"),
    }[kind]
    return write(tensors, folder / name)


def inception_files(folder: Path, seed: int = 7) -> dict[str, Path]:
    """Every file in which the same Inception-v1 is published."""
    held = inceptions(seed)
    kinds = ("slim", "keras", "keras 3", "torchvision")
    return {kind: write_inception(kind, held[kind.removesuffix(" 3")], folder) for kind in kinds}


#: C3D's convolutions: channels before and after.
_C3D = {
    "conv1": (3, 64),
    "conv2": (64, 128),
    "conv3a": (128, 256),
    "conv3b": (256, 256),
    "conv4a": (256, 512),
    "conv4b": (512, 512),
    "conv5a": (512, 512),
    "conv5b": (512, 512),
}


def c3d(style: str, folder: Path) -> tuple[Path, tuple[str, ...]]:
    """A C3D file and the names of its dense layers, which are small.

    They are left, whatever their width.

    Args:
        style: "keras", "torch", "features" or "mmaction".
        folder: Where the file goes.
    """
    rng = np.random.default_rng(5)
    tensors: Tensors = {}
    for number, (name, (before, after)) in enumerate(_C3D.items()):
        kernel = rng.normal(0, 0.05, (3, 3, 3, before, after)).astype(np.float32)
        bias = rng.normal(0, 0.1, after).astype(np.float32)
        if style == "keras":
            tensors |= {f"{name}/kernel": kernel, f"{name}/bias": bias}
            continue
        unit = {
            "torch": name,
            "features": f"features.{(0, 3, 6, 8, 11, 13, 16, 18)[number]}",
            "mmaction": f"backbone.{name + 'a' * (number < 2)}.conv",
        }[style]
        tensors |= {
            f"{unit}.weight": np.ascontiguousarray(kernel.transpose(4, 3, 0, 1, 2)),
            f"{unit}.bias": bias,
        }
    dense = {
        "keras": ("fc6/kernel", "fc8/kernel"),
        "torch": ("fc6.weight", "fc8.bias"),
        "features": ("classifier.0.weight",),
        "mmaction": ("backbone.fc6.weight", "cls_head.fc_cls.bias"),
    }[style]
    tensors |= {name: np.ones((8, 4), np.float32) for name in dense}
    if style == "keras":
        return write_legacy_h5(tensors, folder / "sports1M_weights_tf.h5"), dense
    return write_safetensors(tensors, folder / f"{style}.safetensors"), dense


def torch_unet(
    depth: int = 3, filters: int = 4, classes: int = 1, *, bias: bool = False
) -> Tensors:
    """A state_dict of the common PyTorch U-Net."""
    rng = np.random.default_rng(6)
    tensors: Tensors = {}

    def double(name: str, before: int, after: int) -> None:
        for first, (i, o) in ((0, (before, after)), (3, (after, after))):
            tensors[f"{name}.{first}.weight"] = rng.normal(0, 0.3, (o, i, 3, 3))
            if bias:
                tensors[f"{name}.{first}.bias"] = rng.normal(0, 0.3, o)
            norm = {
                "weight": rng.uniform(0.5, 1.5, after),
                "bias": rng.normal(0, 0.3, after),
                "running_mean": rng.normal(0, 0.3, after),
                "running_var": rng.uniform(0.1, 1, after),
            }
            for kind, value in norm.items():
                tensors[f"{name}.{first + 1}.{kind}"] = value

    double("inc.double_conv", 1, filters)
    for level in range(1, depth + 1):
        double(
            f"down{level}.maxpool_conv.1.double_conv",
            filters * 2 ** (level - 1),
            filters * 2**level,
        )
    for level in range(1, depth + 1):
        wide = filters * 2 ** (depth - level + 1)
        tensors[f"up{level}.up.weight"] = rng.normal(0, 0.3, (wide, wide // 2, 2, 2))
        tensors[f"up{level}.up.bias"] = rng.normal(0, 0.3, wide // 2)
        double(f"up{level}.conv.double_conv", wide, wide // 2)
    tensors["outc.conv.weight"] = rng.normal(0, 0.3, (classes, filters, 1, 1))
    tensors["outc.conv.bias"] = rng.normal(0, 0.3, classes)
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def check_inflated(parent: keras.Model, network: keras.Model, picture: np.ndarray) -> None:
    """The law of inflation.

    A boring clip of 128 frames gives the 2D parent's answer, in the interior.
    """
    flat = keras.Model(parent.input, [parent.get_layer(name).output for name in endpoint_names(2)])(
        picture
    )
    clip = np.repeat(picture[:, None], 128, axis=1)
    deep = keras.Model(
        network.input, [network.get_layer(name).output for name in endpoint_names(3)]
    )(clip)
    for name, plane, volume in zip(endpoint_names(3), flat, deep, strict=True):
        # Mixed_5c sees 99 frames: the middle of 128 is free of the zeros that "same" padding adds
        # at both ends.
        middle = volume.numpy()[:, volume.shape[1] // 2]
        np.testing.assert_allclose(middle, plane, atol=1e-4 * np.abs(plane).max(), err_msg=name)


@pytest.fixture(scope="session")
def checkpoints() -> ModuleType:
    """This module: test files of a room cannot import each other."""
    return sys.modules[__name__]
