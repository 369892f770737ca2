"""Name maps of published checkpoints onto our networks, as data.

A new source is a row of `NAME_MAPS`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tf_covid.models.inception import BLOCKS
from tf_covid.models.ltc import TRUNKS

#: Places of the convolutions in a mixed block, as our layer names have them: branch, suffix.
BRANCHES = ("0_0a_1x1", "1_0a_1x1", "1_0b_3x3", "2_0a_1x1", "2_0b_3x3", "3_0b_1x1")

#: Scale and offset of an input, from [0, 1]: one number, or one for each channel.
Input = tuple[tuple[float, ...], tuple[float, ...]]
UNIT: Input = ((1.0,), (0.0,))
SIGNED: Input = ((2.0,), (-1.0,))
#: Blue, green, red of 0–255 without the mean of Sports-1M.
SPORTS: Input = ((255.0,), (-90.25, -97.66, -101.41))

#: Our unit → what its convolution (or dense layer) and its batch normalisation are called there.
Units = Mapping[str, tuple[str, str]]

#: All variables that a unit can have there, and whose prefix each of them bears: the convolution's
#: or the norm's.
VARIABLES = {"kernel": 0, "bias": 0, "gamma": 1, "beta": 1, "moving_mean": 1, "moving_variance": 1}


@dataclass(frozen=True)
class NameMap:
    """A family of checkpoints.

    Args:
        title: Name of the family, for people.
        model: The network of ours that it fills, a row of the table of models.
        units: Our unit → names of its convolution and norm in the checkpoint. Layers of ours that
            are not among them keep their start.
        variables: Our variable → what follows the unit's name there.
        layout: "keras" kernels are (…, in, out); "torch" ones (out, in, …).
        ignored: Patterns of tensors that are not weights of the network.
        left: Patterns of tensors that we have no layer for.
        input: Scale and offset of the network's input, from [0, 1].
        epsilon: ε of the checkpoint's batch normalisation.
        arguments: Arguments of our builder, where the source needs others than the default.
    """

    title: str
    model: str
    units: Units
    variables: Mapping[str, str]
    layout: str = "keras"
    ignored: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    input: Input = UNIT
    epsilon: float = 1e-3
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def kernel(self, unit: str) -> str:
        """What the kernel of one of our units is called there."""
        return self.names(unit)["kernel"]

    def names(self, unit: str) -> dict[str, str]:
        """Each of `VARIABLES` → what it is called there, for one of our units."""
        units = self.units[unit]
        return {
            one: units[position] + self.variables.get(one, f"/{one}")
            for one, position in VARIABLES.items()
        }


def norm_of(conv: str) -> str:
    """The batch normalisation that follows a convolution of ours, by its name."""
    return conv.replace("_conv", "_bn")


def _inception(
    rank: int,
    stem: Mapping[str, str] | str,
    mixed: str,
    branch_names: Sequence[str],
    blocks: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Our convolutions of Inception-v1 → their units.

    Args:
        rank: 2, or 3 for I3D.
        stem: Names of the first three convolutions by their suffix, or a pattern with {suffix}.
        mixed: Pattern of a unit in a mixed block, with {block} and {place}.
        branch_names: Published name of each of `BRANCHES`.
        blocks: Published name of each block, where it differs.
    """
    ours: dict[str, str] = {}
    for block in BLOCKS:
        if block.kind == "conv":
            theirs = (
                stem.format(suffix=block.suffix) if isinstance(stem, str) else stem[block.suffix]
            )
            ours[f"Conv{rank}d_{block.suffix}_conv"] = theirs
        elif block.kind == "mixed":
            their_block = (blocks or {}).get(block.suffix, block.suffix)
            for position, theirs in zip(BRANCHES, branch_names, strict=True):
                branch, suffix = position.split("_", 1)
                unit = f"Mixed_{block.suffix}_Branch_{branch}_Conv{rank}d_{suffix}_conv"
                ours[unit] = mixed.format(block=their_block, place=theirs)
    return ours


def _slashed(rank: int) -> list[str]:
    return [f"Branch_{position[0]}/Conv{rank}d_{position[2:]}" for position in BRANCHES]


def _with_norm(
    units: Mapping[str, str], conv: str, norm: str, **heads: tuple[str, str]
) -> dict[str, tuple[str, str]]:
    return {ours: (theirs + conv, theirs + norm) for ours, theirs in units.items()} | heads


_KERAS = {name: f"/{name}" for name in VARIABLES}
_SONNET = {**_KERAS, "kernel": "/w", "bias": "/b"}
_SLIM = {**_KERAS, "kernel": "/weights", "bias": "/biases"}
_TORCH = {
    "kernel": ".weight",
    "bias": ".bias",
    "gamma": ".weight",
    "beta": ".bias",
    "moving_mean": ".running_mean",
    "moving_variance": ".running_var",
}
_COUNTER = r".*\.num_batches_tracked"
_SLOTS = (
    r".*/(Momentum|RMSProp(_1)?|Adam(_1)?|ExponentialMovingAverage)"
    r"|global_step|learning_rate|_CHECKPOINT.*"
)
_LETTERS = ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")
_BRANCHES = ("branch_0", "branch_1.0", "branch_1.1", "branch_2.0", "branch_2.1", "branch_3.1")
_VISION = ("branch1", "branch2.0", "branch2.1", "branch3.0", "branch3.1", "branch4.1")
_KERAS_3D = ("0a_1x1", "1a_1x1", "1b_3x3", "2a_1x1", "2b_3x3", "3b_1x1")
_KERAS_2D = ("0_a_1x1", "1_a_1x1", "1_b_3x3", "2_a_1x1", "2_b_3x3", "3_b_1x1")
#: torchvision counts the mixed blocks from "a".
_SHIFTED = (
    {"3b": "3a", "3c": "3b"}
    | {f"4{block}": f"4{chr(ord(block) - 1)}" for block in "bcdef"}
    | {"5b": "5a", "5c": "5b"}
)


def _kinetics(title: str, prefix: str) -> NameMap:
    units = _inception(3, prefix + "Conv3d_{suffix}", prefix + "Mixed_{block}/{place}", _slashed(3))
    # The published name breaks the pattern here.
    units["Mixed_5b_Branch_2_Conv3d_0b_3x3_conv"] = f"{prefix}Mixed_5b/Branch_2/Conv3d_0a_3x3"
    head = (f"{prefix}Logits/Conv3d_0c_1x1/conv_3d", "")
    return NameMap(
        title,
        "i3d",
        _with_norm(units, "/conv_3d", "/batch_norm", Conv3d_0c_1x1=head),
        _SONNET,
        ignored=(_SLOTS,),
        input=SIGNED,
    )


def _slim() -> NameMap:
    units = _inception(
        2, "InceptionV1/Conv2d_{suffix}", "InceptionV1/Mixed_{block}/{place}", _slashed(2)
    )
    units["Mixed_5b_Branch_2_Conv2d_0b_3x3_conv"] = "InceptionV1/Mixed_5b/Branch_2/Conv2d_0a_3x3"
    head = ("InceptionV1/Logits/Conv2d_0c_1x1", "")
    units_and_head = _with_norm(units, "", "/BatchNorm", logits=head)
    return NameMap(
        "TF-Slim's Inception-v1 on ImageNet",
        "inception_v1",
        units_and_head,
        _SLIM,
        ignored=(_SLOTS,),
        input=SIGNED,
    )


def _torch_i3d(
    title: str, stem: str, mixed: str, branch_names: Sequence[str], norm: str, head: str
) -> NameMap:
    units = _with_norm(
        _inception(3, stem, mixed, branch_names),
        ".conv3d",
        norm,
        Conv3d_0c_1x1=(f"{head}.conv3d", ""),
    )
    # Kinetics was learned with an epsilon of 1e-3; an early version of one port took 1e-5, which
    # was its mistake.
    return NameMap(title, "i3d", units, _TORCH, layout="torch", ignored=(_COUNTER,), input=SIGNED)


def _torchvision() -> NameMap:
    stem = {"1a_7x7": "conv1", "2b_1x1": "conv2", "2c_3x3": "conv3"}
    units = _inception(2, stem, "inception{block}.{place}", _VISION, _SHIFTED)
    # Its first convolution pads three pixels on every side, which "same" does not. The input is
    # [-1, 1]: to what torchvision's own transform gives, its `transform_input` adds what brings it
    # there.
    return NameMap(
        "torchvision's GoogLeNet on ImageNet",
        "inception_v1",
        _with_norm(units, ".conv", ".bn", logits=("fc", "")),
        _TORCH,
        layout="torch",
        ignored=(_COUNTER,),
        left=(r"aux[12]\..*",),
        input=SIGNED,
        arguments={"stem": "symmetric"},
    )


def _keras(title: str, model: str, units: Mapping[str, str], head: str, theirs: str) -> NameMap:
    return NameMap(
        title,
        model,
        _with_norm(units, "_conv", "_bn", **{head: (theirs, "")}),
        _KERAS,
        input=SIGNED,
    )


def _c3d(
    title: str, names: Sequence[str], dense: str, *, torch: bool = True, input: Input = SPORTS
) -> list[NameMap]:
    """C3D for the eight-convolution trunk, and for the five-convolution net."""
    eight = dict(zip(_C3D, names, strict=True))
    five = {"conv1": eight["conv1a"], "conv2": eight["conv2a"], "conv3": eight["conv3a"]}
    rest = "|".join(re.escape(theirs) for theirs in eight.values() if theirs not in five.values())

    def one(trunk: str, units: Mapping[str, str], *left: str) -> NameMap:
        return NameMap(
            title,
            "ltc",
            {ours: (theirs, "") for ours, theirs in units.items()},
            _TORCH if torch else _KERAS,
            layout="torch" if torch else "keras",
            left=(dense, *left),
            input=input,
            arguments={"trunk": trunk},
        )

    return [one("c3d", eight), one("ltc", five, rf"({rest})[./].*")]


def _unet(depth: int) -> NameMap:
    """A PyTorch U-Net of the common layout with transposed convolutions.

    It numbers its way up from the bottom.
    """
    units: dict[str, tuple[str, str]] = {"logits": ("outc.conv", "")}
    positions = {
        f"down{level}": f"down{level}.maxpool_conv.1.double_conv" for level in range(1, depth)
    }
    positions |= {"down0": "inc.double_conv", "bottom": f"down{depth}.maxpool_conv.1.double_conv"}
    for level in range(depth):
        positions[f"up{level}"] = f"up{depth - level}.conv.double_conv"
        units[f"up{level}"] = (f"up{depth - level}.up", "")
    for ours, theirs in positions.items():
        for index, first in ((1, 0), (2, 3)):
            units[f"{ours}_conv{index}"] = (f"{theirs}.{first}", f"{theirs}.{first + 1}")
    return NameMap(
        f"a PyTorch U-Net, {depth} levels",
        "unet",
        units,
        _TORCH,
        layout="torch",
        ignored=(_COUNTER, "mask_values"),
        epsilon=1e-5,
    )


_C3D = tuple(conv for stage in TRUNKS["c3d"] for conv, _ in stage)
_C3D_NAMES = ("conv1", "conv2", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b")
_FEATURES = tuple(f"features.{index}" for index in (0, 3, 6, 8, 11, 13, 16, 18))

#: In the order in which they are tried; the one that finds most of its kernels is taken.
NAME_MAPS: tuple[NameMap, ...] = (
    _kinetics("DeepMind's I3D on Kinetics-400, RGB (Sonnet names)", "RGB/inception_i3d/"),
    _kinetics("DeepMind's I3D on Kinetics-400, optical flow", "Flow/inception_i3d/"),
    _kinetics("DeepMind's I3D on Kinetics-600 (Sonnet names, no prefix)", ""),
    _torch_i3d(
        "a PyTorch port of I3D (mixed_3b.branch_1.0)",
        "conv3d_{suffix}",
        "mixed_{block}.{place}",
        _BRANCHES,
        ".batch3d",
        "conv3d_0c_1x1",
    ),
    _torch_i3d(
        "a PyTorch port of I3D (Mixed_3b.b1a)",
        "Conv3d_{suffix}",
        "Mixed_{block}.{place}",
        _LETTERS,
        ".bn",
        "logits",
    ),
    _keras(
        "the Keras port of I3D on Kinetics",
        "i3d",
        _inception(3, "Conv3d_{suffix}", "Conv3d_{block}_{place}", _KERAS_3D),
        "Conv3d_0c_1x1",
        "Conv3d_6a_1x1_conv",
    ),
    _slim(),
    _keras(
        "the Keras port of Inception-v1 on ImageNet",
        "inception_v1",
        _inception(2, "Conv2d_{suffix}", "Mixed_{block}_Branch_{place}", _KERAS_2D),
        "logits",
        "Logits",
    ),
    _torchvision(),
    *_c3d("C3D on Sports-1M (Keras)", _C3D_NAMES, r"fc[678]/.*", torch=False),
    *_c3d("C3D on Sports-1M (PyTorch)", _C3D_NAMES, r"fc[678]\..*"),
    *_c3d(
        "C3D on UCF-101 (PyTorch, numbered layers)",
        _FEATURES,
        r"classifier\..*",
        input=((255.0,), (-90.0, -98.0, -102.0)),
    ),
    *_c3d(
        "C3D on Sports-1M (MMAction2)",
        [f"{conv}.conv" for conv in _C3D],
        r"fc[67]\..*|cls_head\..*",
        input=((255.0,), (-104.0, -117.0, -128.0)),
    ),
    *(_unet(depth) for depth in (2, 3, 4, 5)),
)


def of_ours(model: str, layers: Iterable[str]) -> NameMap:
    """The table of a file with our own layer names, for a network's layers or the file's."""
    return NameMap(
        "a file of ours", model, {layer: (layer, norm_of(layer)) for layer in layers}, _KERAS
    )
