"""All DICOM objects of one answered case, into its folder."""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pydicom
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import Comprehensive3DSRStorage

from tf_covid.dicom_results.deidentify import deidentified
from tf_covid.dicom_results.encapsulated_pdf import encapsulated_pdf
from tf_covid.dicom_results.equipment import MANUFACTURER, Stamp
from tf_covid.dicom_results.options import DicomOptions
from tf_covid.dicom_results.parametric_map import parametric_map
from tf_covid.dicom_results.secondary_capture import secondary_capture
from tf_covid.dicom_results.segmentation import (
    attention_segments,
    lung_segments,
    segmentation,
    with_voxels,
)
from tf_covid.dicom_results.source_datasets import CannotRefer, is_uid, source_datasets
from tf_covid.dicom_results.structured_report import structured_report
from tf_covid.errors import TfCovidError
from tf_covid.report.montage import montage

if TYPE_CHECKING:
    from tf_covid.result import Result
    from tf_covid.scan import Scan

#: What highdicom and pydicom raise where a header is not as they expect.
_ERRORS = (ValueError, TypeError, AttributeError, KeyError, IndexError, OverflowError)


def _dot() -> bytes:
    """The smallest PNG that there is."""
    stream = io.BytesIO()
    Image.new("RGB", (1, 1)).save(stream, "PNG")
    return stream.getvalue()


_DOT = _dot()


class NoDicomResults(TfCovidError):
    """No DICOM object can be made of a scan's answer; the text says why, for a quality flag."""


class DicomResults:
    """The objects of one answered case, made before its report is drawn.

    Args:
        result: The answer, with its maps and its time.
        scan: The scan behind it.
        identity: What decides the answer beside the scan; with it the UIDs change.
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
        identity: str,
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
                    identity,
                    str(result.answered_at),
                    result.versions["tf-covid"],
                    dict(weights),
                )
                self._objects = self._make(previous)
                self._try_to_write()
        except CannotRefer as reason:
            raise NoDicomResults(str(reason)) from None
        except MemoryError:
            raise NoDicomResults("there is not enough memory for them") from None
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
        if self._scan.interpolated or None in self._stamp.sources.stored_indices:
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
        segments = with_voxels(lung_segments(maps), scan, stamp.sources)
        if segments:
            objects["lungs.dcm"] = segmentation("lungs", segments, scan, stamp, "tfcovid lungs")
        if maps.attention is not None and looked is not None:
            bands = with_voxels(attention_segments(maps.attention, looked), scan, stamp.sources)
            if bands:
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
        pseudonym = str(self._stamp.sources.first.PatientID)
        shown = dataclasses.replace(self._result, case=pseudonym, answered_at=None)
        return montage(shown, self._scan)

    def _try_to_write(self) -> None:
        """Write what every object repeats of the header once, to nowhere.

        What the header does not allow is known then, before the other files are there.
        """
        for dataset in (
            self._objects["report.dcm"],
            secondary_capture(_DOT, self._stamp),
            encapsulated_pdf(_DOT, self._stamp),
        ):
            dataset.save_as(io.BytesIO(), enforce_file_format=True)


def _previous(path: Path, stamp: Stamp) -> Dataset | None:
    """The report that lies there, if it is ours, of this study and another answer.

    None, too, where it names the coming report as the one before it: two that take each other's
    place have no order.
    """
    try:
        before = pydicom.dcmread(path)
        own = stamp.uid("report")
        return (
            before
            if before.SOPClassUID == Comprehensive3DSRStorage
            and before.Manufacturer == MANUFACTURER
            and before.StudyInstanceUID == stamp.sources.first.StudyInstanceUID
            and before.SOPInstanceUID != own
            and own not in str(before.get("PredecessorDocumentsSequence", ""))
            and is_uid(before.SOPInstanceUID)
            and is_uid(before.SeriesInstanceUID)
            else None
        )
    except (OSError, InvalidDicomError, *_ERRORS):
        return None


@contextmanager
def _forbidden_values() -> Iterator[None]:
    """Values that break their VR and go through unchanged, of patient and study: no warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
