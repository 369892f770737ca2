"""Draw one synthetic chest CT about which everything is known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tf_covid.phantom import scanner, tissue
from tf_covid.phantom.anatomy import LATTICE_MM, Anatomy, build, draw_body
from tf_covid.phantom.fields import Field, Grid, Upsampler, meet, occupancy, smooth_step, tube
from tf_covid.phantom.lesions import Disease, Texture, draw_disease, excess
from tf_covid.phantom.settings import Draws, PhantomSettings, draw
from tf_covid.phantom.torso import hila
from tf_covid.phantom.trees import Tree, grow, paint, together
from tf_covid.severity import LABELS, LOBES, ct_score, lobe_score, severity_class


@dataclass(frozen=True)
class Chest:
    """A synthetic chest CT and its truth; every array is (D, H, W), head → feet, front → back, right → left.

    Args:
        hu: int16 Hounsfield units.
        lungs: uint8, 0 outside, 1 right, 2 left; consolidated lung and the vessels within are inside, trachea, main
            bronchi, hila and mediastinum outside.
        lobes: uint8, 0 outside, 1–5 in the order of `severity.LOBES`.
        lesions: bool, the diseased voxels, all within `lungs`.
        spacing_mm: Voxel size along (D, H, W).
        affine: (4, 4) LPS: (d, h, w, 1) → mm.
        lobe_involvement_percent: Diseased share of each lobe, counted from the voxels.
        lobe_scores: Score, 0–5, of each lobe.
        ct_score: Their sum, 0–25.
        severity: The class, 0–4, of the CT score.
        settings: What was drawn, for a look at what a network finds hard.
    """

    hu: np.ndarray
    lungs: np.ndarray
    lobes: np.ndarray
    lesions: np.ndarray
    spacing_mm: tuple[float, float, float]
    affine: np.ndarray
    lobe_involvement_percent: tuple[float, ...]
    lobe_scores: tuple[int, ...]
    ct_score: int
    severity: int
    settings: dict[str, Any] = field(default_factory=dict, repr=False)


def _regions(read: tissue.Reader) -> np.ndarray:
    """The lobe number, 1–5, that each point would have if it were lung."""
    left = read("side") > 0.0
    right = np.where(read("right_fissure") > 0.0, 3, np.where(read("horizontal_fissure") > 0.0, 2, 1))
    return np.where(left, np.where(read("left_fissure") > 0.0, 5, 4), right).astype(np.uint8)


def _targets(anatomy: Anatomy, left: bool, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 3) random places in one lung, in mm; uniform, so the periphery gets its share."""
    inside = (anatomy.fields["lungs"] < -2.0) & ((anatomy.fields["side"] > 0.0) == left)
    places = np.argwhere(inside)
    chosen = places[(rng.random(count) * len(places)).astype(int)] + rng.uniform(-0.5, 0.5, (count, 3))
    lattice = anatomy.lattice
    start = np.array([lattice.u[0], lattice.y[0], lattice.x[0]])
    return (start + chosen * LATTICE_MM).astype(np.float32)


def _plumbing(anatomy: Anatomy, lung: Draws, rng: np.random.Generator) -> tuple[Tree, Tree]:
    """Blood vessels (arteries and veins) and bronchi of both lungs."""
    vessels, bronchi = [], []
    for side, hilum in hila(anatomy.p).items():
        root = np.array(hilum)
        for shift in (np.array([-2.0, -3.0, 0.0]), np.array([14.0, -6.0, 0.0])):
            targets = _targets(anatomy, side == "left", 1024, rng)
            vessels.append(grow(root + shift, targets, lung["vessel_root_mm"], lung["vessel_exponent"], rng))
        targets = _targets(anatomy, side == "left", 128, rng)
        bronchi.append(grow(root + np.array([2.0, 6.0, 0.0]), targets, lung["airway_root_mm"], 2.4, rng))
    return together(vessels), together(bronchi)


def _carve_hila(anatomy: Anatomy, vessels: Tree) -> None:
    """Take the first branches at the hila out of the lungs: radiologists' masks leave them outside; in place."""
    lattice, lungs = anatomy.lattice, anatomy.fields["lungs"]
    thick = vessels.select((vessels.level < 2) & (vessels.radius > 3.2))
    for start, stop, radius in zip(thick.start, thick.stop, thick.radius, strict=True):
        box = lattice.box(np.minimum(start, stop) - radius - 10.0, np.maximum(start, stop) + radius + 10.0)
        part = Grid(lattice.u[box[0]], lattice.y[box[1]], lattice.x[box[2]])
        if lungs[box].size:
            lungs[box] = meet(lungs[box], -(tube(part.points(), [start, stop], float(radius) + 0.5)), 4.0)


def _lattice(protocol: scanner.Protocol) -> Grid:
    """The lattice that covers a scan, whatever its voxels."""
    axes = [np.arange(low - LATTICE_MM, high + 2 * LATTICE_MM, LATTICE_MM, dtype=np.float32)
            for low, high in zip(protocol.low, protocol.high, strict=True)]  # fmt: skip
    return Grid(*axes)


def _score(lobes: np.ndarray, lesions: np.ndarray) -> tuple[float, ...]:
    """Diseased share of each lobe, in percent."""
    total = np.bincount(lobes.ravel(), minlength=len(LOBES) + 1)[1:]
    diseased = np.bincount(lobes[lesions], minlength=len(LOBES) + 1)[1:]
    return tuple(float(100.0 * d / t) if t else 0.0 for d, t in zip(diseased, total, strict=True))


@dataclass(frozen=True)
class _Patient:
    """Everything drawn about one patient and examination, before any grid."""

    anatomy: Anatomy
    protocol: scanner.Protocol
    tissue: Draws
    lung: Draws
    disease: Disease
    excess: Field
    vessels: Tree
    bronchi: Tree
    sheets: list[Draws]
    streams: list[np.random.Generator]


def _draw_patient(seed: int, severity: int | None, settings: PhantomSettings) -> _Patient:
    """Draw a patient with every random stream split off by purpose, so that one change does not move the rest."""
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(8)]
    if severity is None:
        severity = int(streams[0].integers(len(LABELS)))
    body = draw_body(settings.body, streams[1])
    protocol = scanner.draw_protocol(settings.scanner, body, streams[2])
    anatomy = build(body, _lattice(protocol), streams[1])
    lung = draw(settings.lung, streams[3])
    vessels, bronchi = _plumbing(anatomy, lung, streams[3])
    _carve_hila(anatomy, vessels)
    regions = _regions(anatomy.fields.__getitem__)
    disease = draw_disease(settings.disease, severity, anatomy, regions * (anatomy.fields["lungs"] < 0.0), streams[4])
    over = excess(disease, regions)
    outline = np.argwhere(anatomy.fields["body"] < 0)
    back = float(anatomy.lattice.y[int(np.percentile(outline[:, 1], 99.5))])
    return _Patient(
        anatomy, protocol, tissue.draw_tissue(body, protocol.p, streams[2]), lung, disease, over, vessels, bronchi,
        scanner.surroundings(protocol, back, streams[5]), streams,
    )  # fmt: skip


def _lung_hu(patient: _Patient, read: tissue.Reader, grid: Grid, over: Field, looks: _Looks) -> Field:
    """HU of the lungs in a slab: parenchyma, disease, fissures, then vessels and airways over them."""
    hu = looks.parenchyma.hu(read, grid)
    p = patient.disease.p
    regions = _regions(read)
    allowed = np.array([False, *(share > 0.0 for share in patient.disease.shares)])[regions]
    if allowed.any():
        soft = p["edge_softness"]
        opacity = smooth_step(over, -soft, soft) * allowed
        hu += opacity * np.maximum(looks.lesions.hu(grid, over) - hu, 0.0)
    if patient.lung["fissure_hu"] > 30.0:
        for name, where in (("right_fissure", (1, 2, 3)), ("left_fissure", (4, 5)), ("horizontal_fissure", (1, 2))):
            line = np.exp(-((read(name) / 0.8) ** 2)) * np.isin(regions, where)
            hu += patient.lung["fissure_hu"] * line * (hu < -500.0)
    padded = Grid(_padded(grid.u), grid.y, grid.x)
    near = (padded.u[0], padded.u[-1])
    blood, wall, lumen = (np.zeros(padded.shape, np.float32) for _ in range(3))
    paint(blood, padded, _within(patient.vessels, near))
    bronchi = _within(patient.bronchi, near)
    thick = bronchi.radius * (1.0 + patient.lung["airway_wall"]) + 0.3
    paint(wall, padded, Tree(bronchi.start, bronchi.stop, thick, bronchi.level))
    paint(lumen, padded, bronchi)
    hu += blood[1:-1] * (patient.tissue["blood_hu"] - hu)
    hu += wall[1:-1] * (20.0 - hu)
    hu += lumen[1:-1] * (-960.0 - hu)
    return hu


def _padded(axis: np.ndarray) -> np.ndarray:
    """An axis with one more point on each side, so that slabs see the branches that cross into them."""
    step = axis[1] - axis[0]
    return np.concatenate([[axis[0] - step], axis, [axis[-1] + step]]).astype(np.float32)


def _within(tree: Tree, near: tuple[float, float]) -> Tree:
    """The segments that reach into a range of u, with a margin for their radius."""
    low = np.minimum(tree.start[:, 0], tree.stop[:, 0]) - tree.radius - 2.0
    high = np.maximum(tree.start[:, 0], tree.stop[:, 0]) + tree.radius + 2.0
    return tree.select((high > near[0]) & (low < near[1]))


class _Looks:
    """The fine textures of one patient."""

    def __init__(self, patient: _Patient) -> None:
        self.parenchyma = tissue.Parenchyma(patient.lung, patient.streams[6])
        self.marbling = tissue.Marbling(patient.streams[6])
        self.lesions = Texture(patient.disease, patient.streams[6])


def draw_chest(
    seed: int,
    shape: tuple[int, int, int] = (120, 256, 256),
    *,
    severity: int | None = None,
    settings: PhantomSettings | None = None,
) -> Chest:
    """Draw a chest CT; the same seed is the same patient and disease at any shape.

    Args:
        seed: Everything follows from it.
        shape: (D, H, W) voxels; the field of view is drawn, so the spacing follows.
        severity: Class, 0–4, that the true CT score falls in; drawn uniformly if None.
        settings: Ranges of everything drawn.
    """
    settings = settings or PhantomSettings()
    patient = _draw_patient(seed, severity, settings)
    looks = _Looks(patient)
    spacing_u = (patient.protocol.high[0] - patient.protocol.low[0]) / shape[0]
    parts = int(np.clip(np.ceil(spacing_u / 3.0), 1, 4))
    coarse, fine = patient.protocol.grid(shape), patient.protocol.grid(shape, parts)
    anatomy = patient.anatomy
    up_coarse, up_fine = Upsampler(anatomy.lattice, coarse), Upsampler(anatomy.lattice, fine)
    hu = np.empty(shape, np.int16)
    lobes = np.empty(shape, np.uint8)
    lesions = np.empty(shape, bool)
    count = max(2, int(4e6 / (shape[1] * shape[2] * parts)))
    allowed = np.array([False, *(share > 0.0 for share in patient.disease.shares)])
    noise_seeds = patient.streams[7].integers(2**31, size=shape[0])
    for first in range(0, shape[0], count):
        slab = slice(first, min(first + count, shape[0]))
        read = _Reader(anatomy.fields, up_coarse, slab)
        lobes[slab] = _regions(read) * (read("lungs") < 0.0)
        lesions[slab] = (up_coarse(patient.excess, slab) > 0.0) & allowed[lobes[slab]]
        slices = _render(patient, looks, fine, up_fine, slice(slab.start * parts, slab.stop * parts), parts)
        slices = scanner.examine(slices, coarse, patient.protocol, np.random.default_rng(noise_seeds[first]))
        hu[slab] = scanner.store(slices, coarse, patient.protocol)
    lungs = (lobes > 0).astype(np.uint8) + (lobes > 3)
    involvement = _score(lobes, lesions)
    scores = tuple(lobe_score(share) for share in involvement)
    spacing = tuple(float(axis[1] - axis[0]) for axis in (coarse.u, coarse.y, coarse.x))
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = -spacing[0], spacing[1], spacing[2]
    affine[:, 3] = float(coarse.x[0]), float(coarse.y[0]), -float(coarse.u[0]), 1.0
    drawn = {"seed": seed, **anatomy.p, **patient.protocol.p, **patient.lung, **patient.disease.p}
    return Chest(
        hu, lungs, lobes, lesions, spacing, affine, involvement, scores, ct_score(scores),
        severity_class(ct_score(scores)), drawn,
    )  # fmt: skip


class _Reader:
    """Lattice fields on one slab, each upsampled once."""

    def __init__(self, fields: dict[str, Field], up: Upsampler, slab: slice) -> None:
        self._fields, self._up, self._slab = fields, up, slab
        self._known: dict[str, Field] = {}

    def __call__(self, name: str) -> Field:
        if name not in self._known:
            self._known[name] = self._up(self._fields[name], self._slab)
        return self._known[name]


def _render(patient: _Patient, looks: _Looks, fine: Grid, up: Upsampler, slab: slice, parts: int) -> Field:
    """True HU of a slab of slices: each the mean of its sub-slices, as a thick slice is."""
    grid = Grid(fine.u[slab], fine.y, fine.x)
    read = _Reader(patient.anatomy.fields, up, slab)
    width = max(float(fine.x[1] - fine.x[0]), 0.6)
    hu = tissue.outside_lungs(patient.tissue, read, grid, looks.marbling)
    scanner.paint_surroundings(hu, grid, patient.sheets)
    inside = occupancy(read("lungs"), width)
    hu += inside * (_lung_hu(patient, read, grid, up(patient.excess, slab), looks) - hu)
    return hu.reshape(-1, parts, *hu.shape[1:]).mean(axis=1)
