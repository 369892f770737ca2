"""What a model file says about itself: `tf_covid.json` inside the `.keras` file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

#: "pretrained": it answers classes of its source, and is there to be trained further.
Task = Literal["severity", "covid", "lungs", "slices", "pretrained"]


class Preprocessing(BaseModel):
    """How HU become the network's input. The defaults are the study's.

    Args:
        level_hu, width_hu: HU window that maps to [0, 1].
        slice_minimum: Least share of the image that must be lung for a slice to be kept.
        box: "lungs" crops kept slices to the box of the mask plus a margin; "none" is the paper's full frame.
        box_margin: Share of the box's side added on each side.
        input_scale, input_offset: `scale × x + offset` after window and mask; one number, or one for each channel.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    level_hu: float = -400.0
    width_hu: Annotated[float, Field(gt=0)] = 1400.0
    slice_minimum: Annotated[float, Field(gt=0, lt=1)] = 0.05
    box: Literal["lungs", "none"] = "lungs"
    box_margin: Annotated[float, Field(ge=0, lt=1)] = 0.04
    input_scale: tuple[float, ...] = (1.0,)
    input_offset: tuple[float, ...] = (0.0,)


class Contract(BaseModel):
    """Everything that a weight file needs to be used rightly.

    Args:
        model: Row of the table of models, e.g. "i3d".
        arguments: Arguments of its builder.
        task: What it answers.
        preprocessing: How HU become its input.
        classes: Labels of the logits, in order.
        endpoint: Layer that Grad-CAM explains, if not the last one before the head.
        lungs_sha256: The lung model it was trained behind; None for a lung model.
        note: What it was trained on, and its limits; stands in every result.
        origin: Who made the weights, and how.
        licence: SPDX identifier.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    model: str
    arguments: dict[str, Any]
    task: Task
    preprocessing: Preprocessing = Preprocessing()
    classes: tuple[str, ...] = ()
    endpoint: str | None = None
    lungs_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    note: Annotated[str, Field(max_length=2000)]
    origin: Annotated[str, Field(max_length=2000)] = ""
    licence: Annotated[str, Field(max_length=200)] = ""
