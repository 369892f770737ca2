"""What the headers of a stack's slices say that limits what can be read from it.

Slabs, projections, mixtures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

from tf_covid.result import QualityFlag
from tf_covid.scan.checks import refusal
from tf_covid.scan.dicom import terms
from tf_covid.scan.dicom.stack import (
    STRAY_SHARE,
    THICKNESS_SHARE,
    SliceFrame,
    Stack,
    usual_thickness,
)

#: Slices thicker than so many spacings, and by so many mm, are slabs: 5 mm every 2 mm is usual, 10
#: mm every 1 mm not.
_SLAB_SPACINGS, _SLAB_MM = 3.05, 2.0
#: From this share of missing numbers on, and of thickness to spacing down, a series looks thinned.
_THINNED_SHARE = 0.7
#: Where no more than this share of the instance numbers runs against the others, these are suspect
#: and not the rule.
_FEW_AGAINST = 0.15


def content_flags(stack: Stack, slice_frames: Sequence[SliceFrame]) -> tuple[QualityFlag, ...]:
    """What the header says of the slices of a stack that limits what can be read from them."""
    flags = []
    thickness = usual_thickness(slice_frames)
    thick = (
        thickness > _SLAB_SPACINGS * stack.spacing_mm and thickness > stack.spacing_mm + _SLAB_MM
    )
    if thick:
        text = (
            f"SliceThickness (0018,0050) is {thickness:g} mm at a spacing of {stack.spacing_mm:.2f}"
            " mm: these are overlapping slabs, averages or projections, and small findings are"
            " smoothed or exaggerated."
        )
        flags.append(QualityFlag("thick_slices", "warning", text, thickness))
    first = slice_frames[0]
    if word := terms.described_projection(first.instance):
        text = f"SeriesDescription (0008,103E) says {word}, ImageType ORIGINAL"
        if thick:
            text += (
                ", and the slices are slabs: the values of a projection are not those of the tissue"
                " at one place."
            )
            raise refusal("projection", text, word)
        text += ": if this is a projection, its values are not those of the tissue at one place."
        flags.append(QualityFlag("projection", "warning", text, word))
    elif terms.averaged(first.instance, first.frame):
        text = (
            "ImageType or SeriesDescription says that the images are averages, not plain slices:"
            " detail is smoothed."
        )
        flags.append(QualityFlag("projection", "warning", text, "average"))
    return (*flags, *_mixtures(stack), *_unnumbered(stack, thickness))


def _unnumbered(stack: Stack, thickness: float) -> tuple[QualityFlag, ...]:
    """Which InstanceNumbers are missing, and what thin slices far apart say about it.

    Exports may be numbered in steps, so missing numbers alone are for information; but slices that
    are thinner than their distance, with numbers in between that are not there, look like a series
    of which every second file is gone.
    """
    numbers = [slice_group[0].instance.number for slice_group in stack.slice_groups if slice_group]
    missing = (
        max(numbers) - min(numbers) + 1 - len(numbers) - len(stack.missing)
    )  # gaps are told by themselves
    if len(set(numbers)) < len(numbers) or missing <= 0:
        return ()
    thinned = (
        missing >= _THINNED_SHARE * len(numbers)
        and 0 < thickness < _THINNED_SHARE * stack.spacing_mm
    )
    text = (
        f"{missing} InstanceNumbers (0020,0013) between {min(numbers)} and {max(numbers)} are not"
        " there"
    )
    if thinned:
        text += (
            f", and SliceThickness (0018,0050) is {thickness:g} mm at a spacing of"
            f" {stack.spacing_mm:.2f} mm: a part of the files may be missing. Look for them in the"
            " source."
        )
        return (QualityFlag("thinned_series", "warning", text, missing),)
    text += "; the positions have no hole that they would fill."
    return (QualityFlag("instance_gaps", "info", text, missing),)


def _mixtures(stack: Stack) -> tuple[QualityFlag, ...]:
    """What differs between the slices of a stack that share series, matrix and direction."""
    heads = [slice_group[0] for slice_group in stack.slice_groups if slice_group]
    flags = []
    derived = sum(slice_frame.frame.image_type[:1] == ("DERIVED",) for slice_frame in heads)
    if 0 < derived < len(heads):
        text = (
            f"ImageType (0008,0008) calls {derived} of {len(heads)} slices DERIVED, the others not."
        )
        flags.append(QualityFlag("mixed_image_type", "warning", text, derived))
    usual = usual_thickness(heads)
    other = sum(
        abs(slice_frame.frame.thickness - usual) > THICKNESS_SHARE * max(usual, 0.1)
        for slice_frame in heads
    )
    if other > STRAY_SHARE * len(heads):
        text = (
            f"SliceThickness (0018,0050) of {other} of {len(heads)} slices is not the usual"
            f" {usual:g} mm."
        )
        flags.append(QualityFlag("mixed_thickness", "warning", text, other))
    names = [slice_frame.instance.acquisition for slice_frame in heads]
    turns = sum(a != b for a, b in pairwise(names))
    if turns > 2 * len(set(names)):
        text = (
            f"AcquisitionNumber (0020,0012) changes {turns} times along the {len(heads)} slices:"
            f" {len(set(names))} acquisitions take turns. If they are phases (breathing, contrast),"
            " the stack mixes them."
        )
        flags.append(QualityFlag("mixed_acquisitions", "warning", text, turns))
    numbers = [slice_frame.instance.number for slice_frame in heads]
    falls = sum(a > b for a, b in pairwise(numbers))
    against = min(falls, len(numbers) - 1 - falls)
    if len(set(numbers)) == len(numbers) and 0 < against <= _FEW_AGAINST * len(numbers):
        text = (
            f"InstanceNumber (0020,0013) runs against the positions at {against} of {len(heads)}"
            " slices: ImagePositionPatient may be wrong there. The slices were ordered by"
            " position."
        )
        flags.append(QualityFlag("instance_order", "warning", text, against))
    unsaid = sum(not terms.says_hu(slice_frame.frame) for slice_frame in heads)
    if 0 < unsaid < len(heads):
        text = (
            f"RescaleType (0028,1054) of {unsaid} of {len(heads)} slices is unspecified; it was"
            " taken for HU, as in the others."
        )
        flags.append(QualityFlag("mixed_rescale_type", "warning", text, unsaid))
    return (*flags, *_mixed_values(heads))


#: What decides how stored values become numbers, and the codes and elements that a mixture of it is
#: told with.
_FORMS: tuple[tuple[str, str, Callable[[SliceFrame], object]], ...] = (
    (
        "mixed_rescale",
        "RescaleSlope (0028,1053) or RescaleIntercept (0028,1052)",
        lambda slice_frame: (slice_frame.frame.slope, slice_frame.frame.intercept),
    ),
    (
        "mixed_bits",
        (
            "BitsAllocated (0028,0100), BitsStored (0028,0101), HighBit (0028,0102) or"
            " PixelRepresentation (0028,0103)"
        ),
        lambda slice_frame: (
            slice_frame.instance.bits_allocated,
            slice_frame.instance.bits_stored,
            slice_frame.instance.high_bit,
            slice_frame.instance.signed,
        ),
    ),
)


def _mixed_values(heads: Sequence[SliceFrame]) -> tuple[QualityFlag, ...]:
    """Whether slices state different rules for what their stored values mean.

    A scanner writes one for a series.
    """
    flags = []
    for code, elements, form in _FORMS:
        count = len(heads) - Counter(map(form, heads)).most_common(1)[0][1]
        if count:
            text = (
                f"{elements} of {count} of {len(heads)} slices differ from the others; each slice"
                " was read by its own. Look whether the slices are equally bright."
            )
            flags.append(QualityFlag(code, "warning", text, count))
    return tuple(flags)
