"""Objects into a real archive: seen there, or an error."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest

from tests.pacs.orthanc import PASSWORD, USER, Orthanc, bad_line
from tf_covid.errors import PacsError
from tf_covid.pacs.address import Access
from tf_covid.pacs.dicomweb import DicomWeb
from tf_covid.pacs.store import store_objects

ACCESS = Access(USER, PASSWORD)


def held(orthanc: Orthanc) -> int:
    return len(orthanc.ask("GET", "/instances"))


def test_what_is_stored_is_there(orthanc: Orthanc, archive: DicomWeb, chest: Path) -> None:
    lines: list[str] = []
    store_objects(archive, sorted(chest.iterdir()), lines.append)
    assert held(orthanc) == 30
    assert "30 objects are there, 30 of them new" in lines[-1]


def test_what_is_there_is_not_sent_again(orthanc: Orthanc, archive: DicomWeb, chest: Path) -> None:
    lines: list[str] = []
    for _ in range(2):
        store_objects(archive, sorted(chest.iterdir()), lines.append)
    assert held(orthanc) == 30
    assert "30 objects are there, 0 of them new" in lines[-1]


@pytest.mark.parametrize("after", [2_000, 40_000])
def test_a_cut_is_no_success(orthanc: Orthanc, chest: Path, after: int) -> None:
    """The archive answers nothing, or takes half of it, and no error is raised."""
    files = sorted(chest.iterdir())[:3]
    with bad_line(orthanc.port) as line, DicomWeb(line.url, ACCESS) as archive:
        line.cut_requests += [after, 0]
        store_objects(archive, files, lambda message: None)
    assert held(orthanc) == 3


def test_a_line_that_breaks_each_time_is_named(orthanc: Orthanc, chest: Path) -> None:
    file = sorted(chest.iterdir())[0]
    with bad_line(orthanc.port) as line, DicomWeb(line.url, ACCESS, read_s=5.0) as archive:
        line.cut_requests += [20_000] * 100
        with pytest.raises(PacsError, match=r"pacs_(broken|not_stored|timeout)"):
            store_objects(archive, [file], lambda message: None)
    assert held(orthanc) == 0


def test_an_archive_that_refuses_an_object_is_believed(
    orthanc: Orthanc, archive: DicomWeb, chest: Path, tmp_path: Path
) -> None:
    image = pydicom.dcmread(next(chest.iterdir()))
    del image.SOPClassUID
    image.save_as(tmp_path / "odd.dcm", enforce_file_format=False)
    (tmp_path / "odd.dcm").write_bytes((tmp_path / "odd.dcm").read_bytes()[:900])
    with pytest.raises((PacsError, AttributeError)):
        store_objects(archive, [tmp_path / "odd.dcm"], lambda message: None)


def test_a_wrong_password(orthanc: Orthanc, chest: Path) -> None:
    with (
        DicomWeb(orthanc.url, Access(USER, "wrong-word")) as archive,
        pytest.raises(PacsError, match="pacs_denied"),
    ):
        store_objects(archive, [next(chest.iterdir())], lambda message: None)
    assert held(orthanc) == 0
