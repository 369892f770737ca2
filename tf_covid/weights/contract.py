"""What a model file says about itself: `tf_covid.json` inside the `.keras` file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from tf_covid.errors import ModelError

#: "pretrained": it answers classes of its source, and is there to be trained further.
Task = Literal["severity", "covid", "lungs", "lobes", "slices", "pretrained"]


class Preprocessing(BaseModel):
    """How HU become the network's input. The defaults are the study's.

    Args:
        level_hu, width_hu: HU window that maps to [0, 1].
        slice_minimum: Least share of the image that must be lung for a slice to be kept.
        box: "lungs" crops kept slices to the box of the mask plus a margin; "none" is the paper's
            full frame.
        box_margin: Share of the box's side added on each side.
        input_scale, input_offset: `scale × x + offset` after window and mask; one number, or one
            for each channel.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    level_hu: float = -400.0
    width_hu: Annotated[float, Field(gt=0)] = 1400.0
    slice_minimum: Annotated[float, Field(gt=0, lt=1)] = 0.05
    box: Literal["lungs", "none"] = "lungs"
    box_margin: Annotated[float, Field(ge=0, lt=1)] = 0.04
    input_scale: tuple[float, ...] = (1.0,)
    input_offset: tuple[float, ...] = (0.0,)


_Fingerprints = tuple[Annotated[str, Field(pattern="^[0-9a-f]{16}$")], ...]


class TrainedOn(BaseModel):
    """Scans that weights were trained or calibrated on, see `weights/seen.py`.

    Args:
        salt: Stands before what is hashed; hex.
        scans: Fingerprint of the voxels of each scan, sorted.
        patients: Fingerprint of each patient's id, sorted; kept by option only.
        unchecked: Scans of which there are no fingerprints, such as synthetic chests, or those of
            the weights that it started from; "" if there are none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    salt: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = None
    scans: _Fingerprints = ()
    patients: _Fingerprints = ()
    unchecked: Annotated[str, Field(max_length=500)] = ""


_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Finite = Annotated[float, Field(ge=-100, le=100)]


class Contract(BaseModel):
    """Everything that a weight file needs to be used rightly.

    Args:
        model: Row of the table of models, e.g. "i3d".
        arguments: Arguments of the network's builder.
        task: Task that the network answers.
        preprocessing: Preprocessing from HU to the network's input.
        classes: Labels of the logits, in order.
        endpoint: Layer that Grad-CAM explains, if not that of the table of networks.
        lungs_sha256: Identity of the 2D lung model it was trained behind (in files of format 1: the
            sha256 of its file); None for a lung model.
        lobes_sha256: Identity of the 3D lobe model whose gate stood behind that; None without one.
        disease_calibration: Of a lung model: scale and offset of the logit of diseased lung, so
            that its sigmoid is the share of such cells that are diseased.
        note: What the network was trained on, and its limits; stands in every result.
        origin: Origin of the weights: who made them, and how.
        licence: SPDX identifier.
        format: Version of this contract; 2 names models by their weights, 1 by their file.
        untrained_head: Layers that answer were drawn at random and not trained yet: it is there to
            be trained, and answers nothing. Absent in files of before.
        trained_on: Which scans it has seen; None where the file does not say.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1, 2] = 2
    model: str
    arguments: dict[str, Any]
    task: Task
    preprocessing: Preprocessing = Preprocessing()
    classes: tuple[str, ...] = ()
    endpoint: str | None = None
    lungs_sha256: _Sha256 | None = None
    lobes_sha256: _Sha256 | None = None
    disease_calibration: tuple[_Finite, _Finite] | None = None
    note: Annotated[str, Field(max_length=2000)]
    origin: Annotated[str, Field(max_length=2000)] = ""
    licence: Annotated[str, Field(max_length=200)] = ""
    untrained_head: bool = False
    trained_on: tuple[TrainedOn, ...] | None = None

    @model_serializer(mode="wrap")
    def _sparse(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what is as in files of before.

        Older versions refuse fields that they do not know.
        """
        return {
            key: value
            for key, value in write(self).items()
            if key not in _LATER or value not in (False, None)
        }


#: Fields that came after the first files.
_LATER = ("untrained_head", "trained_on", "lobes_sha256", "disease_calibration")

#: What `tfcovid import` wrote into the note of such a file before there was a field for it.
_UNTRAINED = "its answers mean nothing before training"


def check_trained(name: str, contract: Contract) -> None:
    """Refuse a network that would answer at random.

    Args:
        name: Name of the model or its file, for the error message.
        contract: Contract in the model's file.

    Raises:
        ModelError: If the network's head is untrained.
    """
    if contract.untrained_head or _UNTRAINED in contract.note:
        task = contract.task if contract.task != "pretrained" else "TASK"
        raise ModelError(
            f"untrained_head: {name}: its last layers were drawn at random when it was imported, so"
            f" that its answers mean nothing; train it: tfcovid fit MANIFEST --task {task} --model"
            f" {contract.model} --init FILE --out RUN"
        )
