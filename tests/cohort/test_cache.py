"""The cache: made as `infer` does it, never stale, never half."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tf_covid.cohort import cache
from tf_covid.cohort.augment import Augmentation
from tf_covid.cohort.dataset import batches
from tf_covid.cohort.feed import ClipFeed
from tf_covid.cohort.manifest import Row, read_manifest
from tf_covid.errors import CohortError, OutputError
from tf_covid.models import I3D
from tf_covid.phantom import draw_chest
from tf_covid.phantom.files import write_nifti_volume
from tf_covid.scan import find_cases
from tf_covid.stratifier_model import Stratifier
from tf_covid.weights import Preprocessing, catalog, load, quarantine

CLIP = (16, 48, 48)
STILL = Augmentation(flip=0, degrees=0, scale=0, shift=0, hu_shift=0, hu_scale=0, noise_hu=0, slice_drop=0)


@pytest.fixture(scope="session")
def wanted() -> cache.Wanted:
    sha256 = quarantine.sha256(catalog.find("lungs-unet"))
    return cache.Wanted("clips", (32, 96, 96), Preprocessing(), "lungs-unet", sha256, lesions=True)


@pytest.fixture(scope="session")
def rows(small_cohort: Path) -> list[Row]:
    return read_manifest(small_cohort)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".secret")


def clip_of(entry: cache.Entry, wanted: cache.Wanted) -> np.ndarray:
    feed = ClipFeed(wanted.grid, CLIP, wanted.preprocessing, 1, STILL)
    ((inputs, _),) = batches([entry.path], {}, wanted.grid, order=np.zeros((1, 1), int), batch=1, seed=0)
    return np.asarray(feed(**inputs)[0])


def check_clip(row: Row, wanted: cache.Wanted, folder: Path) -> None:
    entry = cache.fill([row], folder, wanted).entries[row.case]
    road = Stratifier(I3D((*CLIP, 1)), load("lungs-unet").network, wanted.preprocessing)
    hu = find_cases(row.path)[0].read().hu[np.newaxis]
    lungs = road.segment(hu, np.array([hu.shape[1]], np.int32))["lungs"]
    theirs = road.prepare(hu, lungs)["clip"].numpy()
    assert theirs.std() > 0.05
    assert np.abs(clip_of(entry, wanted) - theirs).mean() < 0.01


def test_a_clip_of_the_cache_is_the_clip_of_infer(wanted: cache.Wanted, tmp_path: Path) -> None:
    chest = draw_chest(5, (60, 160, 160), severity=3)
    path = write_nifti_volume(chest.hu, chest.affine, tmp_path / "ct.nii.gz")
    check_clip(Row(case="one", patient="one", path=path), wanted, tmp_path / "cache")


@pytest.mark.slow
def test_a_clip_of_a_real_scan_is_the_clip_of_infer(real_ct: Path, wanted: cache.Wanted, tmp_path: Path) -> None:
    largest = dataclasses.replace(wanted, grid=cache.LARGEST_GRID)
    check_clip(Row(case="cip", patient="cip", path=real_ct / "cip"), largest, tmp_path / "cache")


def test_on_the_grid_of_the_clip_nothing_is_lost(rows: list[Row], wanted: cache.Wanted, tmp_path: Path) -> None:
    same = dataclasses.replace(wanted, grid=CLIP)
    filled = cache.fill(rows[:1], tmp_path, same)
    road = Stratifier(I3D((*CLIP, 1)), load("lungs-unet").network, wanted.preprocessing)
    hu = find_cases(rows[0].path)[0].read().hu[np.newaxis]
    theirs = road.prepare(hu, road.segment(hu, np.array([hu.shape[1]], np.int32))["lungs"])["clip"].numpy()
    # HU are rounded to whole numbers, of 1400 in the window.
    np.testing.assert_allclose(clip_of(filled.entries[rows[0].case], same), theirs, atol=0.51 / 1400)


def test_records_are_made_once_and_never_stale(rows: list[Row], wanted: cache.Wanted, tmp_path: Path) -> None:
    first = cache.fill(rows[:2], tmp_path, wanted)
    assert len(names(tmp_path)) == 4
    written = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert (tmp_path / ".secret").stat().st_mode & 0o077 == 0
    assert cache.fill(rows[:2], tmp_path, wanted) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written
    # Another setting is another record; so is another scan under the same name.
    wider = dataclasses.replace(wanted, preprocessing=Preprocessing(box_margin=0.1))
    moved = [rows[0].model_copy(update={"path": rows[5].path, "lesions": rows[5].lesions})]
    others = [cache.fill(rows[:1], tmp_path, wider), cache.fill(moved, tmp_path, wanted)]
    paths = {filled.entries[rows[0].case].path for filled in (first, *others)}
    assert len(paths) == 3
    # What comes after the cache is no matter of it.
    scaled = dataclasses.replace(wanted, preprocessing=Preprocessing(input_scale=(2.0,), level_hu=-600.0))
    assert cache.fill(rows[:1], tmp_path, scaled).entries == {rows[0].case: first.entries[rows[0].case]}


@pytest.mark.parametrize("harm", ["cut", "no_facts", "bad_facts", "gone"])
def test_a_half_record_is_made_again(rows: list[Row], wanted: cache.Wanted, tmp_path: Path, harm: str) -> None:
    entry = cache.fill(rows[:1], tmp_path, wanted).entries[rows[0].case]
    whole = entry.path.read_bytes()
    if harm == "cut":
        entry.path.write_bytes(whole[:-100])
    elif harm == "gone":
        entry.path.unlink()
    elif harm == "no_facts":
        entry.path.with_suffix(".json").unlink()
    else:
        entry.path.with_suffix(".json").write_text('{"shape": 3}')
    assert cache.fill(rows[:1], tmp_path, wanted).entries[rows[0].case] == entry
    assert entry.path.read_bytes() == whole


def test_several_processes_fill_it(rows: list[Row], wanted: cache.Wanted, tmp_path: Path) -> None:
    alone = cache.fill(rows[:3], tmp_path / "one", wanted)
    together = cache.fill(rows[:3], tmp_path / "two", wanted, workers=2)
    assert names(tmp_path / "one") == names(tmp_path / "two")
    for case, entry in alone.entries.items():
        assert together.entries[case].marks == entry.marks


def test_bad_scans_are_skipped_within_bounds(rows: list[Row], wanted: cache.Wanted, tmp_path: Path) -> None:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(Path(rows[0].path).read_bytes()[:2000])
    wrong = [rows[0], rows[1].model_copy(update={"path": broken}), rows[2].model_copy(update={"lesions": broken})]
    filled = cache.fill(wrong, tmp_path / "cache", wanted, max_skipped=2)
    assert list(filled.entries) == [rows[0].case] and list(filled.skipped) == [rows[1].case, rows[2].case]
    assert all(filled.skipped.values())
    with pytest.raises(
        CohortError, match=f"2 of 3 scans cannot be used, and --max-skipped allows 1:\n{rows[1].case}: "
    ):
        cache.fill(wrong, tmp_path / "cache", wanted, max_skipped=1)


def test_the_space_is_asked_for_first(rows: list[Row], wanted: cache.Wanted, tmp_path: Path,
                                      monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    assert cache.needed_bytes(10, wanted) == pytest.approx(10 * (32 * 96 * 96 * (2 + 2 / 8) + 256))
    entry = cache.fill(rows[:1], tmp_path / "real", wanted).entries[rows[0].case]
    assert entry.path.stat().st_size <= wanted.bytes_each()
    full = shutil.disk_usage(tmp_path)._replace(free=100 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(OutputError, match=r"the cache needs \d+ MB, and \d+ MB are free"):
        cache.fill(rows, tmp_path / "cache", wanted)
    assert not names(tmp_path / "cache")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(rows: list[Row], wanted: cache.Wanted, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="cannot be written"):
        cache.fill(rows[:1], tmp_path / "cache", wanted)


def test_planes_hold_whole_slices_and_the_drawn_masks(rows: list[Row], wanted: cache.Wanted, tmp_path: Path) -> None:
    planes = dataclasses.replace(wanted, kind="planes", grid=(12, 32, 32))
    entry = cache.fill(rows[4:5], tmp_path, planes).entries[rows[4].case]
    ((inputs, _),) = batches([entry.path], {}, planes.grid, order=np.zeros((1, 1), int), batch=99, seed=0, slices=-1)
    assert inputs["hu"].shape == (12, 32, 32) and inputs["slice"].numpy().tolist() == list(range(12))
    scan = find_cases(rows[4].path)[0].read()
    # A cell is the mean of its four voxels.
    exact = np.clip(scan.hu, -1024, 3071)[0].reshape(32, 2, 32, 2).mean((1, 3))
    assert np.abs(inputs["hu"][0] - exact).mean() < 60


def test_a_grid_without_cells_is_refused(wanted: cache.Wanted) -> None:
    with pytest.raises(CohortError, match="working grid"):
        dataclasses.replace(wanted, grid=(0, 10, 10))


def test_no_identifier_is_kept(tmp_path: Path, wanted: cache.Wanted) -> None:
    from tf_covid.phantom.cohort import write_cohort

    manifest = write_cohort(tmp_path / "cohort", 1, seed=4, size=64, slices=24, format="dicom")
    entry = cache.fill(read_manifest(manifest), tmp_path / "cache", wanted).entries["case-0000"]
    assert set(entry.marks) == {"pixels", "study", "patient"}
    kept = b"".join(path.read_bytes() for path in (tmp_path / "cache").iterdir())
    scan = find_cases(tmp_path / "cohort" / "case-0000" / "dicom")[0].read()
    assert scan.identifiers
    plain = [hashlib.sha256(value.encode()).hexdigest() for value in scan.identifiers.values()]
    assert not [value for value in (*scan.identifiers.values(), *plain) if value.encode() in kept]


def test_masks_are_unpacked_bit_by_bit() -> None:
    from tf_covid.cohort.feed import unpacked

    mask = np.random.default_rng(1).random((2, 3, 5, 7)) > 0.5
    bits = np.stack([np.packbits(one) for one in mask])
    np.testing.assert_array_equal(unpacked(tf.constant(bits), (3, 5, 7)).numpy(), mask.astype(np.float32))
