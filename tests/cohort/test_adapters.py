"""Public data sets → manifests, on miniatures that the phantom writes in their layouts."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

import tf_covid
from tf_covid.cohort import read_manifest
from tf_covid.cohort.adapters import ADAPTERS, adapt
from tf_covid.errors import ManifestError
from tf_covid.phantom import Chest, draw_chest
from tf_covid.phantom.files import Facts, write_dicom, write_nifti_volume

JPEG_LOSSLESS = "1.2.840.10008.1.2.4.70"


@pytest.fixture(scope="module")
def chest() -> Chest:
    """A chest with disease, of few slices that are 5 mm apart on paper.

    Its arrays are not to be changed.
    """
    chest = draw_chest(11, (24, 64, 64), severity=3)
    chest.affine[:3, 0] *= 5.0 / chest.spacing_mm[0]  # voxels above 12 mm are refused
    return replace(chest, spacing_mm=(5.0, *chest.spacing_mm[1:]))


def write_mosmed(folder: Path, chest: Chest) -> Path:
    """A study in each class and a second one in CT-1 with a mask.

    8 mm slices, one file unpacked.
    """
    affine = chest.affine.copy()
    affine[:3, 0] *= 8.0 / chest.spacing_mm[0]
    names = {
        "CT-0/study_0001.nii.gz": "RAS",
        "CT-1/study_0255.nii.gz": "LPS",
        "CT-1/study_0256.nii": "RAS",
        "CT-2/study_0939.nii.gz": "RAS",
        "CT-3/study_1064.nii.gz": "RAS",
        "CT-4/study_1109.nii.gz": "RAS",
    }
    for name, order in names.items():
        path = folder / "studies" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_nifti_volume(chest.hu, affine, path, order=order)
    (folder / "masks").mkdir()
    mask = chest.lesions.astype(np.uint8)
    write_nifti_volume(mask, affine, folder / "masks/study_0255_mask.nii.gz", order="LPS")
    (folder / "dataset_registry.xlsx").write_bytes(b"PK")
    (folder / "README_EN.md").write_text("about", "utf-8")
    (folder / "studies/CT-1/._study_0255.nii.gz").write_bytes(b"macOS")
    return folder


def write_stoic(folder: Path, chest: Chest) -> Path:
    """Three patients, written by SimpleITK with age and sex in the header, compressed as the set's
    are."""
    scans = folder / "data/mha"
    scans.mkdir(parents=True)
    (folder / "metadata").mkdir()
    people = {"10": ("065Y", "M"), "7": ("035Y", "F"), "1002": (None, None)}
    for patient, (age, sex) in people.items():
        image = sitk.GetImageFromArray(chest.hu[::-1])  # feet first, as ITK's z runs
        image.SetSpacing(chest.spacing_mm[::-1])
        image.SetOrigin(tuple(chest.affine[:3, 3] + chest.affine[:3, 0] * (chest.hu.shape[0] - 1)))
        for key, value in (("PatientAge", age), ("PatientSex", sex)):
            if value:
                image.SetMetaData(key, value)
        sitk.WriteImage(image, str(scans / f"{patient}.mha"), useCompression=True)
    rows = "PatientID,probCOVID,probSevere\n10,1,1\n7,1,0\n1002,0,0\n"
    (folder / "metadata/reference.csv").write_text(rows, "utf-8")
    return folder


def write_covid_ct_md(folder: Path, chest: Chest) -> Path:
    """Two COVID-19 cases, a CAP and a normal one, JPEG lossless, with labels for the first
    three."""
    cases = {
        "COVID-19 Cases": ("P001", "P002"),
        "Cap Cases": ("cap001",),
        "Normal Cases": ("normal001",),
    }
    seed = 0
    for place, names in cases.items():
        for name in names:
            seed += 1
            facts = Facts(sex="F" if seed == 1 else "M", patient_id=f"MQ-{seed:06d}")
            path = folder / place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            affine = chest.affine.copy()
            affine[:3, 0] *= 2
            write_dicom(
                chest.hu[::2], affine, path, transfer_syntax=JPEG_LOSSLESS, facts=facts, seed=seed
            )
            for file in path.iterdir():
                dataset = pydicom.dcmread(file)
                dataset.PatientAge = f"0{50 + seed}Y"
                dataset.save_as(file)
    index = (
        "Label Index,Diagnosis,Relative"
        " Path,Folder/ID\n0,COVID-19,./COVID-19/,P001\n1,COVID-19,./COVID-19/,P002\n"
    )
    (folder / "Index.csv").write_text(index + "3,CAP,./CAP/,cap001\n", "utf-8")
    lobes = np.zeros((3, 20, 5), np.uint8)
    lobes[0, 3:9, 0] = lobes[2, 4:6, 4] = 1
    np.save(folder / "Lobe-level-labels.npy", lobes)
    np.save(folder / "Slice-level-labels.npy", lobes.any(-1))
    return folder


WRITERS = {"mosmed": write_mosmed, "stoic": write_stoic, "covid-ct-md": write_covid_ct_md}


@pytest.fixture(scope="module")
def masters(chest, tmp_path_factory):
    """The miniature of each data set; not to be changed."""
    folder = tmp_path_factory.mktemp("sets")
    return {kind: write(folder / kind, chest) for kind, write in WRITERS.items()}


@pytest.fixture
def copy(masters, tmp_path):
    """A miniature by the name of its data set, to be changed."""
    return lambda kind: Path(shutil.copytree(masters[kind], tmp_path / kind))


def refused(folder, kind, tmp_path):
    """The lines of a refusal, the first one apart; nothing is written."""
    out = tmp_path / "manifest.csv"
    with pytest.raises(ManifestError) as caught:
        adapt(folder, kind, out)
    assert not out.exists()
    return str(caught.value).splitlines()


def holds(lines, *starts):
    """Each error is there once, and there is no other."""
    assert lines[0].endswith(f": {len(starts)} error(s)"), lines
    for start in starts:
        assert sum(line.startswith(start) for line in lines[1:]) == 1, (start, lines)


def test_there_is_a_miniature_of_every_data_set():
    assert set(WRITERS) == set(ADAPTERS)


def test_mosmed(masters, chest, tmp_path):
    rows = read_manifest(adapt(masters["mosmed"], "mosmed", tmp_path / "mosmed.csv"))
    extra = {row.case: row.model_extra["mosmed_class"] for row in rows}
    assert extra == {
        "study_0001": "0",
        "study_0255": "1",
        "study_0256": "1",
        "study_0939": "2",
        "study_1064": "3",
        "study_1109": "4",
    }
    assert [row.case for row in rows if row.lesions] == ["study_0255"]
    scan = tf_covid.read(rows[1].path)
    np.testing.assert_array_equal(scan.hu, chest.hu)
    assert scan.spacing_mm[0] == pytest.approx(8)
    assert tf_covid.scan.read_mask(rows[1].lesions, scan).sum() == chest.lesions.sum()


def test_classes_of_involved_lung_are_never_severity_classes(masters, tmp_path):
    for kind, column in (
        ("mosmed", "mosmed_class"),
        ("stoic", "stoic_severe"),
        ("covid-ct-md", "finding"),
    ):
        for row in read_manifest(adapt(masters[kind], kind, tmp_path / f"{kind}.csv")):
            assert row.severity is None
            assert row.ct_score is None
            assert row.lobe_scores is None
            assert row.model_extra[column] != ""
            assert row.model_extra["source"]
    assert {row.covid for row in read_manifest(tmp_path / "mosmed.csv")} == {
        None
    }  # no test is told, in CT-0 neither


def test_paths_are_relative_below_the_manifest_and_absolute_elsewhere(copy, tmp_path):
    folder = copy("mosmed")
    inside, above = folder / "manifest.csv", tmp_path / "manifest.csv"
    (tmp_path / "elsewhere").mkdir()
    elsewhere = tmp_path / "elsewhere/manifest.csv"
    for out in (inside, above, elsewhere):
        adapt(folder, "mosmed", out)
    assert "study_0255,study_0255,studies/CT-1/study_0255.nii.gz," in inside.read_text("utf-8")
    assert ",mosmed/studies/CT-1/study_0255.nii.gz," in above.read_text("utf-8")
    assert f",{folder}/studies/CT-1/study_0255.nii.gz," in elsewhere.read_text("utf-8")
    folder.rename(tmp_path / "moved")
    assert len(read_manifest(tmp_path / "moved/manifest.csv")) == 6
    assert (
        len(read_manifest(adapt(tmp_path / "moved", "mosmed", tmp_path / "moved/manifest.csv")))
        == 6
    )  # again


def test_mosmed_refuses_with_every_reason(copy, tmp_path):
    folder = copy("mosmed")
    studies = folder / "studies"
    shutil.rmtree(studies / "CT-4")
    (studies / "CT-3/study_1064.nii.gz").unlink()
    (studies / "CT-23").mkdir()
    (studies / "CT-2/study_0939 (1).nii.gz").touch()
    shutil.copy(studies / "CT-0/study_0001.nii.gz", studies / "CT-2")
    (folder / "masks/study_0777_mask.nii.gz").touch()
    (folder / "masks/study_0255_mask.nii").touch()
    (folder / "more").mkdir()
    (folder / "more/study_1111.nii.gz").touch()
    holds(
        refused(folder, "mosmed", tmp_path),
        "studies/CT-4: the folder is missing",
        "studies/CT-3: the folder is empty",
        "studies/CT-23: holds scans of no class",
        "CT-2/study_0939 (1).nii.gz: is not a study",
        "study_0001: is there twice, in CT-0/study_0001.nii.gz and CT-2/study_0001.nii.gz",
        "masks/study_0777_mask.nii.gz: there is no study",
        "study_0255: has two masks",
        "more: is not a folder",
    )


def test_stoic(masters, chest, tmp_path):
    rows = read_manifest(adapt(masters["stoic"], "stoic", tmp_path / "stoic.csv"))
    assert [
        (row.case, row.covid, row.age, row.sex, row.model_extra["stoic_severe"]) for row in rows
    ] == [
        ("stoic-10", 1, 65, "M", "1"),
        ("stoic-7", 1, 35, "F", "0"),
        ("stoic-1002", 0, None, None, "0"),
    ]
    np.testing.assert_array_equal(tf_covid.read(rows[0].path).hu, chest.hu)


def test_stoic_refuses_with_every_reason(copy, tmp_path):
    folder = copy("stoic")
    scans = folder / "data/mha"
    (scans / "12.mha").write_bytes(b"NDims = what")
    (scans / "13.mha").write_bytes((scans / "10.mha").read_bytes().replace(b"065Y", b"65 Y"))
    (scans / "14.mha").write_bytes(
        (scans / "10.mha").read_bytes().replace(b"PatientSex = M", b"PatientSex = ?")
    )
    shutil.copy(scans / "10.mha", scans / "99.mha")
    (scans / "10.txt").touch()
    (folder / "data/raw").mkdir()
    (folder / "data/raw/10.nii.gz").touch()
    text = "PatientID,probCOVID,probSevere\n10,1,1\n7,2,0\n1002,0,1\n7,1,0\n55,1,\n../x,1,0\n12,1,0\n13,1,0\n14,1,0,5\n"
    (folder / "metadata/reference.csv").write_text(text, "utf-8")
    reference = "metadata/reference.csv: row"
    holds(
        refused(folder, "stoic", tmp_path),
        f"{reference} 3, probCOVID: '2' is neither",
        f"{reference} 4, probSevere: 1 does not go",
        f"{reference} 5, PatientID: 7 stands in row 3 already",
        f"{reference} 6, PatientID: there is no data/mha/55.mha",
        f"{reference} 6, probSevere: '' is neither",
        f"{reference} 7, PatientID: '../x' is no name",
        f"{reference} 10, column 4: holds a value",
        "data/mha/12.mha: not_mha",
        "data/mha/13.mha: PatientAge '65 Y'",
        "data/mha/14.mha: PatientSex '?'",
        "data/mha/99.mha: has no row",
        "data/mha/10.txt: is not a scan",
        "raw: is not a folder",
    )


def test_covid_ct_md(masters, chest, tmp_path):
    folder = masters["covid-ct-md"]
    rows = read_manifest(adapt(folder, "covid-ct-md", tmp_path / "md.csv"))
    assert [
        (row.case, row.covid, row.age, row.sex, row.model_extra["finding"]) for row in rows
    ] == [
        ("P001", 1, 51, "F", "covid"),
        ("P002", 1, 52, "M", "covid"),
        ("cap001", 0, 53, "M", "cap"),
        ("normal001", 0, 54, "M", "normal"),
    ]
    # Label Index 3 is the third of three rows: the number before it was never given.
    assert [row.model_extra.get("label_row") for row in rows] == ["0", "1", "2", None]
    assert Path(rows[2].model_extra["slice_labels"]) == folder / "Slice-level-labels.npy"
    scan = tf_covid.read(rows[2].path)
    np.testing.assert_array_equal(scan.hu, chest.hu[::2])
    assert scan.interpolated == ()


def test_covid_ct_md_is_spelled_in_many_ways(copy, tmp_path):
    folder = copy("covid-ct-md")
    for old, new in {
        "COVID-19 Cases": "covid-171",
        "Cap Cases": "CAP_subjects",
        "Normal Cases": "normal",
        "Slice-level-labels.npy": "Slice_level_labels.npy",
    }.items():
        (folder / old).rename(folder / new)
    (folder / "covid-171/P001").rename(folder / "covid-171/p_1")
    shutil.copy(folder / "Lobe-level-labels.npy", folder / "Lobe-level-labels-updated-1.npy")
    table = folder / "Index.csv"
    table.write_text(table.read_text("utf-8").replace("P001", "p_1"), "utf-8")
    gap = np.zeros((4, 20), np.uint8)  # with a row for the number that was never given
    np.save(folder / "Slice_level_labels.npy", gap)
    np.save(folder / "Lobe-level-labels-updated-1.npy", np.zeros((4, 20, 5)))
    rows = read_manifest(adapt(folder, "covid-ct-md", tmp_path / "md.csv"))
    assert [row.case for row in rows] == ["P001", "P002", "cap001", "normal001"]
    assert [row.model_extra.get("label_row") for row in rows] == ["0", "1", "3", None]
    assert rows[0].model_extra["lobe_labels"].endswith("Lobe-level-labels-updated-1.npy")


def test_covid_ct_md_without_labels_is_fine(copy, tmp_path):
    folder = copy("covid-ct-md")
    for file in ("Index.csv", "Slice-level-labels.npy"):
        (folder / file).unlink()
    lines = refused(folder, "covid-ct-md", tmp_path)
    holds(lines, "Index.csv: is missing", "Slice-level-labels.npy: is missing")
    (folder / "Lobe-level-labels.npy").unlink()
    rows = read_manifest(adapt(folder, "covid-ct-md", tmp_path / "md.csv"))
    assert len(rows) == 4
    assert "slice_labels" not in (rows[0].model_extra or {})


def test_covid_ct_md_refuses_with_every_reason(copy, tmp_path):
    folder = copy("covid-ct-md")
    cases = folder / "COVID-19 Cases"
    (cases / "P001/notes.txt").touch()
    (cases / "P003").mkdir()
    (cases / "P-2").mkdir()
    (cases / "patient four").mkdir()
    (cases / "P005").mkdir()
    (cases / "P005/IM1.dcm").write_bytes(b"not DICOM")
    shutil.copytree(folder / "Cap Cases", folder / "more")
    text = (
        "Label Index,Diagnosis,Relative"
        " Path,Folder/ID\n0,COVID-19,./COVID-19/,P001\n0,CAP,./CAP/,cap001\n"
        "x,CAP,./CAP/,P002\n3,CAP,./CAP/,cap009\n"
    )
    (folder / "Index.csv").write_text(text, "utf-8")
    np.save(folder / "Slice-level-labels.npy", np.array([{}]), allow_pickle=True)
    np.save(folder / "Lobe-level-labels.npy", np.zeros((3, 20, 6)))
    place = "COVID-19 Cases"
    holds(
        refused(folder, "covid-ct-md", tmp_path),
        f"{place}/P001/notes.txt: is not a slice",
        f"{place}/P003: holds no slices",
        f"{place}/P002: is the same case as",
        f"{place}/patient four: is not the folder of a case",
        f"{place}/P005/IM1.dcm: is not DICOM",
        "more: is not a folder",
        "Index.csv: row 3, Label Index: '0' is there already",
        "Index.csv: row 4, Label Index: 'x' is not a number",
        "Index.csv: row 4, Diagnosis: 'CAP', and P002 lies in COVID",
        "Index.csv: row 5, Folder/ID: there is no folder of 'cap009'",
        "Slice-level-labels.npy: cannot be read as an array of numbers (pickled",
        "Lobe-level-labels.npy: its last axis",
        f"{place}/P-2: holds no slices",  # it sorts before P002
    )


def test_labels_that_do_not_fit_are_refused(copy, tmp_path):
    folder = copy("covid-ct-md")
    lobes = np.load(folder / "Lobe-level-labels.npy")
    slices = lobes.any(-1).astype(np.int64)
    slices[0, 12] = 1  # a case has 12
    slices[2, 0] = 7
    np.save(folder / "Slice-level-labels.npy", slices)
    name = "Slice-level-labels.npy: row"
    lines = refused(folder, "covid-ct-md", tmp_path)
    holds(
        lines,
        f"{name} 0 (P001): marks slices beyond the 12",
        f"{name} 2 (cap001): holds values other than 0 and 1",
    )
    np.save(folder / "Slice-level-labels.npy", slices[:2])
    holds(
        refused(folder, "covid-ct-md", tmp_path),
        "Slice-level-labels.npy (2, 20) and Lobe-level-labels.npy (3, 20, 5)",
    )
    (folder / "Slice-level-labels.npy").write_bytes(
        (folder / "Lobe-level-labels.npy").read_bytes()[:-9]
    )
    holds(
        refused(folder, "covid-ct-md", tmp_path),
        "Slice-level-labels.npy: cannot be read as an array of numbers",
    )


@pytest.mark.parametrize("kind", ADAPTERS)
def test_other_folders_are_refused_by_name(kind, tmp_path, masters):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert "not a" in refused(tmp_path / "empty", kind, tmp_path)[0]
    assert "no such folder" in refused(tmp_path / "none", kind, tmp_path)[0]
    assert "no such folder" in refused(tmp_path / "file", kind, tmp_path)[0]
    for other, folder in masters.items():
        if other != kind:
            assert "not a" in refused(folder, kind, tmp_path)[0]


def test_an_unknown_data_set_is_named(tmp_path):
    assert refused(tmp_path, "mos", tmp_path) == [
        "there is no data set 'mos'; known are mosmed, stoic, covid-ct-md"
    ]
