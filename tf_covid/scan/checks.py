"""The input gate: what must be true of a scan before anything is computed from it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tf_covid.errors import ScanRefused
from tf_covid.result import Level, QualityFlag
from tf_covid.scan.neighbours import neighbour_flags

#: Bands in HU. Lung parenchyma counts as air: a field of view cropped to the lungs holds no air
#: around the body.
AIR_HU = (-1100, -700)
SOFT_TISSUE_HU = (-150, 150)
#: Between lung and fat there is little in a chest. The band ends where ground glass begins.
VALLEY_HU = (-500, -200)
#: How far a peak must rise above the mean of the valley; the fluctuations of mere noise do not.
PEAK_OVER_VALLEY = 1.25
#: Least share of the voxels (padding excluded) in each band.
AIR_SHARE = 0.01
SOFT_TISSUE_SHARE = 0.02
#: Values below are padding outside the field of view (−2000, −3024), not tissue. −1024 is air in
#: many scanners.
PADDING_BELOW_HU = -1100
#: Share of the image that is lung in the first or last slice from which the lungs count as cut off.
CUT_OFF_SHARE = 0.01
#: Voxel edges of a chest CT, in mm: smaller or larger ones are another unit, or no CT of a person.
VOXEL_MM = (0.2, 12.0)
#: Lung volumes outside of this range, in ml, are no adult's: of a mask of something else, or of a
#: wrong voxel size.
POSSIBLE_VOLUME_ML = (300.0, 15_000.0)
#: The pixels of a CT are square, also after resampling for display: two edges of a voxel differ by
#: no more than this.
EVEN_RATIO = 1.5
#: Fewer kept slices than this are not a chest that can be scored.
LEAST_SLICES = 8

_BIN_HU = 10
_RANGE_HU = (-1100, 4100)
_SAMPLE = 4_000_000


def refusal(code: str, message: str, value: float | int | str | None = None) -> ScanRefused:
    """A `ScanRefused` of one flag with level "error", ready to be raised."""
    return ScanRefused([QualityFlag(code, "error", message, value)])


def geometry_flags(spacing_mm: Sequence[float] | np.ndarray) -> tuple[QualityFlag, ...]:
    """Whether the voxels are as large as those of a CT, and square in one plane at least.

    Args:
        spacing_mm: Size of a voxel along its three axes, in mm, in any order.

    Returns:
        An error `voxel_size` with the sizes, a warning `voxels_uneven`, or nothing.
    """
    low, high = VOXEL_MM
    sizes = "×".join(f"{size:.4g}" for size in spacing_mm)
    if not all(low * 0.999 <= size <= high * 1.001 for size in spacing_mm):
        message = (
            f"The voxels are {sizes} mm; those of a chest CT are {low:g} to {high:g} mm. Check"
            " spacing and unit."
        )
        return (QualityFlag("voxel_size", "error", message, sizes),)
    small, middle, large = sorted(float(size) for size in spacing_mm)
    if min(middle / small, large / middle) > EVEN_RATIO:
        message = (
            f"The voxels are {sizes} mm: no two of their edges are alike, as the pixels of a CT"
            " are. Check spacing."
        )
        return (QualityFlag("voxels_uneven", "warning", message, sizes),)
    return ()


def gate(hu: np.ndarray, axis: int = 0) -> tuple[QualityFlag, ...]:
    """What is wrong with the values of a scan; an empty one is called empty, not "no HU".

    Args:
        hu: int16 (D, H, W).
        axis: Along which its slices were acquired.
    """
    blank = blank_flags(hu)
    if any(flag.level == "error" for flag in blank):
        return blank
    units = hu_flags(hu)
    return blank + (units or neighbour_flags(hu, axis))


def hu_flags(hu: np.ndarray) -> tuple[QualityFlag, ...]:
    """Whether the values are Hounsfield units of a body in air.

    A CT of a chest has a peak of air or lung (−1100 to −700 HU) and one of soft tissue (−150 to 150
    HU) with less between them. Stored values without their rescale, windowed 8-bit images, PET and
    MR do not.

    Args:
        hu: int16 (D, H, W).

    Returns:
        An error `not_hu` with the measured peaks, or nothing.
    """
    step = max(
        1, int(np.ceil(hu.size / _SAMPLE)) | 1
    )  # odd, so that it does not beat with the rows
    sample = hu.reshape(-1)[::step]
    sample = sample[sample >= PADDING_BELOW_HU]
    edges = np.arange(_RANGE_HU[0], _RANGE_HU[1] + _BIN_HU, _BIN_HU)
    counts, _ = np.histogram(sample, bins=edges)
    fraction = counts / max(1, sample.size)
    smooth = np.convolve(
        fraction, np.ones(5) / 5, mode="same"
    )  # 50 HU: wider than the noise of a bin
    centres = (edges[:-1] + edges[1:]) / 2

    def band(low_high: tuple[int, int]) -> np.ndarray:
        return (centres >= low_high[0]) & (centres <= low_high[1])

    air, soft = band(AIR_HU), band(SOFT_TISSUE_HU)
    least = PEAK_OVER_VALLEY * smooth[band(VALLEY_HU)].mean()
    missing = []
    if fraction[air].sum() < AIR_SHARE or smooth[air].max() <= least:
        missing.append("no air or lung peak between -1100 and -700 HU")
    if fraction[soft].sum() < SOFT_TISSUE_SHARE or smooth[soft].max() <= least:
        missing.append("no soft-tissue peak between -150 and 150 HU")
    if not missing:
        return ()
    peaks = _peaks(sample)
    hint = (
        "; the values look like HU + 1024 (rescale intercept lost)" if _looks_shifted(peaks) else ""
    )
    message = (
        f"The values are not Hounsfield units: {' and '.join(missing)}; measured peaks at"
        f" {peaks}{hint}."
    )
    return (QualityFlag("not_hu", "error", message, peaks),)


def _peaks(sample: np.ndarray) -> str:
    """The one or two most frequent values, more than 300 HU apart where possible, as text."""
    if not sample.size:
        return "none"
    values, counts = np.unique(sample, return_counts=True)
    first = values[np.argmax(counts)]
    apart = min(300, (int(values[-1]) - int(values[0])) / 3)
    far = np.abs(values.astype(np.int32) - int(first)) > apart
    if not far.any():
        return str(int(first))
    second = values[far][np.argmax(counts[far])]
    return " and ".join(str(value) for value in sorted((int(first), int(second))))


def _looks_shifted(peaks: str) -> bool:
    numbers = [int(text) for text in peaks.split(" and ") if text.lstrip("-").isdigit()]
    return len(numbers) == 2 and -50 <= numbers[0] <= 350 and 850 <= numbers[1] <= 1200


def blank_flags(hu: np.ndarray) -> tuple[QualityFlag, ...]:
    """Slices that hold one value only: what a failed decoder or an empty export leaves behind.

    Args:
        hu: int16 (D, H, W).

    Returns:
        An error `blank_slices` if more than half of the slices are blank, else a warning if any is.
    """
    blank = np.array([slice_.min() == slice_.max() for slice_ in hu])
    count = int(blank.sum())
    if not count:
        return ()
    level: Level = "error" if 2 * count > len(blank) else "warning"
    message = f"{count} of {len(blank)} slices hold one single value."
    return (QualityFlag("blank_slices", level, message, count),)


def lung_flags(
    lung_fraction_per_slice: np.ndarray,
    *,
    min_fraction: float = 0.05,
    spacing_mm: float | tuple[float, float, float],
    cut_off_share: float = CUT_OFF_SHARE,
) -> tuple[QualityFlag, ...]:
    """What the lung mask says about the scan: no lung, too few slices with lung, lungs cut off.

    Args:
        lung_fraction_per_slice: (D,), share of each slice's pixels that is lung, 0–1, from head to
            feet.
        min_fraction: A slice is kept from this share on (the 5 % rule).
        spacing_mm: Distance of the slices, or the scan's `spacing_mm` (D, H, W).
        cut_off_share: Lung in the first or last slice counts as cut off from this share on.
    """
    fractions = np.asarray(lung_fraction_per_slice, dtype=np.float64)
    spacing = float(np.ravel(spacing_mm)[0])
    kept = int((fractions >= min_fraction).sum())
    rule = f"slices with at least {100 * min_fraction:g} % lung"
    quality_flags = []
    if kept == 0:
        limit = 100 * float(fractions.max(initial=0.0))
        message = f"No {rule} among {len(fractions)}; the most is {limit:.1f} %."
        quality_flags.append(QualityFlag("no_lung", "error", message, 0))
    elif kept < LEAST_SLICES:
        message = (
            f"Only {kept} {rule} ({kept * spacing:.0f} mm); at least {LEAST_SLICES} are needed."
        )
        quality_flags.append(QualityFlag("few_slices", "error", message, kept))
    cut = [
        end
        for end, fraction in (("apex", fractions[:1]), ("base", fractions[-1:]))
        if fraction.size and fraction[0] >= cut_off_share
    ]
    if cut:
        where = "both" if len(cut) == 2 else cut[0]
        text = " and ".join(
            f"{end} ({100 * fractions[0 if end == 'apex' else -1]:.1f} % of the image)"
            for end in cut
        )
        message = f"The lungs are cut off at the {text}: the score is partial."
        quality_flags.append(QualityFlag("lungs_cut_off", "warning", message, where))
    return tuple(quality_flags)


def volume_flags(volume_ml: float) -> tuple[QualityFlag, ...]:
    """An error `lung_volume` where no chest has lungs of this volume, or nothing.

    Args:
        volume_ml: Both lungs.
    """
    low, high = POSSIBLE_VOLUME_ML
    if low <= volume_ml <= high:
        return ()
    measured = f"{volume_ml:.0f} ml" if volume_ml < 10_000 else f"{volume_ml / 1000:.1f} l"
    message = f"The lungs measure {measured}; a chest's have {low / 1000:g} to {high / 1000:g} l."
    return (QualityFlag("lung_volume", "error", message, round(volume_ml)),)
