"""Predictions joined and averaged."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from tf_covid.study import StudyError, ensemble, join, select


@pytest.mark.parametrize("task", ["severity", "covid", "slices", "lungs", "lobes"])
def test_folds_join_to_the_whole(task: str, make: Any) -> None:
    full = make.tables[task]()
    parts = [select(full, full.folds == fold) for fold in np.unique(full.folds)]
    joined = join(parts)
    key = "slices" if task == "slices" else "folds"
    assert sorted(zip(joined.cases, getattr(joined, key), strict=True)) == sorted(
        zip(full.cases, getattr(full, key), strict=True)
    )


def test_join_refuses_doubled_cases_and_patients_in_two_folds(make: Any) -> None:
    full = make.severity()
    with pytest.raises(StudyError, match="'case-000' was predicted twice"):
        join([full, full])
    leaking = make.severity(folds=np.arange(60) % 4)
    with pytest.raises(StudyError, match="patient is in fold 0 and in fold 1"):
        join([leaking])
    with pytest.raises(StudyError, match="one task"):
        join([full, make.covid()])
    with pytest.raises(StudyError, match="one task"):
        join([])


def test_an_ensemble_is_the_mean(make: Any) -> None:
    first, second = make.severity(1), make.severity(2)
    order = np.random.default_rng(0).permutation(60)
    found = ensemble([first, select(second, order)])
    assert found.cases == first.cases
    assert (found.folds == 0).all()
    np.testing.assert_allclose(
        found.probabilities, (first.probabilities + second.probabilities) / 2
    )
    np.testing.assert_allclose(
        found.predicted_score, (first.predicted_score + second.predicted_score) / 2
    )
    # One network has no score: the mean of those that have one.
    without = dataclasses.replace(second, predicted_score=np.full(60, np.nan))
    np.testing.assert_array_equal(ensemble([first, without]).predicted_score, first.predicted_score)
    assert np.isnan(ensemble([without]).predicted_score).all()


def test_an_ensemble_keeps_what_was_read(make: Any) -> None:
    """By the first member that knows it: an old record may not."""
    known, order = make.read(1), np.random.default_rng(0).permutation(60)
    none = np.full(60, np.nan)
    lacking = dataclasses.replace(make.severity(2), lobe_scores=known.lobe_scores, read_score=none)
    for members in ([known, lacking], [lacking, select(known, order)]):
        found = ensemble(members)
        for name in ("read_score", "lobe_scores", "read_lobe_scores"):
            np.testing.assert_array_equal(getattr(found, name), getattr(known, name))


def test_folds_with_and_without_lobes_join(make: Any) -> None:
    known, lacking = make.read(), make.severity()
    joined = join([select(known, known.folds == 0), select(lacking, lacking.folds == 1)])
    read = known.read_lobe_scores[known.folds == 0]
    np.testing.assert_array_equal(joined.read_lobe_scores[: len(read)], read)
    assert np.isnan(joined.read_lobe_scores[len(read) :]).all()


def test_an_ensemble_refuses_other_cases_and_other_truth(make: Any) -> None:
    full = make.severity()
    with pytest.raises(StudyError, match=r"not the same cases.*'case-000'"):
        ensemble([full, select(full, np.arange(1, 60))])
    with pytest.raises(StudyError, match="'case-003' has different truth"):
        ensemble(
            [full, dataclasses.replace(full, truth=np.where(np.arange(60) == 3, 0, full.truth))]
        )
    with pytest.raises(StudyError, match="different ct_score"):
        ensemble([full, dataclasses.replace(full, ct_score=np.full(60, np.nan))])
