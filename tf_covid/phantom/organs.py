"""What surrounds the lungs: skin, fat, muscle, bones, arms, neck and head."""

from __future__ import annotations

import numpy as np

from tf_covid.phantom.fields import Field, Points, ellipsoid, join, smooth_step, tube
from tf_covid.phantom.settings import Draws

#: How far from an arm its distance is known.
ARM_REACH_MM = 90.0


def draw_organs(torso: Draws, rng: np.random.Generator) -> Draws:
    """Complete the drawn torso with the sizes and places of everything outside the lungs; mm."""

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    p = dict(torso)
    width = p["chest_half_width_mm"]
    p["fat_mm"] = torso["fat_mm"] ** 2 / 45.0 + 2.0  # most people are not obese
    p["fat_front"], p["fat_side"], p["fat_back"] = (
        between(0.5, 1.5),
        between(0.4, 1.3),
        between(0.4, 1.1),
    )
    p["belly"] = between(1.0, 2.2)
    p["breast_mm"] = between(18.0, 75.0) if p["female"] else between(0.0, 10.0)
    p["breast_x_mm"], p["breast_u_mm"] = (
        between(0.5, 0.68) * width,
        p["dome_depth_mm"] * between(0.5, 0.85),
    )
    p["shoulder_mm"] = width + between(35.0, 75.0)
    p["shoulder_u_mm"] = between(-5.0, 35.0) - (1.0 - p["arms_down"]) * between(20.0, 60.0)
    p["neck_mm"] = between(50.0, 68.0)
    p["rib_step_mm"], p["rib_phase"] = between(23.0, 31.0), between(0.0, 1.0)
    p["rib_height_mm"], p["rib_fall_mm"] = between(10.0, 14.5), between(80.0, 170.0)
    p["rib_thick_mm"] = between(6.5, 9.5)
    p["arm_mm"], p["arm_gap_mm"] = between(36.0, 52.0), between(2.0, 30.0)
    p["head_nod_mm"] = between(-25.0, 35.0)
    return p


def muscle_thickness(p: Draws, q: Points, centre: Field) -> Field:
    """Thickness in mm of bone and muscle outside the hollow: thick beside the spine, the shoulders and the chest."""
    turn = np.arctan2(q.y - centre, np.abs(q.x) + 1e-3)  # −π/2 front, 0 side, π/2 back
    height = smooth_step(q.u, 1.1 * p["dome_depth_mm"], 0.1 * p["dome_depth_mm"])
    base = p["muscle_mm"] + 12.0 * np.exp(-(((turn - 1.05) / 0.35) ** 2))
    base += height * (
        9.0 * np.exp(-(((turn + 0.75) / 0.4) ** 2)) + 14.0 * np.exp(-(((turn - 0.35) / 0.5) ** 2))
    )
    return base


def fat_thickness(p: Draws, q: Points, centre: Field) -> Field:
    """Thickness in mm of the fat under the skin."""
    turn = np.arctan2(q.y - centre, np.abs(q.x) + 1e-3)
    share = p["fat_side"] + (p["fat_front"] - p["fat_side"]) * smooth_step(-turn, 0.2, 1.2)
    share = share + (p["fat_back"] - p["fat_side"]) * smooth_step(turn, 0.2, 1.2)
    share = share * (0.25 + 0.75 * smooth_step(q.u, -130.0, -70.0))  # little on neck and head
    return (
        p["fat_mm"]
        * share
        * (1.0 + (p["belly"] - 1.0) * smooth_step(q.u, 80.0, 1.3 * p["dome_depth_mm"]))
    )


def shoulders(p: Draws, q: Points) -> Field:
    """Distance to the muscle of shoulders and neck."""
    middle = p["carina_y_mm"] + 8.0
    u = p["shoulder_u_mm"]
    girdle = tube(
        q,
        [
            (u, middle + 8.0, -p["shoulder_mm"]),
            (u - 25.0, middle, -40.0),
            (u - 25.0, middle, 40.0),
            (u, middle + 8.0, p["shoulder_mm"]),
        ],
        [46.0, 52.0, 52.0, 46.0],
        None,
    )
    return join(
        girdle,
        tube(q, [(-190.0, middle - 14.0, 0.0), (-20.0, middle, 0.0)], p["neck_mm"], None),
        30.0,
    )


def breasts(p: Draws, q: Points, centre: Field) -> Field:
    """Extra thickness in mm of the fat over the chest's front: two breasts, or little where there are none."""
    size = p["breast_mm"]
    reach = 26.0 + 0.75 * size
    away = ((q.u - p["breast_u_mm"]) / (1.15 * reach)) ** 2 + (
        (np.abs(q.x) - p["breast_x_mm"]) / reach
    ) ** 2
    return (
        size * np.exp(-(away**1.6)) * smooth_step(centre - q.y, 0.0, 0.7 * p["chest_half_depth_mm"])
    )


def arms(p: Draws, q: Points) -> Field:
    """Distance to both arms, beside the chest or above the head, cut off at `ARM_REACH_MM`.

    The humerus lies on the axis of an arm that hangs down, so its distance is this plus `arm_mm`.
    """
    y, shoulder = p["carina_y_mm"] + 10.0, p["shoulder_mm"]
    mirrored = Points(q.u, q.y, np.abs(q.x))
    upper = (p["shoulder_u_mm"], y, shoulder)
    if not p["arms_down"]:
        radius = p["arm_mm"]
        path = [upper, (-150.0, y - 14.0, shoulder - 8.0), (-330.0, y - 4.0, 0.6 * shoulder)]
        return tube(mirrored, path, [44.0, radius, 0.85 * radius], ARM_REACH_MM)
    x = (
        p["chest_half_width_mm"]
        + p["muscle_mm"]
        + 12.0
        + p["fat_mm"] * p["fat_side"]
        + p["arm_gap_mm"]
        + p["arm_mm"]
    )
    path = [upper, (120.0, y + 12.0, x), (520.0, y - 10.0, x + 15.0), (760.0, y - 20.0, x + 10.0)]
    radii = [44.0, p["arm_mm"], p["arm_mm"], 0.7 * p["arm_mm"]]
    return tube(mirrored, path, radii, ARM_REACH_MM)


def head(p: Draws, q: Points) -> dict[str, Field]:
    """Distances to the head's outer surface, its skull and its air: pharynx, mouth and sinuses."""
    y = p["carina_y_mm"] - 30.0 + p["head_nod_mm"]
    whole = join(
        ellipsoid(q, (-245.0, y, 0.0), (92.0, 98.0, 76.0)),
        ellipsoid(q, (-175.0, y - 45.0, 0.0), (58.0, 42.0, 54.0)),
        25.0,
    )
    skull = np.abs(whole + 9.0) - 2.6
    skull = np.where(q.u > -185.0 + 0.5 * (q.y - y), np.maximum(skull, q.y - y + 20.0), skull)
    air = tube(
        q,
        [(-88.0, p["carina_y_mm"] - 12.0, 0.0), (-165.0, y - 8.0, 0.0), (-192.0, y - 50.0, 0.0)],
        [8.0, 9.0, 12.0],
    )
    return {"head": whole, "skull": skull, "throat": air}


def vertebrae(p: Draws, q: Points, spine_y: Field) -> dict[str, Field]:
    """Distances to the vertebral column: its outer surface, and the canal inside the arch."""
    r = p["vertebra_mm"]
    dy = q.y - spine_y
    waist = 1.5 * np.cos(q.u * (2 * np.pi / p["rib_step_mm"]))
    body = np.sqrt((q.x / 1.12) ** 2 + dy**2) - r + waist
    back = dy - r - 9.0
    canal = np.sqrt(q.x**2 + back**2 * 1.2) - 9.0
    arch = np.sqrt(q.x**2 + (back * 0.9) ** 2) - 15.0
    process = np.maximum(np.abs(q.x) - 4.0 - waist, np.abs(back - 20.0) - 16.0)
    wings = np.maximum(np.abs(back + 1.0 - 0.25 * np.abs(q.x)) - 4.5 + waist, np.abs(q.x) - 32.0)
    column = join(join(body, arch, 4.0), np.minimum(process, wings - 2.5 * (waist < -0.3)), 3.0)
    return {"column": np.maximum(column, -canal), "body": body, "canal": canal}


def bones(p: Draws, q: Points, wall: Field, centre: Field) -> Field:
    """Distance to scapulae, sternum, clavicles and humeral heads, in the places where the ribs leave room."""
    dy = q.y - centre
    angle = np.arctan2(dy, np.abs(q.x) + 1e-3)
    plate = (
        np.abs(wall - 19.0 - 5.0 * np.sin(3.0 * angle))
        - 2.2
        - 4.0 * smooth_step(0.45 - angle, 0.0, 0.5)
    )
    reach = np.sqrt(((q.u - 62.0) / 75.0) ** 2 + ((angle - 0.5) / 0.55) ** 2) - 1.0
    scapula = np.maximum(plate, reach * 50.0)
    front = np.abs(q.x) - 15.0 - 6.0 * smooth_step(-q.u, -60.0, 0.0)
    height = np.abs(q.u - 0.42 * p["dome_depth_mm"]) - 0.36 * p["dome_depth_mm"]
    sternum = np.maximum(np.maximum(np.abs(wall - 8.0) - 5.5, front), np.maximum(height, dy))
    head = (p["shoulder_u_mm"] + 2.0, p["carina_y_mm"] + 12.0, p["shoulder_mm"] + 4.0)
    mirrored = Points(q.u, q.y, np.abs(q.x))
    clavicle = tube(
        mirrored,
        [
            (16.0, p["carina_y_mm"] - 42.0, 16.0),
            (2.0, p["carina_y_mm"] - 38.0, 70.0),
            (head[0] - 16.0, head[1] - 14.0, head[2] - 14.0),
        ],
        [8.0, 5.5, 6.5],
    )
    joint = tube(mirrored, [head, (head[0] + 4.0, head[1], head[2] + 3.0)], 23.0)
    return np.minimum(np.minimum(scapula, sternum), np.minimum(clavicle, joint))


def rib_front(p: Draws, q: Points, centre: Field) -> Field:
    """0 at the spine, 1 at the sternum, even in the angle between."""
    return 0.5 - np.arctan2((q.y - centre) / p["chest_depth_to_width"], np.abs(q.x) + 1e-3) / np.pi


def rib_end(p: Draws, q: Points, centre: Field) -> Field:
    """Distance beyond the first rib, or beyond the costal arch where the lower ribs stop short of the front."""
    along = rib_phase(p, q, centre) / p["rib_step_mm"]
    last = 11.6 - 5.0 * smooth_step(rib_front(p, q, centre), 0.2, 0.8)
    beyond = np.maximum(-0.55 - along, along - last) * p["rib_step_mm"]
    return np.maximum(
        beyond, np.where(q.y > centre, 24.0 - np.abs(q.x), -9.0)
    )  # ribs end at the vertebrae


def rib_phase(p: Draws, q: Points, centre: Field) -> Field:
    """Height in mm along the chain of ribs at each point: whole multiples of `rib_step_mm` are ribs' middles."""
    front = rib_front(p, q, centre)
    front = front - 0.9 * np.maximum(
        front - 0.75, 0.0
    )  # the cartilages rise again towards the sternum
    return q.u - p["rib_fall_mm"] * front - p["rib_phase"] * p["rib_step_mm"]
