"""One version of a model: its signatures, loaded and warmed up; it knows who still needs it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from tf_covid.errors import ModelError, ServingError
from tf_covid.export import graph_ops
from tf_covid.server import tensor_proto
from tf_covid.server.errors import Failed, InvalidArgument, OutOfMemory, RequestError
from tf_covid.server.tensor_spec import TensorSpec
from tf_covid.tensor import Message
from tf_covid.weights import Contract
from tf_covid.weights.contract import check_trained

#: The signature of a request that names none.
DEFAULT = "serving_default"

#: Most requests that a warm-up replays; TF Serving's limit.
MOST_WARMUPS = 1000

WARMUP = Path("assets.extra") / "tf_serving_warmup_requests"

#: The card of an export of ours, and the most bytes of it that are read.
CARD, _MOST_CARD = Path("assets.extra") / "model_card.json", 1_000_000

#: Largest `saved_model.pb` that is read, in bytes: protobuf's own limit.
_MOST_GRAPH = 2**31 - 1

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class SignatureRunner:
    """A signature that can be called.

    Args:
        name: Name of the signature.
        inputs, outputs: What it takes and gives, by name.
        function: TensorFlow's function.
    """

    name: str
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    function: Callable[..., Any]

    @property
    def batchable(self) -> bool:
        """Whether rows of several requests may be computed together.

        Those of a clip, each for itself.
        """
        clips = self.name == "classify_clip" or (
            self.name == DEFAULT and set(self.inputs) == {"clip"}
        )
        # An output of unknown rank may do; whether it has a row for each input row is seen when it
        # is there.
        takes = all(spec.shape and spec.shape[0] is None for spec in self.inputs.values())
        gives = all(
            spec.shape is None or spec.shape[:1] == (None,) for spec in self.outputs.values()
        )
        return clips and bool(self.inputs) and takes and gives

    def check(self, inputs: Arrays) -> None:
        """Compare names and shapes with those of the signature, and see that numbers are numbers.

        Raises:
            InvalidArgument: If they do not agree, or a number is NaN or infinite.
        """
        if set(inputs) != set(self.inputs):
            extra, missing = set(inputs) - set(self.inputs), set(self.inputs) - set(inputs)
            raise InvalidArgument(
                f"input size does not match signature: {len(inputs)}!={len(self.inputs)}. Sent"
                f" extra: {{{_listed(extra)}}}. Missing but required: {{{_listed(missing)}}}."
            )
        for name, spec in self.inputs.items():
            spec.check(inputs[name])
            spec.check_numbers(inputs[name])

    def run(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Compute the outputs.

        Raises:
            InvalidArgument: If the graph finds fault with the inputs.
            OutOfMemory: If it needs more memory than there is.
            Failed: If it fails otherwise.
        """
        try:
            tensors = {
                name: tf.constant(array, self.inputs[name].dtype) for name, array in inputs.items()
            }
            answer = self.function(**tensors)
            return {name: _as_array(answer[name]) for name in self.outputs}
        except (
            tf.errors.InvalidArgumentError,
            tf.errors.OutOfRangeError,
            TypeError,
            ValueError,
        ) as error:
            raise InvalidArgument(_first_line(error)) from error
        except (tf.errors.ResourceExhaustedError, MemoryError) as error:
            raise OutOfMemory(_first_line(error)) from error
        except tf.errors.OpError as error:
            raise Failed(_first_line(error)) from error


class Version:
    """A loaded version of a model.

    Whoever uses it holds a lease; once retired, the last one to leave drops it.

    Args:
        name: Name of the model.
        number: Number of the version.
        runners: Signatures of the model, by name.
        signature_defs: The same as TF Serving tells them, by name, `SignatureDef`.
        loaded: What keeps its variables alive.
    """

    def __init__(
        self,
        name: str,
        number: int,
        runners: Mapping[str, SignatureRunner],
        signature_defs: Mapping[str, Any],
        loaded: Message,
    ) -> None:
        self.name = name
        self.number = number
        self.signature_defs = signature_defs
        self._runners = dict(runners)
        self._loaded = loaded
        self._lock = threading.Lock()
        self._leases = 0
        self._when_drained: Callable[[], None] | None = None

    @property
    def signatures(self) -> tuple[str, ...]:
        """Names of what can be asked for."""
        return tuple(self._runners)

    def runner(self, signature: str) -> SignatureRunner:
        """The signature of that name; "" is the default one.

        Raises:
            InvalidArgument: If there is none.
        """
        name = signature or DEFAULT
        if name not in self._runners:
            raise InvalidArgument(
                f'Serving signature name: "{name[:200]}" not found in signature def'
            )
        return self._runners[name]

    @contextmanager
    def lease(self) -> Iterator[Version]:
        """Keep it loaded while the block runs."""
        self.hold()
        try:
            yield self
        finally:
            self.release()

    def hold(self) -> None:
        """Keep it loaded until `release`.

        Only the repository, or who holds a lease, may do this.
        """
        with self._lock:
            self._leases += 1

    def release(self) -> None:
        """Give a lease back."""
        with self._lock:
            self._leases -= 1
        self._drop_if_drained()

    def retire(self, when_drained: Callable[[], None]) -> None:
        """Drop it as soon as nobody holds a lease, then call back.

        No new leases after this but by who holds one.
        """
        with self._lock:
            self._when_drained = when_drained
        self._drop_if_drained()

    def _drop_if_drained(self) -> None:
        with self._lock:
            if self._leases or self._when_drained is None:
                return
            done, self._when_drained = self._when_drained, None
            self._runners, self._loaded = {}, None
        done()


def load(name: str, number: int, folder: Path) -> Version:
    """Load a version, check its graph, and replay its warm-up requests.

    Args:
        name: Name of the model.
        number: Number of the version.
        folder: Where its `saved_model.pb` is.

    Raises:
        ServingError: If it cannot be read, is not safe to run, or a warm-up request fails.
    """
    try:
        path = folder / "saved_model.pb"
        if path.stat().st_size > _MOST_GRAPH:
            raise ServingError("saved_model.pb is too large")
        saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
        graphs = [graph for graph in saved.meta_graphs if "serve" in graph.meta_info_def.tags]
        if len(saved.meta_graphs) != 1 or not graphs:
            raise ServingError("saved_model.pb must hold one graph, with the tag 'serve'")
        graph_ops.check(graphs[0])
        _check_head(folder / CARD)
        loaded = tf.saved_model.load(str(folder), tags=["serve"])
        definitions = dict(graphs[0].signature_def)
        runners = {
            key: _runner(key, definitions[key], loaded.signatures[key]) for key in loaded.signatures
        }
        if not runners:
            raise ServingError("it has no signatures")
        version = Version(name, number, runners, definitions, loaded)
        _warm_up(version, folder / WARMUP)
        return version
    except ServingError:
        raise
    except DecodeError as error:
        raise ServingError("saved_model.pb is damaged") from error
    # TensorFlow's loader raises nearly anything for a damaged file; the old one must stay
    except Exception as error:
        raise ServingError(
            f"cannot be loaded: {type(error).__name__}: {_first_line(error)}"
        ) from error


def _check_head(model_card: Path) -> None:
    """Refuse an export of an untrained head that was made before `export` refused it.

    Others' exports have no card.
    """
    try:
        facts = (
            json.loads(model_card.read_text("utf-8"))
            if model_card.stat().st_size < _MOST_CARD
            else {}
        )
        contract = Contract(**{key: facts[key] for key in Contract.model_fields if key in facts})
    except (OSError, ValueError, TypeError, AttributeError):
        return
    try:
        check_trained(str(facts.get("name", "it")), contract)
    except ModelError as error:
        raise ServingError(str(error)) from error


def _runner(name: str, definition: Message, function: Message) -> SignatureRunner:
    inputs = {key: TensorSpec.of(key, info) for key, info in definition.inputs.items()}
    outputs = {key: TensorSpec.of(key, info) for key, info in definition.outputs.items()}
    return SignatureRunner(name, inputs, outputs, function)


def _warm_up(version: Version, path: Path) -> None:
    """Answer the requests that the export brought along, so that no client waits for compilers."""
    if not path.is_file():
        return
    for index, record in enumerate(
        tf.data.TFRecordDataset(str(path)).take(MOST_WARMUPS).as_numpy_iterator()
    ):
        log = prediction_log_pb2.PredictionLog.FromString(record)
        if log.WhichOneof("log_type") != "predict_log":
            raise ServingError(f"warm-up request {index} is no predict_log")
        request = log.predict_log.request
        try:
            runner = version.runner(request.model_spec.signature_name)
            inputs = tensor_proto.to_arrays(request.inputs, runner.inputs, _MOST_GRAPH)
            runner.check(inputs)
            runner.run(inputs)
        except RequestError as error:
            raise ServingError(f"warm-up request {index} fails: {error}") from error


def _as_array(tensor: Message) -> np.ndarray:
    array = tensor.numpy()
    return np.asarray(array, object) if tensor.dtype == tf.string else np.asarray(array)


def _listed(names: set[str]) -> str:
    return ",".join(sorted(name[:100] for name in names)[:20])


#: Lines of TensorFlow's errors that tell where in somebody's code, not what.
_WHERE = (
    "Graph execution error",
    "Detected at node",
    "Stack trace for op",
    "in user code",
    "File ",
    "[[",
    "<stack",
)


def _first_line(error: Exception) -> str:
    """What went wrong, without TensorFlow's trace through the code of whoever made the model."""
    text = error.message if isinstance(error, tf.errors.OpError) else str(error)
    lines = [line for line in text.splitlines() if line.strip()]
    said = [
        line for line in lines if not line[0].isspace() and not line.startswith(_WHERE)
    ] or lines[-1:]
    return (said[0].strip() if said else type(error).__name__)[:500]
