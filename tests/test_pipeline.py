"""The road from a scan to its result, behind a lung model that also finds diseased lung.

Networks are made here: the shipped lung model may or may not have the second output.
"""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import keras
import numpy as np
import pytest

from tf_covid import local, pipeline
from tf_covid.errors import ScanRefused
from tf_covid.models import NETWORKS
from tf_covid.pipeline import stratify
from tf_covid.scan import Scan, SourceGrid
from tf_covid.severity import LOBES
from tf_covid.weights import Contract
from tf_covid.weights.files import save_model

SHAPE, SPACING_MM = (24, 64, 64), (8.0, 4.0, 4.0)
RIGHT = (slice(3, 21), slice(16, 48), slice(6, 28))
LEFT = (slice(3, 21), slice(16, 48), slice(36, 58))
LESION = (slice(8, 16), slice(24, 40), slice(10, 24))


@pytest.fixture(scope="module")
def scan():
    """Soft tissue, two lungs at −850 HU, and ground glass at −550 HU in the right one."""
    hu = np.full(SHAPE, 40, np.int16)
    hu[RIGHT] = hu[LEFT] = -850
    hu[LESION] = -550
    affine = np.diag([*SPACING_MM, 1.0])
    return Scan("made", hu, affine, SourceGrid(SHAPE, affine, (0, 1, 2), (False,) * 3), "0" * 64)


def models(folder, threshold_unet, outputs):
    """A small random classifier behind a U-Net: lung below −400 HU, disease above −700 HU."""
    keras.utils.set_random_seed(3)
    arguments = {"input_shape": [64, 64, 1], "depth": 1, "filters": 4, "outputs": outputs}
    unet = threshold_unet(arguments)
    lungs = folder / f"lungs-{outputs}.keras"
    save_model(
        unet, Contract(model="unet", arguments=arguments, task="lungs", note="By hand."), lungs
    )
    network = folder / "severity.keras"
    arguments = {"input_shape": [16, 32, 32, 1], "dense": 8}
    contract = Contract(model="ltc", arguments=arguments, task="severity", note="Random.")
    save_model(NETWORKS["ltc"].build(**arguments), contract, network)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "LUNGS", lungs)
        return local.LocalModels([network], lobes="none")


@pytest.fixture(scope="module")
def finder(tmp_path_factory, threshold_unet):
    return models(tmp_path_factory.mktemp("two"), threshold_unet, 2)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, threshold_unet):
    return models(tmp_path_factory.mktemp("one"), threshold_unet, 1)


def voxels(*parts):
    return sum(int(np.prod([part.stop - part.start for part in where])) for where in parts)


def test_a_lung_model_says_whether_it_finds_disease(finder, plain, scan):
    assert finder.finds_disease
    assert not plain.finds_disease
    assert plain.segment(scan.hu).disease is None
    found = finder.segment(scan.hu)
    assert found.disease.shape == found.probability.shape == (24, 64, 64)
    assert found.disease.dtype == np.float32


def test_involvement_is_the_learned_masks_and_the_result_says_so(finder, scan):
    lungs = stratify(scan, finder, attention="none").lungs
    assert lungs.involvement_by == "disease_probability"
    assert lungs.involvement_percent == pytest.approx(
        100 * voxels(LESION) / voxels(RIGHT, LEFT), rel=1e-3
    )


def test_lobes_and_fluid_are_in_the_result(finder, scan, monkeypatch):
    lobes = np.zeros((6, 8, 8, 5), np.float32)
    right = np.arange(8) < 4
    lobes[:3, :, right, 0], lobes[3:, :, right, 2] = 1, 1
    lobes[:3, :, ~right, 3], lobes[3:, :, ~right, 4] = 1, 1
    segment = finder.segment

    def with_lobes(hu):
        return dataclasses.replace(segment(hu), lobes=lobes, effusion=np.full((6, 8, 8), 0.01))

    plain = stratify(scan, finder, attention="none")
    assert plain.lobes is plain.maps.lobes is plain.lungs.effusion_ml is None
    assert plain.severity.ct_score_read is None
    assert plain.maps.lesions.any()
    monkeypatch.setattr(finder, "segment", with_lobes)
    mask = np.zeros(SHAPE, bool)
    mask[RIGHT] = mask[LEFT] = True
    for lungs in (None, mask):
        result = stratify(scan, finder, lungs=lungs, attention="none")
        assert [lobe.name for lobe in result.lobes] == list(LOBES)
        assert sum(lobe.volume_ml for lobe in result.lobes) == pytest.approx(result.lungs.volume_ml)
        assert result.severity.ct_score_read is None, "there is no middle lobe"
        assert result.lungs.effusion_ml == 0, "no cell is surely fluid"
        np.testing.assert_array_equal(result.maps.lobes > 0, result.maps.lungs > 0)
        assert result.as_dict()["lobes"][0]["name"] == "right upper"


def test_only_clock_and_timings_differ_between_equal_answers(plain, scan, monkeypatch):
    monkeypatch.setattr(pipeline, "now", lambda: "2026-01-31T09:30:12Z")
    answers = [stratify(scan, plain, attention="none").as_dict() for _ in range(2)]
    assert answers[0].pop("timings_s") != answers[1].pop("timings_s")
    assert answers[0] == answers[1]
    assert answers[0]["answered_at"] == "2026-01-31T09:30:12Z"
    assert pipeline.refused("a", ()).answered_at == "2026-01-31T09:30:12Z"


@pytest.mark.parametrize(("inside", "flagged"), [(0.22, True), (0.5, False), (0.9, False)])
def test_attention_beside_the_lungs_is_a_quality_flag(inside, flagged):
    flags = pipeline._attention_outside(inside)
    assert bool(flags) == flagged
    if flagged:
        assert flags[0].code == "attention_outside"
        assert "Only 22 % of the attention lies within the lungs" in flags[0].message


def test_the_clock_is_utc():
    written = datetime.fromisoformat(pipeline.now())
    assert abs(written - datetime.now(UTC)) < timedelta(seconds=60)


def test_one_output_keeps_the_rule_on_density(plain, finder, scan):
    one, two = (stratify(scan, models, attention="none") for models in (plain, finder))
    assert one.lungs.involvement_by == "hu_rule"
    assert one.lungs.volume_ml == two.lungs.volume_ml
    np.testing.assert_allclose(one.severity.probabilities, two.severity.probabilities, atol=1e-6)


def test_disease_is_looked_for_within_a_users_mask(finder, scan):
    mask = np.zeros(SHAPE, bool)
    mask[RIGHT] = True
    result = stratify(scan, finder, lungs=mask, attention="none")
    assert result.lungs.left_ml == 0
    assert result.lungs.involvement_by == "disease_probability"
    assert result.lungs.involvement_percent == pytest.approx(
        100 * voxels(LESION) / voxels(RIGHT), rel=1e-3
    )
    assert 0 < result.timings_s["lungs"] <= result.timings_s["total"]


def test_a_users_mask_needs_no_lung_model_that_finds_no_disease(plain, scan, monkeypatch):
    monkeypatch.setattr(plain, "segment", lambda hu: pytest.fail("the U-Net was asked"))
    mask = np.zeros(SHAPE, bool)
    mask[RIGHT] = mask[LEFT] = True
    result = stratify(scan, plain, lungs=mask, attention="none")
    assert result.lungs.involvement_by == "hu_rule"


def test_a_users_mask_is_the_same_in_any_form(plain, scan):
    mask = np.zeros(SHAPE, bool)
    mask[RIGHT] = mask[LEFT] = True
    sides = mask.astype(np.uint8)
    sides[LEFT] = 2
    wanted = stratify(scan, plain, lungs=mask, attention="none")
    forms = [mask.astype(np.uint8), mask * 255, mask.astype(float), sides, mask.tolist()]
    for form, labels in [*((form, ()) for form in forms), (sides * 10, (10, 20))]:
        found = stratify(scan, plain, lungs=form, lungs_labels=labels, attention="none")
        assert found.lungs == wanted.lungs
        assert found.severity == wanted.severity
        np.testing.assert_array_equal(found.maps.lungs, wanted.maps.lungs)


@pytest.mark.parametrize(
    ("lungs", "labels", "code"),
    [
        (np.ones((3, 4, 5)), (), "mask_grid"),
        (np.ones(SHAPE), (), "mask_values"),
        ("none.nii", (), "not_found"),
        (np.full(SHAPE, np.nan), (), "mask_values"),
        (7, (), "mask_type"),
        (None, (10,), "mask_labels"),
    ],
)
def test_what_is_no_mask_is_named_before_a_model_is_loaded(scan, lungs, labels, code):
    with pytest.raises(ScanRefused, match=f"^{code}: "):
        stratify(scan, "no such model", lungs=lungs, lungs_labels=labels)


@pytest.mark.parametrize(
    "change",
    [
        lambda scan: "scan.nii.gz",
        lambda scan: scan.hu,
        lambda scan: None,
        lambda scan: dataclasses.replace(scan, hu=np.full(SHAPE, np.nan, np.float32)),
        lambda scan: dataclasses.replace(scan, hu=scan.hu.astype(np.int32)),
        lambda scan: dataclasses.replace(scan, hu=scan.hu[0]),
    ],
)
def test_what_is_no_scan_is_named_before_a_model_is_loaded(scan, change):
    with pytest.raises(ScanRefused, match=r"^scan_type: "):
        stratify(change(scan), "no such model")


@pytest.mark.parametrize(
    ("spacing_mm", "says"), [((2.0, 1.0, 1.0), "51 ml"), ((20.0, 12.0, 12.0), "73.0 l")]
)
def test_lungs_of_an_impossible_volume_are_refused(plain, scan, spacing_mm, says):
    affine = np.diag([*spacing_mm, 1.0])
    small = dataclasses.replace(scan, affine=affine)
    result = stratify(small, plain, attention="none")
    (flag,) = result.quality_flags
    assert (result.status, flag.code, flag.level) == (
        "refused",
        "lung_volume",
        "error",
    )
    assert says in flag.message
    mask = np.zeros(SHAPE, bool)
    mask[RIGHT] = mask[LEFT] = True
    with pytest.raises(ScanRefused, match=r"^lung_volume: "):
        stratify(small, plain, lungs=mask)


@pytest.mark.parametrize(
    ("score", "level"),
    [(0.4, None), (0.5, "info"), (2.4, "info"), (2.5, "warning"), (20.0, "warning")],
)
def test_a_score_of_another_class_is_a_quality_flag(finder, scan, monkeypatch, score, level):
    """The network's probabilities say “no findings”, its score what it is set to."""
    asked = finder.classify

    def classify(hu, probability):
        return [
            dataclasses.replace(one, probabilities=np.eye(5, dtype=np.float32)[0], ct_score=score)
            for one in asked(hu, probability)
        ]

    monkeypatch.setattr(finder, "classify", classify)
    result = stratify(scan, finder, attention="none")
    assert result.severity.class_index == 0
    assert result.severity.ct_score == pytest.approx(score)
    found = [flag for flag in result.quality_flags if flag.code == "score_class_mismatch"]
    assert [flag.level for flag in found] == [level] * (level is not None)
    if found:
        assert found[0].value == round(score, 1)
        assert "“no findings”" in found[0].message
