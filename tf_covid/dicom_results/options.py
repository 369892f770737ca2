"""Which DICOM objects are wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self


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

    @classmethod
    def of_flags(cls, any_of_them: bool, map: bool, pdf: bool, deidentified: bool) -> Self | None:
        """What the flags of a command ask for; None where none of them is set.

        Args:
            any_of_them: Whether there are to be any.
            map: As above.
            pdf: As above.
            deidentified: As above.
        """
        return cls(map, pdf, deidentified) if any_of_them or map or pdf or deidentified else None
