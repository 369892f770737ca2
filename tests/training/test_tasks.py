"""Settings, losses and labels of `tfcovid fit`."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from pydantic import ValidationError

from tf_covid.cohort.manifest import ManifestRow
from tf_covid.errors import CohortError, TrainingError
from tf_covid.models import NETWORKS
from tf_covid.training import losses
from tf_covid.training.network_spec import NetworkSpec
from tf_covid.training.settings import Settings, Stage, read_settings
from tf_covid.training.tasks import class_weights, labels_of, objective_for

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))


def row(case: str, **known: Any) -> ManifestRow:
    return ManifestRow(case=case, patient=case, path=Path("x"), **known)


def test_every_typo_in_the_settings_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("epoch = 3\nbatch = 0\n[augmentation]\ndegree = 3\n[[stages]]\nepochs = 1\n")
    with pytest.raises(TrainingError) as caught:
        read_settings(path)
    said = str(caught.value)
    assert said.startswith("config.toml: 4 setting(s) are wrong")
    for name in ("epoch:", "batch:", "augmentation.degree:", "stages.0.train_from:"):
        assert f"\n{name}" in said


@pytest.mark.parametrize("content", [b"epochs = ", b"\xff\xfe", b"epochs = 1\nepochs = 2"])
def test_what_is_no_toml_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=r"config.toml: cannot be read as TOML"):
        read_settings(path)


def test_old_names_of_settings_are_read_with_a_warning(tmp_path: Path) -> None:
    path, said = tmp_path / "config.toml", list[str]()
    path.write_text('held_out = 0.2\nclip_norm = 3.0\nkeep = "best"\n')
    settings = read_settings(path, said.append)
    assert settings == Settings(validation_fraction=0.2, gradient_clip_norm=3.0, keep="best")
    assert [line.split(" now;")[0] for line in said] == [
        "warning: config.toml: clip_norm is called gradient_clip_norm",
        "warning: config.toml: held_out is called validation_fraction",
    ]
    path.write_text("validation_fraction = 0.2\n")
    said.clear()
    assert read_settings(path, said.append).validation_fraction == 0.2
    assert not said


def test_a_setting_under_both_names_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("held_out = 0.2\nvalidation_fraction = 0.2\n")
    with pytest.raises(TrainingError, match="held_out and validation_fraction are one setting"):
        read_settings(path)


def test_the_test_fold_never_tells_when_to_stop() -> None:
    with pytest.raises(ValidationError, match="the test fold must not tell when to stop"):
        Settings(patience=3)
    with pytest.raises(ValidationError, match="the test fold must not tell when to stop"):
        Settings(keep="best")
    with pytest.raises(ValidationError, match="last longer than the epochs"):
        Settings(epochs=2, stages=(Stage(epochs=3, train_from="head"),))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_published_settings_are_read(path: Path) -> None:
    assert read_settings(path)
    assert path.read_text("utf-8").startswith("# "), "its claim and its command"


def test_labels_come_from_class_or_score() -> None:
    rows = [row("a", severity=2), row("b", ct_score=19), row("c", ct_score=0, severity=0)]
    assert labels_of(rows, "severity") == {"a": 2, "b": 4, "c": 0}
    with pytest.raises(CohortError, match=r"2 of 3 rows have no severity or ct_score.*: x, y"):
        labels_of([row("x"), row("y", covid=1), row("z", severity=1)], "severity")
    # MosMedData's classes are others: they are no severity.
    with pytest.raises(CohortError, match="no severity or ct_score"):
        labels_of([row("m", mosmed_class=3)], "severity")


def test_a_network_is_complete_and_frozen_before_it_is_built() -> None:
    rows = [row("a", ct_score=3), row("b", severity=4)]
    network = NetworkSpec.of("severity", "ltc", rows, Settings(dropout=0.2, network={"dense": 8}))
    assert network.arguments == {
        "input_shape": [24, 64, 64, 1],
        "classes": 5,
        "ct_score": True,
        "dropout": 0.2,
        "dense": 8,
    }
    assert NETWORKS["ltc"].build(**network.arguments).input_shape == (None, 24, 64, 64, 1)
    with pytest.raises(FrozenInstanceError):
        network.model = "i3d"  # type: ignore[misc]
    objective = objective_for("severity", network, rows, {"a": 1, "b": 4}, Settings(), (24, 64, 64))
    with pytest.raises(FrozenInstanceError):
        objective.cells = {}  # type: ignore[attr-defined]


def test_a_setting_cannot_contradict_the_task() -> None:
    with pytest.raises(TrainingError, match="classes follow from the task"):
        NetworkSpec.of("covid", "ltc", [row("a")], Settings(network={"classes": 3}))


def numbers(*values: float) -> Any:
    return tf.constant([list(values)], tf.float32)


def test_cross_entropy_of_one_case_by_hand() -> None:
    logits = numbers(0.0, np.log(3.0))
    assert float(losses.cross_entropy([1.0, 1.0])(tf.constant([1]), logits)) == pytest.approx(
        -np.log(0.75)
    )
    assert float(losses.cross_entropy([1.0, 4.0])(tf.constant([1]), logits)) == pytest.approx(
        -4 * np.log(0.75)
    )


def test_the_ordinal_loss_costs_more_the_further_off() -> None:
    loss = losses.ordinal([1.0] * 5)
    sure = [float(loss(tf.constant([1]), 8.0 * tf.one_hot([other], 5))) for other in range(5)]
    assert sure[1] < 0.01 < sure[0] < sure[3] < sure[4]
    assert sure[2] == pytest.approx(sure[0], rel=0.2)
    # Two classes: half a threshold each is plain cross-entropy.
    logits = numbers(0.3, -1.0)
    for label in (0, 1):
        plain = losses.cross_entropy([1.0, 1.0])(tf.constant([label]), logits)
        assert float(losses.ordinal([1.0, 1.0])(tf.constant([label]), logits)) == pytest.approx(
            float(plain), rel=1e-4
        )


def test_scores_that_are_not_known_count_nothing() -> None:
    truth = tf.constant([[5.0], [np.nan]])
    assert float(losses.score_loss(truth, tf.constant([[10.0], [3.0]]))) == pytest.approx(0.04)
    with tf.GradientTape() as tape:
        score = tf.Variable([[10.0], [3.0]])
        found = losses.score_loss(truth, score)
    assert tape.gradient(found, score).numpy().tolist() == [[pytest.approx(2 * 5 / 625)], [0.0]]
    assert float(losses.score_loss(tf.constant([[np.nan]]), numbers(3.0))) == 0.0


def test_a_case_weighs_against_the_frequency_of_its_class() -> None:
    weights = class_weights([0, 0, 0, 1], 3, Settings())
    assert weights == [pytest.approx(4 / 6), pytest.approx(2.0), 0.0]
    assert np.mean([weights[label] for label in (0, 0, 0, 1)]) == pytest.approx(1.0)
    assert class_weights([0, 0, 0, 1], 3, Settings(class_weights=False)) == [1.0] * 3


@pytest.mark.parametrize(
    ("task", "model", "settings", "said"),
    [
        ("severity", "unet", Settings(), "is for i3d or ltc, not for unet"),
        (
            "slices",
            "inception_v1",
            Settings(disease_endpoints=("Mixed_3c",)),
            "disease_endpoints are layers of a 3D",
        ),
        ("slices", "inception_v1", Settings(clip=(8, 33, 33)), "multiple of 8 pixels"),
    ],
)
def test_objectives_that_do_not_fit_are_named(
    task: str, model: str, settings: Settings, said: str
) -> None:
    grid, rows = settings.clip, [row("a", severity=1)]

    def objective() -> object:
        network = NetworkSpec.of(task, model, rows, settings)
        return objective_for(task, network, rows, {"a": 1}, settings, grid)

    with pytest.raises(TrainingError, match=said):
        objective()
