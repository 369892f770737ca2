"""Each slice against its neighbours.

One slice of other values or of another content shows there, not in the whole.
"""

from __future__ import annotations

import numpy as np

from tf_covid.result import QualityFlag

#: Samples along a side of a slice: enough for a median, and cheap.
_SAMPLES = 64
#: Where soft tissue and air lie, in HU; narrower than the gate's bands, so that a median moves with
#: the values.
_TISSUE_HU, _AIR_HU = (-200, 300), (-1100, -900)
#: A median that moves by more than this from one slice to the next is no anatomy, in HU.
_SHIFT_HU = 120.0
#: Values are clipped to this before contents are compared: padding and metal do not count, in HU.
_CLIP_HU = (-1000, 400)
#: A slice differs in content if it is this many HU away from both neighbours on average, and this
#: many times further than they are from each other.
_APART_HU, _APART_TIMES = 90.0, 2.0
#: The same for slices that are not axial: one may lie in the table.
_APART_BESIDE_HU = 250.0
#: Soft tissue of one slice alone that moves by more than this is no anatomy, in HU.
_ALONE_HU = 180.0
#: Least samples that a median is taken of.
_LEAST = 40


def neighbour_flags(hu: np.ndarray, axis: int = 0) -> tuple[QualityFlag, ...]:
    """Slices whose values or whose content do not fit between their neighbours.

    Air and soft tissue lie where they lay in the slice before: a slice whose rescale was lost moves
    both. A slice whose neighbours look like each other and not like it was swapped, scrambled or
    damaged.

    Args:
        hu: int16 (D, H, W).
        axis: Along which the slices were acquired.

    Returns:
        An error `slice_values`, a warning `slice_content`, or nothing.
    """
    slices = np.moveaxis(hu, axis, 0)
    rows, columns = (max(1, size // _SAMPLES) for size in slices.shape[1:])
    sample = (
        slices[:, rows // 2 :: rows, columns // 2 :: columns]
        .reshape(len(slices), -1)
        .astype(np.float32)
    )
    several_valued = np.flatnonzero(
        sample.min(axis=1) != sample.max(axis=1)
    )  # blank slices are named by the gate
    sample = sample[several_valued]
    again = _repeated(slices, several_valued, sample)
    if len(sample) < 3:
        return again
    clipped = np.clip(sample, *_CLIP_HU)
    next_one = np.abs(np.diff(clipped, axis=0)).mean(axis=1)
    over_one = np.abs(clipped[2:] - clipped[:-2]).mean(axis=1)
    shifted = _shifted(sample, next_one)
    least = np.minimum(next_one[:-1], next_one[1:])
    least_hu = _APART_BESIDE_HU if axis else _APART_HU
    apart = {
        int(several_valued[index + 1])
        for index in np.flatnonzero((least > least_hu) & (least > _APART_TIMES * over_one))
    }
    apart |= {int(several_valued[end]) for end in _odd_ends(next_one)}
    flags: list[QualityFlag] = []
    if shifted:
        message = (
            f"The values of air or soft tissue jump by up to {max(shifted):.0f} HU between"
            f" neighbouring slices, at {len(shifted)} place(s): the rescale (0028,1052 and"
            " 0028,1053) of some slices is missing or wrong."
        )
        flags.append(QualityFlag("slice_values", "error", message, len(shifted)))
    elif apart:
        message = (
            f"{len(apart)} slice(s) look unlike both of their neighbours, which look like each"
            " other: they are swapped, damaged or of another scan."
        )
        flags.append(QualityFlag("slice_content", "warning", message, len(apart)))
    return (*flags, *again)


def _repeated(
    slices: np.ndarray, several_valued: np.ndarray, sample: np.ndarray
) -> tuple[QualityFlag, ...]:
    """A warning where two places of the scan hold the same voxels.

    Noise never repeats itself, copies do.

    Args:
        slices: int16 (slices, rows, columns).
        several_valued: Indices of the slices that hold more than one value.
        sample: Some voxels of each of those.
    """
    first: dict[bytes, int] = {}
    count = 0
    for index, some in zip(several_valued, sample, strict=True):
        other = first.setdefault(some.tobytes(), int(index))
        count += other != index and np.array_equal(slices[other], slices[index])
    if not count:
        return ()
    message = (
        f"{count} slice(s) hold exactly the voxels of another slice at another place: copies, or a"
        " scan whose slices were repeated when it was resampled."
    )
    return (QualityFlag("repeated_slices", "warning", message, int(count)),)


def _shifted(sample: np.ndarray, next_one: np.ndarray) -> list[float]:
    """Jumps in HU between neighbours whose air and tissue moved, or of one slice against two."""
    jumps: list[float] = []
    # Medians are dear: only where the slices differ more than most do.
    looked = np.flatnonzero(
        next_one > np.clip(1.3 * np.median(next_one), _SHIFT_HU / 8, _SHIFT_HU / 2)
    )
    for index in looked:
        one, other = sample[index], sample[index + 1]
        jump = max(_common_shift(one, other), _common_shift(other, one))
        if not jump and index + 2 < len(sample):
            jump = _between_shift(one, other, sample[index + 2])
        if jump:
            jumps.append(jump)
    return jumps


def _within(values: np.ndarray, band: tuple[int, int]) -> np.ndarray:
    return (values >= band[0]) & (values <= band[1])


def _common_shift(one: np.ndarray, other: np.ndarray) -> float:
    """How far air and tissue of one slice moved together; 0 if they did not."""
    moved = []
    for band in (_AIR_HU, _TISSUE_HU):
        there = _within(one, band)
        if there.sum() < _LEAST:
            return 0.0
        moved.append(_moved((other - one)[there]))
    air, tissue = moved
    same_way = min(abs(air), abs(tissue)) > _SHIFT_HU and (air > 0) == (tissue > 0)
    return max(abs(air), abs(tissue)) if same_way else 0.0


def _between_shift(before: np.ndarray, middle: np.ndarray, after: np.ndarray) -> float:
    """How far the soft tissue that both neighbours show moved in the slice between.

    0 if it did not.

    Air alone may move: a coronal slice may lie in the table.
    """
    there = _within(before, _TISSUE_HU) & _within(after, _TISSUE_HU)
    if there.sum() < _LEAST:
        return 0.0
    moved = abs(_moved((middle - (before + after) / 2)[there]))
    return moved if moved > _ALONE_HU else 0.0


def _moved(differences: np.ndarray) -> float:
    """The median of differences that moved as a whole, else 0: other contents scatter."""
    low, median, high = np.quantile(differences, (0.25, 0.5, 0.75))
    as_a_whole = abs(median) > _SHIFT_HU and high - low < max(60.0, 0.25 * abs(median))
    return float(median) if as_a_whole else 0.0


def _odd_ends(next_one: np.ndarray) -> list[int]:
    """The first or last slice, if it is much further from its neighbour than the next ones."""
    if len(next_one) < 4:
        return []
    least = 2 * _APART_HU
    first = next_one[0] > least and next_one[0] > 4 * next_one[1:4].max()
    last = next_one[-1] > least and next_one[-1] > 4 * next_one[-4:-1].max()
    return [0] * bool(first) + [-1] * bool(last)
