"""`summary.dcm`: the montage as a Secondary Capture, which every viewer shows."""

from __future__ import annotations

import io

import numpy as np
from highdicom.sc import SCImage
from PIL import Image
from pydicom.dataset import Dataset

from tf_covid.dicom_results.equipment import (
    MANUFACTURER,
    MODEL_NAME,
    SERIES_NUMBERS,
    Stamp,
)

_KIND = "summary"


def secondary_capture(montage: bytes, stamp: Stamp) -> Dataset:
    """The montage, a PNG with the disclaimer drawn on it, as an RGB image."""
    pixels = np.asarray(Image.open(io.BytesIO(montage)).convert("RGB"))
    first = stamp.sources.first
    dataset = SCImage(
        pixel_array=pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        study_instance_uid=first.StudyInstanceUID,
        series_instance_uid=stamp.series_uid(_KIND),
        series_number=SERIES_NUMBERS[_KIND],
        sop_instance_uid=stamp.uid(_KIND),
        instance_number=1,
        manufacturer=MANUFACTURER,
        patient_id=first.PatientID,
        patient_name=first.PatientName,
        patient_birth_date=first.PatientBirthDate,
        patient_sex=first.PatientSex,
        accession_number=first.AccessionNumber,
        study_id=first.StudyID,
        study_date=first.StudyDate,
        study_time=first.StudyTime,
        referring_physician_name=first.ReferringPhysicianName,
        patient_orientation=("L", "F"),  # highdicom insists
        series_description="tfcovid summary",
        manufacturer_model_name=MODEL_NAME,
        software_versions=stamp.version,
    )
    # A page with several pictures on it: it has no direction.
    dataset.PatientOrientation = []
    dataset.Modality = "OT"
    dataset.ConversionType = "WSD"
    dataset.BodyPartExamined = "CHEST"
    # The page names the case, after a file or folder that somebody has named.
    dataset.BurnedInAnnotation = "YES"
    for keyword in ("IssuerOfPatientID", "StudyDescription", "PatientAge"):
        if keyword in first:
            setattr(dataset, keyword, first[keyword].value)
    stamp.pin(dataset, _KIND)
    return dataset
