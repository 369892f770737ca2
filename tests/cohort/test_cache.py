"""The cache: made as `infer` does it, never stale, never half."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
import tensorflow as tf

from tf_covid.cohort import cache
from tf_covid.cohort.augment import Augmentation
from tf_covid.cohort.dataset import batches
from tf_covid.cohort.manifest import ManifestRow, read_manifest
from tf_covid.cohort.training_input import ClipTrainingInput
from tf_covid.errors import CohortError, OutputError
from tf_covid.models import I3D
from tf_covid.phantom import draw_chest
from tf_covid.phantom.files import write_nifti_volume
from tf_covid.scan import find_cases, read_mask
from tf_covid.stratifier_model import Stratifier
from tf_covid.weights import Preprocessing, catalog, load, quarantine

CLIP = (16, 48, 48)
STILL = Augmentation(
    flip=0, degrees=0, scale=0, shift=0, hu_shift=0, hu_scale=0, noise_hu=0, slice_drop=0
)


@pytest.fixture(scope="session")
def wanted() -> cache.CacheSpec:
    sha256 = quarantine.sha256(catalog.find("lungs-unet"))
    return cache.CacheSpec(
        "clips", (32, 96, 96), Preprocessing(), "lungs-unet", sha256, lesions=True
    )


@pytest.fixture(scope="session")
def rows(small_cohort: Path) -> list[ManifestRow]:
    return read_manifest(small_cohort)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".secret")


def clip_of(record: cache.CacheRecord, wanted: cache.CacheSpec) -> np.ndarray:
    feed = ClipTrainingInput(wanted.grid, CLIP, wanted.preprocessing, 1, STILL)
    ((inputs, _),) = batches(
        [record.path], {}, wanted.grid, order=np.zeros((1, 1), int), batch=1, seed=0
    )
    return np.asarray(feed(**inputs)[0])


def check_clip(row: ManifestRow, wanted: cache.CacheSpec, folder: Path) -> None:
    record = cache.fill([row], folder, wanted).records[row.case]
    road = Stratifier(I3D((*CLIP, 1)), load("lungs-unet").network, wanted.preprocessing)
    hu = find_cases(row.path)[0].read().hu[np.newaxis]
    lungs = road.segment(hu, np.array([hu.shape[1]], np.int32))["lungs"]
    theirs = road.prepare(hu, lungs)["clip"].numpy()
    assert theirs.std() > 0.05
    assert np.abs(clip_of(record, wanted) - theirs).mean() < 0.01


def test_a_clip_of_the_cache_is_the_clip_of_infer(wanted: cache.CacheSpec, tmp_path: Path) -> None:
    chest = draw_chest(5, (60, 160, 160), severity=3)
    path = write_nifti_volume(chest.hu, chest.affine, tmp_path / "ct.nii.gz")
    check_clip(ManifestRow(case="one", patient="one", path=path), wanted, tmp_path / "cache")


@pytest.mark.slow
def test_a_clip_of_a_real_scan_is_the_clip_of_infer(
    real_ct: Path, wanted: cache.CacheSpec, tmp_path: Path
) -> None:
    largest = dataclasses.replace(wanted, grid=cache.LARGEST_GRID)
    check_clip(
        ManifestRow(case="cip", patient="cip", path=real_ct / "cip"), largest, tmp_path / "cache"
    )


def test_on_the_grid_of_the_clip_nothing_is_lost(
    rows: list[ManifestRow], wanted: cache.CacheSpec, tmp_path: Path
) -> None:
    same = dataclasses.replace(wanted, grid=CLIP)
    filled = cache.fill(rows[:1], tmp_path, same)
    road = Stratifier(I3D((*CLIP, 1)), load("lungs-unet").network, wanted.preprocessing)
    hu = find_cases(rows[0].path)[0].read().hu[np.newaxis]
    theirs = road.prepare(hu, road.segment(hu, np.array([hu.shape[1]], np.int32))["lungs"])[
        "clip"
    ].numpy()
    # HU are rounded to whole numbers, of 1400 in the window.
    np.testing.assert_allclose(
        clip_of(filled.records[rows[0].case], same), theirs, atol=0.51 / 1400
    )


def test_records_are_made_once_and_never_stale(
    rows: list[ManifestRow], wanted: cache.CacheSpec, tmp_path: Path
) -> None:
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
    paths = {filled.records[rows[0].case].path for filled in (first, *others)}
    assert len(paths) == 3
    # What comes after the cache is no matter of it.
    scaled = dataclasses.replace(
        wanted, preprocessing=Preprocessing(input_scale=(2.0,), level_hu=-600.0)
    )
    assert cache.fill(rows[:1], tmp_path, scaled).records == {
        rows[0].case: first.records[rows[0].case]
    }


@pytest.mark.parametrize("harm", ["cut", "no_facts", "bad_facts", "gone"])
def test_a_half_record_is_made_again(
    rows: list[ManifestRow], wanted: cache.CacheSpec, tmp_path: Path, harm: str
) -> None:
    record = cache.fill(rows[:1], tmp_path, wanted).records[rows[0].case]
    whole = record.path.read_bytes()
    if harm == "cut":
        record.path.write_bytes(whole[:-100])
    elif harm == "gone":
        record.path.unlink()
    elif harm == "no_facts":
        record.path.with_suffix(".json").unlink()
    else:
        record.path.with_suffix(".json").write_text('{"shape": 3}')
    assert cache.fill(rows[:1], tmp_path, wanted).records[rows[0].case] == record
    assert record.path.read_bytes() == whole


@pytest.mark.slow
def test_several_processes_make_the_same_records(
    rows: list[ManifestRow], wanted: cache.CacheSpec, tmp_path: Path
) -> None:
    alone = cache.fill(rows[:3], tmp_path / "one", wanted)
    together = cache.fill(rows[:3], tmp_path / "two", wanted, workers=2)
    assert list(together.records) == [row.case for row in rows[:3]]
    moved = {
        case: dataclasses.replace(record, path=tmp_path / "two" / record.path.name)
        for case, record in alone.records.items()
    }
    assert together.records == moved
    assert len(names(tmp_path / "one")) == 6
    assert names(tmp_path / "one") == names(tmp_path / "two")
    for name in names(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), (
            name
        )


#: Fills a cache in two processes; a record in hand is written so slowly that a kill must hit it.
SLOW = """
import sys, time
from pathlib import Path
from tf_covid.cohort import cache, workers
from tf_covid.cohort.manifest import ManifestRow

def make(number):
    from tf_covid.atomic import replacing
    with replacing(Path(sys.argv[1]) / f"{number}.tfrecord") as partial:
        partial.touch()
        time.sleep(600)

if __name__ == "__main__":
    list(workers.results(make, [1, 2], 2))
"""


def running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def until(done: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


@pytest.mark.slow
def test_workers_end_with_a_killed_parent_and_leave_nothing_for_long(
    rows: list[ManifestRow], wanted: cache.CacheSpec, tmp_path: Path
) -> None:
    script, folder = tmp_path / "slow.py", tmp_path / "cache"
    script.write_text(SLOW)
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    ) as parent:
        try:
            until(lambda: len(names(folder)) == 2)
            workers = [child.pid for child in psutil.Process(parent.pid).children()]
            assert len(workers) >= 2
            assert all(map(running, workers))
            parent.kill()
            parent.wait()
            until(lambda: not any(map(running, workers)), 20.0)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(parent.pid, signal.SIGKILL)
    left = names(folder)
    assert len(left) == 2
    assert all(name.endswith(".partial") for name in left)
    record = cache.fill(rows[:1], folder, wanted).records[rows[0].case]
    assert names(folder) == sorted([record.path.name, record.path.with_suffix(".json").name])


def test_bad_scans_are_skipped_within_bounds(
    rows: list[ManifestRow], wanted: cache.CacheSpec, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(Path(rows[0].path).read_bytes()[:2000])
    wrong = [
        rows[0],
        rows[1].model_copy(update={"path": broken}),
        rows[2].model_copy(update={"lesions": broken}),
    ]
    filled = cache.fill(wrong, tmp_path / "cache", wanted, max_skipped=2)
    assert list(filled.records) == [rows[0].case]
    assert list(filled.skipped) == [
        rows[1].case,
        rows[2].case,
    ]
    assert all(filled.skipped.values())
    with pytest.raises(
        CohortError,
        match=f"2 of 3 scans cannot be used, and --max-skipped allows 1:\n{rows[1].case}: ",
    ):
        cache.fill(wrong, tmp_path / "cache", wanted, max_skipped=1)


def test_the_space_is_asked_for_first(
    rows: list[ManifestRow],
    wanted: cache.CacheSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert cache.needed_bytes(10, wanted) == pytest.approx(10 * (32 * 96 * 96 * (2 + 2 / 8) + 256))
    record = cache.fill(rows[:1], tmp_path / "real", wanted).records[rows[0].case]
    assert record.path.stat().st_size <= wanted.bytes_each()
    full = shutil.disk_usage(tmp_path)._replace(free=100 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(OutputError, match=r"the cache needs \d+ MB, and \d+ MB are free"):
        cache.fill(rows, tmp_path / "cache", wanted)
    assert not names(tmp_path / "cache")
    # Others' records in the same cache are no part of what is needed, and those of these scans are
    # there.
    shared = tmp_path / "real"
    for number in range(len(rows)):
        (shared / f"{number}.tfrecord").touch()
    with pytest.raises(OutputError, match=f"needs {9 * wanted.bytes_each() / 1e6:.0f} MB"):
        cache.fill(rows, shared, wanted)
    assert cache.fill(rows[:1], shared, wanted).records == {rows[0].case: record}


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(
    rows: list[ManifestRow], wanted: cache.CacheSpec, tmp_path: Path
) -> None:
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="cannot be written"):
        cache.fill(rows[:1], tmp_path / "cache", wanted)


def test_planes_hold_whole_slices_and_the_drawn_masks(
    rows: list[ManifestRow], wanted: cache.CacheSpec, tmp_path: Path
) -> None:
    planes = dataclasses.replace(wanted, kind="planes", grid=(12, 32, 32))
    record = cache.fill(rows[4:5], tmp_path, planes).records[rows[4].case]
    ((inputs, _),) = batches(
        [record.path], {}, planes.grid, order=np.zeros((1, 1), int), batch=99, seed=0, slices=-1
    )
    assert inputs["hu"].shape == (12, 32, 32)
    assert inputs["slice"].numpy().tolist() == list(range(12))
    scan = find_cases(rows[4].path)[0].read()
    chosen = np.linspace(0, len(scan.hu) - 1, 12).round().astype(int)

    def small(volume: np.ndarray) -> np.ndarray:
        planes = volume[chosen, ..., np.newaxis].astype(np.float32)
        return np.asarray(tf.image.resize(planes, (32, 32), antialias=True))[..., 0]

    np.testing.assert_allclose(inputs["hu"], small(np.clip(scan.hu, -1024, 3071)), atol=0.51)
    for name in ("lungs", "lesions"):
        share = small(read_mask(getattr(rows[4], name), scan))
        kept = np.unpackbits(inputs[name], axis=1).reshape(12, 32, 32).astype(bool)
        clear = np.abs(share - 0.5) > 1e-4
        np.testing.assert_array_equal(kept[clear], share[clear] >= 0.5)
        assert 20 < kept[clear].sum() < kept.size / 4
        assert clear.mean() > 0.95


def as_nifti(path: Path, like: Path, values: np.ndarray) -> Path:
    """Values in the file order of `like`, on its grid."""
    nib.Nifti1Image(values, nib.load(like).affine).to_filename(path)
    return path


def test_masks_that_are_none_are_not_trained_on(
    rows: list[ManifestRow], wanted: cache.CacheSpec, tmp_path: Path
) -> None:
    planes = dataclasses.replace(wanted, kind="planes", grid=(12, 32, 32))
    row = rows[4]
    assert row.lungs is not None
    assert row.lesions is not None
    lungs, lesions = (np.asarray(nib.load(path).dataobj) for path in (row.lungs, row.lesions))
    (tmp_path / "cache").mkdir()
    elsewhere = (lungs == 0) & (np.indices(lungs.shape)[2] < 2)
    made = {
        "inverted": ("lungs", (lungs == 0).astype(np.uint8), "lung_volume"),
        "labels": (
            "lungs",
            (lungs * 10).astype(np.uint8) + (lesions > 0).astype(np.uint8),
            "mask_values",
        ),
        "probabilities": ("lungs", np.where(lungs > 0, 0.9, 0.1).astype(np.float32), "mask_values"),
        "empty": ("lungs", np.zeros_like(lungs), "mask_empty"),
        "no lesions": ("lesions", (lesions == 0).astype(np.uint8), "lung_volume"),
        "lesion labels": (
            "lesions",
            (lesions > 0) + 2 * (lungs > 0).astype(np.uint8),
            "mask_values",
        ),
        "lesions elsewhere": (
            "lesions",
            elsewhere.astype(np.uint8),
            "lesions_outside|mask_outside|lung_volume",
        ),
    }
    for name, (column, values, code) in made.items():
        path = as_nifti(tmp_path / f"{name}.nii.gz", row.lungs, values)
        why = cache.make(row.model_copy(update={column: path}), tmp_path / "cache", planes)
        assert isinstance(why, str), (name, why)
        assert re.match(f"{code}", why), (name, why)
    assert not list((tmp_path / "cache").glob("*.tfrecord"))
    right = np.where(lungs > 0, 255, 0).astype(np.uint8)
    path = as_nifti(tmp_path / "right.nii.gz", row.lungs, right)
    record = cache.make(row.model_copy(update={"lungs": path}), tmp_path / "cache", planes)
    assert isinstance(record, cache.CacheRecord)
    assert "mask_doubtful" not in record.quality_flags


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts | {"findings": facts["quality_flags"]},
        lambda facts: {
            "findings" if key == "quality_flags" else key: value for key, value in facts.items()
        },
        lambda facts: {key: value for key, value in facts.items() if key != "fingerprints"},
        lambda facts: facts | {"shape": [1, 2]},
        lambda facts: [],
    ],
)
def test_a_record_of_an_older_version_is_made_anew(
    rows: list[ManifestRow],
    wanted: cache.CacheSpec,
    tmp_path: Path,
    change: Callable[[dict], object],
) -> None:
    planes = dataclasses.replace(wanted, kind="planes", grid=(12, 32, 32))
    record = cache.make(rows[4], tmp_path, planes)
    assert isinstance(record, cache.CacheRecord)
    facts = record.path.with_suffix(".json")
    before = facts.read_text("utf-8")
    facts.write_text(json.dumps(change(json.loads(before))), "utf-8")
    assert cache.make(rows[4], tmp_path, planes) == record
    assert set(json.loads(before)) <= set(json.loads(facts.read_text("utf-8")))


def test_a_grid_without_cells_is_refused(wanted: cache.CacheSpec) -> None:
    with pytest.raises(CohortError, match="working grid"):
        dataclasses.replace(wanted, grid=(0, 10, 10))


def test_no_identifier_is_kept(tmp_path: Path, wanted: cache.CacheSpec) -> None:
    from tf_covid.phantom.cohort import write_cohort

    manifest = write_cohort(tmp_path / "cohort", 1, seed=4, size=64, slices=44, format="dicom")
    record = cache.fill(read_manifest(manifest), tmp_path / "cache", wanted).records["case-0000"]
    assert set(record.fingerprints) == {"pixels", "study", "patient"}
    kept = b"".join(path.read_bytes() for path in (tmp_path / "cache").iterdir())
    scan = find_cases(tmp_path / "cohort" / "case-0000" / "dicom")[0].read()
    assert scan.identifiers
    plain = [hashlib.sha256(value.encode()).hexdigest() for value in scan.identifiers.values()]
    assert not [value for value in (*scan.identifiers.values(), *plain) if value.encode() in kept]


def test_masks_are_unpacked_bit_by_bit() -> None:
    from tf_covid.cohort.training_input import unpacked

    mask = np.random.default_rng(1).random((2, 3, 5, 7)) > 0.5
    bits = np.stack([np.packbits(one) for one in mask])
    np.testing.assert_array_equal(
        unpacked(tf.constant(bits), (3, 5, 7)).numpy(), mask.astype(np.float32)
    )
