"""The lungs in Hounsfield units: aerated tissue, disease, fissures, and the branches that run through them."""

from __future__ import annotations

import numpy as np

from tf_covid.phantom.fields import Field, Grid, SplineNoise, occupancy, smooth_step
from tf_covid.phantom.lesions import Texture
from tf_covid.phantom.patient import Patient, regions
from tf_covid.phantom.settings import Draws
from tf_covid.phantom.slab import Slab, blend
from tf_covid.phantom.trees import Tree, paint_slab

_SIDES = ("right", "left")


class Parenchyma:
    """Aerated lung: gravity, patchiness, texture, and what imitates disease without being it."""

    def __init__(
        self,
        lung: Draws,
        body: Draws,
        rng: np.random.Generator,
        low: tuple[float, ...],
        high: tuple[float, ...],
    ) -> None:
        self._p = lung
        self._down = -1.0 if body["prone"] else 1.0
        fluid_ml = max(body[f"effusion_{side}"] * body[f"effusion_{side}_ml"] for side in _SIDES)
        self._collapse_mm = lung["collapse_mm"] * (1.0 + fluid_ml / 400.0)
        self._patchy = SplineNoise(rng, 24.0, low, high)
        self._texture = SplineNoise(rng, 4.0, low, high)
        self._holes = SplineNoise(rng, 6.5, low, high)
        self._severity = float(rng.uniform(0.1, 1.0))
        self._band = rng.uniform(-1.0, 1.0, 3)

    def hu(self, slab: Slab) -> Field:
        """HU before vessels and disease."""
        p, grid = self._p, slab.grid
        down = self._down * slab.read("front")
        patchy = self._patchy(grid)
        hu = p["air_hu"] + p["gravity_hu"] * np.maximum(down + 0.3, 0.0)
        hu += p["patchy_hu"] * patchy + p["texture_hu"] * self._texture(grid)
        if p["mosaic"]:
            hu += p["mosaic_hu"] * (smooth_step(patchy, -0.15, 0.15) - 0.5)
        if p["dependent"]:
            hu += p["dependent_hu"] * smooth_step(down + 0.016 * slab.read("lungs"), 0.45, 0.95)
        if p["band"]:
            q, tilt = grid.points(), self._band
            plane = (q.u - 150.0 - 40.0 * tilt[0]) + 0.7 * tilt[1] * q.y + 0.5 * tilt[2] * q.x
            hu += p["band_hu"] * np.exp(-((plane / 2.0) ** 2)) * smooth_step(patchy, 0.3, 0.9)
        if p["emphysema"]:
            hole = smooth_step(self._holes(grid) + 0.8 * patchy, 1.6 - 1.6 * self._severity, 2.4)
            hu += hole * (-985.0 - hu) * 0.9
        # Lung beside pleural fluid collapses: dense, and no disease of its own.
        wide = self._collapse_mm * np.maximum(1.0 + 0.35 * patchy, 0.3)
        squeezed = smooth_step(-slab.read("fluid") / wide, -1.0, -0.3)
        hu += squeezed * np.maximum(p["collapse_hu"] - hu, 0.0)
        return hu


def lungs_hu(patient: Patient, slab: Slab, healthy: Parenchyma, lesions: Texture) -> Field:
    """HU of the lungs in a slab, (D, H, W) float32; meaningless outside them."""
    hu = healthy.hu(slab)
    lobes = regions(slab.read)
    allowed = np.array([False, *(share > 0.0 for share in patient.disease.shares)])[lobes]
    if allowed.any():
        over, soft = slab.read("excess"), patient.disease.p["edge_softness"]
        opacity = smooth_step(over, -soft, soft) * allowed
        # Glass is always denser than what it fills, or nobody could see it.
        hu += opacity * np.maximum(lesions.hu(slab, over) - hu, 90.0)
    if patient.lung["fissure_hu"] > 30.0:
        _fissures(hu, patient.lung["fissure_hu"], slab)
    _branches(hu, patient, slab.grid)
    if patient.anatomy.p["masses"]:
        body = patient.tissue["mass_hu"] + 8.0 * slab.read("front")
        blend(hu, occupancy(slab.read("mass"), slab.width_mm), body)
    return hu


def _fissures(hu: Field, height_hu: float, slab: Slab) -> None:
    """The pleura between the lobes as a thin line, in place; none shows within consolidated lung."""
    aerated = hu < -500.0
    left = slab.read("side") > 0.0
    in_front = slab.read("right_fissure") < 0.0
    for name, where in (
        ("right_fissure", ~left),
        ("left_fissure", left),
        ("horizontal_fissure", ~left & in_front),
    ):
        distance = slab.read(name)
        where &= aerated & (np.abs(distance) < 2.5)
        hu[where] += height_hu * np.exp(-((distance[where] / 0.8) ** 2))


def _branches(hu: Field, patient: Patient, grid: Grid) -> None:
    """Vessels, and bronchi with walls and air, over the lung; in place."""
    bronchi = patient.bronchi
    thick = bronchi.radius * (1.0 + patient.lung["airway_wall"]) + 0.3
    wall = Tree(bronchi.start, bronchi.stop, thick, bronchi.level)
    for tree, value in (
        (patient.vessels, patient.tissue["blood_hu"]),
        (wall, 20.0),
        (bronchi, -960.0),
    ):
        share = paint_slab(grid, tree)
        if share is not None:
            blend(hu, share, value)
