"""A small made-up chest and answers about it. Nobody's scan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tf_covid.lung_voxels import LungVoxels
from tf_covid.result import (
    Attention,
    Covid,
    Lobe,
    Lungs,
    Maps,
    ModelAnswer,
    QualityFlag,
    Result,
    Series,
    Severity,
)
from tf_covid.scan import Scan, SourceGrid
from tf_covid.severity import LOBES

SHAPE = (40, 60, 76)
SPACING_MM = (7.0, 4.5, 4.5)
#: The lesion, the attention and the marker all lie on the patient's right.
LESION = (24, 36, 20)

MakeCase = Callable[..., tuple[Result, Scan]]


@pytest.fixture(scope="session")
def chest() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HU int16, lung labels uint8 and attention uint8, all (D, H, W) in canonical order."""
    d, h, w = (
        np.arange(size, dtype=np.float32).reshape([-1 if axis == own else 1 for axis in range(3)])
        for own, size in enumerate(SHAPE)
    )
    hu = np.full(SHAPE, -1000.0, np.float32)
    hu[np.broadcast_to(((h - 30) / 26) ** 2 + ((w - 38) / 35) ** 2 < 1, SHAPE)] = 30.0
    lungs = np.zeros(SHAPE, np.uint8)
    for label, middle in ((1, 22), (2, 54)):
        lungs[((d - 20) / 17) ** 2 + ((h - 30) / 18) ** 2 + ((w - middle) / 13) ** 2 < 1] = label
    hu[lungs > 0] = -860.0
    distance = sum((axis - at) ** 2 for axis, at in zip((d, h, w), LESION, strict=True))
    hu[(distance < 30) & (lungs > 0)] = -350.0
    attention = np.round(255 * np.exp(-distance / 90)).astype(np.uint8)
    volumes = hu.astype(np.int16), lungs, attention
    for volume in volumes:
        volume.flags.writeable = False  # One chest serves all tests.
    return volumes


@pytest.fixture
def make_case(chest: tuple[np.ndarray, np.ndarray, np.ndarray]) -> MakeCase:
    """`make_case(attention=True, **fields of the Result)` → (result, scan)."""

    def make(attention: bool = True, **fields: Any) -> tuple[Result, Scan]:
        hu, lungs, heat = chest
        case = fields.get("case", "case-1")
        return _answer(hu, lungs, heat if attention else None, fields), _scan(hu, case)

    return make


@pytest.fixture
def lobe_case(make_case: MakeCase) -> MakeCase:
    """`lobe_case(scores)` → (result, scan) with five lobes; None is a lobe hardly shown."""

    def make(scores: tuple[int | None, ...] = (2, 0, 4, 1, 3)) -> tuple[Result, Scan]:
        result, scan = make_case()
        assert result.maps is not None
        assert result.severity is not None
        assert result.lungs is not None
        lobes = np.select(
            [result.maps.lungs == 1, result.maps.lungs == 2],
            [np.uint8(1), np.uint8(4)],
            np.uint8(0),
        )
        lobes[22:][lobes[22:] > 0] += 1
        lobes[:, 34:][lobes[:, 34:] == 2] = 3
        readings = tuple(
            Lobe(name, 10.0 if score is None else 910.0 + index, percent(score), score)
            for index, (name, score) in enumerate(zip(LOBES, scores, strict=True))
        )
        known = [score for score in scores if score is not None]
        read = sum(known) if len(known) == len(scores) else None
        return dataclasses.replace(
            result,
            lobes=readings,
            lungs=dataclasses.replace(
                result.lungs, effusion_ml=140.0, involvement_by="disease_probability"
            ),
            severity=dataclasses.replace(result.severity, ct_score_read=read),
            maps=dataclasses.replace(
                result.maps, voxels=LungVoxels.of(result.maps.lungs, lobes, scan.hu == -350)
            ),
        ), scan

    def percent(score: int | None) -> float | None:
        return None if score is None else (0.4, 3.0, 12.5, 40.0, 60.0, 90.0)[score]

    return make


@pytest.fixture
def refused() -> Result:
    return Result(
        case="case-1",
        status="refused",
        quality_flags=(
            QualityFlag("not_ct", "error", "The modality is MR; only CT is read.", "MR"),
        ),
        versions={"tf-covid": "0.1.0"},
        answered_at="2026-01-31T09:30:12Z",
    )


def _scan(hu: np.ndarray, case: str) -> Scan:
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2] = -SPACING_MM[0], SPACING_MM[1], SPACING_MM[2]
    affine[:, 3] = (-170.0, -140.0, 35.0, 1.0)
    # Stored as a NIfTI in RAS would be: x to the left of the patient reversed, y reversed, z
    # upwards.
    last = affine @ (hu.shape[0] - 1, hu.shape[1] - 1, hu.shape[2] - 1, 1)
    stored = np.diag([SPACING_MM[2], SPACING_MM[1], SPACING_MM[0], 1.0])
    stored[:3, 3] = (-last[0], -last[1], last[2])
    source = SourceGrid(
        (hu.shape[2], hu.shape[1], hu.shape[0]), stored, (2, 1, 0), (True, True, True)
    )
    return Scan(case, hu, affine, source, "0" * 64)


def _answer(
    hu: np.ndarray, lungs: np.ndarray, heat: np.ndarray | None, fields: dict[str, Any]
) -> Result:
    area = (lungs > 0).sum(axis=(1, 2))
    dense = ((lungs > 0) & (hu > -700)).sum(axis=(1, 2))
    millilitres = float(np.prod(SPACING_MM)) / 1000.0
    kept = area >= 0.05 * hu[0].size
    probabilities = (0.02, 0.21, 0.6, 0.15, 0.02)
    looked = None
    if heat is not None:
        looked = Attention(
            "gradcam", "severity", "Mixed_5c", 0.9, tuple(heat.mean(axis=(1, 2)) / 255.0)
        )
    defaults: dict[str, Any] = {
        "case": "case-1",
        "status": "pass",
        "quality_flags": (
            QualityFlag("series_candidates", "info", "Two stacks were found.", 2),
            QualityFlag("lungs_cut_off", "warning", "The lungs reach the last slice.", "base"),
        ),
        "versions": {"tf-covid": "0.1.0", "tensorflow": "2.21.0"},
        "series": Series(hu.shape[0], SHAPE, SPACING_MM, (), "the only axial series"),
        "lungs": Lungs(
            volume_ml=float(area.sum()) * millilitres,
            left_ml=float((lungs == 2).sum()) * millilitres,
            right_ml=float((lungs == 1).sum()) * millilitres,
            slices_kept=int(kept.sum()),
            slices_total=len(kept),
            involvement_percent=float(100.0 * dense.sum() / area.sum()),
            involvement_per_slice=tuple(100.0 * dense / np.maximum(area, 1)),
        ),
        "severity": None if "covid" in fields else Severity(2, "moderate", probabilities, 9.1),
        "attention": looked,
        "models": (
            ModelAnswer("severity-i3d", "9f2c" * 16, "Trained on phantoms.", probabilities, 9.1),
        ),
        "answered_at": "2026-01-31T09:30:12Z",
        "timings_s": {"read": 0.4, "total": 5.9},
        "maps": Maps(LungVoxels.of(lungs), heat, kept),
    }
    return Result(**(defaults | fields))


@pytest.fixture
def covid_case(make_case: MakeCase) -> tuple[Result, Scan]:
    model = ModelAnswer("covid-i3d", "1a2b" * 16, "", (0.17, 0.83), None)
    return make_case(covid=Covid(0.83, True), models=(model,))
