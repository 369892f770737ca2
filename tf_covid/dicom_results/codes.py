"""Coded concepts: public codes where there are any, and a few of our own.

No code was found in SNOMED CT, DICOM, RadLex or RadElement for the Global CT Score and the scores
of lobes, nor for the diseased share of the lungs (searched in 2026).
"""

from __future__ import annotations

from dataclasses import dataclass

from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

#: Designator of the codes of this project, as PS3.16 8 wants private ones.
SCHEME = "99TFCOVID"
SCHEME_NAME = "tf_covid concepts"


def _own(value: str, meaning: str) -> Code:
    return Code(value, SCHEME, meaning)


CT_SCORE = _own("ct-score", "Global CT Score, predicted")
CT_SCORE_READ = _own("ct-score-read", "Global CT Score, sum of the lobe scores")
LOBE_SCORE = _own("lobe-score", "Lobe score")
INVOLVEMENT = _own("involvement", "Diseased share")
PROBABILITY = _own("probability", "Probability")
COVID = _own("covid", "Probability of COVID-19")
REFER = _own("refer", "Refer to a human reader")
STATUS = _own("status", "Status of the input")
FLAG = _own("quality-flag", "Quality flag")
DISCLAIMER = _own("disclaimer", "Disclaimer")
YES, NO = Code("373066001", "SCT", "Yes"), Code("373067005", "SCT", "No")

#: The five severity classes, in order.
SEVERITIES = (
    Code("260413007", "SCT", "None"),
    Code("255604002", "SCT", "Mild"),
    Code("6736007", "SCT", "Moderate"),
    Code("24484000", "SCT", "Severe"),
    Code("442452003", "SCT", "Life threatening severity"),
)


@dataclass(frozen=True)
class LobeCode:
    """A lobe's code, and the side where the code leaves it open."""

    code: Code
    laterality: Code | None


LOBES = {
    "right upper": LobeCode(codes.SCT.UpperLobeOfLung, codes.SCT.Right),
    "right middle": LobeCode(codes.SCT.MiddleLobeOfRightLung, None),
    "right lower": LobeCode(codes.SCT.LowerLobeOfLung, codes.SCT.Right),
    "left upper": LobeCode(codes.SCT.UpperLobeOfLung, codes.SCT.Left),
    "left lower": LobeCode(codes.SCT.LowerLobeOfLung, codes.SCT.Left),
}

#: RGB, in the order of `severity.LOBES`.
LOBE_COLORS = ((46, 134, 222), (16, 172, 132), (95, 39, 205), (238, 131, 54), (243, 104, 224))


def activation(method: str) -> Code:
    """What an attention map of a method shows (CID 217, Visual Explanation)."""
    if method == "gradcam":
        return codes.DCM.GradientWeightedClassActivation
    return codes.DCM.ClassActivation
