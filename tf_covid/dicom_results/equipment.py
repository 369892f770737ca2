"""What every object of ours says about itself: who made it, when, and that it is for research."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from highdicom import AlgorithmIdentificationSequence
from pydicom.sr.codedict import codes

from tf_covid.dicom_results.uids import uid

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from tf_covid.dicom_results.source_datasets import Sources

MANUFACTURER = "tf_covid"
MODEL_NAME = "tfcovid"
#: A device of software has no number of its own.
SERIAL_NUMBER = "none"

#: Changed when objects of the same answer are written otherwise: archives keep the first of two
#: objects with one UID.
FORMAT = "1"

#: SeriesNumber of each kind of object; scanners seldom count so far.
SERIES_NUMBERS = {
    "lungs": 9101,
    "attention": 9102,
    "summary": 9103,
    "report": 9104,
    "attention_map": 9105,
    "report_pdf": 9106,
}

#: Dates and times of the writing that an object may state, and others that it states.
_WRITING = (
    ("ContentDate", "ContentTime"),
    ("DateOfSecondaryCapture", "TimeOfSecondaryCapture"),
)
_OTHERS = (
    ("InstanceCreationDate", "InstanceCreationTime"),
    ("SeriesDate", "SeriesTime"),
    ("StudyDate", "StudyTime"),
)


@dataclass(frozen=True)
class Stamp:
    """UIDs, times and version of the objects of one answer.

    Args:
        sources: The images that they are made from.
        identity: What decides the answer beside the scan: models and options, as one text.
        answered_at: Time of the answer, UTC, as `result.json` has it.
        version: Of tf-covid.
        weights: sha256 of all weights that decided the answer, by what they are.
    """

    sources: Sources
    identity: str
    answered_at: str
    version: str
    weights: dict[str, str]

    @property
    def when(self) -> datetime:
        """The time of the answer, UTC."""
        return datetime.strptime(self.answered_at, "%Y-%m-%dT%H:%M:%SZ")

    def series_uid(self, kind: str) -> str:
        """UID of the series that all objects of a kind about one series are filed in."""
        return uid("series", self.sources.first.SeriesInstanceUID, kind)

    def uid(self, kind: str, *parts: str) -> str:
        """UID of an object, or of a part of one: another scan, model or option, another UID."""
        images = sorted(
            f"{image.sop_instance_uid}/{image.frame_number or 0}" for image in self.sources.images
        )
        series = str(self.sources.first.SeriesInstanceUID)
        return uid("instance", FORMAT, kind, *parts, series, *images, self.identity)

    def pin(self, dataset: Dataset, kind: str) -> None:
        """Put the time of the answer for that of the writing, and UIDs for highdicom's random ones.

        The same answer then gives the same bytes.
        """
        date, time = self.when.strftime("%Y%m%d"), self.when.strftime("%H%M%S")
        dataset.SpecificCharacterSet = "ISO_IR 192"
        dataset.SeriesDate = dataset.InstanceCreationDate = date
        dataset.SeriesTime = dataset.InstanceCreationTime = time
        for date_keyword, time_keyword in _WRITING:
            if date_keyword in dataset:
                setattr(dataset, date_keyword, date)
                setattr(dataset, time_keyword, time)
        organization = self.uid(kind, "dimensions")

        def each(parent: Dataset, element: object) -> None:
            keyword = getattr(element, "keyword", "")
            if keyword == "DimensionOrganizationUID":
                element.value = organization  # type: ignore[attr-defined]
            elif keyword == "ContributionDateTime":
                element.value = f"{date}{time}+0000"  # type: ignore[attr-defined]

        dataset.walk(each)

    def deidentify(self, dataset: Dataset) -> None:
        """State that whose object it is was left out, and no date: where one must stand, 1900."""
        dataset.PatientIdentityRemoved = "YES"
        if "BurnedInAnnotation" in dataset:
            dataset.BurnedInAnnotation = "NO"
        dataset.DeidentificationMethod = "tfcovid --dicom-deidentified"
        for date_keyword, time_keyword in (*_WRITING, *_OTHERS):
            if date_keyword in dataset:
                needed = date_keyword == "ContentDate" and bool(dataset.ContentDate)
                setattr(dataset, date_keyword, "19000101" if needed else "")
                setattr(dataset, time_keyword, "000000" if needed else "")

        def each(parent: Dataset, element: object) -> None:
            if getattr(element, "keyword", "") == "ContributionDateTime":
                element.value = ""  # type: ignore[attr-defined]

        dataset.walk(each)


def algorithm(stamp: Stamp) -> AlgorithmIdentificationSequence:
    """Which program and which weights said so."""
    return AlgorithmIdentificationSequence(
        name=MODEL_NAME,
        version=stamp.version,
        family=codes.DCM.ArtificialIntelligence,
        source=MANUFACTURER,
        parameters={f"sha256 of {name}": sha256 for name, sha256 in stamp.weights.items()},
    )
