"""The sentences of the report and the montage, once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tf_covid.page.formats import decimals, millilitres, moment, probability
from tf_covid.severity import CLASS_UPPER_SCORES, LABELS

if TYPE_CHECKING:
    from tf_covid.report.views import Views
    from tf_covid.result import Attention, Lungs, QualityFlag, Result

#: Worst first; what each level of a flag means for the reader.
LEVELS = {
    "error": "no answer",
    "warning": "limits the answer",
    "info": "for information",
}

_STATUS = {
    "pass": "scan passed the checks",
    "repaired": "scan was repaired",
    "refused": "scan was refused",
}

#: What counted as involved lung, in a few words.
_INVOLVED_BY = {
    "disease_probability": "mean probability of disease",
    "hu_rule": "density above −700 HU, vessels removed",
}

_INVOLVEMENT_MEANING = {
    "disease_probability": (
        "Involvement: mean over the lung of the lung model's calibrated probability of disease"
        " (ground glass or consolidation). It was learned from examples: it may miss disease or"
        " mark healthy lung."
    ),
    "hu_rule": (
        "Involvement: share of the lung above −700 HU, vessels removed. It is measured from density"
        " alone."
    ),
}

#: Pleural fluid, in ml, that is not worth a word: the network's cells are coarse.
LEAST_EFFUSION_ML = 10.0

ATTENTION_SCALE = "attention, from half of this scan's maximum up to it; does not compare patients"

#: A warning in a few words, where there is no room for its sentence, by the code of the flag.
#: `tests/report/test_text.py` holds it to all codes that can be a warning.
WARNINGS = {
    # The files beside the scan.
    "no_access": "some files could not be read",
    "volumes_beside": "other volume files left unread",
    "unreadable_files": "damaged DICOM files left out",
    "linked_folders": "linked folders not followed",
    "broken_links": "broken links in the input",
    "packed_files": "packed files left unread",
    "unreadable_archives": "an archive could not be read",
    "archive_leftovers": "unlisted data in the archive",
    "archive_no_end": "archive has no end marker",
    "archive_links": "links in the archive left out",
    "same_names": "files of the same name",
    "trailing_bytes": "unread bytes behind the data",
    "dicomdir_missing": "images of the DICOMDIR missing",
    # The file and its pixels.
    "length_unchecked": "length of the voxels unchecked",
    "unknown_fields": "unknown fields in the header",
    "transfer_syntax_wrong": "wrong transfer syntax stated",
    "no_end_marker": "JPEG without its end marker",
    "odd_bytes": "odd bytes behind the pixels",
    # The series.
    "projection": "projections (MIP, averages)",
    "left_out_slices": "images of the series left out",
    "thinned_series": "slices may be missing",
    "series_uid_per_image": "a series UID for each image",
    "mixed_acquisitions": "several acquisitions mixed",
    "mixed_image_type": "original and derived mixed",
    "mixed_thickness": "slice thickness differs",
    "mixed_rescale": "rescale of slices differs",
    "mixed_bits": "stored bits of slices differ",
    "mixed_rescale_type": "HU not stated for all slices",
    "thick_slices": "thick, overlapping slices",
    "instance_order": "instance numbers out of order",
    "duplicate_slices": "doubled slices, identical",
    "ambiguous_slices": "different slices at one place",
    "missing_slices": "missing slices interpolated",
    # The geometry.
    "affine_disagree": "two geometries, one taken",
    "orientation_unknown": "orientation not stated",
    "spacing_unknown": "voxel size not stated",
    "position_unlikely": "position of the scan unlikely",
    "units_converted": "unit of length converted",
    "units_unknown": "unit of length not stated",
    "voxels_uneven": "unusual voxel shape",
    # The voxels.
    "repeated_slices": "repeated slices",
    "slice_content": "a slice unlike its neighbours",
    "scaling_unclear": "scaling to HU unclear",
    "not_a_number": "voxels that are not a number",
    "blank_slices": "blank slices",
    # The lungs and the answer.
    "lungs_cut_off": "lungs cut off by the scan",
    "unusual_lung_volume": "unusual lung volume",
    "orientation_doubtful": "scan may be stored flipped",
    "other_lungs": "other lung model than trained",
    "one_lung": "hardly any lung on one side",
    "mask_labels": "labels missing in the mask",
    "mask_doubtful": "lung mask doubtful",
    "score_class_mismatch": "CT score of another class",
    "no_dicom_results": "no DICOM objects written",
}

_WHOLE_SERIES = (
    "Give the axial slices of one chest CT, all of them, from above the lungs to below them."
)
_EXPORT_AGAIN = "Export or copy the series again: a part of it is missing or damaged."
_HU_VALUES = (
    "Export the original values in Hounsfield units, not a windowed picture, a capture or another"
    " modality."
)
_FITTING_MASK = (
    "Make the lung mask on the grid of the scan, with at least some lung in it, or leave it out."
)

#: The way out of a refusal, by the code of the flag; a code that is not here has the general one.
#: `tests/report/test_text.py` lists those.
WAYS_OUT = {
    **dict.fromkeys(("not_ct", "not_hu", "not_scalar"), _HU_VALUES),
    **dict.fromkeys(
        ("no_slices", "no_scan", "single_slice", "not_3d", "several_cases", "projection"),
        _WHOLE_SERIES,
    ),
    **dict.fromkeys(
        ("missing_slices", "truncated_file", "empty_file", "blank_slices", "archive_damaged"),
        _EXPORT_AGAIN,
    ),
    **dict.fromkeys(
        (
            "damaged_file",
            "length_mismatch",
            "pixel_length",
            "unfilled_slices",
            "frame_count",
            "left_out_slices",
        ),
        _EXPORT_AGAIN,
    ),
    **dict.fromkeys(
        ("mask_grid", "mask_empty", "mask_type", "mask_values", "mask_labels"), _FITTING_MASK
    ),
    **dict.fromkeys(
        ("mask_inverted", "mask_not_lung", "mask_outside", "lung_volume"), _FITTING_MASK
    ),
    **dict.fromkeys(
        (
            *("bad_header", "bad_affine", "bits_stored", "duplicate_element", "slice_values"),
            *("not_nifti", "not_nrrd", "not_mha", "same_position", "voxel_size"),
        ),
        "Write the file again from its source: its header contradicts itself or the format.",
    ),
    "archive_encrypted": "Unpack the archive with its password, and give what is in it.",
    **dict.fromkeys(
        ("archive_too_large", "archive_unsafe"),
        "Unpack the archive, and give the folder of one series.",
    ),
    **dict.fromkeys(
        ("detached_data", "data_file_missing"),
        "Give the data file beside its header, under the name that the header states.",
    ),
    "input_changed": "Wait until the files are copied completely.",
    **dict.fromkeys(
        ("mixed_geometry", "irregular_spacing"),
        "Give one series alone: slices of different position, size or direction do not make one"
        " volume.",
    ),
    "gantry_tilt": "Ask for a reconstruction without gantry tilt; tilted stacks are not read.",
    "undecodable": (
        "Export the series without compression; “tfcovid doctor” lists the decoders that work here."
    ),
    **dict.fromkeys(
        ("no_lung", "few_slices"),
        "Look whether the series covers the lungs. If it does, give your own lung mask by"
        " “--lungs”.",
    ),
}


@dataclass(frozen=True)
class Headline:
    """The answer in three short texts.

    Args:
        heading: What was asked, with the scale.
        symbol: Class number, or a plus or minus sign.
        label: Name of the class.
        rank: Class for the colour, 0 (nothing found) to 4 (critical); None without an answer.
    """

    heading: str
    symbol: str
    label: str
    rank: int | None


@dataclass(frozen=True)
class Bar:
    """One probability of the answer.

    Args:
        name: Name of the class, with its number if it has one.
        probability: Probability of the class, 0–1.
        chosen: True for the class that was answered.
    """

    name: str
    probability: float
    chosen: bool


def headline(result: Result) -> Headline:
    """The answer of a case that was not refused."""
    if result.severity is not None:
        severity = result.severity
        return Headline(
            "Severity class, 0 to 4",
            str(severity.class_index),
            severity.label,
            severity.class_index,
        )
    if result.covid is not None:
        label = "positive" if result.covid.positive else "negative"
        rank = 3 if result.covid.positive else 0
        return Headline("COVID-19, yes or no", "+" if result.covid.positive else "−", label, rank)
    return Headline("Severity class, 0 to 4", "?", "not computed", None)


def status(result: Result) -> str:
    """What became of the scan, with the number of warnings, since they limit the answer."""
    count = sum(flag.level == "warning" for flag in result.quality_flags)
    if not count or result.status == "refused":
        return _STATUS[result.status]
    done = "passed" if result.status == "pass" else "was repaired"
    return f"scan {done}, with {count} warning{'s' * (count > 1)}"


def task(result: Result) -> str:
    """What this is an answer about, for the line beside the name of the case."""
    return (
        "chest CT, COVID-19 yes or no"
        if result.covid and not result.severity
        else "chest CT, COVID-19 severity"
    )


def provenance(result: Result) -> str:
    """When the answer was given and by which version, for the head of the page."""
    parts = []
    if result.answered_at:
        parts.append(f"answered {moment(result.answered_at)}")
    if version := result.versions.get("tf-covid"):
        parts.append(f"tf-covid {version}")
    return " · ".join(parts)


def bars(result: Result) -> list[Bar]:
    """The probabilities behind the answer, one bar each."""
    if result.severity is not None:
        chosen = result.severity.class_index
        return [
            Bar(f"{index} {LABELS[index]}", probability, index == chosen)
            for index, probability in enumerate(result.severity.probabilities)
        ]
    if result.covid is not None:
        probability, positive = result.covid.probability, result.covid.positive
        return [
            Bar("COVID-19", probability, positive),
            Bar("no COVID-19", 1.0 - probability, not positive),
        ]
    return []


def quality_flags(result: Result) -> list[QualityFlag]:
    """The quality flags, worst first, otherwise in the order they were made."""
    order = list(LEVELS)
    return sorted(result.quality_flags, key=lambda flag: order.index(flag.level))


def warning(flag: QualityFlag) -> str:
    """A warning in a few words; its code in words where it has none."""
    return WARNINGS.get(flag.code, flag.code.replace("_", " "))


def what_to_do(result: Result) -> list[str]:
    """The way out of a refusal, each step once."""
    codes = [flag.code for flag in result.quality_flags if flag.level == "error"]
    steps = list(dict.fromkeys(WAYS_OUT[code] for code in codes if code in WAYS_OUT))
    return [
        *(steps or [_WHOLE_SERIES]),
        "Then run this case again. It has no other effect on the cases beside it.",
    ]


def score_ranges() -> list[tuple[str, int, int]]:
    """(label, first, last) Global CT Score of each class."""
    firsts = [0, *(upper + 1 for upper in CLASS_UPPER_SCORES[:-1])]
    return list(zip(LABELS, firsts, CLASS_UPPER_SCORES, strict=True))


def notes(result: Result) -> list[str]:
    """What the models were trained on, each note once."""
    return list(dict.fromkeys(model.note for model in result.models if model.note))


def involved_by(lungs: Lungs) -> str:
    """What counted as involved lung, for beside the number."""
    return _INVOLVED_BY[lungs.involvement_by]


def involvement_meaning(lungs: Lungs) -> str:
    """What the involvement says and what it does not, in sentences."""
    limits = "It does not tell infection from atelectasis, oedema, motion or poor inspiration."
    return f"{_INVOLVEMENT_MEANING[lungs.involvement_by]} {limits}"


def lesion_legend(result: Result) -> str:
    """What the dashed line is, for beside it; that there is none where no voxel is marked."""
    if result.maps is not None and result.maps.voxels.finds_no_lesion:
        return "diseased lung: none marked in this scan"
    return "diseased lung (more probable than not)"


def lesion_meaning() -> str:
    """What the dashed line says and how it stands to the involvement, in sentences."""
    return (
        "The dashed green line is what the lung model takes for diseased rather than healthy lung;"
        " it is saved as lesions.nii.gz. Involvement is a mean of probabilities, so paler disease"
        " counts a little without being outlined: the two need not agree to the percent."
    )


def score_read(result: Result) -> str:
    """The CT score that was read from the lobes, or why there is none; empty without lobes."""
    if result.severity is None or not result.lobes:
        return ""
    if result.severity.ct_score_read is not None:
        return f"CT score read from lobes: {result.severity.ct_score_read} of 25"
    missing = " and ".join(lobe.name for lobe in result.lobes if lobe.score is None)
    return f"CT score read from lobes: none, since the scan hardly shows the {missing} lobe"


def score_read_meaning(result: Result) -> str:
    """How the two CT scores of a result stand to each other, in sentences."""
    texts = [
        "Each lobe scores 0 to 5 by its involvement; the sum is the CT score read from the lobes."
    ]
    if result.severity is not None and result.severity.ct_score is not None:
        texts.append(
            f"The network's estimate, {decimals(result.severity.ct_score)} of 25, comes from the"
            " whole scan. The two readings owe nothing to each other: where they disagree, look at"
            " the slices."
        )
    return " ".join(texts)


def effusion(lungs: Lungs) -> str:
    """Pleural fluid beside the lungs' volume; empty where none was looked for or hardly any is."""
    if lungs.effusion_ml is None or lungs.effusion_ml <= LEAST_EFFUSION_ML:
        return ""
    return f"pleural effusion {millilitres(lungs.effusion_ml)}"


def attention_is_empty(result: Result) -> bool:
    """Whether there is a map that is 0 everywhere, so that no colour needs a legend."""
    return any(flag.code == "attention_empty" for flag in result.quality_flags)


def attention_legend(result: Result) -> str:
    """What the colours are, for beside their scale; that there are none where the map is empty."""
    if attention_is_empty(result):
        return "attention: none to show, the map is empty"
    return ATTENTION_SCALE


def attention_caution(result: Result) -> str:
    """A caution beside the attention map of a scan without findings; else an empty text.

    A map that is not empty fills its scale: in a clean scan whatever raised the answer a little is
    as bright as a lesion. It is no promise that there is none: mild disease is missed.
    """
    if headline(result).rank != 0 or attention_is_empty(result):
        return ""
    answer = "Negative" if result.covid is not None and result.severity is None else "No findings"
    return f"{answer}: bright colours need not mean disease."


def attention_meaning(attention: Attention) -> str:
    """What the colours of the attention map say, for a reader who has never seen one."""
    target = {
        "severity": "what raises the predicted severity",
        "class": "what speaks for the predicted class",
    }.get(attention.target, f"what speaks for “{attention.target}”")
    return (
        f"Colours show where the network found {target} ({attention.method}), from half of the"
        " scan's maximum on. The map is coarse: it points to a region, not to a lesion, and says"
        " nothing about the lung that it leaves uncoloured."
    )


def attention_within(attention: Attention) -> str:
    """How much of the map lies within the lungs, in a sentence; empty where it is not known."""
    fraction = attention.inside_lung_fraction
    if fraction is None:
        return ""
    return (
        f"{probability(fraction)} of the map lies within the lungs and is shown; the other"
        f" {probability(1.0 - fraction)} was cut off, since the cells of the map are some"
        " centimetres wide and reach beyond the border of the lungs."
    )


def slices_heading(result: Result) -> str:
    """Heading of the axial pictures."""
    from tf_covid.report.views import nothing_involved

    return (
        "Axial slices, by position" if nothing_involved(result) else "The slices that tell the most"
    )


def slices_choice(views: Views) -> str:
    """How the axial slices were chosen, in a sentence or two."""
    from tf_covid.report.views import OVERVIEW

    chosen = {shown.reason for shown in views.slices}
    if chosen <= {OVERVIEW}:
        return "No slice stands out by disease or attention: they are spread over the lungs."
    if chosen <= {OVERVIEW, "highest attention"}:
        return (
            "No slice stands out by disease: they are spread over the lungs, and one is where"
            " attention is highest, which need not mean disease."
        )
    return "Chosen by involved area and by attention in turn, the rest by position."
