"""The disease: where it lies, to an exact share of each lobe, and what it looks like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tf_covid.phantom.anatomy import LUNGS_HIGH, LUNGS_LOW, Anatomy
from tf_covid.phantom.fields import Field, SplineNoise, smooth_step
from tf_covid.phantom.settings import DiseaseSettings, Draws, draw
from tf_covid.phantom.slab import Slab
from tf_covid.phantom.torso import hila
from tf_covid.severity import CLASS_UPPER_SCORES, LOBES

#: Bands of involvement, in percent, of the lobe scores 0–5, kept off their edges so that the grid cannot move a score.
_BANDS = ((0.0, 0.0), (0.5, 4.0), (6.5, 23.0), (27.5, 47.5), (53.0, 72.0), (78.5, 98.0))


@dataclass(frozen=True)
class Disease:
    """One patient's disease.

    Args:
        pattern: "covid", "lobar" (pneumonia that fills lobes from one place, up to the fissure) or "oedema" (glass
            around the hila of both lungs).
        lobe_scores: The five scores that it was drawn to have.
        shares: The involved share (0–1) of each lobe that it was drawn to have.
        potential: Where disease is likely, on the lattice: high first; in units of its own deviation.
        thresholds: The potential from which each lobe is diseased; infinite where it is not.
    """

    p: Draws
    pattern: str
    lobe_scores: tuple[int, ...]
    shares: tuple[float, ...]
    potential: Field
    thresholds: tuple[float, ...]


def draw_lobe_scores(severity: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Five lobe scores whose sum is uniform over the class's range of CT scores; lower lobes tend to lead."""
    low = CLASS_UPPER_SCORES[severity - 1] + 1 if severity else 0
    total = int(rng.integers(low, CLASS_UPPER_SCORES[severity] + 1))
    scores = [0] * len(LOBES)
    liking = np.array([1.0, 0.8, 1.6, 1.0, 1.6]) * rng.uniform(0.3, 1.7, len(LOBES))
    for _ in range(total):
        room = np.array([liking[n] * (5.5 - s) if s < 5 else 0.0 for n, s in enumerate(scores)])
        scores[int(rng.choice(len(LOBES), p=room / room.sum()))] += 1
    return tuple(scores)


def _blobs(p: Draws, anatomy: Anatomy, lungs: np.ndarray, rng: np.random.Generator) -> Field:
    """Rounded foci, on the lattice: 1 at a focus' centre, falling to 0 at its rim."""
    lattice = anatomy.lattice
    found = np.zeros(lattice.shape, np.float32)
    places = np.argwhere(lungs & (anatomy.fields["lungs"] < -3.0))
    if len(places) == 0:
        return found
    q = lattice.points()
    for fraction in rng.random(int(rng.integers(2, 24))):
        d, h, w = places[int(fraction * len(places))]
        centre = lattice.u[d], lattice.y[h], lattice.x[w]
        radii = np.exp(rng.uniform(np.log(7.0), np.log(38.0))) * rng.uniform(0.65, 1.5, 3)
        box = lattice.box(
            [c - r for c, r in zip(centre, radii, strict=True)],
            [c + r for c, r in zip(centre, radii, strict=True)],
        )
        r2 = (
            ((q.u[box[0]] - centre[0]) / radii[0]) ** 2
            + ((q.y[:, box[1]] - centre[1]) / radii[1]) ** 2
            + ((q.x[:, :, box[2]] - centre[2]) / radii[2]) ** 2
        )
        np.maximum(found[box], 1.0 - np.sqrt(np.minimum(r2, 1.0)), out=found[box])
    return found


def _distance(anatomy: Anatomy, place: Sequence[float]) -> Field:
    """Distance from a place (u, y, x), in units of 35 mm, on the lattice."""
    q = anatomy.lattice.points()
    squared = (q.u - place[0]) ** 2 + (q.y - place[1]) ** 2 + (q.x - place[2]) ** 2
    return (np.sqrt(squared) / 35.0).astype(np.float32)


def _from_seeds(anatomy: Anatomy, lobes: np.ndarray, rng: np.random.Generator) -> Field:
    """In each lobe the distance from one place in it, where its pneumonia began, on the lattice."""
    found = np.zeros(lobes.shape, np.float32)
    lattice = anatomy.lattice
    for number, fraction in enumerate(rng.random(len(LOBES)), start=1):
        places = np.argwhere(lobes == number)
        if len(places):
            d, h, w = places[int(fraction * len(places))]
            away = _distance(anatomy, (lattice.u[d], lattice.y[h], lattice.x[w]))
            found[lobes == number] = away[lobes == number]
    return found


def draw_disease(
    settings: DiseaseSettings,
    severity: int,
    anatomy: Anatomy,
    lobes: np.ndarray,
    rng: np.random.Generator,
) -> Disease:
    """Draw a disease of the wanted severity class.

    Args:
        lobes: (U, Y, X) lobe numbers on the lattice, within what the scan sees.
    """
    p = draw(settings, rng)
    pattern = "lobar" if p["lobar"] else "oedema" if p["oedema"] else "covid"
    # Glass leads in COVID; lobar pneumonia is consolidation with sharp borders, oedema is glass with septal lines.
    p["consolidated_share"] = {
        "covid": p["consolidated_share"] * float(rng.random()),
        "lobar": 1.3,
        "oedema": 0.2,
    }[pattern]
    if pattern == "lobar":
        p["edge_softness"] = min(p["edge_softness"], 0.2)
    if pattern == "oedema":
        p["crazy_paving"] = 1.0
    f = anatomy.fields
    lungs = lobes > 0
    scores = draw_lobe_scores(severity, rng)
    shares = tuple(float(rng.uniform(*_BANDS[score])) / 100.0 for score in scores)
    depth = np.clip(-f["lungs"] / 30.0, 0.0, 1.0)
    height = (anatomy.lattice.u[:, None, None] - 100.0) / 90.0
    potential = 0.8 * SplineNoise(rng, p["patch_mm"], LUNGS_LOW, LUNGS_HIGH)(anatomy.lattice)
    potential += 0.3 * SplineNoise(rng, 7.0, LUNGS_LOW, LUNGS_HIGH)(anatomy.lattice)
    if pattern == "covid":
        potential += 2.0 * p["nodularity"] * _blobs(p, anatomy, lungs, rng)
        potential -= p["peripheral"] * 1.5 * depth
        potential += p["basal"] * height + p["posterior"] * f["front"]
    elif pattern == "lobar":
        potential = 0.35 * potential - _from_seeds(anatomy, lobes, rng)
    else:
        hilar = np.minimum(*(_distance(anatomy, place) for place in hila(anatomy.p).values()))
        potential = 0.5 * potential - hilar + 0.5 * f["front"]
    thresholds = []
    for number, share in enumerate(shares, start=1):
        values = potential[lobes == number]
        thresholds.append(
            float(np.quantile(values, 1.0 - share)) if share and len(values) else np.inf
        )
    return Disease(p, pattern, scores, shares, potential.astype(np.float32), tuple(thresholds))


def excess(disease: Disease, lobes: np.ndarray) -> Field:
    """How far the potential exceeds each voxel's lobe's threshold, on the lattice; very negative in healthy lobes."""
    limits = np.array([9.0, *(min(t, 9e3) for t in disease.thresholds)], np.float32)
    # Clipped, so that interpolation across a fissure does not eat into the diseased side.
    return np.clip(disease.potential - limits[lobes], -1.5, 3.0)


class Texture:
    """What lesions look like, evaluated slab by slab on any grid."""

    def __init__(
        self,
        disease: Disease,
        rng: np.random.Generator,
        low: tuple[float, ...],
        high: tuple[float, ...],
    ) -> None:
        p = self._p = disease.p
        self._dense = SplineNoise(rng, 14.0, low, high)
        self._tone = SplineNoise(rng, 22.0, low, high)
        nets = 2 if p["crazy_paving"] or p["reticulation"] else 0
        self._net = [SplineNoise(rng, 5.0, low, high) for _ in range(nets)]

    def hu(self, slab: Slab, excess: Field) -> Field:
        """HU of fully diseased lung at each point of a slab, before vessels and airways."""
        p, grid = self._p, slab.grid
        glass = p["glass_hu"] + 55.0 * self._tone(grid)
        level = self._dense(grid) + 0.6 * np.minimum(excess, 2.0) + 0.7 * slab.read("front")
        start = 2.4 - 3.2 * p["consolidated_share"]
        filled = smooth_step(level, start, start + p["consolidation_edge"])
        if self._net:
            lines = np.exp(
                -((np.minimum(np.abs(self._net[0](grid)), np.abs(self._net[1](grid))) / 0.16) ** 2)
            )
            strength = (
                p["crazy_paving"] * p["crazy_paving_hu"] + p["reticulation"] * p["reticulation_hu"]
            )
            glass += strength * lines
        np.minimum(glass, -120.0, out=glass)
        return glass + filled * (p["consolidation_hu"] - glass)
