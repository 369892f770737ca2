"""Which lung models a classifier answers behind: the pair that it was trained behind, or by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import pytest

from tf_covid import local
from tf_covid.answer import Segmentation
from tf_covid.errors import ModelError
from tf_covid.export import warmup
from tf_covid.layers import ContextGate
from tf_covid.local import LocalModels
from tf_covid.models import NETWORKS
from tf_covid.pipeline import orientation_flags, stratify
from tf_covid.preprocessor import LungModels
from tf_covid.scan import Scan, SourceGrid
from tf_covid.weights import Contract, LoadedModel, load, save_model

if TYPE_CHECKING:
    from tests.servers import SmallFiles

LUNGS, LOBES, OTHER = "a" * 64, "b" * 64, "c" * 64
ARGUMENTS = {"input_shape": [16, 32, 32, 1], "dense": 8, "ct_score": True}


def made_scan(seed: int) -> Scan:
    """Two lungs in soft tissue, with noise."""
    hu = warmup.chest().copy()
    hu = (hu + np.random.default_rng(seed).integers(-60, 60, hu.shape)).astype(np.int16)
    affine = np.diag([4.0, 1.5, 1.5, 1.0])
    return Scan("made", hu, affine, SourceGrid(hu.shape, affine, (0, 1, 2), (False,) * 3), "0" * 64)


def pair(lungs: str = LUNGS, lobes: str | None = LOBES, *, gated: bool = True) -> LungModels:
    none: Any = None
    made = [
        sha256 and LoadedModel(name, none, none, sha256, f"{sha256[0] * 63}0")
        for name, sha256 in (("lungs-unet", lungs), ("lobes-unet3d", lobes))
    ]
    return LungModels(made[0], made[1], gated)


def classifier(lungs: str | None = None, lobes: str | None = None) -> Contract:
    return Contract(
        model="ltc",
        arguments=ARGUMENTS,
        task="severity",
        endpoint="conv2",
        note="Random.",
        lungs_sha256=lungs,
        lobes_sha256=lobes,
    )


@pytest.mark.parametrize(
    ("here", "contract", "reason"),
    [
        (pair(), classifier(LUNGS, LOBES), None),
        (pair(lobes=None), classifier(LUNGS), None),
        (pair(gated=False), classifier(LUNGS), None),
        (pair(), classifier(), None),  # says nothing
        (pair(lobes=None), classifier("a" * 63 + "0"), None),  # the first format: the file's hash
        (pair(), classifier(OTHER, LOBES), "behind the lung model cccccccccccc"),
        (pair(), classifier(LUNGS, OTHER), "behind the lobe model cccccccccccc"),
        (pair(), classifier(LUNGS), "behind no lobe model, but lobes-unet3d is here"),
        (pair(lobes=None), classifier(LUNGS, LOBES), "and none gates here"),
        (pair(gated=False), classifier(LUNGS, LOBES), "and none gates here"),
    ],
)
def test_a_classifier_knows_its_pair(here: LungModels, contract: Contract, reason: str | None):
    said = here.differs_from(contract)
    assert (said is None) == (reason is None)
    assert reason is None or reason in str(said)


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory, small_files: SmallFiles) -> dict[str, Path]:
    """Classifiers by the pair that they say they were trained behind."""
    folder = tmp_path_factory.mktemp("behind")
    lungs, lobes = load(small_files.lungs).sha256, load(small_files.lobes).sha256
    made = {"pair": (lungs, lobes), "lungs": (lungs, None), "others": (OTHER, lobes)}
    for name, said in made.items():
        keras.utils.set_random_seed(0)
        save_model(NETWORKS["ltc"].build(**ARGUMENTS), classifier(*said), folder / f"{name}.keras")
    return {name: folder / f"{name}.keras" for name in made}


def test_its_own_pair_answers_and_another_is_refused(behind, small_files):
    here = {"lungs": small_files.lungs, "lobes": small_files.lobes}
    models = LocalModels([behind["pair"]], **here)
    assert not models.other_lungs
    assert len(models.weights_sha256) == 3
    with pytest.raises(ModelError, match="other_lungs: others was trained behind the lung model"):
        LocalModels([behind["others"]], **here)
    with pytest.raises(ModelError, match="other_lungs: lungs was trained behind no lobe model"):
        LocalModels([behind["lungs"]], **here)
    with pytest.raises(ModelError, match=r"other_lungs: pair was trained .*and none gates here"):
        LocalModels([behind["pair"]], lungs=small_files.lungs, lobes="none")


def test_allowed_it_answers_with_a_warning(behind, small_files):
    here = {"lungs": small_files.lungs, "lobes": small_files.lobes}
    models = LocalModels([behind["others"]], **here, allow_other_lungs=True)
    answered = stratify(made_scan(0), models)
    assert answered.severity is not None, answered.quality_flags
    flags = {flag.code: flag for flag in answered.quality_flags}
    assert flags["other_lungs"].level == "warning"
    own = stratify(made_scan(0), LocalModels([behind["pair"]], **here))
    assert "other_lungs" not in {flag.code for flag in own.quality_flags}


@pytest.mark.slow
def test_without_a_gate_the_mask_is_the_2d_one_and_lobes_are_found_all_the_same(
    behind, small_files, monkeypatch
):
    """A classifier of before answers as it did; the lobes stand beside its answer."""
    shipped = {str(small_files.lobes): small_files.lobes}
    monkeypatch.setattr(local, "LOBES", str(small_files.lobes))
    monkeypatch.setattr(local, "catalog", SimpleNamespace(shipped=lambda: shipped))
    beside = LocalModels([behind["lungs"]], lungs=small_files.lungs)
    alone = LocalModels([behind["lungs"]], lungs=small_files.lungs, lobes="none")
    gated = LocalModels([behind["pair"]], lungs=small_files.lungs, lobes=small_files.lobes)
    gated.members[0].preprocessor.gate = ContextGate(0.98, 0.999)
    hu = made_scan(1).hu
    found = {name: m.segment(hu) for name, m in zip("bag", (beside, alone, gated), strict=True)}
    np.testing.assert_array_equal(found["b"].probability, found["a"].probability)
    assert found["a"].lobes is None
    np.testing.assert_array_equal(found["b"].lobes, found["g"].lobes)
    assert (found["g"].probability < found["a"].probability).any()


def test_models_of_other_tasks_are_refused_in_their_place(small_files):
    with pytest.raises(ModelError, match="is a model for the task lobes, not lungs"):
        LungModels.read(small_files.lobes)
    with pytest.raises(ModelError, match="is a model for the task lungs, not lobes"):
        LungModels.read(small_files.lungs, small_files.lungs)


def test_a_users_mask_is_kept_and_lobes_and_disease_stand_beside_it(small_models):
    scan = made_scan(0)
    mask = np.zeros(scan.hu.shape, bool)
    mask[:, 10:50, 8:28] = mask[:, 10:50, 36:56] = True
    result = stratify(scan, small_models, lungs=mask)
    assert result.maps is not None
    np.testing.assert_array_equal(result.maps.lungs > 0, mask)
    np.testing.assert_array_equal(result.maps.lobes > 0, mask)
    assert result.lungs.involvement_by == "disease_probability"


@pytest.mark.parametrize(
    ("logits", "value"),
    [
        ((-5.0, -4.0, 0.4), None),
        ((2.5, -4.0, -3.0), "head to feet"),
        ((-2.5, -4.0, 3.0), "left to right"),
        ((2.5, 2.5, 3.0), "head to feet, front to back, left to right"),
    ],
)
def test_a_scan_that_fits_a_human_once_it_is_flipped_is_pointed_out(logits, value):
    flags = orientation_flags(np.array(logits, np.float32))
    assert [flag.value for flag in flags] == ([] if value is None else [value])
    for flag in flags:
        assert (flag.code, flag.level) == ("orientation_doubtful", "warning")


def test_a_doubtful_orientation_stands_in_the_result(small_models, monkeypatch):
    found = small_models.segment(made_scan(0).hu)
    turned = dataclasses.replace(found, orientation=np.array([9.0, -9.0, -9.0], np.float32))
    monkeypatch.setattr(small_models, "segment", lambda hu: turned)
    monkeypatch.setattr("tf_covid.pipeline.LEAST_LUNG_ML", 0.0)
    flags = {flag.code: flag for flag in stratify(made_scan(0), small_models).quality_flags}
    assert flags["orientation_doubtful"].value == "head to feet"
    monkeypatch.setattr("tf_covid.pipeline.LEAST_LUNG_ML", 1e6)
    assert "orientation_doubtful" not in {
        flag.code for flag in stratify(made_scan(0), small_models).quality_flags
    }, "too little lung to tell"
    monkeypatch.setattr("tf_covid.pipeline.LEAST_LUNG_ML", 0.0)
    plain = Segmentation(found.probability, found.disease)
    monkeypatch.setattr(small_models, "segment", lambda hu: plain)
    assert "orientation_doubtful" not in {
        flag.code for flag in stratify(made_scan(0), small_models).quality_flags
    }
