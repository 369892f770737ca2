"""`attention_map.dcm`: the attention map as a Parametric Map (PS3.3 A.75), float32.

Its frames run along row × column of the slices, from feet to head where these are axial: viewers
take them in the order of the file, as lying that way, whatever the frames say themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from highdicom.pm import ParametricMap, RealWorldValueMapping
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from tf_covid.dicom_results import codes as own
from tf_covid.dicom_results.equipment import (
    MANUFACTURER,
    MODEL_NAME,
    SERIAL_NUMBER,
    SERIES_NUMBERS,
    Stamp,
)
from tf_covid.dicom_results.references import refer_to_images
from tf_covid.dicom_results.source_datasets import frames_of
from tf_covid.result import DISCLAIMER

if TYPE_CHECKING:
    from tf_covid.result import Attention
    from tf_covid.scan import Scan

_KIND = "attention_map"


def parametric_map(attention: np.ndarray, how: Attention, scan: Scan, stamp: Stamp) -> Dataset:
    """The attention map, one frame for each stored slice, 0 to 1.

    Args:
        attention: uint8 (D, H, W), canonical; 255 is its maximum within the scan.
        how: Method, target and endpoint of the map.
        scan: The scan, on whose grid it lies.
        stamp: UIDs, time and version.
    """
    frames = frames_of(attention, scan, stamp.sources).astype(np.float32) / 255
    mapping = RealWorldValueMapping(
        lut_label=how.method,
        lut_explanation="Attention over its maximum within the scan",
        unit=codes.UCUM.NoUnits,
        value_range=(0.0, 1.0),
        slope=1.0,
        intercept=0.0,
        quantity_definition=own.activation(how.method),
    )
    dataset = ParametricMap(
        source_images=stamp.sources.datasets,
        pixel_array=frames,
        series_instance_uid=stamp.series_uid(_KIND),
        series_number=SERIES_NUMBERS[_KIND],
        sop_instance_uid=stamp.uid(_KIND),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=stamp.version,
        device_serial_number=SERIAL_NUMBER,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=None,
        window_center=0.5,
        window_width=1.0,
        content_label="ATTENTION",
        content_description="Does not compare patients: 1 is the maximum within this scan.",
        content_creator_name="",
        derived_pixel_contrast="NONE",
        derivation=own.activation(how.method),
        series_description="tfcovid attention map",
    )
    _add_anatomy(dataset)
    dataset.BodyPartExamined = "CHEST"
    dataset.ImageComments = DISCLAIMER
    _along_the_normal(dataset)
    refer_to_images(dataset, stamp.sources)
    stamp.pin(dataset, _KIND)
    return dataset


def _add_anatomy(dataset: Dataset) -> None:
    """The lungs, both: some readers take this sequence for granted."""
    region, anatomy = Dataset(), Dataset()
    region.CodeValue = codes.SCT.Lung.value
    region.CodingSchemeDesignator = codes.SCT.Lung.scheme_designator
    region.CodeMeaning = codes.SCT.Lung.meaning
    anatomy.AnatomicRegionSequence = [region]
    anatomy.FrameLaterality = "B"
    dataset.SharedFunctionalGroupsSequence[0].FrameAnatomySequence = [anatomy]


def _along_the_normal(dataset: Dataset) -> None:
    """Order the frames along row × column."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    groups = list(dataset.PerFrameFunctionalGroupsSequence)

    def vector(group: Dataset) -> np.ndarray:
        holder = group if "PlaneOrientationSequence" in group else shared
        orientation = holder.PlaneOrientationSequence[0].ImageOrientationPatient
        row, column = np.reshape(np.asarray(orientation, float), (2, 3))
        return np.asarray(np.cross(row, column))

    def along(group: Dataset) -> float:
        position = np.asarray(group.PlanePositionSequence[0].ImagePositionPatient, float)
        return float(position @ vector(group))

    order = sorted(range(len(groups)), key=lambda index: along(groups[index]))
    pixels = np.frombuffer(dataset.FloatPixelData, np.float32).reshape(len(groups), -1)
    dataset.FloatPixelData = pixels[order].tobytes()
    ordered = [groups[index] for index in order]
    for frame_number, group in enumerate(ordered, 1):
        content = group.FrameContentSequence[0]
        values = content.DimensionIndexValues
        content.DimensionIndexValues = (
            frame_number if isinstance(values, int) else [frame_number, *list(values)[1:]]
        )
    dataset.PerFrameFunctionalGroupsSequence = ordered
