"""`lungs.dcm` and `attention.dcm`: DICOM Segmentations (PS3.3 A.51), binary, uncompressed.

One frame for each stored slice that holds any of a segment, on the slice's own place; slices that
were interpolated have no image, and are not written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from highdicom import UID
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentDescription
from highdicom.sr.coding import CodedConcept
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from tf_covid.dicom_results import codes as own
from tf_covid.dicom_results.equipment import (
    MANUFACTURER,
    MODEL_NAME,
    SERIAL_NUMBER,
    SERIES_NUMBERS,
    Stamp,
    algorithm,
)
from tf_covid.dicom_results.references import refer_to_images
from tf_covid.dicom_results.source_datasets import frames_of
from tf_covid.result import DISCLAIMER
from tf_covid.severity import LOBES

if TYPE_CHECKING:
    from tf_covid.dicom_results.source_datasets import Sources
    from tf_covid.result import Attention, Maps
    from tf_covid.scan import Scan

#: Shares of the map's maximum from which each band of `attention.dcm` begins.
BANDS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Segment:
    """One segment: the voxels of a volume whose values lie in a range.

    Args:
        label: Its name in a viewer.
        volume: (D, H, W), uint8, canonical; several segments may fraction it.
        low: Least value.
        high: Largest value.
        category: SegmentedPropertyCategory.
        kind: SegmentedPropertyType.
        color: RGB, 0–255.
        laterality: Modifier of the type; None where it has no side.
        site: Where it lies, if its type is no anatomy.
    """

    label: str
    volume: np.ndarray
    low: int
    high: int
    category: Code
    kind: Code
    color: tuple[int, int, int]
    laterality: Code | None = None
    site: Code | None = None

    def frames(self, scan: Scan, sources: Sources) -> np.ndarray:
        """Its mask on the frames of the sources, (N, rows, columns), bool."""
        frames = frames_of(self.volume, scan, sources)
        return np.asarray((frames >= self.low) & (frames <= self.high))


def lung_segments(maps: Maps) -> list[Segment]:
    """Right lung, left lung, diseased lung, and the five lobes, as far as they were looked for."""
    anatomy, abnormal = codes.SCT.AnatomicalStructure, codes.SCT.MorphologicallyAbnormalStructure
    right, left = codes.SCT.Right, codes.SCT.Left
    lungs, lesions, lobes = maps.lungs, maps.lesions, maps.lobes
    segments = [
        Segment("Right lung", lungs, 1, 1, anatomy, codes.SCT.Lung, (77, 163, 255), right),
        Segment("Left lung", lungs, 2, 2, anatomy, codes.SCT.Lung, (255, 170, 77), left),
    ]
    if lesions is not None:
        segments.append(
            Segment(
                "Diseased lung",
                lesions,
                1,
                255,
                abnormal,
                codes.SCT.Lesion,
                (230, 60, 60),
                site=codes.SCT.Lung,
            )
        )
    if lobes is not None:
        for index, (name, color) in enumerate(zip(LOBES, own.LOBE_COLORS, strict=True), 1):
            lobe = own.LOBES[name]
            label = f"{name.capitalize()} lobe"
            segments.append(
                Segment(label, lobes, index, index, anatomy, lobe.code, color, lobe.laterality)
            )
    return segments


def attention_segments(attention: np.ndarray, how: Attention) -> list[Segment]:
    """The bands of an attention map, uint8 with 255 its maximum: each within the one before."""
    kind = own.activation(how.method)
    colors = ((255, 220, 80), (255, 140, 0), (220, 0, 0))
    return [
        Segment(
            f"Attention from {fraction:.0%} of its maximum",
            attention,
            math.ceil(fraction * 255),
            255,
            codes.SCT.SpatialAndRelationalConcept,
            kind,
            color,
            site=codes.SCT.Lung,
        )
        for fraction, color in zip(BANDS, colors, strict=True)
    ]


def segmentation(
    kind: str, segments: Sequence[Segment], scan: Scan, stamp: Stamp, description: str
) -> Dataset:
    """A Segmentation of some segments.

    Args:
        kind: A key of `SERIES_NUMBERS`.
        segments: In the order of their numbers, each with a voxel (`with_voxels`); at least one.
        scan: The scan, on whose grid the masks lie.
        stamp: UIDs, time and version.
        description: SeriesDescription.
    """
    sources = stamp.sources
    size = len(sources.stored_indices), sources.first.Rows, sources.first.Columns, len(segments)
    # Filled one by one: eight masks of a large scan are gigabytes.
    frames = np.zeros(size, np.uint8)
    for index, segment in enumerate(segments):
        frames[..., index] = segment.frames(scan, sources)
    dataset = Segmentation(
        source_images=sources.datasets,
        pixel_array=frames,
        segmentation_type="BINARY",
        segment_descriptions=[
            _description(index, segment, kind, stamp) for index, segment in enumerate(segments, 1)
        ],
        series_instance_uid=stamp.series_uid(kind),
        series_number=SERIES_NUMBERS[kind],
        sop_instance_uid=stamp.uid(kind),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=stamp.version,
        device_serial_number=SERIAL_NUMBER,
        content_label=kind.upper()[:16],
        content_description="Slices that gap repair interpolated have no frame.",
        content_creator_name="",
        series_description=description,
    )
    dataset.ImageComments = DISCLAIMER
    refer_to_images(dataset, sources)
    stamp.pin(dataset, kind)
    return dataset


def with_voxels(segments: Sequence[Segment], scan: Scan, sources: Sources) -> list[Segment]:
    """The segments that have a voxel in a stored slice; the others have no frame to stand on."""
    return [segment for segment in segments if segment.frames(scan, sources).any()]


def segment_number(segments: Sequence[Segment], label: str) -> int | None:
    """The number of a segment in its object; None where it is not among them."""
    labels = [segment.label for segment in segments]
    return labels.index(label) + 1 if label in labels else None


def tracking(stamp: Stamp, kind: str, label: str) -> tuple[UID, str]:
    """TrackingUID and TrackingID of a segment, by which the report speaks of it."""
    return UID(stamp.uid(kind, "tracking", label)), label


def _description(index: int, segment: Segment, kind: str, stamp: Stamp) -> SegmentDescription:
    tracking_uid, tracking_id = tracking(stamp, kind, segment.label)
    description = SegmentDescription(
        index,
        segment.label,
        segment.category,
        segment.kind,
        SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=algorithm(stamp),
        tracking_uid=tracking_uid,
        tracking_id=tracking_id,
        anatomic_regions=None if segment.site is None else [segment.site],
        display_color=CIELabColor.from_rgb(*segment.color),
    )
    if segment.laterality is not None:
        (property_type,) = description.SegmentedPropertyTypeCodeSequence
        modifier = CodedConcept.from_code(segment.laterality)
        property_type.SegmentedPropertyTypeModifierCodeSequence = [modifier]
    return description
