"""Shortcuts: on chests without disease, does the CT score follow the scanner or the body?"""

from __future__ import annotations

import numpy as np
from answers import Answers
from tables import NONE, correlation, mean, number, percent, table

#: What must not move the score of a healthy chest: words, and its name among what was drawn.
PROPERTIES = {
    "noise": "noise_hu",
    "slice thickness": "slice_thickness_mm",
    "female": "female",
    "half width of the chest": "chest_half_width_mm",
    "fat under the skin": "fat_mm",
    "contrast medium": "contrast",
}


def shortcut_table(healthy: Answers) -> str:
    """A row a property: its correlation with every model's CT score, and Fisher's 95 % interval."""
    rows = []
    for words, key in PROPERTIES.items():
        values = np.array([float(one.get(key, np.nan)) for one in healthy.settings])
        rows.append(
            [words, *(_with_interval(values, scores) for scores in healthy.scores.values())]
        )
    return table(("CT score against", *(f"{model}, r [95 %]" for model in healthy.scores)), rows)


def _with_interval(values: np.ndarray, scores: np.ndarray) -> str:
    r = correlation(values, scores)
    if not np.isfinite(r) or len(values) < 4:
        return NONE
    # Fisher: the inverse hyperbolic tangent of r is normal with deviation 1 / √(n − 3).
    middle, half = np.arctanh(np.clip(r, -0.999999, 0.999999)), 1.96 / np.sqrt(len(values) - 3)
    return f"{r:+.2f} [{np.tanh(middle - half):+.2f}, {np.tanh(middle + half):+.2f}]"


def healthy_table(healthy: Answers) -> str:
    """A row a model: what it says about chests without disease."""
    header = ("model", "CT score: mean", "95th percentile", "answered class 0", "class 0 or 1")
    return table(
        header,
        (
            [
                model,
                number(mean(scores)),
                number(float(np.percentile(scores, 95))),
                percent(mean(healthy.found(model) == 0)),
                percent(mean(healthy.found(model) <= 1)),
            ]
            for model, scores in healthy.scores.items()
        ),
    )
