"""Figures: valid pictures for everything that a run can give."""

from __future__ import annotations

import io
import xml.etree.ElementTree
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.marks import warnings_are_errors
from tf_covid.severity import LABELS
from tf_covid.study import figures, groups, paper, violins
from tf_covid.study.axes import DPI

pytestmark = warnings_are_errors


def pixels(png: bytes, width_in: float, height_in: float) -> np.ndarray:
    picture = Image.open(io.BytesIO(png))
    assert picture.format == "PNG"
    assert picture.size == (
        round(width_in * DPI),
        round(height_in * DPI),
    )
    shown = np.asarray(picture.convert("RGB"))
    assert shown.std() > 5, "not blank"
    for edge in (shown[:3], shown[-3:], shown[:, :3], shown[:, -3:]):
        assert (edge == 255).all(), "nothing runs over the edge"
    return shown


def test_the_confusion_matrix_is_darkest_on_its_diagonal() -> None:
    shown = pixels(figures.confusion(np.array(paper.SEVERITY_MATRIX), LABELS), 6.9, 5.5)
    assert (shown != pixels(figures.confusion(np.eye(5, dtype=int), LABELS), 6.9, 5.5)).any()


@pytest.mark.parametrize(
    "matrix", [np.zeros((5, 5), int), np.eye(5, dtype=int) * 99999, np.eye(2, dtype=int)]
)
def test_any_confusion_matrix(matrix: np.ndarray) -> None:
    names = LABELS if len(matrix) == 5 else ("non-COVID", "COVID")
    size = (6.9, 5.5) if len(matrix) == 5 else (5.2, 3.8)
    pixels(figures.confusion(matrix, names, title="日本 $\\frac$ <script>"), *size)


@pytest.mark.parametrize(
    ("predicted", "scores"),
    [
        ([0], [0.0]),
        ([0, 0, 1], [0.0, 0.0, np.nan]),
        ([4] * 6, [25.0] * 6),
        ([2] * 5 + [3], [7.0, 8.0, 8.0, 9.0, 12.0, 25.0]),
        ([1] * 3, [np.nan] * 3),
        ([*range(5)] * 40, [*range(5)] * 40),
    ],
)
def test_violins_of_empty_single_and_equal_groups(
    predicted: list[int], scores: list[float], make: Any
) -> None:
    found = make.answers(predicted, predicted, ct_score=scores)
    drawn = violins.violins(found.ct_score, found.predicted, groups.mann_whitney(found), LABELS)
    pixels(drawn, 7.95, 5.2)


def test_the_other_figures(make: Any) -> None:
    pixels(figures.reliability(groups.calibration(make.severity(), make.quick)), 5.2, 5.2)
    pixels(figures.reliability(groups.calibration(make.answers([0], [1]), make.quick)), 5.2, 5.2)
    study = make.study(make.covid())
    pixels(figures.roc({"": (study["roc"], study["auc"])}), 5.2, 5.2)
    pixels(figures.roc({f"$run$ {row} 日": (study["roc"], None) for row in range(9)}), 5.2, 5.2)
    pixels(figures.dice(make.lungs().dice), 6.0, 3.6)
    pixels(figures.dice(np.array([1.0])), 6.0, 3.6)
    pixels(figures.dice(np.array([0.0, 0.0])), 6.0, 3.6)


def test_learning_curves(make: Any) -> None:
    curves = {
        fold: {"loss": [2.0, 1.0, 0.5], "val_loss": [2.0, np.nan, np.inf], "$x$_日": [1.0]}
        for fold in range(9)
    }
    pixels(figures.learning(curves), 9.0, 3.2)
    assert figures.learning({0: {"loss": []}, 1: {"loss": [1.0]}})
    nothing: list[dict[int, dict[str, list[float]]]] = [{}, {0: {}}, {0: {"loss": [np.nan]}}]
    for empty in nothing:
        with pytest.raises(ValueError, match="no value"):
            figures.learning(empty)


def test_svg_too() -> None:
    drawn = figures.confusion(np.array(paper.SEVERITY_MATRIX), LABELS, form="svg")
    assert xml.etree.ElementTree.fromstring(drawn).tag.endswith("svg")

    again = figures.confusion(np.array(paper.SEVERITY_MATRIX), LABELS, form="svg")
    assert again == drawn, "the same figure becomes the same file"
