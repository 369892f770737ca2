"""How a network is trained.

The settings of a run, from a TOML file that rejects what it does not know.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tf_covid.cohort.augment import Augmentation
from tf_covid.errors import TrainingError
from tf_covid.phantom.mark import VALIDATION
from tf_covid.weights import Preprocessing

#: Name until 0.1 → name. The old ones are read until the next release.
RENAMED = {"held_out": "validation_fraction", "clip_norm": "gradient_clip_norm"}

_Positive = Annotated[float, Field(gt=0)]
_Size = Annotated[int, Field(ge=1, le=1024)]
_Slices = Annotated[int, Field(ge=8, le=512)]
_Side = Annotated[int, Field(ge=32, le=512, multiple_of=16)]
_Times = Annotated[int, Field(ge=0, le=20)]


class Stage(BaseModel):
    """A part of the training in which the first layers stay as they are.

    Args:
        epochs: Number of epochs of this stage.
        train_from: Name of the first layer that learns, e.g. "Mixed_5b"; "head" for the dense
            layers only; "disease" for the outputs of `disease_endpoints` only, and for what a
            network with `disease_pooling` reads from them: a network that knows its task is not
            pulled about by what begins at random. These learn at every stage.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: Annotated[int, Field(ge=1)]
    train_from: str


class PhantomPool(BaseModel):
    """Which synthetic chests are drawn, where MANIFEST is `phantom:N`.

    Args:
        first_seed: Seed of the first chest; those of a run are consecutive and end below
            `phantom.mark.VALIDATION`.
        fresh: Share of the training chests that new ones take the place of in each epoch, 0 … 1; a
            tenth at least keeps a network from learning the pool by heart.
        slices: Fewest and most slices of a chest.
        side_pixels: Smallest and largest side of a slice, multiples of 16.
        per_class: How often each severity class is drawn, relative to the others. The chests that
            validate have all classes alike.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    first_seed: Annotated[int, Field(ge=0, lt=VALIDATION)] = 0
    fresh: Annotated[float, Field(ge=0, le=1)] = 0.1
    slices: tuple[_Slices, _Slices] = (28, 96)
    side_pixels: tuple[_Side, _Side] = (112, 160)
    per_class: tuple[_Times, _Times, _Times, _Times, _Times] = (1, 1, 1, 1, 1)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for name in ("slices", "side_pixels"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: the first is the smaller one")
        if not any(self.per_class):
            raise ValueError("per_class: a class has to be drawn")
        return self


class Settings(BaseModel):
    """Settings of `tfcovid fit`. Every one has a default; a file names those that differ.

    Args:
        clip: Frames, height and width of the network's input (slices: height and width count).
        working_grid: The same of the cache; None: twice the clip, as far as the cache allows. A
            lung model keeps `working_grid[0]` slices of each scan at the size of `clip`.
        epochs: Number of epochs: how often each scan is seen.
        batch: Scans, or slices, a step.
        slices_per_scan: 2D tasks: slices drawn from each scan in an epoch.
        learning_rate: At its peak.
        warmup_epochs: Over which it rises from 0; then it falls along a cosine.
        gradient_clip_norm: Largest norm of a step's gradient.
        loss: "cross_entropy", as in the paper; "ordinal" asks “worse than class k?” for each k.
        class_weights: Weigh cases against the frequency of their class.
        ct_score_weight: Of the second output's loss; 0: no second output. Cases without a score do
            not count.
        disease_endpoints: Layers of a 3D network that are asked for the diseased share of each of
            their cells as well (needs lesion masks of all cases; of these outputs the model file
            has the one that `disease_pooling` reads, and no other).
        disease_weight: Weight of the loss of each disease output.
        stages: First parts of the training in which not all layers learn.
        validation_fraction: Share of the training side's patients on which the loss is validated,
            to stop early and to choose the best epoch; 0 … 0.9. They are not trained on.
        patience: Stop after so many epochs without a better loss on those; None: never.
        keep: "last" or "best" (by the loss on those) weights.
        precision: "float32", or "mixed": float16 on a GPU, bfloat16 on a CPU.
        seed: Folds, weights, order and augmentation follow from it.
        dropout: Before the dense outputs; None: the network's own.
        network: Further arguments of the network's builder, e.g. `dense = 1024` (LTC), `filters =
            16` (U-Net).
        slice_minimum, box, box_margin: See `Preprocessing`; the paper's full frame is `box =
            "none"`.
        mask_weights: Lung models: how much more a pixel of lung, and one of disease, weighs
            in the cross-entropy than one outside.
        init_share: Share of the weights that training started from in those that are kept (Wortsman
            et al. 2022, arXiv 2109.01903); 0: none. Needs `--init` of the same architecture.
        endpoint: Layer that Grad-CAM explains; None: the last one before the head, or the one whose
            diseased cells are pooled.
        augmentation: See there.
        phantom: See there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    clip: tuple[_Size, _Size, _Size] = (24, 64, 64)
    working_grid: tuple[_Size, _Size, _Size] | None = None
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 30
    batch: Annotated[int, Field(ge=1, le=4096)] = 8
    slices_per_scan: Annotated[int, Field(ge=1, le=64)] = 8
    learning_rate: _Positive = 1e-3
    warmup_epochs: Annotated[float, Field(ge=0)] = 1.0
    gradient_clip_norm: _Positive = 1.0
    loss: Literal["cross_entropy", "ordinal"] = "cross_entropy"
    class_weights: bool = True
    ct_score_weight: Annotated[float, Field(ge=0)] = 20.0
    disease_endpoints: tuple[str, ...] = ()
    disease_weight: Annotated[float, Field(ge=0)] = 2.0
    stages: tuple[Stage, ...] = ()
    validation_fraction: Annotated[float, Field(ge=0, lt=0.9)] = 0.0
    patience: Annotated[int, Field(ge=1)] | None = None
    keep: Literal["last", "best"] = "last"
    precision: Literal["float32", "mixed"] = "float32"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 1
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    network: dict[str, Any] = {}
    slice_minimum: Annotated[float, Field(gt=0, lt=1)] = 0.05
    box: Literal["lungs", "none"] = "lungs"
    box_margin: Annotated[float, Field(ge=0, lt=1)] = 0.04
    mask_weights: tuple[_Positive, _Positive] = (1.0, 1.0)
    init_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    endpoint: str | None = None
    augmentation: Augmentation = Augmentation()
    phantom: PhantomPool = PhantomPool()

    @model_validator(mode="after")
    def _together(self) -> Self:
        if not self.validation_fraction and (self.patience or self.keep == "best"):
            raise ValueError(
                'patience and keep = "best" need validation_fraction > 0: the test fold must not'
                " tell when to stop"
            )
        if sum(stage.epochs for stage in self.stages) > self.epochs:
            raise ValueError("the stages last longer than the epochs")
        return self

    def preprocessing(self, scaling: Preprocessing) -> Preprocessing:
        """Slice rule and box from here, window and input scaling from a network."""
        own = {"slice_minimum": self.slice_minimum, "box": self.box, "box_margin": self.box_margin}
        return scaling.model_copy(update=own)


def current_names(values: dict[str, Any]) -> dict[str, Any]:
    """Settings whose old names are replaced by those of today; the dictionary given stays.

    Raises:
        TrainingError: If a setting is there under both names.
    """
    if both := [f"{old} and {new}" for old, new in RENAMED.items() if {old, new} <= values.keys()]:
        raise TrainingError(f"{', '.join(both)} are one setting: leave the first name out")
    return {RENAMED.get(name, name): value for name, value in values.items()}


def read_settings(path: Path, on_message: Callable[[str], None] | None = None) -> Settings:
    """Settings from a TOML file.

    Args:
        path: TOML file; a setting that it does not name has its default.
        on_message: Is called with a line for each setting that has an old name.

    Raises:
        TrainingError: With a line for each setting that is unknown or impossible.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        settings = Settings.model_validate(current_names(values))
    except ValidationError as error:
        facts = "".join(
            f"\n{'.'.join(map(str, item['loc'])) or 'settings'}:"
            f" {item['msg'].removeprefix('Value error, ')}"
            for item in error.errors()
        )
        raise TrainingError(
            f"{path.name}: {len(error.errors())} setting(s) are wrong{facts}"
        ) from error
    except TrainingError as error:
        raise TrainingError(f"{path.name}: {error}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TrainingError(f"{path.name}: cannot be read as TOML ({error})") from error
    for old in sorted(RENAMED.keys() & values.keys()):
        if on_message:
            on_message(
                f"warning: {path.name}: {old} is called {RENAMED[old]} now; the old name is read"
                " until the next release"
            )
    return settings
