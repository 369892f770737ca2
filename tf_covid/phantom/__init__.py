"""A chest we know everything about: synthetic CT with its lungs, lobes, lesions, scores and class.

anatomy (torso, organs, belly, masses) → patient (with lesions, trees, clothing) → chest (tissue, labels, parenchyma,
scanner) → cohort, files.
"""

from tf_covid.phantom.chest import Chest, draw_chest
from tf_covid.phantom.settings import (
    BodySettings,
    DiseaseSettings,
    LungSettings,
    PhantomSettings,
    ScannerSettings,
)

__all__ = [
    "BodySettings",
    "Chest",
    "DiseaseSettings",
    "LungSettings",
    "PhantomSettings",
    "ScannerSettings",
    "draw_chest",
]
