"""`report_pdf.dcm`: the montage as the page of an Encapsulated PDF (PS3.3 A.45.1)."""

from __future__ import annotations

import io
import time

from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import EncapsulatedPDFStorage, ExplicitVRLittleEndian

from tf_covid.dicom_results.equipment import (
    MANUFACTURER,
    MODEL_NAME,
    SERIES_NUMBERS,
    Stamp,
)

_KIND = "report_pdf"
_DPI = 150
_COPIED = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientAge",
    "StudyInstanceUID",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyDescription",
)


def encapsulated_pdf(montage: bytes, stamp: Stamp, *, dated: bool = True) -> Dataset:
    """The montage, a PNG with the disclaimer drawn on it, as a PDF of one page.

    Args:
        montage: The page.
        stamp: UIDs, time and version.
        dated: Whether the PDF states the time of the answer.
    """
    first = stamp.sources.first
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID = EncapsulatedPDFStorage
    dataset.SOPInstanceUID = stamp.uid(_KIND)
    for keyword in _COPIED:
        if keyword in first:
            setattr(dataset, keyword, first[keyword].value)
    dataset.Modality = "DOC"
    dataset.ConversionType = "WSD"
    dataset.SeriesInstanceUID = stamp.series_uid(_KIND)
    dataset.SeriesNumber = SERIES_NUMBERS[_KIND]
    dataset.SeriesDescription = "tfcovid summary, PDF"
    dataset.InstanceNumber = 1
    dataset.Manufacturer = MANUFACTURER
    dataset.ManufacturerModelName = MODEL_NAME
    dataset.SoftwareVersions = stamp.version
    dataset.BurnedInAnnotation = "YES"
    dataset.ContentDate = dataset.ContentTime = ""
    dataset.AcquisitionDateTime = ""
    dataset.DocumentTitle = "tfcovid summary"
    dataset.VerificationFlag = "UNVERIFIED"
    concept = Dataset()
    concept.CodeValue = codes.LN.CTChestReport.value
    concept.CodingSchemeDesignator = codes.LN.CTChestReport.scheme_designator
    concept.CodeMeaning = codes.LN.CTChestReport.meaning
    dataset.ConceptNameCodeSequence = [concept]
    dataset.MIMETypeOfEncapsulatedDocument = "application/pdf"
    document = _pdf(montage, stamp.when.timetuple() if dated else time.gmtime(0))
    dataset.EncapsulatedDocument = document + b"\0" * (len(document) % 2)
    dataset.EncapsulatedDocumentLength = len(document)
    stamp.pin(dataset, _KIND)
    return dataset


def _pdf(montage: bytes, when: time.struct_time) -> bytes:
    file = io.BytesIO()
    page = Image.open(io.BytesIO(montage)).convert("RGB")
    page.save(
        file, "PDF", resolution=_DPI, title="tfcovid summary", creationDate=when, modDate=when
    )
    return file.getvalue()
