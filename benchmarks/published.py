"""The tables of the published study, from its run folders; nothing is trained.

    python benchmarks/published.py [--write]

Reads `docs/study/*/predictions.csv` as `tfcovid study` does, and prints the tables of
`docs/study/README.md`: the metrics beside the paper's, which follow from its confusion matrix; the
paired differences; and the confusion matrices.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from tables import DOCS, NONE, Page, table

from tf_covid.severity import LABELS
from tf_covid.study import compare

STUDY = DOCS / "study"

#: Run folder → its column, in the order of the columns.
RUNS = {
    "i3d-scratch": "I3D scratch",
    "i3d-pretrained": "I3D pre-trained (2D slices, inflated)",
    "ltc-scratch": "LTC scratch",
}

#: Metric → its row, the factor to the row's unit, digits, and the unit.
METRICS: Mapping[str, tuple[str, float, int, str]] = {
    "accuracy": ("accuracy", 100, 1, " %"),
    "macro_f1": ("macro-F1", 1, 3, ""),
    "quadratic_kappa": ("quadratic weighted kappa", 1, 3, ""),
    "within_one": ("within one class", 100, 1, " %"),
    "auc": ("AUC, mean of one against the rest", 1, 3, ""),
    "mae": ("CT score (0–25), mean error", 1, 1, ""),
}

_PAPER = "paper, I3D ([Rodríguez 2021](https://doi.org/10.1109/ISBI48211.2021.9434154))"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MINUS = str.maketrans("-", "−")


def metrics_table(found: Mapping[str, Any]) -> str:
    """A row a metric: the paper, and each run with its 95 % interval."""
    runs, paper = found["runs"], found["paper"]
    rows = [
        ["patients", f"real, {paper['cases']}", *(f"**synthetic**, {r['cases']}" for r in runs)]
    ]
    for key, (name, factor, digits, unit) in METRICS.items():
        published = paper.get(key)
        row = [name, NONE]
        if published is not None:
            row = [name, f"{published['value'] * factor:.{digits}f}{unit}"]
        row += [_figure(run["metrics"][key], factor, digits, unit) for run in runs]
        rows.append(row)
    for index, pair in enumerate(paper["mann_whitney"]):
        low, high = pair["groups"]
        row = [f"p, {low}–{high}", f"< {_p(pair['p_below'])}"]
        rows.append([*row, *(_p(run["mann_whitney"][index]["p_holm"]) for run in runs)])
    rows.append(["seconds of training", NONE, *(f"{run['seconds']:,.0f}" for run in runs)])
    return table(["", _PAPER, *RUNS.values()], rows)


def differences_table(found: Mapping[str, Any]) -> str:
    """Paired differences with their 95 % intervals, bold where 0 lies outside."""
    by_runs = {(one["first"], one["second"]): one["metrics"] for one in found["differences"]}
    pairs = [by_runs["i3d-scratch", other] for other in ("i3d-pretrained", "ltc-scratch")]
    rows = []
    for key, (name, factor, digits, unit) in METRICS.items():
        row = [f"{name}, points" if unit else name]
        # Differences of a mean error of one digit would be told apart by none.
        digits = 2 if key == "mae" else digits
        row += [_difference(metrics[key], factor, digits) for metrics in pairs]
        rows.append(row)
    header = ["on **synthetic** patients", "pre-trained − scratch, I3D", "LTC − I3D, scratch"]
    return table(header, rows)


def confusion_table(found: Mapping[str, Any]) -> str:
    """The confusion matrices side by side: rows are the truth, columns the answer."""
    names = [name.split(" (")[0] for name in RUNS.values()]
    count = len(LABELS)
    header = ["truth", *(f"{name}: {index}" for name in names for index in range(count))]
    rows = [
        [
            f"{truth} {LABELS[truth]}",
            *(str(cell) for run in found["runs"] for cell in run["confusion_matrix"][truth]),
        ]
        for truth in range(count)
    ]
    return table(header, rows)


def _figure(metric: Mapping[str, Any] | None, factor: float, digits: int, unit: str) -> str:
    """A value with its interval; a dash where it is undefined."""
    if metric is None:
        return NONE
    text = f"{metric['value'] * factor:.{digits}f}{unit}"
    if metric["ci95"] is None:
        return text
    low, high = (f"{bound * factor:.{digits}f}" for bound in metric["ci95"])
    return f"{text} ({low}–{high})"


def _difference(metric: Mapping[str, Any] | None, factor: float, digits: int) -> str:
    """A difference with its interval, bold where 0 lies outside; a dash where it is undefined."""
    if metric is None:
        return NONE
    text = f"{metric['value'] * factor:+.{digits}f}"
    if metric["ci95"] is not None:
        low, high = (bound * factor for bound in metric["ci95"])
        text = f"**{text}**" if low > 0 or high < 0 else text
        text += f" ({low:.{digits}f} to {high:.{digits}f})"
    return text.translate(_MINUS)


def _p(value: float | None) -> str:
    """A p-value to one digit, or to two where it is small; a dash where a group was empty."""
    if value is None:
        return NONE
    if value >= 0.001:
        return f"{value:.1g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    mantissa = mantissa.removesuffix(".0")
    return f"{mantissa}·10{str(int(exponent)).translate(_SUPERSCRIPT)}"


@click.command()
@click.option("--write", is_flag=True, help="Put the tables into docs/study/README.md.")
def main(write: bool) -> None:
    """Print the tables of docs/study."""
    with tempfile.TemporaryDirectory() as folder:
        found = compare([STUDY / run for run in RUNS], Path(folder) / "compared")
    page = Page(STUDY / "README.md", write)
    page.put("metrics", metrics_table(found))
    page.put("differences", differences_table(found))
    page.put("confusion", confusion_table(found))


if __name__ == "__main__":
    main()
