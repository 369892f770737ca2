"""The look without labels, `benchmarks/real.py`: its reference, and a run over a small folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.servers import SmallFiles, small_files  # noqa: F401  (a fixture)
from tf_covid.phantom import Chest, draw_chest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[SimpleNamespace]:
    """The modules of the command; they are no package of ours."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import coarse
        import real
        import reference
        import sheet

        yield SimpleNamespace(coarse=coarse, real=real, reference=reference, sheet=sheet)
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def chest() -> Chest:
    return draw_chest(5, (60, 128, 128), severity=0)


def test_the_reference_finds_the_lungs_of_a_chest_without_disease(
    benchmarks: SimpleNamespace, chest: Chest
) -> None:
    by = benchmarks.coarse.blocks(chest.hu.shape, chest.spacing_mm)
    found = benchmarks.reference.reference_lungs(by.hu(chest.hu), by.spacing_mm)
    truth = by.mask(chest.lungs > 0)
    both = np.count_nonzero(found.lungs & truth)
    assert 2 * both / (np.count_nonzero(found.lungs) + np.count_nonzero(truth)) > 0.95
    assert not found.doubts
    far = ~benchmarks.coarse.near(found.lungs, by.spacing_mm, 10.0)
    assert np.count_nonzero(truth & far) * by.ml < 3.0


@pytest.mark.parametrize(
    ("change", "doubt"),
    [
        (lambda hu: hu[:, :, : hu.shape[2] // 2].copy(), "touches the picture's border"),
        (lambda hu: hu[len(hu) // 2 :], "cut off at the first slice"),
        (lambda hu: np.where(hu < -400, 40, hu), "no lungs found"),
        (lambda hu: hu[::6, ::2, ::2], "less than 1 l"),
    ],
    ids=["half a body", "half a height", "no air", "small"],
)
def test_an_implausible_reference_says_so(
    benchmarks: SimpleNamespace, chest: Chest, change: object, doubt: str
) -> None:
    found = benchmarks.reference.reference_lungs(change(chest.hu), chest.spacing_mm)
    assert doubt in found.doubts


def test_gas_is_no_lung_and_a_foam_pad_is_no_body(
    benchmarks: SimpleNamespace, chest: Chest
) -> None:
    hu, (_, height, width) = chest.hu.copy(), chest.hu.shape
    pad = np.zeros((height, width), bool)
    pad[height - 12 : height - 4, width // 4 : 3 * width // 4] = True
    hu[:, pad] = -900
    # Half a litre of gas in the belly, larger than the least piece that counts as lung.
    lowest = np.flatnonzero((chest.lungs > 0).any(axis=(1, 2)))[-1]
    rows, columns = np.ogrid[:height, :width]
    gas = (rows - height // 2) ** 2 + (columns - width // 2) ** 2 < 100
    belly = np.zeros(hu.shape, bool)
    belly[lowest - 2 :, gas] = True
    belly &= chest.lungs == 0
    hu[belly] = -1000
    before = benchmarks.reference.reference_lungs(chest.hu, chest.spacing_mm)
    found = benchmarks.reference.reference_lungs(hu, chest.spacing_mm)
    assert not found.lungs[:, pad].any()
    assert not (found.lungs & belly & ~before.lungs).any()


@pytest.mark.parametrize("spacing_mm", [(1.0, 0.7, 0.7), (5.0, 0.9, 0.9), (0.5, 3.0, 3.0)])
def test_blocks_hold_what_the_scan_holds(
    benchmarks: SimpleNamespace, spacing_mm: tuple[float, float, float]
) -> None:
    volume = np.full((31, 41, 53), 40, np.int16)
    volume[:15] = -3000  # around the scanned circle
    by = benchmarks.coarse.blocks(volume.shape, spacing_mm)
    assert all(
        1.0 <= side <= max(2.0, most) for side, most in zip(by.spacing_mm, spacing_mm, strict=True)
    )
    hu = by.hu(volume)
    assert (hu[0] == -1024).all()
    assert (hu[-1] == 40).all()
    assert by.mask(np.ones(volume.shape, bool)).all()
    assert benchmarks.real.lobe_blocks(volume.astype(np.uint8), by).shape == hu.shape


def test_a_scan_of_800_slices_becomes_few_blocks(benchmarks: SimpleNamespace) -> None:
    by = benchmarks.coarse.blocks((800, 512, 512), (1.01, 1.01, 1.01))
    count = np.prod([size // k for size, k in zip((800, 512, 512), by.factors, strict=True)])
    assert count <= benchmarks.coarse.MOST_BLOCKS


@pytest.mark.slow
def test_a_folder_is_looked_at(benchmarks: SimpleNamespace, tmp_path: Path) -> None:
    from click.testing import CliRunner
    from PIL import Image

    from tf_covid.phantom.cohort import write_cohort

    folder, out = tmp_path / "scans", tmp_path / "out"
    write_cohort(folder, 2, seed=3, size=128, slices=60, format="nifti")
    (folder / "torn.nii.gz").write_bytes(b"\x1f\x8b\x08\x00torn")
    done = CliRunner().invoke(benchmarks.real.main, [str(folder), "--out", str(out)])
    assert done.exit_code == 0, done.output
    said = json.loads((out / "real.json").read_text("utf-8"))
    assert len(said["scans"]) == 2
    for row in said["scans"]:
        assert row["dice"] > 0.8
        assert row["dice_mirrored"] > 0.9
        assert row["lungs_far_ml"] >= 0
        assert f"| {row['scan']} |" in done.output
    assert any("torn" in row["scan"] and row["reasons"] for row in said["refused"])
    with Image.open(out / "sheet.png") as sheet:
        assert (
            sheet.width == 4 * (benchmarks.sheet.TILE + benchmarks.sheet.GAP) - benchmarks.sheet.GAP
        )


def _view(benchmarks: SimpleNamespace, chest: Chest, lungs: np.ndarray) -> SimpleNamespace:
    """A view of a chest, of which `lungs` were found; its lobes and a third of it as disease."""
    by = benchmarks.coarse.blocks(chest.hu.shape, chest.spacing_mm)
    reference = benchmarks.reference.reference_lungs(by.hu(chest.hu), by.spacing_mm)
    lobes = benchmarks.real.lobe_blocks(chest.lungs.astype(np.uint8), by)
    return benchmarks.sheet.View(
        name="phantom",
        hu=chest.hu,
        blocks=by,
        lungs=by.mask(lungs),
        reference=reference.lungs,
        far=~benchmarks.coarse.near(reference.lungs, by.spacing_mm, 10.0),
        disease=by.mask(chest.lungs == 3),
        lobes=lobes,
        doubts=("cut off at the last slice",),
    )


def test_false_lung_is_drawn_where_it_is(benchmarks: SimpleNamespace, chest: Chest) -> None:
    lungs = chest.lungs > 0
    lowest = np.flatnonzero(lungs.any(axis=(1, 2)))[-1]
    lungs[lowest - 2 : lowest + 1, 50:80, 50:75] = True
    picture = np.asarray(benchmarks.sheet.draw_scan(_view(benchmarks, chest, lungs)), int)
    tile = benchmarks.sheet.TILE + benchmarks.sheet.GAP
    # Far lung is tinted magenta: more red and blue than green.
    magenta = np.minimum(picture[..., 0], picture[..., 2]) - picture[..., 1] > 60
    assert magenta[:, :tile].sum() > 500
    assert magenta[:, 3 * tile :].any()


def test_nothing_found_is_drawn_too(benchmarks: SimpleNamespace, chest: Chest) -> None:
    view = _view(benchmarks, chest, np.zeros(chest.hu.shape, bool))
    assert benchmarks.sheet.draw_scan(view).size[0] == (
        4 * (benchmarks.sheet.TILE + benchmarks.sheet.GAP) - benchmarks.sheet.GAP
    )


def test_a_lung_model_that_is_none_is_named(benchmarks: SimpleNamespace, tmp_path: Path) -> None:
    from click.testing import CliRunner

    done = CliRunner().invoke(
        benchmarks.real.main, [str(tmp_path), "--lobes-model", "nonsense", "--out", str(tmp_path)]
    )
    assert done.exit_code == 1
    assert "nonsense: neither a file nor a shipped model" in done.output


@pytest.mark.slow
def test_lobes_and_fluid_of_a_lobe_model_are_told(
    benchmarks: SimpleNamespace,
    small_files: SmallFiles,  # noqa: F811
    tmp_path: Path,
) -> None:
    from click.testing import CliRunner

    from tf_covid.phantom.cohort import write_cohort
    from tf_covid.severity import LOBES

    write_cohort(tmp_path / "scans", 1, seed=3, size=128, slices=60, format="nifti")
    scan = tmp_path / "scans" / "case-0000" / "ct.nii.gz"
    command = [scan, "--out", tmp_path, "--lobes-model", small_files.lobes]
    done = CliRunner().invoke(benchmarks.real.main, [str(one) for one in command])
    assert done.exit_code == 0, done.output
    said = json.loads((tmp_path / "real.json").read_text("utf-8"))
    (row,) = said["scans"] or said["refused"]
    assert "lobes_ml" in row, row
    assert set(row["lobes_ml"]) == set(LOBES)
    assert sum(row["lobes_ml"].values()) == pytest.approx(
        row["right_ml"] + row["left_ml"], rel=0.01
    )
    assert row["effusion_ml"] is None or row["effusion_ml"] >= 0
