"""`tfcovid export`: one SavedModel for TF Serving that takes scans, from HU to answers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf

from tf_covid.atomic import output_errors, remove_leftovers, temporary_directory
from tf_covid.errors import OutputError
from tf_covid.export import warmup
from tf_covid.export.signatures import ServingModule, Signature
from tf_covid.local import LocalModels
from tf_covid.scan.checks import LEAST_SLICES
from tf_covid.tasks import TASKS

#: Beside the export of a model: `classify_clip` alone, as a model that a server may batch.
CLIP_SUFFIX = "-clip"

#: TF Serving reads this in the folder of a version, and batches no model without it (see deploy/).
BATCHING = "batching_params.pbtxt"

#: Clips at once, and how long one waits for others: the server's answer takes ten times as long.
_BATCHING = """# Clips of several requests, computed together.
max_batch_size { value: 16 }
batch_timeout_micros { value: 5000 }
# Then it refuses: a queue that is longer than what is answered in time helps nobody.
max_enqueued_batches { value: 8 }
"""

#: Names that a URL and a server's folder can hold.
SERVABLE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,150}")

#: Files of ours in an export, under `assets.extra`, which the format keeps for what is not part of
#: the graph.
EXTRA = "assets.extra"


@dataclass(frozen=True)
class Exported:
    """Where an export lies.

    Args:
        stratifier: Folder of the version that takes scans, with all signatures.
        clip: Folder of the version that takes prepared clips only.
    """

    stratifier: Path
    clip: Path


def export(
    source: str | Path,
    out: Path,
    version: int | None = None,
    *,
    lungs: str | Path | None = None,
    lobes: str | Path | None = None,
    allow_other_lungs: bool = False,
) -> Exported:
    """Write a model with its lung models as a SavedModel, and its clip network as a second one.

    Args:
        source: Shipped name, or `.keras` file of task severity or covid.
        out: Folder of the model, `…/NAME`; the versions are folders in it, and in `…/NAME-clip`.
        version: Number of the version, 1 …; one more than the highest that is there if not given.
        lungs: 2D lung model; None: the one that ships.
        lobes: 3D lobe model, or "none"; None: the shipped one, where the model was trained behind
            it.
        allow_other_lungs: Export behind other lung models than the model was trained behind.

    Raises:
        ModelError: If the model is missing, damaged, foreign, or answers no scan.
        OutputError: If the version is there already, or cannot be written.
        ServingError: If the extra `[serve]` is not installed.
    """
    warmup.require()
    out = out.absolute()
    if not SERVABLE.fullmatch(out.name):
        raise OutputError(
            f"{out}: a server has no model of this name; letters, digits, - and _ will do"
        )
    clip_out = out.with_name(out.name + CLIP_SUFFIX)
    chosen = version or 1 + max([0, *versions_in(out), *versions_in(clip_out)])
    exported = Exported(out / str(chosen), clip_out / str(chosen))
    for target in (exported.stratifier, exported.clip):
        if target.exists():
            raise OutputError(
                f"{target}: this version is there already; a server may be using it. Take another"
                " number"
            )
    models = LocalModels([source], lungs=lungs, lobes=lobes, allow_other_lungs=allow_other_lungs)
    module = ServingModule(models)
    extra = _documents(models, module)
    signatures = module.signatures()
    warmups = warmup.requests(signatures, tuple(module.clip_signature().inputs[0].shape[1:]))
    clip = {"serving_default": module.clip_signature()}
    with _new_version(exported.clip) as clip_folder, _new_version(exported.stratifier) as folder:
        write(
            clip_folder,
            module.clip_weights,
            clip,
            extra,
            {"serving_default": warmups["classify_clip"]},
            exported.clip,
        )
        (clip_folder / BATCHING).write_text(_BATCHING, encoding="utf-8")
        write(folder, module.weights, signatures, extra, warmups, exported.stratifier)
    return exported


@contextmanager
def _new_version(target: Path) -> Iterator[Path]:
    """A folder to write, which gets its name at the end.

    A server sees all of a version or nothing.
    """
    with output_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target.parent)
    with temporary_directory(target) as folder:
        try:
            yield folder / "version"
        except tf.errors.OpError as error:
            raise OutputError(f"{target}: cannot be written: {error.message}") from error
        (folder / "version").rename(target)


def versions_in(folder: Path) -> Iterable[int]:
    """Numbers of the versions in a model's folder."""
    if not folder.is_dir():
        return []
    return [
        int(path.name)
        for path in folder.iterdir()
        if path.name.isascii() and path.name.isdecimal() and path.is_dir()
    ]


def write(
    folder: Path,
    weights: list[tf.Variable],
    signatures: Mapping[str, Signature],
    extra: Mapping[str, str],
    requests: Mapping[str, Mapping[str, object]],
    served_as: Path,
) -> None:
    """Write one SavedModel with its documents and its warm-up requests.

    Args:
        folder: New folder.
        weights: All variables that the functions read.
        signatures: Name → function of the SavedModel.
        extra: Name → text of the files in `assets.extra`.
        requests: Signature → inputs of its warm-up.
        served_as: `…/NAME/VERSION`, which the warm-up requests carry.
    """
    # Not a Keras ExportArchive: it writes every weight twice.
    module = tf.Module()
    module.weights = weights
    functions = {
        name: (
            tf.function(one.function, autograph=False).get_concrete_function(
                **{str(spec.name): spec for spec in one.inputs}
            )
        )
        for name, one in signatures.items()
    }
    tf.saved_model.save(module, str(folder), signatures=functions)
    documents = folder / EXTRA
    documents.mkdir(exist_ok=True)
    for name, text in extra.items():
        (documents / name).write_text(text, encoding="utf-8")
    warmup.write(documents, requests, served_as)


def _documents(models: LocalModels, module: ServingModule) -> dict[str, str]:
    """Model card, input contract and labels."""
    model = models.members[0].model
    labels = model.contract.classes or TASKS[models.task].labels
    model_card = json.loads(module.model_card)
    contract = {
        "inputs": {
            "hu": (
                "int16 (N, D, H, W) Hounsfield units; D from head to feet, H from anterior to"
                " posterior, W from the patient's right to left; D, H and W are free, shorter scans"
                " are padded at the end"
            ),
            "depth": "int32 (N), true slices of each scan",
            "hu_bytes": "string (N), the same as little-endian int16 in C order",
            "shape": "int32 (N, 3), slices, height and width of hu_bytes",
            "clip": (
                f"float32 (N, {', '.join(map(str, model_card['clip']))}), windowed, masked and"
                " scaled"
            ),
        },
        "refuse": (
            f"slices_kept below {LEAST_SLICES}: too little lung for an answer; at 0 all answers"
            " are NaN"
        ),
        "preprocessing": model_card["preprocessing"],
    }
    return {
        "model_card.json": json.dumps(model_card, indent=1),
        "input_contract.json": json.dumps(contract, indent=1),
        "labels.txt": "\n".join(labels) + "\n",
    }
