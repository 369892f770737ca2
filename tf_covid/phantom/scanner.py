"""From the patient to what a scanner stores: blur, noise, kernel, streaks, table, padding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from tf_covid.phantom.fields import Field, Grid
from tf_covid.phantom.settings import Draws, ScannerSettings, draw


@dataclass(frozen=True)
class Protocol:
    """One examination: what was drawn, and the grid in patient mm."""

    p: Draws
    padding_hu: int
    low: tuple[float, float, float]
    high: tuple[float, float, float]

    def grid(self, shape: tuple[int, int, int], parts: int = 1) -> Grid:
        """Voxel centres of a (D, H, W) scan; `parts` sub-slices a slice."""
        field_of_view = self.high[2] - self.low[2]
        step = field_of_view / max(shape[1], shape[2])
        middle = [0.5 * (a + b) for a, b in zip(self.low, self.high, strict=True)]
        depth = shape[0] * parts
        u = self.low[0] + (np.arange(depth) + 0.5) * (self.high[0] - self.low[0]) / depth
        y = middle[1] + (np.arange(shape[1]) - 0.5 * (shape[1] - 1)) * step
        x = middle[2] + (np.arange(shape[2]) - 0.5 * (shape[2] - 1)) * step
        return Grid(u.astype(np.float32), y.astype(np.float32), x.astype(np.float32))


def draw_protocol(settings: ScannerSettings, body: Draws, rng: np.random.Generator) -> Protocol:
    """Draw an examination that fits the patient's size."""
    p = draw(settings, rng)
    low, high = settings.noise_hu
    p["noise_hu"] = float(low * (high / low) ** rng.random())  # as many quiet scans as noisy ones
    padding = int(rng.choice(np.array(settings.padding_hu)))
    lungs_mm = 2.0 * body["chest_half_width_mm"] + 2.0 * body["muscle_mm"] + 10.0
    p["field_of_view_mm"] = max(p["field_of_view_mm"], lungs_mm)
    floor = body["dome_depth_mm"] + body["recess_depth_mm"] + 15.0 + p["below_recess_mm"]
    top = -p["above_apex_mm"] - 10.0
    if p["far_above"]:
        top = -p["far_above_mm"]
    if p["far_below"]:
        floor += p["far_below_mm"] - p["below_recess_mm"]
    if p[
        "planning"
    ]:  # a couch without a bend, in a wide picture; HU as the planning system has them
        p["field_of_view_mm"] = max(p["field_of_view_mm"], 420.0)
        p["offset_hu"] = p["planning_offset_hu"]
    if p["cut_apex"]:
        top = float(rng.uniform(5.0, 0.15 * floor))
    if p["cut_base"]:
        floor = body["dome_depth_mm"] + float(rng.uniform(-5.0, 25.0))
    half = 0.5 * p["field_of_view_mm"]
    y, x = p["off_centre_mm"], float(rng.uniform(*settings.off_centre_mm))
    return Protocol(p, padding, (top, y - half, x - half), (floor, y + half, x + half))


def _kernel(slices: Field, p: Draws, step_mm: float) -> None:
    """The reconstruction kernel's blur, and the overshoot of a sharp one; in place."""
    blur = p["coarse_blur_mm"] if p["coarse"] else p["blur_mm"]
    sigma = blur / step_mm
    if sigma > 0.3:
        for one in slices:
            ndimage.gaussian_filter(one, sigma, output=one, truncate=2.5)
    if p["sharp"]:
        for one in slices:
            one += p["sharpening"] * (
                one - ndimage.gaussian_filter(one, 1.2 / step_mm, truncate=2.5)
            )


def _noise(shape: tuple[int, ...], p: Draws, step_mm: float, rng: np.random.Generator) -> Field:
    """Noise of the drawn deviation and spectrum, in HU."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    sigma = p["noise_correlation_mm"] / step_mm
    if sigma > 0.25:
        for one in noise:
            ndimage.gaussian_filter(one, sigma, output=one, truncate=2.5)
    if p["sharp"]:  # a sharp kernel's noise lacks the low frequencies
        for one in noise:
            one -= ndimage.uniform_filter(one, 5)
    noise *= p["noise_hu"] / max(float(noise[:: max(len(noise) // 8, 1)].std()), 1e-6)
    return noise


def _breathe(slices: Field, grid: Grid, p: Draws) -> None:
    """Double contours where the chest moved during the rotation: more in some slices than in others; in place."""
    shift = max(1, round(p["breathing_mm"] / float(grid.y[1] - grid.y[0])))
    share = (
        0.5
        * np.clip(np.sin(grid.u / 19.0 + p["off_centre_mm"]), 0.0, 1.0).astype(np.float32)[
            :, None, None
        ]
    )
    moved = slices[:, shift:] - slices[:, :-shift]
    slices[:, :-shift] += share * moved


def _shade(slices: Field, grid: Grid, p: Draws) -> None:
    """Beam hardening's slow shadow: a tilt and a cup across the picture, turning with height; in place."""
    turn = float(grid.u.mean()) / 60.0 + p["off_centre_mm"]
    half = 0.5 * p["field_of_view_mm"]
    y, x = (grid.y / half)[:, None], (grid.x / half)[None, :]
    slices += p["shading_hu"] * (
        np.cos(turn) * x + np.sin(turn) * y + np.sin(1.7 * turn) * (x * x + y * y - 0.5)
    )


def examine(slices: Field, grid: Grid, protocol: Protocol, rng: np.random.Generator) -> np.ndarray:
    """Turn true HU (D, H, W) into what the scanner stores: motion, kernel, noise, streaks, offset, padding; int16."""
    p = protocol.p
    step = float(grid.x[1] - grid.x[0])
    if p["breathing"]:
        _breathe(slices, grid, p)
    _kernel(slices, p, step)
    slices += _noise(slices.shape, p, step, rng)
    if p["streaks"]:
        # Along the rows: photon starvation through shoulders and arms; it changes from row to row and slice to slice.
        rows = rng.standard_normal((len(slices), slices.shape[1], 1), dtype=np.float32)
        load = np.maximum(np.mean(slices > -200.0, axis=2, keepdims=True) - 0.45, 0.0) ** 1.5
        slices += p["streak_hu"] * rows * load * 4.0
    _shade(slices, grid, p)
    slices += p["offset_hu"]
    # 12 bits end at −1024 and 3071; 16 bits keep the noise below air, and metal.
    low, high = (-2000, 8000) if p["16_bit"] else (-1024, 3071)
    if p["clipped"]:
        low = -1000
    stored = np.clip(np.rint(slices), low, high).astype(np.int16)
    if p["circle"]:
        y, x = grid.y - grid.y.mean(), grid.x - grid.x.mean()
        radius = 0.5 * max(len(y), len(x)) * step
        stored[:, y[:, None] ** 2 + x[None, :] ** 2 > radius**2] = protocol.padding_hu
    return stored
