"""`report.dcm`: the answer as a structured report, TID 1500 (PS3.16), for machines to read.

A Comprehensive 3D SR, preliminary and unverified: nobody has looked at it. What a person reads is
`summary.dcm`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from highdicom.sr import (
    AlgorithmIdentification,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    Measurement,
    MeasurementProperties,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    ReferencedSegment,
    SourceImageForSegmentation,
    SourceSeriesForSegmentation,
    TrackingIdentifier,
    VolumetricROIMeasurementsAndQualitativeEvaluations,
)
from highdicom.sr.coding import CodedConcept
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from tf_covid.dicom_results import codes as own
from tf_covid.dicom_results.equipment import (
    MANUFACTURER,
    MODEL_NAME,
    SERIES_NUMBERS,
    Stamp,
)
from tf_covid.dicom_results.references import refer_in_evidence
from tf_covid.dicom_results.segmentation import Segment, segment_number, tracking
from tf_covid.dicom_results.uids import uid
from tf_covid.result import DISCLAIMER

if TYPE_CHECKING:
    from tf_covid.dicom_results.source_datasets import Sources
    from tf_covid.result import Lobe, Result, Severity

_KIND = "report"
_MILLILITRE = Code("mL", "UCUM", "milliliter")


def structured_report(
    result: Result,
    segments: Sequence[Segment],
    lungs: Dataset | None,
    stamp: Stamp,
    previous: Dataset | None,
) -> Dataset:
    """The report of an answered case.

    Args:
        result: The answer.
        segments: Those of `lungs`, in the order of their numbers.
        lungs: The segmentation; None where it would hold no voxel.
        stamp: UIDs, time and version.
        previous: The report that this one takes the place of, by another model or option.
    """
    groups = [_whole(result, stamp)]
    groups += _regions(result, segments, lungs, stamp)
    content = MeasurementReport(
        observation_context=_observer(stamp),
        procedure_reported=codes.LN.CTChestReport,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    evidence = [*stamp.sources.datasets, *([] if lungs is None else [lungs])]
    dataset = Comprehensive3DSR(
        evidence=evidence,
        content=content[0],
        series_instance_uid=stamp.series_uid(_KIND),
        series_number=SERIES_NUMBERS[_KIND],
        sop_instance_uid=stamp.uid(_KIND),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        is_final=False,
        is_verified=False,
        previous_versions=None if previous is None else [previous],
        series_description="tfcovid report",
        manufacturer_model_name=MODEL_NAME,
        software_versions=stamp.version,
    )
    scheme = Dataset()
    scheme.CodingSchemeDesignator = own.SCHEME
    scheme.CodingSchemeName = own.SCHEME_NAME
    scheme.CodingSchemeResponsibleOrganization = MANUFACTURER
    dataset.CodingSchemeIdentificationSequence = [scheme]
    refer_in_evidence(dataset, stamp.sources)
    stamp.pin(dataset, _KIND)
    return dataset


def _observer(stamp: Stamp) -> ObservationContext:
    return ObservationContext(
        observer_device_context=ObserverContext(
            observer_type=CodedConcept.from_code(codes.DCM.Device),
            observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
                uid=uid("device", stamp.version),
                name=MODEL_NAME,
                manufacturer_name=MANUFACTURER,
                model_name=f"{MODEL_NAME} {stamp.version}",
            ),
        )
    )


def _algorithm(stamp: Stamp) -> AlgorithmIdentification:
    parameters = [f"sha256 of {name}: {sha256}" for name, sha256 in stamp.weights.items()]
    return AlgorithmIdentification(
        name=MODEL_NAME,
        version=stamp.version,
        parameters=[*parameters, DISCLAIMER],
        family=codes.DCM.ArtificialIntelligence,
        manufacturer=MANUFACTURER,
    )


def _whole(result: Result, stamp: Stamp) -> MeasurementsAndQualitativeEvaluations:
    """What is said of both lungs together."""
    measurements, evaluations = [], []
    if result.severity is not None:
        more, said = _severity(result.severity)
        measurements += more
        evaluations += said
    if result.covid is not None:
        measurements.append(_measure(own.COVID, 100 * result.covid.probability))
    if result.lungs is not None:
        measurements.append(_measure(own.INVOLVEMENT, result.lungs.involvement_percent))
        measurements.append(_volume(result.lungs.volume_ml))
    status = Code(result.status, own.SCHEME, result.status)
    evaluations.append(QualitativeEvaluation(own.STATUS, status))
    for flag in dict.fromkeys(one.code for one in result.quality_flags if one.level != "info"):
        value = Code(flag, own.SCHEME, flag.replace("_", " "))
        evaluations.append(QualitativeEvaluation(own.FLAG, value))
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(stamp.uid(_KIND, "tracking", "lungs"), "Lungs"),
        finding_type=codes.DCM.Opacity,
        algorithm_id=_algorithm(stamp),
        finding_sites=[FindingSite(codes.SCT.Lung, codes.SCT.Bilateral)],
        measurements=measurements,
        qualitative_evaluations=evaluations,
    )


def _severity(severity: Severity) -> tuple[list[Measurement], list[QualitativeEvaluation]]:
    measurements = []
    if severity.ct_score is not None:
        measurements.append(
            Measurement(
                own.CT_SCORE,
                _rounded(severity.ct_score),
                codes.UCUM.NoUnits,
                properties=_interval(severity),
            )
        )
    if severity.ct_score_read is not None:
        read = float(severity.ct_score_read)
        measurements.append(Measurement(own.CT_SCORE_READ, read, codes.UCUM.NoUnits))
    for code, probability in zip(own.SEVERITIES, severity.probabilities, strict=True):
        measurements.append(
            Measurement(own.PROBABILITY, _rounded(100 * probability), codes.UCUM.Percent, code)
        )
    chosen = own.SEVERITIES[severity.class_index]
    evaluations = [QualitativeEvaluation(codes.SCT.Severity, chosen)]
    if severity.refer is not None:
        evaluations.append(QualitativeEvaluation(own.REFER, own.YES if severity.refer else own.NO))
    return measurements, evaluations


def _interval(severity: Severity) -> MeasurementProperties | None:
    """How far the interval of the score reaches above and below it."""
    if severity.ct_score_interval is None or severity.ct_score is None:
        return None
    low, high = severity.ct_score_interval
    return MeasurementProperties(
        upper_measurement_uncertainty=_rounded(high - severity.ct_score),
        lower_measurement_uncertainty=_rounded(severity.ct_score - low),
    )


def _regions(
    result: Result, segments: Sequence[Segment], lungs: Dataset | None, stamp: Stamp
) -> list[VolumetricROIMeasurementsAndQualitativeEvaluations]:
    """What is said of each lung and each lobe, with its segment."""
    if lungs is None or result.lungs is None:
        return []
    side = codes.SCT.Lung
    said = [
        ("Right lung", FindingSite(side, codes.SCT.Right), [_volume(result.lungs.right_ml)]),
        ("Left lung", FindingSite(side, codes.SCT.Left), [_volume(result.lungs.left_ml)]),
    ]
    for lobe in result.lobes or ():
        where = own.LOBES[lobe.name]
        site = FindingSite(where.code, where.laterality)
        said.append((f"{lobe.name.capitalize()} lobe", site, _lobe(lobe)))
    groups = []
    for label, site, measurements in said:
        index = segment_number(segments, label)
        if index is None:
            continue
        tracking_uid, tracking_id = tracking(stamp, "lungs", label)
        groups.append(
            VolumetricROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=TrackingIdentifier(tracking_uid, tracking_id),
                referenced_segment=ReferencedSegment(
                    lungs.SOPClassUID,
                    lungs.SOPInstanceUID,
                    segment_number=index,
                    **_source(stamp.sources),
                ),
                finding_type=codes.SCT.AnatomicalStructure,
                algorithm_id=_algorithm(stamp),
                finding_sites=[site],
                measurements=measurements,
            )
        )
    return groups


def _source(sources: Sources) -> dict[str, Any]:
    """What a segment was made from: a series, or images of several."""
    series = {image.series_instance_uid for image in sources.images}
    if len(series) == 1:
        return {"source_series": SourceSeriesForSegmentation(series.pop())}
    images = [
        SourceImageForSegmentation(image.sop_class_uid, image.sop_instance_uid)
        for image in sources.images
    ]
    return {"source_images": images}


def _lobe(lobe: Lobe) -> list[Measurement]:
    measurements = [_volume(lobe.volume_ml)]
    if lobe.involvement_percent is not None:
        measurements.append(_measure(own.INVOLVEMENT, lobe.involvement_percent))
    if lobe.score is not None:
        measurements.append(Measurement(own.LOBE_SCORE, float(lobe.score), codes.UCUM.NoUnits))
    return measurements


def _volume(millilitres: float) -> Measurement:
    """A volume on the uniform grid after gap repair, slices that have no frame included."""
    return Measurement(codes.SCT.Volume, _rounded(millilitres), _MILLILITRE)


def _measure(name: Code, percent: float) -> Measurement:
    return Measurement(name, _rounded(percent), codes.UCUM.Percent)


def _rounded(value: float) -> float:
    """As `result.json` rounds, and few enough letters for a decimal string."""
    return round(float(value), 6)
