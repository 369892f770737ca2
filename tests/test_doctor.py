"""The doctor says what works, and notices what does not."""

from __future__ import annotations

import hashlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from packaging.requirements import Requirement

from tf_covid import doctor
from tf_covid.doctor import Report, Row, Section, decoders
from tf_covid.models import UNet
from tf_covid.scan.dicom import pixels
from tf_covid.weights import Contract, catalog, save_model

ARGUMENTS = {"input_shape": [16, 16, 1], "filters": 2, "depth": 1}


def rows(title: str, report: Report) -> dict[str, Row]:
    (section,) = (section for section in report.sections if section.title == title)
    return {row.name: row for row in section.rows}


def test_a_report_as_text() -> None:
    report = Report(
        (
            Section(
                "Packages",
                (Row("numpy", "2.4.6", True), Row("a-long-name", "not installed", False)),
            ),
            Section("Machine", (Row("memory", "8.0 GiB"),)),
        )
    )
    assert not report.ok
    assert (
        doctor.render(report) == "Packages\n"
        "  ok   numpy        2.4.6\n"
        "  FAIL a-long-name  not installed\n"
        "\n"
        "Machine\n"
        "       memory       8.0 GiB\n"
        "\n"
        "Missing or broken:\n"
        "  a-long-name: not installed\n"
    )
    assert doctor.render(Report(report.sections[1:])).endswith("All is there.\n")


def test_this_install_is_whole() -> None:
    report = doctor.report()
    assert report.complaints == ()
    assert report.ok
    assert {"tensorflow", "keras", "imagecodecs", "tf-keras-vis"} <= set(rows("Packages", report))
    assert set(rows("Shipped weights", report)) == set(catalog.shipped()) != set()
    assert "CPU:0" in rows("TensorFlow", report)["devices"].value
    assert "test" in rows("Extras", report)


def test_every_promised_transfer_syntax_decodes() -> None:
    assert {name: broken for name, _, broken in decoders.check() if broken} == {}


def test_a_decoder_that_returns_zeros_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pixels, "decode", lambda data, instance: (np.zeros((16, 16), np.uint16), 12)
    )
    assert all("wrong values" in broken for _, _, broken in decoders.check())


def test_a_missing_decoder_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(imagecodecs, "jpegls_encode")
    broken = {name for name, _, broken in decoders.check() if broken}
    assert broken == {"JPEG-LS", "JPEG-LS near-lossless"}


def test_a_missing_and_an_old_package_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = [
        Requirement("numpy>=1"),
        Requirement("numpy<1"),
        Requirement("tf-covid-no-such-package"),
    ]
    monkeypatch.setattr(doctor, "_requirements", lambda: needed)
    good, old, missing = doctor._packages()
    assert good == Row("numpy", np.__version__, True)
    assert old == Row("numpy", f"{np.__version__}, but <1 is needed", False)
    assert missing == Row("tf-covid-no-such-package", "not installed", False)


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped models with one tiny lung model and its card."""
    monkeypatch.setattr(catalog, "folder", lambda: tmp_path)
    ship(tmp_path, "lungs-tiny")
    return tmp_path


def ship(folder: Path, name: str, lungs_sha256: str | None = None) -> Path:
    file = folder / name / catalog.MODEL
    file.parent.mkdir()
    contract = Contract(
        model="unet", arguments=ARGUMENTS, task="lungs", note="a test", lungs_sha256=lungs_sha256
    )
    save_model(UNet(**ARGUMENTS), contract, file)
    file.with_name(catalog.CARD).write_text(
        f"sha256: {hashlib.sha256(file.read_bytes()).hexdigest()}\n"
    )
    return file


def test_shipped_weights_are_loaded(shipped: Path) -> None:
    (row,) = doctor._weights()
    assert (row.name, row.ok) == ("lungs-tiny", True)
    assert row.value.startswith("lungs, 0.00 M weights, sha256 ")


def test_weights_that_are_not_those_of_the_card_are_noticed(shipped: Path) -> None:
    with (shipped / "lungs-tiny" / catalog.MODEL).open("ab") as file:
        file.write(b"\0")
    (row,) = doctor._weights()
    assert row.ok is False
    assert "is not the one in its model card" in row.value


def test_damaged_weights_are_noticed(shipped: Path) -> None:
    file = shipped / "lungs-tiny" / catalog.MODEL
    file.write_bytes(b"nothing")
    file.with_name(catalog.CARD).write_text(hashlib.sha256(b"nothing").hexdigest())
    (row,) = doctor._weights()
    assert row.ok is False
    assert row.value.startswith("UnsafeFile: damaged: ")


def test_a_model_behind_another_lung_model_is_noticed(shipped: Path) -> None:
    ship(shipped, "behind-another", lungs_sha256="0" * 64)
    broken, whole = doctor._weights()
    assert whole.ok is True
    assert (
        broken.value == f"was trained behind a lung model that is not shipped (sha256 {'0' * 64})"
    )


def test_no_weights_at_all_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "folder", lambda: tmp_path)
    assert [row.ok for row in doctor._weights()] == [False]
