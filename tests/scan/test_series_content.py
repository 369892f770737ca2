"""The series that shows the lungs is answered; projections, averages and slabs are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from tf_covid.phantom.files import write_dicom
from tf_covid.scan import read
from tf_covid.scan.dicom import read_header, terms
from tf_covid.scan.dicom.content import lung_share
from tf_covid.scan.source import DiskFile

SIZE = 64


def _disc(depth: float, width: float, y: float = 32, x: float = 32) -> np.ndarray:
    rows, columns = np.ogrid[:SIZE, :SIZE]
    return ((rows - y) / depth) ** 2 + ((columns - x) / width) ** 2 < 1


def body(part: str, slices: int, seed: int = 0) -> np.ndarray:
    """int16 HU (D, H, W) of a torso or a head.

    "chest" has lungs, "abdomen" gas in the bowel, "head" a skull.
    """
    hu = np.full((slices, SIZE, SIZE), -1000, np.int16)
    hu[:, _disc(20, 27)] = -100
    hu[:, _disc(18, 25)] = 40
    if part in ("chest", "emphysema"):
        lung = -850 if part == "chest" else -955
        hu[:, _disc(12, 8, 30, 19)] = lung
        hu[:, _disc(12, 8, 30, 45)] = lung
    elif part == "abdomen":
        hu[:, _disc(5, 7, 24, 25)] = -990
        hu[::2, _disc(4, 4, 26, 42)] = -980
    elif part == "head":
        hu[:] = -1000
        hu[:, _disc(24, 18)] = 900
        hu[:, _disc(22, 16)] = 35
        hu[::3, _disc(3, 3, 18, 32)] = -990
    noise = np.random.default_rng(seed).normal(0, 15, hu.shape)
    return (hu + noise).astype(np.int16)


@pytest.fixture
def study(tmp_path: Path):
    """Adds a series of one part of the body to one study, with elements as they are said to be."""

    def add(
        name: str,
        part: str,
        slices: int,
        *,
        spacing: float = 5.0,
        orientation: str = "axial",
        **said: Any,
    ) -> Path:
        hu = body(part, slices, sum(name.encode()))
        affine = np.array(
            [[0, 0, 5.5, -170.0], [0, 5.5, 0, -170.0], [-spacing, 0, 0, 300.0], [0, 0, 0, 1]]
        )
        options = {
            key: said.pop(key)
            for key in ("kernel", "slice_thickness", "series_number")
            if key in said
        }
        folder = write_dicom(
            hu,
            affine,
            tmp_path / "study" / name,
            orientation=orientation,
            seed=sum(name.encode()),
            study_seed=1,
            **options,
        )
        if said:
            for file in folder.iterdir():
                dataset = pydicom.dcmread(file)
                for keyword, value in said.items():
                    setattr(dataset, keyword, value)
                dataset.save_as(file)
        return folder

    return add


def _shown(scan) -> str:
    """Which part of the body was read."""
    share = np.mean([lung_share(slice_)[0] for slice_ in scan.hu[::4]])
    return "chest" if share > 0.05 else "head" if (scan.hu > 700).mean() > 0.02 else "abdomen"


@pytest.mark.parametrize("words", [{}, {"BodyPartExamined": ""}, {"BodyPartExamined": "ABDOMEN"}])
@pytest.mark.parametrize("other", ["abdomen", "head"])
def test_a_chest_beside_a_longer_series(
    study, tmp_path: Path, words: dict[str, str], other: str
) -> None:
    """However the words lie, the lungs are found."""
    study("a", "chest", 30, kernel="B70f", series_number=3, **words)
    study("b", other, 60, spacing=2.5, kernel="B30f", series_number=2)
    scan = read(tmp_path / "study")
    assert _shown(scan) == "chest"
    assert "it shows the lungs" in scan.chosen_because


def test_a_much_longer_abdomen(study, tmp_path: Path) -> None:
    study("a", "chest", 60, kernel="B70f", BodyPartExamined="CHEST")
    study("b", "abdomen", 120, kernel="B30f", BodyPartExamined="ABDOMEN")
    assert _shown(read(tmp_path / "study")) == "chest"


def test_emphysema_is_lung(study, tmp_path: Path) -> None:
    study("a", "emphysema", 30)
    study("b", "abdomen", 60)
    assert read(tmp_path / "study").shape[0] == 30


def test_a_broken_chest_is_not_replaced_by_the_abdomen(study, tmp_path: Path, refused) -> None:
    folder = study("a", "chest", 30)
    for file in sorted(folder.iterdir())[10:14]:
        file.unlink()
    study("b", "abdomen", 30)
    assert refused(tmp_path / "study")["missing_slices"].value == 4


def test_few_slices_do_not_stand_in_for_a_broken_chest(study, tmp_path: Path, refused) -> None:
    folder = study("a", "chest", 30)
    for file in sorted(folder.iterdir())[10:14]:
        file.unlink()
    study("b", "abdomen", 3)
    assert "missing_slices" in refused(tmp_path / "study")


def test_two_chests_by_the_written_rules(study, tmp_path: Path) -> None:
    study("a", "chest", 30, kernel="B30f", series_number=1)
    study("b", "chest", 60, spacing=2.5, kernel="B30f", series_number=2)
    study("c", "chest", 60, spacing=2.5, kernel="B70f", series_number=3)
    scan = read(tmp_path / "study")
    assert scan.shape[0] == 60
    assert "lung kernel" in scan.chosen_because


def test_contrast_phases_of_a_chest(study, tmp_path: Path) -> None:
    study("a", "chest", 30, kernel="B30f", series_number=1, SeriesDescription="Thorax native")
    study("b", "chest", 30, kernel="B30f", series_number=2, SeriesDescription="Thorax venous")
    scan = read(tmp_path / "study")
    assert _shown(scan) == "chest"
    assert "lowest series number" in scan.chosen_because


@pytest.mark.parametrize(
    "image_type", [["ORIGINAL", "PRIMARY", "AXIAL"], ["DERIVED", "SECONDARY", "MPR"]]
)
def test_a_chest_beside_its_coronal_reformat(study, tmp_path: Path, image_type: list[str]) -> None:
    study("a", "chest", 30)
    study("b", "chest", 30, orientation="coronal", ImageType=image_type)
    assert read(tmp_path / "study").source.axes[2] == 0


def test_spaced_high_resolution_slices_read(study, tmp_path: Path) -> None:
    folder = study("a", "chest", 15, spacing=10.0, slice_thickness=1.0)
    assert read(folder).quality_flags == ()
    study("b", "abdomen", 60)
    assert read(tmp_path / "study").shape[0] == 15


PROJECTIONS = [
    (
        {"ImageType": ["DERIVED", "SECONDARY", "AXIAL"], "SeriesDescription": "MIP 10mm"},
        "SeriesDescription MIP",
    ),
    (
        {"ImageType": ["DERIVED", "SECONDARY", "AXIAL"], "SeriesDescription": "Thorax_MIP_8/2"},
        "SeriesDescription MIP",
    ),
    (
        {"ImageType": ["DERIVED", "SECONDARY"], "SeriesDescription": "Lung MinIP 5.0"},
        "SeriesDescription MinIP",
    ),
    (
        {"ImageType": ["DERIVED", "SECONDARY"], "SeriesDescription": "min-ip"},
        "SeriesDescription MinIP",
    ),
    ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "CSA MIP"]}, "ImageType MIP"),
    ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "MIP"]}, "ImageType MIP"),
    ({"ImageType": ["DERIVED", "PRIMARY", "VOLUME", "MAXIMUM"]}, "ImageType MIP"),
    ({"ImageType": ["DERIVED", "PRIMARY", "VOLUME", "MINIMUM"]}, "ImageType MinIP"),
]


@pytest.mark.parametrize(("said", "text"), PROJECTIONS)
def test_a_projection_alone_is_refused(study, refused, said: dict[str, Any], text: str) -> None:
    folder = study("a", "chest", 12, **said)
    assert f"12 with {text}" in refused(folder)["projection"].message


@pytest.mark.parametrize(("said", "text"), PROJECTIONS)
def test_a_projection_beside_its_slices_is_not_chosen(
    study, tmp_path: Path, said, text: str, quality_flags
) -> None:
    study("a", "chest", 24, spacing=2.5, kernel="B70f", series_number=1, **said)
    study("b", "chest", 12, series_number=2)
    scan = read(tmp_path / "study")
    assert scan.shape[0] == 12
    assert f"24 with {text}" in quality_flags(scan)["other_images"].message


@pytest.mark.parametrize("text", ["MIP 10mm", "Chest MinIP"])
def test_an_original_that_is_called_a_projection_is_said(
    study, quality_flags, refused, text: str
) -> None:
    folder = study("a", "chest", 12, SeriesDescription=text)
    assert quality_flags(read(folder))["projection"].level == "warning"
    slab = study("b", "chest", 24, spacing=1.0, slice_thickness=10.0, SeriesDescription=text)
    assert "projection" in refused(slab)


@pytest.mark.parametrize(
    "text",
    [
        "MIPPEL",
        "Thin for MIP",
        "1.0 for MPR/MIP",
        "pre MIP",
        "Shrimp",
        "ADMIPRESS",
        "Thorax 1.25 lung",
    ],
)
def test_words_that_are_no_projection(study, text: str) -> None:
    assert read(study("a", "chest", 12, SeriesDescription=text)).quality_flags == ()


@pytest.mark.parametrize(
    "said",
    [
        {"ImageType": ["DERIVED", "SECONDARY", "AXIAL", "AVERAGE"]},
        {"ImageType": ["DERIVED", "PRIMARY", "VOLUME", "MEAN"]},
        {"SeriesDescription": "AveIP 0-90%"},
        {"SeriesDescription": "Average CT"},
    ],
)
def test_an_average_is_read_last_and_said(
    study, tmp_path: Path, quality_flags, said: dict[str, Any]
) -> None:
    folder = study("a", "chest", 24, spacing=2.5, kernel="B70f", **said)
    flag = quality_flags(read(folder))["projection"]
    assert (flag.level, flag.value) == ("warning", "average")
    study("b", "chest", 12, kernel="B30f")
    assert read(tmp_path / "study").shape[0] == 12


@pytest.mark.parametrize(
    ("thickness", "spacing", "slab"),
    [(10, 1, True), (8, 2, True), (5, 2.5, False), (5, 2, False), (3, 1, False), (1.5, 0.7, False)],
)
def test_slabs_by_their_thickness(
    study, quality_flags, thickness: float, spacing: float, slab: bool
) -> None:
    scan = read(study("a", "chest", 12, spacing=spacing, slice_thickness=thickness))
    assert ("thick_slices" in quality_flags(scan)) == slab


@pytest.mark.parametrize("part", ["chest", "emphysema"])
@pytest.mark.parametrize("size", [1, 4, 8])
def test_the_share_of_lung_is_that_of_the_drawing(part: str, size: int) -> None:
    slice_ = np.kron(body(part, 1)[0], np.ones((size, size), np.int16))
    drawn = 2 * _disc(12, 8, 30, 19).sum() / SIZE**2
    assert lung_share(slice_)[0] == pytest.approx(drawn, abs=0.03)


@pytest.mark.parametrize("part", ["abdomen", "head"])
def test_gas_in_bowel_and_sinuses_is_no_lung(part: str) -> None:
    assert max(lung_share(slice_)[0] for slice_ in body(part, 6)) == 0.0


def test_lung_in_a_field_of_view_cropped_to_it() -> None:
    slice_ = body("chest", 1)[0, 20:40, 13:51]
    assert lung_share(slice_)[0] > 0.3


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("CHEST", "chest"),
        ("Thorax 1.0 B70f", "chest"),
        ("CHESTABDPELVIS", "chest"),
        ("LUNG", "chest"),
        ("THORACIC", "chest"),
        ("", ""),
        ("ABDOMEN", "elsewhere"),
        ("HEAD", "elsewhere"),
        ("Abdo/Pelvis", "elsewhere"),
        ("Routine", ""),
        ("FAHEAD", ""),
        ("CSPINE", "elsewhere"),
        ("LSPINE", "elsewhere"),
    ],
)
def test_words_for_a_region(series: Path, edit, text: str, region: str) -> None:
    file = sorted(series.iterdir())[0]

    def say(dataset: pydicom.Dataset) -> None:
        dataset.BodyPartExamined, dataset.SeriesDescription = "", text

    edit(file, say)
    instance = read_header(DiskFile.of(file))
    assert instance is not None
    assert terms.region(instance) == region
