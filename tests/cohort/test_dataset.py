"""Batches: in the order that was asked for, the same whatever happened before.

And the layers that take them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tf_covid.cohort.augment import Augmentation
from tf_covid.cohort.cache import _example
from tf_covid.cohort.dataset import batches, plane_bytes, visits
from tf_covid.cohort.training_input import ClipTrainingInput, SliceTrainingInput
from tf_covid.weights import Preprocessing

GRID = (6, 16, 16)
STILL = Augmentation(
    flip=0, degrees=0, scale=0, shift=0, hu_shift=0, hu_scale=0, noise_hu=0, slice_drop=0
)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Nine records; every voxel of record n is n − 100 HU, its slices count up by 10.

    The lungs are the inner box.
    """
    folder, paths = tmp_path_factory.mktemp("records"), []
    lungs = np.zeros(GRID, bool)
    lungs[:, 4:12, 4:12] = True
    for number in range(9):
        hu = (
            np.full(GRID, number - 100, "<i2") + 10 * np.arange(GRID[0], dtype="<i2")[:, None, None]
        )
        lesions = lungs & (np.arange(GRID[0])[:, None, None] == number) if number != 8 else None
        paths.append(folder / f"{number}.tfrecord")
        with tf.io.TFRecordWriter(str(paths[-1])) as writer:
            writer.write(
                _example({"hu": hu, "lungs": lungs, "lesions": lesions}).SerializeToString()
            )
    return paths


def read(
    records: list[Path], **how: object
) -> list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]:
    found = batches(records, {"logits": np.arange(len(records)) * 7}, GRID, **how)  # type: ignore[arg-type]
    return [
        tuple({key: value.numpy() for key, value in part.items()} for part in pair)
        for pair in found
    ]


def test_records_come_in_order_with_their_targets(records: list[Path]) -> None:
    order = np.array([[3, 1, 4, 0, 5], [2, 6, 5, 3, 8]])
    found = read(records, order=order, batch=2, seed=3)
    assert [len(inputs["hu"]) for inputs, _ in found] == [2, 2, 1, 2, 2, 1]
    assert np.concatenate([inputs["hu"][:, 0, 0, 0] for inputs, _ in found]).tolist() == [
        number - 100 for number in order.ravel()
    ]
    assert (
        np.concatenate([target["logits"] for _, target in found]).tolist()
        == (order.ravel() * 7).tolist()
    )
    assert all(inputs["hu"].dtype == np.int16 for inputs, _ in found)
    # Every element has a seed of its own.
    assert len({tuple(seed) for inputs, _ in found for seed in inputs["seed"]}) == order.size


@pytest.mark.parametrize("slices", [0, 2])
def test_an_epoch_does_not_depend_on_those_before(records: list[Path], slices: int) -> None:
    order = np.stack([visits(8, epoch, 5, 2) for epoch in range(3)])
    whole = read(records, order=order, batch=2, seed=5, slices=slices)
    later = read(records, order=order[1:], batch=2, seed=5, slices=slices, first_epoch=1)
    each = len(whole) // 3
    for (inputs, _), (again, _) in zip(whole[each:], later, strict=True):
        for key, value in inputs.items():
            np.testing.assert_array_equal(value, again[key])


def test_an_epochs_order_follows_from_its_number() -> None:
    assert np.array_equal(visits(10, 3, 1, 4), visits(10, 3, 1, 4))
    assert not np.array_equal(visits(10, 3, 1, 4), visits(10, 4, 1, 4))
    assert len(visits(10, 0, 1, 4)) == 8
    assert sorted(visits(3, 0, 1, 8)) == [0, 1, 2]


def test_slices_are_drawn_mixed_and_keep_their_masks(records: list[Path]) -> None:
    found = read(records, order=visits(8, 0, 1, 8)[np.newaxis], batch=6, seed=1, slices=3)
    rows = {key: np.concatenate([inputs[key] for inputs, _ in found]) for key in found[0][0]}
    assert rows["hu"].shape == (24, 16, 16)
    assert rows["lungs"].shape == (24, plane_bytes(GRID))
    owner = np.concatenate([target["logits"] for _, target in found]) // 7
    assert (rows["hu"][:, 0, 0] == owner - 100 + 10 * rows["slice"]).all()
    ill = np.unpackbits(rows["lesions"], axis=1).sum(axis=1)
    assert (ill == 64 * (rows["slice"] == owner)).all()
    # Neighbours are not of one record.
    assert (owner[1:] != owner[:-1]).sum() > 12


def test_slices_are_drawn_with_the_global_seed_0(records: list[Path]) -> None:
    tf.random.set_seed(0)  # what a training of seed 0 does in its first fold
    try:
        found = read(records, order=visits(8, 0, 0, 8)[np.newaxis], batch=6, seed=0, slices=3)
    finally:
        tf.random.set_seed(1)
    assert sum(len(inputs["hu"]) for inputs, _ in found) == 24


def test_all_slices_come_in_order(records: list[Path]) -> None:
    ((inputs, _),) = read(records, order=np.array([[8]]), batch=99, seed=0, slices=-1)
    assert inputs["slice"].tolist() == list(range(6))
    assert not inputs["lesions"].any()


def test_planes_must_fill_bytes() -> None:
    with pytest.raises(ValueError, match="multiple of 8 pixels, not 5×5"):
        plane_bytes((4, 5, 5))


def feed(augmentation: Augmentation, clip: tuple[int, int, int] = GRID) -> ClipTrainingInput:
    return ClipTrainingInput(GRID, clip, Preprocessing(), 1, augmentation)


def test_without_changes_training_sees_what_testing_sees(records: list[Path]) -> None:
    (inputs, _), *_ = read(records, order=np.array([[0, 5]]), batch=2, seed=1)
    still, lesions = feed(STILL)(**inputs, training=True)
    plain, same = feed(Augmentation())(**inputs, training=False)
    np.testing.assert_allclose(still, plain, atol=1e-5)
    np.testing.assert_allclose(lesions, same, atol=1e-5)
    # The window of the study, within the lungs only.
    np.testing.assert_allclose(
        plain.numpy()[1, 2, 4:12, 4:12, 0], (5 - 100 + 20 + 1100) / 1400, atol=1e-5
    )
    assert plain.numpy()[:, :, :4].max() == 0
    assert same.numpy()[1, 5].sum() == 64


def test_the_seed_decides_the_changes(records: list[Path]) -> None:
    (inputs, _), *_ = read(records, order=np.array([[0, 5]]), batch=2, seed=1)
    layer = feed(Augmentation())
    one, again = layer(**inputs, training=True)[0], layer(**inputs, training=True)[0]
    np.testing.assert_array_equal(one, again)
    other = layer(**(inputs | {"seed": inputs["seed"] + 1}), training=True)[0]
    assert np.abs(one - other).max() > 0.01


def test_hu_and_masks_move_together(records: list[Path]) -> None:
    (inputs, _), *_ = read(records, order=np.array([[2, 3, 4, 5]]), batch=4, seed=1)
    moved = Augmentation(degrees=45, scale=0.3, shift=0.1, hu_shift=0, hu_scale=0, noise_hu=0)
    clip, lesions = (part.numpy() for part in feed(moved)(**inputs, training=True))
    inside = clip[..., 0] > 0
    assert 0.02 < inside.mean() < 0.6
    assert (lesions[~inside] == 0).all()
    assert lesions.max() > 0.5
    # No HU is made up: all within the lungs is what the records hold, within rounding of the warp.
    assert clip[..., 0][inside].min() > (1100 - 100 + 1) / 1400 - 0.02
    assert clip[..., 0][inside].max() < (1100 - 100 + 56) / 1400 + 0.02


def test_a_mirrored_scan_gives_the_mirrored_clip(records: list[Path]) -> None:
    hu = np.random.default_rng(1).integers(-900, 0, (1, *GRID)).astype(np.int16)
    bits = np.packbits(np.ones(GRID, bool))[np.newaxis]
    inputs = {"lungs": bits, "lesions": bits, "seed": np.array([[1, 2]], np.int32)}
    plain = feed(STILL)(hu=hu, **inputs)[0].numpy()
    always = feed(STILL.model_copy(update={"flip": 1.0}))(hu=hu, **inputs, training=True)[0].numpy()
    np.testing.assert_allclose(always, plain[:, :, :, ::-1], atol=1e-5)


def test_slices_for_a_lung_model_are_not_masked(records: list[Path]) -> None:
    ((inputs, _),) = read(records, order=np.array([[2]]), batch=99, seed=0, slices=-1)
    parts = {key: inputs[key] for key in ("hu", "lungs", "lesions", "seed")}
    known = {"augmentation": STILL, "preprocessing": Preprocessing(), "channels": 1}
    seen, masks = SliceTrainingInput(GRID[1:], (16, 16), masked=False, **known)(**parts)
    cut, same = SliceTrainingInput(GRID[1:], (16, 16), masked=True, **known)(**parts)
    assert seen.numpy()[:, 0, 0].min() > 0
    assert cut.numpy()[:, 0, 0].max() == 0
    assert masks.shape == (6, 16, 16, 2)
    assert masks.numpy()[..., 0].sum() == 6 * 64
    assert masks.numpy()[..., 1].sum(axis=(1, 2)).tolist() == [0, 0, 64, 0, 0, 0]
    np.testing.assert_array_equal(masks, same)


@pytest.mark.parametrize("wrong", [{"flip": 1.5}, {"degrees": -1}, {"shift": 0.7}, {"unknown": 1}])
def test_impossible_augmentations_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augmentation(**wrong)
