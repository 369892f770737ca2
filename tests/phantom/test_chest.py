"""Laws of the synthetic chest: what is true of every patient, whatever was drawn."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from tf_covid.phantom import (
    BodySettings,
    Chest,
    LungSettings,
    PhantomSettings,
    ScannerSettings,
    draw_chest,
)
from tf_covid.severity import LOBES, ct_score, lobe_score, severity_class

SMALL = (40, 80, 80)

#: A quiet scanner and a plain patient, where a law is about HU.
PLAIN = PhantomSettings(
    body=BodySettings(
        p_effusion_left=0.0,
        p_effusion_right=0.0,
        p_arms_down=0.0,
        p_prone=0.0,
        p_mass=0.0,
        p_hilar_tumour=0.0,
        p_nodes=0.0,
        p_random_hu=0.0,
    ),
    lung=LungSettings(p_emphysema=0.0, p_dependent=0.0, p_band=0.0, p_nodules=0.0, p_mosaic=0.0),
    scanner=ScannerSettings(
        noise_hu=(2.0, 3.0),
        p_coarse=0.0,
        p_sharp=0.0,
        p_streaks=0.0,
        p_breathing=0.0,
        p_cut_apex=0.0,
        p_cut_base=0.0,
        p_contrast=0.0,
        p_blanket=0.0,
        p_wires=0.0,
        p_planning=0.0,
        p_clipped=0.0,
        p_far_above=0.0,
        p_far_below=0.0,
    ),
)


@cache
def chest(
    seed: int, severity: int | None = None, shape: tuple[int, int, int] = SMALL, plain: bool = False
) -> Chest:
    return draw_chest(seed, shape, severity=severity, settings=PLAIN if plain else None)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def test_same_seed_same_chest_and_another_seed_another() -> None:
    first, again = draw_chest(3, (16, 48, 48)), draw_chest(3, (16, 48, 48))
    for name in ("hu", "lungs", "lobes", "lesions", "tissues", "affine"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert first.settings == again.settings
    assert (draw_chest(4, (16, 48, 48)).hu != first.hu).mean() > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("severity", range(5))
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_scores_follow_from_the_voxels_and_the_class_is_the_wanted_one(
    seed: int, severity: int
) -> None:
    c = chest(seed, severity)
    counted = []
    for lobe in range(1, len(LOBES) + 1):
        inside = c.lobes == lobe
        counted.append(100.0 * np.count_nonzero(c.lesions & inside) / np.count_nonzero(inside))
    np.testing.assert_allclose(c.lobe_involvement_percent, counted)
    assert c.lobe_scores == tuple(lobe_score(share) for share in counted)
    assert c.ct_score == ct_score(c.lobe_scores)
    assert c.severity == severity_class(c.ct_score) == severity
    assert c.lesions.any() == (severity > 0)


def test_scores_spread_over_the_whole_range_of_a_class() -> None:
    from tf_covid.phantom.lesions import draw_lobe_scores

    rng = np.random.default_rng(0)
    for severity, whole in enumerate(
        (range(1), range(1, 7), range(7, 13), range(13, 19), range(19, 26))
    ):
        drawn = [sum(draw_lobe_scores(severity, rng)) for _ in range(200)]
        assert set(drawn) == set(whole)


def test_without_a_wanted_class_every_class_comes() -> None:
    from tf_covid.phantom.patient import draw_patient

    classes = {
        severity_class(sum(draw_patient(seed, None, PLAIN).disease.lobe_scores))
        for seed in range(6)
    }
    assert len(classes) >= 3


@pytest.mark.parametrize("seed", range(4))
def test_masks_agree_with_each_other(seed: int) -> None:
    c = chest(seed)
    assert c.hu.shape == c.lungs.shape == c.lobes.shape == c.lesions.shape == SMALL
    assert (c.hu.dtype, c.lungs.dtype, c.lobes.dtype, c.lesions.dtype) == (
        np.int16,
        np.uint8,
        np.uint8,
        bool,
    )
    assert set(np.unique(c.lobes)) == set(range(6))
    np.testing.assert_array_equal(c.lungs == 1, np.isin(c.lobes, (1, 2, 3)))
    np.testing.assert_array_equal(c.lungs == 2, np.isin(c.lobes, (4, 5)))
    assert not (c.lesions & (c.lungs == 0)).any()


@pytest.mark.parametrize("seed", range(4))
def test_every_organ_lies_where_it_does_in_people(seed: int) -> None:
    c = chest(seed, 0, plain=True)
    centre = {side: np.argwhere(c.lungs == side).mean(axis=0) for side in (1, 2)}
    assert centre[1][2] < centre[2][2], "W runs from the patient's right to left"
    lobes = {lobe: np.argwhere(c.lobes == lobe).mean(axis=0) for lobe in range(1, 6)}
    assert lobes[1][0] < lobes[3][0], "upper lobes are nearer to the head"
    assert lobes[4][0] < lobes[5][0], "upper lobes are nearer to the head"
    assert lobes[2][1] < lobes[3][1], "the middle lobe lies in front of the lower one"
    # Right under the right lung's dome lies liver, as dense as soft tissue.
    lowest = np.where(c.lobes == 3, np.arange(SMALL[0])[:, None, None], -1).max(axis=0)
    h, w = np.round(lobes[3][1:]).astype(int)
    under = c.hu[min(int(lowest[h, w]) + 4, SMALL[0] - 1), h - 2 : h + 3, w - 2 : w + 3]
    assert -20 < np.median(under) < 110
    # Bone behind the lungs' middle, between them: the spine.
    middle = round((centre[1][2] + centre[2][2]) / 2)
    level = round(centre[1][0])
    assert (c.hu[level, SMALL[1] // 2 :, middle - 6 : middle + 7] > 180).sum() > 15


@pytest.mark.parametrize("seed", range(4))
def test_air_outside_the_lungs_is_no_lung(seed: int) -> None:
    c = chest(seed, 0, shape=(48, 128, 128), plain=True)
    body = np.stack([ndimage.binary_fill_holes(one) for one in c.hu > -300])
    inside = ndimage.binary_erosion(body, np.ones((1, 3, 3)), iterations=4)
    pockets = inside & (c.hu < -880) & ~ndimage.binary_dilation(c.lungs > 0, iterations=2)
    assert pockets.sum() > 20, "trachea, stomach and bowel hold air"
    lung = c.hu[ndimage.binary_erosion(c.lungs > 0, iterations=2)]
    assert -960 < np.median(lung) < -650


@pytest.mark.parametrize("seed", range(3))
def test_hu_has_the_two_peaks_by_which_a_ct_is_known(seed: int) -> None:
    c = chest(seed, 0, plain=True)
    counts, edges = np.histogram(c.hu, bins=np.arange(-1024, 400, 20))
    air, soft = (
        counts[edges[:-1] < -900].max(),
        counts[(edges[:-1] > -150) & (edges[:-1] < 120)].max(),
    )
    between = counts[(edges[:-1] > -600) & (edges[:-1] < -250)].max()
    assert air > 3 * between
    assert soft > 3 * between


@pytest.mark.parametrize("seed", [10, 11, 12])
def test_lesions_are_denser_than_the_lung_around_them(seed: int) -> None:
    c = chest(seed, 2, plain=True)
    core = ndimage.binary_erosion(c.lesions)
    healthy = ndimage.binary_erosion(c.lungs > 0) & ~ndimage.binary_dilation(
        c.lesions, iterations=2
    )
    assert np.median(c.hu[core]) > np.median(c.hu[healthy]) + 90


def test_healthy_patients_may_look_ill_but_have_no_lesion() -> None:
    mimics = PhantomSettings(
        lung=LungSettings(p_dependent=1.0, p_band=1.0, p_nodules=1.0, p_emphysema=1.0)
    )
    c = draw_chest(5, SMALL, severity=0, settings=mimics)
    assert not c.lesions.any()
    assert c.ct_score == 0
    inner = ndimage.binary_erosion(c.lungs > 0, iterations=2)
    assert (c.hu[inner] > -600).mean() > 0.01


@pytest.mark.parametrize("seed", [20, 21])
def test_the_patient_is_the_same_on_any_grid(seed: int) -> None:
    coarse, fine = chest(seed, 3, shape=(30, 64, 64)), chest(seed, 3, shape=(60, 128, 128))
    assert coarse.settings == fine.settings
    np.testing.assert_allclose(coarse.spacing_mm, np.multiply(2.0, fine.spacing_mm), rtol=1e-5)
    for name, least in (("lungs", 0.95), ("lesions", 0.85)):
        shrunk = (getattr(fine, name) > 0).reshape(30, 2, 64, 2, 64, 2).mean(axis=(1, 3, 5)) >= 0.5
        assert dice(shrunk, getattr(coarse, name) > 0) > least, name


@pytest.mark.parametrize("padding", [-1024, -2000, -3024])
def test_padding_lies_outside_the_circle_only(padding: int) -> None:
    # 16 bits would keep the noise below -1024.
    scanner = ScannerSettings(p_circle=1.0, p_16_bit=0.0, padding_hu=(padding,))
    c = draw_chest(6, (12, 64, 64), settings=PhantomSettings(scanner=scanner))
    y, x = np.mgrid[:64, :64] - 31.5
    outside = y**2 + x**2 > 32**2
    assert (c.hu[:, outside] == padding).all()
    assert (c.hu[:, ~outside] >= -1024).all()


def test_geometry_is_lps_with_the_right_spacing() -> None:
    c = chest(7)
    np.testing.assert_allclose(np.linalg.norm(c.affine[:3, :3], axis=0), c.spacing_mm)
    head, feet = c.affine @ [0, 0, 0, 1], c.affine @ [1, 0, 0, 1]
    assert feet[2] < head[2], "D runs to the feet"
    assert c.affine[1, 1] > 0, "H runs to the back, W to the left"
    assert c.affine[0, 2] > 0, "H runs to the back, W to the left"
    assert 280 < c.spacing_mm[2] * SMALL[2] < 500


def test_cut_scans_show_lung_in_their_last_slice() -> None:
    cut = PhantomSettings(scanner=ScannerSettings(p_cut_apex=1.0, p_cut_base=1.0))
    c = draw_chest(8, (24, 64, 64), settings=cut, severity=1)
    assert c.lungs[0].any()
    assert c.lungs[-1].any()
    assert not chest(8, 0, plain=True).lungs[-1].any()


def test_volumes_are_those_of_people() -> None:
    litres = []
    for seed in range(4):
        c = chest(seed)
        litres.append(np.count_nonzero(c.lungs) * np.prod(c.spacing_mm) / 1e6)
    assert min(litres) > 1.0
    assert max(litres) < 9.0
