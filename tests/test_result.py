"""The contract's keys of `result.json`."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from tf_covid.result import Attention, Lungs, ModelAnswer, QualityFlag, Result, Series, Severity

FULL = Result(
    case="a",
    status="repaired",
    quality_flags=(QualityFlag("missing_slices", "warning", "3 gaps", 3),),
    versions={"tf-covid": "0"},
    series=Series(148, (148, 512, 512), (2.0, 0.75, 0.75), (7,), "thinnest"),
    lungs=Lungs(4812.0, 2200.0, 2612.0, 109, 148, 12.4, (0.0,)),
    severity=Severity(2, "moderate", (0.1, 0.1, 0.6, 0.1, 0.1), 9.1),
    attention=Attention("gradcam", "severity", "Mixed_5c", 0.97, (0.1,)),
    models=(ModelAnswer("severity-i3d", "ab", "note", (0.1,), 9.1),),
    timings_s={"total": 1.0},
)


def test_keys_are_the_contracts_in_its_order():
    values = json.loads(FULL.to_json())
    assert list(values) == [
        "case",
        "status",
        "quality_flags",
        "series",
        "lungs",
        "lobes",
        "severity",
        "covid",
        "attention",
        "models",
        "answered_at",
        "timings_s",
        "versions",
    ]
    assert list(values["quality_flags"][0]) == ["code", "level", "message", "value"]
    assert list(values["series"]) == [
        "slices",
        "shape",
        "spacing_mm",
        "interpolated",
        "chosen_because",
    ]
    assert list(values["lungs"]) == [
        "volume_ml",
        "left_ml",
        "right_ml",
        "slices_kept",
        "slices_total",
        "involvement_percent",
        "involvement_per_slice",
        "involvement_by",
        "effusion_ml",
    ]
    assert values["lungs"]["involvement_by"] == "hu_rule"
    assert list(values["severity"]) == [
        "class",
        "label",
        "probabilities",
        "ct_score",
        "ct_score_interval",
        "refer",
        "ct_score_read",
    ]
    assert list(values["attention"]) == [
        "method",
        "target",
        "endpoint",
        "inside_lung_fraction",
        "per_slice",
    ]
    assert list(values["models"][0]) == ["name", "sha256", "note", "probabilities", "ct_score"]
    assert values["covid"] is None
    assert values["severity"]["refer"] is None


def test_a_refusal_has_four_keys_and_nothing_else():
    refused = dataclasses.replace(FULL, status="refused")
    assert list(refused.as_dict()) == ["case", "status", "quality_flags", "versions"]


def test_identifiers_only_where_they_were_put():
    assert FULL.series is not None
    series = dataclasses.replace(FULL.series, identifiers={"uid": "1.2.3"})
    assert dataclasses.replace(FULL, series=series).as_dict()["series"]["uid"] == "1.2.3"
    assert "uid" not in FULL.as_dict()["series"]


def test_a_number_that_is_not_finite_is_never_an_answer():
    assert FULL.lungs is not None
    broken = dataclasses.replace(
        FULL, lungs=dataclasses.replace(FULL.lungs, volume_ml=float("nan"))
    )
    with pytest.raises(ValueError, match="not finite"):
        broken.to_json()


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.int64(3), 3),
        (np.float32(0.5), 0.5),
        (float("nan"), "nan"),
        (-np.inf, "-inf"),
        ("a", "a"),
    ],
)
def test_a_flag_with_an_odd_value_does_not_end_a_run(value: Any, plain: Any) -> None:
    result = Result("a", "refused", (QualityFlag("x", "error", ".", value),), {})
    assert json.loads(result.to_json())["quality_flags"][0]["value"] == plain
