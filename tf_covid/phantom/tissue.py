"""From distance fields to Hounsfield units, slab by slab: each organ is painted over what lies under it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tf_covid.phantom.anatomy import HIGH, LOW
from tf_covid.phantom.fields import Field, Grid, SplineNoise, occupancy, smooth_step
from tf_covid.phantom.settings import Draws

FAT_HU, MUSCLE_HU, BLOOD_HU, AIR_HU = -105.0, 52.0, 42.0, -1000.0

#: Reads a lattice field on the slab at hand.
Reader = Callable[[str], Field]


def _over(hu: Field, share: Field, value: Field | float) -> None:
    """Paint `value` over `hu` where `share` is 1, in place."""
    if share.any():
        hu += share * (value - hu)


def draw_tissue(body: Draws, scan: Draws, rng: np.random.Generator) -> Draws:
    """HU of this patient's tissues; contrast medium raises blood most, then organs."""
    p = dict(body)
    contrast = scan["contrast"] * scan["contrast_hu"]
    p["blood_hu"] = float(rng.uniform(32.0, 52.0)) + contrast
    p["heart_hu"] = float(rng.uniform(34.0, 52.0)) + contrast * float(rng.uniform(0.3, 0.9))
    p["spleen_hu"] = float(rng.uniform(40.0, 55.0)) + 0.3 * contrast
    p["kidney_hu"] = float(rng.uniform(25.0, 40.0)) + 0.5 * contrast
    p["liver_hu"] = body["liver_hu"] + 0.15 * contrast
    p["muscle_hu"] = float(rng.uniform(42.0, 62.0)) + 0.03 * contrast
    p["fat_hu"] = float(rng.uniform(-118.0, -88.0))
    p["stomach_hu"] = float(rng.uniform(-10.0, 70.0))
    p["gland_share"] = float(rng.uniform(0.0, 0.9))
    return p


class Marbling:
    """Slow HU variations of soft tissue, so that no organ is flat; one noise for all."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._fine = SplineNoise(rng, 6.0, LOW, HIGH)
        self._slow = SplineNoise(rng, 16.0, LOW, HIGH)

    def __call__(self, grid: Grid) -> Field:
        """About unit deviation."""
        return 0.6 * self._slow(grid) + 0.7 * self._fine(grid)


def outside_lungs(p: Draws, read: Reader, grid: Grid, marbling: Marbling) -> Field:
    """HU of everything but the lungs, (D, H, W) float32."""
    width = max(float(grid.x[1] - grid.x[0]), 0.6)
    body, wall, spots = read("body"), read("wall"), marbling(grid)
    hu = np.full(body.shape, AIR_HU, np.float32)
    fat = p["fat_hu"] + 9.0 * spots
    glands = smooth_step(spots, 0.9 - p["gland_share"], 1.8 - p["gland_share"]) * (read("front") < -1.15) * p["female"]
    _over(hu, occupancy(body, width), p["muscle_hu"] - 25.0)  # skin
    _over(hu, occupancy(body + 2.2, width), fat + 120.0 * glands)
    muscle = read("muscle")
    streaks = np.clip(1.15 - 0.55 * np.maximum(spots - 0.9, 0.0) * 2.0, 0.0, 1.0)  # fat between muscles
    _over(hu, occupancy(muscle, width) * streaks, p["muscle_hu"] + 5.0 * spots)
    _over(hu, occupancy(read("hollow") + 1.5, width), fat)
    _abdomen(hu, p, read, spots, width)
    _over(hu, occupancy(read("oesophagus"), width), p["muscle_hu"] - 12.0)
    if p["oesophagus_air"]:
        _over(hu, occupancy(read("oesophagus") + 4.0 - spots, width), -900.0)
    _over(hu, occupancy(read("heart"), width), p["heart_hu"] + 3.0 * spots)
    _over(hu, occupancy(read("heart") + 9.0 + 3.0 * spots, 6.0), p["blood_hu"])
    _over(hu, occupancy(read("blood") - 1.5, width), p["muscle_hu"] - 10.0)
    _over(hu, occupancy(read("blood"), width), p["blood_hu"])
    _bones(hu, p, read, wall, spots, width)
    airway = read("airway")
    _over(hu, occupancy(airway - 2.0, width), p["muscle_hu"] - 10.0)
    _over(hu, occupancy(airway, width), -985.0)
    return hu


def _abdomen(hu: Field, p: Draws, read: Reader, spots: Field, width: float) -> None:
    """Diaphragm, liver, spleen, stomach, kidneys and bowel, in place."""
    dome = read("diaphragm")
    if dome.max() < -10.0:
        return
    _over(hu, occupancy(np.maximum(np.abs(dome - 1.3) - 1.2, read("wall") + 2.0), width), p["muscle_hu"] - 5.0)
    _over(hu, occupancy(read("liver"), width), p["liver_hu"] + 3.0 * spots)
    _over(hu, occupancy(read("spleen"), width), p["spleen_hu"] + 3.0 * spots)
    _over(hu, occupancy(read("kidney"), width), p["kidney_hu"] + 4.0 * spots)
    bowel = read("bowel")
    _over(hu, occupancy(bowel, width), 35.0)
    _over(hu, occupancy(bowel + 2.5, width), np.minimum(20.0 + 130.0 * np.minimum(0.5 - spots, 0.3), 40.0))
    _over(hu, occupancy(read("bowel_gas"), width), -960.0)
    stomach = read("stomach")
    _over(hu, occupancy(stomach, width), p["muscle_hu"] - 8.0)
    _over(hu, occupancy(stomach + 4.0, width), p["stomach_hu"] + 20.0 * np.maximum(spots, 0.0))
    if p["stomach_gas"]:
        _over(hu, occupancy(np.maximum(stomach + 4.0, read("y") - p["stomach_level_mm"]), width), -970.0)


def _bones(hu: Field, p: Draws, read: Reader, wall: Field, spots: Field, width: float) -> None:
    """Ribs, spine, scapulae, sternum, clavicles, humeri, in place: cortex around marrow."""
    marrow = p["marrow_hu"] + 35.0 * spots
    step = p["rib_step_mm"]
    phase = read("ribs")
    height = np.abs(phase - step * np.rint(phase / step))
    front = read("front")
    half, thick = 0.5 * p["rib_height_mm"], 0.5 * p["rib_thick_mm"]
    rib = np.sqrt((height / half) ** 2 + ((wall - 3.0 - thick) / thick) ** 2)
    rib = np.maximum((rib - 1.0) * thick * 1.15, read("rib_end"))
    cartilage = smooth_step(-front, 0.45, 0.6)
    cortex = p["bone_hu"] * (1.0 - cartilage) + 110.0 * cartilage
    _over(hu, occupancy(rib, width), cortex)
    _over(hu, occupancy(rib + 1.6, width), marrow * (1.0 - 0.5 * cartilage))
    for name, shell in (("column", 1.5), ("bones", 1.8)):
        distance = read(name)
        _over(hu, occupancy(distance, width), p["bone_hu"])
        _over(hu, occupancy(distance + shell, width), marrow)
    _over(hu, occupancy(read("canal"), width), 20.0)
    if p["arms_down"]:
        bone = read("arm") + p["arm_mm"] - 11.0
        _over(hu, occupancy(bone, width), p["bone_hu"] + 200.0)
        _over(hu, occupancy(bone + 4.0, width), 20.0)


class Parenchyma:
    """Aerated lung: gravity, patchiness, texture, emphysema, dependent density."""

    def __init__(self, lung: Draws, rng: np.random.Generator) -> None:
        self._p = lung
        self._patchy = SplineNoise(rng, 24.0, LOW, HIGH)
        self._texture = SplineNoise(rng, 4.0, LOW, HIGH)
        self._holes = SplineNoise(rng, 6.5, LOW, HIGH)
        self._severity = float(rng.uniform(0.1, 1.0))
        self._dependent_hu = float(rng.uniform(80.0, 330.0))
        self._band_hu = float(rng.uniform(150.0, 600.0))
        self._band = rng.uniform(-1.0, 1.0, 3)

    def hu(self, read: Reader, grid: Grid) -> Field:
        """HU before vessels and disease."""
        p = self._p
        front = read("front")
        hu = p["air_hu"] + p["gravity_hu"] * np.maximum(front + 0.3, 0.0)
        hu += p["patchy_hu"] * self._patchy(grid) + p["texture_hu"] * self._texture(grid)
        depth = -read("lungs")
        if p["dependent"]:
            hu += self._dependent_hu * smooth_step(front - 0.016 * depth, 0.45, 0.95)
        if p["band"]:
            q = grid.points()
            tilt = self._band
            plane = (q.u - 150.0 - 40.0 * tilt[0]) + 0.7 * tilt[1] * q.y + 0.5 * tilt[2] * q.x
            hu += self._band_hu * np.exp(-((plane / 2.0) ** 2)) * smooth_step(self._patchy(grid), 0.3, 0.9)
        if p["emphysema"]:
            hole = smooth_step(self._holes(grid) + 0.8 * self._patchy(grid), 1.6 - 1.6 * self._severity, 2.4)
            hu += hole * (-985.0 - hu) * 0.9
        return hu
