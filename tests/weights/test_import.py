"""Foreign checkpoints become ours, one-to-one, from every format and spelling that is published."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from dataclasses import replace

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

import tf_covid
from tf_covid.cli import main
from tf_covid.errors import ModelError, OutputError, UnsafeFile
from tf_covid.models import I3D, LTC, InceptionV1, UNet
from tf_covid.phantom import draw_chest
from tf_covid.phantom.files import write_nifti_volume
from tf_covid.weights import (
    Contract,
    Preprocessing,
    contract_of,
    load,
    load_model,
    read_contract,
    save_model,
)
from tf_covid.weights.import_plan import ImportRequest
from tf_covid.weights.importing import import_weights
from tf_covid.weights.name_maps import NAME_MAPS

#: The smallest clip of the published head.
SMALL = (16, 224, 224)

#: Every other way in which the same I3D is published: names, and how they are written.
I3D_FILES = {
    "kinetics-v1.ckpt": lambda c, t, path: c.write_tf_v1(t, path),
    "branch.safetensors": lambda c, t, path: c.write_safetensors(c.torch(t, "branch"), path),
    "b1a.safetensors": lambda c, t, path: c.write_safetensors(c.torch(t, "b1a"), path),
    "port.h5": lambda c, t, path: c.write_legacy_h5(c.keras_i3d(t), path),
    "port-model.h5": lambda c, t, path: c.write_legacy_h5(
        c.keras_i3d(t), path, root="model_weights"
    ),
}


@pytest.fixture(scope="module")
def kinetics(checkpoints, tmp_path_factory):
    """The drawn Kinetics checkpoint, imported with three channels."""
    folder = tmp_path_factory.mktemp("kinetics")
    prefix = checkpoints.write_tf(checkpoints.sonnet(), folder / "model.ckpt")
    done = import_weights(prefix, ImportRequest("i3d", clip=SMALL, rgb=True), folder / "rgb.keras")
    return folder, prefix, done


@pytest.fixture(scope="module")
def sonnet(checkpoints, tmp_path_factory):
    """The same names and tensors in a file that no other process must read."""
    return checkpoints.write_safetensors(
        checkpoints.sonnet(), tmp_path_factory.mktemp("sonnet") / "x.safetensors"
    )


def clip(frames=16, channels=3):
    return (
        np.random.default_rng(7).uniform(-1, 1, (1, frames, 224, 224, channels)).astype(np.float32)
    )


def test_the_peers_own_logits(kinetics, checkpoints):
    folder, _, done = kinetics
    peer = np.array(json.loads((checkpoints.DATA / "i3d_parity_seed7.json").read_text())["logits"])
    logits = load_model(folder / "rgb.keras")(clip())["logits"].numpy()[0]
    assert np.abs(logits - peer).max() < 1e-4 * np.abs(peer).max()
    assert len(done["mapped"]) == 230
    assert not done["ignored"]
    assert not done["left"]
    assert not done["fresh"]
    assert done["classes"] == 400
    assert done["input"] == {
        "channels": 3,
        "scale": [2.0],
        "offset": [-1.0],
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", I3D_FILES)
def test_every_format_gives_the_same_network(name, kinetics, checkpoints, tmp_path):
    path = I3D_FILES[name](checkpoints, checkpoints.sonnet(), tmp_path / name)
    done = import_weights(path, ImportRequest("i3d", clip=SMALL, rgb=True), tmp_path / "x.keras")
    for ours, theirs in zip(
        load_model(tmp_path / "x.keras").weights,
        load_model(kinetics[0] / "rgb.keras").weights,
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9, err_msg=ours.path)
    assert {row["to"] for row in done["mapped"]} == {row["to"] for row in kinetics[2]["mapped"]}


@pytest.mark.slow
def test_kinetics_600_has_no_prefix_and_carries_slots(checkpoints, tmp_path):
    tensors = checkpoints.sonnet(classes=600, prefix="")
    tensors |= {
        f"{name}/Momentum": value for name, value in list(tensors.items()) if name.endswith("/w")
    }
    tensors["global_step"] = np.array(5, np.int64)
    path = checkpoints.write_tf(tensors, tmp_path / "model.ckpt")
    done = import_weights(path, ImportRequest("i3d", clip=SMALL), tmp_path / "x.keras")
    assert done["classes"] == 600
    assert len(done["mapped"]) == 230
    assert len(done["ignored"]) == 59
    assert "global_step" in done["ignored"]


def test_a_new_classifier_must_be_asked_for(sonnet, tmp_path):
    with pytest.raises(ModelError, match="has 400 classes, not 5; --allow-missing-head"):
        import_weights(sonnet, ImportRequest("i3d", classes=5), tmp_path / "x.keras")
    done = import_weights(
        sonnet,
        ImportRequest("i3d", classes=5, allow_missing_head=True, clip=(16, 64, 64)),
        tmp_path / "x.keras",
    )
    assert done["fresh"] == ["logits"]
    assert [text.split()[0] for text in done["left"]] == [
        "RGB/inception_i3d/Logits/Conv3d_0c_1x1/conv_3d/b",
        "RGB/inception_i3d/Logits/Conv3d_0c_1x1/conv_3d/w",
    ]
    contract = read_contract(tmp_path / "x.keras")
    assert contract.task == "severity"
    assert "Untrained: logits" in contract.note
    assert contract.preprocessing.input_scale == (2.0,)
    assert contract.preprocessing.input_offset == (-1.0,)


def test_a_port_without_its_top_needs_a_new_classifier(checkpoints, tmp_path):
    """With `--allow-missing-head` it is a row of test_rows.py."""
    tensors = {
        name: v
        for name, v in checkpoints.keras_i3d(checkpoints.sonnet()).items()
        if "6a" not in name
    }
    path = checkpoints.write_legacy_h5(tensors, tmp_path / "no_top.h5")
    with pytest.raises(ModelError, match="has no classifier"):
        import_weights(path, ImportRequest("i3d", clip=SMALL), tmp_path / "x.keras")


def test_what_is_missing_or_too_much_is_listed_with_its_shape(checkpoints, tmp_path):
    tensors = checkpoints.sonnet()
    del tensors["RGB/inception_i3d/Mixed_4b/Branch_0/Conv3d_0a_1x1/conv_3d/w"]
    tensors["RGB/inception_i3d/Surprise/w"] = np.zeros((3, 2), np.float32)
    tensors["RGB/inception_i3d/Conv3d_2b_1x1/conv_3d/w"] = np.zeros((1, 1, 1, 64, 65), np.float32)
    path = checkpoints.write_safetensors(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ModelError) as caught:
        import_weights(path, ImportRequest("i3d", clip=SMALL), tmp_path / "x.keras")
    text = str(caught.value)
    assert "1 unfilled: Mixed_4b_Branch_0_Conv3d_0a_1x1_conv/kernel [1, 1, 1, 480, 192]" in text
    assert "1 unused: RGB/inception_i3d/Surprise/w [3, 2]" in text
    assert "Conv3d_2b_1x1_conv/kernel [1, 1, 1, 64, 64]" in text
    assert "[1, 1, 1, 64, 65]" in text
    assert not (tmp_path / "x.keras").exists()


def test_flow_is_refused(checkpoints, tmp_path):
    path = checkpoints.write_safetensors(
        checkpoints.sonnet(channels=2, prefix="Flow/inception_i3d/"), tmp_path / "x.safetensors"
    )
    with pytest.raises(ModelError, match="optical flow"):
        import_weights(path, ImportRequest("i3d", clip=SMALL), tmp_path / "x.keras")


@pytest.fixture(scope="module")
def inceptions(checkpoints, tmp_path_factory):
    return checkpoints.inception_files(tmp_path_factory.mktemp("inception"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["slim", "keras", "keras 3", "torchvision"])
def test_inception_inflates_from_every_file_at_every_endpoint(
    kind, checkpoints, inceptions, tmp_path
):
    """A boring clip through the inflated network is the slice through its parent, in the middle of
    time."""
    path = inceptions[kind]
    flat = import_weights(
        path, ImportRequest("inception_v1", clip=(64, 64)), tmp_path / "flat.keras"
    )
    assert flat["classes"] == 1001
    assert flat["input"]["channels"] == 1
    deep = import_weights(
        path, ImportRequest("i3d", clip=(128, 64, 64), inflate=True), tmp_path / "deep.keras"
    )
    assert deep["inflated"]
    assert deep["classes"] == 1001
    parent, network = load_model(tmp_path / "flat.keras"), load_model(tmp_path / "deep.keras")
    picture = np.random.default_rng(2).uniform(-1, 1, (1, 64, 64, 1)).astype(np.float32)
    checkpoints.check_inflated(parent, network, picture)
    if kind == "torchvision":
        assert [text.split()[0] for text in flat["left"]] == [
            "aux1.conv.conv.weight",
            "aux2.fc2.bias",
        ]


@pytest.mark.slow
def test_the_inception_files_hold_the_same_network(inceptions, tmp_path):
    found = {}
    for kind, path in inceptions.items():
        import_weights(path, ImportRequest("inception_v1", clip=(64, 64)), tmp_path / "x.keras")
        found[kind] = {f"{w.path}": np.array(w) for w in load_model(tmp_path / "x.keras").weights}
    for kind, weights in found.items():
        for path, value in weights.items():
            np.testing.assert_allclose(
                value, found["slim"][path], rtol=1e-6, atol=1e-9, err_msg=f"{kind} {path}"
            )


@pytest.mark.slow
def test_torchvisions_stem_is_padded_as_it_pads(inceptions, tmp_path):
    import_weights(
        inceptions["torchvision"],
        ImportRequest("inception_v1", clip=(64, 64)),
        tmp_path / "x.keras",
    )
    network = load_model(tmp_path / "x.keras")
    picture = np.random.default_rng(4).uniform(-1, 1, (1, 64, 64, 1)).astype(np.float32)
    stem = keras.Model(network.input, network.get_layer("Conv2d_1a_7x7_conv").output)(
        picture
    ).numpy()
    kernel = network.get_layer("Conv2d_1a_7x7_conv").get_weights()[0]
    padded = np.pad(picture[0, :, :, 0], 3)
    for row, column in ((0, 0), (5, 31), (31, 31)):
        window = padded[2 * row : 2 * row + 7, 2 * column : 2 * column + 7]
        expected = np.einsum("hw,hwf->f", window, kernel[:, :, 0])
        np.testing.assert_allclose(stem[0, row, column], expected, atol=1e-4)
    with pytest.raises(ModelError, match="multiples of 32"):
        import_weights(
            inceptions["torchvision"],
            ImportRequest("inception_v1", clip=(80, 80)),
            tmp_path / "y.keras",
        )


def test_a_slice_network_is_no_clip_network_without_inflation(inceptions, tmp_path):
    with pytest.raises(ModelError, match="--inflate makes an i3d of it"):
        import_weights(inceptions["torchvision"], ImportRequest("i3d"), tmp_path / "x.keras")
    with pytest.raises(ModelError, match="holds torchvision's GoogLeNet"):
        import_weights(inceptions["torchvision"], ImportRequest("unet"), tmp_path / "x.keras")


@pytest.mark.slow
@pytest.mark.parametrize("style", ["keras", "torch", "features", "mmaction"])
def test_c3d_fills_the_trunk_one_to_one(style, checkpoints, tmp_path):
    path, dense = checkpoints.c3d(style, tmp_path)
    done = import_weights(path, ImportRequest("ltc", clip=(16, 32, 32)), tmp_path / "x.keras")
    assert len(done["mapped"]) == 16
    assert done["input"]["channels"] == 3
    assert [text.split()[0] for text in done["left"]] == sorted(
        dense, key=lambda name: name.removeprefix("backbone.")
    )
    assert done["fresh"] == ["fc6", "fc7", "logits"]
    assert done["classes"] == 5
    scale, offset = done["input"]["scale"], done["input"]["offset"]
    assert scale == [255.0]
    assert len(offset) == 3
    assert all(-130 < value < -80 for value in offset)
    network = load_model(tmp_path / "x.keras")
    rng = np.random.default_rng(5)
    kernel = rng.normal(0, 0.05, (3, 3, 3, 3, 64)).astype(np.float32)
    np.testing.assert_array_equal(network.get_layer("conv1a").get_weights()[0], kernel)


def test_the_five_convolutions_take_the_three_that_fit(checkpoints, tmp_path):
    path, _ = checkpoints.c3d("keras", tmp_path)
    done = import_weights(
        path, ImportRequest("ltc", clip=(16, 32, 32), trunk="ltc"), tmp_path / "x.keras"
    )
    assert {row["to"].split("/")[0] for row in done["mapped"]} == {"conv1", "conv2", "conv3"}
    assert done["fresh"] == ["conv4", "conv5", "fc6", "fc7", "logits"]
    assert "conv5b/kernel [3, 3, 3, 512, 512]" in done["left"]


@pytest.mark.slow
def test_c3d_through_the_stratifier_sees_blue_green_red_of_0_to_255_less_their_means(
    checkpoints, tmp_path
):
    """Each channel has its own offset, outside the lungs too, where the window's 0 stands for
    black."""
    path, _ = checkpoints.c3d("keras", tmp_path)
    import_weights(path, ImportRequest("ltc", clip=(16, 64, 64)), tmp_path / "x.keras")
    network = load_model(tmp_path / "x.keras")
    stratifier = tf_covid.stratifier(network, lungs="lungs-unet")
    chest = draw_chest(3, (24, 96, 96), severity=2)
    hu, depth = chest.hu[None], np.array([len(chest.hu)], np.int32)
    probability = stratifier.segment(hu, depth)["lungs"]
    clip = stratifier.prepare(hu, probability)["clip"].numpy()
    means = np.array([90.25, 97.66, 101.41], np.float32)
    grey = (clip + means) / 255
    np.testing.assert_allclose(grey, np.repeat(grey[..., :1], 3, axis=-1), atol=1e-6)
    assert grey.min() == pytest.approx(0, abs=1e-6)
    assert 0.2 < grey.max() <= 1 + 1e-6
    corner = clip[0, 8, 0, 0]
    np.testing.assert_allclose(corner, -means, atol=1e-4)
    # Through the first convolution as C3D does it, from the file: beyond the picture are zeros, not
    # a mean less itself.
    with h5py.File(path) as file:
        kernel, bias = file["conv1/conv1/kernel:0"][()], file["conv1/conv1/bias:0"][()]
    theirs = tf.nn.relu(tf.nn.conv3d(clip, kernel, [1] * 5, "SAME") + bias).numpy()
    ours = keras.Model(network.input, network.get_layer("conv1a").output)(clip).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
    np.testing.assert_allclose(
        stratifier({"hu": hu, "depth": depth})["logits"],
        network(clip)["logits"],
        rtol=1e-3,
        atol=1e-3,
    )


OURS = {
    "i3d": (I3D, {"input_shape": [8, 32, 32, 1], "classes": 5, "ct_score": True}),
    "ltc": (LTC, {"input_shape": [16, 32, 32, 1], "classes": 5, "dense": 16}),
    "ltc-disease": (
        LTC,
        {
            "input_shape": [16, 32, 32, 1],
            "classes": 5,
            "dense": 16,
            "ct_score": True,
            "disease_pooling": "conv3",
        },
    ),
    "inception_v1": (InceptionV1, {"input_shape": [32, 32, 1], "classes": 7}),
    "unet": (UNet, {"input_shape": [32, 32, 1], "depth": 2, "filters": 4, "outputs": 2}),
}


QUICK = ("unet", "ltc-disease")

#: The other networks differ from these in size only.
OF_OURS = [
    pytest.param(model, ending, marks=() if model in QUICK else pytest.mark.slow)
    for model in OURS
    for ending in (".keras", ".weights.h5", "-plain.keras")
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "ending"), OF_OURS)
def test_files_of_ours_come_back(model, ending, tmp_path):
    build, arguments = OURS[model]
    model = model.partition("-")[0]
    network = build(**arguments)
    path = tmp_path / f"ours{ending}"
    if ending == ".weights.h5":
        network.save_weights(path)
    elif ending == ".keras":
        from tf_covid.weights import Contract, save_model

        save_model(
            network, Contract(model=model, arguments=arguments, task="slices", note="Ours."), path
        )
    else:
        network.save(path)
    sides = tuple(arguments["input_shape"][:-1])
    done = import_weights(path, ImportRequest(model, clip=sides), tmp_path / "again.keras")
    assert not done["fresh"]
    assert not done["left"]
    assert not done["ignored"]
    again = load(tmp_path / "again.keras")
    for before, after in zip(network.get_weights(), again.network.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    assert again.contract.arguments["input_shape"] == arguments["input_shape"]
    if ending == ".keras":
        assert again.contract.note == "Ours."


def test_pooled_disease_gets_a_new_classifier_where_another_number_of_classes_is_asked(tmp_path):
    build, arguments = OURS["ltc-disease"]
    network = build(**arguments)
    network.save(tmp_path / "five.keras")
    wish = ImportRequest("ltc", classes=2, allow_missing_head=True, clip=(16, 32, 32))
    done = import_weights(tmp_path / "five.keras", wish, tmp_path / "two.keras")
    assert {name.partition("/")[0] for name in done["fresh"]} >= {"logits", "disease_logits"}
    again = load(tmp_path / "two.keras").network
    for name in ("conv3", "disease_conv3", "disease_sides", "disease_dense"):
        for before, after in zip(
            network.get_layer(name).get_weights(), again.get_layer(name).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(before, after)


@pytest.mark.slow
def test_our_own_parent_inflates(tmp_path):
    parent = InceptionV1((32, 32, 1), classes=5)
    parent.save_weights(tmp_path / "parent.weights.h5")
    done = import_weights(
        tmp_path / "parent.weights.h5",
        ImportRequest("i3d", clip=(8, 32, 32), inflate=True),
        tmp_path / "x.keras",
    )
    assert done["inflated"]
    assert done["classes"] == 5
    assert load_model(tmp_path / "x.keras").input_shape == (None, 8, 32, 32, 1)


@pytest.mark.slow
def test_the_parent_that_fit_trains_on_slices_inflates(tmp_path):
    """Its output `share`, how much of a slice is diseased, has no place in a network of volumes.

    Left, and listed.
    """
    arguments = {"input_shape": [32, 32, 1], "classes": 2, "share": True}
    keras.utils.set_random_seed(2)
    parent = InceptionV1(**arguments)
    save_model(
        parent,
        Contract(model="inception_v1", arguments=arguments, task="slices", note="2D."),
        tmp_path / "p.keras",
    )
    wish = ImportRequest("i3d", inflate=True, allow_missing_head=True, clip=(16, 32, 32))
    done = import_weights(tmp_path / "p.keras", wish, tmp_path / "x.keras")
    assert {line.split(" ")[0] for line in done["left"]} >= {"share/kernel", "share/bias"}
    network = load_model(tmp_path / "x.keras")
    assert set(network.output) == {"logits"}
    assert network.output["logits"].shape[-1] == 5
    kernel, deep = (
        next(
            layer for layer in net.layers if layer.name.startswith(name) and layer.weights
        ).get_weights()[0]
        for net, name in ((parent, "Conv2d_2c_3x3"), (network, "Conv3d_2c_3x3"))
    )
    np.testing.assert_allclose(deep.sum(axis=0), kernel, atol=2e-3 * np.abs(kernel).max())


@pytest.mark.slow
def test_infer_and_the_stratifier_take_it_once_its_head_is_trained(kinetics, tmp_path):
    _, prefix, _ = kinetics
    chest = draw_chest(3, (24, 96, 96), severity=2)
    chest.affine[:3, 0] *= 5.0 / chest.spacing_mm[0]  # voxels above 12 mm are refused
    wish = ImportRequest("i3d", clip=(16, 64, 64), allow_missing_head=True)
    import_weights(prefix, wish, tmp_path / "x.keras")
    write_nifti_volume(chest.hu, chest.affine, tmp_path / "scan.nii.gz")
    command = [
        "infer",
        str(tmp_path / "scan.nii.gz"),
        "--model",
        str(tmp_path / "x.keras"),
        "--out",
        str(tmp_path / "o"),
    ]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert "untrained_head: " in result.stderr
    # As if its head had been trained.
    untrained = load(tmp_path / "x.keras")
    trained = untrained.contract.model_copy(update={"untrained_head": False, "note": "Drawn."})
    save_model(untrained.network, trained, tmp_path / "x.keras")
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    answer = json.loads((tmp_path / "o" / "scan" / "result.json").read_text())
    assert len(answer["severity"]["probabilities"]) == 5
    stratifier = tf_covid.stratifier(load_model(tmp_path / "x.keras"), lungs="lungs-unet")
    outputs = stratifier({"hu": chest.hu[None], "depth": np.array([len(chest.hu)], np.int32)})
    assert outputs["logits"].shape == (1, 5)
    # The window's [0, 1] reaches the network as [-1, 1].
    assert stratifier.preprocessor.scaling.scale == 2.0
    assert stratifier.preprocessor.scaling.offset == -1.0
    import_weights(
        prefix, replace(wish, allow_missing_head=False, clip=SMALL), tmp_path / "parent.keras"
    )
    result = CliRunner().invoke(
        main, [*command[:3], str(tmp_path / "parent.keras"), "--out", str(tmp_path / "other")]
    )
    assert result.exit_code == 1
    assert "severity or covid, are needed, not pretrained" in result.stderr


def test_the_command_prints_json_and_names_errors(checkpoints, tmp_path):
    path = checkpoints.write_safetensors(checkpoints.torch_unet(), tmp_path / "unet.safetensors")
    command = ["import", str(path), "--model", "unet", "--out", str(tmp_path / "new" / "x.keras")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    done = json.loads(result.stdout)
    assert done["sha256"] == load(tmp_path / "new" / "x.keras").file_sha256
    assert contract_of(load_model(tmp_path / "new" / "x.keras")).origin.startswith(
        "tfcovid import of unet.safetensors"
    )
    (tmp_path / "bad.safetensors").write_bytes(b"rubbish")
    for arguments, text in (
        (["import", str(tmp_path / "bad.safetensors"), *command[2:]], "damaged: "),
        (["import", str(tmp_path / "nothing.h5"), *command[2:]], "no_file: "),
        ([*command[:-1], str(tmp_path / "x.h5")], "must end with .keras"),
        (
            ["import", str(path), "--model", "i3d", "--out", str(tmp_path / "y.keras")],
            "for --model unet",
        ),
    ):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 1, result.output
        assert text in result.stderr, result.output
        assert "Traceback" not in result.output, result.output
        assert result.stderr.count("\n") == 1


def test_rubbish_gets_its_name(tmp_path):
    for name, code in (
        ("a.txt", "unknown_format"),
        ("none", "no_file"),
        ("x.pt", "damaged"),
        ("x.h5", "damaged"),
        ("x.keras", "damaged"),
        ("x.ckpt", "damaged"),
    ):
        if name != "none":
            (tmp_path / name).write_bytes(b"rubbish" * 10)
        with pytest.raises(UnsafeFile) as caught:
            import_weights(tmp_path / name, ImportRequest("i3d"), tmp_path / "out.keras")
        assert caught.value.code == code, name
    with pytest.raises(OutputError, match=r"end with .keras"):
        import_weights(tmp_path / "x.h5", ImportRequest("i3d"), tmp_path / "out.h5")
    with pytest.raises(ModelError, match="unknown network"):
        import_weights(tmp_path / "x.h5", ImportRequest("vgg"), tmp_path / "out.keras")


PUBLISHED = {
    "i3d_pytorch_names": "mixed_3b",
    "i3d_keras_names": "the Keras port of I3D",
    "i3d_kinetics_sonnet_names": "Kinetics-400, RGB",
}


@pytest.mark.parametrize(("file", "title"), PUBLISHED.items())
def test_the_tables_have_the_published_names(file, title, checkpoints):
    names = set(json.loads((checkpoints.DATA / f"{file}.json").read_text()))
    names = {
        name.partition("::")[2] or name
        for name in names
        if not name.endswith("num_batches_tracked")
    }
    (source,) = [source for source in NAME_MAPS if title in source.title]
    ours = {
        unit[place] + source.variables[variable]
        for unit in source.units.values()
        for variable, place in (
            ("kernel", 0),
            ("bias", 0),
            ("gamma", 1),
            ("beta", 1),
            ("moving_mean", 1),
            ("moving_variance", 1),
        )
    }
    assert names <= ours
    assert {source.kernel(unit) for unit in source.units} - names <= {"Conv3d_6a_1x1_conv/kernel"}


def test_wrappers_names_and_other_types(checkpoints, tmp_path):
    tensors = {
        f"module.{name}": value.astype(np.float16)
        for name, value in checkpoints.torch_unet().items()
    }
    path = checkpoints.write_safetensors(tensors, tmp_path / "unet.safetensors")
    done = import_weights(path, ImportRequest("unet", clip=(32, 32)), tmp_path / "x.keras")
    assert all(name.startswith("module.") for row in done["mapped"] for name in row["from"])


def test_a_negative_variance_is_named(checkpoints, tmp_path):
    tensors = checkpoints.torch_unet()
    tensors["inc.double_conv.1.running_var"][0] = -1
    path = checkpoints.write_safetensors(tensors, tmp_path / "unet.safetensors")
    with pytest.raises(ModelError, match="negative variance"):
        import_weights(path, ImportRequest("unet", clip=(32, 32)), tmp_path / "x.keras")


def test_a_few_bytes_do_not_ask_for_a_large_network(checkpoints, tmp_path):
    tensors = {
        name: np.zeros((1, 1, 1, 1), np.float32)
        for name in checkpoints.torch_unet()
        if name.endswith("weight")
    }
    tensors["inc.double_conv.0.weight"] = np.zeros((9000, 1, 1, 1), np.float32)
    path = checkpoints.write_safetensors(tensors, tmp_path / "unet.safetensors")
    with pytest.raises(ModelError, match="does not fit 9000 filters"):
        import_weights(path, ImportRequest("unet"), tmp_path / "x.keras")
    wide = {
        "fc6/kernel": (1, 9000),
        "fc7/kernel": (1, 1),
        "logits/kernel": (1, 5),
        "conv1/kernel": (3, 3, 3, 1, 64),
    }
    path = checkpoints.write_legacy_h5(
        {n: np.zeros(s, np.float32) for n, s in wide.items()}, tmp_path / "ltc.h5"
    )
    with pytest.raises(ModelError, match=r"fc6/kernel is \[1, 9000\]"):
        import_weights(path, ImportRequest("ltc"), tmp_path / "x.keras")


@pytest.mark.parametrize(
    ("torch", "code"),
    [("raise ImportError", "torch_missing"), ('__version__ = "2.5.1+cpu"', "torch_too_old")],
)
def test_without_a_safe_torch_a_pickle_is_refused(torch, code, monkeypatch, tmp_path):
    """A module that stands for a torch of some version; its reader must not be reached."""
    (tmp_path / "torch.py").write_text(torch)
    monkeypatch.syspath_prepend(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
    with pytest.raises(UnsafeFile, match=r"\.\[torch\]|2\.6") as caught:
        import_weights(tmp_path / "a.pt", ImportRequest("i3d"), tmp_path / "x.keras")
    assert caught.value.code == code


def test_an_altered_shipped_file_is_not_loaded(tmp_path, monkeypatch):
    from tf_covid.weights import catalog

    shutil.copytree(catalog.folder() / "lungs-unet", tmp_path / "lungs-unet")
    monkeypatch.setattr(catalog, "folder", lambda: tmp_path)
    assert load("lungs-unet").contract.task == "lungs"
    with (tmp_path / "lungs-unet" / "model.keras").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ModelError, match="not the one in its model card"):
        load("lungs-unet")


def test_training_that_starts_from_a_file_keeps_its_window(tmp_path):
    from tf_covid.training.initialise import preprocessing_of_init
    from tf_covid.training.settings import Settings

    asked = Preprocessing(
        level_hu=-600.0, width_hu=1500.0, box="none", box_margin=0.2, input_scale=(2.0,)
    )
    arguments = {"input_shape": [32, 32, 1], "filters": 2}
    contract = Contract(
        model="unet", arguments=arguments, task="lungs", preprocessing=asked, note="-"
    )
    save_model(UNet((32, 32, 1), filters=2), contract, tmp_path / "x.keras")
    # Slice rule and box come before the network's input, and are the run's own.
    assert preprocessing_of_init(tmp_path / "x.keras")[0] == Preprocessing(
        level_hu=-600.0, width_hu=1500.0, input_scale=(2.0,)
    )
    kept = Settings(box_margin=0.1).preprocessing(preprocessing_of_init(tmp_path / "x.keras")[0])
    assert (kept.level_hu, kept.width_hu, kept.box, kept.box_margin) == (
        -600.0,
        1500.0,
        "lungs",
        0.1,
    )


@pytest.mark.slow
def test_training_that_starts_from_an_import_keeps_its_input(inceptions, tmp_path):
    from tf_covid.training.initialise import preprocessing_of_init

    wish = ImportRequest("i3d", clip=(16, 32, 32), inflate=True, allow_missing_head=True)
    import_weights(inceptions["torchvision"], wish, tmp_path / "x.keras")
    preprocessing, channels, shared = preprocessing_of_init(tmp_path / "x.keras")
    assert (preprocessing.input_scale, preprocessing.input_offset, channels) == ((2.0,), (-1.0,), 1)
    assert shared == {"stem": "symmetric"}
    assert preprocessing_of_init(None)[1:] == (1, {})
