"""Which images of a study are CT slices, and why the others are none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tf_covid.errors import ScanRefused
from tf_covid.scan.checks import refusal
from tf_covid.scan.dicom import terms
from tf_covid.scan.dicom.header import Frame, Instance
from tf_covid.scan.dicom.left_out import NO_FRAMES, LeftOut, counted
from tf_covid.scan.dicom.stack import SliceFrame


def slices(instances: Iterable[Instance]) -> tuple[list[SliceFrame], list[LeftOut]]:
    """The frames that are CT slices, and all the others with the reason why they are none.

    Raises:
        ScanRefused: `not_ct`, `projection` or `no_slices` if there is no slice at all.
    """
    slice_frames: list[SliceFrame] = []
    others: list[LeftOut] = []
    for one in instances:
        if reason := _no_ct(one):
            others += [LeftOut(one, frame, reason) for frame in one.frames[:1] or (None,)]
        elif not one.frames:
            others.append(LeftOut(one, None, NO_FRAMES))
        else:
            for frame in one.frames:
                reason, slab = _no_slice(one, frame)
                if reason:
                    others.append(LeftOut(one, frame, reason, slab))
                else:
                    slice_frames.append(SliceFrame(one, frame))
    if not slice_frames:
        raise _nothing(others)
    return slice_frames, others


def _no_ct(instance: Instance) -> str:
    if instance.modality != "CT":
        return f"with {terms.modality_text(instance)}"
    if instance.sop_class not in terms.CT_CLASSES:
        return f"with {terms.sop_class_text(instance)}"
    if instance.samples != 1:
        return f"with SamplesPerPixel {instance.samples}"
    return ""


def _no_slice(instance: Instance, frame: Frame) -> tuple[str, bool]:
    """Why a frame of a CT image is no slice, and whether it is a slab."""
    if word := terms.no_slice(frame):
        return f"with ImageType {word}", False
    if word := terms.projection(instance, frame):
        return f"with {word}", True
    return ("" if terms.is_hu(frame) else f"with {terms.rescale_text(frame)}"), False


def _nothing(others: Sequence[LeftOut]) -> ScanRefused:
    text = counted(others)
    if all(_no_ct(one.instance) and one.instance.samples == 1 for one in others):
        return refusal("not_ct", f"No CT images: {text} (by Modality and SOP class).", text)
    slabs = sum(one.slab for one in others)
    if slabs > len(others) / 2:
        text = (
            f"{slabs} images are projections, not slices: {text}. Their values are not those of the"
            " tissue at one place; give the thin slices that they were made of."
        )
        return refusal("projection", text, slabs)
    text = f"{len(others)} images, but no slices of a CT in Hounsfield units: {text}."
    return refusal("no_slices", text, len(others))
