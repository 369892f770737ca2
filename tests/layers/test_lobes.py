"""Lobe segmenter and gate, by their laws."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_covid.layers import ContextGate, LobeSegmenter
from tf_covid.models import UNet3D
from tf_covid.tissues import CLASSES, EFFUSION_CLASS

GRID = (16, 16, 32)


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(4)
    return UNet3D((*GRID, 1), depth=2, filters=2, outputs=len(CLASSES))


def plain(*shape):
    """A network whose output is its input."""
    inputs = keras.Input(shape)
    return keras.Model(inputs, keras.layers.ReLU()(inputs))


def planes(count=1, depth=20, side=24, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1000, 400, (count, depth, side, side)).astype(np.float32)


def test_what_is_said_of_a_scan_does_not_depend_on_its_company(network):
    """Padding slices of a shorter scan change nothing, nor do the other scans of the batch."""
    segmenter = LobeSegmenter(network)
    short, long = planes(depth=11, seed=1), planes(depth=20, seed=2)
    padded = np.concatenate([short, np.full((1, 9, 24, 24), 3000, np.float32)], axis=1)
    both = segmenter(np.concatenate([padded, long]), np.array([11, 20], np.int32))
    for index, (alone, depth) in enumerate(((short, 11), (long, 20))):
        single = segmenter(alone, np.array([depth], np.int32))
        for name, value in single.items():
            np.testing.assert_allclose(both[name][index], value[0], atol=1e-4, err_msg=name)


def test_shares_are_the_softmax_of_the_network(network):
    segmenter = LobeSegmenter(network, -300.0, 1600.0)
    cells = planes(depth=GRID[0], side=32)[:, :, ::2]  # on the network's own grid
    windowed = np.clip((cells + 1100) / 1600, 0, 1)[..., np.newaxis]
    right = keras.ops.softmax(network(windowed)["logits"]).numpy()
    answer = segmenter(cells, np.array([GRID[0]], np.int32))
    np.testing.assert_allclose(answer["lobes"], right[..., 1:6], atol=1e-5)
    np.testing.assert_allclose(answer["effusion"], right[..., EFFUSION_CLASS], atol=1e-5)


def test_a_flipped_scan_gets_the_opposite_answer(network):
    """About the axes that the views flip; the mean over views makes this exact."""
    segmenter = LobeSegmenter(network)
    cells, depth = planes(depth=GRID[0], side=32)[:, :, ::2], np.array([GRID[0]], np.int32)
    stored = segmenter(cells, depth)["orientation"].numpy()[0]
    feet_first = segmenter(cells[:, ::-1], depth)["orientation"].numpy()[0]
    mirrored = segmenter(cells[..., ::-1], depth)["orientation"].numpy()[0]
    np.testing.assert_allclose(feet_first, stored * [-1, 1, 1], atol=1e-4)
    np.testing.assert_allclose(mirrored, stored * [1, 1, -1], atol=1e-4)


def test_without_tissues_there_is_no_effusion():
    network = UNet3D((*GRID, 1), depth=2, filters=2, outputs=6)
    answer = LobeSegmenter(network)(planes(), np.array([20], np.int32))
    assert not answer["effusion"].numpy().any()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: UNet3D((*GRID, 1), depth=2, filters=2, outputs=5), "a logit for each lobe"),
        (lambda: plain(4, 4, 4, 1), "outputs logits and flips"),
        (lambda: plain(None, 4, 4, 1), "of a fixed size"),
        (lambda: plain(4, 4, 1), "of a fixed size"),
    ],
)
def test_networks_that_are_none_for_lobes_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        LobeSegmenter(build())


def lobes_in(slices, rows, columns, share=1.0):
    """Coarse lobes (1, d, f, g, 5): one lobe has `share` within a box."""
    lobes = np.zeros((1, *GRID, 5), np.float32)
    lobes[0, slices[0] : slices[1], rows[0] : rows[1], columns[0] : columns[1], 2] = share
    return lobes


def test_lung_stays_within_the_lobes_and_goes_elsewhere():
    gate = ContextGate()
    masks = np.ones((1, 32, 64, 64, 2), np.float32)
    gated = gate(lobes_in((4, 10), (2, 9), (8, 20)), masks, np.array([32], np.int32)).numpy()[0]
    # A coarse cell is 2 slices, 4 rows and 2 columns.
    assert (gated[8:20, 8:36, 16:40] == 1).all()
    assert not gated[:6].any()
    assert not gated[22:].any()
    assert not gated[:, 40:].any()
    assert not gated[:, :, 42:].any()
    np.testing.assert_array_equal(gated[..., 0], gated[..., 1])


def test_the_gate_is_a_ramp_between_its_shares():
    masks, depth = np.full((1, 16, 16, 32, 1), 0.8, np.float32), np.array([16], np.int32)
    for share, part in ((0.2, 0.0), (0.25, 0.0), (0.35, 0.5), (0.45, 1.0), (0.7, 1.0)):
        gated = ContextGate(0.25, 0.45)(lobes_in((0, 16), (0, 16), (0, 32), share), masks, depth)
        np.testing.assert_allclose(gated, 0.8 * part, atol=1e-5)


def test_where_the_lobes_are_sure_the_odds_of_lung_rise_and_those_of_disease_do_not():
    depth = np.array([16], np.int32)
    for probability in (0.0, 1e-6, 0.1, 0.5, 1.0):
        masks = np.full((1, 16, 16, 32, 2), probability, np.float32)
        for share, rise in ((0.6, 0.0), (0.8, 1.5), (0.9, 3.0), (1.0, 3.0)):
            lobes = lobes_in((0, 16), (0, 16), (0, 32), share)
            gated = ContextGate()(lobes, masks, depth).numpy()
            odds = probability * np.exp(rise)
            np.testing.assert_allclose(gated[..., 0], odds / (1 - probability + odds), atol=1e-5)
            np.testing.assert_allclose(gated[..., 1], probability, atol=1e-6)
    plain = ContextGate(gain=0.0)(lobes, masks * 0.3, depth).numpy()
    np.testing.assert_allclose(plain, masks * 0.3, atol=1e-6)


def test_the_coarse_grid_covers_the_true_slices_from_edge_to_edge():
    """A shorter scan of a batch is gated as if it had come alone."""
    gate, lobes = ContextGate(), lobes_in((3, 9), (0, 16), (0, 32))
    alone = gate(lobes, np.ones((1, 12, 16, 32, 1), np.float32), np.array([12], np.int32)).numpy()
    padded = np.ones((2, 30, 16, 32, 1), np.float32)
    both = gate(np.repeat(lobes, 2, axis=0), padded, np.array([12, 30], np.int32)).numpy()
    np.testing.assert_allclose(both[0, :12], alone[0], atol=1e-6)
    halves = both[1, ::2, 8, 16, 0], gate(lobes, padded[:1, :15], np.array([15], np.int32))
    # Half a slice of the shorter one.
    assert abs(float(both[1].mean()) - float(np.mean(halves[1]))) < 0.5 / 15


@pytest.mark.parametrize("chunk", [1, 7, 30, 64])
def test_how_many_slices_go_at_a_time_has_no_say_in_the_gate(chunk):
    rng = np.random.default_rng(0)
    masks = tf.constant(rng.random((2, 15, 16, 32, 2), np.float32))
    lobes, depth = rng.dirichlet(np.ones(7), (2, *GRID))[..., :5].astype(np.float32), [15, 11]
    before, depth = masks.numpy().copy(), np.array(depth, np.int32)
    gated = ContextGate(chunk=chunk)(lobes, masks, depth).numpy()
    np.testing.assert_allclose(gated, ContextGate()(lobes, masks, depth), atol=1e-6)
    assert len(np.unique(gated)) > 1000
    one_by_one = tf.function(ContextGate(chunk=chunk).each)
    lungs, disease = one_by_one(lobes, tf.unstack(masks, axis=-1), depth)
    np.testing.assert_allclose(np.stack([lungs, disease], axis=-1), gated, atol=1e-6)
    np.testing.assert_array_equal(masks, before)  # what was given is not written to


@pytest.mark.parametrize(
    "arguments",
    [
        (0.5, 0.5),
        (-0.1, 0.5),
        (0.2, 1.1),
        (0.2, 0.5, (0.9, 0.9)),
        (0.2, 0.5, (0.9, 1.1)),
        (0.2, 0.5, (0.7, 0.9), -1),
    ],
)
def test_impossible_gates_are_refused(arguments):
    with pytest.raises(ValueError, match=r"0 ≤ (low|sure)"):
        ContextGate(*arguments)


def test_a_gate_takes_a_slice_at_a_time_at_least():
    with pytest.raises(ValueError, match="positive, not 0"):
        ContextGate(chunk=0)


def test_layers_are_rebuilt_from_their_config(network):
    segmenter = LobeSegmenter(network, level_hu=-200.0)
    again = LobeSegmenter.from_config(segmenter.get_config())
    again.network.set_weights(network.get_weights())
    depth = np.array([20], np.int32)
    for name, value in segmenter(planes(), depth).items():
        np.testing.assert_allclose(again(planes(), depth)[name], value, atol=1e-6)
    gate = ContextGate.from_config(ContextGate(0.2, 0.4, (0.6, 0.8), 2.0, 5).get_config())
    assert (gate.low, gate.high, gate.sure, gate.gain) == (0.2, 0.4, (0.6, 0.8), 2.0)
    assert gate.chunk == 5
