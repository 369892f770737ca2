"""The truth about what surrounds the lungs: the tissue of every voxel, read off the fields that the image is."""

from __future__ import annotations

import numpy as np

from tf_covid.phantom.clothing import Things, covered
from tf_covid.phantom.slab import Slab
from tf_covid.tissues import TISSUES

#: Share of a voxel that a table, a pad or cloth fills where the voxel is theirs.
_COVERED = 0.35

#: What is painted in this order, each over what lies under it: field, tissue, millimetres that it
#: is larger than the field.
_ORGANS = (
    ("liver", "solid organ", 0.0),
    ("spleen", "solid organ", 0.0),
    ("bowel", "bowel", 0.0),
    ("kidney", "solid organ", 0.0),
    ("glands", "solid organ", 0.0),
    ("straps", "chest wall", 0.0),
    ("stomach", "stomach", 0.0),
    ("oesophagus", "mediastinum", 0.0),
    ("heart", "mediastinum", 0.0),
    ("tumour", "mediastinum", 0.0),
    ("column", "chest wall", 0.0),
    ("airway", "airway", 0.5),
    ("throat", "airway", 0.5),
)


def tissue_labels(slab: Slab, things: Things) -> np.ndarray:
    """Numbers of `tissues.TISSUES` in a slab, (D, H, W) uint8; what they are within the lungs means nothing."""
    labels = np.full(slab.grid.shape, TISSUES["air around the patient"], np.uint8)
    labels[covered(slab, things) > _COVERED] = TISSUES["table, pads and cloth"]
    found = slab.part("body")
    if found is None:
        return labels
    body, place = found
    inner = labels[place]
    inner[body.read("body") < 0.0] = TISSUES["chest wall"]
    _between_lungs(inner, body)
    for name, tissue, larger_mm in _ORGANS:
        part = body.part(name)
        if part is not None:
            organ, where = part
            inner[where][organ.read(name) < larger_mm] = TISSUES[tissue]
    return labels


def _between_lungs(labels: np.ndarray, slab: Slab) -> None:
    """Mediastinum and pleural fluid, in place."""
    found = slab.part("hollow")
    if found is None:
        return
    inner, place = found
    above = inner.read("diaphragm") < 0.5
    within = (inner.read("mediastinum") < 2.0) | (inner.read("hilum") < 2.0)
    within &= (inner.read("hollow") < 0.0) & (inner.read("wall") < -2.0) & above
    labels[place][within] = TISSUES["mediastinum"]
    blood = (inner.read("blood") < 0.0) & (inner.read("diaphragm") < 8.0)
    labels[place][blood] = TISSUES["mediastinum"]
    fluid = (inner.read("pleura") < 0.0) & (inner.read("fluid") < 8.0)
    fluid &= (inner.read("hilum") > 0.0) | (inner.read("fluid") < 0.0)
    labels[place][fluid] = TISSUES["pleural effusion"]
