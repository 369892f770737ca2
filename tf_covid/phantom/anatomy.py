"""One patient on a coarse lattice: every organ as a smooth distance field, fixed in the patient whatever the grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tf_covid.phantom import organs, torso
from tf_covid.phantom.fields import Field, Grid, Points, SplineNoise, join, tube
from tf_covid.phantom.settings import BodySettings, Draws, draw

#: Distance of the lattice points: organs are smooth enough for linear interpolation between them.
LATTICE_MM = 4.0

#: The region, (u, y, x) in mm, within which every random field is defined.
LOW, HIGH = (-150.0, -290.0, -290.0), (480.0, 290.0, 290.0)


@dataclass(frozen=True)
class Anatomy:
    """The patient.

    Args:
        p: What was drawn, in mm unless a name says otherwise.
        lattice: The grid of the fields.
        fields: Distance in mm to each surface, negative inside, float32 (U, Y, X); "fluid" is pleural
            fluid that reaches beyond the lungs as well.
    """

    p: Draws
    lattice: Grid
    fields: dict[str, Field]


def draw_body(settings: BodySettings, rng: np.random.Generator) -> Draws:
    """Every size of one patient."""
    return organs.draw_organs(torso.draw_torso(draw(settings, rng), rng), rng)


def _warped(p: Draws, lattice: Grid, rng: np.random.Generator) -> Points:
    """Lattice points moved smoothly at random, so that no organ keeps the formula's shape."""
    moved = []
    for axis in lattice.points():
        slow = SplineNoise(rng, 75.0, LOW, HIGH)(lattice)
        quick = SplineNoise(rng, 32.0, LOW, HIGH)(lattice)
        moved.append(axis + p["warp_mm"] * slow + 0.22 * p["warp_mm"] * quick)
    q = Points(*moved)
    turn, lean = np.deg2rad(p["tilt_degrees"]), np.deg2rad(p["lean_degrees"])
    y, x = q.y * np.cos(turn) + q.x * np.sin(turn), q.x * np.cos(turn) - q.y * np.sin(turn)
    return Points(q.u, y.astype(np.float32), (x + np.sin(lean) * (q.u - 100.0)).astype(np.float32))


def build(p: Draws, lattice: Grid, rng: np.random.Generator) -> Anatomy:
    """Evaluate one patient on a lattice."""
    q = _warped(p, lattice, rng)
    wall = torso.cage(p, q)
    centre = torso.chest_centre(p, q)
    spine_y = torso.spine_y(p, q)
    spine = organs.vertebrae(p, q, spine_y)
    dome = torso.diaphragm(p, q, wall)
    path = [
        (-100.0, p["carina_y_mm"] + 8, 3.0),
        (p["carina_mm"], p["spine_front_mm"] - 9.0, 5.0),
        (p["dome_depth_mm"], p["spine_front_mm"] - 14.0, 8.0),
        (p["stomach_u_mm"] + 15.0, -5.0, 30.0),
    ]
    parts = {
        "wall": wall,
        "centre": centre,
        "spine_y": spine_y,
        "diaphragm": dome,
        "vertebra": spine["body"],
        "airway": torso.airways(p, q),
        "blood": torso.vessels(p, q),
        "heart": torso.heart(p, q),
        "oesophagus": tube(q, path, 7.0),
    }
    parts["heart"] = np.maximum(parts["heart"], dome + 1.0)
    parts["mediastinum"] = torso.mediastinum(p, q, parts)
    pleura = torso.lungs(p, q, parts)
    lungs, fluid = torso.aerated(p, q, pleura, centre)
    muscle = join(wall - organs.muscle_thickness(p, q, centre), organs.shoulders(p, q), 25.0)
    arm = organs.arms(p, q)
    fat = organs.fat_thickness(p, q, centre) + organs.breasts(p, q, centre)
    body = np.minimum(muscle - fat, arm)
    # What is not lung within the cage is fat, but for the neck above it and the muscles behind the spine.
    hollow = np.maximum(np.maximum(wall, -8.0 - q.u), q.y - spine_y - 10.0)
    hollow = np.maximum(hollow, np.minimum(np.abs(q.x) - 50.0, 0.6 * p["cap_height_mm"] - q.u))
    fields = {
        "body": body,
        "muscle": np.minimum(muscle, arm + 0.5 * p["fat_mm"] * 0.6 + 3.0),
        "arm": arm,
        "wall": wall,
        "lungs": lungs,
        "pleura": pleura,
        "fluid": fluid,
        "side": q.x - p["junction_x_mm"] + 0.0 * lungs,
        "diaphragm": dome,
        "airway": parts["airway"],
        "blood": parts["blood"],
        "heart": parts["heart"],
        "oesophagus": parts["oesophagus"],
        "column": spine["column"],
        "canal": spine["canal"],
        "bones": organs.bones(p, q, wall, centre),
        "ribs": organs.rib_phase(p, q, centre),
        "rib_end": organs.rib_end(p, q, centre),
        "hollow": hollow,
        "front": (q.y - centre) / p["chest_half_depth_mm"],
    }
    fields |= {f"{name}_fissure": field for name, field in torso.fissures(p, q, centre).items()}
    fields |= organs.abdomen(p, q, wall, dome)
    fields |= organs.bowel(p, q, np.maximum(wall + 6.0, -dome + 6.0))
    shape = lattice.shape
    return Anatomy(
        p,
        lattice,
        {k: np.array(np.broadcast_to(v, shape), np.float32, order="C") for k, v in fields.items()},
    )
