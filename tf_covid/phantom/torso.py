"""The chest's hollow and what fills it: rib cage, diaphragm, mediastinum, airways, and the two lungs in five lobes."""

from __future__ import annotations

import numpy as np

from tf_covid.phantom.fields import Field, Points, ellipsoid, join, meet, rotated, smooth_step, tube
from tf_covid.phantom.settings import Draws

#: The distance to what is not there.
FAR_MM = 99.0


def radial(
    dy: Field, dx: Field, half_depth: Field, half_width: Field, roundness: float | Field
) -> Field:
    """Distance, along the ray from the centre, to a superellipse in each axial slice."""
    level = (np.abs(dx) / half_width) ** roundness + (np.abs(dy) / half_depth) ** roundness + 1e-6
    return np.sqrt(dx * dx + dy * dy + 1e-3) * (1.0 - level ** (-1.0 / roundness))


def chest_centre(p: Draws, q: Points) -> Field:
    """Where the middle of the chest's hollow lies in y at each height: the anterior wall recedes towards the neck."""
    rise = 1.0 - smooth_step(q.u, -60.0, 0.75 * p["dome_depth_mm"])
    bend = (np.clip(q.u, -80.0, 320.0) - 90.0) / 120.0  # neck and loins go on straight
    return p["anterior_slope_mm"] * rise + p["kyphosis_mm"] * bend**2 * 0.5


def cage(p: Draws, q: Points) -> Field:
    """Distance to the inner surface of the rib cage."""
    grow = smooth_step(q.u, -70.0, 0.6 * p["dome_depth_mm"])
    half_width = p["chest_half_width_mm"] * (0.58 + 0.42 * grow)
    half_depth = p["chest_half_depth_mm"] * (
        0.55 + 0.45 * smooth_step(q.u, -60.0, 0.75 * p["dome_depth_mm"])
    )
    dy = q.y - chest_centre(p, q)
    back = smooth_step(dy, -0.4 * p["chest_half_depth_mm"], 0.4 * p["chest_half_depth_mm"])
    # Each half bulges backwards beside the spine, while the front is narrower than an ellipse with that back.
    bulge = (
        p["gutter_mm"]
        * back
        * np.exp(-(((np.abs(q.x) - 0.5 * half_width) / (0.33 * half_width)) ** 2))
    )
    roundness = p["front_roundness"] + (p["chest_roundness"] - p["front_roundness"]) * back
    return radial(dy - bulge, q.x, half_depth, half_width, roundness)


def spine_y(p: Draws, q: Points) -> Field:
    """y of the vertebral bodies' centres at each height."""
    half_depth = p["chest_half_depth_mm"] * (
        0.55 + 0.45 * smooth_step(q.u, -60.0, 0.75 * p["dome_depth_mm"])
    )
    return chest_centre(p, q) + half_depth - p["spine_inset_mm"]


def diaphragm(p: Draws, q: Points, wall: Field) -> Field:
    """Signed distance to the diaphragm: negative above it. Steep beside the ribs."""
    # Behind, the diaphragm falls slowly: the recess there is a wide crescent, at the sides a thin sliver.
    behind = smooth_step(
        q.y - chest_centre(p, q), -0.1 * p["chest_half_depth_mm"], 0.9 * p["chest_half_depth_mm"]
    )
    reach = p["dome_reach_mm"] * (1.0 + p["recess_reach_back"] * behind)
    inside = np.clip(-wall / reach, 0.0, 1.0)
    rise = 1.0 - (1.0 - inside) ** p["dome_steepness"]
    side = smooth_step(q.x, -35.0, 40.0)
    crest = p["dome_depth_mm"] + p["dome_difference_mm"] * side
    crest = crest - p["high_right_mm"] * (1.0 - side) - p["high_left_mm"] * side
    ahead = np.clip(0.5 - 0.5 * (q.y - chest_centre(p, q)) / p["chest_half_depth_mm"], 0.0, 1.0)
    edge = p["dome_depth_mm"] + p["recess_depth_mm"] * (1.0 - p["recess_tilt"] * ahead)
    seat = np.exp(-(((q.x - 12.0) / 42.0) ** 2)) * smooth_step(
        chest_centre(p, q) + 25.0 - q.y, 0.0, 50.0
    )
    level = (
        edge + (crest - edge) * rise + p["heart_seat_mm"] * seat
    )  # the heart presses the middle down
    return (q.u - level) / np.sqrt(
        1.0 + (0.9 * (1.0 - rise) * p["recess_depth_mm"] / reach * 2.0) ** 2
    )


def airway_paths(p: Draws) -> list[tuple[list[tuple[float, float, float]], list[float]]]:
    """Trachea and main bronchi: (u, y, x) paths and lumen radii, in mm."""
    carina, y, x = p["carina_mm"], p["carina_y_mm"], p["carina_x_mm"]
    r = p["trachea_mm"]
    top = (-90.0, y - 12.0 + p["anterior_slope_mm"] * 0.3, 0.5 * x)
    return [
        ([top, (0.5 * carina, y - 5.0, 0.8 * x), (carina, y, x)], [r, r, 1.05 * r]),
        (
            [
                (carina - 3.0, y, x),
                (carina + 22.0, y + 4.0, x - 24.0),
                (carina + 34.0, y + 6.0, x - 40.0),
            ],
            [0.85 * r, 0.72 * r, 0.6 * r],
        ),
        (
            [
                (carina - 3.0, y, x),
                (carina + 25.0, y + 6.0, x + 30.0),
                (carina + 42.0, y + 9.0, x + 48.0),
            ],
            [0.8 * r, 0.62 * r, 0.52 * r],
        ),
    ]


def hila(p: Draws) -> dict[str, tuple[float, float, float]]:
    """Where the vessels and bronchi enter each lung: (u, y, x) in mm."""
    carina, y, x = p["carina_mm"], p["carina_y_mm"], p["carina_x_mm"]
    return {"right": (carina + 34.0, y + 2.0, x - 42.0), "left": (carina + 34.0, y + 4.0, x + 46.0)}


def airways(p: Draws, q: Points) -> Field:
    """Distance to the lumen of trachea and main bronchi."""
    lumen: Field | None = None
    for path, radii in airway_paths(p):
        branch = tube(q, path, radii)
        lumen = branch if lumen is None else join(lumen, branch, 3.0)
    assert lumen is not None
    return lumen


def _vessel_paths(p: Draws) -> list[tuple[list[tuple[float, float, float]], list[float]]]:
    """Great vessels: (u, y, x) paths, and radii before scaling, in mm."""
    c, y, back, dome = p["carina_mm"], p["carina_y_mm"], p["spine_front_mm"], p["dome_depth_mm"]
    k = (
        y + p["chest_half_depth_mm"]
    ) / 88.0  # room between carina and sternum: the vessels in front share it
    confluence = (c - 40.0, y - 28.0 * k, -26.0)
    return [
        # aorta
        (
            [
                (c + 55, y - 34 * k, 2.0),
                (c + 10, y - 38 * k, -16.0),
                (c - 22, y - 28 * k, -10.0),
                (c - 30, y - 8, 8.0),
                (c - 22, back - 2, 22.0),
                (c + 10, back + 4, 24.0),
                (c + 80, back, 18.0),
                (dome + 20, back - 8, 6.0),
                (dome + 300, back - 8, 3.0),
            ],
            [15, 15, 14, 13, 12.5, 12, 11.5, 10.5, 8.5],
        ),
        # its branches: to the right arm and head, the head, the left arm
        ([(c - 32, y - 20 * k, -4.0), (-70.0, y - 14 * k, -26.0)], [6, 4.5]),
        ([(c - 32, y - 12, 6.0), (-70.0, y - 10, 24.0)], [4.5, 3.5]),
        ([(c - 30, y, 14.0), (0.0, y + 4, 26.0), (-25.0, y, 60.0)], [5, 4.5, 4]),
        # superior vena cava and left brachiocephalic vein
        ([(-40.0, y - 24 * k, -36.0), confluence, (c + 60, y - 22 * k, -30.0)], [6, 9, 10]),
        ([confluence, (c - 52, y - 42 * k, 8.0), (-30.0, y - 26 * k, 40.0)], [7, 6.5, 5]),
        # pulmonary trunk into the left artery, and the right artery
        (
            [
                (c + 50, y - 48 * k, 22.0),
                (c + 18, y - 36 * k, 24.0),
                (c + 12, y - 14 * k, 34.0),
                (c + 16, y, 46.0),
            ],
            [14, 13.5, 11, 9],
        ),
        (
            [(c + 18, y - 30 * k, 18.0), (c + 22, y - 16 * k, -12.0), (c + 28, y - 6, -42.0)],
            [12, 10.5, 8.5],
        ),
        # inferior vena cava
        (
            [(c + 90, y - 8, -22.0), (dome + 30, y - 2, -18.0), (dome + 200, back - 6, -16.0)],
            [11, 11, 11],
        ),
    ]


def vessels(p: Draws, q: Points) -> Field:
    """Distance to the great vessels' blood."""
    scale = p["vessel_scale"]
    blood: Field | None = None
    for path, radii in _vessel_paths(p):
        vessel = tube(q, path, [scale * radius for radius in radii])
        blood = vessel if blood is None else np.minimum(blood, vessel)
    assert blood is not None
    return blood


def heart(p: Draws, q: Points) -> Field:
    """Distance to the heart's outer surface: two ventricles, right and left atrium, blended."""
    c, y, s = p["carina_mm"], p["carina_y_mm"], p["heart_scale"]
    base = p["dome_depth_mm"] + 4.0 + p["heart_seat_mm"]
    middle = 0.5 * (c + 48.0 + base)
    tall = max(0.5 * (base - c - 40.0), 24.0)
    front = -p["chest_half_depth_mm"] + p["heart_gap_mm"]
    deep = float(np.clip(0.52 * (y + 8.0 - front), 32.0, 58.0)) * s
    ahead = front + deep
    turned = rotated(q, (middle + 8.0, ahead, 28.0), p["heart_turn"], p["heart_lean"])
    shape = ellipsoid(turned, (0.0, 0.0, 0.0), (tall * 1.02, deep, 52.0 * s))
    shape = join(
        shape,
        ellipsoid(q, (middle + 2.0, ahead + 3.0, -18.0), (tall * 0.85, 0.85 * deep, 32.0 * s)),
        14.0,
    )
    return join(shape, ellipsoid(q, (c + 58.0, y - 2.0, 4.0), (28.0, 22.0 * s, 38.0 * s)), 12.0)


def mediastinum(p: Draws, q: Points, parts: dict[str, Field]) -> Field:
    """Distance to everything between the lungs: the organs in `parts` wrapped in fat, and the web that joins them."""
    fat = p["mediastinal_fat_mm"]
    shape = join(parts["blood"] - 1.0 - 0.25 * fat, parts["heart"] - 1.5 - 0.6 * fat, 10.0)
    shape = join(shape, parts["airway"] - 2.5, 8.0)
    shape = join(shape, parts["oesophagus"] - 2.0, 8.0)
    shape = join(shape, parts["vertebra"] - 2.0, 6.0)
    lean = p["junction_x_mm"] + 0.12 * (parts["centre"] - q.y)
    front = smooth_step(parts["centre"] - q.y, 0.0, p["chest_half_depth_mm"])
    thickness = 7.0 + fat * 0.5 + (p["junction_mm"] - 7.0) * front * smooth_step(q.u, 0.0, 60.0)
    top = 18.0 * (1.0 - smooth_step(q.u, -10.0, 0.75 * p["carina_mm"]))
    shape = join(shape, np.abs(q.x - lean) - thickness - top, 12.0)
    gutter = np.abs(q.x) - 17.0 - 0.5 * np.maximum(q.y - parts["spine_y"] - 2.0, 0.0)
    return join(shape, np.maximum(gutter, parts["spine_y"] - 8.0 - q.y), 8.0)


def lungs(p: Draws, q: Points, parts: dict[str, Field]) -> Field:
    """Distance to the lungs (both): the hollow, below each apex, above the diaphragm, beside the mediastinum."""
    shape = parts["wall"] + p["pleura_mm"]
    offset = 0.5 * p["chest_half_width_mm"]
    cap_height = p["cap_height_mm"]
    up = np.maximum(cap_height + p["apex_shift_mm"] * np.sign(q.x) - q.u, 0.0) / cap_height
    across = (np.abs(q.x) - offset * (1.0 - 0.25 * up)) / (0.6 * p["chest_half_width_mm"])
    along = (q.y - parts["centre"] - 4.0 - 12.0 * up) / (1.1 * p["chest_half_depth_mm"])
    radius = np.sqrt(up ** p["apex_sharpness"] + across**2 + along**2 + 1e-6)
    cap = (radius - 1.0) * 0.55 * p["chest_half_width_mm"]
    shape = meet(shape, np.where(up > 0, cap, np.minimum(cap, -6.0)), 8.0)
    shape = meet(shape, parts["diaphragm"], p["recess_round_mm"])
    return meet(shape, -parts["mediastinum"], 5.0)


def aerated(
    p: Draws, q: Points, pleura: Field, centre: Field, cell_ml: float
) -> tuple[Field, Field]:
    """Distance to the lungs proper, `pleura` without the fluid at its back and base; and to that fluid.

    The fluid's own border with the chest wall is `pleura`; without any the distance is `FAR_MM`.
    Its level is where the drawn volume lies below it, counted in cells of `cell_ml`; at most half
    of what is seen of a pleural space fills.
    """
    down = 1.0 - 2.0 * p["prone"]
    shape, nearest = pleura, np.full(pleura.shape, FAR_MM, np.float32)
    for side, sign in (("right", -1.0), ("left", 1.0)):
        if p[f"effusion_{side}"]:
            tilt = p[f"effusion_{side}_tilt"]
            deep = np.cos(tilt) * down * (q.y - centre) + np.sin(tilt) * q.u
            here = sign * q.x > 0.0
            found = deep[here & (pleura < 0.0)]
            if not len(found):
                continue
            count = int(min(p[f"effusion_{side}_ml"] / cell_ml, 0.5 * len(found)))
            level = float(np.partition(found, len(found) - 1 - count)[len(found) - 1 - count])
            fluid = level - deep
            shape = np.where(here, meet(shape, -fluid, 8.0), shape)
            nearest = np.where(here, np.minimum(fluid, FAR_MM), nearest)
    return shape, nearest


def fissures(p: Draws, q: Points, centre: Field) -> dict[str, Field]:
    """Distance to the fissures: negative above and in front of the oblique one, above the horizontal one."""
    y = q.y - centre
    bend = 8.0 * np.sin(y / 45.0 + p["fissure_phase"]) + 0.0006 * (np.abs(q.x) - 70.0) ** 2
    found = {}
    for side in ("right", "left"):
        slope = p[f"{side}_fissure_slope"]
        level = p[f"{side}_fissure_mm"] - slope * y + bend
        found[side] = (q.u - level) / np.sqrt(1.0 + slope**2)
    across = (
        p["horizontal_fissure_mm"] + 0.15 * (y + 40.0) + 0.05 * (np.abs(q.x) - 60.0) + 0.3 * bend
    )
    found["horizontal"] = q.u - across
    return found


def draw_torso(body: Draws, rng: np.random.Generator) -> Draws:
    """Complete the drawn body with the quantities that depend on each other; mm unless the name says otherwise."""

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    p = dict(body)
    p["chest_half_depth_mm"] = p["chest_half_width_mm"] * p["chest_depth_to_width"]
    dome, depth = p["dome_depth_mm"], p["chest_half_depth_mm"]
    p["anterior_slope_mm"] = between(4.0, 22.0)
    p["spine_inset_mm"] = between(42.0, 54.0)
    p["vertebra_mm"] = between(14.5, 19.0)
    p["carina_mm"] = dome * between(0.36, 0.46)
    front = depth - p["spine_inset_mm"] - p["vertebra_mm"] * 0.85
    p["spine_front_mm"] = front
    p["trachea_mm"] = between(6.5, 10.5)
    p["carina_y_mm"] = front - between(16.0, 24.0)
    p["carina_x_mm"] = between(-6.0, 5.0)
    p["heart_turn"] = between(-0.2, 0.5)
    p["heart_lean"] = between(-0.2, 0.6)
    p["heart_gap_mm"] = between(3.0, 20.0)
    p["junction_mm"] = between(1.2, 6.0)
    p["junction_x_mm"] = between(-4.0, 8.0)
    p["pleura_mm"] = between(1.0, 3.0)
    p["apex_sharpness"] = between(0.7, 1.4)
    p["front_roundness"] = between(1.75, 2.3)
    p["gutter_mm"] = between(0.0, 15.0)
    p["heart_seat_mm"] = between(4.0, 26.0)
    p["cap_height_mm"] = between(0.45, 0.68) * dome
    p["apex_shift_mm"] = between(-7.0, 7.0)
    p["recess_round_mm"] = between(1.0, 5.0)
    p["recess_tilt"] = between(0.3, 1.1)
    p["dome_reach_mm"] = between(0.6, 0.95) * depth
    p["fissure_phase"] = between(0.0, 6.3)
    for side in ("right", "left"):
        slope = between(0.75, 1.25)
        p[f"{side}_fissure_slope"] = slope
        p[f"{side}_fissure_mm"] = dome * between(0.56, 0.68)
    for side in ("right", "left"):
        p[f"effusion_{side}_ml"] = body["effusion_ml"] * between(0.4, 1.0)
        # Much of it lies at the back of who lies; some stands under the lung.
        p[f"effusion_{side}_tilt"] = between(0.1, 0.9)
    high = p["high_dome"] * p["high_dome_mm"]
    right = float(rng.random() < 0.6)
    p["high_right_mm"], p["high_left_mm"] = high * right, high * (1.0 - right)
    p["horizontal_fissure_mm"] = dome * between(0.5, 0.6)
    return p
