"""`tfcovid import`: a foreign checkpoint becomes a file of ours, and is read back as a proof."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tf_covid.atomic import output_errors, temporary_directory
from tf_covid.errors import ModelError, OutputError
from tf_covid.models import NETWORKS
from tf_covid.weights.contract import Contract
from tf_covid.weights.convert import Conversion, convert, layers_of
from tf_covid.weights.files import build, load, write
from tf_covid.weights.foreign import Checkpoint, list_checkpoint, private, read_checkpoint
from tf_covid.weights.import_plan import CLIPS, HEADS, ImportPlan, ImportRequest
from tf_covid.weights.inflate import inflate
from tf_covid.weights.name_maps import of_ours


def import_weights(path: Path, request: ImportRequest, out: Path) -> dict[str, Any]:
    """Make a `.keras` file of ours from a checkpoint, and read it back.

    Args:
        path: Checkpoint, as for `foreign.read_checkpoint`.
        request: What the checkpoint is to become.
        out: The new file; ends with `.keras`.

    Returns:
        What was done, ready for JSON: `source`, `model`, `mapped`, `ignored`, `left`, `fresh`,
        `inflated`, `input`, `classes`, `out`, `sha256`.

    Raises:
        UnsafeFile: If the file is damaged or hostile.
        ModelError: If no known checkpoint of this model has its names, or it does not fit
            one-to-one.
        OutputError: If `out` cannot be written.
    """
    if request.model not in NETWORKS:
        raise ModelError(f"unknown network {request.model!r}; known: {', '.join(NETWORKS)}")
    if request.inflate and request.model != "i3d":
        raise ModelError(f"--inflate makes an i3d of Inception-v1, not of {request.model}")
    if request.clip and len(request.clip) < len(CLIPS[request.model]):
        raise ModelError(f"{request.model} takes clips of three sides, not {request.clip}")
    if out.suffix != ".keras" or out.absolute() == path.absolute():
        raise OutputError(
            f"{out}: the new file must end with .keras, and not be the one that is read"
        )
    with private(path) as copy:
        return _import(copy, request, out)


def _import(path: Path, request: ImportRequest, out: Path) -> dict[str, Any]:
    # Names and shapes, before a number is read.
    listed = list_checkpoint(path)
    empty = _fitted(path, listed, request)[1] if listed is not None else None
    read = read_checkpoint(path)
    plan, network, done = _fitted(path, read, request, empty)
    if request.inflate:
        plan.arguments["input_shape"] = [
            *(request.sides("i3d") or CLIPS["i3d"]),
            network.input_shape[-1],
        ]
        parent, network = network, build("i3d", plan.arguments, path)
        inflate(parent, network)
    sha256 = _save(network, plan.contract_of(path, read.sha256, done, request), out)
    names = {short: name for name, short in _plain_names(read).items()}
    scale, offset = plan.name_map.input
    return {
        "source": plan.name_map.title,
        "model": request.model,
        "mapped": [
            {
                "from": [names[name] for name in theirs],
                "to": ours.replace("Conv2d", "Conv3d") if request.inflate else ours,
                "shape": list(shape),
            }
            for theirs, ours, shape in done.mapped
        ],
        "ignored": [names[name] for name in done.ignored],
        "left": [names[text.split(" ")[0]] + " " + text.partition(" ")[2] for text in done.left],
        "fresh": list(done.fresh),
        "inflated": request.inflate,
        "input": {
            "channels": network.input_shape[-1],
            "scale": list(scale),
            "offset": list(offset),
        },
        "classes": plan.classes,
        "out": str(out),
        "sha256": sha256,
    }


def _fitted(
    path: Path, read: Checkpoint, request: ImportRequest, network: keras.Model | None = None
) -> tuple[ImportPlan, keras.Model, Conversion]:
    """The network that the file holds, filled one-to-one.

    Args:
        path: The file, for errors.
        read: Content of the file, or its names and shapes.
        request: What the checkpoint is to become.
        network: Network that names and shapes of the same file gave; built anew if None.

    Raises:
        ModelError: If names or shapes do not fit.
    """
    plain = _plain_names(read)
    tensors = {plain[name]: value for name, value in _flat(read)}
    others = {plain[name]: kind for name, kind in read.others.items()}
    plan = ImportPlan.make(path, replace(read, tensors=tensors, others=others), request)
    # How much of a slice is diseased: an output of the 2D parent that a network of volumes does not
    # have.
    flat_only = frozenset({"share"}) if request.inflate else frozenset()
    for name in flat_only:
        plan.arguments.pop(name, None)
    network = build(request.parent, plan.arguments, path) if network is None else network
    name_map = plan.name_map
    if plan.ours:
        # All that the network has must be there; so far the file was asked for its own names only.
        name_map = replace(
            name_map, units=of_ours(request.parent, (*name_map.units, *layers_of(network))).units
        )
    drop = flat_only if plan.keeps_head else HEADS | flat_only
    done = convert(name_map, plan.tensors, plan.others, network, drop=drop)
    return plan, network, done


def _save(network: keras.Model, contract: Contract, out: Path) -> str:
    """Write the file under another name, read it back, then rename it; returns its sha256."""
    with output_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with temporary_directory(out) as folder:
        written = folder / out.name
        write(network, contract, written)
        again = load(written)
        for ours, theirs in zip(network.weights, again.network.weights, strict=True):
            if not np.array_equal(ours, theirs):
                raise ModelError(f"{out}: {ours.path} was not read back as it was written")
        written.replace(out)
    return again.file_sha256


def _plain_names(read: Checkpoint) -> dict[str, str]:
    """Name → name without the prefixes that wrappers put before those of a network.

    None where that mixes two up.
    """
    names = [*read.tensors, *read.others]
    plain = {name: re.sub(r"^(module\.|backbone\.)+", "", name) for name in names}
    return plain if len(set(plain.values())) == len(names) else dict(zip(names, names, strict=True))


def _flat(read: Checkpoint) -> list[tuple[str, np.ndarray]]:
    """Tensors; Sonnet keeps those of a batch normalisation as (1, …, 1, C)."""
    norm = re.compile(r"/(beta|gamma|moving_mean|moving_variance)$")
    return [
        (name, value.reshape(-1) if norm.search(name) else value)
        for name, value in read.tensors.items()
    ]
