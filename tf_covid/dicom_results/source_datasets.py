"""What highdicom is given in the place of the hospital's images: minimal, clean data sets.

A header out of a hospital breaks rules that highdicom insists on, and holds things that a result
must not repeat. So each source is made anew, with what says whose image it is and where it lies:
PatientID and the UIDs of study, series and instances as they were (another one would file the
result under another patient or study), texts in UTF-8, and values that DICOM forbids left empty.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage

from tf_covid.dicom_results.uids import uid

if TYPE_CHECKING:
    from tf_covid.scan import Scan, SourceImage, SourceSeries

_TIME = re.compile(r"([01][0-9]|2[0-3])([0-5][0-9](([0-5][0-9]|60)(\.[0-9]{1,6})?)?)?")
_AGE = re.compile(r"[0-9]{3}[DWMY]")
#: What stands in no text of one value: a backslash would begin the next one.
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\]")
#: Slices are thinner, in mm.
_THICKEST_MM = 100.0
#: Most letters of a text of VR LO.
_LONG_STRING = 64
#: Where no patient is, in mm.
_FAR_MM = 1e6
#: What passes unchanged: it is by these that an archive finds patient, study and order.
_IDENTITY = ("PatientID", "IssuerOfPatientID", "AccessionNumber", "StudyID")
_TEXTS = ("PatientName", "ReferringPhysicianName", "StudyDescription")


class CannotRefer(Exception):
    """No DICOM object can be made of this scan; the text says why, for a quality flag."""


@dataclass(frozen=True)
class Sources:
    """The images that objects are made from.

    Args:
        datasets: One data set an instance, all of one series, as highdicom wants them.
        stored_indices: For each frame that a mask is to have, in the order of the sources: the
            index along the last axis of the scan's source grid; None where it is no slice of it.
        images: What each of these frames is.
    """

    datasets: tuple[Dataset, ...]
    stored_indices: tuple[int | None, ...]
    images: tuple[SourceImage, ...]

    @property
    def first(self) -> Dataset:
        """The data set that speaks for patient, study and series."""
        return self.datasets[0]


def source_datasets(scan: Scan) -> Sources:
    """Make the sources of a scan's results.

    Raises:
        CannotRefer: If the scan is no DICOM, or its header cannot be referred to.
    """
    series = scan.source_series
    if series is None:
        raise CannotRefer(
            "the input is no DICOM series, and a DICOM object has to name the images that it was"
            " made from"
        )
    _check_uids(series)
    stored_index_of = {
        (image.sop_instance_uid, image.frame_number): stored_index
        for stored_index, image in enumerate(scan.source_images)
        if image is not None
    }
    stored_indices = tuple(
        stored_index_of.get((one.sop_instance_uid, one.frame_number)) for one in series.images
    )
    shared = _shared(series)
    # Objects have to state one: where the header has none, that of slices without gaps.
    spacing = float(np.linalg.norm(scan.source.affine_ras[:3, 2]))
    stated = series.slice_thickness_mm or math.nan
    thickness = stated if 0 < stated < _THICKEST_MM else spacing
    if series.images[0].frame_number is not None:
        datasets = (_multi_frame(series, stored_indices, shared, thickness),)
    else:
        datasets = tuple(_single_frame(series, image, shared, thickness) for image in series.images)
    return Sources(datasets, stored_indices, series.images)


def frames_of(volume: np.ndarray, scan: Scan, sources: Sources) -> np.ndarray:
    """A canonical (D, H, W) volume as frames of the sources, (N, rows, columns); 0 where none."""
    stored = scan.source.from_canonical(volume)
    columns, rows, _ = stored.shape
    frames = np.zeros((len(sources.stored_indices), rows, columns), volume.dtype)
    for frame, stored_index in zip(frames, sources.stored_indices, strict=True):
        if stored_index is not None:
            frame[:] = stored[:, :, stored_index].T
    return frames


def is_uid(text: str) -> bool:
    """Whether a text is a UID as PS3.5 9.1 wants it."""
    return bool(text) and UID(text).is_valid


def _check_uids(series: SourceSeries) -> None:
    study = series.attributes.get("StudyInstanceUID", "")
    if not is_uid(study):
        raise CannotRefer(f"StudyInstanceUID (0020,000D) is {_fault(study)}")
    for image in series.images:
        if not is_uid(image.series_instance_uid):
            fault = _fault(image.series_instance_uid)
            raise CannotRefer(f"SeriesInstanceUID (0020,000E) is {fault}")
    bad = sum(not is_uid(image.sop_instance_uid) for image in series.images)
    if bad:
        raise CannotRefer(
            f"SOPInstanceUID (0008,0018) of {bad} of {len(series.images)} images is missing or no"
            " UID"
        )
    counts = Counter((image.sop_instance_uid, image.frame_number) for image in series.images)
    if twice := sum(count > 1 for count in counts.values()):
        raise CannotRefer(f"{twice} SOPInstanceUIDs (0008,0018) stand for several slices each")
    instances = {image.sop_instance_uid for image in series.images}
    if len(instances) > 1 and any(_is_multi_frame(image) for image in series.images):
        raise CannotRefer(
            f"the slices are frames of {len(instances)} multi-frame images, and an object can be"
            " made from the frames of one"
        )


def _is_multi_frame(image: SourceImage) -> bool:
    """Whether an image may hold several frames, even if this one does not."""
    return image.frame_number is not None or image.sop_class_uid != CTImageStorage


def _fault(text: str) -> str:
    return "no UID" if text else "missing"


def _shared(series: SourceSeries) -> dict[str, object]:
    """What all sources hold: whose they are, of which study and frame of reference."""
    given = series.attributes
    series_uid = series.images[0].series_instance_uid
    frame_of_reference = given.get("FrameOfReferenceUID", "")
    values: dict[str, object] = {
        "SpecificCharacterSet": "ISO_IR 192",
        "Modality": "CT",
        "PatientBirthDate": _date(given.get("PatientBirthDate", "")),
        "PatientSex": _one_of(given.get("PatientSex", ""), "M", "F", "O"),
        "StudyInstanceUID": given["StudyInstanceUID"],
        "StudyDate": _date(given.get("StudyDate", "")),
        "StudyTime": _time(given.get("StudyTime", "")),
        "SeriesInstanceUID": series_uid,
        "FrameOfReferenceUID": (
            frame_of_reference
            if is_uid(frame_of_reference)
            else uid("frame of reference", series_uid)
        ),
        "PositionReferenceIndicator": "",
        "Rows": series.rows,
        "Columns": series.columns,
    }
    # Type 2: there, if empty.
    values |= {keyword: given.get(keyword, "") for keyword in _IDENTITY}
    values |= {keyword: _FORBIDDEN.sub(" ", given.get(keyword, "")).strip() for keyword in _TEXTS}
    values["StudyDescription"] = str(values["StudyDescription"])[:_LONG_STRING]
    # Type 3: left out where empty.
    optional = {
        "PatientAge": _age(given.get("PatientAge", "")),
        "PatientSize": _positive_decimal(given.get("PatientSize", "")),
        "PatientWeight": _positive_decimal(given.get("PatientWeight", "")),
    }
    values |= {keyword: value for keyword, value in optional.items() if value}
    for keyword in ("IssuerOfPatientID", "StudyDescription"):
        if not values[keyword]:
            del values[keyword]
    return values


def _single_frame(
    series: SourceSeries, image: SourceImage, shared: dict[str, object], thickness: float
) -> Dataset:
    dataset = _dataset(shared)
    dataset.SOPClassUID = image.sop_class_uid
    dataset.SOPInstanceUID = image.sop_instance_uid
    dataset.ImagePositionPatient = _decimals(image.position_mm)
    dataset.ImageOrientationPatient = _decimals(series.orientation)
    dataset.PixelSpacing = _decimals(series.pixel_spacing_mm)
    (dataset.SliceThickness,) = _decimals((thickness,))
    return dataset


def _multi_frame(
    series: SourceSeries,
    stored_indices: tuple[int | None, ...],
    shared: dict[str, object],
    thickness: float,
) -> Dataset:
    dataset = _dataset(shared)
    dataset.SOPClassUID = series.images[0].sop_class_uid
    dataset.SOPInstanceUID = series.images[0].sop_instance_uid
    dataset.NumberOfFrames = len(series.images)
    measures, orientation, common = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = _decimals(series.pixel_spacing_mm)
    (measures.SliceThickness,) = _decimals((thickness,))
    orientation.ImageOrientationPatient = _decimals(series.orientation)
    common.PixelMeasuresSequence = [measures]
    common.PlaneOrientationSequence = [orientation]
    dataset.SharedFunctionalGroupsSequence = [common]
    groups = []
    for index, (image, stored_index) in enumerate(zip(series.images, stored_indices, strict=True)):
        plane_position, group = Dataset(), Dataset()
        # A frame that is no slice of the scan may lie where one is, which highdicom forbids. No
        # object has a frame for it, so it is put out of the way.
        position = image.position_mm if stored_index is not None else (_FAR_MM + index,) * 3
        plane_position.ImagePositionPatient = _decimals(position)
        group.PlanePositionSequence = [plane_position]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    return dataset


def _dataset(values: dict[str, object]) -> Dataset:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def _decimals(values: tuple[float, ...]) -> list[float]:
    """Numbers that fit into a decimal string of 16 letters."""
    return [float(f"{value:.10g}") for value in values]


def _date(text: str) -> str:
    """A date that there is, or nothing."""
    if not re.fullmatch(r"[0-9]{8}", text):
        return ""
    try:
        datetime.strptime(text, "%Y%m%d")
    except ValueError:
        return ""
    return text


def _time(text: str) -> str:
    return text if _TIME.fullmatch(text) else ""


def _age(text: str) -> str:
    return text if _AGE.fullmatch(text) else ""


def _one_of(text: str, *allowed: str) -> str:
    return text.upper() if text.upper() in allowed else ""


def _positive_decimal(text: str) -> str:
    """A positive number as a decimal string, or nothing."""
    try:
        value = float(text)
    except ValueError:
        return ""
    return f"{value:.10g}" if math.isfinite(value) and 0 < value < 1e4 else ""
