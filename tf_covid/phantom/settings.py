"""Everything that the phantom draws at random, in one readable table: ranges with their units, and probabilities.

A pair is a range, drawn uniformly; a single number whose name starts with `p_` is a probability. "Mimics" look like
disease and are none: they never enter the truth. Ranges are wider than
reality where that helps a network that must meet any scanner and any patient (domain randomisation).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np

Range = tuple[float, float]
Draws = dict[str, float]


@dataclass(frozen=True)
class BodySettings:
    """Size and shape of the patient; lengths in mm."""

    chest_half_width_mm: Range = (112.0, 152.0)
    chest_depth_to_width: Range = (0.62, 0.84)
    chest_roundness: Range = (2.0, 2.7)
    dome_depth_mm: Range = (130.0, 225.0)
    recess_depth_mm: Range = (40.0, 95.0)
    recess_reach_back: Range = (0.0, 1.6)
    dome_difference_mm: Range = (-8.0, 30.0)
    high_dome_mm: Range = (22.0, 60.0)
    dome_steepness: Range = (1.2, 3.0)
    heart_scale: Range = (0.82, 1.5)
    vessel_scale: Range = (0.85, 1.35)
    mediastinal_fat_mm: Range = (1.0, 9.0)
    muscle_mm: Range = (15.0, 28.0)
    fat_mm: Range = (3.0, 45.0)
    kyphosis_mm: Range = (-14.0, 24.0)
    warp_mm: Range = (2.0, 7.0)
    tilt_degrees: Range = (-15.0, 15.0)
    lean_degrees: Range = (-5.0, 5.0)
    liver_reach_mm: Range = (10.0, 85.0)
    liver_hu: Range = (40.0, 68.0)
    spleen_scale: Range = (0.75, 1.4)
    bowel_scale: Range = (0.85, 1.3)
    effusion_ml: Range = (20.0, 800.0)
    mass_mm: Range = (10.0, 70.0)
    mass_hu: Range = (20.0, 70.0)
    bone_hu: Range = (350.0, 900.0)
    marrow_hu: Range = (90.0, 300.0)
    p_female: float = 0.5
    p_arms_down: float = 0.25
    p_stomach_gas: float = 0.8
    p_oesophagus_air: float = 0.3
    p_calcification: float = 0.4
    p_effusion_right: float = 0.11
    p_effusion_left: float = 0.11
    p_high_dome: float = 0.1
    p_prone: float = 0.08
    p_large_stomach: float = 0.25
    p_stomach_food: float = 0.5
    p_oral_contrast: float = 0.12
    p_chilaiditi: float = 0.06
    p_mass: float = 0.1
    p_hilar_tumour: float = 0.06
    p_nodes: float = 0.12
    p_random_hu: float = 0.2


@dataclass(frozen=True)
class LungSettings:
    """Aerated lung and what runs through it."""

    air_hu: Range = (-940.0, -750.0)
    gravity_hu: Range = (0.0, 90.0)
    texture_hu: Range = (4.0, 22.0)
    patchy_hu: Range = (3.0, 25.0)
    vessel_root_mm: Range = (4.2, 7.4)
    vessel_exponent: Range = (2.75, 3.6)
    airway_root_mm: Range = (3.4, 5.2)
    airway_wall: Range = (0.15, 0.75)
    fissure_hu: Range = (0.0, 260.0)
    mosaic_hu: Range = (40.0, 130.0)
    dependent_hu: Range = (60.0, 330.0)
    band_hu: Range = (150.0, 600.0)
    collapse_mm: Range = (2.0, 14.0)
    collapse_hu: Range = (-120.0, 55.0)
    nodule_mm: Range = (1.5, 8.0)
    bud_mm: Range = (0.7, 2.0)
    p_emphysema: float = 0.12
    p_dependent: float = 0.3
    p_band: float = 0.15
    p_nodules: float = 0.15
    p_buds: float = 0.1
    p_mosaic: float = 0.08


@dataclass(frozen=True)
class DiseaseSettings:
    """Opacities that the scores count: COVID's patterns, and those of lobar pneumonia and oedema, which are not COVID.

    The truth is where the edge of the disease is half way up.
    """

    glass_hu: Range = (-700.0, -330.0)
    consolidation_hu: Range = (-60.0, 50.0)
    consolidated_share: Range = (0.0, 1.0)
    consolidation_edge: Range = (0.3, 1.6)
    edge_softness: Range = (0.08, 0.6)
    peripheral: Range = (0.0, 1.6)
    basal: Range = (-0.4, 1.2)
    posterior: Range = (-0.2, 1.2)
    patch_mm: Range = (9.0, 40.0)
    nodularity: Range = (0.0, 1.4)
    crazy_paving_hu: Range = (40.0, 220.0)
    reticulation_hu: Range = (60.0, 260.0)
    p_crazy_paving: float = 0.4
    p_reticulation: float = 0.3
    p_lobar: float = 0.12
    p_oedema: float = 0.06


@dataclass(frozen=True)
class ScannerSettings:
    """How the scanner sees it."""

    field_of_view_mm: Range = (290.0, 490.0)
    above_apex_mm: Range = (8.0, 60.0)
    below_recess_mm: Range = (2.0, 90.0)
    far_above_mm: Range = (70.0, 260.0)
    far_below_mm: Range = (150.0, 400.0)
    off_centre_mm: Range = (-18.0, 18.0)
    blur_mm: Range = (0.3, 1.3)
    coarse_blur_mm: Range = (1.3, 2.6)
    noise_hu: Range = (4.0, 60.0)
    noise_correlation_mm: Range = (0.25, 1.3)
    sharpening: Range = (0.2, 1.3)
    offset_hu: Range = (-12.0, 12.0)
    planning_offset_hu: Range = (-30.0, 30.0)
    contrast_hu: Range = (110.0, 380.0)
    breathing_mm: Range = (2.0, 9.0)
    streak_hu: Range = (2.0, 15.0)
    shading_hu: Range = (0.0, 22.0)
    star_hu: Range = (60.0, 420.0)
    p_coarse: float = 0.15
    p_sharp: float = 0.35
    p_contrast: float = 0.3
    p_breathing: float = 0.2
    p_streaks: float = 0.2
    p_circle: float = 0.5
    p_thin: float = 0.35
    p_16_bit: float = 0.3
    p_metal: float = 0.08
    p_tubes: float = 0.12
    p_tangle: float = 0.15
    p_cut_apex: float = 0.06
    p_cut_base: float = 0.08
    p_far_above: float = 0.06
    p_far_below: float = 0.15
    p_planning: float = 0.08
    p_clipped: float = 0.04
    p_table: float = 0.9
    p_pad: float = 0.5
    p_head_rest: float = 0.45
    p_cushions: float = 0.15
    p_blanket: float = 0.45
    p_wires: float = 0.35
    padding_hu: tuple[int, ...] = (-1024, -2000, -3024, -1024)


@dataclass(frozen=True)
class PhantomSettings:
    """The whole table."""

    body: BodySettings = field(default_factory=BodySettings)
    lung: LungSettings = field(default_factory=LungSettings)
    disease: DiseaseSettings = field(default_factory=DiseaseSettings)
    scanner: ScannerSettings = field(default_factory=ScannerSettings)


Section = BodySettings | LungSettings | DiseaseSettings | ScannerSettings


def draw(section: Section, rng: np.random.Generator) -> Draws:
    """One value for each range of a section; 1.0 or 0.0 for each probability, under its name without `p_`."""
    values: Draws = {}
    for entry in fields(section):
        setting = getattr(section, entry.name)
        chance = float(rng.random())
        if entry.name.startswith("p_"):
            values[entry.name[2:]] = float(chance < setting)
        elif isinstance(setting, tuple) and len(setting) == 2:
            values[entry.name] = setting[0] + chance * (setting[1] - setting[0])
    return values
