"""One patient on a coarse lattice: every organ as a smooth distance field, fixed in the patient whatever the grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tf_covid.phantom import belly, masses, organs, torso
from tf_covid.phantom.fields import Field, Grid, Points, SplineNoise, join, meet, smooth_step, tube
from tf_covid.phantom.settings import BodySettings, Draws, draw

#: Distance of the lattice points: organs are smooth enough for linear interpolation between them.
LATTICE_MM = 4.0

#: The region, (u, y, x) in mm, within which every random field is defined.
LOW, HIGH = (-420.0, -310.0, -310.0), (800.0, 310.0, 310.0)

#: The part of it that can hold lung.
LUNGS_LOW, LUNGS_HIGH = (-60.0, -230.0, -230.0), (370.0, 230.0, 230.0)


#: Fields of the head, and of what lies under the diaphragm.
_HEAD = ("head", "skull", "throat")
_BELLY = (
    *("liver", "spleen", "stomach", "stomach_gas", "kidney", "kidney_sinus", "glands", "straps"),
    *("bowel", "colon", "bowel_gas"),
)


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
    p = organs.draw_organs(torso.draw_torso(draw(settings, rng), rng), rng)
    return p | belly.draw_belly(p, rng) | masses.draw_masses(p, rng)


def _warped(p: Draws, lattice: Grid, rng: np.random.Generator) -> Points:
    """Lattice points moved smoothly at random, so that no organ keeps the formula's shape."""
    moved = []
    for axis in lattice.points():
        slow = SplineNoise(rng, 75.0, LOW, HIGH)(lattice)
        quick = SplineNoise(rng, 32.0, LOW, HIGH)(lattice)
        moved.append(axis + p["warp_mm"] * slow + 0.22 * p["warp_mm"] * quick)
    q = Points(*moved)
    turn, lean = np.deg2rad(p["tilt_degrees"]), np.deg2rad(p["lean_degrees"])
    low, high = np.float32(-120.0), np.float32(380.0)
    along = np.clip(q.u, low, high)
    y, x = q.y * np.cos(turn) + q.x * np.sin(turn), q.x * np.cos(turn) - q.y * np.sin(turn)
    return Points(
        q.u, y.astype(np.float32), (x + np.sin(lean) * (along - 100.0)).astype(np.float32)
    )


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
    lungs, fluid = torso.aerated(p, q, pleura, centre, LATTICE_MM**3 / 1000.0)
    # The trunk ends at the shoulders, where the neck goes on.
    trunk = np.maximum(wall - organs.muscle_thickness(p, q, centre), -70.0 - q.u)
    muscle = join(trunk, organs.shoulders(p, q), 25.0)
    above = {name: np.full(lattice.shape, torso.FAR_MM, np.float32) for name in _HEAD}
    if lattice.u[0] < -110.0:
        above = organs.head(p, q)
        muscle = join(muscle, above["head"], 12.0)
    arm = organs.arms(p, q)
    fat = organs.fat_thickness(p, q, centre) + organs.breasts(p, q, centre)
    body = np.minimum(muscle - fat, arm)
    # What is not lung within the cage is fat, but for the neck above it and the muscles behind the spine.
    # Beside the spine it reaches farther back: fat lies behind the kidneys.
    beside = 0.8 * np.maximum(np.abs(q.x) - 34.0, 0.0) * smooth_step(q.u, 0.0, 60.0)
    hollow = np.maximum(np.maximum(wall, -8.0 - q.u), q.y - spine_y - 10.0 - beside)
    apex = join(np.abs(q.x) - 50.0, 0.6 * p["cap_height_mm"] - q.u, 40.0)
    hollow = meet(hollow, apex, 12.0)
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
        "column": np.maximum(spine["column"], -170.0 - q.u),
        "canal": np.maximum(spine["canal"], -170.0 - q.u),
        "bones": organs.bones(p, q, wall, centre),
        "ribs": organs.rib_phase(p, q, centre),
        "rib_end": organs.rib_end(p, q, centre),
        "hollow": hollow,
        "mediastinum": parts["mediastinum"],
        "front": (q.y - centre) / p["chest_half_depth_mm"],
    }
    fields |= {f"{name}_fissure": field for name, field in torso.fissures(p, q, centre).items()}
    fields |= above
    shape = lattice.shape
    full = {
        k: np.array(np.broadcast_to(v, shape), np.float32, order="C") for k, v in fields.items()
    }
    full |= _belly(p, q, wall, dome)
    masses.add_masses(p, lattice, full)
    return Anatomy(p, lattice, full)


def _belly(p: Draws, q: Points, wall: Field, dome: Field) -> dict[str, Field]:
    """What lies under the diaphragm, computed where that is, and far elsewhere."""
    near = (wall < 4.0) & (dome > -8.0)
    lines = [np.flatnonzero(near.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    box = tuple(slice(int(n[0]), int(n[-1]) + 1) if len(n) else slice(0, 0) for n in lines)
    found = {name: np.full(wall.shape, torso.FAR_MM, np.float32) for name in _BELLY}
    if all(len(n) for n in lines):
        part = Points(*(np.ascontiguousarray(axis[box]) for axis in q))
        organ = belly.organs(p, part, wall[box], dome[box])
        gut = belly.bowel(p, part, wall[box], dome[box])
        organ["liver"] = meet(organ["liver"], 3.0 - gut["colon"], 6.0)
        for name, field in (organ | gut).items():
            found[name][box] = field
    return found
