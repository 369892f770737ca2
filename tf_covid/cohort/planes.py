"""What a record of the cache is made of: slices of a scan, or all of it, on a working grid."""

from __future__ import annotations

import functools

import numpy as np

from tf_covid.errors import ScanRefused
from tf_covid.lungs import LungReading, read_lungs
from tf_covid.scan import Scan, lung_flags, volume_flags
from tf_covid.severity import LOBES
from tf_covid.tensor import Tensor
from tf_covid.tissues import CLASSES, TISSUES
from tf_covid.weights import Preprocessing

#: HU and masks by name; None where nobody drew one.
Planes = dict[str, np.ndarray | None]

#: Labels of a whole volume beside the numbers of `tissues.CLASSES`: some tissue outside of the
#: lobes, and what is not known and carries no loss.
OUTSIDE_LOBES, UNKNOWN = 254, 255

#: Cells of the labels along each side of a cell of the HU: a share is counted in eighths.
FINER = 2

#: Side of the planes that a lobe network's cells are made of in inference: those of `lungs-unet`.
#: Straight from slices of 512×512 the cells differ by 12 HU in the mean.
PLANE_SIDE = 128

#: Slices that are resampled at a time.
_SLAB = 32


def whole_slices(
    scan: Scan, lungs: np.ndarray, lesions: np.ndarray | None, grid: tuple[int, int, int]
) -> Planes:
    """Whole slices, evenly chosen, as `LungSegmenter` brings them onto its grid.

    A mask is where half a cell is.
    """
    from tf_covid.layers.resample import clipped_hu, full_axis_matrix, in_plane

    count, height, width = grid
    chosen = np.linspace(0, scan.shape[0] - 1, count).round().astype(int)
    rows, columns = full_axis_matrix(height, scan.shape[1]), full_axis_matrix(width, scan.shape[2])

    def small(volume: np.ndarray) -> np.ndarray:
        return np.asarray(in_plane(rows, volume, columns))

    hu = small(clipped_hu(scan.hu[chosen]).numpy())
    return {
        "hu": np.rint(hu).astype("<i2"),
        "lungs": small(lungs[chosen].astype(np.float32)) >= 0.5,
        "lesions": None if lesions is None else small(lesions[chosen].astype(np.float32)) >= 0.5,
    }


def tissue_classes(lobes: np.ndarray, tissues: np.ndarray | None) -> np.ndarray:
    """Which class of a lobe network each voxel belongs to.

    Args:
        lobes: uint8 (D, H, W): 1–5 in the order of `severity.LOBES`, 0 outside.
        tissues: uint8 (D, H, W): numbers of `tissues.TISSUES`, 0 unknown; None where nobody drew
            them.

    Returns:
        uint8 (D, H, W): numbers of `tissues.CLASSES`; `UNKNOWN` where the tissues are 0, and
        `OUTSIDE_LOBES` where there are none. Lobes win over tissues.
    """
    if tissues is None:
        outside = np.full(lobes.shape, OUTSIDE_LOBES, np.uint8)
    else:
        table = np.full(256, UNKNOWN, np.uint8)
        for name, value in TISSUES.items():
            table[value] = CLASSES.index(name)
        outside = table[tissues]
    # The lobes are the classes 1–5.
    return np.where((lobes > 0) & (lobes <= len(LOBES)), lobes, outside)


def whole_volume(scan: Scan, classes: np.ndarray, grid: tuple[int, int, int]) -> Planes:
    """A whole scan as the lobe network meets it, and finer labels of its cells.

    Each axis is scaled so that the cells cover the scan from end to end; HU by `full_axis_matrix`,
    as in inference, by way of planes of `PLANE_SIDE`. A label is that of the voxel in the middle of
    its cell: the mean over many cells is right, and thin parts do not vanish.

    Args:
        scan: The scan.
        classes: Result of `tissue_classes`.
        grid: D, H and W of the HU; the labels have `FINER` times as many cells along each.

    Returns:
        `hu` int16 (D, H, W), `labels` uint8 and `volume_ml` float32 (1,), the volume of the image.
    """
    from tf_covid.layers.resample import clipped_hu, full_axis_matrix, in_plane

    depth, height, width = grid
    rows, columns = (
        full_axis_matrix(size, PLANE_SIDE) @ full_axis_matrix(PLANE_SIDE, side)
        for size, side in zip((height, width), scan.shape[1:], strict=True)
    )
    planes = np.concatenate(
        [
            np.asarray(in_plane(rows, clipped_hu(scan.hu[start : start + _SLAB]), columns))
            for start in range(0, scan.shape[0], _SLAB)
        ]
    )
    along = np.asarray(full_axis_matrix(depth, scan.shape[0]))[0]
    hu = np.tensordot(along, planes, axes=1)
    middles = [
        ((np.arange(FINER * size) + 0.5) * side / (FINER * size)).astype(int)
        for size, side in zip(grid, scan.shape, strict=True)
    ]
    volume_ml = scan.hu.size * float(np.prod(scan.spacing_mm)) / 1000.0
    return {
        "hu": np.rint(hu).astype("<i2"),
        "labels": np.ascontiguousarray(classes[np.ix_(*middles)]),
        "volume_ml": np.array([volume_ml], "<f4"),
    }


class ClipPreprocessor:
    """The preprocessor of `infer` on the working grid of the cache, with the lesions beside the HU.

    Args:
        grid: Frames, height and width of what is kept.
        preprocessing: Slice rule and box.
        lungs: The lung model, by name or file.
        lobes: The lobe model that gates it, likewise; "none" without one.
    """

    def __init__(
        self,
        grid: tuple[int, int, int],
        preprocessing: Preprocessing,
        lungs: str,
        lobes: str = "none",
    ) -> None:
        import tensorflow as tf

        from tf_covid.preprocessor import LungModels, Preprocessor

        models = LungModels.read(lungs, lobes)
        gate = models.lobes.network if models.lobes else None
        self.preprocessor = Preprocessor(
            models.lungs.network, (*grid, 1), preprocessing, lobes=gate
        )
        volume = tf.TensorSpec([1, None, None, None], tf.int16)
        self.segment = tf.function(
            self.preprocessor.segment,
            input_signature=[volume, tf.TensorSpec([1], tf.int32)],
            jit_compile=False,
        )
        self.sample = tf.function(
            self._sample,
            input_signature=[volume, volume, tf.TensorSpec([1, None, None, None], tf.float32)],
        )

    def _sample(self, hu: Tensor, lesions: Tensor, probability: Tensor) -> tuple[Tensor, ...]:
        keep, box = self.preprocessor.locate(probability)
        sampled = (
            self.preprocessor.sampler(one, keep, box)[0] for one in (hu, probability, lesions)
        )
        return *sampled, keep[0]

    def clip(
        self, scan: Scan, lesions: np.ndarray | None, *, read: bool = False
    ) -> tuple[Planes, int, LungReading | None]:
        """HU, lungs and lesions on the working grid, and how many slices they were made of.

        Args:
            scan: The scan.
            lesions: Its diseased lung, bool (D, H, W); None where nobody drew it.
            read: Whether lungs and lobes are read, too, as `infer` reads them.

        Returns:
            Planes, number of kept slices, and what was read; None where nothing was asked for.

        Raises:
            ScanRefused: If there are no lungs in the scan.
        """
        hu = scan.hu[np.newaxis]
        outputs = self.segment(hu, np.array([len(scan.hu)], np.int32))
        probability = outputs["lungs"].numpy()[0]
        fraction = (probability > 0.5).mean(axis=(1, 2))
        minimum = self.preprocessor.slice_rule.minimum
        image_ml = scan.hu[0].size * float(np.prod(scan.spacing_mm)) / 1000.0
        quality_flags = lung_flags(fraction, min_fraction=minimum, spacing_mm=scan.spacing_mm)
        quality_flags += volume_flags(image_ml * float(fraction.sum()))
        if any(flag.level == "error" for flag in quality_flags):
            raise ScanRefused([*scan.quality_flags, *quality_flags])
        lesion_mask = np.zeros_like(hu) if lesions is None else lesions[np.newaxis].astype(np.int16)
        values, lungs, diseased, keep = (
            part.numpy() for part in self.sample(hu, lesion_mask, outputs["lungs"])
        )
        planes = {"hu": np.rint(values).astype("<i2"), "lungs": lungs >= 0.5}
        planes |= {"lesions": None if lesions is None else diseased >= 0.5}
        reading = None
        if read:
            disease, lobes = (
                outputs[name].numpy()[0] if name in outputs else None
                for name in ("disease", "lobes")
            )
            reading = read_lungs(
                scan.hu, probability, keep, scan.spacing_mm, disease=disease, lobes=lobes
            )
        return planes, int(keep.sum()), reading


# One a process: a model is loaded once, before the first scan that needs it.
clip_preprocessor = functools.lru_cache(maxsize=1)(ClipPreprocessor)
