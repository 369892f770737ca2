"""A cohort on disk: the manifest says what the files hold, and a killed run goes on."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from tf_covid.cohort.manifest import read_manifest
from tf_covid.errors import OutputError
from tf_covid.phantom import cohort
from tf_covid.severity import ct_score, lobe_score, severity_class


def volume(path: Path) -> np.ndarray:
    return np.asanyarray(nibabel.load(path).dataobj)


def rows(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def nifti(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cohort.write_cohort(
        tmp_path_factory.mktemp("nifti"), 5, seed=1, size=48, slices=20, format="nifti"
    )


def test_manifest_says_what_the_masks_hold(nifti: Path) -> None:
    found = rows(nifti)
    assert sorted(int(row["severity"]) for row in found) == [0, 1, 2, 3, 4]
    for row in found:
        scan, lungs, lobes, lesions, tissues = (
            volume(nifti.parent / row[n]) for n in ("path", "lungs", "lobes", "lesions", "tissues")
        )
        assert scan.shape == lungs.shape == lobes.shape == lesions.shape == (48, 48, 20)
        np.testing.assert_array_equal(tissues == 0, lobes > 0)
        shares = [100.0 * float((lesions[lobes == n] > 0).mean()) for n in range(1, 6)]
        scores = [lobe_score(share) for share in shares]
        assert row["lobe_scores"] == " ".join(map(str, scores))
        assert int(row["ct_score"]) == ct_score(scores)
        assert int(row["severity"]) == severity_class(ct_score(scores))
        assert row["covid"] == str(int(row["severity"] != "0"))
        assert set(np.unique(lungs)) == {0, 1, 2}


def test_right_lung_has_smaller_x_in_lps(nifti: Path) -> None:
    image = nibabel.load(nifti.parent / rows(nifti)[0]["lungs"])
    mask = np.asanyarray(image.dataobj)
    middles = [np.append(np.argwhere(mask == side).mean(axis=0), 1.0) for side in (1, 2)]
    right, left = (image.affine @ middle for middle in middles)
    assert right[0] > left[0], "RAS: the right is positive"


def test_our_own_reader_takes_the_manifest(nifti: Path) -> None:
    assert len(read_manifest(nifti)) == 5


def test_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = cohort.write_cohort(tmp_path / "whole", 2, seed=2, size=32, slices=10, format="nifti")

    class Killed(Exception):
        pass

    original = cohort.write_nifti_volume

    def killed(volume: np.ndarray, affine: np.ndarray, path: Path) -> Path:
        if path.name == "lobes.nii.gz" and "case-0001" in str(path):
            raise Killed
        return original(volume, affine, path)

    monkeypatch.setattr(cohort, "write_nifti_volume", killed)
    with pytest.raises(Killed):
        cohort.write_cohort(tmp_path / "cut", 2, seed=2, size=32, slices=10, format="nifti")
    monkeypatch.undo()
    assert [p.name for p in sorted((tmp_path / "cut").glob("case-*"))] == ["case-0000"]
    assert not (tmp_path / "cut" / "manifest.csv").exists()
    first = (tmp_path / "cut" / "case-0000" / "ct.nii.gz").stat().st_mtime_ns
    resumed = cohort.write_cohort(tmp_path / "cut", 2, seed=2, size=32, slices=10, format="nifti")
    assert (tmp_path / "cut" / "case-0000" / "ct.nii.gz").stat().st_mtime_ns == first, (
        "a finished case is kept"
    )
    assert resumed.read_text() == whole.read_text()
    assert not list((tmp_path / "cut").glob(".*"))
    for row in rows(whole):
        np.testing.assert_array_equal(
            volume(whole.parent / row["path"]), volume(resumed.parent / row["path"])
        )


def test_another_cohort_is_not_mixed_in(tmp_path: Path) -> None:
    cohort.write_cohort(tmp_path, 1, seed=1, size=32, slices=8, format="nifti")
    with pytest.raises(OutputError, match="holds a cohort of seed 1"):
        cohort.write_cohort(tmp_path, 1, seed=2, size=32, slices=8, format="nifti")


@pytest.mark.parametrize("wrong", [{"cases": 0}, {"size": 8}, {"slices": 2}, {"format": "png"}])
def test_nonsense_is_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    options: dict[str, object] = {"cases": 1, "size": 32, "slices": 8, "format": "nifti", **wrong}
    with pytest.raises(OutputError):
        cohort.write_cohort(tmp_path, seed=1, **options)  # type: ignore[arg-type]


def test_dicom_is_plainly_synthetic(tmp_path: Path) -> None:
    manifest = cohort.write_cohort(tmp_path, 1, seed=3, size=32, slices=8)
    row = rows(manifest)[0]
    files = sorted((tmp_path / row["path"]).iterdir())
    assert len(files) == 8
    header = pydicom.dcmread(files[0])
    assert str(header.PatientName).startswith("PHANTOM^")
    assert header.PatientID == row["patient"]
    assert header.PatientSex == row["sex"]


def test_as_many_patients_of_each_class_as_asked(tmp_path: Path) -> None:
    counts = (1, 0, 2, 1, 0)
    made = cohort.write_cohort(
        tmp_path / "a", 4, seed=1, size=48, slices=20, format="nifti", per_class=counts
    )
    found = [int(row["severity"]) for row in rows(made)]
    assert [found.count(label) for label in range(5)] == list(counts)
    with pytest.raises(OutputError, match="5 numbers of patients that sum to 4 are needed"):
        cohort.write_cohort(
            tmp_path / "b", 4, seed=1, size=48, slices=20, per_class=(1, 1, 1, 1, 1)
        )
    with pytest.raises(OutputError, match="holds a cohort"):
        cohort.write_cohort(tmp_path / "a", 4, seed=1, size=48, slices=20, format="nifti")
