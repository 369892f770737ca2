"""What `deploy/` holds for hospitals: an Orthanc that forwards CT series, and a unit of systemd."""

from __future__ import annotations

import configparser
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.uid import generate_uid

from tests.pacs.orthanc import PASSWORD, USER, running
from tests.watch.test_listener import files_of, until
from tf_covid.cli import main

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_an_orthanc_forwards_stable_ct_series_and_nothing_else(
    listen: Any, chest: Path, tmp_path: Path
) -> None:
    listener = listen()
    shipped = json.loads((DEPLOY / "orthanc" / "orthanc.json").read_text("utf-8"))
    assert [*shipped["DicomModalities"]] == ["tfcovid"]
    shutil.copy(DEPLOY / "orthanc" / "forward_ct.lua", tmp_path)
    node = [shipped["DicomModalities"]["tfcovid"][0], "127.0.0.1", listener.port]
    changed = {
        "DicomModalities": {"tfcovid": node},
        "LuaScripts": shipped["LuaScripts"],
        "StableAge": 1,
        "DicomAet": shipped["DicomAet"],
    }
    with running(tmp_path, **changed) as orthanc:
        image = pydicom.dcmread(files_of(chest)[0])
        image.Modality, image.SOPClassUID = "MR", "1.2.840.10008.5.1.4.1.1.4"
        image.SeriesInstanceUID, image.SOPInstanceUID = generate_uid(), generate_uid()
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
        image.save_as(tmp_path / "mr.dcm")
        orthanc.put(*files_of(chest), tmp_path / "mr.dcm")
        (seen,) = until(lambda: list(listener.poll()))
        assert len(seen.images) == len(files_of(chest))
        jobs = [orthanc.ask("GET", f"/jobs/{job}") for job in orthanc.ask("GET", "/jobs")]
        assert [job["State"] for job in jobs] == ["Success"], "the MR series is not sent at all"


def test_the_shipped_orthanc_starts_as_it_is(tmp_path: Path) -> None:
    """With the plugins, user and Lua of the file; ports of its own, for others may be taken."""
    shipped = json.loads((DEPLOY / "orthanc" / "orthanc.json").read_text("utf-8"))
    shutil.copy(DEPLOY / "orthanc" / "forward_ct.lua", tmp_path)
    kept = {
        key: value
        for key, value in shipped.items()
        if key not in ("HttpPort", "DicomPort", "RegisteredUsers")
    }
    with running(tmp_path, **kept) as orthanc:
        assert orthanc.ask("GET", "/dicom-web/studies") == []
        assert orthanc.ask("GET", "/system")["DicomAet"] == "ORTHANC"
    assert shipped["RemoteAccessAllowed"] is False
    assert shipped["RegisteredUsers"] != {USER: PASSWORD}


def test_the_unit_calls_what_there_is() -> None:
    unit = configparser.ConfigParser(strict=True, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(DEPLOY / "tfcovid-watch.service", "utf-8")
    program, command, *arguments = shlex.split(unit["Service"]["ExecStart"])
    assert program.endswith("/bin/tfcovid")
    context = main.commands[command].make_context("watch", arguments)  # type: ignore[attr-defined]
    assert context.params["store"] == context.params["sources"][0]
    assert str(context.params["out"]).startswith("/var/lib/" + unit["Service"]["StateDirectory"])
    with pytest.raises(KeyError):
        unit["Service"]["User"]  # DynamicUser gives one
