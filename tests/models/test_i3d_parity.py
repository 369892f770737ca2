"""I3D against a peer's own network: weights and input that anybody can draw again."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path

import keras
import numpy as np
import pytest

from tf_covid.models import I3D

DATA = Path(__file__).parents[1] / "data"


def drawn(name, shape, seed=7):
    """The rule of the parity file.

    He for kernels, 1 + 0.1·|x| for variances, 0.1·x for everything else.
    """
    x = np.random.default_rng(zlib.crc32(f"{seed}:{name}".encode())).standard_normal(
        shape, dtype=np.float32
    )
    if name.endswith("/w"):
        return x * np.sqrt(2 / np.prod(shape[:-1]), dtype=np.float32)
    return 1 + 0.1 * np.abs(x) if name.endswith("/moving_variance") else 0.1 * x


def ours(name):
    """Our variable of a Sonnet name."""
    path = name.removeprefix("RGB/inception_i3d/").replace(
        "Mixed_5b/Branch_2/Conv3d_0a_3x3", "Mixed_5b/Branch_2/Conv3d_0b_3x3"
    )
    unit, kind = re.fullmatch(r"(.*?)/(?:batch_norm/|conv_3d/)(\w+)", path).groups()
    unit = unit.replace("/", "_")
    if unit.startswith("Logits_"):
        return unit.removeprefix("Logits_"), {"w": "kernel", "b": "bias"}[kind]
    return (f"{unit}_conv", "kernel") if kind == "w" else (f"{unit}_bn", kind)


@pytest.fixture(scope="module")
def peer():
    return json.loads((DATA / "i3d_parity_seed7.json").read_text())


def test_endpoints_and_logits_equal_the_peers(peer):
    names = json.loads((DATA / "i3d_kinetics_sonnet_names.json").read_text())
    network = I3D((16, 224, 224, 3), classes=400, head="kinetics")
    filled = set()
    for name, shape in names.items():
        layer, kind = ours(name)
        variable = getattr(network.get_layer(layer), kind)
        variable.assign(drawn(name, tuple(shape)))
        filled.add(variable.path)
    assert filled == {variable.path for variable in network.weights}

    clip = np.random.default_rng(7).uniform(-1, 1, (1, 16, 224, 224, 3)).astype(np.float32)
    endpoints = {
        layer.name.lower(): layer.output
        for layer in network.layers
        if layer.name.lower() in {key.lower() for key in peer["endpoints"]}
    }
    assert len(endpoints) >= 14
    outputs = keras.Model(network.input, endpoints | network.output)(clip)
    for key, facts in peer["endpoints"].items():
        if key.lower() not in endpoints:
            continue
        value = outputs[key.lower()].numpy()
        n, c, d, h, w = facts["shape_ncdhw"]
        assert value.shape == (n, d, h, w, c), key
        assert value.mean() == pytest.approx(facts["mean"], abs=1e-4 * max(facts["std"], 1)), key
        assert value.std() == pytest.approx(facts["std"], rel=1e-4), key
        first = np.moveaxis(value, -1, 1).ravel()[:5]
        np.testing.assert_allclose(first, facts["first5"], atol=1e-3 * facts["std"], err_msg=key)
    logits = outputs["logits"].numpy()[0]
    largest = np.abs(peer["logits"]).max()
    assert np.abs(logits - np.array(peer["logits"])).max() < 1e-4 * largest
