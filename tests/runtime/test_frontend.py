"""OpenVINO's frontend and the way back through each kind of network that ships or may be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

pytest.importorskip("openvino", reason="needs the extra [openvino]")

import openvino

from tf_covid import attention
from tf_covid.models import NETWORKS
from tf_covid.runtime.frontend import named, read_saved_model

#: Model, arguments, endpoint: plain and with pooled disease, and sides that no window divides.
NETWORKS_EXPLAINED = [
    ("ltc", {"input_shape": [16, 32, 32, 1], "dense": 8}, "conv2"),
    ("ltc", {"input_shape": [16, 32, 32, 1], "dense": 8, "disease_pooling": "conv3"}, "conv3"),
    ("ltc", {"input_shape": [16, 64, 48, 1], "dense": 8, "disease_pooling": "conv4"}, "conv2"),
    (
        "ltc",
        {"input_shape": [16, 32, 32, 1], "dense": 8, "trunk": "c3d", "disease_pooling": "conv3b"},
        "conv3a",
    ),
    ("i3d", {"input_shape": [20, 72, 56, 1]}, "Mixed_4f"),
    ("i3d", {"input_shape": [20, 72, 56, 1], "disease_pooling": "Mixed_3c"}, "Mixed_3c"),
    ("i3d", {"input_shape": [16, 64, 64, 1], "disease_pooling": "Mixed_4f"}, "Conv3d_2c_3x3"),
]


def in_openvino(function: Any, specs: list[tf.TensorSpec], weights: list[Any], folder: Path) -> Any:
    """The function, compiled by OpenVINO; on(*inputs) → named outputs."""
    module = tf.Module()
    module.weights = [getattr(one, "value", one) for one in weights]
    module.function = tf.function(function, autograph=False)
    made = module.function.get_concrete_function(*specs)
    tf.saved_model.save(module, str(folder), signatures={"serving_default": made})
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(read_saved_model(folder), "CPU", exact)
    names = [spec.name for spec in specs]
    return lambda *inputs: named(compiled(dict(zip(names, inputs, strict=True))))


def near(ours: np.ndarray, theirs: np.ndarray, kinks: float = 0.0) -> None:
    """Equal within 1e-4 of the largest; a few may lie 1e-2 off where a ReLU stands at its kink."""
    off = np.abs(ours - theirs) / np.abs(theirs).max()
    assert off.max() <= (1e-2 if kinks else 1e-4)
    assert np.mean(off > 1e-4) <= kinks


@pytest.mark.parametrize(
    ("model", "arguments", "endpoint"),
    NETWORKS_EXPLAINED,
    ids=[
        f"{model}-{arguments.get('disease_pooling')}-{end}"
        for model, arguments, end in NETWORKS_EXPLAINED
    ],
)
def test_a_gradient_is_that_of_tensorflow(model, arguments, endpoint, tmp_path):
    keras.utils.set_random_seed(3)
    network = NETWORKS[model].build(classes=5, ct_score=True, **arguments)
    for layer in network.layers:
        # What pools disease begins nearly silent; here it has to be heard.
        if layer.name in {"disease_logits", "disease_ct_score"}:
            layer.kernel.assign(keras.random.normal(layer.kernel.shape))
    cut = attention.split(network, endpoint)

    def explained(features: Any) -> dict[str, Any]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(features)
            logits = cut.tie_sharing_head(features, training=False)["logits"]
            score = attention.expected_class(logits)
        return {"score": score, "gradient": tape.gradient(score, features)}

    spec = tf.TensorSpec([None, *cut.head.input_shape[1:]], tf.float32, name="features")
    theirs = in_openvino(explained, [spec], network.weights, tmp_path / "saved")
    draws = np.random.default_rng(5)
    for scans in (1, 3):
        features = draws.normal(size=[scans, *spec.shape[1:]]).astype(np.float32)
        right, answer = explained(tf.constant(features)), theirs(features)
        assert np.abs(right["gradient"]).max() > 0
        near(answer["score"], right["score"].numpy())
        near(answer["gradient"], right["gradient"].numpy(), kinks=0.08)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(
    ("sides", "window", "strides"),
    [
        ((10, 9, 7), (3, 5, 4), None),
        ((8, 10, 11), (3, 3, 3), 2),
        ((8, 9, 8), (2, 5, 4), (4, 4, 2)),  # some cells are in no window
    ],
)
def test_an_average_pools_gradient_lies_where_tensorflow_has_it(
    sides, window, strides, padding, tmp_path
):
    if padding == "same" and strides == (4, 4, 2):
        pytest.skip("OpenVINO's own pool differs where a window is smaller than its stride")
    pool = keras.layers.AveragePooling3D(window, strides, padding)
    draws = np.random.default_rng(0)
    factors = draws.normal(size=pool.compute_output_shape((1, *sides, 2))).astype(np.float32)

    def explained(x: Any) -> dict[str, Any]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            # Otherwise the gradient of a mean or sum would be a constant.
            score = tf.reduce_sum(tf.square(pool(x)) * factors, axis=(1, 2, 3, 4))
        return {"gradient": tape.gradient(score, x)}

    theirs = in_openvino(
        explained, [tf.TensorSpec([None, *sides, 2], tf.float32, name="x")], [], tmp_path / "saved"
    )
    x = draws.normal(size=(2, *sides, 2)).astype(np.float32)
    near(theirs(x)["gradient"], explained(tf.constant(x))["gradient"].numpy())
