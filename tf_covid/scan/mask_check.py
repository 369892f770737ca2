"""The check of masks, one for files, arrays and manifests.

Their values and what lies under them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from tf_covid.errors import ScanRefused
from tf_covid.result import QualityFlag
from tf_covid.scan.checks import POSSIBLE_VOLUME_ML, refusal, volume_flags
from tf_covid.scan.scan import Scan

#: The values of our own `lungs.nii.gz`: 0 outside, 1 right, 2 left. Both are lung.
OWN_LABELS = frozenset({0.0, 1.0, 2.0})
#: Air around the body: in its slice joined to the border of the image through voxels below this.
#: Lung is denser.
OUTSIDE_HU = -900
#: Share of a mask in the air around the body from which it is refused, and from which it is pointed
#: out.
MOSTLY, PARTLY = 0.5, 0.1
#: Share of a lesion mask in the air around the body from which it is refused: a border drawn
#: loosely has less.
LOOSE = 0.1
#: Above this no voxel is aerated lung; a mask with hardly any voxel below is not of lungs, not even
#: of "white" ones, whose bronchi and apices still hold air.
AERATED_HU = -300
LEAST_AERATED = 0.005
#: A mask with less aerated lung than this is pointed out: white lungs, or a mask that is flipped or
#: of another scan. Right masks of synthetic chests of all classes have more than 0.7; flipped and
#: transposed ones mostly less than 0.6.
USUAL_AERATED = 0.6

#: Most different values that are told apart: more than any table of organs has.
_MOST_VALUES = 1000
#: Most values that are named one by one.
_NAMED = 8
#: What lies under a mask is looked at on about so many pixels a side: the answer is a share, not a
#: border.
_SIDE = 128


class MaskValues:
    """The different values of a mask, collected slab by slab.

    Args:
        values_seen: The values that are not 0, and no NaN.
        zero: Whether a voxel is 0.
        nan: Whether a voxel is not a number.
        many: Whether there are more than are told apart; `low` and `high` are still those of all.
        low, high: The least and the greatest value that is not 0.
    """

    def __init__(self) -> None:
        self.values_seen: set[float] = set()
        self.zero = self.nan = self.many = False
        self.low, self.high = np.inf, -np.inf

    def add(self, slab: np.ndarray) -> None:
        """Take the values of a slab in."""
        rest = slab[slab != 0]
        self.zero |= rest.size < slab.size
        if slab.dtype.kind == "f":
            nan = np.isnan(rest)
            if nan.any():
                self.nan, rest = True, rest[~nan]
        if rest.size:
            self.low, self.high = (
                min(self.low, float(rest.min())),
                max(self.high, float(rest.max())),
            )
        if len(self.values_seen) <= _NAMED:  # most masks: no sorting
            for value in self.values_seen:
                rest = rest[rest != value]
        if rest.size and not self.many:
            self.values_seen.update(float(value) for value in np.unique(rest))
            self.many = len(self.values_seen) > _MOST_VALUES

    def __str__(self) -> str:
        """The values for a person: "0, 1, 3" or "117 values, 0 … 116"."""
        values = sorted(self.values_seen | ({0.0} if self.zero else set()))
        if self.many:
            low, high = (
                (min(self.low, 0.0), max(self.high, 0.0)) if self.zero else (self.low, self.high)
            )
            text = f"more than {_MOST_VALUES} values, {low:g} … {high:g}"
        elif len(values) > _NAMED:
            text = f"{len(values)} values, {values[0]:g} … {values[-1]:g}"
        else:
            text = ", ".join(f"{value:g}" for value in values)
        return text if not self.nan else f"{text}, NaN" if text else "NaN"


def check_labels(labels: Sequence[int]) -> tuple[float, ...]:
    """The labels that stand for lung, as the values of a file.

    Raises:
        ScanRefused: `mask_labels` if one is no whole number above 0.
    """
    try:
        full = [
            not isinstance(label, (bool, np.bool_)) and int(label) == label and label > 0
            for label in labels
        ]
    except (TypeError, ValueError, OverflowError):
        full = [False]
    if not all(full):
        raise refusal(
            "mask_labels",
            "The labels of the lungs are whole numbers above 0, such as 10, 11, 12, 13, 14.",
        )
    return tuple(float(label) for label in labels)


def inside(slab: np.ndarray, labels: Sequence[float]) -> np.ndarray:
    """bool: what `accept` will call inside, should it accept the values."""
    if labels:
        return np.asarray(np.isin(slab, labels))
    # NaN differs from all, itself too.
    inside = (slab != 0) & (slab == slab) if slab.dtype.kind == "f" else slab != 0
    return np.asarray(inside)


def accept(values: MaskValues, labels: Sequence[float] = (), *, lesions: bool = False) -> None:
    """Refuse the values of what is not a mask.

    Accepted are: nothing but 0; 0 (or NaN, where there is no 0) and one value above it (1, 255,
    0.7); 0, 1, 2 for lungs, as `lungs.nii.gz` has them; whole numbers where `labels` says which of
    them are lung.

    Args:
        values: Values of all voxels.
        labels: What stands for lung; none: every voxel that is not 0.
        lesions: It is a mask of lesions, not of lungs.

    Raises:
        ScanRefused: `mask_values` with the values found, `mask_labels` if no label is in a voxel,
            `mask_empty` if a lung mask has no voxel inside.
    """
    results = values.values_seen
    if labels:
        _accept_labels(values, labels)
    elif not results:
        if not values.zero:
            raise refusal(
                "mask_values",
                f"The mask holds {values}: no voxel is inside or outside.",
                str(values),
            )
        if values.nan:
            raise _not_a_mask(values, lesions)
        if not lesions:
            raise refusal("mask_empty", "The mask is empty.")
    elif len(results) == 1 and not (values.zero or values.nan):
        message = f"The mask holds {values} everywhere: nothing is outside of it."
        raise refusal("mask_values", message, str(values))
    else:
        one = (
            len(results) == 1
            and 0 < next(iter(results)) < np.inf
            and not (values.zero and values.nan)
        )
        own = not lesions and not values.nan and values.zero and results | {0.0} == OWN_LABELS
        if not (one or own):
            raise _not_a_mask(values, lesions)


def _accept_labels(values: MaskValues, labels: Sequence[float]) -> None:
    if values.many or values.nan or not all(value.is_integer() for value in values.values_seen):
        message = (
            f"The mask holds {values}: labels are whole numbers, at most {_MOST_VALUES} of them."
        )
        raise refusal("mask_values", message, str(values))
    if values.values_seen.isdisjoint(labels):
        raise refusal(
            "mask_labels",
            f"The mask has no voxel of the labels of the lungs; it holds {values}.",
            str(values),
        )


def accept_numbers(values: MaskValues, highest: int) -> None:
    """Refuse the values of what is not a file of numbered parts.

    Args:
        values: Values of all voxels.
        highest: The highest number that means something; 0 is outside of all parts.

    Raises:
        ScanRefused: `mask_values` with the values found, or `mask_empty` if all voxels are 0.
    """
    known = set(map(float, range(1, highest + 1)))
    if values.nan or values.many or not values.values_seen <= known:
        message = f"The label file holds {values}, but its voxels are whole numbers, 0 … {highest}."
        raise refusal("mask_values", message, str(values))
    if not values.values_seen:
        raise refusal("mask_empty", "The label file is empty: all of its voxels are 0.")


def missing_labels(values: MaskValues, labels: Sequence[float]) -> tuple[QualityFlag, ...]:
    """A warning `mask_labels` where some labels are in no voxel: a removed lobe, or a slip."""
    missing = ", ".join(f"{label:g}" for label in labels if label not in values.values_seen)
    if not missing:
        return ()
    message = f"The mask has no voxel of label {missing}; it holds {values}. Is that lobe missing?"
    return (QualityFlag("mask_labels", "warning", message, missing),)


def _not_a_mask(values: MaskValues, lesions: bool) -> Exception:
    what = "a lesion mask is 0 outside and has one value inside"
    if not lesions:
        what = "a lung mask is 0 outside and has one value inside (or 1 right and 2 left)"
    results = values.values_seen
    if values.nan or values.low < 0 or values.high == np.inf:
        hint = "A map of distances or scores is not a mask: write which voxels are inside"
    elif values.many or not all(value.is_integer() for value in results):
        hint = (
            "Probabilities, and masks smoothed by resampling, need a threshold first (resample by"
            " nearest neighbour)"
        )
    elif lesions:
        hint = "Write the labels that are lesions as 1, and all others as 0"
    else:
        hint = (
            "Write the labels that are lung as 1, or name them: infer --lungs-labels N,N,"
            " lungs_labels in Python"
        )
    return refusal("mask_values", f"The mask holds {values}, but {what}. {hint}.", str(values))


def check_lungs(mask: np.ndarray, scan: Scan) -> tuple[QualityFlag, ...]:
    """Whether a mask can be of a scan's lungs: its volume, and what lies under and beside it.

    Args:
        mask: bool (D, H, W) in canonical order.
        scan: The scan it belongs to.

    Returns:
        A warning `mask_doubtful` where the mask is partly in the air around the body, or has little
        aerated lung.

    Raises:
        ScanRefused: `lung_volume`, `mask_outside` (mostly in the air around the body),
            `mask_inverted` (body inside, lung outside), `mask_not_lung` (no aerated lung in it).
    """
    if not mask.any():
        raise refusal("mask_empty", "The mask is empty.")
    volume = np.count_nonzero(mask) * float(np.prod(scan.spacing_mm)) / 1000.0
    if flags := volume_flags(volume):
        raise ScanRefused(flags)
    hu, chosen, air = _sampled(mask, scan)
    total = max(int(np.count_nonzero(chosen)), 1)
    fraction = np.count_nonzero(chosen & air) / total
    if fraction > MOSTLY:
        raise _outside(fraction, "mask")
    body = ~air
    under, beside = hu[chosen & body], hu[~chosen & body]
    if under.size and beside.size and np.median(under) > AERATED_HU and np.median(beside) < -500:
        message = (
            "The mask holds the body and leaves the lungs out: it is inverted. Write 1 where"
            " lung is."
        )
        raise refusal("mask_inverted", message)
    aerated = np.count_nonzero(hu[chosen] < AERATED_HU) / total
    if aerated < LEAST_AERATED:
        message = (
            f"{100 * aerated:.1f} % of the mask are below {AERATED_HU} HU: what it covers is not"
            " lung."
        )
        raise refusal("mask_not_lung", message, round(100 * aerated, 1))
    if fraction > PARTLY:
        message = (
            f"{100 * fraction:.0f} % of the mask are in the air around the body; does it belong to"
            " this scan?"
        )
        return (QualityFlag("mask_doubtful", "warning", message, round(100 * fraction)),)
    if aerated < USUAL_AERATED:
        message = (
            f"Only {100 * aerated:.0f} % of the mask are below {AERATED_HU} HU; is it of these"
            " lungs, and not flipped?"
        )
        return (QualityFlag("mask_doubtful", "warning", message, round(100 * aerated)),)
    return ()


def check_lesions(mask: np.ndarray, scan: Scan, lungs: np.ndarray | None = None) -> None:
    """Whether a mask can be of the lesions in a scan's lungs; an empty one can.

    Args:
        mask: bool (D, H, W) in canonical order.
        scan: The scan it belongs to.
        lungs: bool (D, H, W), if known.

    Raises:
        ScanRefused: `lung_volume` if it is larger than lungs are, `mask_outside` if it lies in the
            air around the body, `lesions_outside` if most of it lies outside of the lungs.
    """
    count = int(np.count_nonzero(mask))
    if not count:
        return
    volume = count * float(np.prod(scan.spacing_mm)) / 1000.0
    limit = POSSIBLE_VOLUME_ML[1]
    if volume > limit:
        message = (
            f"The lesions measure {volume / 1000:.1f} l; not even the lungs have more than"
            f" {limit / 1000:g} l."
        )
        raise refusal("lung_volume", message, round(volume))
    _, chosen, air = _sampled(mask, scan)
    fraction = np.count_nonzero(chosen & air) / max(int(np.count_nonzero(chosen)), 1)
    if fraction > LOOSE:
        raise _outside(fraction, "lesion mask")
    if lungs is not None:
        off = 1.0 - np.count_nonzero(mask & lungs) / count
        if off > MOSTLY:
            message = f"{100 * off:.0f} % of the lesions lie outside of the lungs."
            raise refusal("lesions_outside", message, round(100 * off))


def _outside(fraction: float, what: str) -> Exception:
    message = (
        f"{100 * fraction:.0f} % of the {what} are in the air around the body: it is inverted or of"
        " another scan."
    )
    return refusal("mask_outside", message, round(100 * fraction))


def _sampled(mask: np.ndarray, scan: Scan) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """HU, mask, and the air around the body (bool), all (D, h, w) every nth pixel of a slice."""
    step = max(1, min(scan.shape[1:]) // _SIDE)
    hu, chosen = scan.hu[:, ::step, ::step], mask[:, ::step, ::step]
    if not chosen.any():  # thinner than the grid
        hu, chosen = scan.hu, mask
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    pieces, count = ndimage.label(hu < OUTSIDE_HU, in_plane)
    joined = np.zeros(count + 1, bool)
    for edge in (pieces[:, 0], pieces[:, -1], pieces[:, :, 0], pieces[:, :, -1]):
        joined[edge.ravel()] = True
    joined[0] = False
    return hu, chosen, joined[pieces]
