"""What lies between a scan and a network's clip, once.

For the cache, training, export and inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras

from tf_covid.errors import ModelError
from tf_covid.layers import (
    ClipSampler,
    ContextGate,
    HUWindow,
    LobeSegmenter,
    LungBox,
    LungSegmenter,
    MaskedClip,
    SliceRule,
    input_scaling,
)
from tf_covid.tensor import Tensor
from tf_covid.weights import Contract, LoadedModel, Preprocessing, contract_of, load
from tf_covid.weights.catalog import LOBES, LUNGS, NO_LOBES
from tf_covid.weights.contract import check_trained

#: What the outputs of the lung U-Net are, in order.
OUTPUTS = ("lungs", "disease")


@dataclass(frozen=True)
class LungModels:
    """The two models that find lungs: slices at their own size, and the whole scan coarsely.

    Args:
        lungs: 2D U-Net.
        lobes: 3D network that finds the lobes and gates the 2D mask; None without one.
        gated: Whether it gates; False where a classifier was trained behind the 2D mask as it is,
            and the lobes are found all the same.
    """

    lungs: LoadedModel
    lobes: LoadedModel | None = None
    gated: bool = True

    @classmethod
    def read(
        cls,
        lungs: str | Path = LUNGS,
        lobes: str | Path | None = NO_LOBES,
        *,
        precision: str = "float32",
        gated: bool = True,
    ) -> LungModels:
        """Both models by name or file.

        Args:
            lungs: 2D U-Net.
            lobes: 3D network; "none" or None for the 2D mask alone.
            precision: "float32" or "bfloat16", of the 2D U-Net; the coarse network is always
                float32.
            gated: Whether the lobes gate the 2D mask.

        Raises:
            ModelError: If one is missing, damaged, untrained or a model of another task.
        """
        pair = cls(
            load(lungs, precision=precision),
            None if lobes in (None, NO_LOBES) else load(lobes or LOBES),
            gated,
        )
        for model, task in ((pair.lungs, "lungs"), (pair.lobes, "lobes")):
            if model is None:
                continue
            check_trained(model.name, model.contract)
            if model.contract.task != task:
                raise ModelError(
                    f"{model.name}: is a model for the task {model.contract.task}, not {task}"
                )
        return pair

    @property
    def sha256s(self) -> list[str]:
        """Identities of both, see `weights.weights_sha256`."""
        return [self.lungs.sha256, *([self.lobes.sha256] if self.lobes else [])]

    @property
    def files(self) -> list[str]:
        """sha256 of both files."""
        return [model.file_sha256 for model in (self.lungs, self.lobes) if model]

    def differs_from(self, contract: Contract) -> str | None:
        """Why a classifier was not trained behind these; None where it was, or does not say."""
        for model, kind, theirs in (
            (self.lungs, "lung", contract.lungs_sha256),
            (self.lobes if self.gated else None, "lobe", contract.lobes_sha256),
        ):
            if kind == "lobe" and contract.lungs_sha256 is None:
                continue
            if model is None and theirs is not None:
                return f"was trained behind the lobe model {theirs[:12]}…, and none gates here"
            if model is None or (kind == "lung" and theirs is None):
                continue
            if theirs is None:
                return f"was trained behind no lobe model, but {model.name} is here"
            if not model.is_named(theirs):
                return (
                    f"was trained behind the {kind} model {theirs[:12]}…, but {model.name} is"
                    f" {model.sha256[:12]}…"
                )
        return None


def default_lobes(contracts: Sequence[Contract]) -> str:
    """The lobe model that networks bring along: the shipped one, or none.

    A network that was trained behind a lobe model meets the shipped one; one that was trained
    without, or says nothing, meets the 2D mask as it is.
    """
    behind = any(contract.lobes_sha256 for contract in contracts)
    return LOBES if behind else NO_LOBES


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
        lobes: 3D network from whole scans (n, d, f, g, 1) to `logits` and `flips`, whose lobes gate
            the U-Net's masks; None: the masks are taken as they are.
        gated: False: the lobes are found, and gate nothing.
        calibration: Scale and offset of the logit of diseased lung; None: what came with `lungs`.
    """

    def __init__(
        self,
        lungs: keras.Model,
        clip: tuple[int, int, int, int],
        settings: Preprocessing | None = None,
        lungs_settings: Preprocessing | None = None,
        chunk: int = 16,
        lobes: keras.Model | None = None,
        gated: bool = True,
        calibration: tuple[float, float] | None = None,
    ) -> None:
        settings = settings or Preprocessing()
        contract = contract_of(lungs)
        if lungs_settings is None:
            lungs_settings = contract.preprocessing if contract else settings
        if calibration is None:
            calibration = (contract and contract.disease_calibration) or (1.0, 0.0)
        frames, height, width, channels = clip
        self.settings, self.lungs_settings = settings, lungs_settings
        self.lungs, self.lobes, self.gated, self.chunk = lungs, lobes, gated, int(chunk)
        level_hu, width_hu = lungs_settings.level_hu, lungs_settings.width_hu
        self.segmenter = LungSegmenter(
            lungs, level_hu, width_hu, chunk, calibration, name="segmenter"
        )
        self.lobe_segmenter, self.gate = None, ContextGate(chunk=chunk, name="gate")
        if lobes is not None:
            seen = contract_of(lobes)
            window = (seen.preprocessing.level_hu, seen.preprocessing.width_hu) if seen else ()
            self.lobe_segmenter = LobeSegmenter(lobes, *window, name="lobe_segmenter")
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
        """What the U-Net finds, on its own grid, where the lobe network agrees that it is chest.

        No component analysis: see `lungs.py`.

        Args:
            hu: int16 (N, D, H, W).
            depth: int32 (N,), the number of true slices of each scan.

        Returns:
            `lungs` float32 (N, D, h, w), the lung probability; `disease`, the probability of
            diseased lung in the same shape, where the U-Net has two outputs; and, where there is a
            lobe network, `lobes`, `effusion` and `orientation` of `LobeSegmenter`.
        """
        probabilities, planes = self.segmenter.with_planes(hu, depth)
        coarse: dict[str, Tensor] = {}
        if self.lobe_segmenter is not None:
            coarse = self.lobe_segmenter(planes, depth)
            if self.gated:
                probabilities = self.gate.each(coarse["lobes"], probabilities, depth)
        return dict(zip(OUTPUTS, probabilities, strict=False)) | coarse

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
