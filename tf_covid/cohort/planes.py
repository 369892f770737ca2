"""What a record of the cache is made of: slices of a scan with their masks, on a working grid."""

from __future__ import annotations

import functools

import numpy as np

from tf_covid.errors import ScanRefused
from tf_covid.scan import Scan, lung_flags, volume_flags
from tf_covid.tensor import Tensor
from tf_covid.weights import Preprocessing

#: HU and masks by name; None where nobody drew one.
Planes = dict[str, np.ndarray | None]


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

    def clip(self, scan: Scan, lesions: np.ndarray | None) -> tuple[Planes, int]:
        """HU, lungs and lesions on the working grid, and how many slices they were made of.

        Raises:
            ScanRefused: If there are no lungs in the scan.
        """
        hu = scan.hu[np.newaxis]
        results = self.segment(hu, np.array([len(scan.hu)], np.int32))["lungs"]
        fraction = (results.numpy()[0] > 0.5).mean(axis=(1, 2))
        minimum = self.preprocessor.slice_rule.minimum
        image_ml = scan.hu[0].size * float(np.prod(scan.spacing_mm)) / 1000.0
        quality_flags = lung_flags(fraction, min_fraction=minimum, spacing_mm=scan.spacing_mm)
        quality_flags += volume_flags(image_ml * float(fraction.sum()))
        if any(flag.level == "error" for flag in quality_flags):
            raise ScanRefused([*scan.quality_flags, *quality_flags])
        lesion_mask = np.zeros_like(hu) if lesions is None else lesions[np.newaxis].astype(np.int16)
        values, lungs, diseased, keep = (
            part.numpy() for part in self.sample(hu, lesion_mask, results)
        )
        planes = {"hu": np.rint(values).astype("<i2"), "lungs": lungs >= 0.5}
        return planes | {"lesions": None if lesions is None else diseased >= 0.5}, int(keep.sum())


# One a process: a model is loaded once, before the first scan that needs it.
clip_preprocessor = functools.lru_cache(maxsize=1)(ClipPreprocessor)
