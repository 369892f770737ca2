"""The study's figures but the violins, as PNG or SVG bytes.

They stand on white, also on a dark page, so that they can be copied onto a poster.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tf_covid.page import palette
from tf_covid.page.figure_style import Format, drawable, styled, to_bytes
from tf_covid.study.axes import blank_figure, class_names, label, new_axes, percent_ticks

#: Learning curves by fold and name, a value an epoch.
Curves = Mapping[Any, Mapping[str, Sequence[float]]]


@styled()
def confusion(
    matrix: np.ndarray, names: Sequence[str], *, title: str = "", form: Format = "png"
) -> bytes:
    """Confusion matrix.

    Counts, and under each the fraction of its true class in percent, which also colours the cell.

    Args:
        matrix: Number of cases by [truth, prediction], int (C, C).
        names: Name of each class.
        title: Title above the figure.
        form: File format of the bytes.

    Returns:
        The figure as a file.
    """
    counts = np.asarray(matrix)
    true, predicted = counts.sum(axis=1), counts.sum(axis=0)
    fraction = counts / np.maximum(true, 1)[:, None]
    classes = len(names)
    figure, axes = new_axes(max(5.2, 2.3 + 0.92 * classes), max(3.8, 1.9 + 0.72 * classes))
    axes.imshow(fraction, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        colour = "white" if fraction[row, column] > 0.55 else palette.LIGHT.ink
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
        text = f"{fraction[row, column] * 100:.0f} %" if true[row] else "–"
        axes.text(column, row + 0.27, text, ha="center", va="center", fontsize=9.5, color=colour)
    labels = class_names(names)
    axes.set_xticks(
        range(classes), [f"{name}\nn = {n}" for name, n in zip(labels, predicted, strict=True)]
    )
    axes.set_yticks(
        range(classes), [f"{name}\nn = {n}" for name, n in zip(labels, true, strict=True)]
    )
    axes.set_xticks(np.arange(classes - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(classes - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2, alpha=1)
    axes.tick_params(which="both", length=0)
    label(
        axes, "predicted class", "true class", title or "Cases, and their share of the true class"
    )
    return to_bytes(figure, form)


@styled()
def reliability(calibration: Mapping[str, Any], *, title: str = "", form: Format = "png") -> bytes:
    """Reliability diagram: how often the answer is right, by the probability it was given with.

    Args:
        calibration: Result of `groups.calibration`.
        title: Title above the figure.
        form: File format of the bytes.

    Returns:
        The figure as a file.
    """
    figure, axes = new_axes(5.2, 5.2)
    axes.plot((0, 1), (0, 1), color=palette.LIGHT.soft, linewidth=1, linestyle=(0, (4, 4)))
    axes.text(
        0.03,
        0.075,
        "as it should be",
        rotation=45,
        color=palette.LIGHT.soft,
        fontsize=9.5,
        rotation_mode="anchor",
    )
    bins = calibration["bins"]
    largest = max((row["n"] for row in bins), default=1)
    for row in bins:
        width = row["high"] - row["low"]
        axes.bar(
            row["low"],
            0.16 * row["n"] / largest,
            width,
            align="edge",
            color=palette.LIGHT.line,
            edgecolor="white",
            zorder=0,
        )
        low, high = row["right_ci95"]
        axes.plot((row["probability"],) * 2, (low, high), color=palette.LIGHT.accent, linewidth=1.5)
        axes.text(
            row["low"] + width / 2,
            0.16 * row["n"] / largest + 0.01,
            f"{row['n']}",
            ha="center",
            fontsize=9,
            color=palette.LIGHT.soft,
        )
    axes.plot(
        [row["probability"] for row in bins],
        [row["right"] for row in bins],
        "o-",
        color=palette.LIGHT.accent,
        markersize=7,
    )
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    percent_ticks(axes)
    what = "probability of the predicted class\n(grey: number of cases)"
    label(
        axes,
        what,
        "share of cases that were right (bars: 95 % interval)",
        title or "Can the probabilities be trusted?",
    )
    return to_bytes(figure, form)


@styled()
def roc(
    curves: Mapping[str, tuple[Mapping[str, Sequence[Any]], Mapping[str, Any] | None]],
    *,
    title: str = "",
    form: Format = "png",
) -> bytes:
    """ROC curves, one a run.

    Args:
        curves: By name of the run, points of `groups.roc` and the AUC as `{"value", "ci95"}`, or
            None.
        title: Title above the figure.
        form: File format of the bytes.

    Returns:
        The figure as a file.
    """
    figure, axes = new_axes(5.2, 5.2)
    axes.plot((0, 1), (0, 1), color=palette.LIGHT.soft, linewidth=1, linestyle=(0, (4, 4)))
    for index, (name, (points, auc)) in enumerate(curves.items()):
        text = "" if auc is None else f"AUC {auc['value']:.3f}"
        if auc is not None and auc["ci95"]:
            text += f" (95 % interval {auc['ci95'][0]:.3f}–{auc['ci95'][1]:.3f})"
        colour = palette.RUNS[index % len(palette.RUNS)]
        record = f"{drawable(name)}\n{text}" if name else text
        x, y = points["false_positive_rate"], points["true_positive_rate"]
        axes.plot(x, y, color=colour, linewidth=2.2, label=record, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    percent_ticks(axes)
    if axes.get_legend_handles_labels()[1]:
        legend = axes.legend(loc="lower right", fontsize=9.5, frameon=True)
        for line in legend.get_texts():
            line.set_parse_math(False)
    label(
        axes,
        "false alarms: negative cases called positive (1 − specificity)",
        "positive cases found (sensitivity)",
        title or "ROC curve",
    )
    return to_bytes(figure, form)


@styled()
def dice(values: np.ndarray, *, title: str = "", form: Format = "png") -> bytes:
    """How many cases reach which Dice.

    Args:
        values: Dice of each case, 0–1, float64 (N,).
        title: Title above the figure.
        form: File format of the bytes.

    Returns:
        The figure as a file.
    """
    figure, axes = new_axes(6.0, 3.6)
    # From a round value below the worst case: good masks all lie close to 1.
    low = min(0.95, math.floor(float(values.min()) * 20) / 20)
    axes.hist(
        values,
        bins=np.linspace(low, 1.0, 26).tolist(),
        color=palette.LIGHT.accent,
        edgecolor="white",
    )
    axes.axvline(
        float(values.mean()),
        color=palette.LIGHT.ink,
        linewidth=1.5,
        linestyle=(0, (4, 3)),
        label="mean",
    )
    axes.legend(frameon=False)
    axes.set(xlim=(low, 1.0))
    axes.yaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    label(axes, "Dice of a case (1: the masks are the same)", "cases", title or "Lung masks")
    return to_bytes(figure, form)


@styled()
def learning(curves: Curves, *, form: Format = "png") -> bytes:
    """Learning curves: a panel a quantity, a colour a fold; training dashed, validation solid.

    Args:
        curves: By fold and name ("loss", "val_loss", …), a value an epoch; what is not finite is
            left out.
        form: File format of the bytes.

    Returns:
        The figure as a file.

    Raises:
        ValueError: If there is no finite value at all.
    """
    lines = [
        (fold, name.removeprefix("val_"), name.startswith("val_"), np.asarray(values, np.float64))
        for fold, by_name in curves.items()
        for name, values in by_name.items()
        if np.isfinite(np.asarray(values, np.float64)).any()
    ]
    panels = list(dict.fromkeys(name for _, name, _, _ in lines))
    if not panels:
        raise ValueError("there is no value to be drawn")
    from matplotlib.lines import Line2D

    rows, columns = math.ceil(len(panels) / 2), min(2, len(panels))
    figure = blank_figure(9.0, 0.5 + 2.7 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    folds = list(dict.fromkeys(fold for fold, *_ in lines))
    for axes in grid.ravel()[len(panels) :]:
        axes.axis("off")
    for axes, panel in zip(grid.ravel(), panels, strict=False):
        for fold, name, is_validation, values in lines:
            if name == panel:
                epochs = np.arange(1, len(values) + 1)
                shown = np.where(np.isfinite(values), values, np.nan)
                # A single epoch is a point: a line through it would not be seen.
                axes.plot(
                    epochs,
                    shown,
                    color=palette.RUNS[folds.index(fold) % len(palette.RUNS)],
                    linewidth=1.6,
                    linestyle="-" if is_validation else (0, (3, 2)),
                    alpha=1.0 if is_validation else 0.65,
                    marker="o" if len(values) == 1 else None,
                )
        axes.xaxis.get_major_locator().set_params(integer=True)
        label(axes, "epoch", "", panel.replace("_", " "))
    handles = [
        Line2D(
            [],
            [],
            color=palette.RUNS[index % len(palette.RUNS)],
            label=drawable(f"fold {fold}"),
        )
        for index, fold in enumerate(folds)
    ]
    handles += [
        Line2D([], [], color=palette.LIGHT.ink, label="validation"),
        Line2D([], [], color=palette.LIGHT.ink, linestyle=(0, (3, 2)), label="training"),
    ]
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=min(len(handles), 8),
        frameon=False,
        fontsize=9.5,
    )
    return to_bytes(figure, form)
