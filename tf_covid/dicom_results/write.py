"""All DICOM objects of one answered case, into its folder."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from tf_covid.dicom_results.deidentify import deidentified
from tf_covid.dicom_results.encapsulated_pdf import encapsulated_pdf
from tf_covid.dicom_results.equipment import Stamp
from tf_covid.dicom_results.options import DicomOptions
from tf_covid.dicom_results.parametric_map import parametric_map
from tf_covid.dicom_results.secondary_capture import secondary_capture
from tf_covid.dicom_results.segmentation import (
    Segment,
    attention_segments,
    lung_segments,
    segmentation,
)
from tf_covid.dicom_results.source_datasets import CannotRefer, source_datasets
from tf_covid.dicom_results.structured_report import structured_report
from tf_covid.errors import TfCovidError
from tf_covid.report.montage import montage

if TYPE_CHECKING:
    from tf_covid.result import Result
    from tf_covid.scan import Scan

#: What highdicom and pydicom raise where a header is not as they expect.
_ERRORS = (ValueError, TypeError, AttributeError, KeyError, IndexError, OverflowError)


class NoDicomResults(TfCovidError):
    """No DICOM object can be made of a scan's answer; the text says why, for a quality flag."""


class DicomResults:
    """The objects of one answered case, made before its report is drawn.

    Args:
        result: The answer, with its maps and its time.
        scan: The scan behind it.
        question: What decides the answer beside the scan; with it the UIDs change.
        weights: sha256 of all weights that decided the answer, by what they are.
        options: Which objects are wanted.
        previous: The report of an earlier answer to this case, if there is such a file.

    Raises:
        NoDicomResults: If the header of the scan cannot carry results.
    """

    def __init__(
        self,
        result: Result,
        scan: Scan,
        question: str,
        weights: Mapping[str, str],
        options: DicomOptions,
        previous: Path | None = None,
    ) -> None:
        scan = deidentified(scan) if options.deidentified else scan
        self._result, self._scan, self._options = result, scan, options
        try:
            with _forbidden_values():
                self._stamp = Stamp(
                    source_datasets(scan),
                    question,
                    str(result.answered_at),
                    result.versions["tf-covid"],
                    dict(weights),
                )
                self._objects = self._make(previous)
        except CannotRefer as reason:
            raise NoDicomResults(str(reason)) from None
        except _ERRORS as error:
            where = f"{type(error).__name__} in highdicom"
            raise NoDicomResults(f"the header of the series does not allow it ({where})") from error

    @property
    def map_lacking(self) -> str:
        """Why there is no `attention_map.dcm` though it was asked for; empty where there is one."""
        if not self._options.map or self._result.maps is None:
            return ""
        if self._result.maps.attention is None:
            return "no attention map was made"
        if self._scan.interpolated or None in self._stamp.sources.slots:
            return (
                "viewers lay its frames out evenly, so that around slices that are missing they"
                " would show it at wrong places"
            )
        return ""

    def write(self, folder: Path) -> None:
        """Write every object into the folder of the case, where its montage lies already.

        Raises:
            OSError: If the disk does not allow it.
        """
        page = self._montage(folder)
        with _forbidden_values():
            objects = self._objects | {"summary.dcm": secondary_capture(page, self._stamp)}
            if self._options.pdf:
                objects["report_pdf.dcm"] = encapsulated_pdf(
                    page, self._stamp, dated=not self._options.deidentified
                )
            for name, dataset in objects.items():
                if self._options.deidentified:
                    self._stamp.deidentify(dataset)
                dataset.save_as(folder / name, enforce_file_format=True)

    def _make(self, previous: Path | None) -> dict[str, Dataset]:
        maps, looked = self._result.maps, self._result.attention
        if maps is None:
            raise RuntimeError("an answered case needs its maps to be written")
        scan, stamp = self._scan, self._stamp
        objects: dict[str, Dataset] = {}
        segments = lung_segments(maps)
        if _any(segments):
            objects["lungs.dcm"] = segmentation("lungs", segments, scan, stamp, "tfcovid lungs")
        if maps.attention is not None and looked is not None:
            bands = attention_segments(maps.attention, looked)
            if _any(bands):
                objects["attention.dcm"] = segmentation(
                    "attention", bands, scan, stamp, "tfcovid attention"
                )
            if self._options.map and not self.map_lacking:
                objects["attention_map.dcm"] = parametric_map(maps.attention, looked, scan, stamp)
        objects["report.dcm"] = structured_report(
            self._result,
            segments,
            objects.get("lungs.dcm"),
            stamp,
            None if previous is None else _previous(previous, stamp),
        )
        return objects

    def _montage(self, folder: Path) -> bytes:
        if not self._options.deidentified:
            return (folder / "montage.png").read_bytes()
        # For research no date is stated, that of the answer included.
        return montage(dataclasses.replace(self._result, answered_at=None), self._scan)


def _any(segments: Sequence[Segment]) -> bool:
    return any(segment.mask.any() for segment in segments)


def _previous(path: Path, stamp: Stamp) -> Dataset | None:
    """The report that lies there, if it is ours, of this study and another answer."""
    try:
        before = pydicom.dcmread(path)
        of_study = before.StudyInstanceUID == stamp.sources.first.StudyInstanceUID
        other = before.SOPInstanceUID != stamp.uid("report")
        return before if of_study and other and before.Modality == "SR" else None
    except (OSError, InvalidDicomError, AttributeError):
        return None


@contextmanager
def _forbidden_values() -> Iterator[None]:
    """Values that break their VR and go through unchanged, of patient and study: no warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
