"""What surrounds the lungs: the numbered tissues that the 3D lobe network is taught to tell apart.

A manifest's `tissues` column names a file of these numbers. Its lobes come from the `lobes` column
and win over the tissues.
"""

from __future__ import annotations

from tf_covid.severity import LOBES

#: Tissue → its number in a `tissues` file; voxels of 0 are not known and carry no loss.
TISSUES = {
    "air around the patient": 1,
    "table, pads and cloth": 2,
    "chest wall": 3,
    "mediastinum": 4,
    "airway": 5,
    "pleural effusion": 6,
    "solid organ": 7,
    "stomach": 8,
    "bowel": 9,
}

#: What the logits of a lobe network are, in order: background, the lobes, then the tissues that are
#: told apart from the background. Without tissues of the cohort it learns the first six only.
CLASSES = ("air around the patient", *LOBES, *(name for name in TISSUES if TISSUES[name] > 1))

#: Logits of the lobes, in the order of `severity.LOBES`, and of pleural effusion.
LOBE_CLASSES = slice(1, 1 + len(LOBES))
EFFUSION_CLASS = CLASSES.index("pleural effusion")
