"""Folders: everything in one is read, or named with its number and its reason."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest

from tf_covid.errors import ScanRefused
from tf_covid.phantom.files import write_dicom, write_nifti_volume
from tf_covid.result import QualityFlag
from tf_covid.scan import contents, find_cases, read


def levels(flags: dict[str, QualityFlag]) -> dict[str, tuple[str, object]]:
    return {code: (flag.level, flag.value) for code, flag in flags.items()}


def test_what_may_not_be_read_is_named(series: Path, tmp_path: Path) -> None:
    """As a user who is not the owner: permissions mean nothing to root."""
    (series / "deep").mkdir()
    for file in sorted(series.glob("*.dcm"))[:3]:
        file.rename(series / "deep" / file.name)
    (series / "deep").chmod(0o000)
    sorted(series.glob("*.dcm"))[0].chmod(0o000)
    for folder in (series, *tmp_path.parents):
        if folder != series and folder.stat().st_uid == os.getuid() and len(folder.parts) > 2:
            folder.chmod(0o755)
    tmp_path.chmod(0o755)
    code = (
        "import json, os, sys\n"
        "import tf_covid.scan.check\n"
        "from tf_covid.scan import find_cases\n"
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "(case,) = find_cases(sys.argv[1])\n"
        "print(json.dumps([[flag.code, flag.level, flag.value] for flag in case.quality_flags]))"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(series)], capture_output=True, text=True, check=False
        )
    finally:
        (series / "deep").chmod(0o755)
    if "PermissionError" in done.stderr and "setuid" in done.stderr:
        pytest.skip("this root may not become another user")
    assert json.loads(done.stdout) == [["no_access", "warning", 2]], done.stderr


def test_links_to_folders(marker, series: Path, tmp_path: Path, quality_flags) -> None:
    outside = write_dicom(marker.hu, marker.affine, tmp_path / "outside", seed=4)
    (series / "loop").symlink_to(series)
    (series / "sub").mkdir()
    (series / "sub" / "up").symlink_to(series / "sub")  # what it leads to is searched anyway
    assert quality_flags(read(series)) == {}
    (series / "other").symlink_to(outside)
    (series / "root").symlink_to("/")
    scan = read(series)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert levels(quality_flags(scan)) == {"linked_folders": ("warning", 2)}


def test_a_folder_that_is_only_links(refused, series: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "ct").symlink_to(series)
    assert "1 link(s) to folders outside" in refused(tmp_path / "in")["no_scan"].message
    assert read(tmp_path / "in" / "ct").shape == (14, 40, 32)


def test_broken_links_and_what_is_no_file(series: Path, quality_flags) -> None:
    (series / "gone").symlink_to(series / "nothing")
    (series / "circle").symlink_to(series / "circle")
    os.mkfifo(series / "pipe")
    with socket.socket(socket.AF_UNIX) as line:
        here = Path.cwd()
        os.chdir(series)  # the path of a socket is short
        try:
            line.bind("socket")
        finally:
            os.chdir(here)
        found = levels(quality_flags(read(series)))
    assert found == {"broken_links": ("warning", 2), "special_files": ("info", 2)}


def test_a_volume_beside_a_series_is_a_case_of_its_own(marker, series: Path, quality_flags) -> None:
    write_nifti_volume(marker.hu, marker.affine, series / "other.nii.gz")
    first, second = find_cases(series)
    assert first.instances
    assert second.members == ("other.nii.gz",)
    for case in (first, second):
        np.testing.assert_array_equal(case.read().hu, marker.hu)
    scan = read(series)  # for a caller who wants one scan, the volume is named
    assert levels(quality_flags(scan)) == {"volumes_beside": ("warning", 1)}


def test_one_good_archive_does_not_stand_for_a_broken_one(series: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    shutil.make_archive(str(tmp_path / "in" / "a"), "zip", series)
    (tmp_path / "in" / "b.zip").write_bytes(b"PK\3\4" + bytes(100))
    assert [case.refused for case in find_cases(tmp_path / "in")] == [False, True]
    with pytest.raises(ScanRefused, match="several_cases"):
        read(tmp_path / "in")


def test_damaged_dicom_beside_volumes(marker, series: Path, tmp_path: Path, quality_flags) -> None:
    root = tmp_path / "in"
    root.mkdir()
    write_nifti_volume(marker.hu, marker.affine, root / "a.nii.gz")
    (root / "x.dcm").write_bytes(sorted(series.iterdir())[0].read_bytes()[:300])
    assert levels(quality_flags(read(root))) == {"unreadable_files": ("warning", 1)}


@pytest.mark.parametrize("emptied", ["all", "study", "series"])
def test_patients_whose_ids_were_emptied_stay_apart(
    marker, tmp_path: Path, edit, emptied: str
) -> None:
    scans = []
    for number in (1, 2):
        hu = marker.hu + np.int16(3 * number)
        folder = write_dicom(hu, marker.affine, tmp_path / "in" / f"p{number}", seed=number)
        scans.append(hu)

        def anonymise(dataset: pydicom.Dataset) -> None:
            dataset.PatientID = dataset.PatientName = dataset.PatientBirthDate = (
                dataset.AccessionNumber
            ) = ""
            dataset.StudyInstanceUID = ""
            if emptied != "study":
                dataset.SeriesInstanceUID = ""

        edit(folder, anonymise)
    if emptied == "series":  # in one folder, told apart by what is left
        for folder in ("p1", "p2"):
            edit(
                tmp_path / "in" / folder,
                lambda dataset, name=folder: setattr(
                    dataset, "PatientBirthDate", f"1950010{name[1]}"
                ),
            )
    cases = find_cases(tmp_path / "in")
    assert len(cases) == 2
    for case, hu in zip(cases, scans, strict=True):
        np.testing.assert_array_equal(case.read().hu, hu)


def blank(data: bytes, start: int, end: int) -> bytes:
    return data[:start] + bytes(end - start) + data[end:]


LOST = {
    "nothing": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "a stump": lambda data: data[:90],
    "a stump with its mark": lambda data: data[:131],
    "cut before Rows": lambda data: data[: data.index(b"\x28\0\x10\0")],
    "no Rows": lambda data: data.replace(b"\x28\0\x10\0", b"\x29\0\x10\0"),
    "no mark": lambda data: blank(data, 0, 200),
    "no header": lambda data: blank(data, 0, data.index(b"\xe0\x7f\x10\0")),
}


@pytest.mark.parametrize("suffix", [".dcm", ""])
@pytest.mark.parametrize("what", LOST)
def test_a_slice_that_was_lost_is_no_foreign_file(
    series: Path, quality_flags, what: str, suffix: str
) -> None:
    for file in series.iterdir():
        file.rename(file.with_suffix(suffix))
    file = sorted(series.iterdir())[-1]
    file.write_bytes(LOST[what](file.read_bytes()))
    assert levels(quality_flags(read(series)))["unreadable_files"] == ("warning", 1)


@pytest.mark.parametrize("name", ["report.dcm", "report"])
def test_a_report_beside_the_slices_is_no_lost_slice(
    series: Path, quality_flags, name: str
) -> None:
    dataset = pydicom.dcmread(sorted(series.iterdir())[0])
    for keyword in ("Rows", "Columns", "PixelData", "BitsAllocated"):
        del dataset[keyword]
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = (
        "1.2.840.10008.5.1.4.1.1.88.33"
    )
    dataset.Modality = "SR"
    dataset.save_as(series / name)
    (series / "._other").write_bytes(bytes(4096))
    assert levels(quality_flags(read(series))) == {"foreign_files": ("info", 2)}


def test_a_name_that_is_no_unicode(marker, series: Path, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    shutil.copytree(os.fsencode(series), folder)
    (case,) = find_cases(os.fsdecode(folder))
    assert case.name.isascii()
    np.testing.assert_array_equal(case.read().hu, marker.hu)


class Detached:
    """A header format with its data in a file beside it, as `data_file_of` tells of one."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, source: object) -> str:
        return self.name


@pytest.fixture
def detached(monkeypatch: pytest.MonkeyPatch) -> str:
    """Names of headers that end in `.nrrd` point to `voxels.raw`."""
    monkeypatch.setattr(contents, "data_file_of", Detached("voxels.raw"))
    return "voxels.raw"


def test_a_header_and_its_data_file_are_one_case(tmp_path: Path, detached: str) -> None:
    folder = tmp_path / "in" / "a"
    folder.mkdir(parents=True)
    (folder / "head.nrrd").write_bytes(b"NRRD0004\n")
    (folder / detached).write_bytes(bytes(10))
    (folder / "readme").write_text("hello")
    (case,) = find_cases(tmp_path / "in")
    assert case.members == ("a/head.nrrd", "a/voxels.raw")
    assert [(flag.code, flag.value) for flag in case.quality_flags] == [("foreign_files", 1)]
    (alone,) = find_cases(folder / "head.nrrd")
    assert alone.members == ("head.nrrd", "voxels.raw")
    assert alone.fingerprint() == case.fingerprint() != ""
    (packed,) = find_cases(shutil.make_archive(str(tmp_path / "p"), "zip", tmp_path / "in"))
    assert packed.members == case.members
    assert packed.fingerprint() == case.fingerprint()
    (folder / detached).write_bytes(bytes(9))
    assert alone.fingerprint() != packed.fingerprint()


@pytest.mark.parametrize("how", ["missing", "link"])
def test_a_header_without_its_data_file(refused, tmp_path: Path, detached: str, how: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "head.nrrd").write_bytes(b"NRRD0004\n")
    if how == "link":
        (tmp_path / "secret").write_bytes(bytes(10))
        (tmp_path / "in" / detached).symlink_to(tmp_path / "secret")
    for path in (tmp_path / "in" / "head.nrrd", tmp_path / "in"):
        assert [*refused(path)] == ["data_file_missing"]
