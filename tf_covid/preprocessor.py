"""What lies between a scan and a network's clip, once.

For the cache, training, export and inference.
"""

from __future__ import annotations

import keras

from tf_covid.layers import (
    ClipSampler,
    HUWindow,
    LungBox,
    LungSegmenter,
    MaskedClip,
    SliceRule,
    input_scaling,
)
from tf_covid.tensor import Tensor
from tf_covid.weights import Preprocessing, contract_of

#: What the outputs of the lung U-Net are, in order.
OUTPUTS = ("lungs", "disease")


class Preprocessor:
    """Window, U-Net, slice rule, lung box, resampling, mask and input scaling, as Keras layers.

    N is the number of scans, D the slices of the longest, (h, w) the grid of the U-Net and (D', H',
    W', C) the clip. Every method consists of TensorFlow operations: it runs eagerly, within a
    `tf.function`, and travels inside an exported SavedModel.

    Args:
        lungs: U-Net from slices (n, h, w, 1) to `{"logits": …}`; a second output is diseased lung,
            which no classifier ever sees.
        clip: Frames, height, width and channels of the clip, (D', H', W', C).
        settings: Window, slice rule, box and input scaling of the network; None: the paper's.
        lungs_settings: Window of the U-Net; None: what came with its weights, else `settings`.
        chunk: Slices that go through U-Net and resampling at a time; bounds the memory.
    """

    def __init__(
        self,
        lungs: keras.Model,
        clip: tuple[int, int, int, int],
        settings: Preprocessing | None = None,
        lungs_settings: Preprocessing | None = None,
        chunk: int = 16,
    ) -> None:
        settings = settings or Preprocessing()
        if lungs_settings is None:
            contract = contract_of(lungs)
            lungs_settings = contract.preprocessing if contract else settings
        frames, height, width, channels = clip
        self.settings, self.lungs_settings = settings, lungs_settings
        self.lungs, self.chunk = lungs, int(chunk)
        level_hu, width_hu = lungs_settings.level_hu, lungs_settings.width_hu
        self.segmenter = LungSegmenter(lungs, level_hu, width_hu, chunk, name="segmenter")
        self.slice_rule = SliceRule(settings.slice_minimum, name="slice_rule")
        self.lung_box = LungBox(settings.box, settings.box_margin, name="lung_box")
        self.sampler = ClipSampler(frames, height, width, chunk, name="sampler")
        self.window = HUWindow(settings.level_hu, settings.width_hu, dtype="float32", name="window")
        self.masked = MaskedClip(channels, dtype="float32", name="masked")
        self.scaling = input_scaling(settings.input_scale, settings.input_offset)

    @property
    def finds_disease(self) -> bool:
        """Whether the U-Net has a second output, diseased lung."""
        return self.segmenter.outputs > 1

    @property
    def lungs_grid(self) -> tuple[int, int]:
        """Height and width (h, w) that the U-Net sees each slice at."""
        height, width = self.segmenter.grid
        return height, width

    def segment(self, hu: Tensor, depth: Tensor) -> dict[str, Tensor]:
        """What the U-Net finds, on its own grid. No component analysis: see `lungs.py`.

        Args:
            hu: int16 (N, D, H, W).
            depth: int32 (N,), the number of true slices of each scan.

        Returns:
            `lungs` float32 (N, D, h, w), the lung probability; and `disease`, the probability of
            diseased lung in the same shape, where the U-Net has two outputs.
        """
        probabilities = self.segmenter(hu, depth)
        names = OUTPUTS[: self.segmenter.outputs]
        return {name: probabilities[..., output] for output, name in enumerate(names)}

    def locate(self, probability: Tensor) -> tuple[Tensor, Tensor]:
        """Which slices are kept, and the box of the lungs within them.

        Args:
            probability: Lung probability (N, D, h, w).

        Returns:
            Kept slices, bool (N, D), and the box, float32 (N, 4), as fractions of height and width.
        """
        keep = self.slice_rule(probability)
        return keep, self.lung_box(probability, keep)

    def cut(self, hu: Tensor, probability: Tensor) -> dict[str, Tensor]:
        """The kept slices within the box, on the clip grid, before they are masked.

        Args:
            hu: int16 (N, D, H, W).
            probability: Lung probability (N, D, h, w).

        Returns:
            `clip` float32 (N, D', H', W') in [0, 1], `lungs` its lung probability, `keep` bool (N,
            D), `box` float32 (N, 4).
        """
        keep, box = self.locate(probability)
        # A probability is a fraction, 0 … 1; the sampler's clipping of HU leaves it as it is.
        lungs = self.sampler(probability, keep, box)
        clip = self.window(self.sampler(hu, keep, box))
        return {"clip": clip, "lungs": lungs, "keep": keep, "box": box}

    def finish(self, clip: Tensor, lungs: Tensor) -> Tensor:
        """Mask and scale what `cut` gave: the clip (N, D', H', W', C) as the network takes it."""
        return self.scaling(self.masked(clip, lungs))

    def prepare(self, hu: Tensor, probability: Tensor) -> dict[str, Tensor]:
        """The clip of each scan, and what brings it back onto the scan.

        Args:
            hu: int16 (N, D, H, W).
            probability: Lung probability (N, D, h, w), `lungs` of `segment` or from a user's mask.

        Returns:
            `clip` float32 (N, D', H', W', C) as the network takes it, `keep` bool (N, D), `box`
            float32 (N, 4), and `lungs` float32 (N, D', H', W'), the lung probability on the clip.
        """
        cut = self.cut(hu, probability)
        return cut | {"clip": self.finish(cut["clip"], cut["lungs"])}
