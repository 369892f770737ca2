"""What the texts of a header say, in known words only: everything else in them could hold a name.

No text of a header is repeated in a message. What is recognised is named by the word of the
standard or of the maker; what is not, is called unknown.
"""

from __future__ import annotations

import re

from pydicom.config import IGNORE
from pydicom.uid import UID

from tf_covid.scan.dicom.header import Frame, Instance

#: CT Image, Enhanced CT, Legacy Converted Enhanced CT.
CT_CLASSES = frozenset(
    {"1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"}
)
#: Defined terms of Modality (0008,0060): PS3.3 C.7.3.1.1.1, the retired ones included.
_MODALITY_TERMS = (
    "ANN AR ASMT AU BDUS BI BMD CD CF CFM CP CR CS CT CTPROTOCOL DD DF DG DM DMS DS DSC DX EC ECG"
    " EEG EMG EOG EPS ES FA FID FS FSR GM HC HD IO IOL IVOCT IVUS KER KO LEN LP LS M3D MA MG MR MS"
    " NEARIR NM OAM OCT OP OPM OPR OPT OPTBSV OPTENF OPV OSS OT PA PLAN POS PR PT PX REG RESP RF RG"
    " RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF ST"
    " STAIN TEXTUREMAP TG US VA VF XA XAPROTOCOL XC"
)
_MODALITIES = frozenset(_MODALITY_TERMS.split())
#: Defined terms of RescaleType (0028,1054), PS3.3 C.11.1.1.2, and what else the field says in files
#: of CT.
_RESCALE_TYPES = frozenset(
    [
        "OD",
        "HU",
        "US",
        "MGML",
        "Z_EFF",
        "ED",
        "EDW",
        "HU_MOD",
        "PCT",
        "MM",
        "BQML",
        "CNTS",
        "NORMALIZED",
        "PERCENT",
        "IODINE",
    ]
)
#: Hounsfield units by name; nothing stands for them too (PS3.3 C.8.2.1).
_HU_TYPES = frozenset(
    ("", "HU", "HU_MOD", "HOUNSFIELD", "HOUNSFIELD UNIT", "HOUNSFIELD UNITS", "H.U.")
)
#: Words that say nothing: then the values themselves are looked at by the gate.
_UNSPECIFIED_TYPES = frozenset(("US", "UNSPECIFIED", "UNKNOWN", "NONE", "N/A", "NA"))
#: Words of ImageType or FrameType that say: no slice of the patient.
_NO_SLICES = re.compile(
    r"LOCALIZER|SCOUT|TOPOGRAM|VOLUME_RENDER|\bVRT?\b|SCREEN|REPORT|(?<!LOW )(?<!LOW_)DOSE|SSD",
    re.IGNORECASE,
)
#: Words of ImageType or FrameType for a projection through a slab.
_PROJECTIONS = (
    ("MinIP", re.compile(r"\bMIN_?IP(?![A-Z])|\bMINIMUM(?![A-Z])", re.IGNORECASE)),
    ("MIP", re.compile(r"\bM(AX)?_?IP(?![A-Z])|\bMAXIMUM(?![A-Z])|PROJECTION", re.IGNORECASE)),
)
#: The same in SeriesDescription. “for MIP” is said of thin slices that a MIP shall be made of.
_DESCRIBED = (
    (
        "MinIP",
        re.compile(r"(?<![A-Z])(MIN[ _-]?IPS?|MINIMUM[ _-]INTENS\w*)(?![A-Z])", re.IGNORECASE),
    ),
    (
        "MIP",
        re.compile(
            r"(?<![A-Z])(MIPS?|MAX[ _-]?IPS?|MAXIMUM[ _-]INTENS\w*)(?![A-Z])", re.IGNORECASE
        ),
    ),
)
_SOURCE_OF_PROJECTIONS = re.compile(
    r"(?<![A-Z])(FOR|PRE|TO|F[UÜ]R|POUR)[ _-]+(\w+[ /,_-]+)*?M(IN|AX)?[ _-]?IP", re.IGNORECASE
)
_AVERAGES = re.compile(
    r"(?<![A-Z])(AVERAGE|AVG|AIP|AVE?[ _-]?IP|MEAN[ _-]?IP|RAY[ _-]?SUM)(?![A-Z])", re.IGNORECASE
)
_CHEST = re.compile(
    r"CHEST|THORA[XC]|TORAX|TÓRAX|(?<![A-Z])LUNGE?N?S?(?![A-Z])|PULMO|POUMON|PULM[OÃÓ]|HRCT|KLATKA|CTCH(?![A-Z])",
    re.IGNORECASE,
)
_ELSEWHERE = re.compile(
    r"ABDOM|ABDO(?![A-Z])|PELVI|LIVER|KIDNEY|RENAL|PANCREA|COLON|UROGR|(?<![A-Z])(HEAD|BRAIN|SKULL|NECK|CERVIX|SINUS|"
    r"SINUSES|ORBITS?|KNEE|HIP|ANKLE|FOOT|HAND|WRIST|ELBOW|LEG|ARM|[CLT]?SPINE|LSPINE|EXTREMITY|TEMPORAL|SCHAEDEL|"
    r"SCHÄDEL|KOPF|BAUCH|BECKEN|TETE|TÊTE|CRANE|CRÂNE)(?![A-Z])",
    re.IGNORECASE,
)
#: Edge-enhancing kernels as the makers name them: Siemens B50–B80, Bl/Br/Qr 5x–7x; GE LUNG, BONE,
#: CHST, EDGE; Philips YA–YD, L, E; Canon and Toshiba FC30–35, FC50–59, FC80–86; United Imaging and
#: others "LUNG".
_LUNG_KERNELS = re.compile(
    r"LUNG|BONE|CHST|EDGE|^B[LR]?V?[5-8]\d|^[IQ]R?[5-7]\d|^FC(3[0-5]|5\d|8[0-6])|^Y[A-D]$|^[LE]$",
    re.IGNORECASE,
)
#: Kernels that may be named in a message: Siemens, GE, Philips, Canon and Toshiba, United Imaging,
#: Hitachi, Neusoft.
_KNOWN_KERNELS = re.compile(
    r"[BDHIJQSTU][A-Z]?V?\d{2}[A-Z]{0,2}\+?"
    r"|(HD )?(STANDARD|STND|SOFT|DETAIL|LUNG|BONE|BONEPLUS|EDGE|CHST|ULTRA)\d?|STANDARD\+|LUNG\+"
    r"|[A-F]|L|[EUXY][A-D]|I[A-E]|S[A-E]|BRAIN|SHARP|SMOOTH|FC\d{2}|FL\d{2}|B_(V?SHARP|V?SOFT|BODY|LUNG|BONE)(_[A-D])?"
    r"|F\d{2}|SB\d{2}|\d{1,2}",
    re.IGNORECASE,
)


def modality_text(instance: Instance) -> str:
    """Modality as a defined term, e.g. "Modality MR"."""
    if not instance.modality:
        return "no Modality (0008,0060)"
    known = instance.modality if instance.modality in _MODALITIES else "unknown"
    return f"Modality {known}"


def sop_class_text(instance: Instance) -> str:
    """The name that the standard gives a SOP class, e.g.

    "SOP class Secondary Capture Image Storage".
    """
    name = UID(instance.sop_class, IGNORE).name
    return "SOP class unknown" if name == instance.sop_class else f"SOP class {name}"


def rescale_text(frame: Frame) -> str:
    """RescaleType as a defined term, e.g. "RescaleType OD"."""
    known = frame.rescale_type if frame.rescale_type in _RESCALE_TYPES else "unknown"
    return f"RescaleType {known}"


def is_hu(frame: Frame) -> bool:
    """Whether RescaleType says Hounsfield units, or nothing."""
    return frame.rescale_type in _HU_TYPES or frame.rescale_type in _UNSPECIFIED_TYPES


def says_hu(frame: Frame) -> bool:
    """Whether RescaleType says Hounsfield units, or is left out, which means the same."""
    return frame.rescale_type in _HU_TYPES


def no_slice(frame: Frame) -> str:
    """The word of ImageType that says this is no slice, e.g.

    "LOCALIZER"; empty if there is none.
    """
    results = _NO_SLICES.search(" ".join(frame.image_type))
    return results.group().upper() if results else ""


def projection(instance: Instance, frame: Frame) -> str:
    """Say "MIP" or "MinIP" where the header says so of a computed image; empty otherwise.

    ImageType is believed. SeriesDescription is free text: it is believed of images that do not call
    themselves ORIGINAL, and of no series that says what its slices are for.
    """
    said = " ".join(frame.image_type)
    for name, pattern in _PROJECTIONS:
        if pattern.search(said):
            return f"ImageType {name}"
    name = described_projection(instance)
    return f"SeriesDescription {name}" if name and frame.image_type[:1] != ("ORIGINAL",) else ""


def described_projection(instance: Instance) -> str:
    """Say "MIP" or "MinIP" where SeriesDescription has the word; empty otherwise."""
    text = instance.series_description
    if _SOURCE_OF_PROJECTIONS.search(text):
        return ""
    return next((name for name, pattern in _DESCRIBED if pattern.search(text)), "")


def averaged(instance: Instance, frame: Frame) -> bool:
    """Whether ImageType or SeriesDescription tells of averages through slabs or over time."""
    said = "MEAN" in frame.image_type or _AVERAGES.search(" ".join(frame.image_type))
    return bool(said or _AVERAGES.search(instance.series_description))


def region(instance: Instance) -> str:
    """Say "chest", "elsewhere" or nothing by BodyPartExamined and SeriesDescription; chest wins."""
    text = f"{instance.body_part} {instance.series_description}"
    if _CHEST.search(text):
        return "chest"
    return "elsewhere" if _ELSEWHERE.search(text) else ""


def lung_kernel(kernel: str) -> bool:
    """Whether a ConvolutionKernel is one for lungs, by its maker's name."""
    return bool(_LUNG_KERNELS.search(kernel))


def kernel_text(kernel: str, *, hidden: bool) -> str:
    """A kernel by its maker's name; the field is free text and could hold anything.

    Args:
        kernel: ConvolutionKernel (0018,1210).
        hidden: Whether it repeats what identifies the patient.
    """
    if not kernel:
        return "kernel unknown"
    if _KNOWN_KERNELS.fullmatch(kernel) and not hidden:
        return f"kernel {kernel}"
    return "lung kernel" if lung_kernel(kernel) else "another kernel"
