"""References to the source images, where slices of several series were read as one stack."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydicom.dataset import Dataset

if TYPE_CHECKING:
    from tf_covid.dicom_results.source_datasets import Sources


def refer_to_images(dataset: Dataset, sources: Sources) -> None:
    """Name each source image under its own series; highdicom was told that they are of one."""
    series: dict[str, dict[str, str]] = {}
    for image in sources.images:
        instances = series.setdefault(image.series_instance_uid, {})
        instances[image.sop_instance_uid] = image.sop_class_uid
    if len(series) == 1:
        return
    items = []
    for series_uid, instances in series.items():
        item = Dataset()
        item.SeriesInstanceUID = series_uid
        item.ReferencedInstanceSequence = [
            _reference(sop_class_uid, sop_instance_uid)
            for sop_instance_uid, sop_class_uid in instances.items()
        ]
        items.append(item)
    dataset.ReferencedSeriesSequence = items


def _reference(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = sop_class_uid
    reference.ReferencedSOPInstanceUID = sop_instance_uid
    return reference
