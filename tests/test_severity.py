"""The study's scales, against the table of the paper."""

from __future__ import annotations

import pytest

from tf_covid import severity


@pytest.mark.parametrize(
    ("percent", "score"),
    [
        (0, 0),
        (1e-6, 1),
        (4.999, 1),
        (5, 2),
        (25, 2),
        (25.001, 3),
        (50, 3),
        (50.5, 4),
        (75, 4),
        (75.1, 5),
        (100, 5),
    ],
)
def test_lobe_score_has_no_gaps(percent, score):
    assert severity.lobe_score(percent) == score


@pytest.mark.parametrize("percent", [-0.1, 100.1, float("nan")])
def test_impossible_involvement(percent):
    with pytest.raises(ValueError, match="within 0–100"):
        severity.lobe_score(percent)


def test_classes_of_all_whole_scores():
    bounds = {0: 0, 1: (1, 6), 2: (7, 12), 3: (13, 18), 4: (19, 25)}
    expected = [0] + [
        number for number in range(1, 5) for _ in range(bounds[number][0], bounds[number][1] + 1)
    ]
    assert [severity.severity_class(score) for score in range(26)] == expected


@pytest.mark.parametrize(("score", "number"), [(0.4, 0), (0.5, 1), (6.49, 1), (6.5, 2), (18.5, 4)])
def test_predicted_scores_are_rounded_half_up(score, number):
    assert severity.severity_class(score) == number


@pytest.mark.parametrize(
    ("score", "number", "outside"),
    [
        (0.4, 0, 0),
        (0.5, 0, 1),
        (2.4, 0, 2),
        (6.0, 0, 6),
        (0.4, 1, 1),
        (6.4, 1, 0),
        (8.6, 1, 3),
        (5.2, 2, 2),
        (25, 4, 0),
        (3.0, 4, 16),
    ],
)
def test_how_far_a_score_lies_outside_a_class(score, number, outside):
    assert severity.points_outside(score, number) == outside
    assert (outside == 0) == (severity.severity_class(score) == number)


def test_ct_score_is_the_sum_of_five():
    assert severity.ct_score([0, 1, 2, 3, 5]) == 11
    with pytest.raises(ValueError, match="five lobe scores"):
        severity.ct_score([1, 2, 3])
    with pytest.raises(ValueError, match="within 0–5"):
        severity.ct_score([1, 2, 3, 4, 6])
    with pytest.raises(ValueError, match="within 0–25"):
        severity.severity_class(26)
