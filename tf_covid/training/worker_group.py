"""Several processes that train one network: TensorFlow's collectives, and what is ours about them.

Each worker's network answers its part of every batch; answers are put together and gradients added
up over all of them, so that all have the same weights. The chief alone validates, decides and
writes: whatever it knows at the end of an epoch goes to the others. Keras 3 cannot `fit` within
`MultiWorkerMirroredStrategy`; here the variables are each worker's own, and the strategy is used
for its collectives only.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import keras
import numpy as np
import tensorflow as tf

from tf_covid.atomic import write_text
from tf_covid.errors import TrainingError
from tf_covid.tensor import Tensor
from tf_covid.training.tf_config import TfConfig

Value = TypeVar("Value")

#: What TensorFlow raises where another process is gone.
_GONE = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)

#: Bytes of a message that are sent at a time.
_PIECE_BYTES = 32 << 20

#: Seconds that TensorFlow may take to connect workers that have just met; then the process ends.
CONNECT_S = 120.0


class WorkerGroup:
    """The workers of one training, connected; made before TensorFlow computes anything.

    Args:
        config: The workers.
    """

    def __init__(self, config: TfConfig) -> None:
        self.index, self.count, self.is_chief = (
            config.index,
            len(config.addresses),
            config.is_chief,
        )
        # A process a device: what more there is belongs to another worker.
        tf.config.set_visible_devices(tf.config.list_physical_devices("GPU")[:1], "GPU")
        before = signal.getsignal(signal.SIGTERM)
        with Path(os.devnull).open("w") as nowhere:
            # TensorFlow waits without an end, and holds the interpreter meanwhile.
            faulthandler.dump_traceback_later(CONNECT_S, exit=True, file=nowhere)
            try:
                self._strategy = tf.distribute.MultiWorkerMirroredStrategy(
                    tf.distribute.cluster_resolver.SimpleClusterResolver(
                        tf.train.ClusterSpec({"worker": list(config.addresses)}),
                        task_type="worker",
                        task_id=config.index,
                        rpc_layer="grpc",
                    )
                )
            except (tf.errors.OpError, RuntimeError, ValueError) as error:
                raise TrainingError(
                    f"workers_unconnected: worker {self.index} ({config.addresses[self.index]}):"
                    f" {_line(error)}"
                ) from error
            finally:
                faulthandler.cancel_dump_traceback_later()
        # TensorFlow has taken it to hear of machines that are withdrawn, and does nothing with it.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
        self._sum_bytes = tf.function(
            self.total, input_signature=[tf.TensorSpec([None], tf.int32)], autograph=False
        )

    def total(self, values: Tensor) -> Tensor:
        """The sums over all workers of a tensor, or of a nest of tensors; called by all of them."""

        def add(local: Tensor) -> Tensor:
            # A value of the graph around has no device, which the collective has to know.
            local = tf.nest.map_structure(tf.identity, local)
            return tf.distribute.get_replica_context().all_reduce("SUM", local)

        return self._strategy.run(tf.autograph.experimental.do_not_convert(add), args=(values,))

    def part(self, batch: Tensor) -> Tensor:
        """The rows of this worker, of a nest of tensors with a batch's rows."""

        def rows(value: Tensor) -> Tensor:
            each = tf.shape(value)[0] // self.count
            return value[self.index * each : (self.index + 1) * each]

        return tf.nest.map_structure(rows, batch)

    def gathered(self, outputs: Tensor) -> Tensor:
        """The rows of all workers in their order, of a nest of tensors; each learns by its own."""

        def whole(own: Tensor) -> Tensor:
            each = tf.shape(own)[0]
            before, after = self.index * each, (self.count - 1 - self.index) * each
            pads = [[before, after], *([[0, 0]] * (len(own.shape) - 1))]
            return tf.pad(own, pads)

        own = tf.nest.map_structure(whole, outputs)
        total = self.total(tf.nest.map_structure(tf.stop_gradient, own))
        return tf.nest.map_structure(
            lambda rows, sums: sums + (rows - tf.stop_gradient(rows)), own, total
        )

    def from_chief(self, message: bytes) -> bytes:
        """The chief's message, for all workers; what others give is not looked at.

        Bits are added to zeros, as integers: nothing is rounded.
        """
        own = message if self.is_chief else b""
        length = int(self._sum_bytes(np.array([len(own)], np.int32)).numpy()[0])
        results = bytearray()
        for first in range(0, length, _PIECE_BYTES):
            size = min(_PIECE_BYTES, length - first)
            numbers = np.zeros(-(-size // 4), np.int32)
            if self.is_chief:
                numbers.view(np.uint8)[:size] = np.frombuffer(own, np.uint8, size, first)
            results += self._sum_bytes(numbers).numpy().tobytes()[:size]
        return bytes(results)

    def decides(self, answer: bool) -> bool:
        """What the chief answers."""
        return self.from_chief(b"1" if answer else b"0") == b"1"

    def after_chief(self, folder: Path, names: Sequence[str], work: Callable[[], Value]) -> Value:
        """Do something on the chief first, and then on all the others.

        Args:
            folder: Folder of the run.
            names: Files in it that the others are given as the chief has left them.
            work: What is done.
        """
        if not self.is_chief:
            for name, text in json.loads(self.from_chief(b"")).items():
                write_text(text, folder / name)
            return work()
        done = work()
        files = {name: folder / name for name in names}
        texts = {name: path.read_text("utf-8") for name, path in files.items() if path.exists()}
        self.from_chief(json.dumps(texts).encode())
        return done

    @contextmanager
    def together(self) -> Iterator[None]:
        """Leave the block together, the chief with all its files written.

        Raises:
            TrainingError: If another worker is gone.
        """
        try:
            yield
            self.from_chief(b"done")
        except tf.errors.OpError as error:
            if not isinstance(error, _GONE) and "collective" not in str(error).lower():
                raise
            raise TrainingError(
                f"worker_lost: worker {self.index} does not reach another worker any more, whose"
                " own lines may say why; start all workers again, with --resume: the run goes on"
                f" after its last whole epoch ({type(error).__name__})"
            ) from error


def with_parts_dropped(network: keras.Model, group: WorkerGroup) -> keras.Model:
    """The network with `PartDropout` in place of dropout; the weights are in the same order."""

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        if type(layer) is keras.layers.Dropout:
            return PartDropout.of(layer, group)
        return layer.__class__.from_config(layer.get_config())

    copy = keras.models.clone_model(network, clone_function=clone)
    copy.set_weights(network.get_weights())
    return copy


class PartDropout(keras.layers.Dropout):
    """Dropout that is drawn for the whole batch, of which each worker has a part.

    All workers draw from the same state: of their own rows alone they would all drop the same.
    """

    group: WorkerGroup

    @classmethod
    def of(cls, layer: keras.layers.Dropout, group: WorkerGroup) -> PartDropout:
        """The same layer, for a worker of a group."""
        made: PartDropout = cls.from_config(layer.get_config())
        made.group = group
        # Made anew it has a seed of its own; this one draws what the layer would have drawn.
        made.seed_generator.state.assign(layer.seed_generator.state)
        return made

    def call(self, inputs: Tensor, training: bool = False) -> Tensor:
        """Drop in training."""
        if not training or not self.rate:
            return inputs
        shape = tf.shape(inputs)
        whole = tf.ones(tf.concat([shape[:1] * self.group.count, shape[1:]], 0), inputs.dtype)
        return inputs * self.group.part(super().call(whole, training=True))


def _line(error: Exception) -> str:
    return " ".join(str(getattr(error, "message", None) or error).split())[:200]
