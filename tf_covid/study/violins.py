"""True CT score by predicted class, as in the paper: a violin and dots a class, PNG or SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_covid.page import palette
from tf_covid.page.figure_style import Format, styled, to_bytes
from tf_covid.page.formats import p_value
from tf_covid.severity import CLASS_UPPER_SCORES
from tf_covid.study.axes import class_names, label, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: A density of fewer cases than this would show what is not there; they are dots only.
_MIN_CASES_FOR_DENSITY = 5


@styled()
def violins(
    ct_score: np.ndarray,
    predicted: np.ndarray,
    tests: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    *,
    title: str = "",
    form: Format = "png",
) -> bytes:
    """True CT score of the cases of each predicted class.

    A dot a case, with density, median, quartiles, and a bracket for each tested pair of classes.

    Args:
        ct_score: True Global CT Score of each case, 0–25, float64 (N,); NaN is left out.
        predicted: Predicted class of each case, int (N,).
        tests: Rows of `groups.mann_whitney`, for the brackets.
        names: Name of each class.
        title: Title above the figure.
        form: File format of the bytes.

    Returns:
        The figure as a file.
    """
    classes = len(names)
    colours = palette.SEVERITY_FILL if classes > 2 else palette.BINARY_FILL
    figure, axes = new_axes(max(5.2, 1.7 + 1.25 * classes), 5.2)
    if classes == len(CLASS_UPPER_SCORES):
        _class_bands(axes, names)
    rng = np.random.default_rng(0)
    known = np.isfinite(ct_score)
    sizes = []
    for index in range(classes):
        scores = np.sort(ct_score[known & (predicted == index)])
        sizes.append(len(scores))
        if len(scores) >= _MIN_CASES_FOR_DENSITY and np.ptp(scores) > 0:
            _density(axes, scores, index, colours[index])
        aside = index + 0.11 * rng.uniform(-1.0, 1.0, len(scores))
        axes.scatter(
            aside, scores, s=13, color=colours[index], edgecolors="white", linewidths=0.5, zorder=3
        )
        if len(scores):
            low, middle, high = np.percentile(scores, (25, 50, 75))
            axes.plot(
                (index, index),
                (low, high),
                color=palette.LIGHT.ink,
                linewidth=3.5,
                alpha=0.75,
                zorder=4,
            )
            axes.plot(
                (index - 0.2, index + 0.2),
                (middle, middle),
                color=palette.LIGHT.ink,
                linewidth=2,
                zorder=4,
            )
        else:
            axes.text(
                index,
                CLASS_UPPER_SCORES[-1] / 2,
                "no case",
                ha="center",
                color=palette.LIGHT.soft,
                zorder=4,
            )
    for row in tests:
        _bracket(axes, row)
    axes.set_xticks(
        range(classes),
        [f"{name}\nn = {n}" for name, n in zip(class_names(names), sizes, strict=True)],
    )
    axes.set(xlim=(-0.6, classes - 0.4), ylim=(-1.2, 30.5))
    axes.set_yticks([0, 5, 10, 15, 20, 25])
    label(
        axes,
        "predicted class",
        "true Global CT Score (0–25 points)",
        title or "True CT score by predicted class",
    )
    return to_bytes(figure, form)


def _class_bands(axes: Axes, names: Sequence[str]) -> None:
    """Shade the range of scores of each class; a dot in the band of its colour is right."""
    low = -0.5
    for index, upper in enumerate(CLASS_UPPER_SCORES):
        axes.axhspan(
            low,
            upper + 0.5,
            xmax=1.0,
            color=palette.SEVERITY_FILL[index],
            alpha=0.10,
            linewidth=0,
            zorder=0,
        )
        low = upper + 0.5


def _density(axes: Axes, scores: np.ndarray, index: int, colour: str) -> None:
    """Draw the density of a class's scores, to both sides of its place on the axis."""
    from scipy.stats import gaussian_kde

    # No density where there is no case: it ends at the lowest and the highest score.
    grid = np.linspace(scores[0], scores[-1], 120)
    width = gaussian_kde(scores)(grid)
    width *= 0.36 / width.max()
    axes.fill_betweenx(
        grid, index - width, index + width, color=colour, alpha=0.35, linewidth=0, zorder=2
    )


def _bracket(axes: Axes, row: Mapping[str, Any]) -> None:
    """Draw a bracket over two neighbouring classes, with the p-value of their difference."""
    left, right = row["groups"][0] + 0.06, row["groups"][1] - 0.06
    # Neighbouring brackets share a group: every other one stands higher.
    height = 26.4 + 1.9 * (row["groups"][0] % 2)
    axes.plot(
        (left, left, right, right),
        (height - 0.4, height, height, height - 0.4),
        color=palette.LIGHT.ink,
        linewidth=1,
    )
    axes.text(
        (left + right) / 2,
        height + 0.15,
        p_value(row["p_holm"]),
        ha="center",
        va="bottom",
        fontsize=10,
        color=palette.LIGHT.ink,
    )
