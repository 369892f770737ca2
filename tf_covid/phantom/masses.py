"""Tumours, which are no disease that is scored: masses in the lungs, tumours at the hila, large lymph nodes."""

from __future__ import annotations

import numpy as np

from tf_covid.phantom.fields import Field, Grid, SplineNoise, meet
from tf_covid.phantom.settings import Draws
from tf_covid.phantom.torso import FAR_MM, hila


def draw_masses(body: Draws, rng: np.random.Generator) -> Draws:
    """What is drawn about one patient's tumours; most patients have none."""
    return {
        "mass_radius_mm": 0.5 * body["mass_mm"],
        "masses": float(body["mass"] * rng.choice([1, 1, 1, 2, 3])),
        "mass_rough": float(rng.uniform(0.03, 0.22)),
        "mass_seed": float(rng.integers(2**31)),
    }


def _blob(lattice: Grid, centre: np.ndarray, radii: np.ndarray, rough: Field, out: Field) -> None:
    """Lower `out` to the distance to a lumpy ellipsoid, within its neighbourhood; in place."""
    reach = radii + 14.0
    box = lattice.box([*(centre - reach)], [*(centre + reach)])
    du, dy, dx = lattice.u[box[0]], lattice.y[box[1]], lattice.x[box[2]]
    level = np.sqrt(
        ((du - centre[0]) / radii[0])[:, None, None] ** 2
        + (((dy - centre[1]) / radii[1]) ** 2)[:, None]
        + ((dx - centre[2]) / radii[2]) ** 2
    )
    gap = (level - 1.0 + rough[box]) * float(radii.min())
    np.minimum(out[box], np.minimum(gap, 10.0), out=out[box])


def add_masses(p: Draws, lattice: Grid, fields: dict[str, Field]) -> None:
    """Put "mass" and "tumour" into a patient's fields; hila and mediastinum grow into the lungs, in place.

    A mass lies within a lung and remains lung; a "tumour" (hilar tumour, lymph node) is
    mediastinum, and what of the lungs it fills is none any more.
    """
    shape = lattice.shape
    rng = np.random.default_rng(int(p["mass_seed"]))
    mass = np.full(shape, FAR_MM, np.float32)
    tumour = np.full(shape, FAR_MM, np.float32)
    fields["mass"], fields["tumour"] = mass, tumour
    if not (p["masses"] or p["hilar_tumour"] or p["nodes"]):
        return
    corners = [(float(axis[0]), float(axis[-1])) for axis in (lattice.u, lattice.y, lattice.x)]
    rough = SplineNoise(rng, 16.0, [c[0] for c in corners], [c[1] for c in corners])(lattice)
    rough *= np.float32(p["mass_rough"])
    radius = p["mass_radius_mm"]
    places = np.flatnonzero(fields["lungs"] < -min(0.35 * radius, 8.0))
    for share in rng.random(int(p["masses"])):
        if len(places):
            d, h, w = np.unravel_index(places[int(share * len(places))], shape)
            centre = float(lattice.u[d]), float(lattice.y[h]), float(lattice.x[w])
            _blob(lattice, np.array(centre), radius * rng.uniform(0.8, 1.15, 3), rough, mass)
            radius = max(0.6 * radius, 5.0)
    spots = []
    if p["hilar_tumour"]:
        side = ("right", "left")[int(rng.random() < 0.5)]
        at = np.array(hila(p)[side]) + rng.normal(0.0, 8.0, 3)
        at[2] += np.sign(at[2]) * 0.4 * p["mass_radius_mm"]
        spots.append((at, max(0.9 * p["mass_radius_mm"], 9.0)))
    if p["nodes"]:
        u, y, x = p["carina_mm"], p["carina_y_mm"], p["carina_x_mm"]
        stations = [
            (u - 24.0, y - 8.0, x - 17.0),
            (u + 18.0, y + 4.0, x + 4.0),
            (u - 4.0, y - 14.0, x + 26.0),
            *hila(p).values(),
            (u - 30.0, y - 36.0, x + 6.0),
        ]
        for number in rng.permutation(len(stations))[: int(rng.integers(1, 5))]:
            at = np.array(stations[number]) + rng.normal(0.0, 4.0, 3)
            spots.append((at, float(rng.uniform(6.0, 15.0))))
    for at, size in spots:
        _blob(lattice, at, size * rng.uniform(0.75, 1.25, 3), rough, tumour)
    if spots:
        for name in ("lungs", "pleura"):
            fields[name] = meet(fields[name], -tumour, 3.0)
