"""The one loop that fills a network of ours from a checkpoint, along a table of names.

One-to-one or it fails: every weight of ours gets a tensor, and every tensor is used, or both are
listed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np

from tf_covid.errors import ModelError
from tf_covid.weights.name_maps import VARIABLES, NameMap, norm_of


@dataclass(frozen=True)
class Conversion:
    """What became of a checkpoint.

    Args:
        mapped: (their tensors, our weight, its shape), one for each weight that was filled.
        ignored: Tensors that are not weights of the network.
        left: Tensors that we have no layer for, with their shapes.
        fresh: Our layers that no tensor filled: they keep their random start.
    """

    mapped: tuple[tuple[tuple[str, ...], str, tuple[int, ...]], ...]
    ignored: tuple[str, ...]
    left: tuple[str, ...]
    fresh: tuple[str, ...]


def convert(
    name_map: NameMap,
    tensors: Mapping[str, np.ndarray],
    others: Mapping[str, str],
    network: keras.Model,
    *,
    drop: frozenset[str] = frozenset(),
) -> Conversion:
    """Fill a network in place.

    Args:
        name_map: Names of the tensors for each layer of ours.
        tensors: Name → values.
        others: Name → what else the file holds.
        network: Built by `tf_covid.models`; its input may have one channel where the source's has
            three equal ones.
        drop: Layers of the network that keep their start, and whose tensors are left.

    Raises:
        ModelError: If a weight stays unfilled, a tensor unused, or a shape differs; all of them are
            listed.
    """
    layers = {layer.name: layer for layer in network.layers if layer.weights}
    ledger = _WeightLedger(name_map, tensors)
    for name, layer in layers.items():
        if name in name_map.units and name not in drop:
            ledger.fill(layer, layers.get(norm_of(name)) if norm_of(name) != name else None)
    dropped = {
        name for unit in drop & name_map.units.keys() for name in name_map.names(unit).values()
    }
    rest = {
        name: f"{name} {list(value.shape)}"
        for name, value in tensors.items()
        if name not in ledger.used
    }
    rest |= {name: f"{name} {kind}" for name, kind in others.items()}
    ignored = {name for name in rest if _matches(name_map.ignored, name)}
    left = {
        name for name in rest.keys() - ignored if name in dropped or _matches(name_map.left, name)
    }
    unused = [text for name, text in rest.items() if name not in ignored | left]
    if ledger.missing or ledger.wrong or unused:
        parts = {"unfilled": ledger.missing, "of another shape": ledger.wrong, "unused": unused}
        facts = "; ".join(
            f"{len(results)} {what}: {_shortened(results)}"
            for what, results in parts.items()
            if results
        )
        raise ModelError(f"{name_map.title} into {network.name} is not one-to-one: {facts}")
    for layer, values in ledger.values:
        layer.set_weights(values)
    fresh = tuple(
        name for name in layers if name in drop or _unit(name, layers) not in name_map.units
    )
    return Conversion(
        tuple(ledger.mapped),
        tuple(sorted(ignored)),
        tuple(rest[name] for name in sorted(left)),
        fresh,
    )


#: Entries of a list in an error.
_MAX_LISTED = 40


def _unit(layer: str, layers: Mapping[str, object]) -> str:
    """The convolution that a batch normalisation belongs to; any other layer itself."""
    conv = layer.replace("_bn", "_conv")
    return conv if conv in layers else layer


def _matches(patterns: tuple[str, ...], name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _shortened(entries: Sequence[str]) -> str:
    more = len(entries) - _MAX_LISTED
    return ", ".join(entries[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


class _WeightLedger:
    """Weights of ours that a tensor fills, those that none fills, and tensors used, so far."""

    def __init__(self, name_map: NameMap, tensors: Mapping[str, np.ndarray]) -> None:
        self._name_map, self._tensors = name_map, tensors
        self.used: set[str] = set()
        self.missing: list[str] = []
        self.wrong: list[str] = []
        self.mapped: list[tuple[tuple[str, ...], str, tuple[int, ...]]] = []
        self.values: list[tuple[keras.layers.Layer, list[np.ndarray]]] = []

    def fill(self, conv: keras.layers.Layer, norm: keras.layers.Layer | None) -> None:
        """Values for a convolution or dense layer of ours, and the batch norm behind it."""
        names = self._name_map.names(conv.name)
        held = {variable: name for variable, name in names.items() if name in self._tensors}
        self.used |= set(held.values())
        results = {variable: self._tensors[name] for variable, name in held.items()}
        if "kernel" in results:
            results["kernel"] = _laid_out(results["kernel"], self._name_map.layout, conv)
        expected = _expected_variables(conv, norm)
        wrong = [
            f"{conv.name}/{variable} {list(expected[variable])} ← {held[variable]}"
            f" {list(value.shape)}"
            for variable, value in results.items()
            if value.shape != expected[variable]
        ]
        self.wrong += wrong
        if (
            norm is not None
            and not wrong
            and {"kernel", "moving_mean", "moving_variance"} <= results.keys()
        ):
            if results["moving_variance"].min() < 0:
                raise ModelError(f"{held['moving_variance']} holds a negative variance")
            results = _folded(results, self._name_map.epsilon, norm)
        gone = set() if norm is None else {"bias"} if norm.scale else {"bias", "gamma"}
        for layer in (conv, norm):
            if layer is not None:
                self._take(layer, results, names, held, gone, complete=not wrong)

    def _take(
        self,
        layer: keras.layers.Layer,
        tensors: Mapping[str, np.ndarray],
        names: Mapping[str, str],
        held: Mapping[str, str],
        gone: set[str],
        *,
        complete: bool,
    ) -> None:
        values = []
        for weight in layer.weights:
            variable = weight.path.rsplit("/", 1)[1]
            path, shape = f"{layer.name}/{variable}", tuple(int(side) for side in weight.shape)
            if variable not in tensors:
                self.missing.append(f"{path} {list(shape)} ← {names[variable]}")
                continue
            values.append(tensors[variable])
            origin = [variable, *(part for part in _FOLDED.get(variable, ()) if part in gone)]
            self.mapped.append((tuple(held[part] for part in origin if part in held), path, shape))
        if complete and len(values) == len(layer.weights):
            self.values.append((layer, values))


#: What goes into a variable of ours where our unit has no place for it.
_FOLDED = {"kernel": ("gamma",), "moving_mean": ("gamma", "bias")}


def _expected_variables(
    conv: keras.layers.Layer, norm: keras.layers.Layer | None
) -> dict[str, tuple[int, ...]]:
    """Shapes, in our layout, of all that a unit may have."""
    kernel = tuple(int(side) for side in conv.kernel.shape)
    filters = (kernel[-2] if isinstance(conv, keras.layers.Conv2DTranspose) else kernel[-1],)
    return {variable: kernel if variable == "kernel" else filters for variable in VARIABLES}


def _laid_out(kernel: np.ndarray, layout: str, conv: keras.layers.Layer) -> np.ndarray:
    """A kernel in our order of axes and number of them, and for grey where ours is."""
    if layout == "torch" and kernel.ndim >= 2:
        kernel = np.transpose(kernel, (*range(2, kernel.ndim), 1, 0))
    shape = tuple(int(side) for side in conv.kernel.shape)
    if kernel.shape[: kernel.ndim - len(shape)] == (1,) * (kernel.ndim - len(shape)):
        kernel = kernel.reshape(
            kernel.shape[max(kernel.ndim - len(shape), 0) :]
        )  # a 1×1 convolution as a dense layer
    elif kernel.ndim >= 2 and shape[: len(shape) - kernel.ndim] == (1,) * (
        len(shape) - kernel.ndim
    ):
        kernel = kernel.reshape((1,) * (len(shape) - kernel.ndim) + kernel.shape)
    if kernel.ndim == len(shape) > 2 and (kernel.shape[-2], shape[-2]) == (3, 1):
        # Three equal channels with equal scaling: the same answer from one.
        kernel = kernel.sum(axis=-2, keepdims=True, dtype=np.float64).astype(np.float32)
    return kernel


def _folded(
    tensors: Mapping[str, np.ndarray], epsilon: float, norm: keras.layers.Layer
) -> dict[str, np.ndarray]:
    """What our unit has no variable for, folded into what it has; exact.

    A batch normalisation γ·(x − μ)/√(σ² + ε) + β of the source is one of ours, without γ and with
    another ε, of γ'·x and γ'·μ with γ' = γ·√((σ² + ε')/(σ² + ε)); a bias b of the convolution
    before it is μ − b.
    """
    new = dict(tensors)
    variance = new["moving_variance"].astype(np.float64)
    scale = np.sqrt((variance + norm.epsilon) / (variance + epsilon))
    mean = new["moving_mean"].astype(np.float64) - new.pop("bias", 0.0)
    if norm.scale:
        if "gamma" in new:
            new["gamma"] = (new["gamma"] * scale).astype(np.float32)
    else:
        scale = new.pop("gamma", 1.0) * scale
        new["kernel"] = (new["kernel"] * scale).astype(np.float32)  # its last axis is the output
        mean = mean * scale
    new["moving_mean"] = mean.astype(np.float32)
    return new


def layers_of(network: keras.Model) -> list[str]:
    """The names of a network's layers with weights, norms aside."""
    norm = keras.layers.BatchNormalization
    return [layer.name for layer in network.layers if layer.weights and not isinstance(layer, norm)]
