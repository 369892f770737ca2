"""What medicine leaves in and on a patient: tubes, catheters, a pacemaker, rods, and the streaks of metal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tf_covid.phantom.anatomy import Anatomy
from tf_covid.phantom.fields import Field
from tf_covid.phantom.scanner import Protocol
from tf_covid.phantom.settings import Draws
from tf_covid.phantom.slab import Slab, blend
from tf_covid.phantom.trees import Tree, paint_slab, together

_METAL_HU = 3500.0


@dataclass(frozen=True)
class Devices:
    """Devices of one patient.

    Args:
        tubes: Tubes and catheters, with `tubes_hu`; None without any.
        metal: Metal parts; None without any.
        centre: (y, x) in mm from which the streaks of the metal radiate.
        star: Amplitudes and phases, (2, K), of the streaks over the angle.
        star_hu: Their strength near the metal.
        reach_mm: Distance over which they fade.
    """

    tubes: Tree | None
    tubes_hu: float
    metal: Tree | None
    centre: tuple[float, float]
    star: np.ndarray
    star_hu: float
    reach_mm: float


def _line(points: list[tuple[float, float, float]], radius: float) -> Tree:
    """A chain of capsules of one radius, in mm."""
    path = np.asarray(points, np.float32)
    count = len(path) - 1
    return Tree(path[:-1], path[1:], np.full(count, radius, np.float32), np.zeros(count, int))


def _tubes(p: Draws, rng: np.random.Generator) -> Tree:
    """One to three of: tracheal tube, gastric tube, central line."""
    carina, y, x = p["carina_mm"], p["carina_y_mm"], p["carina_x_mm"]
    back, k = p["spine_front_mm"], (p["carina_y_mm"] + p["chest_half_depth_mm"]) / 88.0
    shift = float(rng.uniform(-3.0, 3.0))
    tracheal = _line(
        [(-90.0, y - 10.0, 0.5 * x + shift), (carina - 25.0, y - 3.0, x + shift)],
        rng.uniform(1.5, 4.0),
    )
    gastric = _line(
        [
            (-100.0, y + 8.0, 3.0),
            (carina, back - 9.0, 5.0),
            (p["dome_depth_mm"], back - 14.0, 8.0),
            (p["stomach_u_mm"] + 15.0, -5.0, 45.0),
        ],
        rng.uniform(1.2, 2.5),
    )
    central = _line(
        [
            (-60.0, y - 20.0, -60.0),
            (carina - 40.0, y - 28.0 * k, -26.0),
            (carina + 25.0, y - 22.0 * k, -30.0),
        ],
        rng.uniform(0.8, 1.6),
    )
    all_three = [tracheal, gastric, central]
    return together([all_three[n] for n in rng.permutation(3)[: int(rng.integers(1, 4))]])


def _metal(p: Draws, anatomy: Anatomy, rng: np.random.Generator) -> Tree:
    """A pacemaker with its lead, rods beside the spine, or a stray piece on the skin."""
    y, carina, width = p["carina_y_mm"], p["carina_mm"], p["chest_half_width_mm"]
    kind = rng.random()
    if kind < 0.45:
        at = (carina - 35.0, -0.62 * p["chest_half_depth_mm"] - p["muscle_mm"] - 4.0, 0.62 * width)
        box = _line(
            [(at[0] - 14.0, at[1], at[2] - 12.0), (at[0] + 14.0, at[1], at[2] + 12.0)],
            rng.uniform(4.0, 8.0),
        )
        lead = _line(
            [
                at,
                (carina - 45.0, y - 30.0, 10.0),
                (carina + 20.0, y - 24.0, -28.0),
                (carina + 80.0, y - 40.0, 10.0),
            ],
            rng.uniform(0.6, 1.3),
        )
        return together([box, lead])
    if kind < 0.75:
        start, behind = (
            float(rng.uniform(-40.0, 120.0)),
            p["spine_front_mm"] + 2.0 * p["vertebra_mm"],
        )
        stop = start + float(rng.uniform(60.0, 180.0))
        rods = [
            _line([(start, behind, side), (stop, behind, side)], rng.uniform(2.0, 3.5))
            for side in (-14.0, 14.0)
        ]
        return together(rods)
    outline = np.flatnonzero((anatomy.fields["body"] < 0.0).any(axis=(0, 2)))
    skin = float(anatomy.lattice.y[outline[0]]) + float(rng.uniform(-4.0, 8.0))
    u, side = float(rng.uniform(0.0, 200.0)), float(rng.uniform(-80.0, 80.0))
    return _line(
        [(u, skin, side), (u + 5.0, skin, side + rng.uniform(-25.0, 25.0))], rng.uniform(1.5, 4.0)
    )


def draw_devices(protocol: Protocol, anatomy: Anatomy, rng: np.random.Generator) -> Devices:
    """Draw a patient's devices; most have none."""
    p, scan = anatomy.p, protocol.p
    tubes = _tubes(p, rng) if scan["tubes"] else None
    metal = _metal(p, anatomy, rng) if scan["metal"] else None
    middle = np.zeros(3) if metal is None else 0.5 * (metal.start + metal.stop)[0]
    waves = np.stack([rng.normal(0.0, 1.0, 24), rng.uniform(0.0, 2.0 * np.pi, 24)])
    return Devices(
        tubes,
        float(rng.uniform(0.0, 1500.0)),
        metal,
        (float(middle[1]), float(middle[2])),
        waves,
        scan["star_hu"],
        float(rng.uniform(25.0, 110.0)),
    )


def insert(hu: Field, slab: Slab, devices: Devices) -> None:
    """Put tubes and metal into a slab, over everything else, with the metal's streaks; in place."""
    if devices.tubes is not None and (share := paint_slab(slab.grid, devices.tubes)) is not None:
        blend(hu, share, devices.tubes_hu)
    if devices.metal is None or (share := paint_slab(slab.grid, devices.metal)) is None:
        return
    blend(hu, share, _METAL_HU)
    amount = np.minimum(share.sum(axis=(1, 2)) * (slab.grid.x[1] - slab.grid.x[0]) ** 2 / 40.0, 1.0)
    y, x = slab.grid.y[:, None] - devices.centre[0], slab.grid.x[None, :] - devices.centre[1]
    angle, radius = np.arctan2(y, x), np.hypot(y, x)
    # Even multiples: a streak runs through the metal and out on the other side.
    pattern = (
        sum(a * np.cos(2 * n * angle + phase) for n, (a, phase) in enumerate(devices.star.T, 2))
        / 3.5
    )
    hu += amount[:, None, None] * (
        devices.star_hu * pattern * np.exp(-radius / devices.reach_mm)
    ).astype(np.float32)
