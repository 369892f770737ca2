"""One shared test for every network: a new network is a new row."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from tf_covid.models import I3D, LTC, NETWORKS, InceptionV1, UNet
from tf_covid.models.inception import endpoint_names

ROWS = {
    "i3d": ("i3d", {"input_shape": (16, 64, 64, 1), "classes": 5, "ct_score": True}),
    "i3d-rgb": ("i3d", {"input_shape": (16, 40, 36, 3), "classes": 2}),
    "i3d-symmetric": ("i3d", {"input_shape": (16, 64, 32, 1), "classes": 5, "stem": "symmetric"}),
    "i3d-disease": (
        "i3d",
        {
            "input_shape": (16, 64, 32, 1),
            "classes": 5,
            "ct_score": True,
            "disease_pooling": "Mixed_3c",
        },
    ),
    "ltc": ("ltc", {"input_shape": (16, 32, 32, 1), "classes": 5, "dense": 32, "ct_score": True}),
    "c3d": ("ltc", {"input_shape": (16, 32, 48, 3), "classes": 2, "dense": 16, "trunk": "c3d"}),
    "ltc-disease": (
        "ltc",
        {
            "input_shape": (16, 32, 48, 1),
            "classes": 5,
            "dense": 16,
            "ct_score": True,
            "disease_pooling": "conv3",
        },
    ),
    "inception_v1": ("inception_v1", {"input_shape": (32, 48, 3), "classes": 7}),
    "inception_v1-symmetric": (
        "inception_v1",
        {"input_shape": (64, 32, 3), "classes": 7, "stem": "symmetric"},
    ),
    "unet": ("unet", {"input_shape": (32, 48, 1), "depth": 3, "filters": 4, "outputs": 2}),
    "unet3d": ("unet3d", {"input_shape": (16, 16, 32, 1), "filters": 2, "outputs": 6}),
}
each_network = pytest.mark.parametrize(("name", "arguments"), ROWS.values(), ids=ROWS.keys())

#: Rows that share their graph's code with another row: what takes seconds is tried on them by the
#: slow tests.
VARIANTS = ("i3d-rgb", "i3d-symmetric", "inception_v1-symmetric")
each_network_variants_slow = pytest.mark.parametrize(
    ("name", "arguments"),
    [
        pytest.param(*row, id=id, marks=pytest.mark.slow if id in VARIANTS else ())
        for id, row in ROWS.items()
    ],
)


def batch(arguments, count=2):
    return np.random.default_rng(0).random((count, *arguments["input_shape"]), np.float32)


@each_network
def test_shape_and_names_of_the_outputs(name, arguments):
    network = NETWORKS[name].build(**arguments)
    outputs = network(batch(arguments))
    expected = {"ct_score"} if arguments.get("ct_score") else set()
    assert set(outputs) == {"logits"} | expected | ({"flips"} if name == "unet3d" else set())
    if name == "unet3d":
        assert outputs["logits"].shape == (2, *arguments["input_shape"][:3], arguments["outputs"])
        assert outputs["flips"].shape == (2, 3)
    elif name == "unet":
        assert outputs["logits"].shape == (2, *arguments["input_shape"][:2], arguments["outputs"])
    else:
        assert outputs["logits"].shape == (2, arguments["classes"])
    if "ct_score" in outputs:
        assert outputs["ct_score"].shape == (2, 1)
        assert (outputs["ct_score"].numpy() >= 0).all()
        assert (outputs["ct_score"].numpy() <= 25).all()
    if NETWORKS[name].endpoint:
        assert network.get_layer(NETWORKS[name].endpoint(arguments)).output.shape[0] is None


@each_network
def test_keras_file_opens_in_safe_mode_without_our_classes(name, arguments, tmp_path):
    network = NETWORKS[name].build(**arguments)
    network.save(tmp_path / "network.keras")
    again = keras.saving.load_model(tmp_path / "network.keras", safe_mode=True)
    stock = {layer.__module__.split(".")[0] for layer in again.layers}
    assert stock == {"keras"}
    clip = batch(arguments)
    np.testing.assert_array_equal(network(clip)["logits"], again(clip)["logits"])


@pytest.mark.slow
@each_network_variants_slow
def test_saved_model_answers_alike(name, arguments, tmp_path):
    network = NETWORKS[name].build(**arguments)
    network.export(tmp_path / "saved", verbose=False)
    layer = keras.layers.TFSMLayer(tmp_path / "saved", call_endpoint="serve")
    clip = batch(arguments)
    np.testing.assert_allclose(layer(clip)["logits"], network(clip)["logits"], atol=1e-5)


@pytest.mark.slow
@each_network_variants_slow
@pytest.mark.parametrize(
    "precision", ["float32", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)]
)
def test_one_training_step_changes_every_trainable_weight(name, arguments, precision):
    keras.utils.set_random_seed(0)
    network = NETWORKS[name].build(
        **arguments | ({} if name.startswith("unet") else {"dropout": 0.0}), dtype=precision
    )
    before = [np.array(weight) for weight in network.trainable_weights]
    truth = {
        key: np.random.default_rng(1).random(value.shape)
        for key, value in network(batch(arguments)).items()
    }
    network.compile(keras.optimizers.SGD(1.0), loss=dict.fromkeys(truth, "mse"))
    loss = network.train_on_batch(batch(arguments), truth)
    assert np.isfinite(loss).all()
    unchanged = [
        w.path
        for w, old in zip(network.trainable_weights, before, strict=True)
        if (np.array(w) == old).all()
    ]
    assert unchanged == []


@pytest.mark.slow
@each_network
def test_mixed_precision_keeps_float32_logits_near_the_exact_ones(name, arguments):
    keras.utils.set_random_seed(2)
    exact = NETWORKS[name].build(**arguments)
    mixed = NETWORKS[name].build(**arguments, dtype="mixed_bfloat16")
    mixed.set_weights(exact.get_weights())
    clip = batch(arguments)
    logits, answer = exact(clip)["logits"].numpy(), mixed(clip)["logits"]
    assert answer.dtype == "float32"
    assert np.abs(answer - logits).max() < 0.1 * max(np.abs(logits).max(), 1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: I3D((4, 224, 224, 1)), "at least"),
        (lambda: I3D((16, 112, 112, 3), head="kinetics"), "kinetics head needs a clip of at least"),
        (lambda: I3D(head="average"), 'head must be "global" or "kinetics"'),
        (lambda: I3D((64, 224, 224, 3), head="kinetics", ct_score=True), "no ct_score"),
        (lambda: I3D(head="kinetics", disease_pooling="Mixed_3c"), "no disease_pooling"),
        (lambda: I3D(disease_pooling="conv3"), "i3d has no layer 'conv3'"),
        (lambda: I3D(disease_pooling="clip"), "i3d has no layer 'clip'"),
        (lambda: I3D(disease_pooling="\x1b" * 5000), r"no layer '(\\x1b){14}\\x1$"),
        (lambda: I3D((None, 224, 224, 1), disease_pooling="Mixed_3c"), "not three known sides"),
        (lambda: I3D((16, 64, 64, 1), disease_pooling="global_pool"), "has no layer 'global_pool'"),
        (lambda: LTC((16, 32, 32, 1), disease_pooling="flatten"), "ltc has no layer 'flatten'"),
        (lambda: LTC((8, 112, 112, 1)), "at least 16×32×32"),
        (lambda: LTC((None, 112, 112, 1)), "of known size"),
        (lambda: LTC(trunk="c4d"), "trunk must be one of"),
        (lambda: InceptionV1((16, 224, 3)), "at least 32×32"),
        (lambda: InceptionV1(stem="valid"), 'stem must be "same" or "symmetric"'),
        (lambda: UNet((100, 128, 1)), "multiples of 16"),
    ],
)
def test_impossible_clips_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_spot_in_one_region_is_kept_apart_from_the_others():
    network = I3D((16, 64, 64, 1), disease_pooling="Mixed_3c")
    cells = keras.Input((8, 8, 8, 1))
    x = network.get_layer("disease_share")(cells)
    mean, largest = (network.get_layer(f"disease_{name}")(x) for name in ("mean", "largest"))
    regions = keras.Model(cells, [mean, largest])
    logits = np.full((1, 8, 8, 8, 1), -20.0, np.float32)
    logits[0, 7, 1, 6] = 20.0  # at the feet, in front, on the patient's left
    mean, largest = (part.numpy()[0, ..., 0] for part in regions(logits))
    assert mean.shape == largest.shape == (4, 2, 2)
    assert largest[3, 0, 1] == pytest.approx(1.0)
    assert mean[3, 0, 1] == pytest.approx(1 / 32)
    assert (largest > 0.5).sum() == (mean > 0.01).sum() == 1


@pytest.mark.parametrize(("build", "endpoint"), [(I3D, "Mixed_3c"), (LTC, "conv3")])
def test_disease_that_is_mirrored_says_the_same(build, endpoint):
    network = build((16, 64, 64, 1), disease_pooling=endpoint)
    said = keras.Model(
        network.get_layer(f"disease_{endpoint}").input, network.get_layer("disease_logits").output
    )
    cells = np.random.default_rng(0).normal(0, 3, (2, *said.input_shape[1:])).astype(np.float32)
    here, mirrored, turned = (
        said(np.ascontiguousarray(one)).numpy()
        for one in (cells, cells[:, :, :, ::-1], cells[:, ::-1])
    )
    np.testing.assert_allclose(here, mirrored, atol=1e-4 * np.abs(here).max())
    assert np.abs(here - turned).max() > 1e-2 * np.abs(here).max()  # head and feet differ


def test_published_endpoint_names_are_layers_in_order():
    names = [layer.name for layer in I3D((8, 32, 32, 1)).layers]
    places = [names.index(name) for name in endpoint_names(3)]
    assert places == sorted(places)
    assert endpoint_names(3)[0] == "Conv3d_1a_7x7"
    assert endpoint_names(3)[-1] == "Mixed_5c"
    flat = [layer.name for layer in InceptionV1((32, 32, 3)).layers]
    assert set(endpoint_names(2)) <= set(flat)


@pytest.mark.parametrize(
    ("build", "shape"),
    [(I3D, (16, 64, 32, 1)), (InceptionV1, (64, 32, 1))],
    ids=["i3d", "inception_v1"],
)
def test_a_symmetric_stem_is_the_other_one_voxel_before(build, shape):
    """On an even side "same" puts two zeros before and three behind, "symmetric" three on each.

    Pushed one voxel on, the clip gives what it gave, in every window but the last two of an axis,
    which saw the voxel pushed out.
    """
    rank = len(shape) - 1
    symmetric, same = build(shape, classes=2, stem="symmetric"), build(shape, classes=2)
    same.set_weights(symmetric.get_weights())
    clip = np.random.default_rng(5).random((1, *shape), np.float32)
    pushed = np.pad(clip, [(0, 0), *[(1, 0)] * rank, (0, 0)])[(slice(None), *[slice(-1)] * rank)]
    name = f"Conv{rank}d_1a_7x7"
    ours = keras.Model(symmetric.input, symmetric.get_layer(name).output)(clip).numpy()
    theirs = keras.Model(same.input, same.get_layer(name).output)(pushed).numpy()
    assert ours.shape == theirs.shape
    inner = (slice(None), *[slice(-2)] * rank)
    np.testing.assert_allclose(ours[inner], theirs[inner], atol=1e-5)
    assert np.abs(ours - theirs).max() > 0.1


def test_known_sizes():
    # The published I3D with 400 classes: 12,689,984 is the sum over its names, moving statistics
    # aside.
    kinetics = I3D((16, 224, 224, 3), classes=400, head="kinetics")
    assert sum(int(np.prod(w.shape)) for w in kinetics.trainable_weights) == 12_689_984
    first_dense = LTC((64, 224, 224, 1)).get_layer("fc6").kernel
    assert int(np.prod(first_dense.shape)) == 102_760_448  # the 103 M of the issue
