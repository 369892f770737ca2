"""Requests that a server answers to itself before it takes others.

Without them the first patient waits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_covid.export.signatures import Signature
from tf_covid.extras import optional_import

#: TF Serving reads this file of `assets.extra`, a TFRecord of `PredictionLog`.
NAME = "tf_serving_warmup_requests"

#: Slices, height and width of the warm-up's chest: small, since no kernel depends on the size of a
#: scan.
_CHEST = (24, 128, 128)


def require() -> None:
    """Check that TF Serving's messages are installed.

    Raises:
        ServingError: If they are not.
    """
    optional_import("tensorflow_serving.apis.prediction_log_pb2")


def chest() -> np.ndarray:
    """int16 HU (24, 128, 128).

    Two lungs of air in a body of water, enough for slices to be kept.
    """
    depth, height, width = _CHEST
    d, h, w = np.ogrid[-1 : 1 : depth * 1j, -1 : 1 : height * 1j, -1 : 1 : width * 1j]
    body = (h / 0.75) ** 2 + (w / 0.95) ** 2 <= 1
    lungs = ((h / 0.5) ** 2 + ((np.abs(w) - 0.45) / 0.33) ** 2 + (d / 1.2) ** 2) <= 1
    return np.where(lungs, -850, np.where(body, 40, -1000)).astype(np.int16) + np.zeros(
        _CHEST, np.int16
    )


def requests(
    signatures: Mapping[str, Signature], clip: tuple[int, ...]
) -> dict[str, dict[str, Any]]:
    """One request for each signature: name → inputs as NumPy arrays (bytes for strings)."""
    hu = chest()[np.newaxis]
    inputs = {
        "hu": hu,
        "depth": np.array([hu.shape[1]], np.int32),
        "hu_bytes": np.array([hu.astype("<i2").tobytes()], object),
        "shape": np.array([hu.shape[1:]], np.int32),
        "clip": np.zeros((1, *clip), np.float32),
    }
    return {
        name: {str(spec.name): inputs[str(spec.name)] for spec in one.inputs}
        for name, one in signatures.items()
    }


def write(folder: Path, requests: Mapping[str, Mapping[str, Any]], served_as: Path) -> None:
    """Write the records.

    Args:
        folder: The export's `assets.extra`.
        requests: Signature → inputs.
        served_as: `…/NAME/VERSION`.
    """
    log = optional_import("tensorflow_serving.apis.prediction_log_pb2")
    with tf.io.TFRecordWriter(str(folder / NAME)) as records:
        for signature, inputs in requests.items():
            record = log.PredictionLog()
            request = record.predict_log.request
            request.model_spec.name = served_as.parent.name
            request.model_spec.signature_name = signature
            for name, values in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
            records.write(record.SerializeToString())


def read(folder: Path) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Signature and inputs of each record of an export's `assets.extra`."""
    log = optional_import("tensorflow_serving.apis.prediction_log_pb2")
    for record in tf.data.TFRecordDataset(str(folder / NAME)):
        request = log.PredictionLog.FromString(record.numpy()).predict_log.request
        yield (
            request.model_spec.signature_name,
            {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()},
        )
