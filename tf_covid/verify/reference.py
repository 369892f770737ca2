"""What Keras and tf-keras-vis answer for a scan.

The truth that exports and servers are held against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from tf_covid import attention, exported
from tf_covid.attention.grid import centre_weights
from tf_covid.local import EnsembleMember, LocalModels


@dataclass(frozen=True)
class Reference:
    """One scan, how it is asked about, and what is right.

    Args:
        name: Name of the scan, for people.
        inputs: Signature → named inputs.
        right: Signature → named values.
        sha256s: Identities of the network and of its lung models.
    """

    name: str
    inputs: dict[str, dict[str, np.ndarray]]
    right: dict[str, dict[str, np.ndarray]]
    sha256s: tuple[str, ...]


def reference(models: LocalModels, name: str, hu: np.ndarray) -> Reference:
    """Ask the Keras models.

    Args:
        models: One network behind its lung model.
        name: Name of the scan.
        hu: int16 (D, H, W).
    """
    member: EnsembleMember = models.members[0]
    segmentation = models.segment(hu)
    (answer,) = models.classify(hu, segmentation.probability)
    prepared = member.preprocessor.prepare(hu[np.newaxis], segmentation.probability[np.newaxis])
    logits = member.model.network(prepared["clip"], training=False)["logits"].numpy()[0]
    answers: dict[str, Any] = {"probabilities": answer.probabilities, "logits": logits}
    if answer.ct_score is not None:
        answers["ct_score"] = np.float32(answer.ct_score)
    cells = attention.attention_map(
        member.split, answer.evidence.features, attention.expected_class
    )
    on_clip = _on_clip(cells, member) * (prepared["lungs"].numpy()[0] >= 0.5)
    pipeline_answers = {**answers, "slices_kept": np.int32(answer.keep.sum())}
    axes = np.array([[axis.step, axis.first] for axis in member.axes])
    looked = {
        "attention_cells": cells,
        "attention_axes": axes,
        "keep": answer.keep,
        "box": answer.evidence.box,
    }
    masks = {"lungs": segmentation.probability}
    for output in ("disease", "lobes", "effusion", "orientation"):
        if (values := getattr(segmentation, output)) is not None:
            masks[output] = values
    scan = {"hu": hu[np.newaxis], "depth": np.array([len(hu)], np.int32)}
    text = np.array([np.ascontiguousarray(hu, "<i2").tobytes()], object)
    octets = {"hu_bytes": text, "shape": np.array([hu.shape], np.int32)}
    return Reference(
        name,
        inputs={
            "serving_default": scan,
            "explain": scan,
            "segment": scan,
            "serving_bytes": octets,
            "infer_bytes": octets,
            "classify_clip": {"clip": np.asarray(prepared["clip"], np.float32)},
        },
        right={
            "serving_default": pipeline_answers,
            "explain": {**pipeline_answers, **looked, "attention": on_clip},
            "segment": {**masks, "mask": segmentation.probability > 0.5},
            "serving_bytes": pipeline_answers,
            "infer_bytes": {**pipeline_answers, **looked, **masks},
            "classify_clip": answers,
        },
        sha256s=tuple(models.weights_sha256),
    )


def largest_difference(right: dict[str, np.ndarray], answer: dict[str, Any]) -> tuple[float, str]:
    """The value that differs most, in the units of `TOLERANCE`, and its name.

    Args:
        right: Right answers, from a `Reference`.
        answer: What was answered for that scan alone; names that are not in `right` do not count.

    A missing name, another shape or what is not a number differs infinitely.
    """
    return exported.largest_difference(right, {name: _of_reference(answer, name) for name in right})


def _of_reference(answer: dict[str, Any], name: str) -> np.ndarray | None:
    if f"{name}_bytes" in answer:
        (text,) = list(answer[f"{name}_bytes"])
        return np.asarray(tf.io.parse_tensor(text, tf.float32), np.float64)
    try:
        return np.asarray(np.asarray(answer[name], np.float64)[0])
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def _on_clip(cells: np.ndarray, member: EnsembleMember) -> np.ndarray:
    sizes = member.model.network.input_shape[1:4]
    d, h, w = (
        centre_weights((np.arange(size) - axis.first) / axis.step, count)
        for axis, size, count in zip(member.axes, sizes, cells.shape, strict=True)
    )
    return np.asarray(np.einsum("td,hi,wj,dij->thw", d, h, w, cells, optimize=True))
