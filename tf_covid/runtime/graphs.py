"""The graphs of models as TensorFlow traced them, kept: the next start builds and traces nothing.

A start spends more time on building networks and tracing them than on a scan. What is kept is what
was traced, and the weights apart from it; so the answers are those of `local.LocalModels`.
"""

from __future__ import annotations

import os
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, cast

import keras
import numpy as np
import tensorflow as tf
from pydantic import BaseModel, ConfigDict

from tf_covid import attention
from tf_covid.atomic import make_folder, output_errors, replacing_folder
from tf_covid.attention import Axis
from tf_covid.attention.gradcam import Target
from tf_covid.errors import OutputError
from tf_covid.infer import Options
from tf_covid.local import EnsembleMember, LocalModels, StagedModels, Stages
from tf_covid.runtime import cache
from tf_covid.runtime.behind import Behind
from tf_covid.tensor import Tensor
from tf_covid.weights import Contract

#: Files of a folder: what is where, and all weights.
FACTS, WEIGHTS = "graphs.json", "weights.npz"

#: Folders that stay when a further one is made: those that were used last.
KEPT = 6

#: Changes with what is written into the folder.
_FORMAT = 1

_KEEPING = threading.Lock()

#: What reading a folder can end with, whatever became of it.
_UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, EOFError),
    *(zipfile.BadZipFile, tf.errors.OpError),
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KeptGraph(_Strict):
    """A graph without its weights.

    Args:
        inputs: Name of the placeholder, shape and type of each input, in their order.
        outputs: Name of the tensor of each output.
        weights: Placeholder → name of the array that takes its place.
        variables: Those placeholders whose array is a variable's value.
    """

    inputs: tuple[tuple[str, tuple[int | None, ...], str], ...]
    outputs: dict[str, str]
    weights: dict[str, str]
    variables: frozenset[str]


class KeptNetwork(_Strict):
    """What is known of a network; see `local.Stages`."""

    name: str
    sha256: str
    contract: Contract
    clip: tuple[int, int, int]
    axes: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
    endpoint: str
    features: tuple[int, int, int, int]


class KeptModels(_Strict):
    """What is known of models without building them; see `pipeline.Models`."""

    task: Literal["severity", "covid"]
    finds_disease: bool
    finds_lobes: bool
    other_lungs: bool
    lungs_grid: tuple[int, int]
    weights_sha256: list[str]
    files_sha256: list[str]
    networks: list[KeptNetwork]
    graphs: dict[str, KeptGraph]


def of_options(
    options: Options, *, on_message: Callable[[str], None] = lambda text: None
) -> LocalModels | GraphModels:
    """The models that `infer` asks for in TensorFlow: as they were kept, or made and kept now.

    Args:
        options: What decides the answer.
        on_message: Called with a line where graphs are kept, or cannot be.

    Raises:
        ModelError: What `LocalModels` raises.
    """
    behind = Behind(options.lungs_model, options.lobes_model, options.allow_other_lungs)

    def load() -> LocalModels:
        return LocalModels(
            options.models,
            lungs=behind.lungs,
            lobes=behind.lobes,
            precision=options.precision,
            allow_other_lungs=behind.allow_other_lungs,
        )

    files = behind.files_sha256(options.models)
    key = _key(options.models, behind, options.precision, files)
    try:
        folder = cache.cache_folder() / "graphs" / key
    except OutputError:  # no home: nothing is kept
        return load()
    if (kept := _kept(folder, load)) is not None:
        return kept
    models = load()
    # A file may have changed meanwhile. And tracing what explains would cost those who ask for no
    # map as much as it saves the others.
    same, explained = models.files_sha256 == files, options.attention != "none"
    if same and explained and options.attention_target == "severity":
        _keep(models, folder, on_message)
    return models


@dataclass(frozen=True)
class _KeptSplit:
    """What explains a kept network; other targets than the kept one are explained by Keras."""

    endpoint: str
    severity: keras.Model
    other: Callable[[], attention.Cut]

    def explained(self, target: Target) -> keras.Model:
        """See `attention.Cut`."""
        if target is attention.expected_class:
            return self.severity
        return self.other().explained(target)


class KeptStages(Stages):
    """The stages of one network, from a folder.

    Args:
        network: What is known of it; it is its own identity.
        prepare, classify, step: Its graphs.
        other: Its network, built after all, for what was not kept.
    """

    def __init__(
        self,
        network: KeptNetwork,
        prepare: Any,  # noqa: ANN401  # a function of TensorFlow, like the next two
        classify: Any,  # noqa: ANN401
        step: Any,  # noqa: ANN401
        other: Callable[[], attention.Cut],
    ) -> None:
        self.model, self.clip = network, network.clip
        depth, height, width = (Axis(step, first) for step, first in network.axes)
        self.axes = (depth, height, width)
        self._prepare, self._classify = prepare, classify

        def differentiated(features: Tensor) -> tuple[Tensor, Tensor]:
            outputs = step(features)
            return outputs["value"], outputs["gradient"]

        self.split = _KeptSplit(
            network.endpoint, attention.explained_by(differentiated, network.features), other
        )

    def prepare(self, hu: Tensor, probability: Tensor) -> dict[str, Tensor]:
        """See `Stages.prepare`."""
        return cast(dict[str, Tensor], self._prepare(hu, probability))

    def classify(self, clip: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Stages.classify`."""
        outputs = dict(self._classify(clip))
        return outputs.pop("features"), outputs


class GraphModels(StagedModels):
    """Models from a folder of kept graphs: nothing is built, nothing traced.

    Args:
        folder: The folder.
        load: Builds the same models, for what was not kept.

    Raises:
        OSError, ValueError, KeyError, TypeError: If the folder is not what was kept.
    """

    def __init__(self, folder: Path, load: Callable[[], LocalModels]) -> None:
        facts = KeptModels.model_validate_json((folder / FACTS).read_bytes())
        self._load = load
        self._loaded: LocalModels | None = None
        self.task: str = facts.task
        self.finds_disease, self.finds_lobes = facts.finds_disease, facts.finds_lobes
        self.other_lungs, self.lungs_grid = facts.other_lungs, facts.lungs_grid
        self.weights_sha256, self.files_sha256 = facts.weights_sha256, facts.files_sha256
        with np.load(folder / WEIGHTS, allow_pickle=False) as arrays:
            values = dict(arrays)
        #: TensorFlow holds variables by their handles alone, which do not keep them.
        self._weights: dict[str, Any] = {}
        for graph in facts.graphs.values():
            for placeholder, name in graph.weights.items():
                made = tf.Variable if placeholder in graph.variables else tf.constant
                if name not in self._weights:
                    self._weights[name] = made(values[name])
        graphs = {
            name: _function(folder / f"{name}.pb", graph, self._weights)
            for name, graph in facts.graphs.items()
        }
        self._segment = graphs["segment"]
        self.members = [
            KeptStages(
                network,
                graphs[f"prepare-{index}"],
                graphs[f"classify-{index}"],
                graphs[f"explain-{index}"],
                self._split(index),
            )
            for index, network in enumerate(facts.networks)
        ]

    def find_lungs(self, hu: Tensor, depth: Tensor) -> dict[str, Tensor]:
        """See `StagedModels.find_lungs`."""
        return cast(dict[str, Tensor], self._segment(hu, depth))

    def _split(self, index: int) -> Callable[[], attention.Cut]:
        def split() -> attention.Cut:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded.members[index].split

        return split


def _key(sources: Sequence[str], behind: Behind, precision: str, files: Sequence[str]) -> str:
    """What decides the graphs: weights, options, code, libraries, and the kinds of devices."""
    libraries = ("tensorflow", "keras", "numpy")
    devices = sorted({device.device_type for device in tf.config.list_physical_devices()})
    return cache.key_of(
        [
            _FORMAT,
            behind.decides(sources, files),
            precision,
            [metadata.version(name) for name in libraries],
            devices,
        ]
    )


def _kept(folder: Path, load: Callable[[], LocalModels]) -> GraphModels | None:
    """The models of a folder; None if it is not there, or is not what was written."""
    with suppress(*_UNREADABLE):
        graphs = {path.name for path in folder.glob("*.pb")}
        if cache.intact(folder) >= {FACTS, WEIGHTS, *graphs}:
            models = GraphModels(folder, load)
            with suppress(OSError):
                os.utime(folder)  # for `_remove_unused`
            return models
    return None


def _keep(models: LocalModels, folder: Path, on_message: Callable[[str], None]) -> None:
    """Write the graphs of models into a folder, as a whole or not at all; a line says which."""
    arrays: dict[str, np.ndarray] = {}
    names: dict[int, str] = {}
    traced = {name: _described(function, arrays, names) for name, function in _traced(models)}
    facts = KeptModels(
        task=cast(Literal["severity", "covid"], models.task),
        finds_disease=models.finds_disease,
        finds_lobes=models.finds_lobes,
        other_lungs=models.other_lungs,
        lungs_grid=models.lungs_grid,
        weights_sha256=models.weights_sha256,
        files_sha256=models.files_sha256,
        networks=[_network(member) for member in models.members],
        graphs={name: graph for name, (graph, _) in traced.items()},
    )
    try:
        with _KEEPING:
            make_folder(folder.parent)
            with replacing_folder(folder) as made, output_errors(made):
                for name, (_, definition) in traced.items():
                    (made / f"{name}.pb").write_bytes(definition)
                np.savez(made / WEIGHTS, allow_pickle=False, **arrays)
                (made / FACTS).write_text(facts.model_dump_json(), encoding="utf-8")
                cache.seal(made, sorted(path.name for path in made.iterdir()))
    except OutputError as error:
        on_message(f"the next start will take as long: no graphs can be kept ({error})")
        return
    on_message(f"graphs are kept for the next start: {folder}")
    _remove_unused(folder.parent)


def _traced(models: LocalModels) -> Iterator[tuple[str, Any]]:
    """Every graph by its name, with its outputs by theirs; each is traced here, once."""
    yield "segment", models.segment_graph.get_concrete_function()
    for index, member in enumerate(models.members):
        yield f"prepare-{index}", member.prepare_graph.get_concrete_function()
        yield f"classify-{index}", member.classify_graph.get_concrete_function()
        features = tf.TensorSpec([1, *_features(member)], tf.float32)
        step = member.split.step(attention.expected_class)
        yield f"explain-{index}", step.get_concrete_function(features)


def _features(member: EnsembleMember) -> tuple[int, int, int, int]:
    frames, height, width, channels = member.split.tie_sharing_head.input_shape[1:]
    return frames, height, width, channels


def _network(member: EnsembleMember) -> KeptNetwork:
    depth, height, width = ((axis.step, axis.first) for axis in member.axes)
    model = member.model
    return KeptNetwork(
        name=model.name,
        sha256=model.sha256,
        # Not which scans it was trained on: no answer needs that.
        contract=Contract(**model.contract.model_dump(mode="json", exclude={"trained_on"})),
        clip=member.clip,
        axes=(depth, height, width),
        endpoint=member.split.endpoint,
        features=_features(member),
    )


def _described(
    function: Any,  # noqa: ANN401  # a concrete function of TensorFlow
    arrays: dict[str, np.ndarray],
    names: dict[int, str],
) -> tuple[KeptGraph, bytes]:
    """A graph and its definition; what it captured goes into `arrays`, each once.

    Args:
        function: The traced function.
        arrays: Arrays by name.
        names: Names by the identity of the captured tensor.
    """
    captured = function.captured_inputs
    own, placeholders = _halves(function.inputs, len(captured))
    variables = {id(variable.handle): variable for variable in function.variables}
    weights, of_variables = {}, set()
    for placeholder, tensor in zip(placeholders, captured, strict=True):
        variable = variables.get(id(tensor))
        if id(tensor) not in names:
            name = names[id(tensor)] = f"w{len(names)}"
            arrays[name] = (tensor if variable is None else variable).numpy()
        weights[placeholder.name] = names[id(tensor)]
        if variable is not None:
            of_variables.add(placeholder.name)
    graph = KeptGraph(
        inputs=tuple((tensor.name, tuple(tensor.shape), tensor.dtype.name) for tensor in own),
        outputs={name: tensor.name for name, tensor in _named(function.structured_outputs)},
        weights=weights,
        variables=frozenset(of_variables),
    )
    return graph, function.graph.as_graph_def().SerializeToString()


def _halves(inputs: Sequence[Tensor], captured: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Inputs of a traced function: its own, and the placeholders of what it captured."""
    own = len(inputs) - captured
    return inputs[:own], inputs[own:]


def _named(outputs: Any) -> Iterator[tuple[str, Tensor]]:  # noqa: ANN401  # as TensorFlow nests them
    """Outputs of a stage with their names."""
    if isinstance(outputs, Mapping):
        yield from outputs.items()
        return
    first, second = outputs
    if isinstance(second, Mapping):
        yield "features", first
        yield from second.items()
    else:
        yield from (("value", first), ("gradient", second))


def _function(path: Path, graph: KeptGraph, weights: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """A kept graph as a function of its inputs, which gives its outputs by name."""
    definition = tf.compat.v1.GraphDef()
    try:
        definition.ParseFromString(path.read_bytes())
    except Exception as error:  # whichever class this protobuf raises
        raise ValueError(f"{path.name} is no graph") from error

    def imported(*inputs: Tensor) -> dict[str, Tensor]:
        given = {name: tensor for (name, _, _), tensor in zip(graph.inputs, inputs, strict=True)}
        for placeholder, name in graph.weights.items():
            held = weights[name]
            # A tensor of this graph, which captures the weight.
            handle = held.handle if placeholder in graph.variables else held
            given[placeholder] = tf.convert_to_tensor(handle)
        outputs = tf.graph_util.import_graph_def(
            definition, input_map=given, return_elements=list(graph.outputs.values()), name=""
        )
        return dict(zip(graph.outputs, outputs, strict=True))

    # Unlike `tf.function`, it makes the functions within the graph known to the runtime, too.
    return tf.compat.v1.wrap_function(
        imported, [tf.TensorSpec(shape, dtype) for _, shape, dtype in graph.inputs]
    )


def _remove_unused(folder: Path) -> None:
    """Remove all kept graphs but those that were used last."""
    with suppress(OSError):
        folders = sorted(
            # Not what another process is just writing, whose name is hidden.
            (path for path in folder.glob("[!.]*") if (path / FACTS).exists()),
            key=lambda path: path.stat().st_mtime,
        )
        for path in folders[:-KEPT]:
            shutil.rmtree(path, ignore_errors=True)
