"""One model with its lung models as an OpenVINO model: from int16 HU to all that `infer` needs.

It is read by OpenVINO's frontend itself, not by its converter tool, which would report its use to
its makers.
"""

from __future__ import annotations

import io
import tempfile
import threading
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tf_covid.atomic import make_folder, output_errors, replacing_folder
from tf_covid.errors import ModelError, ServingError
from tf_covid.exported import TOLERANCE, largest_difference
from tf_covid.extras import optional_import
from tf_covid.runtime import cache
from tf_covid.runtime.behind import Behind
from tf_covid.runtime.frontend import named, read_saved_model
from tf_covid.weights import catalog

if TYPE_CHECKING:
    from tf_covid.export.signatures import ServingModule

#: Files of a converted model: what OpenVINO compiled of it, and its card.
BLOB, CARD = "infer.blob", "card.json"

#: How OpenVINO computes: as exactly as Keras does, one scan at a time.
COMPILING = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}

_CONVERTING = threading.Lock()

#: Changes with what is written into the folder of a converted model.
_FORMAT = 1


def converted(
    source: str | Path,
    behind: Behind,
    on_message: Callable[[str], None] = lambda text: None,
) -> Path:
    """The folder of a converted model; it is converted now if it is not there or damaged.

    Args:
        source: Shipped name, or `.keras` file of task severity or covid.
        behind: Lung models.
        on_message: Called with a line where it is converted.

    Raises:
        ModelError: If a model is missing, damaged, foreign or untrained.
        ServingError: If OpenVINO is not installed, cannot take the model, or answers otherwise than
            TensorFlow.
        OutputError: If the folder cannot be written.
    """
    optional_import("openvino", "openvino")
    files = behind.files_sha256([source])
    folder = cache.cache_folder() / "openvino" / _key(source, behind, files)
    # Another thread that asks for the same finds it; another process makes its own, and one stays.
    with _CONVERTING:
        if cache.intact(folder) >= {BLOB, CARD}:
            return folder
        on_message(
            f"{catalog.name_of(source)} is converted for OpenVINO, once, into {folder}"
            + (": what was there is damaged" if folder.exists() else "")
        )
        make_folder(folder.parent)
        with replacing_folder(folder) as made:
            _convert(source, behind, files, made)
    return folder


def _key(source: str | Path, behind: Behind, files: Sequence[str]) -> str:
    """What decides a converted model: all weights, how they go together, and who did it."""
    core = optional_import("openvino", "openvino").Core()
    return cache.key_of(
        [
            _FORMAT,
            behind.decides([source], files),
            metadata.version("openvino"),
            # What is compiled for one processor is not for another.
            [
                core.get_property("CPU", name)
                for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")
            ],
        ]
    )


def _convert(source: str | Path, behind: Behind, files: Sequence[str], folder: Path) -> None:
    import tensorflow as tf

    from tf_covid.export.signatures import ServingModule
    from tf_covid.local import LocalModels

    core = optional_import("openvino", "openvino").Core()
    models = LocalModels(
        [source],
        lungs=behind.lungs,
        lobes=behind.lobes,
        allow_other_lungs=behind.allow_other_lungs,
    )
    if models.files_sha256 != list(files):
        raise ModelError(
            f"{catalog.name_of(source)}: its file, or a lung model's, changed while it was read"
        )
    serving = ServingModule(models)
    module = tf.Module()
    module.weights = serving.weights
    function = tf.function(serving.infer, autograph=False).get_concrete_function(
        hu=tf.TensorSpec([None] * 4, tf.int16, name="hu"),
        depth=tf.TensorSpec([None], tf.int32, name="depth"),
    )
    with tempfile.TemporaryDirectory() as saved:
        tf.saved_model.save(module, saved, signatures={"serving_default": function})
        try:
            # Compiled as it was read: the same graph, written as an IR and read again, gave other
            # gradients (OpenVINO 2026.4).
            compiled = core.compile_model(read_saved_model(Path(saved)), "CPU", COMPILING)
            blob = compiled.export_model()
            blob = blob if isinstance(blob, bytes) else blob.getvalue()
        except RuntimeError as error:
            raise ServingError(
                f"OpenVINO cannot take {catalog.name_of(source)}: {str(error)[:500]}"
            ) from error
    with output_errors(folder):
        (folder / BLOB).write_bytes(blob)
        (folder / CARD).write_text(serving.model_card, encoding="utf-8")
    _compare(Compiled(folder), serving)
    cache.seal(folder, (BLOB, CARD))


class Compiled:
    """A converted model, ready to answer.

    Args:
        folder: Folder of the converted model.
        threads: Threads that compute; None: one for each core.

    Raises:
        ServingError: If OpenVINO cannot read it.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        core = optional_import("openvino", "openvino").Core()
        try:
            blob = io.BytesIO((folder / BLOB).read_bytes())
            bound = {"INFERENCE_NUM_THREADS": threads} if threads else {}
            self._model = core.import_model(blob, "CPU", {**COMPILING, **bound})
        except (OSError, RuntimeError) as error:
            raise ServingError(
                f"OpenVINO cannot read {folder}: {str(error)[:300]}; remove it"
            ) from error

    def __call__(self, hu: np.ndarray) -> dict[str, np.ndarray]:
        """What `infer` of an export gives for one scan, int16 (D, H, W); N is 1.

        Raises:
            RuntimeError: If OpenVINO fails.
        """
        inputs = {"hu": hu[np.newaxis], "depth": np.array([len(hu)], np.int32)}
        return named(self._model(inputs))


def _compare(compiled: Compiled, serving: ServingModule) -> None:
    """See that a converted model answers as TensorFlow does, about two drawn scans.

    Raises:
        ServingError: If it does not.
    """
    import tensorflow as tf

    from tf_covid.export import warmup

    chest = warmup.chest()
    noise = np.random.default_rng(0).integers(-80, 80, chest.shape)
    diseased = chest.copy()
    diseased[len(chest) // 3 : len(chest) // 2, ::2] += 300
    for hu in (chest, (diseased + noise).astype(np.int16)):
        right = serving.infer(tf.constant(hu[np.newaxis]), tf.constant([len(hu)]))
        difference, where = largest_difference(
            {name: values.numpy() for name, values in right.items()}, compiled(hu)
        )
        if difference > TOLERANCE:
            raise ServingError(
                f"OpenVINO's {where} differs from TensorFlow's by {difference:.1e}; nothing of it"
                " is used: --runtime tensorflow"
            )
