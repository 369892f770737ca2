"""Lungs that no network found: a threshold and a closing in three dimensions, or a doubt.

It holds on chests whose lungs hold air. Where consolidation or fluid fills most of a lung it is too
small, which the reference cannot know; what it can know stands in its doubts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from coarse import Spacing, closed
from scipy import ndimage
from threshold import AIR_HU, middle_column, without_windpipe

#: Denser than this is body; thinner than twice this is a table, a blanket, a tube.
BODY_HU, THIN_MM = -250.0, 4.0

#: Gaps of the chest wall that are narrower than twice this are closed before it is filled.
GAP_MM = 10.0

#: A piece whose median is thinner than this is gas: lung, even emphysema, has vessels.
GAS_HU = -970.0

#: A further piece is lung from this share of the largest one on, if half of its height lies beside
#: it.
LEAST_PIECE = 0.04

#: Radius of the ball that closes over vessels, hila and consolidated lung.
CLOSING_MM = 12.0

#: A piece with this share on either side of the body's middle is both lungs in one.
STRADDLES = 0.15

#: What lungs have, in ml, and the least share of the smaller one.
POSSIBLE_ML, LEAST_SIDE = (1000.0, 10000.0), 0.1

#: Lungs are cut off if an end of the scan shows this share of their largest slice.
CUT_OFF = 0.1

#: So much lung at the picture's border, in mm², is no accident.
BORDER_MM2 = 100.0


@dataclass(frozen=True)
class Reference:
    """Lungs by threshold and closing.

    Args:
        lungs: bool (D, H, W), on the grid of the given HU.
        ml: Their volume.
        doubts: Why it is not to be trusted; empty if nothing speaks against it.
    """

    lungs: np.ndarray
    ml: float
    doubts: tuple[str, ...]


def reference_lungs(hu: np.ndarray, spacing_mm: Spacing) -> Reference:
    """The reference of one scan, int16 HU (D, H, W), in canonical order.

    Air below −400 HU within the body, without windpipe and main bronchi; its pieces that may be
    lung; each lung closed alone.
    """
    air = (hu < AIR_HU) & body(hu, spacing_mm)
    alone = without_windpipe(air, hu, spacing_mm)
    if first := _plausible(alone, hu):
        # Below the bronchi what is small and near the middle is lung: beside the spine, in front
        # of the heart.
        height = np.flatnonzero(first[0].any(axis=(1, 2)))
        below = slice((height[0] + height[-1]) // 2, None)
        alone[below] = air[below]
    lungs, middle = np.zeros(hu.shape, bool), round(middle_column(hu))
    for side in _sides(_plausible(alone, hu), middle):
        lungs |= closed(side, spacing_mm, CLOSING_MM)
    ml = np.count_nonzero(lungs) * float(np.prod(spacing_mm)) / 1000.0
    return Reference(lungs, ml, tuple(_doubts(lungs, ml, middle, spacing_mm)))


def body(hu: np.ndarray, spacing_mm: Spacing) -> np.ndarray:
    """The patient with all that he encloses, bool (D, H, W), without table, cloth and pads."""
    tissue = _disk(hu > BODY_HU, sitk.BinaryMorphologicalOpening, spacing_mm, THIN_MM)
    pieces, count = ndimage.label(tissue)
    if not count:
        return tissue
    largest = np.bincount(pieces.ravel())[1:].argmax() + 1
    whole = _disk(pieces == largest, sitk.BinaryMorphologicalClosing, spacing_mm, GAP_MM)
    return np.array([ndimage.binary_fill_holes(plane) for plane in whole])


def _disk(mask: np.ndarray, change: object, spacing_mm: Spacing, radius_mm: float) -> np.ndarray:
    """A mask opened or closed by a disk, slice by slice."""
    radius = [int(radius_mm / spacing_mm[2]), int(radius_mm / spacing_mm[1]), 0]
    if not any(radius):
        return mask
    # The disk may not be cut off by the picture: one that is closed at the border stays there.
    margin = ((0, 0), (radius[1] + 1,) * 2, (radius[0] + 1,) * 2)
    image = sitk.GetImageFromArray(np.pad(mask, margin, "edge").astype(np.uint8))
    changed = sitk.GetArrayFromImage(change(image, radius)) > 0
    (_, _), (top, bottom), (left, right) = margin
    return changed[:, top:-bottom, left:-right]


def _plausible(air: np.ndarray, hu: np.ndarray) -> list[np.ndarray]:
    """The pieces of air that may be lung, bool (D, H, W) each, the largest first."""
    pieces, count = ndimage.label(air)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
    boxes = ndimage.find_objects(pieces)
    found: list[np.ndarray] = []
    rows = (0, 0)
    for piece in np.argsort(sizes)[::-1]:
        if (found and sizes[piece] < LEAST_PIECE * np.count_nonzero(found[0])) or len(found) == 4:
            break
        where = boxes[piece]
        if np.median(hu[where][pieces[where] == piece + 1]) < GAS_HU:
            continue
        first, last = where[0].start, where[0].stop
        if found and min(last, rows[1]) - max(first, rows[0]) < (last - first) / 2:
            continue
        found.append(pieces == piece + 1)
        rows = rows if len(found) > 1 else (first, last)
    return found


def _sides(pieces: list[np.ndarray], middle: int) -> list[np.ndarray]:
    """The lungs right and left of the middle column, bool (D, H, W) each.

    Alone, since a closing of both would bridge the mediastinum.
    """
    if not pieces:
        return []
    right, left = np.zeros(pieces[0].shape, bool), np.zeros(pieces[0].shape, bool)
    for piece in pieces:
        share = np.count_nonzero(piece[..., :middle]) / np.count_nonzero(piece)
        if STRADDLES < share < 1 - STRADDLES:
            right[..., :middle] |= piece[..., :middle]
            left[..., middle:] |= piece[..., middle:]
        else:
            side = right if share >= 0.5 else left
            side |= piece
    return [right, left]


def _doubts(lungs: np.ndarray, ml: float, middle: int, spacing_mm: Spacing) -> list[str]:
    low, high = POSSIBLE_ML
    if not ml:
        return ["no lungs found"]
    doubts = []
    if ml < low:
        doubts.append(f"less than {low / 1000:.0f} l")
    if ml > high:
        doubts.append(f"more than {high / 1000:.0f} l")
    right = np.count_nonzero(lungs[..., :middle]) / np.count_nonzero(lungs)
    if min(right, 1 - right) < LEAST_SIDE:
        doubts.append("only one lung")
    rows, columns = lungs[:, [0, -1]], lungs[..., [0, -1]]
    at_border = (
        np.count_nonzero(rows) * spacing_mm[2] + np.count_nonzero(columns) * spacing_mm[1]
    ) * spacing_mm[0]
    if at_border > BORDER_MM2:
        doubts.append("touches the picture's border")
    areas = np.count_nonzero(lungs, axis=(1, 2))
    ends = {"first": areas[0], "last": areas[-1]}
    doubts += [
        f"cut off at the {name} slice"
        for name, area in ends.items()
        if area > CUT_OFF * areas.max()
    ]
    return doubts
