"""The same SavedModel in a runtime that shares no kernel with TensorFlow.

OpenVINO, the extra `[openvino]`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf

from tf_covid.errors import ServingError
from tf_covid.extras import optional_import
from tf_covid.runtime.frontend import named, read_saved_model

#: Signatures without strings, which OpenVINO's tensors do not carry.
SIGNATURES = ("serving_default", "explain", "segment", "classify_clip")


class OpenVino:
    """One signature of an export, compiled for this machine's processor in float32.

    Args:
        export: Folder of a version.
        signature: One of `SIGNATURES`.

    Raises:
        ServingError: If OpenVINO is not installed, or cannot read the graph.
    """

    def __init__(self, export: Path, signature: str) -> None:
        runtime = optional_import("openvino", "openvino")
        with tempfile.TemporaryDirectory() as folder:
            # It sees only `serving_default`.
            loaded = tf.saved_model.load(str(export))
            tf.saved_model.save(
                loaded, folder, signatures={"serving_default": loaded.signatures[signature]}
            )
            try:
                self._run = runtime.Core().compile_model(
                    read_saved_model(Path(folder)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
                )
            except RuntimeError as error:
                raise ServingError(
                    f"OpenVINO cannot run {signature}: {str(error)[:500]}"
                ) from error

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Named outputs for named inputs."""
        try:
            return named(self._run(inputs))
        except RuntimeError as error:
            raise ServingError(f"OpenVINO failed: {str(error)[:500]}") from error
