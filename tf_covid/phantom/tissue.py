"""From distance fields to Hounsfield units outside the lungs: each organ is painted over what lies under it."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from tf_covid.phantom.fields import Field, Grid, SplineNoise, occupancy, smooth_step
from tf_covid.phantom.settings import Draws
from tf_covid.phantom.slab import Slab, blend

AIR_HU = -1000.0


#: Where the HU of each tissue outside the lungs is drawn from when all are drawn at random.
RANDOM_HU = {
    "blood_hu": (-60.0, 420.0),
    "heart_hu": (-60.0, 320.0),
    "spleen_hu": (-60.0, 260.0),
    "kidney_hu": (-60.0, 300.0),
    "liver_hu": (-60.0, 240.0),
    "gland_hu": (-60.0, 200.0),
    "muscle_hu": (-40.0, 180.0),
    "fat_hu": (-260.0, 20.0),
    "stomach_hu": (-150.0, 300.0),
    "bowel_hu": (-150.0, 300.0),
    "effusion_hu": (-60.0, 110.0),
    "mass_hu": (-60.0, 200.0),
    "bone_hu": (150.0, 1400.0),
    "marrow_hu": (-60.0, 500.0),
    "gas_hu": (-1000.0, -700.0),
}


def draw_tissue(body: Draws, scan: Draws, rng: np.random.Generator) -> Draws:
    """HU of this patient's tissues; contrast medium raises blood most, then organs.

    A patient with "random_hu" has other ones altogether, so that a network learns shapes: the
    recipe of SynthSeg, within bounds that keep everything but gas denser than healthy lung.
    """

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
    p["gland_hu"] = between(20.0, 45.0) + 0.25 * contrast
    p["mass_hu"] = body["mass_hu"] + 0.15 * contrast
    p["gas_hu"] = between(-1000.0, -930.0)
    food = body["stomach_food"]
    p["stomach_hu"] = between(20.0, 60.0) if food else between(-10.0, 40.0)
    p["bubbles"] = between(0.03, 0.3) * food
    p["bubble_hu"] = between(-950.0, -350.0)
    p["bowel_hu"] = between(-20.0, 55.0)
    if body["oral_contrast"]:
        p["stomach_hu"], p["bowel_hu"] = between(150.0, 400.0), between(30.0, 400.0)
    p["mottle"] = between(0.0, 0.25)
    p["mottle_hu"] = between(-420.0, -120.0)
    p["strand_hu"] = between(0.0, 70.0)
    p["effusion_hu"] = between(0.0, 30.0)
    p["gland_share"] = between(0.0, 0.9)
    p["plaque_level"] = between(1.3, 2.2) if body["calcification"] else 99.0
    p["muscle_fat"] = between(0.1, 1.0)
    p["layer_mm"] = between(9.0, 16.0)
    others = {name: between(*ends) for name, ends in RANDOM_HU.items()}
    return p | others if body["random_hu"] else p


class Marbling:
    """Slow HU variations of soft tissue, so that no organ is flat; one noise for all.

    Args:
        rng: Where it comes from.
        low, high: Corners in mm of the region that needs it.
        belly_mm: Height above which no bowel lies.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        low: tuple[float, ...],
        high: tuple[float, ...],
        belly_mm: float,
    ) -> None:
        from_mm = (max(low[0], belly_mm), max(low[1], -150.0), max(low[2], -150.0))
        to_mm = (max(high[0], from_mm[0]), min(high[1], 150.0), min(high[2], 150.0))
        #: Lumps of food and stool, and the bubbles between them.
        self.lumps = SplineNoise(rng, 4.5, from_mm, to_mm)
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
        _body(hu[place], p, inner, marbling)
    return hu


def _body(hu: Field, p: Draws, slab: Slab, marbling: Marbling) -> None:
    """Skin, fat and muscle, then every organ; in place."""
    spots = marbling(slab.grid)
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
    slab.paint(hu, "hilum", p["blood_hu"])
    _abdomen(hu, p, slab, spots, marbling)
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
    slab.paint(hu, "tumour", p["mass_hu"] + 6.0 * spots)
    _bones(hu, p, slab, spots)
    slab.paint(hu, "airway", p["muscle_hu"] - 10.0, inset_mm=-2.0)
    slab.paint(hu, "airway", -985.0)
    slab.paint(hu, "throat", -985.0)


def _abdomen(hu: Field, p: Draws, slab: Slab, spots: Field, marbling: Marbling) -> None:
    """Diaphragm, strands of vessels in the fat, and the organs of the belly, in place."""
    dome = slab.read("diaphragm")
    if dome.max() < -10.0:
        return
    if p["strand_hu"] > 8.0:
        strands = np.exp(-((spots / 0.12) ** 2)) * (dome > 4.0) * (slab.read("wall") < -3.0)
        hu += p["strand_hu"] * strands
    sheet = np.maximum(np.abs(dome - 1.3) - 1.2, slab.read("wall") + 2.0)
    blend(hu, occupancy(sheet, slab.width_mm), p["muscle_hu"] - 5.0)
    for name in ("liver", "spleen"):
        slab.paint(hu, name, p[f"{name}_hu"] + 3.0 * spots)
    slab.paint(hu, "bowel", p["muscle_hu"] - 12.0)
    _contents(hu, "bowel", p["bowel_hu"], p["bowel_wall_mm"], p, slab, None)
    _contents(hu, "colon", p["bowel_hu"], p["bowel_wall_mm"], p, slab, marbling)
    slab.paint(hu, "bowel_gas", p["gas_hu"])
    for name, value in (("kidney", "kidney_hu"), ("glands", "gland_hu"), ("straps", "muscle_hu")):
        slab.paint(hu, name, p[value] + 3.0 * spots)
    slab.paint(hu, "kidney_sinus", p["fat_hu"] + 20.0)
    slab.paint(hu, "stomach", p["muscle_hu"] - 8.0)
    _contents(hu, "stomach", p["stomach_hu"], p["stomach_wall_mm"], p, slab, marbling)
    if p["stomach_gas"]:
        slab.paint(hu, "stomach_gas", p["gas_hu"])


def _contents(
    hu: Field,
    name: str,
    value: float,
    wall_mm: float,
    p: Draws,
    slab: Slab,
    marbling: Marbling | None,
) -> None:
    """What fills stomach or bowel within its wall, in place: fluid, or lumps with gas between them."""
    found = slab.part(name)
    if found is None:
        return
    inner, place = found
    content: Field | float = value
    if marbling is not None:
        lumps = marbling.lumps(inner.grid)
        share, gas = (
            (p["bubbles"], p["bubble_hu"]) if name == "stomach" else (p["mottle"], p["mottle_hu"])
        )
        content = value + 12.0 * lumps
        if share > 0.0:
            # The level that this share of a normal distribution exceeds.
            level = float(ndtri(1.0 - share))
            content += (gas - value) * smooth_step(lumps, level - 0.3, level + 0.3)
    blend(hu[place], occupancy(inner.read(name) + wall_mm, inner.width_mm), content)


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
    slab.paint(hu, "skull", p["bone_hu"])
    for name, shell in (("column", 1.5), ("bones", 1.8)):
        slab.paint(hu, name, p["bone_hu"])
        slab.paint(hu, name, marrow, inset_mm=shell)
    slab.paint(hu, "canal", 20.0)
    if p["arms_down"]:
        slab.paint(hu, "arm", p["bone_hu"] + 200.0, inset_mm=p["arm_mm"] - 11.0)
        slab.paint(hu, "arm", 20.0, inset_mm=p["arm_mm"] - 7.0)
