"""What the measuring programs share.

Unseen chests on disk, Markdown tables, and the marked places they go to.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from cases import DrawnCase, draw_cases, read_case

from tf_covid.weights import catalog

DOCS = Path(__file__).parents[1] / "docs"

#: Stands where a figure cannot be had: a correlation of two cases, a group without any.
NONE = "–"


def say(text: str) -> None:
    """A line of progress, apart from the tables."""
    print(text, file=sys.stderr, flush=True)


def unseen(folder: Path, seeds: range) -> Iterator[DrawnCase]:
    """The cases of `seeds`, drawn first where they are not there yet.

    One at a time, with a line every ten.
    """
    say(f"{len(seeds)} synthetic chests in {folder}")
    draw_cases(folder, seeds)
    for number, seed in enumerate(seeds, 1):
        yield read_case(folder, seed)
        if number % 10 == 0 or number == len(seeds):
            say(f"measured {number} of {len(seeds)}")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    lines = [_row(header), _row(["---", *["--:"] * (len(header) - 1)])]
    return "\n".join([*lines, *(_row([str(cell) for cell in row]) for row in rows)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def number(value: float | None, digits: int = 2) -> str:
    """A figure, or a dash where there is none."""
    return NONE if value is None or not np.isfinite(value) else f"{value:.{digits}f}"


def percent(share: float, digits: int = 0) -> str:
    """A share of 0–1 in percent."""
    return NONE if not np.isfinite(share) else f"{100 * share:.{digits}f} %"


def mean(values: Iterable[float]) -> float:
    """Mean, NaN of nothing."""
    held = list(values)
    return float(np.mean(held)) if held else float("nan")


def correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Pearson's r; NaN of fewer than three cases, or where one side never changes."""
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])


class Page:
    """A page of `docs/` whose tables this run renews.

    Args:
        path: The page. It holds `<!-- begin: NAME -->` and `<!-- end: NAME -->` for every table.
        write: Put the tables into the page; else they are printed only.
    """

    def __init__(self, path: Path, write: bool) -> None:
        self._path, self._write = path, write

    def put(self, name: str, *parts: str) -> None:
        """Print the parts of one table, and put them between its markers."""
        text = "\n\n".join(parts)
        print(f"\n## {name}\n\n{text}", flush=True)
        if not self._write:
            return
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        page = self._path.read_text("utf-8")
        if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
            raise SystemExit(f"{self._path} does not hold {begin} … {end} once, in this order")
        before, rest = page.split(begin)
        after = rest.split(end)[1]
        self._path.write_text(f"{before}{begin}\n{text}\n{end}{after}", "utf-8")


def shipped() -> list[str]:
    """Names of the severity models that ship."""
    from tf_covid.weights import read_contract

    return [
        name for name, path in catalog.shipped().items() if read_contract(path).task == "severity"
    ]
