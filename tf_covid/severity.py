"""The study's severity scales, once: lobe involvement → lobe score → Global CT Score → class.

Source: Francone et al. 2020 (doi 10.1007/s00330-020-07033-y), as used by Rodríguez et al., ISBI
2021.
"""

from __future__ import annotations

from collections.abc import Sequence

#: The five severity classes, in order; the position is the class number.
LABELS = ("no findings", "mild", "moderate", "severe", "critical")

#: The highest Global CT Score of each class.
CLASS_UPPER_SCORES = (0, 6, 12, 18, 25)

#: The five lobes, in the order of every list of lobe scores.
LOBES = ("right upper", "right middle", "right lower", "left upper", "left lower")

#: Upper bound of involvement (percent, inclusive) of the lobe scores 0, 2, 3, 4 and 5; score 1 is
#: (0, 5).
_MODERATE, _MANY, _MOST, _ALL = 5.0, 25.0, 50.0, 75.0


def lobe_score(involvement_percent: float) -> int:
    """Score of one lobe, 0–5, from the share of it that is diseased.

    0 → 0; (0, 5) → 1; [5, 25] → 2; (25, 50] → 3; (50, 75] → 4; (75, 100] → 5 percent.

    Raises:
        ValueError: If `involvement_percent` is not within 0–100.
    """
    if not 0.0 <= involvement_percent <= 100.0:
        raise ValueError(f"involvement must lie within 0–100 %, not {involvement_percent}")
    if involvement_percent == 0.0:
        return 0
    if involvement_percent < _MODERATE:
        return 1
    for score, upper in ((2, _MANY), (3, _MOST), (4, _ALL)):
        if involvement_percent <= upper:
            return score
    return 5


def ct_score(lobe_scores: Sequence[int]) -> int:
    """Global CT Score, 0–25: the sum of five lobe scores of 0–5.

    Raises:
        ValueError: If there are not five scores, or one is not within 0–5.
    """
    if len(lobe_scores) != len(LOBES):
        raise ValueError(f"five lobe scores are needed, not {len(lobe_scores)}")
    if any(not 0 <= score <= 5 for score in lobe_scores):
        raise ValueError(f"lobe scores must lie within 0–5, not {list(lobe_scores)}")
    return int(sum(lobe_scores))


def severity_class(score: float) -> int:
    """Severity class, 0–4, of a Global CT Score of 0–25.

    A predicted score may be fractional; it is rounded half up to the nearest whole score first.

    Raises:
        ValueError: If `score` is not within 0–25.
    """
    if not 0 <= score <= CLASS_UPPER_SCORES[-1]:
        raise ValueError(f"a Global CT Score lies within 0–25, not {score}")
    full = _whole(score)
    return next(index for index, upper in enumerate(CLASS_UPPER_SCORES) if full <= upper)


def points_outside(score: float, class_index: int) -> int:
    """Whole points by which a Global CT Score lies outside the scores of a severity class.

    Args:
        score: 0–25, rounded half up.
        class_index: Severity class, 0–4.
    """
    low = CLASS_UPPER_SCORES[class_index - 1] + 1 if class_index else 0
    return max(low - _whole(score), _whole(score) - CLASS_UPPER_SCORES[class_index], 0)


def _whole(score: float) -> int:
    return int(score + 0.5)
