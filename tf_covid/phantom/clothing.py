"""What lies on and under the patient: table, mattress, blanket and clothes, wires."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tf_covid.phantom.anatomy import Anatomy
from tf_covid.phantom.fields import Field, SplineNoise, occupancy
from tf_covid.phantom.scanner import Protocol
from tf_covid.phantom.settings import Draws
from tf_covid.phantom.slab import Slab, blend
from tf_covid.phantom.tissue import AIR_HU
from tf_covid.phantom.trees import Tree, paint_slab, together


@dataclass(frozen=True)
class Things:
    """Table sheets (y = level + bend·x², in mm), folds of cloth around the body, and wires on it."""

    sheets: list[Draws]
    cloth: Draws | None
    folds: SplineNoise | None
    wires: Tree | None
    wires_hu: float


def draw_things(protocol: Protocol, anatomy: Anatomy, rng: np.random.Generator) -> Things:
    """Draw what surrounds this patient."""
    p = protocol.p
    outline = np.flatnonzero((anatomy.fields["body"] < 0.0).any(axis=(0, 2)))
    front, back = float(anatomy.lattice.y[outline[0]]), float(anatomy.lattice.y[outline[-1]])
    prone = bool(anatomy.p["prone"])
    sheets = _table(front if prone else back, -1.0 if prone else 1.0, rng) if p["table"] else []
    cloth, folds = None, None
    if p["blanket"] or p["tangle"]:
        cloth = {
            "gap_mm": float(rng.uniform(1.0, 14.0)),
            "fold_mm": float(rng.uniform(1.0, 9.0)) * (2.0 if p["tangle"] else 1.0),
            "thick_mm": float(rng.uniform(1.0, 6.0)),
            "hu": float(rng.uniform(-960.0, -550.0)),
        }
        folds = SplineNoise(rng, (120.0, 22.0, 22.0), protocol.low, protocol.high)
    wires = None
    if p["wires"] or p["tangle"]:
        wires = together(
            [
                _wire(anatomy, rng)
                for _ in range(int(rng.integers(1, 6)) + (8 if p["tangle"] else 0))
            ]
        )
    return Things(sheets, cloth, folds, wires, float(rng.uniform(0.0, 2500.0)))


def _table(edge_mm: float, away: float, rng: np.random.Generator) -> list[Draws]:
    """Shell, core, shell, and mostly a mattress; `away` is the direction in y from the body to the table."""
    level = edge_mm + away * float(rng.uniform(2.0, 14.0))
    bend = -away * float(rng.choice([0.0, 0.0009, 0.0016]))
    thick, shell, reach = (
        float(rng.uniform(*ends)) for ends in ((15.0, 50.0), (1.0, 3.0), (190.0, 270.0))
    )
    plan = [
        (0.0, shell, rng.uniform(-700.0, 50.0)),
        (0.5 * thick, thick, rng.uniform(-985.0, -900.0)),
        (thick, shell, rng.uniform(-700.0, 50.0)),
    ]
    if rng.random() < 0.5:
        plan.append((-7.0, 11.0, rng.uniform(-985.0, -880.0)))
    return [
        {
            "level": level + away * offset,
            "bend": bend,
            "thick": width,
            "hu": float(hu),
            "reach": reach,
        }
        for offset, width, hu in plan
    ]


def _wire(anatomy: Anatomy, rng: np.random.Generator) -> Tree:
    """One wire that wanders over the chest, a little above the skin."""
    lattice, body = anatomy.lattice, anatomy.fields["body"]
    count = 24
    u = rng.uniform(0.0, 200.0) + np.cumsum(rng.uniform(-6.0, 12.0) + rng.normal(0.0, 7.0, count))
    x = rng.uniform(-110.0, 110.0) + np.cumsum(rng.uniform(-9.0, 9.0) + rng.normal(0.0, 6.0, count))
    d = np.clip(np.searchsorted(lattice.u, u), 0, len(lattice.u) - 1)
    w = np.clip(np.searchsorted(lattice.x, x), 0, len(lattice.x) - 1)
    columns = body[d, :, w] < 0.0
    skin = np.where(columns.any(axis=1), lattice.y[columns.argmax(axis=1)], lattice.y[-1] + 500.0)
    y = skin - rng.uniform(3.0, 8.0) - np.abs(np.cumsum(rng.normal(0.0, 2.0, count)))
    points = np.stack([u, y, x], axis=1).astype(np.float32)
    radius = np.full(count - 1, rng.uniform(0.5, 2.6), np.float32)
    return Tree(points[:-1], points[1:], radius, np.zeros(count - 1, int))


def dress(hu: Field, slab: Slab, things: Things) -> None:
    """Put everything into the air around the body; in place."""
    y, x = slab.grid.y[:, None], slab.grid.x[None, :]
    width = float(slab.grid.y[1] - slab.grid.y[0])
    picture = np.full((len(slab.grid.y), len(slab.grid.x)), AIR_HU, np.float32)
    for sheet in things.sheets:
        gap = np.abs(y - sheet["level"] - sheet["bend"] * x**2) - 0.5 * sheet["thick"]
        share = np.clip(0.5 - gap / width, 0.0, min(sheet["thick"] / width, 1.0)) * (
            np.abs(x) < sheet["reach"]
        )
        picture += share * (sheet["hu"] - picture)
    np.maximum(hu, picture, out=hu)
    outside = slab.read("body") > 0.0
    if things.cloth is not None and things.folds is not None:
        p = things.cloth
        sheet_distance = np.abs(
            slab.read("body") - p["gap_mm"] - p["fold_mm"] * things.folds(slab.grid)
        )
        share = occupancy(sheet_distance - 0.5 * p["thick_mm"], slab.width_mm) * min(
            p["thick_mm"] / slab.width_mm, 1.0
        )
        blend(hu, share * outside, p["hu"])
    if things.wires is not None and (share := paint_slab(slab.grid, things.wires)) is not None:
        blend(hu, share * outside, things.wires_hu)
