"""Which DICOM objects are wanted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DicomOptions:
    """Which objects are wanted beside segmentations, summary and report.

    Args:
        map: `attention_map.dcm`.
        pdf: `report_pdf.dcm`.
        deidentified: For a research archive: under a pseudonym, with new UIDs and without dates.
    """

    map: bool = False
    pdf: bool = False
    deidentified: bool = False
