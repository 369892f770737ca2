"""What a checkpoint is to become.

The name map, the arguments and the contract, before anything is built.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tf_covid import severity
from tf_covid.errors import ModelError
from tf_covid.models import NETWORKS
from tf_covid.weights import quarantine
from tf_covid.weights.contract import Contract, Preprocessing, Task
from tf_covid.weights.convert import Conversion
from tf_covid.weights.files import read_contract
from tf_covid.weights.foreign import Checkpoint
from tf_covid.weights.name_maps import NAME_MAPS, NameMap, of_ours

#: Clip (D, H, W) or slice (H, W) of an imported network where none is given: that of the published
#: weights.
CLIPS: dict[str, tuple[int, ...]] = {
    "i3d": (64, 224, 224),
    "ltc": (16, 112, 112),
    "inception_v1": (224, 224),
    "unet": (128, 128),
}

#: Our units that look at the input, and those that answer.
_STEMS = ("Conv3d_1a_7x7_conv", "Conv2d_1a_7x7_conv", "conv1a", "conv1", "down0_conv1")
_CLASSIFIERS = ("Conv3d_0c_1x1", "logits")
HEADS = frozenset({*_CLASSIFIERS, "ct_score_share", "disease_logits", "disease_ct_score"})

#: Number of classes of a classifier of ours → what it is for.
_TASKS: dict[int, Task] = {len(severity.LABELS): "severity", 2: "covid"}
_TASKS_2D: dict[str, Task] = {"unet": "lungs", "inception_v1": "slices"}


@dataclass(frozen=True)
class ImportRequest:
    """What a checkpoint is to become.

    Args:
        model: Row of the table of models.
        classes: Number of logits; if None, those of the source, or the five of severity for a new
            classifier.
        inflate: The file holds Inception-v1, and `model` is "i3d".
        allow_missing_head: A new classifier is no error, for another number of classes or where the
            file has none.
        clip: (D, H, W) of clips, its last two for slices; the source's own, or `CLIPS`, if None.
        trunk: Trunk of LTC, "c3d" or "ltc".
        rgb: Keep three input channels where one would give the same answer.
    """

    model: str
    classes: int | None = None
    inflate: bool = False
    allow_missing_head: bool = False
    clip: tuple[int, ...] | None = None
    trunk: str = "c3d"
    rgb: bool = False

    @property
    def parent(self) -> str:
        """Row of the network that the file holds."""
        return "inception_v1" if self.inflate else self.model

    def sides(self, model: str) -> tuple[int, ...] | None:
        """What was asked for of a network's clip or slice."""
        return self.clip[-len(CLIPS[model]) :] if self.clip else None


@dataclass(frozen=True)
class ImportPlan:
    """What is to be built, before anything is.

    Args:
        name_map: Names of the tensors for each layer of ours.
        tensors: Name → float32 values, as in `Checkpoint`.
        others: Name → type and shape of what is not a floating-point tensor.
        arguments: Arguments of the builder of the network that the file holds.
        classes: Number of logits.
        keeps_head: Whether the file's classifier stays.
        contract: Contract in the file; None where it has none.
        ours: Whether `tf_covid` wrote the file, with or without its contract.
    """

    name_map: NameMap
    tensors: Mapping[str, np.ndarray]
    others: Mapping[str, str]
    arguments: dict[str, Any]
    classes: int
    keeps_head: bool
    contract: Contract | None
    ours: bool

    @classmethod
    def make(cls, path: Path, read: Checkpoint, request: ImportRequest) -> ImportPlan:
        """Choose the name map, and find what follows from the tensors' shapes.

        Raises:
            ModelError: If nothing that we know fits, or the classifier does not.
        """
        model = request.parent
        contract = _own_contract(path, model) if read.format == "keras" else None
        ours = contract is not None or _looks_ours(model, read)
        if ours:
            arguments = dict(contract.arguments) if contract else _guess(path, model, read, request)
            _backed(path, model, arguments, read.tensors)
            scaling = contract.preprocessing if contract else Preprocessing()
            layers = {
                name.removesuffix("/kernel") for name in read.tensors if name.endswith("/kernel")
            }
            name_map = replace(
                of_ours(model, layers | set(_NEEDED[model])),
                input=(scaling.input_scale, scaling.input_offset),
            )
        else:
            name_map = _find(path, read, request)
            arguments = dict(name_map.arguments)
        if model == "unet":
            return cls._of_unet(path, read, request, name_map, arguments, contract, ours)

        tensors = read.tensors
        theirs = _classes(name_map, tensors)
        channels = _channels(path, name_map, tensors, rgb=request.rgb)
        classes = request.classes or (
            len(severity.LABELS) if request.allow_missing_head or theirs is None else theirs
        )
        keeps = theirs == classes
        c3d = model == "ltc" and not ours  # its dense layers fit no clip but its own
        if not keeps and not request.allow_missing_head and not c3d:
            have = f"has {theirs} classes, not {classes}" if theirs else "has no classifier"
            raise ModelError(
                f"{path}: {have}; --allow-missing-head starts a new one, which must be trained"
            )
        sides = request.sides(model) or tuple(arguments.get("input_shape", (*CLIPS[model], 1)))[:-1]
        if arguments.get("stem") == "symmetric" and any(
            side is None or side % 32 for side in sides[-2:]
        ):
            raise ModelError(
                f"{name_map.title} is exact in multiples of 32 pixels only, not {sides[-2:]}"
            )
        arguments |= {"input_shape": [*sides, channels], "classes": classes}
        if not keeps:
            arguments.pop("head", None)
        elif "Conv3d_0c_1x1" in name_map.units:
            arguments["head"] = "kinetics"
        return cls(name_map, tensors, read.others, arguments, classes, keeps, contract, ours)

    @classmethod
    def _of_unet(
        cls,
        path: Path,
        read: Checkpoint,
        request: ImportRequest,
        name_map: NameMap,
        arguments: dict[str, Any],
        contract: Contract | None,
        ours: bool,
    ) -> ImportPlan:
        """A U-Net's plan: everything but its sides follows from its tensors."""
        tensors = dict(read.tensors)
        channels = _channels(path, name_map, tensors, rgb=request.rgb)
        outputs = _classes(name_map, tensors)
        if outputs is None or request.classes not in (None, outputs):
            raise ModelError(
                f"{path}: has {outputs or 'no'} outputs, not {request.classes}; a U-Net keeps"
                " its own"
            )
        if name_map.layout == "torch":
            head = name_map.kernel("logits")
            bias = head.removesuffix("weight") + "bias"
            if outputs > 2:
                raise ModelError(
                    f"{path}: has {outputs} classes; which of them is lung is not known (1 or 2 are"
                    " taken)"
                )
            if outputs == 2 and bias in tensors:
                # Softmax of background and lung is the sigmoid of their difference.
                tensors |= {name: tensors[name][1:] - tensors[name][:1] for name in (head, bias)}
                outputs = 1
        depth = sum(unit.startswith("down") and unit.endswith("conv1") for unit in name_map.units)
        stem = tensors[name_map.kernel("down0_conv1")]
        filters = int(stem.shape[0] if name_map.layout == "torch" else stem.shape[-1])
        sides = (
            request.sides("unet") or tuple(arguments.get("input_shape", (*CLIPS["unet"], 1)))[:-1]
        )
        arguments = {
            "input_shape": [*sides, channels],
            "depth": depth,
            "filters": filters,
            "outputs": outputs,
        }
        widest = tensors.get(name_map.kernel("bottom_conv2"))
        ends = (
            None
            if widest is None
            else widest.shape[:2]
            if name_map.layout == "torch"
            else widest.shape[2:]
        )
        if ends != (filters * 2**depth,) * 2:
            raise ModelError(
                f"{path}: {name_map.kernel('bottom_conv2')} does not fit {filters} filters, {depth}"
                " levels"
            )
        return cls(name_map, tensors, read.others, arguments, outputs, True, contract, ours)

    def contract_of(
        self, path: Path, sha256: str, done: Conversion, request: ImportRequest
    ) -> Contract:
        """What the new file says about itself; a file of ours keeps what it said."""
        old = self.contract
        if old is not None and self.keeps_head and not request.inflate:
            return old.model_copy(update={"arguments": self.arguments})
        scale, offset = self.name_map.input
        base = old.preprocessing if old else Preprocessing()
        task = _TASKS_2D.get(request.model) or _TASKS.get(self.classes, "pretrained")
        if self.keeps_head and not self.ours and request.model != "unet":
            task = "pretrained"
        note = (
            old.note
            if old
            else ""
            if self.ours
            else f"Imported from {self.name_map.title}; trained on no CT."
        )
        if done.fresh:
            note += (
                f" Untrained: {', '.join(done.fresh)}; its answers mean nothing before training."
            )
        return Contract(
            model=request.model,
            arguments=self.arguments,
            task=task,
            preprocessing=base.model_copy(update={"input_scale": scale, "input_offset": offset}),
            classes=severity.LABELS if task == "severity" else (),
            note=(note or "Imported from weights of ours that came without their note.").strip()[
                :2000
            ],
            origin=f"tfcovid import of {path.name}, sha256 {sha256}"[:2000],
            endpoint=old.endpoint if old and not request.inflate else None,
            licence=old.licence if old else "" if self.ours else "that of the source",
            # What was untrained in a file of ours is so in the new one.
            untrained_head=bool(done.fresh) or (old is not None and old.untrained_head),
            trained_on=old.trained_on if old else None,
        )


def _find(path: Path, read: Checkpoint, request: ImportRequest) -> NameMap:
    """The family whose kernels the file has most of."""

    def score(name_map: NameMap) -> int:
        rank = NETWORKS[name_map.model].rank + 2
        kernels = {name_map.kernel(unit) for unit in name_map.units}
        results = sum(
            name in read.tensors and read.tensors[name].ndim in (rank, 2) for name in kernels
        )
        return results if 2 * results >= len(kernels) else 0

    rows = [
        name_map
        for name_map in NAME_MAPS
        if name_map.model != "ltc" or name_map.arguments["trunk"] == request.trunk
    ]
    best = max(rows, key=score)
    if best.model == request.parent and score(best):
        return best
    if score(best):
        hints = {
            ("inception_v1", "i3d"): "--inflate makes an i3d of it",
            ("i3d", "inception_v1"): "not to be inflated",
        }
        raise ModelError(
            f"{path}: holds {best.title}, for --model {best.model}; "
            + hints.get((best.model, request.parent), f"not {request.model}")
        )
    known = "; ".join(
        sorted({name_map.title for name_map in rows if name_map.model == request.parent})
    )
    first = ", ".join(sorted(read.tensors)[:5])
    raise ModelError(
        f"{path}: has the names of no checkpoint that we know for {request.parent} ({known});"
        f" first: {first}"
    )


def _own_contract(path: Path, model: str) -> Contract | None:
    with quarantine.opened(path) as archive:
        if quarantine.CONTRACT not in archive.namelist():
            return None
    contract = read_contract(path)
    if contract.model != model:
        hint = (
            "; --inflate makes an i3d of it"
            if (contract.model, model) == ("inception_v1", "i3d")
            else ""
        )
        raise ModelError(
            f"{path}: is a file of ours that holds {contract.model}, not {model}{hint}"
        )
    return contract


#: A layer of each network of ours that no published checkpoint has under this name.
_MARKS = {
    "i3d": ("Mixed_5c_Branch_0_Conv3d_0a_1x1_conv", "Conv3d_1a_7x7_conv"),
    "inception_v1": ("Mixed_5c_Branch_0_Conv2d_0a_1x1_conv", "Conv2d_1a_7x7_conv"),
    "ltc": ("fc6", "fc7", "logits"),
    "unet": ("bottom_conv1", "down0_conv1"),
}

#: Those whose shapes say what is to be built.
_NEEDED = {
    "i3d": _MARKS["i3d"][1:],
    "inception_v1": _MARKS["inception_v1"][1:],
    "ltc": (),
    "unet": ("down0_conv1", "bottom_conv2"),
}


def _looks_ours(model: str, read: Checkpoint) -> bool:
    return all(f"{layer}/kernel" in read.tensors for layer in _MARKS[model])


def _guess(path: Path, model: str, read: Checkpoint, request: ImportRequest) -> dict[str, Any]:
    """Arguments of one of our builders from the weights alone."""
    tensors = read.tensors

    def width(layer: str) -> int:
        return int(tensors[f"{layer}/kernel"].shape[-1])

    def channels(layer: str) -> int:
        return int(tensors[f"{layer}/kernel"].shape[-2])

    sides = list(request.sides(model) or CLIPS[model])
    try:
        if model == "unet":
            depth = sum(bool(re.fullmatch(r"down\d+_conv1/kernel", name)) for name in tensors)
            shape = [*sides, channels("down0_conv1")]
            return {
                "input_shape": shape,
                "depth": depth,
                "filters": width("down0_conv1"),
                "outputs": width("logits"),
            }
        if model == "ltc":
            trunk = "c3d" if "conv1a/kernel" in tensors else "ltc"
            shape = [*sides, channels("conv1a" if trunk == "c3d" else "conv1")]
            more: dict[str, Any] = {"trunk": trunk, "dense": width("fc6")}
        else:
            rank = NETWORKS[model].rank
            shape, more = [*sides, channels(f"Conv{rank}d_1a_7x7_conv")], {}
            if f"zero_padding{rank}d" in read.layers:
                more["stem"] = "symmetric"
        if "Conv3d_0c_1x1/kernel" in tensors:
            return {
                "input_shape": shape,
                "classes": width("Conv3d_0c_1x1"),
                "head": "kinetics",
                **more,
            }
        score = "ct_score_share/kernel" in tensors
        if pooling := _pooled_endpoint(tensors):
            more["disease_pooling"] = pooling
        return {"input_shape": shape, "classes": width("logits"), "ct_score": score, **more}
    except (KeyError, IndexError) as error:
        raise ModelError(f"{path}: looks like a file of ours, but lacks {error}") from error


def _pooled_endpoint(tensors: Mapping[str, np.ndarray]) -> str:
    """The layer of ours whose diseased cells a file's network pools; "" where it pools none."""
    names = {name.removesuffix("/kernel") for name in tensors if name.startswith("disease_")}
    reading = {f"disease_{name}" for name in ("sides", "dense", "logits", "ct_score")}
    taught = {name for name in names - reading if "/" not in name}
    return taught.pop().removeprefix("disease_") if "disease_sides" in names and taught else ""


def _backed(
    path: Path, model: str, arguments: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> None:
    """Refuse arguments whose largest layers the file does not hold.

    What is built must be paid for in bytes.

    Raises:
        ModelError: With the first layer that does not fit.
    """
    expected: dict[str, tuple[int, ...]] = {}
    shape = arguments.get("input_shape", [1] * (len(CLIPS[model]) + 1))
    fits = isinstance(shape, list) and len(shape) == len(CLIPS[model]) + 1
    if not fits or any(side is not None and type(side) is not int for side in shape):
        raise ModelError(f"{path}: its arguments do not fit {model} (input_shape {shape!r:.80})")
    try:
        if model == "unet":
            wide = arguments.get("filters", 16) * 2 ** min(arguments.get("depth", 4), 16)
            expected["bottom_conv2"] = (3, 3, wide, wide)
        elif model == "ltc":
            dense, (d, h, w, _) = arguments.get("dense", 2048), arguments["input_shape"]
            last = 512 if arguments.get("trunk") == "c3d" else 256
            expected = {
                "fc6": (math.prod((d // 16, h // 32, w // 32)) * last, dense),
                "fc7": (dense, dense),
            }
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: its arguments do not fit {model} ({error})") from error
    for layer, shape in expected.items():
        held = tensors.get(f"{layer}/kernel")
        if held is None or held.shape != shape:
            have = "is missing" if held is None else f"is {list(held.shape)}"
            raise ModelError(
                f"{path}: {layer}/kernel {have}, not {list(shape)}; --clip gives the clip it was"
                " made for"
            )


def _classes(name_map: NameMap, tensors: Mapping[str, np.ndarray]) -> int | None:
    head = next((unit for unit in _CLASSIFIERS if unit in name_map.units), None)
    kernel = tensors.get(name_map.kernel(head)) if head else None
    if kernel is None or kernel.ndim < 2:
        return None
    return int(kernel.shape[0] if name_map.layout == "torch" else kernel.shape[-1])


def _channels(
    path: Path, name_map: NameMap, tensors: Mapping[str, np.ndarray], *, rgb: bool
) -> int:
    """Channels of our input.

    One where the source's are scaled alike, since CT has three equal ones.
    """
    stem = next((unit for unit in _STEMS if unit in name_map.units), None)
    kernel = tensors.get(name_map.kernel(stem)) if stem else None
    if kernel is None or kernel.ndim < 4:
        raise ModelError(
            f"{path}: has no first convolution {name_map.kernel(stem) if stem else ''}".rstrip()
        )
    theirs = int(kernel.shape[1] if name_map.layout == "torch" else kernel.shape[-2])
    if theirs == 2:
        raise ModelError(f"{path}: takes two channels, optical flow; a CT has none")
    if theirs == 3 and not rgb and max(len(part) for part in name_map.input) == 1:
        return 1
    return theirs
