"""The reader and the input gate alone, without a network: what a data manager runs first."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any, Literal

from tf_covid.errors import ScanRefused
from tf_covid.result import QualityFlag
from tf_covid.scan.cases import Case, find_cases
from tf_covid.scan.limits import DEFAULT, Limits


@dataclass(frozen=True)
class Checked:
    """What the gate says of one case.

    Args:
        case: Name of the case.
        status: "pass", "repaired" (slices were interpolated) or "refused".
        quality_flags: Everything that was noticed.
        seconds: Seconds that reading took.
        shape: (D, H, W) of the scan; None if it was refused.
        spacing_mm: (D, H, W), in mm; None if it was refused.
        chosen_because: Why this series and no other; "" if it was refused.
    """

    case: str
    status: Literal["pass", "repaired", "refused"]
    quality_flags: tuple[QualityFlag, ...]
    seconds: float
    shape: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None
    chosen_because: str = ""

    def line(self) -> str:
        """One line for a person."""
        parts: list[str] = [self.status]
        if self.shape is not None and self.spacing_mm is not None:
            size = " x ".join(str(index) for index in self.shape)
            parts.append(f"{size} voxels of {' x '.join(f'{mm:.2f}' for mm in self.spacing_mm)} mm")
        parts += [
            f"{flag.code} ({flag.level})" for flag in self.quality_flags if flag.level != "error"
        ]
        errors = [
            f"{flag.code}: {flag.message}" for flag in self.quality_flags if flag.level == "error"
        ]
        parts[0] = " ".join([f"{self.status}:", "; ".join(errors)]) if errors else self.status
        return f"{self.case}: {', '.join(parts)} ({self.seconds:.1f} s)"

    def as_dict(self) -> dict[str, Any]:
        """The same for JSON: case, status, series, quality_flags, seconds."""
        series = None
        if self.shape is not None and self.spacing_mm is not None:
            series = {
                "slices": self.shape[0],
                "shape": list(self.shape),
                "spacing_mm": [round(mm, 6) for mm in self.spacing_mm],
                "chosen_because": self.chosen_because,
            }
        return {
            "case": self.case,
            "status": self.status,
            "series": series,
            "quality_flags": [flag.as_dict() for flag in self.quality_flags],
            "seconds": round(self.seconds, 3),
        }


def check(path: str | os.PathLike[str], limits: Limits = DEFAULT) -> list[Checked]:
    """Read every case of a path and tell what the gate says.

    Args:
        path: Path of an input, as for `find_cases`.
        limits: Bounds on sizes and repairs.
    """
    return [check_case(case) for case in find_cases(path, limits)]


def check_case(case: Case) -> Checked:
    """Read one case and tell what the gate says."""
    start = time.perf_counter()
    try:
        scan = case.read()
    except ScanRefused as refusal:
        return Checked(case.name, "refused", refusal.quality_flags, time.perf_counter() - start)
    return Checked(
        case.name,
        "repaired" if scan.repaired else "pass",
        scan.quality_flags,
        time.perf_counter() - start,
        scan.shape,
        scan.spacing_mm,
        scan.chosen_because,
    )
