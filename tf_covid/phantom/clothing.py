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
    """Table sheets (y = level + bend·x², in mm), foam blocks, folds of cloth around the body, and wires on it."""

    sheets: list[Draws]
    blocks: list[Draws]
    cloth: Draws | None
    folds: SplineNoise | None
    wires: Tree | None
    wires_hu: float


def draw_things(protocol: Protocol, anatomy: Anatomy, rng: np.random.Generator) -> Things:
    """Draw what surrounds this patient."""
    p = protocol.p
    away = -1.0 if anatomy.p["prone"] else 1.0
    edge = _lying_mm(anatomy, away)
    sheets = _table(edge, away, p, rng) if p["table"] else []
    blocks = _blocks(anatomy, edge, away, p, rng)
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
    return Things(sheets, blocks, cloth, folds, wires, float(rng.uniform(0.0, 2500.0)))


def _lying_mm(anatomy: Anatomy, away: float) -> float:
    """Where in y the trunk lies on what is under it: it sinks in a little where it reaches farthest."""
    lattice = anatomy.lattice
    levels = (lattice.u > 0.0) & (lattice.u < anatomy.p["dome_depth_mm"] + 80.0)
    middle = anatomy.fields["body"][levels][:, :, np.abs(lattice.x) < 110.0]
    lines = np.any(np.less(middle, 0.0), axis=2)
    lines = lines[lines.any(axis=1)]
    if away > 0.0:
        ends = lattice.y[lines.shape[1] - 1 - lines[:, ::-1].argmax(axis=1)]
    else:
        ends = lattice.y[lines.argmax(axis=1)]
    return float(away * np.quantile(away * ends, 0.85)) if len(ends) else away * 130.0


def _table(edge_mm: float, away: float, p: Draws, rng: np.random.Generator) -> list[Draws]:
    """Shell, core, shell, and mostly a mattress; `away` is the direction in y from the body to the table.

    A foam pad lies on it in many scans: two layers with a seam between them.
    """
    pad = float(rng.uniform(8.0, 55.0)) * p["pad"]
    level = edge_mm + away * (
        pad + float(rng.uniform(-3.0, 3.0) if pad else rng.uniform(2.0, 14.0))
    )
    bend = -away * float(rng.choice([0.0, 0.0009, 0.0016])) * (1.0 - p["planning"])
    thick, shell, reach = (
        float(rng.uniform(*ends)) for ends in ((15.0, 50.0), (1.0, 3.0), (190.0, 270.0))
    )
    plan = [
        (0.0, shell, rng.uniform(-700.0, 50.0), reach),
        (0.5 * thick, thick, rng.uniform(-985.0, -900.0), reach),
        (thick, shell, rng.uniform(-700.0, 50.0), reach),
    ]
    seam, wide = rng.uniform(0.5, 3.0), rng.uniform(120.0, 240.0)
    cut, foam = rng.uniform(0.25, 0.75) * pad, rng.uniform(-950.0, -600.0, 2)
    cover = rng.uniform(-900.0, -100.0)
    if pad:
        plan += [
            (-0.5 * cut, cut - seam, foam[0], wide),
            (-0.5 * (cut + pad), pad - cut - seam, foam[1 if p["cushions"] else 0], wide),
            (-cut, seam, cover if rng.random() < 0.5 else -1000.0, wide),
            (-pad, 1.0, cover, wide),
        ]
    elif rng.random() < 0.5:
        plan.append((-7.0, 11.0, rng.uniform(-985.0, -880.0), reach))
    return [
        {
            "level": level + away * offset,
            "bend": bend,
            "thick": float(max(width, 0.5)),
            "hu": float(hu),
            "reach": float(half),
        }
        for offset, width, hu, half in plan
    ]


def _blocks(
    anatomy: Anatomy, edge_mm: float, away: float, p: Draws, rng: np.random.Generator
) -> list[Draws]:
    """Foam blocks: a hollowed head rest under neck and head, and cushions beside the body."""
    body = anatomy.p
    foam = rng.uniform(-950.0, -600.0, 3)
    found = []
    top, wide = float(rng.uniform(-45.0, -5.0)), float(rng.uniform(70.0, 160.0))
    high, hollow = float(rng.uniform(45.0, 120.0)), float(rng.uniform(0.0, 0.7))
    shell = float(rng.uniform(-800.0, 100.0))
    if p["head_rest"]:
        for hu, thin in ((foam[0], 0.0), (shell, rng.uniform(1.5, 5.0))):
            found.append(
                {
                    "low": -420.0,
                    "high": top,
                    "y": edge_mm - away * (0.5 * high - 6.0),
                    "x": 0.0,
                    "half_y": 0.5 * high,
                    "half_x": wide,
                    "hollow": away * hollow * high / wide**2,
                    "shell": float(thin),
                    "turn": 0.0,
                    "hu": float(hu),
                }
            )
    if p["cushions"]:
        beyond = body["chest_half_width_mm"] + body["muscle_mm"] + body["fat_mm"] * body["fat_side"]
        for side, hu in ((-1.0, foam[1]), (1.0, foam[2])):
            start = float(rng.uniform(-150.0, 150.0))
            found.append(
                {
                    "low": start,
                    "high": start + float(rng.uniform(80.0, 400.0)),
                    "y": edge_mm - away * float(rng.uniform(0.0, 90.0)),
                    "x": side * (beyond + float(rng.uniform(5.0, 60.0))),
                    "half_y": float(rng.uniform(20.0, 70.0)),
                    "half_x": float(rng.uniform(20.0, 60.0)),
                    "hollow": 0.0,
                    "shell": 0.0,
                    "turn": side * float(rng.uniform(-0.6, 0.6)),
                    "hu": float(hu),
                }
            )
    return found


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


def _sheet_share(sheet: Draws, y: Field, x: Field, width_mm: float) -> Field:
    """Share of each pixel of an axial picture that a table sheet fills."""
    gap = np.abs(y - sheet["level"] - sheet["bend"] * x**2) - 0.5 * sheet["thick"]
    share = np.clip(0.5 - gap / width_mm, 0.0, min(sheet["thick"] / width_mm, 1.0))
    return share * (np.abs(x) < sheet["reach"])


def _block_share(block: Draws, y: Field, x: Field, width_mm: float) -> Field:
    """Share of each pixel of an axial picture that a block fills, at the heights where it is."""
    c, s = np.cos(block["turn"]), np.sin(block["turn"])
    dx, dy = x - block["x"], y - block["y"]
    dy, dx = c * dy - s * dx, c * dx + s * dy
    hollow = block["hollow"] * (block["half_x"] ** 2 - dx**2)
    # The hollow takes from the side of the body only.
    near = np.abs(dy - 0.5 * hollow) - (block["half_y"] - 0.5 * np.abs(hollow))
    gap = np.maximum(near, np.abs(dx) - block["half_x"])
    if block["shell"]:
        gap = np.abs(gap) - 0.5 * block["shell"]
    thickest = min(block["shell"] / width_mm, 1.0) if block["shell"] else 1.0
    return np.clip(0.5 - gap / width_mm, 0.0, thickest)


def _levels(block: Draws, slab: Slab) -> slice:
    """The slices of a slab at which a block lies."""
    first, last = np.searchsorted(slab.grid.u, (block["low"], block["high"]))
    return slice(int(first), int(last))


def _cloth_share(slab: Slab, things: Things) -> Field | None:
    """Share of each voxel that cloth fills; None without any."""
    if things.cloth is None or things.folds is None:
        return None
    p = things.cloth
    folded = slab.read("body") - p["gap_mm"] - p["fold_mm"] * things.folds(slab.grid)
    share = occupancy(np.abs(folded) - 0.5 * p["thick_mm"], slab.width_mm)
    return share * min(p["thick_mm"] / slab.width_mm, 1.0)


def covered(slab: Slab, things: Things) -> Field:
    """Largest share (0–1) of each voxel outside the body that a thing fills; it means nothing within."""
    y, x = slab.grid.y[:, None], slab.grid.x[None, :]
    width = float(slab.grid.y[1] - slab.grid.y[0])
    picture = np.zeros((len(slab.grid.y), len(slab.grid.x)), np.float32)
    for sheet in things.sheets:
        if sheet["hu"] > AIR_HU + 1.0:
            np.maximum(picture, _sheet_share(sheet, y, x, width), out=picture)
    found = np.broadcast_to(picture, slab.grid.shape).copy()
    for block in things.blocks:
        part = found[_levels(block, slab)]
        np.maximum(part, _block_share(block, y, x, width), out=part)
    cloth = _cloth_share(slab, things)
    if cloth is not None:
        np.maximum(found, cloth, out=found)
    if things.wires is not None and (share := paint_slab(slab.grid, things.wires)) is not None:
        np.maximum(found, share, out=found)
    return found


def dress(hu: Field, slab: Slab, things: Things) -> None:
    """Put everything into the air around the body; in place."""
    y, x = slab.grid.y[:, None], slab.grid.x[None, :]
    width = float(slab.grid.y[1] - slab.grid.y[0])
    picture = np.full((len(slab.grid.y), len(slab.grid.x)), AIR_HU, np.float32)
    for sheet in things.sheets:
        picture += _sheet_share(sheet, y, x, width) * (sheet["hu"] - picture)
    around = occupancy(-slab.read("body"), slab.width_mm)
    if things.sheets:
        hu += around * np.maximum(picture - hu, 0.0)
    for block in things.blocks:
        levels = _levels(block, slab)
        if levels.start < levels.stop:
            share = _block_share(block, y, x, width) * around[levels]
            hu[levels] += share * np.maximum(block["hu"] - hu[levels], 0.0)
    outside = slab.read("body") > 0.0
    cloth = _cloth_share(slab, things)
    if cloth is not None and things.cloth is not None:
        blend(hu, cloth * outside, things.cloth["hu"])
    if things.wires is not None and (share := paint_slab(slab.grid, things.wires)) is not None:
        blend(hu, share * outside, things.wires_hu)
