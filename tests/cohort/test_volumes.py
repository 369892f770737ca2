"""Records of whole scans with the numbers of their tissues."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tf_covid.cohort import cache, read_manifest
from tf_covid.cohort.dataset import batches, parsed_volume
from tf_covid.cohort.manifest import ManifestRow
from tf_covid.cohort.planes import OUTSIDE_LOBES, UNKNOWN, tissue_classes
from tf_covid.errors import ManifestError, ScanRefused
from tf_covid.layers.resample import clipped_hu, full_axis_matrix, in_plane
from tf_covid.phantom import Chest, draw_chest
from tf_covid.phantom.files import write_nifti_volume
from tf_covid.scan import find_cases, read_labels
from tf_covid.tissues import CLASSES, EFFUSION_CLASS, TISSUES
from tf_covid.weights import Preprocessing

GRID = (16, 32, 32)
SPEC = cache.CacheSpec("volumes", GRID, Preprocessing(), "lungs-unet", "0" * 64)


@pytest.fixture(scope="module")
def chest() -> Chest:
    return draw_chest(4, (56, 96, 96), severity=1)


@pytest.fixture(scope="module")
def folder(chest: Chest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("case")
    write_nifti_volume(chest.hu, chest.affine, folder / "ct.nii.gz")
    write_nifti_volume(chest.lobes, chest.affine, folder / "lobes.nii.gz")
    tissues = np.where(chest.hu < -900, 1, 3).astype(np.uint8)
    tissues[:, :4] = 0
    write_nifti_volume(tissues, chest.affine, folder / "tissues.nii.gz")
    return folder


def row(folder: Path, **files: str) -> ManifestRow:
    return ManifestRow(
        case="a",
        patient="a",
        path=folder / "ct.nii.gz",
        **{name: folder / file for name, file in files.items()},
    )


def read(record: cache.CacheRecord) -> dict[str, np.ndarray]:
    ((inputs, _),) = batches(
        [record.path], {}, GRID, order=np.zeros((1, 1), int), batch=1, seed=0, parse=parsed_volume
    )
    return {name: value.numpy()[0] for name, value in inputs.items()}


def test_lobes_win_over_tissues_and_what_nobody_knows_has_no_number() -> None:
    lobes = np.array([0, 1, 5, 0, 0], np.uint8)
    tissues = np.array([1, 6, 0, 6, 0], np.uint8)
    assert tissue_classes(lobes, tissues).tolist() == [0, 1, 5, EFFUSION_CLASS, UNKNOWN]
    assert tissue_classes(lobes, None).tolist() == [OUTSIDE_LOBES, 1, 5, *[OUTSIDE_LOBES] * 2]
    every = np.array([0, *TISSUES.values()], np.uint8)
    numbers = tissue_classes(np.zeros_like(every), every)[1:]
    assert [CLASSES[number] for number in numbers] == list(TISSUES)


def test_a_record_holds_the_whole_scan_and_its_labels(
    chest: Chest, folder: Path, tmp_path: Path
) -> None:
    record = cache.make(row(folder, lobes="lobes.nii.gz"), tmp_path, SPEC)
    assert isinstance(record, cache.CacheRecord), record
    assert record.path.stat().st_size <= SPEC.bytes_each()
    parts = read(record)
    assert parts["labels"].shape == (32, 64, 64)
    assert set(np.unique(parts["labels"])) <= {1, 2, 3, 4, 5, OUTSIDE_LOBES}
    shown = (parts["labels"] <= 5).mean()
    assert shown == pytest.approx((chest.lobes > 0).mean(), rel=0.03)
    ml = chest.hu.size * np.prod(chest.spacing_mm) / 1000.0
    assert parts["volume_ml"] == pytest.approx(ml, rel=1e-3)
    # As the lobe network meets it behind a U-Net of 128×128.
    hu = clipped_hu(find_cases(folder / "ct.nii.gz")[0].read().hu)
    middle = in_plane(full_axis_matrix(128, 96), hu, full_axis_matrix(128, 96))
    planes = np.asarray(in_plane(full_axis_matrix(32, 128), middle, full_axis_matrix(32, 128)))
    along = full_axis_matrix(GRID[0], chest.hu.shape[0])
    theirs = np.tensordot(np.asarray(along)[0], planes, axes=1)
    assert np.abs(parts["hu"] - theirs).max() <= 0.51


def test_tissues_make_another_record(folder: Path, tmp_path: Path) -> None:
    files = {"lobes": "lobes.nii.gz", "tissues": "tissues.nii.gz"}
    records = [
        cache.make(row(folder, **dict(list(files.items())[:count])), tmp_path, SPEC)
        for count in (1, 2)
    ]
    assert all(isinstance(record, cache.CacheRecord) for record in records), records
    first, second = (record for record in records if isinstance(record, cache.CacheRecord))
    assert first.path != second.path
    labels = read(second)["labels"]
    assert set(np.unique(labels)) == {0, 1, 2, 3, 4, 5, CLASSES.index("chest wall"), UNKNOWN}
    assert (labels[:, 0] == UNKNOWN).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lobes: lobes * 2, "mask_values"),
        (lambda lobes: lobes.astype(np.float32) * 0.5, "mask_values"),
        (lambda lobes: lobes * 0, "mask_empty"),
        (lambda lobes: lobes[1:], "mask_grid"),
    ],
    ids=["other numbers", "fractions", "empty", "another grid"],
)
def test_wrong_labels_are_named(
    chest: Chest, folder: Path, tmp_path: Path, change: object, said: str
) -> None:
    assert callable(change)
    path = write_nifti_volume(change(chest.lobes), chest.affine, tmp_path / "lobes.nii.gz")
    outcome = cache.make(row(folder, lobes=str(path)), tmp_path, SPEC)
    assert isinstance(outcome, str)
    assert outcome.startswith(f"{said}:")
    scan = find_cases(folder / "ct.nii.gz")[0].read()
    with pytest.raises(ScanRefused, match=said):
        read_labels(path, scan, 5)


def test_a_row_without_lobes_has_no_record(folder: Path, tmp_path: Path) -> None:
    outcome = cache.make(row(folder), tmp_path, SPEC)
    assert isinstance(outcome, str)
    assert outcome.startswith("no_lobes: ")


def test_missing_label_files_are_named_by_row_and_column(folder: Path) -> None:
    path = folder / "manifest.csv"
    path.write_text("case,patient,path,lobes,tissues\na,a,ct.nii.gz,gone.nii,gone.nii\n")
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    for name in ("lobes", "tissues"):
        assert f"\nrow 2, {name}: there is no such file" in str(caught.value)
    path.write_text("case,patient,path,lobes,tissues\na,a,ct.nii.gz,lobes.nii.gz,\n")
    (known,) = read_manifest(path)
    assert (known.lobes, known.tissues) == (folder / "lobes.nii.gz", None)


def test_a_mirrored_storage_order_gives_the_same_record(
    chest: Chest, folder: Path, tmp_path: Path
) -> None:
    flipped = chest.affine @ np.array(
        [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, chest.hu.shape[2] - 1], [0, 0, 0, 1]], float
    )
    write_nifti_volume(chest.lobes[:, :, ::-1], flipped, tmp_path / "lobes.nii.gz")
    records = [
        cache.make(row(folder, lobes=file), tmp_path, SPEC)
        for file in ("lobes.nii.gz", str(tmp_path / "lobes.nii.gz"))
    ]
    first, second = (read(one) for one in records if isinstance(one, cache.CacheRecord))
    assert np.array_equal(first["labels"], second["labels"])
