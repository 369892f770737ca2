"""Laws of what surrounds the lungs: the tissues are what the image shows, and what confuses a network occurs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from tests.phantom.test_effects import PLAIN, settings
from tf_covid.phantom import Chest, draw_chest
from tf_covid.phantom.tissue import RANDOM_HU
from tf_covid.tissues import TISSUES

SHAPE = (48, 80, 80)


def ml(chest: Chest, tissue: str) -> float:
    """The volume of a tissue."""
    count = np.count_nonzero(chest.tissues == TISSUES[tissue])
    return float(count * np.prod(chest.spacing_mm) / 1000.0)


def core(chest: Chest, tissue: str) -> np.ndarray:
    """HU of a tissue away from its border."""
    return chest.hu[ndimage.binary_erosion(chest.tissues == TISSUES[tissue])]


@pytest.mark.parametrize("seed", range(4))
def test_each_voxel_is_lung_or_a_tissue(seed: int) -> None:
    c = draw_chest(seed, SHAPE)
    assert c.tissues.dtype == np.uint8
    np.testing.assert_array_equal(c.tissues == 0, c.lobes > 0)
    assert c.tissues.max() <= max(TISSUES.values())


@pytest.mark.parametrize("seed", [50, 51, 52])
def test_the_image_shows_the_tissues(seed: int) -> None:
    plain = settings(scanner={"p_table": 0.0}, body={"p_oral_contrast": 0.0})
    c = draw_chest(seed, (60, 112, 112), severity=0, settings=plain)
    assert np.median(core(c, "air around the patient")) < -980
    assert (core(c, "airway") < -800).mean() > 0.8
    assert -130 < np.median(core(c, "chest wall")) < 100
    assert -130 < np.median(core(c, "mediastinum")) < 80
    assert 20 < np.median(core(c, "solid organ")) < 75
    middle = {
        name: np.argwhere(c.tissues == TISSUES[name]).mean(axis=0)
        for name in ("stomach", "solid organ", "mediastinum", "airway")
    }
    assert middle["airway"][0] < middle["mediastinum"][0] < middle["stomach"][0]
    assert middle["solid organ"][2] < middle["stomach"][2], "liver right, stomach left"
    # Air within the body is airway, stomach, bowel or lung, whatever the threshold would say.
    body = ndimage.binary_erosion(c.tissues == TISSUES["chest wall"], iterations=2)
    assert not (c.hu[body] < -700).any()


@pytest.mark.parametrize(("ml_drawn", "least"), [(60.0, 10.0), (800.0, 280.0)])
def test_as_much_fluid_as_drawn(ml_drawn: float, least: float) -> None:
    wet = settings(body={"p_effusion_right": 1.0, "effusion_ml": (ml_drawn, ml_drawn)})
    found = [draw_chest(seed, SHAPE, severity=0, settings=wet) for seed in (53, 54, 55)]
    for c in found:
        assert least < ml(c, "pleural effusion") < 1.3 * ml_drawn + 30.0
        assert -10 < np.median(c.hu[c.tissues == TISSUES["pleural effusion"]]) < 40
        assert not c.lesions.any()


@pytest.mark.slow
def test_effusion_reaches_800_ml_and_occurs_in_a_fifth() -> None:
    from tf_covid.phantom.patient import draw_patient

    volumes = []
    for seed in range(60):
        p = draw_patient(seed, 0, dataclasses.replace(PLAIN, body=type(PLAIN.body)())).anatomy.p
        volumes.append(max(p[f"effusion_{s}"] * p[f"effusion_{s}_ml"] for s in ("left", "right")))
    assert 0.1 < np.mean(np.array(volumes) > 0) < 0.35
    assert max(volumes) <= 800.0


def test_gas_of_the_belly_comes_near_to_the_lungs() -> None:
    nearest = []
    for seed in range(60, 66):
        c = draw_chest(seed, (80, 128, 128), severity=0, settings=PLAIN)
        gut = np.isin(c.tissues, (TISSUES["bowel"], TISSUES["stomach"])) & (c.hu < -600)
        away = ndimage.distance_transform_edt(c.lungs == 0, sampling=c.spacing_mm)
        nearest.append(float(away[gut].min()) if gut.any() else np.inf)
    assert min(nearest) < 6.0
    assert np.median(nearest) < 12.0


def test_some_scans_reach_far_beyond_the_lungs() -> None:
    far = settings(scanner={"p_far_below": 1.0, "p_far_above": 1.0})
    c = draw_chest(70, (60, 64, 64), severity=0, settings=far)
    rows = np.flatnonzero((c.lungs > 0).any(axis=(1, 2)))
    assert (len(c.hu) - 1 - rows[-1]) * c.spacing_mm[0] > 140
    assert rows[0] * c.spacing_mm[0] > 60
    assert np.isin(c.tissues[rows[-1] + 5 :], (TISSUES["bowel"],)).any(axis=(1, 2)).mean() > 0.8


@pytest.mark.parametrize("seed", [71, 72, 73])
def test_masses_are_lung_and_no_disease(seed: int) -> None:
    ill = {"p_mass": 1.0, "mass_mm": (50.0, 50.0)}
    c = draw_chest(seed, SHAPE, severity=0, settings=settings(body=ill))
    plain = draw_chest(seed, SHAPE, severity=0, settings=PLAIN)
    assert not c.lesions.any()
    dense = (c.lungs > 0) & (plain.lungs > 0) & (c.hu.astype(int) - plain.hu > 400)
    assert dense.sum() * np.prod(c.spacing_mm) / 1000 > 8.0
    assert (c.lungs > 0).sum() > 0.97 * (plain.lungs > 0).sum()
    worse = draw_chest(seed, SHAPE, severity=4, settings=settings(body=ill))
    assert not (worse.lesions & dense & ndimage.binary_erosion(dense)).any()


def test_hilar_tumours_and_lymph_nodes_are_mediastinum() -> None:
    ill = {"p_hilar_tumour": 1.0, "p_nodes": 1.0, "mass_mm": (60.0, 60.0)}
    c = draw_chest(74, SHAPE, severity=0, settings=settings(body=ill))
    plain = draw_chest(74, SHAPE, severity=0, settings=PLAIN)
    taken = (plain.lungs > 0) & (c.lungs == 0)
    assert taken.sum() * np.prod(c.spacing_mm) / 1000 > 10.0
    assert (c.tissues[taken] == TISSUES["mediastinum"]).mean() > 0.8


def test_random_hu_moves_no_border_and_keeps_the_lungs_dark() -> None:
    plain = draw_chest(75, SHAPE, severity=0, settings=PLAIN)
    other = draw_chest(75, SHAPE, severity=0, settings=settings(body={"p_random_hu": 1.0}))
    for name in ("lobes", "tissues"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(other, name))
    moved = [abs(other.settings[name] - plain.settings[name]) for name in RANDOM_HU]
    assert np.median(moved) > 15
    inner = ndimage.binary_erosion(other.lungs > 0, iterations=2)
    assert np.median(other.hu[inner]) < -600


def test_pads_and_head_rests_are_neither_air_nor_body() -> None:
    bare = {"p_pad": 0.0, "p_head_rest": 0.0, "p_cushions": 0.0}
    soft = {"p_pad": 1.0, "p_head_rest": 1.0, "p_cushions": 1.0}
    volumes = []
    for chosen in (bare, soft):
        c = draw_chest(76, SHAPE, severity=0, settings=settings(scanner=chosen))
        foam = c.hu[c.tissues == TISSUES["table, pads and cloth"]]
        volumes.append(np.count_nonzero((foam > -960) & (foam < -500)))
    assert volumes[1] > 2 * volumes[0] + 500


@pytest.mark.parametrize("seed", [77, 78])
def test_tissues_are_the_same_on_any_grid(seed: int) -> None:
    coarse, fine = (draw_chest(seed, shape, severity=1) for shape in ((32, 64, 64), (64, 128, 128)))
    for name in ("mediastinum", "solid organ", "chest wall"):
        assert ml(coarse, name) == pytest.approx(ml(fine, name), rel=0.06), name


def test_a_clipped_scan_ends_at_air() -> None:
    c = draw_chest(79, SHAPE, settings=settings(scanner={"p_clipped": 1.0}))
    assert c.hu.min() == -1000
