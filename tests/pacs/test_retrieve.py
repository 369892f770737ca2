"""Studies out of a real archive: whole, whatever becomes of the connection, or not at all."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pydicom
import pytest

from tests.pacs.orthanc import PASSWORD, USER, BadLine, Orthanc, bad_line, free_port
from tf_covid.errors import PacsError
from tf_covid.pacs.address import Access
from tf_covid.pacs.dicomweb import DicomWeb
from tf_covid.pacs.retrieve import retrieve_series, retrieve_study

ACCESS = Access(USER, PASSWORD)


def study_of(folder: Path) -> str:
    return str(pydicom.dcmread(next(folder.iterdir())).StudyInstanceUID)


def hashes(folder: Path) -> list[str]:
    return sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir())


def retrieve(
    url: str, study_uid: str, folder: Path, access: Access = ACCESS, **options: Any
) -> int:
    folder.mkdir()
    with DicomWeb(url, access, **options) as archive:
        return retrieve_study(archive, study_uid, folder, lambda line: None)


@pytest.fixture
def line(orthanc: Orthanc) -> Any:
    with bad_line(orthanc.port) as line:
        yield line


@pytest.fixture
def stored(orthanc: Orthanc, chest: Path) -> Path:
    orthanc.put(*chest.iterdir())
    return chest


def test_the_files_are_those_that_were_stored(
    orthanc: Orthanc, stored: Path, tmp_path: Path
) -> None:
    assert retrieve(orthanc.url, study_of(stored), tmp_path / "in") == 30
    assert hashes(tmp_path / "in") == hashes(stored)


def test_compressed_files_too(orthanc: Orthanc, chest: Path, tmp_path: Path) -> None:
    for file in chest.iterdir():
        image = pydicom.dcmread(file)
        image.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
        image.save_as(tmp_path / file.name)
        orthanc.put(tmp_path / file.name)
    retrieve(orthanc.url, study_of(chest), tmp_path / "in")
    for file in (tmp_path / "in").iterdir():
        assert pydicom.dcmread(file).file_meta.TransferSyntaxUID == pydicom.uid.RLELossless


def test_ct_alone_is_retrieved(orthanc: Orthanc, stored: Path, tmp_path: Path) -> None:
    image = pydicom.dcmread(next(stored.iterdir()))
    image.Modality, image.SeriesInstanceUID = "OT", "1.2.3.4"
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = "1.2.3.5"
    image.save_as(tmp_path / "other.dcm")
    orthanc.put(tmp_path / "other.dcm")
    assert retrieve(orthanc.url, study_of(stored), tmp_path / "in") == 30


@pytest.mark.parametrize("after", [1_000, 100_000, 1_000_000, 2_100_000])
def test_what_a_cut_leaves_out_is_asked_for_again(
    line: BadLine, stored: Path, tmp_path: Path, after: int
) -> None:
    """Orthanc states no length: nobody else notices."""
    # A connection that was cut is closed, and so each cut meets the next request.
    line.cut_answers += [after]
    assert retrieve(line.url, study_of(stored), tmp_path / "in") == 30
    assert hashes(tmp_path / "in") == hashes(stored)
    assert not line.cut_answers


def test_a_line_that_breaks_each_time_is_named(line: BadLine, stored: Path, tmp_path: Path) -> None:
    line.cut_answers += [9_000] * 100
    with pytest.raises(PacsError) as caught:
        retrieve(line.url, study_of(stored), tmp_path / "in")
    assert str(caught.value).startswith(("pacs_broken", "pacs_incomplete"))
    assert not list((tmp_path / "in").glob("*.dcm")) or len(hashes(tmp_path / "in")) < 31


def test_a_slow_line_is_only_slow(line: BadLine, stored: Path, tmp_path: Path) -> None:
    line.rate = 2_000_000
    start = time.monotonic()
    assert retrieve(line.url, study_of(stored), tmp_path / "in") == 30
    assert time.monotonic() - start > 0.8
    assert hashes(tmp_path / "in") == hashes(stored)


def test_a_server_that_never_answers_is_not_waited_for(
    line: BadLine, stored: Path, tmp_path: Path
) -> None:
    line.silent = True
    with pytest.raises(PacsError, match="pacs_timeout"):
        retrieve(line.url, study_of(stored), tmp_path / "in", read_s=1.0)


def test_nobody_there(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/dicom-web"
    start = time.monotonic()
    with pytest.raises(PacsError, match="pacs_unreachable: nobody answers at http://127"):
        retrieve(url, "1.2.3", tmp_path / "in")
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    "access", [Access(USER, "wrong-word"), Access(), Access(token="wrong-word")]
)
def test_a_wrong_password_is_said_at_once(
    orthanc: Orthanc, stored: Path, tmp_path: Path, access: Access
) -> None:
    with pytest.raises(PacsError, match="pacs_denied") as caught:
        retrieve(orthanc.url, study_of(stored), tmp_path / "in", access)
    assert "wrong-word" not in str(caught.value)
    assert "wrong-word" not in repr(access)


def test_a_password_in_the_url_works_and_is_in_no_message(
    orthanc: Orthanc, stored: Path, tmp_path: Path
) -> None:
    def url(password: str) -> str:
        return orthanc.url.replace("http://", f"http://{USER}:{password}@")

    lines: list[str] = []
    (tmp_path / "in").mkdir()
    with DicomWeb(url(PASSWORD), Access()) as archive:
        retrieve_study(archive, study_of(stored), tmp_path / "in", lines.append)
    assert lines
    assert PASSWORD not in "".join(lines)
    with pytest.raises(PacsError, match="pacs_denied") as caught:
        retrieve(url("wrong-word"), study_of(stored), tmp_path / "again", Access())
    assert "wrong-word" not in str(caught.value)


@pytest.mark.parametrize("study", ["1.2.3.4.5", "2.25.1"])
def test_a_study_that_is_not_there(
    orthanc: Orthanc, stored: Path, tmp_path: Path, study: str
) -> None:
    with pytest.raises(PacsError, match="pacs_unknown") as caught:
        retrieve(orthanc.url, study, tmp_path / "in")
    assert study not in str(caught.value)


def test_a_study_that_grows_is_read_to_its_end(
    orthanc: Orthanc, chest: Path, line: BadLine, tmp_path: Path
) -> None:
    """Ten more slices come in while the first twenty are on their way."""
    files = sorted(chest.iterdir())
    orthanc.put(*files[:20])
    late = files[20:]

    def grow(done: int) -> None:
        if done > 200_000 and late:
            more = list(late)
            late.clear()
            orthanc.put(*more)

    line.on_answer = grow
    assert retrieve(line.url, study_of(chest), tmp_path / "in") == 30
    assert hashes(tmp_path / "in") == hashes(chest)


def test_a_study_that_does_not_stop_growing_is_refused(
    orthanc: Orthanc, chest: Path, line: BadLine, tmp_path: Path
) -> None:
    files = sorted(chest.iterdir())
    orthanc.put(*files[:5])
    image, last = pydicom.dcmread(files[5]), [0.0]

    def grow(done: int) -> None:
        """One image more, again and again."""
        if done > 60_000 and time.monotonic() - last[0] > 0.05:
            last[0] = time.monotonic()
            image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = (
                pydicom.uid.generate_uid()
            )
            image.save_as(tmp_path / "late.dcm")
            orthanc.put(tmp_path / "late.dcm")

    line.on_answer = grow
    with pytest.raises(PacsError, match="pacs_growing"):
        retrieve(line.url, study_of(chest), tmp_path / "in")


def test_images_that_vanish_meanwhile(
    orthanc: Orthanc, stored: Path, line: BadLine, tmp_path: Path
) -> None:
    left = [True]

    def remove(done: int) -> None:
        if done > 1_500_000 and left:
            left.clear()
            orthanc.ask("DELETE", f"/instances/{orthanc.ask('GET', '/instances')[0]}")

    line.on_answer = remove
    with pytest.raises(PacsError, match="pacs_changed: 1 images"):
        retrieve(line.url, study_of(stored), tmp_path / "in")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a disk")
def test_a_disk_that_is_full(orthanc: Orthanc, stored: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        with pytest.raises(PacsError, match="pacs_disk_full: there is no room"):
            retrieve(orthanc.url, study_of(stored), disk / "in")
    finally:
        subprocess.run(["umount", disk], check=True)


def test_no_more_is_written_than_there_is_room_for(
    orthanc: Orthanc, stored: Path, tmp_path: Path
) -> None:
    image = pydicom.dcmread(next(stored.iterdir()))
    with DicomWeb(orthanc.url, ACCESS) as archive:
        series = str(image.StudyInstanceUID), str(image.SeriesInstanceUID)
        images = frozenset(archive.instances(*series))
        with pytest.raises(PacsError, match="pacs_disk_full"):
            retrieve_series(archive, *series, images, tmp_path, 500_000)
        written = sum(file.stat().st_size for file in tmp_path.rglob("*.dcm"))
        assert written <= 500_000
        (tmp_path / "in").mkdir()
        retrieve_series(archive, *series, images, tmp_path / "in", 1 << 30)
    assert hashes(tmp_path / "in") == hashes(stored)
