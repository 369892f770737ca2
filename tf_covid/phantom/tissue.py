"""From distance fields to Hounsfield units outside the lungs: each organ is painted over what lies under it."""

from __future__ import annotations

import numpy as np

from tf_covid.phantom.fields import Field, Grid, SplineNoise, occupancy, smooth_step
from tf_covid.phantom.settings import Draws
from tf_covid.phantom.slab import Slab, blend

AIR_HU = -1000.0


def draw_tissue(body: Draws, scan: Draws, rng: np.random.Generator) -> Draws:
    """HU of this patient's tissues; contrast medium raises blood most, then organs."""

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    p = dict(body)
    contrast = scan["contrast"] * scan["contrast_hu"]
    p["blood_hu"] = between(32.0, 52.0) + contrast
    p["heart_hu"] = between(34.0, 52.0) + contrast * between(0.3, 0.9)
    p["spleen_hu"] = between(40.0, 55.0) + 0.3 * contrast
    p["kidney_hu"] = between(25.0, 40.0) + 0.5 * contrast
    p["liver_hu"] = body["liver_hu"] + 0.15 * contrast
    p["muscle_hu"] = between(42.0, 62.0) + 0.03 * contrast
    p["fat_hu"] = between(-118.0, -88.0)
    p["stomach_hu"] = between(-10.0, 70.0)
    p["effusion_hu"] = between(0.0, 32.0)
    p["gland_share"] = between(0.0, 0.9)
    p["plaque_level"] = between(1.3, 2.2) if body["calcification"] else 99.0
    p["muscle_fat"] = between(0.1, 1.0)
    p["layer_mm"] = between(9.0, 16.0)
    return p


class Marbling:
    """Slow HU variations of soft tissue, so that no organ is flat; one noise for all."""

    def __init__(
        self, rng: np.random.Generator, low: tuple[float, ...], high: tuple[float, ...]
    ) -> None:
        self._fine = SplineNoise(rng, 6.0, low, high)
        self._slow = SplineNoise(rng, 16.0, low, high)

    def __call__(self, grid: Grid) -> Field:
        """About unit deviation."""
        return 0.6 * self._slow(grid) + 0.7 * self._fine(grid)


def outside_lungs(p: Draws, slab: Slab, marbling: Marbling) -> Field:
    """HU of everything but the lungs, (D, H, W) float32."""
    hu = np.full(slab.grid.shape, AIR_HU, np.float32)
    found = slab.part("body")
    if found is not None:
        inner, place = found
        _body(hu[place], p, inner, marbling(inner.grid))
    return hu


def _body(hu: Field, p: Draws, slab: Slab, spots: Field) -> None:
    """Skin, fat and muscle, then every organ; in place."""
    width = slab.width_mm
    body, wall = slab.read("body"), slab.read("wall")
    fat = p["fat_hu"] + 9.0 * spots
    blend(hu, occupancy(body, width), p["muscle_hu"] - 25.0)  # skin
    under_skin = fat
    if p["female"]:
        glands = smooth_step(spots, 0.9 - p["gland_share"], 1.8 - p["gland_share"]) * (
            slab.read("front") < -1.15
        )
        under_skin = fat + 120.0 * glands
    blend(hu, occupancy(body + 2.2, width), under_skin)
    # Muscles lie in layers with fat between them, wavy, and not everywhere.
    layers = np.cos(wall * (2.0 * np.pi / p["layer_mm"]) + 2.5 * spots)
    between = p["muscle_fat"] * smooth_step(layers, 0.75, 1.0) * (wall > 12.0)
    blend(hu, occupancy(slab.read("muscle"), width) * (1.0 - between), p["muscle_hu"] + 5.0 * spots)
    slab.paint(hu, "hollow", fat, inset_mm=1.5)
    slab.paint(hu, "pleura", p["effusion_hu"] + 3.0 * spots)
    _abdomen(hu, p, slab, spots)
    slab.paint(hu, "oesophagus", p["muscle_hu"] - 12.0)
    if p["oesophagus_air"]:
        slab.paint(hu, "oesophagus", -900.0, inset_mm=4.5)
    slab.paint(
        hu,
        "blood",
        np.where(spots > p["plaque_level"], 700.0, p["muscle_hu"] - 10.0),
        inset_mm=-1.5,
    )
    slab.paint(hu, "heart", p["heart_hu"] + 3.0 * spots)
    slab.paint(hu, "heart", p["blood_hu"], inset_mm=9.0, edge_mm=6.0)
    slab.paint(hu, "blood", p["blood_hu"])
    _bones(hu, p, slab, spots)
    slab.paint(hu, "airway", p["muscle_hu"] - 10.0, inset_mm=-2.0)
    slab.paint(hu, "airway", -985.0)


def _abdomen(hu: Field, p: Draws, slab: Slab, spots: Field) -> None:
    """Diaphragm, liver, spleen, stomach, kidneys and bowel, in place."""
    dome = slab.read("diaphragm")
    if dome.max() < -10.0:
        return
    sheet = np.maximum(np.abs(dome - 1.3) - 1.2, slab.read("wall") + 2.0)
    blend(hu, occupancy(sheet, slab.width_mm), p["muscle_hu"] - 5.0)
    for name in ("liver", "spleen", "kidney"):
        slab.paint(hu, name, p[f"{name}_hu"] + 3.0 * spots)
    slab.paint(hu, "bowel", 35.0)
    slab.paint(hu, "bowel", np.minimum(85.0 - 130.0 * spots, 40.0), inset_mm=2.5)
    slab.paint(hu, "bowel_gas", -960.0)
    slab.paint(hu, "stomach", p["muscle_hu"] - 8.0)
    slab.paint(hu, "stomach", p["stomach_hu"] + 20.0 * np.maximum(spots, 0.0), inset_mm=4.0)
    if p["stomach_gas"]:
        slab.paint(hu, "stomach_gas", -970.0)


def _bones(hu: Field, p: Draws, slab: Slab, spots: Field) -> None:
    """Ribs, spine, scapulae, sternum, clavicles, humeri, in place: cortex around marrow."""
    width, step = slab.width_mm, p["rib_step_mm"]
    marrow = p["marrow_hu"] + 35.0 * spots
    phase = slab.read("ribs")
    height = phase - step * np.rint(phase / step)
    half, thick = 0.5 * p["rib_height_mm"], 0.5 * p["rib_thick_mm"]
    rib = np.sqrt((height / half) ** 2 + ((slab.read("wall") - 3.0 - thick) / thick) ** 2)
    rib = np.maximum((rib - 1.0) * thick * 1.15, slab.read("rib_end"))
    cartilage = smooth_step(-slab.read("front"), 0.45, 0.6)
    blend(hu, occupancy(rib, width), p["bone_hu"] * (1.0 - cartilage) + 110.0 * cartilage)
    blend(hu, occupancy(rib + 1.6, width), marrow * (1.0 - 0.5 * cartilage))
    for name, shell in (("column", 1.5), ("bones", 1.8)):
        slab.paint(hu, name, p["bone_hu"])
        slab.paint(hu, name, marrow, inset_mm=shell)
    slab.paint(hu, "canal", 20.0)
    if p["arms_down"]:
        slab.paint(hu, "arm", p["bone_hu"] + 200.0, inset_mm=p["arm_mm"] - 11.0)
        slab.paint(hu, "arm", 20.0, inset_mm=p["arm_mm"] - 7.0)
