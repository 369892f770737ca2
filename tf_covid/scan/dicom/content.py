"""A cheap look at a few slices of a series: how much lung do they show?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tf_covid.scan.dicom.stack import SliceFrame

#: Slices of a series that are looked at, evenly spread.
SLICES_LOOKED_AT = 7
#: Pixels along the longer side of the image that is looked at.
_SIDE = 128
#: Below this an area is air or lung, above the next one it is body.
_AIR_HU, _BODY_HU = -500, -300
#: A quarter of lung lies below some value above this; of bowel, stomach and trachea, which hold
#: gas, below a lower one.
_LUNG_HU = -940
#: The same of an area that takes at least this share of the body: emphysema, not bowel.
_LARGE_AREA, _LARGE_HU = 0.08, -975
#: Least share of the body that one area must take, and that all of them take in the mean of the
#: slices.
_LEAST_AREA, _LEAST_SHARE = 0.006, 0.015


def lung_ml(
    slice_frames: Sequence[SliceFrame], hu_of: Callable[[SliceFrame], np.ndarray | None]
) -> float | None:
    """About how much lung a series shows.

    Args:
        slice_frames: Frames of the series, each with a position.
        hu_of: Decodes a frame to (rows, columns) HU; None where that fails.

    Returns:
        Volume in ml, 0 for less than a trace; None if no slice could be looked at.
    """
    points = np.array(
        [slice_frame.frame.position for slice_frame in slice_frames], dtype=np.float64
    )
    along = points @ _direction(points)
    order = np.argsort(along, kind="stable")
    picks = np.unique(
        np.rint(np.linspace(0, len(order) - 1, SLICES_LOOKED_AT + 2)[1:-1]).astype(int)
    )
    areas, shares = [], []
    for pick in picks:
        slice_frame = slice_frames[order[pick]]
        hu = hu_of(slice_frame)
        if hu is None:
            continue
        lung, body = lung_share(hu)
        areas.append(lung * hu.size * float(np.prod(slice_frame.frame.spacing)))
        shares.append(lung / body if body else 0.0)
    if not areas:
        return None
    length = float(along.max() - along.min())
    return float(np.mean(areas)) * length / 1000 if np.mean(shares) >= _LEAST_SHARE else 0.0


def lung_share(hu: np.ndarray) -> tuple[float, float]:
    """The shares of one slice that look like lung, and like body with its lungs.

    Args:
        hu: (rows, columns).
    """
    from scipy import ndimage  # only where it is needed: its import takes 0.2 s

    step = max(1, -(-max(hu.shape) // _SIDE))
    rows, columns = (size // step for size in hu.shape)
    blocks = np.clip(hu[: rows * step, : columns * step], -1024, 3000).astype(np.float32)
    small = blocks.reshape(rows, step, columns, step).mean(axis=(1, 3))
    labels, count = ndimage.label(small < _AIR_HU)
    body = int((small > _BODY_HU).sum())
    if not count or not body:
        return 0.0, body / max(1, small.size)
    numbers = np.arange(1, count + 1)
    sizes = ndimage.sum_labels(np.ones_like(small), labels, numbers)
    border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    lung = 0.0
    for index in numbers[sizes >= max(4, _LEAST_AREA * body)]:
        # At the border it is the air of the room, or lung in a field of view that is cropped to it.
        large = sizes[index - 1] >= _LARGE_AREA * body and index not in border
        if np.percentile(small[labels == index], 25) > (_LARGE_HU if large else _LUNG_HU):
            lung += float(sizes[index - 1])
    return lung / small.size, (body + lung) / small.size


def _direction(points: np.ndarray) -> np.ndarray:
    """The unit vector from one end of the positions to the other."""
    far = points[np.argmax(np.linalg.norm(points - points[0], axis=1))]
    other = points[np.argmax(np.linalg.norm(points - far, axis=1))]
    length = float(np.linalg.norm(far - other))
    return (far - other) / length if length else np.array([0.0, 0.0, 1.0])
