"""What the paper published, as data.

Source: Rodríguez et al., ISBI 2021, pp. 1665–1668, doi 10.1109/ISBI48211.2021.9434154. Its patients
are not those of any run here: its column stands beside a run's for the size of the numbers, not as
a contest.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tf_covid.severity import LABELS
from tf_covid.study.bootstrap import Bootstrap
from tf_covid.study.metrics import from_matrix

CITATION = (
    "J. Rodríguez et al., A COVID-19 patient severity stratification using a 3D convolutional"
    " strategy on CT-scans, IEEE ISBI 2021, pp. 1665–1668, doi 10.1109/ISBI48211.2021.9434154"
)

#: Severity with I3D, accumulated over four folds: cases by [truth, prediction].
SEVERITY_MATRIX = (
    (29, 1, 2, 1, 1),
    (7, 11, 12, 3, 0),
    (1, 8, 32, 5, 6),
    (0, 1, 13, 24, 8),
    (0, 1, 3, 8, 25),
)

#: Mann–Whitney between neighbouring predicted classes on the true CT score: every p-value lies
#: below its bound.
SEVERITY_MANN_WHITNEY_BELOW = ((0, 1, 1.2e-8), (1, 2, 1e-3), (2, 3, 8.3e-7), (3, 4, 1e-3))

#: The four networks of the covid task.
COVID_COLUMNS = ("LTC scratch", "LTC pre-trained", "I3D scratch", "I3D pre-trained")

#: Cases of each class of the covid task.
COVID_CASES = (175, 175)

#: (precision, recall, F1) in percent by class, one triple a column of `COVID_COLUMNS`.
COVID_PERCENT = {
    "non-COVID": ((93, 94, 93), (98, 96, 97), (96, 95, 95), (96, 100, 98)),
    "COVID": ((94, 93, 93), (96, 98, 97), (95, 96, 95), (100, 96, 98)),
}


def severity_results(bootstrap: Bootstrap | None = None) -> dict[str, Any]:
    """The paper's severity results that follow from its matrix, under the names of `study.json`."""
    return from_matrix(np.array(SEVERITY_MATRIX), LABELS, bootstrap)
