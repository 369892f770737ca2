"""Laws of what the phantom adds to a plain chest: other diseases, mimics, devices, scanners."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from tf_covid.phantom import (
    BodySettings,
    LungSettings,
    PhantomSettings,
    ScannerSettings,
    draw_chest,
)
from tf_covid.phantom.patient import draw_patient

SHAPE = (40, 80, 80)
QUIET = ScannerSettings(
    noise_hu=(1.0, 1.5),
    shading_hu=(0.0, 0.0),
    p_coarse=0.0,
    p_sharp=0.0,
    p_streaks=0.0,
    p_breathing=0.0,
    p_cut_apex=0.0,
    p_cut_base=0.0,
    p_blanket=0.0,
    p_wires=0.0,
    p_metal=0.0,
    p_tubes=0.0,
    p_tangle=0.0,
    p_circle=0.0,
    p_thin=0.0,
    p_contrast=0.0,
    p_planning=0.0,
    p_clipped=0.0,
    p_far_above=0.0,
    p_far_below=0.0,
)
HEALTHY = LungSettings(
    p_emphysema=0.0, p_dependent=0.0, p_band=0.0, p_nodules=0.0, p_mosaic=0.0, p_buds=0.0
)
STILL = BodySettings(
    p_effusion_left=0.0,
    p_effusion_right=0.0,
    p_high_dome=0.0,
    p_prone=0.0,
    p_mass=0.0,
    p_hilar_tumour=0.0,
    p_nodes=0.0,
    p_random_hu=0.0,
)
PLAIN = PhantomSettings(body=STILL, lung=HEALTHY, scanner=QUIET)


def settings(**sections: dict[str, object]) -> PhantomSettings:
    """`PLAIN` with some fields changed."""
    changed = {
        name: dataclasses.replace(getattr(PLAIN, name), **fields)
        for name, fields in sections.items()
    }
    return dataclasses.replace(PLAIN, **changed)


@pytest.mark.parametrize("pattern", ["lobar", "oedema"])
def test_other_pneumonias_score_and_are_not_covid(pattern: str) -> None:
    other = settings(disease={f"p_{pattern}": 1.0})
    c = draw_chest(31, SHAPE, severity=3, settings=other)
    assert c.settings["pattern"] == pattern
    assert c.severity == 3
    assert c.lesions.any()
    assert not c.covid
    covid = draw_chest(
        31, SHAPE, severity=3, settings=settings(disease={"p_lobar": 0.0, "p_oedema": 0.0})
    )
    assert covid.covid
    assert covid.severity == 3
    assert not draw_chest(31, SHAPE, severity=0, settings=other).covid


def test_lobar_pneumonia_is_one_dense_piece_in_each_lobe() -> None:
    c = draw_chest(33, (50, 96, 96), severity=2, settings=settings(disease={"p_lobar": 1.0}))
    large = [
        lesion
        for lesion in (c.lesions & (c.lobes == lobe) for lobe in range(1, 6))
        if lesion.sum() > 100
    ]
    assert large
    for lesion in large:
        pieces = np.bincount(ndimage.label(lesion)[0].ravel())[1:]
        assert pieces.max() > 0.7 * lesion.sum()
        assert np.median(c.hu[lesion]) > -300


def test_wires_and_tubes_are_whole_whatever_the_slab() -> None:
    scanner = {"p_tubes": 1.0, "p_16_bit": 1.0}
    # 300 voxels a side: slabs of three slices. A tube that runs along the body is in each of its
    # slices.
    tubes = draw_chest(44, (12, 300, 300), severity=0, settings=settings(scanner=scanner))
    plain = draw_chest(44, (12, 300, 300), severity=0, settings=settings(scanner={"p_16_bit": 1.0}))
    seen = (np.abs(tubes.hu.astype(int) - plain.hu) > 60).any(axis=(1, 2))
    first, last = np.flatnonzero(seen)[[0, -1]]
    assert last - first >= 3
    assert seen[first : last + 1].all()


def test_oedema_lies_around_the_hila() -> None:
    c = draw_chest(34, SHAPE, severity=2, settings=settings(disease={"p_oedema": 1.0}))
    middle = 0.5 * (SHAPE[2] - 1)
    inner = [
        float(np.abs(np.nonzero(mask)[2] - middle).mean()) for mask in (c.lesions, c.lungs > 0)
    ]
    assert inner[0] < inner[1]


def test_tufts_and_nodules_are_dense_and_no_disease() -> None:
    seed = 35
    dotted = draw_chest(
        seed, SHAPE, severity=0, settings=settings(lung={"p_buds": 1.0, "p_nodules": 1.0})
    )
    plain = draw_chest(seed, SHAPE, severity=0, settings=PLAIN)
    inside = (plain.lungs > 0) & (dotted.lungs > 0)
    assert not dotted.lesions.any()
    assert (dotted.hu.astype(int) - plain.hu)[inside].max() > 150
    assert (dotted.lungs == plain.lungs).mean() > 0.995, (
        "other vessels are drawn, so the hila move a little"
    )


def test_lung_beside_fluid_collapses_and_is_lung_without_disease() -> None:
    fluid = settings(body={"p_effusion_right": 1.0})
    wet = [draw_chest(seed, SHAPE, severity=0, settings=fluid) for seed in (36, 37, 38)]
    dry = [draw_chest(seed, SHAPE, severity=0, settings=PLAIN) for seed in (36, 37, 38)]
    dense = [
        sum(int((c.hu[c.lungs == 1] > -400).sum()) for c in cases)
        / sum((c.lungs == 1).sum() for c in cases)
        for cases in (wet, dry)
    ]
    assert dense[0] > 1.2 * dense[1]
    assert not any(c.lesions.any() for c in wet)
    assert all((w.lungs == 1).sum() < (d.lungs == 1).sum() for w, d in zip(wet, dry, strict=True))


def test_one_high_diaphragm_shortens_one_lung() -> None:
    high = settings(body={"p_high_dome": 1.0, "high_dome_mm": (60.0, 60.0)})
    ratios = []
    for seed in (41, 42):
        shares = []
        for chosen in (high, PLAIN):
            c = draw_chest(seed, SHAPE, severity=0, settings=chosen)
            shares.append([np.count_nonzero(c.lungs == side) for side in (1, 2)])
        ratios.append(np.divide(*shares))
    for ratio in ratios:
        assert min(ratio) < 0.92
        assert max(ratio) > 0.97


def test_metal_is_bright_and_streaks_leave_other_slices_and_the_truth_alone() -> None:
    seed = 49
    metal = draw_chest(
        seed, SHAPE, severity=1, settings=settings(scanner={"p_metal": 1.0, "p_16_bit": 1.0})
    )
    plain = draw_chest(seed, SHAPE, severity=1, settings=settings(scanner={"p_16_bit": 1.0}))
    np.testing.assert_array_equal(metal.lesions, plain.lesions)
    np.testing.assert_array_equal(metal.lungs, plain.lungs)
    changed = np.abs(metal.hu.astype(int) - plain.hu).max(axis=(1, 2))
    assert metal.hu.max() > 1500
    assert changed.max() > 300
    assert (changed < 30).any(), "slices without metal stay as they were"


def test_tubes_are_seen_in_the_middle_of_the_chest_only() -> None:
    seed = 44
    tubes = draw_chest(seed, SHAPE, severity=0, settings=settings(scanner={"p_tubes": 1.0}))
    plain = draw_chest(seed, SHAPE, severity=0, settings=PLAIN)
    moved = np.argwhere(np.abs(tubes.hu.astype(int) - plain.hu) > 100)
    assert len(moved) > 10
    inside = plain.lungs[tuple(moved.T)] > 0
    assert inside.mean() < 0.2


def test_thin_slices_are_sharper_than_thick_ones() -> None:
    rough = []
    for thin in (1.0, 0.0):
        sharp = settings(scanner={"p_thin": thin, "blur_mm": (0.3, 0.4)})
        c = draw_chest(46, (12, 128, 128), severity=0, settings=sharp)
        inner = ndimage.binary_erosion(c.lungs > 0, np.ones((1, 3, 3)), iterations=3)
        steps = np.diff(c.hu.astype(int), axis=2)[inner[..., 1:] & inner[..., :-1]]
        rough.append(float(np.quantile(np.abs(steps), 0.99)))
    assert rough[0] > 1.1 * rough[1], "vessels that the mean of a thick slice blurs"


def test_12_bits_end_where_a_12_bit_scanner_ends() -> None:
    loud = {"noise_hu": (60.0, 60.0), "noise_correlation_mm": (0.25, 0.25)}
    twelve = draw_chest(46, SHAPE, severity=0, settings=settings(scanner={**loud, "p_16_bit": 0.0}))
    sixteen = draw_chest(
        46, SHAPE, severity=0, settings=settings(scanner={**loud, "p_16_bit": 1.0})
    )
    assert twelve.hu.min() == -1024
    assert sixteen.hu.min() < -1100


def test_diseased_and_healthy_share_patient_and_scanner() -> None:
    first, second = (draw_patient(47, severity, PLAIN) for severity in (0, 4))
    assert first.protocol == second.protocol
    np.testing.assert_array_equal(first.anatomy.fields["lungs"], second.anatomy.fields["lungs"])
