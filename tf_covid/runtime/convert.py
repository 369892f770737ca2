"""One model with its lung models as an OpenVINO model: from int16 HU to all that `infer` needs.

It is read by OpenVINO's frontend itself, not by its converter tool, which would report its use to
its makers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tf_covid.atomic import make_folder, output_errors, replacing_folder
from tf_covid.errors import ServingError
from tf_covid.extras import optional_import
from tf_covid.runtime import cache
from tf_covid.weights import catalog, quarantine
from tf_covid.weights.catalog import LOBES, LUNGS, NO_LOBES

#: Files of a converted model: its graph, its weights and its card.
GRAPH, WEIGHTS, CARD = "infer.xml", "infer.bin", "card.json"

#: Changes with what is written into the folder of a converted model.
_FORMAT = 1


@dataclass(frozen=True)
class Behind:
    """The lung models that a network answers behind.

    Args:
        lungs: 2D lung model, by name or file; None: the one that ships.
        lobes: 3D lobe model, likewise, or "none"; None: the shipped one, which gates only where the
            network was trained behind it.
        allow_other_lungs: Answer behind other lung models than the network was trained behind.
    """

    lungs: str | Path | None = None
    lobes: str | Path | None = None
    allow_other_lungs: bool = False


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
        ServingError: If OpenVINO is not installed, or cannot take the model.
        OutputError: If the folder cannot be written.
    """
    optional_import("openvino", "openvino")
    folder = cache.cache_folder() / "openvino" / _key(source, behind)
    if cache.intact(folder) >= {GRAPH, WEIGHTS, CARD}:
        return folder
    on_message(
        f"{catalog.name_of(source)} is converted for OpenVINO, once, into {folder}"
        + (": what was there is damaged" if folder.exists() else "")
    )
    make_folder(folder.parent)
    with replacing_folder(folder) as made:
        _convert(source, behind, made)
    return folder


def _key(source: str | Path, behind: Behind) -> str:
    """What decides a converted model: all weights, how they go together, and who did it."""
    lobes = behind.lobes
    if lobes is None:
        lobes = LOBES if LOBES in catalog.shipped() else NO_LOBES
    files = [source, behind.lungs or LUNGS, *([] if lobes == NO_LOBES else [lobes])]
    return cache.key_of(
        [
            _FORMAT,
            [quarantine.sha256(catalog.find(file)) for file in files],
            [catalog.name_of(file) for file in files],
            [behind.lobes is None, behind.allow_other_lungs],
            [metadata.version(name) for name in ("tf-covid", "openvino")],
        ]
    )


def _convert(source: str | Path, behind: Behind, folder: Path) -> None:
    import tensorflow as tf

    from tf_covid.export.signatures import ServingModule
    from tf_covid.local import LocalModels
    from tf_covid.runtime.frontend import read_saved_model

    models = LocalModels(
        [source],
        lungs=behind.lungs,
        lobes=behind.lobes,
        allow_other_lungs=behind.allow_other_lungs,
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
            graph = read_saved_model(Path(saved))
        except RuntimeError as error:
            raise ServingError(
                f"OpenVINO cannot take {catalog.name_of(source)}: {str(error)[:500]}"
            ) from error
    with output_errors(folder):
        try:
            # Not as float16: the weights are, but not what the layers compute with beside them.
            optional_import("openvino", "openvino").save_model(
                graph, str(folder / GRAPH), compress_to_fp16=False
            )
        except RuntimeError as error:
            raise OSError(str(error)[:300]) from error
        (folder / CARD).write_text(serving.model_card, encoding="utf-8")
    cache.seal(folder, (GRAPH, WEIGHTS, CARD))
