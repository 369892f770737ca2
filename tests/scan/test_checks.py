"""The gate: what is HU and what is not, and what a lung mask says about a scan."""

from __future__ import annotations

import numpy as np
import pytest

from tf_covid.scan import lung_flags
from tf_covid.scan.checks import gate, geometry_flags, hu_flags


def chest(
    noise: float = 20.0, air: int = -1000, lung: int = -850, soft: int = 40, seed: int = 0
) -> np.ndarray:
    """A crude chest, int16 (20, 64, 64)."""
    hu = np.full((20, 64, 64), air, dtype=np.float64)
    hu[:, 12:52, 6:58] = soft
    hu[:, 12:14, 6:58] = -100
    hu[2:18, 18:44, 10:28] = lung
    hu[2:18, 18:44, 36:54] = lung
    hu[:, 44:50, 30:36] = 600
    return (hu + np.random.default_rng(seed).normal(0, noise, hu.shape)).round().astype(np.int16)


def padded(value: int) -> np.ndarray:
    hu = chest()
    rows, columns = np.ogrid[:64, :64]
    hu[:, (rows - 32) ** 2 + (columns - 32) ** 2 > 32**2] = value
    return hu


@pytest.mark.parametrize(
    "hu",
    [
        chest(),
        chest(noise=80),
        chest(soft=120),
        chest(lung=-650, air=-1024),
        chest(lung=-920),
        padded(-2000),
        padded(-3024),
        padded(-1024),
        padded(-32768),
        chest()[2:18, 18:44, 10:54],
        np.clip(chest(), -1000, 400),
        chest(lung=-400),
        chest().transpose(2, 0, 1),
    ],
    ids=[
        "plain",
        "noise",
        "contrast",
        "dense",
        "emphysema",
        "-2000",
        "-3024",
        "-1024",
        "-32768",
        "tight",
        "clipped",
        "opaque lungs",
        "strided",
    ],
)
def test_hu_is_hu(hu: np.ndarray) -> None:
    assert hu_flags(np.ascontiguousarray(hu)) == ()


WINDOWED = np.clip((chest().astype(float) + 1000) / 1400 * 255, 0, 255).astype(np.int16)


@pytest.mark.parametrize(
    ("hu", "text"),
    [
        (WINDOWED, "no air or lung peak"),
        (chest() + np.int16(1024), "rescale intercept lost"),
        ((chest() + np.int16(1024)) * np.int16(4), "no air or lung peak"),
        ((chest().astype(float) / 1000).round().astype(np.int16), "no air or lung peak"),
        (np.random.default_rng(0).integers(-1000, 1000, (20, 64, 64)).astype(np.int16), "peak"),
        (
            np.abs(np.random.default_rng(0).normal(300, 200, (20, 64, 64))).astype(np.int16),
            "no air or lung peak",
        ),
        (np.where(chest() < -500, np.int16(-1000), np.int16(1500)), "no soft-tissue peak"),
    ],
    ids=["8 bit", "stored values", "scaled", "divided", "noise", "MR", "no soft tissue"],
)
def test_what_is_not_hu(hu: np.ndarray, text: str) -> None:
    (flag,) = hu_flags(hu)
    assert (flag.code, flag.level) == ("not_hu", "error")
    assert text in flag.message
    assert "measured peaks at" in flag.message


def test_blank_slices() -> None:
    hu = chest()
    hu[7] = 0
    (flag,) = gate(hu)
    assert (flag.code, flag.level, flag.value) == ("blank_slices", "warning", 1)
    hu[:15] = 0
    (flag,) = gate(hu)
    assert (flag.level, flag.value) == ("error", 15)


def fractions(first: float, middle: int, last: float) -> np.ndarray:
    return np.array([first, 0.02, *[0.2] * middle, 0.02, last])


@pytest.mark.parametrize(
    ("share", "codes"),
    [
        (fractions(0, 30, 0), {}),
        (fractions(0.004, 8, 0.009), {}),
        (fractions(0.01, 30, 0), {"lungs_cut_off": "apex"}),
        (fractions(0, 30, 0.3), {"lungs_cut_off": "base"}),
        (fractions(0.2, 30, 0.1), {"lungs_cut_off": "both"}),
        (fractions(0, 7, 0), {"few_slices": 7}),
        (fractions(0.08, 2, 0), {"few_slices": 3, "lungs_cut_off": "apex"}),
        (np.zeros(40), {"no_lung": 0}),
        (np.full(40, 0.049), {"no_lung": 0, "lungs_cut_off": "both"}),
        (np.array([]), {"no_lung": 0}),
    ],
)
@pytest.mark.parametrize("spacing", [2.5, (2.5, 0.7, 0.7)])
def test_lung_flags(share: np.ndarray, codes: dict[str, object], spacing) -> None:
    found = lung_flags(share, spacing_mm=spacing)
    assert {flag.code: flag.value for flag in found} == codes
    for flag in found:
        assert flag.level == ("warning" if flag.code == "lungs_cut_off" else "error")


@pytest.mark.parametrize(
    ("spacing", "codes"),
    [
        ((2.5, 0.7, 0.7), []),
        ((12, 12, 12), []),
        ((0.2, 0.2, 0.2), []),
        ((0.7, 5.0, 0.7), []),
        ((2.5, 0.9, 0.8), []),
        ((12.2, 1, 1), ["voxel_size"]),
        ((1, 0.19, 1), ["voxel_size"]),
        ((700, 700, 2500), ["voxel_size"]),
        ((float("nan"), 1, 1), ["voxel_size"]),
        ((2.5, 0.9, 8.0), ["voxels_uneven"]),
    ],
)
def test_the_size_of_voxels(spacing: tuple[float, float, float], codes: list[str]) -> None:
    assert [flag.code for flag in geometry_flags(spacing)] == codes
