"""Objects lie where the scan lies, on every grid that it can be stored on, for two readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from tests.dicom_results.grids import (
    GRIDS,
    answer,
    as_stored,
    masks,
    of_highdicom,
    stored_on,
)
from tf_covid.dicom_results.options import DicomOptions
from tf_covid.lung_voxels import LungVoxels

MAPS = masks()
LUNGS = {
    "Right lung": MAPS.lungs == 1,
    "Left lung": MAPS.lungs == 2,
    "Diseased lung": MAPS.lesions == 1,
    "Right upper lobe": MAPS.lobes == 1,
    "Right middle lobe": MAPS.lobes == 2,
    "Right lower lobe": MAPS.lobes == 3,
    "Left upper lobe": MAPS.lobes == 4,
    "Left lower lobe": MAPS.lobes == 5,
}
BANDS = {
    "Attention from 25% of its maximum": MAPS.attention >= 64,
    "Attention from 50% of its maximum": MAPS.attention >= 128,
    "Attention from 75% of its maximum": MAPS.attention >= 192,
}
#: Stored slices with others missing between them, or frames that are no slices.
UNEVEN = ("gaps", "gap, prone", "frames with a gap", "a frame that is no slice")


@pytest.mark.parametrize("grid", GRIDS)
def test_every_voxel_lies_at_its_place(
    grid: str, tmp_path: Path, write: Any, by_dcmqi: Any, errors_of: Any
) -> None:
    scan = stored_on(grid, tmp_path)
    folder = write(answer(scan), DicomOptions(map=True, pdf=True))
    for path in sorted(folder.glob("*.dcm")):
        assert not errors_of(path), path.name
    for name, expected in (("lungs", LUNGS), ("attention", BANDS)):
        read = of_highdicom(folder / f"{name}.dcm")
        assert list(read) == list(expected)
        again = by_dcmqi("segimage2itkimage", folder / f"{name}.dcm")
        assert len(again) == len(expected)
        for (label, mask), other in zip(expected.items(), again, strict=True):
            kept = as_stored(mask, scan)
            np.testing.assert_array_equal(read[label] > 0, kept, err_msg=label)
            np.testing.assert_array_equal(other > 0, kept, err_msg=label)
    if grid in UNEVEN:
        # dcmqi, and so Slicer, takes the frames of a map for evenly spaced, whatever they say.
        assert not (folder / "attention_map.dcm").exists()
        return
    (attention,) = by_dcmqi("paramap2itkimage", folder / "attention_map.dcm")
    np.testing.assert_allclose(attention, as_stored(MAPS.attention, scan) / 255, atol=1e-6)


@pytest.mark.parametrize("grid", GRIDS)
def test_every_frame_refers_to_its_image(grid: str, tmp_path: Path, write: Any) -> None:
    """A viewer that does not find the image of a frame shows nothing."""
    scan = stored_on(grid, tmp_path)
    folder = write(answer(scan), DicomOptions(map=True))
    at = {
        (image.sop_instance_uid, image.frame_number): image.position_mm
        for image in scan.source_series.images
    }
    series_of = {one.sop_instance_uid: one.series_instance_uid for one in scan.source_series.images}
    names = ["lungs", "attention", "attention_map"]
    for name in names[:2] if grid in UNEVEN else names:
        written = pydicom.dcmread(folder / f"{name}.dcm")
        for group in written.PerFrameFunctionalGroupsSequence:
            (derivation,) = group.DerivationImageSequence
            (source,) = derivation.SourceImageSequence
            key = source.ReferencedSOPInstanceUID, source.get("ReferencedFrameNumber")
            place = group.PlanePositionSequence[0].ImagePositionPatient
            np.testing.assert_allclose(place, at[key], atol=1e-3)
        listed = {
            (item.SeriesInstanceUID, one.ReferencedSOPInstanceUID)
            for item in written.ReferencedSeriesSequence
            for one in item.ReferencedInstanceSequence
        }
        assert listed == {(series, instance) for instance, series in series_of.items()}
    (study,) = pydicom.dcmread(folder / "report.dcm").CurrentRequestedProcedureEvidenceSequence
    evidence = {
        (item.SeriesInstanceUID, one.ReferencedSOPInstanceUID)
        for item in study.ReferencedSeriesSequence
        for one in item.ReferencedSOPSequence
    }
    lungs = pydicom.dcmread(folder / "lungs.dcm")
    own = {(lungs.SeriesInstanceUID, lungs.SOPInstanceUID)}
    assert evidence == {(series, one) for one, series in series_of.items()} | own


def test_a_segment_without_a_voxel_is_left_out(
    series: Path, write: Any, by_dcmqi: Any, errors_of: Any
) -> None:
    import dataclasses

    from tf_covid.scan import read

    scan = read(series)
    right_only = np.where(MAPS.lungs == 1, MAPS.lungs, 0)
    maps = dataclasses.replace(
        MAPS,
        voxels=LungVoxels.of(right_only, lesions=np.zeros_like(MAPS.lungs)),
        attention=None,
    )
    folder = write(answer(scan, maps))
    assert sorted(path.name for path in folder.glob("*.dcm")) == [
        "lungs.dcm",
        "report.dcm",
        "summary.dcm",
    ]
    assert list(of_highdicom(folder / "lungs.dcm")) == ["Right lung"]
    assert len(by_dcmqi("segimage2itkimage", folder / "lungs.dcm")) == 1
    assert not any(map(errors_of, folder.glob("*.dcm")))


def test_a_segment_in_slices_that_have_no_image_is_left_out(
    tmp_path: Path, write: Any, errors_of: Any
) -> None:
    import dataclasses

    scan = stored_on("gaps", tmp_path)
    made_up = np.zeros_like(MAPS.attention)
    made_up[scan.interpolated[0]] = MAPS.lungs[scan.interpolated[0]] * 255
    peak = np.maximum(MAPS.attention // 4, made_up)
    folder = write(
        answer(
            scan,
            dataclasses.replace(
                MAPS, attention=made_up, voxels=LungVoxels.of(MAPS.lungs, MAPS.lobes, made_up)
            ),
        )
    )
    assert not (folder / "attention.dcm").exists()
    assert "Diseased lung" not in of_highdicom(folder / "lungs.dcm")
    low = np.where(MAPS.attention > 0, 70, 0).astype(np.uint8)
    folder = write(
        answer(scan, dataclasses.replace(MAPS, attention=np.maximum(low, peak))), name="b"
    )
    assert list(of_highdicom(folder / "attention.dcm")) == ["Attention from 25% of its maximum"]
    assert not any(map(errors_of, folder.glob("*.dcm")))


def test_without_any_lung_there_is_a_report_all_the_same(
    series: Path, write: Any, errors_of: Any
) -> None:
    import dataclasses

    from tf_covid.scan import read

    none = np.zeros_like(MAPS.lungs)
    maps = dataclasses.replace(MAPS, voxels=LungVoxels.of(none), attention=none)
    folder = write(answer(read(series), maps))
    assert sorted(path.name for path in folder.glob("*.dcm")) == ["report.dcm", "summary.dcm"]
    assert not any(map(errors_of, folder.glob("*.dcm")))
