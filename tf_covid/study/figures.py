"""The study's figures, as PNG or SVG bytes.

They stand on white, also on a dark page, so that they can be copied onto a poster. Every function
draws on a figure of its own: nothing global, and no window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_covid.severity import CLASS_UPPER_SCORES
from tf_covid.study import canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Learning curves by fold and name, a value an epoch.
Curves = Mapping[Any, Mapping[str, Sequence[float]]]

#: A density of fewer cases than this would show what is not there; they are dots only.
_FEWEST_FOR_DENSITY = 5


def confusion(
    matrix: np.ndarray, names: Sequence[str], *, title: str = "", form: canvas.Format = "png"
) -> bytes:
    """Confusion matrix: counts, and under each its share of the true class in percent, which colours the cell.

    Args:
        matrix: int (C, C), cases by [truth, prediction].
        names: C.
        title: Above it.
        form: Of the bytes.
    """
    counts = np.asarray(matrix)
    true, predicted = counts.sum(axis=1), counts.sum(axis=0)
    share = counts / np.maximum(true, 1)[:, None]
    classes = len(names)
    figure, axes = canvas.new(max(5.2, 2.3 + 0.92 * classes), max(3.8, 1.9 + 0.72 * classes))
    axes.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if share[row, column] > 0.55 else canvas.INK
        axes.text(
            column,
            row - 0.08,
            f"{count}",
            ha="center",
            va="center",
            fontsize=14,
            color=colour,
            weight="bold" if row == column else "normal",
        )
        text = f"{share[row, column] * 100:.0f} %" if true[row] else "–"
        axes.text(column, row + 0.27, text, ha="center", va="center", fontsize=9.5, color=colour)
    labels = [canvas.numbered(number, name, classes) for number, name in enumerate(names)]
    axes.set_xticks(
        range(classes), [f"{label}\nn = {n}" for label, n in zip(labels, predicted, strict=True)]
    )
    axes.set_yticks(
        range(classes), [f"{label}\nn = {n}" for label, n in zip(labels, true, strict=True)]
    )
    axes.set_xticks(np.arange(classes - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(classes - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    canvas.label(
        axes, "predicted class", "true class", title or "Cases, and their share of the true class"
    )
    return canvas.finished(figure, form)


def violins(
    ct_score: np.ndarray,
    predicted: np.ndarray,
    tests: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    *,
    title: str = "",
    form: canvas.Format = "png",
) -> bytes:
    """True CT score of the cases of each predicted class: a dot a case, with density, median, quartiles and brackets.

    Args:
        ct_score: float64 (N,), true Global CT Score, 0–25; cases with NaN are left out.
        predicted: int (N,), class.
        tests: Rows of `groups.mann_whitney`, for the brackets.
        names: C.
        title: Above it.
        form: Of the bytes.
    """
    classes = len(names)
    colours = canvas.RANKS if classes > 2 else (canvas.RANKS[0], canvas.RANKS[3])
    figure, axes = canvas.new(max(5.2, 1.7 + 1.25 * classes), 5.2)
    if classes == len(CLASS_UPPER_SCORES):
        _class_bands(axes, names)
    rng = np.random.default_rng(0)
    known = np.isfinite(ct_score)
    sizes = []
    for number in range(classes):
        scores = np.sort(ct_score[known & (predicted == number)])
        sizes.append(len(scores))
        if len(scores) >= _FEWEST_FOR_DENSITY and np.ptp(scores) > 0:
            _density(axes, scores, number, colours[number])
        aside = number + 0.11 * rng.uniform(-1.0, 1.0, len(scores))
        axes.scatter(
            aside, scores, s=13, color=colours[number], edgecolors="white", linewidths=0.5, zorder=3
        )
        if len(scores):
            low, middle, high = np.percentile(scores, (25, 50, 75))
            axes.plot(
                (number, number), (low, high), color=canvas.INK, linewidth=3.5, alpha=0.75, zorder=4
            )
            axes.plot(
                (number - 0.2, number + 0.2),
                (middle, middle),
                color=canvas.INK,
                linewidth=2,
                zorder=4,
            )
        else:
            axes.text(
                number,
                CLASS_UPPER_SCORES[-1] / 2,
                "no case",
                ha="center",
                color=canvas.SOFT,
                zorder=4,
            )
    for row in tests:
        _bracket(axes, row)
    labels = [canvas.numbered(number, name, classes) for number, name in enumerate(names)]
    axes.set_xticks(
        range(classes), [f"{label}\nn = {n}" for label, n in zip(labels, sizes, strict=True)]
    )
    axes.set(xlim=(-0.6, classes - 0.4), ylim=(-1.2, 30.5))
    axes.set_yticks([0, 5, 10, 15, 20, 25])
    canvas.label(
        axes,
        "predicted class",
        "true Global CT Score (0–25 points)",
        title or "True CT score by predicted class",
    )
    return canvas.finished(figure, form)


def _class_bands(axes: Axes, names: Sequence[str]) -> None:
    """The range of scores of each class behind everything: a dot in the band of its own colour was classed rightly."""
    low = -0.5
    for number, upper in enumerate(CLASS_UPPER_SCORES):
        axes.axhspan(
            low,
            upper + 0.5,
            xmax=1.0,
            color=canvas.RANKS[number],
            alpha=0.10,
            linewidth=0,
            zorder=0,
        )
        low = upper + 0.5


def _density(axes: Axes, scores: np.ndarray, number: int, colour: str) -> None:
    from scipy.stats import gaussian_kde

    # No density where there is no case: it ends at the lowest and the highest score.
    grid = np.linspace(scores[0], scores[-1], 120)
    width = gaussian_kde(scores)(grid)
    width *= 0.36 / width.max()
    axes.fill_betweenx(
        grid, number - width, number + width, color=colour, alpha=0.35, linewidth=0, zorder=2
    )


def _bracket(axes: Axes, row: Mapping[str, Any]) -> None:
    left, right = row["groups"][0] + 0.06, row["groups"][1] - 0.06
    # Neighbouring brackets share a group: every other one stands higher.
    height = 26.4 + 1.9 * (row["groups"][0] % 2)
    axes.plot(
        (left, left, right, right),
        (height - 0.4, height, height, height - 0.4),
        color=canvas.INK,
        linewidth=1,
    )
    text = "not tested" if row["p_holm"] is None else p_text(row["p_holm"])
    axes.text(
        (left + right) / 2,
        height + 0.15,
        text,
        ha="center",
        va="bottom",
        fontsize=10,
        color=canvas.INK,
    )


def p_text(p: float) -> str:
    """A p-value as a paper prints it."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.0995 else f"p = {p:.2f}"


def reliability(
    calibration: Mapping[str, Any], *, title: str = "", form: canvas.Format = "png"
) -> bytes:
    """Reliability diagram: how often the answer is right, by the probability that it was given with.

    Args:
        calibration: Of `groups.calibration`.
        title: Above it.
        form: Of the bytes.
    """
    figure, axes = canvas.new(5.2, 5.2)
    axes.plot((0, 1), (0, 1), color=canvas.SOFT, linewidth=1, linestyle=(0, (4, 4)))
    axes.text(
        0.03,
        0.075,
        "as it should be",
        rotation=45,
        color=canvas.SOFT,
        fontsize=9.5,
        rotation_mode="anchor",
    )
    bins = calibration["bins"]
    most = max((row["n"] for row in bins), default=1)
    for row in bins:
        width = row["high"] - row["low"]
        axes.bar(
            row["low"],
            0.16 * row["n"] / most,
            width,
            align="edge",
            color=canvas.LINE,
            edgecolor="white",
            zorder=0,
        )
        low, high = row["right_ci95"]
        axes.plot((row["probability"],) * 2, (low, high), color=canvas.ACCENT, linewidth=1.5)
        axes.text(
            row["low"] + width / 2,
            0.16 * row["n"] / most + 0.01,
            f"{row['n']}",
            ha="center",
            fontsize=9,
            color=canvas.SOFT,
        )
    axes.plot(
        [row["probability"] for row in bins],
        [row["right"] for row in bins],
        "o-",
        color=canvas.ACCENT,
        markersize=7,
    )
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    canvas.percent_ticks(axes)
    what = "probability of the predicted class\n(grey: number of cases)"
    canvas.label(
        axes,
        what,
        "share of cases that were right (bars: 95 % interval)",
        title or "Can the probabilities be trusted?",
    )
    return canvas.finished(figure, form)


def roc(
    curves: Mapping[str, tuple[Mapping[str, Sequence[float]], Mapping[str, Any] | None]],
    *,
    title: str = "",
    form: canvas.Format = "png",
) -> bytes:
    """ROC curves, one a run.

    Args:
        curves: By name, points of `groups.roc` and the AUC as `{"value", "ci95"}`, or None.
        title: Above it.
        form: Of the bytes.
    """
    figure, axes = canvas.new(5.2, 5.2)
    axes.plot((0, 1), (0, 1), color=canvas.SOFT, linewidth=1, linestyle=(0, (4, 4)))
    for number, (name, (points, auc)) in enumerate(curves.items()):
        text = "" if auc is None else f"AUC {auc['value']:.3f}"
        if auc is not None and auc["ci95"]:
            text += f" (95 % interval {auc['ci95'][0]:.3f}–{auc['ci95'][1]:.3f})"
        colour = canvas.SERIES[number % len(canvas.SERIES)]
        named = canvas.drawable(f"{name}\n{text}" if name else text)
        x, y = points["false_positive_rate"], points["true_positive_rate"]
        axes.plot(x, y, color=colour, linewidth=2.2, label=named, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    canvas.percent_ticks(axes)
    if axes.get_legend_handles_labels()[1]:
        legend = axes.legend(loc="lower right", fontsize=9.5, frameon=True, edgecolor=canvas.LINE)
        for entry in legend.get_texts():
            entry.set_parse_math(False)
    canvas.label(
        axes,
        "false alarms: negative cases called positive (1 − specificity)",
        "positive cases found (sensitivity)",
        title or "ROC curve",
    )
    return canvas.finished(figure, form)


def dice(values: np.ndarray, *, title: str = "", form: canvas.Format = "png") -> bytes:
    """How many cases reach which Dice.

    Args:
        values: float64 (N,), 0–1.
        title: Above it.
        form: Of the bytes.
    """
    figure, axes = canvas.new(6.0, 3.6)
    # From a round value below the worst case: good masks all lie close to 1.
    low = min(0.95, math.floor(float(values.min()) * 20) / 20)
    axes.hist(
        values, bins=np.linspace(low, 1.0, 26).tolist(), color=canvas.ACCENT, edgecolor="white"
    )
    axes.axvline(
        float(values.mean()), color=canvas.INK, linewidth=1.5, linestyle=(0, (4, 3)), label="mean"
    )
    axes.legend(frameon=False)
    axes.set(xlim=(low, 1.0))
    axes.yaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    canvas.label(axes, "Dice of a case (1: the masks are the same)", "cases", title or "Lung masks")
    return canvas.finished(figure, form)


def learning(curves: Curves, *, form: canvas.Format = "png") -> bytes | None:
    """Learning curves: a panel a quantity, a colour a fold; dashed on the training cases, solid on those held out.

    Args:
        curves: By fold and name ("loss", "val_loss", …), a value an epoch; what is not finite is
            left out.
        form: Of the bytes.

    Returns:
        None where there is no value at all.
    """
    series = [
        (fold, name.removeprefix("val_"), name.startswith("val_"), np.asarray(values, np.float64))
        for fold, by_name in curves.items()
        for name, values in by_name.items()
        if np.isfinite(np.asarray(values, np.float64)).any()
    ]
    panels = list(dict.fromkeys(name for _, name, _, _ in series))
    if not panels:
        return None
    from matplotlib.lines import Line2D

    figure, columns = canvas.blank(9.0, 0.5 + 2.7 * math.ceil(len(panels) / 2)), min(2, len(panels))
    grid = figure.subplots(math.ceil(len(panels) / 2), columns, squeeze=False)
    folds = list(dict.fromkeys(fold for fold, *_ in series))
    for axes in grid.ravel()[len(panels) :]:
        axes.axis("off")
    for axes, panel in zip(grid.ravel(), panels, strict=False):
        canvas.styled(axes)
        for fold, name, held_out, values in series:
            if name == panel:
                epochs = np.arange(1, len(values) + 1)
                shown = np.where(np.isfinite(values), values, np.nan)
                # A single epoch is a point: a line through it would not be seen.
                axes.plot(
                    epochs,
                    shown,
                    color=canvas.SERIES[folds.index(fold) % len(canvas.SERIES)],
                    linewidth=1.6,
                    linestyle="-" if held_out else (0, (3, 2)),
                    alpha=1.0 if held_out else 0.65,
                    marker="o" if len(values) == 1 else None,
                )
        axes.xaxis.get_major_locator().set_params(integer=True)
        canvas.label(axes, "epoch", "", canvas.drawable(panel.replace("_", " ")))
    lines = [
        Line2D(
            [],
            [],
            color=canvas.SERIES[number % len(canvas.SERIES)],
            label=canvas.drawable(f"fold {fold}"),
        )
        for number, fold in enumerate(folds)
    ]
    lines += [
        Line2D([], [], color=canvas.INK, label="held out"),
        Line2D([], [], color=canvas.INK, linestyle=(0, (3, 2)), label="training"),
    ]
    figure.legend(
        handles=lines,
        loc="outside upper center",
        ncols=min(len(lines), 8),
        frameon=False,
        fontsize=9.5,
    )
    return canvas.finished(figure, form)
