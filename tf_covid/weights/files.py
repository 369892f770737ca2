"""Our `.keras` files: written for any Keras, read by us without running anything from them."""

from __future__ import annotations

import hashlib
import inspect
import json
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
from pydantic import ValidationError

from tf_covid.atomic import temporary_directory
from tf_covid.errors import ModelError
from tf_covid.models import NETWORKS
from tf_covid.weights import apart, catalog, hdf5, quarantine
from tf_covid.weights.contract import Contract

#: Keras dtype policy of each precision.
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}

#: No side of a clip, width of a layer or number of classes of ours comes near; a file must not ask
#: for more memory.
MAX_UNITS = 10_000

#: Attribute of a loaded network that holds its contract.
_ATTRIBUTE = "tf_covid_contract"


@dataclass(frozen=True)
class LoadedModel:
    """A network with what its file says about it.

    Args:
        name: Shipped name, or name of the file.
        network: The network with its weights.
        contract: What its file says.
        sha256: Its identity, see `weights_sha256`.
        file_sha256: sha256 of the file, by which contracts of format 1 name a lung model.
        source: What it was loaded by: a shipped name, or a path.
    """

    name: str
    network: keras.Model
    contract: Contract
    sha256: str
    file_sha256: str = ""
    source: str = ""

    def is_named(self, sha256: str) -> bool:
        """Whether this is the model that a contract, of either format, names."""
        return sha256 in (self.sha256, self.file_sha256)


def weights_sha256(network: keras.Model) -> str:
    """What a model is known by: the sha256, in hex, of its sorted weight arrays.

    Each array counts as the sha256 of its shape and its little-endian float32 values, in whatever
    precision a file holds them. What stands beside the weights does not change it.
    """
    digests = []
    for value in network.get_weights():
        array = np.ascontiguousarray(value, "<f4")
        head = ",".join(map(str, array.shape)).encode()
        digests.append(hashlib.sha256(head + b":" + array.tobytes()).hexdigest())
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def contract_of(network: keras.Model) -> Contract | None:
    """The contract that came with a network from `load_model`; None for any other model."""
    return getattr(network, _ATTRIBUTE, None)


def load_model(source: str | Path, *, precision: str = "float32") -> keras.Model:
    """A network: a shipped name or a `.keras` file.

    The architecture is rebuilt from our own code and only the weights are read.

    Args:
        source: A shipped name, e.g. "severity-i3d", or a path.
        precision: "float32", "bfloat16" or "float16" (the compute dtype; variables and logits stay
            float32).

    Returns:
        A model from clips (N, D, H, W, C), or slices (N, H, W, C) for 2D networks, to `{"logits":
        …}` and `ct_score` where it was trained with one.

    Raises:
        ModelError: If there is no such model, or the file is damaged, foreign or without its
            contract.
    """
    return load(source, precision=precision).network


def load(source: str | Path, *, precision: str = "float32") -> LoadedModel:
    """`load_model` with name, contract and sha256."""
    path = catalog.find(source)
    digest = quarantine.sha256(path)
    if (
        isinstance(source, str)
        and source in catalog.shipped()
        and not catalog.matches_card(path, digest)
    ):
        raise ModelError(
            f"{path}: sha256 {digest} is not the one in its model card; reinstall tf-covid"
        )
    contract = read_contract(path)
    with quarantine.opened(path) as archive, tempfile.TemporaryDirectory() as folder:
        config = quarantine.architecture(quarantine.as_json(archive, quarantine.CONFIG))
        weights = Path(folder) / quarantine.WEIGHTS
        with weights.open("wb") as file:
            quarantine.unpack_weights(archive, file)
        ours = path in catalog.shipped().values() and catalog.matches_card(path, digest)
        listed = None if ours else apart.hdf5(weights, str(path), numbers=False)
        held = weights.stat().st_size
        network = build(contract.model, contract.arguments, path, precision=precision, held=held)
        # `json`: the way through which the file's own config went.
        own = quarantine.architecture(json.loads(network.to_json()))
        if config != own:
            first = next(
                (pair for pair in zip(config, own, strict=False) if pair[0] != pair[1]),
                "their number",
            )
            raise ModelError(
                f"{path}: the architecture is not ours (first difference: {first}); see `tfcovid"
                " import`"
            )
        if listed is None:
            with hdf5.checked(weights, weights.name):
                pass
        else:
            _check_shapes(path, listed, network)
            weights = _read_apart(path, weights)
        # Keras leaves a weight that the file lacks at its random start, with a warning; a NaN there
        # is found below.
        network.set_weights(
            [np.full(value.shape, np.nan, np.float32) for value in network.get_weights()]
        )
        try:
            with warnings.catch_warnings(action="ignore", category=UserWarning):
                network.load_weights(weights)
        except (ValueError, KeyError, OSError, TypeError) as error:
            raise ModelError(
                f"{path}: the weights do not fit the architecture ({error})"
            ) from error
    if any(not np.isfinite(value).all() for value in network.get_weights()):
        raise ModelError(f"{path}: a weight is missing or not a finite number")
    setattr(network, _ATTRIBUTE, contract)
    return LoadedModel(
        catalog.name_of(source), network, contract, weights_sha256(network), digest, str(source)
    )


def _backed(path: Path, model: str, given: Mapping[str, Any], held: int) -> None:
    """Refuse arguments that ask for larger layers than the file has bytes for.

    Before anything is built.

    Raises:
        ModelError: With both numbers.
    """
    try:
        if model == "ltc":
            depth, height, width = given.get("input_shape", (64, 112, 112, 1))[:3]
            dense, last = given.get("dense", 2048), 512 if given.get("trunk") == "c3d" else 256
            asked = (
                max(depth // 16, 1) * max(height // 32, 1) * max(width // 32, 1) * last + dense
            ) * dense
        elif model == "unet":
            asked = 9 * (given.get("filters", 16) * 2 ** min(given.get("depth", 4), 16)) ** 2
        elif model == "unet3d":
            asked = 27 * (given.get("filters", 8) * 2 ** min(given.get("depth", 3), 16)) ** 2
        else:
            return  # their trunks are as wide as they are
    except TypeError as error:
        raise ModelError(f"{path}: its arguments do not fit {model} ({error})") from error
    if 2 * asked > held:
        raise ModelError(
            f"{path}: the weights do not fit the architecture (over {asked} of them, in {held}"
            " bytes)"
        )


def _check_shapes(path: Path, listed: apart.Store, network: keras.Model) -> None:
    """Refuse a file whose floating-point datasets have other shapes than a network's weights.

    Raises:
        ModelError: With one shape that there are too many or too few of.
    """
    have = Counter(one.values.shape for one in listed.variables if one.values.dtype.kind == "f")
    room = Counter(tuple(weight.shape) for weight in network.weights)
    for shape in (have - room) or (room - have):
        raise ModelError(
            f"{path}: the weights do not fit the architecture ({have[shape]} of shape"
            f" {list(shape)}, not {room[shape]})"
        )


def _read_apart(path: Path, weights: Path) -> Path:
    """Weights that HDF5 read in another process, written anew by ours.

    Another file in the same folder.

    Raises:
        UnsafeFile: If a number is missing or damaged.
    """
    plain = weights.with_name(f"plain.{weights.name}")
    with h5py.File(plain, "w") as target:
        for one in apart.hdf5(weights, str(path)).variables:
            target.create_dataset(one.path, data=one.values)
            if one.layer is not None:
                target[one.path].parent.attrs["name"] = one.layer
    return plain


def read_contract(path: Path) -> Contract:
    """The contract inside a `.keras` file.

    Raises:
        ModelError: If the file is no model file, or its contract is missing or wrong.
    """
    with quarantine.opened(path) as archive:
        if quarantine.CONTRACT not in archive.namelist():
            raise ModelError(
                f"{path}: holds no {quarantine.CONTRACT}: task, window and clip of this model are"
                " unknown"
            )
        try:
            return Contract.model_validate(quarantine.as_json(archive, quarantine.CONTRACT))
        except ValidationError as error:
            facts = "; ".join(
                f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()
            )
            raise ModelError(f"{path}: {quarantine.CONTRACT} is wrong: {facts}") from error


def save_model(
    network: keras.Model, contract: Contract, path: Path, *, dtype: str = "float32"
) -> None:
    """Write a `.keras` file that any Keras loads in safe mode, with its contract inside.

    Atomically.

    Args:
        network: A network built by `tf_covid.models`; an optimizer is left out.
        contract: Contract to write into the file.
        path: File to write; ends with `.keras`.
        dtype: "float16" halves the file; Keras casts back to the variables' float32 on loading.

    Raises:
        OutputError: If it cannot be written.
    """
    clean = NETWORKS[contract.model].build(**contract.arguments)
    clean.set_weights(network.get_weights())
    write(clean, contract, path, dtype=dtype)


def write(network: keras.Model, contract: Contract, path: Path, *, dtype: str = "float32") -> None:
    """`save_model` of a network just built from the contract's arguments, not compiled."""
    # Weights do not pack: a tenth of halves, which are there to be small, but a fourteenth of
    # float32, for its time.
    packing = zipfile.ZIP_STORED if dtype == "float32" else zipfile.ZIP_DEFLATED
    with temporary_directory(path) as folder:
        plain, final = folder / "plain.keras", folder / "final.keras"
        network.save(plain)
        with (
            zipfile.ZipFile(plain) as source,
            zipfile.ZipFile(final, "w", zipfile.ZIP_DEFLATED) as target,
        ):
            for name in source.namelist():
                if name != quarantine.WEIGHTS:
                    target.writestr(name, source.read(name))
            weights = Path(source.extract(quarantine.WEIGHTS, folder))
            target.write(_cast(weights, dtype), quarantine.WEIGHTS, packing)
            target.writestr(quarantine.CONTRACT, contract.model_dump_json(indent=2))
        final.replace(path)


def _cast(weights: Path, dtype: str) -> Path:
    cast = weights.with_suffix(f".{dtype}.h5")
    with h5py.File(weights, "r") as source, h5py.File(cast, "w") as target:

        def copy(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Group):
                made: Any = target.require_group(name)
            else:
                value = item[()]
                made = target.create_dataset(
                    name, data=value.astype(dtype) if value.dtype.kind == "f" else value
                )
            made.attrs.update(item.attrs)

        source.visititems(copy)
        target.attrs.update(source.attrs)
    return cast


def build(
    model: str,
    arguments: Mapping[str, Any],
    path: Path,
    *,
    precision: str = "float32",
    held: int | None = None,
) -> keras.Model:
    """A network of ours from what a file says of it.

    Args:
        model: Row of the table of models.
        arguments: Arguments of the network's builder; data of a file, so that none that the
            builder does not document gets through.
        path: The file, for errors.
        precision: A key of `POLICIES`.
        held: Bytes of the weights that are to fill it; None where they were looked at already.

    Raises:
        ModelError: If there is no such network, it asks for more weights than there are, or it
            cannot be built from these arguments.
    """
    if model not in NETWORKS:
        raise ModelError(f"{path}: unknown network {model!r}; known: {', '.join(NETWORKS)}")
    if precision not in POLICIES:
        raise ModelError(f"precision must be one of {', '.join(POLICIES)}, not {precision!r}")
    builder = NETWORKS[model].build
    if strange := arguments.keys() - (
        inspect.signature(builder).parameters.keys() - {"dtype", "name"}
    ):
        raise ModelError(f"{path}: {model} has no arguments {', '.join(sorted(strange))}")
    for key, value in arguments.items():
        default = inspect.signature(builder).parameters[key].default
        if not _alike(value, default):
            raise ModelError(
                f"{path}: {model} cannot be built from its arguments: {key} is {value!r:.60}, not"
                f" as {default}"
            )
    widest = (
        arguments.get("filters", 1) * 2 ** min(max(arguments.get("depth", 0), 0), 64)
        if model in ("unet", "unet3d")
        else 1
    )
    if any(index > MAX_UNITS for index in (widest, *_numbers(dict(arguments)))):
        raise ModelError(f"{path}: an argument of {model} is over {MAX_UNITS}")
    if held is not None:
        _backed(path, model, arguments, held)
    try:
        return builder(**arguments, dtype=POLICIES[precision])
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        facts = str(error).partition("\n")[0]
        raise ModelError(f"{path}: {model} cannot be built from its arguments: {facts}") from error


def _alike(value: object, default: object) -> bool:
    """Whether a value from a file has the type of a builder's default.

    Whole numbers of it are 1 or more.
    """
    if isinstance(default, tuple):
        sides = value if isinstance(value, (list, tuple)) else ()
        return len(sides) == len(default) and all(side is None or _alike(side, 1) for side in sides)
    if type(default) is int:
        return isinstance(value, int) and type(value) is int and value >= 1
    if isinstance(default, float):
        return isinstance(value, (int, float)) and type(value) is not bool and 0 <= value <= 1
    return type(value) is type(default)


def _numbers(value: object) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)):
        yield value
