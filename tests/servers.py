"""Small real models, and servers of them on free ports of this machine."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra [serve]")
pytest.importorskip("tensorflow_serving.apis", reason="needs the extra [serve]")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import grpc
import tensorflow as tf
from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

from tf_covid.server.server import Server
from tf_covid.server.settings import ServerSettings

#: Seconds after which a test gives up; none waits for so long on a machine that works.
PATIENCE_S = 60.0


class Linear(tf.Module):
    """y = factor · x, and which version said so."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = tf.Variable(factor)

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
    def serving_default(self, x: Any) -> dict[str, Any]:
        return {
            "y": x * self.factor,
            "version": tf.fill([tf.shape(x)[0]], tf.cast(self.factor, tf.int32)),
        }

    @tf.function(input_signature=[tf.TensorSpec([None, 3], tf.float32, name="x")])
    def only_y(self, x: Any) -> dict[str, Any]:
        return {"y": x * self.factor}


class Types(tf.Module):
    """Whole numbers, strings, two inputs, odd floats, scalars."""

    @tf.function(input_signature=[tf.TensorSpec([None, None, None], tf.int16, name="hu")])
    def serving_default(self, hu: Any) -> dict[str, Any]:
        return {
            "total": tf.reduce_sum(tf.cast(hu, tf.int64), [1, 2]),
            "mean": tf.reduce_mean(tf.cast(hu, tf.float32)),
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="data")])
    def strings(self, data: Any) -> dict[str, Any]:
        return {"length": tf.strings.length(data), "same": data, "same_bytes": data}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.float32, name="a"),
            tf.TensorSpec([None, 2], tf.uint8, name="b"),
        ]
    )
    def two(self, a: Any, b: Any) -> dict[str, Any]:
        return {"sum": a + tf.reduce_sum(tf.cast(b, tf.float32), 1)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def divide(self, x: Any) -> dict[str, Any]:
        return {"y": x / 0.0}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.bool, name="x")])
    def invert(self, x: Any) -> dict[str, Any]:
        return {"y": tf.logical_not(x)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float16, name="x")])
    def half(self, x: Any) -> dict[str, Any]:
        return {"y": x * 2}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.uint64, name="x")])
    def huge(self, x: Any) -> dict[str, Any]:
        return {"y": x}


class Clips(tf.Module):
    """One logit a clip, which fails for a clip that is not a number."""

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32, name="clip")])
    def serving_default(self, clip: Any) -> dict[str, Any]:
        return {
            "logits": tf.reduce_sum(tf.debugging.check_numerics(clip, "clip"), 1, keepdims=True)
        }


def _queue() -> Any:
    return tf.raw_ops.FIFOQueueV2(
        component_types=[tf.float32], shapes=[[]], capacity=10_000, shared_name="gate"
    )


class Gate(tf.Module):
    """Computes for as long as the test wants.

    Each request waits until somebody has opened the gate for it.
    """

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def serving_default(self, x: Any) -> dict[str, Any]:
        return {
            "y": x + tf.raw_ops.QueueDequeueV2(handle=_queue(), component_types=[tf.float32])[0]
        }

    @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.float32, name="clip")])
    def classify_clip(self, clip: Any) -> dict[str, Any]:
        wait = tf.raw_ops.QueueDequeueV2(handle=_queue(), component_types=[tf.float32])[0]
        rows = tf.fill([tf.shape(clip)[0]], tf.shape(clip)[0])
        return {"logits": clip * 2 + wait, "together": rows}

    @tf.function(input_signature=[tf.TensorSpec([], tf.float32, name="value")])
    def open(self, value: Any) -> dict[str, Any]:
        tf.raw_ops.QueueEnqueueV2(handle=_queue(), components=[value])
        return {"put": value}


class Reads(tf.Module):
    """Reads any file of the machine."""

    @tf.function(input_signature=[tf.TensorSpec([], tf.string, name="path")])
    def serving_default(self, path: Any) -> dict[str, Any]:
        return {"text": tf.io.read_file(path)}


class Saves(tf.Module):
    """Writes a file with the saver's own operation."""

    @tf.function(input_signature=[tf.TensorSpec([], tf.string, name="path")])
    def serving_default(self, path: Any) -> dict[str, Any]:
        tf.raw_ops.SaveV2(
            prefix=path, tensor_names=["x"], shape_and_slices=[""], tensors=[tf.constant(1.0)]
        )
        return {"path": path}


class Python(tf.Module):
    """Runs Python."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def serving_default(self, x: Any) -> dict[str, Any]:
        return {"y": tf.numpy_function(np.negative, [x], tf.float32)}


class Infers(tf.Module):
    """Has the signature of a model that answers whole scans."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="scan")])
    def infer_bytes(self, scan: Any) -> dict[str, Any]:
        return {"length": tf.strings.length(scan)}


_MODELS: dict[str, tuple[Callable[[], tf.Module], tuple[str, ...]]] = {
    "linear-1": (lambda: Linear(1.0), ("serving_default", "only_y")),
    "linear-2": (lambda: Linear(2.0), ("serving_default", "only_y")),
    "linear-3": (lambda: Linear(3.0), ("serving_default", "only_y")),
    "types": (Types, ("serving_default", "strings", "two", "divide", "invert", "half", "huge")),
    "clips": (Clips, ("serving_default",)),
    "gate": (Gate, ("serving_default", "classify_clip", "open")),
    "reads": (Reads, ("serving_default",)),
    "saves": (Saves, ("serving_default",)),
    "python": (Python, ("serving_default",)),
    "infers": (Infers, ("infer_bytes",)),
}


class Store:
    """A folder of models, and the exports that may be put there.

    Args:
        exports: Folder of the exports, which are made once.
        folder: Of the models.
    """

    def __init__(self, exports: Path, folder: Path) -> None:
        self._exports = exports
        self.folder = folder

    def export(self, kind: str) -> Path:
        """The export of a kind."""
        path = self._exports / kind
        if not path.exists():
            build, names = _MODELS[kind]
            module = build()
            tf.saved_model.save(
                module, str(path), signatures={name: getattr(module, name) for name in names}
            )
        return path

    def put(self, kind: str, name: str, version: int = 1) -> Path:
        """Put an export there, as a whole."""
        target = self.folder / name / str(version)
        partial = self.folder / f".{name}-{version}"
        shutil.copytree(self.export(kind), partial)
        target.parent.mkdir(exist_ok=True)
        partial.rename(target)
        return target


@dataclass(frozen=True)
class SmallFiles:
    """A U-Net set by hand, lung below −400 HU and disease above −700, a random lobe network that
    takes most of a scan for lobes, and two random networks behind them."""

    lungs: Path
    lobes: Path
    network: Path
    other: Path


@pytest.fixture(scope="session")
def small_files(tmp_path_factory: pytest.TempPathFactory, threshold_unet: Any) -> SmallFiles:
    import keras

    from tf_covid.layers.lobes import WIDE_LEVEL_HU, WIDE_WIDTH_HU
    from tf_covid.models import NETWORKS
    from tf_covid.tissues import CLASSES
    from tf_covid.weights import Contract, Preprocessing
    from tf_covid.weights.files import save_model

    wide = Preprocessing(level_hu=WIDE_LEVEL_HU, width_hu=WIDE_WIDTH_HU)
    folder = tmp_path_factory.mktemp("small")
    arguments: dict[str, Any] = {"input_shape": [64, 64, 1], "depth": 1, "filters": 4, "outputs": 2}
    made = SmallFiles(
        *(folder / f"{name}.keras" for name in ("lungs", "lobes", "network", "other"))
    )
    contract = Contract(model="unet", arguments=arguments, task="lungs", note="By hand.")
    save_model(threshold_unet(arguments), contract, made.lungs)
    arguments = {"input_shape": [16, 16, 24, 1], "depth": 2, "filters": 2, "outputs": len(CLASSES)}
    contract = Contract(
        model="unet3d", arguments=arguments, task="lobes", preprocessing=wide, note="Random."
    )
    keras.utils.set_random_seed(7)
    network = NETWORKS["unet3d"].build(**arguments)
    # All is right lung: sides at random would leave no lung in one piece.
    likely = [4.0 if index in range(1, 4) else 0.0 for index in range(len(CLASSES))]
    network.get_layer("logits").bias.assign(likely)
    save_model(network, contract, made.lobes)
    arguments = {"input_shape": [16, 32, 32, 1], "dense": 8, "ct_score": True}
    contract = Contract(
        model="ltc", arguments=arguments, task="severity", endpoint="conv2", note="Random."
    )
    for seed, path in enumerate((made.network, made.other)):
        keras.utils.set_random_seed(seed)
        save_model(NETWORKS["ltc"].build(**arguments), contract, path)
    return made


@contextmanager
def _lungs_of(files: SmallFiles) -> Iterator[None]:
    """The lung models of `files` in the place of the shipped ones, while models are loaded."""
    from tf_covid import local

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "LUNGS", files.lungs)
        patch.setattr(local, "default_lobes", lambda contracts: files.lobes)
        yield


@pytest.fixture
def small_lungs(small_files: SmallFiles) -> Iterator[None]:
    """What is loaded in this test is loaded behind the U-Net of `small_files`."""
    with _lungs_of(small_files):
        yield


@pytest.fixture(scope="session")
def small_models(small_files: SmallFiles) -> Any:
    from tf_covid.local import LocalModels

    with _lungs_of(small_files):
        return LocalModels([small_files.network])


@pytest.fixture(scope="session")
def small_export(small_files: SmallFiles, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The export of `small_files`, as `small/1` and `small-clip/1`."""
    from tf_covid.export.savedmodel import export

    with _lungs_of(small_files):
        return export(small_files.network, tmp_path_factory.mktemp("served") / "small")


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.fixture
def store(exports: Path, tmp_path: Path) -> Store:
    folder = tmp_path / "models"
    folder.mkdir()
    return Store(exports, folder)


@pytest.fixture(scope="session")
def new_store(exports: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Store]:
    return lambda: Store(exports, tmp_path_factory.mktemp("models"))


class Running:
    """A server that runs, and clients of it.

    Args:
        server: The server.
        stack: Closes what is opened.
    """

    def __init__(self, server: Server, stack: ExitStack) -> None:
        self.server = server
        token = server.settings.token
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self.http = stack.enter_context(
            httpx.Client(
                base_url=server.rest_url, timeout=PATIENCE_S, headers=headers, trust_env=False
            )
        )
        self.channel = stack.enter_context(
            grpc.insecure_channel(
                server.grpc_address,
                options=[
                    ("grpc.max_receive_message_length", -1),
                    ("grpc.max_send_message_length", -1),
                ],
            )
        )
        self.predict = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)

    def ask(self, model: str, body: dict[str, Any], **options: Any) -> httpx.Response:
        """`POST /v1/models/MODEL:predict`."""
        return self.http.post(f"/v1/models/{model}:predict", json=body, **options)

    def open_gate(self, model: str = "gate", value: float = 0.0) -> None:
        """Let one computation of `Gate` end; not through the queue, which may be full."""
        version = self.server.repository.available()[model]
        version.runner("open").run({"value": np.float32(value)})

    def until(self, what: Callable[[], object]) -> None:
        """Wait until something is so."""
        until(what)

    def in_thread(self, call: Callable[[], Any]) -> Later:
        """Start a call; its `result()` is what it gives."""
        return Later(call)


class Later:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:  # handed over to who asks for the result
            self._error = error

    def result(self) -> Any:
        """What the call gave."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the call has not ended"
        if self._error is not None:
            raise self._error
        return self._value


def until(what: Callable[[], object]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@pytest.fixture(name="until")
def _until() -> Callable[[Callable[[], object]], None]:
    return until


@pytest.fixture(name="later")
def _later() -> Callable[[Callable[[], Any]], Later]:
    return Later


def start_server(stack: ExitStack, store: Store, command: Any = None, **settings: Any) -> Running:
    """Start a server of a store; the stack stops it."""
    wanted = {"port": 0, "grpc_port": 0, "poll_s": 0.1, "grace_s": 5.0, **settings}
    server = stack.enter_context(Server(ServerSettings(models=store.folder, **wanted), command))
    names = [path.name for path in store.folder.iterdir() if not path.name.startswith(".")]
    assert not names or server.wait_until_ready(PATIENCE_S, *names)
    return Running(server, stack)


@pytest.fixture
def start(store: Store) -> Iterator[Callable[..., Running]]:
    """Start a server of `store`."""
    with ExitStack() as stack:
        yield lambda command=None, **settings: start_server(stack, store, command, **settings)


@pytest.fixture(scope="session")
def running(new_store: Callable[[], Store]) -> Iterator[Running]:
    """A server that tests share which leave it as it was."""
    store = new_store()
    store.put("linear-2", "linear", 7)
    store.put("types", "types")
    store.put("clips", "net-clip")
    with ExitStack() as stack:
        yield start_server(stack, store)


@pytest.fixture
def gate(start: Any, store: Any) -> Any:
    """Starts a server of a model that computes until the test opens its gate.

    Opens it at the end.
    """
    made = []

    def make(**settings: Any) -> Any:
        store.put("gate", "gate")
        made.append(start(**settings))
        return made[-1]

    yield make
    for running in made:
        if "gate" in running.server.repository.available():
            for _ in range(100):
                running.open_gate()
