"""Attention by its laws: the closed form, the mirror, and the way back onto the scan."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from tf_keras_vis.gradcam import Gradcam
from tf_keras_vis.gradcam_plus_plus import GradcamPlusPlus
from tf_keras_vis.layercam import Layercam

from tf_covid import attention
from tf_covid.attention import Axis
from tf_covid.models import I3D, LTC


@pytest.fixture(scope="module")
def i3d():
    keras.utils.set_random_seed(0)
    return I3D((16, 64, 64, 1), classes=5, ct_score=True)


@pytest.fixture(scope="module")
def clip():
    return np.random.default_rng(1).random((1, 16, 64, 64, 1), np.float32)


def test_backbone_and_head_are_the_network(i3d, clip):
    cut = attention.split(i3d, "Mixed_5c")
    outputs = cut.head(cut.backbone(clip))
    np.testing.assert_allclose(outputs["logits"], i3d(clip)["logits"], atol=1e-6)
    np.testing.assert_allclose(outputs["ct_score"], i3d(clip)["ct_score"], atol=1e-5)


@pytest.mark.parametrize("number", [0, 3])
def test_gradcam_equals_the_closed_form_of_a_global_pool_head(i3d, clip, number):
    """The gradient of a logit behind a global average is its dense weights over the number of cells
    (Zhou 2016)."""
    cut = attention.split(i3d, "Mixed_5c")
    features = cut.backbone(clip)
    raw = attention.attention_map(cut, features, attention.class_logit(number))
    weights = i3d.get_layer("logits").kernel.numpy()[:, number]
    cells = np.prod(features.shape[1:4])
    closed = np.maximum((features.numpy()[0] * weights / cells).sum(axis=-1), 0)
    assert raw.shape == features.shape[1:4]
    np.testing.assert_allclose(raw, closed, atol=1e-5 * max(closed.max(), 1e-3))


def test_expected_class_target_is_the_chain_rule_of_the_closed_form(i3d, clip):
    cut = attention.split(i3d, "Mixed_5c")
    features = cut.backbone(clip)
    raw = attention.attention_map(cut, features, attention.expected_class)
    p = tf.nn.softmax(cut.head(features)["logits"]).numpy()[0].astype(np.float64)
    slope = p * (np.arange(5) - (p * np.arange(5)).sum())  # dE/dlogit_k
    weights = i3d.get_layer("logits").kernel.numpy() @ slope / np.prod(features.shape[1:4])
    closed = np.maximum((features.numpy()[0] * weights).sum(axis=-1), 0)
    np.testing.assert_allclose(raw, closed, atol=1e-5 * max(closed.max(), 1e-3))


def test_a_layer_that_the_answer_goes_past_is_refused_by_name():
    network = I3D((8, 32, 32, 1), disease_pooling="Mixed_3c")
    clip = np.random.default_rng(0).random((1, 8, 32, 32, 1), np.float32)
    cut = attention.split(network, "Mixed_3c")
    logits = cut.head(cut.backbone(clip))["logits"]
    np.testing.assert_allclose(logits, network(clip)["logits"], atol=1e-5)
    for endpoint in ("Mixed_4f", "Mixed_5c"):
        with pytest.raises(ValueError, match=f"depends on layers before {endpoint}"):
            attention.split(network, endpoint)


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "layercam"])
@pytest.mark.parametrize("endpoint", ["Mixed_5c", "Mixed_4f"])
def test_every_method_gives_a_finite_map_that_is_never_negative(i3d, clip, method, endpoint):
    cut = attention.split(i3d, endpoint)
    raw = attention.attention_map(cut, cut.backbone(clip), attention.expected_class, method)
    assert raw.ndim == 3
    assert np.isfinite(raw).all()
    assert (raw >= 0).all()


def test_an_unknown_method_is_named(i3d, clip):
    cut = attention.split(i3d, "Mixed_5c")
    with pytest.raises(ValueError, match="method must be one of"):
        attention.attention_map(cut, cut.backbone(clip), attention.expected_class, "saliency")


def test_the_bright_spot_raises_the_score_there():
    """Polarity and place: a net that sums what it sees must look where something is."""
    inputs = keras.Input((8, 32, 32, 1))
    x = keras.layers.AveragePooling3D(4, name="cells")(inputs)
    pooled = keras.layers.GlobalAveragePooling3D()(x)
    network = keras.Model(inputs, {"logits": keras.layers.Dense(2, name="logits")(pooled)})
    network.get_layer("logits").set_weights(
        [np.array([[-1.0, 1.0]], np.float32), np.zeros(2, np.float32)]
    )
    clip = np.zeros((1, 8, 32, 32, 1), np.float32)
    clip[0, 5, 9, 26] = 1.0
    cut = attention.split(network, "cells")
    raw = attention.attention_map(cut, cut.backbone(clip), attention.expected_class)
    assert np.unravel_index(raw.argmax(), raw.shape) == (1, 2, 6)
    axes = attention.feature_axes(network, "cells")
    box = np.array([0.25, 0.75, 0.5, 1.0])
    keep = np.zeros(20, bool)
    keep[4:20:2] = True  # eight kept slices: frame 5 is slice 14
    volume, _ = attention.onto_scan(raw, axes, (8, 32, 32), keep, box, np.ones((20, 128, 128)))
    brightest = np.nonzero(volume == 255)
    # Clip (5, 9, 26) lies in the cell of frames 4–7, rows 8–11, columns 24–27; two scan pixels are
    # one of the clip.
    # It is the last cell of two in depth: from its centre on, its value continues to the end.
    assert brightest[0].min() == pytest.approx(4 + 2 * 5.5, abs=1.01)
    y, x = (axis.mean() for axis in brightest[1:])
    assert y == pytest.approx(32 + 2 * 10, abs=2)
    assert x == pytest.approx(64 + 2 * 26, abs=2)


def test_flipping_the_clip_flips_the_map():
    """With odd, centred strides a mirror symmetric network has a mirror symmetric map."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((9, 27, 27, 1))
    conv = keras.layers.Conv3D(6, 3, strides=3, activation="relu", name="cells")
    x = keras.layers.GlobalAveragePooling3D()(conv(inputs))
    network = keras.Model(inputs, {"logits": keras.layers.Dense(5, name="logits")(x)})
    kernel = conv.kernel.numpy()
    conv.kernel.assign((kernel + kernel[:, :, ::-1]) / 2)
    clip = np.random.default_rng(4).random((1, 9, 27, 27, 1), np.float32)
    cut = attention.split(network, "cells")

    def volume(clip):
        raw = attention.attention_map(cut, cut.backbone(clip), attention.expected_class)
        axes, box = attention.feature_axes(network, "cells"), np.array([0.1, 0.9, 0.2, 0.8])
        return attention.onto_scan(
            raw, axes, (9, 27, 27), np.ones(12, bool), box, np.ones((12, 50, 60))
        )[0]

    assert volume(clip).any()
    np.testing.assert_allclose(volume(clip[:, :, :, ::-1])[..., ::-1], volume(clip), atol=1)


@pytest.mark.parametrize(
    ("network", "endpoint"),
    [
        (I3D((24, 96, 112, 1)), "Mixed_5c"),
        (I3D((16, 64, 64, 1)), "Mixed_4f"),
        (I3D((16, 96, 64, 1), stem="symmetric"), "Mixed_5c"),
        (LTC((16, 64, 64, 1), dense=8), "conv5"),
    ],
    ids=["i3d-5c", "i3d-4f", "i3d-symmetric", "ltc"],
)
def test_cells_lie_where_the_network_put_them(network, endpoint):
    """Against TensorFlow's own average pooling of the voxel positions with the same windows."""
    axes = attention.feature_axes(network, endpoint)
    for number in range(3):
        strides = _strided(network, endpoint, number)
        centre = _centre_of_cell(strides, network.input_shape[1 + number], cell=1)
        assert axes[number].first + axes[number].step == pytest.approx(centre)


@pytest.mark.parametrize("stem", ["same", "symmetric"])
def test_a_spot_lights_the_cells_that_lie_around_it(stem):
    """The stem's kernel set to ones sees a single voxel with windows whose mean position is that
    voxel's."""
    network = I3D((16, 64, 64, 1), classes=2, stem=stem)
    conv = network.get_layer("Conv3d_1a_7x7_conv")
    conv.set_weights([np.ones(conv.kernel.shape, np.float32)])
    axes, spot = attention.feature_axes(network, conv.name), (7, 31, 20)
    clip = np.zeros((1, 16, 64, 64, 1), np.float32)
    clip[(0, *spot)] = 1.0
    seen = np.nonzero(keras.Model(network.input, conv.output)(clip).numpy()[0, ..., 0])
    for axis, cells, place in zip(axes, seen, spot, strict=True):
        # Seven voxels are seen by three or four windows of stride two.
        positions = axis.first + axis.step * np.unique(cells)
        assert len(positions) in (3, 4)
        assert np.abs(positions - place).max() <= 3
        assert positions.mean() == pytest.approx(place, abs=0.5 if len(positions) == 4 else 0.01)


def _strided(network, endpoint, axis):
    rows = []
    for layer in network.layers:
        if isinstance(layer, keras.layers.ZeroPadding3D):
            rows.append((1, 1, layer.padding[axis]))
        if max(getattr(layer, "strides", (1,))) > 1:
            size = getattr(layer, "kernel_size", None) or layer.pool_size
            rows.append((size[axis], layer.strides[axis], layer.padding))
        if layer.name == endpoint:
            return rows
    raise AssertionError(endpoint)


def _centre_of_cell(rows, size, cell):
    """Average TensorFlow's own pooling over voxel positions: what a cell's window is centred on."""
    position = np.arange(size, dtype=np.float32)
    # Positions continue beyond the border: average pooling with explicit padding, so that the
    # border does not pull.
    for kernel, stride, padding in rows:
        n = len(position)
        step = position[1] - position[0] if n > 1 else np.float32(1)
        if padding != "valid":
            out = -(-n // stride)
            total = max((out - 1) * stride + kernel - n, 0)
            before, after = (
                padding if isinstance(padding, tuple) else (total // 2, total - total // 2)
            )
            left = position[0] - step * np.arange(before, 0, -1)
            right = position[-1] + step * np.arange(1, after + 1)
            position = np.concatenate([left, position, right]).astype(np.float32)
        pooled = tf.nn.avg_pool1d(position[None, :, None], kernel, stride, "VALID")
        position = pooled.numpy()[0, :, 0]
    return (
        position[cell]
        if len(position) > cell
        else position[0] + (cell * np.prod([row[1] for row in rows]))
    )


def test_strides_in_branches_are_refused():
    inputs = keras.Input((8, 32, 32, 1))
    branches = [keras.layers.Conv3D(2, 1, strides=2)(inputs) for _ in range(2)]
    joined = keras.layers.Concatenate(name="joined")(branches)
    network = keras.Model(
        inputs, {"logits": keras.layers.GlobalAveragePooling3D(name="logits")(joined)}
    )
    with pytest.raises(ValueError, match="strides give"):
        attention.feature_axes(network, "joined")


SAME = (Axis(1, 0), Axis(1, 0), Axis(1, 0))


def test_outside_the_box_the_lungs_and_in_other_slices_is_nothing():
    keep = np.zeros(10, bool)
    keep[3:7] = True
    lungs = np.ones((10, 16, 16), np.uint8)
    lungs[:, 6] = 0
    raw, box = np.ones((4, 8, 8), np.float32), np.array([0.25, 0.75, 0.5, 1.0])
    volume, inside = attention.onto_scan(raw, SAME, (4, 8, 8), keep, box, lungs)
    expected = np.zeros_like(volume)
    expected[3:7, 4:12, 8:] = 255
    expected[:, 6] = 0
    np.testing.assert_array_equal(volume, expected)
    assert inside == pytest.approx(7 / 8)


def test_the_maximum_is_that_within_the_lungs():
    raw = np.zeros((2, 4, 4), np.float32)
    raw[0, 0, 0], raw[1, 3, 3] = 8.0, 2.0
    lungs = np.ones((2, 4, 4), np.uint8)
    lungs[0, 0, 0] = 0
    volume, inside = attention.onto_scan(
        raw, SAME, (2, 4, 4), np.ones(2, bool), np.array([0, 1, 0, 1.0]), lungs
    )
    assert volume[1, 3, 3] == 255
    assert volume.sum() == 255
    assert inside == pytest.approx(0.2)


def test_an_empty_map_stays_empty():
    raw, full = np.zeros((2, 2, 2), np.float32), np.array([0, 1, 0, 1.0])
    volume, inside = attention.onto_scan(
        raw, SAME, (2, 2, 2), np.ones(4, bool), full, np.ones((4, 8, 8))
    )
    assert volume.shape == (4, 8, 8)
    assert not volume.any()
    assert inside is None


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (2, 2), ((1, 3, 3), (1, 2, 2))])
def test_the_fair_pool_is_a_max_pool_and_its_gradient_is_tensorflows_where_nothing_ties(
    size, stride, padding
):
    arguments = {"pool_size": size, "strides": stride, "padding": padding}
    x = tf.constant(np.random.default_rng(5).standard_normal((2, 7, 8, 9, 3), np.float32))
    answers, gradients = [], []
    for kind in (attention.TieSharingMaxPool3D, keras.layers.MaxPooling3D):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = kind(**arguments)(x)
            score = tf.reduce_sum(
                y * tf.cos(tf.reshape(tf.range(tf.size(y), dtype=tf.float32), y.shape))
            )
        answers.append(y.numpy())
        gradients.append(tape.gradient(score, x).numpy())
    np.testing.assert_array_equal(*answers)
    np.testing.assert_allclose(*gradients, atol=1e-6)


def test_ties_share_the_gradient_of_their_window():
    """TensorFlow's own CPU kernel gives it to each of them, 27 times over where a clip is
    constant."""
    x = tf.ones((1, 6, 6, 6, 1))
    with tf.GradientTape() as tape:
        tape.watch(x)
        score = tf.reduce_sum(attention.TieSharingMaxPool3D(2)(x))
    np.testing.assert_allclose(tape.gradient(score, x), np.full(x.shape, 1 / 8), atol=1e-6)


@pytest.mark.parametrize("wide", [1, 3])
@pytest.mark.parametrize(("scale", "offset"), [(10.0, 0.0), (-0.5, 2.0), ([2.0, 3.0, 4.0], 1.0)])
def test_sums_and_scalings_of_a_head_keep_their_gradient(scale, offset, wide):
    inputs = keras.Input((4, 6, 8, 1))
    features = keras.layers.Conv3D(3, 1, name="end")(inputs)
    x = keras.layers.Rescaling(scale, offset)(features)
    x = keras.layers.Add()([x, keras.layers.Conv3D(wide, 1)(features)])
    logits = keras.layers.Dense(5)(keras.layers.GlobalMaxPooling3D()(keras.activations.tanh(x)))
    cut = attention.split(keras.Model(inputs, {"logits": logits}), "end")
    given = cut.backbone(keras.random.normal((2, 4, 6, 8, 1), seed=1))
    answers, gradients = [], []
    for head in (cut.head, cut.tie_sharing_head):
        with tf.GradientTape() as tape:
            tape.watch(given)
            answers.append(head(given)["logits"])
            score = attention.expected_class(answers[-1])
        gradients.append(tape.gradient(score, given))
    np.testing.assert_array_equal(*answers)
    np.testing.assert_allclose(*gradients, atol=1e-6 * np.abs(gradients[0]).max())


def test_a_map_is_the_same_in_a_graph_and_outside(i3d, clip):
    """What tf-keras-vis computes outside a graph is what an export computes inside, on a clip that
    is mostly empty."""
    clip = np.array(clip)
    clip[:, :, :20], clip[:, :, :, 40:] = 0, 0
    cut = attention.split(i3d, "Mixed_3c")
    features = cut.backbone(clip)

    @tf.function
    def weights(features):
        with tf.GradientTape() as tape:
            tape.watch(features)
            score = attention.expected_class(
                cut.tie_sharing_head(features, training=False)["logits"]
            )
        return tf.reduce_mean(tape.gradient(score, features), axis=(1, 2, 3))

    raw = attention.attention_map(cut, features, attention.expected_class)
    inside = np.maximum(
        (features.numpy() * weights(features).numpy()[:, None, None, None]).sum(-1), 0
    )[0]
    assert inside.max() > 0
    np.testing.assert_allclose(raw, inside, atol=1e-5 * inside.max())


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "layercam"])
@pytest.mark.parametrize("number", [None, 2])
def test_the_compiled_step_gives_the_map_of_the_head_itself(i3d, clip, method, number):
    """tf-keras-vis on a plain head, operation by operation, is the truth."""
    target = attention.expected_class if number is None else attention.class_logit(number)
    cut = attention.split(i3d, "Mixed_3c")
    features = cut.backbone(clip)
    inputs = keras.Input(features.shape[1:], name="seed")
    first = keras.layers.Activation("linear", name="features")(inputs)
    plain = keras.Model(inputs, cut.tie_sharing_head(first)["logits"])
    kinds = {"gradcam": Gradcam, "gradcam++": GradcamPlusPlus, "layercam": Layercam}
    cam = kinds[method](plain, clone=False)(
        target,
        features,
        penultimate_layer="features",
        seek_penultimate_conv_layer=False,
        expand_cam=False,
        normalize_cam=False,
    )
    expected = np.asarray(cam)[0]
    raw = attention.attention_map(cut, features, target, method)
    assert expected.max() > 0
    np.testing.assert_allclose(raw, np.maximum(expected, 0), atol=1e-5 * expected.max())


def test_a_target_is_traced_once_and_asks_for_no_gradient_by_a_kernel(i3d, clip):
    cut = attention.split(i3d, "Mixed_3c")
    features = cut.backbone(clip)
    for number in (1, 1, 3, 1):
        attention.attention_map(cut, features, attention.class_logit(number))
    step = cut.step(attention.class_logit(1))
    assert step.experimental_get_tracing_count() == 1
    (traced,) = step._list_all_concrete_functions()
    needed, waiting = set(), [output.op for output in traced.outputs]
    while waiting:
        operation = waiting.pop()
        if operation not in needed:
            needed.add(operation)
            waiting += [*operation.control_inputs, *(tensor.op for tensor in operation.inputs)]
    kinds = {operation.type for operation in needed}
    assert "Conv3DBackpropInputV2" in kinds
    assert not kinds & {"Conv3DBackpropFilterV2", "Conv2DBackpropFilter"}


def test_each_scan_of_a_batch_has_its_own_gradient(i3d, clip):
    cut = attention.split(i3d, "Mixed_5c")
    features = tf.concat([cut.backbone(clip), 2.0 * cut.backbone(clip[:, :, ::-1])], axis=0)
    explained = cut.explained(attention.expected_class)
    gradients = []
    for batch in (features, features[:1], features[1:]):
        with tf.GradientTape() as tape:
            tape.watch(batch)
            score = tf.reduce_sum(explained(batch)[:, 0] * tf.range(1.0, 1.0 + len(batch)))
        gradients.append(tape.gradient(score, batch).numpy())
    nearly = 1e-5 * np.abs(gradients[0]).max()
    np.testing.assert_allclose(gradients[0][:1], gradients[1], atol=nearly)
    np.testing.assert_allclose(gradients[0][1:], 2.0 * gradients[2], atol=nearly)


def test_weights_that_change_change_the_map(clip):
    """Nothing of them is kept in the compiled step."""
    keras.utils.set_random_seed(5)
    network = LTC((16, 64, 64, 1), dense=8)
    cut = attention.split(network, "conv3")
    features = cut.backbone(clip)
    before = attention.attention_map(cut, features, attention.class_logit(0))
    logits = next(layer for layer in network.layers if layer.name == "logits")
    logits.set_weights([-values for values in logits.get_weights()])
    after = attention.attention_map(cut, features, attention.class_logit(0))
    assert (before > 0).any()
    assert not (np.minimum(before, after) > 1e-6 * before.max()).any()
