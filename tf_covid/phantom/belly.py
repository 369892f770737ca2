"""What lies under the diaphragm: liver, spleen, kidneys, glands, stomach and bowel, as distance fields in mm."""

from __future__ import annotations

import numpy as np

from tf_covid.phantom.fields import Field, Points, ellipsoid, meet, rotated, tube
from tf_covid.phantom.settings import Draws

Place = tuple[float, float, float]

#: How far beyond a tube of the belly its distance is known.
REACH_MM = 16.0


def draw_belly(torso: Draws, rng: np.random.Generator) -> Draws:
    """Sizes and places of everything in one belly; mm."""

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    p: Draws = {}
    dome = torso["dome_depth_mm"]
    p["liver_floor_mm"] = dome + between(80.0, 170.0)
    p["spleen_u_mm"] = dome + between(25.0, 75.0)
    p["stomach_mm"] = between(20.0, 42.0) * (1.0 + torso["large_stomach"] * between(0.2, 0.8))
    p["stomach_u_mm"] = dome + 0.75 * p["stomach_mm"] + between(-6.0, 30.0)
    p["stomach_level_mm"] = between(-35.0, 25.0)
    p["stomach_wall_mm"] = between(1.6, 4.0)
    p["subphrenic_fat_mm"] = between(0.3, 1.6) + between(0.0, 0.2) * torso["fat_mm"]
    p["bowel_gap_mm"] = between(1.2, 3.2)
    p["bowel_wall_mm"] = between(1.4, 2.6)
    p["haustra_mm"] = between(20.0, 34.0)
    p["kidney_u_mm"] = dome + between(72.0, 125.0)
    p["kidney_mm"] = between(46.0, 60.0)
    p["kidney_x_mm"] = between(46.0, 62.0)
    p["bowel_seed"] = float(rng.integers(2**31))
    return p


def organs(p: Draws, q: Points, wall: Field, diaphragm: Field) -> dict[str, Field]:
    """Distances to the organs that are no bowel, all under the diaphragm and inside the hollow."""
    inside = meet(wall + 3.0, -diaphragm + 2.5 + p["subphrenic_fat_mm"], 8.0)
    dome = p["dome_depth_mm"]
    right = meet(
        q.x - p["liver_reach_mm"] + 0.5 * (q.u - dome) + 0.4 * (q.y + 10.0),
        q.u - p["liver_floor_mm"] - 0.5 * q.x * 0.8,
        25.0,
    )
    liver = meet(inside, right, 20.0)
    s = p["spleen_scale"]
    turned = rotated(
        q,
        (p["spleen_u_mm"], 0.48 * p["chest_half_depth_mm"], 0.72 * p["chest_half_width_mm"]),
        0.5,
        0.2,
    )
    spleen = meet(inside, ellipsoid(turned, (0.0, 0.0, 0.0), (55.0 * s, 42.0 * s, 30.0 * s)), 4.0)
    size, u = p["stomach_mm"], p["stomach_u_mm"]
    # The fundus lies behind, right under the left dome; body and antrum run forwards to the middle.
    bag = tube(
        q,
        [(u, 12.0, 58.0), (u + 45.0, -24.0, 56.0), (u + 85.0, -44.0, 5.0)],
        [size, size * 0.85, size * 0.6],
    )
    stomach = meet(meet(bag, inside, 6.0), -np.minimum(liver, spleen) + 1.5, 6.0)
    down = 1.0 - 2.0 * p["prone"]
    gas = np.maximum(stomach + p["stomach_wall_mm"], (q.y - p["stomach_level_mm"]) * down)
    return {
        "liver": liver,
        "spleen": spleen,
        "stomach": stomach,
        "stomach_gas": gas,
    } | _behind(p, q, inside, np.minimum(np.minimum(liver, spleen), stomach))


def _behind(p: Draws, q: Points, inside: Field, others: Field) -> dict[str, Field]:
    """Kidneys with their sinus, adrenals and pancreas ("glands"), crura and psoas ("straps")."""
    mirrored = Points(q.u + 12.0 * (q.x < 0) * -1.0, q.y, np.abs(q.x))
    depth, back, size = p["kidney_u_mm"], p["spine_front_mm"], p["kidney_mm"]
    turned = rotated(mirrored, (depth, back + 14.0, p["kidney_x_mm"]), 0.6, 0.15)
    kidney = ellipsoid(turned, (0.0, 0.0, 0.0), (size, 0.56 * size, 0.48 * size))
    sinus = ellipsoid(turned, (0.0, -6.0, -10.0), (0.55 * size, 0.22 * size, 0.26 * size))
    kidney = np.maximum(np.maximum(kidney, inside), 2.0 - others)
    top = depth - size
    limb = (top - 4.0, back - 4.0, p["kidney_x_mm"] - 20.0)
    adrenals = np.minimum(
        tube(mirrored, [limb, (top + 16.0, back + 10.0, limb[2] - 3.0)], [4.0, 3.0], REACH_MM),
        tube(mirrored, [limb, (top + 18.0, back + 6.0, limb[2] + 9.0)], [4.0, 2.8], REACH_MM),
    )
    dome = p["dome_depth_mm"]
    pancreas = tube(
        q,
        [
            (dome + 85.0, back - 26.0, 66.0),
            (dome + 98.0, back - 36.0, 8.0),
            (dome + 125.0, back - 30.0, -36.0),
        ],
        [10.0, 8.0, 14.0],
        REACH_MM,
    )
    glands = np.maximum(np.maximum(np.minimum(adrenals, pancreas), inside), 1.5 - others)
    crura = tube(
        mirrored,
        [
            (dome + 8.0, back - 16.0, 12.0),
            (dome + 60.0, back - 2.0, 19.0),
            (dome + 165.0, back + 8.0, 15.0),
        ],
        [5.0, 6.5, 3.5],
        REACH_MM,
    )
    psoas = tube(
        mirrored,
        [
            (dome + 100.0, back + 16.0, 24.0),
            (dome + 190.0, back + 14.0, 36.0),
            (dome + 400.0, back - 14.0, 56.0),
        ],
        [7.0, 17.0, 24.0],
        REACH_MM,
    )
    straps = np.maximum(np.minimum(crura, psoas), inside)
    return {
        "kidney": kidney,
        "kidney_sinus": np.maximum(sinus, kidney + 5.0),
        "glands": np.maximum(glands, 1.0 - kidney),
        "straps": np.maximum(straps, 0.5 - kidney),
    }


def _colon(p: Draws, rng: np.random.Generator) -> list[tuple[list[Place], list[float], float]]:
    """The colon's pieces from left to right: path, radii, and the level of its gas as a share of the radius."""
    dome, width, depth = p["dome_depth_mm"], p["chest_half_width_mm"], p["chest_half_depth_mm"]

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    # The right flexure lies under the liver's edge; in a few it slips in front of its dome.
    high, floor = p["chilaiditi"], p["liver_floor_mm"] - 0.24 * width
    left = (dome + between(14.0, 48.0), between(-40.0, 35.0), between(0.46, 0.72) * width)
    right = (
        (floor + between(-2.0, 26.0)) * (1.0 - high) + (dome + 24.0) * high,
        between(-55.0, 5.0),
        -between(0.5, 0.7) * width,
    )
    middle = (dome + between(85.0, 170.0), -between(0.5, 0.75) * depth, between(-0.1, 0.1) * width)
    quarter = (dome + between(45.0, 100.0), -between(0.45, 0.7) * depth, 0.33 * width)
    knots = [
        (dome + 420.0, between(10.0, 35.0), 0.7 * width),
        (dome + 240.0, between(10.0, 40.0), 0.74 * width),
        (dome + between(80.0, 130.0), between(5.0, 40.0), between(0.66, 0.76) * width),
        left,
        quarter,
        middle,
        (right[0] + between(-12.0, 25.0), -between(0.4, 0.65) * depth, -0.35 * width),
        right,
        (right[0] + between(60.0, 100.0), between(-10.0, 25.0), -between(0.62, 0.74) * width),
        (dome + 360.0, between(-10.0, 25.0), -0.68 * width),
    ]
    sizes = [between(13.0, 25.0) * p["bowel_scale"] for _ in knots]
    levels = [between(-1.6, 0.2) for _ in knots]
    for number in (2, 3, 4, 5, 6, 7):  # gas rises into the flexures and what lies in front
        levels[number] = between(-1.3, 1.1)
    return [
        ([knots[n], knots[n + 1]], [sizes[n], sizes[n + 1]], levels[n])
        for n in range(len(knots) - 1)
    ]


def _loops(p: Draws, rng: np.random.Generator) -> list[tuple[list[Place], list[float], float]]:
    """Loops of small bowel, most of them without gas: path, radii, level of the gas."""
    dome, width, depth = p["dome_depth_mm"], p["chest_half_width_mm"], p["chest_half_depth_mm"]
    found = []
    for number in range(30):
        deep = rng.uniform(60.0, 190.0) if number < 11 else rng.uniform(140.0, 460.0)
        start = (
            dome + deep,
            rng.uniform(-0.7, 0.05) * depth,
            rng.uniform(-0.6 if deep > 120.0 else -0.2, 0.68) * width,
        )
        path = [start]
        for _ in range(2):
            u, y, x = path[-1]
            path.append(
                (
                    u + rng.uniform(-25.0, 35.0),
                    y + rng.uniform(-25.0, 25.0),
                    x + rng.uniform(-55.0, 45.0),
                )
            )
        size = rng.uniform(9.0, 17.0) * p["bowel_scale"]
        level = rng.uniform(-0.6, 0.9) if rng.random() < 0.3 else -9.0
        found.append((path, [size, size * 0.8, size], level))
    return found


def bowel(p: Draws, q: Points, wall: Field, diaphragm: Field) -> dict[str, Field]:
    """Distances to all bowel (wall included), to the colon, and to the gas in the upper part of both.

    The bowel's wall and the diaphragm together are 3–6 mm, so that its gas comes that near to lung.
    """
    rng = np.random.default_rng(int(p["bowel_seed"]))
    inside = np.maximum(wall + 2.5, -diaphragm + p["bowel_gap_mm"])
    wave = 2.0 * np.pi / p["haustra_mm"]
    folds = 1.7 * (np.cos(wave * q.u) + np.cos(wave * q.x) + np.cos(wave * q.y))
    down = 1.0 - 2.0 * p["prone"]
    deepest = float(q.u.max()) + 40.0
    shapes = {}
    gas = np.full(inside.shape, REACH_MM, np.float32)
    for name, parts in (("colon", _colon(p, rng)), ("small", _loops(p, rng))):
        whole = np.full(inside.shape, REACH_MM, np.float32)
        for path, radii, level in parts:
            if min(place[0] for place in path) > deepest:
                continue
            loop = tube(q, path, radii, REACH_MM)
            if name == "colon":
                loop += folds
            np.minimum(whole, loop, out=whole)
            if level > -2.0:
                height = path[0][1] * down + level * radii[0]
                # The level follows a sloping piece, so that its gas is not cut off at one end.
                slope = (path[-1][1] - path[0][1]) / max(abs(path[-1][0] - path[0][0]), 40.0)
                line = height + 0.5 * slope * down * (q.u - path[0][0])
                np.minimum(gas, np.maximum(loop, q.y * down - line), out=gas)
        shapes[name] = whole
    both = np.maximum(np.minimum(shapes["colon"], shapes["small"]), inside)
    inner = p["bowel_wall_mm"]
    return {
        "bowel": both,
        "colon": np.maximum(shapes["colon"], inside),
        "bowel_gas": np.maximum(gas, both + inner),
    }
