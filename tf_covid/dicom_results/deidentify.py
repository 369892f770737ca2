"""Whose scan it is, left out: for objects that go to a research archive."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from tf_covid.dicom_results.source_datasets import is_uid
from tf_covid.dicom_results.uids import uid

if TYPE_CHECKING:
    from tf_covid.scan import Scan, SourceImage

#: Length of a pseudonym, in hexadecimal digits.
_LETTERS = 16


def deidentified(scan: Scan) -> Scan:
    """The scan under a pseudonym: new UIDs, no name, date, number or description of its own.

    All follow from the hash of the input's bytes, which nobody can guess who has not got them, and
    from the UID that is replaced: the same files give the same pseudonym and UIDs. Sex and age are
    left out as well.
    """
    series = scan.source_series
    if series is None:
        return scan

    def renamed(text: str) -> str:
        # What is no UID stays what it is, and is refused as such.
        return uid("deidentified", scan.fingerprint, text) if is_uid(text) else text

    def image(one: SourceImage) -> SourceImage:
        return dataclasses.replace(
            one,
            sop_instance_uid=renamed(one.sop_instance_uid),
            series_instance_uid=renamed(one.series_instance_uid),
        )

    attributes = {"PatientID": f"TFCOVID-{scan.fingerprint[:_LETTERS].upper()}"}
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        if keyword in series.attributes:
            attributes[keyword] = renamed(series.attributes[keyword])
    return dataclasses.replace(
        scan,
        source_series=dataclasses.replace(
            series, attributes=attributes, images=tuple(map(image, series.images))
        ),
        source_images=tuple(one and image(one) for one in scan.source_images),
    )
