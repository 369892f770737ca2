"""Draw one synthetic chest CT about which everything is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tf_covid.phantom import scanner, tissue
from tf_covid.phantom.clothing import dress
from tf_covid.phantom.devices import insert
from tf_covid.phantom.fields import Field, Grid, Upsampler, occupancy
from tf_covid.phantom.labels import tissue_labels
from tf_covid.phantom.lesions import Texture
from tf_covid.phantom.parenchyma import Parenchyma, lungs_hu
from tf_covid.phantom.patient import Patient, draw_patient, regions
from tf_covid.phantom.settings import PhantomSettings
from tf_covid.phantom.slab import Extents, Slab
from tf_covid.severity import LOBES, ct_score, lobe_score, severity_class

#: Voxels drawn at a time: what fits into a processor's cache.
_SLAB_VOXELS = 3e5


@dataclass(frozen=True)
class Chest:
    """A synthetic chest CT and its truth; every array is (D, H, W), head → feet, front → back, right → left.

    Args:
        hu: int16 Hounsfield units.
        lungs: uint8, 0 outside, 1 right, 2 left; consolidated lung and the vessels within are inside, trachea, main
            bronchi, hila, mediastinum and pleural fluid outside.
        lobes: uint8, 0 outside, 1–5 in the order of `severity.LOBES`.
        lesions: bool, the voxels with glass or consolidation of COVID, lobar pneumonia or oedema (a mass is none, nor
            is lung that collapsed beside fluid or lies dependent), all within `lungs`: where disease
            fills at least half of the way from healthy lung to the lesion's own density.
        tissues: uint8, numbers of `tissues.TISSUES` outside the lungs, 0 within them. Stomach and bowel are their wall
            and all that they hold; hilar tumours and lymph nodes are mediastinum; bones, arms, muscle of the
            diaphragm and the fat of the belly are chest wall; all but air outside the body is table, pads and cloth.
        spacing_mm: Voxel size along (D, H, W).
        affine: (4, 4) LPS: (d, h, w, 1) → mm.
        lobe_involvement_percent: Diseased share of each lobe, counted from the voxels.
        lobe_scores: Score, 0–5, of each lobe.
        ct_score: Their sum, 0–25.
        severity: The class, 0–4, of the CT score.
        covid: Whether the opacities are COVID's; lobar pneumonia and oedema score alike and are not.
        settings: What was drawn, for a look at what a network finds hard.
    """

    hu: np.ndarray
    lungs: np.ndarray
    lobes: np.ndarray
    lesions: np.ndarray
    tissues: np.ndarray
    spacing_mm: tuple[float, float, float]
    affine: np.ndarray
    lobe_involvement_percent: tuple[float, ...]
    lobe_scores: tuple[int, ...]
    ct_score: int
    severity: int
    covid: bool
    settings: dict[str, Any] = field(default_factory=dict, repr=False)


def involvement_percent(lobes: np.ndarray, lesions: np.ndarray) -> tuple[float, ...]:
    """Diseased share of each lobe, in percent; 0 for a lobe that the scan does not show."""
    total = np.bincount(lobes.ravel(), minlength=len(LOBES) + 1)[1:]
    diseased = np.bincount(lobes[lesions], minlength=len(LOBES) + 1)[1:]
    return tuple(float(100.0 * d / t) if t else 0.0 for d, t in zip(diseased, total, strict=True))


class _Painter:
    """One patient's HU, slab by slab."""

    def __init__(self, patient: Patient, grid: Grid, extents: Extents) -> None:
        self._patient, self._grid, self._extents = patient, grid, extents
        self._up = Upsampler(patient.anatomy.lattice, grid)
        low, high = patient.protocol.low, patient.protocol.high
        rng = patient.streams[0]
        body = patient.anatomy.p
        self._marbling = tissue.Marbling(rng, low, high, body["dome_depth_mm"] - 75.0)
        self._lesions = Texture(patient.disease, rng, low, high)
        self._healthy = Parenchyma(patient.lung, body, rng, low, high)

    def hu(self, slices: slice) -> Field:
        """True HU, before the scanner."""
        fields, grid = self._patient.anatomy.fields, self._grid
        box = (slices, slice(0, len(grid.y)), slice(0, len(grid.x)))
        slab = Slab(fields, self._extents, self._up, grid, box)
        hu = tissue.outside_lungs(self._patient.tissue, slab, self._marbling)
        dress(hu, slab, self._patient.things)
        found = slab.part("lungs")
        if found is not None:
            inner, place = found
            inside = occupancy(inner.read("lungs"), inner.width_mm)
            hu[place] += inside * (
                lungs_hu(self._patient, inner, self._healthy, self._lesions) - hu[place]
            )
        insert(hu, slab, self._patient.devices)
        return hu


def _slabs(shape: tuple[int, int, int], parts: int) -> Iterator[slice]:
    """Ranges of slices that fit into the cache."""
    count = max(2, int(_SLAB_VOXELS / (shape[1] * shape[2] * parts)))
    return (slice(first, min(first + count, shape[0])) for first in range(0, shape[0], count))


class _Truth:
    """Lobes and lesions on the scan's own grid."""

    def __init__(
        self, patient: Patient, shape: tuple[int, int, int], grid: Grid, extents: Extents
    ) -> None:
        self._patient, self._shape, self._grid, self._extents = patient, shape, grid, extents
        self._up = Upsampler(patient.anatomy.lattice, grid)

    def masks(self) -> tuple[np.ndarray, np.ndarray]:
        """uint8 lobes and bool lesions, (D, H, W)."""
        fields = self._patient.anatomy.fields
        lobes, lesions = np.zeros(self._shape, np.uint8), np.zeros(self._shape, bool)
        allowed = np.array([False, *(share > 0.0 for share in self._patient.disease.shares)])
        for slices in _slabs(self._shape, 1):
            box = (slices, slice(0, self._shape[1]), slice(0, self._shape[2]))
            found = Slab(fields, self._extents, self._up, self._grid, box).part("lungs")
            if found is not None:
                slab, place = found
                labels = regions(slab.read) * (slab.read("lungs") < 0.0)
                lobes[slices][place] = labels
                lesions[slices][place] = (slab.read("excess") > 0.0) & allowed[labels]
                if self._patient.anatomy.p["masses"]:
                    lesions[slices][place] &= slab.read("mass") > 0.0
        return lobes, lesions

    def tissues(self, lobes: np.ndarray) -> np.ndarray:
        """uint8 tissues outside `lobes`, (D, H, W)."""
        labels = np.empty(self._shape, np.uint8)
        for slices in _slabs(self._shape, 1):
            box = (slices, slice(0, self._shape[1]), slice(0, self._shape[2]))
            slab = Slab(self._patient.anatomy.fields, self._extents, self._up, self._grid, box)
            labels[slices] = tissue_labels(slab, self._patient.things)
        labels[lobes > 0] = 0
        return labels

    def settle(self) -> tuple[np.ndarray, np.ndarray]:
        """The masks, once every lobe has the score that it was drawn to have.

        The shares are set on the lattice; where a coarse grid counts them into another score, the disease grows or
        shrinks a little, in the patient's field itself, so that image and truth still agree.
        """
        disease, anatomy = self._patient.disease, self._patient.anatomy
        lattice_lobes = regions(anatomy.fields.__getitem__)
        step = 0.05
        for _ in range(12):
            lobes, lesions = self.masks()
            scores = np.array([lobe_score(share) for share in involvement_percent(lobes, lesions)])
            missing = np.sign(np.array(disease.lobe_scores) - scores)
            if not missing.any():
                break
            anatomy.fields["excess"] += (step * np.concatenate([[0], missing]).astype(np.float32))[
                lattice_lobes
            ]
        return lobes, lesions


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
        severity: Class, 0–4, that the true CT score falls in; drawn uniformly if None. A grid too coarse to show all
            five lobes may miss it: the returned `severity` is always what the voxels say.
        settings: Ranges of everything drawn.
    """
    patient = draw_patient(seed, severity, settings or PhantomSettings())
    protocol, anatomy = patient.protocol, patient.anatomy
    thickness = (protocol.high[0] - protocol.low[0]) / shape[0]
    # A thin slice far from its neighbours (high-resolution CT) shows what lies in its middle only.
    parts = 1 if protocol.p["thin"] else int(np.clip(np.ceil(thickness / 3.0), 1, 4))
    grid, fine = protocol.grid(shape), protocol.grid(shape, parts)
    extents = Extents(anatomy.fields, anatomy.lattice, 4.0 + float(grid.x[1] - grid.x[0]))
    truth = _Truth(patient, shape, grid, extents)
    lobes, lesions = truth.settle()
    tissues = truth.tissues(lobes)
    painter = _Painter(patient, fine, extents)
    hu = np.empty(shape, np.int16)
    for slices in _slabs(shape, parts):
        # A thick slice is the mean of its sub-slices.
        slab = painter.hu(slice(slices.start * parts, slices.stop * parts))
        slab = slab.reshape(-1, parts, *slab.shape[1:]).mean(axis=1)
        hu[slices] = scanner.examine(
            slab, Grid(grid.u[slices], grid.y, grid.x), protocol, patient.streams[1]
        )
    return _chest(hu, (lobes, lesions, tissues), grid, patient, seed)


def _chest(
    hu: np.ndarray,
    truth: tuple[np.ndarray, np.ndarray, np.ndarray],
    grid: Grid,
    patient: Patient,
    seed: int,
) -> Chest:
    """The finished value: scores counted from the voxels, geometry from the grid."""
    lobes, lesions, tissues = truth
    involvement = involvement_percent(lobes, lesions)
    scores = tuple(lobe_score(share) for share in involvement)
    d, h, w = (
        float((axis[-1] - axis[0]) / max(len(axis) - 1, 1)) for axis in (grid.u, grid.y, grid.x)
    )
    affine = np.zeros((4, 4))
    affine[[2, 1, 0], [0, 1, 2]] = -d, h, w
    affine[:, 3] = float(grid.x[0]), float(grid.y[0]), -float(grid.u[0]), 1.0
    drawn = {
        "seed": seed,
        **patient.tissue,
        **patient.protocol.p,
        **patient.lung,
        **patient.disease.p,
        "pattern": patient.disease.pattern,
    }
    total = ct_score(scores)
    lungs = (lobes > 0).astype(np.uint8) + (lobes > 3)
    covid = total > 0 and patient.disease.pattern == "covid"
    return Chest(
        hu,
        lungs,
        lobes,
        lesions,
        tissues,
        (d, h, w),
        affine,
        involvement,
        scores,
        total,
        severity_class(total),
        covid,
        drawn,
    )
