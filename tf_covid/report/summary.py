"""`summary.csv`: a row a case, for a spreadsheet or a notebook."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_covid.atomic import make_folder, replacing
from tf_covid.page.formats import harmless_cell
from tf_covid.severity import LABELS, LOBES

if TYPE_CHECKING:
    from tf_covid.result import Result

#: Columns of the lobe scores, in the order of `severity.LOBES`.
LOBE_COLUMNS = tuple(f"{name.replace(' ', '_')}_score" for name in LOBES)

COLUMNS = (
    "case",
    "status",
    "class",
    "label",
    "ct_score",
    "ct_score_read",
    *(f"probability_{position}" for position in range(len(LABELS))),
    "involvement_percent",
    *LOBE_COLUMNS,
    "volume_ml",
    "quality_flags",
    "seconds",
)


def write_summary(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write the table of a run, in the order given, all or nothing.

    Args:
        rows: Rows of `summary_row`.
        path: The CSV file; missing parents are made.

    Raises:
        OutputError: If it cannot be written.
    """
    make_folder(path.parent)
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def summary_row(result: Result | Mapping[str, Any]) -> dict[str, Any]:
    """One row of the table; what was not computed is empty.

    A COVID answer fills the same columns: class 0 or 1, label "negative" or "positive", and the
    probabilities of both.

    Args:
        result: A result, or what its `result.json` holds.
    """
    values = result if isinstance(result, Mapping) else result.as_dict()
    severity, covid = values.get("severity"), values.get("covid")
    lungs = values.get("lungs") or {}
    cells: dict[str, Any] = dict.fromkeys(COLUMNS)
    cells |= {
        "case": harmless_cell(values["case"]),
        "status": values["status"],
        "involvement_percent": lungs.get("involvement_percent"),
        "volume_ml": lungs.get("volume_ml"),
        "quality_flags": " ".join(flag["code"] for flag in values["quality_flags"]),
        "seconds": (values.get("timings_s") or {}).get("total"),
    }
    if severity:
        cells |= {
            "class": severity["class"],
            "label": severity["label"],
            "ct_score": severity["ct_score"],
            "ct_score_read": severity.get("ct_score_read"),
        }
        probabilities = severity["probabilities"]
    elif covid:
        cells |= {
            "class": int(covid["positive"]),
            "label": "positive" if covid["positive"] else "negative",
        }
        probabilities = (1.0 - covid["probability"], covid["probability"])
    else:
        probabilities = ()
    lobes = values.get("lobes") or ()
    cells |= {name: lobe["score"] for name, lobe in zip(LOBE_COLUMNS, lobes, strict=False)}
    cells |= {f"probability_{position}": value for position, value in enumerate(probabilities)}
    return {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in cells.items()
    }
