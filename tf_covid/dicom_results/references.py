"""References to the source images, where slices of several series were read as one stack."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydicom.dataset import Dataset

if TYPE_CHECKING:
    from tf_covid.dicom_results.source_datasets import Sources


def refer_to_images(dataset: Dataset, sources: Sources) -> None:
    """Name each source image under its own series; highdicom was told that they are of one."""
    series = _series(sources)
    if len(series) > 1:
        dataset.ReferencedSeriesSequence = [
            _item(uid, "ReferencedInstanceSequence", map(_reference, instances.items()))
            for uid, instances in series.items()
        ]


def refer_in_evidence(report: Dataset, sources: Sources) -> None:
    """The same in the evidence of a report."""
    series = _series(sources)
    if len(series) == 1:
        return
    first_uid = sources.first.SeriesInstanceUID
    for keyword in (
        "CurrentRequestedProcedureEvidenceSequence",
        "PertinentOtherEvidenceSequence",
    ):
        for study in report.get(keyword, []):
            items = []
            for item in study.ReferencedSeriesSequence:
                if item.SeriesInstanceUID != first_uid:
                    items.append(item)
                    continue
                items += [
                    _item(uid, "ReferencedSOPSequence", map(_reference, instances.items()))
                    for uid, instances in series.items()
                ]
            study.ReferencedSeriesSequence = items


def _series(sources: Sources) -> dict[str, dict[str, str]]:
    """SeriesInstanceUID → SOPInstanceUID → SOP class."""
    series: dict[str, dict[str, str]] = {}
    for image in sources.images:
        instances = series.setdefault(image.series_instance_uid, {})
        instances[image.sop_instance_uid] = image.sop_class_uid
    return series


def _item(series_uid: str, keyword: str, references: Iterable[Dataset]) -> Dataset:
    item = Dataset()
    item.SeriesInstanceUID = series_uid
    setattr(item, keyword, list(references))
    return item


def _reference(instance: tuple[str, str]) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPInstanceUID, reference.ReferencedSOPClassUID = instance
    return reference
