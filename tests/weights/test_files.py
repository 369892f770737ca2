"""Our model files: any Keras reads them, we read them without running anything, and bad ones are
named."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from tf_covid.errors import ModelError
from tf_covid.models import UNet
from tf_covid.weights import (
    Contract,
    Preprocessing,
    contract_of,
    load,
    load_model,
    quarantine,
    save_model,
    weights_sha256,
)

ARGUMENTS = {"input_shape": [32, 32, 1], "depth": 2, "filters": 4}
CONTRACT = Contract(model="unet", arguments=ARGUMENTS, task="lungs", note="drawn at random")


@pytest.fixture
def network():
    keras.utils.set_random_seed(0)
    return UNet(**ARGUMENTS)


@pytest.fixture
def file(network, tmp_path):
    save_model(network, CONTRACT, tmp_path / "unet.keras")
    return tmp_path / "unet.keras"


def slices():
    return np.random.default_rng(0).random((2, 32, 32, 1), np.float32)


def test_round_trip_is_exact_and_brings_the_contract(network, file):
    again = load_model(file)
    np.testing.assert_array_equal(network(slices())["logits"], again(slices())["logits"])
    assert contract_of(again) == CONTRACT
    assert contract_of(network) is None


def test_keras_alone_reads_it_in_safe_mode(network, file):
    again = keras.saving.load_model(file, safe_mode=True)
    np.testing.assert_array_equal(network(slices())["logits"], again(slices())["logits"])


def test_half_precision_halves_the_file_and_stays_near(network, file, tmp_path):
    save_model(network, CONTRACT, tmp_path / "half.keras", dtype="float16")
    assert (tmp_path / "half.keras").stat().st_size < 0.75 * file.stat().st_size
    for again in (
        load_model(tmp_path / "half.keras"),
        keras.saving.load_model(tmp_path / "half.keras"),
    ):
        assert {weight.dtype for weight in again.weights} == {"float32"}
        np.testing.assert_allclose(
            network(slices())["logits"], again(slices())["logits"], atol=0.02
        )


def test_precision_is_the_callers_choice(file):
    assert (
        load_model(file, precision="bfloat16").get_layer("down0_conv1").compute_dtype == "bfloat16"
    )
    with pytest.raises(ModelError, match="precision must be one of"):
        load_model(file, precision="int8")


def test_a_model_is_known_by_its_weights(network, file, tmp_path):
    """Not by what stands beside them, nor by how the file holds them; a changed number is seen."""
    loaded = load(file)
    assert loaded.file_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert loaded.name == "unet"
    calibrated = CONTRACT.model_copy(update={"disease_calibration": (1.5, -0.25), "note": "Other."})
    network.set_weights([value.astype(np.float16) for value in network.get_weights()])
    digests = set()
    for contract, dtype in ((CONTRACT, "float32"), (calibrated, "float16")):
        path = tmp_path / f"{dtype}.keras"
        save_model(network, contract, path, dtype=dtype)
        for precision in ("float32", "bfloat16"):
            digests.add(load(path, precision=precision).sha256)
    assert digests == {weights_sha256(network)}
    assert loaded.sha256 not in digests
    changed = network.get_weights()
    changed[0][0, 0, 0, 0] += 1
    network.set_weights(changed)
    assert weights_sha256(network) not in digests


def test_contracts_of_the_first_format_are_read(file, tmp_path):
    """They name a lung model by its file; both formats find the model that is meant."""
    old = {**CONTRACT.model_dump(mode="json"), "format": 1}
    rewrite(file, contract=json.dumps(old))
    loaded = load(file)
    assert loaded.contract.format == 1
    assert loaded.is_named(loaded.file_sha256)
    assert loaded.is_named(loaded.sha256)
    assert not loaded.is_named("0" * 64)
    rewrite(file, contract=json.dumps({**old, "format": 3}))
    with pytest.raises(ModelError, match="format"):
        load(file)


def rewrite(file: Path, **members):
    """The same zip with some members replaced (or left out, for None)."""
    names = {
        "contract": quarantine.CONTRACT,
        "config": quarantine.CONFIG,
        "weights": quarantine.WEIGHTS,
    }
    with zipfile.ZipFile(file) as source:
        content = {name: source.read(name) for name in source.namelist()}
    for key, value in members.items():
        content[names[key]] = value
    with zipfile.ZipFile(file, "w") as target:
        for name, value in content.items():
            if value is not None:
                target.writestr(name, value)


def hdf5(path: Path, write) -> bytes:
    with h5py.File(path, "w") as store:
        write(store)
    return path.read_bytes()


def lambda_config():
    evil = {"class_name": "Lambda", "config": {"name": "input"}, "module": "keras.layers"}
    return json.dumps({"class_name": "Functional", "config": {"layers": [evil]}})


def other_padding(file: Path):
    with zipfile.ZipFile(file) as archive:
        config = archive.read(quarantine.CONFIG).decode()
    assert '"padding": "same"' in config
    return config.replace('"padding": "same"', '"padding": "valid"', 1)


BAD = {
    "no contract": (lambda f, t: rewrite(f, contract=None), "holds no tf_covid.json"),
    "typo in contract": (
        lambda f, t: rewrite(f, contract=CONTRACT.model_dump_json().replace('"note"', '"noet"')),
        "noet",
    ),
    "contract is no json": (lambda f, t: rewrite(f, contract="{"), "no valid JSON"),
    "unknown network": (
        lambda f, t: rewrite(
            f, contract=CONTRACT.model_copy(update={"model": "vgg"}).model_dump_json()
        ),
        "unknown network 'vgg'",
    ),
    "impossible arguments": (
        lambda f, t: rewrite(
            f, contract=CONTRACT.model_copy(update={"arguments": {"sides": 3}}).model_dump_json()
        ),
        "has no arguments sides",
    ),
    "foreign architecture": (
        lambda f, t: rewrite(f, config=lambda_config()),
        "architecture is not ours",
    ),
    "other settings": (
        lambda f, t: rewrite(f, config=other_padding(f)),
        "architecture is not ours",
    ),
    "memory bomb": (
        lambda f, t: rewrite(
            f,
            contract=CONTRACT.model_copy(
                update={"arguments": {**ARGUMENTS, "filters": 10**6}}
            ).model_dump_json(),
        ),
        "is over 10000",
    ),
    "not functional": (
        lambda f, t: rewrite(f, config='{"class_name": "Evil"}'),
        "not a functional model",
    ),
    "config is a list": (lambda f, t: rewrite(f, config="[]"), "does not describe"),
    "weights are missing": (lambda f, t: rewrite(f, weights=None), "holds no model.weights.h5"),
    "weights are no hdf5": (lambda f, t: rewrite(f, weights=b"nothing"), "is not a readable HDF5"),
    "external link": (
        lambda f, t: rewrite(
            f, weights=hdf5(t, lambda s: s.__setitem__("x", h5py.ExternalLink("/etc/passwd", "/")))
        ),
        "soft or external link",
    ),
    "soft link": (
        lambda f, t: rewrite(f, weights=hdf5(t, lambda s: s.__setitem__("x", h5py.SoftLink("/y")))),
        "soft or external link",
    ),
    "external storage": (
        lambda f, t: rewrite(
            f,
            weights=hdf5(
                t, lambda s: s.create_dataset("x", (4,), "f4", external=[("/etc/hostname", 0, 16)])
            ),
        ),
        "outside the file",
    ),
    "shape bomb": (
        lambda f, t: rewrite(
            f,
            weights=hdf5(
                t, lambda s: s.create_dataset("x", (10**6, 10**6), "f4", chunks=(1, 10**6))
            ),
        ),
        "ask for more than",
    ),
    "pickled objects": (
        lambda f, t: rewrite(f, weights=hdf5(t, lambda s: s.create_dataset("x", data=["text"]))),
        "not numbers",
    ),
    "other weights": (
        lambda f, t: rewrite(f, weights=hdf5(t, lambda s: s.create_dataset("x", data=[1.0]))),
        "do not fit",
    ),
    "truncated": (
        lambda f, t: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2]),
        "is no .keras file",
    ),
    "empty": (lambda f, t: f.write_bytes(b""), "is no .keras file"),
}


@pytest.mark.parametrize(("spoil", "message"), BAD.values(), ids=BAD.keys())
def test_bad_files_are_named(file, tmp_path, spoil, message):
    spoil(file, tmp_path / "evil.h5")
    with pytest.raises(ModelError, match=message):
        load_model(file)


def test_not_a_number_among_the_weights_is_refused(network, tmp_path):
    network.get_layer("logits").kernel.assign(np.full((1, 1, 4, 1), np.nan))
    save_model(network, CONTRACT, tmp_path / "nan.keras")
    with pytest.raises(ModelError, match="not a finite number"):
        load_model(tmp_path / "nan.keras")


def test_a_member_that_unpacks_to_more_than_allowed_is_not_unpacked(file):
    with (
        zipfile.ZipFile(file) as archive,
        pytest.raises(ModelError, match="unpacks to more than 10 bytes"),
    ):
        quarantine.unpack(archive, quarantine.CONFIG, io.BytesIO(), 10)


def test_a_missing_model_is_named_with_those_that_are_there():
    with pytest.raises(ModelError, match="neither a file nor a shipped model"):
        load_model("severity-vgg")


def test_preprocessing_rejects_typos():
    with pytest.raises(ValueError, match="levle_hu"):
        Preprocessing(levle_hu=-400)
